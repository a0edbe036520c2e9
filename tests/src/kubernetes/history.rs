//! Who was pending when: every change of Jobs and pods in the order in which it was stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
    core::Status,
};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::kubernetes::{
    access::{limited, worker_selector},
    facts,
};

/// Between two tries to watch.
const PAUSE: Duration = Duration::from_millis(100);
/// How long watching may fail in a row.
const PATIENCE: Duration = Duration::from_secs(30);

/// Records what happens to an instance's Jobs and pods, until dropped.
///
/// Resource versions of Jobs and pods are compared with each other. Kubernetes promises that of one kind only;
/// it holds for all kinds that are kept in one etcd.
#[derive(Debug)]
pub struct Watcher {
    record: Arc<Mutex<Record>>,
    _tasks: JoinSet<()>,
}

/// The moments at which something changed, in order.
#[derive(Debug, Clone)]
pub struct History {
    /// The moments.
    pub moments: Vec<Moment>,
    /// Why pods were disrupted, by the worker's name: the reason of the condition `DisruptionTarget`.
    pub disruptions: BTreeMap<String, String>,
}

/// What held from one change to the next.
#[derive(Debug, Clone)]
pub struct Moment {
    /// When we heard of it.
    pub heard: SystemTime,
    /// Workers that were never ready, are not finished and not being deleted.
    pub pending: BTreeSet<String>,
    /// Workers whose Job exists and is not finished.
    pub occupied: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Record {
    changes: Vec<Change>,
    /// Why changes may be missing.
    gap: Option<String>,
}

#[derive(Debug, Clone)]
struct Change {
    revision: u64,
    heard: SystemTime,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Job { uid: String, name: String, is_finished: bool, is_terminating: bool, is_deleted: bool },
    Pod { job: String, is_ready: bool, is_leaving: bool, disruption: Option<String> },
}

/// What has been learnt of one Job.
#[derive(Debug, Default)]
struct Known {
    name: Option<String>,
    is_over: bool,
    was_ready: bool,
    is_leaving: bool,
    disruption: Option<String>,
}

// === impl Watcher ===

impl Watcher {
    /// Starts to record the workers of `instance` in `namespace`.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn start(client: &Client, namespace: &str, instance: &str) -> Result<Self> {
        let record = Arc::new(Mutex::new(Record::default()));
        let mut tasks = JoinSet::new();
        let selector = worker_selector(instance);
        let jobs = Api::<Job>::namespaced(client.clone(), namespace);
        let version = first(&jobs, &selector, &record, of_job).await?;
        tasks.spawn(watch(jobs, selector.clone(), version, Arc::clone(&record), of_job));
        let pods = Api::<Pod>::namespaced(client.clone(), namespace);
        let version = first(&pods, &selector, &record, of_pod).await?;
        tasks.spawn(watch(pods, selector, version, Arc::clone(&record), of_pod));
        Ok(Self { record, _tasks: tasks })
    }

    /// What was recorded so far. The watch may be some milliseconds behind.
    ///
    /// # Errors
    /// When changes may be missing.
    pub fn history(&self) -> Result<History> {
        let record = self.record.lock().map_err(|_| anyhow::anyhow!("the recorder panicked"))?;
        match &record.gap {
            Some(gap) => bail!("changes may be missing: {gap}"),
            None => Ok(History::of(record.changes.clone())),
        }
    }
}

async fn first<K>(
    api: &Api<K>,
    selector: &str,
    record: &Mutex<Record>,
    what: fn(&K, bool) -> Option<What>,
) -> Result<String>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let list = limited("list", api.list(&ListParams::default().labels(selector))).await?;
    for object in &list.items {
        enter(record, object, what(object, false));
    }
    list.metadata.resource_version.context("a list without a version")
}

/// Watches until it is aborted, or cannot go on without a gap.
async fn watch<K>(
    api: Api<K>,
    selector: String,
    mut version: String,
    record: Arc<Mutex<Record>>,
    what: fn(&K, bool) -> Option<What>,
) where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let parameters = WatchParams::default().labels(&selector);
    let mut failing: Option<SystemTime> = None;
    loop {
        let before = version.clone();
        let outcome = follow(&api, &parameters, &mut version, &record, what).await;
        let gap = match outcome {
            Ok(()) => {
                failing = None;
                None
            }
            Err(Broken::Gap(status)) => Some(format!("{status:?}")),
            Err(Broken::Connection(error)) => {
                if before != version {
                    failing = None;
                }
                let since = *failing.get_or_insert_with(SystemTime::now);
                let too_long = since.elapsed().unwrap_or_default() > PATIENCE;
                too_long.then(|| format!("cannot watch: {error:#}"))
            }
        };
        if let Some(gap) = gap {
            if let Ok(mut record) = record.lock() {
                record.gap = Some(gap);
            }
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

enum Broken {
    /// The server cannot continue from where we were.
    Gap(Box<Status>),
    /// It can, when it can be reached again.
    Connection(kube::Error),
}

async fn follow<K>(
    api: &Api<K>,
    parameters: &WatchParams,
    version: &mut String,
    record: &Mutex<Record>,
    what: fn(&K, bool) -> Option<What>,
) -> Result<(), Broken>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let events = api.watch(parameters, version).await.map_err(Broken::Connection)?;
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.try_next().await.map_err(Broken::Connection)? {
        let (object, is_deleted) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
            WatchEvent::Deleted(object) => (object, true),
            WatchEvent::Bookmark(bookmark) => {
                *version = bookmark.metadata.resource_version;
                continue;
            }
            WatchEvent::Error(status) => return Err(Broken::Gap(status)),
        };
        enter(record, &object, what(&object, is_deleted));
        *version = object.resource_version().unwrap_or_else(|| version.clone());
    }
    Ok(())
}

