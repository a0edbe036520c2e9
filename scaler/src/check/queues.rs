//! Asks the broker for every configured queue.

use std::fmt;

use mayfly_broker::{BrokerUrl, CALL_LIMIT, Connection, Depth, Error, QueueState};
use mayfly_service::ExitCode;
use serde::Serialize;

use crate::config::Config;

/// What the broker said about one queue.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Answer {
    queue: String,
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

/// Asks for every queue in turn, each on a channel of its own: a refusal closes it.
///
/// # Errors
/// When the broker as a whole cannot be used.
pub(super) async fn ask(url: &BrokerUrl, config: &Config) -> Result<Vec<Answer>, Error> {
    let connection = Connection::open(url, &format!("{} check", config.instance), CALL_LIMIT).await?;
    let mut answers = Vec::new();
    for queue in config.pools.iter().flat_map(|pool| &pool.queues) {
        let state = match connection.channel().await {
            Ok(channel) => channel.depth(queue, CALL_LIMIT).await,
            Err(error) => Err(error),
        };
        answers.push(Answer::of(queue, state));
    }
    // Everything was answered; a close that fails changes nothing.
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "connection not closed in order");
    }
    Ok(answers)
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
        Self { queue: queue.to_owned(), state, code }
    }

    /// No answer weighs more than a bad one.
    pub(super) fn exit_code(answers: &[Self]) -> ExitCode {
        let any = |code| answers.iter().any(|answer| answer.code == code);
        [ExitCode::Unavailable, ExitCode::Config].into_iter().find(|code| any(*code)).unwrap_or(ExitCode::Ok)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue, state, .. } = self;
        match state {
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
    fn an_answer_is_one_flat_object() {
        let there = Answer::of("a", Ok(QueueState::Present(Depth { ready: 3, consumers: 1 })));
        assert_eq!(
            serde_json::to_string(&there).unwrap(),
            r#"{"queue":"a","state":"present","ready":3,"consumers":1}"#
        );
        assert_eq!(there.to_string(), "queue a: there; 3 messages wait, 1 consumers");
    }
}
