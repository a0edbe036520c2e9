//! What waits in a queue, by passive declare: live, ready messages only.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Channel, Result};

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
    /// Asks for the depth of `queue`. A missing or forbidden queue closes this channel.
    ///
    /// # Errors
    /// `Forbidden`, `Lost` or `Deadline`; a missing queue is `Ok(Missing)`.
    pub async fn depth(&self, _queue: &str, _limit: Duration) -> Result<QueueState> {
        todo!()
    }
}
