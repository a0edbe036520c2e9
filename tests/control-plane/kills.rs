//! Two scalers on one state, each killed again and again: at every call to the API server, before it arrives,
//! before its answer comes, and right after that.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use mayfly_tests::{
    Client,
    bed::rounds,
    control_plane::{Act, Request, Rule, Script, Space, WorkerJob},
    each_in_a_space, until,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{SOON, alive, ends, idle, ready};

/// How often a scaler is killed at its call where the figures are reported.
const KILLS: usize = 500;
/// A scaler that does not come to the call at which it is to die dies after this. By then it has also withdrawn
/// what nobody completes.
const PATIENCE: Duration = Duration::from_secs(20);
/// So long a worker that was taken back, or has ended, may take to be known as such.
const SETTLED: Duration = Duration::from_secs(180);
const MOST_WORKERS: usize = 3;
const LAUNCH_INTERVAL: Duration = Duration::from_millis(200);
/// Messages that wait, while any do.
const WAITING: usize = 10;
/// Every so many workers one gets stuck on its node, and is taken back.
const STUCK_EACH: u64 = 4;
/// Failed Jobs beyond so many are deleted …
const KEPT: usize = 10;
/// … once their launch is this long ago.
const NAME_FREE_AFTER: Duration = Duration::from_secs(180);
/// Only a worker that is stuck for this long is not needed any more: before, it is asked what it waits for.
const STUCK_FOR: Duration = Duration::from_secs(5);
/// What a launch whose name is taken asks for.
const ADOPTION: (&str, &str, usize) = ("get", "jobs", 1);
/// What removes the oldest of many failed Jobs.
const TIDYING: (&str, &str, usize) = ("delete", "jobs", 1);
/// The calls at which a scaler dies: the `n`th of its life of this kind.
const CALLS: [(&str, &str, usize); 18] = [
    ("update", "configmaps", 1),
    ("create", "jobs", 1),
    ("delete", "pods", 1),
    ("create", "events", 1),
    ("update", "configmaps", 2),
    ("get", "cronjobs", 1),
    ("list", "jobs", 2),
    ("list", "pods", 2),
    ("get", "configmaps", 2),
    ("create", "jobs", 2),
    ADOPTION,
    ("list", "events", 1),
    TIDYING,
    ("update", "configmaps", 3),
    ("list", "jobs", 1),
    ("list", "pods", 1),
    ("get", "configmaps", 1),
    ("list", "jobs", 4),
];

each_in_a_space!(scalers_killed_at_every_call_double_nothing_and_lose_nothing);

/// Where on the way of a call its scaler dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    /// It was sent. It arrives later, or never.
    Sent,
    /// It was carried out; no answer came.
    Done,
    /// The answer has come.
    Answered,
}

/// What happens besides the kills: work comes, workers live and end, some never start.
struct World<'a> {
    space: &'a Space<'a>,
    client: Client,
    /// Every Job that was ever there.
    jobs: RefCell<BTreeMap<String, WorkerJob>>,
    /// How often each ready worker was seen.
    seen_ready: RefCell<BTreeMap<String, u32>>,
    /// Whether messages wait.
    waits: Cell<bool>,
}

/// The kills to come, and those that were.
#[derive(Debug, Default)]
struct Kills {
    next: Cell<usize>,
    /// How many met their call.
    met: Cell<usize>,
    /// By the call and where on its way; `None` where the call did not come.
    done: RefCell<BTreeMap<String, usize>>,
    /// The names of all scalers that ever ran.
    scalers: RefCell<Vec<String>>,
}

async fn scalers_killed_at_every_call_double_nothing_and_lose_nothing(space: &Space<'_>) -> Result<()> {
    let world = World::make(space).await?;
    let kills = Kills::default();
    let begun = Instant::now();
    let killed = async {
        let (first, second) =
            tokio::join!(kills.again_and_again(space, "first"), kills.again_and_again(space, "second"));
        first.and(second)
    };
    tokio::select! {
        ended = world.goes_on() => ended?,
        killed = killed => killed?,
    }
    eprintln!("{} kills in {:?}: {:?}", kills.met.get(), begun.elapsed(), kills.done.borrow());
    // What was on its way arrives, and whoever comes next puts all in order.
    space.proxy.clear();
    space.proxy.deliver().await?;
    let mut scalers = Vec::new();
    for name in ["last", "last-but-one"] {
        scalers.push(space.scaler(name, &[])?);
        kills.scalers.borrow_mut().push(name.to_owned());
    }
    tokio::select! {
        ended = world.goes_on() => ended?,
        settled = settles(space) => settled?,
    }
    world.comes_to_rest().await?;
    for scaler in &mut scalers {
        scaler.decides("Empty", SOON).await?;
        ends(&mut scaler.process).await?;
    }
    world.is_in_order(&kills).await?;
    world.client.close().await
}

