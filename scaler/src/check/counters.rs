//! From what the ages of messages can be told, and how to tell them better.

use std::fmt;

use mayfly_broker::BrokerUrl;
use mayfly_service::{ExitCode, chain};
use serde::Serialize;

use crate::{
    config::{Config, CounterSource},
    observe::counters::{
        endpoint::{Endpoint, Login},
        sum::Sum,
    },
    policy::Why,
    time::Clock,
};

/// What an endpoint offers, or what to do for a better one.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Answer {
    /// Where; absent where none is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    counters: Option<String>,
    #[serde(flatten)]
    offer: Offer,
    #[serde(skip)]
    code: ExitCode,
}

/// What ages are told from.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "ages", rename_all = "snake_case")]
enum Offer {
    /// Looks at the depth alone.
    Looks,
    /// Counters, known as they are now.
    Exact {
        /// Which RabbitMQ answered.
        version: String,
    },
    /// Counters, known as they were some seconds ago.
    Late,
    /// Nothing from there.
    Nothing {
        /// Why.
        detail: String,
    },
}

/// Asks every configured endpoint once.
pub(super) async fn ask(url: &BrokerUrl, config: &Config) -> Vec<Answer> {
    let Some(counters) = &config.counters else {
        return vec![Answer { counters: None, offer: Offer::Looks, code: ExitCode::Ok }];
    };
    let endpoints = match Endpoint::all(counters, url.vhost(), Login::of(url)) {
        Ok(endpoints) => endpoints,
        Err(error) => return vec![Answer::nothing(None, chain(&error), ExitCode::Config)],
    };
    let mut answers = Vec::new();
    let mut pages = Vec::new();
    for endpoint in &endpoints {
        let address = endpoint.address().to_owned();
        match endpoint.page().await {
            Ok(page) => {
                let offer = match counters.source {
                    CounterSource::Prometheus => {
                        Offer::Exact { version: page.version.clone().unwrap_or_default() }
                    }
                    CounterSource::Management => Offer::Late,
                };
                pages.push(page);
                answers.push(Answer { counters: Some(address), offer, code: ExitCode::Ok });
            }
            Err(error) => {
                let gone = error.why() == Why::Unreachable;
                let code = if gone { ExitCode::Unavailable } else { ExitCode::Config };
                answers.push(Answer::nothing(Some(address), chain(&error), code));
            }
        }
    }
    // Only with all pages at hand their numbers are those of the endpoints.
    if pages.len() == endpoints.len()
        && let Err((index, refused)) = Sum::of(pages.len(), []).fold(&pages, Clock::start().now())
        && let Some(answer) = answers.get_mut(index)
    {
        *answer = Answer::nothing(answer.counters.take(), refused.to_string(), ExitCode::Config);
    }
    answers
}

// === impl Answer ===

impl Answer {
    const fn nothing(counters: Option<String>, detail: String, code: ExitCode) -> Self {
        Self { counters, offer: Offer::Nothing { detail }, code }
    }

    /// No answer weighs more than a bad one.
    pub(super) fn exit_code(answers: &[Self]) -> ExitCode {
        let any = |code| answers.iter().any(|answer| answer.code == code);
        [ExitCode::Unavailable, ExitCode::Config].into_iter().find(|code| any(*code)).unwrap_or(ExitCode::Ok)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.counters.as_deref().unwrap_or("configuration");
        match &self.offer {
            Offer::Looks => formatter.write_str(
                "ages: told from looks at the depth, roughly. RabbitMQ 4.0 and later let them be told to the \
                 second: rabbitmq-plugins enable rabbitmq_prometheus, and counters: { prometheus: \
                 \"http://HOST:15692\" }; any version to some seconds: rabbitmq_management, and counters: { \
                 management: \"http://HOST:15672\" }",
            ),
            Offer::Exact { version } => {
                write!(formatter, "counters {address}: RabbitMQ {version}; ages are told to the second")
            }
            Offer::Late => write!(
                formatter,
                "counters {address}: ages are told to some seconds. RabbitMQ 4.0 and later tell them to the \
                 second by counters.prometheus"
            ),
            Offer::Nothing { detail } => {
                write!(formatter, "counters {address}: {detail}; ages are told from looks alone")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_counters_it_says_what_to_switch_on() {
        let answer = Answer { counters: None, offer: Offer::Looks, code: ExitCode::Ok };
        let text = answer.to_string();
        for word in ["rabbitmq_prometheus", "counters: { prometheus: \"http://HOST:15692\" }", "management"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert_eq!(serde_json::to_string(&answer).unwrap(), r#"{"ages":"looks"}"#);
    }

    #[test]
    fn an_endpoint_that_is_away_weighs_more_than_one_that_is_wrong() {
        let answer = |code| Answer::nothing(Some("http://a".to_owned()), "why".to_owned(), code);
        let both = [answer(ExitCode::Config), answer(ExitCode::Unavailable)];
        assert_eq!(Answer::exit_code(&both), ExitCode::Unavailable);
        assert_eq!(Answer::exit_code(&[]), ExitCode::Ok);
        assert_eq!(both[0].to_string(), "counters http://a: why; ages are told from looks alone");
    }
}
