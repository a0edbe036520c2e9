//! Counters that cannot be had, or not believed: each is a state with a name, and nothing else suffers.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use mayfly_tests::{
    Bed, Client, Fleet, Kind, Release,
    counters::{CounterServer, Manners, Plugin},
    eventually,
    fleet::Scaler,
    node::{Authority, Certificate},
    on_each_release,
};
use serde_json::{Value, json};

use super::{LONG, SOON, ends, fleet};

/// Something refused is tried again after ten seconds, and ages are told from counters for some more.
const LATE: Duration = Duration::from_secs(60);
/// What comes in an answer that is too long, and what the scaler may hold at most meanwhile.
const HUGE: usize = 100 << 20;
const MEMORY_KB: u64 = 80 << 10;

on_each_release!(
    counters_that_are_silent_are_told_and_nothing_else_suffers,
    counters_that_are_refused_are_told_and_nothing_else_suffers,
    counters_that_are_no_counters_are_told_and_nothing_else_suffers,
    counters_without_trust_are_told_and_nothing_else_suffers,
);

/// A scaler with counters that are played, on a queue in which something waits that is no reason to launch.
struct Stage<'a> {
    name: &'a str,
    fleet: Fleet<'a>,
    scaler: Scaler,
    client: Client,
    queue: &'a str,
    published: u64,
    /// Programs that ran so far.
    ran: u32,
}

/// How a state shows: its name, and what is said of it.
type Shown = (&'static str, &'static str);

/// What the played plugin is here: each is read on one of the releases.
fn plugin(bed: &Bed) -> Plugin {
    if bed.release == Release::Trixie { Plugin::Prometheus } else { Plugin::Management }
}

async fn counters_that_are_silent_are_told_and_nothing_else_suffers(bed: &Bed) -> Result<()> {
    let server = CounterServer::start(plugin(bed), &bed.queue, None).await?;
    let mut stage = Stage::set(bed, &format!("http://127.0.0.1:{}", server.port()), &json!({})).await?;
    stage.counts(&server).await?;
    for (manners, shown) in [
        (Manners::Hangs, ("unreachable", "does not answer")),
        (Manners::HangsMidway, ("unreachable", "does not answer")),
        (Manners::Trickles, ("unreachable", "does not answer")),
        (Manners::Closes, ("unreachable", "is unreachable")),
    ] {
        stage.suffers(&server, manners, shown, 69).await?;
    }
    // An answer that was good once is of no use for long.
    server.set(Manners::Hangs);
    stage.age_is_told_from("looks").await?;
    drop(server);
    stage.shows(("unreachable", "is unreachable"), 69).await?;
    stage.ends().await
}

async fn counters_that_are_refused_are_told_and_nothing_else_suffers(bed: &Bed) -> Result<()> {
    let server = CounterServer::start(plugin(bed), &bed.queue, None).await?;
    let mut stage = Stage::set(bed, &format!("http://127.0.0.1:{}", server.port()), &json!({})).await?;
    stage.counts(&server).await?;
    for (manners, shown) in [
        (Manners::Status(401), ("forbidden", "refuses us (401 Unauthorized)")),
        (Manners::Status(403), ("forbidden", "refuses us (403 Forbidden)")),
        (Manners::Status(404), ("unusable", "answers with 404 Not Found: is the plugin rabbitmq_")),
        (Manners::Status(500), ("unusable", "answers with 500 Internal Server Error: see its log")),
        (Manners::Status(204), ("unusable", "answers with 204 No Content")),
        (Manners::Redirects, ("unusable", "leads elsewhere (302 Found, to \"http://127.0.0.1:1/there\")")),
    ] {
        stage.suffers(&server, manners, shown, 78).await?;
    }
    stage.ends().await
}

