//! Where the messages come from.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufRead, IsTerminal},
    thread,
};

use mayfly_broker::{Header, Outgoing};
use mayfly_service::ExitCode;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    args::{PublishArgs, StdinFormat, header_name},
    failure::Failure,
};

/// Names and values of a message's headers, in bytes: they must fit into one frame.
const HEADER_LIMIT: usize = 8192;
/// How many bad lines are told.
const BAD_LINES_TOLD: usize = 5;
/// Lines read ahead of the broker.
const READ_AHEAD: usize = 1024;

/// The messages still to be published.
#[derive(Debug)]
pub(crate) struct Source {
    common: Common,
    rest: Rest,
}

/// What all messages share unless they say otherwise.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) queue: String,
    pub(crate) content_type: Option<String>,
    pub(crate) headers: BTreeMap<String, Header>,
}

#[derive(Debug)]
enum Rest {
    /// `message N` for N from `next` up to `count`.
    Generated { next: u64, count: u64 },
    /// All of it is known.
    Drafts(std::vec::IntoIter<Draft>),
    /// Lines as they come, and what ended them.
    Lines { lines: mpsc::Receiver<io::Result<Vec<u8>>>, broken: Option<io::Error> },
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

// === impl Source ===

impl Source {
    /// The source that the command line names. JSON is read to its end and checked as a whole.
    pub(crate) async fn open(args: &PublishArgs) -> Result<Self, Failure> {
        let common = Common {
            queue: args.queue.clone(),
            content_type: args.content_type.clone(),
            headers: args.headers.iter().cloned().collect(),
        };
        check_headers(&common.headers).map_err(|error| Failure::new(ExitCode::Usage, error))?;
        let rest = match (args.stdin, args.count) {
            (Some(StdinFormat::Lines), _) => Rest::Lines { lines: read_lines()?, broken: None },
            (Some(StdinFormat::Json), _) => {
                let mut lines = read_lines()?;
                let mut text = Vec::new();
                while let Some(line) = lines.recv().await {
                    text.push(line.map_err(|error| cannot_read(&error))?);
                }
                Rest::Drafts(parse(&text, &common)?.into_iter())
            }
            (None, Some(count)) => Rest::Generated { next: 1, count },
            (None, None) => {
                let drafts: Vec<_> =
                    args.bodies.iter().map(|body| common.draft(body.clone().into())).collect();
                Rest::Drafts(drafts.into_iter())
            }
        };
        Ok(Self { common, rest })
    }

    /// How many messages are left, where that can be known.
    pub(crate) fn left(&self) -> Option<u64> {
        match &self.rest {
            Rest::Generated { next, count } => Some((count + 1).saturating_sub(*next)),
            Rest::Drafts(drafts) => u64::try_from(drafts.len()).ok(),
            Rest::Lines { .. } => None,
        }
    }

    /// The next messages, at least one and at most `most`, stamped now; none at the end. Cancel-safe.
    pub(crate) async fn take(&mut self, most: usize) -> Result<Vec<Outgoing>, Failure> {
        let Self { common, rest } = self;
        let drafts: Vec<Draft> = match rest {
            Rest::Generated { next, count } => {
                let end = next.saturating_add(most as u64 - 1).min(*count);
                let drafts = (*next..=end).map(|n| common.draft(format!("message {n}").into())).collect();
                *next = end + 1;
                drafts
            }
            Rest::Drafts(drafts) => drafts.take(most).collect(),
            Rest::Lines { lines, broken } => {
                // What was read before an error is published before it is told.
                if let Some(error) = broken {
                    return Err(cannot_read(error));
                }
                let mut drafts = Vec::new();
                let mut read = Vec::new();
                // Nothing is held over an await, so nothing is lost if we are cancelled.
                while drafts.is_empty() && lines.recv_many(&mut read, most).await > 0 {
                    for line in read.drain(..) {
                        match line {
                            Ok(body) if body.is_empty() => {}
                            Ok(body) => drafts.push(common.draft(body)),
                            Err(error) => *broken = Some(error),
                        }
                    }
                }
                if let (true, Some(error)) = (drafts.is_empty(), broken) {
                    return Err(cannot_read(error));
                }
                drafts
            }
        };
        Ok(drafts.into_iter().map(Draft::stamp).collect())
    }
}

// === impl Common ===

impl Common {
    fn draft(&self, body: Vec<u8>) -> Draft {
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
            if text.as_ref().is_some_and(|text| text.is_empty() || text.len() > mayfly_broker::SHORT_LIMIT) {
                return Err(format!("{what} must have 1 to {} bytes", mayfly_broker::SHORT_LIMIT));
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
    fn stamp(self) -> Outgoing {
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

fn check_headers(headers: &BTreeMap<String, Header>) -> Result<(), String> {
    let size: usize = headers.iter().map(|(name, value)| name.len() + value.to_string().len()).sum();
    if size > HEADER_LIMIT {
        return Err(format!("headers of {size} bytes are too large ({HEADER_LIMIT} at most)"));
    }
    Ok(())
}

fn cannot_read(error: &io::Error) -> Failure {
    Failure::new(ExitCode::Config, format!("cannot read standard input: {error}"))
}

/// Reads standard input on a thread of its own: a blocked read cannot be ended, and must not keep the
/// program from ending. The thread is not joined for the same reason.
fn read_lines() -> Result<mpsc::Receiver<io::Result<Vec<u8>>>, Failure> {
    if io::stdin().is_terminal() {
        eprintln!("reading messages from the terminal, one a line; Ctrl-D ends them");
    }
    let (lines, receiver) = mpsc::channel(READ_AHEAD);
    let read = move || {
        let mut input = io::stdin().lock();
        loop {
            let mut line = Vec::new();
            let item = match input.read_until(b'\n', &mut line) {
                Ok(0) => return,
                Ok(_) => {
                    // Ends as on Unix and as on Windows.
                    for end in [b'\n', b'\r'] {
                        line.pop_if(|last| *last == end);
                    }
                    Ok(line)
                }
                Err(error) => Err(error),
            };
            let last = item.is_err();
            if lines.blocking_send(item).is_err() || last {
                return;
            }
        }
    };
    thread::Builder::new().name("stdin".to_owned()).spawn(read).map_err(|error| cannot_read(&error))?;
    Ok(receiver)
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

    #[tokio::test]
    async fn generated_messages_are_numbered_and_end_at_the_count() {
        let mut source = Source { common: common(), rest: Rest::Generated { next: 1, count: 5 } };
        let mut bodies = Vec::new();
        loop {
            let left = source.left().unwrap();
            let taken = source.take(2).await.unwrap();
            if taken.is_empty() {
                break;
            }
            assert_eq!(source.left().unwrap(), left - taken.len() as u64);
            bodies.extend(taken.into_iter().map(|message| String::from_utf8(message.body).unwrap()));
        }
        assert_eq!(bodies, ["message 1", "message 2", "message 3", "message 4", "message 5"]);
    }

    #[tokio::test]
    async fn lines_before_an_error_are_published_and_then_it_is_told() {
        let (sender, lines) = mpsc::channel(9);
        for line in [Ok(b"1".to_vec()), Ok(Vec::new()), Ok(b"2".to_vec()), Err(io::Error::other("torn"))] {
            sender.try_send(line).unwrap();
        }
        drop(sender);
        let mut source = Source { common: common(), rest: Rest::Lines { lines, broken: None } };
        assert_eq!(source.take(9).await.unwrap().len(), 2);
        assert!(source.take(9).await.unwrap_err().to_string().contains("torn"));
    }
}
