//! Looks at the queues by passive declare: one connection, few channels, in a task of its own, so that a
//! broker that hangs holds up nothing else.

use std::{slice::Chunks, sync::Arc, time::Duration};

use backon::BackoffBuilder;
use futures_util::{StreamExt, stream::FuturesUnordered};
use mayfly_broker::{BrokerUrl, Connection, Error};
use mayfly_service::{backoff::backoff, chain};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Jitter, Part, Sight,
    lane::{Lane, Pace, Told},
    probe::{REFUSED, Watched},
};
use crate::{
    policy::{Fact, Unknown, Why},
    time::Clock,
};

/// The limit of connecting.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Between two tries to connect: first, most; jitter at most doubles it, so a broker that returns is seen
/// within two seconds.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// Channels for queues that are there, and the queues that make a further one worth its while.
const TOGETHER: (usize, usize) = (12, 160);
/// The same for queues that are asked for one by one.
const ALONE: (usize, usize) = (4, 40);
/// What was answered by now is told without waiting for the rest.
const HELD_BACK: Duration = Duration::from_millis(500);

/// Looks at queues again and again.
#[derive(Debug)]
pub struct QueueWatch {
    url: BrokerUrl,
    instance: String,
    clock: Clock,
    sight: watch::Sender<Sight>,
    counted: Arc<Notify>,
    connection: Option<Connection>,
    connect_again: Option<Instant>,
    reconnect: Delays,
    lanes: [Vec<Lane>; 2],
    watched: Vec<Watched>,
}

/// A question: which queue, which part of it.
type Key = (usize, Part);

/// Growing, jittered delays that start anew after a success.
#[derive(Debug)]
struct Delays {
    range: (Duration, Duration),
    next: backon::ExponentialBackoff,
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
        let watched = sight.queues.keys().map(|queue| Watched::new(queue)).collect();
        let (sight, receiver) = watch::channel(sight);
        let watch = Self {
            url,
            instance: instance.to_owned(),
            clock,
            sight,
            counted: Arc::default(),
            connection: None,
            connect_again: None,
            reconnect: Delays::new(RECONNECT),
            lanes: [Vec::new(), Vec::new()],
            watched,
        };
        (watch, receiver)
    }

    /// Where somebody else tells what he saw beside it, and that it is time to look: a depth right after the
    /// counters says most.
    #[must_use]
    pub fn teller(&self) -> (watch::Sender<Sight>, Arc<Notify>) {
        (self.sight.clone(), Arc::clone(&self.counted))
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
                () = self.counted.notified() => {}
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
                Ok(connection) => {
                    for watched in &mut self.watched {
                        watched.queue.begin_anew();
                        watched.suspects.begin_anew();
                    }
                    connection
                }
                Err(error) => {
                    let refused = matches!(error, Error::AccessRefused { .. });
                    self.connect_again = Some(now + if refused { REFUSED } else { self.reconnect.next() });
                    return Err(error);
                }
            },
        };
        // An error drops the connection with all its channels.
        self.ask(&connection, now).await?;
        tracing::trace!(queues = self.watched.len(), took = ?now.elapsed(), "looked at the queues");
        let fresh = if connection.is_worn() { self.connect().await.ok() } else { None };
        self.connection = Some(fresh.unwrap_or(connection));
        Ok(())
    }

    async fn ask(&mut self, connection: &Connection, now: Instant) -> Result<(), Error> {
        let Self { watched, lanes, sight: told, clock, .. } = self;
        // Names are borrowed by the questions, while answers change what else is known.
        let due: Vec<(Key, String, bool)> = watched
            .iter()
            .enumerate()
            .flat_map(|(index, watched)| watched.due(now).map(move |probe| (index, probe)))
            .map(|(index, probe)| ((index, probe.part()), probe.asked().to_owned(), probe.is_present()))
            .collect();
        let questions = |together| -> Vec<(Key, &str)> {
            let due = due.iter().filter(|(.., present)| *present == together);
            due.map(|(key, asked, _)| (*key, &**asked)).collect()
        };
        let (together, alone) = (questions(true), questions(false));
        let [lanes_together, lanes_alone] = lanes;
        let mut asking: FuturesUnordered<_> = spread(lanes_together, &together, TOGETHER)
            .map(|(lane, questions)| lane.ask(connection, questions, Pace::Together))
            .chain(
                spread(lanes_alone, &alone, ALONE)
                    .map(|(lane, questions)| lane.ask(connection, questions, Pace::Alone)),
            )
            .collect();
        let mut answers = Vec::new();
        let mut any_answer = false;
        while let Some(brought) = asking.next().await {
            answers.extend(brought?);
            any_answer |= answers.iter().any(|(.., told)| !matches!(told, Told::Late(_)));
            if asking.is_empty() || (any_answer && now.elapsed() >= HELD_BACK) {
                // Where nothing at all is answered it is not the queues.
                if let Some((.., Told::Late(error))) = answers.pop_if(|_| !any_answer) {
                    return Err(error);
                }
                told.send_modify(|sight| {
                    for ((index, part), at, answer) in answers.drain(..) {
                        if let Some(watched) = watched.get_mut(index) {
                            watched.take_in(part, at, &answer, clock, sight);
                        }
                    }
                });
            }
        }
        Ok(())
    }

    async fn connect(&mut self) -> Result<Connection, Error> {
        let name = format!("mayfly-scaler {}", self.instance);
        let connection = Connection::open(&self.url, &name, CONNECT_LIMIT).await?;
        self.lanes = [Vec::new(), Vec::new()];
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
            for probe in self.watched.iter().flat_map(Watched::probes) {
                probe.tell(sight, Fact::Unknown(unknown.clone()));
            }
        });
    }
}

/// Deals questions to as many lanes as they are worth.
fn spread<'a>(
    lanes: &'a mut Vec<Lane>,
    questions: &'a [(Key, &'a str)],
    (most, worth): (usize, usize),
) -> std::iter::Zip<std::slice::IterMut<'a, Lane>, Chunks<'a, (Key, &'a str)>> {
    let count = questions.len().div_ceil(worth).clamp(1, most);
    if lanes.len() < count {
        lanes.resize_with(count, Lane::default);
    }
    lanes.iter_mut().zip(questions.chunks(questions.len().div_ceil(count).max(1)))
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
