//! What the lifecycle is told, and what it says.

use std::time::Duration;

use mayfly_service::report::ExitReason;

use super::Ack;

/// The limits that a worker lives by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Messages in work at once.
    pub(crate) concurrency: usize,
    /// Messages that the broker may have in flight to us.
    pub(crate) prefetch: u16,
    /// How long nothing must have been in flight before the queue is looked at.
    pub(crate) max_idle: Duration,
    /// How long work may go on after we were asked to stop.
    pub(crate) grace: Duration,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The broker delivered a message.
    Delivered { tag: u64 },
    /// Work on a message ended; its handler took `busy`.
    Finished { tag: u64, verdict: Verdict, busy: Duration },
    /// The answer to [`Command::AskDepth`].
    Depth { ready: u64 },
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
    /// A retry queue has it, confirmed.
    Retried,
    /// The dead-letter queue has it, confirmed.
    DeadLettered,
    /// It was interrupted and nothing of it runs any more.
    Interrupted,
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
    /// Ask how many messages wait; answered by [`Event::Depth`].
    AskDepth,
    /// Cancel the consumer; answered by [`Event::Drained`]. From here on the worker is draining.
    Cancel,
    /// Ask all handlers to end; each is answered by its [`Event::Finished`].
    Interrupt,
    /// End all handlers and wait until nothing of them runs.
    Kill,
    /// Close the channel and the connection; answered by [`Event::Closed`].
    Close,
    /// This connection's life is over.
    End(End),
}

/// How a connection's life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The worker ends.
    Exit(ExitReason),
    /// It goes on with a fresh connection.
    Reconnect,
}
