//! The one back-off of the project.

use std::time::Duration;

use backon::ExponentialBuilder;

/// Doubling, jittered delays from `first` up to `cap`, without a limit on their number: the caller's own
/// window ends the retries.
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

    /// backon's jitter adds up to one `min_delay` to each delay.
    #[test]
    fn delays_double_up_to_the_cap_and_never_end() {
        let first = Duration::from_millis(100);
        let cap = Duration::from_secs(5);
        let delays: Vec<_> = backoff(first, cap).build().take(50).collect();
        assert_eq!(delays.len(), 50);
        assert!(delays[0] >= first && delays[0] <= 2 * first, "{delays:?}");
        assert!(delays[1] >= 2 * first, "{delays:?}");
        assert!(delays.iter().all(|delay| *delay <= cap + first), "{delays:?}");
        assert!(delays[49] >= cap, "{delays:?}");
    }
}
