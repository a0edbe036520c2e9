//! Messages before they are stamped, and how they are read from JSON lines.

use std::collections::{BTreeMap, HashMap};

use mayfly_broker::{Header, Outgoing, SHORT_LIMIT};
use mayfly_service::ExitCode;
use serde::Deserialize;
use serde_json::Value;

use crate::{args::header_name, failure::Failure};

/// Names and values of a message's headers, in bytes: they must fit into one frame.
const HEADER_LIMIT: usize = 8192;
/// How many bad lines are told.
const BAD_LINES_TOLD: usize = 5;
/// What all messages share unless they say otherwise.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) queue: String,
    pub(crate) content_type: Option<String>,
    pub(crate) headers: BTreeMap<String, Header>,
}

/// A message that is not stamped yet.
#[derive(Debug, PartialEq)]
pub(crate) struct Draft {
    queue: String,
    id: Option<String>,
    content_type: String,
    headers: BTreeMap<String, Header>,
    body: Vec<u8>,
}

/// One line of `--stdin json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonLine {
    body: Value,
    queue: Option<String>,
    message_id: Option<String>,
    content_type: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Value>,
}

// === impl Common ===

impl Common {
    pub(crate) fn draft(&self, body: Vec<u8>) -> Draft {
        let content_type = self.content_type.clone().unwrap_or_else(|| "text/plain".to_owned());
        Draft { queue: self.queue.clone(), id: None, content_type, headers: self.headers.clone(), body }
    }

    fn json(&self, line: &[u8]) -> Result<Draft, String> {
        let line: JsonLine = serde_json::from_slice(line).map_err(|error| {
            // The library counts lines within what it was given: always 1.
            let text = error.to_string();
            format!("{} (column {})", text.split(" at line ").next().unwrap_or(&text), error.column())
        })?;
        let mut headers = self.headers.clone();
        for (name, value) in line.headers {
            header_name(&name)?;
            let value = match value {
                Value::String(text) => Header::Text(text),
                Value::Number(number) if number.is_i64() => {
                    Header::Number(number.as_i64().unwrap_or_default())
                }
                _ => return Err(format!("header {name:?} is neither a string nor an integer")),
            };
            headers.insert(name, value);
        }
        check_headers(&headers)?;
        for (what, text) in
            [("queue", &line.queue), ("message_id", &line.message_id), ("content_type", &line.content_type)]
        {
            if text.as_ref().is_some_and(|text| text.is_empty() || text.len() > SHORT_LIMIT) {
                return Err(format!("{what} must have 1 to {SHORT_LIMIT} bytes"));
            }
        }
        let (body, default_type) = match line.body {
            Value::String(text) => (text.into_bytes(), "text/plain"),
            value => (value.to_string().into_bytes(), "application/json"),
        };
        let content_type = line.content_type.or_else(|| self.content_type.clone());
        Ok(Draft {
            queue: line.queue.unwrap_or_else(|| self.queue.clone()),
            id: line.message_id,
            content_type: content_type.unwrap_or_else(|| default_type.to_owned()),
            headers,
            body,
        })
    }
}

// === impl Draft ===

impl Draft {
    /// Stamped now.
    pub(crate) fn stamp(self) -> Outgoing {
        let Self { queue, id, content_type, headers, body } = self;
        Outgoing::new(&queue, id, &content_type, headers, body)
    }
}

/// All messages of `lines`, or what is wrong with them. Ids must differ: what became of a message is told
/// by its id.
pub(crate) fn parse(lines: &[Vec<u8>], common: &Common) -> Result<Vec<Draft>, Failure> {
    let mut drafts = Vec::with_capacity(lines.len());
    let mut bad = Vec::new();
    let mut seen = HashMap::new();
    for (number, line) in (1..).zip(lines) {
        if line.is_empty() {
            continue;
        }
        let draft = common.json(line).and_then(|draft| match &draft.id {
            Some(id) => match seen.insert(id.clone(), number) {
                Some(first) => Err(format!("message_id {id:?} was given in line {first} already")),
                None => Ok(draft),
            },
            None => Ok(draft),
        });
        match draft {
            Ok(draft) => drafts.push(draft),
            Err(error) => bad.push(format!("\n  line {number}: {error}")),
        }
    }
    if bad.is_empty() {
        return Ok(drafts);
    }
    let more = bad.len().saturating_sub(BAD_LINES_TOLD);
    let told: String = bad[..bad.len() - more].concat();
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    Err(Failure::new(ExitCode::Usage, format!("bad input, nothing was published{told}{more}")))
}

pub(crate) fn check_headers(headers: &BTreeMap<String, Header>) -> Result<(), String> {
    let size: usize = headers.iter().map(|(name, value)| name.len() + value.to_string().len()).sum();
    if size > HEADER_LIMIT {
        return Err(format!("headers of {size} bytes are too large ({HEADER_LIMIT} at most)"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common() -> Common {
        let headers = BTreeMap::from([("tenant".to_owned(), Header::Text("a".to_owned()))]);
        Common { queue: "q".to_owned(), content_type: None, headers }
    }

    fn parsed(text: &str) -> Result<Vec<Draft>, String> {
        let lines: Vec<_> = text.split('\n').map(|line| line.as_bytes().to_vec()).collect();
        parse(&lines, &common()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_json_line_overrides_what_the_command_line_says_for_all() {
        let line = r#"{"body":{"n":1},"queue":"other","message_id":"m","headers":{"tenant":"b","size":-3}}"#;
        let headers = BTreeMap::from([
            ("size".to_owned(), Header::Number(-3)),
            ("tenant".to_owned(), Header::Text("b".to_owned())),
        ]);
        let other = Draft {
            queue: "other".to_owned(),
            id: Some("m".to_owned()),
            content_type: "application/json".to_owned(),
            headers,
            body: br#"{"n":1}"#.to_vec(),
        };
        assert_eq!(
            parsed(&format!("{line}\n\n{{\"body\":\"text\"}}")).unwrap(),
            [other, common().draft(b"text".to_vec())]
        );
    }

    #[test]
    fn bad_lines_are_named_by_number_and_cause() {
        let lines = [
            r#"{"body":"fine","message_id":"1"}"#,
            r#"{"message_id":"2"}"#,
            "not json",
            r#"{"body":"x","message_id":"1"}"#,
            r#"{"body":"x","priority":1}"#,
            r#"{"body":"x","headers":{"h":1.5}}"#,
            r#"{"body":"x","headers":{"CC":"q2"}}"#,
            r#"{"body":"x","queue":""}"#,
        ];
        insta::assert_snapshot!(parsed(&lines.join("\n")).unwrap_err(), @r#"
        error: bad input, nothing was published
          line 2: missing field `body` (column 18)
          line 3: expected ident (column 2)
          line 4: message_id "1" was given in line 1 already
          line 5: unknown field `priority`, expected one of `body`, `queue`, `message_id`, `content_type`, `headers` (column 22)
          line 6: header "h" is neither a string nor an integer
          and 2 more
        "#);
    }

    #[test]
    fn headers_that_no_frame_can_hold_are_refused() {
        let line = format!(r#"{{"body":"x","headers":{{"h":"{}"}}}}"#, "x".repeat(HEADER_LIMIT));
        assert!(parsed(&line).unwrap_err().contains("too large"));
    }
}
