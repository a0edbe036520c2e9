//! The message contract (DESIGN §7): what our publisher stamps and what our worker reads. Foreign messages
//! without any of it are processed all the same.

use std::collections::BTreeMap;

/// Names of the headers that we write.
pub mod header {
    /// Milliseconds since the Unix epoch at publishing; the name that RabbitMQ's own interceptor uses.
    pub const TIMESTAMP_IN_MS: &str = "timestamp_in_ms";
    /// How often the message was begun before: absent or 0 at first, +1 with each retry.
    pub const ATTEMPT: &str = "x-mayfly-attempt";
    /// Why a message was dead-lettered or retried: the last error, bounded.
    pub const ERROR: &str = "x-mayfly-error";
}

/// A header's value, as far as we write them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Header {
    /// A long string.
    Text(String),
    /// A signed 64-bit number.
    Number(i64),
}

/// A delivered message.
#[derive(Debug, Clone)]
pub struct Message {
    /// The delivery tag on its channel.
    pub tag: u64,
    /// The broker's only hint that somebody held it before.
    pub redelivered: bool,
    /// The body, byte for byte.
    pub body: Vec<u8>,
    pub(crate) properties: lapin::BasicProperties,
}

/// A message to publish. All properties of the contract are filled in.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The queue, addressed through the default exchange.
    pub queue: String,
    /// Its id, unique.
    pub message_id: String,
    /// The body.
    pub body: Vec<u8>,
    pub(crate) properties: lapin::BasicProperties,
}

// === impl Message ===

impl Message {
    /// Its `message_id` property.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        todo!()
    }

    /// Its `content_type` property.
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        todo!()
    }

    /// How often it was begun before, by our retries: 0 at first. An absent, odd or negative header is 0.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        todo!()
    }

    /// The same message for `queue` with its original properties, and `headers` set over its own. A message
    /// without an id gets one, so that its confirm can be told apart.
    #[must_use]
    pub fn forward(&self, _queue: &str, _headers: BTreeMap<String, Header>) -> Outgoing {
        todo!()
    }
}

// === impl Outgoing ===

impl Outgoing {
    /// A message with the properties of the contract: `message_id` (`UUIDv7` unless given), `timestamp` and
    /// `timestamp_in_ms` now, `delivery_mode` 2, `content_type`, headers.
    #[must_use]
    pub fn new(
        _queue: &str,
        _message_id: Option<String>,
        _content_type: &str,
        _headers: BTreeMap<String, Header>,
        _body: Vec<u8>,
    ) -> Self {
        todo!()
    }
}
