//! One address at which the broker tells what it counts.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::{
    Request, StatusCode,
    body::{Body, Bytes},
    header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, LOCATION, TRANSFER_ENCODING},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mayfly_broker::BrokerUrl;
use mayfly_service::{
    DeadlineExceeded, chain, deadline,
    tls::{BadTls, TlsFiles, TlsProblem},
};

use super::page::{Page, Unreadable};
use crate::{
    config::{CounterSource, CountersConfig},
    policy::Why,
};

/// The limit of one answer, from connecting to its end.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);
/// The longest answer that is read: 20,000 queues take less.
const LONGEST: usize = 16 << 20;
/// Of an address that an answer leads to, so many characters are shown.
const LONGEST_SHOWN: usize = 200;

/// An address, and what is asked for there.
pub(crate) struct Endpoint {
    /// For people.
    address: String,
    uri: hyper::Uri,
    source: CounterSource,
    login: Option<Login>,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

/// User name and password.
#[derive(Clone)]
pub(crate) struct Login {
    user: String,
    password: String,
}

/// Why an endpoint cannot be made, or gave no page.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CannotRead {
    /// Its password file cannot be read.
    #[error("password file {file:?} cannot be read")]
    Password {
        /// The file.
        file: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its CA file cannot be used.
    #[error(transparent)]
    Tls(#[from] BadTls),
    /// Its address cannot be put together.
    #[error("{0:?} is no address to ask at")]
    Address(String),
    /// No connection, or it broke.
    #[error("{address} is unreachable: {problem}")]
    Unreachable {
        /// Where.
        address: String,
        /// What happened.
        problem: String,
    },
    /// No answer in time.
    #[error("{address} does not answer")]
    Late {
        /// Where.
        address: String,
        /// How long it was given.
        #[source]
        source: DeadlineExceeded,
    },
    /// It refuses us.
    #[error("{address} refuses us ({status}): {hint}")]
    Forbidden {
        /// Where.
        address: String,
        /// Its answer.
        status: StatusCode,
        /// What to do.
        hint: &'static str,
    },
    /// It and we did not come to terms over TLS.
    #[error("no TLS with {address}: {problem}{hint}")]
    NoTls {
        /// Where.
        address: String,
        /// Why.
        problem: TlsProblem,
        /// What to do.
        hint: &'static str,
    },
    /// It sends us elsewhere.
    #[error("{address} leads elsewhere ({status}, to {to:?}): give the address that answers itself")]
    Moved {
        /// Where.
        address: String,
        /// Its answer.
        status: StatusCode,
        /// Where to, as it says.
        to: String,
    },
    /// It says something else than 200.
    #[error("{address} answers with {status}: {hint}")]
    Status {
        /// Where.
        address: String,
        /// Its answer.
        status: StatusCode,
        /// What to do.
        hint: &'static str,
    },
    /// Its answer is longer than we read.
    #[error("the answer of {address} is longer than {LONGEST} bytes")]
    TooLong {
        /// Where.
        address: String,
    },
    /// Its answer ends where the connection does, so half of it would pass for all.
    #[error(
        "the answer of {address} has no length: half of it could not be told from all; ask RabbitMQ itself, not a proxy"
    )]
    Unmarked {
        /// Where.
        address: String,
    },
    /// Its answer is something else.
    #[error("{address}")]
    Unreadable {
        /// Where.
        address: String,
        /// What is wrong with it.
        #[source]
        source: Unreadable,
    },
}

// === impl CannotRead ===

impl CannotRead {
    /// What the counters are, where they cannot be read for this.
    pub(crate) const fn why(&self) -> Why {
        match self {
            Self::Unreachable { .. } | Self::Late { .. } => Why::Unreachable,
            Self::Forbidden { .. } => Why::Forbidden,
            _ => Why::Unusable,
        }
    }
}

// === impl Login ===

impl Login {
    /// The one that the broker's URL holds; `None` where it names nobody.
    pub(crate) fn of(url: &BrokerUrl) -> Option<Self> {
        url.login().map(|(user, password)| Self { user: user.to_owned(), password: password.to_owned() })
    }
}

