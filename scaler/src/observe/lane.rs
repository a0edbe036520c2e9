//! One channel's part of a look at many queues.

use std::time::Duration;

use mayfly_broker::{Channel, Connection, Depth, Error};
use tokio::time::Instant;

/// The limit of one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// A channel that is used again and again, and replaced when a queue has closed it.
#[derive(Debug, Default)]
pub(super) struct Lane {
    channel: Option<Channel>,
}

/// How questions share a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Sent without waiting for answers: for queues that are known to be there.
    Together,
    /// One by one: for queues that may close the channel, so that none is asked for in vain.
    Alone,
}

/// What was found out about one queue.
#[derive(Debug)]
pub(super) enum Told {
    /// It is there.
    Present(Depth),
    /// It is not.
    Missing,
    /// We may not look at it.
    Forbidden(Error),
    /// The broker answers, but not about this queue.
    Late(Error),
}

/// What a lane brings home: the question's number, when it was sent, and the answer.
pub(super) type Answers<Key> = Vec<(Key, Instant, Told)>;

// === impl Lane ===

impl Lane {
    /// Asks for all of `questions`. Those behind one that is late are left to the next look, and so are those
    /// for which a worn connection has no channel.
    ///
    /// # Errors
    /// What concerns the connection, and so all queues.
    pub(super) async fn ask<Key: Copy>(
        &mut self,
        connection: &Connection,
        mut questions: &[(Key, &str)],
        pace: Pace,
    ) -> Result<Answers<Key>, Error> {
        let mut answers = Vec::with_capacity(questions.len());
        while !questions.is_empty() {
            let channel = match self.channel.take().filter(Channel::is_open) {
                Some(channel) => channel,
                None => match connection.channel().await {
                    Ok(channel) => channel,
                    // The rest is asked for on a fresh connection.
                    Err(_) if connection.is_worn() && connection.is_alive() => break,
                    Err(error) => return Err(error),
                },
            };
            let row = if pace == Pace::Alone { 1 } else { questions.len() };
            let names: Vec<_> = questions.iter().take(row).map(|(_, queue)| *queue).collect();
            let sent = Instant::now();
            let depths = channel.depths(&names, ANSWER_LIMIT).await;
            let found = depths.found.len();
            let keys = questions.iter().map(|(key, _)| *key);
            let present = depths.found.into_iter().map(|(at, depth)| (at, Told::Present(depth)));
            answers.extend(keys.zip(present).map(|(key, (at, told))| (key, at, told)));
            let mut rest = questions.get(found..).unwrap_or_default();
            match (depths.stopped, rest.first()) {
                (None, _) => self.channel = Some(channel),
                (Some(error @ Error::Deadline(_)), Some((key, _))) => {
                    answers.push((*key, sent, Told::Late(error)));
                    break;
                }
                (Some(Error::QueueMissing { .. }), Some((key, _))) => {
                    answers.push((*key, sent, Told::Missing));
                    rest = rest.get(1..).unwrap_or_default();
                }
                (Some(error @ Error::Forbidden { .. }), Some((key, _))) => {
                    answers.push((*key, sent, Told::Forbidden(error)));
                    rest = rest.get(1..).unwrap_or_default();
                }
                (Some(error), _) => return Err(error),
            }
            questions = rest;
        }
        Ok(answers)
    }
}
