//! A message's headers as JSON: any value that AMQP can carry, told so that nothing of it is lost.
//!
//! What JSON knows too is written as it is: text, whole numbers, finite numbers with a point, booleans, null,
//! arrays, and tables as objects. Everything else becomes an object with one key that begins with `$`:
//!
//! | AMQP | JSON |
//! |---|---|
//! | bytes, and text that isn't UTF-8 | `{"$base64": "/wA="}` |
//! | timestamp, in seconds since the Unix epoch | `{"$timestamp": 1700000000}` |
//! | decimal | `{"$decimal": "12.34"}` |
//! | a float that is no number or infinite | `{"$float": "NaN"}`, `"inf"`, `"-inf"` |
//! | whatever is nested deeper than 64 levels | `{"$omitted": "nested too deep"}` |
//!
//! A table's own key that begins with `$` gets another one in front (`$base64` becomes `$$base64`), so each
//! form means one thing only. Whole numbers need 64 bits.

use base64::{Engine, engine::general_purpose::STANDARD};
use lapin::types::{AMQPValue, DecimalValue, FieldTable};
use serde_json::{Map, Value, json};

use crate::message::{Message, header, integer};

/// Deeper values would break the parsers that read this; serde's own stops at 128.
const DEPTH_LIMIT: usize = 64;

// === impl Message ===

impl Message {
    /// All headers as a JSON object, in the form of docs/handlers.md; empty without any.
    #[must_use]
    pub fn headers(&self) -> Value {
        self.properties.headers().as_ref().map_or_else(|| Value::Object(Map::new()), |own| table(own, 0))
    }

    /// When it was published, in milliseconds since the Unix epoch: from the header `timestamp_in_ms`, else
    /// from the property `timestamp`, which has seconds. `None` where neither says it.
    #[must_use]
    pub fn published_ms(&self) -> Option<u64> {
        let headers = self.properties.headers().as_ref().map(FieldTable::inner);
        let exact = headers.and_then(|headers| integer(headers.get(header::TIMESTAMP_IN_MS)?));
        let coarse = || self.properties.timestamp().map(|seconds| seconds.saturating_mul(1000));
        exact.and_then(|milliseconds| u64::try_from(milliseconds).ok()).or_else(coarse)
    }
}

fn table(own: &FieldTable, depth: usize) -> Value {
    let entry = |(name, header): (&lapin::types::ShortString, &AMQPValue)| {
        let name = name.as_str();
        let name = if name.starts_with('$') { format!("${name}") } else { name.to_owned() };
        (name, value(header, depth + 1))
    };
    Value::Object(own.inner().iter().map(entry).collect())
}

fn value(header: &AMQPValue, depth: usize) -> Value {
    match header {
        AMQPValue::Boolean(it) => json!(it),
        AMQPValue::ShortShortInt(it) => json!(it),
        AMQPValue::ShortShortUInt(it) => json!(it),
        AMQPValue::ShortInt(it) => json!(it),
        AMQPValue::ShortUInt(it) => json!(it),
        AMQPValue::LongInt(it) => json!(it),
        AMQPValue::LongUInt(it) => json!(it),
        AMQPValue::LongLongInt(it) => json!(it),
        AMQPValue::Float(it) => float((*it).into()),
        AMQPValue::Double(it) => float(*it),
        AMQPValue::DecimalValue(it) => json!({ "$decimal": decimal(*it) }),
        AMQPValue::ShortString(it) => json!(it.as_str()),
        AMQPValue::LongString(it) => text(it.as_bytes()),
        AMQPValue::Timestamp(it) => json!({ "$timestamp": it }),
        AMQPValue::ByteArray(it) => bytes(it.as_slice()),
        AMQPValue::Void => Value::Null,
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) if depth > DEPTH_LIMIT => {
            json!({ "$omitted": "nested too deep" })
        }
        AMQPValue::FieldArray(it) => it.as_slice().iter().map(|item| value(item, depth + 1)).collect(),
        AMQPValue::FieldTable(it) => table(it, depth),
    }
}

fn text(own: &[u8]) -> Value {
    std::str::from_utf8(own).map_or_else(|_| bytes(own), |text| json!(text))
}

fn bytes(own: &[u8]) -> Value {
    json!({ "$base64": STANDARD.encode(own) })
}

fn float(number: f64) -> Value {
    if number.is_finite() { json!(number) } else { json!({ "$float": number.to_string() }) }
}

