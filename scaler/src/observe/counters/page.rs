//! What one endpoint of the broker says, and how to read it.

use std::{borrow::Cow, collections::BTreeMap, iter::Peekable, str::Chars};

use serde::Deserialize;

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Page {
    /// Which node of which cluster answered, where it says so.
    pub(crate) node: Option<String>,
    /// Its RabbitMQ version, where it says so.
    pub(crate) version: Option<String>,
    /// Whether it counts what is published into each queue. A queue that it does not name had nothing then.
    pub(crate) counts_publishing: bool,
    /// By queue.
    pub(crate) queues: BTreeMap<String, Counts>,
}

/// What it says of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) published: Option<u64>,
    pub(crate) acknowledged: Option<u64>,
    pub(crate) unacked: Option<u64>,
    /// Seconds since the Unix epoch.
    pub(crate) head_stamp: Option<u64>,
}

/// An answer that is not what it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not what RabbitMQ's {0} gives")]
pub(crate) struct Unreadable(&'static str);

/// One queue in the management plugin's list.
#[derive(Debug, Deserialize)]
struct Listed {
    name: String,
    #[serde(default)]
    messages_unacknowledged: Option<u64>,
    #[serde(default)]
    message_stats: Option<Stats>,
    /// Empty text where there is none.
    #[serde(default)]
    head_message_timestamp: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Stats {
    #[serde(default)]
    publish: Option<u64>,
    #[serde(default)]
    ack: Option<u64>,
}

/// More than any broker ever counted: what is added to it, or taken off it, stays a number.
const MOST: u64 = 1 << 53;
/// The first major version of RabbitMQ whose Prometheus plugin counts publishing by queue.
const COUNTS_SINCE: u32 = 4;

// === impl Page ===

impl Page {
    /// Reads the management plugin's `GET /api/queues/VHOST`.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn management(body: &[u8]) -> Result<Self, Unreadable> {
        let listed: Vec<Listed> =
            serde_json::from_slice(body).map_err(|_| Unreadable("management plugin"))?;
        let counts = |queue: Listed| {
            let stats = queue.message_stats.unwrap_or(Stats { publish: None, ack: None });
            let possible = |number: Option<u64>| number.map(|number| number.min(MOST));
            let counts = Counts {
                published: possible(stats.publish),
                acknowledged: possible(stats.ack),
                unacked: possible(queue.messages_unacknowledged),
                head_stamp: queue.head_message_timestamp.and_then(|stamp| stamp.as_u64()),
            };
            (queue.name, counts)
        };
        let queues = listed.into_iter().map(counts).collect();
        Ok(Self { counts_publishing: true, queues, ..Self::default() })
    }

    /// Reads the Prometheus plugin's `GET /metrics/detailed`.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn prometheus(body: &[u8]) -> Result<Self, Unreadable> {
        let unreadable = Unreadable("Prometheus plugin");
        let Ok(text) = std::str::from_utf8(body) else { return Err(unreadable) };
        let mut page = Self::default();
        for series in text.lines().filter_map(Series::read) {
            page.take_in(&series);
        }
        // Both stand on every page.
        if page.node.is_none() || page.version.is_none() {
            return Err(unreadable);
        }
        let major = page.version.as_ref().and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        page.counts_publishing |= major.is_some_and(|major| major >= COUNTS_SINCE);
        Ok(page)
    }

    fn take_in(&mut self, series: &Series<'_>) {
        match series.name {
            "rabbitmq_identity_info" => {
                let cluster = series.label("rabbitmq_cluster_permanent_id").unwrap_or_default();
                let node = series.label("rabbitmq_node").unwrap_or_default();
                self.node = Some(format!("{node} of {cluster}"));
                return;
            }
            "rabbitmq_build_info" => {
                self.version = series.label("rabbitmq_version").map(Cow::into_owned);
                return;
            }
            _ => {}
        }
        let Some(kind) = series.name.strip_prefix("rabbitmq_detailed_queue_") else { return };
        let Some(queue) = series.label("queue") else { return };
        let Some(value) = series.whole() else { return };
        let counts = self.queues.entry(queue.into_owned()).or_default();
        let number = match kind {
            "exchange_messages_published_total" => {
                self.counts_publishing = true;
                &mut counts.published
            }
            "messages_acked_total" => &mut counts.acknowledged,
            "messages_unacked" => &mut counts.unacked,
            "head_message_timestamp" => &mut counts.head_stamp,
            _ => return,
        };
        // One series for each exchange.
        *number = Some(number.unwrap_or_default().saturating_add(value).min(MOST));
    }
}

/// One line of Prometheus' text format.
struct Series<'a> {
    name: &'a str,
    labels: &'a str,
    value: &'a str,
}

// === impl Series ===

impl<'a> Series<'a> {
    /// `None` for a comment or anything that is no series with labels.
    fn read(line: &'a str) -> Option<Self> {
        let (name, rest) = line.split_once('{').filter(|_| !line.starts_with('#'))?;
        let (labels, value) = rest.rsplit_once('}')?;
        Some(Self { name, labels, value: value.split_whitespace().next()? })
    }

