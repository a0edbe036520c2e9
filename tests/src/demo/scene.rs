//! What was seen of mayfly at work, look by look.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use mayfly_tests::ids::Ids;
use serde_json::Value;

use crate::stage::{Look, Sighting};

/// Where the play is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Messages wait or are worked on.
    Working,
    /// All are done; workers are still there.
    Leaving,
    /// No worker is left.
    Over,
}

/// Everything seen so far.
pub(crate) struct Scene {
    pub(crate) published: Ids,
    pub(crate) done: Ids,
    begin: Instant,
    /// From the start of publishing to the last done message, and to the last worker's end.
    pub(crate) emptied: Option<Duration>,
    pub(crate) vanished: Option<Duration>,
    pub(crate) workers: BTreeMap<String, Worker>,
    page: Value,
}

/// One worker: as last seen by its host and by the scaler.
#[derive(Debug, Default, Clone)]
pub(crate) struct Worker {
    pub(crate) seen: Sighting,
    pub(crate) phase: String,
    pub(crate) done: usize,
}

// === impl Scene ===

impl Scene {
    pub(crate) fn new(published: Ids, begin: Instant) -> Self {
        Self {
            published,
            done: Ids::new(),
            begin,
            emptied: None,
            vanished: None,
            workers: BTreeMap::new(),
            page: Value::Null,
        }
    }

    /// Takes in one more look. A worker that is no longer to be seen stays as it was.
    pub(crate) fn take_in(&mut self, look: Look) {
        let Look { page, workers, done } = look;
        self.page = page;
        for (name, sighting) in workers {
            self.workers.entry(name).or_default().seen = sighting;
        }
        for (name, id) in done {
            self.workers.entry(name).or_default().done += 1;
            self.done.insert(id);
        }
        let listed = self.page["workers"].as_array().into_iter().flatten();
        for (name, phase) in listed.filter_map(|worker| Some((worker["name"].as_str()?, &worker["phase"]))) {
            if let Some(worker) = self.workers.get_mut(name) {
                worker.phase = phase_text(phase);
            }
        }
        if self.emptied.is_none() && self.done.len() >= self.published.len() && self.ready() == Some(0) {
            self.emptied = Some(self.elapsed());
        }
        let ended = self.workers.values().all(|worker| !worker.is_there());
        if self.emptied.is_some() && ended && self.vanished.is_none() {
            self.vanished = Some(self.elapsed());
        }
    }

    pub(crate) fn act(&self) -> Act {
        match (self.emptied, self.vanished) {
            (None, _) => Act::Working,
            (Some(_), None) => Act::Leaving,
            (Some(_), Some(_)) => Act::Over,
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// What must change for the play to go on.
    pub(crate) fn progress(&self) -> (usize, usize, usize) {
        let ended = self.workers.values().filter(|worker| !worker.is_there()).count();
        (self.done.len(), self.workers.len(), ended)
    }

    /// Workers that ended otherwise than they should.
    pub(crate) fn failed(&self) -> usize {
        let endings = self.workers.values().filter_map(|worker| worker.seen.ending.as_ref());
        endings.filter(|ending| !ending.is_good()).count()
    }

    pub(crate) fn decision(&self) -> &str {
        self.page["text"].as_str().unwrap_or("none yet")
    }

    /// Messages waiting; `None` if that is not known.
    pub(crate) fn ready(&self) -> Option<u64> {
        self.queue()?.pointer("/facts/known/value/present/ready")?.as_u64()
    }

    /// The oldest message's age in seconds: an estimate, and what it is at most, if that is known.
    pub(crate) fn age(&self) -> Option<(f64, Option<f64>)> {
        let age = &self.queue()?["age"];
        Some((age["estimate"].as_f64()?, age["at_most"].as_f64()))
    }

    fn queue(&self) -> Option<&Value> {
        self.page["queues"].as_object()?.values().next()
    }

    /// The largest number of workers that were there at the same time.
    pub(crate) fn most_at_once(&self) -> usize {
        let alive_at = |moment: u64| {
            let alive = |worker: &&Worker| {
                let Sighting { launched, ending, .. } = &worker.seen;
                *launched <= moment && ending.as_ref().is_none_or(|ending| ending.at > moment)
            };
            self.workers.values().filter(alive).count()
        };
        self.workers.values().map(|worker| alive_at(worker.seen.launched)).max().unwrap_or(0)
    }
}

// === impl Worker ===

impl Worker {
    pub(crate) const fn is_there(&self) -> bool {
        self.seen.ending.is_none()
    }
}

fn phase_text(phase: &Value) -> String {
    if let Some(cause) = phase.pointer("/pending/cause").and_then(Value::as_str) {
        return format!("pending ({})", cause.replace('_', " "));
    }
    let name = phase.as_str().or_else(|| phase.as_object()?.keys().next().map(String::as_str));
    name.unwrap_or("?").to_owned()
}
