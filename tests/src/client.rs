//! A plain AMQP client, so that tests don't judge mayfly by mayfly's own code.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};

use crate::{ids::Ids, wait::until};

/// How long one call may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Unconfirmed messages at once.
const WINDOW: usize = 500;

/// The type of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `x-queue-type: classic`.
    Classic,
    /// `x-queue-type: quorum`.
    Quorum,
}

/// What a passive declare says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Messages waiting.
    pub ready: u32,
    /// Registered consumers.
    pub consumers: u32,
}

/// One connection with one channel in confirm mode.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    channel: Channel,
}

// === impl Client ===

impl Client {
    /// Connects to `url`, which may be that of a [`Proxy`](crate::Proxy).
    ///
    /// # Errors
    /// When it takes longer than 10 s, or is refused.
    pub async fn connect(url: &str) -> Result<Self> {
        limited("connect", async {
            let properties = ConnectionProperties::default().with_connection_name("mayfly-tests".into());
            let connection = Connection::connect(url, properties).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(Self { connection, channel })
        })
        .await
    }

    /// The channel, for whatever is not offered here.
    #[must_use]
    pub const fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The connection.
    #[must_use]
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Declares a durable queue without further arguments.
    ///
    /// # Errors
    /// When the broker refuses or does not answer.
    pub async fn declare(&self, queue: &str, kind: Kind) -> Result<()> {
        self.declare_with(queue, kind, FieldTable::default()).await
    }