    fn label(&self, wanted: &str) -> Option<Cow<'a, str>> {
        let mut rest = self.labels;
        loop {
            let (name, after) = rest.split_once("=\"")?;
            let end = end_of_quoted(after)?;
            let (value, next) = after.split_at_checked(end)?;
            if name.trim_start_matches(',').trim() == wanted {
                return Some(unescaped(value));
            }
            rest = next.get(1..)?;
        }
    }

    /// The value as a whole number; `NaN` and what is below zero are none.
    fn whole(&self) -> Option<u64> {
        let plain = self.value.parse::<u64>().ok();
        plain.or_else(|| {
            let number =
                self.value.parse::<f64>().ok().filter(|number| *number >= 0.0 && number.is_finite())?;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is in range")]
            Some(number as u64)
        })
    }
}

/// Where the quotation mark is that ends a label's value.
fn end_of_quoted(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(index, character)| {
        let ends = character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
        ends.then_some(index)
    })
}

fn unescaped(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut characters = value.chars().peekable();
    let next = |characters: &mut Peekable<Chars<'_>>| match characters.next()? {
        '\\' => match characters.next()? {
            'n' => Some('\n'),
            other => Some(other),
        },
        plain => Some(plain),
    };
    Cow::Owned(std::iter::from_fn(|| next(&mut characters)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = r#"# TYPE rabbitmq_build_info untyped
rabbitmq_build_info{rabbitmq_version="4.0.5",prometheus_plugin_version="4.0.5"} 1
rabbitmq_identity_info{rabbitmq_node="rabbit@a",rabbitmq_cluster="c",rabbitmq_cluster_permanent_id="id"} 1
"#;

    fn page(lines: &str) -> Page {
        Page::prometheus(format!("{HEAD}{lines}").as_bytes()).unwrap()
    }

    #[test]
    fn what_is_published_through_several_exchanges_is_one_count() {
        let page = page(
            "rabbitmq_detailed_queue_exchange_messages_published_total{vhost=\"/\",exchange=\"\",queue=\"q\"} 3\n\
             rabbitmq_detailed_queue_exchange_messages_published_total{vhost=\"/\",exchange=\"x\",queue=\"q\"} 4\n\
             rabbitmq_detailed_queue_messages_unacked{vhost=\"/\",queue=\"q\"} 2\n\
             rabbitmq_detailed_queue_messages_acked_total{vhost=\"/\",queue=\"q\"} 1\n\
             rabbitmq_detailed_queue_get_ack_total{vhost=\"/\",queue=\"q\"} 5\n\
             rabbitmq_detailed_queue_head_message_timestamp{vhost=\"/\",queue=\"q\"} NaN\n\
             rabbitmq_detailed_queue_head_message_timestamp{vhost=\"/\",queue=\"r\"} 1.7e9\n",
        );
        let (q, r) = (page.queues["q"], page.queues["r"]);
        assert_eq!((q.published, q.unacked, q.acknowledged, q.head_stamp), (Some(7), Some(2), Some(1), None));
        assert_eq!(r.head_stamp, Some(1_700_000_000));
        assert_eq!(page.node.as_deref(), Some("rabbit@a of id"));
        assert!(page.counts_publishing);
    }

    #[test]
    fn a_queue_may_be_called_anything() {
        let page = page(
            "rabbitmq_detailed_queue_messages_unacked{vhost=\"/\",queue=\"a\\\"b\\\\c},queue=\\n\"} 2\n\
             rabbitmq_detailed_queue_messages_unacked{vhost=\"queue=\\\"x\\\"\",queue=\"größer {1}\"} 3\n",
        );
        assert_eq!(page.queues["a\"b\\c},queue=\n"].unacked, Some(2));
        assert_eq!(page.queues["größer {1}"].unacked, Some(3));
    }

    #[test]
    fn an_older_broker_counts_no_publishing_and_a_newer_one_does_before_the_first_message() {
        let older = HEAD.replace("4.0.5", "3.10.8");
        assert!(!Page::prometheus(older.as_bytes()).unwrap().counts_publishing);
        assert!(page("").counts_publishing);
    }

    #[test]
    fn something_else_is_refused() {
        for body in [&b"<html>"[..], b"", b"\xff", b"up 1\n"] {
            assert!(Page::prometheus(body).is_err());
            assert!(Page::management(body).is_err());
        }
        assert!(Page::management(br#"{"error":"not_authorised"}"#).is_err());
    }

    #[test]
    fn the_management_plugin_leaves_out_what_it_does_not_know() {
        let page = Page::management(
            br#"[{"name":"q","messages_unacknowledged":2,"message_stats":{"publish":7,"ack":5},
                  "head_message_timestamp":1700000000,"type":"classic"},
                 {"name":"r","head_message_timestamp":""}, {"name":"s","head_message_timestamp":null}]"#,
        );
        let page = page.unwrap();
        let q = page.queues["q"];
        assert_eq!((q.published, q.acknowledged, q.unacked), (Some(7), Some(5), Some(2)));
        assert_eq!(q.head_stamp, Some(1_700_000_000));
        assert_eq!(page.queues["r"], Counts::default());
        assert_eq!(page.queues["s"], Counts::default());
    }
}
