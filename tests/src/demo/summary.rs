//! The end of the demo: what was promised, and whether it holds.

use std::fmt;

use console::style;
use mayfly_tests::ids;

use crate::{
    scene::Scene,
    stage::{Ending, Remains},
};

/// What AMQP alone does not tell.
const NOT_READABLE: &str = "not readable over AMQP";

/// One thing that was checked, or that is told.
struct Line {
    name: &'static str,
    value: String,
    /// `None`: told, not checked.
    holds: Option<bool>,
}

/// All of them.
pub(crate) struct Summary {
    lines: Vec<Line>,
}

// === impl Summary ===

impl Summary {
    /// Checks messages and workers; of the latter `running` were found to run still.
    pub(crate) fn of(scene: &Scene, max_workers: u32, running: usize) -> Self {
        let mut summary = Self { lines: Vec::new() };
        summary.messages(scene);
        summary.workers(scene, max_workers, running);
        summary
    }

    pub(crate) fn holds(&self) -> bool {
        self.lines.iter().all(|line| line.holds != Some(false))
    }

    fn check(&mut self, name: &'static str, value: impl Into<String>, holds: bool) {
        self.lines.push(Line { name, value: value.into(), holds: Some(holds) });
    }

    fn tell(&mut self, name: &'static str, value: impl Into<String>) {
        self.lines.push(Line { name, value: value.into(), holds: None });
    }

    fn messages(&mut self, scene: &Scene) {
        let Scene { published, done, .. } = scene;
        match ids::assert_same("published", published, "done", done) {
            Ok(()) => self.check(
                "ids",
                format!("{} published = {} done, compared one by one", published.len(), done.len()),
                true,
            ),
            Err(difference) => self.check("ids", difference.to_string(), false),
        }
        let runs: usize = scene.workers.values().map(|worker| worker.done).sum();
        self.check("done twice", format!("{}", runs.saturating_sub(done.len())), runs == done.len());
    }

    /// Checks that nothing is left at the broker.
    pub(crate) fn broker(&mut self, remains: &Remains) {
        let Remains { queues, ready, consumers, unacked, connections } = *remains;
        self.check("ready", format!("{ready} in {queues} queues"), ready == 0);
        match unacked {
            Some(unacked) => self.check("unacked", unacked.to_string(), unacked == 0),
            None => self.tell("unacked", NOT_READABLE),
        }
        self.check("consumers", consumers.to_string(), consumers == 0);
        match connections {
            Some(connections) => self.check("connections", connections.to_string(), connections == 0),
            None => self.tell("connections", NOT_READABLE),
        }
    }

    fn workers(&mut self, scene: &Scene, max_workers: u32, running: usize) {
        let endings: Vec<_> =
            scene.workers.values().filter_map(|worker| worker.seen.ending.as_ref()).collect();
        let launched = scene.workers.len();
        // All is done without them: the scaler took them back.
        let unstarted = endings.iter().filter(|ending| !ending.started).count();
        let unstarted_text = match unstarted {
            0 => String::new(),
            unstarted => format!(", {unstarted} of them taken back before they had started"),
        };
        self.tell("launched", format!("{launched} workers{unstarted_text}"));
        let most = scene.most_at_once();
        let limit = usize::try_from(max_workers).unwrap_or(usize::MAX);
        self.check("most at once", format!("{most} of at most {limit}"), most <= limit);
        let started = launched - unstarted;
        let well = endings.iter().filter(|ending| ending.is_good()).count();
        let mut reasons: Vec<_> = endings.iter().filter_map(|ending| ending.reason.as_deref()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        self.check(
            "ended by itself",
            format!("{well} of {started} ({})", reasons.join(", ")),
            well == started,
        );
        self.jobs(&endings, started);
        self.check("still running", running.to_string(), running == 0);
        let seconds = |time: Option<std::time::Duration>| {
            time.map_or_else(|| "never".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()))
        };
        self.tell("until empty", seconds(scene.emptied));
        self.tell("until zero", format!("{} (no worker left)", seconds(scene.vanished)));
    }

