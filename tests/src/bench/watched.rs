//! A worker whose status lines are seen the moment it writes them: its status file is a pipe.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use mayfly_service::{contract, report::StatusLine};
use mayfly_tests::{Process, Program};
use rustix::fs::{CWD, Mode, mkfifoat};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::unix::pipe,
    time::Instant,
};

use crate::stage::Stage;

/// How long a worker may take to do what it is waited for.
const LIMIT: Duration = Duration::from_mins(2);

/// A worker that runs.
pub(crate) struct Watched {
    pub(crate) process: Process,
    lines: Lines<BufReader<pipe::Receiver>>,
    /// Just before it was started.
    pub(crate) begun: Instant,
}

// === impl Watched ===

impl Watched {
    /// Starts `program`, a worker. `name` is used once.
    pub(crate) fn spawn(stage: &Stage, program: Program, name: &str) -> Result<Self> {
        let path = stage.directory.path().join(format!("{name}.status"));
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR)?;
        // Also for writing, so that the end of a writer is not the end of the lines.
        let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(&path)?;
        let program = program.env(contract::STATUS_FILE, &path);
        let begun = Instant::now();
        let process = program.spawn(name)?;
        Ok(Self { process, lines: BufReader::new(receiver).lines(), begun })
    }

    /// Waits for a status line and says when it came.
    pub(crate) async fn until(
        &mut self,
        wanted: impl Fn(&StatusLine) -> bool,
    ) -> Result<(Instant, StatusLine)> {
        let found = async {
            loop {
                let line = self.lines.next_line().await?.context("the pipe has ended")?;
                let seen = Instant::now();
                let line: StatusLine = serde_json::from_str(&line).with_context(|| line.clone())?;
                if wanted(&line) {
                    return Ok((seen, line));
                }
                if let StatusLine::Exit { report, .. } = line {
                    bail!("the worker has ended: {report:?}");
                }
            }
        };
        let found = tokio::time::timeout(LIMIT, found).await;
        let found = found.unwrap_or_else(|_| bail!("nothing in {LIMIT:?}"));
        found.with_context(|| format!("waiting for the worker\n{}", self.process.log_tail()))
    }

    /// Waits until its consumer is registered.
    pub(crate) async fn until_ready(&mut self) -> Result<Instant> {
        let (seen, _) = self.until(|line| matches!(line, StatusLine::Ready { .. })).await?;
        Ok(seen)
    }
}
