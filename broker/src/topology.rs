//! The standard topology of a queue (DESIGN §7, §14). Arguments are immutable at the broker, so they are
//! settled here, once.

use std::time::Duration;

use lapin::{
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use mayfly_service::deadline;

use crate::{CALL_LIMIT, Connection, Error, Header, QueueState, Result, message::short};

/// The type of the main queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QueueKind {
    /// Replicated; the default.
    #[default]
    Quorum,
    /// Not replicated; dead-lettering can lose a message on transfer.
    Classic,
}

/// One queue with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueSpec {
    /// Its name.
    pub name: String,
    /// Its declare arguments.
    pub arguments: FieldTable,
}

/// Whether a declare changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declared {
    /// The queue is new.
    Created,
    /// It was there, with the same arguments.
    Existed,
}

/// Queue Q and its companions: the retry ladder `Q.retry.<delay>`, `Q.suspect` and `Q.dead`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// The name of Q.
    pub queue: String,
    /// Its type.
    pub kind: QueueKind,
    /// The delays of the retry ladder, shortest first.
    pub ladder: Vec<Duration>,
}

/// `Q.suspect`, where messages of `queue` go whose worker died with them in its hands.
#[must_use]
pub fn suspect_queue(queue: &str) -> String {
    format!("{queue}.suspect")
}

// === impl Topology ===

impl Topology {
    /// The default ladder: 5 s, 30 s, 2 min, 10 min.
    pub const DEFAULT_LADDER: [Duration; 4] =
        [Duration::from_secs(5), Duration::from_secs(30), Duration::from_mins(2), Duration::from_mins(10)];

    /// The standard topology of `queue`.
    #[must_use]
    pub fn standard(queue: &str) -> Self {
        Self { queue: queue.to_owned(), kind: QueueKind::Quorum, ladder: Self::DEFAULT_LADDER.to_vec() }
    }

    /// `Q.retry.<delay>`, the delay written as humantime does, without spaces (`5s`, `2m`, `1m30s`).
    #[must_use]
    pub fn retry_queue(&self, delay: Duration) -> String {
        let delay = humantime::format_duration(delay).to_string().replace(' ', "");
        format!("{}.retry.{delay}", self.queue)
    }

    /// The retry queue for a message that was begun `attempt + 1` times: the ladder's rung, its last one from
    /// there on. `None` with an empty ladder.
    #[must_use]
    pub fn retry_queue_for(&self, attempt: u32) -> Option<String> {
        let rung = usize::try_from(attempt).unwrap_or(usize::MAX).min(self.ladder.len().checked_sub(1)?);
        self.ladder.get(rung).map(|delay| self.retry_queue(*delay))
    }

    /// The retry queue with the shortest delay that is not shorter than `wanted`, or else the longest. `None`
    /// with an empty ladder.
    #[must_use]
    pub fn retry_queue_after(&self, wanted: Duration) -> Option<String> {
        let enough = self.ladder.iter().filter(|delay| **delay >= wanted).min();
        enough.or_else(|| self.ladder.iter().max()).map(|delay| self.retry_queue(*delay))
    }

    /// `Q.dead`.
    #[must_use]
    pub fn dead_queue(&self) -> String {
        format!("{}.dead", self.queue)
    }

    /// `Q.suspect`.
    #[must_use]
    pub fn suspect_queue(&self) -> String {
        suspect_queue(&self.queue)
    }

    /// All of its queues with their arguments, in an order in which they can be declared: a queue comes
    /// after those that it dead-letters to, Q itself comes last but for its ladder.
    ///
    /// With [`QueueKind::Classic`] only Q is classic. Its companions hold few messages, and just those that
    /// must not get lost on their way (a classic queue forgets a message before the dead-letter queue has
    /// it), so there is nothing to gain by making them classic too.
    #[must_use]
    pub fn queues(&self) -> Vec<QueueSpec> {
        let dead = self.dead_queue();
        let mut queues = vec![
            QueueSpec::new(dead.clone(), QueueKind::Quorum),
            QueueSpec::new(self.suspect_queue(), QueueKind::Quorum).dead_letters_to(&dead),
            QueueSpec::new(self.queue.clone(), self.kind).dead_letters_to(&dead),
        ];
        queues.extend(self.ladder.iter().map(|delay| {
            QueueSpec::new(self.retry_queue(*delay), QueueKind::Quorum)
                .dead_letters_to(&self.queue)
                .delays_by(*delay)
        }));
        queues
    }

