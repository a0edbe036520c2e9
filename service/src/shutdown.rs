//! Shutdown as a value: the first SIGINT or SIGTERM asks to stop, the second aborts.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Handed to everything that runs; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Cancelled by the first signal: take nothing new, finish what was begun.
    pub stop: CancellationToken,
    /// Cancelled by the second signal: end at once.
    pub abort: CancellationToken,
}

// === impl Shutdown ===

impl Shutdown {
    /// Listens for SIGINT and SIGTERM in a task that lives as long as the process. To be called before anything
    /// else is done: until then, a signal ends the process without a word.
    ///
    /// # Errors
    /// When the operating system refuses a signal handler.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::default();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let signalled = shutdown.clone();
        tokio::spawn(async move {
            for token in [signalled.stop, signalled.abort] {
                tokio::select! {
                    _ = interrupt.recv() => tracing::info!(signal = "SIGINT", "signal received"),
                    _ = terminate.recv() => tracing::info!(signal = "SIGTERM", "signal received"),
                }
                token.cancel();
            }
        });
        Ok(shutdown)
    }
}
