//! Publishing to the companion queues, on a connection apart from the consuming one: a broker that blocks
//! publishers stops everything on their connections, acks included.

use std::time::{Duration, Instant};

use backon::BackoffBuilder;
use mayfly_broker::{BatchReport, BrokerUrl, CALL_LIMIT, Connection, Error, Outgoing, Publisher, Receipt};
use mayfly_service::backoff::backoff;
use tokio::sync::Mutex;

/// Publishes one message at a time; the connection is opened when it is first needed.
#[derive(Debug)]
pub(crate) struct Forwarder {
    url: BrokerUrl,
    name: String,
    /// How long an error that can't heal by itself is retried all the same.
    patience: Duration,
    link: Mutex<Option<Link>>,
}

#[derive(Debug)]
struct Link {
    connection: Connection,
    publisher: Publisher,
    /// Larger frames were asked for than there are: the broker allows no larger ones.
    is_largest: bool,
}

/// The pauses between tries.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A confirm that takes longer is told: probably the broker has blocked publishing (memory or disk alarm).
const SLOW: Duration = Duration::from_secs(10);

// === impl Forwarder ===

impl Forwarder {
    pub(crate) fn new(url: BrokerUrl, name: String, patience: Duration) -> Self {
        Self { url, name, patience, link: Mutex::new(None) }
    }

    /// Publishes `message` and returns once the broker has it safely, however long that takes: its caller
    /// ends it when the message is not ours any more. After a try whose fate is unknown it is published
    /// again, so it may exist twice, but never not at all. Of its headers' frame `spare` bytes must stay free.
    ///
    /// # Errors
    /// `HeadersTooLarge` at once; what else can't heal by itself (a missing queue, no permission), when it lasts
    /// longer than our patience.
    pub(crate) async fn publish(&self, message: &Outgoing, spare: usize) -> Result<(), Error> {
        let mut pauses = backoff(FIRST_PAUSE, LONGEST_PAUSE).build();
        let begun = Instant::now();
        loop {
            let error = match self.publish_once(message, spare).await {
                Ok(()) => return Ok(()),
                Err(error @ Error::HeadersTooLarge { .. }) => return Err(error),
                Err(error) => error,
            };
            if !error.is_transient() && begun.elapsed() >= self.patience {
                return Err(error);
            }
            let error = mayfly_service::chain(&error);
            tracing::warn!(
                id = message.message_id,
                queue = message.queue,
                error,
                "cannot publish, will retry"
            );
            tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
        }
    }

    async fn publish_once(&self, message: &Outgoing, spare: usize) -> Result<(), Error> {
        let frame = message.header_frame().saturating_add(spare);
        let mut slot = self.link.lock().await;
        // Taken out while in use: a link whose call failed or was dropped half-way is not used again.
        let mut link = match slot.take().filter(|link| link.connection.is_alive()) {
            Some(link) if link.holds(frame) || link.is_largest => link,
            _ => self.connect(frame).await?,
        };
        if !link.holds(frame) {
            let (queue, most) = (message.queue.clone(), link.connection.frame_max());
            *slot = Some(link);
            return Err(Error::HeadersTooLarge { queue, bytes: frame, most });
        }
        let published = link.publish(message).await;
        if let Some(error) = published.interrupted {
            return Err(error);
        }
        *slot = Some(link);
        let (queue, message_id) = (message.queue.clone(), message.message_id.clone());
        match published.receipts[..] {
            [Some(Receipt::Confirmed)] => Ok(()),
            [Some(Receipt::Unroutable)] => Err(Error::Unroutable { queue, message_id }),
            [Some(Receipt::Nacked)] => Err(Error::Nacked { queue, message_id }),
            _ => Err(Error::Lost { what: "publish", source: None }),
        }
    }

    /// A connection for frames of so many bytes, if the broker allows them.
    async fn connect(&self, frame: usize) -> Result<Link, Error> {
        let mut url = self.url.clone();
        let needed = u32::try_from(frame).unwrap_or(u32::MAX);
        if url.frame_max().is_some_and(|usual| usual < needed) {
            url = url.with_frame_max(needed);
        }
        let connection = Connection::open(&url, &self.name, CALL_LIMIT).await?;
        let is_largest = url.frame_max().is_none_or(|asked| connection.frame_max() < asked);
        let publisher = Publisher::open(&connection, 1).await?;
        Ok(Link { connection, publisher, is_largest })
    }

    /// Closes the connection, if there is one. Everything that matters was confirmed before.
    pub(crate) async fn close(&self) {
        if let Some(link) = self.link.lock().await.take()
            && let Err(error) = link.connection.close().await
        {
            tracing::debug!(error = mayfly_service::chain(&error), "publishing connection did not close");
        }
    }
}

// === impl Link ===

impl Link {
    fn holds(&self, frame: usize) -> bool {
        u32::try_from(frame).is_ok_and(|frame| frame <= self.connection.frame_max())
    }

    async fn publish(&mut self, message: &Outgoing) -> BatchReport {
        let publishing = self.publisher.publish_batch(std::slice::from_ref(message), Duration::MAX);
        tokio::pin!(publishing);
        if let Ok(published) = tokio::time::timeout(SLOW, &mut publishing).await {
            return published;
        }
        // Given up, it would have to be published again, while the broker may still take the first one.
        tracing::warn!(id = message.message_id, queue = message.queue, "broker is slow to take a message");
        publishing.await
    }
}
