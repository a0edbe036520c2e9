//! Names that are no UTF-8, headers nested without end: they stop nothing, and what is left of them stays with
//! their message.

use anyhow::{Context, Result, ensure};
use lapin::{
    message::BasicGetMessage,
    options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use mayfly_tests::{
    Bed, Client, on_each_release,
    wire::{
        Properties, Property, Wire,
        value::{deep_array, deep_table, table, text},
    },
};

use super::{super::both, Crew, Handler, exit, forget, get, noted};

/// A message that no client library would send.
struct Odd {
    name: &'static str,
    routing_key: &'static [u8],
    properties: Properties,
    /// Whether this copy has all that can be left of it.
    is_kept: fn(&BasicGetMessage) -> bool,
}

on_each_release!(what_no_client_library_would_send_stops_nothing_and_has_its_outcome);

const RAW: &[u8] = b"x\xff\xc3";
const LEFT: &str = "x\u{1a}\u{1a}";
const OUTCOMES: [&str; 3] = ["done", "retry", "dead"];

async fn what_no_client_library_would_send_stops_nothing_and_has_its_outcome(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let mut wire = Wire::connect(&bed.broker).await?;
    for (kind, queue) in both(bed, &client).await? {
        fanout(&client, &queue).await?;
        let odd = odd();
        for (number, it) in odd.iter().enumerate() {
            for outcome in OUTCOMES {
                let body = format!("{outcome} {}", it.name);
                wire.publish(&queue, it.routing_key, &it.properties, body.as_bytes()).await?;
                client.publish_one(&queue, &format!("good-{number}-{outcome}"), b"done").await?;
            }
        }
        forget(bed, "seen");
        let options = ["--max-idle", "500ms", "--concurrency", "4"];
        let mut brain = Handler::Stdio.start(&crew, &format!("{kind:?}"), &queue, &options)?;
        let report = brain.worker.ends_with(exit::OK).await?;
        let count = odd.len() as u64;
        let counts = (report.done, report.retried, report.dead_lettered, report.messages);
        ensure!(counts == (4 * count, count, count, 6 * count), "{kind:?}: {report:?}");
        let seen = noted(bed, "seen")?;
        let good =
            seen.iter().filter(|it| it["message_id"].as_str().is_some_and(|id| id.starts_with("good-")));
        ensure!((seen.len(), good.count()) == (6 * odd.len(), 3 * odd.len()), "{kind:?}: {seen:?}");
        for companion in [".dead", ".retry.30s"] {
            for _ in &odd {
                let copy = get(&client, &format!("{queue}{companion}")).await?;
                let body = String::from_utf8_lossy(&copy.delivery.data).into_owned();
                let it = odd
                    .iter()
                    .find(|it| body.split_once(' ').is_some_and(|(_, name)| name == it.name))
                    .with_context(|| body.clone())?;
                ensure!((it.is_kept)(&copy), "{kind:?} {companion} {body}: {:?}", copy.delivery.properties);
            }
        }
        crew.nothing_is_left(&[&queue]).await?;
        client.channel().exchange_delete(queue.into(), ExchangeDeleteOptions::default()).await?;
    }
    client.close().await
}

/// An exchange of the queue's name that sends it whatever comes, by any routing key.
async fn fanout(client: &Client, queue: &str) -> Result<()> {
    let (channel, options) = (client.channel(), ExchangeDeclareOptions::default());
    let kind = lapin::ExchangeKind::Fanout;
    channel.exchange_declare(queue.into(), kind, options, FieldTable::default()).await?;
    let bind = QueueBindOptions::default();
    Ok(channel.queue_bind(queue.into(), queue.into(), "".into(), bind, FieldTable::default()).await?)
}

fn odd() -> Vec<Odd> {
    let plain = |name, is_kept| Odd { name, routing_key: b"key", properties: Properties::default(), is_kept };
    let with = |name, property, is_kept| {
        let properties = Properties::default().with(property, RAW);
        Odd { properties, ..plain(name, is_kept) }
    };
    let headed = |name, entries: &[(&[u8], Vec<u8>)], is_kept| {
        let properties = Properties::default().with_headers(entries);
        Odd { properties, ..plain(name, is_kept) }
    };
    vec![
        Odd { routing_key: RAW, ..plain("routing key", |_| true) },
        with("message id", Property::MessageId, |it| {
            let id = it.delivery.properties.message_id().as_ref().map(ShortString::as_str);
            id.is_some_and(|id| id.len() == 36) && super::text(it, "x-mayfly-damaged-id") == LEFT
        }),
        with("kind", Property::Type, |it| short(it.delivery.properties.kind().as_ref())),
        with("reply-to", Property::ReplyTo, |it| short(it.delivery.properties.reply_to().as_ref())),
        with("correlation id", Property::CorrelationId, |it| {
            short(it.delivery.properties.correlation_id().as_ref())
        }),
        with("content type", Property::ContentType, |it| {
            short(it.delivery.properties.content_type().as_ref())
        }),
        with("content encoding", Property::ContentEncoding, |it| {
            short(it.delivery.properties.content_encoding().as_ref())
        }),
        with("app id", Property::AppId, |it| short(it.delivery.properties.app_id().as_ref())),
        headed("a header", &[(RAW, text(b"value"))], |it| super::text(it, LEFT) == "value"),
        headed("a nested header", &[(b"outer", table(&[(RAW, text(RAW))]))], |it| {
            let Some(AMQPValue::FieldTable(inner)) = header(it, "outer") else { return false };
            inner.inner().get(LEFT) == Some(&AMQPValue::LongString(RAW.into()))
        }),
        headed("deep tables", &[(b"deep", deep_table(RAW, 3000)), (b"z", text(b"z"))], is_cut),
        headed("deep arrays", &[(b"deep", deep_array(5000)), (b"z", text(b"z"))], is_cut),
        headed("fairly deep tables", &[(b"deep", deep_table(b"", 128))], |it| {
            header(it, "deep").is_some_and(|it| depth(it) == 128)
        }),
    ]
}

fn short(text: Option<&ShortString>) -> bool {
    text.is_some_and(|text| text.as_str() == LEFT)
}

fn header<'a>(message: &'a BasicGetMessage, name: &str) -> Option<&'a AMQPValue> {
    message.delivery.properties.headers().as_ref()?.inner().get(name)
}

/// The outer levels are there, and what comes after the deep one.
fn is_cut(message: &BasicGetMessage) -> bool {
    let levels = header(message, "deep").map(depth);
    levels.is_some_and(|levels| (100..200).contains(&levels)) && super::text(message, "z") == "z"
}

/// How many tables or arrays are within each other.
fn depth(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::FieldTable(table) => 1 + table.inner().values().map(depth).max().unwrap_or(0),
        AMQPValue::FieldArray(array) => 1 + array.as_slice().iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
