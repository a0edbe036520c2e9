//! Workers that die at each step, with each kind of handler.

use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use mayfly_tests::{Bed, Client, Program, Signal, ids, node::free_port, on_each_release, store::Store};
use serde_json::Value;

use super::{Crew, KINDS, LEASE, LIMIT, exit, topology};

on_each_release!(
    whatever_step_a_worker_dies_at_what_is_recorded_never_runs_again,
    without_a_ledger_what_was_in_work_when_a_worker_died_runs_again_with_any_handler,
);

/// Where a worker dies, and how often the message that it had in work runs in all.
const STEPS: [(&str, usize); 5] =
    [("after-claim", 1), ("after-handler", 2), ("before-commit", 2), ("after-commit", 1), ("before-ack", 1)];
/// The same for one without a ledger.
const STEPS_WITHOUT: [(&str, usize); 2] = [("after-handler", 2), ("before-ack", 2)];
/// The kinds of handler, and what works behind each.
const HANDLERS: [&str; 3] = ["exec", "stdio", "http"];
const BRAIN: &str = include_str!("../handlers/brain.py");

async fn whatever_step_a_worker_dies_at_what_is_recorded_never_runs_again(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    for kind in KINDS {
        let store = Store::start(kind).await?;
        let cases = HANDLERS.iter().flat_map(|handler| STEPS.map(|step| (*handler, step)));
        let cases = cases.map(|(handler, step)| dies_at(&crew, &client, Some(&store), handler, step));
        try_join_all(cases).await.with_context(|| format!("{kind:?}"))?;
    }
    client.close().await
}

async fn without_a_ledger_what_was_in_work_when_a_worker_died_runs_again_with_any_handler(
    bed: &Bed,
) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    let cases = HANDLERS.iter().flat_map(|handler| STEPS_WITHOUT.map(|step| (*handler, step)));
    let cases = cases.map(|(handler, step)| dies_at(&crew, &client, None, handler, step));
    try_join_all(cases).await?;
    client.close().await
}

async fn dies_at(
    crew: &Crew<'_>,
    client: &Client,
    store: Option<&Store>,
    handler: &str,
    (step, runs): (&str, usize),
) -> Result<()> {
    let queue = crew.bed.queue_name(&format!("{handler}-{step}"));
    topology(crew, &queue).await?;
    let published = client.publish(&queue, 3).await?;
    let directory = crew.bed.directory().join(format!("of-{queue}"));
    std::fs::create_dir(&directory)?;
    let brain = directory.join("brain.py");
    std::fs::write(&brain, BRAIN)?;
    let (directory, brain) = (directory.to_string_lossy(), brain.to_string_lossy());
    let port = free_port()?.to_string();
    let url = format!("http://127.0.0.1:{port}/work");
    let (command, server): (&[&str], _) = if handler == "http" {
        let server = Program::new("/usr/bin/env".as_ref(), crew.bed.directory());
        let server = server.args(["python3", &brain, "http", &port]).env("DIR", &*directory);
        (&["--url", &url, "--health-path", "/health"], Some(server.spawn(&format!("server-{queue}"))?))
    } else {
        (&["--", "python3", &brain, handler], None)
    };
    let ledger_url = store.map(Store::url);
    let mut environment = vec![("DIR", &*directory)];
    if let Some(url) = &ledger_url {
        environment.extend([("MAYFLY_LEDGER_URL", &**url), LEASE]);
    }
    let arguments = |idle| [&[handler, "--queue", &queue, "--max-idle", idle], command].concat();
    let begun = || -> Result<Vec<String>> {
        let text = std::fs::read_to_string(format!("{directory}/seen")).unwrap_or_default();
        let id = |line| {
            Ok(serde_json::from_str::<Value>(line)?["message_id"].as_str().context("an id")?.to_owned())
        };
        text.lines().map(id).collect()
    };

    let dying = [&environment[..], &[("MAYFLY_CRASH_AT", step)]].concat();
    let mut dying = crew.start_with(&format!("dying-{queue}"), &arguments("1s"), &dying)?;
    let status = dying.process.exits(LIMIT).await?;
    ensure!(status.signal() == Some(Signal::ABORT.as_raw()), "{status}\n{}", dying.process.log_tail());
    client.until_ready(&queue, 3, LIMIT).await?;
    let before = begun()?;
    // As often as a claim of the dead one may send it round.
    let mut worker = crew.start_with(&format!("finishing-{queue}"), &arguments("8s"), &environment)?;
    let report = worker.ends_with(exit::OK).await?;
    let all = begun()?;
    ids::assert_same("published", &published, "begun", &all.iter().cloned().collect())?;
    let most = published.iter().map(|id| all.iter().filter(|it| *it == id).count()).max();
    ensure!(most == Some(runs), "{handler} {step}: {all:?}");
    ensure!(all.len() == 2 + runs, "{handler} {step}: {all:?}");
    let known = u64::from(runs == 1 && !before.is_empty());
    ensure!(report.known == known, "{handler} {step}: {report:?}");
    drop(server);
    client.until_ready(&queue, 0, LIMIT).await
}
