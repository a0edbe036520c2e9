//! Looks at the queues: one connection, one channel a queue, in a task of its own, so that a broker that
//! hangs holds up nothing else.

use std::{collections::BTreeMap, time::Duration};

use backon::BackoffBuilder;
use mayfly_broker::{BrokerUrl, Channel, Connection, Error, QueueState, suspect_queue};
use mayfly_service::{backoff::backoff, chain};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    policy::{Counters, Fact, Observation, QueueFacts, StateRecord, Unknown, Why, Worker},
    time::{Clock, Time},
};

/// What is known of each queue.
type FactsByName = BTreeMap<String, Fact<QueueFacts>>;

/// What is seen of the broker, by queue.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sight {
    /// Every configured queue.
    pub queues: FactsByName,
    /// Of every configured queue Q what waits in `Q.suspect`.
    pub suspects: FactsByName,
    /// What the broker counts.
    pub counters: BTreeMap<String, Fact<Counters>>,
}

/// The limit of one look at one queue.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// The limit of connecting.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Between two tries to connect: first, most; jitter at most doubles it, so a broker that returns is seen
/// within two seconds.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// Between two looks at a queue that is missing or forbidden, or two tries of a refused password (±10 %): each
/// costs the broker a line of its log.
const REFUSED: Duration = Duration::from_millis(6500);
/// Between two looks at `Q.suspect` while nothing waits there: only the end of a worker can change that. Short
/// enough that emptiness is watched without a gap.
const NO_SUSPECTS: Duration = Duration::from_secs(1);
/// Between two looks at a `Q.suspect` that is missing: many have none.
const NO_SUSPECT_QUEUE: Duration = Duration::from_secs(60);

/// Looks at queues again and again.
#[derive(Debug)]
pub struct QueueWatch {
    url: BrokerUrl,
    instance: String,
    clock: Clock,
    sight: watch::Sender<Sight>,
    connection: Option<Connection>,
    connect_again: Option<Instant>,
    reconnect: Delays,
    probes: Vec<Probe>,
}

/// What a probe tells of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// What waits in it.
    Queue,
    /// What waits in its `Q.suspect`.
    Suspects,
}

/// One queue that is asked for, and its channel.
#[derive(Debug)]
struct Probe {
    part: Part,
    /// The configured queue.
    queue: String,
    /// The queue to ask for.
    asked: String,
    channel: Option<Channel>,
    look_again: Option<Instant>,
    jitter: Jitter,
}

/// Growing, jittered delays that start anew after a success.
#[derive(Debug)]
struct Delays {
    range: (Duration, Duration),
    next: backon::ExponentialBackoff,
}

// === impl Sight ===

impl Sight {
    /// Before the first look at `queues`.
    fn unseen(queues: impl IntoIterator<Item = String>, since: Time) -> Self {
        let unseen = Fact::Unknown(Unknown::not_yet_seen(since));
        let queues: FactsByName = queues.into_iter().map(|queue| (queue, unseen.clone())).collect();
        Self { suspects: queues.clone(), queues, counters: BTreeMap::new() }
    }

    /// With what is known of the fleet it is one look at the world.
    #[must_use]
    pub fn observation(self, workers: Fact<Vec<Worker>>, state: Fact<StateRecord>) -> Observation {
        let Self { queues, suspects, counters } = self;
        Observation { queues, suspects, counters, workers, state }
    }

    fn part(&mut self, part: Part) -> &mut FactsByName {
        match part {
            Part::Queue => &mut self.queues,
            Part::Suspects => &mut self.suspects,
        }
    }
}

// === impl QueueWatch ===

impl QueueWatch {
    /// A watch over `queues`, and where it tells what it saw.
    #[must_use]
    pub fn new(
        url: BrokerUrl,
        instance: &str,
        queues: impl IntoIterator<Item = String>,
        clock: Clock,
    ) -> (Self, watch::Receiver<Sight>) {
        let sight = Sight::unseen(queues, clock.now());
        let probes = sight
            .queues
            .keys()
            .flat_map(|queue| [Part::Queue, Part::Suspects].into_iter().map(|part| Probe::new(part, queue)));
        let probes = probes.collect();
        let (sight, receiver) = watch::channel(sight);
        let watch = Self {
            url,
            instance: instance.to_owned(),
            clock,
            sight,
            connection: None,
            connect_again: None,
            reconnect: Delays::new(RECONNECT),
            probes,
        };
        (watch, receiver)
    }

