//! A broker and a network that misbehave: nothing is missing, and nothing is called confirmed that is not.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lapin::types::{AMQPValue, FieldTable};
use mayfly_tests::{Bed, Client, Fault, Kind, Way, ids, on_each_release, until};

use super::{Found, LIMIT, Publish, assert_within, exit};

on_each_release!(
    connections_cut_in_mid_window_lose_nothing,
    a_connection_that_stays_away_is_given_up_and_the_account_is_right,
    a_network_that_hangs_is_left_for_a_fresh_connection,
    a_blocked_broker_is_waited_for_and_then_gets_everything,
    a_broker_that_stays_blocked_is_given_up,
    a_full_queue_gets_the_rest_when_there_is_room_again,
    a_queue_that_stays_full_is_given_up_and_the_account_is_right,
    a_restarted_broker_gets_everything,
);

/// After how many bytes each further connection is cut: in its handshake, or in the middle of a window.
const CUTS: [u64; 5] = [700, 33_333, 60_001, 5, 140_000];

async fn connections_cut_in_mid_window_lose_nothing(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    for kind in [Kind::Classic, Kind::Quorum] {
        let queue = bed.queue_name("test-cut");
        client.declare(&queue, kind).await?;
        let proxy = bed.proxy().await?;
        // Longer than the handshake, so that the first connection gets to publishing.
        proxy.set(Fault::CutAfter(20_000));
        let arguments = ["--count", "5000", "--window", "300"];
        let publish = Publish::start(bed, &proxy.url(), &queue, &arguments)?;
        for next in CUTS {
            until("the connection is cut", LIMIT, async || Ok(proxy.fault() == Fault::Cut)).await?;
            proxy.set(Fault::CutAfter(next));
        }
        until("the last cut", LIMIT, async || Ok(proxy.fault() == Fault::Cut)).await?;
        proxy.set(Fault::None);
        let outcome = publish.ends_with(exit::OK).await?;

        let found = Found::take(&client, &queue).await?;
        ids::assert_same("called confirmed", &outcome.confirmed, "in the queue", &found.ids())?;
        let told = outcome.told;
        ensure!(told.confirmed == 5000 && told.not_confirmed == 0 && told.reconnects >= 1, "{told:?}");
        ensure!(found.repeats() <= told.sent_again, "{} twice, but {told:?}", found.repeats());
    }
    Ok(())
}

async fn a_connection_that_stays_away_is_given_up_and_the_account_is_right(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let proxy = bed.proxy().await?;
    proxy.set(Fault::CutAfter(100_000));
    let arguments = ["--count", "5000", "--window", "300", "--reconnect-for", "1s"];
    let publish = Publish::start(bed, &proxy.url(), &bed.queue, &arguments)?;
    let outcome = publish.ends_with(exit::UNAVAILABLE).await?;

    let found = Found::take(&client, &bed.queue).await?;
    assert_within(&outcome.confirmed, &found)?;
    let told = outcome.told;
    ensure!(told.not_confirmed > 0 && told.confirmed > 0, "{told:?}");
    ensure!(told.confirmed + told.not_confirmed + told.not_sent.unwrap_or(0) == 5000, "{told:?}");
    ensure!(
        found.ids().len() <= told.confirmed + told.not_confirmed,
        "{told:?}, found {}",
        found.ids().len()
    );
    ensure!(outcome.log.contains("the broker may have some of them"), "{}", outcome.log);
    Ok(())
}

async fn a_network_that_hangs_is_left_for_a_fresh_connection(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let proxy = bed.proxy().await?;
    let publish = Publish::start(bed, &proxy.url(), &bed.queue, &["--count", "20000"])?;
    until("it publishes", LIMIT, async || Ok(proxy.bytes_to_broker() > 100_000)).await?;
    // Messages arrive, confirms do not: what it does not know it must send again.
    proxy.set(Fault::Hang(Way::ToClient));
    until("it has noticed", LIMIT, async || Ok(publish.process.log()?.contains("trying again"))).await?;
    proxy.set(Fault::None);
    let outcome = publish.ends_with(exit::OK).await?;

    let found = Found::take(&client, &bed.queue).await?;
    ids::assert_same("called confirmed", &outcome.confirmed, "in the queue", &found.ids())?;
    let told = outcome.told;
    ensure!(told.confirmed == 20_000 && told.reconnects == 1 && told.sent_again > 0, "{told:?}");
    ensure!(found.repeats() <= told.sent_again, "{} twice, but {told:?}", found.repeats());
    Ok(())
}

async fn a_blocked_broker_is_waited_for_and_then_gets_everything(bed: &Bed) -> Result<()> {
    let node = bed.own_node().await?;
    let client = node.broker().client().await?;
    client.declare("q", Kind::Quorum).await?;
    node.broker().memory_alarm(true).await?;
    let mut publish = Publish::start(bed, &node.broker().url(), "q", &["--count", "3000"])?;
    let blocked = "the broker has blocked publishing";
    until("it says so", LIMIT, async || Ok(publish.process.log()?.contains(blocked))).await?;
    ensure!(publish.process.ended()?.is_none());
    node.broker().memory_alarm(false).await?;
    let outcome = publish.ends_with(exit::OK).await?;

    ensure!(outcome.log.contains("the broker accepts messages again"), "{}", outcome.log);
    let found = Found::take(&client, "q").await?;
    ids::assert_same("called confirmed", &outcome.confirmed, "in the queue", &found.ids())?;
    let told = outcome.told;
    // It waited on the same connection: nothing needed to be sent twice.
    ensure!((told.confirmed, told.reconnects, told.sent_again) == (3000, 0, 0), "{told:?}");
    ensure!(found.repeats() == 0);
    Ok(())
}