/// Never shows the password.
impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// All endpoints of `config`, for the queues of `vhost`. Where it names no user, the management plugin is
    /// asked as `broker`: it always wants one. Reads files.
    ///
    /// # Errors
    /// `Password`, `Tls` or `Address`.
    pub(crate) fn all(
        config: &CountersConfig,
        vhost: &str,
        broker: Option<Login>,
    ) -> Result<Vec<Self>, CannotRead> {
        let CountersConfig { source, urls, user, password_file, ca_file } = config;
        let login = match (user, password_file) {
            (Some(user), Some(file)) => {
                let password = std::fs::read_to_string(file)
                    .map_err(|source| CannotRead::Password { file: file.clone(), source })?;
                let password = password.trim_end_matches(['\r', '\n']).to_owned();
                Some(Login { user: user.clone(), password })
            }
            _ if *source == CounterSource::Management => broker,
            _ => None,
        };
        let tls = TlsFiles { ca: ca_file.clone(), ..TlsFiles::default() }.client_config()?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(Arc::unwrap_or_clone(tls))
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        urls.iter()
            .map(|url| {
                let full = format!("{}{}", url.trim_end_matches('/'), source.path(vhost));
                let uri = full.parse().map_err(|_| CannotRead::Address(url.clone()))?;
                let (login, client) = (login.clone(), client.clone());
                Ok(Self { address: url.clone(), uri, source: *source, login, client })
            })
            .collect()
    }

    /// Asks once.
    ///
    /// # Errors
    /// What keeps us from a page.
    pub(crate) async fn page(&self) -> Result<Page, CannotRead> {
        let address = || self.address.clone();
        let body = deadline("read counters", ANSWER_LIMIT, self.get())
            .await
            .map_err(|source| CannotRead::Late { address: address(), source })??;
        let page = match self.source {
            CounterSource::Prometheus => Page::prometheus(&body),
            CounterSource::Management => Page::management(&body),
        };
        page.map_err(|source| CannotRead::Unreadable { address: address(), source })
    }

    async fn get(&self) -> Result<Bytes, CannotRead> {
        let address = || self.address.clone();
        let unreachable = |error: &(dyn Error + 'static)| match TlsProblem::of(error) {
            Some(problem) => {
                let hint = next_step(&problem);
                CannotRead::NoTls { address: address(), problem, hint }
            }
            None => CannotRead::Unreachable { address: address(), problem: chain(error) },
        };
        let mut request = Request::get(self.uri.clone()).header(ACCEPT, "text/plain, application/json");
        if let Some(Login { user, password }) = &self.login {
            let basic = BASE64_STANDARD.encode(format!("{user}:{password}"));
            request = request.header(AUTHORIZATION, format!("Basic {basic}"));
        }
        let request = request.body(Empty::new()).map_err(|error| unreachable(&error))?;
        let response = self.client.request(request).await.map_err(|error| unreachable(&error))?;
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            let hint = self.source.forbidden();
            return Err(CannotRead::Forbidden { address: address(), status, hint });
        }
        if status.is_redirection() {
            let to = response.headers().get(LOCATION).map(|to| String::from_utf8_lossy(to.as_bytes()));
            let to = to.unwrap_or_default().chars().take(LONGEST_SHOWN).collect();
            return Err(CannotRead::Moved { address: address(), status, to });
        }
        if status != StatusCode::OK {
            let failed = status.is_server_error();
            let hint = if failed { "see its log" } else { self.source.not_found() };
            return Err(CannotRead::Status { address: address(), status, hint });
        }
        let headers = response.headers();
        if !headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(TRANSFER_ENCODING) {
            return Err(CannotRead::Unmarked { address: address() });
        }
        if response.body().size_hint().lower() > LONGEST as u64 {
            return Err(CannotRead::TooLong { address: address() });
        }
        match Limited::new(response.into_body(), LONGEST).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(CannotRead::TooLong { address: address() }),
            Err(error) => Err(unreachable(&*error)),
        }
    }

    /// For people.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, source, login, .. } = self;
        formatter
            .debug_struct("Endpoint")
            .field("address", address)
            .field("source", source)
            .field("login", login)
            .finish_non_exhaustive()
    }
}

// === impl CounterSource ===

impl CounterSource {
    fn path(self, vhost: &str) -> String {
        let vhost = percent_encoded(vhost);
        match self {
            Self::Prometheus => {
                let families = "family=queue_exchange_metrics&family=queue_coarse_metrics\
                                &family=queue_delivery_metrics";
                format!("/metrics/detailed?vhost={vhost}&{families}")
            }
            Self::Management => {
                let columns = "name,messages_unacknowledged,message_stats.publish,message_stats.ack,\
                               head_message_timestamp";
                format!("/api/queues/{vhost}?columns={columns}")
            }
        }
    }

    const fn forbidden(self) -> &'static str {
        match self {
            Self::Prometheus => "give counters.user and counters.password_file",
            Self::Management => "the user needs the tag monitoring and a permission in the virtual host",
        }
    }

    const fn not_found(self) -> &'static str {
        match self {
            Self::Prometheus => {
                "is the plugin rabbitmq_prometheus on (rabbitmq-plugins enable rabbitmq_prometheus), and is \
                 this its address?"
            }
            Self::Management => {
                "is the plugin rabbitmq_management on (rabbitmq-plugins enable rabbitmq_management), and may \
                 the user see the virtual host?"
            }
        }
    }
}

/// What to do about `problem`, to be put behind it.
const fn next_step(problem: &TlsProblem) -> &'static str {
    match problem {
        TlsProblem::UnknownCa => ": give the certificate of the authority that signed it by counters.ca_file",
        TlsProblem::NotTls => ": write http://, or give its port for TLS",
        TlsProblem::Expired => ": renew it at the broker",
        TlsProblem::WrongName { .. } => ": write one of the certificate's names into the address",
        _ => "",
    }
}

/// As a part of a path or a query.
fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}
