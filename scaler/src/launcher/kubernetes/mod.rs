//! Workers as Jobs of a Kubernetes cluster, one Job a worker, made from the pool's suspended `CronJob`.
//!
//! Routine looks ask for the Jobs only; pods and Events are asked for where a Job does not tell enough
//! ([`memory`]). What is about to start workers asks for Jobs and pods afresh.

mod autoscaler;
mod cause;
mod ending;
mod event;
mod memory;
mod names;
mod phase;
mod said;
mod template;
mod templates;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    batch::v1::{CronJob, Job},
    core::v1::{ConfigMap, Event, Pod},
};
use kube::api::{DeleteParams, ListParams, Preconditions};
use mayfly_service::{chain, crash::crash_point, deadline};
use serde_json::Value;
use tokio::time::Instant;

use self::{memory::Memory, names::Identity, template::Built, templates::Templates};
use super::{Cadence, LaunchError, Launched, Launcher, Look, News, Plan, Removed};
use crate::{
    cluster::{CallError, Cluster},
    config::{Config, PoolConfig, WorkerTemplate},
    policy::{MissingTemplate, PODLESS_REMOVABLE_AFTER, Worker},
    time::Time,
};

/// The limit of reading a template: between a listing and its POST there is no more time.
const TEMPLATE_LIMIT: Duration = Duration::from_secs(1);

/// The cluster autoscaler writes its status this often.
const STATUS_CADENCE: Duration = Duration::from_secs(10);

/// So many failed Jobs are removed in one act.
const TIDIED_AT_ONCE: usize = 2;

/// Starts workers as Jobs.
#[derive(Debug)]
pub struct KubernetesLauncher {
    cluster: Cluster,
    instance: String,
    memory: Mutex<Memory>,
    templates: Mutex<Templates>,
    /// Where the cluster autoscaler writes its status, if that is to be read, and when it last was.
    autoscaler: Option<(Cluster, Mutex<Option<Instant>>)>,
    /// Held while a template is read.
    reading: tokio::sync::Mutex<()>,
    /// Remarks on templates that were made already.
    remarked: Mutex<BTreeSet<String>>,
}

// === impl KubernetesLauncher ===

impl KubernetesLauncher {
    /// A launcher for `instance`; with `autoscaler_status` it also reads what the cluster autoscaler says of its node
    /// groups.
    #[must_use]
    pub fn new(cluster: Cluster, instance: &str, autoscaler_status: bool) -> Self {
        let autoscaler =
            autoscaler_status.then(|| (cluster.in_namespace(autoscaler::NAMESPACE), Mutex::default()));
        Self {
            autoscaler,
            cluster,
            instance: instance.to_owned(),
            memory: Mutex::default(),
            templates: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            remarked: Mutex::default(),
        }
    }

