//! How old each waiting message is, as far as depths tell: those that came together are one batch. Workers
//! take from the front (facts/scaling §3.2b asks for each message's own age).

use serde::{Deserialize, Serialize};

use crate::time::Time;

/// Batches remembered; more are joined where that errs least.
const MOST: usize = 24;
/// Less of a message than this is none, but an error of rounding.
const NOTHING: f64 = 1e-6;
/// Batches persisted.
const MOST_PERSISTED: usize = 6;

/// Messages that came together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// None of them came before this.
    pub since: Time,
    /// How many; a part of one where what is taken is estimated.
    pub count: f64,
}

/// What waits in one queue, the oldest first.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Waiting {
    batches: Vec<Batch>,
}

// === impl Waiting ===

impl Waiting {
    /// What was persisted at the `since` of the last batch or later.
    pub(super) fn resumed(batches: &[Batch]) -> Self {
        let sound = |batch: &&Batch| batch.count.is_finite() && batch.count > 0.0;
        let mut batches: Vec<_> = batches.iter().filter(sound).copied().collect();
        batches.sort_by_key(|batch| batch.since);
        Self { batches }
    }

    /// Folds in a look: `ready` wait, of those that waited at `before` `taken` were taken since.
    #[expect(clippy::cast_precision_loss, reason = "an estimate, not an account")]
    pub(super) fn turn(&mut self, ready: u64, taken: f64, before: Time) {
        let ready = ready as f64;
        let total: f64 = self.batches.iter().map(|batch| batch.count).sum();
        let left = (total - taken.max(0.0)).clamp(0.0, ready);
        self.take(total - left);
        if ready > left {
            // They came after the last look; none is taken for younger than it is.
            match self.batches.last_mut() {
                Some(last) if last.since == before => last.count += ready - left,
                _ => self.batches.push(Batch { since: before, count: ready - left }),
            }
        }
        join(&mut self.batches, MOST);
    }

    /// The batches, the oldest first.
    pub(super) fn batches(&self) -> &[Batch] {
        &self.batches
    }

    /// What of them is worth persisting.
    pub(super) fn persisted(&self) -> Vec<Batch> {
        let mut batches = self.batches.clone();
        join(&mut batches, MOST_PERSISTED);
        batches
    }

    fn take(&mut self, mut count: f64) {
        self.batches.retain_mut(|batch| {
            let taken = batch.count.min(count);
            batch.count -= taken;
            count -= taken;
            batch.count > NOTHING
        });
    }
}

/// Joins neighbours until there are at most `most` batches: those whose messages are taken for older by the
/// least in total.
#[expect(clippy::cast_precision_loss, reason = "an estimate, not an account")]
fn join(batches: &mut Vec<Batch>, most: usize) {
    while batches.len() > most {
        let error = |pair: &[Batch]| pair[1].since.since(pair[0].since).as_millis() as f64 * pair[1].count;
        let pairs = batches.windows(2).map(error).enumerate();
        let Some((index, _)) = pairs.min_by(|(_, a), (_, b)| a.total_cmp(b)) else { return };
        let joined = batches.remove(index + 1);
        batches[index].count += joined.count;
    }
}