/// All launches are settled or withdrawn, while others go on.
async fn settles(space: &Space<'_>) -> Result<()> {
    let state = space.state().await?;
    let open = |state: &Value| {
        let intents = state["intents"].as_array().cloned().unwrap_or_default();
        intents.iter().filter_map(|intent| intent["serial"].as_u64()).collect::<BTreeSet<_>>()
    };
    let left = open(&state);
    until("what was left open is settled", SETTLED, async || {
        Ok(open(&space.state().await?).is_disjoint(&left))
    })
    .await
}

/// Whether there are failed Jobs to delete.
async fn has_surplus(space: &Space<'_>) -> Result<bool> {
    let failed = |job: &&WorkerJob| job.ended.as_deref() == Some("Failed") && age(job) > NAME_FREE_AFTER;
    Ok(space.jobs().await?.iter().filter(failed).count() > KEPT)
}

/// How long ago its launch was decided.
fn age(job: &WorkerJob) -> Duration {
    let launched = std::time::UNIX_EPOCH + Duration::from_millis(job.stamp);
    launched.elapsed().unwrap_or_default()
}

// === impl Kills ===

impl Kills {
    /// One replica: as soon as it is dead, another one takes its place.
    async fn again_and_again(&self, space: &Space<'_>, replica: &str) -> Result<()> {
        for life in 0.. {
            let number = self.next.get();
            if self.met.get() >= rounds(KILLS) {
                break;
            }
            let unmet = self.done.borrow().get("none").copied().unwrap_or(0);
            ensure!(
                unmet * 2 <= rounds(KILLS),
                "{unmet} scalers did not come to their call: {:?}",
                self.done
            );
            self.next.set(number + 1);
            let call = CALLS[number % CALLS.len()];
            if call == TIDYING && !has_surplus(space).await? {
                continue;
            }
            let (verb, resource, nth) = call;
            let side = [Side::Sent, Side::Done, Side::Answered][(number + number / CALLS.len()) % 3];
            let name = format!("{replica}-{life}");
            self.scalers.borrow_mut().push(name.clone());
            let act = match side {
                Side::Sent => Some(Act::Keep),
                Side::Done => Some(Act::Silence),
                Side::Answered => None,
            };
            if let Some(act) = act {
                space.proxy.rule(Rule::new(verb, resource, act).from(&name).nth(nth));
            }
            if call == ADOPTION {
                space.proxy.rule(Rule::new("create", "jobs", Act::Twice).from(&name));
            }
            let mut scaler = space.scaler(&name, &[])?;
            let mine = |request: &Request| request.client == name && request.is(verb, resource);
            let is_there = |request: &Request| match side {
                Side::Sent => true,
                Side::Done => request.status.is_some(),
                Side::Answered => request.answered.is_some(),
            };
            let met = until("its call", PATIENCE, async || {
                Ok(space.proxy.matching(mine).get(nth - 1).is_some_and(is_there))
            });
            let met = met.await.is_ok();
            scaler.process.kill().await.with_context(|| name.clone())?;
            self.met.set(self.met.get() + usize::from(met));
            let what = if met { format!("{verb} {resource} {side:?}") } else { "none".to_owned() };
            *self.done.borrow_mut().entry(what).or_insert(0) += 1;
            // Some of what was on its way arrives while others act.
            if number.is_multiple_of(3) {
                space.proxy.deliver().await?;
            }
        }
        Ok(())
    }
}

// === impl World ===