    /// Declares a durable queue with `arguments` beside its type.
    ///
    /// # Errors
    /// When the broker refuses or does not answer.
    pub async fn declare_with(&self, queue: &str, kind: Kind, mut arguments: FieldTable) -> Result<()> {
        let name = match kind {
            Kind::Classic => "classic",
            Kind::Quorum => "quorum",
        };
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(name.into()));
        let declared = self.channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments);
        limited("declare", async { Ok(declared.await?) }).await.map(drop)
    }

    /// Deletes a queue with all that is in it; a missing one is no error.
    ///
    /// # Errors
    /// When the broker refuses or does not answer.
    pub async fn delete(&self, queue: &str) -> Result<()> {
        let deleted = self.channel.queue_delete(queue.into(), QueueDeleteOptions::default());
        limited("delete", async { Ok(deleted.await?) }).await.map(drop)
    }

    /// What waits, by passive declare. A missing queue is an error and closes the channel.
    ///
    /// # Errors
    /// When the queue is missing or the broker does not answer.
    pub async fn depth(&self, queue: &str) -> Result<Depth> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let declared = self.channel.queue_declare(queue.into(), options, FieldTable::default());
        let queue = limited("passive declare", async { Ok(declared.await?) }).await?;
        Ok(Depth { ready: queue.message_count(), consumers: queue.consumer_count() })
    }

    /// Waits until exactly `ready` messages wait in `queue`.
    ///
    /// # Errors
    /// When they don't within `limit`.
    pub async fn until_ready(&self, queue: &str, ready: u32, limit: Duration) -> Result<()> {
        until(&format!("{ready} messages wait in {queue}"), limit, async || {
            Ok(self.depth(queue).await?.ready == ready)
        })
        .await
    }

    /// Publishes `count` messages with new ids (also their bodies) and waits until the broker has them.
    ///
    /// # Errors
    /// When one is refused, unroutable or not confirmed in time.
    pub async fn publish(&self, queue: &str, count: usize) -> Result<Ids> {
        let mut ids = Ids::new();
        let mut unconfirmed = VecDeque::new();
        while ids.len() < count || !unconfirmed.is_empty() {
            if ids.len() < count && unconfirmed.len() < WINDOW {
                let id = uuid::Uuid::now_v7().to_string();
                unconfirmed.push_back(self.send(queue, &id, id.as_bytes()).await?);
                ids.insert(id);
            } else if let Some(confirm) = unconfirmed.pop_front() {
                match limited("confirm", async { Ok(confirm.await?) }).await? {
                    Confirmation::Ack(None) => {}
                    other => bail!("a message for {queue} was not taken: {other:?}"),
                }
            }
        }
        Ok(ids)
    }

    /// Publishes one message with this id and body, and waits until the broker has it.
    ///
    /// # Errors
    /// When it is refused, unroutable or not confirmed in time.
    pub async fn publish_one(&self, queue: &str, id: &str, body: &[u8]) -> Result<()> {
        let confirm = self.send(queue, id, body).await?;
        let confirmation = limited("confirm", async { Ok(confirm.await?) }).await?;
        ensure!(matches!(confirmation, Confirmation::Ack(None)), "{id} was not taken: {confirmation:?}");
        Ok(())
    }

    /// Takes and acknowledges all that waits in `queue` (at least `expected` messages, within `limit`) and
    /// returns the ids; a message without one counts under its body.
    ///
    /// # Errors
    /// When fewer come, or one comes twice.
    pub async fn take_all(&self, queue: &str, expected: usize, limit: Duration) -> Result<Ids> {
        let channel = limited("channel", async { Ok(self.connection.create_channel().await?) }).await?;
        let mut ids = Ids::new();
        let taken = async {
            channel.basic_qos(100, BasicQosOptions::default()).await?;
            let tag = format!("take-{queue}");
            let options = BasicConsumeOptions::default();
            let mut consumer = channel
                .basic_consume(queue.into(), tag.as_str().into(), options, FieldTable::default())
                .await?;
            let mut cancelled = false;
            loop {
                if ids.len() >= expected && !cancelled && self.depth(queue).await?.ready == 0 {
                    channel.basic_cancel(tag.as_str().into(), BasicCancelOptions::default()).await?;
                    cancelled = true;
                }
                let Some(delivery) = consumer.next().await else { break };
                let delivery = delivery?;
                let id = delivery.properties.message_id().as_ref().map(ToString::to_string);
                let id = id.unwrap_or_else(|| String::from_utf8_lossy(&delivery.data).into_owned());
                ensure!(ids.insert(id.clone()), "{id} came twice");
                ensure!(delivery.ack(BasicAckOptions::default()).await?, "the channel is gone");
            }
            channel.close(200, "done".into()).await?;
            Ok(())
        };
        let outcome = tokio::time::timeout(limit, taken).await;
        match outcome {
            Ok(result) => result?,
            Err(_) => bail!("{} of {expected} messages came from {queue} in {limit:?}", ids.len()),
        }
        Ok(ids)
    }

    /// A consumer that takes one message and keeps it, unacknowledged, as long as this client is connected.
    ///
    /// # Errors
    /// When the broker refuses it.
    pub async fn keep_one(&self, queue: &str) -> Result<lapin::Consumer> {
        let channel = limited("channel", async { Ok(self.connection.create_channel().await?) }).await?;
        let begun = async {
            channel.basic_qos(1, BasicQosOptions::default()).await?;
            let (tag, options) = (format!("keep-{queue}"), BasicConsumeOptions::default());
            let arguments = FieldTable::default();
            Ok(channel.basic_consume(queue.into(), tag.as_str().into(), options, arguments).await?)
        };
        limited("consume", begun).await
    }

    /// Closes in order: the broker has handled all that was sent.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn close(self) -> Result<()> {
        limited("close", async { Ok(self.connection.close(200, "done".into()).await?) }).await
    }

    async fn send(&self, queue: &str, id: &str, body: &[u8]) -> Result<lapin::PublisherConfirm> {
        let properties = BasicProperties::default().with_message_id(id.into()).with_delivery_mode(2);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let published = self.channel.basic_publish("".into(), queue.into(), options, body, properties);
        limited("publish", async { Ok(published.await?) }).await
    }
}

async fn limited<T>(what: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
    mayfly_service::deadline(what, LIMIT, call).await?.context(what)
}
