//! What a Job and its pod say, one question each.

use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ContainerState, Pod, PodStatus},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use crate::kubernetes::workers::Outcome;

/// The identity of the Job that a pod belongs to.
pub(crate) fn owner(pod: &ObjectMeta) -> Option<&str> {
    let owners = pod.owner_references.as_deref()?;
    owners.iter().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.as_str())
}

/// Whether a condition of the Job says that it is over.
pub(crate) fn is_finished(job: &Job) -> bool {
    condition(job, "Complete").or(condition(job, "Failed")).is_some()
}

/// Whether the pod's containers have ended for good.
pub(crate) fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    pod_condition(pod, "Ready", "True").is_some()
}

pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

pub(crate) fn outcome(job: &Job) -> Option<Outcome> {
    if condition(job, "Complete").is_some() {
        return Some(Outcome::Complete);
    }
    let (reason, _) = condition(job, "Failed")?;
    Some(Outcome::Failed(reason))
}

/// Why a pod was disrupted, if it was: evicted, deleted, its node gone.
pub(crate) fn disruption(pod: &Pod) -> Option<String> {
    pod_condition(pod, "DisruptionTarget", "True").map(|(reason, _)| reason)
}

/// A true condition's reason and its time.
pub(crate) fn condition<'a>(job: &'a Job, kind: &str) -> Option<(String, Option<&'a Time>)> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    let found = conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True")?;
    Some((found.reason.clone().unwrap_or_default(), found.last_transition_time.as_ref()))
}

pub(crate) fn end_of(job: &Job) -> Option<&Time> {
    condition(job, "Complete").or(condition(job, "Failed")).and_then(|(_, time)| time)
}

/// The reason and message of a pod's condition of this status.
pub(crate) fn pod_condition(pod: &Pod, kind: &str, status: &str) -> Option<(String, String)> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let found = conditions.iter().find(|condition| condition.type_ == kind && condition.status == status)?;
    Some((found.reason.clone().unwrap_or_default(), found.message.clone().unwrap_or_default()))
}

/// The state of the first container, which is the worker.
pub(crate) fn container_state(pod: &Pod) -> Option<&ContainerState> {
    let PodStatus { container_statuses, .. } = pod.status.as_ref()?;
    container_statuses.as_deref()?.first()?.state.as_ref()
}

/// Why a pod is not ready yet, in Kubernetes' own words.
pub(crate) fn pending_cause(pod: &Pod) -> String {
    if let Some((reason, _)) = pod_condition(pod, "PodScheduled", "False") {
        return reason;
    }
    let Some(state) = container_state(pod) else { return "scheduled".to_owned() };
    match &state.waiting {
        Some(waiting) => waiting.reason.clone().unwrap_or_else(|| "waiting".to_owned()),
        None => "starting".to_owned(),
    }
}

pub(crate) fn milliseconds(time: Option<&Time>) -> u64 {
    time.map_or(0, |time| u64::try_from(time.0.as_millisecond()).unwrap_or(0))
}
