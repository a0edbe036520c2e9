//! Workers with a ledger: what is known as done never runs again, whoever dies when; with a transaction its
//! effect happens once.

mod effects;
mod steps;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lapin::{
    BasicProperties,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable},
};
use mayfly_service::{report::ExitReason, tls::TlsFiles};
use mayfly_tests::{
    Bed, Client, Fault, Signal,
    ids::{self, Ids},
    on_each_release,
    store::{self, Store},
    until,
    wire::{Properties, Property, Wire},
};
use mayfly_worker::ledger::{Claim, Claimed, Key, Ledger, Terms};

use super::{Crew, LIMIT, NOTE_BEGUN, NOTE_DONE, WAIT_FOR_GO, Worker, exec, exit};

on_each_release!(
    what_is_claimed_elsewhere_waits_in_a_retry_queue_and_is_not_tried,
    work_whose_claim_was_taken_over_is_ended_and_not_recorded,
    a_renewed_claim_outlives_its_lease,
    while_the_ledger_is_down_nothing_begins_and_nothing_is_lost,
    a_done_message_waits_for_a_ledger_that_comes_back,
    a_ledger_that_is_down_can_be_done_without,
    a_ledger_that_refuses_us_ends_the_worker_at_once,
    work_goes_on_when_the_connection_is_lost_and_is_known_when_the_message_comes_again,
    messages_without_an_id_run_without_the_ledger_unless_a_header_holds_it,
    messages_whose_ids_are_no_utf8_are_never_taken_for_each_other,
);

const KINDS: [store::Kind; 2] = [store::Kind::Redis, store::Kind::Postgres];
/// As short as the worker accepts.
const LEASE: (&str, &str) = ("MAYFLY_LEDGER_LEASE", "3s");
const TERMS: Terms = Terms { lease: Duration::from_secs(60), keep: Duration::from_secs(600) };

/// A worker that uses the ledger in `store`.
fn start(crew: &Crew<'_>, store: &Store, name: &str, arguments: &[&str]) -> Result<Worker> {
    crew.start_with(name, arguments, &[("MAYFLY_LEDGER_URL", &store.url()), LEASE])
}

/// The whole topology of a queue.
async fn topology(crew: &Crew<'_>, queue: &str) -> Result<()> {
    let name = format!("declaring-{queue}");
    let mut worker = crew.exec(&name, queue, &["--declare", "--max-idle", "1ms"], "exit 1")?;
    worker.ends_with(exit::OK).await.map(drop)
}

/// The ledger as a worker of the queue sees it.
fn ledger(store: &Store) -> Result<Ledger> {
    Ok(Ledger::new(&store.url().parse()?, "the test", TERMS, TlsFiles::default()))
}

fn key(queue: &str, id: &str) -> Key {
    Key { vhost: "/".to_owned(), queue: queue.to_owned(), id: id.to_owned() }
}

async fn take(ledger: &Ledger, queue: &str, id: &str) -> Result<Claim> {
    match ledger.claim(&key(queue, id)).await? {
        Claimed::Ours(claim) => Ok(claim),
        other => bail!("{id} is {other:?}"),
    }
}

async fn what_is_claimed_elsewhere_waits_in_a_retry_queue_and_is_not_tried(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    let store = Store::start(store::Kind::Postgres).await?;
    let ledger = ledger(&store)?;
    topology(&crew, &bed.queue).await?;
    let claims = [take(&ledger, &bed.queue, "done").await?, take(&ledger, &bed.queue, "given-up").await?];
    for id in ["done", "given-up"] {
        client.publish_one(&bed.queue, id, b"").await?;
    }
    let arguments = exec(&bed.queue, &["--max-idle", "10s", "--concurrency", "2"], NOTE_DONE);
    let mut worker = start(&crew, &store, "worker", &arguments)?;
    client.until_ready(&format!("{}.retry.5s", bed.queue), 2, LIMIT).await?;
    ensure!(crew.notes("done")?.0.is_empty(), "it ran beside its other holder");
    ensure!(ledger.commit(&claims[0]).await?);
    ledger.release(&claims[1]).await?;
    let report = worker.ends_with(exit::OK).await?;
    let done = crew.notes("done")?;
    let [only] = &done.0[..] else { bail!("{done:?}") };
    ensure!(only.id == "given-up" && only.attempt == 1, "{done:?}");
    ensure!((report.done, report.known, report.retried) == (1, 1, 2), "{report:?}");
    crew.nothing_is_left(&[&bed.queue]).await
}

