//! What waits in a queue, by passive declare: live, ready messages only.

use std::time::Duration;

use lapin::{options::QueueDeclareOptions, types::FieldTable};
use mayfly_service::deadline;
use serde::{Deserialize, Serialize};

use crate::{Channel, Error, Result, message::short};

/// What a passive declare says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Depth {
    /// Messages waiting, without those in flight.
    pub ready: u64,
    /// Registered consumers. Before RabbitMQ 4.3 a quorum queue may report it wrongly for a moment.
    pub consumers: u64,
}

/// Whether a queue exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueState {
    /// It does, and holds this.
    Present(Depth),
    /// It does not: a fact, not an error.
    Missing,
}

// === impl Channel ===

impl Channel {
    /// Asks for the depth of `queue`. A missing or forbidden queue closes this channel, and with it fail the
    /// other calls that are under way on it.
    ///
    /// # Errors
    /// `Forbidden`, `Lost` or `Deadline`; a missing queue is `Ok(Missing)`.
    pub async fn depth(&self, queue: &str, limit: Duration) -> Result<QueueState> {
        // A queue with such a name cannot exist.
        let Some(name) = short(queue) else { return Ok(QueueState::Missing) };
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let call = self.raw().queue_declare(name, options, FieldTable::default());
        match deadline("read queue depth", limit, call).await? {
            Ok(found) => Ok(QueueState::Present(Depth {
                ready: found.message_count().into(),
                consumers: found.consumer_count().into(),
            })),
            Err(source) => match Error::queue(queue, "read queue depth", source) {
                Error::QueueMissing { .. } => Ok(QueueState::Missing),
                error => Err(error),
            },
        }
    }
}
