//! From zero to zero: ten pools, each with a queue and an SLO of its own, under 1,000 messages a second.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use mayfly_tests::{
    Bed, Client, Fleet, Kind,
    bed::rounds,
    fleet::WorkerFile,
    ids::{Ids, assert_same, made_ms},
    until,
};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{SOON, ends};

const POOLS: usize = 10;
/// Messages a second and pool; one worker does as many at most, so each pool needs a second one.
const PACE: usize = 100;
const WORK: &str = "10ms";
const SLO: Duration = Duration::from_secs(15);
const MAX_WORKERS: usize = 4;
const QUOTA: usize = 30;
/// Seconds.
const FULL_LENGTH: usize = 300;
/// Messages that are published together.
const BURST: usize = PACE / 10;
const BURST_GAP: Duration = Duration::from_millis(100);
/// Sooner than the files of ended workers go.
const KEEP_GAP: Duration = Duration::from_secs(1);

/// Workers' files and logs, linked so that they outlive their removal.
struct Kept<'a> {
    fleet: &'a Fleet<'a>,
    directory: PathBuf,
    names: BTreeSet<String>,
}

/// What was measured of the whole.
struct Course {
    /// Milliseconds from publishing to the ack, sorted.
    times: Vec<u64>,
    workers: usize,
    empty_handed: usize,
    /// At once, of all pools.
    most: usize,
    worker_seconds: f64,
}

pub(super) async fn every_queue_keeps_its_slo_from_zero_to_zero(bed: &Bed) -> Result<()> {
    let length = Duration::from_secs(rounds(FULL_LENGTH).try_into()?);
    let queues: Vec<String> = (0..POOLS).map(|pool| bed.queue_name(&format!("scale-{pool}"))).collect();
    let client = bed.client().await?;
    for (number, queue) in queues.iter().enumerate() {
        client.declare(queue, if number % 2 == 0 { Kind::Quorum } else { Kind::Classic }).await?;
    }
    let fleet = Fleet::with(bed, "scale", &configuration(&queues)?)?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    let mut kept = Kept::new(&fleet)?;
    let publishing = try_join_all(queues.iter().map(|queue| publish(bed, queue, length)));
    let published: Ids = tokio::select! {
        published = publishing => published?.into_iter().flatten().collect(),
        never = kept.keep_on() => never?,
    };
    let emptied = until("all is done and no worker lives", SLO + SOON, async || {
        kept.keep()?;
        Ok(kept.workers()?.iter().all(|worker| worker.exit_reason().is_some())
            && is_empty(&client, &queues).await?)
    });
    emptied.await?;
    ends(&mut scaler.process).await?;
    ensure!(fleet.running().is_empty(), "workers are left");
    client.close().await?;

    let (done, course) = kept.course()?;
    assert_same("published", &published, "done", &done)?;
    tell(bed, length, &course);
    let slowest = course.times.last().copied().unwrap_or_default();
    ensure!(u128::from(slowest) <= SLO.as_millis(), "a message took {slowest} ms");
    ensure!(course.most <= QUOTA, "{} workers at once, over the quota", course.most);
    Ok(())
}

fn configuration(queues: &[String]) -> Result<Value> {
    let worker = mayfly_tests::process::program_path("mayfly-worker")?;
    let pool = |(number, queue): (usize, &String)| {
        json!({
            "name": format!("pool-{number}"),
            "queues": [{ "name": queue, "slo": humantime::format_duration(SLO).to_string() }],
            "max_workers": MAX_WORKERS,
            "worker": {
                "command": [worker, "sleep", "--queue", queue, "--for", WORK, "--max-idle", "1s"],
                "env": { "MAYFLY_LOG": "info,mayfly_worker::message=debug", "MAYFLY_LOG_FORMAT": "json" },
            },
        })
    };
    let pools: Vec<Value> = queues.iter().enumerate().map(pool).collect();
    Ok(json!({ "quota": QUOTA, "pools": pools }))
}

/// At a steady pace, and at once what it was late with.
async fn publish(bed: &Bed, queue: &str, length: Duration) -> Result<Ids> {
    let client = bed.client().await?;
    let mut ids = Ids::new();
    let mut bursts = interval(BURST_GAP);
    bursts.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let end = Instant::now() + length;
    while bursts.tick().await < end {
        ids.extend(client.publish(queue, BURST).await?);
    }
    client.close().await?;
    Ok(ids)
}

