//! Where a message goes after its handler: pure.

use std::{collections::BTreeMap, num::NonZeroU32};

use mayfly_broker::{Header, Message, Outgoing, Topology, header};

use crate::{handler::Outcome, lifecycle::Verdict};

/// What to do before a message may leave this worker.
#[derive(Debug)]
pub(crate) enum Route {
    /// Nothing.
    Settle(Verdict),
    /// Publish this; once it is confirmed, the verdict holds.
    Forward { message: Box<Outgoing>, verdict: Verdict, reason: String },
}

/// The stored error is cut to this many bytes.
const REASON_LIMIT: usize = 1024;

/// Decides by outcome and attempt. The first try is attempt 1 of `max_attempts`.
pub(crate) fn route(
    message: &Message,
    outcome: Outcome,
    max_attempts: NonZeroU32,
    topology: &Topology,
) -> Route {
    let (reason, may_retry) = match outcome {
        Outcome::Done => return Route::Settle(Verdict::Done),
        Outcome::Interrupted => return Route::Settle(Verdict::Interrupted),
        Outcome::Retry { reason, .. } | Outcome::Crashed { reason } => (reason, true),
        Outcome::DeadLetter { reason } => (reason, false),
    };
    let reason = bounded(&reason);
    let begun = message.attempt().saturating_add(1);
    let retry = (may_retry && begun < max_attempts.get())
        .then(|| topology.retry_queue_for(message.attempt()))
        .flatten();
    let (queue, verdict) = retry
        .map_or_else(|| (topology.dead_queue(), Verdict::DeadLettered), |queue| (queue, Verdict::Retried));
    let headers = BTreeMap::from([
        (header::ATTEMPT.to_owned(), Header::Number(begun.into())),
        (header::ERROR.to_owned(), Header::Text(reason.clone())),
    ]);
    Route::Forward { message: Box::new(message.forward(&queue, headers)), verdict, reason }
}

/// Without control characters, which tools and logs show badly.
fn bounded(reason: &str) -> String {
    let mut line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.truncate(line.floor_char_boundary(REASON_LIMIT));
    line
}

#[cfg(test)]
mod tests {
    use lapin::{BasicProperties, message::Delivery, types::FieldTable};

    use super::*;

    const MAX: NonZeroU32 = NonZeroU32::new(3).unwrap();

    fn begun(attempt: i64) -> Message {
        let mut headers = FieldTable::default();
        headers.insert(header::ATTEMPT.into(), lapin::types::AMQPValue::LongLongInt(attempt));
        let mut delivery = Delivery::mock(1, "".into(), "q".into(), false, b"body".to_vec());
        delivery.properties = BasicProperties::default().with_message_id("id".into()).with_headers(headers);
        Message::from(delivery)
    }

    fn retry() -> Outcome {
        Outcome::retry("exit code 1")
    }

    fn routed(attempt: i64, outcome: Outcome) -> (Option<String>, Verdict) {
        match route(&begun(attempt), outcome, MAX, &Topology::standard("q")) {
            Route::Settle(verdict) => (None, verdict),
            Route::Forward { message, verdict, .. } => {
                assert_eq!((message.message_id.as_str(), &message.body[..]), ("id", &b"body"[..]));
                (Some(message.queue), verdict)
            }
        }
    }

    #[test]
    fn a_failed_message_climbs_the_ladder_until_its_attempts_are_used_up() {
        assert_eq!(routed(0, retry()), (Some("q.retry.5s".to_owned()), Verdict::Retried));
        assert_eq!(routed(1, retry()), (Some("q.retry.30s".to_owned()), Verdict::Retried));
        assert_eq!(routed(2, retry()), (Some("q.dead".to_owned()), Verdict::DeadLettered));
        assert_eq!(routed(i64::MAX, retry()), (Some("q.dead".to_owned()), Verdict::DeadLettered));
    }

    #[test]
    fn what_can_never_succeed_is_dead_lettered_at_once() {
        let hopeless = Outcome::DeadLetter { reason: "exit code 65".to_owned() };
        assert_eq!(routed(0, hopeless), (Some("q.dead".to_owned()), Verdict::DeadLettered));
    }

    #[test]
    fn what_is_done_or_interrupted_goes_nowhere_else() {
        assert_eq!(routed(0, Outcome::Done), (None, Verdict::Done));
        assert_eq!(routed(0, Outcome::Interrupted), (None, Verdict::Interrupted));
    }

    #[test]
    fn a_reason_is_one_line_of_bounded_length() {
        let line = bounded(&"\u{1F980}\n".repeat(1000));
        assert!(line.len() <= REASON_LIMIT && !line.contains('\n'));
    }
}
