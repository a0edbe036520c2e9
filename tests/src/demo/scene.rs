//! What is seen of mayfly at work: the scaler's page, and what the workers' files and logs tell.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Seek, SeekFrom},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use mayfly_tests::ids::Ids;
use serde_json::Value;

use crate::stage::Stage;

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

/// One worker, from its file and its log.
#[derive(Debug, Default, Clone)]
pub(crate) struct Worker {
    pub(crate) serial: u64,
    pub(crate) slot: u64,
    /// Milliseconds since the Unix epoch.
    launched: u64,
    ended: Option<u64>,
    /// The exit report's reason, once it has ended.
    pub(crate) reason: Option<String>,
    pub(crate) exit_code: Option<u64>,
    pub(crate) phase: String,
    pub(crate) done: usize,
    /// How much of its log has been read.
    read: u64,
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

    /// Looks once more.
    pub(crate) async fn look(&mut self, stage: &Stage) -> Result<()> {
        self.page = stage.status().await?;
        self.read_workers(&stage.workers())?;
        if self.emptied.is_none() && self.done.len() >= self.published.len() && self.ready() == Some(0) {
            self.emptied = Some(self.elapsed());
        }
        let ended = self.workers.values().all(|worker| worker.ended.is_some());
        if self.emptied.is_some() && ended && self.vanished.is_none() {
            self.vanished = Some(self.elapsed());
        }
        Ok(())
    }

    fn read_workers(&mut self, directory: &Path) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some() {
                continue;
            }
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let worker = self.workers.entry(name).or_default();
            for line in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
                worker.learn(&line);
            }
            worker.read_log(&path.with_extension("log"), &mut self.done)?;
        }
        let listed = self.page["workers"].as_array().into_iter().flatten();
        for (name, phase) in listed.filter_map(|worker| Some((worker["name"].as_str()?, &worker["phase"]))) {
            if let Some(worker) = self.workers.get_mut(name) {
                worker.phase = phase_text(phase);
            }
        }
        Ok(())
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
        let ended = self.workers.values().filter(|worker| worker.ended.is_some()).count();
        (self.done.len(), self.workers.len(), ended)
    }

    /// Workers that ended with an error.
    pub(crate) fn failed(&self) -> usize {
        self.workers.values().filter(|worker| worker.exit_code.is_some_and(|code| code != 0)).count()
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
                worker.launched <= moment && worker.ended.is_none_or(|ended| ended > moment)
            };
            self.workers.values().filter(alive).count()
        };
        self.workers.values().map(|worker| alive_at(worker.launched)).max().unwrap_or(0)
    }
}

// === impl Worker ===

impl Worker {
    /// Takes in one line of its file: the header, or a status line.
    fn learn(&mut self, line: &Value) {
        match line["event"].as_str() {
            None => {
                self.serial = line["serial"].as_u64().unwrap_or(0);
                self.slot = line["slot"].as_u64().unwrap_or(0);
                let stamp = line["stamp"].as_str().and_then(|stamp| humantime::parse_rfc3339(stamp).ok());
                let since = stamp.and_then(|stamp| stamp.duration_since(std::time::UNIX_EPOCH).ok());
                self.launched = since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
            }
            Some("exit") => {
                self.ended = line["at"].as_u64();
                self.exit_code = line["exit_code"].as_u64();
                self.reason = line.pointer("/report/reason").and_then(Value::as_str).map(str::to_owned);
            }
            Some(_) => {}
        }
    }

    /// Reads on in its log.
    fn read_log(&mut self, path: &Path, done: &mut Ids) -> Result<()> {
        let Ok(mut file) = fs::File::open(path) else { return Ok(()) };
        file.seek(SeekFrom::Start(self.read))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // A line that is still being written is left for the next look.
        let Some(end) = text.rfind('\n') else { return Ok(()) };
        self.read += end as u64 + 1;
        for line in text[..end].lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            if line["target"] == "mayfly_worker::message" && line["outcome"] == "done" {
                done.extend(line["id"].as_str().map(str::to_owned));
                self.done += 1;
            }
        }
        Ok(())
    }

    pub(crate) const fn is_there(&self) -> bool {
        self.ended.is_none()
    }
}

fn phase_text(phase: &Value) -> String {
    if let Some(cause) = phase.pointer("/pending/cause").and_then(Value::as_str) {
        return format!("pending ({})", cause.replace('_', " "));
    }
    let name = phase.as_str().or_else(|| phase.as_object()?.keys().next().map(String::as_str));
    name.unwrap_or("?").to_owned()
}
