//! The life of a pod without containers: which step comes next, and the status that its kubelet then reports.
//! Pure.

use k8s_openapi::api::core::v1::Pod;
use mayfly_service::report::ExitReport;
use serde_json::{Value, json};

use super::objects;

/// How far a worker's pod gets. It goes there step by step, whatever it was told before.
#[derive(Debug, Clone, PartialEq)]
pub enum Script {
    /// Its node prepares it: `ContainerCreating`.
    Prepares,
    /// Its sandbox is there; its image is being pulled.
    Pulls,
    /// Its node refuses it, having lost a race with the scheduler.
    Rejected,
    /// A sidecar that has to run before it crashes again and again.
    SidecarCrashes,
    /// Its container does not start, for this reason.
    Stuck {
        /// `ImagePullBackOff`, …
        reason: &'static str,
        /// What the kubelet says.
        message: String,
    },
    /// Its container runs, and is not ready.
    Starts,
    /// It is ready.
    Works,
    /// It is ready, and takes its time when it is asked to end.
    Lingers,
    /// Its container ends, whether it was ready or not.
    Ends {
        /// With this exit code.
        code: u8,
        /// With this termination message.
        report: Option<ExitReport>,
    },
    /// It is evicted from its node.
    Disrupted,
}

/// Where a pod is, by its own status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Bound,
    Waiting,
    Running,
    Ready,
    Over,
}

// === impl Stage ===

impl Stage {
    fn of(pod: &Pod) -> Self {
        let Some(status) = &pod.status else { return Self::Bound };
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return Self::Over;
        }
        let Some(container) = status.container_statuses.iter().flatten().next() else { return Self::Bound };
        let running = container.state.as_ref().is_some_and(|state| state.running.is_some());
        match (running, container.ready) {
            (false, _) => Self::Waiting,
            (true, false) => Self::Running,
            (true, true) => Self::Ready,
        }
    }
}

/// The next step of a pod, and the status that its kubelet then reports.
pub(super) fn next(script: &Script, deleted: bool, pod: &Pod) -> Option<(&'static str, Value)> {
    let stage = Stage::of(pod);
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let reason = containers.and_then(|all| all.first()?.state.as_ref()?.waiting.as_ref()?.reason.clone());
    if deleted {
        // It ends itself when it is asked to; a container that never started has no exit code of its own.
        return match stage {
            Stage::Over => None,
            Stage::Bound | Stage::Waiting => Some(("ended", over(137, "ContainerStatusUnknown", None, None))),
            Stage::Running | Stage::Ready => Some(("stopped", over(0, "Completed", None, None))),
        };
    }
    match (stage, script) {
        (Stage::Over, _) => None,
        (Stage::Bound, Script::Rejected) => Some(("ended", rejected())),
        (Stage::Bound, Script::SidecarCrashes) => Some(("stuck", crashing_sidecar())),
        (Stage::Bound, _) => Some(("prepares", waiting("ContainerCreating", None))),
        (_, Script::Disrupted) => {
            let disruption = json!({
                "type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet",
                "message": "The node was low on resource: memory.", "lastTransitionTime": objects::now(),
            });
            Some(("ended", over(137, "Error", None, Some(&disruption))))
        }
        (Stage::Waiting, Script::Pulls) => {
            (!is_true(pod, "PodReadyToStartContainers")).then(|| ("pulls", pulling()))
        }
        (Stage::Waiting, Script::Stuck { reason: wanted, message }) => {
            (reason.as_deref() != Some(wanted)).then(|| ("stuck", waiting(wanted, Some(message))))
        }
        (Stage::Waiting, Script::Starts | Script::Works | Script::Lingers | Script::Ends { .. }) => {
            Some(("starts", running(false)))
        }
        (Stage::Running, Script::Works | Script::Lingers) => Some(("works", running(true))),
        // The node was lost meanwhile: what is so is reported again.
        (Stage::Ready, Script::Works | Script::Lingers) => {
            (!is_true(pod, "Ready")).then(|| ("works", running(true)))
        }
        (Stage::Running | Stage::Ready, Script::Ends { code, report }) => {
            let reason = if *code == 0 { "Completed" } else { "Error" };
            Some(("ended", over(*code, reason, report.as_ref(), None)))
        }
        _ => None,
    }
}

fn conditions(started: bool, ready: bool) -> Vec<Value> {
    let condition = |kind: &str, holds: bool| {
        let status = if holds { "True" } else { "False" };
        let reason = if holds { Value::Null } else { json!("ContainersNotReady") };
        json!({ "type": kind, "status": status, "reason": reason, "lastTransitionTime": objects::now() })
    };
    vec![
        condition("PodReadyToStartContainers", started),
        condition("Initialized", true),
        condition("ContainersReady", ready),
        condition("Ready", ready),
    ]
}

