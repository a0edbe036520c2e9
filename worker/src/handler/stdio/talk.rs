//! One life of the program: what goes in and comes out of it, until it ends.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::OwnedFd,
    process::ExitStatus,
};

use tokio::{
    io::AsyncWriteExt,
    process::{ChildStderr, ChildStdin, ChildStdout},
    sync::oneshot,
};

use super::keeper::{Reply, Request};
use crate::handler::{
    CannotStart,
    answer::{self, Said},
    child::{Group, LAST_OUTPUT, LAST_WORDS, LOG_LIMIT, Line, Lines, Program},
};

/// A running child with the messages that it has.
#[derive(Debug)]
pub(super) struct Talk {
    group: Group,
    /// Until its end is told to the child.
    stdin: Option<ChildStdin>,
    stdout: Lines<ChildStdout>,
    stderr: Lines<ChildStderr>,
    outbox: Outbox,
    book: Book,
}

/// What is known of a child and its messages.
#[derive(Debug, Default)]
struct Book {
    in_work: HashMap<u64, InWork>,
    is_ready: bool,
    has_answered: bool,
    /// Within a line of standard output that is too long.
    is_skipping: bool,
    /// The last line of standard error that isn't empty.
    last_line: String,
}

/// A message that the child has.
#[derive(Debug)]
struct InWork {
    message_id: String,
    /// Where its line begins in all that was written for the child.
    begins: u64,
    reply: oneshot::Sender<Reply>,
}

/// Lines that are to be written. Small ones are joined, so that many messages cost one call.
#[derive(Debug, Default)]
struct Outbox {
    chunks: VecDeque<Vec<u8>>,
    /// How much of the first chunk is written.
    written: usize,
    /// Bytes that are not written.
    size: usize,
    /// All bytes that were ever put in.
    total: u64,
}

/// What happened in a talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The child took some, or said something that was dealt with.
    WentOn,
    /// It says that it takes messages.
    Ready,
    /// It ended, or doesn't talk any more.
    Over,
}

/// What a life was.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) status: io::Result<ExitStatus>,
    pub(super) last_line: String,
    /// What it had read and not answered.
    pub(super) left: Vec<oneshot::Sender<Reply>>,
    pub(super) has_answered: bool,
    /// Whether it got messages and read none of them.
    pub(super) was_deaf: bool,
}

/// Longer answers can't be meant: reasons are cut to 1 KiB.
const ANSWER_LIMIT: usize = 64 * 1024;
/// Further messages wait here while so much waits for the child to read it: those are not lost with it.
const OUTBOX_LIMIT: usize = 64 * 1024;
/// How much of a bad line is told.
const EXCERPT: usize = 200;

// === impl Talk ===

impl Talk {
    pub(super) fn begin(program: &Program) -> Result<Self, CannotStart> {
        let (group, (stdin, stdout, stderr)) = Group::spawn(program, &[])?;
        let stdin = ChildStdin::from_std(OwnedFd::from(stdin).into());
        let stdin = stdin.map_err(|error| program.cannot_start(&error))?;
        Ok(Self {
            group,
            stdin: Some(stdin),
            stdout: Lines::new(stdout, ANSWER_LIMIT),
            stderr: Lines::new(stderr, LOG_LIMIT),
            outbox: Outbox::default(),
            book: Book::default(),
        })
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.book.in_work.contains_key(&id)
    }

    /// Whether it should be given another message now.
    pub(super) const fn takes(&self) -> bool {
        self.book.is_ready && self.outbox.size < OUTBOX_LIMIT
    }

    pub(super) fn give(&mut self, request: Request) {
        let Request { id, message_id, line, reply } = request;
        let begins = self.outbox.push(line);
        self.book.in_work.insert(id, InWork { message_id, begins, reply });
    }

    /// Waits for the next thing to happen. Nothing is lost when this is dropped before it is ready.
    pub(super) async fn turn(&mut self) -> Turn {
        let Self { group, stdin, stdout, stderr, outbox, book } = self;
        tokio::select! {
            written = outbox.write(stdin) => match written {
                Ok(()) => Turn::WentOn,
                // It has closed its standard input: no message reaches it any more.
                Err(_) => Turn::Over,
            },
            line = stdout.next() => match line {
                Some(line) => book.said(line),
                None => Turn::Over,
            },
            Some(line) = stderr.next() => {
                book.complained(&line.text());
                Turn::WentOn
            }
            // An error can't be told apart from an end: the end of the talk shows it.
            _ = group.exited() => Turn::Over,
        }
    }

    /// Tells the child by the end of its input that there is no more, and waits until it ends; asks it to
    /// after a while.
    pub(super) async fn finish(mut self) -> Life {
        self.stdin = None;
        if !self.ends_by_itself().await {
            self.group.terminate();
            self.ends_by_itself().await;
        }
        self.end().await
    }

    /// After the talk is over: waits a little for the child's end, so that its own exit code is seen.
    pub(super) async fn over(mut self) -> Life {
        self.ends_by_itself().await;
        self.end().await
    }

