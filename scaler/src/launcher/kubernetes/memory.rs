//! What has been learned of Jobs and pods, so that most looks need to ask for Jobs only. Pure.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobStatus},
        core::v1::{Event, Pod},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    ending::ending,
    names::{CONTROLLER, Identity, generation, reason},
    phase::{self, Seen, finished, has_ended, is_scheduled, pod_phase, stamp, was_ready},
    said::{self, Said, Word},
};
use crate::{
    policy::{Ending, Intent, PendingCause, Phase, Worker},
    time::Time,
};

/// What gets no further for this long may be refused what it needs: its Events are looked at …
const EVENTS_AFTER: Duration = Duration::from_secs(3);
/// … and again after this.
const EVENTS_CADENCE: Duration = Duration::from_secs(5);

/// Of so many objects Events are asked for in one look, however many workers are stuck.
const EVENTS_AT_ONCE: usize = 2;

/// The pod of a worker that is not ready yet is looked at this often, even if its Job tells nothing new.
const PENDING_CADENCE: Duration = Duration::from_secs(2);

/// So many failed Jobs of a pool are kept, the newest, for as long as their template says.
const FAILED_KEPT: usize = 10;
/// No request for a launch that was decided so long ago is on its way any more: a Job that is deleted stays so.
const NAME_FREE_AFTER: Duration = Intent::COMPLETE_UNTIL.saturating_add(Intent::WITHDRAW_AFTER);

/// All Jobs and pods of the instance, as last seen.
#[derive(Debug, Default)]
pub(super) struct Memory {
    jobs: BTreeMap<String, Known>,
    /// Pods whose Job is gone, by uid.
    orphans: BTreeMap<String, Orphan>,
    /// Whether the pods were listed, and since a Job went that had not ended.
    looked: bool,
    /// What the cluster autoscaler says of all nodes to come.
    of_nodes: Option<Word>,
}

/// One Job, by its uid.
#[derive(Debug)]
struct Known {
    job: Job,
    pod: Option<Pod>,
    /// When its pod was last looked at, and what the Job said then.
    looked_at: Option<(Time, Sign)>,
    /// Whether its pod was there at the last look.
    listed: bool,
    /// Since when its pod was ready, if it ever was.
    ready_since: Option<Time>,
    /// What Events say about the Job, or its pod.
    said: Option<Said>,
    /// When Events were last asked for, and about what.
    asked: Option<(Time, String)>,
    /// Why it was not ready on its node at the last look, and since when: the pod tells only since when it has
    /// its node.
    cause: Option<(PendingCause, Time)>,
    /// Drawn up once: the pod may go before its Job does.
    ending: Option<Ending>,
}

/// What changes in a Job when something happens to its pod.
#[derive(Debug, Clone, PartialEq)]
struct Sign {
    status: Option<JobStatus>,
    is_deleted: bool,
}

#[derive(Debug)]
struct Orphan {
    pod: Pod,
    ready_since: Option<Time>,
}

// === impl Memory ===

impl Memory {
    /// Takes in all Jobs; what is not among them is forgotten. Returns those that are new here and came so late
    /// that their launch may have been written off: their names, and how late they are.
    pub(super) fn take_jobs(&mut self, jobs: Vec<Job>) -> Vec<(String, Duration)> {
        let mut before = std::mem::take(&mut self.jobs);
        let mut belated = Vec::new();
        for job in jobs {
            let uid = job.metadata.uid.clone().unwrap_or_default();
            let known = if let Some(known) = before.remove(&uid) {
                Known { job, ..known }
            } else {
                let late = phase::came_after(&job).filter(|late| *late >= Intent::WITHDRAW_AFTER);
                belated.extend(job.metadata.name.clone().zip(late));
                Known::new(job)
            };
            self.jobs.insert(uid, known);
        }
        // Somebody deleted it: its pod may live on.
        self.looked &= before.values().all(|known| known.ending.is_some());
        belated
    }

    /// Whether the pods have to be asked for: something may have changed that the Jobs don't tell.
    pub(super) fn wants_pods(&self, now: Time) -> bool {
        !self.looked || !self.orphans.is_empty() || self.jobs.values().any(|known| known.wants_pod(now))
    }

    /// Takes in all pods, listed after the Jobs.
    pub(super) fn take_pods(&mut self, pods: Vec<Pod>, now: Time) {
        self.looked = true;
        let mut orphans = std::mem::take(&mut self.orphans);
        let mut by_job: BTreeMap<&str, Pod> = BTreeMap::new();
        for pod in pods {
            let labels = pod.metadata.labels.as_ref();
            let owner = labels.and_then(|labels| labels.get(CONTROLLER)).cloned().unwrap_or_default();
            if let Some((uid, _)) = self.jobs.get_key_value(&owner) {
                // A Job of ours has one pod; of several, the one that lives counts, then the newest.
                let rank = |pod: &Pod| (!has_ended(pod), pod.metadata.creation_timestamp.clone());
                if by_job.get(&**uid).is_none_or(|other| rank(other) < rank(&pod)) {
                    by_job.insert(uid, pod);
                }
            } else if !has_ended(&pod) {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                let known = orphans.remove(&uid).and_then(|orphan| orphan.ready_since);
                let ready_since = known.or_else(|| was_ready(&pod, now));
                self.orphans.insert(uid, Orphan { pod, ready_since });
            }
        }
        let mut found: BTreeMap<String, Pod> =
            by_job.into_iter().map(|(uid, pod)| (uid.to_owned(), pod)).collect();
        for (uid, known) in &mut self.jobs {
            known.look(found.remove(uid), now);
        }
    }

