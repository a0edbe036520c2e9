//! Workers as their Jobs, pods and logs show them.

use std::{collections::BTreeMap, fmt};

use anyhow::Result;
use futures_util::future::join_all;
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde_json::Value;

use crate::{
    ids::Ids,
    kubernetes::{
        access::{limited, worker_selector},
        facts,
        logs::Log,
    },
};

/// The workers of one instance, looked at again and again. What was seen of one is kept when its Job is gone.
#[derive(Debug)]
pub struct Workers {
    jobs: Api<Job>,
    pods: Api<Pod>,
    selector: ListParams,
    seen: BTreeMap<String, Worker>,
}

/// One worker.
#[derive(Debug, Clone, Default)]
pub struct Worker {
    /// The Job's name.
    pub name: String,
    /// The Job's identity.
    pub uid: String,
    /// Its serial; `None` if it was started by hand.
    pub serial: Option<u64>,
    /// Its slot; `None` if it was started by hand.
    pub slot: Option<u32>,
    /// Its pool.
    pub pool: String,
    /// Why it was launched.
    pub launch_reason: Option<String>,
    /// When its launch was decided (else when its Job was created), in milliseconds since the Unix epoch.
    pub launched: u64,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its consumer is or was registered.
    pub was_ready: bool,
    /// The pod's name, once there is one.
    pub pod: Option<String>,
    /// The node that it was assigned to.
    pub node: Option<String>,
    /// When it ended, in milliseconds since the Unix epoch (Kubernetes tells seconds).
    pub ended: Option<u64>,
    /// Its exit code, if its container ended and its node could tell.
    pub exit_code: Option<i32>,
    /// The exit report's reason.
    pub reason: Option<String>,
    /// How its Job ended.
    pub outcome: Option<Outcome>,
    /// Why its pod was disrupted, if it was: the reason of the condition `DisruptionTarget`.
    pub disruption: Option<String>,
    /// Its Job does not exist any more.
    pub is_gone: bool,
    /// What it settled, from its pod's log.
    pub log: Log,
}

/// Where a worker is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Not ready yet; why.
    Pending(String),
    /// Its consumer is registered.
    Ready,
    /// It is being deleted.
    Draining,
    /// It is over.
    Ended,
}

/// How a Job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Condition `Complete`.
    Complete,
    /// Condition `Failed`, with its reason.
    Failed(String),
}

// === impl Workers ===

impl Workers {
    /// The workers of `instance` in `namespace`.
    #[must_use]
    pub fn new(client: &Client, namespace: &str, instance: &str) -> Self {
        Self {
            jobs: Api::namespaced(client.clone(), namespace),
            pods: Api::namespaced(client.clone(), namespace),
            selector: ListParams::default().labels(&worker_selector(instance)),
            seen: BTreeMap::new(),
        }
    }

    /// Looks at Jobs and pods, and reads on in the logs. A log that cannot be read is no error here: its
    /// worker's [`Log`] says so.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn look(&mut self) -> Result<()> {
        self.look_at_objects().await?;
        let pods = &self.pods;
        let reads = self.seen.values_mut().filter_map(|worker| {
            let pod = worker.pod.as_deref()?;
            Some(worker.log.read_on(pods, pod))
        });
        join_all(reads).await;
        Ok(())
    }

    /// Looks at Jobs and pods only.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn look_at_objects(&mut self) -> Result<()> {
        let jobs = limited("list jobs", self.jobs.list(&self.selector)).await?;
        let pods = limited("list pods", self.pods.list(&self.selector)).await?;
        for worker in self.seen.values_mut() {
            worker.is_gone = true;
        }
        for job in jobs {
            let pod = pods
                .iter()
                .filter(|pod| facts::owner(&pod.metadata) == job.metadata.uid.as_deref())
                .max_by_key(|pod| pod.metadata.creation_timestamp.clone());
            self.seen.entry(job.name_any()).or_default().learn(&job, pod);
        }
        for worker in self.seen.values_mut().filter(|worker| worker.is_gone) {
            worker.vanish();
        }
        Ok(())
    }

    /// All that were ever seen, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.seen.values()
    }

    /// Those whose Job exists and is not over.
    pub fn alive(&self) -> impl Iterator<Item = &Worker> {
        self.iter().filter(|worker| worker.outcome.is_none() && !worker.is_gone)
    }

    /// The ids of messages that were settled as done, as far as logs could be read.
    #[must_use]
    pub fn done(&self) -> Ids {
        self.iter().flat_map(|worker| worker.log.done.iter().cloned()).collect()
    }

    /// Workers whose log could not be read to its end, with the reason.
    #[must_use]
    pub fn unread(&self) -> Vec<(String, String)> {
        let unread = |worker: &Worker| Some((worker.name.clone(), worker.log.missing()?));
        self.iter().filter(|worker| worker.ended.is_some()).filter_map(unread).collect()
    }
}

