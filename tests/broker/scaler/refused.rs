//! Queues that are missing or forbidden: what looking for them costs the broker, and when they are seen again.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use mayfly_tests::{Bed, Broker, Kind, bed::rounds, on_each_release};
use serde_json::json;

use super::{
    LONG, ends, fleet,
    sight::{LATE, all_are},
};

/// What docs/operations.md promises.
const SEEN_AFTER: Duration = Duration::from_secs(10);
/// Between two failing declares for one queue, at least (DESIGN §4: 0.2 a second).
const REFUSED_EVERY: Duration = Duration::from_secs(5);
/// How long looks at a queue that is there are counted, and how often is looked for a new one.
const WATCHED: Duration = Duration::from_secs(6);
const GLANCE: Duration = Duration::from_millis(20);
/// How long they are counted.
const COUNTED: Duration = Duration::from_secs(20);

on_each_release!(
    queues_that_come_back_are_seen_soon_with_the_usual_number_of_channels,
    queues_that_come_back_are_seen_soon_with_few_channels,
    connections_that_are_lost_again_and_again_do_not_multiply_refusals,
    a_connection_with_too_few_channels_is_refused_in_words,
    a_queue_that_is_there_is_asked_for_once_an_interval,
    a_queue_that_is_there_is_asked_for_once_an_interval_beside_many_that_are_missing,
);

async fn queues_that_come_back_are_seen_soon_with_the_usual_number_of_channels(bed: &Bed) -> Result<()> {
    come_back(bed, 128, 2000).await
}

async fn queues_that_come_back_are_seen_soon_with_few_channels(bed: &Bed) -> Result<()> {
    come_back(bed, 16, 800).await
}

