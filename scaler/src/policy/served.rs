//! How long a message takes, by what the broker counts: while something waits every consumer is busy, so the time
//! that they spend, over what is acknowledged meanwhile, is the time of one message.

use std::{collections::BTreeMap, time::Duration};

use super::{Estimates, Fact, Observation, QueueFacts, ServiceTime, age};
use crate::{config::PoolConfig, time::Time};

/// What is known of one pool's service time from counters.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Served {
    queues: BTreeMap<String, QueueServed>,
    /// Busy seconds and acknowledged messages that are not in `time` yet.
    busy: f64,
    acknowledged: u64,
    time: Option<ServiceTime>,
    /// When counters were last read; for a new process, when it looked first.
    read: Option<Time>,
    /// Whether it began with what was persisted.
    resumed: bool,
}

/// What a service time is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceSource {
    /// The broker's count of acknowledged messages.
    Counters,
    /// What ended workers reported.
    Reports,
}

/// One queue since its counters were last read.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct QueueServed {
    /// The last look.
    look: Option<Look>,
    /// When the counters were last read, what was acknowledged then, how often the counting had begun anew.
    counted: Option<(Time, u64, u64)>,
    /// Seconds that consumers spent.
    busy: f64,
    /// Whether something waited at every look.
    full: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Look {
    at: Time,
    ready: u64,
    consumers: u64,
}

// === impl Served ===

impl Served {
    /// Folds in looks and counters; they are `offered` where they are configured. What was folded in before
    /// changes nothing.
    pub(super) fn observe(&mut self, pool: &PoolConfig, observation: &Observation, offered: bool) {
        self.resume(pool, observation, offered);
        let mut slots = 0;
        for queue in &pool.queues {
            let memory = self.queues.entry(queue.clone()).or_default();
            if let Some(Fact::Known { value: QueueFacts::Present { ready, consumers }, at }) =
                observation.queues.get(queue)
            {
                memory.look(Look { at: *at, ready: *ready, consumers: *consumers }, pool.concurrency);
                slots += consumers * u64::from(pool.concurrency);
            }
            // A source that is late tells of another time than looks do.
            if let Some(Fact::Known { value, at }) = observation.counters.get(queue)
                && value.late == Duration::ZERO
                && let Some(acknowledged) = value.acknowledged
                && let Some((busy, acknowledged)) = memory.count(*at, acknowledged, value.restarts)
            {
                self.read = self.read.max(Some(*at));
                self.busy += busy;
                self.acknowledged += acknowledged;
            }
        }
        if observation
            .latest()
            .zip(self.read)
            .is_some_and(|(now, read)| now.since(read) > age::COUNTERS_STALE_AFTER)
        {
            self.read = None;
        }
        // Workers that began together also end together: before each has done one the sum is of begun work.
        if self.acknowledged > 0 && self.acknowledged >= slots {
            #[expect(clippy::cast_precision_loss, reason = "an estimate, not an account")]
            let done = self.acknowledged as f64;
            self.time = Some(ServiceTime::folded(self.time, self.busy * 1000.0 / done, done));
            (self.busy, self.acknowledged) = (0.0, 0);
        }
    }

    /// Goes on with what another process learned, until counters were read or are given up.
    fn resume(&mut self, pool: &PoolConfig, observation: &Observation, offered: bool) {
        if self.resumed {
            return;
        }
        if let Some(record) = observation.state.known() {
            self.resumed = true;
            self.time = self.time.or(record.pool(&pool.name).estimates.counted_service_time);
            self.read = self.read.or(observation.latest().filter(|_| offered));
        }
    }

    /// What of it is worth persisting.
    pub(super) const fn counted(&self) -> Option<ServiceTime> {
        self.time
    }

    /// By counters, if they are read and have told it; else what was reported.
    pub(super) fn or_reported(&self, estimates: &Estimates) -> Option<(ServiceTime, ServiceSource)> {
        let counted = self.time.filter(|_| self.read.is_some()).map(|time| (time, ServiceSource::Counters));
        counted.or_else(|| Some((estimates.service_time?, ServiceSource::Reports)))
    }
}

// === impl QueueServed ===

impl QueueServed {
    fn look(&mut self, look: Look, concurrency: u32) {
        if self.look.is_some_and(|last| look.at <= last.at) {
            return;
        }
        if let Some(last) = self.look {
            let elapsed = look.at.since(last.at);
            self.full &= look.ready > 0 && elapsed <= age::WATCH_GAP;
            #[expect(clippy::cast_precision_loss, reason = "an estimate, not an account")]
            let slots = last.consumers as f64 * f64::from(concurrency);
            self.busy += slots * elapsed.as_secs_f64();
        }
        self.look = Some(look);
    }

    /// Consumers' seconds and acknowledged messages since the last reading, if all consumers were busy.
    fn count(&mut self, at: Time, acknowledged: u64, restarts: u64) -> Option<(f64, u64)> {
        let last = self.counted;
        if last.is_some_and(|(counted, ..)| at <= counted) {
            return None;
        }
        self.counted = Some((at, acknowledged, restarts));
        let busy = std::mem::take(&mut self.busy);
        let full = std::mem::replace(&mut self.full, self.look.is_some_and(|look| look.ready > 0));
        let (_, before, known_restarts) = last?;
        let goes_on = full && restarts == known_restarts && acknowledged >= before;
        Some(if goes_on { (busy, acknowledged - before) } else { (0.0, 0) })
    }
}

// === impl ServiceSource ===

impl ServiceSource {
    /// In words, for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counters => age::AgeSource::Counters.as_str(),
            Self::Reports => "reports of ended workers",
        }
    }
}
