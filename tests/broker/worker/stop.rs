//! SIGTERM: what has not begun goes back, what has may finish, and nothing of a handler runs any more when
//! its message is somebody else's.

use std::{collections::VecDeque, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use lapin::{
    options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions},
    types::{AMQPValue, FieldTable},
};
use mayfly_service::report::ExitReason;
use mayfly_tests::{
    Bed, Kind, Release, Signal,
    bed::rounds,
    ids::{self, Ids},
    node::free_port,
    on_each_release, until,
};

use super::{
    Crew, Dice, LIMIT, NOTE_BEGUN, NOTE_DONE, STUBBORN, WAIT_FOR_GO, both, declare, exit, is_locked,
};

on_each_release!(
    a_signal_gives_back_what_has_not_begun_and_finishes_the_rest,
    workers_stopped_at_random_instants_lose_nothing_and_do_nothing_twice,
    a_message_is_given_back_only_when_nothing_of_its_handler_runs,
    a_second_signal_ends_it_at_once_and_nothing_of_it_is_left,
    a_signal_ends_a_worker_that_waits_for_its_broker,
    the_first_process_of_a_container_obeys_signals_too,
    what_a_give_back_costs_is_what_each_broker_makes_of_it,
);

async fn a_signal_gives_back_what_has_not_begun_and_finishes_the_rest(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    for (kind, queue) in both(bed, &client).await? {
        let crew = Crew::new(bed);
        let published = client.publish(&queue, 10).await?;
        let script = format!("{NOTE_BEGUN}; {WAIT_FOR_GO}; {NOTE_DONE}");
        let name = format!("first-{kind:?}");
        let options = ["--concurrency", "2", "--prefetch", "6"];
        let mut first = crew.exec(&name, &queue, &options, &script)?;
        crew.noted("begun", 2).await?;
        client.until_ready(&queue, 4, LIMIT).await?;
        first.process.signal(Signal::TERM)?;
        // While both handlers go on.
        client.until_ready(&queue, 8, LIMIT).await?;
        ensure!(!crew.handlers(&name, &first).is_empty() && first.process.ended()?.is_none());
        crew.go()?;
        let report = first.ends_with(exit::OK).await?;
        ensure!(report.reason == ExitReason::AskedToStop, "{report:?}");
        ensure!((report.messages, report.done, report.given_back) == (6, 2, 4), "{report:?}");
        ensure!(client.depth(&queue).await?.ready == 8);

        let mut second = crew.exec(&format!("second-{kind:?}"), &queue, &["--max-idle", "1s"], &script)?;
        second.ends_with(exit::OK).await?;
        let done = crew.notes("done")?;
        ids::assert_same("published", &published, "done", &done.ids())?;
        ensure!(done.0.len() == 10, "{done:?}");
        crew.nothing_is_left(&[&queue]).await?;
        for file in ["begun", "done", "go"] {
            fs::remove_file(bed.directory().join(file))?;
        }
    }
    client.close().await
}

async fn workers_stopped_at_random_instants_lose_nothing_and_do_nothing_twice(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    for (kind, queue) in both(bed, &client).await? {
        let seed = 0x5709 + u64::from(kind == Kind::Quorum);
        let stops = rounds(200);
        let (mut dice, mut published) = (Dice(seed), Ids::new());
        let (mut messages, mut done, mut given_back) = (0, 0, 0);
        let file = format!("{queue}.done");
        let script = format!("sleep 0.01; {NOTE_DONE}").replace("/done", &format!("/{file}"));
        let start = |number: usize| {
            let options = ["--concurrency", "2", "--prefetch", "6"];
            crew.exec(&format!("{queue}-{number}"), &queue, &options, &script)
        };
        let mut workers = VecDeque::from([start(0)?, start(1)?]);
        for number in 2..stops + 4 {
            if number < stops + 2 {
                published.extend(client.publish(&queue, 8).await?);
                workers.push_back(start(number)?);
            } else {
                let all = async || Ok(crew.notes(&file)?.ids() == published);
                until("all are done", LIMIT, all).await?;
            }
            let mut worker = workers.pop_front().context("a worker")?;
            worker.is("ready").await?;
            tokio::time::sleep(dice.moment(Duration::from_millis(40))).await;
            worker.process.signal(Signal::TERM)?;
            let report = worker.ends_with(exit::OK).await?;
            ensure!(report.reason == ExitReason::AskedToStop, "{report:?}");
            messages += report.messages;
            done += report.done;
            given_back += report.given_back;
        }
        let noted = crew.notes(&file)?;
        eprintln!(
            "{} {kind:?}, seed {seed:#x}: {} published, {stops} stops, {given_back} given back, done again {}",
            bed.release,
            published.len(),
            noted.repeats()
        );
        ids::assert_same("published", &published, "done", &noted.ids())?;
        ensure!(noted.repeats() == 0, "done again: {:?}", noted.count());
        ensure!(done == published.len() as u64 && messages == done + given_back);
        crew.nothing_is_left(&[&queue]).await?;
    }
    client.close().await
}

