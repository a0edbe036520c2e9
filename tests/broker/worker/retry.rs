//! Messages that fail: to a retry queue as they were, with their count and reason; to the dead-letter queue
//! when nothing helps; back to their queue when the handler is to blame.

use anyhow::{Context, Result, ensure};
use lapin::{
    BasicProperties,
    message::BasicGetMessage,
    options::{BasicGetOptions, BasicPublishOptions},
    types::{AMQPValue, FieldTable},
};
use mayfly_service::report::ExitReason;
use mayfly_tests::{Bed, Client, Kind, ids::Ids, on_each_release, until};

use super::{COMPANIONS, Crew, LIMIT, NOTE_DONE, STUBBORN, declare, exit, stop::next_deliveries};

on_each_release!(
    a_failed_message_goes_where_its_exit_code_and_attempt_say,
    a_failed_message_comes_back_by_itself_and_is_done,
    a_handler_that_cannot_run_gives_the_message_back_and_ends_the_worker,
    a_message_is_retried_only_when_nothing_of_its_handler_runs,
);

/// A way to fail.
struct Case {
    name: &'static str,
    script: &'static str,
    options: &'static [&'static str],
    /// The message's count when it is published.
    begun: Option<i64>,
    /// Where it must go, below its queue's name.
    goes_to: &'static str,
    /// What its error header must say.
    error: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "asked-for",
        script: "echo not yet >&2; exit 75",
        options: &[],
        begun: None,
        goes_to: ".retry.5s",
        error: "exit code 75: not yet",
    },
    Case {
        name: "any-other",
        script: "exit 3",
        options: &[],
        begun: Some(1),
        goes_to: ".retry.30s",
        error: "exit code 3",
    },
    Case {
        name: "killed",
        script: "kill -9 $$",
        options: &[],
        begun: Some(3),
        goes_to: ".retry.10m",
        error: "killed by signal 9",
    },
    Case {
        name: "too-long",
        script: "sleep 1h",
        options: &["--timeout", "100ms"],
        begun: Some(2),
        goes_to: ".retry.2m",
        error: "took longer than 100ms",
    },
    Case {
        name: "last-attempt",
        script: "exit 75",
        options: &[],
        begun: Some(4),
        goes_to: ".dead",
        error: "exit code 75",
    },
    Case {
        name: "only-attempt",
        script: "exit 1",
        options: &["--max-attempts", "1"],
        begun: None,
        goes_to: ".dead",
        error: "exit code 1",
    },
    Case {
        name: "hopeless",
        script: "echo no document >&2; exit 65",
        options: &[],
        begun: None,
        goes_to: ".dead",
        error: "exit code 65: no document",
    },
];

async fn a_failed_message_goes_where_its_exit_code_and_attempt_say(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let queue = bed.queue.as_str();
    declare(&client, queue, Kind::Quorum).await?;
    for Case { name, script, options, begun, goes_to, error } in CASES {
        let mut headers = FieldTable::default();
        headers.insert("colour".into(), AMQPValue::LongString("red".into()));
        if let Some(begun) = begun {
            headers.insert("x-mayfly-attempt".into(), AMQPValue::LongLongInt(*begun));
        }
        let properties = BasicProperties::default()
            .with_message_id((*name).into())
            .with_content_type("text/plain".into())
            .with_correlation_id("request-7".into())
            .with_type("invoice".into())
            .with_timestamp(1_700_000_000)
            .with_delivery_mode(2);
        let sent = properties.clone().with_headers(headers);
        let options_ = BasicPublishOptions::default();
        let publish = client.channel().basic_publish("".into(), queue.into(), options_, b"body\0", sent);
        publish.await?.await?;
        let options = [*options, &["--max-idle", "100ms"]].concat();
        let mut worker = crew.exec(name, queue, &options, script)?;
        let report = worker.ends_with(exit::OK).await?;
        let is_dead = u64::from(*goes_to == ".dead");
        ensure!((report.retried, report.dead_lettered) == (1 - is_dead, is_dead), "{name}: {report:?}");
        ensure!((report.messages, report.done, report.given_back) == (1, 0, 0), "{name}: {report:?}");
        let outcome = if is_dead == 1 { "dead_lettered" } else { "retried" };
        let settled = worker.process.settled()?;
        ensure!(settled.len() == 1 && settled[0].outcome == outcome, "{name}: {settled:?}");

        let got = take_one(&client, &format!("{queue}{goes_to}")).await.with_context(|| *name)?;
        let (delivery, mut kept) = (&got.delivery, got.delivery.properties.clone());
        ensure!(delivery.data == b"body\0", "{name}: {:?}", delivery.data);
        let headers = kept.headers().clone().context("no headers")?;
        let header = |name: &str| headers.inner().get(name).cloned();
        ensure!(header("colour") == Some(AMQPValue::LongString("red".into())), "{name}: {headers:?}");
        let attempt = AMQPValue::LongLongInt(begun.unwrap_or(0) + 1);
        ensure!(header("x-mayfly-attempt") == Some(attempt), "{name}: {headers:?}");
        let told = AMQPValue::LongString((*error).into());
        ensure!(header("x-mayfly-error") == Some(told), "{name}: {headers:?}");
        kept = kept.with_headers(FieldTable::default());
        ensure!(kept == properties.with_headers(FieldTable::default()), "{name}: {kept:?}");
        nothing_waits(&client, queue).await.with_context(|| *name)?;
    }
    crew.nothing_is_left(&[queue]).await?;
    client.close().await
}

