//! A scaler's instance under the process launcher, as files and processes show it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use mayfly_service::contract;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{Bed, Process, Program, node::free_port, wait::eventually};

/// How long `mayfly-scaler check` may take.
const CHECK_LIMIT: Duration = Duration::from_mins(1);
/// How long the admin server may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The variable in which a scaler finds its broker.
pub const BROKER_URL: &str = "MAYFLY_BROKER_URL";

/// One instance: a configuration, a state, workers. Dropping it kills the workers, which are in sessions of
/// their own.
#[derive(Debug)]
pub struct Fleet<'a> {
    bed: &'a Bed,
    /// The broker that scalers and workers use.
    pub url: String,
    /// State, workers' files and logs.
    pub directory: PathBuf,
    config: PathBuf,
}

/// A scaler that runs.
#[derive(Debug)]
pub struct Scaler {
    /// Its process.
    pub process: Process,
    admin: u16,
}

/// A worker's file.
#[derive(Debug, Clone)]
pub struct WorkerFile {
    /// The Job's name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Its serial.
    pub serial: u64,
    /// Its slot.
    pub slot: u64,
    /// Why it was launched.
    pub reason: String,
    /// When its launch was decided, milliseconds since the Unix epoch.
    pub stamp: u64,
    /// Its status lines.
    pub lines: Vec<Value>,
}

// === impl Fleet ===

