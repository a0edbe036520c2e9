//! Handlers that fail at every message: nothing is dead-lettered for it.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::future::{try_join, try_join_all};
use lapin::options::BasicGetOptions;
use mayfly_service::report::ExitReason;
use mayfly_tests::{
    Bed, Client, Kind, Signal,
    bed::rounds,
    ids::{self, Ids},
    on_each_release, until,
};

use super::{Crew, LIMIT, NOTE_DONE, Worker, exit};

on_each_release!(
    a_handler_whose_database_is_away_empties_nothing_into_the_dead_letter_queue,
    a_handler_that_cannot_run_and_then_fails_for_a_minute_dead_letters_nothing,
);

async fn a_handler_whose_database_is_away_empties_nothing_into_the_dead_letter_queue(
    bed: &Bed,
) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    fs::write(bed.directory().join("away"), "")?;
    let script = format!(r#"[ ! -e "$DIR/away" ] || exit 1; {NOTE_DONE}"#);
    let options = ["--declare", "--concurrency", "2", "--max-attempts", "2", "--max-idle", "5m"];
    let mut worker = crew.exec("worker", &bed.queue, &options, &script)?;
    worker.is("ready").await?;
    let published = client.publish(&bed.queue, 12).await?;
    let says = async |words: &str| Ok(worker.process.log()?.contains(words));
    until("it begins one message at a time", LIMIT, async || says("one message at a time").await).await?;
    let [later, dead] = ["retry.10m", "dead"].map(|companion| format!("{}.{companion}", bed.queue));
    until(
        "a message has failed for the last time",
        LIMIT,
        async || Ok(client.depth(&later).await?.ready > 0),
    )
    .await?;
    fs::remove_file(bed.directory().join("away"))?;
    until("it begins as usual again", LIMIT, async || says("as usual again").await).await?;
    until("all others are done", LIMIT, async || {
        let later = usize::try_from(client.depth(&later).await?.ready)?;
        Ok(crew.notes("done")?.0.len() + later == published.len())
    })
    .await?;
    ensure!(client.depth(&dead).await?.ready == 0, "dead-lettered");
    worker.process.signal(Signal::TERM)?;
    worker.ends_with(exit::OK).await?;
    let mut all: Ids = crew.notes("done")?.ids();
    let waiting = usize::try_from(client.depth(&later).await?.ready)?;
    all.extend(client.take_all(&later, waiting, LIMIT).await?);
    ids::assert_same("published", &published, "done or to be tried later", &all)?;
    client.close().await
}

/// As it is by default, with workers that are replaced whatever becomes of them.
async fn a_handler_that_cannot_run_and_then_fails_for_a_minute_dead_letters_nothing(bed: &Bed) -> Result<()> {
    fs::write(bed.directory().join("away"), "")?;
    let crew = Crew::new(bed);
    let queues = [Kind::Classic, Kind::Quorum].map(|kind| (kind, bed.queue_name("test-away")));
    let cases = queues.iter().map(|(kind, queue)| dead_letters_nothing(bed, &crew, *kind, queue));
    let back = async {
        tokio::time::sleep(Duration::from_secs(u64::try_from(rounds(60))?)).await;
        Ok(fs::remove_file(bed.directory().join("away"))?)
    };
    try_join(try_join_all(cases), back).await.map(drop)
}

async fn dead_letters_nothing(bed: &Bed, crew: &Crew<'_>, kind: Kind, queue: &str) -> Result<()> {
    let client = bed.client().await?;
    let kind = if kind == Kind::Classic { "classic" } else { "quorum" };
    let declare = bed.program("mayfly-publisher")?.args(["declare", queue, "--type", kind]);
    declare.run(&format!("declare-{kind}"), LIMIT).await?.exits_with(exit::OK, LIMIT).await?;
    let mut published = client.publish(queue, 30).await?;
    let (file, options) = (format!("{kind}.done"), ["--concurrency", "4", "--max-idle", "5m"]);
    for (number, command) in ["/nowhere/at-all", "no-such-command"].into_iter().cycle().take(6).enumerate() {
        // Not there, or what a shell says then.
        let command = if number % 2 == 0 { vec![command] } else { vec!["sh", "-c", command] };
        let arguments = [&["exec", "--queue", queue], &options[..], &["--"], &command].concat();
        let mut worker = crew.start(&format!("{kind}-cannot-{number}"), &arguments)?;
        let report = worker.ends_with(exit::CONFIG).await?;
        ensure!(report.reason == ExitReason::HandlerUnavailable && report.dead_lettered == 0, "{report:?}");
    }
    let script =
        format!(r#"[ ! -e "$DIR/away" ] || exit 1; {NOTE_DONE}"#).replace("/done", &format!("/{file}"));
    let mut started = 0;
    let mut another = || -> Result<(String, Worker)> {
        started += 1;
        let name = format!("{kind}-{started}");
        crew.exec(&name, queue, &options, &script).map(|worker| (name, worker))
    };
    let mut workers = vec![another()?, another()?];
    let mut is_killed = false;
    while bed.directory().join("away").exists() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        published.extend(client.publish(queue, 2).await?);
        let (name, mut worker) = workers.swap_remove(0);
        is_killed = !is_killed;
        if is_killed {
            crew.kill(&name, &mut worker).await?;
        } else {
            worker.process.signal(Signal::TERM)?;
            worker.ends_with(exit::OK).await?;
        }
        workers.push(another()?);
    }
    let last = client.publish(queue, 5).await?;
    let is_done = async || Ok(crew.notes(&file)?.ids().is_superset(&last));
    until("what comes now is done", 3 * LIMIT, is_done).await?;
    for (_, worker) in &mut workers {
        worker.process.signal(Signal::TERM)?;
        worker.ends_with(exit::OK).await?;
    }
    published.extend(last);
    let mut all = crew.notes(&file)?.ids();
    let done = all.len();
    until("each is done or waits", LIMIT, async || {
        for companion in ["", ".suspect", ".retry.5s", ".retry.30s", ".retry.2m", ".retry.10m"] {
            all.extend(take_ids(&client, &format!("{queue}{companion}")).await?);
        }
        Ok(all.is_superset(&published))
    })
    .await?;
    ids::assert_same("published", &published, "done or waiting", &all)?;
    eprintln!("{} {kind}: {} published, {started} workers, {done} done by now", bed.release, published.len());
    ensure!(client.depth(&format!("{queue}.dead")).await?.ready == 0, "{kind}: dead-lettered");
    client.close().await
}

/// Takes what waits in a queue now.
async fn take_ids(client: &Client, queue: &str) -> Result<Ids> {
    let mut ids = Ids::new();
    while let Some(got) = client.channel().basic_get(queue.into(), BasicGetOptions { no_ack: true }).await? {
        ids.insert(got.delivery.properties.message_id().as_ref().context("no id")?.to_string());
    }
    Ok(ids)
}
