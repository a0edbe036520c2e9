//! What workers settled, read from their pods' logs as they grow.

use std::{fmt, time::Duration};

use anyhow::Result;
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{Api, api::LogParams};
use serde_json::Value;
use tokio::time::Instant;

/// How long reading a log may take: the API server fetches it from the node, which may be gone.
const READ_LIMIT: Duration = Duration::from_secs(3);
/// After a failure, the next try is this much later.
const PAUSE: Duration = Duration::from_secs(5);

/// One worker's log, read from where the last look ended.
#[derive(Clone, Default)]
pub struct Log {
    /// Its container has started, so there is something to read.
    pub has_begun: bool,
    /// Its container has ended, so nothing is added any more.
    pub has_ended: bool,
    /// It has been read to its end.
    pub is_whole: bool,
    /// Ids of messages settled as done, in order.
    pub done: Vec<String>,
    /// The log's last lines, for people.
    pub tail: Vec<String>,
    /// Why it could not be read last time.
    failure: Option<(String, Instant)>,
    /// The second of the last line that was read.
    since: Option<Timestamp>,
    /// How many lines of that second and later were read.
    read_since: usize,
}

/// How many lines are kept for people.
const TAIL_LINES: usize = 20;

// === impl Log ===

impl Log {
    /// Reads on, unless it is read to its end already or failed just now.
    pub(crate) async fn read_on(&mut self, pods: &Api<Pod>, pod: &str) {
        let paused = self.failure.as_ref().is_some_and(|(_, at)| at.elapsed() < PAUSE);
        if self.is_whole || !self.has_begun || paused {
            return;
        }
        // What ended before the question was asked is whole in the answer.
        let has_ended = self.has_ended;
        match self.fetch(pods, pod).await {
            Ok(text) => {
                self.failure = None;
                self.take(&text);
                self.is_whole = has_ended;
            }
            Err(error) => self.failure = Some((format!("{error:#}"), Instant::now())),
        }
    }

    /// What is missing of it, if that is known to be so.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        if self.is_whole || !self.has_begun {
            return None;
        }
        let failure = self.failure.as_ref().map(|(failure, _)| failure.clone());
        Some(failure.unwrap_or_else(|| "not read to its end yet".to_owned()))
    }

    async fn fetch(&self, pods: &Api<Pod>, pod: &str) -> Result<String> {
        let parameters = LogParams { since_time: self.since, timestamps: true, ..LogParams::default() };
        Ok(mayfly_service::deadline("read a log", READ_LIMIT, pods.logs(pod, &parameters)).await??)
    }

    /// Takes in the lines from the second `since` on; those read before are skipped by their number, as a
    /// log can be asked for by whole seconds only.
    fn take(&mut self, text: &str) {
        // A line that is still being written is left for the next look.
        let Some(end) = text.rfind('\n') else { return };
        for line in text[..end].lines().skip(std::mem::take(&mut self.read_since)) {
            self.take_line(line);
        }
        let seconds = text[..end].lines().map(second);
        if let Some(last) = seconds.clone().flatten().max() {
            self.since = Some(last);
        }
        self.read_since = seconds.skip_while(|second| *second < self.since).count();
    }

    fn take_line(&mut self, line: &str) {
        let text = line.split_once(' ').map_or(line, |(_, text)| text);
        if let Ok(line) = serde_json::from_str::<Value>(text)
            && line["target"] == "mayfly_worker::message"
            && line["outcome"] == "done"
        {
            self.done.extend(line["id"].as_str().map(ToOwned::to_owned));
        }
        self.tail.push(text.to_owned());
        let surplus = self.tail.len().saturating_sub(TAIL_LINES);
        self.tail.drain(..surplus);
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Log");
        shown.field("done", &self.done.len()).field("is_whole", &self.is_whole);
        shown.field("failure", &self.failure.as_ref().map(|(failure, _)| failure)).finish_non_exhaustive()
    }
}

/// The whole second at which a line was written.
fn second(line: &str) -> Option<Timestamp> {
    let stamp: Timestamp = line.split_once(' ')?.0.parse().ok()?;
    Timestamp::from_second(stamp.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stamp: &str, id: &str) -> String {
        format!(
            r#"2026-01-01T00:00:{stamp}Z {{"target":"mayfly_worker::message","outcome":"done","id":"{id}"}}"#
        )
    }

    /// What the API server answers: lines from the whole second `since` on.
    fn answer(lines: &[String], since: Option<Timestamp>) -> String {
        let recent = lines.iter().filter(|line| second(line) >= since);
        recent.fold(String::new(), |text, line| text + line + "\n")
    }

    #[test]
    fn every_line_is_taken_once_wherever_the_looks_fall() {
        let stamps = ["01.1", "01.2", "01.2", "02.0", "02.9", "04.5", "04.5"];
        let lines: Vec<_> =
            stamps.iter().enumerate().map(|(id, stamp)| line(stamp, &id.to_string())).collect();
        for looks in 1..1_u32 << lines.len() {
            let mut log = Log::default();
            for read in
                (1..=lines.len()).filter(|read| looks & (1 << (read - 1)) != 0 || *read == lines.len())
            {
                log.take(&answer(&lines[..read], log.since));
            }
            assert_eq!(log.done, ["0", "1", "2", "3", "4", "5", "6"], "looks {looks:b}");
        }
    }

    #[test]
    fn half_a_line_is_left_for_the_next_look() {
        let mut log = Log::default();
        let whole = format!("{}\n", line("01.1", "a"));
        log.take(&whole[..whole.len() - 10]);
        assert!(log.done.is_empty());
        log.take(&whole);
        assert_eq!(log.done, ["a"]);
    }

    #[test]
    fn only_done_messages_count() {
        let mut log = Log::default();
        let retried = line("01.1", "b").replace("done", "retried");
        log.take(&format!("{retried}\n2026-01-01T00:00:02Z not JSON\n{}\n", line("03.0", "a")));
        assert_eq!(log.done, ["a"]);
    }

    #[test]
    fn a_log_that_cannot_be_read_is_not_an_empty_one() {
        let log = Log {
            has_begun: true,
            has_ended: true,
            failure: Some(("the node is gone".to_owned(), Instant::now())),
            ..Log::default()
        };
        assert_eq!(log.missing().as_deref(), Some("the node is gone"));
    }
}