async fn is_empty(client: &Client, queues: &[String]) -> Result<bool> {
    for queue in queues {
        if client.depth(queue).await?.ready > 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

#[expect(clippy::print_stderr, reason = "the figures are for whoever runs it")]
fn tell(bed: &Bed, length: Duration, course: &Course) {
    let Course { times, workers, empty_handed, most, worker_seconds } = course;
    let at =
        |part: usize| times.get((times.len() * part / 100).min(times.len() - 1)).copied().unwrap_or_default();
    eprintln!(
        "{}: {} messages in {length:?}, from publishing to the ack p50 {} ms, p95 {} ms, slowest {} ms; {workers} \
         workers ({empty_handed} without a message), {most} at most at once, {worker_seconds:.0} worker seconds",
        bed.release,
        times.len(),
        at(50),
        at(95),
        at(100),
    );
}

// === impl Kept ===

impl<'a> Kept<'a> {
    fn new(fleet: &'a Fleet<'a>) -> Result<Self> {
        let directory = fleet.directory.join("kept");
        fs::create_dir(&directory)?;
        Ok(Self { fleet, directory, names: BTreeSet::new() })
    }

    /// Links what is new. Never ends but with an error.
    async fn keep_on(&mut self) -> Result<Ids> {
        let mut looks = interval(KEEP_GAP);
        loop {
            looks.tick().await;
            self.keep()?;
        }
    }

    fn keep(&mut self) -> Result<()> {
        for worker in self.fleet.workers()? {
            if !self.names.contains(&worker.name) {
                let file = self.fleet.directory.join("workers").join(&worker.name);
                let log = self.fleet.log(&worker.name);
                // Its log comes a moment after its file.
                if log.exists() {
                    fs::hard_link(&log, self.directory.join(format!("{}.log", worker.name)))?;
                    fs::hard_link(&file, self.directory.join(&worker.name))?;
                    self.names.insert(worker.name);
                }
            }
        }
        Ok(())
    }

    fn workers(&self) -> Result<Vec<WorkerFile>> {
        self.names.iter().map(|name| WorkerFile::read(&self.directory.join(name))).collect()
    }

    /// The ids that were done, each once, and what it took.
    fn course(&self) -> Result<(Ids, Course)> {
        let mut done = Ids::new();
        let mut times = Vec::new();
        for name in &self.names {
            let text = fs::read_to_string(self.directory.join(format!("{name}.log")))?;
            for line in text.lines().filter(|line| line.contains("mayfly_worker::message")) {
                let line: Value = serde_json::from_str(line)?;
                let id = line["id"].as_str().context("no id")?;
                ensure!(line["outcome"] == "done", "{line}");
                ensure!(done.insert(id.to_owned()), "{id} was done twice");
                let at = humantime::parse_rfc3339(line["timestamp"].as_str().context("no timestamp")?)?;
                let at = u64::try_from(at.duration_since(UNIX_EPOCH)?.as_millis())?;
                times.push(at.saturating_sub(made_ms(id)?));
            }
        }
        times.sort_unstable();
        let workers = self.workers()?;
        let lives: Vec<_> = workers.iter().map(life).collect::<Result<_>>()?;
        let mut pools = BTreeMap::<&str, Vec<(u64, u64)>>::new();
        for (worker, life) in workers.iter().zip(&lives) {
            pools.entry(&*worker.pool).or_default().push(*life);
        }
        for (pool, lives) in &pools {
            ensure!(most_at_once(lives) <= MAX_WORKERS, "too many workers of {pool} at once");
        }
        ensure!(pools.len() == POOLS, "{} pools had workers", pools.len());
        let is_empty_handed =
            |worker: &&WorkerFile| worker.line("exit").is_some_and(|exit| exit["report"]["messages"] == 0);
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let worker_seconds = lives.iter().map(|(from, to)| to - from).sum::<u64>() as f64 / 1e3;
        let course = Course {
            times,
            workers: workers.len(),
            empty_handed: workers.iter().filter(is_empty_handed).count(),
            most: most_at_once(&lives),
            worker_seconds,
        };
        Ok((done, course))
    }
}

/// From its launch to its end, in milliseconds since the Unix epoch.
fn life(worker: &WorkerFile) -> Result<(u64, u64)> {
    let end = worker.line("exit").and_then(|exit| exit["at"].as_u64());
    Ok((worker.stamp, end.with_context(|| format!("{} has not told its end", worker.name))?))
}

fn most_at_once(lives: &[(u64, u64)]) -> usize {
    let at = |time: u64| lives.iter().filter(|(from, to)| (*from..*to).contains(&time)).count();
    lives.iter().map(|(from, _)| at(*from)).max().unwrap_or_default()
}
