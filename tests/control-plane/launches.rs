//! A launch is one Job, whoever races, dies or is cut off.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use mayfly_tests::{
    bed::rounds,
    control_plane::{Act, Request, Rule, Script, Space},
    each_in_a_space, until,
};
use serde_json::json;

use crate::{SOON, alive, each_once, end_all, ends, in_order, ready, waiting};

/// Nobody POSTs an intent that is older than this …
const COMPLETE_UNTIL: Duration = Duration::from_secs(60);
/// … and one without a Job is withdrawn at this age.
const WITHDRAWN_AFTER: Duration = Duration::from_secs(120);
/// A request that the network holds back for this long is late, not lost.
const HELD_BACK: Duration = Duration::from_secs(90);

each_in_a_space!(
    two_scalers_on_one_state_launch_each_worker_once,
    a_first_record_that_is_written_during_the_first_look_is_not_lost,
    a_first_record_that_is_written_during_an_act_is_not_lost,
    a_launch_whose_answer_is_lost_is_adopted_and_not_doubled,
    a_state_write_whose_answer_is_lost_doubles_nothing,
    a_scaler_killed_anywhere_in_a_launch_doubles_and_loses_nothing,
    a_launch_that_two_complete_at_once_is_adopted_and_not_doubled,
    a_launch_that_is_held_back_for_90_seconds_is_adopted_and_not_doubled,
    a_launch_that_arrives_after_its_intent_was_withdrawn_counts_as_occupied,
    a_launch_that_is_turned_away_for_the_moment_is_tried_again_under_the_same_name,
    a_foreign_job_with_the_next_name_is_skipped_told_and_left_alone,
);

async fn two_scalers_on_one_state_launch_each_worker_once(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 3 }))?;
    let mut launches = [0, 0];
    let mut played = 0;
    // Which of them is faster depends on milliseconds: few rounds may all go to one, all twenty never.
    for round in 0..20 {
        if round >= rounds(20) && launches.iter().all(|launches| *launches > 0) {
            break;
        }
        played += 1;
        let mut first = space.scaler(&format!("first-{round}"), &[])?;
        let mut second = space.scaler(&format!("second-{round}"), &[])?;
        space.jobs_when("three workers are ready", SOON, |jobs| ready(jobs) == 3).await?;
        // Both have seen all three, and want no more.
        first.decides("AtMaximum", SOON).await?;
        second.decides("AtMaximum", SOON).await?;
        ends(&mut first.process).await?;
        ends(&mut second.process).await?;
        let jobs = space.jobs().await?;
        ensure!(jobs.len() == 3 * played, "{} workers in {played} rounds", jobs.len());
        in_order(&jobs, Duration::from_millis(500))?;
        each_once(space, &jobs)?;
        let state = space.state().await?;
        ensure!(state["next_serial"] == 3 * played + 1, "{state}");
        ensure!(state["failures"]["count"] == 0, "{state}");
        launches[0] += first.launches()?;
        launches[1] += second.launches()?;
        end_all(space).await?;
    }
    ensure!(launches.iter().sum::<usize>() == 3 * played, "{launches:?}");
    ensure!(launches.iter().all(|launches| *launches > 0), "one scaler never launched: {launches:?}");
    client.close().await
}

async fn a_first_record_that_is_written_during_the_first_look_is_not_lost(space: &Space<'_>) -> Result<()> {
    a_first_record_is_written_during_a_listing(space, 1).await
}

async fn a_first_record_that_is_written_during_an_act_is_not_lost(space: &Space<'_>) -> Result<()> {
    a_first_record_is_written_during_a_listing(space, 2).await
}

/// One scaler finds no record, and its `nth` listing finds the worker that another one launched meanwhile.
async fn a_first_record_is_written_during_a_listing(space: &Space<'_>, nth: usize) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 1 }))?;
    space.proxy.rule(Rule::new("list", "jobs", Act::Pause).from("first").nth(nth));
    let mut first = space.scaler("first", &[])?;
    let listings = || space.proxy.matching(|request| request.client == "first" && request.is("list", "jobs"));
    until("it lists", SOON, async || Ok(listings().len() == nth)).await?;
    let mut second = space.scaler("second", &[])?;
    space.jobs_when("the other one launches", SOON, |jobs| jobs.len() == 1).await?;
    space.proxy.release();
    first.decides("AtMaximum", SOON).await?;
    let log = first.process.log()?;
    ensure!(!log.contains("missing, though"), "{log}");
    ensure!(space.jobs().await?.len() == 1);
    ends(&mut first.process).await?;
    ends(&mut second.process).await?;
    client.close().await
}

