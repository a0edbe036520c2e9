//! What a program says about its messages, one line of JSON each: pure.

use std::time::Duration;

use serde_json::{Map, Value};

use super::Outcome;

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// It takes messages now.
    Ready,
    /// What became of one.
    Answer {
        id: u64,
        outcome: Outcome,
        /// What is wrong with the answer, though it counts.
        complaint: Option<String>,
    },
    /// Nothing that could be understood, and why.
    Nonsense(String),
}

/// Reads one line.
pub(super) fn read(line: &[u8]) -> Said {
    let object: Map<String, Value> = match serde_json::from_slice(line) {
        Ok(object) => object,
        Err(error) => return Said::Nonsense(format!("no JSON object: {error}")),
    };
    match (object.get("id"), object.get("ready")) {
        (Some(id), _) => match id.as_u64() {
            Some(id) => answer(id, &object),
            None => Said::Nonsense(format!("\"id\" is no id of a message: {id}")),
        },
        (None, Some(Value::Bool(true))) => Said::Ready,
        (None, _) => Said::Nonsense("neither \"id\" nor \"ready\": true in it".to_owned()),
    }
}

fn answer(id: u64, object: &Map<String, Value>) -> Said {
    let reason = match object.get("reason") {
        None | Some(Value::Null) => "no reason given".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let (outcome, complaint) = match object.get("outcome").map(|outcome| (outcome, outcome.as_str())) {
        Some((_, Some("done"))) => (Outcome::Done, None),
        Some((_, Some("dead_letter"))) => (Outcome::DeadLetter { reason }, None),
        Some((_, Some("retry"))) => match after(object.get("after")) {
            Ok(after) => (Outcome::Retry { reason, after }, None),
            Err(complaint) => (Outcome::retry(reason), Some(complaint)),
        },
        other => {
            let what =
                other.map_or_else(|| "no \"outcome\"".to_owned(), |(other, _)| format!("outcome {other}"));
            let complaint = format!("{what}: must be \"done\", \"retry\" or \"dead_letter\"");
            (Outcome::retry(format!("bad answer: {complaint}")), Some(complaint))
        }
    };
    Said::Answer { id, outcome, complaint }
}

/// `"30s"`, `"5m"`.
fn after(value: Option<&Value>) -> Result<Option<Duration>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => match humantime::parse_duration(text) {
            Ok(time) => Ok(Some(time)),
            Err(error) => Err(format!("\"after\" is no time such as \"30s\": {text:?}: {error}")),
        },
        Some(other) => Err(format!("\"after\" is no time such as \"30s\": {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(rest: &str) -> (Outcome, bool) {
        match read(format!("{{\"id\": 7{rest}}}").as_bytes()) {
            Said::Answer { id: 7, outcome, complaint } => (outcome, complaint.is_some()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_outcome_words_are_those_of_every_handler() {
        let reason = || "why".to_owned();
        assert_eq!(outcome(r#", "outcome": "done""#), (Outcome::Done, false));
        assert_eq!(outcome(r#", "outcome": "retry", "reason": "why""#), (Outcome::retry("why"), false));
        assert_eq!(
            outcome(r#", "outcome": "retry", "reason": "why", "after": "1m 30s""#),
            (Outcome::Retry { reason: reason(), after: Some(Duration::from_secs(90)) }, false)
        );
        assert_eq!(
            outcome(r#", "outcome": "dead_letter", "reason": "why""#),
            (Outcome::DeadLetter { reason: reason() }, false)
        );
        assert_eq!(outcome(r#", "outcome": "retry""#), (Outcome::retry("no reason given"), false));
    }

    #[test]
    fn an_answer_that_is_wrong_in_part_counts_as_far_as_it_goes_and_never_as_done() {
        assert_eq!(
            outcome(r#", "outcome": "retry", "reason": {"a": 1}"#),
            (Outcome::retry(r#"{"a":1}"#), false)
        );
        for after in ["30", "\"soon\"", "[]"] {
            let rest = format!(r#", "outcome": "retry", "reason": "why", "after": {after}"#);
            assert_eq!(outcome(&rest), (Outcome::retry("why"), true));
        }
        for rest in
            ["", r#", "outcome": "Done""#, r#", "outcome": true"#, r#", "outcome": null, "ready": true"#]
        {
            let (outcome, is_told) = outcome(rest);
            assert!(matches!(outcome, Outcome::Retry { after: None, .. }) && is_told, "{rest}: {outcome:?}");
        }
    }

    #[test]
    fn what_is_no_answer_is_told_and_never_a_panic() {
        assert_eq!(read(br#" {"ready": true, "version": 2} "#), Said::Ready);
        let deep = "[".repeat(10_000);
        for line in [
            "",
            "hello",
            "[1]",
            "7",
            "{",
            "{}",
            r#"{"ready": false}"#,
            r#"{"ready": 1}"#,
            r#"{"id": -1, "outcome": "done"}"#,
            r#"{"id": "7", "outcome": "done"}"#,
            r#"{"id": 1e3, "outcome": "done"}"#,
            r#"{"id": 99999999999999999999, "outcome": "done"}"#,
            &deep,
        ] {
            assert!(matches!(read(line.as_bytes()), Said::Nonsense(_)), "{line}");
        }
        assert!(matches!(read(b"\xff\xfe"), Said::Nonsense(_)));
    }
}
