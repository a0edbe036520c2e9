//! What the demo stands on: a broker, a queue with its companions, a scaler. Everything that is ours runs
//! confined, so that nothing outlives the demo however it ends.

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use mayfly_tests::{
    Broker, Client, Node, Release, eventually,
    fleet::{self, BROKER_URL},
    ids::Ids,
    sandbox::{Identity, Sandbox},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{Args, screen::Screen};

/// How long the scaler may take to answer.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long workers that are asked to stop get.
const WORKERS_LIMIT: Duration = Duration::from_secs(10);
/// The worker's idle limit: shorter than its default, so that the audience need not wait.
const MAX_IDLE: &str = "8s";

/// A broker, a queue and a running scaler.
pub(crate) struct Stage {
    /// Its own node, unless the user gave a broker.
    node: Option<Node>,
    url: String,
    /// The queue; its companions' names begin with it and a dot.
    pub(crate) queue: String,
    /// Holds state, workers' files and logs.
    directory: tempfile::TempDir,
    scaler: Option<Sandbox>,
    admin: u16,
    programs: PathBuf,
}

// === impl Stage ===

impl Stage {
    /// Starts the broker if none is given, declares the queue, starts the scaler.
    pub(crate) async fn set(args: &Args, screen: &mut Screen) -> Result<Self> {
        let programs = std::env::current_exe()?.parent().context("no directory of programs")?.to_owned();
        let given = std::env::var(BROKER_URL).ok().filter(|url| !url.is_empty());
        let (node, url) = if let Some(url) = given {
            screen.say(&format!("broker      the one that {BROKER_URL} names"));
            (None, url)
        } else {
            let node = Node::start(Release::Packaged).await.context("cannot start a RabbitMQ node")?;
            let url = node.broker().url();
            let port = node.broker().ports.amqp;
            screen.say(&format!(
                "broker      RabbitMQ of our own at 127.0.0.1:{port}, data in a temporary directory"
            ));
            (Some(node), url)
        };
        // The last digits of a UUIDv7 are random.
        let suffix = uuid::Uuid::now_v7().simple().to_string().split_off(24);
        let queue = format!("mayfly-demo-{suffix}");
        let directory = tempfile::Builder::new().prefix("mayfly-demo-").tempdir()?;
        let admin = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut stage = Self { node, url, queue, directory, scaler: None, admin, programs };
        if let Err(error) = stage.build_up(args, screen).await {
            screen.say(&stage.logs());
            stage.strike().await?;
            return Err(error);
        }
        Ok(stage)
    }

    async fn build_up(&mut self, args: &Args, screen: &mut Screen) -> Result<()> {
        let declared = self.publisher(&["declare", &self.queue]).output().await?;
        ensure!(
            declared.status.success(),
            "the queue cannot be declared: {}",
            String::from_utf8_lossy(&declared.stderr).trim()
        );
        screen.say(&format!(
            "queue       {} (quorum, with its retry, suspect and dead-letter queues)",
            self.queue
        ));
        // JSON is YAML.
        fs::write(self.config_file(), serde_json::to_vec_pretty(&self.config(args))?)?;
        self.start_scaler().await?;
        let Args { work, start_delay, max_workers, .. } = args;
        screen.say(&format!(
            "scaler      up to {max_workers} workers, one at a time, each {} after its launch; {} of work a message",
            humantime::format_duration(*start_delay),
            humantime::format_duration(*work),
        ));
        Ok(())
    }

    /// Starts the scaler and waits until it has seen the empty queue.
    pub(crate) async fn start_scaler(&mut self) -> Result<()> {
        let config = self.config_file();
        let log = fs::File::create(self.directory.path().join("scaler.log"))?;
        let scaler = self.programs.join("mayfly-scaler");
        let argv = [scaler.as_os_str(), "run".as_ref(), config.as_os_str()];
        let mut command = Sandbox::command(Identity::Own, Some(self.directory.path()), &argv);
        command
            .env(BROKER_URL, &self.url)
            .env("MAYFLY_ADMIN_LISTEN", format!("127.0.0.1:{}", self.admin))
            .stdout(Stdio::null())
            .stderr(log);
        self.scaler = Some(Sandbox::spawn(command)?);
        eventually("the scaler answers", START_LIMIT, async || {
            if let Some(status) = self.scaler.as_mut().context("no scaler")?.ended()? {
                return Ok(Some(Err(anyhow::anyhow!("the scaler ended with {status}"))));
            }
            Ok((self.status().await?["reason"] == "Empty").then_some(Ok(())))
        })
        .await?
    }

    /// Stops the scaler, and with it what is left of its workers.
    pub(crate) async fn stop_scaler(&mut self) -> Result<()> {
        if let Some(mut scaler) = self.scaler.take() {
            scaler.terminate().await.ok();
            tokio::time::timeout(STOP_LIMIT, scaler.wait()).await.ok();
        }
        // Namespaces end with the scaler's; without them workers, in sessions of their own, go on.
        for worker in self.running_workers() {
            let _ = kill_process(worker, Signal::TERM);
        }
        eventually("the workers end", WORKERS_LIMIT, async || {
            Ok(self.running_workers().is_empty().then_some(()))
        })
        .await
    }

    fn config_file(&self) -> PathBuf {
        self.directory.path().join("mayfly.yaml")
    }

    fn config(&self, args: &Args) -> Value {
        let worker = self.programs.join("mayfly-worker");
        json!({
            "instance": "demo",
            "broker": { "url_env": BROKER_URL },
            "launcher": { "process": {
                "directory": self.directory.path(),
                "start_delay": humantime::format_duration(args.start_delay).to_string(),
            } },
            "pools": [{
                "name": "demo",
                "queues": [{ "name": self.queue }],
                "max_workers": args.max_workers,
                "worker": {
                    "command": [
                        worker, "sleep", "--queue", self.queue,
                        "--for", humantime::format_duration(args.work).to_string(), "--max-idle", MAX_IDLE,
                    ],
                    "env": { "MAYFLY_LOG": "info,mayfly_worker::message=debug", "MAYFLY_LOG_FORMAT": "json" },
                },
            }],
        })
    }

    fn publisher(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("mayfly-publisher"));
        command.args(arguments).env(BROKER_URL, &self.url).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Publishes `count` messages, the publisher's own progress bar shown, and returns the confirmed ids.
    pub(crate) async fn publish(&self, count: u32) -> Result<Ids> {
        let file = self.directory.path().join("published");
        let ids = file.to_str().context("the temporary directory's name is not UTF-8")?;
        let status = self
            .publisher(&["publish", &self.queue, "--count", &count.to_string(), "--ids", ids])
            .status()
            .await?;
        ensure!(status.success(), "the publisher ended with {status}");
        Ok(fs::read_to_string(file)?.lines().map(str::to_owned).collect())
    }

    /// What the scaler's `/status` says of the pool.
    pub(crate) async fn status(&self) -> Result<Value> {
        let page = fleet::get(self.admin, "/status").await?;
        let page: Value = serde_json::from_str(&page)?;
        page.pointer("/pools/demo").cloned().context("the scaler's page has no pool yet")
    }

    /// Where workers' files and logs are.
    pub(crate) fn workers(&self) -> PathBuf {
        self.directory.path().join("workers")
    }

    /// The node that is ours, if the broker is.
    pub(crate) fn own_broker(&self) -> Option<&Broker> {
        self.node.as_ref().map(Node::broker)
    }

    /// A connection of the demo's own.
    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect(&self.url).await
    }

    /// Processes of our workers.
    pub(crate) fn running_workers(&self) -> Vec<Pid> {
        fleet::running_workers(self.directory.path())
    }

    /// The end of the scaler's and the last worker's log, for an error.
    pub(crate) fn logs(&self) -> String {
        let mut files = vec![self.directory.path().join("scaler.log")];
        let logs = fs::read_dir(self.workers()).into_iter().flatten().flatten().map(|entry| entry.path());
        files.extend(logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max());
        let tail = |path: &PathBuf| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let skipped = text.lines().count().saturating_sub(12);
            let lines: Vec<_> = text.lines().skip(skipped).collect();
            format!("--- end of {}:\n{}\n", path.display(), lines.join("\n"))
        };
        files.iter().map(tail).collect()
    }

    /// What one can do while everything is kept.
    pub(crate) fn guide(&self) -> String {
        let programs = self.programs.display();
        let Self { queue, admin, .. } = self;
        let url =
            if self.node.is_some() { format!("  export {BROKER_URL}={}\n", self.url) } else { String::new() };
        format!(
            "kept until Ctrl-C. In another terminal:\n{url}  {programs}/mayfly-publisher publish {queue} --count 50\n  \
             {programs}/mayfly-publisher inspect {queue}\n  curl -s http://127.0.0.1:{admin}/status\n  ls {}",
            self.directory.path().display()
        )
    }

    /// Takes everything down: workers asked to stop, scaler, queues, broker.
    pub(crate) async fn strike(&mut self) -> Result<()> {
        self.stop_scaler().await?;
        if self.node.is_none() {
            self.delete_queues().await.context("queues stay at your broker")?;
        }
        // Its data go with it, so it need not end in order.
        drop(self.node.take());
        Ok(())
    }

    async fn delete_queues(&self) -> Result<()> {
        let client = self.client().await?;
        for queue in self.queues() {
            client.delete(&queue).await?;
        }
        client.close().await
    }

    /// The queue and its companions.
    pub(crate) fn queues(&self) -> Vec<String> {
        let topology = mayfly_broker::Topology::standard(&self.queue);
        topology.queues().into_iter().map(|spec| spec.name).collect()
    }
}
