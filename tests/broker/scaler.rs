//! The scaler under the process launcher: one launch at a time, whatever dies, is doubled or goes away.

mod age;
mod counters;
mod offer;
mod refused;
mod reload;
mod restart;
mod scale;
mod sight;
mod tell;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use mayfly_tests::{
    Bed, Fault, Fleet, Kind, Process, Signal, Way, bed::rounds, eventually, fleet::WorkerFile, ids,
    on_each_release, until,
};
use serde_json::{Value, json};

use self::scale::every_queue_keeps_its_slo_from_zero_to_zero;

/// For what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(30);
/// A worker for work that is longer than any test.
const LONG: &str = "1h";

on_each_release!(
    two_scalers_on_one_state_launch_each_worker_once,
    a_scaler_killed_anywhere_in_a_launch_doubles_and_loses_nothing,
    a_cool_down_survives_a_killed_scaler,
    no_launch_while_the_broker_is_gone_and_on_it_goes_after_that,
    a_small_batch_waits_until_it_is_old_enough,
    a_small_batch_is_done_also_while_another_worker_is_busy_for_long,
    a_worker_that_nothing_needs_any_more_is_taken_back_before_it_starts,
    a_missing_queue_is_a_state_and_its_appearance_is_seen,
    a_wrong_password_is_a_state,
    a_stopped_scaler_leaves_its_workers_and_the_next_one_finds_them,
    a_paused_pool_launches_nothing_until_it_is_resumed,
    a_damaged_record_holds_until_it_is_repaired,
    a_name_that_is_taken_by_something_else_is_skipped_and_told,
    every_queue_keeps_its_slo_from_zero_to_zero,
);

fn sleeper(bed: &Bed, work: &str) -> Result<Vec<String>> {
    let worker = mayfly_tests::process::program_path("mayfly-worker")?;
    let words =
        [&*worker.to_string_lossy(), "sleep", "--queue", &bed.queue, "--for", work, "--max-idle", "1s"];
    Ok(words.map(str::to_owned).to_vec())
}

fn fleet<'a>(bed: &'a Bed, name: &str, work: &str, changes: &Value) -> Result<Fleet<'a>> {
    let command = sleeper(bed, work)?;
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    Fleet::new(bed, name, &words, changes)
}

fn ready(workers: &[WorkerFile]) -> usize {
    workers.iter().filter(|worker| worker.was_ready()).count()
}

/// Two launches in a row are at least `interval` apart, and serials run on without a gap.
fn in_order(workers: &[WorkerFile], interval: Duration) -> Result<()> {
    for pair in workers.windows(2) {
        let [first, second] = pair else { continue };
        ensure!(second.serial == first.serial + 1, "serials {} and {}", first.serial, second.serial);
        let apart = Duration::from_millis(second.stamp.saturating_sub(first.stamp));
        ensure!(apart >= interval, "launches {} and {} are {apart:?} apart", first.serial, second.serial);
    }
    Ok(())
}

async fn ends(scaler: &mut Process) -> Result<()> {
    scaler.signal(Signal::TERM)?;
    scaler.exits_with(0, SOON).await
}

async fn two_scalers_on_one_state_launch_each_worker_once(bed: &Bed) -> Result<()> {
    let interval = Duration::from_millis(500);
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 10).await?;
    let mut launches = [0, 0];
    let mut played = 0;
    // Which of them is faster depends on milliseconds: few rounds may all go to one, all twenty never.
    for round in 0..20 {
        if round >= rounds(20) && launches.iter().all(|launches| *launches > 0) {
            break;
        }
        played += 1;
        let changes = json!({ "launch_interval": "500ms", "max_workers": 3 });
        let fleet = fleet(bed, &format!("round-{round}"), LONG, &changes)?;
        let mut first = fleet.scaler(&format!("first-{round}"), &[])?;
        let mut second = fleet.scaler(&format!("second-{round}"), &[])?;
        fleet.workers_when("three workers are ready", SOON, |workers| ready(workers) == 3).await?;
        // Both have seen all three, and want no more.
        first.decides("AtMaximum", SOON).await?;
        second.decides("AtMaximum", SOON).await?;
        ends(&mut first.process).await?;
        ends(&mut second.process).await?;
        let workers = fleet.workers()?;
        ensure!(workers.len() == 3, "{} workers", workers.len());
        in_order(&workers, interval)?;
        ensure!(fleet.state()?["next_serial"] == 4, "{}", fleet.state()?);
        launches[0] += first.launches()?;
        launches[1] += second.launches()?;
    }
    ensure!(launches.iter().sum::<usize>() == 3 * played, "{launches:?}");
    ensure!(launches.iter().all(|launches| *launches > 0), "one scaler never launched: {launches:?}");
    client.close().await
}

