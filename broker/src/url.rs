//! Where the broker is and who we are there; never printed with its password.

use std::{fmt, path::PathBuf, str::FromStr};

use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use mayfly_service::tls::{BadTls, TlsFiles};

/// An AMQP URL with our defaults filled in (`frame_max`, `heartbeat`) where it is silent, and the files that
/// its TLS needs.
#[derive(Clone)]
pub struct BrokerUrl {
    uri: AMQPUri,
    tls: TlsFiles,
}

/// The URL cannot be used; the text never holds the URL itself.
#[derive(Debug, thiserror::Error)]
pub enum BadUrl {
    /// Not an AMQP URL.
    #[error("broker url is not valid: {0} (expected amqp://USER:PASSWORD@HOST:PORT/VHOST)")]
    Syntax(String),
    /// The file that should hold it cannot be read.
    #[error("broker url file {path:?} cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The URL and the files for TLS contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
    /// A file for TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] BadTls),
    /// Neither a file nor the environment gives one.
    #[error("no broker url: give --broker-url-file FILE or set {env}")]
    Absent {
        /// The environment variable looked at.
        env: String,
    },
}

/// Where a program finds its broker URL and the files for its TLS. The URL itself is never an argument:
/// arguments are visible to every user of the machine.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct BrokerArgs {
    /// File that holds the broker's URL (amqp:// or amqps://), for example a mounted Secret.
    #[arg(long, env = "MAYFLY_BROKER_URL_FILE", value_name = "FILE", global = true)]
    pub broker_url_file: Option<PathBuf>,
    /// Environment variable that holds the broker's URL, where no file is given.
    #[arg(long, value_name = "NAME", default_value = "MAYFLY_BROKER_URL", global = true)]
    pub broker_url_env: String,
    /// File with certificates of authorities (PEM) to trust besides the system's, for amqps:// [default: the
    /// system's; where it has none, those of the public web].
    #[arg(long, env = "MAYFLY_BROKER_CA_FILE", value_name = "FILE", global = true)]
    pub broker_ca_file: Option<PathBuf>,
    /// File with our certificate (PEM), for brokers that ask for one. Needs --broker-key-file.
    #[arg(long, env = "MAYFLY_BROKER_CERT_FILE", value_name = "FILE", global = true)]
    pub broker_cert_file: Option<PathBuf>,
    /// File with the private key of --broker-cert-file (PEM, not encrypted).
    #[arg(long, env = "MAYFLY_BROKER_KEY_FILE", value_name = "FILE", global = true)]
    pub broker_key_file: Option<PathBuf>,
}

/// Seconds; the broker's own default of 60 would leave a dead worker's messages in flight for two minutes.
const HEARTBEAT: u16 = 15;

/// The parameters that a URL may carry. An unknown one is refused: `?` within a password begins a query too.
const PARAMETERS: [&str; 5] =
    ["auth_mechanism", "channel_max", "connection_timeout", "frame_max", "heartbeat"];

// === impl BrokerUrl ===

impl BrokerUrl {
    /// The same URL with `frame_max` bytes per frame, unless the URL itself says otherwise. lapin keeps
    /// 64 frames per connection: 8192 costs 0.09 MB of memory, its own default 7.8 MB.
    #[must_use]
    pub fn with_default_frame_max(mut self, frame_max: u32) -> Self {
        self.uri.query.frame_max.get_or_insert(frame_max);
        self
    }

    /// The same URL with `frame_max` bytes per frame, whatever it said before.
    #[must_use]
    pub const fn with_frame_max(mut self, frame_max: u32) -> Self {
        self.uri.query.frame_max = Some(frame_max);
        self
    }

    /// How many bytes per frame it asks for; `None`: as many as the broker allows.
    #[must_use]
    pub fn frame_max(&self) -> Option<u32> {
        self.uri.query.frame_max.filter(|frame_max| *frame_max > 0)
    }

    /// The same URL with `tls` for its TLS, after a look at whether all of it can be used.
    ///
    /// # Errors
    /// `Contradiction` where TLS is asked for and the URL does not speak it, or the other way round; `Tls` for
    /// a file that cannot be used.
    pub fn with_tls(mut self, tls: TlsFiles) -> Result<Self, BadUrl> {
        let refuse = |what| Err(BadUrl::Contradiction(what));
        let external = self.is_external();
        match self.uri.scheme {
            AMQPScheme::AMQP if !tls.is_empty() => {
                return refuse(
                    "files for TLS are given, but the broker's url begins with amqp://, which is not \
                     encrypted: write amqps://, or leave out --broker-ca-file and --broker-cert-file",
                );
            }
            AMQPScheme::AMQP if external => {
                return refuse(
                    "auth_mechanism=external logs in by a client certificate: write amqps:// and give \
                     --broker-cert-file and --broker-key-file",
                );
            }
            AMQPScheme::AMQPS if external && tls.cert.is_none() => {
                return refuse(
                    "auth_mechanism=external logs in by a client certificate: give --broker-cert-file and \
                     --broker-key-file",
                );
            }
            AMQPScheme::AMQPS => drop(tls.client_config()?),
            AMQPScheme::AMQP => {}
        }
        self.tls = tls;
        Ok(self)
    }