impl<'a> World<'a> {
    async fn make(space: &'a Space<'a>) -> Result<Self> {
        let interval = humantime::format_duration(LAUNCH_INTERVAL).to_string();
        space.configure(
            &json!({ "launch_interval": interval, "max_workers": MOST_WORKERS, "withdraw_after": "1s" }),
        )?;
        space.kubelet.node("a", 10).await?;
        let client = crate::waiting(space, WAITING).await?;
        let (jobs, seen_ready) = (RefCell::default(), RefCell::default());
        Ok(Self { space, client, jobs, seen_ready, waits: Cell::new(true) })
    }

    /// Goes on until it is dropped; ends only with what must not be.
    async fn goes_on(&self) -> Result<()> {
        loop {
            let jobs = self.look().await?;
            for job in jobs.iter().filter(|job| job.ready) {
                let mut seen = self.seen_ready.borrow_mut();
                let seen = seen.entry(job.name.clone()).or_insert(0);
                *seen += 1;
                if *seen == 4 {
                    self.space.kubelet.job(&job.name, idle(5));
                }
            }
            let is_for_nothing =
                |job: &WorkerJob| job.ended.is_none() && is_stuck(job) && age(job) > STUCK_FOR;
            let stuck = jobs.iter().any(is_for_nothing);
            if stuck && self.waits.replace(false) {
                self.client.take_all(&self.space.bed.queue, WAITING, SOON).await?;
            } else if !stuck && !self.waits.replace(true) {
                self.client.publish(&self.space.bed.queue, WAITING).await?;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Notes the Jobs that are there; never too many of them.
    async fn look(&self) -> Result<Vec<WorkerJob>> {
        let jobs = self.space.jobs().await?;
        if self.jobs.borrow().is_empty()
            && let Some(first) = jobs.first()
        {
            let prefix = first.name.trim_end_matches(char::is_numeric);
            for serial in (STUCK_EACH..10 * u64::try_from(KILLS)?).step_by(usize::try_from(STUCK_EACH)?) {
                self.space.kubelet.job(&format!("{prefix}{serial}"), Script::Prepares);
            }
        }
        self.jobs.borrow_mut().extend(jobs.iter().map(|job| (job.name.clone(), job.clone())));
        ensure!(alive(&jobs) <= MOST_WORKERS, "{} workers: {jobs:?}", alive(&jobs));
        let pods = self.space.pods().await?;
        let deleted = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some());
        let owner = |pod: &Pod| pod.metadata.labels.as_ref()?.get("job-name").cloned();
        let deleted: BTreeSet<_> = deleted.filter_map(owner).collect();
        let over = self.came_to(&["works", "ended", "gone"]);
        let is_pending = |job: &&WorkerJob| {
            job.ended.is_none() && !over.contains(&job.name) && !deleted.contains(&job.name)
        };
        let pending: Vec<_> = jobs.iter().filter(is_pending).map(|job| &job.name).collect();
        ensure!(pending.len() <= 1, "several are pending: {pending:?}");
        Ok(jobs)
    }

    /// The Jobs whose pods have taken one of these steps.
    fn came_to(&self, steps: &[&str]) -> BTreeSet<String> {
        let seen = self.space.kubelet.seen().into_iter();
        seen.filter(|seen| steps.contains(&seen.step)).map(|seen| seen.job).collect()
    }

    /// Nothing waits any more, and no worker lives.
    async fn comes_to_rest(&self) -> Result<()> {
        if self.waits.replace(false) {
            self.client.take_all(&self.space.bed.queue, WAITING, SOON).await?;
        }
        until("all workers have ended and are counted", SETTLED, async || {
            let jobs = self.look().await?;
            for job in jobs.iter().filter(|job| job.ready) {
                self.space.kubelet.job(&job.name, idle(5));
            }
            let state = self.space.state().await?;
            ensure!(alive(&jobs) == 0 && ready(&jobs) == 0, "{} live", alive(&jobs));
            let judged: BTreeSet<_> =
                state["judged"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
            let there: BTreeSet<_> = jobs.iter().filter_map(|job| job.serial).collect();
            ensure!(judged.is_superset(&there), "there are {there:?}, counted are {judged:?}");
            Ok(state["intents"] == json!([]))
        })
        .await
    }

    /// Everything is accounted for, by name and by serial.
    async fn is_in_order(&self, kills: &Kills) -> Result<()> {
        let Self { space, .. } = self;
        let jobs = self.jobs.borrow().clone();
        let asked = space.proxy.matching(|one| one.is("create", "jobs"));
        let created: Vec<_> =
            asked.iter().filter(|one| one.succeeded()).filter_map(|one| one.name.clone()).collect();
        let names: BTreeSet<_> = created.iter().cloned().collect();
        ensure!(names.len() == created.len(), "{} creations of {} names", created.len(), names.len());
        let there: BTreeSet<_> = jobs.keys().cloned().collect();
        let vanished: Vec<_> = names.difference(&there).collect();
        ensure!(vanished.is_empty(), "created, but not seen: {vanished:?}");
        // Of what was on its way when its sender died, the proxy does not know the outcome.
        let asked: BTreeSet<_> = asked.into_iter().filter_map(|one| one.name).collect();
        let unasked: Vec<_> = there.difference(&asked).collect();
        ensure!(unasked.is_empty(), "there, but nobody asked for it: {unasked:?}");
        // Each serial is one Job, or a launch that was told to be withdrawn.
        let state = space.state().await?;
        let next = state["next_serial"].as_u64().context("no serial")?;
        let serials: BTreeSet<_> = jobs.values().filter_map(|job| job.serial).collect();
        ensure!(serials.len() == jobs.len(), "{} Jobs with {} serials", jobs.len(), serials.len());
        let withdrawn = self.withdrawn(kills)?;
        let lost: Vec<_> =
            (1..next).filter(|serial| !serials.contains(serial) && !withdrawn.contains(serial)).collect();
        ensure!(lost.is_empty(), "launches that were lost: {lost:?}");
        ensure!(serials.last().is_none_or(|last| *last < next), "{serials:?}, next {next}");
        let mut in_order: Vec<_> = jobs.values().collect();
        in_order.sort_by_key(|job| job.serial);
        for pair in in_order.windows(2) {
            let apart = Duration::from_millis(pair[1].stamp.saturating_sub(pair[0].stamp));
            ensure!(apart >= LAUNCH_INTERVAL, "{} and {}: {apart:?}", pair[0].name, pair[1].name);
        }
        ensure!(state["failures"]["count"] == 0, "{state}");
        // Nothing that has started was touched, and all that was stuck was taken back.
        let touched = self.came_to(&["stopped"]);
        ensure!(touched.is_empty(), "busy workers were deleted: {touched:?}");
        let taken_back = self.came_to(&["gone"]);
        let stuck: BTreeSet<_> =
            jobs.values().filter(|job| is_stuck(job)).map(|job| job.name.clone()).collect();
        let left: Vec<_> = stuck.difference(&taken_back).collect();
        ensure!(left.is_empty(), "stuck workers that ended otherwise: {left:?}");
        let deleted = space.proxy.matching(|one| one.is("delete", "jobs"));
        let failed = |name: &String| jobs.get(name).is_some_and(|job| job.ended.as_deref() == Some("Failed"));
        let alive = deleted.iter().find(|one| !one.name.as_ref().is_some_and(failed));
        ensure!(alive.is_none(), "a Job was deleted that had not failed: {alive:?}");
        eprintln!(
            "{} launches, {} of them withdrawn, {} workers taken back; {} requests",
            next - 1,
            next - 1 - serials.len() as u64,
            taken_back.len(),
            space.proxy.requests().len()
        );
        Ok(())
    }

    /// The serials of launches that scalers told to be withdrawn.
    fn withdrawn(&self, kills: &Kills) -> Result<BTreeSet<u64>> {
        let mut serials = BTreeSet::new();
        for scaler in &*kills.scalers.borrow() {
            let log = std::fs::read_to_string(self.space.bed.directory().join(format!("{scaler}.log")))?;
            for line in log.lines().filter(|line| line.contains("its job never came to be")) {
                let told: Value = serde_json::from_str(line)?;
                serials.extend(told["serial"].as_u64());
            }
        }
        Ok(serials)
    }
}

/// Whether it is one of those whose container never starts.
fn is_stuck(job: &WorkerJob) -> bool {
    job.serial.is_some_and(|serial| serial.is_multiple_of(STUCK_EACH))
}