    /// Declares all of it; what exists with the same arguments stays as it is. On a conflict nothing has
    /// been created.
    ///
    /// # Errors
    /// `Conflict`, `Forbidden`, `Lost` or `Deadline`.
    pub async fn declare(&self, connection: &Connection) -> Result<()> {
        self.declare_each(connection).await.map(drop)
    }

    /// As [`declare`](Self::declare), and tells of each queue whether it was created.
    ///
    /// # Errors
    /// As [`declare`](Self::declare).
    pub async fn declare_each(&self, connection: &Connection) -> Result<Vec<(QueueSpec, Declared)>> {
        let mut told = Vec::new();
        for spec in self.queues() {
            // A missing queue closes the channel that asked for it.
            let state = connection.channel().await?.depth(&spec.name, CALL_LIMIT).await?;
            if state == QueueState::Missing {
                told.push((spec, Declared::Created));
            } else {
                spec.declare(connection).await?;
                told.push((spec, Declared::Existed));
            }
        }
        for (spec, _) in told.iter().filter(|(_, declared)| *declared == Declared::Created) {
            spec.declare(connection).await?;
        }
        Ok(told)
    }
}

// === impl QueueKind ===

impl QueueKind {
    /// The value of `x-queue-type`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

// === impl QueueSpec ===

impl QueueSpec {
    /// A plain queue. The type is always said: brokers differ in what they take for granted.
    fn new(name: String, kind: QueueKind) -> Self {
        Self { name, arguments: FieldTable::default() }.with("x-queue-type", text(kind.as_str()))
    }

    /// Through the default exchange. Only a quorum queue can keep a message until the target has it
    /// (at-least-once), and only if it refuses new messages when full, not the oldest.
    fn dead_letters_to(self, target: &str) -> Self {
        let quorum = self.arguments.inner().get("x-queue-type") == Some(&text(QueueKind::Quorum.as_str()));
        let spec =
            self.with("x-dead-letter-exchange", text("")).with("x-dead-letter-routing-key", text(target));
        if quorum {
            spec.with("x-dead-letter-strategy", text("at-least-once"))
                .with("x-overflow", text("reject-publish"))
        } else {
            spec
        }
    }

    fn delays_by(self, delay: Duration) -> Self {
        let milliseconds = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        self.with("x-message-ttl", AMQPValue::LongLongInt(milliseconds))
    }

    fn with(mut self, name: &str, value: AMQPValue) -> Self {
        self.arguments.insert(name.into(), value);
        self
    }

    /// Its arguments for people, sorted by name.
    #[must_use]
    pub fn describe(&self) -> Vec<(String, Header)> {
        let value = |value: &AMQPValue| match value {
            AMQPValue::LongLongInt(number) => Header::Number(*number),
            AMQPValue::LongString(text) => Header::Text(text.to_string()),
            other => Header::Text(format!("{other:?}")),
        };
        self.arguments.inner().iter().map(|(name, told)| (name.to_string(), value(told))).collect()
    }

    /// Declares it on a channel of its own, as a conflict closes the channel.
    async fn declare(&self, connection: &Connection) -> Result<()> {
        let name = short(&self.name).ok_or(Error::NameTooLong { length: self.name.len() })?;
        let channel = connection.channel().await?;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let call = channel.raw().queue_declare(name, options, self.arguments.clone());
        deadline("declare queue", CALL_LIMIT, call)
            .await?
            .map_err(|source| Error::queue(&self.name, "declare queue", source))?;
        channel.close().await
    }

