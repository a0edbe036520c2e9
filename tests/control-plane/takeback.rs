//! Workers are taken back before they start, many at once, and never one that has started.

use std::{cell::RefCell, collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use mayfly_service::report::{ExitReason, ExitReport};
use mayfly_tests::{
    Client,
    bed::rounds,
    control_plane::{Act, Request, Rule, Script, Space, WorkerJob},
    each_in_a_space, until,
};
use serde_json::json;

use crate::{SOON, alive, each_once, ends, ready, waiting};

/// How often a removal is raced where the figures are reported.
const RACES: usize = 200;
/// Workers that are launched, and taken back, together.
const TOGETHER: usize = 10;
/// A removal is held back for less than this while its worker starts.
const LONGEST_MS: usize = 40;
/// What a message takes, as far as the scaler learns.
const SERVICE: Duration = Duration::from_secs(60);

each_in_a_space!(
    a_removal_that_is_raced_by_the_workers_start_never_hits_one_that_has_started,
    workers_that_wait_for_a_node_are_taken_back_when_others_have_drained_the_backlog,
);

/// The end of a worker whose message took [`SERVICE`].
fn worked() -> Script {
    let busy_ms = u64::try_from(SERVICE.as_millis()).unwrap_or(u64::MAX);
    let report = ExitReport {
        messages: 1,
        done: 1,
        busy_ms,
        startup_ms: Some(500),
        ..ExitReport::new(ExitReason::Idle)
    };
    Script::Ends { code: 0, report: Some(report) }
}

/// A pool that launches `together` workers at once, since it knows what a message takes; and a node with room for
/// `room` of them.
async fn learned(space: &Space<'_>, together: usize, room: u32) -> Result<Client> {
    let client = waiting(space, 1).await?;
    let slo = json!([{ "name": space.bed.queue, "slo": "1m" }]);
    let configure = |most: usize| {
        space.configure(&json!({
            "queues": slo, "max_workers": most, "pods_per_node": together, "withdraw_after": "1s",
        }))
    };
    configure(1)?;
    space.kubelet.node("a", room).await?;
    let mut scaler = space.scaler("learns", &[])?;
    let jobs = space.jobs_when("the first worker is ready", SOON, |jobs| ready(jobs) == 1).await?;
    client.take_all(&space.bed.queue, 1, SOON).await?;
    space.kubelet.job(&jobs[0].name, worked());
    until("it is learned what a message takes", SOON, async || {
        let learned = &space.state().await?["estimates"]["service_time"];
        Ok(learned["mean_ms"].as_f64().is_some_and(|mean| mean > 1000.0))
    })
    .await?;
    ends(&mut scaler.process).await?;
    configure(together)?;
    Ok(client)
}

/// The Job that a pod's name is made of.
fn job_of(request: &Request) -> Option<String> {
    Some(request.name.as_ref()?.rsplit_once('-')?.0.to_owned())
}

fn is_removal(request: &Request) -> bool {
    request.is("delete", "pods")
}

/// Starts each worker in the moment in which its removal is on its way.
async fn start_what_is_removed(space: &Space<'_>, raced: &RefCell<BTreeSet<String>>) -> Result<()> {
    loop {
        for job in space.proxy.matching(is_removal).iter().filter_map(job_of) {
            if raced.borrow_mut().insert(job.clone()) {
                space.kubelet.job(&job, Script::Works);
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn a_removal_that_is_raced_by_the_workers_start_never_hits_one_that_has_started(
    space: &Space<'_>,
) -> Result<()> {
    let client = learned(space, TOGETHER, u32::try_from(TOGETHER)?).await?;
    let met = RefCell::<BTreeSet<String>>::default();
    for number in 1..=2 * RACES {
        let later = u64::try_from(number * 7 % LONGEST_MS)?;
        let delay = Act::Delay(Duration::from_millis(later));
        space.proxy.rule(Rule::new("delete", "pods", delay).nth(number));
    }
    space.kubelet.all(Script::Prepares);
    let mut scaler = space.scaler("scaler", &[])?;
    let races = async {
        while met.borrow().len() < rounds(RACES) {
            race(space, &client).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        failed = start_what_is_removed(space, &met) => failed?,
        done = races => done?,
    }
    let removals = space.proxy.matching(is_removal);
    let with = |status: u16| {
        let those = removals.iter().filter(|request| request.status == Some(status));
        those.filter_map(job_of).collect::<BTreeSet<_>>()
    };
    let (removed, refused) = (with(200), with(409));
    let seen = space.kubelet.seen();
    let did = |step: &str| {
        seen.iter().filter(|seen| seen.step == step).map(|seen| seen.job.clone()).collect::<BTreeSet<_>>()
    };
    let (started, late) = (did("starts"), did("starts in vain"));
    let touched: Vec<_> = removed.intersection(&started).collect();
    ensure!(touched.is_empty(), "removed after they had started: {touched:?}");
    let spared: Vec<_> = refused.difference(&started).collect();
    ensure!(spared.is_empty(), "spared although they had not started: {spared:?}");
    let unclear: Vec<_> =
        removals.iter().filter(|one| !matches!(one.status, Some(200 | 404 | 409))).collect();
    ensure!(unclear.is_empty(), "{unclear:?}");
    eprintln!(
        "{} removals were raced: {} came in time, {} of them a moment before the container ran; {} were refused",
        met.borrow().len(),
        removed.len(),
        late.len(),
        refused.len()
    );
    let both_won = !removed.is_empty() && !refused.is_empty();
    ensure!(both_won || rounds(RACES) < RACES, "one of them always won: that is no race");
    ensure!(space.state().await?["failures"]["count"] == 0, "{}", space.state().await?);
    let created = space.proxy.matching(|request| request.is("create", "jobs") && request.succeeded());
    let names: BTreeSet<_> = created.iter().filter_map(|request| request.name.clone()).collect();
    ensure!(names.len() == created.len(), "{} creations of {} names", created.len(), names.len());
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Many workers are launched, and then nothing waits any more.
async fn race(space: &Space<'_>, client: &Client) -> Result<()> {
    client.publish(&space.bed.queue, TOGETHER).await?;
    let waiting = async || {
        let pods = space.pods().await?;
        let waits = |pod: &&Pod| {
            let status = pod.status.as_ref();
            let containers = status.and_then(|status| status.container_statuses.as_ref());
            let phase = status.and_then(|status| status.phase.as_deref());
            phase == Some("Pending") && containers.is_some() && pod.metadata.deletion_timestamp.is_none()
        };
        Ok(pods.iter().filter(waits).count() == TOGETHER)
    };
    until("all of them are about to start", SOON, waiting).await?;
    client.take_all(&space.bed.queue, TOGETHER, SOON).await?;
    let decided = |jobs: &[WorkerJob]| jobs.iter().all(|job| job.ended.is_some() || job.ready);
    let jobs = space.jobs_when("each is removed, or has started", 2 * SOON, decided).await?;
    for job in jobs.iter().filter(|job| job.ready) {
        space.kubelet.job(&job.name, worked());
    }
    space.jobs_when("all have ended", SOON, |jobs| alive(jobs) == 0).await.map(drop)
}

async fn workers_that_wait_for_a_node_are_taken_back_when_others_have_drained_the_backlog(
    space: &Space<'_>,
) -> Result<()> {
    const ALL: usize = 50;
    const ROOM: usize = 8;
    let client = learned(space, ALL, u32::try_from(ROOM)?).await?;
    client.publish(&space.bed.queue, 2 * ALL).await?;
    let mut scaler = space.scaler("scaler", &[])?;
    let jobs = space
        .jobs_when("all are launched, and there is room for a few", SOON, |jobs| {
            alive(jobs) == ALL && ready(jobs) == ROOM
        })
        .await?;
    let stamps: BTreeSet<_> = jobs.iter().filter(|job| job.ended.is_none()).map(|job| job.stamp).collect();
    ensure!(stamps.len() == 1, "launched by {} decisions: {stamps:?}", stamps.len());
    let chosen: BTreeSet<_> = jobs.iter().filter(|job| job.ready).map(|job| job.name.clone()).collect();
    // Those that are ready have everything in their hands, and then nothing is left.
    client.take_all(&space.bed.queue, 2 * ALL, SOON).await?;
    let jobs =
        space.jobs_when("those that wait are taken back", 2 * SOON, |jobs| alive(jobs) == ROOM).await?;
    ensure!(ready(&jobs) == ROOM, "{} of {ROOM} work on", ready(&jobs));
    // No pod is left for which a node would have to come; and one that comes is for nobody.
    let unplaced = |pod: &&Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none());
    until("nothing waits for a node", SOON, async || {
        Ok(!space.pods().await?.iter().any(|pod| unplaced(&pod)))
    })
    .await?;
    space.kubelet.node("b", u32::try_from(ALL)?).await?;
    for job in &chosen {
        space.kubelet.job(job, worked());
    }
    scaler.decides("Empty", SOON).await?;
    let jobs = space.jobs_when("all have ended", SOON, |jobs| alive(jobs) == 0).await?;
    let started: BTreeSet<_> =
        space.kubelet.seen().into_iter().filter(|seen| seen.step == "starts").map(|seen| seen.job).collect();
    let first = jobs.first().context("no Job")?.name.clone();
    let surplus: Vec<_> = started.iter().filter(|job| !chosen.contains(*job) && **job != first).collect();
    ensure!(surplus.is_empty(), "started for nothing: {surplus:?}");
    ensure!(jobs.len() == 1 + ALL, "{} Jobs", jobs.len());
    each_once(space, &jobs)?;
    let state = space.state().await?;
    ensure!(state["failures"]["count"] == 0, "taken back is not a failure: {state}");
    // Places become free as the others leave: who is not needed must be gone by then. A pod that the scheduler
    // looked at meanwhile is tried again later.
    let requests = space.proxy.matching(|request| request.client == "scaler");
    let is_removal = |(_, request): &(usize, &Request)| request.is("delete", "pods");
    let removals: Vec<_> = requests.iter().enumerate().filter(is_removal).map(|(at, _)| at).collect();
    let (first, last) = (removals[0], removals[ALL - ROOM - 1]);
    let between = last - first - (ALL - ROOM - 1);
    ensure!(between < ROOM, "{between} other requests between the removals");
    ends(&mut scaler.process).await?;
    client.close().await
}
