//! The standard topology of a queue (DESIGN §7, §14). Arguments are immutable at the broker, so they are
//! settled here, once.

use std::time::Duration;

use crate::{Connection, Result};

/// The type of the main queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QueueKind {
    /// Replicated; the default.
    #[default]
    Quorum,
    /// Not replicated; dead-lettering can lose a message on transfer.
    Classic,
}

/// One queue with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueSpec {
    /// Its name.
    pub name: String,
    /// Its declare arguments.
    pub arguments: lapin::types::FieldTable,
}

/// Queue Q and its companions: the retry ladder `Q.retry.<delay>`, `Q.suspect` and `Q.dead`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// The name of Q.
    pub queue: String,
    /// Its type.
    pub kind: QueueKind,
    /// The delays of the retry ladder, shortest first.
    pub ladder: Vec<Duration>,
}

// === impl Topology ===

impl Topology {
    /// The default ladder: 5 s, 30 s, 2 min, 10 min.
    pub const DEFAULT_LADDER: [Duration; 4] =
        [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(120), Duration::from_secs(600)];

    /// The standard topology of `queue`.
    #[must_use]
    pub fn standard(queue: &str) -> Self {
        Self { queue: queue.to_owned(), kind: QueueKind::Quorum, ladder: Self::DEFAULT_LADDER.to_vec() }
    }

    /// `Q.retry.<delay>`, the delay written as humantime does (`5s`, `2m`).
    #[must_use]
    pub fn retry_queue(&self, _delay: Duration) -> String {
        todo!()
    }

    /// The retry queue for a message that was begun `attempt + 1` times: the ladder's rung, its last one from
    /// there on. `None` with an empty ladder.
    #[must_use]
    pub fn retry_queue_for(&self, _attempt: u32) -> Option<String> {
        todo!()
    }

    /// `Q.dead`.
    #[must_use]
    pub fn dead_queue(&self) -> String {
        todo!()
    }

    /// `Q.suspect`.
    #[must_use]
    pub fn suspect_queue(&self) -> String {
        todo!()
    }

    /// All of its queues with their arguments, in an order in which they can be declared.
    #[must_use]
    pub fn queues(&self) -> Vec<QueueSpec> {
        todo!()
    }

    /// Declares all of it; what exists with the same arguments stays as it is.
    ///
    /// # Errors
    /// `Conflict`, `Forbidden`, `Lost` or `Deadline`.
    pub async fn declare(&self, _connection: &Connection) -> Result<()> {
        todo!()
    }
}
