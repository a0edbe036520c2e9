//! Ends what a worker that died without a report left behind. In a container the kernel does that; here the
//! worker leads a session of its own, and its handlers live on in it.

use std::fs;

use mayfly_service::report::ProcessIdentity;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// What `/proc/PID/stat` says of a process (proc(5)).
struct Stat {
    session: u32,
    start_ticks: u64,
}

/// Kills every process of the session that `leader` led. A later session under the same number is told
/// apart: its leader is alive or its members are older than `leader`.
pub(super) fn end_leftovers(leader: &ProcessIdentity) {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if boot.trim() != leader.boot_id
        || Stat::of(leader.pid).is_some_and(|now| now.start_ticks != leader.start_ticks)
    {
        return;
    }
    let Ok(processes) = fs::read_dir("/proc") else { return };
    let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    for number in numbers.filter(|number| *number != leader.pid) {
        let Some(pid) = i32::try_from(number).ok().and_then(Pid::from_raw) else { continue };
        // The handle is taken first, so that what is checked is what is killed.
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let left_over = Stat::of(number)
            .is_some_and(|stat| stat.session == leader.pid && stat.start_ticks >= leader.start_ticks);
        if left_over {
            tracing::warn!(
                pid = number,
                worker_pid = leader.pid,
                "ending a handler that outlived its worker"
            );
            if let Err(error) = pidfd_send_signal(&handle, Signal::KILL) {
                tracing::warn!(pid = number, %error, "handler cannot be ended");
            }
        }
    }
}

// === impl Stat ===

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the command in parentheses and may itself hold spaces and parentheses.
        let mut fields = line.rsplit_once(')')?.1.split_whitespace();
        let session = fields.nth(3)?.parse().ok()?;
        let start_ticks = fields.nth(15)?.parse().ok()?;
        Some(Self { session, start_ticks })
    }
}
