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
        Outcome::Retry { reason } => (reason, true),
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
