//! Outcomes, and what handlers get to see.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable};
use mayfly_tests::{Bed, Kind, on_each_release};
use serde_json::{Value, json};

use super::{Crew, HANDLERS, Handler, declare, forget, get, noted, nothing_is_left, publish, text, with_id};

on_each_release!(
    every_handler_means_the_same_by_an_outcome,
    bodies_pass_byte_for_byte,
    headers_of_any_type_and_size_arrive,
    loud_handlers_do_not_deadlock,
);

/// The broker's usual limit.
const LARGEST: usize = 16 * 1024 * 1024;
const IDLE: [&str; 2] = ["--max-idle", "300ms"];

async fn every_handler_means_the_same_by_an_outcome(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    for handler in HANDLERS {
        let queue = bed.queue_name("test-worker");
        declare(&client, &queue, Kind::Quorum).await?;
        for body in ["done", "retry busy", "dead no document"] {
            client.publish_one(&queue, body, body.as_bytes()).await?;
        }
        let mut brain =
            handler.start(&crew, handler.name(), &queue, &[&IDLE[..], &["--concurrency", "3"]].concat())?;
        let report = brain.idles().await?;
        let counts = (report.done, report.retried, report.dead_lettered);
        ensure!(counts == (1, 1, 1), "{handler:?}: {report:?}");
        // exec has no word for a delay.
        let retried = if handler == Handler::Exec { ".retry.5s" } else { ".retry.30s" };
        for (companion, id, reason) in
            [(retried, "retry busy", "busy"), (".dead", "dead no document", "no document")]
        {
            let queue = format!("{queue}{companion}");
            let got = get(&client, &queue).await.with_context(|| format!("{handler:?}"))?;
            let message_id = got.delivery.properties.message_id().clone();
            ensure!(message_id.as_ref().is_some_and(|it| it.as_str() == id), "{handler:?}: {message_id:?}");
            let error = text(&got, "x-mayfly-error");
            ensure!(error.contains(reason), "{handler:?}: {error}");
        }
    }
    nothing_is_left(&crew).await?;
    client.close().await
}

async fn bodies_pass_byte_for_byte(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let queue = bed.queue.as_str();
    let text = "\u{1F980} \"\\\0\r\n\u{2028}\u{7f}".repeat(1000).into_bytes();
    let bodies: [(&str, Vec<u8>); 5] = [
        ("empty", Vec::new()),
        ("bytes", (0..=255).cycle().take(100_003).collect()),
        ("text", text),
        ("large-text", vec![b'\n'; LARGEST]),
        ("large-bytes", (0..=255).rev().cycle().take(LARGEST).collect()),
    ];
    let mut expected = BTreeMap::new();
    for (id, body) in &bodies {
        expected.insert(*id, (body.len(), sha256(bed, body)?));
    }
    declare(&client, queue, Kind::Quorum).await?;
    for handler in [Handler::Exec, Handler::Stdio, Handler::Http, Handler::Envelope] {
        forget(bed, "seen");
        for (id, body) in &bodies {
            publish(&client, queue, with_id(id), body).await?;
        }
        let mut brain =
            handler.start(&crew, handler.name(), queue, &[&IDLE[..], &["--concurrency", "2"]].concat())?;
        let report = brain.idles().await?;
        ensure!(report.done == 5, "{handler:?}: {report:?}");
        for seen in noted(bed, "seen")? {
            let id = seen["message_id"].as_str().unwrap_or_default();
            let (size, sha256) = &expected[id];
            ensure!(seen["size"] == *size && seen["sha256"] == *sha256, "{handler:?}: {id}: {seen}");
        }
    }
    nothing_is_left(&crew).await?;
    client.close().await
}

