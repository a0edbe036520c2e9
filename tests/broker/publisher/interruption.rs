//! A publisher that is stopped half-way: what it has said to be confirmed is at the broker.

use anyhow::{Result, ensure};
use mayfly_tests::{Bed, Fault, Kind, Signal, Way, ids, on_each_release, until};

use super::{Found, LIMIT, Publish, assert_within, exit};

on_each_release!(
    an_interrupted_publisher_finishes_its_window_and_tells_the_rest,
    an_interrupted_publisher_that_hears_nothing_tells_what_is_uncertain,
    a_second_signal_ends_it_at_once,
    a_killed_publisher_leaves_a_file_of_ids_that_the_broker_has,
);

const MANY: &str = "500000";

/// A publisher in the middle of [`MANY`] messages.
async fn halfway(bed: &Bed, url: &str, queue: &str) -> Result<Publish> {
    let mut publish = Publish::start(bed, url, queue, &["--count", MANY])?;
    until("some are confirmed", LIMIT, async || Ok(publish.confirmed()?.len() > 1000)).await?;
    ensure!(publish.process.ended()?.is_none());
    Ok(publish)
}

async fn an_interrupted_publisher_finishes_its_window_and_tells_the_rest(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    for (kind, signal) in [(Kind::Classic, Signal::INT), (Kind::Quorum, Signal::TERM)] {
        let queue = bed.queue_name("test-interrupted");
        client.declare(&queue, kind).await?;
        let publish = halfway(bed, &bed.broker.url(), &queue).await?;
        publish.process.signal(signal)?;
        let outcome = publish.ends_with(exit::TEMPFAIL).await?;

        let found = Found::take(&client, &queue).await?;
        ids::assert_same("called confirmed", &outcome.confirmed, "in the queue", &found.ids())?;
        let told = outcome.told;
        ensure!(told.not_confirmed == 0 && told.sent_again == 0, "{told:?}");
        ensure!(told.confirmed + told.not_sent.unwrap_or(0) == 500_000, "{told:?}");
        ensure!(outcome.log.contains("error: interrupted; "), "{}", outcome.log);
    }
    Ok(())
}

async fn an_interrupted_publisher_that_hears_nothing_tells_what_is_uncertain(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let proxy = bed.proxy().await?;
    let publish = halfway(bed, &proxy.url(), &bed.queue).await?;
    proxy.set(Fault::Hang(Way::ToClient));
    publish.process.signal(Signal::INT)?;
    let outcome = publish.ends_with(exit::TEMPFAIL).await?;

    let found = Found::take(&client, &bed.queue).await?;
    assert_within(&outcome.confirmed, &found)?;
    let told = outcome.told;
    ensure!(told.not_confirmed > 0, "{told:?}");
    ensure!(
        found.ids().len() <= told.confirmed + told.not_confirmed,
        "{told:?}, found {}",
        found.ids().len()
    );
    ensure!(outcome.log.contains("the broker may have some of them"), "{}", outcome.log);
    Ok(())
}

async fn a_second_signal_ends_it_at_once(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let proxy = bed.proxy().await?;
    let publish = halfway(bed, &proxy.url(), &bed.queue).await?;
    proxy.set(Fault::Hang(Way::Both));
    publish.process.signal(Signal::INT)?;
    until("the first signal is seen", LIMIT, async || Ok(publish.process.log()?.contains("signal received")))
        .await?;
    publish.process.signal(Signal::INT)?;
    let outcome = publish.ends_with(exit::TEMPFAIL).await?;
    proxy.set(Fault::None);
    assert_within(&outcome.confirmed, &Found::take(&client, &bed.queue).await?)
}

async fn a_killed_publisher_leaves_a_file_of_ids_that_the_broker_has(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let mut publish = halfway(bed, &bed.broker.url(), &bed.queue).await?;
    publish.process.kill().await?;
    let confirmed = publish.confirmed()?;
    ensure!(confirmed.len() > 1000);
    assert_within(&confirmed, &Found::take(&client, &bed.queue).await?)
}