    /// Whether it ends within its last words. What it says meanwhile counts.
    async fn ends_by_itself(&mut self) -> bool {
        let exits = async {
            while self.stdin.is_none() && self.turn().await != Turn::Over {}
            // An error would come back at the end.
            let _ = self.group.exited().await;
        };
        tokio::time::timeout(LAST_WORDS, exits).await.is_ok()
    }

    /// Kills what is there of its process group, and takes what it has said. Nothing of it runs afterwards.
    /// Messages that it has not read are told so: it did not end because of them.
    pub(super) async fn end(mut self) -> Life {
        let status = self.group.end().await;
        let read = self.read();
        let rest = async {
            while let Some(line) = self.stdout.next().await {
                self.book.said(line);
            }
            while let Some(line) = self.stderr.next().await {
                self.book.complained(&line.text());
            }
        };
        if let Err(error) = mayfly_service::deadline("read the last output", LAST_OUTPUT, rest).await {
            tracing::debug!(%error, "an escaped process holds the program's output");
        }
        let Book { in_work, has_answered, last_line, .. } = self.book;
        let was_deaf = read == 0 && !in_work.is_empty();
        let mut left = Vec::new();
        for InWork { begins, reply, .. } in in_work.into_values() {
            if begins < read {
                left.push(reply);
            } else {
                // Nobody waits for it when the worker has let go of the message.
                let _ = reply.send(Reply::Unread);
            }
        }
        Life { status, last_line, left, has_answered, was_deaf }
    }

    /// How many bytes of its input the child has read; what the pipe holds when it is gone was not.
    fn read(&self) -> u64 {
        let unread =
            self.stdin.as_ref().and_then(|stdin| rustix::io::ioctl_fionread(stdin).ok()).unwrap_or(0);
        self.outbox.written().saturating_sub(unread)
    }
}

// === impl Book ===

impl Book {
    fn said(&mut self, line: Line<'_>) -> Turn {
        let is_rest = std::mem::replace(&mut self.is_skipping, !line.is_whole);
        let problem = match (is_rest, line.is_whole) {
            (true, _) => return Turn::WentOn,
            (false, false) => format!("longer than {ANSWER_LIMIT} bytes"),
            (false, true) => match self.read(line) {
                Ok(turn) => return turn,
                Err(problem) => problem,
            },
        };
        let excerpt = String::from_utf8_lossy(&line.bytes[..line.bytes.len().min(EXCERPT)]);
        tracing::warn!(
            target: "mayfly_worker::handler",
            line = &*excerpt,
            "not understood on standard output, which is for answers alone: {problem}"
        );
        Turn::WentOn
    }

    fn read(&mut self, line: Line<'_>) -> Result<Turn, String> {
        let (id, outcome, complaint) = match answer::read(line.bytes) {
            Said::Ready => {
                self.is_ready = true;
                return Ok(Turn::Ready);
            }
            Said::Answer { id, outcome, complaint } => (id, outcome, complaint),
            Said::Nonsense(problem) => return Err(problem),
        };
        let InWork { message_id, reply, .. } =
            self.in_work.remove(&id).ok_or_else(|| format!("no message with id {id} is in work"))?;
        self.has_answered = true;
        if let Some(complaint) = complaint {
            tracing::warn!(target: "mayfly_worker::handler", id = message_id, "bad answer: {complaint}");
        }
        // Nobody waits for it when the worker has let go of the message.
        let _ = reply.send(Reply::Answer(outcome));
        Ok(Turn::WentOn)
    }

    /// Where one message alone is in work, it is about that one.
    fn complained(&mut self, line: &str) {
        let mut in_work = self.in_work.values();
        let id = match (in_work.next(), in_work.next()) {
            (Some(only), None) => &only.message_id,
            _ => "",
        };
        tracing::info!(target: "mayfly_worker::handler", id, stream = "stderr", "{line}");
        if !line.trim().is_empty() {
            line.clone_into(&mut self.last_line);
        }
    }
}

// === impl Outbox ===

impl Outbox {
    /// Returns where in all of it `line` begins.
    fn push(&mut self, line: Vec<u8>) -> u64 {
        let begins = self.total;
        self.size += line.len();
        self.total += line.len() as u64;
        match self.chunks.back_mut() {
            Some(last) if last.len() + line.len() <= OUTBOX_LIMIT => last.extend_from_slice(&line),
            _ => self.chunks.push_back(line),
        }
        begins
    }

    /// All bytes that were ever written.
    const fn written(&self) -> u64 {
        self.total - self.size as u64
    }

    /// Writes some of it; waits for ever when there is nothing to write, or nowhere to.
    async fn write(&mut self, stdin: &mut Option<ChildStdin>) -> io::Result<()> {
        let (Some(stdin), Some(first)) = (stdin, self.chunks.front()) else {
            return std::future::pending().await;
        };
        let count = stdin.write(&first[self.written..]).await?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += count;
        self.size -= count;
        if self.written == first.len() {
            self.chunks.pop_front();
            self.written = 0;
        }
        Ok(())
    }
}
