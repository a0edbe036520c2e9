//! What became of the messages, by id.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use mayfly_broker::{Outgoing, Receipt};
use mayfly_service::ExitCode;

use crate::failure::Failure;

/// How many ids of a kind are told.
const IDS_TOLD: usize = 10;

/// The account of one run.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Messages that the broker has, safely.
    pub(crate) confirmed: u64,
    /// Messages returned, by the queue that does not exist.
    pub(crate) unroutable: BTreeMap<String, Ids>,
    /// How often a message was sent once more, because its fate was unknown or its queue full.
    pub(crate) sent_again: u64,
    /// Connections opened after the first one.
    pub(crate) reconnects: u64,
}

/// Some ids, of which the first few are kept.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    count: u64,
    first: Vec<String>,
}

/// A batch after its receipts.
#[derive(Debug)]
pub(crate) struct Settled {
    /// Ids that are confirmed now.
    pub(crate) confirmed: Vec<String>,
    /// To be sent (again): unknown or refused.
    pub(crate) rest: Vec<Outgoing>,
    /// The queue of a message among them that was refused because it is full.
    pub(crate) full: Option<String>,
}

/// The end of a run, for its summary.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ending {
    /// Sent, but whether the broker has them is unknown; or refused.
    pub(crate) not_confirmed: u64,
    /// Never sent, where that can be known.
    pub(crate) not_sent: Option<u64>,
    pub(crate) took: Duration,
}

// === impl Tally ===

impl Tally {
    /// Enters the receipts of `batch`.
    pub(crate) fn settle(&mut self, batch: Vec<Outgoing>, receipts: &[Option<Receipt>]) -> Settled {
        let mut settled = Settled { confirmed: Vec::new(), rest: Vec::new(), full: None };
        for (message, receipt) in batch.into_iter().zip(receipts) {
            match receipt {
                Some(Receipt::Confirmed) => settled.confirmed.push(message.message_id),
                Some(Receipt::Unroutable) => {
                    self.unroutable.entry(message.queue).or_default().add(message.message_id);
                }
                Some(Receipt::Nacked) => {
                    settled.full.get_or_insert_with(|| message.queue.clone());
                    settled.rest.push(message);
                }
                None => settled.rest.push(message),
            }
        }
        self.confirmed += settled.confirmed.len() as u64;
        settled
    }

    fn returned(&self) -> u64 {
        self.unroutable.values().map(|ids| ids.count).sum()
    }

    /// One line for people.
    pub(crate) fn as_text(&self, ending: Ending) -> String {
        let Ending { not_confirmed, not_sent, took } = ending;
        let all = self.confirmed + self.returned() + not_confirmed;
        let of = match not_sent {
            Some(not_sent) if all + not_sent != self.confirmed => format!(" of {}", all + not_sent),
            None if all != self.confirmed => format!(" of {all}"),
            _ => String::new(),
        };
        let seconds = took.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = self.confirmed as f64 / seconds.max(1e-9);
        let noun = if self.confirmed == 1 && of.is_empty() { "message" } else { "messages" };
        let mut text = format!("confirmed {}{of} {noun} in {seconds:.1} s ({rate:.0}/s)", self.confirmed);
        for (count, what) in [
            (self.returned(), "unroutable"),
            (not_confirmed, "not confirmed"),
            (not_sent.unwrap_or(0), "not sent"),
            (self.sent_again, "sent again"),
            (self.reconnects, if self.reconnects == 1 { "reconnect" } else { "reconnects" }),
        ] {
            if count > 0 {
                // Writing to a string cannot fail.
                let _ = write!(text, ", {count} {what}");
            }
        }
        text.push('\n');
        text
    }

    /// One object for programs.
    pub(crate) fn as_json(&self, ending: Ending) -> String {
        let unroutable: BTreeMap<_, _> =
            self.unroutable.iter().map(|(queue, ids)| (queue.as_str(), ids.count)).collect();
        let summary = serde_json::json!({
            "confirmed": self.confirmed,
            "unroutable": unroutable,
            "not_confirmed": ending.not_confirmed,
            "not_sent": ending.not_sent,
            "sent_again": self.sent_again,
            "reconnects": self.reconnects,
            "seconds": ending.took.as_secs_f64(),
        });
        format!("{summary}\n")
    }

