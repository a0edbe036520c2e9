//! The message contract (DESIGN §7): what our publisher stamps and what our worker reads. Foreign messages
//! without any of it are processed all the same.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lapin::{
    BasicProperties,
    protocol::basic::gen_properties,
    types::{AMQPValue, FieldTable, ShortString},
};
use uuid::Uuid;

/// Names of the headers that we write.
pub mod header {
    /// Milliseconds since the Unix epoch at publishing; the name that RabbitMQ's own interceptor uses.
    pub const TIMESTAMP_IN_MS: &str = "timestamp_in_ms";
    /// How often the message was begun before: absent or 0 at first, +1 with each retry.
    pub const ATTEMPT: &str = "x-mayfly-attempt";
    /// Why a message was dead-lettered or retried: the last error, bounded.
    pub const ERROR: &str = "x-mayfly-error";
    /// How often a worker died while this message alone was in work.
    pub const DEATHS: &str = "x-mayfly-deaths";
    /// What brought a message into the dead-letter queue: `rejected` by its handler, its `attempts` are used
    /// up, `suspect`: it brought down its workers, or `headers`: they are too large for where it should go.
    pub const REASON: &str = "x-mayfly-reason";
    /// What is left of a `message_id` that was no UTF-8, on messages that we forward.
    pub const DAMAGED_ID: &str = "x-mayfly-damaged-id";
    /// Deliveries that ended without a word (quorum queues).
    pub(super) const DELIVERY_COUNT: &str = "x-delivery-count";
    /// All deliveries, also those that were given back (quorum queues of RabbitMQ 4.3 and later).
    pub(super) const ACQUIRED_COUNT: &str = "x-acquired-count";
}

/// A header's value, as far as we write them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Header {
    /// A long string.
    Text(String),
    /// A signed 64-bit number.
    Number(i64),
}

/// A delivered message.
#[derive(Debug, Clone)]
pub struct Message {
    /// The delivery tag on its channel.
    pub tag: u64,
    /// The broker's only hint that somebody held it before.
    pub redelivered: bool,
    /// The body, byte for byte.
    pub body: Vec<u8>,
    pub(crate) properties: BasicProperties,
}

/// A message to publish. All properties of the contract are filled in.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The queue, addressed through the default exchange.
    pub queue: String,
    /// Its id, unique.
    pub message_id: String,
    /// The body.
    pub body: Vec<u8>,
    pub(crate) properties: BasicProperties,
}

/// The longest name, id or content type that AMQP can carry, in bytes.
pub const SHORT_LIMIT: usize = 255;

/// Stands in names for each byte that is no UTF-8 (ADR 2); nobody who writes text writes it.
const SUBSTITUTE: char = '\u{1a}';

/// AMQP's `delivery_mode` of messages that survive a restart of the broker.
const PERSISTENT: u8 = 2;

/// Headers that belong to the delivery at hand: `CC` and `BCC` would send copies to other queues again, the
/// counts would make a message that was published just now look like one that came back.
const NOT_FORWARDED: [&str; 4] = ["CC", "BCC", header::DELIVERY_COUNT, header::ACQUIRED_COUNT];

/// What a frame with properties has besides them: its type, channel, length and end; class, weight, body's size.
const HEADER_FRAME: usize = 8 + 12;

/// Sets one textual property.
type WithText = fn(BasicProperties, ShortString) -> BasicProperties;

// === impl Message ===

