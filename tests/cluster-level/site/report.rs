//! What a failed test shows.

use std::fs;

use super::Site;

/// How many lines of each log.
const LINES: usize = 40;

impl Site {
    /// Pods, events, the scaler's last words, the workers', and what the scripts said last.
    pub(crate) async fn report(&self) -> String {
        let namespace = ["--namespace", self.namespace.as_str()];
        let scaler = format!("deployment/{}-scaler", self.namespace);
        let tail = format!("--tail={LINES}");
        let workers = "app.kubernetes.io/component=worker";
        let questions: [&[&str]; 6] = [
            &["get", "nodes,jobs,pods", "--output=wide"],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["get", "configmap", &format!("{}-state", self.namespace), "--output=jsonpath={.data}"],
            &["logs", &scaler, "--all-pods", "--prefix", &tail],
            &["logs", &scaler, "--previous", &tail],
            &["logs", "--selector", workers, "--prefix", "--tail=5", "--max-log-requests=50"],
        ];
        let mut text = String::new();
        for question in questions {
            let answer = self.kubectl(&[&namespace[..], question].concat()).await;
            let answer = answer.unwrap_or_else(|error| format!("({error:#})"));
            let skipped = answer.lines().count().saturating_sub(2 * LINES);
            let answer: Vec<_> = answer.lines().skip(skipped).collect();
            text.extend(["--- kubectl ", &question.join(" "), "\n", &answer.join("\n"), "\n"]);
        }
        text + &self.script_logs()
    }

    fn script_logs(&self) -> String {
        let entries = fs::read_dir(self.directory()).into_iter().flatten().flatten();
        let mut logs: Vec<_> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .filter(|path| {
                !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"kubectl-"))
            })
            .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
            .collect();
        logs.sort();
        let shown = logs.iter().rev().take(4).map(|(_, path)| {
            let log = fs::read_to_string(path).unwrap_or_default();
            let skipped = log.lines().count().saturating_sub(LINES);
            let lines: Vec<_> = log.lines().skip(skipped).collect();
            format!("--- end of {}\n{}\n", path.display(), lines.join("\n"))
        });
        shown.collect()
    }
}
