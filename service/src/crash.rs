//! Named steps at which a test can kill the process, to prove that dying there loses and doubles nothing.

/// The environment variable that names the step to die at.
pub const CRASH_AT: &str = "MAYFLY_CRASH_AT";

/// Aborts the process if the environment names this step. Does nothing in builds without the cargo
/// feature `crash-points`, which release binaries never have.
#[cfg(feature = "crash-points")]
pub fn crash_point(step: &str) {
    if std::env::var_os(CRASH_AT).is_some_and(|wanted| wanted == step) {
        std::process::abort();
    }
}

/// Aborts the process if the environment names this step. Does nothing in this build.
#[cfg(not(feature = "crash-points"))]
#[inline]
pub fn crash_point(_step: &str) {}
