//! A child in a process group of its own, ended without ever signalling a stranger.
//!
//! A process number is free for others once its process was reaped and its group is empty. So the group is
//! signalled only while its leader has not been reaped: a pidfd tells that the leader ended without reaping it.
//! One SIGKILL to a group reaches all of it, children being forked at that moment included (fork(2) restarts
//! when a signal is pending). What it leaves behind is adopted by this process, a child subreaper, and reaped.

use std::{
    ffi::{CStr, CString},
    io::{self, PipeWriter, pipe},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::ExitStatus,
    time::Duration,
};

use nix::{
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn},
    sys::signal::{SigSet, Signal::SIGPIPE},
};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{ChildStderr, ChildStdout},
};

use super::Program;
use crate::handler::CannotStart;

/// A running child, or one that ended and was not reaped yet.
#[derive(Debug)]
pub(in crate::handler) struct Group {
    leader: Pid,
    pidfd: AsyncFd<OwnedFd>,
    reaped: bool,
}

/// A child's standard streams.
pub(in crate::handler) type Pipes = (PipeWriter, ChildStdout, ChildStderr);

/// How often killed processes are looked for.
const REAP_INTERVAL: Duration = Duration::from_millis(1);
/// A killed process that is still there after this time hangs in the kernel.
const REAP_LIMIT: Duration = Duration::from_secs(5);

// === impl Group ===

impl Group {
    /// Starts `program` as leader of its own group, with pipes as its standard streams and `variables` beside its
    /// environment.
    ///
    /// # Errors
    /// [`CannotStart`] when it is not there, or the operating system refuses to start it.
    pub(in crate::handler) fn spawn(
        program: &Program,
        variables: &[CString],
    ) -> Result<(Self, Pipes), CannotStart> {
        let path = program.find()?;
        Self::begin(path, program, variables).map_err(|error| program.cannot_start(&error))
    }

    fn begin(path: &CStr, program: &Program, variables: &[CString]) -> io::Result<(Self, Pipes)> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        // No end is inherited but as a standard stream: their own numbers are closed on exec.
        let [(stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr)] = [pipe()?, pipe()?, pipe()?];
        let mut streams = PosixSpawnFileActions::init()?;
        streams.add_dup2(stdin.as_raw_fd(), 0)?;
        streams.add_dup2(stdout.as_raw_fd(), 1)?;
        streams.add_dup2(stderr.as_raw_fd(), 2)?;
        let environment: Vec<_> = program.environment.iter().chain(variables).collect();
        let pid = posix_spawn(path, &streams, &own_group()?, &program.arguments, &environment)?;
        let group = Self::watch(pid.as_raw())?;
        let pipes = (
            to_stdin,
            ChildStdout::from_std(OwnedFd::from(from_stdout).into())?,
            ChildStderr::from_std(OwnedFd::from(from_stderr).into())?,
        );
        Ok((group, pipes))
    }

    fn watch(pid: i32) -> io::Result<Self> {
        let leader = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
        let pidfd = rustix::process::pidfd_open(leader, PidfdFlags::NONBLOCK)
            .map_err(io::Error::from)
            .and_then(register);
        match pidfd {
            Ok(pidfd) => Ok(Self { leader, pidfd, reaped: false }),
            Err(error) => {
                rustix::process::kill_process_group(leader, Signal::KILL)?;
                reap(leader)?;
                Err(error)
            }
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
        let status = reap(self.leader)?;
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

/// A group of its own, and none of our signal handling: what Rust ignores ends others.
fn own_group() -> nix::Result<PosixSpawnAttr> {
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETPGROUP
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK,
    )?;
    attributes.set_pgroup(nix::unistd::Pid::from_raw(0))?;
    attributes.set_sigdefault(&SigSet::from(SIGPIPE))?;
    attributes.set_sigmask(&SigSet::empty())?;
    Ok(attributes)
}

/// How a child ended that has ended, or is about to.
fn reap(child: Pid) -> io::Result<ExitStatus> {
    loop {
        match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(ExitStatus::from_raw(status.as_raw())),
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
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
