//! What a worker lets others know of itself: figures for Prometheus, and warnings about its queue.

use anyhow::{Result, ensure};
use mayfly_tests::{Bed, Kind, fleet::get, node::free_port, on_each_release, until};
use serde_json::{Value, json};

use super::{Crew, LIMIT, declare, exit};

on_each_release!(
    what_handlers_say_is_logged_with_the_messages_id_and_the_end_is_one_line,
    its_figures_can_be_scraped_while_it_works,
    a_queue_without_dead_lettering_is_told_once_it_is_ready,
    work_that_is_allowed_to_take_longer_than_the_broker_waits_is_told,
);

async fn what_handlers_say_is_logged_with_the_messages_id_and_the_end_is_one_line(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    declare(&client, &bed.queue, Kind::Quorum).await?;
    let published = client.publish(&bed.queue, 3).await?;
    let script = r#"echo "to out: $MAYFLY_MESSAGE_ID"; echo "to err: $MAYFLY_MESSAGE_ID" >&2"#;
    let mut worker =
        crew.exec("worker", &bed.queue, &["--concurrency", "3", "--max-idle", "300ms"], script)?;
    let report = worker.ends_with(exit::OK).await?;
    let log = worker.process.log_objects()?;
    for id in &published {
        for (stream, words) in [("stdout", "to out"), ("stderr", "to err")] {
            let said = format!("{words}: {id}");
            let lines: Vec<_> = log.iter().filter(|line| line["message"] == *said).collect();
            let is_his = |line: &&Value| line["id"] == **id && line["stream"] == stream;
            ensure!(lines.len() == 1 && lines.iter().all(is_his), "{said}: {lines:?}");
        }
    }
    let ends: Vec<_> = log.iter().filter(|line| line["message"] == "ended").collect();
    ensure!(ends.len() == 1 && log.last() == Some(ends[0]), "{ends:?}");
    let told = serde_json::to_value(&report)?;
    for figure in
        ["messages", "done", "retried", "given_back", "busy_ms", "idle_ms", "startup_ms", "peak_memory"]
    {
        ensure!(ends[0][figure] == told[figure] && !told[figure].is_null(), "{figure}: {} {told}", ends[0]);
    }
    ensure!(
        (&ends[0]["level"], &ends[0]["reason"], &ends[0]["exit_code"])
            == (&json!("INFO"), &json!("idle"), &json!(0))
    );
    crew.nothing_is_left(&[&bed.queue]).await?;
    client.close().await
}

async fn its_figures_can_be_scraped_while_it_works(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    declare(&client, &bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 5).await?;
    let admin = free_port()?;
    let listen = format!("127.0.0.1:{admin}");
    // By a counter that the handlers share: the first is retried, the second dead-lettered.
    let script = r#"n=$(flock "$DIR/count" sh -c 'n=$(cat "$DIR/n" 2>/dev/null || echo 0); echo $((n + 1)) >"$DIR/n"; echo "$n"')
        case $n in 0) exit 75 ;; 1) exit 65 ;; esac"#;
    let mut worker =
        crew.exec("worker", &bed.queue, &["--admin-listen", &listen, "--max-idle", "3s"], script)?;
    worker.is("ready").await?;
    let mut text = String::new();
    let expected = [
        r#"messages_total{outcome="done"} 3"#,
        r#"messages_total{outcome="retried"} 1"#,
        r#"messages_total{outcome="dead_lettered"} 1"#,
        r#"messages_total{outcome="lost"} 0"#,
        "handler_seconds_count 5",
        // Published by a client that stamps nothing.
        "wait_seconds_count 0",
        "redeliveries_total 0",
        "reconnects_total 0",
        "in_flight 0",
        "ready 1",
    ];
    let told = until("all five are counted", LIMIT, async || {
        text = get(admin, "/metrics").await?;
        let has = |line: &&str| text.lines().any(|told| told == format!("mayfly_worker_{line}"));
        Ok(expected.iter().all(has))
    });
    told.await.map_err(|error| error.context(text.clone()))?;
    ensure!(text.ends_with("# EOF\n"), "{text}");
    let idle = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("mayfly_worker_idle_seconds_total "));
        line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_default()
    };
    let before = idle(&text);
    until("idle time goes on", LIMIT, async || Ok(idle(&get(admin, "/metrics").await?) > before)).await?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!((report.done, report.retried, report.dead_lettered) == (3, 1, 1), "{report:?}");
    crew.nothing_is_left(&[&bed.queue]).await?;
    client.close().await
}

async fn a_queue_without_dead_lettering_is_told_once_it_is_ready(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let standard = bed.queue_name("test-standard");
    for (kind, queue) in [(Kind::Classic, bed.queue.clone()), (Kind::Quorum, bed.queue_name("test-bare"))] {
        client.declare(&queue, kind).await?;
        let mut worker =
            crew.start(&queue, &["sleep", "--queue", &queue, "--for", "1ms", "--max-idle", "1s"])?;
        worker.ends_with(exit::OK).await?;
        let log = worker.process.log_objects()?;
        let place = |words: &str| {
            log.iter().position(|line| line["message"].as_str().unwrap_or_default().contains(words))
        };
        let (ready, warned) = (place("ready"), place("was declared without dead-lettering"));
        ensure!(ready.is_some() && warned > ready, "{kind:?}: {log:?}");
    }
    // As the publisher declares it.
    let feeder = bed.program("mayfly-publisher")?.args(["declare", &standard]);
    feeder.run("declare", LIMIT).await?.exits_with(exit::OK, LIMIT).await?;
    for (name, slot, queue) in [("standard", "0", &standard), ("surplus", "3", &bed.queue)] {
        let arguments = ["sleep", "--queue", queue, "--for", "1ms", "--max-idle", "1s", "--slot", slot];
        let mut worker = crew.start(name, &arguments)?;
        worker.ends_with(exit::OK).await?;
        let log = worker.process.log()?;
        ensure!(!log.contains("without dead-lettering"), "{name}: {log}");
    }
    // The question has changed and made nothing.
    ensure!(client.depth(&standard).await?.ready == 0);
    crew.nothing_is_left(&[&bed.queue]).await?;
    client.close().await
}

async fn work_that_is_allowed_to_take_longer_than_the_broker_waits_is_told(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    declare(&client, &bed.queue, Kind::Classic).await?;
    for (timeout, warns) in [("31m", true), ("30m", false)] {
        let options = ["--timeout", timeout, "--max-idle", "100ms"];
        let mut worker = crew.exec(timeout, &bed.queue, &options, "exit 0")?;
        worker.ends_with(exit::OK).await?;
        let log = worker.process.log()?;
        ensure!(log.contains("x-consumer-timeout") == warns, "{timeout}: {log}");
    }
    crew.nothing_is_left(&[&bed.queue]).await?;
    client.close().await
}
