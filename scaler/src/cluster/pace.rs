//! Spreads requests over time.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Time between two requests in the long run: four a second.
const EACH: Duration = Duration::from_millis(250);
/// So many may follow each other at once.
const BURST: u32 = 12;
/// A launch needs so many: it reads state, Jobs, pods and template, and writes state and Job.
const LAUNCH: u32 = 6;
/// What can wait needs so many at most: it reads state, Jobs and pods, and writes state.
const CHORE: u32 = 4;
/// Nobody waits longer than this, however much was asked before.
const LONGEST: Duration = Duration::from_secs(2);

/// Hands out turns: a burst, then one in [`EACH`].
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When all that was asked so far would have been asked at an even pace.
    even: Mutex<Option<Instant>>,
}

// === impl Pace ===

impl Pace {
    /// Takes a turn, and tells how long to wait for it.
    pub(super) fn turn(&self) -> Duration {
        self.turn_at(Instant::now())
    }

    /// Whether a launch would not have to wait even after a chore: what has time until later leaves it its turns.
    pub(super) fn has_leisure(&self) -> bool {
        self.has_leisure_at(Instant::now())
    }

    fn has_leisure_at(&self, now: Instant) -> bool {
        let even = *self.even.lock().unwrap_or_else(PoisonError::into_inner);
        even.is_none_or(|even| even.saturating_duration_since(now) <= EACH * (BURST - LAUNCH - CHORE))
    }

    fn turn_at(&self, now: Instant) -> Duration {
        let mut even = self.even.lock().unwrap_or_else(PoisonError::into_inner);
        let next = even.map_or(now, |even| even.max(now)) + EACH;
        let wait = next.saturating_duration_since(now).saturating_sub(EACH * BURST);
        *even = Some(next.min(now + EACH * BURST + LONGEST));
        wait.min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another one that has been asked for as much.
    fn like(pace: &Pace) -> Pace {
        Pace { even: Mutex::new(*pace.even.lock().unwrap()) }
    }

    #[test]
    fn a_burst_goes_at_once_and_then_four_a_second() {
        let (pace, begun) = (Pace::default(), Instant::now());
        let mut now = begun;
        let sent: Vec<_> = std::iter::repeat_with(|| {
            now += pace.turn_at(now);
            (now - begun).as_millis()
        })
        .take(50)
        .collect();
        assert!(sent[..12].iter().all(|at| *at == 0), "{sent:?}");
        assert!(sent.windows(13).all(|part| part[12] - part[0] >= 250), "{sent:?}");
        assert_eq!(sent[49], 9_500);
    }

    #[test]
    fn three_a_second_never_wait() {
        let (pace, begun) = (Pace::default(), Instant::now());
        for n in 0..1000 {
            assert_eq!(pace.turn_at(begun + n * Duration::from_millis(333)), Duration::ZERO);
        }
    }

    #[test]
    fn what_asks_only_at_leisure_leaves_a_launch_its_turns() {
        let (pace, begun) = (Pace::default(), Instant::now());
        for n in 0..1000 {
            let now = begun + n * Duration::from_millis(10);
            if pace.has_leisure_at(now) {
                assert!((0..CHORE).all(|_| pace.turn_at(now).is_zero()));
                let launched = like(&pace);
                assert!((0..LAUNCH).all(|_| launched.turn_at(now).is_zero()));
            }
        }
    }

    #[test]
    fn what_does_not_wait_makes_others_wait_but_never_long() {
        let (pace, begun) = (Pace::default(), Instant::now());
        for _ in 0..1000 {
            pace.turn_at(begun);
        }
        assert_eq!(pace.turn_at(begun), LONGEST);
        assert_eq!(pace.turn_at(begun + EACH * BURST + LONGEST), Duration::ZERO);
    }
}
