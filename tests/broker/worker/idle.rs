//! A worker that ends by itself: what is published at that very moment is neither lost nor done twice.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join;
use mayfly_service::report::ExitReason;
use mayfly_tests::{
    Bed, Client, Kind, Signal,
    bed::rounds,
    ids::{self, Ids},
    on_each_release,
};
use tokio_util::sync::CancellationToken;

use super::{Crew, Dice, NOTE_DONE, Worker, both, exit};

on_each_release!(
    idle_exits_under_a_publishing_race_lose_nothing,
    an_idle_worker_is_seen_while_it_lives_and_leaves_nothing,
);

/// Shorter than most pauses of the publisher, so that nearly every exit meets a message.
const MAX_IDLE: &str = "4ms";
const LONGEST_PAUSE: Duration = Duration::from_millis(25);
/// Workers at a time: one leaves while another takes.
const LANES: usize = 2;

/// What the workers of a race reported.
#[derive(Debug, Default)]
struct Sum {
    exits: usize,
    messages: u64,
    done: u64,
    given_back: u64,
    /// Messages settled after their worker had begun to leave.
    late: usize,
}

async fn idle_exits_under_a_publishing_race_lose_nothing(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    for (kind, queue) in both(bed, &client).await? {
        let seed = 0x1d1e + u64::from(kind == Kind::Quorum);
        let over = CancellationToken::new();
        let exits = async {
            let lanes = (0..LANES).map(|lane| race(&crew, &queue, lane, rounds(500) / LANES + 1));
            let sums = futures_util::future::try_join_all(lanes).await;
            over.cancel();
            sums
        };
        let (published, sums) = try_join(publish(&client, &queue, Dice(seed), &over), exits).await?;
        let mut sum = Sum::default();
        for lane in sums {
            sum.add(&lane);
        }
        // What the last of them left behind.
        let done = || crew.notes(&format!("{queue}.done"));
        let mut rest = 0;
        while done()?.ids() != published && rest < 5 {
            let mut worker = start(&crew, &queue, &format!("{queue}-rest-{rest}"), "1s")?;
            sum.count(&mut worker).await?;
            rest += 1;
        }
        let done = done()?;
        eprintln!(
            "{} {kind:?}, seed {seed:#x}: {} published, {sum:?}, redelivered {}, done again {}",
            bed.release,
            published.len(),
            done.redelivered(),
            done.repeats()
        );
        ids::assert_same("published", &published, "done", &done.ids())?;
        ensure!(done.repeats() == 0, "done again: {:?}", done.count());
        ensure!(sum.done == sum.messages && sum.done == published.len() as u64, "{sum:?}");
        // A quorum queue may deliver after it has confirmed the cancel; that comes back with the close.
        ensure!(kind == Kind::Quorum || done.redelivered() == 0, "{} redelivered", done.redelivered());
        crew.nothing_is_left(&[&queue]).await?;
    }
    client.close().await
}

fn start(crew: &Crew<'_>, queue: &str, name: &str, max_idle: &str) -> Result<Worker> {
    let script = NOTE_DONE.replace("/done", &format!("/{queue}.done"));
    crew.exec(name, queue, &["--prefetch", "10", "--max-idle", max_idle], &script)
}

/// One worker after the other.
async fn race(crew: &Crew<'_>, queue: &str, lane: usize, exits: usize) -> Result<Sum> {
    let mut sum = Sum::default();
    for round in 0..exits {
        let mut worker = start(crew, queue, &format!("{queue}-{lane}-{round}"), MAX_IDLE)?;
        sum.count(&mut worker).await?;
    }
    Ok(sum)
}

/// Publishes at random instants until `over`.
async fn publish(client: &Client, queue: &str, mut dice: Dice, over: &CancellationToken) -> Result<Ids> {
    let mut published = Ids::new();
    while !over.is_cancelled() {
        published.extend(client.publish(queue, 1 + dice.below(3)).await?);
        tokio::time::sleep(dice.moment(LONGEST_PAUSE)).await;
    }
    Ok(published)
}

async fn an_idle_worker_is_seen_while_it_lives_and_leaves_nothing(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let mut patient = crew.start("patient", &["sleep", "--queue", &bed.queue, "--max-idle", "1h"])?;
    patient.is("ready").await?;
    // Else the look for leftovers would be blind.
    ensure!(crew.running().len() == 1 && client.depth(&bed.queue).await?.consumers == 1);
    ensure!(crew.connections().await? == [format!("mayfly-worker {}", bed.queue)]);
    patient.process.signal(Signal::TERM)?;
    patient.ends_with(exit::OK).await?;
    crew.nothing_is_left(&[&bed.queue]).await?;

    let mut worker = crew.start("worker", &["sleep", "--queue", &bed.queue, "--max-idle", "100ms"])?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!(report.reason == ExitReason::Idle && report.messages == 0, "{report:?}");
    ensure!(worker.events()? == ["started", "ready", "draining", "exit"], "{:?}", worker.events());
    crew.nothing_is_left(&[&bed.queue]).await?;
    client.close().await
}

// === impl Sum ===

impl Sum {
    /// Waits until a worker has ended as idle, and takes its report in.
    async fn count(&mut self, worker: &mut Worker) -> Result<()> {
        let report = worker.ends_with(exit::OK).await?;
        ensure!(report.reason == ExitReason::Idle, "{report:?}\n{}", worker.process.log_tail());
        let status = worker.status()?;
        let draining = status.iter().find(|line| line["event"] == "draining").context("no draining line")?;
        let draining = draining["at"].as_u64().context("no time")?;
        for line in worker.process.log_objects()? {
            if line["target"] == "mayfly_worker::message" {
                let at = humantime::parse_rfc3339(line["timestamp"].as_str().context("no timestamp")?)?;
                let at = at.duration_since(std::time::UNIX_EPOCH)?.as_millis();
                self.late += usize::from(at > u128::from(draining));
            }
        }
        self.add(&Self {
            exits: 1,
            messages: report.messages,
            done: report.done,
            given_back: report.given_back,
            late: 0,
        });
        Ok(())
    }

    fn add(&mut self, other: &Self) {
        self.exits += other.exits;
        self.messages += other.messages;
        self.done += other.done;
        self.given_back += other.given_back;
        self.late += other.late;
    }
}
