//! What truly waits in a queue, and since when: every message is published, taken and given back here, and
//! each of that is written down with its moment.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Consumer,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueuePurgeOptions,
    },
    types::{AMQPValue, FieldTable},
};
use mayfly_tests::{Broker, Client, Kind};
use tokio::{sync::Notify, task::JoinHandle, time::Instant};

/// The delay of the only retry queue.
const RETRY: Duration = Duration::from_secs(5);
/// Messages in the consumer's hands at most.
const HELD: u16 = 4;

/// Milliseconds since the Unix epoch.
pub(super) type Millis = u64;

/// A queue of which everything is known.
pub(super) struct Truth {
    broker: Broker,
    client: Client,
    pub(super) queue: String,
    kind: Kind,
    /// Whether its messages bear the time at which they were published.
    stamped: bool,
    published: u64,
    log: Arc<Mutex<Log>>,
    /// What tells it to leave, and gives the moment at which it did.
    consumer: Option<(Arc<Notify>, JoinHandle<Result<Millis>>)>,
}

/// A consumer.
struct Hands {
    channel: Channel,
    consumer: Consumer,
    log: Arc<Mutex<Log>>,
    client: Client,
    retry: String,
    work: Duration,
    settle: Settle,
    /// What it holds, and when each is to be settled.
    held: VecDeque<(Instant, Delivery)>,
}

/// What a consumer does with a message in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settle {
    /// It is done.
    Ack,
    /// Every second one goes to the retry queue first.
    Retry,
    /// Nothing, until it is given back.
    Keep,
}

/// All that was ever in the queue.
#[derive(Debug, Default)]
pub(super) struct Log {
    stays: Vec<Stay>,
    /// The stay of each message that waits or will soon.
    waiting: HashMap<String, usize>,
    /// The last stay of each message that is in a consumer's hands.
    held: HashMap<String, usize>,
}

/// One message's time in the queue.
#[derive(Debug, Clone, Copy)]
struct Stay {
    /// What its age counts from: a message that was given back is as old as before.
    since: Millis,
    from: Millis,
    until: Option<Millis>,
}

