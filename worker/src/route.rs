//! Where a message goes before and after its handler: pure.

use std::{collections::BTreeMap, num::NonZeroU32};

use mayfly_broker::{Header, Message, Outgoing, Topology, header};

use crate::{
    handler::Outcome,
    lifecycle::Verdict,
    suspect::{Course, DEATHS_LIMIT, Entry, died, entry},
};

/// The queues that a message may go to, and when.
#[derive(Debug, Clone)]
pub(crate) struct Routes {
    pub(crate) topology: Topology,
    pub(crate) max_attempts: NonZeroU32,
    /// Where messages go that brought down their workers, instead of the dead-letter queue.
    pub(crate) quarantine: Option<String>,
}

/// Under which circumstances a message is worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) course: Course,
    /// There is a suspect queue.
    pub(crate) has_suspects: bool,
    /// Message after message fails, so none is dead-lettered: it is probably not they who are broken.
    pub(crate) is_braked: bool,
}

/// What to do before a message may leave this worker.
#[derive(Debug)]
pub(crate) enum Route {
    /// Nothing.
    Settle(Verdict),
    /// Publish this; once it is confirmed, the verdict holds.
    Forward(Forward),
}

/// A message on its way to another queue.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) message: Box<Outgoing>,
    pub(crate) verdict: Verdict,
    /// Why, for people.
    pub(crate) reason: String,
}

/// The stored error is cut to this many bytes.
const REASON_LIMIT: usize = 1024;
/// The broker adds headers to what comes back from a queue (`x-death` with an entry per rung of the ladder, counts
/// of deliveries), and they must go into the same frame: names of queues, up to twelve times, have 255 bytes each.
const SPARE: usize = 4096;

/// Why a message is in the dead-letter queue ([`header::REASON`]).
mod dead {
    pub(super) const REJECTED: &str = "rejected";
    pub(super) const ATTEMPTS: &str = "attempts";
    pub(super) const SUSPECT: &str = "suspect";
    pub(super) const HEADERS: &str = "headers";
}

// === impl Routes ===

impl Routes {
    /// Where `message` goes instead of to its handler, if it does.
    pub(crate) fn before(&self, message: &Message, place: Place) -> Option<Forward> {
        let reason = match place.course {
            Course::Queue => "somebody died or lost the connection while holding it",
            Course::Suspects => "its worker died or lost the connection while it alone was in work",
        };
        self.suspected(entry(message, place.course, place.has_suspects), message, place, reason)
    }

    /// Where `message` goes after its handler. The first try is attempt 1 of `max_attempts`.
    pub(crate) fn after(&self, message: &Message, outcome: Outcome, place: Place) -> Route {
        let begun = message.attempt().saturating_add(1);
        let (reason, why, retry) = match outcome {
            Outcome::Done => return Route::Settle(Verdict::Done),
            Outcome::Interrupted => return Route::Settle(Verdict::Interrupted),
            Outcome::Crashed { reason } => {
                let accused = match place.course {
                    Course::Queue if place.has_suspects => Entry::Suspect { deaths: message.deaths() },
                    Course::Queue => Entry::Work,
                    Course::Suspects => died(message),
                };
                if let Some(Forward { verdict, message, reason }) =
                    self.suspected(accused, message, place, &reason)
                {
                    let verdict = if verdict == Verdict::Suspected { Verdict::Crashed } else { verdict };
                    return Route::Forward(Forward { message, verdict, reason });
                }
                (reason, dead::ATTEMPTS, self.topology.retry_queue_for(message.attempt()))
            }
            Outcome::Retry { reason, after: None } => {
                (reason, dead::ATTEMPTS, self.topology.retry_queue_for(message.attempt()))
            }
            Outcome::Retry { reason, after: Some(after) } => {
                (reason, dead::ATTEMPTS, self.topology.retry_queue_after(after))
            }
            Outcome::DeadLetter { reason } => (reason, dead::REJECTED, None),
        };
        let reason = bounded(&reason);
        let mut headers = BTreeMap::from([(header::ERROR.to_owned(), Header::Text(reason.clone()))]);
        let retry = retry.filter(|_| begun < self.max_attempts.get());
        let (queue, verdict, attempt) = match (retry, self.longest_retry().filter(|_| place.is_braked)) {
            (Some(retry), _) => (retry, Verdict::Retried, begun),
            // As if it had not been tried.
            (None, Some(longest)) => (longest, Verdict::Retried, message.attempt()),
            (None, None) => {
                headers.insert(header::REASON.to_owned(), Header::Text(why.to_owned()));
                (self.topology.dead_queue(), Verdict::DeadLettered, begun)
            }
        };
        headers.insert(header::ATTEMPT.to_owned(), Header::Number(attempt.into()));
        Route::Forward(Forward { message: Box::new(message.forward(&queue, headers)), verdict, reason })
    }

