//! `mayfly-worker`: whatever ends a worker, a connection or the broker, no message is lost, and nothing of the
//! worker is left. Accounted by what handlers did, by id, as sets.

mod chaos;
mod death;
mod early_stop;
mod handlers;
mod idle;
mod ledger;
mod notes;
mod outage;
mod panics;
mod refusal;
mod retry;
mod sight;
mod start;
mod starved;
mod stop;
mod suspects;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mayfly_service::{contract, report::ExitReport};
use mayfly_tests::{Bed, Broker, Client, Kind, Process, Program, Signal, until};
use rustix::process::{Pid, kill_process};
use serde_json::Value;

use self::notes::{Dice, Notes};

/// For what takes milliseconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(40);
/// The queues of the retry ladder, below their queue's name.
const COMPANIONS: [&str; 5] = [".retry.5s", ".retry.30s", ".retry.2m", ".retry.10m", ".dead"];
/// Notes in `done` that the message is done.
const NOTE_DONE: &str = r#"echo "$MAYFLY_MESSAGE_ID $MAYFLY_REDELIVERED $MAYFLY_ATTEMPT" >>"$DIR/done""#;
/// Notes in `begun` that work on the message begins.
const NOTE_BEGUN: &str = r#"echo "$MAYFLY_MESSAGE_ID $MAYFLY_REDELIVERED $MAYFLY_ATTEMPT" >>"$DIR/begun""#;
/// Waits until somebody creates `go`.
const WAIT_FOR_GO: &str = r#"while [ ! -e "$DIR/go" ]; do sleep 0.02; done"#;
/// Locks a file named by the message, ignores SIGTERM, leaves a grandchild that does both too and writes to
/// that file for ever, and only then notes that it has begun.
const STUBBORN: &str = r#"
    trap "" TERM
    exec 9>>"$DIR/lock-$MAYFLY_MESSAGE_ID"
    flock -n 9 || { echo "$MAYFLY_MESSAGE_ID" >>"$DIR/overlaps"; exit 65; }
    (while :; do echo alive >&9; sleep 0.02; done) &
    echo "$MAYFLY_MESSAGE_ID $MAYFLY_REDELIVERED $MAYFLY_ATTEMPT" >>"$DIR/begun""#;

/// The exit codes of the contract.
mod exit {
    pub(super) const OK: i32 = 0;
    pub(super) const USAGE: i32 = 64;
    pub(super) const UNAVAILABLE: i32 = 69;
    pub(super) const INTERNAL: i32 = 70;
    pub(super) const TEMPFAIL: i32 = 75;
    pub(super) const CONFIG: i32 = 78;
}

/// The workers of one test, told apart from all others: by a variable that handlers inherit, and by the name
/// of their connections. Dropping it kills what is left of them.
struct Crew<'a> {
    bed: &'a Bed,
    broker: Broker,
    /// What workers connect to.
    url: String,
}

/// A worker with its files.
struct Worker {
    process: Process,
    status: PathBuf,
    termination_log: PathBuf,
}

// === impl Crew ===

impl<'a> Crew<'a> {
    /// On the shared broker.
    fn new(bed: &'a Bed) -> Self {
        Self::at(bed, bed.broker.clone())
    }

    /// On a broker of the test's own.
    fn at(bed: &'a Bed, broker: Broker) -> Self {
        Self { bed, url: broker.url(), broker }
    }

    /// The same through a proxy, or as another user.
    fn over(mut self, url: String) -> Self {
        self.url = url;
        self
    }

    /// A program whose processes count as ours. Its status file exists already, as the launcher makes it.
    fn program(&self, program: &str, name: &str, arguments: &[&str]) -> Result<(Program, PathBuf, PathBuf)> {
        let file = |kind: &str| self.bed.directory().join(format!("{name}.{kind}"));
        let (status, termination_log) = (file("status"), file("termination-log"));
        fs::File::create_new(&status)?;
        let program = self
            .bed
            .program(program)?
            .args(arguments)
            .env("MAYFLY_BROKER_URL", &self.url)
            .env("MAYFLY_TERMINATION_LOG", &termination_log)
            .env(contract::STATUS_FILE, &status)
            .env(contract::INSTANCE, &self.bed.queue)
            .env("CREW", &self.bed.queue)
            .env("WORKER", self.mark(name))
            .env("DIR", self.bed.directory());
        Ok((program, status, termination_log))
    }

    /// Starts a worker with any arguments.
    fn start(&self, name: &str, arguments: &[&str]) -> Result<Worker> {
        self.start_with(name, arguments, &[])
    }

