//! What running a program per message costs without messages: the loop that one would write.

use std::{num::NonZeroUsize, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::{io::AsyncWriteExt, process::Command, time::Instant};

use crate::backlog::BODY;

/// Runs `program` so often, `concurrency` at once, and says how long it took.
pub(crate) async fn spawn_all(program: &Path, count: usize, concurrency: NonZeroUsize) -> Result<Duration> {
    let begun = Instant::now();
    stream::iter(0..count)
        .map(|_| spawn_one(program))
        .buffer_unordered(concurrency.get())
        .try_for_each(async |()| Ok(()))
        .await?;
    Ok(begun.elapsed())
}

/// In a process group of its own, a body on its standard input, all of its output read, as the worker does.
pub(crate) async fn spawn_one(program: &Path) -> Result<()> {
    let mut child = Command::new(program)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let mut stdin = child.stdin.take().context("no pipe")?;
    let feeding = async move { stdin.write_all(BODY).await };
    let (fed, output) = tokio::join!(feeding, child.wait_with_output());
    fed?;
    let status = output?.status;
    ensure!(status.success(), "{} ended with {status}", program.display());
    Ok(())
}