    /// Whether the pool's template is there and can be used; what is said about it otherwise.
    ///
    /// # Errors
    /// As for a launch.
    pub async fn template_of(&self, pool: &PoolConfig) -> Result<Vec<String>, LaunchError> {
        let plan = Plan {
            name: "check".to_owned(),
            pool: pool.name.clone(),
            serial: 1,
            slot: 0,
            reason: String::new(),
            stamp: Time::default(),
            service_time: None,
        };
        Ok(self.build(&plan, pool).await?.remarks)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    /// Builds the Job of `plan`, with the template as it is now.
    async fn build(&self, plan: &Plan, pool: &PoolConfig) -> Result<Built, LaunchError> {
        let what = || format!("worker {}", plan.name);
        let WorkerTemplate::CronJob(name) = &pool.worker else {
            return Err(LaunchError::refused(what(), "its pool has no template"));
        };
        let namespace = self.cluster.namespace();
        let template = deadline("read worker template", TEMPLATE_LIMIT, self.template(name)).await?;
        let template = template.map_err(|error| {
            if error.is_not_found() {
                let problem = format!(
                    "CronJob {name} in namespace {namespace} does not exist; create it (helm upgrade does), or \
                     correct worker.template of pool {}",
                    plan.pool
                );
                return LaunchError::NoTemplate { what: what(), problem };
            }
            failed(what(), error)
        })?;
        template::build(&template, &self.instance, pool, plan).map_err(|error| {
            let problem =
                format!("its template, CronJob {name} in namespace {namespace}, cannot be used: {error}");
            LaunchError::refused(what(), problem)
        })
    }

    async fn template(&self, name: &str) -> Result<Value, CallError> {
        // Launches of one moment ask once.
        let _reading = self.reading.lock().await;
        if let Some(template) = lock(&self.templates).fresh(name, Instant::now()) {
            return Ok(template);
        }
        self.read_template(name).await
    }

    async fn read_template(&self, name: &str) -> Result<Value, CallError> {
        let begun = Instant::now();
        let read = self.cluster.get_as::<CronJob, Value>("read worker template", name).await;
        let mut templates = lock(&self.templates);
        match &read {
            Ok(template) => templates.take(name, template, begun),
            Err(error) if error.is_not_found() => templates.miss(name, begun),
            Err(_) => {}
        }
        read
    }

    /// Looks again for a template that is missing, if that is due.
    async fn look_for_missing(&self) {
        let due = lock(&self.templates).due(Instant::now());
        let Some(name) = due else { return };
        if let Ok(Ok(_)) = deadline("read worker template", TEMPLATE_LIMIT, self.read_template(&name)).await {
            tracing::info!(template = name, "worker template is there");
        }
    }

    /// Reads what the cluster autoscaler says of its node groups, if that is wanted and due. Without it the cause may be
    /// less exact, nothing else.
    async fn look_at_autoscaler(&self) {
        let Some((cluster, asked)) = &self.autoscaler else { return };
        let now = Instant::now();
        if lock(asked).is_some_and(|asked| now - asked < STATUS_CADENCE) {
            return;
        }
        *lock(asked) = Some(now);
        let read = cluster.get::<ConfigMap>("read the autoscaler's status", autoscaler::NAME).await;
        let word = match read {
            Ok(map) => {
                let status = map.data.and_then(|mut data| data.remove(autoscaler::KEY)).unwrap_or_default();
                autoscaler::no_node_can_come(&status).map_err(|error| chain(&error))
            }
            Err(error) => Err(chain(&error)),
        };
        let word = word.unwrap_or_else(|error| {
            tracing::debug!(error, "the autoscaler's status cannot be read");
            None
        });
        self.memory().take_word(word);
    }

    /// Logs what was not logged before.
    fn remark(&self, pool: &str, remarks: Vec<String>) {
        let mut remarked = lock(&self.remarked);
        for remark in remarks {
            let text = format!("template of pool {pool}: {remark}");
            if !remarked.contains(&text) {
                tracing::warn!("{text}");
                remarked.insert(text);
            }
        }
    }

    /// Whose Job it is that has the name already.
    async fn adopt(&self, plan: &Plan) -> Result<Launched, LaunchError> {
        let foreign = || LaunchError::Foreign { name: plan.name.clone() };
        let job = match self.cluster.get::<Job>("read a job", &plan.name).await {
            Ok(job) => job,
            // It was deleted meanwhile: its name is used up.
            Err(error) if error.is_not_found() => return Err(foreign()),
            Err(error) => return Err(failed(format!("worker {}", plan.name), error)),
        };
        let labels = job.metadata.labels.as_ref();
        let instance = labels.and_then(|labels| labels.get(names::INSTANCE));
        let Identity { pool, serial, .. } = Identity::of(&job.metadata);
        let ours = instance == Some(&self.instance) && pool == plan.pool && serial == Some(plan.serial);
        if ours { Ok(Launched::Adopted) } else { Err(foreign()) }
    }

    /// Deletes a Job that never had a pod.
    async fn remove_podless(&self, worker: &Worker, uid: &str, now: Time) -> Result<Removed, LaunchError> {
        let what = || format!("removal of {}", worker.name);
        if now.since(worker.launched) < PODLESS_REMOVABLE_AFTER {
            return Ok(Removed::NotYet);
        }
        let job = match self.cluster.get::<Job>("read a job", &worker.name).await {
            Ok(job) => job,
            Err(error) if error.is_not_found() => return Ok(Removed::TooLate),
            Err(error) => return Err(failed(what(), error)),
        };
        let counted = job.status.as_ref().is_some_and(|status| {
            [status.active, status.ready, status.succeeded, status.failed, status.terminating]
                .into_iter()
                .any(|count| count.is_some_and(|count| count > 0))
        });
        if counted || job.metadata.uid.as_deref() != Some(uid) {
            return Ok(Removed::TooLate);
        }
        let how = DeleteParams::background().preconditions(just(&job.metadata));
        settled(what(), self.cluster.delete::<Job>("delete a job", &worker.name, &how).await)
    }
}

impl Launcher for KubernetesLauncher {
    async fn list(&self, look: Look, now: Time) -> Result<Vec<Worker>, LaunchError> {
        let ours = ListParams::default().labels(&names::selector(&self.instance));
        let listing = |error| failed("listing workers".to_owned(), error);
        // Jobs first: a pod that is listed then is never older than what its Job says.
        let jobs = self.cluster.list::<Job>("list jobs", &ours).await.map_err(listing)?;
        let belated = self.memory().take_jobs(jobs);
        for (worker, late) in belated {
            let late_s = late.as_secs();
            tracing::warn!(
                worker,
                late_s,
                "a launch arrived long after it was decided: there may be one too many"
            );
        }
        if look == Look::Fresh || self.memory().wants_pods(now) {
            let pods = self.cluster.list::<Pod>("list pods", &ours).await.map_err(listing)?;
            self.memory().take_pods(pods, now);
        }
        let silent = if look == Look::Routine { self.memory().silent(now) } else { Vec::new() };
        if !silent.is_empty() {
            self.look_at_autoscaler().await;
        }
        for (uid, object) in silent {
            let about = ListParams::default().fields(&format!("involvedObject.uid={object}"));
            // Without Events the cause may be unknown, nothing else.
            let events = self.cluster.list::<Event>("list events", &about).await;
            let events = events.inspect_err(|error| {
                tracing::debug!(error = %chain(error), "events cannot be read");
            });
            self.memory().take_events(&uid, object, events.ok().as_deref(), now);
        }
        self.look_for_missing().await;
        Ok(self.memory().workers(now))
    }

