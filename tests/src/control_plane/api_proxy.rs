//! A proxy before the Kubernetes API that can be told to misbehave, as a whole or request by request, and
//! that remembers what it was asked. Speaks TLS and HTTP/1.1; watches stream through it.

use std::{net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow};
use http_body_util::BodyExt;
use hyper::{
    StatusCode,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER, TRANSFER_ENCODING},
    http::request::Parts,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::client::Body;
use mayfly_service::deadline;
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};

use super::{Act, Request, Rule};
use crate::node::ports;

/// How long the API server may take to begin an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How long a client may take to shake hands.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How much of an error's text is kept.
const MESSAGE_LIMIT: usize = 64 * 1024;

/// What the proxy does as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Forwards.
    Open,
    /// Closes what is there; new connections are refused, as where nobody listens.
    Refused,
    /// Accepts connections and requests, and says nothing: to them never, not even when it opens again.
    Hung,
}

/// A running proxy. Dropping it closes its connections.
#[derive(Debug)]
pub struct ApiProxy {
    port: u16,
    certificate: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    book: watch::Sender<Book>,
    upstream: Upstream,
}

/// The API server as one user.
struct Upstream(kube::Client);

/// Everything that changes.
#[derive(Debug)]
struct Book {
    door: Door,
    rules: Vec<Rule>,
    released: bool,
    requests: Vec<Request>,
    /// By their index in `requests`.
    kept: Vec<(usize, Parts, Bytes)>,
}

// === impl Book ===

impl Book {
    /// Writes a request down; says where, and what is to be done with it.
    fn enter(&mut self, request: Request) -> (usize, Option<Act>) {
        let mut act = None;
        for rule in &mut self.rules {
            // All of them count it; what the first one says is done.
            let wanted = rule.apply(&request);
            act = act.or(wanted);
        }
        self.requests.push(request);
        (self.requests.len() - 1, act)
    }

    fn refused(&mut self, index: usize) {
        if let Some(request) = self.requests.get_mut(index) {
            request.answered = Some(Instant::now());
        }
    }

    fn answered(&mut self, index: usize, status: StatusCode, message: Option<String>) {
        if let Some(request) = self.requests.get_mut(index) {
            request.status = Some(status.as_u16());
            request.answered = Some(Instant::now());
            request.message = message;
        }
    }
}

// === impl ApiProxy ===

impl ApiProxy {
    /// Starts forwarding from a free loopback port to the API server, as the user that `upstream` is.
    ///
    /// # Errors
    /// When there is no free port, or no certificate can be made.
    pub async fn start(upstream: kube::Client) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let mut tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .context("the proxy's certificate")?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let [port] = ports::free()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let book = Book {
            door: Door::Open,
            rules: Vec::new(),
            released: false,
            requests: Vec::new(),
            kept: Vec::new(),
        };
        let shared = Arc::new(Shared { book: watch::Sender::new(book), upstream: Upstream(upstream) });
        let task = tokio::spawn(serve(listener, port, TlsAcceptor::from(Arc::new(tls)), Arc::clone(&shared)));
        Ok(Self { port, certificate: made.cert.pem(), shared, task })
    }

    /// Writes a kubeconfig at `path` (and a certificate beside it) for the client `client`, which the proxy
    /// tells from others by its token: its name.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn write_kubeconfig(&self, path: &Path, client: &str, namespace: &str) -> Result<()> {
        let ca = path.with_extension("crt");
        std::fs::write(&ca, &self.certificate)?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "proxy", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port), "certificate-authority": ca,
            } }],
            "users": [{ "name": client, "user": { "token": client } }],
            "contexts": [{ "name": "proxy", "context": {
                "cluster": "proxy", "user": client, "namespace": namespace,
            } }],
            "current-context": "proxy",
        });
        Ok(std::fs::write(path, serde_json::to_vec_pretty(&config)?)?)
    }

    /// From now on does this with everything.
    pub fn set(&self, door: Door) {
        self.shared.book.send_modify(|book| book.door = door);
    }

    /// From now on also does this; of several rules that match, the first one counts.
    pub fn rule(&self, rule: Rule) {
        self.shared.book.send_modify(|book| book.rules.push(rule));
    }

    /// Forgets all rules. What was kept stays kept.
    pub fn clear(&self) {
        self.shared.book.send_modify(|book| book.rules.clear());
    }

    /// Lets all go on that [`Act::Pause`] stopped, now and from now on.
    pub fn release(&self) {
        self.shared.book.send_modify(|book| book.released = true);
    }

    /// Everything asked so far, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.book.borrow().requests.clone()
    }

    /// Those that match, in order.
    pub fn matching(&self, wanted: impl Fn(&Request) -> bool) -> Vec<Request> {
        self.shared.book.borrow().requests.iter().filter(|request| wanted(request)).cloned().collect()
    }

    /// The first request that matches, once there is one.
    ///
    /// # Errors
    /// When `limit` passes first.
    pub async fn seen(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Request) -> bool,
    ) -> Result<Request> {
        let mut book = self.shared.book.subscribe();
        let found = async {
            loop {
                if let Some(request) = book.borrow_and_update().requests.iter().find(|one| wanted(one)) {
                    return Ok(request.clone());
                }
                book.changed().await?;
            }
        };
        tokio::time::timeout(limit, found)
            .await
            .with_context(|| format!("no request in {limit:?}: {what}"))?
    }

    /// How many requests are kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.shared.book.borrow().kept.len()
    }

    /// Delivers everything that was kept, in order; returns what the API server answered.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn deliver(&self) -> Result<Vec<u16>> {
        let mut kept = Vec::new();
        self.shared.book.send_modify(|book| kept = std::mem::take(&mut book.kept));
        let mut statuses = Vec::new();
        for (index, parts, body) in kept {
            statuses.push(self.shared.forward(index, parts, body).await?.status().as_u16());
        }
        Ok(statuses)
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl Shared ===