async fn a_scaler_killed_anywhere_in_a_launch_doubles_and_loses_nothing(bed: &Bed) -> Result<()> {
    let interval = Duration::from_secs(1);
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 10).await?;
    // Before the intent is written; between writing and renaming; after it; after the worker's file is there;
    // after its process is; before and after the launch is settled.
    let steps = [
        ("before-intent", 0),
        ("before-state-rename", 0),
        ("after-intent", 0),
        ("after-link", 1),
        ("after-spawn", 0),
        ("before-settle", 0),
        ("after-settle", 0),
    ];
    for (step, never_started) in steps {
        let changes = json!({ "launch_interval": "1s", "max_workers": 2 });
        let fleet = fleet(bed, step, LONG, &changes)?;
        let mut killed = fleet.scaler(&format!("killed-{step}"), &[("MAYFLY_CRASH_AT", step)])?;
        let status = killed.process.exits(SOON).await?;
        ensure!(!status.success(), "{step} was passed alive");
        let mut next = fleet.scaler(&format!("next-{step}"), &[])?;
        let workers = fleet
            .workers_when("two workers are ready", SOON, |workers| ready(workers) == 2)
            .await
            .context(step)?;
        next.decides("AtMaximum", SOON).await.context(step)?;
        // Settled: no intent is left behind.
        until("all launches are settled", SOON, async || {
            Ok(fleet.state()?["intents"].as_array().is_some_and(Vec::is_empty))
        })
        .await
        .context(step)?;
        ensure!(fleet.running().len() == 2, "{step}: {} processes", fleet.running().len());
        ensure!(workers.len() == 2 + never_started, "{step}: {} workers", workers.len());
        in_order(&workers, interval).context(step)?;
        ensure!(fleet.state()?["failures"]["count"] == 0, "{step}: {}", fleet.state()?);
        ends(&mut next.process).await?;
    }
    client.close().await
}

async fn a_cool_down_survives_a_killed_scaler(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Classic).await?;
    client.publish(&bed.queue, 1).await?;
    let changes = json!({ "launch_interval": "100ms", "cooldown_base": "3s" });
    let failing = Fleet::new(bed, "fleet", &["/does/not/exist"], &changes)?;
    let mut killed = failing.scaler("killed", &[])?;
    let state = eventually("the failure is counted", SOON, async || {
        let state = failing.state()?;
        Ok((state["failures"]["count"] == 1).then_some(state))
    })
    .await?;
    killed.process.kill().await?;
    let until = state["cooldown_until"].as_str().context("no cool-down")?;
    let until = humantime::parse_rfc3339(until)?.duration_since(std::time::UNIX_EPOCH)?.as_millis();
    let next = failing.scaler("next", &[])?;
    next.decides("CoolingDown", SOON).await?;
    let workers = failing.workers_when("the next try", SOON, |workers| workers.len() == 2).await?;
    ensure!(
        u128::from(workers[1].stamp) >= until,
        "launched at {} while cooling down until {until}",
        workers[1].stamp
    );
    client.close().await
}

