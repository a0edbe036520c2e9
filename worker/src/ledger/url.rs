//! Where the ledger is and who we are there; never printed with its password.

use std::{fmt, path::PathBuf, str::FromStr};

use redis::{ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};
use tokio_postgres::config::{Host, SslMode};

/// Which store keeps the ledger: `redis://`, `rediss://` (TLS) or `postgres://` (TLS with `sslmode=require`).
#[derive(Clone)]
pub enum LedgerUrl {
    /// A Redis server, or one that speaks its protocol.
    Redis(RedisUrl),
    /// A `PostgreSQL` database.
    Postgres(Box<tokio_postgres::Config>),
}

/// A Redis server.
#[derive(Clone)]
pub struct RedisUrl {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
    /// User, password and database.
    pub(super) settings: RedisConnectionInfo,
}

/// The URL cannot be used; the text never holds the URL itself.
#[derive(Debug, thiserror::Error)]
pub enum BadLedgerUrl {
    /// Not a URL that a ledger can have.
    #[error(
        "ledger url is not valid: {0} (expected redis://:PASSWORD@HOST:PORT/DATABASE or postgres://USER:PASSWORD@HOST:PORT/DATABASE)"
    )]
    Syntax(&'static str),
    /// The file that should hold it cannot be read.
    #[error("ledger url file {path:?} cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

// === impl LedgerUrl ===

impl LedgerUrl {
    /// Kind and address, for people.
    #[must_use]
    pub fn endpoint(&self) -> String {
        match self {
            Self::Redis(RedisUrl { host, port, tls, settings }) => {
                let scheme = if *tls { "rediss" } else { "redis" };
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                format!("{scheme}://{host}:{port}/{}", settings.db())
            }
            Self::Postgres(config) => {
                let hosts = config.get_hosts().iter().enumerate().map(|(index, host)| match host {
                    Host::Tcp(host) => {
                        let port = config.get_ports().get(index).or(config.get_ports().first());
                        format!("{host}:{}", port.copied().unwrap_or(POSTGRES_PORT))
                    }
                    Host::Unix(path) => path.display().to_string(),
                });
                let hosts = hosts.collect::<Vec<_>>().join(",");
                format!("postgres://{hosts}/{}", config.get_dbname().unwrap_or_default())
            }
        }
    }

    /// Whether it asks for TLS.
    #[must_use]
    pub fn uses_tls(&self) -> bool {
        match self {
            Self::Redis(url) => url.tls,
            Self::Postgres(config) => config.get_ssl_mode() != SslMode::Disable,
        }
    }
}

const POSTGRES_PORT: u16 = 5432;

/// Surrounding white space is ignored.
impl FromStr for LedgerUrl {
    type Err = BadLedgerUrl;

    fn from_str(text: &str) -> Result<Self, BadLedgerUrl> {
        let text = text.trim();
        match text.split_once("://") {
            Some(("redis", rest)) => redis_url(rest, false),
            Some(("rediss", rest)) => redis_url(rest, true),
            Some(("postgres" | "postgresql", rest)) => postgres_url(rest),
            _ => Err(BadLedgerUrl::Syntax("it begins with none of redis://, rediss:// and postgres://")),
        }
    }
}

fn redis_url(rest: &str, tls: bool) -> Result<LedgerUrl, BadLedgerUrl> {
    if rest.contains('#') {
        return Err(BadLedgerUrl::Syntax("`#` must be written as %23"));
    }
    // The library's own errors may repeat a part of the URL.
    let syntax = |_| BadLedgerUrl::Syntax("it cannot be parsed");
    let info = format!("redis://{rest}").into_connection_info().map_err(syntax)?;
    let ConnectionAddr::Tcp(host, port) = info.addr().clone() else {
        return Err(BadLedgerUrl::Syntax("it names no host"));
    };
    Ok(LedgerUrl::Redis(RedisUrl { host, port, tls, settings: info.redis_settings().clone() }))
}

/// `sslmode` means what it says: without it or with `disable` no TLS, with `require` or `verify-full` TLS with
/// the server's certificate verified. What falls back silently (`prefer`, `allow`) is refused.
fn postgres_url(rest: &str) -> Result<LedgerUrl, BadLedgerUrl> {
    let (base, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut mode = SslMode::Disable;
    let mut others = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", "disable")) => mode = SslMode::Disable,
            Some(("sslmode", "require" | "verify-full")) => mode = SslMode::Require,
            Some(("sslmode", _)) => {
                return Err(BadLedgerUrl::Syntax("sslmode must be disable, require or verify-full"));
            }
            _ => others.push(pair),
        }
    }
    let mut config: tokio_postgres::Config = format!("postgres://{base}?{}", others.join("&"))
        .parse()
        .map_err(|_| BadLedgerUrl::Syntax("it cannot be parsed"))?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(BadLedgerUrl::Syntax("it names no host"));
    }
    if config.get_user().is_none() {
        return Err(BadLedgerUrl::Syntax("it names no user"));
    }
    config.ssl_mode(mode);
    Ok(LedgerUrl::Postgres(Box::new(config)))
}

