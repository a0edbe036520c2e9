//! What every mayfly program needs, and nothing about queues or clusters: logging, shutdown, deadlines,
//! back-off, exit codes, the admin server, and the contract between scaler and worker.

pub mod admin;
pub mod backoff;
mod chain;
pub mod contract;
pub mod crash;
pub mod deadline;
pub mod exit;
pub mod log;
pub mod metrics;
pub mod report;
pub mod shutdown;
pub mod tls;

pub use chain::chain;
pub use deadline::{DeadlineExceeded, deadline};
pub use exit::ExitCode;
pub use shutdown::Shutdown;