async fn headers_of_any_type_and_size_arrive(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let queue = bed.queue.as_str();
    declare(&client, queue, Kind::Quorum).await?;
    let (small, told) = headers();
    let mut large = small.clone();
    // All headers come in one frame, and a frame has 128 KiB at most.
    let long = "x\0".repeat(60 * 1024);
    large.insert("large".into(), AMQPValue::LongString(long.as_str().into()));
    let mut told_large = told.clone();
    told_large["large"] = json!(long);
    for handler in [Handler::Exec, Handler::Stdio, Handler::Http, Handler::Envelope] {
        forget(bed, "seen");
        for (id, headers) in [("small", &small), ("large", &large)] {
            let properties = with_id(id).with_headers(headers.clone()).with_content_type("text/plain".into());
            publish(&client, queue, properties, b"done").await?;
        }
        let mut brain = handler.start(&crew, handler.name(), queue, &IDLE)?;
        let report = brain.idles().await?;
        ensure!(report.done == 2, "{handler:?}: {report:?}");
        // As a header of a request there is a limit.
        let expected_large = if handler == Handler::Http { &Value::Null } else { &told_large };
        for (seen, expected) in noted(bed, "seen")?.iter().zip([&told, expected_large]) {
            let headers = ours(&seen["headers"]);
            ensure!(headers == *expected, "{handler:?}: {headers} is not {expected}");
            ensure!(seen["content_type"] == "text/plain" && seen["attempt"] == 1, "{handler:?}: {seen}");
        }
    }
    nothing_is_left(&crew).await?;
    client.close().await
}

async fn loud_handlers_do_not_deadlock(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let queue = bed.queue.as_str();
    declare(&client, queue, Kind::Classic).await?;
    for handler in [Handler::Exec, Handler::Stdio] {
        for id in ["one", "two", "three"] {
            let body = [&b"loud "[..], &vec![0xff; 2_000_000]].concat();
            client.publish_one(queue, id, &body).await?;
        }
        let mut brain =
            handler.start(&crew, handler.name(), queue, &[&IDLE[..], &["--concurrency", "2"]].concat())?;
        let report = brain.idles().await?;
        ensure!(report.done == 3, "{handler:?}: {report:?}");
    }
    nothing_is_left(&crew).await?;
    client.close().await
}

/// Headers of every type, and how they are told.
fn headers() -> (FieldTable, Value) {
    let mut table = FieldTable::default();
    table.insert("deep".into(), AMQPValue::LongString("b\0".into()));
    let array = FieldArray::from(vec![AMQPValue::LongLongInt(-1), AMQPValue::FieldTable(table)]);
    let values = [
        ("text", AMQPValue::LongString("a\0\n\u{1F980}".into()), json!("a\0\n\u{1F980}")),
        ("odd", AMQPValue::LongString(vec![0xff, 0].into()), json!({ "$base64": "/wA=" })),
        ("bytes", AMQPValue::ByteArray(vec![1, 2].into()), json!({ "$base64": "AQI=" })),
        ("yes", AMQPValue::Boolean(true), json!(true)),
        ("number", AMQPValue::LongInt(-7), json!(-7)),
        ("point", AMQPValue::Double(0.5), json!(0.5)),
        ("time", AMQPValue::Timestamp(1_700_000_000), json!({ "$timestamp": 1_700_000_000 })),
        (
            "decimal",
            AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 1234 }),
            json!({ "$decimal": "12.34" }),
        ),
        ("nothing", AMQPValue::Void, Value::Null),
        ("array", AMQPValue::FieldArray(array), json!([-1, { "deep": "b\0" }])),
    ];
    let told = values.iter().map(|(name, _, told)| ((*name).to_owned(), told.clone())).collect();
    let table: BTreeMap<_, _> = values.into_iter().map(|(name, value, _)| (name.into(), value)).collect();
    (table.into(), Value::Object(told))
}

/// Without what a broker adds (`x-delivery-count`).
fn ours(headers: &Value) -> Value {
    let mut headers = headers.clone();
    if let Some(headers) = headers.as_object_mut() {
        headers.retain(|name, _| !name.starts_with("x-"));
    }
    headers
}

fn sha256(bed: &Bed, bytes: &[u8]) -> Result<String> {
    let path = bed.directory().join("body");
    std::fs::write(&path, bytes)?;
    let output = std::process::Command::new("sha256sum").arg(path).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
