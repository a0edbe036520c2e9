//! A kubelet without containers, and a node autoscaler: nodes that come when they are told to, pods that live
//! as a script says. The scheduler and the Job controller are real.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use super::{Script, objects, pod};
use crate::kubernetes::access::limited;

/// How often pods are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How often nodes show that they live.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Where the kubelet finds leases of nodes.
const LEASES: &str = "kube-node-lease";

/// A step that a pod has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// When its status was written.
    pub at: Instant,
    /// The Job.
    pub job: String,
    /// `prepares`, `stuck`, `starts`, `works`, `ended`, `gone`; `starts in vain` where it was deleted just before, `stopped`
    /// where it was deleted while it ran.
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
    /// Those of them that nobody hears of.
    lost: watch::Sender<BTreeSet<String>>,
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

// === impl Kubelet ===

impl Kubelet {
    /// Plays for the pods of this namespace, all of which work.
    #[must_use]
    pub fn start(client: Client, namespace: &str) -> Self {
        let parts = Arc::new(Parts {
            client,
            namespace: namespace.to_owned(),
            nodes: watch::Sender::new(Vec::new()),
            lost: watch::Sender::default(),
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
        limited("create a node", api.create(&PostParams::default(), &node)).await?;
        let leases = Api::<Lease>::namespaced(client.clone(), LEASES);
        let lease = serde_json::from_value(objects::lease(&name))?;
        limited("create a lease", leases.create(&PostParams::default(), &lease)).await?;
        let status = Patch::Strategic(json!({ "status": objects::node_status(workers) }));
        limited("report a node's status", api.patch_status(&name, &PatchParams::default(), &status)).await?;
        nodes.send_modify(|nodes| nodes.push(name.clone()));
        Ok(name)
    }

    /// A node is heard of no more; its pods live on, unseen.
    pub fn lose(&self, node: &str) {
        self.parts.lost.send_if_modified(|lost| lost.insert(node.to_owned()));
    }

    /// A lost node is heard of again, and is ready.
    ///
    /// # Errors
    /// When the API server refuses its status.
    pub async fn heal(&self, node: &str, workers: u32) -> Result<()> {
        let nodes = Api::<Node>::all(self.parts.client.clone());
        let status = Patch::Strategic(json!({ "status": objects::node_status(workers) }));
        self.parts.lost.send_if_modified(|lost| lost.remove(node));
        self.parts.beat().await?;
        let params = PatchParams::default();
        limited("report a node's status", nodes.patch_status(node, &params, &status)).await.map(drop)
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
            limited("delete a node", api.delete(&name, &DeleteParams::default())).await?;
            let leases = Api::<Lease>::namespaced(self.parts.client.clone(), LEASES);
            limited("delete a lease", leases.delete(&name, &DeleteParams::default())).await?;
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
        let lost = self.lost.borrow().clone();
        for node in nodes.into_iter().filter(|node| !lost.contains(node)) {
            let patch = Patch::Merge(objects::lease(&node));
            limited("renew a lease", leases.patch(&node, &PatchParams::default(), &patch)).await?;
        }
        Ok(())
    }

    /// One step for every pod that has a node.
    async fn look(&self) -> Result<()> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let pods = limited("list pods", api.list(&ListParams::default())).await?;
        for pod in pods.items {
            let job = job_of(&pod);
            let script = {
                let scripts = self.scripts.borrow();
                scripts.by_job.get(&job).unwrap_or(&scripts.all).clone()
            };
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
            if node.is_none_or(|node| self.lost.borrow().contains(node)) {
                continue;
            }
            let name = pod.metadata.name.clone().unwrap_or_default();
            let deleted = pod.metadata.deletion_timestamp.is_some() && script != Script::Lingers;
            if let Some((step, status)) = pod::next(&script, deleted, &pod) {
                let patch =
                    Patch::Strategic(json!({ "metadata": { "uid": pod.metadata.uid }, "status": status }));
                let params = PatchParams::default();
                let told = api.patch_status(&name, &params, &patch);
                let told = limited("report a pod's status", told).await?;
                // Kubelets hear of a deletion a moment later.
                let in_vain = !deleted && step == "starts" && told.metadata.deletion_timestamp.is_some();
                self.note(job, if in_vain { "starts in vain" } else { step });
            } else if deleted && !self.is_noted(&job, "gone") {
                let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
                let at_once = DeleteParams::default().grace_period(0).preconditions(preconditions);
                limited("delete a pod", api.delete(&name, &at_once)).await?;
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

/// The Job that a pod belongs to.
fn job_of(pod: &Pod) -> String {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get("job-name")).cloned().unwrap_or_default()
}
