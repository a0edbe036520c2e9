//! Handlers that fail: what that means for the message at fault, for others, and for the worker.

use anyhow::{Result, ensure};
use mayfly_service::report::ExitReason;
use mayfly_tests::{Bed, Kind, Signal, ids, node::free_port, on_each_release, until};
use serde_json::Value;

use super::{
    Crew, HANDLERS, Handler, LIMIT, declare, exit, forget, get, noted, nothing_is_left, text, until_noted,
};

on_each_release!(
    what_takes_too_long_is_ended_and_tried_again,
    a_crash_is_put_on_the_messages_that_were_in_work_and_the_rest_is_done,
    what_cannot_be_started_dead_letters_nothing,
    a_worker_that_is_asked_to_stop_ends_its_handler_and_gives_back,
    a_slow_start_is_waited_for_before_messages_are_taken,
);

async fn what_takes_too_long_is_ended_and_tried_again(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    for handler in HANDLERS {
        let queue = bed.queue_name("test-worker");
        declare(&client, &queue, Kind::Quorum).await?;
        client.publish_one(&queue, "hang", b"hang").await?;
        forget(bed, "hanging");
        let options = ["--max-idle", "300ms", "--timeout", "1s"];
        let mut brain = handler.start(&crew, handler.name(), &queue, &options)?;
        let report = brain.idles().await?;
        ensure!(report.retried == 1 && report.messages == 1, "{handler:?}: {report:?}");
        ensure!(client.depth(&format!("{queue}.retry.5s")).await?.ready == 1, "{handler:?}");
        // What an HTTP server does with a message whose connection is closed is its own affair. A command may
        // not have come so far.
        let hanging = noted(bed, "hanging")?;
        ensure!(hanging.len() == 1 || handler == Handler::Exec, "{handler:?}: {hanging:?}");
        ensure!(handler == Handler::Http || !hanging.iter().any(is_there), "{handler:?}: {hanging:?}");
    }
    nothing_is_left(&crew).await?;
    client.close().await
}

async fn a_crash_is_put_on_the_messages_that_were_in_work_and_the_rest_is_done(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    for handler in [Handler::Stdio, Handler::Http] {
        let queue = bed.queue_name("test-worker");
        declare(&client, &queue, Kind::Quorum).await?;
        client.declare(&format!("{queue}.suspect"), Kind::Quorum).await?;
        let mut others = client.publish(&queue, 5).await?;
        client.publish_one(&queue, "die", b"die").await?;
        others.extend(client.publish(&queue, 20).await?);
        forget(bed, "lives");
        forget(bed, "dying");
        let options = ["--max-idle", "1s", "--concurrency", "4"];
        let mut brain = handler.start(&crew, handler.name(), &queue, &options)?;
        let report = brain.idles().await?;
        ensure!(report.done == 25 && report.dead_lettered == 1, "{handler:?}: {report:?}");
        ids::assert_same("published", &others, "done", &brain.worker.process.done_ids()?)?;
        // Among others, then alone until it is clear that nobody else is to blame.
        ensure!(noted(bed, "dying")?.len() == 4, "{handler:?}: {:?}", noted(bed, "dying"));
        ensure!(noted(bed, "lives")?.len() >= 4, "{handler:?}");
        let isolated = get(&client, &format!("{queue}.dead")).await?;
        let id = isolated.delivery.properties.message_id().as_ref().map(ToString::to_string);
        ensure!(id.as_deref() == Some("die"), "{handler:?}: {id:?}");
        ensure!(text(&isolated, "x-mayfly-reason") == "suspect", "{handler:?}");
        let error = text(&isolated, "x-mayfly-error");
        let story = if handler == Handler::Stdio { "exit code 3" } else { "connection was cut" };
        ensure!(error.contains(story), "{handler:?}: {error}");
    }
    nothing_is_left(&crew).await?;
    client.close().await
}

