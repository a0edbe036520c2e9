//! The delivery loop: batch after batch, over as many connections as it takes.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use backon::BackoffBuilder;
use mayfly_broker::{BatchReport, BrokerUrl, CALL_LIMIT, Connection, Error, Outgoing, Publisher};
use mayfly_service::{ExitCode, Shutdown, backoff, chain};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::{failure::Failure, input::Source, progress::Progress, tally::Tally};

/// How often the user is told the state while a batch is on its way.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long the batch on its way may still take once we were asked to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// The first and the longest pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long which kind of trouble may last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) window: usize,
    pub(crate) reconnect_for: Duration,
    pub(crate) blocked_for: Duration,
    pub(crate) full_for: Duration,
}

/// Everything that a run of `publish` holds.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) url: BrokerUrl,
    pub(crate) limits: Limits,
    pub(crate) source: Source,
    pub(crate) progress: Progress,
    pub(crate) ids: Option<IdsFile>,
    pub(crate) shutdown: Shutdown,
    pub(crate) tally: Tally,
    /// Taken from the source and not settled.
    pub(crate) pending: Vec<Outgoing>,
    /// What is pending was sent before.
    again: bool,
    /// The broker may have some of what is pending, without having told.
    pub(crate) uncertain: bool,
    session: Option<Session>,
    trouble: Option<Trouble>,
}

/// Why the loop ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Every message is settled.
    Complete,
    /// We were asked to stop.
    Interrupted,
    /// It cannot go on.
    Failed(Failure),
}

/// The file of confirmed ids.
#[derive(Debug)]
pub(crate) struct IdsFile {
    path: PathBuf,
    file: BufWriter<File>,
}

#[derive(Debug)]
struct Session {
    connection: Connection,
    publisher: Publisher,
}

/// Tries without any message settled in between.
#[derive(Debug)]
struct Trouble {
    since: Instant,
    pauses: backon::ExponentialBackoff,
}

// === impl Delivery ===

impl Delivery {
    /// Connects. The first attempt counts: a wrong URL should be told at once.
    pub(crate) async fn begin(
        url: BrokerUrl,
        limits: Limits,
        source: Source,
        progress: Progress,
        ids: Option<IdsFile>,
        shutdown: Shutdown,
    ) -> Result<Self, Failure> {
        let session = Some(Session::open(&url, limits.window).await?);
        let (tally, pending, trouble) = (Tally::default(), Vec::new(), None);
        let (again, uncertain) = (false, false);
        Ok(Self {
            url,
            limits,
            source,
            progress,
            ids,
            shutdown,
            tally,
            pending,
            again,
            uncertain,
            session,
            trouble,
        })
    }

    /// Publishes until the source ends, we are asked to stop, or it cannot go on.
    pub(crate) async fn run(&mut self) -> End {
        let end = loop {
            match self.step().await {
                Ok(true) => {}
                Ok(false) if self.pending.is_empty() && self.source.left() == Some(0) => break End::Complete,
                Ok(false) if self.shutdown.stop.is_cancelled() => break End::Interrupted,
                Ok(false) => break End::Complete,
                Err(failure) => break End::Failed(failure),
            }
        };
        if let Some(Session { connection, .. }) = self.session.take()
            && connection.is_alive()
            && !connection.is_blocked()
        {
            // Every message is accounted for; a failure to say goodbye changes nothing.
            let _ = connection.close().await;
        }
        self.progress.finish();
        end
    }

