//! Asks the broker for every configured queue.

use std::fmt;

use mayfly_broker::{BrokerUrl, CALL_LIMIT, Connection, Depth, Error, QueueState, suspect_queue};
use mayfly_service::ExitCode;
use serde::Serialize;

use crate::{
    config::Config,
    observe::{most_refused, too_few_channels},
};

/// What the broker said about one queue.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Answer {
    queue: String,
    /// Of which queue the suspects wait in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    suspects_of: Option<String>,
    #[serde(flatten)]
    state: State,
    #[serde(skip)]
    code: ExitCode,
}

/// What a queue's state is.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum State {
    /// It exists.
    Present {
        /// Messages waiting.
        ready: u64,
        /// Registered consumers.
        consumers: u64,
    },
    /// It does not exist.
    Missing,
    /// We may not look at it.
    Forbidden {
        /// What the broker said.
        detail: String,
    },
    /// No answer.
    Unreachable {
        /// What happened instead.
        detail: String,
    },
}

/// What the broker said.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) queues: Vec<Answer>,
    pub(super) channels: Option<FewChannels>,
}

/// A connection cannot have as many channels as there may be queues that close one each.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct FewChannels {
    channels: u16,
    /// So many queues that are missing or forbidden are still looked at in time.
    refused: usize,
}

/// Asks for every queue and its suspects in turn, each on a channel of its own: a refusal closes it.
///
/// # Errors
/// When the broker as a whole cannot be used.
pub(super) async fn ask(url: &BrokerUrl, config: &Config) -> Result<Answers, Error> {
    let connect = async || Connection::open(url, &format!("{} check", config.instance), CALL_LIMIT).await;
    let mut connection = connect().await?;
    let channels = connection.most_channels();
    if let Some(error) = too_few_channels(&connection, url) {
        return Err(error);
    }
    let mut answers = Vec::new();
    let mut depth = async |queue: &str| {
        let channel = match connection.channel().await {
            // Refusals have used up all channels.
            Err(_) if connection.is_worn() => {
                std::mem::replace(&mut connection, connect().await?).close().await?;
                connection.channel().await?
            }
            channel => channel?,
        };
        channel.depth(queue, CALL_LIMIT).await
    };
    for queue in config.pools.iter().flat_map(|pool| &pool.queues) {
        answers.push(Answer::of(queue, depth(queue).await));
        // A queue that is missing is created with the one for its suspects.
        if !matches!(answers.last(), Some(Answer { state: State::Missing, .. })) {
            answers.push(Answer::of_suspects(queue, depth(&suspect_queue(queue)).await));
        }
    }
    // Everything was answered; a close that fails changes nothing.
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "connection not closed in order");
    }
    Ok(Answers {
        channels: FewChannels::of(channels, config.pools.iter().map(|pool| pool.queues.len()).sum()),
        queues: answers,
    })
}

// === impl FewChannels ===

impl FewChannels {
    /// `None` where that many `queues` may be missing without harm.
    fn of(channels: u16, queues: usize) -> Option<Self> {
        let refused = most_refused(channels);
        (queues > refused).then_some(Self { channels, refused })
    }
}

impl fmt::Display for FewChannels {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { channels, refused } = self;
        write!(
            formatter,
            "connection: {channels} channels at most (channel_max); more than {refused} queues that are missing \
             or forbidden are seen later than 10 s after they come"
        )
    }
}

// === impl Answer ===

impl Answer {
    fn of(queue: &str, state: Result<QueueState, Error>) -> Self {
        let (state, code) = match state {
            Ok(QueueState::Present(Depth { ready, consumers })) => {
                (State::Present { ready, consumers }, ExitCode::Ok)
            }
            Ok(QueueState::Missing) => (State::Missing, ExitCode::Config),
            Err(error) => {
                let code = error.exit_code();
                let forbidden = matches!(error, Error::Forbidden { .. });
                let detail = format!("{:#}", anyhow::Error::from(error));
                (if forbidden { State::Forbidden { detail } } else { State::Unreachable { detail } }, code)
            }
        };
        Self { queue: queue.to_owned(), suspects_of: None, state, code }
    }

    /// What the broker says about `Q.suspect`; a missing one is no mistake.
    fn of_suspects(queue: &str, state: Result<QueueState, Error>) -> Self {
        let answer = Self::of(&suspect_queue(queue), state);
        let code = if answer.state == State::Missing { ExitCode::Ok } else { answer.code };
        Self { suspects_of: Some(queue.to_owned()), code, ..answer }
    }

    /// No answer weighs more than a bad one.
    pub(super) fn exit_code(answers: &[Self]) -> ExitCode {
        let any = |code| answers.iter().any(|answer| answer.code == code);
        [ExitCode::Unavailable, ExitCode::Config].into_iter().find(|code| any(*code)).unwrap_or(ExitCode::Ok)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue, suspects_of, state, .. } = self;
        match state {
            State::Present { ready, .. } if suspects_of.is_some() => {
                write!(formatter, "queue {queue}: there; {ready} messages wait whose worker died")
            }
            State::Missing if let Some(of) = suspects_of => write!(
                formatter,
                "queue {queue}: missing; messages whose worker died stay in {of}, and one that kills every \
                 worker is never told from the others (mayfly-publisher declare {of} creates it)"
            ),
            State::Present { ready, consumers } => {
                write!(formatter, "queue {queue}: there; {ready} messages wait, {consumers} consumers")
            }
            State::Missing => write!(
                formatter,
                "queue {queue}: missing; no worker is launched before it exists \
                 (mayfly-publisher declare {queue} creates it)"
            ),
            State::Forbidden { detail } => write!(formatter, "queue {queue}: forbidden; {detail}"),
            State::Unreachable { detail } => write!(formatter, "queue {queue}: no answer; {detail}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_weighs_more_than_a_missing_queue_and_that_more_than_a_good_one() {
        let there = || Answer::of("a", Ok(QueueState::Present(Depth { ready: 3, consumers: 0 })));
        let missing = || Answer::of("b", Ok(QueueState::Missing));
        let lost = || Answer::of("c", Err(Error::Lost { what: "read queue depth", source: None }));
        assert_eq!(Answer::exit_code(&[there()]), ExitCode::Ok);
        assert_eq!(Answer::exit_code(&[there(), missing()]), ExitCode::Config);
        assert_eq!(Answer::exit_code(&[lost(), missing(), there()]), ExitCode::Unavailable);
    }

    #[test]
    fn a_missing_queue_for_suspects_is_told_and_no_mistake() {
        let missing = Answer::of_suspects("a", Ok(QueueState::Missing));
        assert!(missing.to_string().starts_with("queue a.suspect: missing; "), "{missing}");
        assert_eq!(Answer::exit_code(&[missing]), ExitCode::Ok);
        let there = Answer::of_suspects("a", Ok(QueueState::Present(Depth { ready: 3, consumers: 0 })));
        assert_eq!(there.to_string(), "queue a.suspect: there; 3 messages wait whose worker died");
    }

    #[test]
    fn an_answer_is_one_flat_object() {
        let there = Answer::of("a", Ok(QueueState::Present(Depth { ready: 3, consumers: 1 })));
        assert_eq!(
            serde_json::to_string(&there).unwrap(),
            r#"{"queue":"a","state":"present","ready":3,"consumers":1}"#
        );
        assert_eq!(there.to_string(), "queue a: there; 3 messages wait, 1 consumers");
    }
}