fn container(state: &Value, started: bool, ready: bool) -> Value {
    json!([{
        "name": "worker", "image": "mayfly-worker:test", "imageID": "", "restartCount": 0,
        "state": state, "started": started, "ready": ready,
    }])
}

fn waiting(reason: &str, message: Option<&str>) -> Value {
    let state = json!({ "waiting": { "reason": reason, "message": message } });
    json!({
        "phase": "Pending", "startTime": objects::now(),
        "conditions": conditions(reason != "ContainerCreating", false),
        "containerStatuses": container(&state, false, false),
    })
}

fn is_true(pod: &Pod, condition: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|one| one.type_ == condition && one.status == "True")
}

fn pulling() -> Value {
    let status = waiting("ContainerCreating", None);
    json!({
        "phase": "Pending", "startTime": status["startTime"], "conditions": conditions(true, false),
        "containerStatuses": status["containerStatuses"],
    })
}

/// The kubelet refuses it before anything of it is prepared.
fn rejected() -> Value {
    json!({
        "phase": "Failed", "reason": "OutOfcpu", "startTime": objects::now(),
        "message": "Node didn't have enough resource: cpu, requested: 1000, used: 1000, capacity: 1000",
    })
}

fn crashing_sidecar() -> Value {
    let mut status = waiting("PodInitializing", None);
    status["initContainerStatuses"] = json!([{
        "name": "proxy", "image": "proxy:test", "imageID": "", "restartCount": 1, "started": false, "ready": false,
        "state": { "waiting": {
            "reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container=proxy",
        } },
        "lastState": { "terminated": { "exitCode": 1, "reason": "Error" } },
    }]);
    status
}

fn running(ready: bool) -> Value {
    let state = json!({ "running": { "startedAt": objects::now() } });
    json!({
        "phase": "Running", "podIP": "198.18.99.99", "podIPs": [{ "ip": "198.18.99.99" }],
        "conditions": conditions(true, ready), "containerStatuses": container(&state, true, ready),
    })
}

fn over(code: u8, reason: &str, report: Option<&ExitReport>, disruption: Option<&Value>) -> Value {
    let message = report.and_then(|report| serde_json::to_string(report).ok());
    // What a kubelet keeps of the log where there is no report.
    let message = message.or_else(|| (code != 0).then(|| "loading\ncannot open /models".to_owned()));
    let state = json!({ "terminated": {
        "exitCode": code, "reason": reason, "message": message,
        "startedAt": objects::now(), "finishedAt": objects::now(),
    } });
    let mut conditions = conditions(true, false);
    conditions.extend(disruption.cloned());
    json!({
        "phase": if code == 0 { "Succeeded" } else { "Failed" },
        "conditions": conditions, "containerStatuses": container(&state, false, false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps of a pod that reports what it is told to report.
    fn life(script: &Script, deleted: bool) -> Vec<&'static str> {
        let mut pod = json!({ "metadata": {}, "spec": { "containers": [] } });
        let mut steps = Vec::new();
        loop {
            let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
            let Some((step, status)) = next(script, deleted, &typed) else { return steps };
            steps.push(step);
            assert!(steps.len() < 10, "{steps:?}");
            pod["status"] = status;
        }
    }

    #[test]
    fn a_pod_lives_step_by_step_as_its_script_says() {
        let stuck = Script::Stuck { reason: "ImagePullBackOff", message: "not found".to_owned() };
        assert_eq!(life(&Script::Prepares, false), ["prepares"]);
        assert_eq!(life(&stuck, false), ["prepares", "stuck"]);
        assert_eq!(life(&Script::Starts, false), ["prepares", "starts"]);
        assert_eq!(life(&Script::Works, false), ["prepares", "starts", "works"]);
        assert_eq!(life(&Script::Ends { code: 1, report: None }, false), ["prepares", "starts", "ended"]);
        assert_eq!(life(&Script::Disrupted, false), ["prepares", "ended"]);
        assert_eq!(life(&Script::Pulls, false), ["prepares", "pulls"]);
        assert_eq!(life(&Script::Rejected, false), ["ended"]);
        assert_eq!(life(&Script::SidecarCrashes, false), ["stuck"]);
        assert_eq!(life(&Script::Lingers, false), ["prepares", "starts", "works"]);
        assert_eq!(life(&Script::Works, true), ["ended"], "it never started");
    }
}
