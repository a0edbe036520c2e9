//! On this machine: a broker, a queue with its companions, a scaler whose workers are processes. Everything
//! that is ours runs confined, so that nothing outlives the demo however it ends.

mod workers;

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use mayfly_tests::{
    Broker, Client, Node, Release, eventually,
    fleet::{self, BROKER_URL},
    ids::Ids,
    node::QueueReport,
    sandbox::{Identity, Sandbox},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::Command;

use self::workers::WorkerFiles;
use super::{Look, MAX_IDLE, POOL, Remains, Stage, WORKER_LOG, queues, unique_name, words};
use crate::{Args, screen::Screen};

/// How long the scaler may take to answer.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long workers that are asked to stop get.
const WORKERS_LIMIT: Duration = Duration::from_secs(10);
/// How long the broker may take to notice that consumers and connections have ended.
const SETTLE_LIMIT: Duration = Duration::from_secs(15);

/// A broker, a queue and a running scaler.
pub(crate) struct Local {
    /// Its own node, unless the user gave a broker.
    node: Option<Node>,
    /// The broker; empty until there is one.
    url: String,
    /// The queue; its companions' names begin with it and a dot.
    queue: String,
    declared: bool,
    /// Holds state, workers' files and logs.
    directory: tempfile::TempDir,
    workers: WorkerFiles,
    scaler: Option<Sandbox>,
    admin: u16,
    programs: PathBuf,
}

// === impl Local ===

impl Local {
    pub(crate) fn new() -> Result<Self> {
        let programs = std::env::current_exe()?.parent().context("no directory of programs")?.to_owned();
        let directory = tempfile::Builder::new().prefix("mayfly-demo-").tempdir()?;
        Ok(Self {
            node: None,
            url: String::new(),
            queue: unique_name(),
            declared: false,
            workers: WorkerFiles::new(directory.path().join("workers")),
            directory,
            scaler: None,
            admin: std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port(),
            programs,
        })
    }

    /// The user's broker, or a node of our own.
    async fn find_broker(&mut self, screen: &Screen) -> Result<()> {
        if let Some(url) = std::env::var(BROKER_URL).ok().filter(|url| !url.is_empty()) {
            screen.say(&format!("broker      the one that {BROKER_URL} names"));
            self.url = url;
        } else {
            let node = Node::start(Release::Packaged).await.context("cannot start a RabbitMQ node")?;
            self.url = node.broker().url();
            let port = node.broker().ports.amqp;
            screen.say(&format!(
                "broker      RabbitMQ of our own at 127.0.0.1:{port}, data in a temporary directory"
            ));
            self.node = Some(node);
        }
        Ok(())
    }

    async fn declare(&mut self) -> Result<()> {
        self.declared = true;
        let declared = self.publisher(&["declare", &self.queue]).output().await?;
        ensure!(
            declared.status.success(),
            "the queue cannot be declared: {}",
            String::from_utf8_lossy(&declared.stderr).trim()
        );
        Ok(())
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
                "start_delay": words(args.start_delay),
            } },
            "pools": [{
                "name": POOL,
                "queues": [{ "name": self.queue }],
                "max_workers": args.max_workers,
                "worker": {
                    "command": [
                        worker, "sleep", "--queue", self.queue,
                        "--for", words(args.work), "--max-idle", MAX_IDLE,
                    ],
                    "env": { "MAYFLY_LOG": WORKER_LOG, "MAYFLY_LOG_FORMAT": "json" },
                },
            }],
        })
    }

    fn publisher(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("mayfly-publisher"));
        command.args(arguments).env(BROKER_URL, &self.url).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// What the scaler's `/status` says of the pool.
    async fn status(&self) -> Result<Value> {
        let page = fleet::get(self.admin, "/status").await?;
        let page: Value = serde_json::from_str(&page)?;
        page.pointer(&format!("/pools/{POOL}")).cloned().context("the scaler's page has no pool yet")
    }

    /// Processes of our workers.
    fn running_workers(&self) -> Vec<Pid> {
        fleet::running_workers(self.directory.path())
    }

    /// All that `rabbitmqctl` sees at a node of our own.
    async fn own_remains(broker: &Broker) -> Result<Remains> {
        let mut remains = Remains::default();
        // A quorum queue's figures follow at its next tick, 5 s later at most.
        let quiet = eventually("nothing is left at the broker", SETTLE_LIMIT, async || {
            let queues = broker.queues().await?;
            let sum = |count: fn(&QueueReport) -> u64| queues.iter().map(count).sum::<u64>();
            remains = Remains {
                queues: queues.len(),
                ready: sum(|queue| queue.ready),
                consumers: sum(|queue| queue.consumers),
                unacked: Some(sum(|queue| queue.unacked)),
                connections: Some(broker.connections().await?.len()),
            };
            Ok(remains.is_nothing().then_some(()))
        });
        let quiet = quiet.await;
        // What is not so is shown figure by figure.
        if remains.connections.is_some() { Ok(remains) } else { quiet.map(|()| remains) }
    }

    /// A broker of the user's: AMQP tells ready messages and consumers, no more.
    async fn foreign_remains(&self) -> Result<Remains> {
        let client = Client::connect(&self.url).await?;
        let mut remains = Remains::default();
        for queue in queues(&self.queue) {
            let depth = client.depth(&queue).await?;
            remains.queues += 1;
            remains.ready += u64::from(depth.ready);
            remains.consumers += u64::from(depth.consumers);
        }
        client.close().await?;
        Ok(remains)
    }

    async fn delete_queues(&self) -> Result<()> {
        let client = Client::connect(&self.url).await?;
        for queue in queues(&self.queue) {
            client.delete(&queue).await?;
        }
        client.close().await
    }
}

