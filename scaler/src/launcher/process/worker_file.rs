//! The file that is a worker's Job.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use mayfly_service::report::{ProcessIdentity, StatusLine};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::workers_directory;
use crate::{
    launcher::words,
    policy::{Ending, PendingCause, Phase, Worker},
    time::Time,
};

/// The first line of a worker's file: what labels are to a Job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) instance: String,
    pub(super) pool: String,
    pub(super) serial: u64,
    pub(super) slot: u32,
    pub(super) reason: String,
    pub(super) stamp: Time,
}

/// The directory `workers`.
#[derive(Debug, Clone)]
pub(super) struct WorkerFiles {
    directory: PathBuf,
    delayed: bool,
    /// Whether it need not be there.
    optional: bool,
}

/// What a worker's status lines say.
#[derive(Debug, Default)]
struct Story {
    started: Option<(Time, ProcessIdentity)>,
    ready_at: Option<Time>,
    draining: bool,
    exit: Option<(Time, mayfly_service::report::ExitReport, u8)>,
}

// === impl Header ===

impl Header {
    /// Whether both name the same Job.
    pub(super) fn same_job(&self, other: &Self) -> bool {
        (&self.instance, &self.pool, self.serial) == (&other.instance, &other.pool, other.serial)
    }
}

// === impl WorkerFiles ===

impl WorkerFiles {
    /// Makes the directory. `delayed`: workers wait before they start.
    pub(super) fn new(directory: &Path, delayed: bool) -> io::Result<Self> {
        let directory = workers_directory(directory);
        fs::create_dir_all(&directory)?;
        // Workers may run in another working directory.
        Ok(Self { directory: directory.canonicalize()?, delayed, optional: false })
    }

    /// For listing only: makes nothing.
    pub(super) fn to_look(directory: &Path, delayed: bool) -> Self {
        Self { directory: workers_directory(directory), delayed, optional: true }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn start_path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.start"))
    }

    pub(super) fn log_path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    /// Makes the worker's file, whole and locked; `None` if the name is taken.
    pub(super) fn create(&self, name: &str, header: &Header) -> io::Result<Option<File>> {
        let temporary = self.directory.join(format!(".{name}.{}", uuid::Uuid::now_v7()));
        let mut file = OpenOptions::new().create_new(true).read(true).append(true).open(&temporary)?;
        let linked = (|| {
            let mut line = serde_json::to_vec(header)?;
            line.push(b'\n');
            file.write_all(&line)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            match fs::hard_link(&temporary, self.path(name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                linked => linked.map(|()| true),
            }
        })();
        fs::remove_file(&temporary)?;
        linked.map(|linked| linked.then_some(file))
    }

    pub(super) fn read_header(&self, name: &str) -> Option<Header> {
        let text = fs::read_to_string(self.path(name)).ok()?;
        serde_json::from_str(text.lines().next()?).ok()
    }

    /// The worker's process, once it has started.
    pub(super) fn process(&self, name: &str) -> Option<ProcessIdentity> {
        Some(Story::of(&fs::read_to_string(self.path(name)).ok()?).started?.1)
    }

    /// All workers of `instance`.
    pub(super) fn list(&self, instance: &str, now: Time) -> io::Result<Vec<Worker>> {
        let mut workers = Vec::new();
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if self.optional && error.kind() == io::ErrorKind::NotFound => return Ok(workers),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            // Job names hold no dot; temporary files, logs and start marks do.
            if let Some(name) = entry.file_name().to_str().filter(|name| !name.contains('.'))
                && let Some(worker) = self.look(instance, name, now)?
            {
                workers.push(worker);
            }
        }
        workers.sort_by_key(|worker| (worker.pool.clone(), worker.serial));
        Ok(workers)
    }

