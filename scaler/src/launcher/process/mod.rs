//! Workers as local child processes, for the demo, development and tests. They survive the scaler.
//!
//! A worker is a file `workers/<Job name>`: its header, then the status lines that the worker appends. The
//! file is made under a temporary name, locked, and hard-linked to its own, so it appears whole and once.
//! The worker gets it as standard input and thereby holds the lock for as long as it lives.

mod session;
#[cfg(test)]
mod tests;
mod worker_file;

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use mayfly_service::{
    ExitCode, contract,
    crash::crash_point,
    deadline,
    report::{ExitReason, ExitReport, StatusLine, now_ms},
};
use tokio::process::Command;

use self::worker_file::{Header, WorkerFiles};
use super::{Cadence, LaunchError, Launched, Launcher, Look, Plan, Removed};
use crate::{
    config::{PoolConfig, WARM_IDLE, WorkerTemplate},
    policy::{Phase, Worker},
    time::Time,
};

/// The limit of one call.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// How long the files of an ended and counted worker are kept.
const KEEP_ENDED: Duration = Duration::from_secs(300);

/// Starts workers as child processes.
#[derive(Debug, Clone)]
pub struct ProcessLauncher {
    instance: String,
    files: WorkerFiles,
    start_delay: Duration,
}

// === impl ProcessLauncher ===

impl ProcessLauncher {
    /// A launcher for `instance`, with its files in `directory`, which it makes. Every worker waits for
    /// `start_delay` before it starts.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(instance: &str, directory: &Path, start_delay: Duration) -> io::Result<Self> {
        let files = WorkerFiles::new(directory, start_delay > Duration::ZERO)?;
        Ok(Self { instance: instance.to_owned(), files, start_delay })
    }

    /// One that only lists what is in `directory`: nothing, where there is no such directory.
    #[must_use]
    pub fn to_look(instance: &str, directory: &Path, start_delay: Duration) -> Self {
        let files = WorkerFiles::to_look(directory, start_delay > Duration::ZERO);
        Self { instance: instance.to_owned(), files, start_delay }
    }

    fn launch_now(&self, plan: &Plan, pool: &PoolConfig) -> Result<Launched, LaunchError> {
        let refused = |source: io::Error| LaunchError::refused(format!("worker {}", plan.name), source);
        let header = Header {
            instance: self.instance.clone(),
            pool: plan.pool.clone(),
            serial: plan.serial,
            slot: plan.slot,
            reason: plan.reason.clone(),
            stamp: plan.stamp,
        };
        let Some(file) = self.files.create(&plan.name, &header).map_err(refused)? else {
            let ours = self.files.read_header(&plan.name).is_some_and(|existing| existing.same_job(&header));
            return if ours {
                Ok(Launched::Adopted)
            } else {
                Err(LaunchError::Foreign { name: plan.name.clone() })
            };
        };
        crash_point("after-link");
        let status = file.try_clone().map_err(refused)?;
        if let Err(error) = self.spawn(plan, pool, file) {
            // The file is the Job: it tells how the worker ended, as for any other worker.
            let report = ExitReport::new(ExitReason::SpawnFailed).with_detail(&error.to_string());
            let exit = StatusLine::Exit { at: now_ms(), report, exit_code: ExitCode::Config.code() };
            exit.append_to(&status).map_err(refused)?;
        }
        crash_point("after-spawn");
        Ok(Launched::Created)
    }

    fn spawn(&self, plan: &Plan, pool: &PoolConfig, file: fs::File) -> io::Result<()> {
        let no_command = || io::Error::new(io::ErrorKind::InvalidInput, "its pool has no command");
        let WorkerTemplate::Process { command, env } = &pool.worker else { return Err(no_command()) };
        let (program, arguments) = command.split_first().ok_or_else(no_command)?;
        let path = self.files.path(&plan.name);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.files.log_path(&plan.name))?;
        let mut worker = Command::new(program);
        for (setting, _) in std::env::vars_os().filter(|(name, _)| is_own_setting(name)) {
            worker.env_remove(setting);
        }
        worker
            .args(arguments)
            .envs(env)
            .env(contract::INSTANCE, &self.instance)
            .env(contract::POOL, &plan.pool)
            .env(contract::SERIAL, plan.serial.to_string())
            .env(contract::CONCURRENCY, pool.concurrency.to_string())
            .env(contract::STATUS_FILE, &path)
            .stdin(Stdio::from(file))
            .stdout(log.try_clone()?)
            .stderr(log);
        if pool.packing {
            worker.env(contract::SLOT, plan.slot.to_string());
        }
        if plan.slot < pool.limits(plan.stamp).min_workers {
            worker.env(contract::MAX_IDLE, humantime::format_duration(WARM_IDLE).to_string());
        }
        if let Some(hint) = plan.service_time {
            worker.env(contract::SERVICE_TIME_HINT, humantime::format_duration(hint).to_string());
        }
        if self.start_delay > Duration::ZERO {
            worker.env(contract::START_DELAY, humantime::format_duration(self.start_delay).to_string());
        }
        // The child outlives us by design; tokio reaps it if it ends before we do.
        worker.kill_on_drop(false).spawn().map(drop)
    }

    fn remove_now(&self, name: &str) -> Result<Removed, LaunchError> {
        match fs::File::create_new(self.files.start_path(name)) {
            Ok(_) => Ok(Removed::Removed),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Removed::TooLate),
            Err(error) => Err(LaunchError::refused(format!("removal of {name}"), error)),
        }
    }

    fn tidy_now(&self, ended: &[Worker], counted: &[Worker], now: Time) {
        for worker in ended {
            let Phase::Finished(ending) = &worker.phase else { continue };
            if ending.report.is_none()
                && let Some(process) = self.files.process(&worker.name)
            {
                session::end_leftovers(&process);
            }
        }
        for worker in counted {
            let Phase::Finished(ending) = &worker.phase else { continue };
            if now.since(ending.at) >= KEEP_ENDED
                && let Err(error) = self.files.delete(&worker.name)
            {
                tracing::warn!(worker = worker.name, error = %error, "files of an ended worker stay");
            }
        }
    }

    async fn off_the_loop<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, LaunchError> {
        let this = self.clone();
        let joined = deadline(what, CALL_LIMIT, tokio::task::spawn_blocking(move || work(&this))).await?;
        joined.map_err(|panic| LaunchError::refused(what, panic))
    }
}

