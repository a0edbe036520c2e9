//! Messages that bring down their workers, and workers that are stopped or make room.

mod away;
mod memory;

use std::fs;

use anyhow::{Context, Result, ensure};
use lapin::{
    options::{BasicAckOptions, BasicGetOptions},
    types::AMQPValue,
};
use mayfly_service::report::ExitReason;
use mayfly_tests::{Bed, Client, Kind, Signal, bed::rounds, ids, on_each_release, until};

use super::{Crew, LIMIT, NOTE_BEGUN, NOTE_DONE, Worker, declare, exit};

on_each_release!(
    a_message_that_kills_its_worker_is_isolated_with_its_story_and_all_others_are_done,
    workers_drained_or_evicted_again_and_again_accuse_no_message,
    without_a_suspect_queue_nothing_is_lost_and_nothing_isolated,
    a_worker_makes_room_after_so_many_messages_or_so_much_memory_or_time,
    short_work_is_fetched_ahead_and_long_work_is_not,
);

/// Kills its worker when the body says so.
const POISON: &str = r#"read -r word; [ "$word" = poison ] && { kill -9 $PPID; sleep 1000; };"#;
/// How often in a row workers are drained, and evicted.
const STOPS: usize = 10;
/// Those evicted that take longer than they may. A third one like them, with one message alone in work, would have
/// reason to accuse it.
const KILLED: [usize; 2] = [3, 7];

/// Both kinds of queue with all their companions.
async fn both(bed: &Bed, client: &Client) -> Result<[(Kind, String); 2]> {
    let queues = super::both(bed, client).await?;
    for (_, queue) in &queues {
        client.declare(&format!("{queue}.suspect"), Kind::Quorum).await?;
    }
    Ok(queues)
}

/// Replaces workers that die until `done` holds what it should, and ends the last one in order. Returns how
/// many died.
async fn replaced_until(
    crew: &Crew<'_>,
    start: impl Fn(usize) -> Result<Worker>,
    end: impl AsyncFn() -> Result<bool>,
) -> Result<usize> {
    let mut deaths = 0;
    let mut worker = start(0)?;
    until("all is done", 3 * LIMIT, async || {
        if worker.process.ended()?.is_some() {
            // What it leaves behind, its launcher ends.
            super::end_all(&crew.running());
            deaths += 1;
            worker = start(deaths)?;
        }
        end().await
    })
    .await
    .with_context(|| worker.process.log_tail())?;
    worker.process.signal(Signal::TERM)?;
    worker.ends_with(exit::OK).await?;
    Ok(deaths)
}

/// The only message of `queue`: its id and its headers.
async fn only_message(client: &Client, queue: &str) -> Result<(String, Vec<(String, AMQPValue)>)> {
    let got = client.channel().basic_get(queue.into(), BasicGetOptions::default()).await?;
    let delivery = got.with_context(|| format!("{queue} is empty"))?.delivery;
    delivery.ack(BasicAckOptions::default()).await?;
    ensure!(client.depth(queue).await?.ready == 0, "more than one in {queue}");
    let id = delivery.properties.message_id().as_ref().context("no id")?.to_string();
    let headers = delivery.properties.headers().as_ref().context("no headers")?;
    let headers = headers.inner().iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    Ok((id, headers))
}

fn header<'a>(headers: &'a [(String, AMQPValue)], name: &str) -> Option<&'a AMQPValue> {
    headers.iter().find(|(it, _)| it == name).map(|(_, value)| value)
}

async fn a_message_that_kills_its_worker_is_isolated_with_its_story_and_all_others_are_done(
    bed: &Bed,
) -> Result<()> {
    let script = format!("{POISON} {NOTE_DONE}");
    let deaths = isolated_among_many(bed, None, &script).await?;
    // Once among others and three times alone.
    ensure!(deaths == [4, 4], "{deaths:?} workers died");
    Ok(())
}

