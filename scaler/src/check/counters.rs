//! From what the ages of messages can be told, and how to tell them better.

use std::fmt;

use mayfly_broker::{BrokerUrl, CALL_LIMIT, Greeting};
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

/// How to have the Prometheus endpoint …
macro_rules! prometheus {
    () => {
        "rabbitmq-plugins enable rabbitmq_prometheus, and counters: { prometheus: \"http://HOST:15692\" }"
    };
}

/// … and the management plugin, which also tells the stamp of the head message.
macro_rules! management {
    () => {
        "rabbitmq-plugins enable rabbitmq_management, and counters: { management: \"http://HOST:15672\" }, which also \
         tells the publisher's stamp of the first message in a classic queue"
    };
}

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
    Looks {
        /// What the broker could count them by.
        better: Better,
    },
    /// Counters, known as they are now.
    Exact {
        /// Which RabbitMQ answered.
        version: String,
    },
    /// Counters, known as they were some seconds ago.
    Late {
        /// What the broker could count them by.
        better: Better,
    },
    /// Nothing from there.
    Nothing {
        /// Why.
        detail: String,
    },
}

/// The best source of counters that a release has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Better {
    /// The Prometheus endpoint counts by queue: RabbitMQ 4.0 and later.
    Prometheus,
    /// It does not: the management plugin does.
    Management,
    /// Nobody knows the release.
    Unknown,
}

/// Which broker it is, as it says itself.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Release {
    product: String,
    version: String,
    #[serde(skip)]
    better: Better,
}

/// Asks every configured endpoint once; `release` is the broker's.
pub(super) async fn ask(url: &BrokerUrl, config: &Config, release: Option<&Release>) -> Vec<Answer> {
    let better = release.map_or(Better::Unknown, |release| release.better);
    let Some(counters) = &config.counters else {
        return vec![Answer { counters: None, offer: Offer::Looks { better }, code: ExitCode::Ok }];
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
                    CounterSource::Management => Offer::Late { better },
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

// === impl Release ===

impl Release {
    /// What the broker says; `None` where it says nothing that helps.
    pub(super) async fn ask(url: &BrokerUrl) -> Option<Self> {
        match Greeting::read(url, CALL_LIMIT).await {
            Ok(greeting) => Some(greeting.into()),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "the broker does not say which release it is");
                None
            }
        }
    }
}

impl From<Greeting> for Release {
    fn from(greeting: Greeting) -> Self {
        let better = match greeting.major() {
            Some(major) if greeting.product == "RabbitMQ" && major >= 4 => Better::Prometheus,
            Some(_) if greeting.product == "RabbitMQ" => Better::Management,
            _ => Better::Unknown,
        };
        let Greeting { product, version } = greeting;
        Self { product, version, better }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "broker: {} {}", self.product, self.version)
    }
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
            Offer::Looks { better } => {
                formatter.write_str("ages: told from looks at the depth, roughly. ")?;
                formatter.write_str(match better {
                    Better::Prometheus => {
                        concat!("This release lets them be told to the second: ", prometheus!())
                    }
                    Better::Management => concat!(
                        "This release lets them be told to some seconds: ",
                        management!(),
                        "; to the second only RabbitMQ 4.0 and later"
                    ),
                    Better::Unknown => concat!(
                        "RabbitMQ 4.0 and later let them be told to the second: ",
                        prometheus!(),
                        "; any version to some seconds: ",
                        management!()
                    ),
                })
            }
            Offer::Exact { version } => {
                write!(formatter, "counters {address}: RabbitMQ {version}; ages are told to the second")
            }
            Offer::Late { better } => {
                write!(formatter, "counters {address}: ages are told to some seconds")?;
                formatter.write_str(match better {
                    Better::Prometheus => concat!(". This release tells them to the second: ", prometheus!()),
                    Better::Management => ", the best that this release offers",
                    Better::Unknown => {
                        ". RabbitMQ 4.0 and later tell them to the second by counters.prometheus"
                    }
                })?;
                formatter.write_str(
                    ". What waited before the scaler came has an age in classic queues whose publishers stamp messages",
                )
            }
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
    fn without_counters_it_says_what_to_switch_on_in_this_release() {
        let answer = |product: &str, version: &str| {
            let greeting = Greeting { product: product.to_owned(), version: version.to_owned() };
            let better = Release::from(greeting).better;
            Answer { counters: None, offer: Offer::Looks { better }, code: ExitCode::Ok }
        };
        let advised = |product: &str, version: &str| {
            let text = answer(product, version).to_string();
            (
                text.contains("prometheus: \"http://HOST:15692\""),
                text.contains("management: \"http://HOST:15672\""),
            )
        };
        assert_eq!(advised("RabbitMQ", "4.0.5"), (true, false));
        assert_eq!(advised("RabbitMQ", "4.3.0-rc.1"), (true, false));
        assert_eq!(advised("RabbitMQ", "3.10.8"), (false, true));
        assert_eq!(advised("RabbitMQ", "unversioned"), (true, true));
        assert_eq!(advised("LavinMQ", "2.1.0"), (true, true));
        let json = serde_json::to_string(&answer("RabbitMQ", "3.13.0")).unwrap();
        assert_eq!(json, r#"{"ages":"looks","better":"management"}"#);
    }

    #[test]
    fn with_late_counters_it_says_whether_this_release_has_better_ones() {
        let told = |better| {
            let offer = Offer::Late { better };
            Answer { counters: Some("http://a".to_owned()), offer, code: ExitCode::Ok }.to_string()
        };
        assert!(told(Better::Prometheus).contains("This release tells them to the second: rabbitmq-plugins"));
        assert!(told(Better::Management).contains("the best that this release offers"));
        assert!(told(Better::Unknown).contains("RabbitMQ 4.0 and later"));
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
