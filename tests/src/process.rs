//! Programs under test: logs in files, bounded waits, ended at the latest when dropped.

use std::{
    ffi::OsStr,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, kill_process_group};
use tokio::process::{Child, Command};

use crate::ids::Ids;

/// How much of a log an error shows.
const TAIL_LINES: usize = 60;
/// How long a killed program may take to be gone.
const REAP_LIMIT: Duration = Duration::from_secs(5);

/// A program with its arguments and environment, not started yet. The environment holds only what is given,
/// beside `PATH` and `HOME`.
#[derive(Debug)]
pub struct Program {
    command: Command,
    logs: PathBuf,
}

/// A running (or ended) program. Dropping it kills its process group.
#[derive(Debug)]
pub struct Process {
    /// For people.
    name: String,
    child: Child,
    /// Also the number of its process group.
    pid: Pid,
    status: Option<ExitStatus>,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// What became of one message, as the worker's log tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The message.
    pub id: String,
    /// `done`, …
    pub outcome: String,
}

// === impl Program ===

impl Program {
    /// The program `path`; its logs go to the directory `logs`.
    #[must_use]
    pub fn new(path: &Path, logs: &Path) -> Self {
        let mut command = Command::new(path);
        command.env_clear().envs(std::env::vars_os().filter(|(name, _)| name == "PATH" || name == "HOME"));
        command.stdin(Stdio::null());
        Self { command, logs: logs.to_owned() }
    }

    /// One of mayfly's programs, from the directory to which this test was built (or `MAYFLY_TEST_BIN`).
    ///
    /// # Errors
    /// When it was not built; the text says how.
    pub fn of_mayfly(name: &str, logs: &Path) -> Result<Self> {
        let path = program_path(name)?;
        Ok(Self::new(&path, logs))
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// The same, started by another program: the first of `words`, with the others before the command.
    #[must_use]
    pub fn within(self, words: &[&str]) -> Self {
        let Self { command: inner, logs } = self;
        let (program, arguments) = words.split_first().unwrap_or((&"env", &[]));
        let mut outer = Self::new(Path::new(program), &logs);
        outer.command.args(arguments).arg(inner.as_std().get_program()).args(inner.as_std().get_args());
        let variables = inner.as_std().get_envs().filter_map(|(name, value)| Some((name, value?)));
        outer.command.env_clear().envs(variables);
        outer
    }

    /// Gives it `text` as standard input; without it, standard input is empty.
    ///
    /// # Errors
    /// When the file that holds it cannot be written.
    pub fn stdin(mut self, text: impl AsRef<[u8]>) -> Result<Self> {
        let mut file = tempfile::tempfile()?;
        std::io::Write::write_all(&mut file, text.as_ref())?;
        std::io::Seek::rewind(&mut file)?;
        self.command.stdin(file);
        Ok(self)
    }

    /// Starts it in a process group of its own. `name` names its logs, unique in the bed.
    ///
    /// # Errors
    /// When it cannot be started, or the name is taken.
    pub fn spawn(self, name: &str) -> Result<Process> {
        let Self { mut command, logs } = self;
        let file = |kind: &str| -> Result<(PathBuf, fs::File)> {
            let path = logs.join(format!("{name}.{kind}"));
            let file = fs::File::create_new(&path).with_context(|| format!("{}", path.display()))?;
            Ok((path, file))
        };
        let (stdout, out) = file("out")?;
        let (stderr, err) = file("log")?;
        let child = command
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", command.as_std().get_program().display()))?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).context("no process id")?;
        Ok(Process { name: name.to_owned(), child, pid, status: None, stdout, stderr })
    }

    /// Starts it and waits for its end.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn) and [`Process::exits`].
    pub async fn run(self, name: &str, limit: Duration) -> Result<Process> {
        let mut process = self.spawn(name)?;
        process.exits(limit).await?;
        Ok(process)
    }
}

// === impl Process ===

impl Process {
    /// Its process id, also the number of its process group.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends `signal` to it alone.
    ///
    /// # Errors
    /// When it has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        ensure!(self.status.is_none(), "{} has ended", self.name);
        kill_process(self.pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// kill -9, to it alone; waits until it is dead.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub async fn kill(&mut self) -> Result<()> {
        ensure!(self.ended()?.is_none(), "{} has ended by itself\n{}", self.name, self.log_tail());
        self.signal(Signal::KILL)?;
        self.status = Some(self.child.wait().await?);
        Ok(())
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// When the operating system refuses to tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `limit`; the text holds the end of its log.
    pub async fn exits(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let waited = tokio::time::timeout(limit, self.child.wait()).await;
        let waited =
            waited.with_context(|| format!("{} runs after {limit:?}\n{}", self.name, self.log_tail()));
        let status = waited??;
        self.status = Some(status);
        Ok(status)
    }

    /// Waits for its end with this exit code.
    ///
    /// # Errors
    /// When it still runs after `limit` or ends otherwise; the text holds the end of its log.
    pub async fn exits_with(&mut self, code: i32, limit: Duration) -> Result<()> {
        let status = self.exits(limit).await?;
        ensure!(
            status.code() == Some(code) && status.signal().is_none(),
            "{} ended with {status}, not {code}\n{}",
            self.name,
            self.log_tail()
        );
        Ok(())
    }

    /// What it wrote to standard output so far.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn stdout(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.stdout)?)
    }

