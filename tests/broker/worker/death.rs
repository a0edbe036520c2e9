//! Workers that die without a word: what they held is delivered again and finished.

use std::{os::unix::process::ExitStatusExt, time::Duration};

use anyhow::{Context, Result, ensure};
use mayfly_tests::{
    Bed, Client, Kind, Signal,
    bed::rounds,
    ids::{self, Ids},
    on_each_release, until,
};

use super::{Crew, Dice, LIMIT, NOTE_BEGUN, NOTE_DONE, Worker, both, exec, exit};

on_each_release!(
    what_killed_workers_held_is_delivered_again_and_finished,
    a_worker_that_dies_before_an_ack_has_its_message_done_again,
    a_worker_that_dies_after_a_handler_has_its_message_done_again,
    a_worker_that_dies_between_retry_and_ack_doubles_the_message_and_loses_none,
    a_worker_that_dies_before_its_close_has_lost_nothing,
    a_worker_that_dies_at_ready_has_lost_nothing,
);

/// Workers at a time.
const WORKERS: usize = 3;
/// From a message's begin to the kill: as long as a handler takes.
const HANDLER: Duration = Duration::from_millis(40);

async fn what_killed_workers_held_is_delivered_again_and_finished(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    for (kind, queue) in both(bed, &client).await? {
        let seed = 0xdead + u64::from(kind == Kind::Quorum);
        let kills = rounds(200);
        let (published, met) = kill_workers(&crew, &client, &queue, kills, Dice(seed)).await?;
        let (begun, done) = (crew.notes(&format!("{queue}.begun"))?, crew.notes(&format!("{queue}.done"))?);
        eprintln!(
            "{} {kind:?}, seed {seed:#x}: {} published, {kills} kills, {met} of them in a handler, begun {}, \
             redelivered {}, done again {}",
            bed.release,
            published.len(),
            begun.0.len(),
            begun.redelivered(),
            done.repeats()
        );
        ids::assert_same("published", &published, "done", &done.ids())?;
        ensure!(met > 0 && begun.redelivered() > 0, "no kill met a message");
        // Each kill can double only what the worker held.
        ensure!(done.repeats() <= kills * 4, "{} done again", done.repeats());
        crew.nothing_is_left(&[&queue]).await?;
    }
    client.close().await
}

/// Kills workers in mid-message, replaces them, and waits until the last ones have finished everything. Returns
/// what was published, and how many of the workers died with a handler running.
async fn kill_workers(
    crew: &Crew<'_>,
    client: &Client,
    queue: &str,
    kills: usize,
    mut dice: Dice,
) -> Result<(Ids, usize)> {
    let (begun, done) = (format!("{queue}.begun"), format!("{queue}.done"));
    let script = format!("{NOTE_BEGUN}; sleep 0.03; {NOTE_DONE}")
        .replace("/begun", &format!("/{begun}"))
        .replace("/done", &format!("/{done}"));
    let start = |number: usize| -> Result<(String, Worker)> {
        let name = format!("{queue}-{number}");
        let options = ["--concurrency", "2", "--prefetch", "4", "--max-idle", "5m"];
        let worker = crew.exec(&name, queue, &options, &script)?;
        Ok((name, worker))
    };
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        workers.push(start(number)?);
    }
    let mut published = client.publish(queue, 20).await?;
    let mut in_handlers = 0;
    for kill in 0..kills {
        let before = crew.notes(&begun)?.0.len();
        published.extend(client.publish(queue, 16).await?);
        crew.noted(&begun, before + 1).await?;
        tokio::time::sleep(dice.moment(HANDLER)).await;
        let is_at_work = |(name, worker): &(String, Worker)| !crew.handlers(name, worker).is_empty();
        let at_work: Vec<_> = (0..WORKERS).filter(|index| is_at_work(&workers[*index])).collect();
        let chosen = at_work.get(dice.below(at_work.len())).copied().unwrap_or(0);
        let (name, mut worker) = workers.swap_remove(chosen);
        in_handlers += usize::from(crew.kill(&name, &mut worker).await?);
        workers.push(start(WORKERS + kill)?);
    }
    until("all are done", LIMIT, async || Ok(crew.notes(&done)?.ids().is_superset(&published))).await?;
    for (_, worker) in &mut workers {
        worker.process.signal(Signal::TERM)?;
        worker.ends_with(exit::OK).await?;
    }
    Ok((published, in_handlers))
}

