//! Effects in the ledger's own transaction: once, whoever dies when. The worker is the example
//! `examples/rust-postgres`.

use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, Result, ensure};
use mayfly_tests::{
    Bed, Signal, on_each_release,
    store::{self, Store},
    until,
};

use super::{Crew, LEASE, LIMIT, Worker, exit, publish_all, topology};

on_each_release!(
    an_effect_happens_once_at_whatever_step_the_worker_dies,
    a_transaction_that_cannot_succeed_leaves_nothing_behind,
    a_transaction_waits_for_a_row_that_somebody_else_holds,
);

const ACCOUNTS: &str = "CREATE TABLE accounts (name text PRIMARY KEY, balance bigint NOT NULL);
    INSERT INTO accounts VALUES ('alice', 0)";

/// The example's program, on a queue of its own.
fn start(crew: &Crew<'_>, store: &Store, name: &str, queue: &str, crash_at: Option<&str>) -> Result<Worker> {
    let idle = if name.starts_with("finishing") { "8s" } else { "5m" };
    let arguments = ["--queue", queue, "--max-idle", idle, "--concurrency", "2", "--max-attempts", "1000"];
    let url = store.url();
    let mut environment = vec![("MAYFLY_LEDGER_URL", &*url), LEASE];
    environment.extend(crash_at.map(|step| ("MAYFLY_CRASH_AT", step)));
    crew.start_program("rust-postgres", name, &arguments, &environment)
}

async fn balance(store: &Store) -> Result<i64> {
    let row = store.postgres().await?.query_one("SELECT balance FROM accounts", &[]).await?;
    Ok(row.try_get(0)?)
}

async fn with_accounts() -> Result<Store> {
    let store = Store::start(store::Kind::Postgres).await?;
    store.postgres().await?.batch_execute(ACCOUNTS).await?;
    Ok(store)
}

async fn an_effect_happens_once_at_whatever_step_the_worker_dies(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    let store = with_accounts().await?;
    let mut expected = 0;
    for step in [
        "after-claim",
        "before-transaction-commit",
        "after-transaction-commit",
        "after-handler",
        "before-ack",
    ] {
        let queue = bed.queue_name(step);
        topology(&crew, &queue).await?;
        publish_all(&client, &queue, step, 3, b"alice 1").await?;
        expected += 3;
        let mut dying = start(&crew, &store, &format!("dying-{step}"), &queue, Some(step))?;
        let status = dying.process.exits(LIMIT).await?;
        ensure!(status.signal() == Some(Signal::ABORT.as_raw()), "{status}\n{}", dying.process.log_tail());
        let mut worker = start(&crew, &store, &format!("finishing-{step}"), &queue, None)?;
        let report = worker.ends_with(exit::OK).await?;
        let found = balance(&store).await?;
        ensure!(found == expected, "{step}: {found} and not {expected}; {report:?}");
        crew.nothing_is_left(&[&queue]).await?;
    }
    client.close().await
}

async fn a_transaction_waits_for_a_row_that_somebody_else_holds(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    let store = with_accounts().await?;
    topology(&crew, &bed.queue).await?;
    let (holder, onlooker) = (store.postgres().await?, store.postgres().await?);
    holder.batch_execute("BEGIN; UPDATE accounts SET balance = 100").await?;
    client.publish_one(&bed.queue, "m", b"alice 1").await?;
    let mut worker = start(&crew, &store, "finishing", &bed.queue, None)?;
    // For longer than the ledger's own statements would wait.
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE wait_event_type = 'Lock' AND now() - query_start > interval '2 s'";
    let waits = async || Ok(onlooker.query_one(waiting, &[]).await?.try_get::<_, i64>(0)? == 1);
    until("the worker's transaction has waited for two seconds", LIMIT, waits).await?;
    holder.batch_execute("COMMIT").await?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!((report.done, report.retried) == (1, 0), "{report:?}");
    ensure!(balance(&store).await? == 101);
    Ok(())
}

async fn a_transaction_that_cannot_succeed_leaves_nothing_behind(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    let store = with_accounts().await?;
    topology(&crew, &bed.queue).await?;
    client.publish_one(&bed.queue, "unknown", b"bob 1").await?;
    client.publish_one(&bed.queue, "odd", b"\xff").await?;
    client.publish_one(&bed.queue, "good", b"alice 5").await?;
    let mut worker = start(&crew, &store, "finishing", &bed.queue, None)?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!((report.done, report.dead_lettered) == (1, 2), "{report:?}");
    ensure!(balance(&store).await? == 5);
    let records = store.records().await?;
    let done = records.lines().filter(|line| line.contains(",t,")).count();
    ensure!(done == 1, "{records}");
    let told = worker.process.log()?;
    ensure!(told.contains("there is no account"), "{told}");
    client.until_ready(&format!("{}.dead", bed.queue), 2, LIMIT).await.context("dead letters")
}