/// `value` with its point `scale` digits from the right.
fn decimal(DecimalValue { scale, value }: DecimalValue) -> String {
    let scale = usize::from(scale);
    let digits = format!("{value:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lapin::{
        BasicProperties,
        message::Delivery,
        types::{ShortString, parsing::parse_field_table},
    };

    use super::*;

    fn message(properties: BasicProperties) -> Message {
        let mut delivery = Delivery::mock(1, "".into(), "q".into(), false, Vec::new());
        delivery.properties = properties;
        Message::from(delivery)
    }

    fn told(value: AMQPValue) -> Value {
        let headers = FieldTable::from(BTreeMap::from([("it".into(), value)]));
        message(BasicProperties::default().with_headers(headers)).headers()["it"].take()
    }

    #[test]
    fn every_value_that_amqp_can_carry_has_a_form_of_its_own() {
        let nested = FieldTable::from(BTreeMap::from([
            ("a".into(), AMQPValue::LongString("b".into())),
            ("$base64".into(), AMQPValue::Void),
        ]));
        let cases = [
            (AMQPValue::Boolean(true), json!(true)),
            (AMQPValue::ShortShortInt(-1), json!(-1)),
            (AMQPValue::ShortShortUInt(255), json!(255)),
            (AMQPValue::ShortInt(-2), json!(-2)),
            (AMQPValue::ShortUInt(65535), json!(65535)),
            (AMQPValue::LongInt(-3), json!(-3)),
            (AMQPValue::LongUInt(u32::MAX), json!(4_294_967_295_u32)),
            (AMQPValue::LongLongInt(i64::MIN), json!(i64::MIN)),
            (AMQPValue::Float(0.5), json!(0.5)),
            (AMQPValue::Double(f64::NAN), json!({ "$float": "NaN" })),
            (AMQPValue::Double(f64::NEG_INFINITY), json!({ "$float": "-inf" })),
            (AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 1234 }), json!({ "$decimal": "12.34" })),
            (AMQPValue::DecimalValue(DecimalValue { scale: 3, value: 7 }), json!({ "$decimal": "0.007" })),
            (AMQPValue::DecimalValue(DecimalValue { scale: 0, value: 7 }), json!({ "$decimal": "7" })),
            (AMQPValue::ShortString("short".into()), json!("short")),
            (AMQPValue::LongString("a\0b\u{1F980}".into()), json!("a\0b\u{1F980}")),
            (AMQPValue::LongString(vec![0xff, 0].into()), json!({ "$base64": "/wA=" })),
            (AMQPValue::ByteArray(vec![0xff, 0].into()), json!({ "$base64": "/wA=" })),
            (AMQPValue::Timestamp(u64::MAX), json!({ "$timestamp": u64::MAX })),
            (AMQPValue::Void, json!(null)),
            (
                AMQPValue::FieldArray(vec![AMQPValue::Boolean(false), AMQPValue::Void].into()),
                json!([false, null]),
            ),
            (AMQPValue::FieldTable(nested), json!({ "a": "b", "$$base64": null })),
        ];
        for (value, json) in cases {
            assert_eq!(told(value.clone()), json, "{value:?}");
        }
    }

    #[test]
    fn a_message_without_headers_has_an_empty_object() {
        assert_eq!(message(BasicProperties::default()).headers(), json!({}));
    }

    #[test]
    fn what_is_nested_deep_is_cut_where_parsers_would_fail() {
        let mut deep = AMQPValue::Boolean(true);
        for _ in 0..1000 {
            deep = AMQPValue::FieldArray(vec![deep].into());
        }
        let text = told(deep).to_string();
        assert!(text.contains("$omitted"), "{text}");
        assert!(serde_json::from_str::<Value>(&text).is_ok());
    }

    /// A table or an array, as AMQP writes it.
    fn with_length(content: &[u8]) -> Vec<u8> {
        [&u32::try_from(content.len()).unwrap().to_be_bytes(), content].concat()
    }

    #[test]
    fn a_name_that_is_no_utf8_ends_no_connection_and_stays_as_long_as_it_was() {
        let entry = |name: &[u8]| [&[u8::try_from(name.len()).unwrap()], name, b"V"].concat();
        for (name, told) in [
            (&b"a\xffb\xc3"[..], "a\u{1a}b\u{1a}"),
            // The beginning of a character of four bytes; a surrogate; more than Unicode has.
            (b"\xf0\x9f\xa6", "\u{1a}\u{1a}\u{1a}"),
            (b"\xed\xa0\x80", "\u{1a}\u{1a}\u{1a}"),
            (b"\xf4\x90\x80\x80", "\u{1a}\u{1a}\u{1a}\u{1a}"),
            (&[0xff; 255], &"\u{1a}".repeat(255)),
            ("\u{1F980}?".as_bytes(), "\u{1F980}?"),
        ] {
            let bytes = with_length(&entry(name));
            let (rest, parsed) = parse_field_table(&bytes[..]).unwrap();
            assert!(rest.is_empty());
            assert_eq!(parsed.inner().keys().map(ShortString::as_str).collect::<Vec<_>>(), [told]);
        }
    }

    #[test]
    fn whatever_is_nested_however_deep_uses_up_no_stack() {
        for kind in *b"AF" {
            let mut bytes = with_length(b"");
            for _ in 0..10_000 {
                let name: &[u8] = if kind == b'F' { b"\x01n" } else { b"" };
                bytes = with_length(&[name, &[kind], &bytes].concat());
            }
            let bytes = with_length(&[b"\x02it", &[kind][..], &bytes, b"\x05afterV"].concat());
            let (rest, parsed) = parse_field_table(&bytes[..]).unwrap();
            assert!(rest.is_empty() && parsed.inner().len() == 2);
            let told = message(BasicProperties::default().with_headers(parsed)).headers().to_string();
            assert!(told.contains("$omitted"), "{told}");
        }
    }

    #[test]
    fn the_time_of_publishing_is_the_exact_one_where_there_is_one() {
        let seconds = BasicProperties::default().with_timestamp(11);
        assert_eq!(message(seconds.clone()).published_ms(), Some(11_000));
        let odd = [AMQPValue::LongLongInt(-5), AMQPValue::Boolean(true)];
        for (value, expected) in
            odd.map(|odd| (odd, 11_000)).into_iter().chain([(AMQPValue::LongLongInt(11_500), 11_500)])
        {
            let headers = FieldTable::from(BTreeMap::from([(header::TIMESTAMP_IN_MS.into(), value)]));
            assert_eq!(message(seconds.clone().with_headers(headers)).published_ms(), Some(expected));
        }
        assert_eq!(message(BasicProperties::default()).published_ms(), None);
    }
}
