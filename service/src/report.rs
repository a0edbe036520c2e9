//! What a worker tells about itself: status lines while it lives, an exit report at its end.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// The version of [`ExitReport`] that this build writes.
pub const REPORT_VERSION: u32 = 1;
/// An exit report is never longer than this many bytes: Kubernetes cuts termination messages at 4096.
pub const REPORT_LIMIT: usize = 4096;
/// [`ExitReport::detail`] is cut to this many bytes, so that the whole stays below [`REPORT_LIMIT`].
const DETAIL_LIMIT: usize = 1024;

/// One line of a worker's status file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum StatusLine {
    /// The worker's process runs (after its start delay, if it has one).
    Started {
        /// Milliseconds since the Unix epoch, by the worker's wall clock.
        at: u64,
        /// Its process, also its session.
        process: ProcessIdentity,
    },
    /// Its consumer is registered at the broker.
    Ready {
        /// Milliseconds since the Unix epoch.
        at: u64,
    },
    /// It takes nothing new and will end by itself.
    Draining {
        /// Milliseconds since the Unix epoch.
        at: u64,
    },
    /// Its last line.
    Exit {
        /// Milliseconds since the Unix epoch.
        at: u64,
        /// What it did.
        report: ExitReport,
        /// The code it exits with; inside, because after a scaler restart nobody can wait for the child.
        exit_code: u8,
    },
}

/// A process, told apart from a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`, proc(5)).
    pub start_ticks: u64,
    /// The boot it belongs to (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

/// Why a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// Its queue stayed idle.
    Idle,
    /// A signal asked it to.
    AskedToStop,
    /// It was taken back before it had started.
    Withdrawn,
    /// It reached its message, memory or time limit.
    Recycled,
    /// The broker could not be reached before the start deadline.
    BrokerUnreachable,
    /// The broker was lost for longer than the reconnect window.
    BrokerLost,
    /// Messages wait, but none is delivered.
    Starved,
    /// It gave up waiting for its handler or ledger to recover.
    GaveUp,
    /// Its handler cannot be started.
    HandlerUnavailable,
    /// The queue is missing, the broker refuses us, or an option is impossible.
    Misconfigured,
    /// A second signal.
    Aborted,
    /// A defect.
    Internal,
    /// Its process could not be started at all (written by the launcher).
    SpawnFailed,
}

/// What a worker did in its life. One JSON line, at most [`REPORT_LIMIT`] bytes, in the status file
/// (process launcher) or the termination message (Kubernetes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// [`REPORT_VERSION`] of its writer.
    pub version: u32,
    /// Why it ended.
    pub reason: ExitReason,
    /// The error with its causes, cut to 1 KiB; no secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Messages delivered to it.
    pub messages: u64,
    /// Messages whose handler succeeded and whose ack is certain.
    pub done: u64,
    /// Messages that the ledger knew as done, acknowledged without running.
    #[serde(default)]
    pub known: u64,
    /// Messages that ran without the ledger because it did not answer.
    #[serde(default)]
    pub unrecorded: u64,
    /// Messages put into a retry queue.
    pub retried: u64,
    /// Messages dead-lettered.
    pub dead_lettered: u64,
    /// Messages set aside because somebody may have died over them.
    #[serde(default)]
    pub suspected: u64,
    /// Messages given back unprocessed, or lost with their connection.
    pub given_back: u64,
    /// Time spent in handlers, summed over messages, in milliseconds.
    pub busy_ms: u64,
    /// Time without a message in flight after ready, in milliseconds.
    pub idle_ms: u64,
    /// From process start (after the start delay) to ready, in milliseconds; absent if never ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup_ms: Option<u64>,
    /// Largest resident set of the worker itself, in bytes.
    pub peak_memory: u64,
}

// === impl ExitReason ===

impl ExitReason {
    /// The name used in logs, metrics and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::AskedToStop => "asked_to_stop",
            Self::Withdrawn => "withdrawn",
            Self::Recycled => "recycled",
            Self::BrokerUnreachable => "broker_unreachable",
            Self::BrokerLost => "broker_lost",
            Self::Starved => "starved",
            Self::GaveUp => "gave_up",
            Self::HandlerUnavailable => "handler_unavailable",
            Self::Misconfigured => "misconfigured",
            Self::Aborted => "aborted",
            Self::Internal => "internal",
            Self::SpawnFailed => "spawn_failed",
        }
    }
}