    /// One batch. `false`: nothing more is to be done.
    async fn step(&mut self) -> Result<bool, Failure> {
        let stop = self.shutdown.stop.clone();
        if stop.is_cancelled() {
            return Ok(false);
        }
        if self.pending.is_empty() {
            self.pending = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(false),
                taken = self.source.take(self.limits.window) => taken?,
            };
            if self.pending.is_empty() {
                return Ok(false);
            }
            (self.again, self.uncertain) = (false, false);
        }
        if self.session.is_none() {
            let opened = tokio::select! {
                opened = Session::open(&self.url, self.limits.window) => opened,
                () = stop.cancelled() => return Ok(false),
            };
            match opened {
                Ok(session) => {
                    self.session = Some(session);
                    self.tally.reconnects += 1;
                    self.progress.note("connected again");
                }
                Err(error) => return self.pause(error, self.limits.reconnect_for).await,
            }
        }
        if self.again {
            self.tally.sent_again += self.pending.len() as u64;
        }
        self.again = true;
        let Some(report) = self.publish().await else {
            self.uncertain = true;
            return Ok(false);
        };
        self.settle(report).await
    }

    /// Enters what became of the batch, and waits a while if it met with trouble.
    async fn settle(&mut self, report: BatchReport) -> Result<bool, Failure> {
        let BatchReport { receipts, interrupted } = report;
        self.uncertain |= interrupted.is_some();
        let before = self.pending.len();
        let settled = self.tally.settle(std::mem::take(&mut self.pending), &receipts);
        self.pending = settled.rest;
        let progress = before - self.pending.len();
        self.progress.advance(progress as u64);
        if let Some(ids) = &mut self.ids {
            ids.append(&settled.confirmed)?;
        }
        if progress > 0 {
            self.trouble = None;
        }
        match (interrupted, settled.full) {
            (Some(error), _) => {
                self.session = None;
                match error {
                    error @ (Error::Lost { .. } | Error::Deadline(_)) => {
                        self.pause(error, self.limits.reconnect_for).await
                    }
                    error => Err(error.into()),
                }
            }
            (None, Some(queue)) => {
                let message_id =
                    self.pending.first().map(|message| message.message_id.clone()).unwrap_or_default();
                self.pause(Error::Nacked { queue, message_id }, self.limits.full_for).await
            }
            (None, None) => Ok(true),
        }
    }

    /// Publishes what is pending, telling when the broker blocks us. `None`: given up on being asked to.
    async fn publish(&mut self) -> Option<BatchReport> {
        let Self { limits, progress, shutdown, pending, session, .. } = self;
        let Session { connection, publisher } = session.as_mut()?;
        let batch = publisher.publish_batch(pending, limits.blocked_for);
        let grace = async {
            shutdown.stop.cancelled().await;
            sleep(STOP_GRACE).await;
        };
        tokio::pin!(batch, grace);
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut blocked_since: Option<Instant> = None;
        loop {
            tokio::select! {
                report = &mut batch => {
                    if let (Some(since), None) = (blocked_since, &report.interrupted) {
                        accepted_again(progress, since);
                    }
                    return Some(report);
                }
                _ = look.tick() => match (connection.is_blocked(), blocked_since) {
                    (true, None) => {
                        blocked_since = Some(Instant::now());
                        let limit = humantime::format_duration(limits.blocked_for);
                        progress.note(&format!(
                            "the broker has blocked publishing (memory or disk alarm); waiting up to {limit}"
                        ));
                    }
                    (false, Some(since)) => {
                        blocked_since = None;
                        accepted_again(progress, since);
                    }
                    _ => progress.tick(),
                },
                () = &mut grace => return None,
                () = shutdown.abort.cancelled() => return None,
            }
        }
    }

    /// Waits before the next try, unless it has been going on for `limit`.
    async fn pause(&mut self, error: Error, limit: Duration) -> Result<bool, Failure> {
        let progress = &self.progress;
        let trouble = self.trouble.get_or_insert_with(|| {
            let what = match &error {
                Error::Nacked { queue, .. } => format!("queue {queue:?} is full"),
                error => chain(error),
            };
            progress.note(&format!("{what}; trying again for up to {}", humantime::format_duration(limit)));
            Trouble { since: Instant::now(), pauses: backoff::backoff(PAUSES.0, PAUSES.1).build() }
        });
        if trouble.since.elapsed() >= limit {
            return Err(error.into());
        }
        tracing::debug!(error = chain(&error), "trying again");
        let pause =
            trouble.pauses.next().unwrap_or(PAUSES.1).min(limit.saturating_sub(trouble.since.elapsed()));
        tokio::select! {
            () = self.shutdown.stop.cancelled() => {}
            () = sleep(pause) => {}
        }
        Ok(true)
    }
}

fn accepted_again(progress: &Progress, blocked_since: Instant) {
    let waited = blocked_since.elapsed().as_secs_f64();
    progress.note(&format!("the broker accepts messages again after {waited:.1} s"));
}

// === impl Session ===

impl Session {
    async fn open(url: &BrokerUrl, window: usize) -> mayfly_broker::Result<Self> {
        let connection = Connection::open(url, "mayfly-publisher", CALL_LIMIT).await?;
        let publisher = Publisher::open(&connection, window).await?;
        Ok(Self { connection, publisher })
    }
}

// === impl IdsFile ===

impl IdsFile {
    pub(crate) fn create(path: PathBuf) -> Result<Self, Failure> {
        let file = File::create(&path).map_err(|error| cannot_write(&path, &error))?;
        Ok(Self { path, file: BufWriter::new(file) })
    }

    /// Written through after each batch, so that the file is right also after a crash.
    fn append(&mut self, ids: &[String]) -> Result<(), Failure> {
        let Self { path, file } = self;
        ids.iter()
            .try_for_each(|id| writeln!(file, "{id}"))
            .and_then(|()| file.flush())
            .map_err(|error| cannot_write(path, &error))
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::new(ExitCode::Config, format!("cannot write ids file {}: {error}", path.display()))
}
