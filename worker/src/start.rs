//! From nothing to a registered consumer.

use mayfly_broker::{CALL_LIMIT, Connection, Error, Intake, IntakeOptions, QueueState, Topology};

use mayfly_service::chain;

use crate::options::Options;

/// A connection whose consumer is registered.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) intake: Intake,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The broker said no, or nothing.
    #[error(transparent)]
    Broker(#[from] Error),
    /// Queues that failed messages would need.
    #[error("missing for messages that fail: {}", .queues.join(", "))]
    CompanionsMissing { queues: Vec<String> },
}

// === impl StartError ===

impl StartError {
    /// Whether trying again later, unchanged, can succeed.
    pub(crate) const fn is_transient(&self) -> bool {
        matches!(self, Self::Broker(error) if error.is_transient())
    }

    /// The error with its causes, and what to do about it.
    pub(crate) fn advice(&self, queue: &str) -> String {
        let text = chain(self);
        match self {
            Self::Broker(Error::QueueMissing { .. }) | Self::CompanionsMissing { .. } => {
                format!("{text} (create what is missing: mayfly-publisher declare {queue})")
            }
            Self::Broker(_) => text,
        }
    }
}

// === impl Link ===

impl Link {
    /// Connects, declares if asked to, checks that the queues for failed messages exist where
    /// `needs_companions`, and registers the consumer.
    pub(crate) async fn open(
        options: &Options,
        topology: &Topology,
        needs_companions: bool,
    ) -> Result<Self, StartError> {
        let connection = Connection::open(&options.url, &options.name, CALL_LIMIT).await?;
        // On the heap: large, and needed only for a moment.
        match Box::pin(register(&connection, options, topology, needs_companions)).await {
            Ok(intake) => Ok(Self { connection, intake }),
            Err(error) => {
                // The connection is fine, so it is closed in order: the broker would log a lost client.
                if !error.is_transient()
                    && let Err(error) = connection.close().await
                {
                    tracing::debug!(error = chain(&error), "connection did not close");
                }
                Err(error)
            }
        }
    }
}

/// All of [`Link::open`] that comes after connecting.
async fn register(
    connection: &Connection,
    options: &Options,
    topology: &Topology,
    needs_companions: bool,
) -> Result<Intake, StartError> {
    if options.declare {
        topology.declare(connection).await?;
    }
    if needs_companions {
        check_companions(connection, topology).await?;
    }
    let intake_options = IntakeOptions {
        queue: options.queue.clone(),
        prefetch: options.prefetch.get(),
        priority: options.priority,
        tag: String::new(),
    };
    Ok(Intake::open(connection, &intake_options).await?)
}

/// Passively: names all that is missing, so that it is repaired at once. The queue itself is left to the
/// consumer's registration.
async fn check_companions(connection: &Connection, topology: &Topology) -> Result<(), StartError> {
    let retries = topology.ladder.iter().map(|delay| topology.retry_queue(*delay));
    let mut missing = Vec::new();
    let mut channel = connection.channel().await?;
    for queue in retries.chain([topology.dead_queue()]) {
        if channel.depth(&queue, CALL_LIMIT).await? == QueueState::Missing {
            missing.push(queue);
            // The broker closes a channel that asked for a missing queue.
            channel = connection.channel().await?;
        }
    }
    channel.close().await?;
    if missing.is_empty() { Ok(()) } else { Err(StartError::CompanionsMissing { queues: missing }) }
}