    /// `host:port/vhost`, for people; the default virtual host `/` is left out.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let host = &self.uri.authority.host;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let vhost = if self.uri.vhost == "/" { "" } else { &self.uri.vhost };
        format!("{host}:{}/{vhost}", self.uri.authority.port)
    }

    /// User name and password, for what belongs to the same broker; `None` where a certificate logs in.
    #[must_use]
    pub fn login(&self) -> Option<(&str, &str)> {
        let userinfo = &self.uri.authority.userinfo;
        (!self.is_external()).then_some((&*userinfo.username, &*userinfo.password))
    }

    /// The virtual host.
    #[must_use]
    pub fn vhost(&self) -> &str {
        &self.uri.vhost
    }

    /// Whom we log in as, for people.
    pub(crate) fn who(&self) -> String {
        if self.is_external() {
            "the user of the client certificate".to_owned()
        } else {
            format!("user {:?}", self.uri.authority.userinfo.username)
        }
    }

    /// Whether the broker takes the user's name from our certificate.
    fn is_external(&self) -> bool {
        self.uri.query.auth_mechanism == Some(SASLMechanism::External)
    }

    pub(crate) const fn uri(&self) -> &AMQPUri {
        &self.uri
    }

    pub(crate) const fn is_encrypted(&self) -> bool {
        matches!(self.uri.scheme, AMQPScheme::AMQPS)
    }

    pub(crate) const fn tls(&self) -> &TlsFiles {
        &self.tls
    }
}

/// Surrounding white space is ignored; an empty path means the virtual host `/`, as an absent one does.
impl FromStr for BrokerUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let text = text.trim();
        let syntax = |what: &str| BadUrl::Syntax(what.to_owned());
        let Some((_, rest)) =
            text.split_once("://").filter(|(scheme, _)| matches!(*scheme, "amqp" | "amqps"))
        else {
            return Err(syntax("it does not begin with amqp:// or amqps://"));
        };
        if rest.contains('#') {
            return Err(syntax("`#` must be written as %23"));
        }
        if let Some((_, query)) = rest.split_once('?') {
            let known = |pair: &str| PARAMETERS.contains(&pair.split('=').next().unwrap_or_default());
            if !query.split('&').all(known) {
                return Err(syntax("unknown parameter after `?`; within a password write %3F"));
            }
        }
        // What follows a colon in the library's texts may be a part of the URL.
        let mut uri: AMQPUri = text
            .parse()
            .map_err(|error: String| syntax(error.split(':').next().unwrap_or("it cannot be parsed")))?;
        // The library takes "localhost" for an IPv6 address.
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        if let Some((address, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
            address.clone_into(&mut uri.authority.host);
        }
        if uri.vhost.is_empty() {
            "/".clone_into(&mut uri.vhost);
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        Ok(Self { uri, tls: TlsFiles::default() })
    }
}

/// Without the password.
impl fmt::Debug for BrokerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "BrokerUrl({}://{}@{})",
            self.uri.scheme,
            self.uri.authority.userinfo.username,
            self.endpoint()
        )
    }
}

// === impl BrokerArgs ===

