//! From nothing to a connection, and from there to a registered consumer.

use mayfly_broker::{CALL_LIMIT, Connection, Error, Intake, IntakeOptions, QueueState, Topology};

use mayfly_service::chain;

use crate::{options::Options, suspect::Course};

/// A connection, and what was found on it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    /// There is a suspect queue, and a dead-letter queue for what it finds.
    pub(crate) has_suspects: bool,
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
    /// Connects, declares if asked to, and checks that the queues for failed messages exist where
    /// `needs_companions`.
    pub(crate) async fn open(
        options: &Options,
        topology: &Topology,
        needs_companions: bool,
    ) -> Result<Self, StartError> {
        let connection = Connection::open(&options.url, &options.name, CALL_LIMIT).await?;
        // On the heap: large, and needed only for a moment.
        match Box::pin(examine(&connection, options, topology, needs_companions)).await {
            Ok(has_suspects) => Ok(Self { connection, has_suspects }),
            Err(error) => Err(dismiss(connection, error).await),
        }
    }

    /// Registers the consumer of `course`.
    pub(crate) async fn consume(
        self,
        options: &Options,
        topology: &Topology,
        course: Course,
        prefetch: u16,
    ) -> Result<(Self, Intake), StartError> {
        let intake_options = IntakeOptions {
            queue: match course {
                Course::Queue => options.queue.clone(),
                Course::Suspects => topology.suspect_queue(),
            },
            prefetch,
            priority: options.priority,
            tag: String::new(),
        };
        match Box::pin(Intake::open(&self.connection, &intake_options)).await {
            Ok(intake) => Ok((self, intake)),
            Err(error) => Err(dismiss(self.connection, error.into()).await),
        }
    }
}

/// Where the connection is fine it is closed in order: the broker would log a lost client.
async fn dismiss(connection: Connection, error: StartError) -> StartError {
    if !error.is_transient()
        && let Err(error) = connection.close().await
    {
        tracing::debug!(error = chain(&error), "connection did not close");
    }
    error
}

/// All of [`Link::open`] that comes after connecting.
async fn examine(
    connection: &Connection,
    options: &Options,
    topology: &Topology,
    needs_companions: bool,
) -> Result<bool, StartError> {
    if options.declare {
        topology.declare(connection).await?;
    }
    let (suspects, dead) = (topology.suspect_queue(), topology.dead_queue());
    let isolated = options.quarantine.as_ref().unwrap_or(&dead);
    let mut needed = Vec::new();
    if needs_companions {
        needed.extend(topology.ladder.iter().map(|delay| topology.retry_queue(*delay)));
        needed.push(dead.clone());
    }
    needed.extend(options.quarantine.clone());
    let asked: Vec<&String> = needed.iter().chain([&suspects, isolated]).collect();
    let mut missing = missing(connection, &asked).await?;
    let has_suspects = ![&suspects, isolated].into_iter().any(|queue| missing.contains(queue));
    missing.retain(|queue| needed.contains(queue));
    if !missing.is_empty() {
        return Err(StartError::CompanionsMissing { queues: missing });
    }
    if needs_companions && !has_suspects {
        let queue = &options.queue;
        tracing::warn!(
            "queue {suspects} is missing: a message that brings down its workers is never found out (create it: \
             mayfly-publisher declare {queue})"
        );
    }
    Ok(has_suspects)
}

/// Passively: all that is missing of `queues`, so that it is repaired at once. The queue itself is left to the
/// consumer's registration.
async fn missing(connection: &Connection, queues: &[&String]) -> Result<Vec<String>, StartError> {
    let mut missing = Vec::new();
    let mut channel = connection.channel().await?;
    for &queue in queues {
        if !missing.contains(queue) && channel.depth(queue, CALL_LIMIT).await? == QueueState::Missing {
            missing.push(queue.clone());
            // The broker closes a channel that asked for a missing queue.
            channel = connection.channel().await?;
        }
    }
    channel.close().await?;
    Ok(missing)
}
