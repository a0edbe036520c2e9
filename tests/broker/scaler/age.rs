//! The age of the oldest message, held against the truth: one history of a classic and a quorum queue, told by a
//! scaler for each source.

mod stamps;
mod table;
mod truth;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use mayfly_tests::{
    Bed, Kind, Node, Release, bed::rounds, eventually, fleet::Scaler, on_each_release, until,
};
use serde_json::{Value, json};

use self::{
    table::{Age, Sample, Table},
    truth::{Millis, Settle, Truth},
};
use super::{LONG, SOON, ends, fleet};

/// Between an action and the sample after it, so that the scaler has looked meanwhile.
const SETTLE: Duration = Duration::from_millis(600);
/// What was seen longer ago is of a broker that was away.
const STALE: Millis = 3000;

on_each_release!(an_age_is_the_truth_or_holds_it_between_its_bounds);

/// The queues, the scalers that look at them, and what those told.
struct Scene {
    node: Node,
    truths: Vec<(Kind, Truth)>,
    scalers: Vec<(&'static str, Scaler)>,
    told: Vec<Told>,
}

/// What a scaler told of a queue.
#[derive(Debug)]
struct Told {
    phase: &'static str,
    source: &'static str,
    queue: usize,
    /// When its page was drawn, and when it had looked at the queue.
    at: Millis,
    seen: Millis,
    age: Option<Age>,
}

async fn an_age_is_the_truth_or_holds_it_between_its_bounds(bed: &Bed) -> Result<()> {
    let mut scene = Scene::set(bed).await?;
    let played = scene.all_phases().await;
    let table = scene.judged(bed.release);
    table.print();
    played?;
    scene.end().await?;
    table.judge()
}

// === impl Scene ===

impl Scene {
    /// A broker of its own, as it is restarted, and scalers that launch nothing.
    async fn set(bed: &Bed) -> Result<Self> {
        let node = bed.own_node().await?;
        let mut truths = Vec::new();
        for (kind, queue) in [(Kind::Classic, "classic"), (Kind::Quorum, "quorum")] {
            truths.push((kind, Truth::of(node.broker(), queue, kind).await?));
        }
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let ports = node.broker().ports;
        let mut sources = vec![("looks", None), ("management", Some(url(ports.management)))];
        if bed.release != Release::Packaged {
            sources.push(("prometheus", Some(url(ports.prometheus))));
        }
        let mut scalers = Vec::new();
        for (source, url) in sources {
            let mut changes =
                json!({ "queues": [{ "name": "classic" }, { "name": "quorum" }], "max_workers": 0 });
            if let Some(url) = url {
                changes["counters"] = json!({ source: url });
            }
            let mut fleet = fleet(bed, source, LONG, &changes)?;
            fleet.url = node.broker().url();
            let scaler = fleet.scaler(&format!("scaler-{source}"), &[])?;
            scaler.decides("Empty", SOON).await?;
            eventually("the counters are read", SOON, async || {
                let status = scaler.status().await?;
                let counters = &status["queues"]["classic"]["counters"];
                ensure!(counters.is_null() || counters["known"].is_object(), "{counters}");
                Ok(Some(()))
            })
            .await?;
            scalers.push((source, scaler));
        }
        Ok(Self { node, truths, scalers, told: Vec::new() })
    }

    /// So many seconds of a phase: `act` once in each on each queue, then a sample.
    async fn phase(
        &mut self,
        name: &'static str,
        seconds: usize,
        act: impl AsyncFn(&mut Truth, usize) -> Result<()>,
    ) -> Result<()> {
        for second in 0..seconds {
            let begun = tokio::time::Instant::now();
            for (_, truth) in &mut self.truths {
                act(truth, second).await.with_context(|| format!("{name}, second {second}"))?;
            }
            tokio::time::sleep(SETTLE).await;
            self.sample(name).await?;
            tokio::time::sleep_until(begun + Duration::from_secs(1)).await;
        }
        Ok(())
    }

