//! A message's headers in a file that lives as long as the message is in work, in memory alone: variables can
//! hold neither NUL nor more than 128 KiB.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsRawFd,
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::Errno,
};
use serde_json::Value;

use crate::handler::CannotStart;

/// Readable under its path by processes of the same user.
#[derive(Debug)]
pub(super) struct HeadersFile {
    file: File,
}

// === impl HeadersFile ===

impl HeadersFile {
    /// # Errors
    /// [`CannotStart`] when the operating system has no room for it.
    pub(super) fn new(headers: &Value) -> Result<Self, CannotStart> {
        let written = || -> io::Result<Self> {
            let mut file = anonymous()?;
            file.write_all(headers.to_string().as_bytes())?;
            Ok(Self { file })
        };
        written().map_err(|error| CannotStart { reason: format!("no file for a message's headers: {error}") })
    }

    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

fn anonymous() -> io::Result<File> {
    let create = |flags| memfd_create("headers", flags | MemfdFlags::CLOEXEC);
    match create(MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3 doesn't know that; later ones may insist on it (vm.memfd_noexec).
        Err(Errno::INVAL) => Ok(create(MemfdFlags::empty())?.into()),
        created => Ok(created?.into()),
    }
}
