//! Looks at the queues by passive declare: one connection, few channels, in a task of its own, so that a
//! broker that hangs holds up nothing else.

use std::{collections::BTreeSet, slice::Chunks, sync::Arc, time::Duration};

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
const TOGETHER: (u16, usize) = (12, 160);
/// The same for queues that are asked for one by one.
const ALONE: (u16, usize) = (4, 40);
/// One for each of both: with fewer channels nothing can be seen.
const LEAST_CHANNELS: u16 = 2;
/// So many refused queues for each channel that a connection may have are looked at within ten seconds, as
/// measured on a busy machine: that many fresh connections are made and used up meanwhile.
const REFUSED_A_CHANNEL: usize = 25;
/// Between two connections, where refusals use up the channels: what a broker has to bear for queues that are
/// not there.
const FRESH: Duration = Duration::from_millis(50);
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

/// A queue that is due.
#[derive(Debug)]
struct Question {
    key: Key,
    asked: String,
    pace: Pace,
}

/// How far one look came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looked {
    /// Everything that was due.
    AtAll,
    /// Refusals used up the channels before everything was asked for.
    AtSome,
}

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
        // When queues that are there are asked for again, however often others are meanwhile.
        let mut next = Instant::now();
        loop {
            let whole = Instant::now() >= next;
            let looked = tokio::select! {
                () = stop.cancelled() => break,
                looked = self.look(whole) => looked,
            };
            if whole {
                next = Instant::now() + jitter.spread(interval);
            }
            let again = match looked {
                Ok(Looked::AtAll) => next,
                Ok(Looked::AtSome) => next.min(Instant::now() + FRESH),
                Err(error) => {
                    self.all_unknown(&error);
                    next
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.counted.notified() => next = Instant::now(),
                () = tokio::time::sleep_until(again) => {}
            }
        }
        if let Some(connection) = self.connection.take() {
            close(connection).await;
        }
    }

    /// One look at every queue that is due; those that are there are so in a `whole` look. An error concerns the
    /// connection, and so all of them.
    async fn look(&mut self, whole: bool) -> Result<Looked, Error> {
        let now = Instant::now();
        if self.connect_again.is_some_and(|again| now < again) {
            return Ok(Looked::AtAll);
        }
        let mut connection = match self.connection.take().filter(Connection::is_alive) {
            Some(connection) => connection,
            None => match self.connect().await {
                Ok(connection) => {
                    tracing::info!(broker = self.url.endpoint(), "connected to the broker");
                    for watched in &mut self.watched {
                        watched.queue.begin_anew();
                        watched.suspects.begin_anew();
                    }
                    connection
                }
                Err(error) => {
                    let refused = matches!(error, Error::AccessRefused { .. } | Error::TooFewChannels { .. });
                    self.connect_again = Some(now + if refused { REFUSED } else { self.reconnect.next() });
                    return Err(error);
                }
            },
        };
        let mut due = self.due(whole, now);
        let mut begun = now;
        let looked = loop {
            // An error drops the connection with all its channels.
            let unanswered = self.ask(&connection, &due, now).await?;
            if !connection.is_worn() {
                break Looked::AtAll;
            }
            tokio::time::sleep_until(begun + FRESH).await;
            begun = Instant::now();
            // Dropped it would stay open at the broker.
            close(connection).await;
            connection = self.connect().await?;
            due.retain(|question| unanswered.contains(&question.key));
            if due.is_empty() {
                break Looked::AtAll;
            }
            // Queues that are there are looked at again before long.
            if now.elapsed() >= HELD_BACK {
                break Looked::AtSome;
            }
        };
        let took_ms = now.elapsed().as_secs_f64() * 1e3;
        tracing::trace!(queues = self.watched.len(), took_ms, "looked at the queues");
        self.connection = Some(connection);
        Ok(looked)
    }

    /// What is to be asked for now, the longest due first: where refusals use up the channels, every queue has
    /// its turn.
    fn due(&self, whole: bool, now: Instant) -> Vec<Question> {
        let mut due: Vec<_> = self
            .watched
            .iter()
            .enumerate()
            .flat_map(|(index, watched)| watched.due(whole, now).map(move |probe| (index, probe)))
            .collect();
        due.sort_by_key(|(_, probe)| probe.due_since());
        // Names are borrowed by the questions, while answers change what else is known.
        due.into_iter()
            .map(|(index, probe)| Question {
                key: (index, probe.part()),
                asked: probe.asked().to_owned(),
                pace: if probe.is_present() { Pace::Together } else { Pace::Alone },
            })
            .collect()
    }

    /// Asks for what is `due`, and says what got no answer: on a worn connection that may be much.
    async fn ask(
        &mut self,
        connection: &Connection,
        due: &[Question],
        now: Instant,
    ) -> Result<BTreeSet<Key>, Error> {
        let Self { watched, lanes, sight: told, clock, .. } = self;
        let mut unanswered: BTreeSet<Key> = due.iter().map(|question| question.key).collect();
        let questions = |pace| -> Vec<(Key, &str)> {
            let due = due.iter().filter(|question| question.pace == pace);
            due.map(|question| (question.key, &*question.asked)).collect()
        };
        let (together, alone) = (questions(Pace::Together), questions(Pace::Alone));
        let [lanes_together, lanes_alone] = lanes;
        // Some channels' numbers are left to those that replace the closed ones.
        let share = |(most, worth): (u16, usize), part: u16| {
            (usize::from((connection.most_channels() / part).clamp(1, most)), worth)
        };
        let mut asking: FuturesUnordered<_> = spread(lanes_together, &together, share(TOGETHER, 2))
            .map(|(lane, questions)| lane.ask(connection, questions, Pace::Together))
            .chain(
                spread(lanes_alone, &alone, share(ALONE, 4))
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
                    for (key @ (index, part), at, answer) in answers.drain(..) {
                        unanswered.remove(&key);
                        if let Some(watched) = watched.get_mut(index) {
                            watched.take_in(part, at, &answer, clock, sight);
                        }
                    }
                });
            }
        }
        Ok(unanswered)
    }

    async fn connect(&mut self) -> Result<Connection, Error> {
        let name = format!("mayfly-scaler {}", self.instance);
        let connection = Connection::open(&self.url, &name, CONNECT_LIMIT).await?;
        if let Some(error) = too_few_channels(&connection, &self.url) {
            return Err(error);
        }
        self.lanes = [Vec::new(), Vec::new()];
        self.connect_again = None;
        self.reconnect = Delays::new(RECONNECT);
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

async fn close(connection: Connection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(error = %chain(&error), "broker connection did not close in order");
    }
}

/// Whether `connection` has too few channels for any queue ever to be seen.
pub(crate) fn too_few_channels(connection: &Connection, url: &BrokerUrl) -> Option<Error> {
    let (most, needed) = (connection.most_channels(), LEAST_CHANNELS);
    (most < needed).then(|| Error::TooFewChannels { endpoint: url.endpoint(), most, needed })
}

/// How many queues may be missing or forbidden for each to be looked at every ten seconds, on connections that
/// have at most so many `channels`: each look at one uses up a channel's number.
pub(crate) fn most_refused(channels: u16) -> usize {
    usize::from(channels) * REFUSED_A_CHANNEL
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
