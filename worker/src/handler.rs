//! What a worker does with a message: the trait, and the handlers that come with it.

mod exec;
mod sleep;

use mayfly_broker::Message;
use tokio_util::sync::CancellationToken;

pub use self::{exec::Exec, sleep::Sleep};

/// The user's work on one message.
///
/// Several messages may be in work at once, and all of it shares one thread with the broker's heartbeats:
/// what computes or blocks belongs on a thread or process of its own (`spawn_blocking`).
pub trait Handler: Send + Sync + 'static {
    /// Whether it ever asks for a retry or a dead-letter, so that the queues for those must exist.
    const MAY_FAIL: bool = true;

    /// Works on `message`. When `interrupt` asks for it, everything that belongs to this message must have
    /// ended before this returns [`Outcome::Interrupted`]; a message is given back only then.
    ///
    /// # Errors
    /// [`CannotStart`] when it is not the message's fault: the message is given back and the worker ends.
    fn handle(
        &self,
        message: &Message,
        interrupt: &Interrupt,
    ) -> impl Future<Output = Result<Outcome, CannotStart>> + Send;
}

/// What became of the work on one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done: acknowledge it.
    Done,
    /// It failed and may succeed later: into a retry queue, or the dead-letter queue once its attempts are
    /// used up.
    Retry {
        /// Why, for people; stored with the message, cut to 1 KiB.
        reason: String,
    },
    /// It can never succeed: into the dead-letter queue.
    DeadLetter {
        /// Why, for people; stored with the message, cut to 1 KiB.
        reason: String,
    },
    /// It was ended because [`Interrupt`] asked for it: give it back.
    Interrupted,
}

/// The handler cannot work on any message: its program is missing or not executable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("handler cannot start: {reason}")]
pub struct CannotStart {
    /// Why, for people.
    pub reason: String,
}

/// Asks handlers to end; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    /// Cancelled at the end of the grace period: end soon.
    pub end: CancellationToken,
    /// Cancelled when the message is not ours any more, or we must be gone: end at once.
    pub kill: CancellationToken,
}

// === impl Interrupt ===

impl Interrupt {
    /// Waits until either is asked for.
    pub async fn asked(&self) {
        tokio::select! {
            () = self.end.cancelled() => {}
            () = self.kill.cancelled() => {}
        }
    }
}
