//! Queues, permissions and passwords that are taken away from workers: they say so, and nothing is lost.

use anyhow::{Result, ensure};
use mayfly_service::report::ExitReason;
use mayfly_tests::{Bed, Fault, Kind, ids, on_each_release, until};

use super::{Crew, LIMIT, NOTE_BEGUN, NOTE_DONE, WAIT_FOR_GO, declare, exit};

on_each_release!(
    a_queue_that_was_deleted_is_worked_on_when_it_is_back,
    a_queue_that_was_deleted_and_stays_away_is_given_up,
    a_retry_or_dead_letter_queue_that_was_deleted_ends_the_worker_with_its_message_given_back,
    a_permission_or_password_taken_away_later_is_tried_again_and_given_up,
);

async fn a_queue_that_was_deleted_is_worked_on_when_it_is_back(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Classic).await?;
    let arguments = ["sleep", "--queue", &bed.queue, "--for", "1ms", "--max-idle", "1s"];
    let mut worker = crew.start("worker", &[&arguments[..], &["--reconnect-for", "2m"]].concat())?;
    worker.is("ready").await?;
    client.delete(&bed.queue).await?;
    let refused = async || Ok(worker.process.log()?.contains("does not exist"));
    until("it has missed its queue", LIMIT, refused).await?;
    client.declare(&bed.queue, Kind::Classic).await?;
    let published = client.publish(&bed.queue, 5).await?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!(report.reason == ExitReason::Idle && report.done == 5, "{report:?}");
    ids::assert_same("published", &published, "done", &worker.process.done_ids()?)?;
    crew.nothing_is_left(&[&bed.queue]).await?;
    client.close().await
}

async fn a_queue_that_was_deleted_and_stays_away_is_given_up(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let arguments = ["sleep", "--queue", &bed.queue, "--for", "1ms", "--max-idle", "5m"];
    let mut worker = crew.start("worker", &[&arguments[..], &["--reconnect-for", "1s"]].concat())?;
    worker.is("ready").await?;
    client.delete(&bed.queue).await?;
    let report = worker.ends_with(exit::UNAVAILABLE).await?;
    ensure!(report.reason == ExitReason::BrokerLost, "{report:?}");
    ensure!(report.detail.as_deref().unwrap_or_default().contains("does not exist"), "{report:?}");
    let report = crew.start("next", &arguments)?.ends_with(exit::CONFIG).await?;
    ensure!(report.reason == ExitReason::Misconfigured, "{report:?}");
    crew.nothing_is_left(&[]).await?;
    client.close().await
}

async fn a_retry_or_dead_letter_queue_that_was_deleted_ends_the_worker_with_its_message_given_back(
    bed: &Bed,
) -> Result<()> {
    let client = bed.client().await?;
    for (companion, script) in [(".retry.5s", "exit 75"), (".dead", "exit 65")] {
        for (kind, queue) in super::super::both(bed, &client).await? {
            let crew = Crew::new(bed);
            let published = client.publish(&queue, 1).await?;
            let script = format!("{NOTE_BEGUN}; {WAIT_FOR_GO}; {script}");
            let mut worker =
                crew.exec(&queue, &queue, &["--max-idle", "5m", "--reconnect-for", "1s"], &script)?;
            crew.noted("begun", 1).await?;
            client.delete(&format!("{queue}{companion}")).await?;
            crew.go()?;
            let report = worker.ends_with(exit::CONFIG).await?;
            ensure!(report.reason == ExitReason::Misconfigured, "{kind:?} {companion}: {report:?}");
            ensure!((report.given_back, report.retried + report.dead_lettered) == (1, 0), "{report:?}");
            ensure!(report.detail.as_deref().unwrap_or_default().contains(companion), "{report:?}");
            let waiting = client.take_all(&queue, 1, LIMIT).await?;
            ids::assert_same("published", &published, "waiting", &waiting)?;
            crew.nothing_is_left(&[]).await?;
            for file in ["begun", "go"] {
                std::fs::remove_file(bed.directory().join(file))?;
            }
        }
    }
    client.close().await
}

async fn a_permission_or_password_taken_away_later_is_tried_again_and_given_up(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    declare(&client, &bed.queue, Kind::Quorum).await?;
    // Named like the queue, so that it is nobody else's.
    let user = bed.queue.as_str();
    let takes: [(&[&str], &str); 2] = [
        (&["set_permissions", user, ".*", ".*", "^$"], "no permission on queue"),
        (&["change_password", user, "another"], "refuses user"),
    ];
    for (take, words) in takes {
        bed.broker.ctl(&["add_user", user, "secret"]).await?;
        let outcome = async {
            bed.broker.ctl(&["set_permissions", user, ".*", ".*", ".*"]).await?;
            let proxy = bed.proxy().await?;
            let crew = Crew::new(bed).over(proxy.url_for(user, "secret"));
            let options = ["--max-idle", "5m", "--reconnect-for", "3s"];
            let mut worker = crew.exec(take[0], user, &options, NOTE_DONE)?;
            worker.is("ready").await?;
            bed.broker.ctl(take).await?;
            proxy.set(Fault::Cut);
            let noticed = async || Ok(worker.process.log()?.contains("connection lost"));
            until("it has noticed", LIMIT, noticed).await?;
            proxy.set(Fault::None);
            let report = worker.ends_with(exit::UNAVAILABLE).await?;
            ensure!(report.reason == ExitReason::BrokerLost, "{report:?}");
            ensure!(report.detail.as_deref().unwrap_or_default().contains(words), "{report:?}");
            ensure!(proxy.accepted() >= 3, "given up at the first refusal: {report:?}");
            crew.nothing_is_left(&[]).await
        };
        let outcome = outcome.await;
        bed.broker.ctl(&["delete_user", user]).await?;
        outcome?;
    }
    client.close().await
}