/// Of many messages in each kind of queue `script` brings down the workers that begin one: that is isolated with
/// its story, and all others are done. Returns how many workers died.
async fn isolated_among_many(bed: &Bed, group: Option<&memory::Group>, script: &str) -> Result<[usize; 2]> {
    let client = bed.client().await?;
    let mut all_deaths = [0; 2];
    for ((kind, queue), died) in both(bed, &client).await?.into_iter().zip(&mut all_deaths) {
        let crew = Crew::new(bed);
        let mut good = client.publish(&queue, rounds(500)).await?;
        client.publish_one(&queue, "the-poison", b"poison\n").await?;
        good.extend(client.publish(&queue, rounds(500) - 1).await?);
        let file = format!("{queue}.done");
        let script = script.replace("/done", &format!("/{file}"));
        let options = ["--concurrency", "10", "--prefetch", "20", "--max-idle", "5m"];
        let dead = format!("{queue}.dead");
        let start = |number| {
            let name = format!("{queue}-{number}");
            match group {
                Some(group) => group.exec(&crew, &name, &queue, &options, &script),
                None => crew.exec(&name, &queue, &options, &script),
            }
        };
        let deaths = replaced_until(&crew, start, async || {
            Ok(crew.notes(&file)?.ids() == good && client.depth(&dead).await?.ready > 0)
        })
        .await?;
        let (id, headers) = only_message(&client, &dead).await?;
        ensure!(id == "the-poison");
        let told = (header(&headers, "x-mayfly-deaths"), header(&headers, "x-mayfly-reason"));
        let story = (AMQPValue::LongLongInt(3), AMQPValue::LongString("suspect".into()));
        ensure!(told == (Some(&story.0), Some(&story.1)), "{headers:?}");
        let error = header(&headers, "x-mayfly-error").and_then(AMQPValue::as_long_string);
        ensure!(error.context("no error")?.to_string().contains("alone"), "{headers:?}");
        eprintln!(
            "{} {kind:?}: {} done, done again {}, {deaths} workers died",
            bed.release,
            good.len(),
            crew.notes(&file)?.repeats()
        );
        *died = deaths;
        crew.nothing_is_left(&[&queue, &format!("{queue}.suspect")]).await?;
    }
    client.close().await?;
    Ok(all_deaths)
}

async fn workers_drained_or_evicted_again_and_again_accuse_no_message(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    for (kind, queue) in both(bed, &client).await? {
        let crew = Crew::new(bed);
        let mut published = client.publish(&queue, 10).await?;
        let file = format!("{queue}.done");
        let note = NOTE_DONE.replace("/done", &format!("/{file}"));
        let options = ["--concurrency", "10", "--prefetch", "20", "--grace"];
        // What has begun when it is asked to stop is finished within the grace period.
        for drain in 0..STOPS {
            published.extend(client.publish(&queue, 15).await?);
            let begun = crew.notes("begun")?.0.len();
            let name = format!("{queue}-drained-{drain}");
            let script = format!("{NOTE_BEGUN}; sleep 0.2; {note}");
            let mut worker = crew.exec(&name, &queue, &[&options[..], &["30s"]].concat(), &script)?;
            crew.noted("begun", begun + 1).await?;
            worker.process.signal(Signal::TERM)?;
            let report = worker.ends_with(exit::OK).await?;
            ensure!(report.done > 0, "{kind:?}: {report:?}");
            let done = crew.notes(&file)?;
            ensure!(crew.notes("begun")?.0.len() == done.0.len(), "{kind:?}: broken off: {report:?}");
        }
        let mut killed = String::new();
        // No grace period is long enough.
        for eviction in 0..STOPS {
            let begun = crew.notes("begun")?.0.len();
            let name = format!("{queue}-evicted-{eviction}");
            let is_killed = KILLED.contains(&eviction);
            let grace = if is_killed { "30s" } else { "50ms" };
            let script = format!("{NOTE_BEGUN}; sleep 1000");
            let mut worker = crew.exec(&name, &queue, &[&options[..], &[grace]].concat(), &script)?;
            crew.noted("begun", begun + 1).await?;
            worker.process.signal(Signal::TERM)?;
            if is_killed {
                worker.is("draining").await?;
                ensure!(crew.kill(&name, &mut worker).await?, "{kind:?}: nothing was in work");
                killed += &worker.process.log()?;
            } else {
                let report = worker.ends_with(exit::OK).await?;
                ensure!(report.done == 0 && report.given_back > 0, "{kind:?}: {report:?}");
            }
        }
        let mut worker = crew.exec(&format!("{queue}-last"), &queue, &["--max-idle", "1s"], &note)?;
        worker.ends_with(exit::OK).await?;
        let done = crew.notes(&file)?;
        ids::assert_same("published", &published, "done", &done.ids())?;
        // Who is killed while it sets a message aside leaves it in both queues.
        let is_doubled = |(id, times): &(&str, usize)| *times > 1 && !killed.contains(id);
        let doubled: Vec<_> = done.count().into_iter().filter(is_doubled).collect();
        ensure!(doubled.is_empty(), "{kind:?}: done again {doubled:?}");
        ensure!(client.depth(&format!("{queue}.dead")).await?.ready == 0);
        crew.nothing_is_left(&[&queue, &format!("{queue}.suspect")]).await?;
        // For the next queue.
        fs::remove_file(bed.directory().join("begun"))?;
    }
    client.close().await
}

