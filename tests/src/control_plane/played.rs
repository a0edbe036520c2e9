//! A kubelet without containers, and a node autoscaler: nodes that come when they are told to, pods that live
//! as a script says. The scheduler and the Job controller are real.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use mayfly_service::{deadline, report::ExitReport};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use super::objects;

/// How often pods are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How often nodes show that they live.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long one call may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Where the kubelet finds leases of nodes.
const LEASES: &str = "kube-node-lease";

/// How far a worker's pod gets. It goes there step by step, whatever it was told before.
#[derive(Debug, Clone, PartialEq)]
pub enum Script {
    /// Its node prepares it: `ContainerCreating`.
    Prepares,
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

/// A step that a pod has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// When its status was written.
    pub at: Instant,
    /// The Job.
    pub job: String,
    /// `prepares`, `stuck`, `starts`, `works`, `ended`, `gone`.
    pub step: &'static str,
}

/// All kubelets of one test's nodes, and the autoscaler. Dropping it ends them; nodes stay.
#[derive(Debug)]
pub struct Kubelet {
    parts: Arc<Parts>,
    task: JoinHandle<()>,
}

struct Parts {
    client: Client,
    namespace: String,
    nodes: watch::Sender<Vec<String>>,
    scripts: watch::Sender<Scripts>,
    journal: watch::Sender<Journal>,
}

#[derive(Debug)]
struct Scripts {
    all: Script,
    by_job: BTreeMap<String, Script>,
}

#[derive(Debug, Default)]
struct Journal {
    seen: Vec<Seen>,
    trouble: Option<String>,
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

// === impl Kubelet ===

impl Kubelet {
    /// Plays for the pods of this namespace, all of which work.
    #[must_use]
    pub fn start(client: Client, namespace: &str) -> Self {
        let parts = Arc::new(Parts {
            client,
            namespace: namespace.to_owned(),
            nodes: watch::Sender::new(Vec::new()),
            scripts: watch::Sender::new(Scripts { all: Script::Works, by_job: BTreeMap::new() }),
            journal: watch::Sender::default(),
        });
        let task = tokio::spawn(Arc::clone(&parts).play());
        Self { parts, task }
    }

    /// From now on all pods live like this, those with a script of their own excepted.
    pub fn all(&self, script: Script) {
        self.parts.scripts.send_modify(|scripts| scripts.all = script);
    }

    /// From now on this Job's pod lives like this.
    pub fn job(&self, name: &str, script: Script) {
        self.parts.scripts.send_modify(|scripts| drop(scripts.by_job.insert(name.to_owned(), script)));
    }

    /// A node joins, ready, with room for this many workers.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn node(&self, suffix: &str, workers: u32) -> Result<String> {
        let Parts { client, namespace, nodes, .. } = &*self.parts;
        let name = format!("{namespace}-{suffix}");
        let api = Api::<Node>::all(client.clone());
        let node = serde_json::from_value(objects::node(&name, namespace, workers))?;
        call("create a node", api.create(&PostParams::default(), &node)).await?;
        let leases = Api::<Lease>::namespaced(client.clone(), LEASES);
        let lease = serde_json::from_value(objects::lease(&name))?;
        call("create a lease", leases.create(&PostParams::default(), &lease)).await?;
        let status = Patch::Strategic(json!({ "status": objects::node_status(workers) }));
        call("report a node's status", api.patch_status(&name, &PatchParams::default(), &status)).await?;
        nodes.send_modify(|nodes| nodes.push(name.clone()));
        Ok(name)
    }

    /// Everything that pods have done so far, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.parts.journal.borrow().seen.clone()
    }

    /// When the pod of `job` took `step`, once it has.
    ///
    /// # Errors
    /// When `limit` passes first; the text holds what the kubelet could not do.
    pub async fn sees(&self, job: &str, step: &str, limit: Duration) -> Result<Instant> {
        let mut journal = self.parts.journal.subscribe();
        let found = async {
            loop {
                let is_it = |seen: &&Seen| seen.job == job && seen.step == step;
                if let Some(seen) = journal.borrow_and_update().seen.iter().find(is_it) {
                    return Ok(seen.at);
                }
                journal.changed().await?;
            }
        };
        let outcome = tokio::time::timeout(limit, found).await;
        outcome.with_context(|| format!("{job} did not come to {step:?} in {limit:?}; {}", self.trouble()))?
    }

    /// What the kubelet failed at last.
    #[must_use]
    pub fn trouble(&self) -> String {
        self.parts.journal.borrow().trouble.clone().unwrap_or_else(|| "the kubelet had no trouble".to_owned())
    }

    /// Deletes the nodes.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn clean(&self) -> Result<()> {
        let names = self.parts.nodes.send_replace(Vec::new());
        for name in names {
            let api = Api::<Node>::all(self.parts.client.clone());
            call("delete a node", api.delete(&name, &DeleteParams::default())).await?;
            let leases = Api::<Lease>::namespaced(self.parts.client.clone(), LEASES);
            call("delete a lease", leases.delete(&name, &DeleteParams::default())).await?;
        }
        Ok(())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl Parts ===