    async fn sample(&mut self, phase: &'static str) -> Result<()> {
        let pages = try_join_all(self.scalers.iter().map(|(_, scaler)| scaler.page())).await?;
        for ((source, _), page) in self.scalers.iter().zip(pages) {
            let at = millis(&page["at"])?;
            for (index, (_, truth)) in self.truths.iter().enumerate() {
                let queue = &page["pools"]["pool"]["queues"][&truth.queue];
                // Of a broker that is away nothing is known.
                let Ok(seen) = millis(&queue["facts"]["known"]["at"]) else { continue };
                if seen + STALE > at {
                    let age = Age::read(&queue["age"]);
                    self.told.push(Told { phase, source, queue: index, at, seen, age });
                }
            }
        }
        Ok(())
    }

    /// All that may happen to a queue; a full run takes minutes of each.
    async fn all_phases(&mut self) -> Result<()> {
        let long = rounds(60).max(6);
        let second = Duration::from_secs(1);
        // First: a quorum queue whose broker is killed soon after its declaration may not come back (no leader).
        self.phase("declared anew", long, async |truth, n| match n % 5 {
            0 => truth.delete_and_declare().await,
            _ => truth.publish(2).await,
        })
        .await?;
        self.phase("growing", long, async |truth, _| truth.publish(3).await).await?;
        self.phase("draining", 2 * long, async |truth, n| {
            if n == 0 {
                truth.consume(second, Settle::Ack).await?;
            }
            truth.publish(if n % 3 == 0 { 2 } else { 0 }).await?;
            if n + 1 == 2 * long { truth.leave().await } else { Ok(()) }
        })
        .await?;
        self.phase("given back", 2 * long, async |truth, n| {
            truth.publish(u64::from(n % 2 == 0)).await?;
            match n % 4 {
                0 => truth.consume(second, Settle::Keep).await,
                2 => truth.leave().await,
                _ if n + 1 == 2 * long && n % 4 < 2 => truth.leave().await,
                _ => Ok(()),
            }
        })
        .await?;
        self.phase("retried", 2 * long, async |truth, n| {
            if n == 0 {
                truth.consume(second / 2, Settle::Retry).await?;
            }
            if n == long {
                truth.leave().await?;
            }
            truth.publish(u64::from(n % 2 == 0)).await
        })
        .await?;
        // Between two looks nobody would see it.
        self.phase("purged", long, async |truth, n| match n % 5 {
            0 => truth.purge().await,
            _ => truth.publish(2).await,
        })
        .await?;
        for _ in 0..rounds(2) {
            self.restart().await?;
            self.phase("restarted", long, async |truth, n| {
                if n == long / 2 {
                    truth.consume(second, Settle::Ack).await?;
                }
                truth.publish(u64::from(n % 2 == 0)).await?;
                if n + 1 == long { truth.leave().await } else { Ok(()) }
            })
            .await?;
        }
        Ok(())
    }

    async fn restart(&mut self) -> Result<()> {
        self.node.kill().await?;
        self.node.start_again().await?;
        for (_, truth) in &mut self.truths {
            truth.connect_again().await?;
        }
        for (source, scaler) in &self.scalers {
            until(&format!("{source}: the queues are seen again"), SOON, async || {
                let status = scaler.status().await?;
                let is_seen = |queue| status["queues"][queue]["facts"]["known"].is_object();
                Ok(is_seen("classic") && is_seen("quorum"))
            })
            .await?;
        }
        Ok(())
    }

    /// What was told, beside what was true then.
    fn judged(&self, release: Release) -> Table {
        let mut table = Table::of(release);
        for Told { phase, source, queue, at, seen, age } in &self.told {
            let Some((kind, truth)) = self.truths.get(*queue) else { continue };
            if let Some(sample) = Sample::of(&truth.log(), (*at, *seen), age.clone()) {
                table.add(source, *kind, phase, sample);
            }
        }
        table
    }

    async fn end(mut self) -> Result<()> {
        for (_, scaler) in &mut self.scalers {
            ends(&mut scaler.process).await?;
        }
        Ok(())
    }
}

fn millis(time: &Value) -> Result<Millis> {
    let time = humantime::parse_rfc3339(time.as_str().context("no time")?)?;
    Ok(u64::try_from(time.duration_since(std::time::UNIX_EPOCH)?.as_millis())?)
}