pub(super) fn now() -> Millis {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn id_of(delivery: &Delivery) -> Result<String> {
    Ok(delivery.properties.message_id().as_ref().context("a message without id")?.to_string())
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Log ===

impl Log {
    /// Since when the oldest message waited that waited at `moment`.
    pub(super) fn oldest(&self, moment: Millis) -> Option<Millis> {
        let waited = |stay: &&Stay| stay.from <= moment && stay.until.is_none_or(|until| moment < until);
        self.stays.iter().filter(waited).map(|stay| stay.since).min()
    }

    /// When messages came or went within `margin` of `moment`, and the two ends of that time.
    pub(super) fn moments(&self, moment: Millis, margin: Millis) -> Vec<Millis> {
        let range = moment.saturating_sub(margin)..=moment + margin;
        let changes = self.stays.iter().flat_map(|stay| [Some(stay.from), stay.until]).flatten();
        let mut moments: Vec<_> = changes.filter(|at| range.contains(at)).collect();
        moments.extend([*range.start(), *range.end()]);
        moments
    }

    fn comes(&mut self, id: String, since: Millis, from: Millis) {
        self.stays.push(Stay { since, from, until: None });
        self.waiting.insert(id, self.stays.len() - 1);
    }

    fn is_taken(&mut self, id: &str, at: Millis) -> Result<()> {
        let index = self.waiting.remove(id).with_context(|| format!("{id} was not there"))?;
        let stay = self.stays.get_mut(index).context("no such stay")?;
        // One that came back earlier than we thought.
        stay.from = stay.from.min(at);
        stay.until = Some(at);
        self.held.insert(id.to_owned(), index);
        Ok(())
    }

    fn is_settled(&mut self, id: &str) {
        self.held.remove(id);
    }

    fn all_back(&mut self, at: Millis) {
        for (id, index) in std::mem::take(&mut self.held) {
            if let Some(Stay { since, .. }) = self.stays.get(index).copied() {
                self.comes(id, since, at);
            }
        }
    }

    /// What waits is gone; what is still in a retry queue is not.
    fn is_emptied(&mut self, at: Millis) {
        let Self { stays, waiting, .. } = self;
        waiting.retain(|_, index| match stays.get_mut(*index) {
            Some(stay) if stay.from <= at => {
                stay.until = Some(at);
                false
            }
            _ => true,
        });
    }
}

// === impl Truth ===

impl Truth {
    /// Declares the queue and its retry queue, both of this kind.
    pub(super) async fn of(broker: &Broker, queue: &str, kind: Kind) -> Result<Self> {
        let truth = Self {
            broker: broker.clone(),
            client: broker.client().await?,
            queue: queue.to_owned(),
            kind,
            stamped: false,
            published: 0,
            log: Arc::default(),
            consumer: None,
        };
        truth.declare().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(i32::try_from(RETRY.as_millis())?));
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
        arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString(queue.into()));
        truth.client.declare_with(&retry_queue(queue), kind, arguments).await?;
        Ok(truth)
    }

    pub(super) fn stamped(self) -> Self {
        Self { stamped: true, ..self }
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }

    pub(super) async fn publish(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            let id = format!("m-{}", self.published);
            self.published += 1;
            let at = now();
            self.log().comes(id.clone(), at, at);
            if self.stamped {
                self.publish_stamped(&id, at).await?;
            } else {
                self.client.publish_one(&self.queue, &id, b"").await?;
            }
        }
        Ok(())
    }

    async fn publish_stamped(&self, id: &str, at: Millis) -> Result<()> {
        let properties = BasicProperties::default().with_message_id(id.into()).with_timestamp(at / 1000);
        let (exchange, options) = ("".into(), BasicPublishOptions::default());
        let channel = self.client.channel();
        let confirm =
            channel.basic_publish(exchange, self.queue.as_str().into(), options, b"", properties).await?;
        let confirmation = confirm.await?;
        ensure!(matches!(confirmation, Confirmation::Ack(None)), "{id} was not taken: {confirmation:?}");
        Ok(())
    }

    /// Registers a consumer that holds each message for `work`.
    pub(super) async fn consume(&mut self, work: Duration, settle: Settle) -> Result<()> {
        let channel = self.client.connection().create_channel().await?;
        channel.basic_qos(HELD, BasicQosOptions::default()).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer =
            channel.basic_consume(self.queue.clone().into(), "truth".into(), options, arguments).await?;
        let (log, retry) = (Arc::clone(&self.log), retry_queue(&self.queue));
        let client = self.broker.client().await?;
        let leave = Arc::new(Notify::new());
        let hands = Hands { channel, consumer, log, client, retry, work, settle, held: VecDeque::new() };
        let task = tokio::spawn(hands.work(Arc::clone(&leave)));
        self.consumer = Some((leave, task));
        Ok(())
    }

    /// Ends the consumer: what is in its hands goes back to where it was.
    pub(super) async fn leave(&mut self) -> Result<()> {
        let (leave, task) = self.consumer.take().context("no consumer")?;
        leave.notify_one();
        let at = task.await??;
        self.log().all_back(at);
        Ok(())
    }

    pub(super) async fn purge(&mut self) -> Result<()> {
        self.client.channel().queue_purge(self.queue.clone().into(), QueuePurgeOptions::default()).await?;
        self.log().is_emptied(now());
        Ok(())
    }

    /// Deletes the queue with all that is in it, and declares it anew.
    pub(super) async fn delete_and_declare(&mut self) -> Result<()> {
        self.client.delete(&self.queue).await?;
        self.log().is_emptied(now());
        self.declare().await
    }

    /// What is given back again and again is not dropped: RabbitMQ 4.0 does that to the 21st time in quorum queues.
    async fn declare(&self) -> Result<()> {
        let mut arguments = FieldTable::default();
        if self.kind == Kind::Quorum {
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(100_000));
        }
        self.client.declare_with(&self.queue, self.kind, arguments).await
    }

    /// After the broker was away.
    pub(super) async fn connect_again(&mut self) -> Result<()> {
        self.client = self.broker.client().await?;
        Ok(())
    }
}

pub(super) fn retry_queue(queue: &str) -> String {
    format!("{queue}.retry.{}", humantime::format_duration(RETRY))
}

// === impl Hands ===

impl Hands {
    /// Works until it is to leave; says when it closed its channel.
    async fn work(mut self, leave: Arc<Notify>) -> Result<Millis> {
        let mut settled = 0_u64;
        let left = loop {
            let next = self.held.front().filter(|_| self.settle != Settle::Keep).map(|(due, _)| *due);
            let due = async {
                match next {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // What has come was taken before anything that is settled now.
                biased;
                delivery = self.consumer.next() => {
                    self.take(delivery.context("the consumer ended")??)?;
                }
                () = leave.notified() => {
                    self.channel.close(200, "done".into()).await?;
                    break now();
                }
                () = due => {
                    settled += 1;
                    self.settle_first(self.settle == Settle::Retry && settled.is_multiple_of(2)).await?;
                }
            }
        };
        while let Some(delivery) = self.consumer.next().await {
            self.take(delivery?)?;
        }
        self.client.close().await?;
        Ok(left)
    }

    fn take(&mut self, delivery: Delivery) -> Result<()> {
        lock(&self.log).is_taken(&id_of(&delivery)?, now())?;
        self.held.push_back((Instant::now() + self.work, delivery));
        Ok(())
    }

    async fn settle_first(&mut self, retry: bool) -> Result<()> {
        let Some((_, delivery)) = self.held.pop_front() else { return Ok(()) };
        let id = id_of(&delivery)?;
        lock(&self.log).is_settled(&id);
        if retry {
            let back = now() + u64::try_from(RETRY.as_millis())?;
            self.client.publish_one(&self.retry, &id, b"").await?;
            lock(&self.log).comes(id, back, back);
        }
        ensure!(delivery.ack(BasicAckOptions::default()).await?, "the channel is gone");
        Ok(())
    }
}