    /// The refusal to tell if some messages could not be routed.
    pub(crate) fn refusal(&self) -> Option<Failure> {
        let (first, _) = self.unroutable.first_key_value()?;
        let queue = |(queue, ids)| format!("\n  queue {queue:?} does not exist: {ids}");
        let queues = self.unroutable.iter().map(queue).collect::<Vec<_>>().concat();
        let what = format!("{} could not be delivered{queues}", messages(self.returned()));
        Some(Failure::new(ExitCode::Config, what).with_next(format!("mayfly-publisher declare {first}")))
    }
}

// === impl Ids ===

impl Ids {
    pub(crate) fn add(&mut self, id: String) {
        self.count += 1;
        if self.first.len() < IDS_TOLD {
            self.first.push(id);
        }
    }
}

impl FromIterator<String> for Ids {
    fn from_iter<I: IntoIterator<Item = String>>(iter: I) -> Self {
        let mut ids = Self::default();
        iter.into_iter().for_each(|id| ids.add(id));
        ids
    }
}

impl std::fmt::Display for Ids {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, first } = self;
        write!(formatter, "{}", messages(*count))?;
        for id in first {
            write!(formatter, "\n    {id}")?;
        }
        match count - first.len() as u64 {
            0 => Ok(()),
            more => write!(formatter, "\n    and {more} more"),
        }
    }
}

/// `1 message`, `2 messages`.
pub(crate) fn messages(count: u64) -> String {
    if count == 1 { "1 message".to_owned() } else { format!("{count} messages") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(queue: &str, ids: std::ops::Range<u32>) -> Vec<Outgoing> {
        ids.map(|id| Outgoing::new(queue, Some(format!("id-{id}")), "t", BTreeMap::new(), Vec::new()))
            .collect()
    }

    fn ending(not_confirmed: u64, not_sent: Option<u64>) -> Ending {
        Ending { not_confirmed, not_sent, took: Duration::from_millis(2500) }
    }

    #[test]
    fn every_message_is_confirmed_returned_or_kept() {
        let mut tally = Tally::default();
        let receipts = [
            Some(Receipt::Confirmed),
            Some(Receipt::Unroutable),
            Some(Receipt::Nacked),
            None,
            Some(Receipt::Confirmed),
        ];
        let Settled { confirmed, rest, full } = tally.settle(batch("q", 0..5), &receipts);
        assert_eq!(confirmed, ["id-0", "id-4"]);
        assert_eq!(
            rest.iter().map(|message| message.message_id.as_str()).collect::<Vec<_>>(),
            ["id-2", "id-3"]
        );
        assert_eq!(full.as_deref(), Some("q"));
        assert_eq!((tally.confirmed, tally.returned()), (2, 1));
    }

    #[test]
    fn the_summary_tells_what_was_asked_for_and_what_was_reached() {
        let mut tally = Tally { confirmed: 20_000, ..Tally::default() };
        insta::assert_snapshot!(tally.as_text(ending(0, Some(0))), @r"
        confirmed 20000 messages in 2.5 s (8000/s)
        ");
        tally.sent_again = 320;
        tally.reconnects = 1;
        insta::assert_snapshot!(tally.as_text(ending(0, None)), @r"
        confirmed 20000 messages in 2.5 s (8000/s), 320 sent again, 1 reconnect
        ");
        tally.settle(batch("gone", 0..3), &[Some(Receipt::Unroutable); 3]);
        insta::assert_snapshot!(tally.as_text(ending(7, Some(90))), @r"
        confirmed 20000 of 20100 messages in 2.5 s (8000/s), 3 unroutable, 7 not confirmed, 90 not sent, 320 sent again, 1 reconnect
        ");
        insta::assert_snapshot!(tally.as_json(ending(7, None)), @r#"
        {"confirmed":20000,"not_confirmed":7,"not_sent":null,"reconnects":1,"seconds":2.5,"sent_again":320,"unroutable":{"gone":3}}
        "#);
    }

    #[test]
    fn unroutable_messages_are_named_up_to_a_bound() {
        let mut tally = Tally::default();
        assert!(tally.refusal().is_none());
        tally.settle(batch("gone", 0..13), &[Some(Receipt::Unroutable); 13]);
        tally.settle(batch("lost", 20..21), &[Some(Receipt::Unroutable)]);
        insta::assert_snapshot!(tally.refusal().unwrap(), @r#"
        error: 14 messages could not be delivered
          queue "gone" does not exist: 13 messages
            id-0
            id-1
            id-2
            id-3
            id-4
            id-5
            id-6
            id-7
            id-8
            id-9
            and 3 more
          queue "lost" does not exist: 1 message
            id-20
        next: mayfly-publisher declare gone
        "#);
    }
}
