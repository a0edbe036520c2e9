//! What Events say about a worker that gets no further (facts/kubernetes A2). Pure.
//!
//! The newest word counts; that there is none proves nothing.

use k8s_openapi::{
    api::core::v1::{Event, Pod},
    apimachinery::pkg::apis::meta::v1::Time as ApiTime,
};

use super::phase::{condition, short, stamp};
use crate::{policy::PendingCause, time::Time};

/// What was said, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) cause: PendingCause,
    pub(super) since: Time,
    pub(super) detail: String,
}

/// What was said of all pods that wait for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) cause: PendingCause,
    pub(super) detail: String,
}

/// How the cluster autoscaler says that its own limits are reached.
const LIMITS: [&str; 4] =
    ["max node group size reached", "max total nodes in cluster reached", "limit reached", "exceeded quota"];
/// How it says that the cloud refused, and that it will try again.
const REFUSALS: [&str; 2] = ["in backoff after failed scale-up", "not ready for scale-up"];
/// How Karpenter says that its own limits are reached.
const KARPENTER_LIMITS: [&str; 2] = ["exceed limits for nodepool", "limits have been exhausted"];
/// How Karpenter says that the cloud refused.
const KARPENTER_REFUSALS: [&str; 2] = ["InsufficientCapacity", "insufficient capacity"];
/// How the scheduler says that a node would fit if it were empty.
const FULL: [&str; 2] = ["Insufficient ", "Too many pods"];
/// How autoscalers say that the pod is too large for a new node, the cluster autoscaler and Karpenter.
const TOO_LARGE: [&str; 4] =
    ["Insufficient ", "enough resources", "required resources", "requirements/resources/offering"];

// === impl Word ===

impl Word {
    /// What it says of a pod, if there is no room for that one.
    pub(super) fn about(&self, pod: &Pod, now: Time) -> Option<Said> {
        let refused = condition(pod, "PodScheduled")?;
        let Self { cause, detail } = self.clone();
        let since = stamp(refused.last_transition_time.as_ref(), now);
        (refused.reason.as_deref() == Some("Unschedulable")).then_some(Said { cause, since, detail })
    }
}

/// Why the Job controller could not create the pod, from the Events on its Job.
pub(super) fn of_creation(events: &[Event], now: Time) -> Option<Said> {
    let newest = newest(events, |event| reason(event) == "FailedCreate")?;
    let message = message(newest);
    let cause = if message.contains("exceeded quota") {
        PendingCause::Quota
    } else if says(message, &["is forbidden", "is invalid", "denied the request"]) {
        PendingCause::CreateRefused
    } else {
        // The API server was out of order, or a webhook: the controller tries again.
        PendingCause::Creating
    };
    Some(Said { cause, since: since(newest, now), detail: short(message) })
}

/// What autoscalers say in the Events on a pod without a node.
pub(super) fn of_placing(events: &[Event], pod: &Pod, now: Time) -> Option<Said> {
    let newest = newest(events, |event| match reason(event) {
        "TriggeredScaleUp" | "NotTriggerScaleUp" | "FailedScaleUp" | "Nominated" => true,
        // The scheduler uses the same word; what it says is in the pod's conditions.
        "FailedScheduling" => is_from(event, "karpenter"),
        _ => false,
    })?;
    let text = message(newest);
    let cause = match reason(newest) {
        "TriggeredScaleUp" | "Nominated" => PendingCause::NodeComing,
        "FailedScaleUp" => PendingCause::NodesRefused,
        "FailedScheduling" if says(text, &KARPENTER_LIMITS) => PendingCause::NodesAtLimit,
        "FailedScheduling" if says(text, &KARPENTER_REFUSALS) => PendingCause::NodesRefused,
        _ if says(text, &LIMITS) => PendingCause::NodesAtLimit,
        _ if says(text, &REFUSALS) => PendingCause::NodesRefused,
        _ if would_fit(pod, text) => PendingCause::NoRoom,
        _ => PendingCause::Misfit,
    };
    Some(Said { cause, since: since(newest, now), detail: short(text) })
}

/// What the kubelet says in the Events on a pod that it prepares.
pub(super) fn of_preparing(events: &[Event], now: Time) -> Option<Said> {
    let cause_of = |event: &Event| match reason(event) {
        "FailedMount" | "FailedAttachVolume" => Some(PendingCause::Volumes),
        "FailedCreatePodSandBox" | "NetworkNotReady" => Some(PendingCause::Network),
        "Pulling" => Some(PendingCause::Pulling),
        _ => None,
    };
    let newest = newest(events, |event| cause_of(event).is_some() || reason(event) == "Pulled")?;
    Some(Said { cause: cause_of(newest)?, since: since(newest, now), detail: short(message(newest)) })
}

/// Whether a node that is there would take the pod if it had room, whatever an autoscaler says about new ones;
/// a new node without room for it means that it is too large, though.
fn would_fit(pod: &Pod, autoscaler: &str) -> bool {
    let scheduler = condition(pod, "PodScheduled").and_then(|condition| condition.message.as_deref());
    scheduler.is_some_and(|text| says(text, &FULL)) && !says(autoscaler, &TOO_LARGE)
}

fn says(text: &str, words: &[&str]) -> bool {
    words.iter().any(|words| text.contains(words))
}

fn reason(event: &Event) -> &str {
    event.reason.as_deref().unwrap_or_default()
}

fn message(event: &Event) -> &str {
    event.message.as_deref().unwrap_or_default()
}

fn is_from(event: &Event, component: &str) -> bool {
    let source = event.source.as_ref().and_then(|source| source.component.as_deref());
    source == Some(component) || event.reporting_component.as_deref() == Some(component)
}

fn newest(events: &[Event], is_about: impl Fn(&Event) -> bool) -> Option<&Event> {
    events.iter().filter(|event| is_about(event)).max_by_key(|event| event_time(event))
}

fn since(event: &Event, now: Time) -> Time {
    let precise = event.event_time.as_ref().map(|time| ApiTime(time.0));
    stamp(event.first_timestamp.as_ref().or(precise.as_ref()), now)
}

fn event_time(event: &Event) -> Option<ApiTime> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
    let precise = series.or(event.event_time.as_ref()).map(|time| ApiTime(time.0));
    event.last_timestamp.clone().max(precise)
}
