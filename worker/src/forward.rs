//! Publishing to the companion queues, on a connection apart from the consuming one: a broker that blocks
//! publishers stops everything on their connections, acks included.

use std::time::{Duration, Instant};

use backon::BackoffBuilder;
use mayfly_broker::{BrokerUrl, CALL_LIMIT, Connection, Error, Outgoing, Publisher};
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
}

/// The pauses between tries.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

// === impl Forwarder ===

impl Forwarder {
    pub(crate) fn new(url: BrokerUrl, name: String, patience: Duration) -> Self {
        Self { url, name, patience, link: Mutex::new(None) }
    }

    /// Publishes `message` and returns once the broker has it safely, however long that takes: its caller
    /// ends it when the message is not ours any more. After a try whose fate is unknown it is published
    /// again, so it may exist twice, but never not at all.
    ///
    /// # Errors
    /// What can't heal by itself (a missing queue, no permission), when it lasts longer than our patience.
    pub(crate) async fn publish(&self, message: &Outgoing) -> Result<(), Error> {
        let mut pauses = backoff(FIRST_PAUSE, LONGEST_PAUSE).build();
        let begun = Instant::now();
        loop {
            let error = match self.publish_once(message).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !error.is_transient() && begun.elapsed() >= self.patience {
                return Err(error);
            }
            let error = crate::report::chain(&error);
            tracing::warn!(
                id = message.message_id,
                queue = message.queue,
                error,
                "cannot publish, will retry"
            );
            tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
        }
    }

    async fn publish_once(&self, message: &Outgoing) -> Result<(), Error> {
        let mut slot = self.link.lock().await;
        // Taken out while in use: a link whose call failed or was dropped half-way is not used again.
        let mut link = match slot.take().filter(|link| link.connection.is_alive()) {
            Some(link) => link,
            None => self.connect().await?,
        };
        link.publisher.publish_one(message).await?;
        *slot = Some(link);
        Ok(())
    }

    async fn connect(&self) -> Result<Link, Error> {
        let connection = Connection::open(&self.url, &self.name, CALL_LIMIT).await?;
        let publisher = Publisher::open(&connection, 1).await?;
        Ok(Link { connection, publisher })
    }

    /// Closes the connection, if there is one. Everything that matters was confirmed before.
    pub(crate) async fn close(&self) {
        if let Some(link) = self.link.lock().await.take()
            && let Err(error) = link.connection.close().await
        {
            tracing::debug!(error = crate::report::chain(&error), "publishing connection did not close");
        }
    }
}