async fn counters_that_are_no_counters_are_told_and_nothing_else_suffers(bed: &Bed) -> Result<()> {
    let server = CounterServer::start(plugin(bed), &bed.queue, None).await?;
    let mut stage = Stage::set(bed, &format!("http://127.0.0.1:{}", server.port()), &json!({})).await?;
    stage.counts(&server).await?;
    let too_long = ("unusable", "is longer than 16777216 bytes");
    let (broken, unreadable) =
        (("unreachable", "is unreachable"), ("unusable", "the answer is not what RabbitMQ's"));
    for (manners, shown, code) in [
        (Manners::Huge(HUGE), too_long, 78),
        (Manners::HugeChunks(HUGE), too_long, 78),
        (Manners::Garbage, unreadable, 78),
        (Manners::Half, broken, 69),
        (Manners::HalfUnmarked, ("unusable", "has no length"), 78),
        (Manners::NotHttp, broken, 69),
    ] {
        stage.suffers(&server, manners, shown, code).await?;
    }
    // Numbers that cannot be are numbers all the same: no arithmetic stumbles over them.
    for manners in [Manners::Absurd, Manners::Good, Manners::Absurd, Manners::Good] {
        server.set(manners);
        let is_absurd = |published: u64| published > 1 << 50;
        let wanted = manners == Manners::Absurd;
        stage
            .counters("are read", |it| {
                it["known"]["value"]["published"].as_u64().is_some_and(|n| !wanted || is_absurd(n))
            })
            .await?;
    }
    let held = stage.most_memory_kb()?;
    eprintln!("at most {} MB while answers of {} MB came", held >> 10, HUGE >> 20);
    ensure!(held < MEMORY_KB, "{held} KB");
    stage.ends().await
}

async fn counters_without_trust_are_told_and_nothing_else_suffers(bed: &Bed) -> Result<()> {
    let authority = Authority::new("mayfly tests")?;
    let file = bed.directory().join("ca.pem");
    fs::write(&file, authority.pem())?;
    let trusted = json!({ "ca_file": file });
    let host = &["127.0.0.1"];
    let (good, expired) = (authority.sign("broker", host, true)?, authority.sign("broker", host, false)?);
    let wrong_name = authority.sign("broker", &["example.org"], true)?;
    let no_tls = |certificate: &'static str| ("unusable", certificate);
    let cases: [(&str, Option<&Certificate>, Value, Shown); 4] = [
        ("nobody", Some(&good), json!({}), no_tls("by counters.ca_file")),
        ("expired", Some(&expired), trusted.clone(), no_tls("renew it at the broker")),
        ("name", Some(&wrong_name), trusted.clone(), no_tls("write one of the certificate's names")),
        ("plain", None, trusted.clone(), no_tls("write http://, or give its port for TLS")),
    ];
    for (name, certificate, changes, shown) in cases {
        let server = CounterServer::start(plugin(bed), &bed.queue, certificate).await?;
        let url = format!("https://127.0.0.1:{}", server.port());
        let mut stage = Stage::named(bed, name, &url, &changes).await?;
        stage.shows(shown, 78).await?;
        stage.age_is_told_from("looks").await?;
        stage.ends().await?;
    }
    let server = CounterServer::start(plugin(bed), &bed.queue, Some(&good)).await?;
    let url = format!("https://127.0.0.1:{}", server.port());
    let mut stage = Stage::named(bed, "trusted", &url, &trusted).await?;
    stage.counts(&server).await?;
    stage.ends().await
}

// === impl Stage ===

impl<'a> Stage<'a> {
    async fn set(bed: &'a Bed, url: &str, changes: &Value) -> Result<Self> {
        Self::named(bed, "fleet", url, changes).await
    }

    async fn named(bed: &'a Bed, name: &'a str, url: &str, changes: &Value) -> Result<Self> {
        let client = bed.client().await?;
        client.declare(&bed.queue, Kind::Classic).await?;
        client.publish(&bed.queue, 1).await?;
        let mut source = changes.clone();
        source["url"] = json!(url);
        let counters = match plugin(bed) {
            Plugin::Management => json!({ "management": source }),
            Plugin::Prometheus if changes["ca_file"].is_null() => json!({ "prometheus": url }),
            Plugin::Prometheus => json!({ "prometheus": source }),
        };
        // Nothing is ever old or much enough.
        let changes =
            json!({ "counters": counters, "target_queue_size": 1000, "force_empty_queue_interval": "10h" });
        let fleet = fleet(bed, name, LONG, &changes)?;
        let scaler = fleet.scaler(&format!("scaler-{name}"), &[])?;
        let published = client.depth(&bed.queue).await?.ready.into();
        let mut stage = Self { name, fleet, scaler, client, queue: &bed.queue, published, ran: 0 };
        stage.depth_goes_on().await?;
        Ok(stage)
    }

