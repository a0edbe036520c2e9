//! Waiting for a condition instead of for a time.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(25);

/// Asks `probe` until it yields a value, for at most `limit`. An error of the probe is "not yet".
///
/// # Errors
/// When `limit` passes first; the text names `what` was waited for and the probe's last error.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    let mut last = None;
    loop {
        match tokio::time::timeout_at(end, probe()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => last = None,
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = last.or_else(|| Some(anyhow::anyhow!("the last look did not end"))),
        }
        if Instant::now() >= end {
            match last {
                Some(error) => return Err(error.context(format!("waited {limit:?} in vain: {what}"))),
                None => bail!("waited {limit:?} in vain: {what}"),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks `probe` until it says true, for at most `limit`.
///
/// # Errors
/// As [`eventually`].
pub async fn until(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    eventually(what, limit, async || Ok(probe().await?.then_some(()))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_condition_that_never_holds_is_named_with_its_last_error() {
        let limit = Duration::from_secs(3);
        let error = until("pigs fly", limit, async || bail!("too heavy")).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "waited 3s in vain: pigs fly: too heavy");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_hangs_does_not_outlast_the_limit() {
        let limit = Duration::from_secs(3);
        assert!(until("nothing", limit, async || std::future::pending().await).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_condition_that_holds_later_is_seen() {
        let mut looks = 0;
        let third = async || {
            looks += 1;
            Ok(looks == 3)
        };
        until("third look", Duration::from_secs(3), third).await.unwrap();
        assert_eq!(looks, 3);
    }
}