impl std::fmt::Debug for Parts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Parts").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Parts {
    async fn play(self: Arc<Self>) {
        let mut scripts = self.scripts.subscribe();
        let mut heartbeat = Instant::now();
        loop {
            if let Err(error) = self.look().await {
                self.journal.send_modify(|journal| journal.trouble = Some(format!("{error:#}")));
            }
            if heartbeat.elapsed() >= HEARTBEAT {
                heartbeat = Instant::now();
                if let Err(error) = self.beat().await {
                    self.journal.send_modify(|journal| journal.trouble = Some(format!("{error:#}")));
                }
            }
            // A new script is followed at once.
            let _ = tokio::time::timeout(LOOK, scripts.changed()).await;
        }
    }

    /// All nodes show that they live.
    async fn beat(&self) -> Result<()> {
        let leases = Api::<Lease>::namespaced(self.client.clone(), LEASES);
        let nodes = self.nodes.borrow().clone();
        for node in nodes {
            let patch = Patch::Merge(objects::lease(&node));
            call("renew a lease", leases.patch(&node, &PatchParams::default(), &patch)).await?;
        }
        Ok(())
    }

    /// One step for every pod that has a node.
    async fn look(&self) -> Result<()> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let pods = call("list pods", api.list(&ListParams::default())).await?;
        for pod in pods.items {
            let job = job_of(&pod);
            let script = {
                let scripts = self.scripts.borrow();
                scripts.by_job.get(&job).unwrap_or(&scripts.all).clone()
            };
            let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
            if !bound {
                continue;
            }
            let name = pod.metadata.name.clone().unwrap_or_default();
            let stage = Stage::of(&pod);
            let deleted = pod.metadata.deletion_timestamp.is_some();
            if let Some((step, status)) = next(stage, &script, deleted, &pod) {
                let patch =
                    Patch::Strategic(json!({ "metadata": { "uid": pod.metadata.uid }, "status": status }));
                call("report a pod's status", api.patch_status(&name, &PatchParams::default(), &patch))
                    .await?;
                self.note(job, step);
            } else if deleted && !self.is_noted(&job, "gone") {
                let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
                let at_once = DeleteParams::default().grace_period(0).preconditions(preconditions);
                call("delete a pod", api.delete(&name, &at_once)).await?;
                self.note(job, "gone");
            }
        }
        Ok(())
    }

    fn note(&self, job: String, step: &'static str) {
        self.journal.send_modify(|journal| journal.seen.push(Seen { at: Instant::now(), job, step }));
    }

    fn is_noted(&self, job: &str, step: &str) -> bool {
        self.journal.borrow().seen.iter().any(|seen| seen.job == job && seen.step == step)
    }
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
fn next(stage: Stage, script: &Script, deleted: bool, pod: &Pod) -> Option<(&'static str, Value)> {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let reason = containers.and_then(|all| all.first()?.state.as_ref()?.waiting.as_ref()?.reason.clone());
    if deleted {
        // It ends itself when it is asked to; a container that never started has no exit code of its own.
        return match stage {
            Stage::Over => None,
            Stage::Bound | Stage::Waiting => Some(("ended", over(137, "ContainerStatusUnknown", None, None))),
            Stage::Running | Stage::Ready => Some(("ended", over(0, "Completed", None, None))),
        };
    }
    match (stage, script) {
        (Stage::Over, _) => None,
        (Stage::Bound, _) => Some(("prepares", waiting("ContainerCreating", None))),
        (_, Script::Disrupted) => {
            let disruption = json!({
                "type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet",
                "message": "The node was low on resource: memory.", "lastTransitionTime": objects::now(),
            });
            Some(("ended", over(137, "Error", None, Some(&disruption))))
        }
        (Stage::Waiting, Script::Stuck { reason: wanted, message }) => {
            (reason.as_deref() != Some(wanted)).then(|| ("stuck", waiting(wanted, Some(message))))
        }
        (Stage::Waiting, Script::Starts | Script::Works | Script::Ends { .. }) => {
            Some(("starts", running(false)))
        }
        (Stage::Running, Script::Works) => Some(("works", running(true))),
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

fn running(ready: bool) -> Value {
    let state = json!({ "running": { "startedAt": objects::now() } });
    json!({
        "phase": "Running", "podIP": "198.18.99.99", "podIPs": [{ "ip": "198.18.99.99" }],
        "conditions": conditions(true, ready), "containerStatuses": container(&state, true, ready),
    })
}

fn over(code: u8, reason: &str, report: Option<&ExitReport>, disruption: Option<&Value>) -> Value {
    let message = report.and_then(|report| serde_json::to_string(report).ok());
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

/// The Job that a pod belongs to.
fn job_of(pod: &Pod) -> String {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get("job-name")).cloned().unwrap_or_default()
}

async fn call<T>(what: &'static str, call: impl Future<Output = kube::Result<T>>) -> Result<T> {
    deadline(what, LIMIT, call).await?.context(what)
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
            let Some((step, status)) = next(Stage::of(&typed), script, deleted, &typed) else { return steps };
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
        assert_eq!(life(&Script::Works, true), ["ended"]);
    }
}