impl Message {
    /// Its `message_id` property; `None` also for an empty one, and for one that was no UTF-8: what is left of it
    /// may be the same for different messages, so it tells nobody which one this is.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.any_id().filter(|id| !id.contains(SUBSTITUTE))
    }

    fn any_id(&self) -> Option<&str> {
        self.properties.message_id().as_ref().map(ShortString::as_str).filter(|id| !id.is_empty())
    }

    /// A header of its own, where that is text.
    #[must_use]
    pub fn text_header(&self, name: &str) -> Option<String> {
        text_header(&self.properties, name)
    }

    /// Its `content_type` property.
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        self.properties.content_type().as_ref().map(ShortString::as_str)
    }

    /// How often it was begun before, by our retries: 0 at first. An absent, odd or negative header is 0.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.count(header::ATTEMPT).unwrap_or(0)
    }

    /// How often a worker died while this message alone was in work. An absent, odd or negative header is 0.
    #[must_use]
    pub fn deaths(&self) -> u32 {
        self.count(header::DEATHS).unwrap_or(0)
    }

    /// Whether somebody may have died, or lost the connection, while holding it. Before RabbitMQ 4.3 a message
    /// that was given back in order looks the same.
    #[must_use]
    pub fn came_back(&self) -> bool {
        let told_apart = self.count(header::ACQUIRED_COUNT).is_some();
        self.redelivered && !(told_apart && self.count(header::DELIVERY_COUNT).unwrap_or(0) == 0)
    }

    fn count(&self, name: &str) -> Option<u32> {
        count(&self.properties, name)
    }

    /// The same message for `queue` with its original properties, and `headers` set over its own. A message
    /// without an id gets one, so that its confirm can be told apart; what is left of one that was no UTF-8
    /// stands in a header then.
    ///
    /// Left out are an expiration (it would end the message in a queue that nobody consumes, as the broker
    /// knows when it dead-letters), the user id (the broker accepts only our own), and headers that mean
    /// this delivery only. The copy is persistent.
    #[must_use]
    pub fn forward(&self, queue: &str, headers: BTreeMap<String, Header>) -> Outgoing {
        let own = &self.properties;
        let id = self.id().map_or_else(new_id, str::to_owned);
        let mut table: BTreeMap<ShortString, AMQPValue> = own
            .headers()
            .iter()
            .flat_map(|table| table.inner().clone())
            .filter(|(name, _)| !NOT_FORWARDED.contains(&name.as_str()))
            .collect();
        let damaged_id = self.any_id().filter(|_| self.id().is_none());
        let damaged_id = damaged_id.map(|id| (header::DAMAGED_ID.to_owned(), Header::Text(id.to_owned())));
        table.extend(headers.into_iter().chain(damaged_id).map(|(name, value)| (cut(name), value.into())));

        let mut properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(cut(id.clone()))
            .with_headers(FieldTable::from(table));
        let copies: [(Option<ShortString>, WithText); 6] = [
            (own.content_type().clone(), BasicProperties::with_content_type),
            (own.content_encoding().clone(), BasicProperties::with_content_encoding),
            (own.correlation_id().clone(), BasicProperties::with_correlation_id),
            (own.reply_to().clone(), BasicProperties::with_reply_to),
            (own.kind().clone(), BasicProperties::with_type),
            (own.app_id().clone(), BasicProperties::with_app_id),
        ];
        for (value, with) in copies {
            if let Some(value) = value {
                properties = with(properties, value);
            }
        }
        if let Some(priority) = own.priority() {
            properties = properties.with_priority(*priority);
        }
        if let Some(timestamp) = own.timestamp() {
            properties = properties.with_timestamp(*timestamp);
        }
        Outgoing { queue: queue.to_owned(), message_id: id, body: self.body.clone(), properties }
    }
}

impl From<lapin::message::Delivery> for Message {
    fn from(delivery: lapin::message::Delivery) -> Self {
        let lapin::message::Delivery { delivery_tag, redelivered, properties, data, .. } = delivery;
        Self { tag: delivery_tag, redelivered, body: data, properties }
    }
}

// === impl Outgoing ===

impl Outgoing {
    /// A message with the properties of the contract: `message_id` (`UUIDv7` unless given), `timestamp` and
    /// `timestamp_in_ms` now, `delivery_mode` 2, `content_type`, headers.
    ///
    /// Ids, content types and header names beyond [`SHORT_LIMIT`] bytes are cut: AMQP cannot carry them.
    #[must_use]
    pub fn new(
        queue: &str,
        message_id: Option<String>,
        content_type: &str,
        headers: BTreeMap<String, Header>,
        body: Vec<u8>,
    ) -> Self {
        let message_id = cut(message_id.unwrap_or_else(new_id));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let milliseconds = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        let mut table = FieldTable::default();
        table.insert(header::TIMESTAMP_IN_MS.into(), AMQPValue::LongLongInt(milliseconds));
        for (name, value) in headers {
            table.insert(cut(name), value.into());
        }
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(message_id.clone())
            .with_timestamp(now.as_secs())
            .with_content_type(cut(content_type.to_owned()))
            .with_headers(table);
        Self { queue: queue.to_owned(), message_id: message_id.into(), body, properties }
    }