async fn a_launch_whose_answer_is_lost_is_adopted_and_not_doubled(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 3 }))?;
    // The second one's answer comes.
    for lost in [1, 3] {
        space.proxy.rule(Rule::new("create", "jobs", Act::DropAnswer).nth(lost));
    }
    let mut scaler = space.scaler("scaler", &[])?;
    space.jobs_when("three workers are ready", SOON, |jobs| ready(jobs) == 3).await?;
    scaler.decides("AtMaximum", SOON).await?;
    until("all launches are settled", SOON, async || Ok(space.state().await?["intents"] == json!([])))
        .await?;
    let jobs = space.jobs().await?;
    ensure!(jobs.len() == 3, "{} workers", jobs.len());
    in_order(&jobs, Duration::from_millis(500))?;
    each_once(space, &jobs)?;
    ensure!(space.state().await?["failures"]["count"] == 0, "a lost answer is no failure");
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_state_write_whose_answer_is_lost_doubles_nothing(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 3 }))?;
    // The first write is an intent, the others whatever comes.
    for lost in [1, 3, 4] {
        space.proxy.rule(Rule::new("update", "configmaps", Act::DropAnswer).nth(lost));
    }
    let mut scaler = space.scaler("scaler", &[])?;
    space.jobs_when("three workers are ready", 2 * SOON, |jobs| ready(jobs) == 3).await?;
    scaler.decides("AtMaximum", SOON).await?;
    let jobs = space.jobs().await?;
    ensure!(jobs.len() == 3, "{} workers", jobs.len());
    in_order(&jobs, Duration::from_millis(500))?;
    each_once(space, &jobs)?;
    ensure!(space.state().await?["next_serial"] == 4, "{}", space.state().await?);
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_scaler_killed_anywhere_in_a_launch_doubles_and_loses_nothing(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 2 }))?;
    // What is on its way when it dies: writes that never arrive, and writes of which it never hears.
    let on_its_way = [
        ("intent-lost", "update", "configmaps", Act::Keep),
        ("intent-unheard", "update", "configmaps", Act::DropAnswer),
        ("launch-lost", "create", "jobs", Act::Keep),
        ("launch-unheard", "create", "jobs", Act::DropAnswer),
    ];
    let steps = ["before-intent", "after-intent", "after-post", "before-settle", "after-settle"];
    let mut played = 0;
    for (name, request) in on_its_way
        .into_iter()
        .map(|(name, verb, resource, act)| (name, Some((verb, resource, act))))
        .chain(steps.map(|step| (step, None)))
    {
        played += 1;
        let client = format!("killed-{name}");
        if let Some((verb, resource, act)) = request {
            space.proxy.rule(Rule::new(verb, resource, act).from(&client));
            let mut killed = space.scaler(&client, &[])?;
            let is_it = |one: &Request| {
                one.client == client && one.is(verb, resource) && (act == Act::Keep || one.succeeded())
            };
            space.proxy.seen(name, SOON, is_it).await?;
            killed.process.kill().await?;
            space.proxy.clear();
        } else {
            let mut killed = space.scaler(&client, &[("MAYFLY_CRASH_AT", name)])?;
            let status = killed.process.exits(SOON).await.context(name)?;
            ensure!(!status.success(), "{name} was passed alive");
        }
        let mut next = space.scaler(&format!("next-{name}"), &[])?;
        space.jobs_when("two workers are ready", SOON, |jobs| ready(jobs) == 2).await.context(name)?;
        next.decides("AtMaximum", SOON).await.context(name)?;
        until("all launches are settled", SOON, async || Ok(space.state().await?["intents"] == json!([])))
            .await
            .context(name)?;
        let jobs = space.jobs().await?;
        ensure!(jobs.len() == 2 * played, "{name}: {} workers after {played} deaths", jobs.len());
        in_order(&jobs, Duration::from_millis(500)).context(name)?;
        each_once(space, &jobs).context(name)?;
        ensure!(space.state().await?["failures"]["count"] == 0, "{name}: {}", space.state().await?);
        ends(&mut next.process).await?;
        end_all(space).await?;
    }
    // What was on its way may still arrive: it comes too late.
    let statuses = space.proxy.deliver().await?;
    ensure!(statuses == [409, 409], "{statuses:?}");
    ensure!(space.jobs().await?.len() == 2 * played);
    client.close().await
}

