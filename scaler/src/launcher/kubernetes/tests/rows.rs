//! The rows of facts/kubernetes A2, one by one: what is seen, what it means, what follows.

use std::time::Duration;

use kube::core::Status;
use serde_json::json;

use super::{
    super::{
        autoscaler, failed,
        memory::Memory,
        phase::{Seen, has_started, phase},
        said,
    },
    *,
};
use crate::{
    cluster::CallError,
    launcher::LaunchError,
    policy::{Action, Deadlines, PendingCause, Phase, Verdict},
};

const UNSCHEDULED: &str = "0/2 nodes are available: 2 Insufficient cpu.";
/// Longer than every deadline.
const FOR_EVER: u64 = 100_000;

/// A refusal of the API server.
fn refused(code: u16, reason: &str, message: &str) -> LaunchError {
    let status = Status::failure(message, reason).with_code(code);
    failed("worker x".to_owned(), CallError::Refused(status.boxed()))
}

/// A pod without a node, refused by the scheduler 50 s ago for this reason, with these words.
fn unscheduled(reason: &str, message: &str) -> Pod {
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": reason,
        "message": message, "lastTransitionTime": ago(50),
    });
    pod(json!({ "spec": { "nodeName": null }, "status": { "conditions": [condition] } }))
}

/// A pod that got its node 45 s ago; with its sandbox, if there is one, for 44 s.
fn scheduled(sandbox: bool, container: Value) -> Pod {
    let sandbox = ("PodReadyToStartContainers", if sandbox { "True" } else { "False" }, 44);
    pod_in("Pending", &[("PodScheduled", "True", 45), sandbox], container)
}

fn creating() -> Value {
    waiting("ContainerCreating", "")
}

/// The phase of a pod on which these Events are.
fn with(pod: &Pod, events: &[Event]) -> Phase {
    let said = if super::super::phase::is_scheduled(pod) {
        said::of_preparing(events, NOW)
    } else {
        said::of_placing(events, pod, NOW)
    };
    let job = job(json!({ "active": 1 }));
    let seen = Seen { job: &job, pod: Some(pod), lost_pod: false, ready_since: None, said: said.as_ref() };
    phase(seen, NOW).expect("it has ended")
}

/// The phase of a Job without a pod, on which this Event is.
fn podless(message: &str) -> Phase {
    let said = said::of_creation(&[event("FailedCreate", message, 20)], NOW);
    let job = job(json!({}));
    let seen = Seen { job: &job, pod: None, lost_pod: false, ready_since: None, said: said.as_ref() };
    phase(seen, NOW).expect("it has ended")
}

/// It is this cause, since so many seconds ago; `words` are in what is told. It is waited for this long, in
/// seconds, and then this is done.
#[track_caller]
fn means(phase: &Phase, expected: PendingCause, ago: u64, words: &str, waits: u64, then: Action) {
    let Phase::Pending { started, cause, since, detail } = phase else { panic!("{phase:?}") };
    assert_eq!((*cause, *since), (expected, at(ago)), "{phase:?}");
    let told = detail.as_deref().unwrap_or_default();
    assert!(told.contains(words), "{words:?} is not in {told:?}");
    assert!(!started, "what has started is only waited for");
    let after = |seconds: u64| phase.action(at(ago) + Duration::from_secs(seconds), &Deadlines::default());
    match waits {
        0 => assert_eq!(after(FOR_EVER), then, "for ever"),
        FOR_EVER => assert_eq!(after(0), then, "at once"),
        _ => assert_eq!(after(waits - 1), Action::Wait, "before"),
    }
    assert_eq!(after(waits), then, "after {waits} s");
}

fn karpenter(reason: &str, message: &str) -> Event {
    let mut event = event(reason, message, 9);
    event.reporting_component = Some("karpenter".to_owned());
    event
}

