//! Kubernetes under tests: what is seen of workers through its API server.

pub mod access;
mod facts;
pub mod history;
pub mod logs;
pub mod workers;

pub use access::{client, current_client, worker_selector};
pub use history::{History, Watcher};
pub use workers::{Outcome, Phase, Worker, Workers};