    /// Where `message` waits while somebody else works on it. It was not tried.
    pub(crate) fn deferred(&self, message: &Message, course: Course) -> Option<Forward> {
        let queue = match course {
            Course::Queue => self.topology.retry_queue_for(0)?,
            Course::Suspects => self.topology.suspect_queue(),
        };
        let message = Box::new(message.forward(&queue, BTreeMap::new()));
        let reason = "claimed by another worker".to_owned();
        Some(Forward { message, verdict: Verdict::Deferred, reason })
    }

    /// The same message for the suspect queue, as if nobody had taken it from there.
    pub(crate) fn back_to_suspects(&self, message: &Message) -> Outgoing {
        message.forward(&self.topology.suspect_queue(), BTreeMap::new())
    }

    /// How much of its headers' frame must stay free.
    pub(crate) fn spare(&self, forward: &Forward) -> usize {
        if forward.message.queue == self.topology.dead_queue() { 0 } else { SPARE }
    }

    /// `forward` with less in its headers, after they did not fit into a frame: first without the error, then in
    /// the dead-letter queue, without anything of ours, and at last without any of its own. False: there is
    /// nothing to leave out, or it must not end because it is large.
    pub(crate) fn shrink(&self, forward: &mut Forward) -> bool {
        let Forward { message, verdict, reason } = forward;
        if message.remove_headers(&[header::ERROR]) {
            return true;
        }
        let is_dead = message.queue == self.topology.dead_queue();
        if !is_dead {
            if *verdict == Verdict::Deferred {
                return false;
            }
            message.queue = self.topology.dead_queue();
            *verdict = Verdict::DeadLettered;
        } else if message.remove_headers(&[header::REASON, header::ATTEMPT, header::DEATHS]) {
            return true;
        } else if !message.clear_headers() {
            return false;
        }
        let error =
            if is_dead { format!("no frame has room for its headers: {reason}") } else { reason.clone() };
        message.set_header(header::REASON, Header::Text(dead::HEADERS.to_owned()));
        message.set_header(header::ERROR, Header::Text(error));
        true
    }

    fn longest_retry(&self) -> Option<String> {
        self.topology.retry_queue_after(std::time::Duration::MAX)
    }

    fn suspected(&self, entry: Entry, message: &Message, place: Place, reason: &str) -> Option<Forward> {
        let reason = bounded(reason);
        let (deaths, is_isolated) = match entry {
            Entry::Work => return None,
            Entry::Suspect { deaths } => (deaths, false),
            Entry::Isolate { .. } if place.is_braked => (DEATHS_LIMIT - 1, false),
            Entry::Isolate { deaths } => (deaths, true),
        };
        let mut headers = BTreeMap::from([
            (header::DEATHS.to_owned(), Header::Number(deaths.into())),
            (header::ERROR.to_owned(), Header::Text(reason.clone())),
        ]);
        let (queue, verdict) = if is_isolated {
            headers.insert(header::REASON.to_owned(), Header::Text(dead::SUSPECT.to_owned()));
            if self.quarantine.is_some() {
                // It begins anew there.
                headers.insert(header::DEATHS.to_owned(), Header::Number(0));
            } else {
                // Each of its workers had begun it.
                let begun = message.attempt().saturating_add(deaths);
                headers.insert(header::ATTEMPT.to_owned(), Header::Number(begun.into()));
            }
            (self.quarantine.clone().unwrap_or_else(|| self.topology.dead_queue()), Verdict::DeadLettered)
        } else {
            (self.topology.suspect_queue(), Verdict::Suspected)
        };
        Some(Forward { message: Box::new(message.forward(&queue, headers)), verdict, reason })
    }
}

/// Without control characters, which tools and logs show badly.
fn bounded(reason: &str) -> String {
    let mut line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.truncate(line.floor_char_boundary(REASON_LIMIT));
    line
}

#[cfg(test)]
mod tests;
