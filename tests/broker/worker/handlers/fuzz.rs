//! Messages as strangers publish them: whatever they are, the worker goes on and each has an outcome.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use lapin::{
    BasicProperties,
    types::{AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString},
};
use mayfly_tests::{
    Bed, Kind,
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

async fn any_message_has_an_outcome_with_any_handler(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let mut wire = Wire::connect(&bed.broker).await?;
    for handler in [Handler::Exec, Handler::Stdio, Handler::Http, Handler::Envelope] {
        // A process each takes its time.
        let count = rounds(if handler == Handler::Exec { 200 } else { 1000 });
        let queue = bed.queue_name("test-worker");
        declare(&client, &queue, Kind::Quorum).await?;
        let mut dice = Dice(7);
        for _ in 0..count {
            let body = body(&mut dice);
            if dice.below(4) == 0 {
                wire.publish("", queue.as_bytes(), &bytes_for_names(&mut dice), &body).await?;
            } else {
                publish(&client, &queue, properties(&mut dice), &body).await?;
            }
        }
        forget(bed, "seen");
        let options = ["--max-idle", "500ms", "--concurrency", "4"];
        let mut brain = handler.start(&crew, handler.name(), &queue, &options)?;
        let report = brain.idles().await?;
        ensure!(report.done == count as u64 && report.messages == report.done, "{handler:?}: {report:?}");
        ensure!(noted(bed, "seen")?.len() == count, "{handler:?}");
        let log = brain.worker.process.log()?;
        ensure!(!log.contains("panicked"), "{handler:?}: {}", brain.worker.process.log_tail());
        crew.nothing_is_left(&[&queue]).await.or_else(|error| {
            // A server is ours, and runs until the end of the test.
            if brain.server.is_some() { Ok(()) } else { Err(error) }
        })?;
    }
    client.close().await
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
