//! Messages as strangers publish them: whatever they are, the worker goes on and each has an outcome.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use lapin::{
    BasicProperties,
    message::Delivery,
    options::BasicGetOptions,
    types::{AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString},
};
use mayfly_tests::{
    Bed, Client, Kind,
    bed::rounds,
    on_each_release,
    wire::{
        self, Property, Wire,
        value::{deep_array, deep_table},
    },
};

use super::{super::Dice, Crew, Handler, declare, forget, noted, publish};

/// Sets one textual property.
type WithText = fn(BasicProperties, ShortString) -> BasicProperties;

on_each_release!(any_message_has_an_outcome_with_any_handler);

/// What becomes of a message by its body, and where it lies then.
const FATES: [(&str, &[&str]); 2] =
    [("retry ", &[".retry.5s", ".retry.30s", ".retry.2m", ".retry.10m"]), ("dead ", &[".dead"])];

async fn any_message_has_an_outcome_with_any_handler(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let mut wire = Wire::connect(&bed.broker).await?;
    let handlers = [Handler::Exec, Handler::Stdio, Handler::Http, Handler::Envelope];
    let kinds = [Kind::Quorum, Kind::Classic];
    for (handler, kind) in handlers.into_iter().flat_map(|handler| kinds.map(|kind| (handler, kind))) {
        // A process each takes its time.
        let count = rounds(if handler == Handler::Exec { 100 } else { 500 });
        let queue = bed.queue_name("test-worker");
        declare(&client, &queue, kind).await?;
        let mut dice = Dice(if kind == Kind::Quorum { 7 } else { 8 });
        let mut fates = [0; 2];
        let mut whole = Vec::new();
        for _ in 0..count {
            let mut body = body(&mut dice);
            let fate = dice.below(5);
            if let Some((order, _)) = FATES.get(fate) {
                body.splice(0..0, order.bytes());
                fates[fate] += 1;
            }
            if dice.below(4) == 0 {
                wire.publish("", queue.as_bytes(), &bytes_for_names(&mut dice), &body).await?;
            } else {
                let properties = properties(&mut dice);
                if fate < FATES.len() {
                    whole.push(forwarded(&properties, &body));
                }
                publish(&client, &queue, properties, &body).await?;
            }
        }
        forget(bed, "seen");
        let name = format!("{}-{kind:?}", handler.name());
        let mut brain =
            handler.start(&crew, &name, &queue, &["--max-idle", "500ms", "--concurrency", "4"])?;
        let report = brain.idles().await?;
        let done = count - fates[0] - fates[1];
        let told = [report.messages, report.done, report.retried, report.dead_lettered];
        ensure!(told == [count, done, fates[0], fates[1]].map(|it| it as u64), "{name}: {report:?}");
        ensure!(noted(bed, "seen")?.len() == count, "{name}");
        let log = brain.worker.process.log()?;
        ensure!(!log.contains("panicked"), "{name}: {}", brain.worker.process.log_tail());
        for ((_, companions), count) in FATES.iter().zip(fates) {
            let mut found = 0;
            for companion in *companions {
                for message in take_all(&client, &format!("{queue}{companion}")).await? {
                    found += 1;
                    let as_it_was = forwarded(&message.properties, &message.data);
                    whole.iter().position(|it| *it == as_it_was).map(|index| whole.swap_remove(index));
                }
            }
            ensure!(found == count, "{name}: {found} of {count} in {companions:?}");
        }
        ensure!(whole.is_empty(), "{name}: changed on their way: {whole:?}");
        crew.nothing_is_left(&[&queue]).await.or_else(|error| {
            // A server is ours, and runs until the end of the test.
            if brain.server.is_some() { Ok(()) } else { Err(error) }
        })?;
    }
    client.close().await
}

/// What stays of a message when it is retried or dead-lettered.
fn forwarded(properties: &BasicProperties, body: &[u8]) -> String {
    let headers = properties.headers().clone().unwrap_or_default();
    let is_own = |name: &str| name.starts_with("x-mayfly-");
    let headers: Vec<_> = headers.inner().iter().filter(|(name, _)| !is_own(name.as_str())).collect();
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.kind(),
        properties.app_id(),
    ];
    let numbers = (properties.priority(), properties.timestamp());
    format!("{texts:?} {numbers:?} {headers:?} {}", String::from_utf8_lossy(body))
}

async fn take_all(client: &Client, queue: &str) -> Result<Vec<Delivery>> {
    let mut all = Vec::new();
    while let Some(got) = client.channel().basic_get(queue.into(), BasicGetOptions { no_ack: true }).await? {
        all.push(got.delivery);
    }
    Ok(all)
}

fn body(dice: &mut Dice) -> Vec<u8> {
    let size = [0, 1, 100, 5000, 70_000][dice.below(5)];
    match dice.below(3) {
        0 => vec![b'x'; size],
        1 => "\u{1F980}\0\"\\\n".bytes().cycle().take(size).collect(),
        _ => (0..size).map(|_| u8::try_from(dice.below(256)).unwrap_or_default()).collect(),
    }
}

