//! A request per message to a server nearby, such as a sidecar: for what is a web service already.

mod request;
mod response;

use std::{error::Error, str::FromStr, time::Duration};

use backon::BackoffBuilder;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Body, Bytes, Incoming},
    header::RETRY_AFTER,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mayfly_broker::Message;
use mayfly_service::{backoff::backoff, chain, deadline};
use tokio::{net::TcpStream, time::Instant};

use self::{request::Form, response::judge};
use super::{CannotStart, Context, Handler, Interrupt, Outcome, child::time_is_up};

/// Posts every message to a server and takes its answer for the outcome.
///
/// While nobody listens, messages wait. When the connection of a request is cut before its response began,
/// the message is [`Outcome::Crashed`]. When a message is asked to end and isn't answered within two seconds,
/// its connection is closed: what the server does then is its own affair.
#[derive(Debug)]
pub struct Http {
    options: HttpOptions,
    queue: String,
    start_limit: Duration,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// Where messages go, and how they look.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Where they are posted.
    pub url: ServerUrl,
    /// The server is up when a GET of this path has a status of 2xx; without it, when it takes connections.
    pub health_path: Option<String>,
    /// Whether to post all that is known of a message as JSON, instead of its body.
    pub envelope: bool,
}

/// An `http://` URL with a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    uri: Uri,
}

/// Why a request had no response.
enum NoResponse {
    /// The server never saw it.
    NotSent(String),
    /// It may have.
    Cut(String),
    /// It answered something that isn't HTTP.
    NotUnderstood(String),
}

/// How long the server may take to accept a connection, or to say that it is well.
const CHECK_LIMIT: Duration = Duration::from_secs(5);
/// How long the rest of a response may take: the status has told all that matters.
const REST_LIMIT: Duration = Duration::from_secs(10);
/// How much of a response's body is read, so that its connection can be used again.
const BODY_LIMIT: usize = 256 * 1024;
/// How much of it is kept as the reason.
const REASON_LIMIT: usize = 1024;
/// Servers close idle connections after 2 s and more; a request on its way then would look like a crash.
const IDLE_LIMIT: Duration = Duration::from_secs(1);
/// Between looks whether the server is up.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const HTTP_PORT: u16 = 80;

// === impl Http ===

impl Http {
    /// Posts messages of `queue`. Whenever the server is down, it must be up again within `start_limit`.
    #[must_use]
    pub fn new(options: HttpOptions, queue: &str, start_limit: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CHECK_LIMIT));
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_LIMIT).build(connector);
        Self { options, queue: queue.to_owned(), start_limit, client }
    }

    /// Posts until the server has taken it. Ends within the start limit after the server went down.
    async fn post(&self, message: &Message, attempt: u32) -> Result<Outcome, CannotStart> {
        let form = Form::of(message, &self.queue, attempt, self.options.envelope);
        let mut give_up_at = None;
        loop {
            match self.send(form.request(&self.options.url.uri)).await {
                Ok(response) => return Ok(read(response).await),
                Err(NoResponse::NotUnderstood(error)) => return Ok(Outcome::retry(error)),
                Err(NoResponse::Cut(error)) => {
                    let reason = format!("the connection was cut while this message was in work: {error}");
                    return Ok(Outcome::Crashed { reason });
                }
                Err(NoResponse::NotSent(error)) => {
                    let give_up_at = *give_up_at.get_or_insert_with(|| Instant::now() + self.start_limit);
                    tracing::warn!(error, "the server is down, will wait for it");
                    self.is_up(give_up_at, Some(error)).await?;
                }
            }
        }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, NoResponse> {
        self.client.request(request).await.map_err(|error| {
            let text = chain(&error);
            let cause = error.source().and_then(|source| source.downcast_ref::<hyper::Error>());
            if error.is_connect() || cause.is_some_and(hyper::Error::is_canceled) {
                NoResponse::NotSent(text)
            } else if cause.is_some_and(hyper::Error::is_parse) {
                NoResponse::NotUnderstood(text)
            } else {
                NoResponse::Cut(text)
            }
        })
    }

    /// Waits until the server is up, looking after a pause each time; there is a pause before the first look
    /// when an error was seen already.
    async fn is_up(&self, give_up_at: Instant, mut error: Option<String>) -> Result<(), CannotStart> {
        let pauses = backoff(FIRST_PAUSE, LONGEST_PAUSE).build();
        let look = async {
            for pause in pauses {
                if error.is_some() {
                    tokio::time::sleep(pause).await;
                }
                match self.check().await {
                    Ok(()) => break,
                    Err(seen) => {
                        tracing::debug!(error = seen, "the server is not up");
                        error = Some(seen);
                    }
                }
            }
        };
        let looked = tokio::time::timeout_at(give_up_at, look).await;
        looked.map_err(|_| {
            let limit = humantime::format_duration(self.start_limit);
            let reason = error.map_or_else(String::new, |error| format!(": {error}"));
            let url = &self.options.url.uri;
            CannotStart { reason: format!("{url} is not up within {limit} (--start-deadline){reason}") }
        })
    }

    /// Looks once.
    async fn check(&self) -> Result<(), String> {
        let look = async {
            if let Some(path) = &self.options.health_path {
                return self.check_health(path).await;
            }
            let (host, port) = self.options.url.address();
            TcpStream::connect((host, port)).await.map(drop).map_err(|error| error.to_string())
        };
        deadline("look whether the server is up", CHECK_LIMIT, look)
            .await
            .unwrap_or_else(|error| Err(error.to_string()))
    }

    async fn check_health(&self, path: &str) -> Result<(), String> {
        let uri = self.options.url.with_path(path)?;
        let mut request = Request::new(Full::default());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri;
        let response = self.client.request(request).await.map_err(|error| chain(&error))?;
        let status = response.status();
        let reason = beginning(response.into_body()).await;
        if status.is_success() { Ok(()) } else { Err(format!("GET {path}: {}", describe(status, &reason))) }
    }
}

