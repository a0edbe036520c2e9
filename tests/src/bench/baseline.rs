//! The bare client that mayfly is compared with: as little as one can write with the same library. Its rate
//! is measured in a process of its own, with tokio's ordinary runtime.

use std::{num::NonZeroUsize, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use lapin::{
    Channel, Connection, ConnectionProperties, Consumer,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::time::Instant;

use crate::spawning::spawn_one;

/// Messages held at once.
pub(crate) const PREFETCH: u16 = 100;
/// Messages per ack.
pub(crate) const BATCH: usize = 50;

/// A registered consumer.
pub(crate) struct Bare {
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
}

// === impl Bare ===

impl Bare {
    /// Connects and consumes.
    pub(crate) async fn register(url: &str, queue: &str) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(queue.into(), "bare".into(), options, FieldTable::default()).await?;
        Ok(Self { connection, channel, consumer })
    }

    /// Takes `count` messages, a multiple of 50, and says how long the broker took to have all acks.
    pub(crate) async fn take(&mut self, count: usize) -> Result<Duration> {
        ensure!(count.is_multiple_of(BATCH), "{count} is no multiple of {BATCH}");
        let begun = Instant::now();
        for number in 1..=count {
            let delivery = self.consumer.next().await.context("the consumer has ended")??;
            if number.is_multiple_of(BATCH) {
                ensure!(delivery.ack(BasicAckOptions { multiple: true }).await?, "an ack was not sent");
            }
        }
        self.channel.close(200, "done".into()).await?;
        Ok(begun.elapsed())
    }

    /// The same, with a process for each message, `concurrency` at once.
    pub(crate) async fn run(
        &mut self,
        program: &Path,
        count: usize,
        concurrency: NonZeroUsize,
    ) -> Result<Duration> {
        ensure!(count.is_multiple_of(BATCH), "{count} is no multiple of {BATCH}");
        let begun = Instant::now();
        let running = self.consumer.by_ref().take(count).map(async |delivery| {
            let delivery = delivery?;
            spawn_one(program).await?;
            anyhow::Ok(delivery)
        });
        let mut done = std::pin::pin!(running.buffered(concurrency.get()).enumerate());
        while let Some((number, delivery)) = done.next().await {
            let delivery = delivery?;
            if (number + 1).is_multiple_of(BATCH) {
                ensure!(delivery.ack(BasicAckOptions { multiple: true }).await?, "an ack was not sent");
            }
        }
        self.channel.close(200, "done".into()).await?;
        Ok(begun.elapsed())
    }

    pub(crate) async fn close(self) -> Result<()> {
        Ok(self.connection.close(200, "done".into()).await?)
    }
}
