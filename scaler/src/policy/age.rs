//! The age of the oldest ready message (DESIGN §7): since it was last published or dead-lettered into its
//! queue. What passive declares alone can tell, as bounds that hold and an estimate between them; and better
//! ones where the broker counts.

mod counted;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(super) use self::counted::STALE_AFTER as COUNTERS_STALE_AFTER;
use self::counted::{Arrived, Counted, Look};
use super::{Counters, QueueFacts};
use crate::time::{Time, as_optional_seconds, as_seconds};

/// Looks further apart than this prove nothing about the time between them.
pub(super) const WATCH_GAP: Duration = Duration::from_secs(2);

/// A stamp that was read longer ago may be that of a message which is gone.
const STAMP_STALE_AFTER: Duration = Duration::from_secs(20);

/// How old the oldest ready message is. From looks alone the truth lies within the bounds unless somebody
/// fetches messages with basic.get, or a queue is emptied and refilled between two looks without a consumer
/// being seen. From counters they say how exactly the moment is known, as long as messages leave in order: one
/// that was given back long after its neighbours may be older.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Age {
    /// At least this old.
    #[serde(serialize_with = "as_seconds")]
    pub at_least: Duration,
    /// At most this old, if that is known.
    #[serde(serialize_with = "as_optional_seconds")]
    pub at_most: Option<Duration>,
    /// What rules use.
    #[serde(serialize_with = "as_seconds")]
    pub estimate: Duration,
    /// What tells it.
    pub source: AgeSource,
}

/// What an age is known from, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AgeSource {
    /// The broker's count of published messages.
    Counters,
    /// The publisher's stamp of the head message.
    HeadStamp,
    /// Looks at the depth alone.
    Looks,
}

/// What a queue's age is counted from. Persisted with the estimates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueMarks {
    /// When ready messages, consumers and occupied workers were last all 0: nothing waiting now is older.
    /// (A draining worker is no consumer any more, but may still give back what it holds.)
    pub quiet: Option<Time>,
    /// While messages wait: the later of "ready last fell" and "ready last seen 0".
    pub turned: Option<Time>,
}

/// What is remembered of one queue.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct QueueMemory {
    pub(super) marks: QueueMarks,
    /// The moment of the last fact folded in.
    seen: Option<Time>,
    last_ready: Option<u64>,
    /// Start of the present run of looks that saw neither messages nor consumers.
    empty_since: Option<Time>,
    /// When no worker was seen last.
    workerless: Option<Time>,
    /// Since when messages wait without a consumer and without a fall.
    unattended_since: Option<Time>,
    counted: Counted,
    /// The head's stamp, and when it was read.
    stamp: Option<(Time, Time)>,
    consumers: u64,
}

// === impl QueueMarks ===

impl QueueMarks {
    pub(super) fn cut_to(&mut self, now: Time) {
        self.quiet = self.quiet.map(|at| at.min(now));
        self.turned = self.turned.map(|at| at.min(now));
    }
}

// === impl QueueMemory ===

impl QueueMemory {
    /// A memory that begins with what was persisted.
    pub(super) fn resumed(marks: QueueMarks) -> Self {
        Self { marks, ..Self::default() }
    }

    /// Folds in a look at the queue; a look that was folded in before changes nothing.
    pub(super) fn observe(&mut self, facts: QueueFacts, at: Time) {
        if self.seen.is_some_and(|seen| at <= seen) {
            return;
        }
        let (ready, consumers) = match facts {
            QueueFacts::Present { ready, consumers } => (ready, consumers),
            QueueFacts::Missing => (0, 0),
        };
        let fell = self.last_ready.is_some_and(|last| ready < last);
        // A consumer may have come and gone while we did not look.
        let watched = self.seen.is_some_and(|seen| at.since(seen) <= WATCH_GAP);
        if ready == 0 {
            self.marks.turned = None;
            self.unattended_since = None;
        } else {
            if self.last_ready == Some(0) {
                // It was empty at the last look, so everything that waits came after that.
                self.marks.turned = self.seen;
            } else if fell || self.marks.turned.is_none() {
                self.marks.turned = Some(at);
            }
            self.unattended_since = match self.unattended_since {
                _ if consumers > 0 => None,
                Some(since) if watched && !fell => Some(since),
                _ => Some(at),
            };
        }
        self.empty_since =
            (ready == 0 && consumers == 0).then(|| self.empty_since.filter(|_| watched).unwrap_or(at));
        self.last_ready = Some(ready);
        self.consumers = consumers;
        self.seen = Some(at);
        self.counted.look(Look { at, ready, consumers });
        self.quieten();
    }

