//! A message's headers in a file, in memory alone, for as long as the message is in work: variables can hold
//! neither NUL nor more than 128 KiB.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::Errno,
};
use serde_json::Value;

use crate::handler::CannotStart;

/// The files that no message needs now. They are used again: making one takes longer than filling it.
#[derive(Debug, Clone, Default)]
pub(super) struct HeadersFiles(pub(super) Arc<Mutex<Vec<File>>>);

/// Readable under its path by processes of the same user.
#[derive(Debug)]
pub(super) struct HeadersFile {
    /// Until it is dropped.
    file: Option<File>,
    path: String,
    idle: HeadersFiles,
}

// === impl HeadersFiles ===

impl HeadersFiles {
    /// # Errors
    /// [`CannotStart`] when the operating system has no room for it.
    pub(super) fn hold(&self, headers: &Value) -> Result<HeadersFile, CannotStart> {
        let text = headers.to_string();
        // A command may have made its own unusable.
        let used = self.pop().filter(|file| fill(file, &text).is_ok());
        let made = || anonymous().and_then(|file| fill(&file, &text).map(|()| file));
        let file = used
            .map_or_else(made, Ok)
            .map_err(|error| CannotStart { reason: format!("no file for a message's headers: {error}") })?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        Ok(HeadersFile { file: Some(file), path, idle: self.clone() })
    }

    fn pop(&self) -> Option<File> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn push(&self, file: File) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(file);
    }
}

// === impl HeadersFile ===

impl HeadersFile {
    pub(super) fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for HeadersFile {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            self.idle.push(file);
        }
    }
}

fn fill(file: &File, text: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all_at(text.as_bytes(), 0)
}

fn anonymous() -> io::Result<File> {
    let create = |flags| memfd_create("headers", flags | MemfdFlags::CLOEXEC);
    match create(MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3 doesn't know that; later ones may insist on it (vm.memfd_noexec).
        Err(Errno::INVAL) => Ok(create(MemfdFlags::empty())?.into()),
        created => Ok(created?.into()),
    }
}