impl Handler for Http {
    async fn prepare(&self, interrupt: &Interrupt) -> Result<(), CannotStart> {
        tokio::select! {
            up = self.is_up(Instant::now() + self.start_limit, None) => up,
            () = interrupt.asked() => Ok(()),
        }
    }

    async fn handle(&self, message: &Message, context: &Context) -> Result<Outcome, CannotStart> {
        tokio::select! {
            biased;
            outcome = self.post(message, context.attempt) => outcome,
            () = time_is_up(&context.interrupt) => Ok(Outcome::Interrupted),
        }
    }
}

/// What a response says.
async fn read(response: Response<Incoming>) -> Outcome {
    let status = response.status();
    let retry_after = response.headers().get(RETRY_AFTER).cloned();
    let reason = beginning(response.into_body()).await;
    judge(status, retry_after.as_ref(), describe(status, &reason))
}

/// Reads a body to its end, within limits, and returns how it begins, as text. Errors end it.
async fn beginning(mut body: impl Body<Data = Bytes> + Unpin) -> String {
    let mut kept = Vec::new();
    let mut size = 0;
    let reading = async {
        while size < BODY_LIMIT
            && let Some(Ok(frame)) = body.frame().await
        {
            let data = frame.into_data().unwrap_or_default();
            size += data.len();
            kept.extend_from_slice(&data[..data.len().min(REASON_LIMIT - kept.len())]);
        }
    };
    if let Err(error) = deadline("read the response", REST_LIMIT, reading).await {
        tracing::debug!(%error, "the connection will not be used again");
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

fn describe(status: StatusCode, reason: &str) -> String {
    if reason.is_empty() { format!("HTTP {status}") } else { format!("HTTP {status}: {reason}") }
}

// === impl ServerUrl ===

impl ServerUrl {
    fn address(&self) -> (&str, u16) {
        let host = self.uri.host().unwrap_or_default();
        (host.trim_start_matches('[').trim_end_matches(']'), self.uri.port_u16().unwrap_or(HTTP_PORT))
    }

    fn with_path(&self, path: &str) -> Result<Uri, String> {
        let mut parts = self.uri.clone().into_parts();
        parts.path_and_query = Some(path.parse().map_err(|error| format!("path {path:?}: {error}"))?);
        Uri::from_parts(parts).map_err(|error| format!("path {path:?}: {error}"))
    }
}

impl FromStr for ServerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri: Uri = text.parse().map_err(|error| format!("no URL: {error}"))?;
        if uri.scheme_str() != Some("http") {
            return Err("must begin with http://: the server is meant to be on this machine".to_owned());
        }
        match uri.authority() {
            Some(authority) if authority.as_str().contains('@') => {
                Err("must not hold a user or password: other processes can see it".to_owned())
            }
            Some(authority) if !authority.host().is_empty() => Ok(Self { uri }),
            _ => Err("has no host".to_owned()),
        }
    }
}

/// A path for [`HttpOptions::health_path`], which begins with a slash.
pub(crate) fn parse_path(text: &str) -> Result<String, String> {
    match text.parse::<hyper::http::uri::PathAndQuery>() {
        Ok(_) if text.starts_with('/') => Ok(text.to_owned()),
        Ok(_) => Err("must begin with /".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