async fn work_whose_claim_was_taken_over_is_ended_and_not_recorded(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    let store = Store::start(store::Kind::Redis).await?;
    let ledger = ledger(&store)?;
    topology(&crew, &bed.queue).await?;
    client.publish_one(&bed.queue, "m", b"").await?;
    let script = format!("{NOTE_BEGUN}; {WAIT_FOR_GO}; {NOTE_DONE}");
    let arguments = exec(&bed.queue, &["--max-idle", "10s"], &script);
    let mut worker = start(&crew, &store, "worker", &arguments)?;
    crew.noted("begun", 1).await?;
    // It sleeps for longer than its lease.
    worker.process.signal(Signal::STOP)?;
    let taken_over = async || Ok(matches!(ledger.claim(&key(&bed.queue, "m")).await?, Claimed::Ours(_)));
    until("its claim expires", LIMIT, taken_over).await?;
    worker.process.signal(Signal::CONT)?;
    let ended = async || Ok(crew.handlers("worker", &worker).is_empty());
    until("its handler is ended", LIMIT, ended).await?;
    ensure!(!ledger.is_done(&key(&bed.queue, "m")).await?, "recorded by who had lost it");
    client.until_ready(&format!("{}.retry.5s", bed.queue), 1, LIMIT).await?;
    worker.process.signal(Signal::TERM)?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!((report.done, report.retried) == (0, 1), "{report:?}");
    ensure!(crew.notes("done")?.0.is_empty());
    Ok(())
}