    /// Where workers are Jobs.
    fn jobs(&mut self, endings: &[&Ending], started: usize) {
        let told: Vec<_> = endings.iter().filter_map(|ending| ending.complete).collect();
        if !told.is_empty() {
            let complete = told.iter().filter(|complete| **complete).count();
            self.check("Jobs Complete", format!("{complete} of {started}"), complete == started);
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter)?;
        for Line { name, value, holds } in &self.lines {
            let mark = match holds {
                Some(true) => style("ok").green().to_string(),
                Some(false) => style("NO").red().bold().to_string(),
                None => "  ".to_owned(),
            };
            writeln!(formatter, "{mark}  {name:<16} {value}")?;
        }
        let verdict = if self.holds() { "all checks hold" } else { "NOT all checks hold" };
        write!(formatter, "\n{verdict}")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use mayfly_tests::ids::Ids;
    use serde_json::json;

    use super::*;
    use crate::stage::{Look, Sighting};

    fn ids(list: &[&str]) -> Ids {
        list.iter().map(|&id| id.to_owned()).collect()
    }

    fn sighting(serial: u64, launched: u64, ended: u64) -> Sighting {
        let reason = Some("idle".to_owned());
        let ending = Ending { at: ended, exit_code: Some(0), reason, complete: Some(true), started: true };
        Sighting { serial, slot: 0, launched, ending: Some(ending) }
    }

    /// Two workers that were there one after the other, and did what was to be done.
    fn look() -> Look {
        Look {
            page: json!({ "queues": { "q": { "facts": { "known": { "value": { "present": { "ready": 0 } } } } } } }),
            workers: [("w-1", sighting(1, 10, 20)), ("w-2", sighting(2, 20, 30))]
                .map(|(name, sighting)| (name.to_owned(), sighting))
                .into(),
            done: [("w-1", "a"), ("w-2", "b")].map(|(worker, id)| (worker.to_owned(), id.to_owned())).into(),
        }
    }

    /// The names of what does not hold.
    fn broken(look: Look, max_workers: u32, running: usize, remains: &Remains) -> Vec<&'static str> {
        let mut scene = Scene::new(ids(&["a", "b"]), Instant::now());
        scene.take_in(look);
        let mut summary = Summary::of(&scene, max_workers, running);
        summary.broker(remains);
        let names: Vec<_> =
            summary.lines.iter().filter(|line| line.holds == Some(false)).map(|line| line.name).collect();
        assert_eq!(summary.holds(), names.is_empty());
        names
    }

    fn with_ending(change: impl FnOnce(&mut Ending)) -> Look {
        let mut look = look();
        let worker = look.workers.get_mut("w-2").unwrap();
        change(worker.ending.as_mut().unwrap());
        look
    }

    #[test]
    fn a_play_that_went_well_holds() {
        assert!(broken(look(), 1, 0, &Remains::default()).is_empty());
    }

    #[test]
    fn each_promise_that_is_broken_is_named() {
        let nothing = Remains::default();
        let mut lost = look();
        lost.done.pop();
        assert_eq!(broken(lost, 1, 0, &nothing), ["ids"]);
        let mut twice = look();
        twice.done.push(("w-2".to_owned(), "a".to_owned()));
        assert_eq!(broken(twice, 1, 0, &nothing), ["done twice"]);
        let mut crowd = look();
        crowd.workers.get_mut("w-2").unwrap().launched = 19;
        assert_eq!(broken(crowd, 1, 0, &nothing), ["most at once"]);
        assert_eq!(
            broken(with_ending(|ending| ending.exit_code = Some(69)), 1, 0, &nothing),
            ["ended by itself"]
        );
        let failed = with_ending(|ending| ending.complete = Some(false));
        assert_eq!(broken(failed, 1, 0, &nothing), ["ended by itself", "Jobs Complete"]);
        assert_eq!(broken(look(), 1, 1, &nothing), ["still running"]);
        let full = Remains { ready: 1, consumers: 1, unacked: Some(1), connections: Some(1), ..nothing };
        assert_eq!(broken(look(), 1, 0, &full), ["ready", "unacked", "consumers", "connections"]);
    }

    #[test]
    fn what_cannot_be_read_is_told_as_such_and_not_as_zero() {
        let mut summary = Summary { lines: Vec::new() };
        summary.broker(&Remains { queues: 7, ..Remains::default() });
        let line = summary.lines.iter().find(|line| line.name == "unacked").unwrap();
        assert_eq!((line.value.as_str(), line.holds), (NOT_READABLE, None));
    }

    #[test]
    fn a_worker_that_was_taken_back_before_it_started_breaks_no_promise() {
        let mut look = look();
        let ending = Ending { at: 40, exit_code: None, reason: None, complete: Some(false), started: false };
        look.workers
            .insert("w-3".to_owned(), Sighting { serial: 3, slot: 0, launched: 35, ending: Some(ending) });
        assert!(broken(look, 1, 0, &Remains::default()).is_empty());
    }
}