/// Without the password.
impl fmt::Debug for LedgerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "LedgerUrl({})", self.endpoint())
    }
}

/// Without the password.
impl fmt::Debug for RedisUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RedisUrl({}:{})", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> LedgerUrl {
        text.parse().unwrap()
    }

    #[test]
    fn people_see_where_it_is_but_no_password() {
        let cases = [
            ("redis://h", "redis://h:6379/0", false),
            (" rediss://u:hunter2@h:1/3\n", "rediss://h:1/3", true),
            ("redis://:hunter2@[::1]:7", "redis://[::1]:7/0", false),
            ("postgres://u:hunter2@h/db", "postgres://h:5432/db", false),
            ("postgresql://u:hunter2@h:1,i:2/db?sslmode=require", "postgres://h:1,i:2/db", true),
            (
                "postgres://u:hunter2@h/db?sslmode=verify-full&application_name=x",
                "postgres://h:5432/db",
                true,
            ),
            ("postgres://u:p@h/db?sslmode=disable", "postgres://h:5432/db", false),
        ];
        for (text, endpoint, tls) in cases {
            let url = parse(text);
            assert_eq!((url.endpoint(), url.uses_tls()), (endpoint.to_owned(), tls), "{text}");
            assert_eq!(format!("{url:?}"), format!("LedgerUrl({endpoint})"));
        }
    }

    #[test]
    fn a_bad_url_is_told_without_repeating_any_of_it() {
        let cases = [
            "hunter2",
            "amqp://u:hunter2@h/",
            "redis://u:hun#ter2@h/",
            "redis://u:p@h/hunter2",
            "redis://u:hunter2@",
            "redis://u:p@h/?protocol=hunter2",
            "postgres://u:hunter2",
            "postgres:///hunter2",
            "postgres://h/hunter2",
            "postgres://u:hunter2@h:99999999/",
            "postgres://u:hunter2@h/?sslmode=prefer",
            "postgres://u:p@h/?hunter2=1",
        ];
        for text in cases {
            let error = text.parse::<LedgerUrl>().expect_err(text);
            let told = format!("{error} {error:?}");
            assert!(!told.contains("hunter2") && !told.contains("ter2"), "{text}: {told}");
        }
    }

    #[test]
    fn a_password_may_hold_anything_that_is_written_in_percent() {
        let LedgerUrl::Redis(url) = parse("redis://u:s3cr%23%2Fet@h") else { unreachable!() };
        assert_eq!(url.settings.password(), Some("s3cr#/et"));
        let LedgerUrl::Postgres(config) = parse("postgres://u:s3cr%23%2Fet@h/d") else { unreachable!() };
        assert_eq!(config.get_password(), Some(&b"s3cr#/et"[..]));
    }
}