// === impl ExitReport ===

impl ExitReport {
    /// A report of a worker that did nothing.
    #[must_use]
    pub fn new(reason: ExitReason) -> Self {
        Self {
            version: REPORT_VERSION,
            reason,
            detail: None,
            messages: 0,
            done: 0,
            known: 0,
            unrecorded: 0,
            retried: 0,
            dead_lettered: 0,
            suspected: 0,
            given_back: 0,
            busy_ms: 0,
            idle_ms: 0,
            startup_ms: None,
            peak_memory: 0,
        }
    }

    /// Reads a termination message; `None` if it holds no report, or only a part of one.
    #[must_use]
    pub fn from_message(message: &str) -> Option<Self> {
        // Where the cluster adds the end of the log, the report is the last line all the same.
        serde_json::from_str(message.trim().lines().last()?).ok()
    }

    /// The same with the error that ended the worker, as one line cut to 1 KiB at a character boundary.
    #[must_use]
    pub fn with_detail(mut self, detail: &str) -> Self {
        // A control character takes six bytes in JSON, so it becomes a space.
        let mut line: String = detail.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        line.truncate(line.floor_char_boundary(DETAIL_LIMIT));
        self.detail = Some(line);
        self
    }
}

// === impl ProcessIdentity ===

impl ProcessIdentity {
    /// The calling process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn own() -> io::Result<Self> {
        let pid = std::process::id();
        Ok(Self {
            pid,
            start_ticks: start_ticks(pid)?,
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        })
    }
}

/// When process `pid` started, in clock ticks since boot (field 22 of `/proc/PID/stat`, proc(5)).
///
/// # Errors
/// When there is no such process, or its line cannot be understood.
pub fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the command in parentheses and may itself hold spaces and parentheses.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected format of /proc/PID/stat"))
}

// === impl StatusLine ===

impl StatusLine {
    /// Appends this line to `file` in one write, so that concurrent writers cannot mix their lines.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append_to(&self, mut file: &File) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        file.write_all(&line)
    }

    /// Opens a status file that exists, for appending.
    ///
    /// # Errors
    /// When it does not exist or cannot be opened.
    pub fn open(path: &Path) -> io::Result<File> {
        OpenOptions::new().append(true).open(path)
    }
}

/// The wall clock in milliseconds since the Unix epoch, for status lines.
#[must_use]
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_stays_below_its_limit_whatever_the_error_says() {
        let report = ExitReport {
            messages: u64::MAX,
            done: u64::MAX,
            known: u64::MAX,
            unrecorded: u64::MAX,
            retried: u64::MAX,
            dead_lettered: u64::MAX,
            suspected: u64::MAX,
            given_back: u64::MAX,
            busy_ms: u64::MAX,
            idle_ms: u64::MAX,
            startup_ms: Some(u64::MAX),
            peak_memory: u64::MAX,
            ..ExitReport::new(ExitReason::HandlerUnavailable)
        };
        for worst in ["\u{0}", "\"", "\\", "ü", "\u{1F980}"] {
            let report = report.clone().with_detail(&worst.repeat(9000));
            assert!(serde_json::to_string(&report).unwrap().len() <= REPORT_LIMIT, "{worst:?}");
        }
    }

    #[test]
    fn a_termination_message_is_read_whole_or_not_at_all() {
        let report = ExitReport { done: 3, ..ExitReport::new(ExitReason::Idle) };
        let line = serde_json::to_string(&report).unwrap();
        assert_eq!(ExitReport::from_message(&format!("{line}\n")), Some(report.clone()));
        assert_eq!(ExitReport::from_message(&format!("a log line\n{line}")), Some(report));
        for garbage in ["", "\n", "oops", "{}", "null", &line[..line.len() - 1], &line[1..]] {
            assert_eq!(ExitReport::from_message(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn status_lines_survive_a_round_trip() {
        let lines = [
            StatusLine::Started { at: 1, process: ProcessIdentity::own().unwrap() },
            StatusLine::Ready { at: 2 },
            StatusLine::Draining { at: 3 },
            StatusLine::Exit { at: 4, report: ExitReport::new(ExitReason::Idle), exit_code: 0 },
        ];
        for line in lines {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<StatusLine>(&text).unwrap(), line);
        }
    }
}
