//! What a broker's counters look like to those who read them, from a server that can be told to misbehave.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use crate::node::Certificate;

/// How a client begins that wants TLS.
const TLS_HANDSHAKE: u8 = 0x16;

/// What the server does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// Answers as RabbitMQ does.
    Good,
    /// Takes the connection, and never says a word.
    Hangs,
    /// Sends its headers, and then nothing.
    HangsMidway,
    /// Says a word every second, for ever.
    Trickles,
    /// Closes every connection at once.
    Closes,
    /// Answers with this status.
    Status(u16),
    /// Sends us elsewhere.
    Redirects,
    /// Says that so many bytes come, and sends them.
    Huge(usize),
    /// The same without saying it before.
    HugeChunks(usize),
    /// Something that is no page, of bytes of any kind.
    Garbage,
    /// A page whose numbers are as great as numbers can be.
    Absurd,
    /// Says how long the page is, and closes the connection in its middle.
    Half,
    /// Half of the page, whose end is that of the connection.
    HalfUnmarked,
    /// Speaks something that is not HTTP.
    NotHttp,
}

/// Which of RabbitMQ's plugins it plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugin {
    /// `rabbitmq_prometheus`.
    Prometheus,
    /// `rabbitmq_management`.
    Management,
}

/// Whose counters they are, and what they are.
#[derive(Debug)]
struct Counted {
    plugin: Plugin,
    queue: String,
    published: AtomicU64,
}

/// A server that runs. Dropping it ends it.
#[derive(Debug)]
pub struct CounterServer {
    port: u16,
    manners: watch::Sender<Manners>,
    counted: Arc<Counted>,
    task: JoinHandle<()>,
}

// === impl CounterServer ===

impl CounterServer {
    /// One that plays `plugin` of a broker whose only queue is `queue`, over TLS where it has a certificate.
    ///
    /// # Errors
    /// When there is no free port, or the certificate is none.
    pub async fn start(plugin: Plugin, queue: &str, certificate: Option<&Certificate>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let manners = watch::Sender::new(Manners::Good);
        let tls = certificate.map(acceptor).transpose()?;
        let counted = Arc::new(Counted { plugin, queue: queue.to_owned(), published: AtomicU64::new(0) });
        let task = tokio::spawn(serve(listener, Arc::clone(&counted), tls, manners.subscribe()));
        Ok(Self { port, manners, counted, task })
    }

    /// Where it listens.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// So many messages were published so far.
    pub fn count(&self, published: u64) {
        self.counted.published.store(published, Relaxed);
    }

    /// From now on does this; what it does at the moment is broken off.
    pub fn set(&self, manners: Manners) {
        self.manners.send_replace(manners);
    }
}

impl Drop for CounterServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl Plugin ===

impl Plugin {
    /// Its key in the scaler's configuration.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Prometheus => "prometheus",
            Self::Management => "management",
        }
    }

    fn page(self, queue: &str, published: u64) -> String {
        match self {
            Self::Management => format!(
                r#"[{{"name":"{queue}","messages_unacknowledged":0,"message_stats":{{"publish":{published},"ack":{published}}}}}]"#
            ),
            Self::Prometheus => {
                let mut page = String::from(
                    "rabbitmq_identity_info{rabbitmq_node=\"rabbit@a\",rabbitmq_cluster_permanent_id=\"c\"} 1\n\
                     rabbitmq_build_info{rabbitmq_version=\"4.0.5\"} 1\n",
                );
                for kind in ["exchange_messages_published_total", "messages_acked_total", "messages_unacked"]
                {
                    let _ = writeln!(
                        page,
                        "rabbitmq_detailed_queue_{kind}{{vhost=\"/\",queue=\"{queue}\"}} {published}"
                    );
                }
                page
            }
        }
    }
}

