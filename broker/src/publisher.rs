//! Publishing with confirms in a window, unroutable messages told apart by their id.

use crate::{Connection, Outgoing, Result};

/// What became of a published message, definitely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Receipt {
    /// The broker has it, safely.
    Confirmed,
    /// No such queue: the broker returned it.
    Unroutable,
    /// The broker did not take it (queue full).
    Nacked,
}

/// A channel in confirm mode with at most `window` unconfirmed messages. Use a connection of its own: a
/// blocked publishing connection must not hold up acks.
#[derive(Debug)]
pub struct Publisher {
    channel: crate::Channel,
    window: usize,
}

// === impl Publisher ===

impl Publisher {
    /// Opens a channel in confirm mode.
    ///
    /// # Errors
    /// `Lost` or `Deadline`.
    pub async fn open(_connection: &Connection, _window: usize) -> Result<Self> {
        todo!()
    }

    /// Publishes one message (mandatory, persistent) and waits for its confirm. Not to be mixed with windows.
    ///
    /// # Errors
    /// `Unroutable`, `Nacked`, `Lost` or `Deadline`; after the last two its fate is unknown.
    pub async fn publish_one(&mut self, _message: &Outgoing) -> Result<()> {
        todo!()
    }
}