    /// Folds in what the broker counts; what was folded in before changes nothing.
    pub(super) fn observe_counters(&mut self, counters: &Counters, at: Time) {
        self.counted.read(counters, at);
        self.stamp = counters.head_stamp.map(|stamp| (stamp, at));
    }

    /// Folds in that no worker was occupied at `at`.
    pub(super) fn observe_no_workers(&mut self, at: Time) {
        // A listing later than the last look has to wait for the next: until that one a worker may have
        // given back what it held.
        self.workerless = self.workerless.max(Some(at));
        self.quieten();
    }

    /// It was quiet when no worker was there, if the looks before and after that saw nothing.
    fn quieten(&mut self) {
        if let (Some(empty_since), Some(workerless), Some(seen)) =
            (self.empty_since, self.workerless, self.seen)
            && (empty_since..=seen).contains(&workerless)
        {
            self.marks.quiet = self.marks.quiet.max(Some(workerless));
        }
    }

    /// The age of the oldest ready message; `None` when none is known to wait.
    pub(super) fn age(&self, now: Time) -> Option<Age> {
        if self.last_ready.is_none_or(|ready| ready == 0) {
            return None;
        }
        let at_least = self.unattended_since.map_or(Duration::ZERO, |since| now.since(since));
        let at_most = self.marks.quiet.map(|quiet| now.since(quiet));
        let guess = self.marks.turned.map_or(Duration::ZERO, |turned| now.since(turned));
        let estimate = guess.min(at_most.unwrap_or(Duration::MAX)).max(at_least);
        let looked = Age { at_least, at_most, estimate, source: AgeSource::Looks };
        let stamp = self.stamp.filter(|(_, read)| now.since(*read) <= STAMP_STALE_AFTER);
        Some(match (self.counted.head(now), stamp) {
            (Some(arrived), _) => looked.counted(arrived, now),
            (None, Some((stamp, _))) => looked.stamped(stamp, self.consumers, now),
            (None, None) => looked,
        })
    }
}

// === impl Age ===

impl Age {
    /// What looks prove stands above what counters say: those may miss messages.
    fn counted(self, arrived: Arrived, now: Time) -> Self {
        let proven = |age: Duration| age.min(self.at_most.unwrap_or(Duration::MAX)).max(self.at_least);
        let source = AgeSource::Counters;
        match arrived {
            Arrived::Between { earliest, latest, estimate } => Self {
                at_least: proven(latest.map_or(Duration::ZERO, |latest| now.since(latest))),
                at_most: Some(proven(now.since(earliest))),
                estimate: proven(now.since(estimate)),
                source,
            },
            // Looks are taken more often than the counters are read.
            Arrived::Since(earliest) => {
                let at_most = proven(now.since(earliest));
                Self { at_most: Some(at_most), estimate: self.estimate.min(at_most), source, ..self }
            }
        }
    }

    /// The stamp may be that of a message in flight, so it is an upper bound; without consumers nothing is in
    /// flight. One from the future is taken for now.
    fn stamped(self, stamp: Time, consumers: u64, now: Time) -> Self {
        let stamped = now.since(stamp).max(self.at_least);
        let at_most = stamped.min(self.at_most.unwrap_or(Duration::MAX));
        let estimate = if consumers == 0 { at_most } else { self.estimate.min(at_most) };
        Self { at_most: Some(at_most), estimate, source: AgeSource::HeadStamp, ..self }
    }
}

// === impl AgeSource ===

impl AgeSource {
    /// In words, for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counters => "the broker's counters",
            Self::HeadStamp => "the publisher's stamp",
            Self::Looks => "looks at the queue",
        }
    }
}