impl fmt::Display for Workers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for worker in self.iter() {
            let Worker { name, phase, outcome, reason, exit_code, log, .. } = worker;
            let node = worker.node.as_deref().unwrap_or("no node");
            writeln!(
                formatter,
                "{name} on {node}: {phase}, {outcome:?}, {reason:?}, {exit_code:?}, {log:?}"
            )?;
        }
        Ok(())
    }
}

// === impl Worker ===

impl Worker {
    fn learn(&mut self, job: &Job, pod: Option<&Pod>) {
        let label = |key: &str| job.labels().get(key).map(String::as_str);
        let annotation = |key: &str| job.annotations().get(key).map(String::as_str);
        self.is_gone = false;
        self.name = job.name_any();
        self.uid = job.uid().unwrap_or_default();
        self.serial = label("mayfly/serial").and_then(|serial| serial.parse().ok());
        self.slot = label("mayfly/slot").and_then(|slot| slot.parse().ok());
        label("mayfly/pool").unwrap_or_default().clone_into(&mut self.pool);
        self.launch_reason = annotation("mayfly/reason").map(ToOwned::to_owned);
        let intended = annotation("mayfly/intended-at").and_then(|stamp| stamp.parse().ok()).map(Time);
        self.launched = facts::milliseconds(intended.as_ref().or(job.metadata.creation_timestamp.as_ref()));
        if let Some(pod) = pod {
            self.learn_pod(pod);
        }
        self.outcome = facts::outcome(job);
        self.phase = self.phase_of(job, pod);
        if self.phase == Phase::Ended && self.ended.is_none() {
            self.ended = facts::end_of(job).map(|time| facts::milliseconds(Some(time)));
        }
    }

    fn learn_pod(&mut self, pod: &Pod) {
        self.pod.clone_from(&pod.metadata.name);
        self.node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).or(self.node.take());
        self.was_ready |= facts::is_ready(pod);
        self.disruption = facts::disruption(pod).or(self.disruption.take());
        let Some(state) = facts::container_state(pod) else { return };
        self.log.has_begun |= state.running.is_some() || state.terminated.is_some();
        if let Some(end) = &state.terminated {
            self.log.has_ended = true;
            self.ended = end.finished_at.as_ref().map(|time| facts::milliseconds(Some(time)));
            self.exit_code = Some(end.exit_code);
            let report: Option<Value> =
                end.message.as_deref().and_then(|text| serde_json::from_str(text).ok());
            self.reason = report.and_then(|report| Some(report["reason"].as_str()?.to_owned()));
        }
    }

    fn phase_of(&self, job: &Job, pod: Option<&Pod>) -> Phase {
        if self.outcome.is_some() || pod.is_some_and(facts::is_over) {
            Phase::Ended
        } else if job.metadata.deletion_timestamp.is_some() || pod.is_some_and(facts::is_terminating) {
            Phase::Draining
        } else if self.was_ready {
            Phase::Ready
        } else {
            Phase::Pending(pod.map_or_else(|| "no pod yet".to_owned(), facts::pending_cause))
        }
    }

    /// Its Job is gone; with it its pod, or soon.
    fn vanish(&mut self) {
        self.phase = Phase::Ended;
        self.ended.get_or_insert_with(mayfly_service::report::now_ms);
        self.log.has_ended = true;
    }
}