    async fn launch(&self, plan: &Plan, pool: &PoolConfig) -> Result<Launched, LaunchError> {
        let Built { job, remarks } = self.build(plan, pool).await?;
        self.remark(&plan.pool, remarks);
        crash_point("before-post");
        let created = self.cluster.create::<Job>("create a job", &job).await;
        crash_point("after-post");
        match created {
            Ok(_) => Ok(Launched::Created),
            Err(error) if error.is_already_exists() => self.adopt(plan).await,
            Err(error) => Err(failed(format!("worker {}", plan.name), error)),
        }
    }

    async fn remove(&self, worker: &Worker, now: Time) -> Result<Removed, LaunchError> {
        let what = || format!("removal of {}", worker.name);
        let found = self.memory().job_and_pod(&worker.name);
        let Some((uid, pod)) = found else { return Ok(Removed::TooLate) };
        let Some(pod) = pod else { return self.remove_podless(worker, &uid, now).await };
        let gone = phase::has_ended(&pod) || pod.metadata.deletion_timestamp.is_some();
        if gone || phase::has_started(&pod) {
            return Ok(Removed::TooLate);
        }
        // Only as it was listed: if anything of it has started since, it stays.
        let how = DeleteParams::default().preconditions(just(&pod.metadata));
        let name = pod.metadata.name.clone().unwrap_or_default();
        crash_point("before-remove");
        settled(what(), self.cluster.delete::<Pod>("delete a pod", &name, &how).await)
    }

    async fn tidy(&self, _: &[Worker], counted: &[Worker], now: Time) -> Result<(), LaunchError> {
        // Ended Jobs go by their ttlSecondsAfterFinished; of those that failed only so many wait for it.
        let surplus = self.memory().failed_surplus(counted, now);
        for metadata in surplus.into_iter().take(TIDIED_AT_ONCE) {
            let name = metadata.name.clone().unwrap_or_default();
            let how = DeleteParams::background().preconditions(just(&metadata));
            let deleted = self.cluster.delete::<Job>("delete a failed job", &name, &how).await;
            settled(format!("removal of {name}"), deleted)?;
        }
        Ok(())
    }

    async fn tell(&self, news: &News, pool: &PoolConfig) -> Result<(), LaunchError> {
        let what = || "an event".to_owned();
        let WorkerTemplate::CronJob(name) = &pool.worker else { return Ok(()) };
        // A template that was replaced since is told of by the next launch that reads it.
        let known = lock(&self.templates).known(name);
        let template = match known {
            Some(template) => template,
            None => self.template(name).await.map_err(|error| failed(what(), error))?,
        };
        let uid = &template["metadata"]["uid"];
        let event = event::event(news, name, uid, self.cluster.namespace());
        match self.cluster.create::<Event>("create an event", &event).await {
            // Another scaler told it.
            Err(error) if !error.is_already_exists() => Err(failed(what(), error)),
            _ => Ok(()),
        }
    }

    fn missing_templates(&self, config: &Config, now: Time) -> BTreeMap<String, MissingTemplate> {
        lock(&self.templates).missing(config, Instant::now(), now)
    }

    fn has_leisure(&self) -> bool {
        self.cluster.has_leisure()
    }

    fn cadence(&self) -> Cadence {
        let second = Duration::from_secs(1);
        Cadence { busy: second, idle: 10 * second, after_act: second }
    }
}

/// What is kept here is whole at any time, also where a thread panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a failed call means for a launch, a removal or a listing.
fn failed(what: String, error: CallError) -> LaunchError {
    match error {
        CallError::Deadline(deadline) => LaunchError::Deadline(deadline),
        error if error.is_exceeded_quota() => LaunchError::AtCapacity { what, source: error.into() },
        // Two writers of one quota, for example: the same again may succeed.
        error if error.is_conflict() => LaunchError::Unanswered { what, source: error.into() },
        CallError::Refused(_) => {
            LaunchError::Refused { what, forbidden: error.is_forbidden(), source: error.into() }
        }
        CallError::Unanswered(_) | CallError::Busy(_) => {
            LaunchError::Unanswered { what, source: error.into() }
        }
    }
}

/// What came of a deletion that was to hit exactly what was read.
fn settled(what: String, deleted: Result<(), CallError>) -> Result<Removed, LaunchError> {
    match deleted {
        Ok(()) => Ok(Removed::Removed),
        Err(error) if error.is_conflict() || error.is_not_found() => Ok(Removed::TooLate),
        Err(error) => Err(failed(what, error)),
    }
}

fn just(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Preconditions {
    Preconditions { resource_version: metadata.resource_version.clone(), uid: metadata.uid.clone() }
}

#[cfg(test)]
mod tests;