async fn no_launch_while_the_broker_is_gone_and_on_it_goes_after_that(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 10).await?;
    let proxy = bed.proxy().await?;
    let mut fleet = fleet(bed, "fleet", LONG, &json!({ "launch_interval": "1s", "max_workers": 4 }))?;
    // The workers stay with the broker; only the scaler loses it.
    fleet.url = proxy.url();
    let direct = json!({ "MAYFLY_BROKER_URL": bed.broker.url() });
    let command = sleeper(bed, LONG)?;
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let worker = json!({ "command": words, "env": direct });
    fleet.configure(&words, &json!({ "launch_interval": "1s", "max_workers": 4, "worker": worker }))?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    fleet.workers_when("the first worker is ready", SOON, |workers| ready(workers) == 1).await?;
    for fault in [Fault::Cut, Fault::Hang(Way::Both)] {
        proxy.set(fault);
        scaler.decides("Unknown", SOON).await?;
        let before = fleet.workers()?.len();
        // Ten seconds of either make the twenty.
        let outage = tokio::time::Instant::now() + Duration::from_secs(10);
        while tokio::time::Instant::now() < outage {
            let status = scaler.status().await?;
            ensure!(status["decision"] == "hold", "{status}");
            ensure!(fleet.workers()?.len() == before, "launched while the broker was gone");
            ensure!(scaler.process.ended()?.is_none(), "the scaler ended");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        proxy.set(Fault::None);
        fleet.workers_when("launches go on", SOON, |workers| workers.len() > before).await?;
    }
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_small_batch_waits_until_it_is_old_enough(bed: &Bed) -> Result<()> {
    let limit = Duration::from_secs(4);
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let changes = json!({ "target_queue_size": 50, "force_empty_queue_interval": "4s" });
    let fleet = fleet(bed, "fleet", "10ms", &changes)?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    scaler.decides("Empty", SOON).await?;
    let begun = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let published = client.publish(&bed.queue, 10).await?;
    scaler.decides("BelowThreshold", SOON).await?;
    until("the batch is done", SOON, async || Ok(fleet.done()?.len() >= 10)).await?;
    let workers = fleet.workers()?;
    // Policy time is counted from the last look that saw nothing, at most a look before the publishing.
    let held = Duration::from_millis(workers[0].stamp).saturating_sub(begun);
    ensure!(held + Duration::from_secs(1) >= limit, "launched after {held:?}");
    ids::assert_same("published", &published, "done", &BTreeSet::from_iter(fleet.done()?))?;
    ensure!(workers.len() == 1, "{} workers", workers.len());
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_small_batch_is_done_also_while_another_worker_is_busy_for_long(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let declare = bed.program("mayfly-publisher")?.args(["declare", &bed.queue]);
    declare.run("declare", SOON).await?.exits_with(0, SOON).await?;
    let worker = mayfly_tests::process::program_path("mayfly-worker")?;
    let worker = worker.to_string_lossy();
    let command =
        [&*worker, "exec", "--queue", &bed.queue, "--max-idle", "1s", "--", "sh", "-c", "sleep $(cat)"];
    let changes = json!({ "target_queue_size": 50, "force_empty_queue_interval": "2s" });
    let fleet = Fleet::new(bed, "fleet", &command, &changes)?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    client.publish_one(&bed.queue, "long", b"1000").await?;
    fleet.workers_when("one worker is ready", SOON, |workers| ready(workers) == 1).await?;
    client.until_ready(&bed.queue, 0, SOON).await?;
    let mut batch = BTreeSet::new();
    for number in 0..10 {
        let id = format!("short-{number}");
        client.publish_one(&bed.queue, &id, b"0").await?;
        batch.insert(id);
    }
    until("the batch is done", SOON, async || Ok(fleet.done()?.len() >= 10)).await?;
    ids::assert_same("batch", &batch, "done", &BTreeSet::from_iter(fleet.done()?))?;
    ensure!(fleet.workers()?.len() == 2, "{} workers", fleet.workers()?.len());
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_worker_that_nothing_needs_any_more_is_taken_back_before_it_starts(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 1).await?;
    let fleet = fleet(bed, "fleet", LONG, &json!({ "start_delay": "10m", "withdraw_after": "1s" }))?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    let status = scaler.decides("WaitingForPending", SOON).await?;
    ensure!(status["text"].as_str().is_some_and(|text| text.contains("node coming")), "{}", status["text"]);
    client.take_all(&bed.queue, 1, SOON).await?;
    let gone = |workers: &[WorkerFile]| workers.iter().all(|worker| worker.exit_reason().is_some());
    let workers = fleet.workers_when("the worker has ended", SOON, gone).await?;
    ensure!(workers.len() == 1 && workers[0].exit_reason() == Some("withdrawn"), "{workers:?}");
    until("no process is left", SOON, async || Ok(fleet.running().is_empty())).await?;
    until("its end is counted", SOON, async || Ok(fleet.state()?["judged"] == json!([1]))).await?;
    ensure!(fleet.state()?["failures"]["count"] == 0, "taken back is not a failure: {}", fleet.state()?);
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_missing_queue_is_a_state_and_its_appearance_is_seen(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let fleet = fleet(bed, "fleet", LONG, &json!({ "launch_interval": "1s" }))?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    scaler.decides("QueueMissing", SOON).await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    scaler.decides("Empty", SOON).await?;
    client.publish(&bed.queue, 1).await?;
    fleet.workers_when("a worker is ready", SOON, |workers| ready(workers) == 1).await?;
    client.delete(&bed.queue).await?;
    scaler.decides("QueueMissing", SOON).await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_wrong_password_is_a_state(bed: &Bed) -> Result<()> {
    let mut fleet = fleet(bed, "fleet", LONG, &json!({}))?;
    fleet.url = bed.broker.url_for("guest", "not-the-password");
    let mut scaler = fleet.scaler("scaler", &[])?;
    let status = eventually("the refusal is told", SOON, async || {
        let status = scaler.status().await?;
        let told = status["text"].as_str().is_some_and(|text| text.contains("forbidden"));
        Ok(told.then_some(status))
    })
    .await?;
    ensure!(status["reason"] == "Unknown", "{status}");
    ensure!(fleet.workers()?.is_empty(), "launched on unknown facts");
    ends(&mut scaler.process).await?;
    ensure!(!scaler.process.log()?.contains("not-the-password"), "the password is in the log");
    Ok(())
}

async fn a_stopped_scaler_leaves_its_workers_and_the_next_one_finds_them(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 5).await?;
    let fleet = fleet(bed, "fleet", LONG, &json!({ "launch_interval": "500ms", "max_workers": 2 }))?;
    let mut first = fleet.scaler("first", &[])?;
    fleet.workers_when("two workers are ready", SOON, |workers| ready(workers) == 2).await?;
    ends(&mut first.process).await?;
    let before = fleet.running();
    ensure!(before.len() == 2, "{} workers live on", before.len());
    let mut second = fleet.scaler("second", &[])?;
    second.decides("AtMaximum", SOON).await?;
    ensure!(fleet.running() == before, "workers changed with the scaler");
    ensure!(fleet.workers()?.len() == 2);
    ends(&mut second.process).await?;
    client.close().await
}

async fn a_paused_pool_launches_nothing_until_it_is_resumed(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let fleet = fleet(bed, "fleet", LONG, &json!({}))?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    scaler.decides("Empty", SOON).await?;
    fleet.state_command("pause", &["pause"]).await?;
    client.publish(&bed.queue, 1).await?;
    scaler.decides("Paused", SOON).await?;
    ensure!(fleet.workers()?.is_empty(), "launched while paused");
    fleet.state_command("resume", &["resume"]).await?;
    fleet.workers_when("a worker is launched", SOON, |workers| workers.len() == 1).await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_damaged_record_holds_until_it_is_repaired(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 5).await?;
    let fleet = fleet(bed, "fleet", LONG, &json!({ "launch_interval": "100ms", "max_workers": 1 }))?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    scaler.decides("AtMaximum", SOON).await?;
    ends(&mut scaler.process).await?;
    let mut next = fleet.scaler("next", &[])?;
    next.decides("AtMaximum", SOON).await?;
    for (command, damage) in [("repair", &b"not a record"[..]), ("repair-again", b"\xff")] {
        // At once: a file that is being written is an empty one for a moment.
        let damaged = fleet.directory.join("damaged");
        std::fs::write(&damaged, damage)?;
        std::fs::rename(damaged, fleet.state_file())?;
        let status = next.decides("Unknown", SOON).await?;
        ensure!(status["text"].as_str().is_some_and(|text| text.contains("damaged")), "{}", status["text"]);
        fleet.state_command(command, &["repair"]).await?;
        next.decides("AtMaximum", SOON).await?;
    }
    let loud = next.process.log()?.matches("the state record cannot be used").count();
    ensure!(loud == 2, "told {loud} times: {}", next.process.log_tail());
    ensure!(fleet.state()?["next_serial"] == 2, "serials went back: {}", fleet.state()?);
    ensure!(fleet.workers()?.len() == 1);
    ends(&mut next.process).await?;
    client.close().await
}

async fn a_name_that_is_taken_by_something_else_is_skipped_and_told(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 5).await?;
    let fleet = fleet(bed, "fleet", LONG, &json!({ "launch_interval": "1s", "max_workers": 2 }))?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    let workers = fleet.workers_when("one worker is there", SOON, |workers| workers.len() == 1).await?;
    // Another instance's worker took our next name.
    let taken = workers[0].name.strip_suffix('1').context("its serial is 1")?.to_owned() + "2";
    let foreign = json!({
        "instance": "other", "pool": "pool", "serial": 2, "slot": 0, "reason": "", "stamp": "2026-01-01T00:00:00Z",
    });
    std::fs::write(fleet.directory.join("workers").join(taken), foreign.to_string() + "\n")?;
    let third = |workers: &[WorkerFile]| workers.iter().any(|worker| worker.serial == 3);
    fleet.workers_when("the next serial is used", SOON, third).await?;
    ends(&mut scaler.process).await?;
    ensure!(scaler.process.log()?.contains("exists and is not ours"), "{}", scaler.process.log_tail());
    ensure!(fleet.state()?["failures"]["count"] == 0);
    client.close().await
}
