//! The age of the oldest ready message without counters (DESIGN §7, fallback): what passive declares alone
//! can tell, as bounds that hold and an estimate between them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::QueueFacts;
use crate::time::{Time, as_optional_seconds, as_seconds};

/// Looks further apart than this prove nothing about the time between them.
const WATCH_GAP: Duration = Duration::from_secs(2);

/// How old the oldest ready message is. The truth lies within the bounds unless somebody fetches messages
/// with basic.get.
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
}

/// What a queue's age is counted from. Persisted with the estimates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueMarks {
    /// When ready messages, consumers and useful workers were last all 0: nothing waiting now is older.
    pub quiet: Option<Time>,
    /// While messages wait: the later of "ready last fell" and "ready last seen 0".
    pub turned: Option<Time>,
}

/// What is remembered of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct QueueMemory {
    pub(super) marks: QueueMarks,
    /// The moment of the last fact folded in.
    seen: Option<Time>,
    last_ready: Option<u64>,
    /// Start of the present run of looks that saw neither messages nor consumers.
    empty_since: Option<Time>,
    /// Since when messages wait without a consumer and without a fall.
    unattended_since: Option<Time>,
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
    pub(super) const fn resumed(marks: QueueMarks) -> Self {
        Self { marks, seen: None, last_ready: None, empty_since: None, unattended_since: None }
    }

    /// Whether a fact was folded in yet.
    pub(super) const fn is_fresh(&self) -> bool {
        self.seen.is_none()
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
            // A consumer may have come and gone while we did not look.
            let watched = self.seen.is_some_and(|seen| at.since(seen) <= WATCH_GAP);
            self.unattended_since = match self.unattended_since {
                _ if consumers > 0 => None,
                Some(since) if watched && !fell => Some(since),
                _ => Some(at),
            };
        }
        self.empty_since = (ready == 0 && consumers == 0).then(|| self.empty_since.unwrap_or(at));
        self.last_ready = Some(ready);
        self.seen = Some(at);
    }

    /// Folds in that no worker was useful at `at`.
    pub(super) fn observe_no_workers(&mut self, at: Time) {
        if let (Some(empty_since), Some(seen)) = (self.empty_since, self.seen)
            && at >= empty_since
        {
            self.marks.quiet = self.marks.quiet.max(Some(at.min(seen)));
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
        Some(Age { at_least, at_most, estimate })
    }
}