async fn without_a_suspect_queue_nothing_is_lost_and_nothing_isolated(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    declare(&client, &bed.queue, Kind::Classic).await?;
    let published = client.publish(&bed.queue, 6).await?;
    let options = ["--concurrency", "3", "--max-idle", "5m"];
    let script = format!("{NOTE_BEGUN}; sleep 1000");
    let mut first = crew.exec("first", &bed.queue, &options, &script)?;
    crew.noted("begun", 3).await?;
    crew.kill("first", &mut first).await?;
    // Each of the three has nothing beside it: the lock is free.
    let script = format!(
        r#"[ "$MAYFLY_REDELIVERED" = 0 ] || {{ exec 9>"$DIR/lock"; flock -n 9 || exit 65; sleep 0.2; }}; {NOTE_DONE}"#
    );
    let mut second = crew.exec("second", &bed.queue, &["--concurrency", "3", "--max-idle", "1s"], &script)?;
    let report = second.ends_with(exit::OK).await?;
    ensure!((report.done, report.dead_lettered, report.suspected) == (6, 0, 0), "{report:?}");
    ids::assert_same("published", &published, "done", &crew.notes("done")?.ids())?;
    ensure!(second.process.log()?.contains("suspect"), "nobody is told that the queue is missing");
    client.close().await
}

async fn a_worker_makes_room_after_so_many_messages_or_so_much_memory_or_time(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    declare(&client, &bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 20).await?;
    let limits = [("--max-messages", "5"), ("--max-memory", "1MiB"), ("--max-lifetime", "1s")];
    for (flag, limit) in limits {
        let mut worker = crew.exec(&flag[2..], &bed.queue, &[flag, limit, "--max-idle", "5m"], NOTE_DONE)?;
        let report = worker.ends_with(exit::OK).await?;
        ensure!(report.reason == ExitReason::Recycled && report.given_back == 0, "{flag}: {report:?}");
        ensure!(flag != "--max-messages" || report.done == 5, "{report:?}");
    }
    ensure!(crew.notes("done")?.repeats() == 0);
    client.close().await
}

/// What the broker says about the one consumer of the queue.
async fn prefetch(crew: &Crew<'_>, queue: &str) -> Result<Option<i64>> {
    let consumers = crew.broker.consumers().await?;
    let consumer = consumers.iter().find(|it| it["queue_name"] == queue);
    Ok(consumer.and_then(|consumer| consumer["prefetch_count"].as_i64()))
}

async fn short_work_is_fetched_ahead_and_long_work_is_not(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    // How many depends on how long sleeping 1 ms takes.
    for (time, hint, wanted) in [("1ms", None, 2..=50), ("100ms", Some("1ms"), 1..=1)] {
        let queue = bed.queue_name("test-prefetch");
        client.declare(&queue, Kind::Classic).await?;
        let published = client.publish(&queue, 100).await?;
        let mut arguments = vec!["sleep", "--queue", &queue, "--for", time, "--max-idle", "5m"];
        arguments.extend(hint.map(|_| "--service-time-hint"));
        arguments.extend(hint);
        let mut worker = crew.start(&queue, &arguments)?;
        until(&format!("a prefetch in {wanted:?}"), LIMIT, async || {
            Ok(prefetch(&crew, &queue).await?.is_some_and(|it| wanted.contains(&it)))
        })
        .await?;
        until("all are done", LIMIT, async || Ok(worker.process.done_ids()? == published)).await?;
        worker.process.signal(Signal::TERM)?;
        worker.ends_with(exit::OK).await?;
    }
    client.close().await
}
