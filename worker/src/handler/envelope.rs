//! A message as JSON, for programs that get it so.

use base64::{Engine, engine::general_purpose::STANDARD};
use mayfly_broker::Message;
use serde::Serialize;
use serde_json::Value;

/// What a program gets to know about a message. Absent properties are null.
#[derive(Debug, Serialize)]
struct Envelope<'a> {
    id: u64,
    message_id: Option<&'a str>,
    queue: &'a str,
    attempt: u32,
    redelivered: bool,
    content_type: Option<&'a str>,
    timestamp_ms: Option<u64>,
    headers: Value,
    /// The body, where it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    /// The body, where it isn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

/// `message` of `queue` as one line of JSON, without its end. `id` is what an answer refers to.
pub(super) fn envelope(id: u64, message: &Message, queue: &str, attempt: u32) -> Vec<u8> {
    let (body, body_base64) = match std::str::from_utf8(&message.body) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(STANDARD.encode(&message.body))),
    };
    let envelope = Envelope {
        id,
        message_id: message.id(),
        queue,
        attempt,
        redelivered: message.redelivered,
        content_type: message.content_type(),
        timestamp_ms: message.published_ms(),
        headers: message.headers(),
        body,
        body_base64,
    };
    // Such types can always be written.
    serde_json::to_vec(&envelope).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use lapin::{
        BasicProperties,
        message::Delivery,
        types::{AMQPValue, FieldTable},
    };
    use serde_json::json;

    use super::*;

    fn told(properties: BasicProperties, body: &[u8]) -> Value {
        let mut delivery = Delivery::mock(1, "".into(), "q".into(), true, body.to_vec());
        delivery.properties = properties;
        let line = envelope(7, &Message::from(delivery), "q", 2);
        assert!(!line.contains(&b'\n'));
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn a_message_is_one_line_with_all_that_is_known_of_it() {
        let mut headers = FieldTable::default();
        headers.insert("tenant".into(), AMQPValue::LongString("a\0b".into()));
        let properties = BasicProperties::default()
            .with_message_id("m".into())
            .with_content_type("text/plain".into())
            .with_timestamp(11)
            .with_headers(headers);
        let expected = json!({
            "id": 7, "message_id": "m", "queue": "q", "attempt": 2, "redelivered": true,
            "content_type": "text/plain", "timestamp_ms": 11_000, "headers": { "tenant": "a\0b" },
            "body": "two\nlines\0\u{2028}",
        });
        assert_eq!(told(properties, "two\nlines\0\u{2028}".as_bytes()), expected);
    }

    #[test]
    fn a_message_without_properties_has_nulls_and_a_body_that_is_no_text_is_encoded() {
        let expected = json!({
            "id": 7, "message_id": null, "queue": "q", "attempt": 2, "redelivered": true,
            "content_type": null, "timestamp_ms": null, "headers": {}, "body_base64": "/wA=",
        });
        assert_eq!(told(BasicProperties::default(), b"\xff\0"), expected);
        assert_eq!(told(BasicProperties::default(), b"")["body"], json!(""));
    }
}
