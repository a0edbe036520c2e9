//! A message as a request: pure.

use std::fmt::Write;

use http_body_util::Full;
use hyper::{
    Method, Request, Uri,
    body::Bytes,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use mayfly_broker::Message;

use crate::handler::envelope::envelope;

/// All of a request but where it goes; cheap to use again.
#[derive(Debug)]
pub(super) struct Form {
    headers: HeaderMap,
    body: Bytes,
}

/// More would be refused by servers, which take 8 KiB in all.
const HEADERS_LIMIT: usize = 4096;

const MESSAGE_ID: HeaderName = HeaderName::from_static("mayfly-message-id");
const QUEUE: HeaderName = HeaderName::from_static("mayfly-queue");
const ATTEMPT: HeaderName = HeaderName::from_static("mayfly-attempt");
const REDELIVERED: HeaderName = HeaderName::from_static("mayfly-redelivered");
const HEADERS: HeaderName = HeaderName::from_static("mayfly-headers");

// === impl Form ===

impl Form {
    /// The body as it is, or all that is known of `message` as JSON.
    pub(super) fn of(message: &Message, queue: &str, attempt: u32, is_envelope: bool) -> Self {
        let redelivered = HeaderValue::from_static(if message.redelivered { "1" } else { "0" });
        let mut headers = HeaderMap::from_iter([(ATTEMPT, attempt.into()), (REDELIVERED, redelivered)]);
        let mut set = |name, value: &str| {
            // What can't be a header is left out.
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set(QUEUE, &visible(queue));
        if let Some(id) = message.id() {
            set(MESSAGE_ID, &visible(id));
        }
        if is_envelope {
            set(CONTENT_TYPE, "application/json");
            // The answer is the response: nothing refers to an id.
            return Self { headers, body: envelope(0, message, queue, attempt).into() };
        }
        if let Some(content_type) = message.content_type() {
            set(CONTENT_TYPE, content_type);
        }
        let json = ascii(&message.headers().to_string());
        if json.len() <= HEADERS_LIMIT {
            set(HEADERS, &json);
        }
        Self { headers, body: Bytes::copy_from_slice(&message.body) }
    }

    pub(super) fn request(&self, uri: &Uri) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = self.headers.clone();
        // Of an empty body it would not be sent, and some servers insist on it.
        request.headers_mut().insert(CONTENT_LENGTH, self.body.len().into());
        request
    }
}

/// Percent-encoded where it isn't visible ASCII, and at `%` itself.
fn visible(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut told, byte| {
        if byte.is_ascii_graphic() && byte != b'%' {
            told.push(char::from(byte));
        } else {
            // Writing to a string can't fail.
            let _ = write!(told, "%{byte:02X}");
        }
        told
    })
}

/// JSON in ASCII alone.
fn ascii(json: &str) -> String {
    let mut units = [0; 2];
    json.chars().fold(String::with_capacity(json.len()), |mut told, c| {
        if c.is_ascii() && !c.is_ascii_control() {
            told.push(c);
        } else {
            for unit in c.encode_utf16(&mut units) {
                // Writing to a string can't fail.
                let _ = write!(told, "\\u{unit:04x}");
            }
        }
        told
    })
}

#[cfg(test)]
mod tests {
    use lapin::{
        BasicProperties,
        message::Delivery,
        types::{AMQPValue, FieldTable},
    };
    use serde_json::{Value, json};

    use super::*;

    fn form(properties: BasicProperties, is_envelope: bool) -> Form {
        let mut delivery = Delivery::mock(1, "".into(), "q".into(), true, b"\xff\0".to_vec());
        delivery.properties = properties;
        Form::of(&Message::from(delivery), "qu/ü", 2, is_envelope)
    }

    fn told<'a>(form: &'a Form, name: &str) -> Option<&'a str> {
        form.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn a_message_is_posted_as_it_is_and_told_about_in_headers() {
        let mut headers = FieldTable::default();
        headers.insert("tenant".into(), AMQPValue::LongString("a\0b\u{7f}\u{1F980}".into()));
        let properties = BasicProperties::default()
            .with_message_id("50 %\r\nx: y".into())
            .with_content_type("text/plain".into())
            .with_headers(headers);
        let form = form(properties, false);
        assert_eq!(&form.body[..], b"\xff\0");
        assert_eq!(told(&form, "mayfly-message-id"), Some("50%20%25%0D%0Ax:%20y"));
        assert_eq!(told(&form, "mayfly-queue"), Some("qu/%C3%BC"));
        assert_eq!(told(&form, "mayfly-attempt"), Some("2"));
        assert_eq!(told(&form, "mayfly-redelivered"), Some("1"));
        assert_eq!(told(&form, "content-type"), Some("text/plain"));
        let headers: Value = serde_json::from_str(told(&form, "mayfly-headers").unwrap()).unwrap();
        assert_eq!(headers, json!({ "tenant": "a\0b\u{7f}\u{1F980}" }));
    }

    #[test]
    fn what_cannot_be_a_header_is_left_out() {
        let mut headers = FieldTable::default();
        headers.insert("big".into(), AMQPValue::LongString("x".repeat(HEADERS_LIMIT).into()));
        let properties =
            BasicProperties::default().with_content_type("text\nplain".into()).with_headers(headers);
        let form = form(properties, false);
        for name in ["mayfly-headers", "content-type", "mayfly-message-id"] {
            assert_eq!(told(&form, name), None, "{name}");
        }
    }

    #[test]
    fn an_envelope_holds_all_of_it() {
        let form = form(BasicProperties::default().with_content_type("text/plain".into()), true);
        assert_eq!(told(&form, "content-type"), Some("application/json"));
        let body: Value = serde_json::from_slice(&form.body).unwrap();
        assert_eq!((&body["content_type"], &body["body_base64"]), (&json!("text/plain"), &json!("/wA=")));
    }
}