    /// Jobs, by uid, and the object of each whose Events are to be asked for: the Job or its pod. Those that were
    /// not asked for longest come first, and the others next time.
    pub(super) fn silent(&self, now: Time) -> Vec<(String, String)> {
        let about = |(uid, known): (&String, &Known)| {
            let asked = known.asked.as_ref().map(|(at, _)| *at);
            Some((asked, uid.clone(), known.silent(uid, now)?))
        };
        let mut silent: Vec<_> = self.jobs.iter().filter_map(about).collect();
        silent.sort();
        silent.into_iter().take(EVENTS_AT_ONCE).map(|(_, uid, object)| (uid, object)).collect()
    }

    /// Takes in what the cluster autoscaler says of all nodes to come.
    pub(super) fn take_word(&mut self, of_nodes: Option<Word>) {
        self.of_nodes = of_nodes;
    }

    /// Takes in the Events on `object`, which the Job `uid` is or has; none where they could not be read.
    pub(super) fn take_events(&mut self, uid: &str, object: String, events: Option<&[Event]>, now: Time) {
        let Some(known) = self.jobs.get_mut(uid) else { return };
        if let Some(events) = events {
            known.said = match known.pod.as_ref().filter(|_| object != uid) {
                None => said::of_creation(events, now),
                Some(pod) if is_scheduled(pod) => said::of_preparing(events, now),
                // What is said of the pod itself is more to the point.
                Some(pod) => {
                    said::of_placing(events, pod, now).or_else(|| self.of_nodes.as_ref()?.about(pod, now))
                }
            };
            known.note_cause(now);
        }
        known.asked = Some((now, object));
    }

    /// The uid of the Job of this name, and its pod as it was listed last, if it was.
    pub(super) fn job_and_pod(&self, name: &str) -> Option<(String, Option<Pod>)> {
        let named = |known: &&Known| known.job.metadata.name.as_deref() == Some(name);
        let known = self.jobs.values().find(named)?;
        Some((known.job.metadata.uid.clone()?, known.pod.clone().filter(|_| known.listed)))
    }

    /// Failed Jobs beyond the [`FAILED_KEPT`] newest of each pool, the oldest first: those of `counted`, of which
    /// nothing lives and whose names no request that is on its way can bring back.
    pub(super) fn failed_surplus(&self, counted: &[Worker], now: Time) -> Vec<ObjectMeta> {
        let failed = |known: &&Known| {
            known.ending.is_some() && finished(&known.job).is_some_and(|end| end.type_ == "Failed")
        };
        let mut by_pool: BTreeMap<String, Vec<&Known>> = BTreeMap::new();
        for known in self.jobs.values().filter(failed) {
            by_pool.entry(Identity::of_job(&known.job.metadata).pool).or_default().push(known);
        }
        let is_counted = |known: &&&Known| {
            let name = known.job.metadata.name.as_deref();
            counted.iter().any(|worker| worker.serial.is_some() && Some(&*worker.name) == name)
        };
        let launched = |known: &Known| phase::launched(&known.job, now);
        let mut surplus = Vec::new();
        for mut failed in by_pool.into_values() {
            failed.sort_by_key(|known| launched(known));
            let beyond = failed.len().saturating_sub(FAILED_KEPT);
            let is_over = |known: &&&Known| now.since(launched(known)) >= NAME_FREE_AFTER;
            surplus.extend(failed.iter().take(beyond).filter(is_counted).filter(is_over).copied());
        }
        surplus.into_iter().map(|known| known.job.metadata.clone()).collect()
    }

    /// All workers, ended ones included.
    pub(super) fn workers(&self, now: Time) -> Vec<Worker> {
        let of_jobs = self.jobs.values().map(|known| {
            let Identity { pool, serial, slot } = Identity::of_job(&known.job.metadata);
            Worker {
                name: known.job.metadata.name.clone().unwrap_or_default(),
                pool,
                serial,
                slot,
                launched: phase::launched(&known.job, now),
                reason: reason(&known.job.metadata),
                node: known.pod.as_ref().and_then(phase::node),
                cold: known.pod.as_ref().is_some_and(phase::waited_for_node),
                generation: generation(&known.job.metadata),
                phase: known.phase(now),
            }
        });
        let of_orphans = self.orphans.values().map(|Orphan { pod, ready_since }| {
            let Identity { pool, serial, slot } = Identity::of(&pod.metadata);
            Worker {
                name: pod.metadata.name.clone().unwrap_or_default(),
                pool,
                serial,
                slot,
                launched: stamp(pod.metadata.creation_timestamp.as_ref(), now),
                reason: None,
                node: phase::node(pod),
                cold: phase::waited_for_node(pod),
                generation: None,
                phase: pod_phase(pod, *ready_since, None, now),
            }
        });
        let mut workers: Vec<_> = of_jobs.chain(of_orphans).collect();
        workers.sort_by(|a, b| (&a.pool, a.serial, &a.name).cmp(&(&b.pool, b.serial, &b.name)));
        workers
    }
}

