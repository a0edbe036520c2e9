//! The API server goes away, hangs, or has too much to do: nothing is launched on what is not known.

use std::time::Duration;

use anyhow::{Result, ensure};
use mayfly_tests::{
    control_plane::{Act, ApiProxy, Door, Request, Rule, Space},
    each_in_a_space, until,
};
use serde_json::json;
use tokio::time::Instant;

use crate::{SOON, each_once, ends, in_order, ready, waiting};

/// How long the API server is away.
const OUTAGE: Duration = Duration::from_secs(20);
/// How long a part of it is.
const PART_OUTAGE: Duration = Duration::from_secs(8);
/// A scaler that is told nothing launches again so soon after the API server's return (DESIGN §10) …
const RETURN: Duration = Duration::from_secs(2);
/// … in time of its own: what the API server takes to answer is not counted, and a machine that is busy with
/// other tests may be so many times slower.
const BUSY_MACHINE: u32 = 2;

each_in_a_space!(
    nothing_is_launched_while_the_api_server_is_gone,
    nothing_is_launched_while_the_api_server_hangs,
    nothing_is_launched_while_the_api_server_is_overloaded,
    nothing_is_launched_while_one_part_cannot_be_read,
);

async fn nothing_is_launched_while_the_api_server_is_gone(space: &Space<'_>) -> Result<()> {
    outage(space, |proxy| proxy.set(Door::Refused), |proxy| proxy.set(Door::Open)).await
}

async fn nothing_is_launched_while_the_api_server_hangs(space: &Space<'_>) -> Result<()> {
    outage(space, |proxy| proxy.set(Door::Hung), |proxy| proxy.set(Door::Open)).await
}

async fn nothing_is_launched_while_the_api_server_is_overloaded(space: &Space<'_>) -> Result<()> {
    let overloaded = Act::Answer { status: 429, retry_after: Some(1) };
    outage(space, |proxy| proxy.rule(Rule::new("*", "*", overloaded)), ApiProxy::clear).await?;
    // It asked to be left alone for a second after each request.
    let refused = space.proxy.matching(|request| request.status.is_none());
    ensure!(refused.len() as u64 <= 2 * OUTAGE.as_secs(), "{} requests meanwhile", refused.len());
    Ok(())
}

async fn outage(space: &Space<'_>, begin: impl Fn(&ApiProxy), end: impl Fn(&ApiProxy)) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 4 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    space.jobs_when("the first worker is ready", SOON, |jobs| ready(jobs) == 1).await?;

    let over = Instant::now() + OUTAGE;
    begin(&space.proxy);
    let status = scaler.decides("Unknown", SOON).await?;
    let text = status["text"].as_str().unwrap_or_default();
    ensure!(
        text.contains("workers") || text.contains("state record"),
        "it is not told what is unknown: {text}"
    );
    ensure!(text.contains("unreachable"), "it is not told why: {text}");
    let before = space.jobs().await?.len();
    while Instant::now() < over {
        let status = scaler.status().await?;
        ensure!(status["decision"] == "hold", "{status}");
        ensure!(space.jobs().await?.len() == before, "launched while the API server was away");
        ensure!(scaler.process.ended()?.is_none(), "the scaler ended");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let jobs = space.jobs().await?;
    ensure!(jobs.len() < 4 && ready(&jobs) == jobs.len(), "the next launch is not due: {jobs:?}");

    let returned = Instant::now();
    end(&space.proxy);
    let is_launch =
        |request: &Request| request.at > returned && request.is("create", "jobs") && request.succeeded();
    let launch = space.proxy.seen("a launch after the return", SOON, is_launch).await?;
    let answers = space.proxy.matching(|request| request.at > returned && request.at < launch.at);
    let answering = answers.iter().filter_map(|request| Some(request.answered? - request.at)).sum();
    let own = (launch.at - returned).saturating_sub(answering);
    eprintln!(
        "launched {:?} after the return, of which the API server took {answering:?}",
        launch.at - returned
    );
    ensure!(own <= RETURN * BUSY_MACHINE, "launched only {own:?} after the API server's return");

    space.jobs_when("four workers are ready", SOON, |jobs| ready(jobs) == 4).await?;
    scaler.decides("AtMaximum", SOON).await?;
    let jobs = space.jobs().await?;
    in_order(&jobs, Duration::from_millis(500))?;
    each_once(space, &jobs)?;
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Each part alone, with the others as they should be.
async fn nothing_is_launched_while_one_part_cannot_be_read(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 4 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    let broken = Act::Answer { status: 503, retry_after: None };
    let parts =
        [("list", "jobs", "workers"), ("list", "pods", "workers"), ("get", "configmaps", "state record")];
    for (number, (verb, resource, words)) in (1..).zip(parts) {
        space.jobs_when("one more is ready", SOON, |jobs| ready(jobs) >= number).await?;
        let begun = Instant::now();
        space.proxy.rule(Rule::new(verb, resource, broken));
        // The page may still tell of the part before, and a launch may be under way until it is asked again.
        until(&format!("it is told that {resource} cannot be read"), SOON, async || {
            let refused = |request: &Request| {
                request.is(verb, resource) && request.at >= begun && request.status.is_none()
            };
            let status = scaler.decides("Unknown", SOON).await?;
            let is_told = status["text"].as_str().is_some_and(|text| text.contains(words));
            Ok(is_told && !space.proxy.matching(refused).is_empty())
        })
        .await?;
        let before = space.jobs().await?.len();
        let end = Instant::now() + PART_OUTAGE;
        while Instant::now() < end {
            ensure!(space.jobs().await?.len() == before, "launched without knowing {resource}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        space.proxy.clear();
    }
    space.jobs_when("four workers are ready", SOON, |jobs| ready(jobs) == 4).await?;
    let jobs = space.jobs().await?;
    in_order(&jobs, Duration::from_millis(500))?;
    each_once(space, &jobs)?;
    ends(&mut scaler.process).await?;
    client.close().await
}
