//! Connections and channels that never recover by themselves.

use std::time::Duration;

use crate::{BrokerUrl, Result};

/// The limit of one ordinary broker call (declare, qos, cancel, close, confirm).
pub const CALL_LIMIT: Duration = Duration::from_secs(10);

/// One AMQP connection.
#[derive(Debug)]
pub struct Connection {
    inner: lapin::Connection,
}

/// One channel of a [`Connection`].
#[derive(Debug, Clone)]
pub struct Channel {
    inner: lapin::Channel,
}

// === impl Connection ===

impl Connection {
    /// Connects as `name` (shown by the broker's tools) within `limit`.
    ///
    /// # Errors
    /// `Unreachable`, `AccessRefused` or `Deadline`.
    pub async fn open(_url: &BrokerUrl, _name: &str, _limit: Duration) -> Result<Self> {
        todo!()
    }

    /// A new channel.
    ///
    /// # Errors
    /// `Lost` or `Deadline`.
    pub async fn channel(&self) -> Result<Channel> {
        todo!()
    }

    /// Whether the connection is usable as far as we know.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        todo!()
    }

    /// Whether the broker blocks publishing (memory or disk alarm). While it does, lapin writes nothing at
    /// all on this connection, acks included: never publish on a consuming connection.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        todo!()
    }

    /// Closes with a handshake: when it returns `Ok`, the broker has processed all that was sent.
    ///
    /// # Errors
    /// `Lost` or `Deadline`.
    pub async fn close(self) -> Result<()> {
        todo!()
    }
}

// === impl Channel ===

impl Channel {
    /// Whether the channel is usable as far as we know: a 404 or 403 closes it, the connection survives.
    #[must_use]
    pub fn is_open(&self) -> bool {
        todo!()
    }

    /// Closes with a handshake: when it returns `Ok`, the broker has processed all that was sent on it.
    ///
    /// # Errors
    /// `Lost` or `Deadline`.
    pub async fn close(&self) -> Result<()> {
        todo!()
    }

    pub(crate) const fn raw(&self) -> &lapin::Channel {
        &self.inner
    }
}
