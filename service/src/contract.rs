//! The environment variables by which the scaler tells a worker who it is. Queue, broker and handler are
//! not among them: those come from the worker template.

/// The scaler's instance name.
pub const INSTANCE: &str = "MAYFLY_INSTANCE";
/// The pool that the worker belongs to.
pub const POOL: &str = "MAYFLY_POOL";
/// The worker's serial: the number in its Job's name, never reused.
pub const SERIAL: &str = "MAYFLY_SERIAL";
/// The worker's slot, from 0; it consumes with `x-priority = -slot`. Absent when started by hand.
pub const SLOT: &str = "MAYFLY_SLOT";
/// Overrides the worker's idle limit (humantime), for warm slots.
pub const MAX_IDLE: &str = "MAYFLY_MAX_IDLE";
/// Messages that the worker serves at once, where the pool's configuration says so.
pub const CONCURRENCY: &str = "MAYFLY_CONCURRENCY";
/// Seconds of work per message as the scaler knows it (humantime).
pub const SERVICE_TIME_HINT: &str = "MAYFLY_SERVICE_TIME_HINT";
/// File to which the worker appends its [`StatusLine`](crate::report::StatusLine)s (process launcher).
pub const STATUS_FILE: &str = "MAYFLY_STATUS_FILE";
/// How long the worker waits before it starts (humantime), imitating a node that has to come first.
pub const START_DELAY: &str = "MAYFLY_START_DELAY";
