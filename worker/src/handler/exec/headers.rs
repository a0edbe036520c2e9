//! A message's headers in a file, in memory alone, for as long as the message is in work: variables can hold
//! neither NUL nor more than 128 KiB.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::Errno,
};
use serde_json::Value;

use crate::handler::CannotStart;

/// The files that no message needs now. They are used again: making one takes longer than filling it.
#[derive(Debug, Clone, Default)]
pub(super) struct HeadersFiles(pub(super) Arc<Mutex<Vec<HeadersFile>>>);

/// Readable under its path by processes of the same user.
#[derive(Debug)]
pub(super) struct HeadersFile {
    file: File,
}

// === impl HeadersFiles ===

impl HeadersFiles {
    /// A file that holds `headers`, to be given back with [`keep`](Self::keep); one that is not is closed.
    ///
    /// # Errors
    /// [`CannotStart`] when the operating system has no room for it.
    pub(super) fn take(&self, headers: &Value) -> Result<HeadersFile, CannotStart> {
        let text = headers.to_string();
        // A command may have made its own unusable.
        let used = self.lock().pop().filter(|used| used.fill(&text).is_ok());
        let made = || HeadersFile::anonymous().and_then(|made| made.fill(&text).map(|()| made));
        used.map_or_else(made, Ok)
            .map_err(|error| CannotStart { reason: format!("no file for a message's headers: {error}") })
    }

    pub(super) fn keep(&self, file: HeadersFile) {
        self.lock().push(file);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<HeadersFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl HeadersFile ===

impl HeadersFile {
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    fn fill(&self, text: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(text.as_bytes(), 0)
    }

    fn anonymous() -> io::Result<Self> {
        let create = |flags| memfd_create("headers", flags | MemfdFlags::CLOEXEC);
        let file = match create(MemfdFlags::NOEXEC_SEAL) {
            // Linux before 6.3 doesn't know that; later ones may insist on it (vm.memfd_noexec).
            Err(Errno::INVAL) => create(MemfdFlags::empty())?,
            created => created?,
        };
        Ok(Self { file: file.into() })
    }
}