fn enter<K: Resource>(record: &Mutex<Record>, object: &K, what: Option<What>) {
    let revision = object.meta().resource_version.as_deref().and_then(|version| version.parse().ok());
    if let (Some(revision), Some(what), Ok(mut record)) = (revision, what, record.lock()) {
        record.changes.push(Change { revision, heard: SystemTime::now(), what });
    }
}

fn of_job(job: &Job, is_deleted: bool) -> Option<What> {
    Some(What::Job {
        uid: job.uid()?,
        name: job.name_any(),
        is_finished: facts::is_finished(job),
        is_terminating: job.metadata.deletion_timestamp.is_some(),
        is_deleted,
    })
}

fn of_pod(pod: &Pod, is_deleted: bool) -> Option<What> {
    Some(What::Pod {
        job: facts::owner(&pod.metadata)?.to_owned(),
        is_ready: facts::is_ready(pod),
        is_leaving: is_deleted || facts::is_over(pod) || facts::is_terminating(pod),
        disruption: facts::disruption(pod),
    })
}

// === impl History ===

impl History {
    fn of(mut changes: Vec<Change>) -> Self {
        changes.sort_by_key(|change| change.revision);
        let mut known = BTreeMap::<String, Known>::new();
        let moments = changes.into_iter().map(|change| {
            match change.what {
                What::Job { uid, name, is_finished, is_terminating, is_deleted } => {
                    let job = known.entry(uid).or_default();
                    job.name = Some(name);
                    job.is_over |= is_finished || is_deleted;
                    job.is_leaving |= is_terminating;
                }
                What::Pod { job, is_ready, is_leaving, disruption } => {
                    let job = known.entry(job).or_default();
                    job.was_ready |= is_ready;
                    job.is_leaving |= is_leaving;
                    job.disruption = disruption.or(job.disruption.take());
                }
            }
            let names = |filter: fn(&&Known) -> bool| {
                known.values().filter(filter).filter_map(|job| job.name.clone()).collect()
            };
            Moment {
                heard: change.heard,
                pending: names(|job| !job.is_over && !job.was_ready && !job.is_leaving),
                occupied: names(|job| !job.is_over),
            }
        });
        let moments = moments.collect();
        let disrupted = known.into_values().filter_map(|job| Some((job.name?, job.disruption?)));
        Self { moments, disruptions: disrupted.collect() }
    }

    /// Fails with the moment at which more than `limit` workers were pending at once.
    ///
    /// # Errors
    /// When there is one.
    pub fn assert_pending_at_most(&self, limit: usize) -> Result<()> {
        Self::assert(limit, "pending", self.moments.iter().map(|moment| (moment.heard, &moment.pending)))
    }

    /// Fails with the moment at which more than `limit` workers were there at once.
    ///
    /// # Errors
    /// When there is one.
    pub fn assert_occupied_at_most(&self, limit: usize) -> Result<()> {
        Self::assert(limit, "there", self.moments.iter().map(|moment| (moment.heard, &moment.occupied)))
    }

    fn assert<'a>(
        limit: usize,
        what: &str,
        mut moments: impl Iterator<Item = (SystemTime, &'a BTreeSet<String>)>,
    ) -> Result<()> {
        match moments.find(|(_, names)| names.len() > limit) {
            None => Ok(()),
            Some((heard, names)) => bail!(
                "at {} more than {limit} workers were {what}: {}",
                humantime::format_rfc3339_millis(heard),
                names.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
            ),
        }
    }

    /// The workers, in the order in which they became pending.
    #[must_use]
    pub fn launches(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let names = self.moments.iter().flat_map(|moment| &moment.occupied);
        names.filter(|name| seen.insert((*name).clone())).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: u64, what: What) -> Change {
        Change { revision, heard: SystemTime::UNIX_EPOCH, what }
    }

    fn job(name: &str, is_finished: bool) -> What {
        What::Job {
            uid: format!("uid of {name}"),
            name: name.to_owned(),
            is_finished,
            is_terminating: false,
            is_deleted: false,
        }
    }

    fn pod(job: &str, is_ready: bool, is_leaving: bool) -> What {
        What::Pod { job: format!("uid of {job}"), is_ready, is_leaving, disruption: None }
    }

    #[test]
    fn changes_count_in_the_order_in_which_they_were_stored_not_heard_of() {
        // The second Job is heard of before the first one's pod is ready, but was stored after it.
        let changes = vec![
            change(1, job("a", false)),
            change(9, job("b", false)),
            change(5, pod("a", true, false)),
            change(12, pod("a", false, false)),
        ];
        let history = History::of(changes);
        history.assert_pending_at_most(1).unwrap();
        assert!(history.assert_occupied_at_most(1).is_err(), "both are there");
        assert_eq!(history.launches(), ["a", "b"]);
    }

    #[test]
    fn two_pending_at_once_are_named() {
        let error = History::of(vec![change(1, job("a", false)), change(2, job("b", false))]);
        let error = error.assert_pending_at_most(1).unwrap_err().to_string();
        assert!(error.ends_with("more than 1 workers were pending: a, b"), "{error}");
    }

    #[test]
    fn finished_and_leaving_workers_are_not_pending() {
        let changes = vec![
            change(1, job("a", false)),
            change(2, job("a", true)),
            change(3, job("b", false)),
            change(4, pod("b", false, true)),
            change(5, job("c", false)),
        ];
        History::of(changes).assert_pending_at_most(1).unwrap();
    }
}
