//! The record as a file: compare under a lock, fsync, rename.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use mayfly_service::{crash::crash_point, deadline};
use rustix::fs::{FlockOperation, flock};

use super::{StateError, StateStore, parse};
use crate::policy::StateRecord;

/// How long to wait for another scaler's lock. It is held for two fsyncs.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// Between two tries to lock.
const LOCK_RETRY: Duration = Duration::from_millis(5);
/// The limit of a whole read or write, the lock included.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// `DIR/state.json`, locked by `DIR/state.lock`: a file apart, because renaming replaces the locked one.
#[derive(Debug, Clone)]
pub struct FileState {
    record: PathBuf,
    lock: PathBuf,
    directory: PathBuf,
}

// === impl FileState ===

impl FileState {
    /// The record in `directory`, which exists.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            record: directory.join("state.json"),
            lock: directory.join("state.lock"),
            directory: directory.to_owned(),
        }
    }

    fn set_aside_now(&self, suffix: &str) -> Result<String, StateError> {
        let _lock = self.locked()?;
        let aside = self.directory.join(format!("state.json.{suffix}"));
        fs::rename(&self.record, &aside).map_err(|source| self.unavailable("moved aside", source))?;
        Ok(aside.display().to_string())
    }

    fn read_now(&self) -> Result<Option<StateRecord>, StateError> {
        let bytes = match fs::read(&self.record) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.unavailable("read", source)),
        };
        parse(&bytes, &self.place())
    }

    fn place(&self) -> String {
        self.record.display().to_string()
    }

    fn replace_now(&self, expected: Option<u64>, mut record: StateRecord) -> Result<StateRecord, StateError> {
        let _lock = self.locked()?;
        if self.read_now()?.map(|stored| stored.revision) != expected {
            return Err(StateError::Conflict);
        }
        record.revision = expected.unwrap_or(0) + 1;
        let text = serde_json::to_vec_pretty(&record)
            .map_err(|source| StateError::Corrupt { place: self.place(), source })?;
        let unavailable = |source| self.unavailable("written", source);
        let temporary = self.directory.join("state.json.new");
        let mut file = File::create(&temporary).map_err(unavailable)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(unavailable)?;
        crash_point("before-state-rename");
        fs::rename(&temporary, &self.record).map_err(unavailable)?;
        File::open(&self.directory).and_then(|directory| directory.sync_all()).map_err(unavailable)?;
        Ok(record)
    }

    fn locked(&self) -> Result<File, StateError> {
        let unavailable = |source| self.unavailable("locked", source);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.lock)
            .map_err(unavailable)?;
        let tries = LOCK_LIMIT.as_millis() / LOCK_RETRY.as_millis();
        for _ in 0..tries {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) => thread::sleep(LOCK_RETRY),
                Err(error) => return Err(unavailable(error.into())),
            }
        }
        Err(unavailable(io::Error::new(io::ErrorKind::TimedOut, "another process holds the lock")))
    }

    fn unavailable(&self, action: &'static str, source: io::Error) -> StateError {
        StateError::Unavailable { place: self.place(), action, source: source.into() }
    }

    /// Runs file work off the loop. The work has a bound of its own, because a thread cannot be cancelled.
    async fn off_the_loop<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Self) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        let this = self.clone();
        let joined = deadline(what, CALL_LIMIT, tokio::task::spawn_blocking(move || work(&this))).await?;
        joined.unwrap_or_else(|panic| Err(self.unavailable("used", io::Error::other(panic))))
    }
}

impl StateStore for FileState {
    async fn read(&self) -> Result<Option<StateRecord>, StateError> {
        self.off_the_loop("read state record", Self::read_now).await
    }

    async fn replace(&self, expected: Option<u64>, record: StateRecord) -> Result<StateRecord, StateError> {
        self.off_the_loop("write state record", move |this| this.replace_now(expected, record)).await
    }

    async fn set_aside(&self, suffix: &str) -> Result<String, StateError> {
        let suffix = suffix.to_owned();
        self.off_the_loop("move state record aside", move |this| this.set_aside_now(&suffix)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Time;

    fn record() -> StateRecord {
        StateRecord::new(Time::from_millis(1_000_000))
    }

    fn state() -> (tempfile::TempDir, FileState) {
        let directory = tempfile::tempdir().unwrap();
        let state = FileState::new(directory.path());
        (directory, state)
    }

    #[tokio::test]
    async fn of_many_writers_with_the_same_revision_one_wins() {
        let (_directory, state) = state();
        let first = state.replace(None, record()).await.unwrap();
        let writers = (0..8).map(|_| {
            let state = state.clone();
            let revision = first.revision;
            tokio::spawn(async move { state.replace(Some(revision), record()).await })
        });
        let mut won = 0;
        for writer in writers.collect::<Vec<_>>() {
            match writer.await.unwrap() {
                Ok(_) => won += 1,
                Err(error) => assert!(matches!(error, StateError::Conflict), "{error}"),
            }
        }
        assert_eq!(won, 1);
        assert_eq!(state.read().await.unwrap().unwrap().revision, first.revision + 1);
    }

    #[tokio::test]
    async fn a_missing_or_emptied_record_is_none() {
        let (directory, state) = state();
        assert_eq!(state.read().await.unwrap(), None);
        fs::write(directory.path().join("state.json"), "\n").unwrap();
        assert_eq!(state.read().await.unwrap(), None);
        state.replace(None, record()).await.unwrap();
        assert!(state.read().await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_damaged_record_is_neither_read_nor_replaced() {
        let (directory, state) = state();
        let sound = serde_json::to_vec(&record()).unwrap();
        let no_utf8 = [&sound[..sound.len() - 2], b"\"a\xff\": 1}}"].concat();
        for damage in [&b"{\"version\": 1, \"revision\""[..], b"\xff", b"\0\0\0\0", &no_utf8] {
            fs::write(directory.path().join("state.json"), damage).unwrap();
            assert!(matches!(state.read().await, Err(StateError::Corrupt { .. })), "{damage:?}");
            assert!(matches!(state.replace(None, record()).await, Err(StateError::Corrupt { .. })));
            let aside = state.set_aside("damaged").await.unwrap();
            assert_eq!(state.read().await.unwrap(), None);
            assert_eq!(fs::read(aside).unwrap(), damage);
        }
    }

    #[tokio::test]
    async fn a_record_of_a_newer_scaler_is_not_touched() {
        let (directory, state) = state();
        let path = directory.path().join("state.json");
        for newer in [
            r#"{"version": 2, "whatever": true}"#,
            r#"{"version": 1, "revision": 1, "epoch": 1, "pools": {}, "new": 1}"#,
        ] {
            fs::write(&path, newer).unwrap();
            assert!(matches!(state.read().await, Err(StateError::Newer { .. })), "{newer}");
            assert!(matches!(state.replace(Some(1), record()).await, Err(StateError::Newer { .. })));
            assert_eq!(fs::read_to_string(&path).unwrap(), newer);
        }
    }
}
