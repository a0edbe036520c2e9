//! What waits in a queue, by passive declare: live, ready messages only.

use std::{collections::VecDeque, task::Poll, time::Duration};

use futures_util::future::maybe_done;
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use mayfly_service::deadline;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{Channel, Error, Result, message::short};

/// What a passive declare says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Depth {
    /// Messages waiting, without those in flight.
    pub ready: u64,
    /// Registered consumers. Before RabbitMQ 4.3 a quorum queue may report it wrongly for a moment.
    pub consumers: u64,
}

/// Whether a queue exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueState {
    /// It does, and holds this.
    Present(Depth),
    /// It does not: a fact, not an error.
    Missing,
}

/// The answers to a row of questions that were sent without waiting for each other's answers.
#[derive(Debug)]
pub struct Depths {
    /// Of the first queues of the row, in their order: when the question was sent, and its answer.
    pub found: Vec<(Instant, Depth)>,
    /// Why the next queue has no answer: `QueueMissing`, `Forbidden`, `Lost` or `Deadline`. Those behind it have
    /// none either, for that reason alone.
    pub stopped: Option<Error>,
}

/// Questions on one channel that wait for their answers at once. More make it no faster, but more of them are
/// asked in vain when one closes the channel.
const PIPELINE: usize = 64;

/// What a passive declare says when the queue exists.
type Answer = lapin::Result<lapin::Queue>;

// === impl Channel ===

impl Channel {
    /// Asks for the depth of `queue`. A missing or forbidden queue closes this channel, and with it fail the
    /// other calls that are under way on it.
    ///
    /// # Errors
    /// `Forbidden`, `Lost` or `Deadline`; a missing queue is `Ok(Missing)`.
    pub async fn depth(&self, queue: &str, limit: Duration) -> Result<QueueState> {
        // A queue with such a name cannot exist.
        let Some(name) = short(queue) else { return Ok(QueueState::Missing) };
        match deadline("read queue depth", limit, self.passive_declare(name)).await? {
            Ok(found) => Ok(QueueState::Present(Depth::of(&found))),
            Err(source) => match Error::queue(queue, "read queue depth", source) {
                Error::QueueMissing { .. } => Ok(QueueState::Missing),
                error => Err(error),
            },
        }
    }

    /// Asks for the depths of `queues` in a row, each answered at most `limit` after the one before. A channel
    /// answers in order, so a queue that is missing or forbidden is the first one without an answer.
    pub async fn depths(&self, queues: &[&str], limit: Duration) -> Depths {
        let mut found = Vec::with_capacity(queues.len());
        let mut unasked = queues.iter();
        let mut asked = VecDeque::new();
        let stopped = loop {
            while asked.len() < PIPELINE
                && let Some(queue) = unasked.next()
            {
                // A queue with such a name cannot exist.
                let mut answer = short(queue).map(|name| Box::pin(maybe_done(self.passive_declare(name))));
                let at = Instant::now();
                if let Some(answer) = &mut answer {
                    // To begin a call is to send it.
                    std::future::poll_fn(|context| Poll::Ready(answer.as_mut().poll(context).is_ready()))
                        .await;
                }
                asked.push_back((*queue, at, answer));
            }
            let Some((queue, at, answer)) = asked.pop_front() else { break None };
            let Some(mut answer) = answer else {
                break Some(Error::QueueMissing { queue: queue.to_owned() });
            };
            if let Err(late) = deadline("read queue depth", limit, answer.as_mut()).await {
                break Some(late.into());
            }
            match answer.as_mut().take_output() {
                Some(Ok(queue)) => found.push((at, Depth::of(&queue))),
                Some(Err(source)) => break Some(Error::queue(queue, "read queue depth", source)),
                None => break Some(Error::Lost { what: "read queue depth", source: None }),
            }
        };
        Depths { found, stopped }
    }

    fn passive_declare(&self, name: lapin::types::ShortString) -> impl Future<Output = Answer> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        self.raw().queue_declare(name, options, FieldTable::default())
    }
}

// === impl Depth ===

impl Depth {
    fn of(queue: &lapin::Queue) -> Self {
        Self { ready: queue.message_count().into(), consumers: queue.consumer_count().into() }
    }
}