impl Launcher for ProcessLauncher {
    async fn list(&self, _: Look, now: Time) -> Result<Vec<Worker>, LaunchError> {
        let instance = self.instance.clone();
        self.off_the_loop("list workers", move |this| this.files.list(&instance, now))
            .await?
            .map_err(|error| LaunchError::refused("listing workers", error))
    }

    async fn launch(&self, plan: &Plan, pool: &PoolConfig) -> Result<Launched, LaunchError> {
        // Spawning registers the child with this runtime, so it runs on it; all of it is local and short.
        self.launch_now(plan, pool)
    }

    async fn remove(&self, worker: &Worker, _: Time) -> Result<Removed, LaunchError> {
        let name = worker.name.clone();
        self.off_the_loop("take a worker back", move |this| this.remove_now(&name)).await?
    }

    async fn tidy(&self, ended: &[Worker], counted: &[Worker], now: Time) -> Result<(), LaunchError> {
        let (ended, counted) = (ended.to_vec(), counted.to_vec());
        self.off_the_loop("tidy up after workers", move |this| this.tidy_now(&ended, &counted, now)).await
    }

    fn cadence(&self) -> Cadence {
        // Reading a directory costs next to nothing.
        Cadence { busy: Duration::from_millis(250), idle: Duration::from_secs(1), after_act: Duration::ZERO }
    }
}

/// Whether an environment variable sets up the scaler itself, so that a worker must not take it for its own
/// (the admin server's address, say). How to reach the broker concerns both.
fn is_own_setting(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("MAYFLY_") && !name.starts_with("MAYFLY_BROKER_")
}

/// The files of a launcher's directory that people may look at.
#[must_use]
pub fn workers_directory(directory: &Path) -> PathBuf {
    directory.join("workers")
}
