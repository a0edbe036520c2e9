//! The user's program: what it is started with, what it gets to see of us, and what its end means.

mod group;
mod output;

use std::{
    env,
    ffi::{CStr, CString, OsStr, OsString},
    io,
    os::unix::{ffi::OsStringExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::OnceLock,
    time::Duration,
};

use rustix::fs::{Access, access};

pub(super) use self::{
    group::Group,
    output::{LOG_LIMIT, Line, Lines, lines},
};
use super::{CannotStart, Interrupt};

/// A command with its arguments and environment, as execve(2) takes them: made once, not for each message.
#[derive(Debug, Clone)]
pub struct Program {
    command: OsString,
    /// Where it was found.
    path: OnceLock<CString>,
    /// The command's name is the first.
    arguments: Vec<CString>,
    /// What it inherits: our environment without anything of ours.
    environment: Vec<CString>,
    /// Where a name without a slash is looked for.
    search: OsString,
}

/// Every variable that begins so is ours, and none of the program's business.
const OUR_PREFIX: &str = "MAYFLY_";
/// How long work may still go on after it was asked to end.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long output may still come after everything was killed; only an escaped process can hold it open.
pub(super) const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Where programs are looked for when the environment has no `PATH` (execvp(3)).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Exit codes with a meaning (the shell's convention).
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

// === impl Program ===

impl Program {
    /// The program `words[0]` with the other words as its arguments. It inherits `environment` without all
    /// variables named `MAYFLY_…`, and without `hidden`.
    pub fn new(
        words: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        hidden: &OsStr,
    ) -> Self {
        let words: Vec<_> = words.into_iter().collect();
        let is_ours = |name: &OsStr| name.as_encoded_bytes().starts_with(OUR_PREFIX.as_bytes());
        let environment: Vec<_> =
            environment.into_iter().filter(|(name, _)| !is_ours(name) && name != hidden).collect();
        let path = environment.iter().rev().find(|(name, _)| name == "PATH");
        Self {
            command: words.first().cloned().unwrap_or_default(),
            path: OnceLock::new(),
            search: path.map_or_else(|| DEFAULT_PATH.into(), |(_, path)| path.clone()),
            arguments: words.into_iter().map(|word| without_nul(word.into_vec())).collect(),
            environment: environment.into_iter().map(|(name, value)| variable(&name, value)).collect(),
        }
    }

    /// Where it is, as far as that can be told without running it. What was found once is not looked for again.
    ///
    /// # Errors
    /// [`CannotStart`] when it is not there, or may not be run.
    pub(super) fn find(&self) -> Result<&CStr, CannotStart> {
        if let Some(path) = self.path.get() {
            return Ok(path);
        }
        let found = self.look_for()?.into_os_string().into_vec();
        Ok(self.path.get_or_init(|| without_nul(found)))
    }

    fn look_for(&self) -> Result<PathBuf, CannotStart> {
        let command = Path::new(&self.command);
        // execvp(3): what has a slash is a path, everything else is looked for.
        if self.command.as_encoded_bytes().contains(&b'/') {
            return may_run(command).map(|()| command.to_owned()).map_err(|error| self.cannot_start(&error));
        }
        let mut reason = format!("not found in PATH ({})", self.search.to_string_lossy());
        for directory in env::split_paths(&self.search) {
            let path = directory.join(command);
            match may_run(&path) {
                Ok(()) => return Ok(path),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => reason = error.to_string(),
                Err(_) => {}
            }
        }
        Err(CannotStart { reason: format!("{}: {reason}", self.command.to_string_lossy()) })
    }

    /// That the operating system refuses to start it.
    pub(super) fn cannot_start(&self, error: &io::Error) -> CannotStart {
        CannotStart { reason: format!("{}: {error}", self.command.to_string_lossy()) }
    }
}

/// A variable as execve(2) takes it. The operating system refuses NUL: it is left out.
pub(super) fn variable(name: impl AsRef<OsStr>, value: impl Into<OsString>) -> CString {
    let mut text = name.as_ref().to_owned();
    text.push("=");
    text.push(value.into());
    without_nul(text.into_vec())
}

fn without_nul(mut text: Vec<u8>) -> CString {
    text.retain(|&byte| byte != 0);
    CString::new(text).unwrap_or_default()
}

/// What execve(2) asks first.
fn may_run(path: &Path) -> io::Result<()> {
    if path.metadata()?.is_file() {
        Ok(access(path, Access::EXEC_OK)?)
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Waits until work on a message must end: at once when asked to kill, [`LAST_WORDS`] after it was asked to end.
pub(super) async fn time_is_up(interrupt: &Interrupt) {
    let last_words = async {
        interrupt.end.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        () = interrupt.kill.cancelled() => {}
        () = last_words => {}
    }
}

/// An end in words, with the last line of standard error: it usually says what went wrong.
pub(super) fn describe(status: ExitStatus, last_line: &str) -> String {
    let what = match status.code() {
        Some(code) => format!("exit code {code}"),
        None => format!("killed by signal {}", status.signal().unwrap_or_default()),
    };
    if last_line.is_empty() { what } else { format!("{what}: {last_line}") }
}

/// Whether an end says that the program can't be run at all.
pub(super) fn cannot_be_run(status: ExitStatus) -> bool {
    matches!(status.code(), Some(NOT_EXECUTABLE | NOT_FOUND))
}
