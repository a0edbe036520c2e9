//! Counting what became of messages, without calling anything certain that is not.

use std::{collections::VecDeque, time::Duration};

/// What finally became of a message, as far as this worker is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Settled {
    /// Its handler succeeded and it was acked.
    Done,
    /// The ledger knew it as done and it was acked.
    Known,
    /// It was put into a retry queue and acked.
    Retried,
    /// It was put into the dead-letter queue and acked.
    DeadLettered,
    /// It was put into the suspect queue and acked.
    Suspected,
    /// It was given back to the queue.
    GivenBack,
    /// It was in flight when the connection ended, so the broker delivers it again.
    Lost,
}

/// The worker's figures so far, over all its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    /// Messages delivered.
    pub(crate) messages: u64,
    /// Messages done, their acks certain.
    pub(crate) done: u64,
    /// Messages that the ledger knew as done, their acks certain.
    pub(crate) known: u64,
    /// Messages in a retry queue, their acks certain.
    pub(crate) retried: u64,
    /// Messages in the dead-letter queue, their acks certain.
    pub(crate) dead_lettered: u64,
    /// Messages in the suspect queue, their acks certain.
    pub(crate) suspected: u64,
    /// Messages given back, and all whose ack is not certain because the connection was lost.
    pub(crate) given_back: u64,
    /// Time spent in handlers, summed over messages.
    pub(crate) busy: Duration,
    /// Time without a message in flight, while connected.
    pub(crate) idle: Duration,
}

/// Which settlements the broker has certainly processed.
///
/// An ack that was written may still die with its connection. Two things prove that it arrived: close-ok, and
/// a later delivery: with a prefetch of P the broker delivers tag T only after T − P settlements.
#[derive(Debug)]
pub(crate) struct Proof {
    prefetch: u64,
    proven: u64,
    unproven: VecDeque<Settled>,
}

// === impl Settled ===

impl Settled {
    /// The name used in logs.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Known => "known",
            Self::Retried => "retried",
            Self::DeadLettered => "dead_lettered",
            Self::Suspected => "suspected",
            Self::GivenBack => "given_back",
            Self::Lost => "lost",
        }
    }
}

// === impl Tally ===

impl Tally {
    pub(crate) const fn count(&mut self, settled: Settled) {
        match settled {
            Settled::Done => self.done += 1,
            Settled::Known => self.known += 1,
            Settled::Retried => self.retried += 1,
            Settled::DeadLettered => self.dead_lettered += 1,
            Settled::Suspected => self.suspected += 1,
            Settled::GivenBack | Settled::Lost => self.given_back += 1,
        }
    }
}

// === impl Proof ===

impl Proof {
    pub(crate) const fn new(prefetch: u64) -> Self {
        Self { prefetch, proven: 0, unproven: VecDeque::new() }
    }

    pub(crate) fn written(&mut self, settled: Settled) {
        self.unproven.push_back(settled);
    }

    /// A delivery arrived: what it proves is counted.
    pub(crate) fn delivered(&mut self, tag: u64, tally: &mut Tally) {
        let settled_before = tag.saturating_sub(self.prefetch);
        while self.proven < settled_before
            && let Some(settled) = self.unproven.pop_front()
        {
            tally.count(settled);
            self.proven += 1;
        }
    }

    /// The broker confirmed the close: all is certain.
    pub(crate) fn closed(&mut self, tally: &mut Tally) {
        for settled in self.unproven.drain(..) {
            tally.count(settled);
        }
    }

    /// The connection ended: nothing more will be proven.
    pub(crate) fn lost(&mut self, tally: &mut Tally) {
        for _ in self.unproven.drain(..) {
            tally.count(Settled::Lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_proves_the_acks_that_made_room_for_it() {
        let mut proof = Proof::new(2);
        let mut tally = Tally::default();
        proof.delivered(1, &mut tally);
        proof.delivered(2, &mut tally);
        proof.written(Settled::Done);
        proof.written(Settled::Retried);
        assert_eq!(tally, Tally::default(), "written is not certain");
        proof.delivered(3, &mut tally);
        assert_eq!(tally, Tally { done: 1, ..Tally::default() });
        proof.lost(&mut tally);
        assert_eq!(tally, Tally { done: 1, given_back: 1, ..Tally::default() });
    }

    #[test]
    fn a_confirmed_close_proves_the_rest() {
        let mut proof = Proof::new(8);
        let mut tally = Tally::default();
        for settled in [Settled::Done, Settled::DeadLettered, Settled::GivenBack] {
            proof.written(settled);
        }
        proof.closed(&mut tally);
        proof.lost(&mut tally);
        assert_eq!(tally, Tally { done: 1, dead_lettered: 1, given_back: 1, ..Tally::default() });
    }
}
