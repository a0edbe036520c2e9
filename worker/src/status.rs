//! Telling others that we live: the process launcher's status file, and the readiness probe.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use mayfly_service::{
    Shutdown,
    admin::Readiness,
    report::{ExitReason, ExitReport, ProcessIdentity, StatusLine, now_ms},
};
use tokio::time::MissedTickBehavior;

use crate::metrics::Metrics;

/// Tells readiness and draining, once each.
#[derive(Debug, Default)]
pub(crate) struct Announcer {
    file: Option<StatusFile>,
    readiness: Readiness,
    draining: AtomicBool,
    told_long: AtomicBool,
    metrics: Metrics,
}

/// The file to which a worker of the process launcher appends its status.
#[derive(Debug)]
pub(crate) struct StatusFile {
    file: File,
    start_marker: PathBuf,
}

/// How often the start marker is looked for during the start delay.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What RabbitMQ gives a consumer for a message unless told otherwise (`consumer_timeout`).
pub(crate) const CONSUMER_TIMEOUT: Duration = Duration::from_mins(30);
/// From here on somebody should know.
const LONG: Duration = Duration::from_mins(25);

/// The warning about work that the broker does not wait for, which begins with `cause`.
pub(crate) fn long_work(cause: &str) -> String {
    format!(
        "{cause}, and the broker takes a message back after 30 minutes unless it is told otherwise, to give it to \
         another worker: set a longer time (queue argument x-consumer-timeout, policy consumer-timeout, or \
         consumer_timeout in rabbitmq.conf)"
    )
}

// === impl StatusFile ===

impl StatusFile {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut start_marker = path.as_os_str().to_owned();
        start_marker.push(".start");
        Ok(Self { file: StatusLine::open(path)?, start_marker: start_marker.into() })
    }

    /// Waits out `delay`, then claims the start: whoever creates the start marker first, we or a scaler that
    /// takes us back, wins. Returns why we must end instead of starting, if so.
    pub(crate) async fn claim_start(
        &self,
        delay: Duration,
        shutdown: &Shutdown,
    ) -> io::Result<Option<ExitReason>> {
        tokio::select! {
            () = tokio::time::sleep(delay), if !delay.is_zero() => {}
            () = shutdown.stop.cancelled() => {}
            () = self.taken_back(), if !delay.is_zero() => {}
            () = std::future::ready(()), if delay.is_zero() => {}
        }
        match File::create_new(&self.start_marker) {
            Ok(_) if shutdown.stop.is_cancelled() => Ok(Some(ExitReason::AskedToStop)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Some(ExitReason::Withdrawn)),
            Err(error) => Err(error),
        }
    }

    async fn taken_back(&self) {
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.start_marker.exists() {
            looks.tick().await;
        }
    }

    pub(crate) fn started(&self) -> io::Result<()> {
        StatusLine::Started { at: now_ms(), process: ProcessIdentity::own()? }.append_to(&self.file)
    }

    pub(crate) fn exit(&self, report: &ExitReport, exit_code: u8) {
        self.append(&StatusLine::Exit { at: now_ms(), report: report.clone(), exit_code });
    }

    /// Work goes on when nobody can be told about it.
    fn append(&self, line: &StatusLine) {
        if let Err(error) = line.append_to(&self.file) {
            tracing::warn!(%error, "cannot write to the status file");
        }
    }
}

// === impl Announcer ===

impl Announcer {
    pub(crate) fn new(file: Option<StatusFile>, readiness: Readiness) -> Self {
        Self { file, readiness, ..Self::default() }
    }

    /// The worker's figures, for whoever scrapes them.
    pub(crate) const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The oldest message in flight was delivered this long ago: whether that is to be told, once, before the
    /// broker's own time for it is over.
    pub(crate) fn is_long(&self, age: Duration) -> bool {
        age >= LONG && !self.told_long.swap(true, Ordering::Relaxed)
    }

    /// The consumer is registered, for the first time or anew.
    pub(crate) fn ready(&self) {
        self.metrics.connected();
        if !self.readiness.is_set() {
            self.readiness.set();
            if let Some(file) = &self.file {
                file.append(&StatusLine::Ready { at: now_ms() });
            }
        }
    }

    /// Nothing new is taken.
    pub(crate) fn draining(&self) {
        if !self.draining.swap(true, Ordering::Relaxed)
            && let Some(file) = &self.file
        {
            file.append(&StatusLine::Draining { at: now_ms() });
        }
    }

    /// What the admin server answers by.
    pub(crate) fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    pub(crate) fn file(&self) -> Option<&StatusFile> {
        self.file.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_file(directory: &tempfile::TempDir) -> StatusFile {
        let path = directory.path().join("worker-1");
        File::create(&path).unwrap();
        StatusFile::open(&path).unwrap()
    }

    const DELAY: Duration = Duration::from_secs(3);

    #[test]
    fn work_that_the_broker_may_not_wait_for_is_told_once_and_in_time() {
        let announcer = Announcer::default();
        assert!(!announcer.is_long(Duration::from_mins(24)));
        assert!(announcer.is_long(Duration::from_mins(25)));
        assert!(!announcer.is_long(Duration::from_mins(26)));
        assert!(LONG < CONSUMER_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_second_to_the_start_marker_does_not_start() {
        let directory = tempfile::tempdir().unwrap();
        let file = status_file(&directory);
        assert_eq!(file.claim_start(DELAY, &Shutdown::default()).await.unwrap(), None);
        let again = file.claim_start(Duration::ZERO, &Shutdown::default()).await.unwrap();
        assert_eq!(again, Some(ExitReason::Withdrawn));
    }

    #[tokio::test(start_paused = true)]
    async fn being_taken_back_ends_the_delay() {
        let directory = tempfile::tempdir().unwrap();
        let file = status_file(&directory);
        let begun = tokio::time::Instant::now();
        let take_back = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            File::create_new(directory.path().join("worker-1.start")).unwrap();
        };
        let shutdown = Shutdown::default();
        let (reason, ()) = tokio::join!(file.claim_start(DELAY, &shutdown), take_back);
        assert_eq!(reason.unwrap(), Some(ExitReason::Withdrawn));
        assert!(begun.elapsed() < DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_during_the_delay_claims_the_start_so_that_nobody_counts_on_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = status_file(&directory);
        let shutdown = Shutdown::default();
        shutdown.stop.cancel();
        let reason = file.claim_start(DELAY, &shutdown).await.unwrap();
        assert_eq!(reason, Some(ExitReason::AskedToStop));
        assert!(directory.path().join("worker-1.start").exists());
    }

    #[test]
    fn readiness_and_draining_are_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let announcer = Announcer::new(Some(status_file(&directory)), Readiness::default());
        for _ in 0..2 {
            announcer.ready();
            announcer.draining();
        }
        let text = std::fs::read_to_string(directory.path().join("worker-1")).unwrap();
        let lines: Vec<StatusLine> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(matches!(lines[..], [StatusLine::Ready { .. }, StatusLine::Draining { .. }]), "{lines:?}");
    }
}
