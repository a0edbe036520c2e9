//! Messages that need more memory than their worker has, in a control group that the test makes.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use mayfly_tests::{Bed, on_each_release};

use super::{Crew, NOTE_DONE, Worker, both, exit, isolated_among_many, replaced_until};

on_each_release!(
    a_message_that_uses_up_the_memory_is_isolated_and_all_others_are_done,
    a_message_that_brings_down_its_workers_is_finished_by_a_larger_one_that_serves_the_quarantine_queue,
);

/// A control group with a limit on memory, gone when dropped.
pub(super) struct Group(std::path::PathBuf);

/// Takes all the memory there is, and leaves it to others to be killed.
const GREEDY: &str = "echo 0 >/proc/self/oom_score_adj; tail /dev/zero";
/// The same with 200 MB, if there are so many.
const LARGE: &str = "echo 0 >/proc/self/oom_score_adj; head -c 200M /dev/zero | tail >/dev/null || exit 1";

// === impl Group ===

impl Group {
    fn new(name: &str, limit: &str) -> Result<Self> {
        let (root, file) = if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            ("/sys/fs/cgroup", "memory.max")
        } else {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        };
        let path = std::path::Path::new(root).join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}: root is needed", path.display()))?;
        let group = Self(path);
        fs::write(group.0.join(file), limit)?;
        Ok(group)
    }

    /// Starts a worker in it. A container's memory is used up for all that runs in it; here the kernel would choose
    /// the handler.
    pub(super) fn exec(
        &self,
        crew: &Crew<'_>,
        name: &str,
        queue: &str,
        options: &[&str],
        script: &str,
    ) -> Result<Worker> {
        let arguments = super::super::exec(queue, options, script);
        let (program, status, termination_log) = crew.program("mayfly-worker", name, &arguments)?;
        let group = self.0.join("cgroup.procs");
        let enter =
            format!(r#"echo $$ >{} && echo 1000 >/proc/$$/oom_score_adj && exec "$0" "$@""#, group.display());
        let process = program.within(&["/bin/sh", "-c", &enter]).spawn(name)?;
        Ok(Worker { process, status, termination_log })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It can be removed once the last process in it is gone.
        for _ in 0..200 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

async fn a_message_that_uses_up_the_memory_is_isolated_and_all_others_are_done(bed: &Bed) -> Result<()> {
    let group = Group::new(&bed.queue, "100M")?;
    let script = format!(r#"read -r word; [ "$word" = poison ] && {{ {GREEDY}; exit 1; }}; {NOTE_DONE}"#);
    let deaths = isolated_among_many(bed, Some(&group), &script).await?;
    // Memory may still be taken when the next worker comes, so more of them may die.
    ensure!(deaths.iter().all(|deaths| *deaths >= 4), "{deaths:?} workers died");
    Ok(())
}

async fn a_message_that_brings_down_its_workers_is_finished_by_a_larger_one_that_serves_the_quarantine_queue(
    bed: &Bed,
) -> Result<()> {
    let client = bed.client().await?;
    let group = Group::new(&bed.queue, "100M")?;
    let quarantines = both(bed, &client).await?;
    for ((kind, queue), (_, large)) in both(bed, &client).await?.into_iter().zip(quarantines) {
        let crew = Crew::new(bed);
        client.publish_one(&queue, "the-large-one", b"").await?;
        let file = format!("{queue}.done");
        let script = format!(r#"{LARGE}; cp "$MAYFLY_HEADERS_FILE" "$DIR/headers"; {NOTE_DONE}"#)
            .replace("/done", &format!("/{file}"));
        let options = ["--quarantine-queue", &large, "--max-idle", "5m"];
        let start = |number| group.exec(&crew, &format!("{queue}-{number}"), &queue, &options, &script);
        let deaths = replaced_until(&crew, start, async || Ok(client.depth(&large).await?.ready > 0)).await?;
        ensure!(deaths >= 4 && crew.notes(&file)?.0.is_empty(), "{kind:?}: {deaths} workers died");
        let mut worker = crew.exec(&large, &large, &["--max-idle", "1s"], &script)?;
        let report = worker.ends_with(exit::OK).await?;
        ensure!((report.messages, report.done) == (1, 1), "{kind:?}: {report:?}");
        let done = crew.notes(&file)?;
        ensure!(done.0.len() == 1 && done.of("the-large-one").len() == 1, "{kind:?}: {done:?}");
        // What happened elsewhere does not count against it here.
        let headers: serde_json::Value = serde_json::from_slice(&fs::read(bed.directory().join("headers"))?)?;
        ensure!(headers["x-mayfly-deaths"] == 0, "{kind:?}: {headers}");
        for queue in [&queue, &large] {
            ensure!(client.depth(&format!("{queue}.dead")).await?.ready == 0, "{kind:?}: dead-lettered");
            crew.nothing_is_left(&[queue, &format!("{queue}.suspect")]).await?;
        }
    }
    client.close().await
}