impl Default for Phase {
    fn default() -> Self {
        Self::Pending(String::new())
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending(cause) => write!(formatter, "pending ({cause})"),
            Self::Ready => formatter.write_str("ready"),
            Self::Draining => formatter.write_str("draining"),
            Self::Ended => formatter.write_str("ended"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn worker(job: &Value, pods: &[Value]) -> Worker {
        let mut worker = Worker::default();
        let job: Job = serde_json::from_value(job.clone()).unwrap();
        worker.learn(&job, None);
        for pod in pods {
            worker.learn(&job, Some(&serde_json::from_value(pod.clone()).unwrap()));
        }
        worker
    }

    fn job(conditions: &Value) -> Value {
        json!({
            "metadata": {
                "name": "i-p-0000-7",
                "uid": "u",
                "creationTimestamp": "2026-01-01T00:00:01Z",
                "labels": { "mayfly/serial": "7", "mayfly/slot": "1", "mayfly/pool": "p" },
                "annotations": { "mayfly/intended-at": "2026-01-01T00:00:00.250Z", "mayfly/reason": "Depth" },
            },
            "status": { "conditions": conditions },
        })
    }

    fn condition(kind: &str, status: &str, reason: &str) -> Value {
        json!({ "type": kind, "status": status, "reason": reason, "lastTransitionTime": "2026-01-01T00:00:09Z" })
    }

    fn pod(status: &Value) -> Value {
        json!({ "metadata": { "name": "i-p-0000-7-abcde" }, "spec": { "nodeName": "node-1" }, "status": status })
    }

    #[test]
    fn a_job_without_a_pod_is_pending_and_tells_who_it_is() {
        let worker = worker(&job(&json!([])), &[]);
        assert_eq!((worker.serial, worker.slot, worker.pool.as_str()), (Some(7), Some(1), "p"));
        assert_eq!(worker.launched, 1_767_225_600_250);
        assert_eq!(worker.phase.to_string(), "pending (no pod yet)");
    }

    #[test]
    fn a_pending_worker_says_why() {
        let unschedulable = json!({ "conditions": [condition("PodScheduled", "False", "Unschedulable")] });
        assert_eq!(
            worker(&job(&json!([])), &[pod(&unschedulable)]).phase.to_string(),
            "pending (Unschedulable)"
        );
        let pulling = json!({ "containerStatuses": [{ "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": { "waiting": { "reason": "ErrImagePull" } } }] });
        assert_eq!(worker(&job(&json!([])), &[pod(&pulling)]).phase.to_string(), "pending (ErrImagePull)");
    }

    #[test]
    fn once_ready_it_stays_so_until_it_ends() {
        let ready = json!({ "phase": "Running", "conditions": [condition("Ready", "True", "")] });
        let unready = json!({ "phase": "Running", "conditions": [condition("Ready", "False", "")] });
        assert_eq!(worker(&job(&json!([])), &[pod(&ready), pod(&unready)]).phase, Phase::Ready);
        let over = json!({ "phase": "Succeeded" });
        assert_eq!(worker(&job(&json!([])), &[pod(&ready), pod(&over)]).phase, Phase::Ended);
    }

    #[test]
    fn an_ended_worker_tells_its_exit_code_and_the_reason_of_its_report() {
        let report = json!({ "version": 1, "reason": "idle" }).to_string();
        let ended = json!({ "phase": "Succeeded", "containerStatuses": [{ "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {
            "terminated": { "exitCode": 0, "finishedAt": "2026-01-01T00:00:05Z", "message": report },
        } }] });
        let worker = worker(&job(&json!([condition("Complete", "True", "")])), &[pod(&ended)]);
        assert_eq!(worker.outcome, Some(Outcome::Complete));
        assert_eq!((worker.exit_code, worker.reason.as_deref()), (Some(0), Some("idle")));
        assert_eq!(worker.ended, Some(1_767_225_605_000));
    }

    #[test]
    fn a_pod_that_is_over_before_its_job_says_so_gives_no_time_of_the_end() {
        let over = pod(&json!({ "phase": "Failed" }));
        let mut worker = worker(&job(&json!([])), std::slice::from_ref(&over));
        assert_eq!((&worker.phase, worker.ended), (&Phase::Ended, None));
        let failed = job(&json!([condition("Failed", "True", "BackoffLimitExceeded")]));
        let (failed, over) = (serde_json::from_value(failed).unwrap(), serde_json::from_value(over).unwrap());
        worker.learn(&failed, Some(&over));
        assert_eq!(worker.ended, Some(1_767_225_609_000));
    }

    #[test]
    fn a_disrupted_worker_is_told_from_a_failed_one() {
        let conditions = json!([condition("Failed", "True", "BackoffLimitExceeded")]);
        let disrupted = json!({ "phase": "Failed", "conditions": [condition("DisruptionTarget", "True", "DeletionByPodGC")] });
        let worker = worker(&job(&conditions), &[pod(&disrupted)]);
        assert_eq!(worker.outcome, Some(Outcome::Failed("BackoffLimitExceeded".to_owned())));
        assert_eq!(worker.disruption.as_deref(), Some("DeletionByPodGC"));
        assert_eq!(
            worker.ended,
            Some(1_767_225_609_000),
            "nobody was there to tell, so the Job's time counts"
        );
    }
}
