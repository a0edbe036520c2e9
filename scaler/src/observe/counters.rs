//! Reads what the broker counts, again and again, in a task of its own.

pub(crate) mod endpoint;
pub(crate) mod page;
pub(crate) mod sum;

use std::{sync::Arc, time::Duration};

use futures_util::future::try_join_all;
use mayfly_service::chain;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::{endpoint::Endpoint, sum::Sum};
use super::{Jitter, Sight};
use crate::{
    config::CounterSource,
    policy::{Fact, Unknown, Why},
    time::{Clock, Time},
};

/// Between two tries of something that was refused.
const REFUSED: Duration = Duration::from_secs(10);
/// Between two tries where nobody answers.
const RETRY: Duration = Duration::from_secs(1);
/// The broker spends at most this part of its time on our answers, as long as that is not too rare.
const PART: u32 = 20;
const RAREST: Duration = Duration::from_secs(10);

/// Reads counters again and again.
#[derive(Debug)]
pub struct CounterWatch {
    endpoints: Vec<Endpoint>,
    source: CounterSource,
    sum: Sum,
    sight: watch::Sender<Sight>,
    counted: Arc<Notify>,
    clock: Clock,
}

// === impl CounterWatch ===

impl CounterWatch {
    pub(crate) fn new(
        endpoints: Vec<Endpoint>,
        source: CounterSource,
        queues: impl IntoIterator<Item = String>,
        (sight, counted): (watch::Sender<Sight>, Arc<Notify>),
        clock: Clock,
    ) -> Self {
        let sum = Sum::of(endpoints.len(), queues);
        Self { endpoints, source, sum, sight, counted, clock }
    }

    /// Reads until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut jitter = Jitter::default();
        loop {
            let pause = tokio::select! {
                () = stop.cancelled() => break,
                pause = self.read() => pause,
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(jitter.spread(pause)) => {}
            }
        }
    }

    /// One reading of all endpoints: where one gives nothing, the sum is not known either. Says how long to
    /// wait for the next one.
    async fn read(&mut self) -> Duration {
        let asked = Instant::now();
        let pages = try_join_all(self.endpoints.iter().map(Endpoint::page)).await;
        let took = asked.elapsed();
        let (asked, answered) = (self.clock.at(asked), self.clock.now());
        let pages = match pages {
            Ok(pages) => pages,
            Err(error) => {
                let why = error.why();
                self.unknown(why, &chain(&error), answered);
                // What took long, or was much, is not asked for at once again.
                return if why == Why::Forbidden { REFUSED } else { (took * PART).clamp(RETRY, REFUSED) };
            }
        };
        if let Err((index, refused)) = self.sum.fold(&pages, answered) {
            let address = self.endpoints.get(index).map_or("", Endpoint::address);
            self.unknown(Why::Unusable, &format!("{address}: {refused}"), answered);
            return REFUSED;
        }
        let Self { sum, sight, source, .. } = self;
        sight.send_modify(|sight| {
            for queue in sum.queues() {
                let fact =
                    Fact::Known { value: sum.counters(queue, &pages, answered, source.late()), at: asked };
                if matches!(sight.counters.insert(queue.clone(), fact), Some(Fact::Unknown(_))) {
                    tracing::debug!(queue, "counters are read again");
                }
            }
        });
        self.counted.notify_one();
        (took * PART).clamp(self.source.cadence(), RAREST)
    }

    /// Ages are told from looks then.
    fn unknown(&self, why: Why, detail: &str, now: Time) {
        self.sight.send_modify(|sight| {
            let queues = self.sum.queues();
            let before = queues.first().and_then(|queue| sight.counters.get(queue));
            let since = match before {
                Some(Fact::Unknown(before)) if before.why == why => before.since,
                _ => {
                    tracing::warn!(why = why.as_str(), detail, "the broker's counters cannot be read");
                    now
                }
            };
            for queue in queues {
                let unknown = Unknown { why, detail: detail.to_owned(), since };
                sight.counters.insert(queue.clone(), Fact::Unknown(unknown));
            }
        });
    }
}

// === impl CounterSource ===

impl CounterSource {
    /// How often it is worth asking.
    const fn cadence(self) -> Duration {
        match self {
            Self::Prometheus => Duration::from_millis(500),
            Self::Management => Duration::from_secs(2),
        }
    }

    /// How long ago what it tells may have been so: the management plugin is told every five seconds, and keeps
    /// its answers for as long.
    const fn late(self) -> Duration {
        match self {
            Self::Prometheus => Duration::ZERO,
            Self::Management => Duration::from_secs(10),
        }
    }
}
