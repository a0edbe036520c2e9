//! `mayfly-publisher`: what it says of every message is what became of it. Accounted by ids, as sets.

mod commands;
mod faults;
mod interruption;
mod refusals;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use lapin::{
    message::Delivery,
    options::{BasicCancelOptions, BasicConsumeOptions},
    types::FieldTable,
};
use mayfly_tests::{Bed, Client, Process, Program, ids::Ids};
use serde::Deserialize;

/// How long a publisher may take where it has nothing to wait for.
const LIMIT: Duration = Duration::from_secs(60);
/// A publisher's exit codes.
mod exit {
    pub(super) const OK: i32 = 0;
    pub(super) const USAGE: i32 = 64;
    pub(super) const UNAVAILABLE: i32 = 69;
    pub(super) const TEMPFAIL: i32 = 75;
    pub(super) const CONFIG: i32 = 78;
}

/// A running `publish`.
struct Publish {
    process: Process,
    ids: PathBuf,
}

/// The summary of a `publish`, and the ids in its file.
struct Outcome {
    told: Told,
    confirmed: Ids,
    log: String,
}

/// `--output json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    confirmed: usize,
    unroutable: BTreeMap<String, usize>,
    not_confirmed: usize,
    not_sent: Option<usize>,
    sent_again: usize,
    reconnects: usize,
    #[expect(dead_code, reason = "no time is asserted")]
    seconds: f64,
}

/// What was in a queue: each id, and how often.
#[derive(Debug, Default)]
struct Found(BTreeMap<String, usize>);

// === impl Publish ===

impl Publish {
    /// Starts `publish QUEUE` with `arguments`, over the broker's `url`.
    fn start(bed: &Bed, url: &str, queue: &str, arguments: &[&str]) -> Result<Self> {
        Self::spawn(bed.directory(), Self::program(bed, url, queue, arguments)?)
    }

    /// The same, not started yet.
    fn program(bed: &Bed, url: &str, queue: &str, arguments: &[&str]) -> Result<Program> {
        let program = bed.program("mayfly-publisher")?.env("MAYFLY_BROKER_URL", url);
        Ok(program.args(["publish", queue, "--output", "json"]).args(arguments))
    }

    fn spawn(directory: &Path, program: Program) -> Result<Self> {
        let name = format!("publisher-{}", uuid::Uuid::now_v7().simple());
        let ids = directory.join(format!("{name}.ids"));
        let process = program.arg("--ids").arg(&ids).spawn(&name)?;
        Ok(Self { process, ids })
    }

    /// Waits for its end with this code, and reads what it told.
    async fn ends_with(mut self, code: i32) -> Result<Outcome> {
        self.process.exits_with(code, LIMIT).await?;
        let (stdout, log) = (self.process.stdout()?, self.process.log()?);
        let told: Told = serde_json::from_str(&stdout).with_context(|| format!("{stdout:?}; {log}"))?;
        let confirmed = self.confirmed()?;
        ensure!(told.confirmed == confirmed.len(), "{told:?}, but {} ids in its file", confirmed.len());
        Ok(Outcome { told, confirmed, log })
    }

    /// The ids that it has said to be confirmed so far.
    fn confirmed(&self) -> Result<Ids> {
        let text = fs::read_to_string(&self.ids)?;
        let ids: Ids = text.lines().map(ToOwned::to_owned).collect();
        ensure!(ids.len() == text.lines().count(), "an id stands twice in the file");
        Ok(ids)
    }
}

// === impl Found ===

impl Found {
    /// Takes all that waits in `queue`.
    async fn take(client: &Client, queue: &str) -> Result<Self> {
        let mut found = Self::default();
        found.take_more(client, queue).await?;
        Ok(found)
    }

    async fn take_more(&mut self, client: &Client, queue: &str) -> Result<()> {
        loop {
            let waiting = client.depth(queue).await?.ready;
            if waiting == 0 {
                return Ok(());
            }
            let channel = client.connection().create_channel().await?;
            let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
            let begun = channel.basic_consume(queue.into(), "take".into(), options, FieldTable::default());
            let mut consumer = begun.await?;
            for _ in 0..waiting {
                self.add(&consumer.next().await.context("the consumer has ended")??)?;
            }
            channel.basic_cancel("take".into(), BasicCancelOptions::default()).await?;
            while let Some(message) = consumer.next().await {
                self.add(&message?)?;
            }
            channel.close(200, "done".into()).await?;
        }
    }

    fn add(&mut self, message: &Delivery) -> Result<()> {
        let id = message.properties.message_id().as_ref().context("a message without an id")?;
        *self.0.entry(id.to_string()).or_default() += 1;
        Ok(())
    }

    fn ids(&self) -> Ids {
        self.0.keys().cloned().collect()
    }

    /// How many came more than once.
    fn repeats(&self) -> usize {
        self.0.values().map(|times| times - 1).sum()
    }
}

/// That nothing is called confirmed which the broker does not have.
fn assert_within(confirmed: &Ids, found: &Found) -> Result<()> {
    let lost: Vec<_> = confirmed.difference(&found.ids()).cloned().collect();
    ensure!(lost.is_empty(), "{} confirmed messages are lost: {:?}…", lost.len(), lost.first());
    Ok(())
}