impl BrokerArgs {
    /// Reads the URL: the file where one is named, else the environment variable. Looks at the files for TLS
    /// too, so that a wrong one is told before anything is tried.
    ///
    /// # Errors
    /// [`BadUrl`] when there is none, it makes no sense, or a file cannot be used.
    pub fn load(&self) -> Result<BrokerUrl, BadUrl> {
        let Self { broker_url_file, broker_url_env, broker_ca_file, broker_cert_file, broker_key_file } =
            self;
        let text = if let Some(path) = broker_url_file {
            std::fs::read_to_string(path).map_err(|source| BadUrl::File { path: path.clone(), source })?
        } else {
            match std::env::var(broker_url_env) {
                Ok(text) if !text.trim().is_empty() => text,
                Err(std::env::VarError::NotUnicode(_)) => {
                    return Err(BadUrl::Syntax("it is not UTF-8".to_owned()));
                }
                Ok(_) | Err(std::env::VarError::NotPresent) => {
                    return Err(BadUrl::Absent { env: broker_url_env.clone() });
                }
            }
        };
        let tls = TlsFiles {
            ca: broker_ca_file.clone(),
            cert: broker_cert_file.clone(),
            key: broker_key_file.clone(),
        };
        text.parse::<BrokerUrl>()?.with_tls(tls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> BrokerUrl {
        text.parse().unwrap()
    }

    #[test]
    fn defaults_fill_only_what_the_url_leaves_open() {
        let url = parse("amqp://u:p@h").with_default_frame_max(8192);
        assert_eq!((url.uri().query.heartbeat, url.uri().query.frame_max), (Some(15), Some(8192)));
        let url = parse("amqp://u:p@h/?heartbeat=3&frame_max=4096").with_default_frame_max(8192);
        assert_eq!((url.uri().query.heartbeat, url.uri().query.frame_max), (Some(3), Some(4096)));
        assert_eq!(url.with_frame_max(16_384).frame_max(), Some(16_384));
        assert_eq!(parse("amqp://h/?frame_max=0").with_default_frame_max(8192).frame_max(), None);
    }

    #[test]
    fn people_see_host_port_and_virtual_host() {
        let cases = [
            ("amqp://u:p@rabbit", "rabbit:5672/"),
            (" amqp://u:p@rabbit:1/%2f\n", "rabbit:1/"),
            ("amqps://u:p@rabbit/", "rabbit:5671/"),
            ("amqp://u:p@rabbit/jobs", "rabbit:5672/jobs"),
            ("amqp://u:p@[::1]:7/jobs", "[::1]:7/jobs"),
            ("amqp://u:p@127.0.0.1/a%2fb?heartbeat=3", "127.0.0.1:5672/a/b"),
        ];
        for (text, endpoint) in cases {
            assert_eq!(parse(text).endpoint(), endpoint, "{text}");
        }
    }

    #[test]
    fn the_debug_form_has_the_user_but_not_the_password() {
        let url = parse("amqps://worker:s3cr%21et@rabbit/jobs");
        assert_eq!(format!("{url:?}"), "BrokerUrl(amqps://worker@rabbit:5671/jobs)");
        assert_eq!(url.uri().authority.userinfo.password, "s3cr!et");
    }

    #[test]
    fn a_bad_url_is_told_without_repeating_any_of_it() {
        let cases = [
            "hunter2",
            "hunter2:hunter2",
            "http://u:hunter2@h/",
            "amqp://u:hunter2",
            "amqp://u:hun#ter2@h/",
            "amqp://u:1?hunter2@h/",
            "amqp://u:%ffhunter2@h/",
            "amqp://u:p@h/?auth_mechanism=hunter2",
            "amqp://u:p@h/?heartbeat=hunter2",
            "amqp://u:hunter2@h:99999/",
        ];
        for text in cases {
            let error = text.parse::<BrokerUrl>().unwrap_err();
            let told = format!("{error} {error:?}");
            assert!(!told.contains("hunter2") && !told.contains("ter2"), "{text}: {told}");
        }
    }

    #[test]
    fn the_file_wins_and_its_line_end_does_not_matter() {
        let file = std::env::temp_dir().join(format!("mayfly-url-{}", std::process::id()));
        std::fs::write(&file, "amqp://u:p@from-file/\n").unwrap();
        let args = BrokerArgs {
            broker_url_file: Some(file.clone()),
            broker_url_env: "PATH".to_owned(),
            ..BrokerArgs::default()
        };
        let url = args.load();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(url.unwrap().endpoint(), "from-file:5672/");
        assert!(matches!(args.load(), Err(BadUrl::File { .. })));
    }

    #[test]
    fn encryption_that_was_asked_for_is_never_left_out_silently() {
        let cert = TlsFiles { cert: Some("c".into()), key: Some("k".into()), ca: None };
        let ca = TlsFiles { ca: Some("ca".into()), ..TlsFiles::default() };
        let refused = |url: &str, tls: &TlsFiles| parse(url).with_tls(tls.clone()).unwrap_err().to_string();
        assert!(refused("amqp://h", &ca).contains("write amqps://"));
        assert!(refused("amqp://h", &cert).contains("write amqps://"));
        assert!(refused("amqp://h/?auth_mechanism=external", &TlsFiles::default()).contains("amqps://"));
        assert!(refused("amqps://h/?auth_mechanism=external", &ca).contains("--broker-cert-file"));
        assert!(refused("amqps://h", &ca).contains("CA file \"ca\" cannot be read"));
        parse("amqp://h").with_tls(TlsFiles::default()).unwrap();
        parse("amqps://h").with_tls(TlsFiles::default()).unwrap();
    }

    #[test]
    fn nothing_given_names_the_variable_that_was_looked_at() {
        let args = BrokerArgs { broker_url_env: "MAYFLY_TEST_UNSET".to_owned(), ..BrokerArgs::default() };
        let error = args.load().unwrap_err().to_string();
        assert_eq!(error, "no broker url: give --broker-url-file FILE or set MAYFLY_TEST_UNSET");
    }
}
