//! Commands that cannot outlive us: however we end, kill -9 included, all that they started is killed.
//!
//! As root (or where users may make namespaces) a command gets private pid and mount namespaces; elsewhere
//! it is held by its process group, and what makes a session of its own can escape.

use std::{
    ffi::OsStr,
    path::Path,
    process::{ExitStatus, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
};

use crate::process::reap;

/// The supervisor between us and the command.
const SUPERVISE: &str = include_str!("sandbox/supervise.sh");
/// How long a killed command may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How well this machine lets us confine a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// We are root: private namespaces.
    Root,
    /// We are not, but may have namespaces of our own.
    User,
    /// Process groups only.
    Group,
}

/// Who a command is inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// Whoever we are.
    Own,
    /// Root, at least in its own namespace: may mount and chroot.
    Root,
}

/// A running command with all its descendants.
#[derive(Debug)]
pub struct Sandbox {
    child: Child,
    /// The supervisor reads it; when it closes, everything is killed.
    lifeline: Option<ChildStdin>,
}

// === impl Isolation ===

impl Isolation {
    /// What is possible here, tried once.
    #[must_use]
    pub fn here() -> Self {
        static HERE: OnceLock<Isolation> = OnceLock::new();
        *HERE.get_or_init(|| {
            let wanted = if rustix::process::geteuid().is_root() { Self::Root } else { Self::User };
            let argv = wanted.prefix(Identity::Root);
            let works = std::process::Command::new(argv[0])
                .args(&argv[1..])
                .arg("true")
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success());
            if works { wanted } else { Self::Group }
        })
    }

    /// Whether mounts inside are invisible outside.
    #[must_use]
    pub const fn is_private(self) -> bool {
        matches!(self, Self::Root | Self::User)
    }

    /// What to put before a command.
    fn prefix(self, identity: Identity) -> Vec<&'static str> {
        let mut argv = vec!["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"];
        match (self, identity) {
            (Self::Group, _) => return Vec::new(),
            (Self::Root, _) => {}
            (Self::User, Identity::Own) => argv.extend(["--user", "--map-current-user"]),
            (Self::User, Identity::Root) => argv.extend(["--user", "--map-root-user"]),
        }
        argv
    }
}

// === impl Sandbox ===

impl Sandbox {
    /// `argv` confined but not supervised, for commands that end by themselves. Dropping its child kills it.
    pub fn short<S: AsRef<OsStr>>(identity: Identity, argv: &[S]) -> Command {
        let mut words: Vec<&OsStr> = Isolation::here().prefix(identity).into_iter().map(OsStr::new).collect();
        words.extend(argv.iter().map(AsRef::as_ref));
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// `argv` confined and supervised; give it environment and output, then [`spawn`](Self::spawn) it.
    /// When we end without having stopped it, `doomed` is removed after it.
    pub fn command<S: AsRef<OsStr>>(identity: Identity, doomed: Option<&Path>, argv: &[S]) -> Command {
        let doomed = doomed.map_or(OsStr::new(""), Path::as_os_str);
        let supervisor = [OsStr::new("sh"), OsStr::new("-c"), OsStr::new(SUPERVISE), OsStr::new("supervise")];
        let mut words = supervisor.to_vec();
        words.push(doomed);
        words.extend(argv.iter().map(AsRef::as_ref));
        Self::short(identity, &words)
    }

    /// Starts what [`command`](Self::command) made.
    ///
    /// # Errors
    /// When there is no `unshare` or `sh`.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).process_group(0).spawn().context("cannot start a sandbox")?;
        let lifeline = child.stdin.take();
        Ok(Self { child, lifeline })
    }

    /// Sends SIGTERM to the command, and only to it.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn terminate(&mut self) -> Result<()> {
        self.say("stop\n").await
    }

    /// Sends SIGKILL to the command's process group.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn kill(&mut self) -> Result<()> {
        self.say("kill\n").await
    }

    /// Waits until all of it is gone. A command that died by a signal counts as exit code 128 + signal.
    ///
    /// # Errors
    /// When the operating system refuses to tell.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        // The lifeline stays open meanwhile: tokio's own wait would close only a stdin that it still holds.
        Ok(self.child.wait().await?)
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// When the operating system refuses to tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    async fn say(&mut self, word: &str) -> Result<()> {
        let lifeline = self.lifeline.as_mut().context("the sandbox is closed")?;
        lifeline.write_all(word.as_bytes()).await.context("the sandbox has ended")?;
        Ok(lifeline.flush().await?)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.lifeline = None;
        if !reap(&mut self.child, KILL_LIMIT) {
            // A supervisor that does not obey; `unshare` takes its namespace with it.
            let _ = self.child.start_kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_exit_code_of_the_command_comes_through() {
        let command = Sandbox::command(Identity::Own, None, &["sh", "-c", "exit 7"]);
        let status = Sandbox::spawn(command).unwrap().wait().await.unwrap();
        assert_eq!(status.code(), Some(7));
    }

    #[tokio::test]
    async fn a_command_may_end_in_its_own_way_when_asked_to() {
        let script = "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done";
        let mut command = Sandbox::command(Identity::Own, None, &["sh", "-c", script]);
        command.stdout(Stdio::piped());
        let mut sandbox = Sandbox::spawn(command).unwrap();
        let mut up = [0; 3];
        let mut stdout = sandbox.child.stdout.take().unwrap();
        tokio::io::AsyncReadExt::read_exact(&mut stdout, &mut up).await.unwrap();
        sandbox.terminate().await.unwrap();
        assert_eq!(sandbox.wait().await.unwrap().code(), Some(3));
    }

    #[tokio::test]
    async fn dropping_it_ends_a_deaf_command_and_removes_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let doomed = directory.path().join("doomed");
        std::fs::create_dir(&doomed).unwrap();
        let script = "trap '' TERM; echo up; while :; do sleep 0.05; done";
        let mut command = Sandbox::command(Identity::Own, Some(&doomed), &["sh", "-c", script]);
        command.stdout(Stdio::piped());
        let mut sandbox = Sandbox::spawn(command).unwrap();
        let mut up = [0; 3];
        let mut stdout = sandbox.child.stdout.take().unwrap();
        tokio::io::AsyncReadExt::read_exact(&mut stdout, &mut up).await.unwrap();
        drop(sandbox);
        // Nobody holds the pipe's other end any more.
        let mut rest = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stdout, &mut rest).await.unwrap();
        assert!(!doomed.exists());
    }
}
