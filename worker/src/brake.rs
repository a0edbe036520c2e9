//! When a worker stops beginning messages, because it is not they who are broken: pure.
//!
//! A handler whose image is broken or whose database is down fails at every message. Going on would climb all of
//! them up the retry ladder and empty the queue into the dead-letter queue. So after some different messages
//! have failed in a row, one at a time is tried, with growing pauses, until one is done.

use std::{collections::BTreeSet, time::Duration};

/// Counts failures in a row, and says when the next message may begin.
#[derive(Debug, Clone, Default)]
pub(crate) struct Brake {
    /// The messages that failed since the last one was done.
    failed: BTreeSet<u64>,
    hold: Option<Hold>,
    /// Lengthens the pauses, 0 to 1: workers that broke together don't try together.
    jitter: f64,
}

/// Nothing new begins, but for one message after each pause.
#[derive(Debug, Clone, Copy)]
struct Hold {
    cause: Cause,
    since: Duration,
    pause: Duration,
    until: Duration,
}

/// Why nothing begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Message after message fails.
    Failures,
    /// The ledger doesn't answer.
    Ledger,
}

/// So many different messages failed in a row, with none done between them.
const FAILURES_LIMIT: usize = 10;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A worker that can't work for this long leaves: the scaler knows how to wait without one.
const PATIENCE: Duration = Duration::from_mins(5);

// === impl Cause ===

impl Cause {
    /// For logs and reports.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Failures => "message after message fails: probably the handler, not they",
            Self::Ledger => "the ledger does not answer",
        }
    }
}

// === impl Brake ===

impl Brake {
    pub(crate) fn new(jitter: f64) -> Self {
        Self { jitter, ..Self::default() }
    }

    /// A message is done: all is well.
    pub(crate) fn done(&mut self) {
        self.failed.clear();
        self.hold = None;
    }

    /// The ledger answered.
    pub(crate) fn ledger_answered(&mut self) {
        self.hold.take_if(|hold| hold.cause == Cause::Ledger);
    }

    /// A message failed; `message` tells it from others.
    pub(crate) fn failed(&mut self, message: u64, now: Duration) {
        if self.failed.len() < FAILURES_LIMIT {
            self.failed.insert(message);
        }
        if self.failed.len() >= FAILURES_LIMIT {
            self.hold(Cause::Failures, now);
        }
    }

    /// Nothing can begin now for `cause`: the next try comes after a longer pause.
    pub(crate) fn hold(&mut self, cause: Cause, now: Duration) {
        let (since, pause) = match self.hold {
            // Messages that were in work when it began end one after the other: that is not a next try.
            Some(hold) if now < hold.until => return,
            Some(hold) => (hold.since, (hold.pause * 2).min(LONGEST_PAUSE)),
            None => (now, FIRST_PAUSE),
        };
        let until = now + pause.mul_f64(1.0 + self.jitter);
        self.hold = Some(Hold { cause, since, pause, until });
    }

    /// Why messages don't begin freely, if they don't.
    pub(crate) fn cause(&self) -> Option<Cause> {
        self.hold.map(|hold| hold.cause)
    }

    /// When one message may begin as a try, while they don't begin freely.
    pub(crate) fn tries_at(&self) -> Option<Duration> {
        self.hold.map(|hold| hold.until)
    }

    /// When it is time to leave.
    pub(crate) fn gives_up_at(&self) -> Option<Duration> {
        self.hold.map(|hold| hold.since + PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    #[test]
    fn ten_different_messages_that_fail_in_a_row_hold_the_rest() {
        let mut brake = Brake::default();
        for message in 0..9 {
            brake.failed(message, NOW);
            brake.failed(message, NOW);
        }
        assert_eq!(brake.cause(), None, "the same messages again");
        brake.failed(9, NOW);
        assert_eq!(brake.cause(), Some(Cause::Failures));
        assert_eq!(brake.tries_at(), Some(NOW + FIRST_PAUSE));
    }

    #[test]
    fn one_that_is_done_lets_all_begin_again() {
        let mut brake = Brake::default();
        (0..9).for_each(|message| brake.failed(message, NOW));
        brake.done();
        (9..18).for_each(|message| brake.failed(message, NOW));
        assert_eq!(brake.cause(), None);
        brake.failed(18, NOW);
        brake.done();
        assert_eq!((brake.cause(), brake.tries_at(), brake.gives_up_at()), (None, None, None));
    }

    #[test]
    fn tries_come_in_growing_pauses_until_it_gives_up() {
        let mut brake = Brake::new(0.5);
        (0..10).for_each(|message| brake.failed(message, NOW));
        let mut pauses = Vec::new();
        let mut now = NOW;
        while let Some(at) = brake.tries_at().filter(|at| Some(*at) < brake.gives_up_at()) {
            pauses.push(at.saturating_sub(now).as_millis());
            now = at;
            // It fails as soon as it is tried, and so does a straggler.
            brake.failed(3, now);
            brake.failed(4, now);
        }
        assert_eq!(pauses[..6], [1500, 3000, 6000, 12000, 24000, 45000]);
        assert!(pauses[6..].iter().all(|pause| *pause == 45000) && pauses.len() < 12, "{pauses:?}");
        assert_eq!(brake.gives_up_at(), Some(NOW + PATIENCE));
    }

    #[test]
    fn an_answer_of_the_ledger_ends_only_the_wait_for_it() {
        let mut brake = Brake::default();
        brake.hold(Cause::Ledger, NOW);
        brake.ledger_answered();
        assert_eq!(brake.cause(), None);
        (0..10).for_each(|message| brake.failed(message, NOW));
        brake.ledger_answered();
        assert_eq!(brake.cause(), Some(Cause::Failures));
    }
}