/// Handlers at a time.
const BATCH: usize = 10;

async fn a_message_is_given_back_only_when_nothing_of_its_handler_runs(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    let script = format!("{STUBBORN}; wait");
    let concurrency = BATCH.to_string();
    let options = ["--concurrency", &concurrency, "--grace", "100ms"];
    for (kind, queue) in both(bed, &client).await? {
        for batch in 0..rounds(200) / BATCH {
            let begun = crew.notes("begun")?.0.len();
            let published = client.publish(&queue, BATCH).await?;
            let mut worker = crew.exec(&format!("{kind:?}-{batch}"), &queue, &options, &script)?;
            crew.noted("begun", begun + BATCH).await?;
            let held = published.iter().filter(|id| is_locked(&lock(bed, id)).unwrap_or(false)).count();
            ensure!(held == BATCH, "only {held} locks are held: the test would see nothing");
            let next = next_deliveries(bed, &queue, &published);
            let signalled =
                async {
                    until("the next one is there", LIMIT, async || {
                        Ok(client.depth(&queue).await?.consumers == 2)
                    })
                    .await?;
                    worker.process.signal(Signal::TERM)
                };
            futures_util::future::try_join(next, signalled).await?;
            let report = worker.ends_with(exit::OK).await?;
            ensure!(report.given_back == BATCH as u64, "{report:?}");
        }
        crew.nothing_is_left(&[&queue]).await?;
    }
    ensure!(!bed.directory().join("overlaps").exists());
    client.close().await
}

fn lock(bed: &Bed, id: &str) -> std::path::PathBuf {
    bed.directory().join(format!("lock-{id}"))
}

/// Consumes `expected` messages; at the moment of each delivery nobody may hold the lock of its last handler.
pub(super) async fn next_deliveries(bed: &Bed, queue: &str, expected: &Ids) -> Result<()> {
    let client = bed.client().await?;
    let options = BasicConsumeOptions::default();
    let consume = client.channel().basic_consume(queue.into(), "next".into(), options, FieldTable::default());
    let mut consumer = consume.await?;
    let mut delivered = Ids::new();
    let all = async {
        while delivered != *expected {
            let delivery = consumer.next().await.context("the consumer ended")??;
            let id = delivery.properties.message_id().as_ref().context("no id")?.to_string();
            ensure!(!is_locked(&lock(bed, &id))?, "{id} is here while its last handler runs");
            delivery.ack(BasicAckOptions::default()).await?;
            delivered.insert(id);
        }
        Ok(())
    };
    tokio::time::timeout(LIMIT, all).await.context("some are never delivered")??;
    client.close().await
}

async fn a_second_signal_ends_it_at_once_and_nothing_of_it_is_left(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    declare(&client, &bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 3).await?;
    let options = ["--concurrency", "2", "--prefetch", "3", "--grace", "1h"];
    let mut worker = crew.exec("worker", &bed.queue, &options, &format!("{STUBBORN}; wait"))?;
    crew.noted("begun", 2).await?;
    worker.process.signal(Signal::TERM)?;
    worker.is("draining").await?;
    worker.process.signal(Signal::TERM)?;
    let report = worker.ends_with(exit::INTERNAL).await?;
    ensure!(crew.running().is_empty(), "{}", super::describe(&crew.running()));
    ensure!(report.reason == ExitReason::Aborted && report.given_back == 3, "{report:?}");
    client.until_ready(&bed.queue, 3, LIMIT).await?;
    crew.nothing_is_left(&[]).await?;
    client.close().await
}

