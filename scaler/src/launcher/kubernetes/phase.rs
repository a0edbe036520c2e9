//! Where a worker is in its life, from its Job and its pod. Pure.

use std::time::Duration;

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition},
        core::v1::{ContainerState, ContainerStatus, Pod, PodCondition},
    },
    apimachinery::pkg::apis::meta::v1::Time as ApiTime,
};

use super::{cause::cause, names::intended_at, said::Said};
use crate::{
    policy::{PendingCause, Phase},
    time::Time,
};

/// A terminating pod that is still there so long after its grace hangs on a node that nobody hears of.
const HANGS_AFTER: Duration = Duration::from_secs(60);
/// A pod that gets its node within so many seconds found room; the API tells whole seconds.
const FOUND_ROOM_WITHIN: i64 = 3;
/// What the cluster says is cut to so many characters.
const DETAIL_LIMIT: usize = 300;

/// What is known of one Job.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) job: &'a Job,
    /// Its pod, if it has one.
    pub(super) pod: Option<&'a Pod>,
    /// Whether it had a pod that is gone.
    pub(super) lost_pod: bool,
    /// Since when it was ready, if it ever was: once ready it stays so here.
    pub(super) ready_since: Option<Time>,
    /// What Events say about it.
    pub(super) said: Option<&'a Said>,
}

/// Where the worker is. `None`: its Job is finished, so its end is to be drawn up.
pub(super) fn phase(seen: Seen<'_>, now: Time) -> Option<Phase> {
    let Seen { job, pod, lost_pod, ready_since, said } = seen;
    // The outcome is decided, or soon: nothing more is expected of it.
    let is_over = job.metadata.deletion_timestamp.is_some() || is_deciding(job);
    let suspended = suspended_since(job, now).filter(|_| !is_over && finished(job).is_none());
    let suspended = |started: bool| {
        let cause = PendingCause::Suspended;
        suspended.map(|since| Phase::Pending { started, cause, since, detail: None })
    };
    if let Some(pod) = pod
        && !has_ended(pod)
    {
        return Some(match pod_phase(pod, ready_since, said, now) {
            // Not its Job ends, only this pod.
            Phase::Draining => suspended(has_started(pod)).unwrap_or(Phase::Draining),
            phase => phase,
        });
    }
    if finished(job).is_some() {
        return None;
    }
    if let Some(suspended) = suspended(false) {
        return Some(suspended);
    }
    if is_over || pod.is_some() || lost_pod {
        return Some(Phase::Draining);
    }
    let (cause, since, detail) = match said {
        Some(Said { cause, since, detail }) => (*cause, *since, Some(detail.clone())),
        None => (PendingCause::Creating, stamp(job.metadata.creation_timestamp.as_ref(), now), None),
    };
    Some(Phase::Pending { started: false, cause, since, detail })
}

/// Since when the Job is suspended, if it is: it has no pod then, or will soon have none.
fn suspended_since(job: &Job, now: Time) -> Option<Time> {
    let is_suspended = job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true);
    let turned = suspension(job).filter(|condition| condition.status == "True");
    let since = turned.and_then(|condition| condition.last_transition_time.as_ref());
    is_suspended.then(|| stamp(since.or(job.metadata.creation_timestamp.as_ref()), now))
}

/// Whether the Job gave up this pod, of which nothing is left, without failing: it was suspended meanwhile, and maybe
/// resumed.
pub(super) fn has_given_up(job: &Job, pod: &Pod) -> bool {
    let turned = suspension(job).and_then(|condition| condition.last_transition_time.as_ref());
    let made = pod.metadata.creation_timestamp.as_ref();
    turned.zip(made).is_some_and(|(turned, made)| turned > made)
}

fn suspension(job: &Job) -> Option<&JobCondition> {
    job_conditions(job).find(|condition| condition.type_ == "Suspended")
}

/// Where a worker is of which only the pod is left, or counts; the pod has not ended.
pub(super) fn pod_phase(pod: &Pod, ready_since: Option<Time>, said: Option<&Said>, now: Time) -> Phase {
    if is_on_lost_node(pod) {
        return Phase::Lost;
    }
    if let Some(deadline) = &pod.metadata.deletion_timestamp {
        // The time stamp is the end of its grace, not the beginning.
        let hangs = now.since(stamp(Some(deadline), now)) >= HANGS_AFTER && is_scheduled(pod);
        return if hangs { Phase::Lost } else { Phase::Draining };
    }
    if let Some(since) = ready_since.or_else(|| was_ready(pod, now)) {
        return Phase::Ready { since };
    }
    let (cause, since, detail) = cause(pod, said, now);
    Phase::Pending { started: has_started(pod), cause, since, detail }
}

/// Since when the pod was ready, if it ever was, as far as it tells.
pub(super) fn was_ready(pod: &Pod, now: Time) -> Option<Time> {
    let ready = condition(pod, "Ready")?;
    let turned = ready.last_transition_time.as_ref();
    if ready.status == "True" {
        return Some(stamp(turned, now));
    }
    // The condition is born false, before containers start: one that turned after that was true in between.
    let started = worker_status(pod)?.state.as_ref()?.running.as_ref()?.started_at.as_ref()?;
    let turned = turned.filter(|turned| *turned > started)?;
    Some(stamp(Some(turned), now))
}

