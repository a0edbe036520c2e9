//! How many pending workers of a pool with an SLO nothing has needed for a while.

use std::{collections::VecDeque, time::Duration};

use crate::time::Time;

/// Looks at which some worker was not needed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Surplus {
    since: Time,
    /// When so many were not needed; of the time that counts, each one smaller than all that came after it.
    looks: VecDeque<(Time, u32)>,
}

// === impl Surplus ===

impl Surplus {
    /// With a further look: `count` are not needed at `now`, and `within` is the time that counts.
    pub(super) fn observe(before: Option<Self>, count: u32, within: Duration, now: Time) -> Self {
        let mut surplus = before.unwrap_or_else(|| Self { since: now, looks: VecDeque::new() });
        while surplus.looks.pop_back_if(|(_, other)| *other >= count).is_some() {}
        surplus.looks.push_back((now, count));
        while surplus.looks.pop_front_if(|(at, _)| now.since(*at) > within).is_some() {}
        surplus
    }

    /// Since when at least one is not needed.
    pub(super) const fn since(&self) -> Time {
        self.since
    }

    /// The fewest within the time that counts.
    pub(super) fn least(&self) -> u32 {
        self.looks.front().map_or(0, |(_, count)| *count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(10);

    fn after(looks: &[(u64, u32)]) -> Surplus {
        let look = |before, (at, count): &(u64, u32)| {
            Some(Surplus::observe(before, *count, WITHIN, Time::default() + Duration::from_secs(*at)))
        };
        looks.iter().fold(None, look).unwrap()
    }

    #[test]
    fn the_fewest_of_the_last_seconds_count_and_what_was_before_does_not() {
        assert_eq!(after(&[(0, 2), (5, 42)]).least(), 2, "two seconds ago the others were needed");
        assert_eq!(after(&[(0, 2), (5, 42), (10, 42)]).least(), 2);
        assert_eq!(after(&[(0, 2), (5, 42), (11, 42)]).least(), 42);
        assert_eq!(after(&[(0, 42), (5, 7), (11, 42)]).least(), 7, "for a moment all but seven were needed");
        assert_eq!(after(&[(0, 2), (60, 3)]).since(), Time::default());
    }
}