    /// What it wrote to standard error so far.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.stderr)?)
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.stderr)
    }

    /// Its log lines that are JSON objects (`MAYFLY_LOG_FORMAT=json`), in order.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn log_objects(&self) -> Result<Vec<serde_json::Value>> {
        // A line that is still being written does not parse yet.
        let lines = self.log()?;
        Ok(lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// What became of the messages of a worker that logs JSON with `mayfly_worker::message=debug`, in order.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn settled(&self) -> Result<Vec<Settled>> {
        let text = |line: &serde_json::Value, key: &str| line[key].as_str().map(ToOwned::to_owned);
        let lines = self.log_objects()?.into_iter();
        Ok(lines
            .filter(|line| line["target"] == "mayfly_worker::message")
            .filter_map(|line| Some(Settled { id: text(&line, "id")?, outcome: text(&line, "outcome")? }))
            .collect())
    }

    /// The ids of messages that it settled as done.
    ///
    /// # Errors
    /// As [`settled`](Self::settled).
    pub fn done_ids(&self) -> Result<Ids> {
        let settled = self.settled()?.into_iter();
        Ok(settled.filter(|message| message.outcome == "done").map(|message| message.id).collect())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- end of the log of {}:\n{}", self.name, self.log_tail());
        }
        // Its group can outlive it. While a member lives, the number is not given to anybody else; a group
        // of which nobody is left may be another's by now only if all process numbers went round meanwhile.
        let _ = kill_process_group(self.pid, Signal::KILL);
        reap(&mut self.child, REAP_LIMIT);
    }
}

/// Waits for a child that was just killed, in a destructor. Says whether it is gone.
pub(crate) fn reap(child: &mut Child, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Where this program and those built with it are: a test is DIRECTORY/deps/NAME-HASH, a program
/// DIRECTORY/NAME.
/// Where one of mayfly's programs is: beside this test (or in `MAYFLY_TEST_BIN`).
///
/// # Errors
/// When it was not built; the text says how.
pub fn program_path(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("MAYFLY_TEST_BIN") {
        Some(directory) => directory.into(),
        None => build_directory()?,
    };
    let path = directory.join(name);
    ensure!(path.exists(), "{} is not built: run `bin/test broker`", path.display());
    Ok(path)
}

fn build_directory() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.ancestors().skip(1).find(|path| path.file_name() != Some(OsStr::new("deps")));
    Ok(directory.context("this program is in no directory")?.to_owned())
}

/// The last lines of a file.
pub(crate) fn tail(path: &Path) -> String {
    let Ok(bytes) = fs::read(path) else { return format!("(no {})", path.display()) };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
