//! What cannot work is said at once: by the exit code, and in words in the status file and the termination log.

use anyhow::{Result, ensure};
use mayfly_service::report::{ExitReason, ExitReport};
use mayfly_tests::{Bed, Fault, Kind, Way, node::free_port, on_each_release};

use super::{Crew, NOTE_DONE, declare, exec, exit};

on_each_release!(
    a_missing_queue_is_named_with_the_command_that_creates_it,
    without_a_ladder_exec_is_refused_and_sleep_is_not,
    a_wrong_password_is_refused_and_not_told,
    a_broker_that_is_not_there_is_given_up_at_the_start_deadline,
    who_may_not_read_is_refused,
    bad_usage_is_reported_like_every_other_end,
);

/// Runs a worker that must end with this code and reason, and say these words; nothing of it is left.
async fn refused(
    crew: &Crew<'_>,
    name: &str,
    arguments: &[&str],
    (code, reason): (i32, ExitReason),
    words: &[&str],
) -> Result<ExitReport> {
    let mut worker = crew.start(name, arguments)?;
    let report = worker.ends_with(code).await?;
    ensure!(report.reason == reason && report.messages == 0, "{report:?}");
    let detail = report.detail.as_deref().unwrap_or_default();
    for word in words {
        ensure!(detail.contains(word), "no {word:?} in {detail:?}");
        ensure!(
            worker.process.log()?.contains(&word.replace('"', "\\\"")) || code == exit::USAGE,
            "{word:?}"
        );
    }
    ensure!(!worker.events()?.contains(&"ready".to_owned()), "{:?}", worker.events());
    crew.nothing_is_left(&[]).await?;
    // What is refused leaves in order, else people look for a crash in the broker's log.
    let log = std::fs::read_to_string(crew.broker.log_file())?;
    let name = format!("mayfly-worker {}", crew.bed.queue);
    let warning = log.lines().find(|line| line.contains("closing AMQP connection") && line.contains(&name));
    ensure!(warning.is_none(), "{warning:?}");
    Ok(report)
}

const MISCONFIGURED: (i32, ExitReason) = (exit::CONFIG, ExitReason::Misconfigured);
const UNREACHABLE: (i32, ExitReason) = (exit::UNAVAILABLE, ExitReason::BrokerUnreachable);
const BAD_USAGE: (i32, ExitReason) = (exit::USAGE, ExitReason::Misconfigured);

async fn a_missing_queue_is_named_with_the_command_that_creates_it(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let queue = bed.queue.as_str();
    let command = format!("mayfly-publisher declare {queue}");
    let words = [queue, "does not exist", &command];
    refused(&crew, "sleep", &["sleep", "--queue", queue], MISCONFIGURED, &words).await?;
    let words = [queue, &command];
    refused(&crew, "exec", &exec(queue, &[], NOTE_DONE), MISCONFIGURED, &words).await?;
    Ok(())
}

async fn without_a_ladder_exec_is_refused_and_sleep_is_not(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let queue = bed.queue.as_str();
    let client = bed.client().await?;
    declare(&client, queue, Kind::Classic).await?;
    client.delete(&format!("{queue}.retry.30s")).await?;
    client.delete(&format!("{queue}.dead")).await?;
    let published = client.publish(queue, 1).await?;
    let missing = format!("{queue}.retry.30s, {queue}.dead ");
    let command = format!("mayfly-publisher declare {queue}");
    refused(&crew, "exec", &exec(queue, &[], NOTE_DONE), MISCONFIGURED, &[&missing, &command]).await?;
    ensure!(client.depth(queue).await?.ready == 1);

    let mut sleep =
        crew.start("sleep", &["sleep", "--queue", queue, "--for", "1ms", "--max-idle", "100ms"])?;
    let report = sleep.ends_with(exit::OK).await?;
    ensure!(report.reason == ExitReason::Idle && report.done == 1, "{report:?}");
    ensure!(sleep.process.done_ids()? == published);
    crew.nothing_is_left(&[queue]).await?;
    client.close().await
}

