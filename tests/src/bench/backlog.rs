//! Messages to work on: many at once, or one after the other at a steady pace.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Result, ensure};
use lapin::{BasicProperties, Confirmation, PublisherConfirm, options::BasicPublishOptions};
use mayfly_tests::Client;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Every message's body.
pub(crate) const BODY: &[u8] = &[b'x'; 100];
/// Unconfirmed messages at once.
const WINDOW: usize = 500;
/// AMQP's delivery mode of messages that survive a restart of the broker.
const PERSISTENT: u8 = 2;

/// Publishes to one queue; the broker has all of it after [`finish`](Self::finish).
struct Filling<'a> {
    client: &'a Client,
    queue: &'a str,
    unconfirmed: VecDeque<PublisherConfirm>,
}

/// Puts `count` messages into `queue`.
pub(crate) async fn fill(client: &Client, queue: &str, count: usize) -> Result<()> {
    let mut filling = Filling { client, queue, unconfirmed: VecDeque::new() };
    for _ in 0..count {
        filling.publish().await?;
    }
    filling.finish().await
}

/// Puts a message into `queue` every `gap`, for as long as `length`. Says how many.
pub(crate) async fn pace(client: &Client, queue: &str, gap: Duration, length: Duration) -> Result<u64> {
    let mut filling = Filling { client, queue, unconfirmed: VecDeque::new() };
    let end = Instant::now() + length;
    let mut ticks = interval(gap);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut count = 0;
    while ticks.tick().await < end {
        filling.publish().await?;
        count += 1;
    }
    filling.finish().await?;
    Ok(count)
}

// === impl Filling ===

impl Filling<'_> {
    async fn publish(&mut self) -> Result<()> {
        if self.unconfirmed.len() >= WINDOW {
            self.confirm().await?;
        }
        let id = uuid::Uuid::now_v7().to_string();
        let properties = BasicProperties::default().with_message_id(id.into()).with_delivery_mode(PERSISTENT);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let channel = self.client.channel();
        let confirm = channel.basic_publish("".into(), self.queue.into(), options, BODY, properties).await?;
        self.unconfirmed.push_back(confirm);
        Ok(())
    }

    /// Waits for the oldest.
    async fn confirm(&mut self) -> Result<()> {
        if let Some(confirm) = self.unconfirmed.pop_front() {
            let confirmation = confirm.await?;
            let is_taken = matches!(confirmation, Confirmation::Ack(None));
            ensure!(is_taken, "a message for {} was not taken: {confirmation:?}", self.queue);
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<()> {
        while !self.unconfirmed.is_empty() {
            self.confirm().await?;
        }
        Ok(())
    }
}