    /// Starts a worker with any arguments and further variables.
    fn start_with(&self, name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Worker> {
        self.start_program("mayfly-worker", name, arguments, environment)
    }

    /// The same for a worker with a handler of its own.
    fn start_program(
        &self,
        program: &str,
        name: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Worker> {
        let (mut program, status, termination_log) = self.program(program, name, arguments)?;
        for (variable, value) in environment {
            program = program.env(variable, value);
        }
        Ok(Worker { process: program.spawn(name)?, status, termination_log })
    }

    /// Starts a worker that runs `script` for each message.
    fn exec(&self, name: &str, queue: &str, options: &[&str], script: &str) -> Result<Worker> {
        self.start(name, &exec(queue, options, script))
    }

    fn mark(&self, name: &str) -> String {
        format!("{}/{name}", self.bed.queue)
    }

    /// What handlers noted in a file.
    fn notes(&self, file: &str) -> Result<Notes> {
        Notes::read(&self.bed.directory().join(file))
    }

    /// Waits until handlers noted this many lines in a file.
    async fn noted(&self, file: &str, count: usize) -> Result<()> {
        let what = format!("{count} notes in {file}");
        until(&what, LIMIT, async || Ok(self.notes(file)?.0.len() >= count)).await
    }

    /// Lets go what waits for [`WAIT_FOR_GO`].
    fn go(&self) -> Result<()> {
        Ok(fs::write(self.bed.directory().join("go"), "")?)
    }

    /// What runs of us.
    fn running(&self) -> BTreeSet<i32> {
        having(&format!("CREW={}", self.bed.queue))
    }

    /// What runs of the handlers of one worker.
    fn handlers(&self, name: &str, worker: &Worker) -> BTreeSet<i32> {
        let mut all = having(&format!("WORKER={}", self.mark(name)));
        all.remove(&worker.process.pid());
        all
    }

    /// Ends a worker and its handlers as a container is ended by kill -9: all at one instant. Says whether
    /// there were handlers.
    async fn kill(&self, name: &str, worker: &mut Worker) -> Result<bool> {
        ensure!(worker.process.ended()?.is_none(), "it ended by itself\n{}", worker.process.log_tail());
        worker.process.signal(Signal::STOP)?;
        let handlers = self.handlers(name, worker);
        let mut left = handlers.clone();
        while !left.is_empty() {
            end_all(&left);
            left = self.handlers(name, worker);
        }
        worker.process.kill().await?;
        Ok(!handlers.is_empty())
    }

    /// Our connections as the broker lists them.
    async fn connections(&self) -> Result<Vec<String>> {
        let listed = self.broker.connections().await?.into_iter().map(|connection| connection.name);
        Ok(listed.filter(|name| name.contains(&self.bed.queue)).collect())
    }

    /// Waits until no process, connection or consumer of us is left, and nothing waits in `empty`.
    async fn nothing_is_left(&self, empty: &[&str]) -> Result<()> {
        let running = self.running();
        ensure!(running.is_empty(), "still running: {}", describe(&running));
        let client = self.broker.client().await?;
        until("no connection and no consumer is left", LIMIT, async || {
            for queue in empty {
                let depth = client.depth(queue).await?;
                ensure!(depth.ready == 0 && depth.consumers == 0, "{queue}: {depth:?}");
            }
            let connections = self.connections().await?;
            ensure!(connections.is_empty(), "connections {connections:?}");
            Ok(true)
        })
        .await?;
        client.close().await
    }
}

impl Drop for Crew<'_> {
    fn drop(&mut self) {
        end_all(&self.running());
    }
}

// === impl Worker ===

impl Worker {
    /// Waits for its end with this code, and returns its report: the same in its status file and in its
    /// termination log.
    async fn ends_with(&mut self, code: i32) -> Result<ExitReport> {
        self.process.exits_with(code, LIMIT).await?;
        self.report(code)
    }

    fn report(&self, code: i32) -> Result<ExitReport> {
        let told = fs::read_to_string(&self.termination_log).context("no termination log")?;
        let report: ExitReport = serde_json::from_str(&told).with_context(|| told.clone())?;
        let lines = self.status()?;
        let last = lines.last().context("an empty status file")?;
        ensure!(last["event"] == "exit" && last["exit_code"] == code, "{last}");
        let in_status: ExitReport = serde_json::from_value(last["report"].clone())?;
        ensure!(in_status == report, "{in_status:?} in the status file, {report:?} in the termination log");
        Ok(report)
    }

    /// The lines of its status file.
    fn status(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.status)?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// The events in its status file.
    fn events(&self) -> Result<Vec<String>> {
        Ok(self.status()?.iter().map(|line| line["event"].as_str().unwrap_or_default().to_owned()).collect())
    }

    /// Waits for an event in its status file.
    async fn is(&self, event: &str) -> Result<()> {
        until(&format!("the worker is {event}"), LIMIT, async || {
            Ok(self.events()?.iter().any(|it| it == event))
        })
        .await
        .with_context(|| self.process.log_tail())
    }
}

/// The arguments of a worker that runs `script` for each message.
fn exec<'a>(queue: &'a str, options: &[&'a str], script: &'a str) -> Vec<&'a str> {
    [&["exec", "--queue", queue], options, &["--", "sh", "-c", script]].concat()
}

/// Declares a queue and, so that exec accepts it, empty queues where its ladder would be.
async fn declare(client: &Client, queue: &str, kind: Kind) -> Result<()> {
    client.declare(queue, kind).await?;
    for companion in COMPANIONS {
        client.declare(&format!("{queue}{companion}"), Kind::Classic).await?;
    }
    Ok(())
}

/// Both kinds of queue, declared as [`declare`] does.
async fn both(bed: &Bed, client: &Client) -> Result<[(Kind, String); 2]> {
    let queues = [Kind::Classic, Kind::Quorum].map(|kind| (kind, bed.queue_name("test-worker")));
    for (kind, queue) in &queues {
        declare(client, queue, *kind).await?;
    }
    Ok(queues)
}

/// Processes with this variable in their environment. A zombie has none.
fn having(variable: &str) -> BTreeSet<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|it| it == variable.as_bytes())
    };
    pids.filter(has).collect()
}

fn end_all(pids: &BTreeSet<i32>) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn describe(pids: &BTreeSet<i32>) -> String {
    let line = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        format!("{pid} {}", String::from_utf8_lossy(&words).replace('\0', " "))
    };
    pids.iter().map(line).collect::<Vec<_>>().join("; ")
}

/// Whether somebody holds a lock on `path`.
fn is_locked(path: &Path) -> Result<bool> {
    let file = fs::File::open(path).with_context(|| path.display().to_string())?;
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(fs::TryLockError::WouldBlock) => Ok(true),
        Err(fs::TryLockError::Error(error)) => Err(error.into()),
    }
}
