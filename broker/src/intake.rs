//! Consuming with an explicit end: cancel, drain to the end marker, settle, close.

use futures_util::StreamExt;
use lapin::{
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use mayfly_service::deadline;

use crate::{CALL_LIMIT, Connection, Error, Message, Result, message::short};

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

/// A registered consumer on a channel of its own. Dropping it gives back what was not settled.
#[derive(Debug)]
pub struct Intake {
    channel: crate::Channel,
    /// Absent once its stream has ended: the stream must not be polled after that.
    consumer: Option<lapin::Consumer>,
    /// Whether the end was asked for by us.
    cancelled: bool,
}

/// What came out of an [`Intake`].
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "it is taken apart at once; a box would be one allocation per message"
)]
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
    pub async fn open(connection: &Connection, options: &IntakeOptions) -> Result<Self> {
        let IntakeOptions { queue, prefetch, priority, tag } = options;
        let name = short(queue).ok_or(Error::NameTooLong { length: queue.len() })?;
        let tag = short(tag).unwrap_or_default();
        let channel = connection.channel().await?;
        deadline("set prefetch", CALL_LIMIT, channel.raw().basic_qos(*prefetch, BasicQosOptions::default()))
            .await?
            .map_err(|source| Error::lost("set prefetch", source))?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-priority".into(), AMQPValue::LongInt(*priority));
        let call = channel.raw().basic_consume(name, tag, BasicConsumeOptions::default(), arguments);
        let consumer = deadline("consume", CALL_LIMIT, call)
            .await?
            .map_err(|source| Error::queue(queue, "consume", source))?;
        Ok(Self { channel, consumer: Some(consumer), cancelled: false })
    }

    /// The next message. Cancel-safe. After our own cancel it yields what was already delivered, then
    /// [`Taken::Drained`], and pends for ever after that. An end that we did not ask for (queue deleted,
    /// consumer time-out, connection gone) is the error `Lost`, never "idle".
    ///
    /// # Errors
    /// `Lost`.
    pub async fn next(&mut self) -> Result<Taken> {
        let Some(consumer) = &mut self.consumer else { return std::future::pending().await };
        match consumer.next().await {
            Some(Ok(delivery)) => Ok(Taken::Message(Message::from(delivery))),
            Some(Err(source)) => {
                self.consumer = None;
                Err(Error::lost("consume", source))
            }
            None => {
                self.consumer = None;
                // A channel that was closed under our cancel ends the stream the same way.
                if self.cancelled && self.channel.is_open() {
                    Ok(Taken::Drained)
                } else {
                    Err(Error::Lost { what: "consume", source: None })
                }
            }
        }
    }

    /// Asks the broker for no more messages. Keep calling [`next`](Self::next) until it is drained.
    ///
    /// # Errors
    /// `Lost` or `Deadline`.
    pub async fn cancel(&mut self) -> Result<()> {
        let Some(consumer) = &self.consumer else { return Ok(()) };
        self.cancelled = true;
        let call = self.channel.raw().basic_cancel(consumer.tag(), BasicCancelOptions::default());
        deadline("cancel consumer", CALL_LIMIT, call)
            .await?
            .map_err(|source| Error::lost("cancel consumer", source))
    }

    /// Acknowledges `tag`, and with `multiple` every unsettled delivery before it. `Ok` means written to the
    /// socket; certain only after [`close`](Self::close).
    ///
    /// # Errors
    /// `Lost` (also when lapin reports that nothing was sent) or `Deadline`.
    pub async fn ack(&self, tag: u64, multiple: bool) -> Result<()> {
        deadline("ack", CALL_LIMIT, self.channel.raw().basic_ack(tag, BasicAckOptions { multiple }))
            .await?
            .map_err(|source| Error::lost("ack", source))
    }

    /// Gives `tag` back to the queue (nack with requeue).
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub async fn give_back(&self, tag: u64) -> Result<()> {
        let options = BasicNackOptions { multiple: false, requeue: true };
        deadline("give back", CALL_LIMIT, self.channel.raw().basic_nack(tag, options))
            .await?
            .map_err(|source| Error::lost("give back", source))
    }

    /// Closes the channel: all acks before are certain when it returns `Ok`.
    ///
    /// # Errors
    /// `Lost` or `Deadline`.
    pub async fn close(self) -> Result<()> {
        self.channel.close().await
    }
}