fn acceptor(certificate: &Certificate) -> Result<TlsAcceptor> {
    let chain = vec![CertificateDer::from_pem_slice(certificate.cert.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes())?;
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(TlsAcceptor::from(Arc::new(config.with_no_client_auth().with_single_cert(chain, key)?)))
}

async fn serve(
    listener: TcpListener,
    what: Arc<Counted>,
    tls: Option<TlsAcceptor>,
    manners: watch::Receiver<Manners>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                let (what, tls, mut manners) = (Arc::clone(&what), tls.clone(), manners.clone());
                let now = *manners.borrow_and_update();
                connections.spawn(async move {
                    tokio::select! {
                        // Whoever is answered badly is left alone.
                        _ = connect(stream, &what, tls, now) => {}
                        _ = manners.changed() => {}
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(
    stream: TcpStream,
    what: &Counted,
    tls: Option<TlsAcceptor>,
    manners: Manners,
) -> Result<()> {
    match tls {
        Some(tls) => answer(tls.accept(stream).await?, what, manners).await,
        None => answer(stream, what, manners).await,
    }
}

/// Answers one request on a connection of its own.
async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    Counted { plugin, queue, published }: &Counted,
    manners: Manners,
) -> Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
        if request == [TLS_HANDSHAKE] {
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                .await?;
            return Ok(stream.shutdown().await?);
        }
    }
    let page = plugin.page(queue, published.load(Relaxed));
    let whole = |body: &str| {
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let headers = "HTTP/1.1 200 OK\r\nconnection: close\r\n";
    match manners {
        Manners::Good => stream.write_all(whole(&page).as_bytes()).await?,
        Manners::Absurd => stream.write_all(whole(&plugin.page(queue, u64::MAX)).as_bytes()).await?,
        Manners::Hangs => std::future::pending::<()>().await,
        Manners::HangsMidway => {
            stream.write_all(format!("{headers}content-length: 100000\r\n\r\n").as_bytes()).await?;
            std::future::pending::<()>().await;
        }
        Manners::Trickles => {
            stream.write_all(format!("{headers}content-length: 100000\r\n\r\n").as_bytes()).await?;
            let mut pause = tokio::time::interval(Duration::from_secs(1));
            loop {
                pause.tick().await;
                stream.write_all(b"#").await?;
            }
        }
        Manners::Closes => {}
        Manners::Status(status) => {
            let text = format!("HTTP/1.1 {status} So\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno");
            stream.write_all(text.as_bytes()).await?;
        }
        Manners::Redirects => {
            let there = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/there\r\nconnection: close\r\n\
                         content-length: 0\r\n\r\n";
            stream.write_all(there.as_bytes()).await?;
        }
        Manners::Huge(bytes) => {
            stream.write_all(format!("{headers}content-length: {bytes}\r\n\r\n").as_bytes()).await?;
            pour(&mut stream, bytes, false).await?;
        }
        Manners::HugeChunks(bytes) => {
            stream.write_all(format!("{headers}transfer-encoding: chunked\r\n\r\n").as_bytes()).await?;
            pour(&mut stream, bytes, true).await?;
        }
        Manners::Garbage => {
            let body: Vec<u8> =
                (0..10_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
            stream.write_all(format!("{headers}content-length: {}\r\n\r\n", body.len()).as_bytes()).await?;
            stream.write_all(&body).await?;
        }
        Manners::Half => {
            let whole = whole(&page);
            stream
                .write_all(whole.get(..whole.len() - page.len() / 2).unwrap_or_default().as_bytes())
                .await?;
        }
        Manners::HalfUnmarked => {
            let half: String = page.lines().take(2).flat_map(|line| [line, "\n"]).collect();
            stream.write_all(format!("{headers}\r\n{half}").as_bytes()).await?;
        }
        Manners::NotHttp => stream.write_all(b"220 mail.example.org ESMTP\r\n").await?,
    }
    Ok(stream.shutdown().await?)
}

async fn pour(stream: &mut (impl AsyncWrite + Unpin), bytes: usize, chunks: bool) -> Result<()> {
    let part = vec![b'#'; 1 << 16];
    for _ in 0..bytes.div_ceil(part.len()) {
        if chunks {
            stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).await?;
        }
        stream.write_all(&part).await?;
        if chunks {
            stream.write_all(b"\r\n").await?;
        }
    }
    Ok(())
}
