//! Why a pod's worker is not ready yet (facts/kubernetes A2), and since when. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::{
    phase::{condition, is_scheduled, short, stamp, statuses, worker_status},
    said::Said,
};
use crate::{policy::PendingCause, time::Time};

/// The cause, since when it is so as far as the pod tells, and what the cluster says.
pub(super) type Cause = (PendingCause, Time, Option<String>);

/// Why the pod's worker is not ready; `said` is what Events say about it.
pub(super) fn cause(pod: &Pod, said: Option<&Said>, now: Time) -> Cause {
    if is_scheduled(pod) { preparing(pod, said, now) } else { placing(pod, said, now) }
}

/// Of a pod without a node.
fn placing(pod: &Pod, said: Option<&Said>, now: Time) -> Cause {
    let created = stamp(pod.metadata.creation_timestamp.as_ref(), now);
    let refused = condition(pod, "PodScheduled").filter(|condition| condition.status == "False");
    let turned = refused.map_or(created, |condition| stamp(condition.last_transition_time.as_ref(), now));
    let nominated = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
    if let Some(node) = nominated.filter(|node| !node.is_empty()) {
        return (PendingCause::Preempting, turned, Some(format!("on node {node}")));
    }
    let reason = refused.and_then(|condition| condition.reason.as_deref());
    let message = refused.and_then(|condition| condition.message.as_deref().or(reason)).map(short);
    match (reason, said) {
        (Some("SchedulingGated"), _) => (PendingCause::Gated, turned, message),
        (Some("SchedulerError"), _) => (PendingCause::SchedulerError, turned, message),
        (_, Some(Said { cause, since, detail })) if cause.is_placing() => {
            (*cause, *since, Some(detail.clone()))
        }
        _ if refused.is_some() => (PendingCause::NoRoom, turned, message),
        _ => (PendingCause::Creating, created, None),
    }
}

/// Of a pod that has its node.
fn preparing(pod: &Pod, said: Option<&Said>, now: Time) -> Cause {
    let created = pod.metadata.creation_timestamp.as_ref();
    let scheduled =
        condition(pod, "PodScheduled").and_then(|condition| condition.last_transition_time.as_ref());
    let scheduled = stamp(scheduled.or(created), now);
    if let Some((cause, detail)) = statuses(pod).find_map(refused) {
        return (cause, scheduled, Some(detail));
    }
    let worker = worker_status(pod).and_then(|status| status.state.as_ref());
    if let Some(running) = worker.and_then(|state| state.running.as_ref()) {
        return (PendingCause::NotReady, stamp(running.started_at.as_ref(), now), None);
    }
    if let Some(init) = unfinished_init(pod) {
        return (PendingCause::Initializing, scheduled, Some(format!("container {init}")));
    }
    // With the sandbox there, what is left is the image.
    let sandbox = condition(pod, "PodReadyToStartContainers").is_some_and(|ready| ready.status == "True");
    if sandbox && worker.is_some_and(|state| state.waiting.is_some()) {
        return (PendingCause::Pulling, scheduled, None);
    }
    match said {
        Some(Said { cause, since, detail }) if !cause.is_placing() => (*cause, *since, Some(detail.clone())),
        _ => (PendingCause::Starting, scheduled, None),
    }
}

/// What keeps the container from running, if the kubelet says so.
fn refused(status: &ContainerStatus) -> Option<(PendingCause, String)> {
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().unwrap_or_default();
    let cause = match reason {
        "" | "ContainerCreating" | "PodInitializing" => return None,
        "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" => PendingCause::ImagePull,
        "InvalidImageName" | "ErrImageNeverPull" | "SignatureValidationFailed" => PendingCause::BadImage,
        "CreateContainerConfigError" | "ImageInspectError" => PendingCause::BadConfiguration,
        "CreateContainerError"
        | "RunContainerError"
        | "CreatePodSandboxError"
        | "PreStartHookError"
        | "PostStartHookError" => PendingCause::RuntimeError,
        "CrashLoopBackOff" => PendingCause::CrashLoop,
        _ => PendingCause::Starting,
    };
    let message = waiting.message.as_deref().unwrap_or_default();
    let image = if message.contains(&status.image) { "" } else { &*status.image };
    let words = [reason, image, message].into_iter().filter(|word| !word.is_empty());
    Some((cause, short(&words.collect::<Vec<_>>().join(" "))))
}

/// The init container, or sidecar, that the worker's container waits for, once the first of them has begun.
fn unfinished_init(pod: &Pod) -> Option<&str> {
    let containers = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let is_sidecar = |name: &str| {
        let named = containers.iter().find(|container| container.name == name);
        named.is_some_and(|container| container.restart_policy.as_deref() == Some("Always"))
    };
    let init = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    let state = |status: &ContainerStatus| {
        let state = status.state.as_ref();
        let running = state.is_some_and(|state| state.running.is_some());
        (running, state.is_some_and(|state| state.terminated.is_some()))
    };
    let has_begun = init.iter().map(state).any(|(running, ended)| running || ended);
    let is_done = |status: &ContainerStatus| {
        let (running, ended) = state(status);
        ended || (running && is_sidecar(&status.name) && status.started == Some(true))
    };
    let unfinished = init.iter().find(|status| !is_done(status)).filter(|_| has_begun)?;
    Some(&*unfinished.name)
}
