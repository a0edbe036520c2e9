//! Which acks to send when: one for the whole settled prefix, single ones behind a message still in work.

use std::{collections::BTreeMap, time::Duration};

use crate::tally::Settled;

/// An ack to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ack {
    /// The delivery tag.
    pub(crate) tag: u64,
    /// Whether it also settles every delivery before `tag` that is not settled yet.
    pub(crate) multiple: bool,
    /// All that it settles.
    pub(crate) covers: Vec<(u64, Settled)>,
}

/// The deliveries of one channel that the broker still counts as ours.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    /// `None` while in work; else what its ack will mean.
    deliveries: BTreeMap<u64, Option<Settled>>,
    /// How many of them could be acked.
    due: usize,
    /// When the first of those became due.
    due_since: Option<Duration>,
    /// When acks were sent last.
    flushed: Option<Duration>,
}

// === impl Outstanding ===

impl Outstanding {
    /// As many acks at once spare nearly all of the cost (facts: broker throughput, multiple every 50).
    pub(crate) const BATCH: usize = 50;
    /// No ack waits longer than this for others.
    pub(crate) const LINGER: Duration = Duration::from_millis(10);

    pub(crate) fn delivered(&mut self, tag: u64) {
        self.deliveries.insert(tag, None);
    }

    /// `tag` may be acked now: it is done or safely elsewhere.
    pub(crate) fn settled(&mut self, tag: u64, settled: Settled, now: Duration) {
        if let Some(delivery @ None) = self.deliveries.get_mut(&tag) {
            *delivery = Some(settled);
            self.due += 1;
            self.due_since.get_or_insert(now);
        }
    }

    /// `tag` goes back to the queue by a nack of its own.
    pub(crate) fn given_back(&mut self, tag: u64) {
        self.deliveries.remove(&tag);
    }

    pub(crate) const fn due(&self) -> usize {
        self.due
    }

    /// When acks that are due must go out at the latest.
    pub(crate) fn flush_at(&self) -> Option<Duration> {
        self.due_since.map(|since| since + Self::LINGER)
    }

    /// Whether no ack was sent lately. Else a little patience makes one of many: at 1,000 messages a second each
    /// ack of its own would cost as much as its message.
    pub(crate) fn is_calm(&self, now: Duration) -> bool {
        self.flushed.is_none_or(|at| now >= at + Self::LINGER)
    }

    pub(crate) fn len(&self) -> usize {
        self.deliveries.len()
    }

    /// The acks for all that is due, in the order in which they must be sent.
    pub(crate) fn flush(&mut self, now: Duration) -> Vec<Ack> {
        self.due = 0;
        self.due_since = None;
        self.flushed = Some(now);
        let mut acks = Vec::new();
        let mut prefix = Vec::new();
        let mut in_prefix = true;
        self.deliveries.retain(|&tag, delivery| {
            let Some(settled) = *delivery else {
                in_prefix = false;
                return true;
            };
            if in_prefix {
                prefix.push((tag, settled));
            } else {
                acks.push(Ack { tag, multiple: false, covers: vec![(tag, settled)] });
            }
            false
        });
        if let Some(&(tag, _)) = prefix.last() {
            acks.insert(0, Ack { tag, multiple: prefix.len() > 1, covers: prefix });
        }
        acks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn outstanding(tags: std::ops::RangeInclusive<u64>, done: &[u64]) -> Outstanding {
        let mut outstanding = Outstanding::default();
        for tag in tags {
            outstanding.delivered(tag);
        }
        for &tag in done {
            outstanding.settled(tag, Settled::Done, NOW);
        }
        outstanding
    }

    fn shape(acks: &[Ack]) -> Vec<(u64, bool)> {
        acks.iter().map(|ack| (ack.tag, ack.multiple)).collect()
    }

    #[test]
    fn the_done_prefix_takes_one_ack() {
        let acks = outstanding(1..=4, &[3, 1, 2]).flush(NOW);
        assert_eq!(shape(&acks), [(3, true)]);
        assert_eq!(acks[0].covers.len(), 3);
    }

    #[test]
    fn what_is_done_behind_work_is_acked_alone_so_that_it_holds_up_no_delivery() {
        assert_eq!(shape(&outstanding(1..=5, &[1, 3, 5]).flush(NOW)), [(1, false), (3, false), (5, false)]);
    }

    #[test]
    fn nothing_is_acked_twice() {
        let mut outstanding = outstanding(1..=2, &[1]);
        assert_eq!(outstanding.flush(NOW).len(), 1);
        outstanding.settled(1, Settled::Done, NOW);
        assert_eq!((outstanding.flush(NOW), outstanding.due(), outstanding.len()), (vec![], 0, 1));
    }

    #[test]
    fn a_multiple_ack_may_pass_over_what_was_given_back_before() {
        let mut outstanding = outstanding(1..=3, &[1, 3]);
        outstanding.given_back(2);
        assert_eq!(shape(&outstanding.flush(NOW)), [(3, true)]);
    }
}