    /// The count in the header `name`; `None` where it is absent or no integer, 0 where it is negative.
    #[must_use]
    pub fn count(&self, name: &str) -> Option<u32> {
        count(&self.properties, name)
    }

    /// The header `name`, where that is text.
    #[must_use]
    pub fn text_header(&self, name: &str) -> Option<String> {
        text_header(&self.properties, name)
    }

    /// The size of the frame that carries all its properties, in bytes.
    #[must_use]
    pub fn header_frame(&self) -> usize {
        let written = gen_properties(&self.properties)(Vec::new().into());
        // What can't be written fits nowhere.
        written.map_or(usize::MAX, |written| HEADER_FRAME + written.into_inner().0.len())
    }

    /// Sets a header.
    pub fn set_header(&mut self, name: &str, value: Header) {
        self.change_headers(|headers| headers.insert(cut(name.to_owned()), value.into()));
    }

    /// Leaves out the headers of these names. Whether there was one.
    pub fn remove_headers(&mut self, names: &[&str]) -> bool {
        self.change_headers(|headers| {
            let before = headers.len();
            headers.retain(|name, _| !names.contains(&name.as_str()));
            headers.len() < before
        })
    }

    /// Leaves out all headers. Whether there was one.
    pub fn clear_headers(&mut self) -> bool {
        self.change_headers(|headers| !std::mem::take(headers).is_empty())
    }

    fn change_headers<T>(&mut self, change: impl FnOnce(&mut BTreeMap<ShortString, AMQPValue>) -> T) -> T {
        let properties = std::mem::take(&mut self.properties);
        let mut headers =
            properties.headers().as_ref().map(|table| table.inner().clone()).unwrap_or_default();
        let result = change(&mut headers);
        self.properties = properties.with_headers(headers.into());
        result
    }
}

// === impl Header ===

impl fmt::Display for Header {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => formatter.write_str(text),
            Self::Number(number) => number.fmt(formatter),
        }
    }
}

impl From<Header> for AMQPValue {
    fn from(header: Header) -> Self {
        match header {
            Header::Text(text) => Self::LongString(text.into()),
            Header::Number(number) => Self::LongLongInt(number),
        }
    }
}

/// `text` as an AMQP short string, unless it is too long for one.
pub(crate) fn short(text: &str) -> Option<ShortString> {
    ShortString::try_new(text).ok()
}

/// `text` cut to what an AMQP short string can hold.
fn cut(mut text: String) -> ShortString {
    text.truncate(text.floor_char_boundary(SHORT_LIMIT));
    text.into()
}

fn new_id() -> String {
    Uuid::now_v7().to_string()
}

fn text_header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

fn count(properties: &BasicProperties, name: &str) -> Option<u32> {
    let headers = properties.headers().as_ref()?;
    let count = headers.inner().get(name).and_then(integer)?;
    Some(u32::try_from(count.max(0)).unwrap_or(u32::MAX))
}