    /// Deletes the queue with all that waits in it, whoever consumes from it. A missing one is no error.
    ///
    /// # Errors
    /// `Forbidden`, `Lost` or `Deadline`.
    pub async fn delete(&self, connection: &Connection) -> Result<()> {
        let name = short(&self.name).ok_or(Error::NameTooLong { length: self.name.len() })?;
        let channel = connection.channel().await?;
        let call = channel.raw().queue_delete(name, QueueDeleteOptions::default());
        deadline("delete queue", CALL_LIMIT, call)
            .await?
            .map_err(|source| Error::queue(&self.name, "delete queue", source))?;
        channel.close().await
    }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(topology: &Topology) -> String {
        let line = |spec: &QueueSpec| {
            let arguments: Vec<_> =
                spec.describe().iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{}: {}", spec.name, arguments.join(" "))
        };
        topology.queues().iter().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_standard_topology_is_settled() {
        insta::assert_snapshot!(told(&Topology::standard("q")), @r"
        q.dead: x-queue-type=quorum
        q.suspect: x-dead-letter-exchange= x-dead-letter-routing-key=q.dead x-dead-letter-strategy=at-least-once x-overflow=reject-publish x-queue-type=quorum
        q: x-dead-letter-exchange= x-dead-letter-routing-key=q.dead x-dead-letter-strategy=at-least-once x-overflow=reject-publish x-queue-type=quorum
        q.retry.5s: x-dead-letter-exchange= x-dead-letter-routing-key=q x-dead-letter-strategy=at-least-once x-message-ttl=5000 x-overflow=reject-publish x-queue-type=quorum
        q.retry.30s: x-dead-letter-exchange= x-dead-letter-routing-key=q x-dead-letter-strategy=at-least-once x-message-ttl=30000 x-overflow=reject-publish x-queue-type=quorum
        q.retry.2m: x-dead-letter-exchange= x-dead-letter-routing-key=q x-dead-letter-strategy=at-least-once x-message-ttl=120000 x-overflow=reject-publish x-queue-type=quorum
        q.retry.10m: x-dead-letter-exchange= x-dead-letter-routing-key=q x-dead-letter-strategy=at-least-once x-message-ttl=600000 x-overflow=reject-publish x-queue-type=quorum
        ");
    }

    #[test]
    fn a_classic_queue_has_quorum_companions() {
        let ladder = vec![Duration::from_secs(90)];
        insta::assert_snapshot!(told(&Topology { queue: "q".to_owned(), kind: QueueKind::Classic, ladder }), @r"
        q.dead: x-queue-type=quorum
        q.suspect: x-dead-letter-exchange= x-dead-letter-routing-key=q.dead x-dead-letter-strategy=at-least-once x-overflow=reject-publish x-queue-type=quorum
        q: x-dead-letter-exchange= x-dead-letter-routing-key=q.dead x-queue-type=classic
        q.retry.1m30s: x-dead-letter-exchange= x-dead-letter-routing-key=q x-dead-letter-strategy=at-least-once x-message-ttl=90000 x-overflow=reject-publish x-queue-type=quorum
        ");
    }

    #[test]
    fn each_attempt_climbs_one_rung_and_stays_on_the_last() {
        let topology = Topology::standard("q");
        let rungs = [0, 1, 2, 3, 4, u32::MAX].map(|attempt| topology.retry_queue_for(attempt).unwrap());
        let last = "q.retry.10m";
        assert_eq!(rungs, ["q.retry.5s", "q.retry.30s", "q.retry.2m", last, last, last]);
        let after = [0, 5, 6, 120, 601].map(|s| topology.retry_queue_after(Duration::from_secs(s)).unwrap());
        assert_eq!(after, ["q.retry.5s", "q.retry.5s", "q.retry.30s", "q.retry.2m", last]);
        let without = Topology { ladder: Vec::new(), ..topology };
        assert_eq!((without.retry_queue_for(0), without.retry_queue_after(Duration::ZERO)), (None, None));
    }
}
