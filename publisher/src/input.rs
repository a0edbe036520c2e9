//! Where the messages come from.

use std::{
    io::{self, BufRead, IsTerminal},
    thread,
};

use mayfly_broker::Outgoing;
use mayfly_service::ExitCode;
use tokio::sync::mpsc;

use crate::{
    args::{PublishArgs, StdinFormat},
    draft::{Common, Draft, check_headers, parse},
    failure::Failure,
};

/// Lines read ahead of the broker.
const READ_AHEAD: usize = 1024;

/// The messages still to be published.
#[derive(Debug)]
pub(crate) struct Source {
    common: Common,
    rest: Rest,
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
            Rest::Generated { next, count } => Some(count.saturating_sub(*next - 1)),
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
                *next = end.saturating_add(1);
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
    use std::collections::BTreeMap;

    use super::*;

    fn common() -> Common {
        Common { queue: "q".to_owned(), content_type: None, headers: BTreeMap::new() }
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