    /// Looks every `interval` until `stop`, then closes the connection.
    pub async fn run(mut self, interval: Duration, stop: CancellationToken) {
        let mut jitter = Jitter::default();
        loop {
            let looked = tokio::select! {
                () = stop.cancelled() => break,
                looked = self.look() => looked,
            };
            if let Err(error) = looked {
                self.all_unknown(&error);
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(jitter.spread(interval)) => {}
            }
        }
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::debug!(error = %chain(&error), "broker connection did not close in order");
        }
    }

    /// One look at every queue that is due. An error concerns the connection, and so all of them.
    async fn look(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if self.connect_again.is_some_and(|again| now < again) {
            return Ok(());
        }
        let connection = match self.connection.take().filter(Connection::is_alive) {
            Some(connection) => connection,
            None => match self.connect().await {
                Ok(connection) => connection,
                Err(error) => {
                    let refused = matches!(error, Error::AccessRefused { .. });
                    self.connect_again = Some(now + if refused { REFUSED } else { self.reconnect.next() });
                    return Err(error);
                }
            },
        };
        let mut sight = self.sight.borrow().clone();
        for probe in &mut self.probes {
            if probe.look_again.is_some_and(|again| now < again) {
                continue;
            }
            let at = self.clock.now();
            // An error here drops the connection with all its channels.
            let fact = match probe.look(&connection).await? {
                Ok(value) => Fact::Known { value, at },
                Err(forbidden) => Fact::Unknown(Unknown {
                    why: Why::Forbidden,
                    detail: chain(&forbidden),
                    since: self.clock.now(),
                }),
            };
            probe.tell(&mut sight, fact);
        }
        self.sight.send_replace(sight);
        self.connection = Some(connection);
        Ok(())
    }

    async fn connect(&mut self) -> Result<Connection, Error> {
        for probe in &mut self.probes {
            probe.channel = None;
            probe.look_again = None;
        }
        let name = format!("mayfly-scaler {}", self.instance);
        let connection = Connection::open(&self.url, &name, CONNECT_LIMIT).await?;
        self.connect_again = None;
        self.reconnect = Delays::new(RECONNECT);
        tracing::info!(broker = self.url.endpoint(), "connected to the broker");
        Ok(connection)
    }

    fn all_unknown(&self, error: &Error) {
        let why =
            if matches!(error, Error::AccessRefused { .. }) { Why::Forbidden } else { Why::Unreachable };
        let unknown = Unknown { why, detail: chain(error), since: self.clock.now() };
        self.sight.send_modify(|sight| {
            for probe in &self.probes {
                probe.tell(sight, Fact::Unknown(unknown.clone()));
            }
        });
    }
}

// === impl Probe ===

impl Probe {
    fn new(part: Part, queue: &str) -> Self {
        let asked = match part {
            Part::Queue => queue.to_owned(),
            Part::Suspects => suspect_queue(queue),
        };
        let jitter = Jitter::default();
        Self { part, queue: queue.to_owned(), asked, channel: None, look_again: None, jitter }
    }

    /// Replaces a fact; one that stays unknown for the same reason stays so since then.
    fn tell(&self, sight: &mut Sight, mut fact: Fact<QueueFacts>) {
        let facts = sight.part(self.part);
        let (old, queue) = (facts.get(&self.queue), &self.asked);
        match (&mut fact, old) {
            (Fact::Unknown(new), Some(Fact::Unknown(old))) if old.why == new.why => new.since = old.since,
            (Fact::Unknown(new), _) => {
                tracing::warn!(
                    queue,
                    why = new.why.as_str(),
                    detail = new.detail,
                    "queue cannot be observed"
                );
            }
            (Fact::Known { .. }, Some(Fact::Unknown(old))) if old.why != Why::NotYetSeen => {
                tracing::info!(queue, "queue is observed again");
            }
            _ => {}
        }
        facts.insert(self.queue.clone(), fact);
    }

    /// The outer error concerns the connection, the inner one only this queue.
    async fn look(&mut self, connection: &Connection) -> Result<Result<QueueFacts, Error>, Error> {
        let channel = match self.channel.take().filter(Channel::is_open) {
            Some(channel) => channel,
            None => connection.channel().await?,
        };
        match channel.depth(&self.asked, LOOK_LIMIT).await {
            Ok(QueueState::Present(depth)) => {
                self.channel = Some(channel);
                self.look_again = (self.part == Part::Suspects && depth.ready == 0)
                    .then(|| Instant::now() + self.jitter.spread(NO_SUSPECTS));
                Ok(Ok(QueueFacts::Present { ready: depth.ready, consumers: depth.consumers }))
            }
            Ok(QueueState::Missing) => {
                let cadence = match self.part {
                    Part::Queue => REFUSED,
                    Part::Suspects => NO_SUSPECT_QUEUE,
                };
                self.look_again = Some(Instant::now() + self.jitter.spread(cadence));
                Ok(Ok(QueueFacts::Missing))
            }
            Err(error @ Error::Forbidden { .. }) => {
                self.look_again = Some(Instant::now() + self.jitter.spread(REFUSED));
                Ok(Err(error))
            }
            Err(error) => Err(error),
        }
    }
}

// === impl Delays ===

impl Delays {
    fn new(range: (Duration, Duration)) -> Self {
        Self { range, next: backoff(range.0, range.1).build() }
    }

    fn next(&mut self) -> Duration {
        self.next.next().unwrap_or(self.range.1)
    }
}

/// Spreads an interval by ±10 %, so that replicas don't look in step.
#[derive(Debug, Default)]
pub struct Jitter(std::hash::RandomState, u64);

// === impl Jitter ===

impl Jitter {
    /// `interval` ± 10 %.
    pub fn spread(&mut self, interval: Duration) -> Duration {
        use std::hash::BuildHasher;
        self.1 += 1;
        // A keyed hash of a counter: random enough to be out of step, without a generator of random numbers.
        let part = u32::try_from(self.0.hash_one(self.1) % 2001).unwrap_or(1000);
        interval.mul_f64(0.9 + f64::from(part) / 10_000.0)
    }
}
