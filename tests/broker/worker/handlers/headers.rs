//! Headers that fill a frame, or need a larger one than usual: each message has an outcome, none blocks its queue.

use anyhow::{Context, Result, ensure};
use lapin::types::{AMQPValue, FieldTable};
use mayfly_tests::{Bed, Kind, Node, on_each_release};

use super::{Crew, Handler, declare, exit, get, noted, publish, text, with_id};

on_each_release!(
    headers_of_200_kib_are_handled_where_the_broker_takes_them,
    what_fails_goes_on_without_what_its_headers_leave_no_room_for,
);

/// What a frame holds, unless the broker was told otherwise.
const FRAME_MAX: usize = 131_072;

/// A header called `large`, of so many bytes.
fn large(size: usize) -> FieldTable {
    let mut headers = FieldTable::default();
    headers.insert("large".into(), AMQPValue::LongString("x\0".repeat(size / 2).into()));
    headers
}

fn size(value: Option<&AMQPValue>) -> usize {
    value.and_then(AMQPValue::as_long_string).map_or(0, |text| text.as_bytes().len())
}

async fn headers_of_200_kib_are_handled_where_the_broker_takes_them(bed: &Bed) -> Result<()> {
    let node = Node::start_with(bed.release, |broker| {
        let conf = broker.directory.join("rabbitmq.conf");
        let text = std::fs::read_to_string(&conf)?;
        Ok(std::fs::write(&conf, format!("{text}frame_max = 1048576\n"))?)
    })
    .await?;
    let crew = Crew::at(bed, node.broker().clone());
    let client = node.broker().client().await?;
    for handler in [Handler::Exec, Handler::Stdio] {
        let queue = bed.queue_name("test-worker");
        declare(&client, &queue, Kind::Quorum).await?;
        client.declare(&format!("{queue}.suspect"), Kind::Quorum).await?;
        for body in ["done", "retry busy", "dead no document"] {
            let properties = with_id(body).with_headers(large(200 * 1024));
            publish(&client, &queue, properties, body.as_bytes()).await?;
        }
        let options = ["--max-idle", "1s"];
        let report = handler.start(&crew, handler.name(), &queue, &options)?.idles().await?;
        let counts = (report.done, report.retried, report.dead_lettered);
        ensure!(counts == (1, 1, 1), "{handler:?}: {report:?}");
        let seen = noted(bed, "seen")?;
        let whole = seen.iter().filter(|it| it["headers"]["large"] == "x\0".repeat(100 * 1024)).count();
        ensure!(whole == 3, "{handler:?}: {whole} of {}", seen.len());
        // exec has no word for a delay.
        let retried = if handler == Handler::Exec { ".retry.5s" } else { ".retry.30s" };
        for (companion, id) in [(retried, "retry busy"), (".dead", "dead no document")] {
            let got = get(&client, &format!("{queue}{companion}")).await?;
            let headers = got.delivery.properties.headers().clone().context("no headers")?;
            ensure!(got.delivery.data == id.as_bytes(), "{handler:?}: {companion}");
            ensure!(size(headers.inner().get("large")) == 200 * 1024, "{handler:?}: {companion}");
        }
        super::forget(bed, "seen");
    }
    client.close().await
}

async fn what_fails_goes_on_without_what_its_headers_leave_no_room_for(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let queue = bed.queue.as_str();
    declare(&client, queue, Kind::Quorum).await?;
    // With what the broker adds on the way back (`x-death`) it has room for a retry, for a short error only, for
    // nothing of ours, and not even for the id that a copy gets.
    let reason = format!("retry {}", "long ".repeat(180));
    let cases = [
        ("retried", FRAME_MAX - 6000, true, ".retry.5s", "", true),
        ("silent", FRAME_MAX - 4600, true, ".retry.5s", "", false),
        ("dead", FRAME_MAX - 2000, true, ".dead", "headers", true),
        ("full", FRAME_MAX - 60, true, ".dead", "", false),
        ("nameless", FRAME_MAX - 42, false, ".dead", "headers", true),
    ];
    for (name, room, has_id, companion, why, has_error) in cases {
        let properties = if has_id { with_id(name) } else { lapin::BasicProperties::default() };
        publish(&client, queue, properties.with_headers(large(room)), reason.as_bytes())
            .await
            .context(name)?;
        let arguments = ["exec", "--queue", queue, "--max-idle", "300ms", "--", "sh", "-c"];
        let script = "cat >&2; exit 1";
        let mut worker = crew.start(name, &[&arguments[..], &[script]].concat())?;
        let report = worker.ends_with(exit::OK).await.with_context(|| worker.process.log_tail())?;
        ensure!(report.messages == 1 && report.retried + report.dead_lettered == 1, "{name}: {report:?}");
        let got = get(&client, &format!("{queue}{companion}")).await.context(name)?;
        let headers = got.delivery.properties.headers().clone().context("no headers")?;
        ensure!(got.delivery.data == reason.as_bytes(), "{name}");
        ensure!(text(&got, "x-mayfly-reason") == why, "{name}: {}", text(&got, "x-mayfly-reason"));
        ensure!(text(&got, "x-mayfly-error").is_empty() != has_error, "{name}");
        // Its own headers are left out only where even a copy without a word of ours has no room.
        let kept = if has_id { room / 2 * 2 } else { 0 };
        ensure!(size(headers.inner().get("large")) == kept, "{name}");
    }
    crew.nothing_is_left(&[queue]).await?;
    client.close().await
}