async fn a_launch_that_two_complete_at_once_is_adopted_and_not_doubled(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 1 }))?;
    space.proxy.rule(Rule::new("create", "jobs", Act::Keep).from("first"));
    let mut first = space.scaler("first", &[])?;
    space.proxy.seen("a launch", SOON, |request| request.is("create", "jobs")).await?;
    first.process.kill().await?;
    // The second one has listed, found no Job, and is about to complete it: now the first one's arrives.
    space.proxy.rule(Rule::new("create", "jobs", Act::Pause).from("second"));
    let mut second = space.scaler("second", &[])?;
    let completes = |request: &Request| request.is("create", "jobs") && request.client == "second";
    let completing = space.proxy.seen("the completion", SOON, completes).await?;
    ensure!(space.proxy.deliver().await? == [201]);
    space.proxy.release();
    let answered = |request: &Request| completes(request) && request.status == Some(409);
    space.proxy.seen("its name is taken", SOON, answered).await?;
    let jobs = space.jobs_when("the worker is ready", SOON, |jobs| ready(jobs) == 1).await?;
    ensure!(jobs.len() == 1 && completing.name.as_ref() == Some(&jobs[0].name), "{jobs:?}");
    second.decides("AtMaximum", SOON).await?;
    until("it is adopted", SOON, async || Ok(second.process.log()?.contains("launched before, adopted")))
        .await?;
    let state = space.state().await?;
    ensure!(state["next_serial"] == 2 && state["failures"]["count"] == 0, "{state}");
    ends(&mut second.process).await?;
    client.close().await
}

async fn a_launch_that_is_held_back_for_90_seconds_is_adopted_and_not_doubled(
    space: &Space<'_>,
) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 2 }))?;
    space.proxy.rule(Rule::new("create", "jobs", Act::Keep).named("-1"));
    let mut scaler = space.scaler("scaler", &[])?;
    let first = space.proxy.seen("a launch", SOON, |request| request.is("create", "jobs")).await?;
    let mut second = space.scaler("second", &[])?;
    tokio::time::sleep_until(first.at + HELD_BACK).await;
    let creations = space.proxy.matching(|request| request.is("create", "jobs"));
    let last = creations.last().map_or(first.at, |request| request.at);
    ensure!(creations.iter().all(|request| request.name == first.name), "another launch: {creations:?}");
    // The intent is a moment older than its first POST.
    ensure!(last - first.at <= COMPLETE_UNTIL, "POSTed {:?} after the first try", last - first.at);
    ensure!(space.jobs().await?.is_empty(), "a launch that nobody delivered");
    let status = scaler.decides("WaitingForPending", SOON).await?;
    ensure!(status["text"].as_str().is_some_and(|text| text.contains("intended")), "{}", status["text"]);

    let statuses = space.proxy.deliver().await?;
    ensure!(
        statuses.first() == Some(&201) && statuses[1..].iter().all(|status| *status == 409),
        "{statuses:?}"
    );
    space.jobs_when("two workers are ready", SOON, |jobs| ready(jobs) == 2).await?;
    scaler.decides("AtMaximum", SOON).await?;
    second.decides("AtMaximum", SOON).await?;
    let jobs = space.jobs().await?;
    ensure!(jobs.len() == 2, "{} workers", jobs.len());
    in_order(&jobs, Duration::from_millis(500))?;
    each_once(space, &jobs)?;
    ends(&mut scaler.process).await?;
    ends(&mut second.process).await?;
    client.close().await
}