impl Stage for Local {
    const FRAME: Duration = Duration::from_millis(250);
    const PATIENCE: Duration = Duration::from_secs(90);

    async fn build_up(&mut self, args: &Args, screen: &Screen) -> Result<()> {
        self.find_broker(screen).await?;
        self.declare().await?;
        screen.say(&format!(
            "queue       {} (quorum, with its retry, suspect and dead-letter queues)",
            self.queue
        ));
        // JSON is YAML.
        fs::write(self.config_file(), serde_json::to_vec_pretty(&self.config(args))?)?;
        self.start_scaler().await?;
        screen.say(&format!(
            "scaler      up to {} workers, one at a time, each {} after its launch; {} of work a message",
            args.max_workers,
            words(args.start_delay),
            words(args.work),
        ));
        Ok(())
    }

    async fn publish(&mut self, count: u32) -> Result<Ids> {
        let file = self.directory.path().join("published");
        let ids = file.to_str().context("the temporary directory's name is not UTF-8")?;
        let status = self
            .publisher(&["publish", &self.queue, "--count", &count.to_string(), "--ids", ids])
            .status()
            .await?;
        ensure!(status.success(), "the publisher ended with {status}");
        Ok(fs::read_to_string(file)?.lines().map(str::to_owned).collect())
    }

    async fn look(&mut self) -> Result<Look> {
        let page = self.status().await?;
        Ok(Look { page, ..self.workers.look()? })
    }

    async fn running(&self) -> Result<usize> {
        Ok(self.running_workers().len())
    }

    /// With the scaler ends what is left of its workers.
    async fn stop_scaler(&mut self) -> Result<()> {
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

    async fn start_scaler(&mut self) -> Result<()> {
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

    async fn remains(&mut self) -> Result<Remains> {
        match &self.node {
            Some(node) => Self::own_remains(node.broker()).await,
            None => self.foreign_remains().await,
        }
    }

    async fn logs(&self) -> String {
        let mut files = vec![self.directory.path().join("scaler.log")];
        let entries = fs::read_dir(&self.workers.directory).into_iter().flatten().flatten();
        let logs = entries.map(|entry| entry.path());
        files.extend(logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max());
        let tail = |path: &PathBuf| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let skipped = text.lines().count().saturating_sub(12);
            let lines: Vec<_> = text.lines().skip(skipped).collect();
            format!("--- end of {}:\n{}\n", path.display(), lines.join("\n"))
        };
        files.iter().map(tail).collect()
    }

    fn guide(&self) -> String {
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

    fn farewell(&self) -> &'static str {
        "stopping the workers, the scaler and the broker"
    }

    fn traces(&self) -> String {
        // All that is ours dies with us.
        if self.declared && self.node.is_none() {
            format!("queues {0} and {0}.* at your broker", self.queue)
        } else {
            String::new()
        }
    }

    async fn strike(&mut self, _: &Screen) -> Result<()> {
        self.stop_scaler().await?;
        if self.declared && self.node.is_none() {
            self.delete_queues().await.context("queues stay at your broker")?;
        }
        // Its data go with it, so it need not end in order.
        drop(self.node.take());
        Ok(())
    }
}