impl<'a> Fleet<'a> {
    /// An instance named `name` whose only pool serves the bed's queue with `command`, `changes` laid over
    /// the pool's configuration.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn new(bed: &'a Bed, name: &str, command: &[&str], changes: &Value) -> Result<Self> {
        let mut fleet = Self::unconfigured(bed, name)?;
        fleet.configure(command, changes)?;
        Ok(fleet)
    }

    fn unconfigured(bed: &'a Bed, name: &str) -> Result<Self> {
        let directory = bed.directory().join(name);
        fs::create_dir(&directory)?;
        Ok(Self { bed, url: bed.broker.url(), config: directory.join("mayfly.yaml"), directory })
    }

    /// An instance named `name` with this configuration; instance, broker and launcher are added.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn with(bed: &'a Bed, name: &str, config: &Value) -> Result<Self> {
        let fleet = Self::unconfigured(bed, name)?;
        let mut config = config.clone();
        config["instance"] = json!("test");
        config["broker"] = json!({ "url_env": BROKER_URL });
        config["launcher"] = json!({ "process": { "directory": fleet.directory } });
        fs::write(&fleet.config, serde_json::to_vec_pretty(&config)?)?;
        Ok(fleet)
    }

    /// Writes the configuration anew.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&mut self, command: &[&str], changes: &Value) -> Result<()> {
        let mut pool = json!({
            "name": "pool",
            "queues": [{ "name": self.bed.queue }],
            "worker": {
                "command": command,
                "env": { "MAYFLY_LOG": "info,mayfly_worker::message=debug", "MAYFLY_LOG_FORMAT": "json" },
            },
        });
        let mut launcher = json!({ "directory": self.directory });
        for (key, value) in changes.as_object().into_iter().flatten() {
            match &**key {
                "start_delay" => launcher[key] = value.clone(),
                "counters" => {}
                _ => pool[key] = value.clone(),
            }
        }
        let mut config = json!({
            "instance": "test",
            "broker": { "url_env": BROKER_URL },
            "launcher": { "process": launcher },
            "pools": [pool],
        });
        if let Some(counters) = changes.get("counters") {
            config["counters"] = counters.clone();
        }
        Ok(fs::write(&self.config, serde_json::to_vec_pretty(&config)?)?)
    }

    /// Puts `text` in the configuration's place.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_config(&self, text: &str) -> Result<()> {
        Ok(fs::write(&self.config, text)?)
    }

    /// The configuration as it is.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn read_config(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(&self.config)?)?)
    }

    /// Runs `mayfly-scaler explain ARGUMENTS` against `scaler`, and returns what it prints.
    ///
    /// # Errors
    /// When it does not exit with 0.
    pub async fn explain(&self, name: &str, scaler: &Scaler, arguments: &[&str]) -> Result<String> {
        let program = self.bed.program("mayfly-scaler")?.args(["explain", "--admin"]);
        let program = program.arg(format!("127.0.0.1:{}", scaler.admin)).args(arguments);
        let mut process = program.run(name, Duration::from_secs(20)).await?;
        process.exits_with(0, Duration::from_secs(1)).await?;
        process.stdout()
    }

    /// Runs `mayfly-scaler check ARGUMENTS`, and returns what it prints, errors included, and its exit code.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn check(&self, name: &str, arguments: &[&str]) -> Result<(String, Option<i32>)> {
        let program = self.bed.program("mayfly-scaler")?.arg("check").arg(&self.config).args(arguments);
        let mut process = program.env(BROKER_URL, &self.url).run(name, CHECK_LIMIT).await?;
        let text = process.stdout()? + &process.log()?;
        let code = process.exits(Duration::from_secs(1)).await?.code();
        Ok((text, code))
    }

    /// Starts a scaler; `name` names its logs. `environment` is added to its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn scaler(&self, name: &str, environment: &[(&str, &str)]) -> Result<Scaler> {
        let mut program = self
            .bed
            .program("mayfly-scaler")?
            .arg("run")
            .arg(&self.config)
            .args(["--log-format", "json"])
            .env(BROKER_URL, &self.url);
        for (variable, value) in environment {
            program = program.env(variable, value);
        }
        Scaler::spawn(program, name)
    }

    /// Runs `mayfly-scaler state ARGUMENTS` and returns what it prints.
    ///
    /// # Errors
    /// When it does not exit with 0.
    pub async fn state_command(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let program = self.bed.program("mayfly-scaler")?.arg("state").arg(&self.config).args(arguments);
        let mut process = program.run(name, Duration::from_secs(20)).await?;
        process.exits_with(0, Duration::from_secs(1)).await?;
        process.stdout()
    }

    /// The pool's part of the state record; `Null` if there is none yet.
    ///
    /// # Errors
    /// When it is not readable.
    pub fn state(&self) -> Result<Value> {
        match fs::read(self.state_file()) {
            Ok(text) => Ok(serde_json::from_slice::<Value>(&text)?["pools"]["pool"].clone()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
            Err(error) => Err(error.into()),
        }
    }

    /// The state record's file.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    /// The workers' files, by serial.
    ///
    /// # Errors
    /// When one is not readable.
    pub fn workers(&self) -> Result<Vec<WorkerFile>> {
        let mut workers = Vec::new();
        let directory = self.directory.join("workers");
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry?.path();
            if path.extension().is_none() {
                workers.push(WorkerFile::read(&path).with_context(|| path.display().to_string())?);
            }
        }
        workers.sort_by_key(|worker| worker.serial);
        Ok(workers)
    }

    /// The same, once there are workers of which `condition` holds.
    ///
    /// # Errors
    /// When `limit` passes first.
    pub async fn workers_when(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&[WorkerFile]) -> bool,
    ) -> Result<Vec<WorkerFile>> {
        eventually(what, limit, async || {
            let workers = self.workers()?;
            Ok(condition(&workers).then_some(workers))
        })
        .await
    }

    /// The ids of messages that any worker settled as done, in the order of the workers' names.
    ///
    /// # Errors
    /// When a log is not readable.
    pub fn done(&self) -> Result<Vec<String>> {
        let mut done = Vec::new();
        for worker in self.workers()? {
            let text = fs::read_to_string(self.log(&worker.name))?;
            for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
                if line["target"] == "mayfly_worker::message" && line["outcome"] == "done" {
                    done.extend(line["id"].as_str().map(str::to_owned));
                }
            }
        }
        Ok(done)
    }

    /// A worker's log.
    #[must_use]
    pub fn log(&self, worker: &str) -> PathBuf {
        self.directory.join("workers").join(format!("{worker}.log"))
    }

    /// Processes of this instance's workers and their handlers: the latter are in their worker's session.
    #[must_use]
    pub fn running(&self) -> Vec<Pid> {
        let mut running = running_workers(&self.directory);
        let started = self.workers().into_iter().flatten();
        let sessions: Vec<_> = started.filter_map(|worker| worker.pid()).collect();
        running.extend(
            processes().filter(|pid| session_of(*pid).is_some_and(|session| sessions.contains(&session))),
        );
        running.sort_unstable_by_key(|pid| pid.as_raw_nonzero());
        running.dedup();
        running
    }
}

impl Drop for Fleet<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for worker in self.workers().into_iter().flatten() {
                eprintln!("--- {worker:?}\n{}", crate::process::tail(&self.log(&worker.name)));
            }
        }
        for pid in self.running() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

