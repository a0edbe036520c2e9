//! What the worker tells at its end.

use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
};

use mayfly_service::{
    ExitCode,
    report::{ExitReason, ExitReport},
};

use crate::tally::Tally;

/// Where Kubernetes reads a container's termination message by default.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// The exit code that goes with a reason.
#[must_use]
pub const fn exit_code(reason: ExitReason) -> ExitCode {
    match reason {
        ExitReason::Idle | ExitReason::AskedToStop | ExitReason::Withdrawn | ExitReason::Recycled => {
            ExitCode::Ok
        }
        ExitReason::BrokerUnreachable | ExitReason::BrokerLost => ExitCode::Unavailable,
        ExitReason::Starved | ExitReason::Aborted | ExitReason::Internal | ExitReason::SpawnFailed => {
            ExitCode::Internal
        }
        ExitReason::GaveUp => ExitCode::TempFail,
        ExitReason::HandlerUnavailable | ExitReason::Misconfigured => ExitCode::Config,
    }
}

/// A report with the figures of `tally`.
pub(crate) fn report(reason: ExitReason, detail: Option<&str>, tally: &Tally) -> ExitReport {
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let report = ExitReport {
        messages: tally.messages,
        done: tally.done,
        known: tally.known,
        retried: tally.retried,
        dead_lettered: tally.dead_lettered,
        suspected: tally.suspected,
        given_back: tally.given_back,
        busy_ms: ms(tally.busy),
        idle_ms: ms(tally.idle),
        peak_memory: peak_memory().unwrap_or(0),
        ..ExitReport::new(reason)
    };
    match detail {
        Some(detail) => report.with_detail(detail),
        None => report,
    }
}

/// Writes `report` to `path`, or to Kubernetes' default where that exists.
pub(crate) fn write_termination_log(path: Option<&Path>, report: &ExitReport) {
    let (path, is_asked_for) =
        path.map_or_else(|| (PathBuf::from(TERMINATION_LOG), false), |path| (path.to_owned(), true));
    let written = serde_json::to_vec(report).map_err(std::io::Error::from).and_then(|mut line| {
        line.push(b'\n');
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .create(is_asked_for)
            .open(&path)
            .and_then(|mut file| file.write_all(&line))
    });
    if let Err(error) = written
        && is_asked_for
    {
        tracing::warn!(path = %path.display(), %error, "cannot write the exit report");
    }
}

/// The largest resident set so far in bytes (`VmHWM` of `/proc/self/status`, proc(5)).
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_memory_is_known() {
        assert!(peak_memory().unwrap() > 100_000);
    }

    #[test]
    fn an_exit_report_replaces_an_older_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("termination-log");
        std::fs::write(&path, "x".repeat(9000)).unwrap();
        let report = report(ExitReason::Idle, None, &Tally { done: 3, ..Tally::default() });
        write_termination_log(Some(&path), &report);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<ExitReport>(&text).unwrap(), report);
    }
}