#[test]
fn row_1_a_full_quota_of_jobs_holds() {
    let words = "jobs.batch \"x\" is forbidden: exceeded quota: q, requested: count/jobs.batch=1, used: \
                 count/jobs.batch=5, limited: count/jobs.batch=5";
    assert!(matches!(refused(403, "Forbidden", words), LaunchError::AtCapacity { .. }));
}

#[test]
fn row_2_other_refusals_are_failures() {
    for (code, reason, words, is_ours) in [
        (403, "Forbidden", "jobs.batch is forbidden: User \"x\" cannot create resource \"jobs\"", true),
        (
            403,
            "Forbidden",
            "unable to create new content in namespace x because it is being terminated",
            true,
        ),
        (422, "Invalid", "Job.batch \"x\" is invalid: spec.template.spec.restartPolicy: Unsupported", false),
        (400, "BadRequest", "admission webhook \"w\" denied the request: no", false),
    ] {
        let error = refused(code, reason, words);
        assert!(matches!(error, LaunchError::Refused { forbidden, .. } if forbidden == is_ours), "{error:?}");
    }
}

#[test]
fn row_3_a_name_that_is_taken_is_looked_at_before_anything_is_said() {
    let status = Status::failure("jobs.batch \"x\" already exists", "AlreadyExists").with_code(409);
    assert!(CallError::Refused(status.boxed()).is_already_exists());
}

#[test]
fn row_4_an_overloaded_api_server_has_not_answered() {
    let unanswered = [
        CallError::Unanswered("429 Too Many Requests: x".into()),
        CallError::Unanswered("503 Service Unavailable: x".into()),
        CallError::Busy(Duration::from_secs(1)),
    ];
    for error in unanswered {
        assert!(matches!(failed("x".to_owned(), error), LaunchError::Unanswered { .. }));
    }
}

#[test]
fn row_5_a_full_quota_of_pods_holds() {
    let words = "Error creating: pods \"x-\" is forbidden: exceeded quota: z, requested: pods=1, used: pods=5, \
                 limited: pods=5";
    means(&podless(words), PendingCause::Quota, 20, "exceeded quota", 0, Action::Hold);
}

#[test]
fn row_6_a_pod_that_the_cluster_refuses_is_a_failure() {
    for words in [
        "Error creating: pods \"x-\" is forbidden: violates PodSecurity \"restricted:latest\": …",
        "Error creating: pods \"x-\" is forbidden: error looking up service account work/worker: serviceaccount \
         \"worker\" not found",
        "Error creating: admission webhook \"w\" denied the request: no",
        "Error creating: pods is forbidden: User \"x\" cannot create resource \"pods\"",
    ] {
        means(&podless(words), PendingCause::CreateRefused, 20, words, 0, Action::Fail);
    }
    // What passes by itself is waited for.
    let passing = podless("Error creating: Internal error occurred: timeout");
    means(&passing, PendingCause::Creating, 20, "timeout", FOR_EVER, Action::Wait);
    // The newest counts.
    let both = [
        event("FailedCreate", "pods is forbidden: exceeded quota", 20),
        event("FailedCreate", "timeout", 5),
        event("Other", "", 1),
    ];
    assert_eq!(said::of_creation(&both, NOW).map(|said| said.cause), Some(PendingCause::Creating));
    assert_eq!(said::of_creation(&[event("SuccessfulCreate", "is forbidden", 1)], NOW), None);
}

#[test]
fn row_7_no_room_is_waited_for_and_then_taken_for_want_of_capacity() {
    let pod = unscheduled("Unschedulable", UNSCHEDULED);
    let by_scheduler = event("FailedScheduling", UNSCHEDULED, 9);
    for events in [&[][..], &[by_scheduler][..]] {
        means(&with(&pod, events), PendingCause::NoRoom, 50, UNSCHEDULED, 300, Action::Hold);
    }
}

