//! What a scaler asks of the API server (DESIGN §4), counted by the proxy.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use mayfly_tests::{
    bed::rounds,
    control_plane::{Request, Space},
    each_in_a_space,
    fleet::Scaler,
    usage::{memory, processor_seconds},
};
use serde_json::json;
use tokio::time::Instant;

use crate::{SOON, alive, end_all, ends, ready, waiting};

/// How long requests are counted.
const COUNTED: Duration = Duration::from_secs(40);
/// Requests in ten seconds, at zero.
const IDLE: u64 = 3;
/// Requests in one second, at work, in the long run: after a burst, which also its start is.
const WORKING: u64 = 4;
/// So many may follow each other at once.
const BURST: u64 = 12;
/// That much more processor time, and memory, is no sign that the objects of others cost any; where few objects are
/// looked at for a short time, by a clock that ticks every 10 ms.
const LOOSE: (f64, f64) = (2.0, 1.5);
/// Milliseconds in a second that such a clock may be wrong by.
const TICKS: f64 = 10.0;

/// Objects of others in the namespace, of each kind, where figures are reported.
const FOREIGN: usize = 10_000;
/// So many are created at a time.
const AT_ONCE: usize = 32;

each_in_a_space!(
    an_idle_scaler_asks_little,
    a_working_scaler_asks_within_its_budget,
    what_others_have_in_the_namespace_costs_a_scaler_nothing,
);

async fn an_idle_scaler_asks_little(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 0).await?;
    let mut first = space.scaler("first", &[])?;
    let mut second = space.scaler("second", &[])?;
    first.decides("Empty", SOON).await?;
    second.decides("Empty", SOON).await?;
    let begun = Instant::now();
    tokio::time::sleep(COUNTED).await;
    for name in ["first", "second"] {
        let asked = asked(space, name, begun);
        ensure!(asked.len() as u64 <= IDLE * COUNTED.as_secs() / 10, "{name}: {}", table(&asked));
        ensure!(!asked.is_empty(), "{name} asks nothing: is it there?");
        eprintln!("idle: {} requests in {COUNTED:?}: {}", asked.len(), table(&asked));
    }
    ends(&mut first.process).await?;
    ends(&mut second.process).await?;
    client.close().await
}

async fn a_working_scaler_asks_within_its_budget(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 100).await?;
    space.kubelet.node("a", 20).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 6 }))?;
    let begun = Instant::now();
    let mut first = space.scaler("first", &[])?;
    let mut second = space.scaler("second", &[])?;
    // Launches, workers that end and are followed by others, and then one that waits for a node.
    space.jobs_when("six workers are ready", 2 * SOON, |jobs| ready(jobs) == 6).await?;
    end_all(space).await?;
    space.kubelet.clean().await?;
    space.jobs_when("one waits for a node", SOON, |jobs| jobs.len() > 6 && alive(jobs) > 0).await?;
    tokio::time::sleep_until(begun + COUNTED).await;
    let took = begun.elapsed();
    for name in ["first", "second"] {
        let asked = asked(space, name, begun);
        eprintln!("working: {} requests in {took:?}: {}", asked.len(), table(&asked));
        ensure!(asked.len() as u64 <= WORKING * took.as_secs() + BURST, "{name}: {}", table(&asked));
        // One more than a burst and what ten seconds allow: that one leaves after them.
        for window in asked.windows(usize::try_from(BURST + 10 * WORKING + 1)?) {
            let took = window[window.len() - 1].at - window[0].at;
            ensure!(took >= Duration::from_secs(10), "{name}: {} requests in {took:?}", window.len());
        }
    }
    ends(&mut first.process).await?;
    ends(&mut second.process).await?;
    client.close().await
}

async fn what_others_have_in_the_namespace_costs_a_scaler_nothing(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 1).await?;
    let mut scaler = space.scaler("scaler", &[])?;
    // As long as a worker waits for a node, the scaler looks at Jobs and pods again and again.
    space.jobs_when("one waits for a node", SOON, |jobs| alive(jobs) == 1).await?;
    scaler.decides("WaitingForPending", SOON).await?;
    let alone = costs(&scaler).await?;
    let foreign = rounds(FOREIGN);
    let created = stream::iter(0..foreign).map(|number| foreign_objects(space, number));
    created.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let among = costs(&scaler).await?;
    let [alone_s, among_s] = [alone.0, among.0].map(|seconds| 1000.0 * seconds / watched().as_secs_f64());
    let [alone_mb, among_mb] = [alone.1, among.1];
    eprintln!(
        "among {foreign} foreign Jobs and {foreign} foreign pods: {among_s:.1} ms/s instead of {alone_s:.1}, \
         {among_mb:.1} MB instead of {alone_mb:.1}"
    );
    ensure!(
        space.jobs().await?.iter().filter(|job| job.serial.is_some()).count() == 1,
        "others started workers"
    );
    let (processor, memory, ticks) =
        if foreign == FOREIGN { (1.1, 1.1, 0.0) } else { (LOOSE.0, LOOSE.1, TICKS) };
    ensure!(among_s <= processor * alone_s + ticks, "processor time");
    ensure!(among_mb <= memory * alone_mb, "memory");
    ends(&mut scaler.process).await?;
    client.close().await
}

/// A suspended Job and a pod that is gated, of somebody else.
async fn foreign_objects(space: &Space<'_>, number: usize) -> Result<()> {
    let containers = json!([{ "name": "other", "image": "other" }]);
    let template = json!({ "spec": { "restartPolicy": "Never", "containers": containers } });
    let name = format!("other-{number}");
    let spec = json!({ "suspend": true, "template": template });
    space.create::<Job>(json!({ "metadata": { "name": name }, "spec": spec })).await?;
    let spec = json!({ "schedulingGates": [{ "name": "example.org/later" }], "containers": containers });
    space.create::<Pod>(json!({ "metadata": { "name": name }, "spec": spec })).await.map(drop)
}

/// How long costs are watched.
fn watched() -> Duration {
    if rounds(FOREIGN) == FOREIGN { Duration::from_mins(1) } else { Duration::from_secs(5) }
}

/// Seconds of processor time that it uses while it is watched, and then its memory in megabytes.
async fn costs(scaler: &Scaler) -> Result<(f64, f64)> {
    let pid = scaler.process.pid();
    let before = processor_seconds(pid)?;
    tokio::time::sleep(watched()).await;
    Ok((processor_seconds(pid)? - before, memory(pid)?.resident))
}

fn asked(space: &Space<'_>, name: &str, since: Instant) -> Vec<Request> {
    space.proxy.matching(|request| request.client == name && request.at >= since)
}

/// How often what was asked.
fn table(requests: &[Request]) -> String {
    let mut counts = BTreeMap::new();
    for request in requests {
        *counts.entry(format!("{} {}", request.verb, request.resource)).or_insert(0) += 1;
    }
    format!("{counts:?}")
}
