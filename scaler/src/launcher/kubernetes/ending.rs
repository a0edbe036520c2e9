//! How a worker ended, from its finished Job and its pod. Pure.

use std::time::Duration;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerStateTerminated, Pod},
};
use mayfly_service::report::ExitReport;

use super::{
    names::intended_at,
    phase::{condition, finished, has_run_anything, short, stamp, statuses, worker_status},
};
use crate::{launcher::words, policy::Ending, time::Time};

/// Reasons of a pod's failure that are the cluster's doing, besides the condition `DisruptionTarget`.
const DISRUPTIONS: [&str; 6] =
    ["Evicted", "Terminated", "NodeLost", "NodeShutdown", "Shutdown", "Preempting"];

/// The end of a worker whose Job is finished. `pod` is as last seen, `listed` whether it is still there.
pub(super) fn ending(job: &Job, pod: Option<&Pod>, listed: bool, now: Time) -> Ending {
    let condition_of_end = finished(job);
    let of_job = job.status.as_ref().and_then(|status| status.completion_time.as_ref());
    let turned = condition_of_end.and_then(|condition| condition.last_transition_time.as_ref());
    let failed = condition_of_end.is_some_and(|condition| condition.type_ == "Failed");
    let why = condition_of_end.and_then(|condition| condition.reason.as_deref()).unwrap_or_default();
    let ended = of_job.or(turned);

    let worker = pod.and_then(terminated);
    let report = worker.and_then(|ended| ended.message.as_deref()).and_then(ExitReport::from_message);
    let ready_at = worker.and_then(|ended| ended.started_at.as_ref()).zip(report.as_ref()).and_then(
        |(started, report)| Some(stamp(Some(started), now) + Duration::from_millis(report.startup_ms?)),
    );
    let lead_time = ready_at
        .zip(intended_at(&job.metadata))
        .map(|(ready, intended)| ready.since(intended))
        .filter(|lead| *lead > Duration::ZERO);

    // The Job's own pod went without its end being seen: somebody deleted it, or its node.
    let gone = failed && worker.is_none() && !listed && why != "DeadlineExceeded";
    let had_pod = job.status.as_ref().and_then(|status| status.failed).is_some_and(|count| count > 0);
    let disruption = pod.and_then(disruption).or_else(|| gone.then(|| "its pod is gone".to_owned()));
    let of_pod = disruption.clone().or_else(|| pod.and_then(pods_own_words));
    let detail = [of_pod, pod.and_then(container_trouble), Some(said_of(why).to_owned())]
        .into_iter()
        .flatten()
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    Ending {
        at: stamp(worker.and_then(|worker| worker.finished_at.as_ref()).or(ended), now),
        started: pod.map_or(had_pod, has_run_anything),
        lead_time,
        exit_code: worker.and_then(|worker| u8::try_from(worker.exit_code).ok()),
        report: report.clone(),
        detail: (!detail.is_empty()).then(|| short(&detail)),
        last_words: worker.filter(|_| report.is_none()).and_then(last_words),
        disrupted: disruption.is_some(),
    }
}

/// What the container wrote last, if that is no report: with the policy `FallbackToLogsOnError` its log.
fn last_words(ended: &ContainerStateTerminated) -> Option<String> {
    let message = ended.message.as_deref().filter(|_| ended.reason.as_deref() != Some("StartError"));
    words::last_of(message?)
}

/// The Job's own reason, where it tells more than that its only pod failed.
fn said_of(reason: &str) -> &str {
    match reason {
        "BackoffLimitExceeded" | "CompletionsReached" => "",
        other => other,
    }
}

fn terminated(pod: &Pod) -> Option<&ContainerStateTerminated> {
    worker_status(pod)?.state.as_ref()?.terminated.as_ref()
}

/// What took the pod away, if it was not its own doing.
fn disruption(pod: &Pod) -> Option<String> {
    if let Some(target) = condition(pod, "DisruptionTarget").filter(|target| target.status == "True") {
        let words = [target.reason.as_deref(), target.message.as_deref()].into_iter().flatten();
        return Some(words.collect::<Vec<_>>().join(": "));
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Some("its pod was deleted".to_owned());
    }
    let reason = pod.status.as_ref()?.reason.as_deref()?;
    DISRUPTIONS.contains(&reason).then(|| pods_own_words(pod))?
}

/// What the cluster says of the pod as a whole, if anything: that a kubelet refused it, for example.
fn pods_own_words(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let reason = status.reason.as_deref().filter(|reason| !reason.is_empty())?;
    let message = status.message.as_deref().map_or_else(String::new, |message| format!(": {message}"));
    Some(format!("{reason}{message}"))
}

/// What ended badly in the pod, beyond an exit code.
fn container_trouble(pod: &Pod) -> Option<String> {
    let worker = worker_status(pod).map(|status| &*status.name);
    statuses(pod).find_map(|status| {
        let ended = status.state.as_ref()?.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
        let reason = ended.reason.as_deref().filter(|reason| *reason != "Error");
        // A worker's own message is its report, unless it never ran.
        let message = ended.message.as_deref().filter(|_| reason == Some("StartError"));
        let reason = reason.map_or_else(String::new, |reason| format!(" {reason}"));
        let message = message.map_or_else(String::new, |message| format!(": {message}"));
        if worker == Some(&*status.name) {
            return (!reason.is_empty()).then(|| format!("{}{message}", reason.trim()));
        }
        Some(format!("container {} ended with {}{reason}{message}", status.name, ended.exit_code))
    })
}
