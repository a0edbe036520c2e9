//! Asks the API server for what the scaler needs there: templates, the state record, permissions.

use std::{error::Error, fmt};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use mayfly_service::{ExitCode, chain};
use serde::Serialize;

use crate::{
    cluster::{CallError, Cluster},
    config::Config,
    launcher::{KubernetesLauncher, LaunchError},
    state::{ConfigMapState, StateError, StateStore},
};

/// What the scaler must be allowed: group, resource, verbs.
const NEEDED: [(&str, &str, &[&str]); 5] = [
    ("batch", "jobs", &["create", "get", "list", "delete"]),
    ("batch", "cronjobs", &["get"]),
    ("", "pods", &["list", "delete"]),
    ("", "events", &["list", "create"]),
    ("", "configmaps", &["get", "update"]),
];

/// What the API server said about one thing.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Answer {
    what: String,
    state: State,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

/// What the state of a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// As it should be.
    Fine,
    /// Not as it should be.
    Wrong,
    /// No answer.
    Unreachable,
}

/// Asks for everything in turn.
pub(super) async fn ask(cluster: &Cluster, config: &Config) -> Vec<Answer> {
    let state = ConfigMapState::new(cluster.clone(), &config.instance);
    let mut answers = vec![Answer::of_state(&config.instance, &state.read().await)];
    let launcher = KubernetesLauncher::new(cluster.clone(), &config.instance, false);
    for pool in &config.pools {
        answers.push(Answer::of_template(&pool.name, launcher.template_of(pool).await));
    }
    for (group, resource, verbs) in NEEDED {
        for verb in verbs {
            let name = (resource == "configmaps").then(|| format!("{}-state", config.instance));
            let question = may_we(cluster.namespace(), group, resource, verb, name);
            let answer = cluster.ask("ask for a permission", &question).await;
            answers.extend(Answer::of_permission(verb, resource, answer));
        }
    }
    answers
}

fn may_we(
    namespace: &str,
    group: &str,
    resource: &str,
    verb: &str,
    name: Option<String>,
) -> SelfSubjectAccessReview {
    let attributes = ResourceAttributes {
        namespace: Some(namespace.to_owned()),
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        verb: Some(verb.to_owned()),
        name,
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec {
        resource_attributes: Some(attributes),
        ..SelfSubjectAccessReviewSpec::default()
    };
    SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }
}

// === impl Answer ===

impl Answer {
    fn of_state<T>(instance: &str, read: &Result<Option<T>, StateError>) -> Self {
        let what = format!("state record {instance}-state");
        match read {
            Ok(Some(_)) => Self { what, state: State::Fine, detail: String::new() },
            Ok(None) => {
                let detail = "empty: nothing was launched yet".to_owned();
                Self { what, state: State::Fine, detail }
            }
            Err(error @ (StateError::Deadline(_) | StateError::Conflict)) => {
                Self { what, state: State::Unreachable, detail: chain(error) }
            }
            Err(error) => {
                let refused = |source: &(dyn Error + Send + Sync + 'static)| {
                    matches!(source.downcast_ref(), Some(CallError::Refused(_)))
                };
                let unreachable =
                    matches!(error, StateError::Unavailable { source, .. } if !refused(source.as_ref()));
                let state = if unreachable { State::Unreachable } else { State::Wrong };
                Self { what, state, detail: chain(error) }
            }
        }
    }

    fn of_template(pool: &str, answer: Result<Vec<String>, LaunchError>) -> Self {
        let what = format!("template of pool {pool}");
        match answer {
            Ok(remarks) => Self { what, state: State::Fine, detail: remarks.join("; ") },
            Err(LaunchError::Refused { source, .. }) => {
                Self { what, state: State::Wrong, detail: chain(source.as_ref()) }
            }
            Err(error) => Self { what, state: State::Unreachable, detail: chain(&error) },
        }
    }

    /// `None` where there is nothing to tell.
    fn of_permission(
        verb: &str,
        resource: &str,
        answer: Result<SelfSubjectAccessReview, CallError>,
    ) -> Option<Self> {
        let what = format!("permission to {verb} {resource}");
        match answer.map(|review| review.status) {
            Ok(Some(status)) if status.allowed => None,
            Ok(status) => {
                let reason = status.and_then(|status| status.reason).unwrap_or_default();
                let detail = match &*reason {
                    "" => "missing; the chart's role has it".to_owned(),
                    reason => format!("missing: {reason}; the chart's role has it"),
                };
                Some(Self { what, state: State::Wrong, detail })
            }
            // Nobody may ask: what is missing shows when it is needed.
            Err(error) if error.is_forbidden() => None,
            Err(error) => Some(Self { what, state: State::Unreachable, detail: chain(&error) }),
        }
    }

    /// No answer weighs more than a bad one.
    pub(super) fn exit_code(answers: &[Self]) -> ExitCode {
        let any = |state| answers.iter().any(|answer| answer.state == state);
        if any(State::Unreachable) {
            ExitCode::Unavailable
        } else if any(State::Wrong) {
            ExitCode::Config
        } else {
            ExitCode::Ok
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, state, detail } = self;
        let verdict = match state {
            State::Fine => "fine",
            State::Wrong => "wrong",
            State::Unreachable => "no answer",
        };
        let detail = if detail.is_empty() { String::new() } else { format!("; {detail}") };
        write!(formatter, "{what}: {verdict}{detail}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_weighs_more_than_a_bad_one_and_that_more_than_a_good_one() {
        let answer = |state| Answer { what: "x".to_owned(), state, detail: String::new() };
        let (fine, wrong, lost) = (State::Fine, State::Wrong, State::Unreachable);
        for (states, code) in [
            (vec![], ExitCode::Ok),
            (vec![fine, fine], ExitCode::Ok),
            (vec![fine, wrong], ExitCode::Config),
            (vec![lost, wrong], ExitCode::Unavailable),
        ] {
            let answers: Vec<_> = states.into_iter().map(answer).collect();
            assert_eq!(Answer::exit_code(&answers), code, "{answers:?}");
        }
    }

    #[test]
    fn a_permission_that_is_there_is_not_worth_a_line_and_one_that_is_missing_is() {
        let review = |allowed: bool| SelfSubjectAccessReview {
            status: Some(k8s_openapi::api::authorization::v1::SubjectAccessReviewStatus {
                allowed,
                ..Default::default()
            }),
            ..SelfSubjectAccessReview::default()
        };
        assert_eq!(Answer::of_permission("list", "pods", Ok(review(true))), None);
        let missing = Answer::of_permission("list", "pods", Ok(review(false))).unwrap();
        assert_eq!(missing.to_string(), "permission to list pods: wrong; missing; the chart's role has it");
    }
}