/// Publishes `count` messages and lets a worker die at `step`; `script` is its handler.
async fn dies_at(crew: &Crew<'_>, client: &Client, count: usize, step: &str, script: &str) -> Result<Ids> {
    let queue = &crew.bed.queue;
    let published = client.publish(queue, count).await?;
    let arguments = exec(queue, &["--declare", "--max-idle", "200ms", "--prefetch", "2"], script);
    let mut worker = crew.start_with("dying", &arguments, &[("MAYFLY_CRASH_AT", step)])?;
    let status = worker.process.exits(LIMIT).await?;
    ensure!(
        status.signal() == Some(Signal::ABORT.as_raw()),
        "it ended with {status}: no crash points in this build?\n{}",
        worker.process.log_tail()
    );
    ensure!(!worker.events()?.contains(&"exit".to_owned()), "{:?}", worker.events());
    // They outlive it, and may still have something to note.
    until("its handlers have ended", LIMIT, async || Ok(crew.handlers("dying", &worker).is_empty())).await?;
    Ok(published)
}

/// A second worker finishes what is there.
async fn another_finishes(crew: &Crew<'_>, script: &str) -> Result<()> {
    let queue = &crew.bed.queue;
    let mut worker = crew.exec("finisher", queue, &["--max-idle", "1s"], script)?;
    worker.ends_with(exit::OK).await?;
    crew.nothing_is_left(&[queue]).await
}

async fn is_back(client: &Client, queue: &str, count: usize) -> Result<()> {
    client.until_ready(queue, u32::try_from(count)?, LIMIT).await
}

/// A queue with the standard topology, as the worker itself declares it.
async fn with_topology<'a>(bed: &'a Bed, client: &Client) -> Result<Crew<'a>> {
    let crew = Crew::new(bed);
    let mut worker = crew.exec("declaring", &bed.queue, &["--declare", "--max-idle", "1ms"], "exit 1")?;
    worker.ends_with(exit::OK).await?;
    is_back(client, &bed.queue, 0).await?;
    Ok(crew)
}

async fn done_again_after(bed: &Bed, step: &str) -> Result<()> {
    let client = bed.client().await?;
    let crew = with_topology(bed, &client).await?;
    let published = dies_at(&crew, &client, 3, step, NOTE_DONE).await?;
    is_back(&client, &bed.queue, 3).await?;
    let first = crew.notes("done")?;
    ensure!(!first.0.is_empty(), "nothing is done before the crash");
    another_finishes(&crew, NOTE_DONE).await?;
    let done = crew.notes("done")?;
    ids::assert_same("published", &published, "done", &done.ids())?;
    ensure!(done.0.len() == published.len() + first.0.len(), "{done:?}");
    for id in first.ids() {
        let of_it = done.of(&id);
        ensure!(of_it.len() == 2 && !of_it[0].redelivered && of_it[1].redelivered, "{of_it:?}");
    }
    Ok(())
}

async fn a_worker_that_dies_before_an_ack_has_its_message_done_again(bed: &Bed) -> Result<()> {
    done_again_after(bed, "before-ack").await
}

async fn a_worker_that_dies_after_a_handler_has_its_message_done_again(bed: &Bed) -> Result<()> {
    done_again_after(bed, "after-handler").await
}

async fn a_worker_that_dies_between_retry_and_ack_doubles_the_message_and_loses_none(
    bed: &Bed,
) -> Result<()> {
    let client = bed.client().await?;
    let crew = with_topology(bed, &client).await?;
    let published = dies_at(&crew, &client, 1, "after-retry-publish", "exit 75").await?;
    let id = published.first().context("an id")?;
    // Safe in both places, which is better than in none.
    is_back(&client, &bed.queue, 1).await?;
    let script = format!("{NOTE_DONE}; exit 0");
    let mut worker = crew.exec("finisher", &bed.queue, &["--max-idle", "1m"], &script)?;
    crew.noted("done", 2).await?;
    worker.process.signal(Signal::TERM)?;
    worker.ends_with(exit::OK).await?;
    let done = crew.notes("done")?;
    let attempts: Vec<_> = done.of(id).iter().map(|note| note.attempt).collect();
    ensure!(attempts == [1, 2] && done.0.len() == 2, "{done:?}");
    crew.nothing_is_left(&[&bed.queue, &format!("{}.retry.5s", bed.queue)]).await
}

async fn a_worker_that_dies_before_its_close_has_lost_nothing(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = with_topology(bed, &client).await?;
    let published = dies_at(&crew, &client, 3, "before-close", NOTE_DONE).await?;
    let done = crew.notes("done")?;
    ids::assert_same("published", &published, "done before the crash", &done.ids())?;
    // Its acks may have died with it, but not the messages.
    another_finishes(&crew, NOTE_DONE).await?;
    ids::assert_same("published", &published, "done", &crew.notes("done")?.ids())
}

async fn a_worker_that_dies_at_ready_has_lost_nothing(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = with_topology(bed, &client).await?;
    let published = dies_at(&crew, &client, 3, "after-ready", NOTE_DONE).await?;
    ensure!(crew.notes("done")?.0.is_empty());
    is_back(&client, &bed.queue, 3).await?;
    another_finishes(&crew, NOTE_DONE).await?;
    let done = crew.notes("done")?;
    ids::assert_same("published", &published, "done", &done.ids())?;
    until("each is done once", LIMIT, async || Ok(done.repeats() == 0)).await
}