    /// The played counters tell ages.
    async fn counts(&mut self, server: &CounterServer) -> Result<()> {
        server.count(self.published);
        self.counters("are read", |counters| counters["known"].is_object()).await?;
        self.client.take_all(self.queue, usize::try_from(self.published)?, SOON).await?;
        self.client.publish(self.queue, 1).await?;
        server.count(self.published + 1);
        self.published = 1;
        self.age_is_told_from("counters").await
    }

    /// What it shows while the server behaves like this, and that it goes on when that is over.
    async fn suffers(
        &mut self,
        server: &CounterServer,
        manners: Manners,
        shown: Shown,
        code: i32,
    ) -> Result<()> {
        server.set(manners);
        self.shows(shown, code).await.with_context(|| format!("{manners:?}"))?;
        server.set(Manners::Good);
        self.counters("are read again", |counters| counters["known"].is_object()).await
    }

    /// The status page, `explain` and `check --connect` say so, and the depth is seen all the same.
    async fn shows(&mut self, (why, detail): Shown, code: i32) -> Result<()> {
        let is_shown = |counters: &Value| {
            let unknown = &counters["unknown"];
            unknown["why"] == why && unknown["detail"].as_str().is_some_and(|text| text.contains(detail))
        };
        self.counters(&format!("{why}: {detail}"), is_shown).await?;
        self.ran += 1;
        let name = |what: &str| format!("{what}-{}-{}", self.name, self.ran);
        let explained = self.fleet.explain(&name("explain"), &self.scaler, &[]).await?;
        ensure!(explained.contains(&format!("{why}: ")) && explained.contains(detail), "{explained}");
        let (checked, ended) = self.fleet.check(&name("check"), &["--connect"]).await?;
        ensure!(checked.contains(detail) && checked.contains("ages are told from looks alone"), "{checked}");
        ensure!(ended == Some(code), "exit code {ended:?}: {checked}");
        self.depth_goes_on().await
    }

    async fn counters(&self, what: &str, mut is_so: impl FnMut(&Value) -> bool) -> Result<()> {
        eventually(&format!("counters {what}"), LATE, async || {
            let status = self.scaler.status().await?;
            let counters = &status["queues"][self.queue]["counters"];
            ensure!(is_so(counters), "{counters}");
            Ok(Some(()))
        })
        .await
    }

    async fn age_is_told_from(&self, source: &str) -> Result<()> {
        eventually(&format!("the age is told from {source}"), LATE, async || {
            let status = self.scaler.status().await?;
            let age = &status["queues"][self.queue]["age"];
            ensure!(age["source"] == source && age["estimate"].is_number(), "{age}");
            Ok(Some(()))
        })
        .await
    }

    /// One more message is seen, its age is known, and it is no reason to launch.
    async fn depth_goes_on(&mut self) -> Result<()> {
        self.client.publish(self.queue, 1).await?;
        self.published += 1;
        eventually("the depth goes on", SOON, async || {
            let status = self.scaler.status().await?;
            let queue = &status["queues"][self.queue];
            ensure!(queue["facts"]["known"]["value"]["present"]["ready"] == self.published, "{queue}");
            ensure!(queue["age"]["estimate"].is_number(), "{queue}");
            Ok(Some(()))
        })
        .await?;
        ensure!(self.fleet.workers()?.is_empty(), "a worker was launched");
        Ok(())
    }

    /// The most memory that the scaler ever held.
    fn most_memory_kb(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.scaler.process.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    async fn ends(mut self) -> Result<()> {
        ensure!(self.fleet.workers()?.is_empty(), "a worker was launched");
        ends(&mut self.scaler.process).await?;
        self.client.close().await
    }
}
