//! Consuming with an explicit end: cancel, drain to the end marker, settle, close.

use crate::{Connection, Message, Result};

/// How to consume.
#[derive(Debug, Clone)]
pub struct IntakeOptions {
    /// The queue.
    pub queue: String,
    /// Messages the broker may have in flight to us.
    pub prefetch: u16,
    /// The consumer's `x-priority`: the broker serves higher ones first while they have room.
    pub priority: i32,
    /// The consumer's tag, shown by the broker's tools. Empty: the broker chooses.
    pub tag: String,
}

/// A registered consumer on a channel of its own.
#[derive(Debug)]
pub struct Intake {
    channel: crate::Channel,
    consumer: Option<lapin::Consumer>,
}

/// What came out of an [`Intake`].
#[derive(Debug)]
pub enum Taken {
    /// A message.
    Message(Message),
    /// The end after our own [`Intake::cancel`]: nothing that the broker delivered before is missing.
    Drained,
}

// === impl Intake ===

impl Intake {
    /// Opens a channel, sets the prefetch and registers the consumer: when it returns, we are ready.
    ///
    /// # Errors
    /// `QueueMissing`, `Forbidden`, `Lost` or `Deadline`.
    pub async fn open(_connection: &Connection, _options: &IntakeOptions) -> Result<Self> {
        todo!()
    }

    /// The next message. Cancel-safe. After our own cancel it yields what was already delivered, then
    /// [`Taken::Drained`], and pends for ever after that. An end that we did not ask for (queue deleted,
    /// consumer time-out, connection gone) is the error `Lost`, never "idle".
    ///
    /// # Errors
    /// `Lost`.
    pub async fn next(&mut self) -> Result<Taken> {
        todo!()
    }

    /// Asks the broker for no more messages.
    ///
    /// # Errors
    /// `Lost` or `Deadline`.
    pub async fn cancel(&mut self) -> Result<()> {
        todo!()
    }

    /// Acknowledges `tag`, and with `multiple` every unsettled delivery before it. `Ok` means written to the
    /// socket; certain only after [`close`](Self::close).
    ///
    /// # Errors
    /// `Lost` (also when lapin reports that nothing was sent) or `Deadline`.
    pub async fn ack(&self, _tag: u64, _multiple: bool) -> Result<()> {
        todo!()
    }

    /// Gives `tag` back to the queue (nack with requeue).
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub async fn give_back(&self, _tag: u64) -> Result<()> {
        todo!()
    }

    /// Closes the channel: all acks before are certain when it returns `Ok`.
    ///
    /// # Errors
    /// `Lost` or `Deadline`.
    pub async fn close(self) -> Result<()> {
        todo!()
    }
}