#[test]
fn row_8_a_node_that_the_autoscaler_promised_is_waited_for() {
    let words = "pod triggered scale-up: [{a 0->1 (max: 3)}]";
    let pod = unscheduled("Unschedulable", UNSCHEDULED);
    let phase = with(&pod, &[event("TriggeredScaleUp", words, 9)]);
    means(&phase, PendingCause::NodeComing, 9, words, 1200, Action::Hold);
    // Once it has a node that word is history.
    let pod = scheduled(false, Value::Null);
    means(
        &with(&pod, &[event("TriggeredScaleUp", words, 9)]),
        PendingCause::Starting,
        45,
        "",
        300,
        Action::Fail,
    );
}

#[test]
fn row_9_an_autoscaler_at_its_limit_holds() {
    let pod = unscheduled("Unschedulable", UNSCHEDULED);
    for reason in [
        "1 max node group size reached, 2 node(s) didn't match Pod's node affinity/selector",
        "1 max total nodes in cluster reached",
        "1 exceeded quota: \"q\", resources: cpu",
        "1 max cluster cpu limit reached",
    ] {
        let words = format!("pod didn't trigger scale-up: {reason}");
        let phase = with(&pod, &[event("NotTriggerScaleUp", &words, 9)]);
        means(&phase, PendingCause::NodesAtLimit, 9, reason, 0, Action::Hold);
    }
    // What it says later counts.
    let both = [
        event("NotTriggerScaleUp", "pod didn't trigger scale-up: 1 max node group size reached", 30),
        event("TriggeredScaleUp", "pod triggered scale-up: [{a 2->3 (max: 3)}]", 5),
    ];
    means(&with(&pod, &both), PendingCause::NodeComing, 5, "2->3", 1200, Action::Hold);
}

#[test]
fn row_10_a_cloud_that_refused_a_moment_ago_holds() {
    let pod = unscheduled("Unschedulable", UNSCHEDULED);
    for reason in ["1 in backoff after failed scale-up", "2 not ready for scale-up, 1 node(s) had taints"] {
        let words = format!("pod didn't trigger scale-up: {reason}");
        let phase = with(&pod, &[event("NotTriggerScaleUp", &words, 9)]);
        means(&phase, PendingCause::NodesRefused, 9, reason, 0, Action::Hold);
    }
}

#[test]
fn row_11_a_worker_that_fits_no_node_is_given_up() {
    let elsewhere = unscheduled("Unschedulable", "0/2 nodes are available: 2 node(s) had untolerated taint.");
    let full = unscheduled("Unschedulable", UNSCHEDULED);
    let words = "pod didn't trigger scale-up: 2 node(s) didn't match Pod's node affinity/selector";
    let phase = with(&elsewhere, &[event("NotTriggerScaleUp", words, 9)]);
    means(&phase, PendingCause::Misfit, 9, words, 120, Action::Fail);
    let large = "pod didn't trigger scale-up: 1 Insufficient cpu";
    let phase = with(&full, &[event("NotTriggerScaleUp", large, 9)]);
    means(&phase, PendingCause::Misfit, 9, large, 120, Action::Fail);
    // Where a node that is there would take it, an autoscaler of other nodes decides nothing.
    let phase = with(&full, &[event("NotTriggerScaleUp", words, 9)]);
    means(&phase, PendingCause::NoRoom, 9, words, 300, Action::Hold);
}

#[test]
fn row_12_a_cloud_without_stock_or_quota_holds() {
    let pod = unscheduled("Unschedulable", UNSCHEDULED);
    for why in ["GCE out of resources", "GCE quota exceeded"] {
        let words = format!(
            "Node scale up in zones europe-west1-b associated with this pod failed: {why}. Pod is at risk of not \
             being scheduled."
        );
        let phase = with(&pod, &[event("FailedScaleUp", &words, 9)]);
        means(&phase, PendingCause::NodesRefused, 9, why, 0, Action::Hold);
    }
}

