//! Publishing with confirms in a window, unroutable messages told apart by their id.
//!
//! Attribution. The broker sends the return of an unroutable message before that message's ack, but names
//! it by its properties only. lapin keeps the returns in a FIFO queue and hands the first one to whichever
//! confirm it resolves next, so a return may sit on the confirm of another message. Two things hold all the
//! same, because every resolved confirm takes one return out of the FIFO while there is one:
//!
//! 1. The FIFO never holds more returns than there are unroutable messages without a resolved confirm. So
//!    when every confirm of a window is resolved it is empty: each return of the window sits on one of the
//!    window's confirms, and who was returned is known by the ids of the returned messages.
//! 2. An ack that carries no return found the FIFO empty. Its own message's return, had there been one, came
//!    before it and was taken by a confirm that was resolved earlier, where we see it.
//!
//! Hence a window is sent as a whole and judged when all of its confirms are in (1). If the connection ends
//! before that, a message is known to be confirmed by (2) only; the others are unknown.

use std::{collections::HashSet, time::Duration};

use futures_util::FutureExt;
use lapin::{Confirmation, ConnectionStatus, PublisherConfirm, options::BasicPublishOptions};
use mayfly_service::{DeadlineExceeded, deadline};
use tokio::time::Instant;

use crate::{CALL_LIMIT, Connection, Error, Outgoing, Result, message::short};

/// How long the broker may show no sign of progress while it does not say that it is blocked.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// How often we look whether the broker blocks us while we wait for it.
const BLOCK_CHECK: Duration = Duration::from_millis(100);

/// What became of a published message, definitely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// The broker has it, safely.
    Confirmed,
    /// No such queue: the broker returned it.
    Unroutable,
    /// The broker did not take it (queue full).
    Nacked,
}

/// What became of a batch.
#[derive(Debug)]
pub struct BatchReport {
    /// One for each message, in their order. `None`: its fate is unknown, so publish it again, with the same
    /// id.
    pub receipts: Vec<Option<Receipt>>,
    /// Why some are unknown. The publisher is of no further use then.
    pub interrupted: Option<Error>,
}

/// A channel in confirm mode with at most `window` unconfirmed messages. Use a connection of its own: a
/// blocked publishing connection must not hold up acks.
#[derive(Debug)]
pub struct Publisher {
    channel: crate::Channel,
    connection: ConnectionStatus,
    window: usize,
    /// A confirm is still out. It could take the return of a later message, so none may be sent.
    unsettled: bool,
}

/// Waits for the broker as long as it makes progress, or says that it is blocked, within `blocked_for`.
struct Patience<'a> {
    connection: &'a ConnectionStatus,
    blocked_for: Duration,
    blocked_since: Option<Instant>,
}

/// A resolved confirm.
struct Resolved {
    ack: bool,
    /// Queue and id of the return that it carries: not necessarily its own message's.
    returned: Option<(String, String)>,
}

// === impl Publisher ===

impl Publisher {
    /// Opens a channel in confirm mode.
    ///
    /// # Errors
    /// `Lost` or `Deadline`.
    pub async fn open(connection: &Connection, window: usize) -> Result<Self> {
        let channel = connection.channel().await?;
        channel.confirm_select().await?;
        Ok(Self { channel, connection: connection.status().clone(), window: window.max(1), unsettled: false })
    }

    /// Publishes one message (mandatory, persistent) and waits for its confirm. After any error but
    /// `Unroutable` and `Nacked` the publisher is of no further use.
    ///
    /// # Errors
    /// `Unroutable`, `Nacked`, `Forbidden`, `Refused`, `Blocked`, `Lost` or `Deadline`; after the last three
    /// its fate is unknown.
    pub async fn publish_one(&mut self, message: &Outgoing) -> Result<()> {
        let mut receipt = [None];
        self.publish_window(std::slice::from_ref(message), &mut receipt, CALL_LIMIT).await?;
        let (queue, message_id) = (message.queue.clone(), message.message_id.clone());
        match receipt[0] {
            Some(Receipt::Confirmed) => Ok(()),
            Some(Receipt::Unroutable) => Err(Error::Unroutable { queue, message_id }),
            Some(Receipt::Nacked) => Err(Error::Nacked { queue, message_id }),
            None => Err(Error::Lost { what: "publish", source: None }),
        }
    }