async fn what_cannot_be_started_dead_letters_nothing(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let queue = bed.queue.as_str();
    declare(&client, queue, Kind::Quorum).await?;
    client.publish_one(queue, "one", b"done").await?;
    let url = format!("http://127.0.0.1:{}/", free_port()?);
    let cases: [(&str, &[&str], &str); 7] = [
        ("exec-missing", &["exec", "--", "/no/such/program"], "/no/such/program"),
        ("exec-127", &["exec", "--", "sh", "-c", "exec no-such-program"], "127"),
        ("exec-126", &["exec", "--", "sh", "-c", "exit 126"], "126"),
        ("stdio-missing", &["stdio", "--", "/no/such/program"], "/no/such/program"),
        ("stdio-127", &["stdio", "--", "sh", "-c", "exec no-such-program"], "127"),
        ("stdio-silent", &["stdio", "--", "sleep", "1000"], "ready"),
        ("http-down", &["http", "--url", &url], "refused"),
    ];
    for (name, command, word) in cases {
        let options = ["--queue", queue, "--start-deadline", "2s"];
        let arguments = [&command[..1], &options, &command[1..]].concat();
        let mut worker = crew.start(name, &arguments)?;
        let report = worker.ends_with(exit::CONFIG).await?;
        ensure!(report.reason == ExitReason::HandlerUnavailable, "{name}: {report:?}");
        let detail = report.detail.unwrap_or_default();
        ensure!(detail.contains(word), "{name}: {detail}");
        client.until_ready(queue, 1, LIMIT).await?;
        for companion in [".dead", ".retry.5s"] {
            ensure!(client.depth(&format!("{queue}{companion}")).await?.ready == 0, "{name}: {companion}");
        }
    }
    nothing_is_left(&crew).await?;
    client.close().await
}

async fn a_worker_that_is_asked_to_stop_ends_its_handler_and_gives_back(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    for (index, handler) in HANDLERS.into_iter().enumerate() {
        // What was given back to it would be handled alone.
        let queue = bed.queue_name("test-worker");
        let queue = queue.as_str();
        declare(&client, queue, Kind::Classic).await?;
        for id in ["one", "two", "three"] {
            client.publish_one(queue, id, b"hang").await?;
        }
        let options = ["--concurrency", "2", "--prefetch", "3", "--grace", "100ms"];
        let mut brain = handler.start(&crew, handler.name(), queue, &options)?;
        until_noted(bed, "hanging", 2 * index + 2).await?;
        brain.worker.process.signal(Signal::TERM)?;
        let report = brain.worker.ends_with(exit::OK).await?;
        ensure!(report.given_back == 3 && report.done == 0, "{handler:?}: {report:?}");
        client.until_ready(queue, 3, LIMIT).await?;
        if handler != Handler::Http {
            for hanging in &noted(bed, "hanging")?[2 * index..] {
                ensure!(!is_there(hanging), "{handler:?}: {hanging}");
            }
        }
    }
    nothing_is_left(&crew).await?;
    client.close().await
}

async fn a_slow_start_is_waited_for_before_messages_are_taken(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let queue = bed.queue.as_str();
    declare(&client, queue, Kind::Classic).await?;
    client.publish_one(queue, "one", b"done").await?;
    let script = r#"
echo "$$" >"$DIR/loading"
while [ ! -e "$DIR/go" ]; do sleep 0.02; done
echo '{"ready":true}'
while read -r line; do id=${line#*:}; echo "{\"id\":${id%%,*},\"outcome\":\"done\"}"; done"#;
    let arguments = ["stdio", "--queue", queue, "--max-idle", "300ms", "--", "sh", "-c", script];
    let mut worker = crew.start("worker", &arguments)?;
    let loading = bed.directory().join("loading");
    until("the program is loading", LIMIT, async || Ok(loading.exists())).await?;
    let depth = client.depth(queue).await?;
    ensure!(depth.consumers == 0 && depth.ready == 1, "{depth:?}");
    ensure!(!worker.events()?.contains(&"ready".to_owned()));
    crew.go()?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!(report.done == 1, "{report:?}");
    crew.nothing_is_left(&[queue]).await?;
    client.close().await
}

/// Whether the process that left this note is there.
fn is_there(note: &Value) -> bool {
    std::path::Path::new("/proc").join(note["pid"].to_string()).exists()
}
