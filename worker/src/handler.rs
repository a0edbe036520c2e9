//! What a worker does with a message: the trait, and the handlers that come with it.

mod answer;
mod child;
mod envelope;
mod exec;
mod http;
mod sleep;
mod stdio;

use std::{future::ready, time::Duration};

use mayfly_broker::Message;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ledger::transaction::Offer;

pub(crate) use self::http::parse_path;
pub use self::{
    child::Program,
    exec::Exec,
    http::{Http, HttpOptions, ServerUrl},
    sleep::Sleep,
    stdio::Stdio,
};

/// The user's work on one message.
///
/// Several messages may be in work at once, and all of it shares one thread with the broker's heartbeats:
/// what computes or blocks belongs on a thread or process of its own (`spawn_blocking`).
pub trait Handler: Send + Sync + 'static {
    /// Whether it ever asks for a retry or a dead-letter, so that the queues for those must exist.
    const MAY_FAIL: bool = true;

    /// Brings up what outlives messages: a child process, a server. The worker takes messages only afterwards,
    /// and waits for it as long as its start may take.
    ///
    /// # Errors
    /// [`CannotStart`]: the worker ends without having taken a message.
    fn prepare(&self, _interrupt: &Interrupt) -> impl Future<Output = Result<(), CannotStart>> + Send {
        ready(Ok(()))
    }

    /// Works on `message`. When [`Context::interrupt`] asks for it, everything that belongs to this message must
    /// have ended before this returns [`Outcome::Interrupted`]; only then a message is given back, or tried
    /// again where its time was over.
    ///
    /// # Errors
    /// [`CannotStart`] when it is not the message's fault: the message is given back and the worker ends.
    fn handle(
        &self,
        message: &Message,
        context: &Context,
    ) -> impl Future<Output = Result<Outcome, CannotStart>> + Send;

    /// Ends what outlives messages, at once when [`Interrupt::kill`] asks for it. Called once, when no message is
    /// in work any more.
    fn finish(&self, _interrupt: &Interrupt) -> impl Future<Output = ()> + Send {
        ready(())
    }
}

/// What a handler gets to know beside the message.
#[derive(Debug, Clone)]
pub struct Context {
    /// Which try this is, by our count of retries: 1 at first.
    pub attempt: u32,
    /// When the message's time is over, where it has a limit; [`Interrupt::end`] is cancelled then.
    pub deadline: Option<Instant>,
    /// Asks this message's work to end.
    pub interrupt: Interrupt,
    pub(crate) offer: Offer,
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
        /// Not before this time has passed: the retry queue with the next longer delay is taken, or the
        /// longest there is. Without it the delay grows from attempt to attempt.
        after: Option<Duration>,
    },
    /// It can never succeed: into the dead-letter queue.
    DeadLetter {
        /// Why, for people; stored with the message, cut to 1 KiB.
        reason: String,
    },
    /// What works on messages ended without an answer while this one was in work, perhaps because of it: it
    /// is handled alone from now on.
    Crashed {
        /// What was seen, for people; stored with the message, cut to 1 KiB.
        reason: String,
    },
    /// It was ended because [`Interrupt`] asked for it.
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
    /// Cancelled at the end of the grace period, or when the message's time is over: end soon. Five seconds later
    /// `kill` follows, and ten seconds after that the handler is dropped.
    pub end: CancellationToken,
    /// Cancelled when the message is not ours any more, or we must be gone: end at once.
    pub kill: CancellationToken,
}

// === impl Context ===

impl Context {
    /// The context of a message without a ledger, as a handler's own tests need it.
    #[must_use]
    pub fn new(attempt: u32, deadline: Option<Instant>, interrupt: Interrupt) -> Self {
        Self { attempt, deadline, interrupt, offer: Offer::None }
    }
}

// === impl Outcome ===

impl Outcome {
    /// A retry after the usual delay.
    #[must_use]
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::Retry { reason: reason.into(), after: None }
    }
}

// === impl Interrupt ===

impl Interrupt {
    /// One of its own for a message: asked whenever this one is, and on its own account.
    pub(crate) fn child(&self) -> Self {
        Self { end: self.end.child_token(), kill: self.kill.child_token() }
    }

    /// Whether either is asked for.
    pub(crate) fn is_asked(&self) -> bool {
        self.end.is_cancelled() || self.kill.is_cancelled()
    }

    /// Waits until either is asked for.
    pub async fn asked(&self) {
        tokio::select! {
            () = self.end.cancelled() => {}
            () = self.kill.cancelled() => {}
        }
    }
}
