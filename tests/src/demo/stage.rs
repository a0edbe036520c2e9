//! Where the demo plays, as far as everything else needs to know.

mod kubernetes;
mod local;

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use mayfly_tests::ids::Ids;
use serde_json::Value;

pub(crate) use self::{kubernetes::Kubernetes, local::Local};
use crate::{Args, screen::Screen};

/// The pool's name, wherever it plays.
const POOL: &str = "demo";
/// The worker's idle limit: shorter than its default, so that the audience need not wait.
const MAX_IDLE: &str = "8s";
/// What makes a worker tell the id of each message in its log, which is JSON then.
const WORKER_LOG: &str = "info,mayfly_worker::message=debug";

/// A broker, a queue and a scaler, somewhere.
pub(crate) trait Stage {
    /// Between two looks.
    const FRAME: Duration;
    /// Nothing done, nobody started or ended for this long, beyond what one message takes: given up.
    const PATIENCE: Duration;

    /// Brings up all that is needed and waits until the scaler has seen the empty queue.
    async fn build_up(&mut self, args: &Args, screen: &Screen) -> Result<()>;

    /// Publishes `count` messages, progress shown, and returns the confirmed ids.
    async fn publish(&mut self, count: u32) -> Result<Ids>;

    /// Looks at the scaler's page and at every worker.
    async fn look(&mut self) -> Result<Look>;

    /// How many workers run, found without the scaler's help.
    async fn running(&self) -> Result<usize>;

    /// Stops the scaler; its record stays.
    async fn stop_scaler(&mut self) -> Result<()>;

    /// Starts it again.
    async fn start_scaler(&mut self) -> Result<()>;

    /// What is left at the broker once scaler and workers are gone; waits a little for it to become nothing.
    async fn remains(&mut self) -> Result<Remains>;

    /// The ends of logs, for an error.
    async fn logs(&self) -> String;

    /// What one can do while everything is kept.
    fn guide(&self) -> String;

    /// What taking down means here, for who interrupts.
    fn farewell(&self) -> &'static str;

    /// Where to look for what stays if taking down is cut short; empty if nothing does.
    fn traces(&self) -> String;

    /// Takes everything down that was brought up, as far as that came.
    async fn strike(&mut self, screen: &Screen) -> Result<()>;
}

/// What one look showed.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// What the scaler's `/status` says of the pool.
    pub(crate) page: Value,
    /// The workers that can be seen now, by the names of their Jobs.
    pub(crate) workers: BTreeMap<String, Sighting>,
    /// Messages that were settled as done since the last look: the worker, the id.
    pub(crate) done: Vec<(String, String)>,
}

/// What a worker's host tells about it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(crate) serial: u64,
    pub(crate) slot: u64,
    /// Milliseconds since the Unix epoch.
    pub(crate) launched: u64,
    pub(crate) ending: Option<Ending>,
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Milliseconds since the Unix epoch.
    pub(crate) at: u64,
    /// Its exit code, if that can be known.
    pub(crate) exit_code: Option<u64>,
    /// The exit report's reason, or the host's.
    pub(crate) reason: Option<String>,
    /// Whether its Job is Complete, where there is one.
    pub(crate) complete: Option<bool>,
    /// Whether it had started; if not, it was taken back, or could not be started.
    pub(crate) started: bool,
}

/// What is left at the broker.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remains {
    /// Queues looked at.
    pub(crate) queues: usize,
    pub(crate) ready: u64,
    pub(crate) consumers: u64,
    /// AMQP does not tell.
    pub(crate) unacked: Option<u64>,
    /// AMQP does not tell.
    pub(crate) connections: Option<usize>,
}

// === impl Ending ===

impl Ending {
    pub(crate) fn is_good(&self) -> bool {
        self.exit_code == Some(0) && self.complete != Some(false)
    }
}

// === impl Remains ===

impl Remains {
    pub(crate) fn is_nothing(&self) -> bool {
        let Self { queues: _, ready, consumers, unacked, connections } = *self;
        ready + consumers + unacked.unwrap_or(0) == 0 && connections.unwrap_or(0) == 0
    }
}

/// A name that nobody else uses.
fn unique_name() -> String {
    // The last digits of a UUIDv7 are random.
    format!("mayfly-demo-{}", uuid::Uuid::now_v7().simple().to_string().split_off(26))
}

/// The queue and its companions.
fn queues(queue: &str) -> Vec<String> {
    let topology = mayfly_broker::Topology::standard(queue);
    topology.queues().into_iter().map(|spec| spec.name).collect()
}

/// The id of the message that a line of a worker's log says is done.
fn done_id(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let is_done = line["target"] == "mayfly_worker::message" && line["outcome"] == "done";
    line["id"].as_str().filter(|_| is_done).map(str::to_owned)
}

fn words(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
