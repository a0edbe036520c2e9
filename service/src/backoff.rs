//! The one back-off of the project.

use std::time::Duration;

use backon::ExponentialBuilder;

/// Delays that double from `first` up to `cap`, each then lengthened at random by up to as much again (so
/// none is longer than twice `cap`), without a limit on their number: the caller's own window ends the
/// retries.
#[must_use]
pub fn backoff(first: Duration, cap: Duration) -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_min_delay(first)
        .with_max_delay(cap)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
}

#[cfg(test)]
mod tests {
    use backon::BackoffBuilder;

    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_never_end() {
        let first = Duration::from_millis(100);
        let cap = Duration::from_secs(5);
        let delays: Vec<_> = backoff(first, cap).build().take(50).collect();
        assert_eq!(delays.len(), 50);
        assert!(delays[0] >= first && delays[0] <= 2 * first, "{delays:?}");
        assert!(delays[1] >= 2 * first, "{delays:?}");
        assert!(delays.iter().all(|delay| *delay <= 2 * cap), "{delays:?}");
        assert!(delays[49] >= cap, "{delays:?}");
    }
}
