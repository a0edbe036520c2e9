//! What the lifecycle is told, and what it says.

use std::time::Duration;

use mayfly_service::report::ExitReason;

use super::Ack;
use crate::{
    brake::{self, Brake},
    prefetch::Prefetch,
    suspect::Course,
    tally::Tally,
};

/// The limits that a worker lives by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Messages in work at once.
    pub(crate) concurrency: usize,
    /// How long nothing must have been in flight before the queue is looked at.
    pub(crate) max_idle: Duration,
    /// How long work may go on after we were asked to stop.
    pub(crate) grace: Duration,
    /// No message is taken after so many.
    pub(crate) max_messages: Option<u64>,
    /// No message is taken after this age of the worker.
    pub(crate) max_lifetime: Option<Duration>,
    /// When the connection is lost, work that was begun may go on for the grace period: the ledger remembers what
    /// is done, so that it is not done again.
    pub(crate) finishes_when_lost: bool,
    /// Spreads looks at the suspect queue, 0 to 1.
    pub(crate) jitter: f64,
}

/// What outlives a channel.
#[derive(Debug, Clone)]
pub(crate) struct Carry {
    /// The figures.
    pub(crate) tally: Tally,
    pub(crate) brake: Brake,
    pub(crate) prefetch: Prefetch,
    /// From when the idle limit counts, where the worker was idle when the last channel ended.
    pub(crate) quiet_since: Option<Duration>,
    /// Looks, since the last delivery, that found messages which were not delivered.
    pub(crate) fruitless_looks: u32,
}

/// How many messages wait in a queue, and how many consumers it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) ready: u64,
    pub(crate) consumers: u64,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The broker delivered a message. `alone`: nothing else may be in work with it.
    Delivered { tag: u64, alone: bool },
    /// Work on a message ended; its handler took `busy`. `message` tells it from other messages.
    Finished { tag: u64, verdict: Verdict, busy: Duration, message: u64 },
    /// The answer to [`Command::AskDepth`]: what waits in the queue consumed, and in the suspect queue where
    /// that is another one that exists.
    Depth { ready: u64, suspects: Option<Waiting> },
    /// The ledger answers again.
    LedgerAnswered,
    /// It is time for a fresh worker.
    Recycle,
    /// After our cancel, all that was delivered before has been handed over.
    Drained,
    /// The broker confirmed the close.
    Closed,
    /// The connection or the consumer ended.
    Lost,
    /// A handler panicked.
    Panicked,
    /// We were asked to stop.
    Stop,
    /// We were asked to end at once.
    Abort,
    /// [`Lifecycle::wake_at`](super::Lifecycle::wake_at) has come.
    Tick,
}

/// How work on a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its handler succeeded.
    Done,
    /// The ledger knows it as done; no handler saw it.
    Known,
    /// A retry queue has it, confirmed.
    Retried,
    /// The dead-letter queue has it, confirmed.
    DeadLettered,
    /// The suspect queue has it, confirmed; no handler saw it.
    Suspected,
    /// The suspect queue has it, confirmed: what worked on it broke down.
    Crashed,
    /// Somebody else works on it; a queue where it waits has it, confirmed.
    Deferred,
    /// It was interrupted and nothing of it runs any more.
    Interrupted,
    /// It can't begin now; it waits with us.
    Held(brake::Cause),
    /// This worker can't do it, nor any other message.
    Unfit(ExitReason),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Begin work on this message.
    Start { tag: u64 },
    /// Send this ack.
    Ack(Ack),
    /// Give this message back to the queue.
    GiveBack { tag: u64 },
    /// Tell whether message after message fails: until that ends, none is dead-lettered.
    Brake(Option<brake::Cause>),
    /// Ask how many messages wait; answered by [`Event::Depth`].
    AskDepth,
    /// Cancel the consumer; answered by [`Event::Drained`].
    Cancel,
    /// Tell that the worker takes nothing more and will end.
    TellDraining,
    /// Ask all handlers to end; each is answered by its [`Event::Finished`].
    Interrupt,
    /// The connection is lost: let end what the ledger will remember, until this time.
    Finish { until: Duration },
    /// End all handlers and wait until nothing of them runs.
    Kill,
    /// Close the channel; answered by [`Event::Closed`].
    Close,
    /// This channel's life is over.
    End(End),
}

/// How a channel's life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The worker ends.
    Exit(ExitReason),
    /// It goes on with a fresh channel on the same connection.
    Switch(Course),
    /// It goes on with a fresh connection.
    Reconnect,
}

// === impl Carry ===

impl Carry {
    /// How many messages the broker may have in flight to a consumer of `course`: suspects come one by one.
    pub(crate) const fn prefetch_of(&self, course: Course) -> u16 {
        match course {
            Course::Queue => self.prefetch.current(),
            Course::Suspects => 1,
        }
    }
}
