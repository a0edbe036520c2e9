//! Consumers as the broker sees them: who is served first, and who never is.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use lapin::{
    options::{BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use mayfly_service::{contract, report::ExitReason};
use mayfly_tests::{Bed, Client, Kind, Signal, on_each_release, until};
use serde_json::Value;

use super::{Crew, LIMIT, exit};

on_each_release!(a_worker_that_is_never_served_says_so, the_broker_knows_which_worker_to_serve_first,);

async fn a_worker_that_is_never_served_says_so(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    for kind in [Kind::Classic, Kind::Quorum] {
        let crew = Crew::new(bed);
        let queue = bed.queue_name("test-single");
        let mut arguments = FieldTable::default();
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        client.declare_with(&queue, kind, arguments).await?;
        // The one that is served, and takes its time over the first.
        let holder = bed.client().await?;
        holder.channel().basic_qos(1, BasicQosOptions::default()).await?;
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let consume = holder.channel().basic_consume(queue.as_str().into(), "only".into(), options, none);
        let mut only = consume.await?;
        client.publish(&queue, 3).await?;
        let held = only.next().await.context("no message")??;

        let arguments = ["sleep", "--queue", &queue, "--max-idle", "100ms"];
        let mut worker = crew.start(&format!("worker-{kind:?}"), &arguments)?;
        let report = worker.ends_with(exit::INTERNAL).await?;
        ensure!(report.reason == ExitReason::Starved && report.messages == 0, "{report:?}");
        ensure!(
            report.detail.as_deref().unwrap_or_default().contains("single active consumer"),
            "{report:?}"
        );
        drop(held);
        holder.close().await?;
        client.until_ready(&queue, 3, LIMIT).await?;
        crew.nothing_is_left(&[]).await?;
    }
    client.close().await
}

async fn the_broker_knows_which_worker_to_serve_first(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    for kind in [Kind::Classic, Kind::Quorum] {
        lower_slots_are_served_first(bed, &crew, &client, kind).await?;
    }
    client.close().await
}

async fn lower_slots_are_served_first(bed: &Bed, crew: &Crew<'_>, client: &Client, kind: Kind) -> Result<()> {
    let queue = bed.queue_name("test-packing");
    client.declare(&queue, kind).await?;
    let arguments = ["sleep", "--queue", &queue, "--for", "1ms", "--prefetch"];
    let start = |name: &str, prefetch: &str, more: &[&str], slot: Option<&str>| {
        let arguments = [&arguments[..], &[prefetch], more].concat();
        let slot: Vec<_> = slot.map(|slot| (contract::SLOT, slot)).into_iter().collect();
        crew.start_with(&format!("{kind:?}-{name}"), &arguments, &slot)
    };
    // The prefetch tells them apart.
    let workers = [
        start("first", "10", &[], Some("0"))?,
        start("fourth", "11", &[], Some("3"))?,
        start("by-hand", "12", &[], None)?,
        start("no-packing", "13", &["--no-packing"], Some("5"))?,
    ];
    for worker in &workers {
        worker.is("ready").await?;
    }
    let listed = bed.broker.consumers().await?;
    let ours = listed.iter().filter(|it| it["queue_name"] == queue.as_str());
    let mut priorities = BTreeMap::new();
    for consumer in ours {
        ensure!(consumer["ack_required"] == true, "{consumer}");
        let arguments = consumer["arguments"].as_array().context("no arguments")?;
        let priority = arguments.iter().find(|it| it[0] == "x-priority").map(|it| it[2].clone());
        priorities.insert(consumer["prefetch_count"].as_i64().context("no prefetch")?, priority);
    }
    let expected = [(10, 0), (11, -3), (12, -1000), (13, 0)];
    let expected: BTreeMap<i64, _> = expected.map(|(key, it)| (key, Some(Value::from(it)))).into();
    ensure!(priorities == expected, "{priorities:?}");

    // And it does: while all are free, everything goes to the lowest slot.
    let [mut first, mut fourth, mut by_hand, mut no_packing] = workers;
    no_packing.process.signal(Signal::TERM)?;
    no_packing.ends_with(exit::OK).await?;
    for count in 1..=10 {
        client.publish(&queue, 1).await?;
        let done = async || Ok(first.process.done_ids()?.len() == count);
        until("the first has done it", LIMIT, done).await?;
    }
    for worker in [&mut first, &mut fourth, &mut by_hand] {
        worker.process.signal(Signal::TERM)?;
        worker.ends_with(exit::OK).await?;
    }
    crew.nothing_is_left(&[&queue]).await
}