async fn a_renewed_claim_outlives_its_lease(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    let store = Store::start(store::Kind::Postgres).await?;
    let ledger = ledger(&store)?;
    topology(&crew, &bed.queue).await?;
    client.publish_one(&bed.queue, "m", b"").await?;
    let script = format!("{NOTE_BEGUN}; sleep 8; {NOTE_DONE}");
    let mut worker = start(&crew, &store, "worker", &exec(&bed.queue, &["--max-idle", "100ms"], &script))?;
    crew.noted("begun", 1).await?;
    while crew.notes("done")?.0.is_empty() && worker.process.ended()?.is_none() {
        let claimed = ledger.claim(&key(&bed.queue, "m")).await?;
        ensure!(matches!(claimed, Claimed::Elsewhere | Claimed::Done), "{claimed:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let report = worker.ends_with(exit::OK).await?;
    ensure!((report.done, report.retried) == (1, 0), "{report:?}");
    ensure!(ledger.is_done(&key(&bed.queue, "m")).await?);
    Ok(())
}

async fn while_the_ledger_is_down_nothing_begins_and_nothing_is_lost(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    for kind in KINDS {
        let crew = Crew::new(bed);
        let mut store = Store::start(kind).await?;
        let queue = bed.queue_name("down");
        topology(&crew, &queue).await?;
        let script = NOTE_DONE.replace("/done", &format!("/{queue}"));
        let options = ["--max-idle", "2s", "--concurrency", "3", "--prefetch", "4"];
        let mut worker = start(&crew, &store, &format!("worker-{kind:?}"), &exec(&queue, &options, &script))?;
        worker.is("ready").await?;
        store.kill().await?;
        let published = client.publish(&queue, 10).await?;
        let told = async || Ok(worker.process.log()?.contains("the ledger does not answer"));
        until("the worker says why it waits", LIMIT, told).await?;
        ensure!(crew.notes(&queue)?.0.is_empty(), "it began without its ledger");
        store.start_again().await?;
        let report = worker.ends_with(exit::OK).await?;
        let done = crew.notes(&queue)?;
        ids::assert_same("published", &published, "done", &done.ids())?;
        ensure!(done.repeats() == 0 && report.done == 10 && report.unrecorded == 0, "{report:?} {done:?}");
        crew.nothing_is_left(&[&queue]).await?;
    }
    Ok(())
}

async fn a_done_message_waits_for_a_ledger_that_comes_back(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    let mut store = Store::start(store::Kind::Redis).await?;
    topology(&crew, &bed.queue).await?;
    client.publish_one(&bed.queue, "m", b"").await?;
    let script = format!("{NOTE_BEGUN}; {WAIT_FOR_GO}; {NOTE_DONE}");
    let arguments = exec(&bed.queue, &["--max-idle", "1s"], &script);
    let url = store.url();
    let mut worker = crew.start_with("worker", &arguments, &[("MAYFLY_LEDGER_URL", &url)])?;
    crew.noted("begun", 1).await?;
    store.kill().await?;
    crew.go()?;
    let told = async || Ok(worker.process.log()?.contains("cannot record a done message"));
    until("the worker says that it cannot record", LIMIT, told).await?;
    ensure!(bed.broker.queue(&bed.queue).await?.context("the queue")?.ready == 0);
    ensure!(worker.process.settled()?.is_empty(), "settled before it was recorded");
    store.start_again().await?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!((report.done, report.unrecorded) == (1, 0), "{report:?}");
    ensure!(ledger(&store)?.is_done(&key(&bed.queue, "m")).await?);
    Ok(())
}

async fn a_ledger_that_is_down_can_be_done_without(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    let mut store = Store::start(store::Kind::Redis).await?;
    topology(&crew, &bed.queue).await?;
    let options = ["--max-idle", "7s", "--ledger-down", "ignore"];
    let mut worker = start(&crew, &store, "worker", &exec(&bed.queue, &options, NOTE_DONE))?;
    worker.is("ready").await?;
    store.kill().await?;
    let mut published = client.publish(&bed.queue, 10).await?;
    crew.noted("done", 10).await?;
    ensure!(worker.process.log()?.contains("is done without"), "not told");
    store.start_again().await?;
    let ledger = ledger(&store)?;
    // Asked again after some seconds.
    let recorded = async || {
        let id = format!("later-{}", published.len());
        client.publish_one(&bed.queue, &id, b"").await?;
        published.insert(id.clone());
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(ledger.is_done(&key(&bed.queue, &id)).await?)
    };
    until("messages are recorded again", LIMIT, recorded).await?;
    let report = worker.ends_with(exit::OK).await?;
    ids::assert_same("published", &published, "done", &crew.notes("done")?.ids())?;
    ensure!(report.unrecorded >= 10 && report.unrecorded < report.done, "{report:?}");
    Ok(())
}

async fn a_ledger_that_refuses_us_ends_the_worker_at_once(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    topology(&crew, &bed.queue).await?;
    for kind in KINDS {
        let store = Store::start(kind).await?;
        let url = store.url().replace(store::PASSWORD, "hunter3");
        let arguments = exec(&bed.queue, &[], "exit 1");
        let name = format!("{kind:?}");
        let mut worker = crew.start_with(&name, &arguments, &[("MAYFLY_LEDGER_URL", &url)])?;
        let report = worker.ends_with(exit::CONFIG).await?;
        ensure!(report.reason == ExitReason::Misconfigured, "{report:?}");
        let told = format!("{report:?} {}", worker.process.log()?);
        ensure!(told.contains("ledger refuses us") && !told.contains("hunter"), "{told}");
    }
    Ok(())
}

async fn work_goes_on_when_the_connection_is_lost_and_is_known_when_the_message_comes_again(
    bed: &Bed,
) -> Result<()> {
    let client = bed.client().await?;
    let proxy = bed.proxy().await?;
    let crew = Crew::new(bed).over(proxy.url());
    let store = Store::start(store::Kind::Postgres).await?;
    topology(&crew, &bed.queue).await?;
    client.publish_one(&bed.queue, "m", b"").await?;
    let script = format!("{NOTE_BEGUN}; {WAIT_FOR_GO}; {NOTE_DONE}");
    let mut worker = start(&crew, &store, "worker", &exec(&bed.queue, &["--max-idle", "8s"], &script))?;
    crew.noted("begun", 1).await?;
    proxy.set(Fault::Cut);
    let told = async || Ok(worker.process.log()?.contains("connection lost"));
    until("the worker notices", LIMIT, told).await?;
    client.until_ready(&bed.queue, 1, LIMIT).await?;
    proxy.set(Fault::None);
    crew.go()?;
    let report = worker.ends_with(exit::OK).await?;
    let (begun, done) = (crew.notes("begun")?, crew.notes("done")?);
    ensure!(begun.0.len() == 1 && done.0.len() == 1, "{begun:?} {done:?}");
    ensure!(report.known == 1, "{report:?}");
    crew.nothing_is_left(&[&bed.queue]).await
}

async fn messages_without_an_id_run_without_the_ledger_unless_a_header_holds_it(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    let store = Store::start(store::Kind::Redis).await?;
    topology(&crew, &bed.queue).await?;
    let publish = async |header: Option<&str>| -> Result<()> {
        let mut headers = FieldTable::default();
        if let Some(id) = header {
            headers.insert("x-order".into(), AMQPValue::LongString(id.into()));
        }
        let properties = BasicProperties::default().with_headers(headers);
        let options = BasicPublishOptions::default();
        let queue = bed.queue.as_str().into();
        client.channel().basic_publish("".into(), queue, options, b"", properties).await?.await?;
        Ok(())
    };
    for header in [None, None, Some("7"), Some("7"), Some("8")] {
        publish(header).await?;
    }
    client.until_ready(&bed.queue, 5, LIMIT).await?;
    let options = ["--max-idle", "1s", "--id-header", "x-order"];
    let script = r#"echo "x 0 1" >>"$DIR/done""#;
    let mut worker = start(&crew, &store, "worker", &exec(&bed.queue, &options, script))?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!((report.done, report.known) == (4, 1), "{report:?}");
    ensure!(crew.notes("done")?.0.len() == 4);
    let warnings = worker.process.log()?.matches("a message has no message_id that is text").count();
    ensure!(warnings == 1, "{warnings} warnings");
    // Retried, it gets a message_id of ours, and is still the same.
    publish(Some("9")).await?;
    let options = ["--max-idle", "8s", "--id-header", "x-order"];
    let failing_once = r#"[ "$MAYFLY_ATTEMPT" = 2 ] || exit 75; echo "x 0 2" >>"$DIR/second""#;
    let mut worker = start(&crew, &store, "retrying", &exec(&bed.queue, &options, failing_once))?;
    crew.noted("second", 1).await?;
    publish(Some("9")).await?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!((report.retried, report.done, report.known) == (1, 1, 1), "{report:?}");
    let records = store.records().await?;
    ensure!(records.lines().filter(|line| line.starts_with("mayfly:")).count() == 3, "{records}");
    Ok(())
}

async fn messages_whose_ids_are_no_utf8_are_never_taken_for_each_other(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    let mut wire = Wire::connect(&bed.broker).await?;
    for kind in KINDS {
        let store = Store::start(kind).await?;
        let queue = bed.queue_name("test-worker");
        topology(&crew, &queue).await?;
        // What is left of the first three is the same.
        for id in [&b"id-\xff"[..], b"id-\xfe", b"id-\x1a", b"good", b"good"] {
            let properties = Properties::default().with(Property::MessageId, id);
            wire.publish("", queue.as_bytes(), &properties, b"").await?;
        }
        let file = format!("done-{kind:?}");
        let script =
            format!(r#"echo "x 0 $MAYFLY_ATTEMPT" >>"$DIR/{file}"; [ "$MAYFLY_ATTEMPT" = 2 ] || exit 75"#);
        let name = format!("worker-{kind:?}");
        let mut worker = start(&crew, &store, &name, &exec(&queue, &["--max-idle", "8s"], &script))?;
        let report = worker.ends_with(exit::OK).await?;
        ensure!((report.retried, report.done, report.known) == (5, 4, 1), "{kind:?}: {report:?}");
        ensure!(crew.notes(&file)?.0.len() == 9, "{kind:?}");
        let warnings = worker.process.log()?.matches("a message has no message_id that is text").count();
        ensure!(warnings == 1, "{warnings} warnings");
    }
    client.close().await
}

/// All published messages with a body each.
async fn publish_all(client: &Client, queue: &str, prefix: &str, count: usize, body: &[u8]) -> Result<Ids> {
    let ids: Ids = (0..count).map(|number| format!("{prefix}-{number}")).collect();
    for id in &ids {
        client.publish_one(queue, id, body).await?;
    }
    Ok(ids)
}