/// A header's value as a number: clients differ in the width that they choose.
pub(crate) fn integer(value: &AMQPValue) -> Option<i64> {
    match *value {
        AMQPValue::ShortShortInt(number) => Some(number.into()),
        AMQPValue::ShortShortUInt(number) => Some(number.into()),
        AMQPValue::ShortInt(number) => Some(number.into()),
        AMQPValue::ShortUInt(number) => Some(number.into()),
        AMQPValue::LongInt(number) => Some(number.into()),
        AMQPValue::LongUInt(number) => Some(number.into()),
        AMQPValue::LongLongInt(number) => Some(number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(properties: BasicProperties) -> Message {
        Message { tag: 1, redelivered: false, body: b"body".to_vec(), properties }
    }

    fn headers(entries: &[(&str, AMQPValue)]) -> FieldTable {
        entries.iter().map(|(name, value)| ((*name).into(), value.clone())).collect::<BTreeMap<_, _>>().into()
    }

    #[test]
    fn the_frame_of_a_message_is_known_to_the_byte() {
        let mut outgoing = message(BasicProperties::default()).forward("q", BTreeMap::new());
        // Flags, an empty table, the delivery mode, a new id.
        assert_eq!(outgoing.header_frame(), 20 + 2 + 4 + 1 + 1 + 36);
        outgoing.set_header("name", Header::Text("text".to_owned()));
        outgoing.set_header("number", Header::Number(1));
        assert_eq!(outgoing.header_frame(), 64 + (1 + 4 + 1 + 4 + 4) + (1 + 6 + 1 + 8));
        assert!(outgoing.remove_headers(&["name", "absent"]) && !outgoing.remove_headers(&["name"]));
        assert_eq!(outgoing.count("number"), Some(1));
        assert!(outgoing.clear_headers() && !outgoing.clear_headers());
        assert_eq!(outgoing.header_frame(), 64);
    }

    #[test]
    fn an_attempt_is_read_from_any_integer_and_is_0_for_anything_else() {
        let cases = [
            (AMQPValue::LongLongInt(3), 3),
            (AMQPValue::LongInt(2), 2),
            (AMQPValue::LongUInt(u32::MAX), u32::MAX),
            (AMQPValue::ShortShortInt(1), 1),
            (AMQPValue::ShortShortUInt(255), 255),
            (AMQPValue::ShortInt(7), 7),
            (AMQPValue::ShortUInt(8), 8),
            (AMQPValue::LongLongInt(i64::MAX), u32::MAX),
            (AMQPValue::LongLongInt(-1), 0),
            (AMQPValue::LongString("5".into()), 0),
            (AMQPValue::Double(4.0), 0),
            (AMQPValue::Boolean(true), 0),
            (AMQPValue::Void, 0),
        ];
        for (value, attempt) in cases {
            let told = format!("{value:?}");
            let properties = BasicProperties::default().with_headers(headers(&[(header::ATTEMPT, value)]));
            assert_eq!(message(properties).attempt(), attempt, "{told}");
        }
        assert_eq!(message(BasicProperties::default()).attempt(), 0);
        assert_eq!(message(BasicProperties::default().with_headers(FieldTable::default())).attempt(), 0);
    }

    #[test]
    fn a_message_comes_back_only_from_a_death_where_the_broker_tells_it_from_a_give_back() {
        let given_back = ("x-acquired-count", AMQPValue::LongLongInt(1));
        let died = |count| ("x-delivery-count", AMQPValue::LongLongInt(count));
        let cases = [
            (true, vec![], true),
            (true, vec![died(1)], true),
            (true, vec![given_back.clone()], false),
            (true, vec![given_back.clone(), died(0)], false),
            (true, vec![given_back.clone(), died(1)], true),
            (false, vec![given_back, died(1)], false),
        ];
        for (redelivered, entries, came_back) in cases {
            let told = format!("{redelivered} {entries:?}");
            let properties = BasicProperties::default().with_headers(headers(&entries));
            assert_eq!(Message { redelivered, ..message(properties) }.came_back(), came_back, "{told}");
        }
    }

    #[test]
    fn a_forwarded_message_keeps_its_properties_and_gains_our_headers() {
        let original = message(
            BasicProperties::default()
                .with_message_id("m-1".into())
                .with_content_type("text/plain".into())
                .with_correlation_id("c".into())
                .with_reply_to("r".into())
                .with_type("t".into())
                .with_app_id("a".into())
                .with_content_encoding("gzip".into())
                .with_priority(4)
                .with_timestamp(11)
                .with_headers(headers(&[
                    ("kept", AMQPValue::Boolean(true)),
                    (header::ATTEMPT, AMQPValue::LongInt(1)),
                ])),
        );
        let copy = original.forward(
            "q",
            BTreeMap::from([
                (header::ATTEMPT.to_owned(), Header::Number(2)),
                (header::ERROR.to_owned(), Header::Text("exit status 1".to_owned())),
            ]),
        );
        let expected = original.properties.clone().with_delivery_mode(2).with_headers(headers(&[
            ("kept", AMQPValue::Boolean(true)),
            (header::ATTEMPT, AMQPValue::LongLongInt(2)),
            (header::ERROR, AMQPValue::LongString("exit status 1".into())),
        ]));
        assert_eq!(copy.properties, expected);
        assert_eq!((copy.queue.as_str(), copy.message_id.as_str(), &*copy.body), ("q", "m-1", &b"body"[..]));
    }

    #[test]
    fn a_forwarded_message_cannot_expire_be_refused_or_be_copied_elsewhere() {
        let original = message(
            BasicProperties::default()
                .with_delivery_mode(1)
                .with_expiration("1000".into())
                .with_user_id("somebody".into())
                .with_headers(headers(&[
                    ("CC", AMQPValue::FieldArray(vec![AMQPValue::LongString("other".into())].into())),
                    ("x-delivery-count", AMQPValue::LongLongInt(3)),
                ])),
        );
        let copy = original.forward("q", BTreeMap::new());
        assert_eq!(copy.properties.expiration(), &None);
        assert_eq!(copy.properties.user_id(), &None);
        assert_eq!(copy.properties.delivery_mode(), &Some(2));
        assert_eq!(copy.properties.headers(), &Some(FieldTable::default()));
        assert_eq!(copy.properties.message_id().as_ref().map(ShortString::as_str), Some(&*copy.message_id));
        assert!(!copy.message_id.is_empty());
    }

    #[test]
    fn an_id_that_is_no_utf8_is_none_and_what_is_left_of_it_is_kept_for_people() {
        let original = message(BasicProperties::default().with_message_id("id-\u{1a}".into()));
        assert_eq!(original.id(), None);
        assert_eq!(message(BasicProperties::default().with_message_id("".into())).id(), None);
        let copies = [0, 1].map(|_| original.forward("q", BTreeMap::new()));
        assert_ne!(copies[0].message_id, copies[1].message_id);
        for copy in copies {
            let seen = message(copy.properties);
            assert_eq!(seen.id(), Some(copy.message_id.as_str()));
            assert_eq!(seen.text_header(header::DAMAGED_ID).as_deref(), Some("id-\u{1a}"));
            let again = seen.forward("q", BTreeMap::new());
            assert_eq!(
                (again.message_id, again.properties.headers()),
                (copy.message_id, seen.properties.headers())
            );
        }
        let whole = message(BasicProperties::default().with_message_id("id".into()));
        assert_eq!(
            message(whole.forward("q", BTreeMap::new()).properties).text_header(header::DAMAGED_ID),
            None
        );
    }

    #[test]
    fn a_new_message_carries_the_whole_contract() {
        let headers = BTreeMap::from([("tenant".to_owned(), Header::Text("a".to_owned()))]);
        let outgoing = Outgoing::new("q", None, "text/plain", headers, b"body".to_vec());
        let seen = message(outgoing.properties.clone());
        assert_eq!(seen.id(), Some(outgoing.message_id.as_str()));
        assert_eq!(Uuid::parse_str(&outgoing.message_id).unwrap().get_version_num(), 7);
        assert_eq!(seen.content_type(), Some("text/plain"));
        assert_eq!(seen.properties.delivery_mode(), &Some(2));
        let table = seen.properties.headers().as_ref().unwrap().inner();
        let milliseconds = integer(&table[header::TIMESTAMP_IN_MS]).unwrap();
        assert_eq!(i64::try_from(seen.properties.timestamp().unwrap()).unwrap(), milliseconds / 1000);
        assert_eq!(table["tenant"], AMQPValue::LongString("a".into()));
    }

    #[test]
    fn what_amqp_cannot_carry_is_cut_and_not_a_panic() {
        let long = "ü".repeat(200);
        let headers = BTreeMap::from([(long.clone(), Header::Number(1))]);
        let outgoing = Outgoing::new(&long, Some(long.clone()), &long, headers, Vec::new());
        assert_eq!(outgoing.message_id, "ü".repeat(127));
        assert_eq!(short(&outgoing.queue), None);
    }
}
