//! An error with its causes, for logs and status pages.

use std::error::Error;

/// `error` and its causes on one line, outermost first.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeadlineExceeded, deadline};

    #[derive(Debug, thiserror::Error)]
    #[error("queue cannot be declared")]
    struct Outer(#[source] DeadlineExceeded);

    #[tokio::test(start_paused = true)]
    async fn causes_follow_their_error() {
        let limit = std::time::Duration::from_secs(3);
        let late = deadline("declare", limit, std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(chain(&Outer(late)), "queue cannot be declared: declare took longer than 3s");
    }
}
