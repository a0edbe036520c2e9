//! How many messages to hold: pure.
//!
//! A worker that holds more than it works on takes messages away from idle ones (facts: with packing and a
//! prefetch of 4 × concurrency the median wait grew from milliseconds to 0.4 s), so it holds exactly what it works
//! on, unless that work is so short that fetching costs more.

use std::time::Duration;

/// The number of messages the broker may have in flight to us, and whether it should be another one.
#[derive(Debug, Clone)]
pub(crate) struct Prefetch {
    concurrency: u16,
    current: u16,
    /// Whether it follows the service time.
    is_auto: bool,
    /// Seconds of work per message, averaged over the last few dozen.
    service_time: Option<f64>,
    /// Messages seen since the last change.
    seen: u32,
    changed: Option<Duration>,
}

/// A change of the prefetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// More is held from now on.
    Larger,
    /// Less: what is held and not begun is too much already.
    Smaller,
}

/// This much work is held. Longer work gets one message per handler.
const AHEAD: f64 = 0.05;
/// More brings nothing (facts: broker throughput by prefetch).
const LARGEST: u16 = 200;
/// The weight of the last message in the average.
const WEIGHT: f64 = 1.0 / 16.0;
/// So many messages are seen before their service time is believed.
const ENOUGH: u32 = 20;
/// Changes by less are not worth a new consumer.
const FACTOR: u16 = 2;
/// The first change comes as soon as it is due, every further one not sooner than this after the last.
const PAUSE: Duration = Duration::from_mins(1);

// === impl Prefetch ===

impl Prefetch {
    /// Always `count`.
    pub(crate) const fn fixed(count: u16) -> Self {
        Self {
            concurrency: count,
            current: count,
            is_auto: false,
            service_time: None,
            seen: 0,
            changed: None,
        }
    }

    /// As the service time of `concurrency` handlers wants it; `hint` is what others know about it.
    pub(crate) fn auto(concurrency: u16, hint: Option<Duration>) -> Self {
        let service_time = hint.map(|hint| hint.as_secs_f64());
        let current = wanted(concurrency, service_time);
        Self { concurrency, current, is_auto: true, service_time, seen: 0, changed: None }
    }

    pub(crate) const fn current(&self) -> u16 {
        self.current
    }

    /// A handler took `busy` for a message.
    pub(crate) fn observe(&mut self, busy: Duration) {
        let busy = busy.as_secs_f64();
        self.service_time = Some(self.service_time.map_or(busy, |mean| mean + WEIGHT * (busy - mean)));
        self.seen = self.seen.saturating_add(1);
    }

    /// The change that is due, if one is; from then on [`current`](Self::current) is the new one.
    ///
    /// More is wanted only when the current number is held (`is_full`). Less would also mean that messages are under
    /// way: quorum queues give those back when the consumer is cancelled, marked as if somebody had died with them.
    pub(crate) fn adapt(&mut self, now: Duration, is_full: bool) -> Option<Change> {
        let rests = self.changed.is_some_and(|changed| now < changed + PAUSE);
        if !self.is_auto || self.seen < ENOUGH || rests {
            return None;
        }
        let wanted = wanted(self.concurrency, self.service_time);
        let change = if is_full && wanted >= self.current.saturating_mul(FACTOR) {
            Change::Larger
        } else if self.current >= wanted.saturating_mul(FACTOR) {
            Change::Smaller
        } else {
            return None;
        };
        self.current = wanted;
        self.changed = Some(now);
        self.seen = 0;
        Some(change)
    }
}

fn wanted(concurrency: u16, service_time: Option<f64>) -> u16 {
    let Some(service_time) = service_time.filter(|time| *time < AHEAD) else { return concurrency };
    let ahead = f64::from(concurrency) * (AHEAD / service_time).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to LARGEST")]
    let ahead = ahead.clamp(0.0, LARGEST.into()) as u16;
    ahead.max(concurrency)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);
    const MS: Duration = Duration::from_millis(1);

    fn after(mut prefetch: Prefetch, busy: Duration) -> Prefetch {
        (0..100).for_each(|_| prefetch.observe(busy));
        prefetch
    }

    #[test]
    fn work_of_50_ms_is_not_fetched_ahead_and_shorter_work_is() {
        let cases = [(1, 50, 1), (1, 51, 1), (1, 49, 2), (4, 10, 20), (1, 1, 50), (4, 1, 200), (16, 1, 200)];
        for (concurrency, ms, count) in cases {
            assert_eq!(Prefetch::auto(concurrency, Some(ms * MS)).current(), count, "{concurrency} {ms}");
        }
        assert_eq!(Prefetch::auto(1, Some(Duration::ZERO)).current(), LARGEST);
        assert_eq!(Prefetch::auto(1000, Some(MS)).current(), 1000, "never below the concurrency");
        assert_eq!(Prefetch::auto(3, None).current(), 3, "nothing is known");
    }

    #[test]
    fn it_follows_the_service_time_at_once_and_then_not_more_often_than_once_a_minute() {
        let mut prefetch = after(Prefetch::auto(1, None), MS);
        assert_eq!((prefetch.adapt(NOW, true), prefetch.current()), (Some(Change::Larger), 50));
        let mut prefetch = after(prefetch, 100 * MS);
        assert_eq!(prefetch.adapt(NOW + PAUSE / 2, true), None);
        assert_eq!((prefetch.adapt(NOW + PAUSE, true), prefetch.current()), (Some(Change::Smaller), 1));
    }

    #[test]
    fn after_a_change_the_next_one_is_believed_only_to_as_many_messages_again() {
        let mut prefetch = after(Prefetch::auto(1, None), MS);
        assert_eq!(prefetch.adapt(NOW, true), Some(Change::Larger));
        (1..ENOUGH).for_each(|_| prefetch.observe(100 * MS));
        assert_eq!(prefetch.adapt(NOW + PAUSE, true), None);
        prefetch.observe(100 * MS);
        assert_eq!(prefetch.adapt(NOW + PAUSE, true), Some(Change::Smaller));
    }

    #[test]
    fn small_changes_and_single_messages_change_nothing() {
        let mut prefetch = after(Prefetch::auto(1, Some(5 * MS)), 6 * MS);
        assert_eq!((prefetch.adapt(NOW, true), prefetch.current()), (None, 10));
        let mut prefetch = Prefetch::auto(1, None);
        prefetch.observe(MS);
        assert_eq!(prefetch.adapt(NOW, true), None);
        let mut prefetch = after(Prefetch::auto(1, None), MS);
        assert_eq!(prefetch.adapt(NOW, false), None, "a larger one would bring nothing");
        let mut prefetch = after(Prefetch::fixed(7), MS);
        assert_eq!((prefetch.adapt(NOW, true), prefetch.current()), (None, 7));
    }
}