/// Takes the only message of a queue.
async fn take_one(client: &Client, queue: &str) -> Result<BasicGetMessage> {
    client.until_ready(queue, 1, LIMIT).await?;
    let options = BasicGetOptions { no_ack: true };
    let got = client.channel().basic_get(queue.into(), options).await?;
    let got = got.with_context(|| format!("no message in {queue}"))?;
    ensure!(got.message_count == 0, "{} more in {queue}", got.message_count);
    Ok(got)
}

async fn nothing_waits(client: &Client, queue: &str) -> Result<()> {
    for companion in [""].iter().chain(&COMPANIONS) {
        let name = format!("{queue}{companion}");
        client.until_ready(&name, 0, LIMIT).await?;
    }
    Ok(())
}

async fn a_failed_message_comes_back_by_itself_and_is_done(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let script = format!(r#"[ "$MAYFLY_ATTEMPT" = 2 ] || exit 75; {NOTE_DONE}"#);
    let mut worker = crew.exec("worker", &bed.queue, &["--declare", "--max-idle", "7s"], &script)?;
    worker.is("ready").await?;
    let published = client.publish(&bed.queue, 3).await?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!((report.messages, report.retried, report.done) == (6, 3, 3), "{report:?}");
    let done = crew.notes("done")?;
    mayfly_tests::ids::assert_same("published", &published, "done", &done.ids())?;
    ensure!(done.0.len() == 3 && done.redelivered() == 0, "{done:?}");
    nothing_waits(&client, &bed.queue).await?;
    crew.nothing_is_left(&[&bed.queue]).await?;
    client.close().await
}

async fn a_handler_that_cannot_run_gives_the_message_back_and_ends_the_worker(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let queue = bed.queue.as_str();
    declare(&client, queue, Kind::Quorum).await?;
    let published = client.publish(queue, 5).await?;
    let directory = bed.directory().to_string_lossy().into_owned();
    let commands: [(&str, &[&str], &str); 5] = [
        ("missing", &["/nowhere/at-all"], "/nowhere/at-all"),
        ("not-in-path", &["no-such-command-at-all"], "no-such-command-at-all: not found in PATH"),
        ("a-directory", &[&directory], &directory),
        ("not-executable", &["sh", "-c", "echo wrong image >&2; exit 126"], "exit code 126: wrong image"),
        ("not-found", &["sh", "-c", "no-such-command-at-all"], "exit code 127"),
    ];
    for (name, command, words) in commands {
        let options = ["exec", "--queue", queue, "--concurrency", "2", "--prefetch", "4", "--"];
        let mut worker = crew.start(name, &[&options[..], command].concat())?;
        let report = worker.ends_with(exit::CONFIG).await?;
        ensure!(report.reason == ExitReason::HandlerUnavailable, "{name}: {report:?}");
        ensure!(report.detail.as_deref().unwrap_or_default().contains(words), "{name}: {report:?}");
        ensure!(report.done + report.retried + report.dead_lettered == 0, "{name}: {report:?}");
        ensure!(report.given_back == report.messages, "{name}: {report:?}");
        // What can be found out without a message costs none a delivery.
        ensure!((report.messages > 0) == (command[0] == "sh"), "{name}: {report:?}");
        client.until_ready(queue, 5, LIMIT).await?;
        for companion in COMPANIONS {
            ensure!(client.depth(&format!("{queue}{companion}")).await?.ready == 0, "{name}: {companion}");
        }
    }
    crew.nothing_is_left(&[]).await?;
    let waiting: Ids = client.take_all(queue, 5, LIMIT).await?;
    mayfly_tests::ids::assert_same("published", &published, "waiting", &waiting)?;
    client.close().await
}

async fn a_message_is_retried_only_when_nothing_of_its_handler_runs(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let queue = bed.queue.as_str();
    declare(&client, queue, Kind::Quorum).await?;
    let ends = [("by-itself", "exit 75", "1h"), ("too-long", "wait", "300ms")];
    for (name, end, timeout) in ends {
        let begun = crew.notes("begun")?.0.len();
        let published = client.publish(queue, 3).await?;
        let script = format!("{STUBBORN}; {end}");
        let options = ["--concurrency", "3", "--timeout", timeout, "--max-idle", "200ms"];
        let retry = format!("{queue}.retry.5s");
        let next = next_deliveries(bed, &retry, &published);
        let work = async {
            until("the next one is there", LIMIT, async || Ok(client.depth(&retry).await?.consumers == 1))
                .await?;
            let mut worker = crew.exec(name, queue, &options, &script)?;
            crew.noted("begun", begun + 3).await?;
            worker.ends_with(exit::OK).await
        };
        let ((), report) = futures_util::future::try_join(next, work).await?;
        ensure!(report.retried == 3, "{report:?}");
    }
    crew.nothing_is_left(&[queue]).await?;
    client.close().await
}