async fn a_signal_ends_a_worker_that_waits_for_its_broker(bed: &Bed) -> Result<()> {
    let nobody = format!("amqp://guest:guest@127.0.0.1:{}/%2f", free_port()?);
    let crew = Crew::new(bed).over(nobody);
    let mut worker = crew.start("worker", &["sleep", "--queue", &bed.queue])?;
    let waits = async || Ok(worker.process.log()?.contains("cannot connect"));
    until("it has tried to connect", LIMIT, waits).await?;
    worker.process.signal(Signal::INT)?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!(report.reason == ExitReason::AskedToStop && report.startup_ms.is_none(), "{report:?}");
    ensure!(worker.events()? == ["started", "exit"], "{:?}", worker.events());
    crew.nothing_is_left(&[]).await
}

async fn the_first_process_of_a_container_obeys_signals_too(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    declare(&client, &bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 2).await?;
    let script = format!("{NOTE_BEGUN}; sleep 1000");
    let arguments = super::exec(&bed.queue, &["--grace", "100ms"], &script);
    let (program, status, termination_log) = crew.program("mayfly-worker", "worker", &arguments)?;
    let namespace = ["unshare", "--pid", "--fork", "--mount-proc"];
    let process = program.within(&namespace).spawn("worker")?;
    let mut worker = super::Worker { process, status, termination_log };
    crew.noted("begun", 1).await?;
    let started = worker.status()?;
    ensure!(started[0]["process"]["pid"] == 1, "{started:?}");
    // The kernel drops signals for such a process that it has no handler for.
    let is_worker = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim_end() == "mayfly-worker"
    };
    let pid = crew.running().into_iter().find(is_worker).context("no worker")?;
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).context("a pid")?, Signal::TERM)?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!((report.reason, report.given_back) == (ExitReason::AskedToStop, 1), "{report:?}");
    client.until_ready(&bed.queue, 2, LIMIT).await?;
    crew.nothing_is_left(&[]).await?;
    client.close().await
}

/// Before 4.3 a give-back counts as a delivery on quorum queues, and 3.10 puts it at the queue's end.
async fn what_a_give_back_costs_is_what_each_broker_makes_of_it(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    for (kind, queue) in both(bed, &client).await? {
        for id in ["first", "second", "third"] {
            client.publish_one(&queue, id, b"").await?;
        }
        let (begun, script) = (format!("{queue}.begun"), format!("{NOTE_BEGUN}; sleep 1000"));
        let script = script.replace("/begun", &format!("/{begun}"));
        let mut worker = crew.exec(&queue, &queue, &["--prefetch", "2", "--grace", "10ms"], &script)?;
        crew.noted(&begun, 1).await?;
        client.until_ready(&queue, 1, LIMIT).await?;
        worker.process.signal(Signal::TERM)?;
        worker.ends_with(exit::OK).await?;
        client.until_ready(&queue, 3, LIMIT).await?;
        let mut found = Vec::new();
        while let Some(got) =
            client.channel().basic_get(queue.as_str().into(), BasicGetOptions::default()).await?
        {
            let properties = &got.delivery.properties;
            let count =
                properties.headers().as_ref().and_then(|it| it.inner().get("x-delivery-count").cloned());
            let id = properties.message_id().as_ref().context("no id")?.to_string();
            found.push((id, got.delivery.redelivered, count.as_ref().and_then(AMQPValue::as_long_long_int)));
            got.delivery.ack(BasicAckOptions::default()).await?;
        }
        let told: Vec<_> =
            found.iter().map(|(id, came_back, count)| (id.as_str(), *came_back, *count)).collect();
        let expected = match (kind, bed.release) {
            (Kind::Classic, _) => vec![("first", true, None), ("second", true, None), ("third", false, None)],
            (Kind::Quorum, Release::Packaged) => {
                vec![("third", false, Some(0)), ("second", true, Some(1)), ("first", true, Some(1))]
            }
            (Kind::Quorum, Release::Trixie) => {
                vec![("second", true, Some(1)), ("first", true, Some(1)), ("third", false, None)]
            }
        };
        ensure!(told == expected, "{kind:?} on {}: {told:?}", bed.release);
    }
    client.close().await
}