#[test]
fn row_13_a_node_that_karpenter_promised_is_waited_for() {
    let words = "Pod should schedule on: nodeclaim/x, node/y";
    let pod = unscheduled("Unschedulable", UNSCHEDULED);
    let phase = with(&pod, &[karpenter("Nominated", words)]);
    means(&phase, PendingCause::NodeComing, 9, words, 1200, Action::Hold);
}

#[test]
fn row_14_karpenter_tells_limits_from_want_of_stock_and_from_misfits() {
    let elsewhere = unscheduled("Unschedulable", "0/1 nodes are available: 1 node(s) had untolerated taint.");
    for (words, cause, waits, then) in [
        (
            "Failed to schedule pod, all available instance types exceed limits for nodepool: \"default\"",
            PendingCause::NodesAtLimit,
            0,
            Action::Hold,
        ),
        (
            "Failed to schedule pod, node limits have been exhausted for nodepool \"default\"",
            PendingCause::NodesAtLimit,
            0,
            Action::Hold,
        ),
        (
            "Failed to schedule pod, InsufficientCapacityError: all requested instance types were unavailable",
            PendingCause::NodesRefused,
            0,
            Action::Hold,
        ),
        (
            "Failed to schedule pod, incompatible with nodepool \"default\", did not tolerate x=y:NoSchedule",
            PendingCause::Misfit,
            120,
            Action::Fail,
        ),
    ] {
        let phase = with(&elsewhere, &[karpenter("FailedScheduling", words)]);
        means(&phase, cause, 9, words, waits, then);
    }
    // Nodes that are there are full, and no new one would be large enough: in the words of its releases.
    let full = unscheduled("Unschedulable", UNSCHEDULED);
    let requirements = "karpenter.sh/nodepool In [default], kubernetes.io/os In [linux]";
    let resources = "{\"cpu\":\"400\",\"pods\":\"3\"}";
    for why in [
        "no instance type has enough resources",
        "no instance type met the scheduling requirements or had enough resources",
        "no instance type which had enough resources and the required offering met the scheduling requirements",
        "no instance type which met the scheduling requirements and the required offering had the required \
         resources",
        "no instance type met the requirements/resources/offering tuple",
    ] {
        for words in [
            format!(
                "incompatible with nodepool \"default\", daemonset overhead={resources}, no instance type \
                 satisfied resources {resources} and requirements {requirements} ({why})"
            ),
            format!("{why}, requirements={requirements}, resources={resources}"),
        ] {
            let words = format!("Failed to schedule pod, {words}");
            for pod in [&full, &elsewhere] {
                let phase = with(pod, &[karpenter("FailedScheduling", &words)]);
                means(&phase, PendingCause::Misfit, 9, "no instance type", 120, Action::Fail);
            }
        }
    }
    // What is asked for beside room has only a node that is there, and that one is full.
    let words = "Failed to schedule pod, no instance type met all requirements, requirements=example.com/disk In \
                 [fast], resources={\"cpu\":\"1\"}";
    let events = [karpenter("FailedScheduling", words)];
    means(&with(&elsewhere, &events), PendingCause::Misfit, 9, words, 120, Action::Fail);
    means(&with(&full, &events), PendingCause::NoRoom, 9, words, 300, Action::Hold);
}

#[test]
fn row_15_a_gate_is_waited_for_and_a_broken_scheduler_only_for_a_while() {
    let gated =
        with(&unscheduled("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates"), &[]);
    means(&gated, PendingCause::Gated, 50, "non-empty scheduling gates", FOR_EVER, Action::Wait);
    let broken = with(&unscheduled("SchedulerError", "binding rejected"), &[]);
    means(&broken, PendingCause::SchedulerError, 50, "binding rejected", 300, Action::Fail);
}

#[test]
fn row_16_victims_that_leave_for_it_are_waited_for() {
    let mut pod = unscheduled("Unschedulable", UNSCHEDULED);
    pod.status.as_mut().unwrap().nominated_node_name = Some("node-1".to_owned());
    means(&with(&pod, &[]), PendingCause::Preempting, 50, "node-1", 300, Action::Hold);
}