/// Whether a container that may hold a message ever started. What runs before the worker's own container, init
/// containers and sidecars, consumes nothing: else one that never ends, or an image that cannot be pulled after
/// it, would never be given up.
pub(super) fn has_started(pod: &Pod) -> bool {
    let own = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
    own.unwrap_or_default().iter().any(has_run)
}

/// Whether any container of the pod, init containers included, ever started.
pub(super) fn has_run_anything(pod: &Pod) -> bool {
    statuses(pod).any(has_run)
}

fn has_run(status: &ContainerStatus) -> bool {
    let ran = |state: Option<&ContainerState>| {
        state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    ran(status.state.as_ref()) || ran(status.last_state.as_ref()) || status.restart_count > 0
}

/// Whether all containers of the pod have ended for good.
pub(super) fn has_ended(pod: &Pod) -> bool {
    matches!(pod_phase_name(pod), "Succeeded" | "Failed")
}

/// The condition by which the Job is finished, if it is.
pub(super) fn finished(job: &Job) -> Option<&JobCondition> {
    job_conditions(job)
        .find(|condition| matches!(&*condition.type_, "Complete" | "Failed") && condition.status == "True")
}

/// When a launch was decided: its annotation, else when the Job was made.
pub(super) fn launched(job: &Job, now: Time) -> Time {
    intended_at(&job.metadata)
        .map_or_else(|| stamp(job.metadata.creation_timestamp.as_ref(), now), |at| at.min(now))
}

/// How long after its launch was decided the Job came to be; `None` for one that a person made.
pub(super) fn came_after(job: &Job) -> Option<Duration> {
    let made = u64::try_from(job.metadata.creation_timestamp.as_ref()?.0.as_millisecond()).ok()?;
    Some(Time::from_millis(made).since(intended_at(&job.metadata)?))
}

/// The node controller turns the pod's readiness off when it hears no more of the node; only the kubelet,
/// which is not heard, would turn that of the containers off.
fn is_on_lost_node(pod: &Pod) -> bool {
    let status = |name: &str| condition(pod, name).map(|condition| &*condition.status);
    let gated = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.readiness_gates.as_ref())
        .is_some_and(|gates| !gates.is_empty());
    let turned_off = status("Ready") == Some("False") && status("ContainersReady") == Some("True") && !gated;
    let told = pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some("NodeLost");
    pod_phase_name(pod) == "Running" && (turned_off || told)
}

/// Whether the Job controller has decided how the Job ends, but waits for its pod.
fn is_deciding(job: &Job) -> bool {
    job_conditions(job).any(|condition| {
        matches!(&*condition.type_, "FailureTarget" | "SuccessCriteriaMet") && condition.status == "True"
    })
}

fn job_conditions(job: &Job) -> impl Iterator<Item = &JobCondition> {
    job.status.iter().flat_map(|status| status.conditions.iter().flatten())
}

pub(super) fn is_scheduled(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_some()
        || condition(pod, "PodScheduled").is_some_and(|condition| condition.status == "True")
}

/// The pod's node, once it has one.
pub(super) fn node(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone()
}

/// Whether the pod found no room at first.
pub(super) fn waited_for_node(pod: &Pod) -> bool {
    let scheduled = condition(pod, "PodScheduled");
    if !is_scheduled(pod) {
        return scheduled.is_some_and(|condition| condition.status == "False");
    }
    let turned = scheduled.and_then(|condition| condition.last_transition_time.as_ref());
    let waited =
        |(made, found): (&ApiTime, &ApiTime)| found.0.as_second() - made.0.as_second() > FOUND_ROOM_WITHIN;
    pod.metadata.creation_timestamp.as_ref().zip(turned).is_some_and(waited)
}

fn pod_phase_name(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(super) fn condition<'a>(pod: &'a Pod, name: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == name)
}

/// The statuses of all containers, init containers first.
pub(super) fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|status| {
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
    })
}

/// The worker's container: the one of this name, else the first.
pub(super) fn worker_status(pod: &Pod) -> Option<&ContainerStatus> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let first = pod.spec.as_ref().and_then(|spec| spec.containers.first()).map(|first| &*first.name);
    let named = |name: &str| containers.iter().find(|status| status.name == name);
    named("worker").or_else(|| named(first?)).or_else(|| containers.first())
}

/// A stamp of the cluster in policy time, never in the future; now if there is none.
pub(super) fn stamp(at: Option<&ApiTime>, now: Time) -> Time {
    at.and_then(|at| u64::try_from(at.0.as_millisecond()).ok())
        .map_or(now, |at| Time::from_millis(at).min(now))
}

/// One line, not too long.
pub(super) fn short(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = line.trim();
    if line.chars().count() <= DETAIL_LIMIT {
        return line.to_owned();
    }
    line.chars().take(DETAIL_LIMIT).chain(['…']).collect()
}