    fn look(&self, instance: &str, name: &str, now: Time) -> io::Result<Option<Worker>> {
        let file = match File::open(self.path(name)) {
            Ok(file) => file,
            // Tidied up by another scaler meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // Locked means alive. Asked before reading, so that a worker seen dead has written its last line.
        let alive = match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => false,
            Err(rustix::io::Errno::WOULDBLOCK) => true,
            Err(error) => return Err(error.into()),
        };
        let text = io::read_to_string(&file)?;
        let Some(header) = text.lines().next().and_then(|line| serde_json::from_str::<Header>(line).ok())
        else {
            return Ok(None);
        };
        if header.instance != instance {
            return Ok(None);
        }
        let story = Story::of(&text);
        let phase = if alive {
            let claimed = story.started.is_some() || self.start_path(name).exists();
            story.phase(claimed, self.delayed, header.stamp.min(now), now)
        } else {
            let changed = file.metadata()?.modified().ok();
            let last_words = if story.exit.is_none() { self.last_words(name) } else { None };
            Phase::Finished(Ending { last_words, ..story.ending(&header, changed, now) })
        };
        Ok(Some(Worker {
            name: name.to_owned(),
            pool: header.pool,
            serial: Some(header.serial),
            slot: Some(header.slot),
            launched: header.stamp.min(now),
            reason: Some(header.reason),
            node: None,
            // A local process is a node of its own.
            cold: true,
            generation: None,
            phase,
        }))
    }

    /// What the worker, or its handler, wrote last.
    fn last_words(&self, name: &str) -> Option<String> {
        let mut log = File::open(self.log_path(name)).ok()?;
        let length = log.metadata().ok()?.len();
        log.seek(SeekFrom::Start(length.saturating_sub(2 * words::BYTES as u64))).ok()?;
        let mut tail = Vec::new();
        log.take(2 * words::BYTES as u64).read_to_end(&mut tail).ok()?;
        words::last_of(&String::from_utf8_lossy(&tail))
    }

    /// Deletes the worker's files, its own last: while it exists, its name is taken.
    pub(super) fn delete(&self, name: &str) -> io::Result<()> {
        for path in [self.log_path(name), self.start_path(name), self.path(name)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

// === impl Story ===

impl Story {
    fn of(text: &str) -> Self {
        let mut story = Self::default();
        // A line that is cut off or of a kind that we don't know tells nothing.
        for line in text.lines().skip(1).filter_map(|line| serde_json::from_str(line).ok()) {
            match line {
                StatusLine::Started { at, process } => story.started = Some((Time::from_millis(at), process)),
                StatusLine::Ready { at } => story.ready_at = Some(Time::from_millis(at)),
                StatusLine::Draining { .. } => story.draining = true,
                StatusLine::Exit { at, report, exit_code } => {
                    story.exit = Some((Time::from_millis(at), report, exit_code));
                }
            }
        }
        story
    }

    fn phase(self, claimed: bool, delayed: bool, launched: Time, now: Time) -> Phase {
        let pending = |started, cause, since| Phase::Pending { started, cause, since, detail: None };
        match self {
            Self { draining: true, .. } | Self { exit: Some(_), .. } => Phase::Draining,
            Self { ready_at: Some(since), .. } => Phase::Ready { since },
            Self { started: Some((since, _)), .. } => pending(true, PendingCause::NotReady, since.min(now)),
            _ if claimed || !delayed => pending(claimed, PendingCause::Starting, launched),
            _ => pending(false, PendingCause::NodeComing, launched),
        }
    }

    fn ending(self, header: &Header, changed: Option<std::time::SystemTime>, now: Time) -> Ending {
        let changed = changed
            .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok())
            .map_or(now, |since| Time::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)));
        let lead_time =
            self.ready_at.map(|ready| ready.since(header.stamp)).filter(|lead| *lead > Duration::ZERO);
        let (at, report, exit_code) =
            self.exit.map_or((changed, None, None), |(at, report, code)| (at, Some(report), Some(code)));
        let started = self.started.is_some();
        Ending {
            at: at.min(now),
            started,
            lead_time,
            exit_code,
            report,
            detail: None,
            last_words: None,
            disrupted: false,
        }
    }
}