#[test]
fn row_17_volumes_and_network_have_minutes_and_the_event_names_them() {
    let nothing = with(&scheduled(false, Value::Null), &[]);
    means(&nothing, PendingCause::Starting, 45, "", 300, Action::Fail);
    let pod = scheduled(false, creating());
    means(&with(&pod, &[]), PendingCause::Starting, 45, "", 300, Action::Fail);
    for (reason, words, cause) in [
        (
            "FailedMount",
            "MountVolume.SetUp failed for volume \"v\" : secret \"x\" not found",
            PendingCause::Volumes,
        ),
        ("FailedAttachVolume", "Multi-Attach error for volume \"v\"", PendingCause::Volumes),
        (
            "FailedCreatePodSandBox",
            "Failed to create pod sandbox: plugin type=\"bridge\" failed (add)",
            PendingCause::Network,
        ),
        ("NetworkNotReady", "network is not ready: cni plugin not initialized", PendingCause::Network),
    ] {
        let phase = with(&pod, &[event("Scheduled", "", 45), event(reason, words, 9)]);
        means(&phase, cause, 9, words, 180, Action::Fail);
    }
}

#[test]
fn row_18_an_image_that_is_being_pulled_has_a_time_of_its_own() {
    let pulling = event("Pulling", "Pulling image \"mayfly-worker:1\"", 9);
    means(&with(&scheduled(true, creating()), &[]), PendingCause::Pulling, 45, "", 900, Action::Fail);
    // Where no condition tells of the sandbox, the Event does; it also ends the trouble before it.
    let mounted = [event("FailedMount", "timed out", 30), pulling];
    means(
        &with(&scheduled(false, creating()), &mounted),
        PendingCause::Pulling,
        9,
        "Pulling",
        900,
        Action::Fail,
    );
}

#[test]
fn row_19_init_containers_are_named_and_have_a_time_of_their_own() {
    let with_init = |init: Vec<Value>, sidecar: &str| {
        pod(json!({
            "spec": { "initContainers": [{ "name": sidecar, "restartPolicy": "Always" }] },
            "status": {
                "conditions": [{ "type": "PodScheduled", "status": "True", "lastTransitionTime": ago(45) },
                    { "type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": ago(44) }],
                "initContainerStatuses": init, "containerStatuses": [waiting("PodInitializing", "")],
            },
        }))
    };
    let run = |name: &str, started: bool| {
        merged(container(name, json!({ "running": { "startedAt": ago(40) } })), json!({ "started": started }))
    };
    let wait = |name: &str| container(name, json!({ "waiting": { "reason": "PodInitializing" } }));
    let cause = |pod: &Pod| match with(pod, &[]) {
        Phase::Pending { started, cause, detail, .. } => (started, cause, detail),
        other => panic!("{other:?}"),
    };
    let named = |name: &str| Some(format!("container {name}"));
    let init = with_init(vec![run("fetch", true)], "");
    // It holds no message, whatever ran before its own container.
    means(&with(&init, &[]), PendingCause::Initializing, 45, "fetch", 900, Action::Fail);
    let sidecar = with_init(vec![run("proxy", false)], "proxy");
    assert_eq!(cause(&sidecar), (false, PendingCause::Initializing, named("proxy")));
    let second = with_init(vec![run("proxy", true), wait("fetch")], "proxy");
    assert_eq!(cause(&second), (false, PendingCause::Initializing, named("fetch")));
    // The sidecar is there: what is left is the worker's image.
    assert_eq!(cause(&with_init(vec![run("proxy", true)], "proxy")), (false, PendingCause::Pulling, None));
    // Its own image is not there yet.
    assert_eq!(cause(&with_init(vec![wait("fetch")], "")), (false, PendingCause::Pulling, None));
}