/// Half of the queues is there, a quarter is missing and a quarter forbidden; then these come.
async fn come_back(bed: &Bed, channels: u16, full: usize) -> Result<()> {
    let node = bed.own_node().await?;
    let client = node.broker().client().await?;
    let owner = node.broker().client().await?;
    let count = rounds(full);
    let names = |kind: &str, count: usize| (0..count).map(|n| format!("{n}-{kind}")).collect::<Vec<_>>();
    let there = names("there", count / 2);
    let (missing, forbidden) = (names("missing", count / 4), names("forbidden", count / 4));
    for queue in &there {
        client.declare(queue, Kind::Classic).await?;
    }
    for queue in &forbidden {
        // It belongs to this connection alone.
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        owner.channel().queue_declare(queue.as_str().into(), options, FieldTable::default()).await?;
    }
    let all: Vec<_> = [&there, &missing, &forbidden].into_iter().flatten().collect();
    let queues: Vec<_> = all.iter().map(|name| json!({ "name": name })).collect();
    let mut fleet = fleet(bed, "fleet", LONG, &json!({ "queues": queues, "max_workers": 0 }))?;
    fleet.url = format!("{}?channel_max={channels}", node.broker().url());
    let started = Instant::now();
    let mut scaler = fleet.scaler("scaler", &[])?;
    all_are(&scaler, &there, "present", LATE).await?;
    all_are(&scaler, &missing, "missing", LATE).await?;
    all_are(&scaler, &forbidden, "forbidden", LATE).await?;
    let first_seen = started.elapsed();

    // Everything else at the broker is at rest, so that what it refuses is what the scaler asked for.
    let (before, counted) = (refusals(node.broker())?, Instant::now());
    tokio::time::sleep(COUNTED).await;
    let refused = refusals(node.broker())? - before;
    let lasted = counted.elapsed();
    let bad = missing.len() + forbidden.len();
    // Those that are there have a queue for suspects each, which is missing and looked at once a minute.
    ensure!(
        refused <= allowed(bad, lasted)? + there.len(),
        "{refused} refusals in {lasted:?} for {bad} queues"
    );

    owner.close().await?;
    for queue in missing.iter().chain(&forbidden) {
        client.declare(queue, Kind::Classic).await?;
    }
    let came = Instant::now();
    let back = [missing, forbidden].concat();
    all_are(&scaler, &back, "present", LATE).await?;
    let seen = came.elapsed();
    eprintln!(
        "{count} queues on {channels} channels: all seen after {first_seen:.1?}, the last of {bad} that came back \
         after {seen:.1?}, {refused} refusals in {lasted:.1?} for {bad} queues and once a minute {} more",
        there.len()
    );
    // A full run is the measurement; elsewhere other things run beside it.
    ensure!(rounds(20) == 1 || seen < SEEN_AFTER, "seen again after {seen:?}");
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn connections_that_are_lost_again_and_again_do_not_multiply_refusals(bed: &Bed) -> Result<()> {
    let node = bed.own_node().await?;
    let queues: Vec<_> = (0..20).map(|n| format!("missing-{n}")).collect();
    let listed: Vec<_> = queues.iter().map(|name| json!({ "name": name })).collect();
    let mut fleet = fleet(bed, "fleet", LONG, &json!({ "queues": listed, "max_workers": 0 }))?;
    fleet.url = node.broker().url();
    let begun = Instant::now();
    let mut scaler = fleet.scaler("scaler", &[])?;
    all_are(&scaler, &queues, "missing", LATE).await?;
    for _ in 0..5 {
        node.broker().ctl(&["close_all_connections", "for a test"]).await?;
        all_are(&scaler, &queues, "missing", LATE).await?;
    }
    let (refused, most) = (refusals(node.broker())?, allowed(queues.len(), begun.elapsed())?);
    ensure!(refused <= most, "{refused} refusals, not {most}");
    ends(&mut scaler.process).await
}

async fn a_connection_with_too_few_channels_is_refused_in_words(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Classic).await?;
    let queues: Vec<_> = std::iter::once(bed.queue.clone())
        .chain((0..300).map(|n| format!("{}-{n}", bed.queue_name("missing"))))
        .map(|name| json!({ "name": name }))
        .collect();
    let mut fleet = fleet(bed, "fleet", LONG, &json!({ "queues": queues, "max_workers": 0 }))?;
    fleet.url = format!("{}?channel_max=1", bed.broker.url());
    let (text, code) = fleet.check("one", &["--connect"]).await?;
    ensure!(code == Some(78), "exit code {code:?}: {text}");
    ensure!(text.contains("allows 1 channels on a connection, 2 are needed: raise channel_max"), "{text}");
    // Two do, though it takes long; and a refusal leaves the queues behind it their answers.
    fleet.url = format!("{}?channel_max=2", bed.broker.url());
    let (text, _) = fleet.check("two", &["--connect"]).await?;
    ensure!(text.contains("connection: 2 channels at most (channel_max); more than 50 queues"), "{text}");
    ensure!(text.matches(": missing;").count() == 301 && !text.contains("no answer"), "{text}");
    let mut scaler = fleet.scaler("scaler", &[])?;
    all_are(&scaler, std::slice::from_ref(&bed.queue), "present", LATE).await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_queue_that_is_there_is_asked_for_once_an_interval(bed: &Bed) -> Result<()> {
    asked_for_once_an_interval(bed, 0).await
}

async fn a_queue_that_is_there_is_asked_for_once_an_interval_beside_many_that_are_missing(
    bed: &Bed,
) -> Result<()> {
    asked_for_once_an_interval(bed, 120).await
}

/// So many missing queues use up the few channels again and again.
async fn asked_for_once_an_interval(bed: &Bed, missing: usize) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Classic).await?;
    let queues: Vec<_> = std::iter::once(bed.queue.clone())
        .chain((0..missing).map(|n| format!("{}-{n}", bed.queue_name("missing"))))
        .map(|name| json!({ "name": name }))
        .collect();
    let mut fleet = fleet(bed, "fleet", LONG, &json!({ "queues": queues, "max_workers": 0 }))?;
    fleet.url = format!("{}?channel_max=4", bed.broker.url());
    let mut scaler = fleet.scaler("scaler", &[("MAYFLY_CHECK_INTERVAL", "1s")])?;
    all_are(&scaler, std::slice::from_ref(&bed.queue), "present", LATE).await?;
    let mut looks = BTreeSet::new();
    let begun = Instant::now();
    while begun.elapsed() < WATCHED {
        let status = scaler.status().await?;
        looks.insert(status["queues"][&bed.queue]["facts"]["known"]["at"].to_string());
        tokio::time::sleep(GLANCE).await;
    }
    // An interval is shorter by a tenth at most.
    let most = usize::try_from(begun.elapsed().as_millis() / 900)? + 2;
    ensure!(looks.len() <= most, "{} looks in {:?}", looks.len(), begun.elapsed());
    ensure!(looks.len() > 2, "{looks:?}");
    ends(&mut scaler.process).await?;
    client.close().await
}

/// How many declares for so many queues may fail while `lasted` passes.
fn allowed(queues: usize, lasted: Duration) -> Result<usize> {
    let each = usize::try_from(lasted.as_millis().div_ceil(REFUSED_EVERY.as_millis()))?;
    Ok(queues * (each + 1))
}

/// How many declares the broker has refused so far: each costs it a line of its log.
fn refusals(broker: &Broker) -> Result<usize> {
    let log = std::fs::read_to_string(broker.log_file())?;
    Ok(log.matches("operation queue.declare caused a channel exception").count())
}
