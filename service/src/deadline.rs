//! The one way to put a limit on an outbound call.

use std::time::Duration;

/// An outbound call did not answer in time. Whether it took effect at the other side is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} took longer than {limit:?}")]
pub struct DeadlineExceeded {
    /// What was attempted, for people: "declare queue", "open connection".
    pub what: &'static str,
    /// How long it was given.
    pub limit: Duration,
}

/// Runs `call` for at most `limit`.
///
/// Neither lapin nor kube has read time-outs of its own, so every call that leaves the process goes
/// through here.
///
/// # Errors
/// [`DeadlineExceeded`] when `limit` passes first; `call` is dropped then.
pub async fn deadline<T>(
    what: &'static str,
    limit: Duration,
    call: impl Future<Output = T>,
) -> Result<T, DeadlineExceeded> {
    tokio::time::timeout(limit, call).await.map_err(|_| DeadlineExceeded { what, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_is_given_up_at_its_limit() {
        let limit = Duration::from_secs(3);
        let outcome = deadline("wait for nothing", limit, std::future::pending::<()>()).await;
        assert_eq!(outcome, Err(DeadlineExceeded { what: "wait for nothing", limit }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_answers_in_time_is_passed_through() {
        assert_eq!(deadline("answer", Duration::from_secs(3), async { 7 }).await, Ok(7));
    }
}