async fn a_launch_that_arrives_after_its_intent_was_withdrawn_counts_as_occupied(
    space: &Space<'_>,
) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 1 }))?;
    space.proxy.rule(Rule::new("create", "jobs", Act::Keep).named("-1"));
    let mut scaler = space.scaler("scaler", &[])?;
    space.proxy.seen("a launch", SOON, |request| request.is("create", "jobs")).await?;
    let limit = WITHDRAWN_AFTER + SOON;
    let jobs = space.jobs_when("the next one is ready", limit, |jobs| ready(jobs) == 1).await?;
    ensure!(jobs[0].serial == Some(2), "the serial is burnt: {:?}", jobs[0].serial);

    ensure!(space.proxy.deliver().await?.first() == Some(&201));
    let jobs = space.jobs_when("both are ready", SOON, |jobs| ready(jobs) == 2).await?;
    until("both count", SOON, async || {
        let status = scaler.status().await?;
        let text = status["text"].as_str().unwrap_or_default();
        Ok(status["reason"] == "AtMaximum" && text.contains("2 of at most 1"))
    })
    .await?;
    let told = format!("\"worker\":\"{}\"", jobs[0].name);
    let belated = |line: &str| line.contains("arrived long after it was decided") && line.contains(&told);
    until("it is told", SOON, async || Ok(scaler.process.log()?.lines().any(belated))).await?;
    // One ends: the other one is enough.
    space.kubelet.job(&jobs[1].name, crate::idle(1));
    space.jobs_when("one has ended", SOON, |jobs| alive(jobs) == 1).await?;
    until("one counts", SOON, async || {
        let status = scaler.status().await?;
        let text = status["text"].as_str().unwrap_or_default();
        Ok(status["reason"] == "AtMaximum" && text.contains("1 of at most 1"))
    })
    .await?;
    ensure!(space.jobs().await?.len() == 2);
    ensure!(space.state().await?["next_serial"] == 3, "{}", space.state().await?);
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_launch_that_is_turned_away_for_the_moment_is_tried_again_under_the_same_name(
    space: &Space<'_>,
) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 1 }))?;
    let overloaded = Act::Answer { status: 429, retry_after: Some(1) };
    let broken = Act::Answer { status: 503, retry_after: None };
    space.proxy.rule(Rule::new("create", "jobs", overloaded).nth(1));
    space.proxy.rule(Rule::new("create", "jobs", broken).nth(2));
    let mut scaler = space.scaler("scaler", &[])?;
    space.jobs_when("a worker is ready", SOON, |jobs| ready(jobs) == 1).await?;
    let creations = space.proxy.matching(|request| request.is("create", "jobs"));
    ensure!(creations.len() == 3, "{creations:?}");
    ensure!(creations.iter().all(|request| request.name == creations[0].name), "{creations:?}");
    ensure!(space.state().await?["failures"]["count"] == 0, "{}", space.state().await?);
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_foreign_job_with_the_next_name_is_skipped_told_and_left_alone(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 2 }))?;
    // Nothing follows the first one until the name is taken.
    space.kubelet.all(Script::Starts);
    let mut scaler = space.scaler("scaler", &[])?;
    let jobs = space.jobs_when("one worker is there", SOON, |jobs| jobs.len() == 1).await?;
    let taken = jobs[0].name.strip_suffix('1').context("its serial is 1")?.to_owned() + "2";
    let foreign = json!({
        "metadata": { "name": taken, "labels": { "app.kubernetes.io/instance": "other" } },
        "spec": { "suspend": true, "template": { "spec": {
            "restartPolicy": "Never", "containers": [{ "name": "other", "image": "other:test" }],
        } } },
    });
    let foreign: Job = space.create(foreign).await?;
    space.kubelet.all(Script::Works);
    let jobs = space.jobs_when("two workers are ready", SOON, |jobs| ready(jobs) == 2).await?;
    let serials: Vec<_> = jobs.iter().filter_map(|job| job.serial).collect();
    ensure!(serials == [1, 3], "{serials:?}");
    let still = jobs.iter().find(|job| job.name == taken).context("the foreign Job is gone")?;
    ensure!(still.job.metadata.uid == foreign.metadata.uid, "the foreign Job was replaced");
    ensure!(still.job.metadata.deletion_timestamp.is_none(), "the foreign Job is being deleted");
    let log = scaler.process.log()?;
    ensure!(log.contains(&format!("{taken} exists and is not ours")), "{}", scaler.process.log_tail());
    ensure!(space.state().await?["failures"]["count"] == 0, "{}", space.state().await?);
    ends(&mut scaler.process).await?;
    client.close().await
}