// === impl Scaler ===

impl Scaler {
    /// Starts `program` with an admin server; `name` names its logs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(program: Program, name: &str) -> Result<Self> {
        let admin = free_port()?;
        let process = program.args(["--admin-listen", &format!("127.0.0.1:{admin}")]).spawn(name)?;
        Ok(Self { process, admin })
    }

    /// Its status page.
    ///
    /// # Errors
    /// When it does not answer, or has seen nothing yet.
    pub async fn page(&self) -> Result<Value> {
        Ok(serde_json::from_str(&get(self.admin, "/status").await?)?)
    }

    /// What its status page says of the pool.
    ///
    /// # Errors
    /// When it does not answer, or has seen nothing yet.
    pub async fn status(&self) -> Result<Value> {
        let page = self.page().await?;
        page.pointer("/pools/pool").cloned().context("no pool on the status page")
    }

    /// Waits until its last decision has this reason.
    ///
    /// # Errors
    /// When `limit` passes first.
    pub async fn decides(&self, reason: &str, limit: Duration) -> Result<Value> {
        eventually(&format!("the decision is {reason}"), limit, async || {
            let status = self.status().await?;
            anyhow::ensure!(status["reason"] == reason, "it is {}: {}", status["reason"], status["text"]);
            Ok(Some(status))
        })
        .await
    }

    /// Its figures.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> Result<String> {
        get(self.admin, "/metrics").await
    }

    /// The port of its admin server.
    #[must_use]
    pub const fn admin(&self) -> u16 {
        self.admin
    }

    /// How many workers it says it launched itself.
    ///
    /// # Errors
    /// When its log is not readable.
    pub fn launches(&self) -> Result<usize> {
        let lines = self.process.log_objects()?;
        Ok(lines.iter().filter(|line| line["message"] == "worker launched").count())
    }
}

// === impl WorkerFile ===

impl WorkerFile {
    /// Reads a worker's file.
    ///
    /// # Errors
    /// When it is not one.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)?;
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let header = lines.next().context("no header")?;
        let stamp = humantime::parse_rfc3339(header["stamp"].as_str().context("no stamp")?)?;
        let stamp = stamp.duration_since(std::time::UNIX_EPOCH)?.as_millis();
        Ok(Self {
            name: path.file_name().context("no name")?.to_string_lossy().into_owned(),
            pool: header["pool"].as_str().context("no pool")?.to_owned(),
            serial: header["serial"].as_u64().context("no serial")?,
            slot: header["slot"].as_u64().context("no slot")?,
            reason: header["reason"].as_str().context("no reason")?.to_owned(),
            stamp: u64::try_from(stamp)?,
            lines: lines.collect(),
        })
    }

    /// Its line `event`, if it has come that far.
    #[must_use]
    pub fn line(&self, event: &str) -> Option<&Value> {
        self.lines.iter().find(|line| line["event"] == event)
    }

    /// Its process, once it has started.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.line("started")?["process"]["pid"].as_u64()?).ok()?)
    }

    /// Whether its consumer is, or was, registered.
    #[must_use]
    pub fn was_ready(&self) -> bool {
        self.line("ready").is_some()
    }

    /// Why it ended, if it has told.
    #[must_use]
    pub fn exit_reason(&self) -> Option<&str> {
        self.line("exit")?["report"]["reason"].as_str()
    }
}

/// Processes of the workers of the process launcher at `directory`: they carry it in their environment,
/// wherever they have moved to.
#[must_use]
pub fn running_workers(directory: &Path) -> Vec<Pid> {
    let mark = format!("{}={}/workers/", contract::STATUS_FILE, directory.display());
    let is_ours = |pid: &Pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(mark.as_bytes()))
    };
    processes().filter(is_ours).collect()
}

fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

/// The session of a process (field 6 of `/proc/PID/stat`, proc(5)); `None` if it has ended.
fn session_of(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    Pid::from_raw(fields.nth(2)?.parse().ok()?).filter(|_| state != "Z")
}

/// The body of `GET path` at a loopback port.
///
/// # Errors
/// When nobody answers within 5 s, or not with 200.
pub async fn get(port: u16, path: &str) -> Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(ANSWER_LIMIT, exchange).await.context("no answer")??;
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.lines().next().unwrap_or_default();
    anyhow::ensure!(status.contains(" 200 "), "answered with {status:?}");
    Ok(body.to_owned())
}
