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
        let launched = scene.workers.len();
        self.tell("launched", format!("{launched} workers"));
        let most = scene.most_at_once();
        let limit = usize::try_from(max_workers).unwrap_or(usize::MAX);
        self.check("most at once", format!("{most} of at most {limit}"), most <= limit);
        let endings: Vec<_> =
            scene.workers.values().filter_map(|worker| worker.seen.ending.as_ref()).collect();
        let well = endings.iter().filter(|ending| ending.is_good()).count();
        let mut reasons: Vec<_> = endings.iter().filter_map(|ending| ending.reason.as_deref()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        self.check(
            "ended by itself",
            format!("{well} of {launched} ({})", reasons.join(", ")),
            well == launched,
        );
        self.jobs(&endings, launched);
        self.check("still running", running.to_string(), running == 0);
        let seconds = |time: Option<std::time::Duration>| {
            time.map_or_else(|| "never".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()))
        };
        self.tell("until empty", seconds(scene.emptied));
        self.tell("until zero", format!("{} (no worker left)", seconds(scene.vanished)));
    }

    /// Where workers are Jobs.
    fn jobs(&mut self, endings: &[&Ending], launched: usize) {
        let told: Vec<_> = endings.iter().filter_map(|ending| ending.complete).collect();
        if !told.is_empty() {
            let complete = told.iter().filter(|complete| **complete).count();
            self.check("Jobs Complete", format!("{complete} of {launched}"), complete == launched);
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
