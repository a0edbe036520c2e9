//! A command per message: body on standard input, outcome by exit code, in a process group of its own.

mod headers;

use std::{
    ffi::CString,
    io::{self, PipeWriter},
    os::fd::OwnedFd,
    process::ExitStatus,
};

use mayfly_broker::Message;
use rustix::io::{Errno, ioctl_fionbio};
use tokio::{
    io::AsyncWriteExt,
    process::{ChildStderr, ChildStdin, ChildStdout},
};

use self::headers::{HeadersFile, HeadersFiles};
use super::{
    CannotStart, Context, Handler, Interrupt, Outcome,
    child::{Group, LAST_OUTPUT, LAST_WORDS, Program, cannot_be_run, describe, lines, variable},
};

/// Runs a command for each message.
///
/// The message is done when the command exits with 0; 65 dead-letters it; 126 and 127 mean that the command
/// itself can't be run; everything else, signals included, is a retry. When the command's own process ends,
/// what is left of its process group is killed before the message is settled. A process that left the group
/// (`setsid`) escapes that.
#[derive(Debug, Clone)]
pub struct Exec {
    program: Program,
    queue: String,
    headers_files: HeadersFiles,
}

/// Why a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Itself,
    Interrupt,
    Kill,
}

/// The exit code (sysexits) that asks for the dead-letter queue.
const DATA_ERROR: i32 = 65;

// === impl Exec ===

impl Exec {
    /// Runs `program` for messages of `queue`.
    #[must_use]
    pub fn new(program: Program, queue: &str) -> Self {
        Self { program, queue: queue.to_owned(), headers_files: HeadersFiles::default() }
    }

    /// What the command gets to know of its message.
    fn variables(&self, message: &Message, attempt: u32, headers: &HeadersFile) -> [CString; 6] {
        [
            variable("MAYFLY_MESSAGE_ID", message.id().unwrap_or_default()),
            variable("MAYFLY_QUEUE", &self.queue),
            variable("MAYFLY_ATTEMPT", attempt.to_string()),
            variable("MAYFLY_REDELIVERED", if message.redelivered { "1" } else { "0" }),
            variable("MAYFLY_CONTENT_TYPE", message.content_type().unwrap_or_default()),
            variable("MAYFLY_HEADERS_FILE", headers.path()),
        ]
    }

    /// Waits for the command's end, or brings it about; nothing of its group runs afterwards.
    async fn conduct(&self, mut group: Group, interrupt: &Interrupt) -> io::Result<(Cause, ExitStatus)> {
        let cause = tokio::select! {
            biased;
            exited = group.exited() => exited.map(|()| Cause::Itself)?,
            () = interrupt.kill.cancelled() => Cause::Kill,
            () = interrupt.end.cancelled() => Cause::Interrupt,
        };
        if cause == Cause::Interrupt {
            group.terminate();
            tokio::select! {
                exited = group.exited() => exited?,
                () = interrupt.kill.cancelled() => {}
                () = tokio::time::sleep(LAST_WORDS) => {}
            }
        }
        Ok((cause, group.end().await?))
    }
}

impl Handler for Exec {
    /// Found out only with a message, each worker would cost that a delivery.
    async fn prepare(&self, _interrupt: &Interrupt) -> Result<(), CannotStart> {
        self.program.find().map(drop)
    }

    async fn handle(&self, message: &Message, context: &Context) -> Result<Outcome, CannotStart> {
        let headers = self.headers_files.take(&message.headers())?;
        let variables = self.variables(message, context.attempt, &headers);
        let (group, pipes) = Group::spawn(&self.program, &variables)?;
        let id = message.id().unwrap_or_default();
        let pump = async {
            let (stdin, stdout, stderr) = pipes;
            let ((), (), last) =
                tokio::join!(feed(stdin, &message.body), log_stdout(stdout, id), log_stderr(stderr, id));
            last
        };
        let conduct = self.conduct(group, &context.interrupt);
        tokio::pin!(pump, conduct);
        let mut last_line = None;
        let ended = loop {
            tokio::select! {
                ended = &mut conduct => break ended,
                line = &mut pump, if last_line.is_none() => last_line = Some(line),
            }
        };
        if last_line.is_none() {
            // An error means that an escaped process holds the pipes.
            last_line = mayfly_service::deadline("read the last output", LAST_OUTPUT, pump).await.ok();
        }
        self.headers_files.keep(headers);
        let last_line = last_line.unwrap_or_default();
        match ended {
            Ok((cause, status)) => judge(cause, status, &last_line),
            Err(error) => Ok(Outcome::retry(format!("waiting for the command failed: {error}"))),
        }
    }
}

/// What an end means for the message.
fn judge(cause: Cause, status: ExitStatus, last_line: &str) -> Result<Outcome, CannotStart> {
    if cause != Cause::Itself {
        return Ok(Outcome::Interrupted);
    }
    let reason = describe(status, last_line);
    match status.code() {
        Some(0) => Ok(Outcome::Done),
        Some(DATA_ERROR) => Ok(Outcome::DeadLetter { reason }),
        _ if cannot_be_run(status) => Err(CannotStart { reason }),
        _ => Ok(Outcome::retry(reason)),
    }
}

/// Writes the body and closes the pipe. A command that doesn't read all of it is fine.
async fn feed(stdin: PipeWriter, body: &[u8]) {
    if let Err(error) = write_all(stdin, body).await {
        tracing::debug!(%error, "command did not read all of its input");
    }
}

/// Only for what the pipe has no room for is waited.
async fn write_all(pipe: PipeWriter, body: &[u8]) -> io::Result<()> {
    ioctl_fionbio(&pipe, true)?;
    let written = match rustix::io::write(&pipe, body) {
        Err(Errno::AGAIN) => 0,
        written => written?,
    };
    match body.get(written..) {
        None | Some([]) => Ok(()),
        Some(rest) => ChildStdin::from_std(OwnedFd::from(pipe).into())?.write_all(rest).await,
    }
}

async fn log_stdout(stdout: ChildStdout, id: &str) {
    let log = |line: &str| tracing::info!(target: "mayfly_worker::handler", id, stream = "stdout", "{line}");
    lines(stdout, log).await;
}

/// Returns the last line that isn't empty: it usually says what went wrong.
async fn log_stderr(stderr: ChildStderr, id: &str) -> String {
    let mut last = String::new();
    let log = |line: &str| {
        tracing::info!(target: "mayfly_worker::handler", id, stream = "stderr", "{line}");
        if !line.trim().is_empty() {
            line.clone_into(&mut last);
        }
    };
    lines(stderr, log).await;
    last
}

#[cfg(test)]
mod tests;