impl Shared {
    /// Answers one request of a client.
    async fn answer(&self, request: hyper::Request<Incoming>) -> Result<hyper::Response<Body>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let token = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let client = token.and_then(|token| token.strip_prefix("Bearer ")).unwrap_or("anonymous").to_owned();
        let asked = Request::new(Instant::now(), client, &parts.method, &parts.uri, &body);
        let mut entered = (0, None);
        self.book.send_modify(|book| entered = book.enter(asked));
        let (index, act) = entered;
        let mut book = self.book.subscribe();
        if book.borrow().door == Door::Hung {
            return std::future::pending().await;
        }
        match act {
            None => {}
            Some(Act::Delay(delay)) => tokio::time::sleep(delay).await,
            Some(Act::Pause) => drop(book.wait_for(|book| book.released).await?),
            Some(Act::DropAnswer) => {
                self.forward(index, parts, body).await?.into_body().collect().await?;
                return Err(anyhow!("the answer is dropped"));
            }
            Some(Act::Silence) => {
                self.forward(index, parts, body).await?.into_body().collect().await?;
                return std::future::pending().await;
            }
            Some(Act::Twice) => {
                self.forward(index, parts.clone(), body.clone()).await?.into_body().collect().await?;
            }
            Some(Act::Keep) => {
                self.book.send_modify(|book| book.kept.push((index, parts, body)));
                return std::future::pending().await;
            }
            Some(Act::Answer { status, retry_after }) => {
                self.book.send_modify(|book| book.refused(index));
                return refusal(status, retry_after);
            }
        }
        self.forward(index, parts, body).await
    }

    /// Asks the API server.
    async fn forward(&self, index: usize, parts: Parts, body: Bytes) -> Result<hyper::Response<Body>> {
        let Parts { method, uri, mut headers, .. } = parts;
        for name in [AUTHORIZATION, CONNECTION, HOST, TRANSFER_ENCODING] {
            headers.remove(name);
        }
        let mut request = hyper::Request::builder().method(method).uri(uri).body(Body::from(body))?;
        *request.headers_mut() = headers;
        let Upstream(client) = &self.upstream;
        let response = deadline("the API server's answer", ANSWER_LIMIT, client.send(request)).await??;
        let (mut head, body) = response.into_parts();
        head.headers.remove(CONNECTION);
        head.headers.remove(TRANSFER_ENCODING);
        if head.status.is_success() {
            self.book.send_modify(|book| book.answered(index, head.status, None));
            return Ok(hyper::Response::from_parts(head, body));
        }
        let body = deadline("the API server's error", ANSWER_LIMIT, body.collect()).await??.to_bytes();
        let text = String::from_utf8_lossy(&body[..body.len().min(MESSAGE_LIMIT)]);
        let status = serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default();
        let message = status["message"].as_str().unwrap_or(&text).to_owned();
        self.book.send_modify(|book| book.answered(index, head.status, Some(message)));
        Ok(hyper::Response::from_parts(head, Body::from(body)))
    }
}

/// The answer of an API server that is overloaded, or broken.
fn refusal(status: u16, retry_after: Option<u32>) -> Result<hyper::Response<Body>> {
    let text = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": status,
        "message": "the proxy plays an API server in trouble",
        "reason": if status == 429 { "TooManyRequests" } else { "InternalError" },
    });
    let mut response = hyper::Response::builder().status(status).header(CONTENT_TYPE, "application/json");
    if let Some(seconds) = retry_after {
        response = response.header(RETRY_AFTER, seconds);
    }
    Ok(response.body(Body::from(text.to_string().into_bytes()))?)
}

// === impl Upstream ===

impl std::fmt::Debug for Upstream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Upstream")
    }
}

/// Accepts connections as long as the proxy lives.
async fn serve(listener: TcpListener, port: u16, tls: TlsAcceptor, shared: Arc<Shared>) {
    let mut book = shared.book.subscribe();
    let mut connections = JoinSet::new();
    let mut listener = Some(listener);
    loop {
        let refused = book.borrow_and_update().door == Door::Refused;
        if refused {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.ok();
        }
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok((client, _)) = accept => {
                connections.spawn(connect(client, tls.clone(), Arc::clone(&shared)));
            }
            changed = book.wait_for(|book| (book.door == Door::Refused) != refused) => {
                if changed.is_err() { return }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, until its end or until connections are refused.
async fn connect(client: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>) {
    let mut refused = shared.book.subscribe();
    let hung = refused.borrow().door == Door::Hung;
    let _ = client.set_nodelay(true);
    let served = async {
        if hung {
            return std::future::pending().await;
        }
        let stream = tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(client)).await??;
        let service = service_fn(|request| {
            let shared = Arc::clone(&shared);
            async move { shared.answer(request).await.map_err(|error| format!("{error:#}")) }
        });
        anyhow::Ok(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?)
    };
    tokio::select! {
        // Whatever ends a connection, its client notices.
        _ = served => {}
        _ = refused.wait_for(|book| book.door == Door::Refused) => {}
    }
}