    /// Publishes `messages`, a window at a time, and waits for all confirms. Their ids should differ. While
    /// the broker blocks publishing ([`Connection::is_blocked`]) it is waited for, up to `blocked_for`.
    pub async fn publish_batch(&mut self, messages: &[Outgoing], blocked_for: Duration) -> BatchReport {
        let mut receipts = vec![None; messages.len()];
        let mut interrupted = None;
        for (messages, receipts) in messages.chunks(self.window).zip(receipts.chunks_mut(self.window)) {
            if let Err(error) = self.publish_window(messages, receipts, blocked_for).await {
                interrupted = Some(error);
                break;
            }
        }
        BatchReport { receipts, interrupted }
    }

    /// Sends all of `messages`, then waits for all confirms.
    async fn publish_window(
        &mut self,
        messages: &[Outgoing],
        receipts: &mut [Option<Receipt>],
        blocked_for: Duration,
    ) -> Result<()> {
        if self.unsettled {
            return Err(Error::Lost { what: "publish", source: None });
        }
        // Set also for the case that the caller drops this future half-way.
        self.unsettled = true;
        let Self { channel, connection, .. } = self;
        let mut patience = Patience { connection, blocked_for, blocked_since: None };
        let mut failure = None;
        let mut confirms = Vec::with_capacity(messages.len());
        for message in messages {
            match patience.wait(message, send(channel, message)).await {
                Ok(confirm) => confirms.push(confirm),
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let mut resolved = Vec::with_capacity(messages.len());
        for (confirm, message) in confirms.into_iter().zip(messages) {
            let Some(confirm) = confirm else {
                // Never sent: no queue can have such a name.
                let returned = Some((message.queue.clone(), message.message_id.clone()));
                resolved.push(Some(Resolved { ack: true, returned }));
                continue;
            };
            // After a failure only what has been resolved before it is of interest.
            let outcome = if failure.is_none() {
                patience.wait(message, confirm).await
            } else {
                match confirm.now_or_never() {
                    Some(Ok(confirmation)) => Ok(confirmation),
                    Some(Err(source)) => Err(Error::publish(&message.queue, source)),
                    None => Err(Error::Lost { what: "publish", source: None }),
                }
            };
            match outcome {
                Ok(confirmation) => resolved.push(Some(Resolved::from(confirmation))),
                Err(error) => {
                    resolved.push(None);
                    // Why the broker closed the channel says more than that it is closed.
                    if failure.as_ref().is_none_or(|known| known.is_transient() && !error.is_transient()) {
                        failure = Some(error);
                    }
                }
            }
        }
        judge(messages, &resolved, receipts);
        if let Some(error) = failure {
            return Err(error);
        }
        self.unsettled = false;
        Ok(())
    }
}

/// Writes one message; its confirm is the inner future. `None`: its queue cannot exist.
async fn send(channel: &crate::Channel, message: &Outgoing) -> lapin::Result<Option<PublisherConfirm>> {
    let Some(queue) = short(&message.queue) else { return Ok(None) };
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = message.properties.clone();
    channel.raw().basic_publish("".into(), queue, options, &message.body, properties).await.map(Some)
}

/// Tells what became of each message, see the module's documentation. `resolved` may be shorter than
/// `messages` or have gaps, if the connection ended.
fn judge(messages: &[Outgoing], resolved: &[Option<Resolved>], receipts: &mut [Option<Receipt>]) {
    let complete = resolved.len() == messages.len() && resolved.iter().all(Option::is_some);
    let returned: HashSet<(&str, &str)> = resolved
        .iter()
        .flatten()
        .filter_map(|confirm| confirm.returned.as_ref())
        .map(|(queue, id)| (queue.as_str(), id.as_str()))
        .collect();
    for ((message, confirm), receipt) in messages.iter().zip(resolved).zip(receipts) {
        *receipt = match confirm {
            _ if returned.contains(&(message.queue.as_str(), message.message_id.as_str())) => {
                Some(Receipt::Unroutable)
            }
            Some(Resolved { ack: false, .. }) => Some(Receipt::Nacked),
            Some(Resolved { returned, .. }) if complete || returned.is_none() => Some(Receipt::Confirmed),
            _ => None,
        };
    }
}

// === impl Patience ===

impl Patience<'_> {
    async fn wait<T>(
        &mut self,
        message: &Outgoing,
        call: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T> {
        tokio::pin!(call);
        let mut silent_since = None;
        loop {
            match deadline("publish", BLOCK_CHECK, &mut call).await {
                Ok(outcome) => return outcome.map_err(|source| Error::publish(&message.queue, source)),
                Err(_) if self.connection.blocked() => {
                    silent_since = None;
                    let waited = self.blocked_since.get_or_insert_with(Instant::now).elapsed();
                    if waited >= self.blocked_for {
                        return Err(Error::Blocked { waited: self.blocked_for });
                    }
                }
                Err(_) => {
                    self.blocked_since = None;
                    if silent_since.get_or_insert_with(Instant::now).elapsed() >= SILENCE_LIMIT {
                        return Err(DeadlineExceeded { what: "publish", limit: SILENCE_LIMIT }.into());
                    }
                }
            }
        }
    }
}

// === impl Resolved ===

impl From<Confirmation> for Resolved {
    fn from(confirmation: Confirmation) -> Self {
        let ack = confirmation.is_ack();
        let returned = confirmation.take_message().map(|message| {
            let id = message.properties.message_id().as_ref().map_or("", |id| id.as_str());
            (message.routing_key.to_string(), id.to_owned())
        });
        Self { ack, returned }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn message(queue: &str, id: &str) -> Outgoing {
        Outgoing::new(queue, Some(id.to_owned()), "text/plain", BTreeMap::new(), Vec::new())
    }

    const ACK: Resolved = Resolved { ack: true, returned: None };

    fn carrying(ack: bool, queue: &str, id: &str) -> Resolved {
        Resolved { ack, returned: Some((queue.to_owned(), id.to_owned())) }
    }

    fn judged(messages: &[Outgoing], resolved: &[Option<Resolved>]) -> Vec<Option<Receipt>> {
        let mut receipts = vec![None; messages.len()];
        judge(messages, resolved, &mut receipts);
        receipts
    }

    #[test]
    fn a_return_on_the_wrong_confirm_counts_for_the_message_it_names() {
        let messages = [message("q", "1"), message("gone", "2"), message("q", "3")];
        let receipts = judged(&messages, &[Some(ACK), Some(ACK), Some(carrying(true, "gone", "2"))]);
        let expected = [Receipt::Confirmed, Receipt::Unroutable, Receipt::Confirmed];
        assert_eq!(receipts, expected.map(Some));
    }

    #[test]
    fn the_same_id_for_two_queues_is_unroutable_only_where_the_queue_is_missing() {
        let messages = [message("q", "1"), message("gone", "1")];
        let receipts = judged(&messages, &[Some(carrying(true, "gone", "1")), Some(ACK)]);
        assert_eq!(receipts, [Some(Receipt::Confirmed), Some(Receipt::Unroutable)]);
    }

    #[test]
    fn a_refused_message_is_nacked_whatever_return_its_confirm_carries() {
        let messages = [message("full", "1"), message("gone", "2")];
        let receipts = judged(&messages, &[Some(carrying(false, "gone", "2")), Some(ACK)]);
        assert_eq!(receipts, [Some(Receipt::Nacked), Some(Receipt::Unroutable)]);
    }

    /// Message 2's own return may be the one that was still on its way when the connection ended.
    #[test]
    fn after_a_cut_only_an_ack_without_a_return_confirms() {
        let messages = ["1", "2", "3", "4"].map(|id| message("q", id));
        let receipts = judged(&messages, &[Some(ACK), Some(carrying(true, "q", "3")), None]);
        assert_eq!(receipts, [Some(Receipt::Confirmed), None, Some(Receipt::Unroutable), None]);
    }
}