#[test]
fn row_20_a_registry_that_refuses_has_minutes() {
    for (reason, words) in [
        ("ErrImagePull", "rpc error: code = NotFound desc = failed to pull and unpack image: not found"),
        ("ImagePullBackOff", "Back-off pulling image \"mayfly-worker:1\""),
    ] {
        let phase = with(&scheduled(true, waiting(reason, words)), &[]);
        means(&phase, PendingCause::ImagePull, 45, words, 300, Action::Fail);
        means(&phase, PendingCause::ImagePull, 45, "mayfly-worker:1", 300, Action::Fail);
    }
    let init = pod(json!({ "status": {
        "conditions": [{ "type": "PodScheduled", "status": "True", "lastTransitionTime": ago(45) }],
        "initContainerStatuses": [waiting("ErrImagePull", "not found")],
        "containerStatuses": [waiting("PodInitializing", "")],
    } }));
    means(&with(&init, &[]), PendingCause::ImagePull, 45, "not found", 300, Action::Fail);
}

#[test]
fn row_21_an_image_that_can_never_be_used_fails_at_once_and_a_missing_secret_soon() {
    for reason in ["InvalidImageName", "ErrImageNeverPull", "SignatureValidationFailed"] {
        let phase = with(&scheduled(true, waiting(reason, "words")), &[]);
        means(&phase, PendingCause::BadImage, 45, reason, 0, Action::Fail);
    }
    for reason in ["CreateContainerConfigError", "ImageInspectError"] {
        let phase = with(&scheduled(true, waiting(reason, "secret \"x\" not found")), &[]);
        means(&phase, PendingCause::BadConfiguration, 45, "secret \"x\" not found", 30, Action::Fail);
    }
}

#[test]
fn row_22_a_container_runtime_that_fails_has_two_minutes() {
    for reason in [
        "CreateContainerError",
        "RunContainerError",
        "CreatePodSandboxError",
        "PreStartHookError",
        "PostStartHookError",
    ] {
        let phase = with(&scheduled(true, waiting(reason, "context deadline exceeded")), &[]);
        means(&phase, PendingCause::RuntimeError, 45, "context deadline exceeded", 120, Action::Fail);
    }
}

/// What the end of a pod means.
fn verdict(pod: &Pod) -> Verdict {
    let job = job(ended("Failed", "BackoffLimitExceeded"));
    super::super::ending::ending(&job, Some(pod), true, NOW).verdict()
}

#[test]
fn row_23_a_command_that_does_not_exist_is_a_failure() {
    let pod = pod_in("Failed", &[], terminated(128, "StartError", "exec: \"/x\": no such file"));
    assert!(matches!(verdict(&pod), Verdict::Failed(why) if why.contains("no such file")));
}

#[test]
fn row_24_a_sidecar_that_crashes_before_the_worker_starts_is_a_failure() {
    let crashing = merged(
        waiting("CrashLoopBackOff", "back-off 10s restarting failed container=proxy"),
        json!({ "name": "proxy", "restartCount": 1, "lastState": { "terminated": { "exitCode": 1 } } }),
    );
    let pod = |init: Vec<Value>, own: Value| {
        pod(json!({ "status": {
            "conditions": [{ "type": "PodScheduled", "status": "True", "lastTransitionTime": ago(45) }],
            "initContainerStatuses": init, "containerStatuses": [own],
        } }))
    };
    let before = pod(vec![crashing.clone()], waiting("PodInitializing", ""));
    assert!(!has_started(&before));
    means(&with(&before, &[]), PendingCause::CrashLoop, 45, "back-off 10s", 0, Action::Fail);
    let beside_another = pod(vec![crashing.clone(), running()], creating());
    means(&with(&beside_another, &[]), PendingCause::CrashLoop, 45, "back-off 10s", 0, Action::Fail);
    // With the worker's container started it may hold a message, and it ends by itself.
    let started = pod(vec![crashing], running());
    assert!(has_started(&started));
    assert_eq!(
        with(&started, &[]).action(NOW + Duration::from_secs(FOR_EVER), &Deadlines::default()),
        Action::Wait
    );
}

