//! The end of the demo: what was promised, and whether it holds.

use std::fmt;

use anyhow::Result;
use console::style;
use mayfly_tests::{eventually, ids, node::QueueReport};

use crate::{Args, scene::Scene, stage::Stage};

/// How long the broker may take to notice that consumers and connections have ended.
const SETTLE_LIMIT: std::time::Duration = std::time::Duration::from_secs(15);

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
    /// Checks messages and workers, the latter in the process table as well.
    pub(crate) fn of(args: &Args, scene: &Scene, stage: &Stage) -> Self {
        let mut summary = Self { lines: Vec::new() };
        summary.messages(scene);
        summary.workers(args, scene, stage);
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

    /// Checks that nothing of ours is left at the broker. The scaler has ended.
    pub(crate) async fn broker(&mut self, stage: &Stage) -> Result<()> {
        let Some(broker) = stage.own_broker() else { return self.foreign_broker(stage).await };
        // A quorum queue's figures follow at its next tick, 5 s later at most.
        let mut queues = Vec::new();
        let quiet = eventually("nothing is left in the queues", SETTLE_LIMIT, async || {
            queues = broker.queues().await?;
            Ok(queues.iter().all(|queue| queue.ready + queue.unacked + queue.consumers == 0).then_some(()))
        });
        // What is not so is shown figure by figure.
        let _ = quiet.await;
        let sum = |count: fn(&QueueReport) -> u64| queues.iter().map(count).sum::<u64>();
        let (ready, unacked, consumers) =
            (sum(|queue| queue.ready), sum(|queue| queue.unacked), sum(|queue| queue.consumers));
        self.check("ready", format!("{ready} in {} queues", queues.len()), ready == 0);
        self.check("unacked", unacked.to_string(), unacked == 0);
        self.check("consumers", consumers.to_string(), consumers == 0);
        let connections = eventually("all connections are gone", SETTLE_LIMIT, async || {
            Ok(broker.connections().await?.is_empty().then_some(()))
        });
        match connections.await {
            Ok(()) => self.check("connections", "0", true),
            Err(error) => self.check("connections", format!("{error:#}"), false),
        }
        Ok(())
    }

    /// A broker of the user's: AMQP tells ready messages and consumers, no more.
    async fn foreign_broker(&mut self, stage: &Stage) -> Result<()> {
        let client = stage.client().await?;
        let (mut ready, mut consumers) = (0, 0);
        for queue in stage.queues() {
            let depth = client.depth(&queue).await?;
            ready += depth.ready;
            consumers += depth.consumers;
        }
        client.close().await?;
        self.check("ready", ready.to_string(), ready == 0);
        self.check("consumers", consumers.to_string(), consumers == 0);
        self.tell("unacked", "not readable over AMQP");
        self.tell("connections", "not readable over AMQP");
        Ok(())
    }

    fn workers(&mut self, args: &Args, scene: &Scene, stage: &Stage) {
        let launched = scene.workers.len();
        self.tell("launched", format!("{launched} workers"));
        let most = scene.most_at_once();
        let limit = usize::try_from(args.max_workers).unwrap_or(usize::MAX);
        self.check("most at once", format!("{most} of at most {limit}"), most <= limit);
        let ended_well = |worker: &&crate::scene::Worker| worker.exit_code == Some(0);
        let well = scene.workers.values().filter(ended_well).count();
        let mut reasons: Vec<_> =
            scene.workers.values().filter_map(|worker| worker.reason.as_deref()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        self.check(
            "ended by itself",
            format!("{well} of {launched} ({})", reasons.join(", ")),
            well == launched,
        );
        let running = stage.running_workers().len();
        self.check("still running", running.to_string(), running == 0);
        let seconds = |time: Option<std::time::Duration>| {
            time.map_or_else(|| "never".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()))
        };
        self.tell("until empty", seconds(scene.emptied));
        self.tell("until zero", format!("{} (no worker left)", seconds(scene.vanished)));
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
