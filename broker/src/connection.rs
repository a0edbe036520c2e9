//! Connections and channels that never recover by themselves.

use std::{
    fmt, io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use lapin::{
    AsyncTcpStream, ConnectionProperties, ErrorKind, options::ConfirmSelectOptions, protocol::AMQPErrorKind,
    runtime::default_runtime, tcp::RustlsConnector,
};
use mayfly_service::deadline;

use crate::{BrokerUrl, Error, Result};

/// The limit of one ordinary broker call (declare, qos, cancel, close).
pub const CALL_LIMIT: Duration = Duration::from_secs(10);

/// AMQP's reply code for an orderly close.
const REPLY_SUCCESS: u16 = 200;

/// One AMQP connection. Dropping it closes it in the background; [`close`](Self::close) waits for that.
#[derive(Debug)]
pub struct Connection {
    inner: lapin::Connection,
    worn: AtomicBool,
}

/// One channel of a [`Connection`]. The last clone that is dropped closes it in the background.
#[derive(Clone)]
pub struct Channel {
    inner: lapin::Channel,
}

// === impl Connection ===

impl Connection {
    /// Connects as `name` (shown by the broker's tools) within `limit`.
    ///
    /// # Errors
    /// `Unreachable` (also when `limit` passes first), `AccessRefused`, `Tls` or `NotAmqp`.
    pub async fn open(url: &BrokerUrl, name: &str, limit: Duration) -> Result<Self> {
        // On the heap: large, and needed only for a moment.
        let inner = deadline("open connection", limit, Box::pin(connect(url, name)))
            .await
            .unwrap_or_else(|late| Err(io::Error::new(io::ErrorKind::TimedOut, late).into()))
            .map_err(|source| Error::connect(url, source))?;
        Ok(Self { inner, worn: AtomicBool::new(false) })
    }

    /// A new channel.
    ///
    /// # Errors
    /// `Lost` or `Deadline`.
    pub async fn channel(&self) -> Result<Channel> {
        // Each number has one turn.
        for _ in 0..self.most_channels() {
            match deadline("open channel", CALL_LIMIT, self.inner.create_channel()).await? {
                Ok(inner) => return Ok(Channel { inner }),
                // lapin 4.12 never forgets what a channel was closed for, and tells it anew when the channel's
                // number has its next turn. That number is lost.
                Err(source) if is_of_a_channel(&source) && self.is_alive() => {
                    self.worn.store(true, Ordering::Relaxed);
                }
                Err(source) => return Err(Error::lost("open channel", source)),
            }
        }
        Err(Error::Lost { what: "open channel", source: None })
    }

    /// Whether the broker has closed so many channels that their numbers are running out: a fresh connection
    /// has them all again.
    #[must_use]
    pub fn is_worn(&self) -> bool {
        self.worn.load(Ordering::Relaxed)
    }

    /// How many channels it can have at once: the least of what the broker and the URL allow.
    #[must_use]
    pub fn most_channels(&self) -> u16 {
        self.inner.configuration().channel_max()
    }

    /// How many bytes a frame can have: the least of what the broker and the URL allow.
    #[must_use]
    pub fn frame_max(&self) -> u32 {
        self.inner.configuration().frame_max()
    }

    /// Whether the connection is usable as far as we know.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.inner.status().connected()
    }

    /// Whether the broker blocks publishing (memory or disk alarm). While it does, lapin writes nothing at
    /// all on this connection, acks included: never publish on a consuming connection. The broker tells it
    /// after the first message that it did not take, never to a connection that only consumes.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.inner.status().blocked()
    }

    /// Closes with a handshake: when it returns `Ok`, the broker has processed all that was sent.
    ///
    /// # Errors
    /// `Lost` or `Deadline`.
    pub async fn close(self) -> Result<()> {
        deadline("close connection", CALL_LIMIT, self.inner.close(REPLY_SUCCESS, "done".into()))
            .await?
            .map_err(|source| Error::lost("close connection", source))
    }

    pub(crate) fn status(&self) -> &lapin::ConnectionStatus {
        self.inner.status()
    }
}

/// What encrypts a connection to `url`, if that is to be.
pub(crate) fn tls_connector(url: &BrokerUrl) -> lapin::Result<Option<RustlsConnector>> {
    if !url.is_encrypted() {
        return Ok(None);
    }
    // Read anew each time: certificates are renewed while programs run.
    Ok(Some(RustlsConnector::from(url.tls().client_config().map_err(io::Error::other)?)))
}

/// lapin's own way to TLS knows one kind of trust and reads no files, so we bring the stream.
async fn connect(url: &BrokerUrl, name: &str) -> lapin::Result<lapin::Connection> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let connector = tls_connector(url)?;
    lapin::Connection::connector(
        url.uri().clone(),
        default_runtime()?,
        async move |uri, runtime| {
            let host = uri.authority.host;
            let addresses = runtime.to_socket_addrs((host.clone(), uri.authority.port));
            let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
            match &connector {
                Some(connector) => Ok(stream.into_rustls(connector, &host).await?),
                None => Ok(stream),
            }
        },
        properties,
    )
    .await
}

/// Whether it is an error that the broker closes a single channel for.
fn is_of_a_channel(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(_)))
}

// === impl Channel ===

impl Channel {
    /// Whether the channel is usable as far as we know: a 404 or 403 closes it, the connection survives.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.inner.status().connected()
    }

    /// Closes with a handshake: when it returns `Ok`, the broker has processed all that was sent on it.
    ///
    /// # Errors
    /// `Lost` or `Deadline`.
    pub async fn close(&self) -> Result<()> {
        deadline("close channel", CALL_LIMIT, self.inner.close(REPLY_SUCCESS, "done".into()))
            .await?
            .map_err(|source| Error::lost("close channel", source))
    }

    /// Puts the channel into confirm mode.
    pub(crate) async fn confirm_select(&self) -> Result<()> {
        deadline("confirm select", CALL_LIMIT, self.inner.confirm_select(ConfirmSelectOptions::default()))
            .await?
            .map_err(|source| Error::lost("confirm select", source))
    }

    pub(crate) const fn raw(&self) -> &lapin::Channel {
        &self.inner
    }
}

/// lapin's own form lists every message in flight.
impl fmt::Debug for Channel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Channel")
            .field("id", &self.inner.id())
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}