#[test]
fn row_25_a_worker_that_crashes_at_its_start_is_a_failure() {
    for (code, reason) in [(3, "Error"), (137, "OOMKilled")] {
        let verdict = verdict(&pod_in("Failed", &[], terminated(code, reason, "")));
        assert!(matches!(verdict, Verdict::Failed(_)), "{verdict:?}");
    }
}

#[test]
fn row_26_a_worker_that_runs_and_is_not_ready_ends_itself() {
    let conditions = [("PodScheduled", "True", 45), ("Ready", "False", 45), ("ContainersReady", "False", 45)];
    let phase = with(&pod_in("Running", &conditions, running()), &[]);
    assert_eq!(
        phase,
        Phase::Pending { started: true, cause: PendingCause::NotReady, since: at(40), detail: None }
    );
    assert_eq!(phase.action(NOW + Duration::from_secs(FOR_EVER), &Deadlines::default()), Action::Wait);
}

#[test]
fn row_27_a_race_that_the_kubelet_lost_is_no_failure() {
    for reason in ["OutOfcpu", "OutOfmemory", "OutOfpods", "NodeAffinity", "UnexpectedAdmissionError"] {
        let pod = pod(json!({ "status": { "phase": "Failed", "reason": reason, "message": "words" } }));
        assert_eq!(verdict(&pod), Verdict::NeverStarted, "{reason}");
        let ending = super::super::ending::ending(&job(json!({})), Some(&pod), true, NOW);
        assert_eq!(ending.detail, Some(format!("{reason}: words")));
    }
}

#[test]
fn row_28_a_disruption_is_no_failure() {
    for reason in [
        "PreemptionByScheduler",
        "DeletionByTaintManager",
        "EvictionByEvictionAPI",
        "DeletionByPodGC",
        "TerminationByKubelet",
    ] {
        let condition = json!({ "type": "DisruptionTarget", "status": "True", "reason": reason });
        let pod = pod(json!({ "status": { "phase": "Failed", "conditions": [condition],
            "containerStatuses": [terminated(137, "Error", "")] } }));
        assert!(matches!(verdict(&pod), Verdict::Disrupted(why) if why.contains(reason)));
    }
    for reason in ["Evicted", "Terminated"] {
        let pod = pod(json!({ "status": { "phase": "Failed", "reason": reason,
            "containerStatuses": [terminated(137, "Error", "")] } }));
        assert!(matches!(verdict(&pod), Verdict::Disrupted(why) if why.contains(reason)));
    }
}

#[test]
fn row_29_a_worker_on_a_lost_node_is_lost() {
    let lost = [("Ready", "False", 10), ("ContainersReady", "True", 30)];
    assert_eq!(with(&pod_in("Running", &lost, running()), &[]), Phase::Lost);
    let hangs = json!({ "metadata": { "deletionTimestamp": ago(60) }, "status": { "phase": "Running" } });
    assert_eq!(with(&pod(hangs), &[]), Phase::Lost);
}