/// Any of them may be absent, empty, as long as it can be, or odd.
fn properties(dice: &mut Dice) -> BasicProperties {
    let mut properties = BasicProperties::default();
    let texts: [WithText; 9] = [
        BasicProperties::with_message_id,
        BasicProperties::with_content_type,
        BasicProperties::with_content_encoding,
        BasicProperties::with_correlation_id,
        BasicProperties::with_reply_to,
        BasicProperties::with_type,
        BasicProperties::with_app_id,
        BasicProperties::with_cluster_id,
        BasicProperties::with_message_id,
    ];
    for with in texts {
        if dice.below(2) == 0 {
            properties = with(properties, text(dice, 255).into());
        }
    }
    if dice.below(2) == 0 {
        let seconds = [0, 1_700_000_000, u64::MAX >> 1][dice.below(3)];
        properties = properties.with_timestamp(seconds);
    }
    if dice.below(2) == 0 {
        properties = properties.with_priority(u8::try_from(dice.below(256)).unwrap_or_default());
    }
    if dice.below(3) > 0 {
        properties = properties.with_headers(table(dice, 0));
    }
    properties
}

/// Any bytes where a client library takes text, and headers nested as deep as a frame can hold.
fn bytes_for_names(dice: &mut Dice) -> wire::Properties {
    use Property::{AppId, ClusterId, ContentEncoding, ContentType, CorrelationId, MessageId, ReplyTo, Type};
    let mut properties = wire::Properties::default();
    for property in [ContentType, ContentEncoding, CorrelationId, ReplyTo, MessageId, Type, AppId, ClusterId]
    {
        if dice.below(2) == 0 {
            properties = properties.with(property, &bytes(dice));
        }
    }
    let (names, odd) = ([bytes(dice), bytes(dice)], text(dice, 100));
    let (own, nested) = (names[0].as_slice(), names[1].as_slice());
    match dice.below(4) {
        0 => properties,
        1 => properties.with_headers(&[(own, deep_array(dice.below(5000)))]),
        2 => properties.with_headers(&[(own, deep_table(&nested[..nested.len() % 8], dice.below(4000)))]),
        _ => properties.with_headers(&[
            (own, wire::value::table(&[(nested, wire::value::table(&[])), (own, deep_array(2))])),
            (odd.as_bytes(), wire::value::text(nested)),
        ]),
    }
}

fn bytes(dice: &mut Dice) -> Vec<u8> {
    let size = [1, 10, 255][dice.below(3)];
    (0..size).map(|_| u8::try_from(dice.below(256)).unwrap_or_default()).collect()
}

fn text(dice: &mut Dice, limit: usize) -> String {
    let mut text = match dice.below(5) {
        0 => String::new(),
        1 => "plain".to_owned(),
        2 => "../%\0\r\nx: y\t\"\u{7f}".to_owned(),
        3 => "\u{1F980}\u{2028}\u{feff}".repeat(40),
        _ => "l".repeat(limit),
    };
    text.truncate(text.floor_char_boundary(limit));
    text
}

fn table(dice: &mut Dice, depth: usize) -> FieldTable {
    let mut entries = BTreeMap::new();
    for _ in 0..dice.below(6) {
        let name = match dice.below(4) {
            0 => ["timestamp_in_ms", "x-mayfly-error", "$base64"][dice.below(3)].to_owned(),
            _ => text(dice, 100),
        };
        entries.insert(name.into(), value(dice, depth));
    }
    entries.into()
}

fn value(dice: &mut Dice, depth: usize) -> AMQPValue {
    match dice.below(if depth < 6 { 16 } else { 14 }) {
        0 => AMQPValue::Boolean(true),
        1 => AMQPValue::ShortShortInt(i8::MIN),
        2 => AMQPValue::ShortShortUInt(u8::MAX),
        3 => AMQPValue::ShortInt(i16::MIN),
        4 => AMQPValue::ShortUInt(u16::MAX),
        5 => AMQPValue::LongInt(i32::MIN),
        6 => AMQPValue::LongUInt(u32::MAX),
        7 => AMQPValue::LongLongInt(i64::MIN),
        // RabbitMQ itself fails at what is no number, or infinite.
        8 => AMQPValue::Float(f32::MAX),
        9 => AMQPValue::Double([-0.0, f64::MIN, f64::MIN_POSITIVE][dice.below(3)]),
        10 => AMQPValue::DecimalValue(DecimalValue { scale: 255, value: u32::MAX }),
        11 => AMQPValue::LongString(body(dice).into_iter().take(2000).collect::<Vec<_>>().into()),
        12 => AMQPValue::ByteArray(vec![0, 255].into()),
        13 => [AMQPValue::Void, AMQPValue::Timestamp(u64::MAX >> 1)][dice.below(2)].clone(),
        14 => {
            let items = (0..dice.below(4)).map(|_| value(dice, depth + 1)).collect::<Vec<_>>();
            AMQPValue::FieldArray(FieldArray::from(items))
        }
        _ => AMQPValue::FieldTable(table(dice, depth + 1)),
    }
}