// === impl Known ===

impl Known {
    const fn new(job: Job) -> Self {
        Self {
            job,
            pod: None,
            looked_at: None,
            listed: false,
            ready_since: None,
            said: None,
            asked: None,
            cause: None,
            ending: None,
        }
    }

    fn sign(&self) -> Sign {
        let is_deleted = self.job.metadata.deletion_timestamp.is_some();
        Sign { status: self.job.status.clone(), is_deleted }
    }

    fn wants_pod(&self, now: Time) -> bool {
        let Some((at, sign)) = &self.looked_at else { return true };
        let waits = matches!(self.phase(now), Phase::Pending { .. });
        self.ending.is_none()
            && (*sign != self.sign()
                || finished(&self.job).is_some()
                || (waits && now.since(*at) >= PENDING_CADENCE))
    }

    /// The object that is stuck and whose Events are due: without a pod the Job, else the pod.
    fn silent(&self, uid: &str, now: Time) -> Option<String> {
        let Phase::Pending { started: false, cause, since, .. } = self.phase(now) else { return None };
        let (object, waits_since) = match &self.pod {
            None => (&self.job.metadata, stamp(self.job.metadata.creation_timestamp.as_ref(), now)),
            Some(_) if !self.listed => return None,
            Some(pod) if !is_scheduled(pod) => {
                (&pod.metadata, stamp(pod.metadata.creation_timestamp.as_ref(), now))
            }
            // Of others the pod tells enough.
            Some(pod) => {
                use PendingCause::{Network, Starting, Volumes};
                let unclear = self.said.is_some() || matches!(cause, Starting | Volumes | Network);
                (&pod.metadata, unclear.then_some(since)?)
            }
        };
        let name = object.uid.clone().unwrap_or_else(|| uid.to_owned());
        let recent = |(at, asked): &(Time, String)| *asked == name && now.since(*at) < EVENTS_CADENCE;
        let is_due = now.since(waits_since) >= EVENTS_AFTER && !self.asked.as_ref().is_some_and(recent);
        is_due.then_some(name)
    }

    /// Notes why it is not ready, for as long as that stays so.
    fn note_cause(&mut self, now: Time) {
        let Some(Phase::Pending { cause, since, .. }) = self.seen(now) else { return };
        // Before it has a node, pod and Events tell since when.
        self.cause = match self.cause {
            _ if cause.is_placing() => None,
            Some((before, since)) if before == cause => Some((cause, since)),
            Some(_) => Some((cause, since.max(now))),
            None => Some((cause, since)),
        };
    }

    /// Nothing that was true of its pod is true of the next one.
    fn forget_pod(&mut self) {
        self.pod = None;
        self.ready_since = None;
        self.said = None;
        self.cause = None;
    }

    fn look(&mut self, pod: Option<Pod>, now: Time) {
        self.looked_at = Some((now, self.sign()));
        self.listed = pod.is_some();
        let is_another = |known: &Pod| match &pod {
            Some(pod) => pod.metadata.uid != known.metadata.uid,
            None => phase::has_given_up(&self.job, known),
        };
        if self.pod.as_ref().is_some_and(is_another) {
            self.forget_pod();
        }
        if let Some(pod) = pod {
            self.ready_since = self.ready_since.or_else(|| was_ready(&pod, now));
            // What was said about the Job is no more of account.
            if self.pod.is_none() {
                self.said = None;
            }
            // Nor, with a node, what was said about finding one.
            if is_scheduled(&pod) && !self.pod.as_ref().is_some_and(is_scheduled) {
                self.said = None;
            }
            self.pod = Some(pod);
            self.note_cause(now);
        }
        if self.ending.is_none() && self.seen(now).is_none() {
            self.ending = Some(ending(&self.job, self.pod.as_ref(), self.listed, now));
        }
    }

    /// The phase by Job and pod; `None` when both have ended.
    fn seen(&self, now: Time) -> Option<Phase> {
        let seen = Seen {
            job: &self.job,
            pod: self.pod.as_ref().filter(|_| self.listed),
            lost_pod: self.pod.is_some() && !self.listed,
            ready_since: self.ready_since,
            said: self.said.as_ref(),
        };
        phase::phase(seen, now)
    }

    fn phase(&self, now: Time) -> Phase {
        if let Some(ending) = &self.ending {
            return Phase::Finished(ending.clone());
        }
        match (self.seen(now), self.cause) {
            (Some(Phase::Pending { started, cause, detail, .. }), Some((noted, since))) if noted == cause => {
                Phase::Pending { started, cause, since, detail }
            }
            (Some(phase), _) => phase,
            // Finished since the last look at its pod: the next one draws up its end.
            (None, _) => Phase::Draining,
        }
    }
}