/// As the cluster autoscaler writes it: groups by name, nodes, most nodes, and how their scale-up stands.
fn autoscaler_status(groups: &[(&str, u32, u32, &str)]) -> String {
    let group = |(name, target, most, scale_up): &(&str, u32, u32, &str)| {
        let backoff = if *scale_up == "Backoff" {
            "\n    backoffInfo:\n      errorCode: QUOTA_EXCEEDED\n      \
             errorMessage: 'Instance ''a-1'' creation failed: Quota ''CPUS'' exceeded'"
        } else {
            ""
        };
        format!(
            "- name: {name}\n  health:\n    status: Healthy\n    nodeCounts:\n      registered:\n        \
             total: {target}\n        ready: {target}\n        notStarted: 0\n      longUnregistered: 0\n      \
             unregistered: 0\n    cloudProviderTarget: {target}\n    minSize: 0\n    maxSize: {most}\n    \
             lastProbeTime: \"2026-11-23T12:00:00Z\"\n    lastTransitionTime: \"2026-11-23T11:00:00Z\"\n  \
             scaleUp:\n    status: {scale_up}{backoff}\n    lastProbeTime: \"2026-11-23T12:00:00Z\"\n    \
             lastTransitionTime: \"2026-11-23T11:00:00Z\"\n  scaleDown:\n    status: NoCandidates\n"
        )
    };
    let groups: String = groups.iter().map(group).collect();
    format!(
        "time: 2026-11-23 12:00:00.000000000 +0000 UTC\nautoscalerStatus: Running\nclusterWide:\n  health:\n    \
         status: Healthy\n  scaleUp:\n    status: NoActivity\nnodeGroups:\n{groups}"
    )
}

#[test]
fn row_30_the_autoscalers_status_tells_that_no_node_can_come() {
    let of = |groups: &[(&str, u32, u32, &str)]| {
        autoscaler::no_node_can_come(&autoscaler_status(groups))
            .unwrap()
            .map(|word| (word.cause, word.detail))
    };
    let full = of(&[("a", 3, 3, "NoActivity"), ("b", 5, 5, "NoActivity")]).unwrap();
    assert_eq!(full.0, PendingCause::NodesAtLimit);
    assert_eq!(full.1, "node group a has 3 of at most 3 nodes; node group b has 5 of at most 5 nodes");
    let refused = of(&[("a", 3, 3, "NoActivity"), ("b", 1, 5, "Backoff")]).unwrap();
    assert_eq!(refused.0, PendingCause::NodesRefused);
    let why = "QUOTA_EXCEEDED: Instance 'a-1' creation failed: Quota 'CPUS' exceeded";
    assert_eq!(refused.1, format!("node group b is in backoff: {why}"));
    // Whose node it is that comes is not known, nor whether the group that could grow would fit.
    for open in ["InProgress", "NoActivity", "something new"] {
        assert_eq!(of(&[("a", 3, 3, "NoActivity"), ("b", 1, 5, open)]), None, "{open}");
    }
    assert_eq!(of(&[]), None);
    // As text, before its release 1.30.
    assert_eq!(
        autoscaler::no_node_can_come("Cluster-autoscaler status at 2023-01-01:\nCluster-wide:").unwrap(),
        None
    );
    assert!(autoscaler::no_node_can_come("nodeGroups: 3").is_err());
}

#[test]
fn row_30_holds_the_pool_where_the_pods_own_events_say_nothing() {
    let waiting = unscheduled("Unschedulable", UNSCHEDULED);
    let status = autoscaler_status(&[("a", 3, 3, "NoActivity")]);
    let word = autoscaler::no_node_can_come(&status).unwrap();
    let look = |events: &[Event], word| {
        let mut memory = Memory::default();
        memory.take_jobs(vec![job(json!({ "active": 1 }))]);
        memory.take_pods(vec![waiting.clone()], NOW);
        memory.take_word(word);
        let (uid, object) = memory.silent(NOW).remove(0);
        memory.take_events(&uid, object, Some(events), NOW);
        memory.workers(NOW).remove(0).phase
    };
    means(
        &look(&[], word.clone()),
        PendingCause::NodesAtLimit,
        50,
        "has 3 of at most 3",
        FOR_EVER,
        Action::Hold,
    );
    let coming = event("TriggeredScaleUp", "pod triggered scale-up: [{a 1->2 (max: 3)}]", 20);
    let Phase::Pending { cause, .. } = look(&[coming], word) else { panic!("it is pending") };
    assert_eq!(cause, PendingCause::NodeComing, "what is said of the pod itself counts");
    let Phase::Pending { cause, .. } = look(&[], None) else { panic!("it is pending") };
    assert_eq!(cause, PendingCause::NoRoom);
}