async fn a_broker_that_stays_blocked_is_given_up(bed: &Bed) -> Result<()> {
    let node = bed.own_node().await?;
    let client = node.broker().client().await?;
    client.declare("q", Kind::Classic).await?;
    node.broker().memory_alarm(true).await?;
    let arguments = ["--count", "3000", "--blocked-for", "1s"];
    let outcome =
        Publish::start(bed, &node.broker().url(), "q", &arguments)?.ends_with(exit::TEMPFAIL).await?;
    node.broker().memory_alarm(false).await?;

    let log = outcome.log;
    ensure!(log.contains("memory or disk alarm") && log.contains("next: free memory or disk"), "{log}");
    let told = outcome.told;
    ensure!(told.confirmed + told.not_confirmed + told.not_sent.unwrap_or(0) == 3000, "{told:?}");
    ensure!(told.not_confirmed > 0, "{told:?}");
    // Whatever the broker had read before it stopped reading may be there.
    assert_within(&outcome.confirmed, &Found::take(&client, "q").await?)
}

/// Declares a queue that refuses what is above `length`.
async fn declare_bounded(client: &Client, queue: &str, kind: Kind, length: i64) -> Result<()> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(length));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    client.declare_with(queue, kind, arguments).await
}

async fn a_full_queue_gets_the_rest_when_there_is_room_again(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    for kind in [Kind::Classic, Kind::Quorum] {
        let queue = bed.queue_name("test-full");
        declare_bounded(&client, &queue, kind, 100).await?;
        let arguments = ["--count", "1000", "--window", "150", "--full-for", "50s"];
        let mut publish = Publish::start(bed, &bed.broker.url(), &queue, &arguments)?;
        until("it is full", LIMIT, async || Ok(publish.process.log()?.contains("is full"))).await?;
        ensure!(publish.process.ended()?.is_none());
        let mut found = Found::default();
        until("it has ended", LIMIT, async || {
            found.take_more(&client, &queue).await?;
            Ok(publish.process.ended()?.is_some())
        })
        .await?;
        let outcome = publish.ends_with(exit::OK).await?;

        found.take_more(&client, &queue).await?;
        ids::assert_same("called confirmed", &outcome.confirmed, "taken", &found.ids())?;
        let told = outcome.told;
        ensure!(told.confirmed == 1000 && told.sent_again > 0 && told.reconnects == 0, "{told:?}");
        // What was refused was not taken, so nothing comes twice.
        ensure!(found.repeats() == 0, "{} came twice", found.repeats());
    }
    Ok(())
}

async fn a_queue_that_stays_full_is_given_up_and_the_account_is_right(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    for kind in [Kind::Classic, Kind::Quorum] {
        let queue = bed.queue_name("test-full");
        declare_bounded(&client, &queue, kind, 100).await?;
        let arguments = ["--count", "1000", "--window", "150", "--full-for", "1s"];
        let publish = Publish::start(bed, &bed.broker.url(), &queue, &arguments)?;
        let outcome = publish.ends_with(exit::TEMPFAIL).await?;

        let found = Found::take(&client, &queue).await?;
        ids::assert_same("called confirmed", &outcome.confirmed, "in the queue", &found.ids())?;
        let told = outcome.told;
        ensure!(told.confirmed >= 100 && told.not_confirmed > 0, "{told:?}");
        ensure!(told.confirmed + told.not_confirmed + told.not_sent.unwrap_or(0) == 1000, "{told:?}");
        let log = outcome.log;
        ensure!(log.contains(&format!("queue {queue:?}: the queue is full")), "{log}");
        ensure!(
            log.contains("next: let workers drain it") && log.contains("the broker refused them"),
            "{log}"
        );
    }
    Ok(())
}

async fn a_restarted_broker_gets_everything(bed: &Bed) -> Result<()> {
    let mut node = bed.own_node().await?;
    let client = node.broker().client().await?;
    client.declare("q", Kind::Quorum).await?;
    // RabbitMQ writes the members of a new quorum queue to disk later than it says: killed at once, the
    // queue comes back empty and never elects a leader. An orderly stop writes them.
    node.stop().await?;
    node.start_again().await?;
    let arguments = ["--count", "5000", "--window", "100", "--reconnect-for", "50s"];
    let mut publish = Publish::start(bed, &node.broker().url(), "q", &arguments)?;
    until("it publishes", LIMIT, async || Ok(!publish.confirmed()?.is_empty())).await?;
    node.kill().await?;
    ensure!(publish.process.ended()?.is_none(), "it was done before the broker was killed");
    let before: BTreeSet<_> = publish.confirmed()?;
    node.start_again().await?;
    let outcome = publish.ends_with(exit::OK).await?;
    ensure!(before.is_subset(&outcome.confirmed));

    let client = node.broker().client().await?;
    let found = Found::take(&client, "q").await?;
    ids::assert_same("called confirmed", &outcome.confirmed, "in the queue", &found.ids())?;
    ensure!(outcome.told.confirmed == 5000 && outcome.told.reconnects >= 1, "{:?}", outcome.told);
    Ok(())
}
