//! The scripts in `bin`, run with all that they start in a process group of their own.

use std::{
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

/// Between two looks at whether a script has ended.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a script that is asked to stop may take to clean up.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How long one that answers a question may take.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);

/// How to run them.
#[derive(Debug)]
pub(super) struct Scripts {
    /// The directory that they are in.
    pub(super) directory: PathBuf,
    /// The cluster that they talk to.
    pub(super) kubeconfig: PathBuf,
}

/// One that runs. Dropped before its end it is asked to stop, with all that it started, and waited for.
#[derive(Debug)]
struct Running {
    child: Child,
    group: Pid,
}

// === impl Scripts ===

impl Scripts {
    /// Runs one to its end; it tells the user what it does.
    pub(super) async fn run(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(self.directory.join(name));
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
        let mut running = Running::start(&mut command).with_context(|| format!("cannot run bin/{name}"))?;
        let status = running.ended().await?;
        ensure!(status.success(), "bin/{name} ended with {status}, see above");
        Ok(())
    }

    /// Runs one that only answers a question, and returns the answer.
    pub(super) async fn output(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let mut command = tokio::process::Command::new(self.directory.join(name));
        command
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let what = || format!("bin/{name} {}", arguments.join(" "));
        let output = tokio::time::timeout(ANSWER_LIMIT, command.output()).await;
        let output = output.with_context(|| format!("{} took longer than {ANSWER_LIMIT:?}", what()))??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} ended with {}: {}", what(), output.status, said.trim());
        Ok(String::from_utf8(output.stdout)?)
    }
}

// === impl Running ===

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.process_group(0).spawn()?;
        let group = Pid::from_raw(child.id().try_into()?).context("no process id")?;
        Ok(Self { child, group })
    }

    async fn ended(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut signal = Signal::TERM;
        while matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(self.group, signal);
            let end = Instant::now() + STOP_LIMIT;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(PAUSE);
            }
            signal = Signal::KILL;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    #[tokio::test]
    async fn a_script_that_is_no_longer_wanted_ends_with_all_that_it_started_after_cleaning_up() {
        let directory = tempfile::tempdir().unwrap();
        let script = "trap 'touch cleaned; exit 1' TERM; sleep 600 & echo $! >child; touch up; wait";
        let mut command = shell(script);
        let running = Running::start(command.current_dir(directory.path())).unwrap();
        let file = |name: &str| directory.path().join(name);
        while !file("up").exists() {
            tokio::time::sleep(PAUSE).await;
        }
        let child = std::fs::read_to_string(file("child")).unwrap();
        drop(running);
        assert!(file("cleaned").exists());
        let child = Pid::from_raw(child.trim().parse().unwrap()).unwrap();
        // It was killed with its group; init or we may not have waited for it yet.
        let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }

    #[tokio::test]
    async fn the_exit_status_of_a_script_comes_through() {
        let mut running = Running::start(&mut shell("exit 7")).unwrap();
        assert_eq!(running.ended().await.unwrap().code(), Some(7));
    }
}
