//! A child in a process group of its own, ended without ever signalling a stranger.
//!
//! A process number is free for others once its process was reaped and its group is empty. So the group is
//! signalled only while its leader has not been reaped: a pidfd tells that the leader ended without reaping it.
//! One SIGKILL to a group reaches all of it, children being forked at that moment included (fork(2) restarts
//! when a signal is pending). What it leaves behind is adopted by this process, a child subreaper, and reaped.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{ChildStderr, ChildStdin, ChildStdout},
};

/// A running child, or one that ended and was not reaped yet.
#[derive(Debug)]
pub(in crate::handler) struct Group {
    child: Child,
    leader: Pid,
    pidfd: AsyncFd<OwnedFd>,
    reaped: bool,
}

/// A child's standard streams.
pub(in crate::handler) type Pipes = (ChildStdin, ChildStdout, ChildStderr);

/// How often killed processes are looked for.
const REAP_INTERVAL: Duration = Duration::from_millis(1);
/// A killed process that is still there after this time hangs in the kernel.
const REAP_LIMIT: Duration = Duration::from_secs(5);

// === impl Group ===

impl Group {
    /// Starts `command`, whose standard streams are pipes, as leader of its own group.
    pub(in crate::handler) fn spawn(mut command: Command) -> io::Result<(Self, Pipes)> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let mut child = command.process_group(0).spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        match Self::watch(child) {
            Ok(group) => {
                let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
                    return Err(io::Error::other("a standard stream is not a pipe"));
                };
                let pipes = (
                    ChildStdin::from_std(stdin)?,
                    ChildStdout::from_std(stdout)?,
                    ChildStderr::from_std(stderr)?,
                );
                Ok((group, pipes))
            }
            Err((mut child, error)) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    fn watch(child: Child) -> Result<Self, (Child, io::Error)> {
        let leader = Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(leader, PidfdFlags::NONBLOCK)
            .map_err(io::Error::from)
            .and_then(register);
        match pidfd {
            Ok(pidfd) => Ok(Self { child, leader, pidfd, reaped: false }),
            Err(error) => Err((child, error)),
        }
    }

    /// Waits until the leader has ended; it stays unreaped.
    pub(in crate::handler) async fn exited(&self) -> io::Result<()> {
        self.pidfd.readable().await.map(|mut ready| ready.retain_ready())
    }

    /// Asks all of the group to end.
    pub(in crate::handler) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Kills what is there of the group, waits until it is gone, and returns how the leader ended.
    pub(in crate::handler) async fn end(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        self.exited().await?;
        self.reaped = true;
        let status = self.child.wait()?;
        let gone = mayfly_service::deadline("end process group", REAP_LIMIT, self.reap_orphans()).await;
        if let Err(error) = gone {
            tracing::warn!(pid = self.leader.as_raw_pid(), %error, "killed processes do not end");
        }
        Ok(status)
    }

    /// Members of the group other than its leader are our children by now. The first look finds none in the
    /// usual case, and as long as there is one its group's number stays taken.
    async fn reap_orphans(&self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        // An error means that there are none.
        while let Ok(ended) = rustix::process::waitid(WaitId::Pgid(Some(self.leader)), options) {
            if ended.is_none() {
                tokio::time::sleep(REAP_INTERVAL).await;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        if !self.reaped {
            // An error means that nothing is left of the group but its unreaped leader.
            let _ = rustix::process::kill_process_group(self.leader, signal);
        }
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe, for types that may change their descriptor; an OwnedFd never does"
)]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// A handler that is dropped instead of ended leaves nothing running.
impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