async fn a_wrong_password_is_refused_and_not_told(bed: &Bed) -> Result<()> {
    let secret = "unwittingly";
    let crew = Crew::new(bed).over(bed.broker.url_for("guest", secret));
    let words = ["refuses user \"guest\""];
    let report = refused(&crew, "worker", &["sleep", "--queue", &bed.queue], MISCONFIGURED, &words).await?;
    let log = std::fs::read_to_string(bed.directory().join("worker.log"))?;
    ensure!(!log.contains(secret) && !format!("{report:?}").contains(secret), "{log}");
    Ok(())
}

async fn a_broker_that_is_not_there_is_given_up_at_the_start_deadline(bed: &Bed) -> Result<()> {
    let arguments = ["sleep", "--queue", &bed.queue, "--start-deadline", "1s"];
    let port = free_port()?;
    let crew = Crew::new(bed).over(format!("amqp://guest:guest@127.0.0.1:{port}/%2f"));
    let endpoint = format!("127.0.0.1:{port}");
    refused(&crew, "nobody", &arguments, UNREACHABLE, &[&endpoint, "unreachable"]).await?;

    // A name that is none, and one who accepts but never answers.
    let crew = Crew::new(bed).over("amqp://guest:guest@nobody.invalid:5672/%2f".to_owned());
    refused(&crew, "no-name", &arguments, UNREACHABLE, &["nobody.invalid"]).await?;
    let proxy = bed.proxy().await?;
    proxy.set(Fault::Hang(Way::Both));
    let crew = Crew::new(bed).over(proxy.url());
    refused(&crew, "silent", &arguments, UNREACHABLE, &[]).await?;
    Ok(())
}

async fn who_may_not_read_is_refused(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    declare(&client, &bed.queue, Kind::Classic).await?;
    // Named like the queue, so that it is nobody else's.
    let user = bed.queue.as_str();
    bed.broker.ctl(&["add_user", user, "secret"]).await?;
    let outcome = async {
        let crew = Crew::new(bed).over(bed.broker.url_for(user, "secret"));
        let endpoint = format!("127.0.0.1:{}", bed.broker.ports.amqp);
        let arguments = ["sleep", "--queue", user];
        refused(&crew, "no-vhost", &arguments, MISCONFIGURED, &[&endpoint, user]).await?;
        bed.broker.ctl(&["set_permissions", user, ".*", ".*", "^$"]).await?;
        let words = ["no permission on queue", user];
        refused(&crew, "no-read", &arguments, MISCONFIGURED, &words).await?;
        anyhow::Ok(())
    };
    let outcome = outcome.await;
    bed.broker.ctl(&["delete_user", user]).await?;
    outcome?;
    client.close().await
}

async fn bad_usage_is_reported_like_every_other_end(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let queue = bed.queue.as_str();
    let cases: [(&str, &[&str], &str); 6] = [
        ("no-queue", &["sleep"], "--queue"),
        ("no-command", &["exec", "--queue", queue], "COMMAND"),
        ("unknown", &["sleep", "--queue", queue, "--pretty"], "--pretty"),
        ("no-time", &["sleep", "--queue", queue, "--for", "long"], "long"),
        ("prefetch", &["sleep", "--queue", queue, "--concurrency", "4", "--prefetch", "3"], "--prefetch 3"),
        ("log", &["--log", "loud=very", "sleep", "--queue", queue], "loud=very"),
    ];
    for (name, arguments, word) in cases {
        refused(&crew, name, arguments, BAD_USAGE, &[word]).await?;
    }
    let crew = Crew::new(bed).over("http://guest:unwittingly@127.0.0.1/".to_owned());
    let report = refused(&crew, "url", &["sleep", "--queue", queue], BAD_USAGE, &[]).await?;
    ensure!(!format!("{report:?}").contains("unwittingly"), "{report:?}");
    Ok(())
}
