//! The command line.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use mayfly_broker::{BrokerArgs, Header, QueueKind, SHORT_LIMIT};
use mayfly_service::log::LogArgs;

/// Feed and look at RabbitMQ queues: publish with confirms, inspect, declare, delete.
///
/// Exit codes: 0 all of it was done; 64 wrong usage or input; 69 broker unreachable or lost; 75 gave up
/// waiting or was interrupted; 78 refused by configuration (missing queue, no permission, wrong password).
#[derive(Debug, Parser)]
#[command(name = "mayfly-publisher", version, after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten, next_help_heading = "Broker")]
    pub(crate) broker: BrokerArgs,
    #[command(flatten, next_help_heading = "Logging")]
    pub(crate) log: LogArgs,
}

const EXAMPLES: &str = "\
Examples:
  export MAYFLY_BROKER_URL=amqp://USER:PASSWORD@HOST:5672/
  mayfly-publisher declare documents
  mayfly-publisher publish documents --count 200
  mayfly-publisher inspect documents documents.dead";

const PUBLISH_EXAMPLES: &str = "\
Examples:
  mayfly-publisher publish documents 'one body' 'another body'
  mayfly-publisher publish documents --count 200 --ids published.txt
  find . -name '*.pdf' | mayfly-publisher publish documents --stdin lines
  echo '{\"body\": {\"url\": \"https://a.example/\"}, \"message_id\": \"a-1\", \"headers\": {\"tenant\": \"a\"}}' \\
    | mayfly-publisher publish documents --stdin json";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Publish messages and wait until the broker has confirmed each of them.
    #[command(after_help = PUBLISH_EXAMPLES)]
    Publish(PublishArgs),
    /// Show how many messages wait in queues, and how many consumers they have.
    #[command(after_help = "Example:\n  mayfly-publisher inspect documents documents.dead --output json")]
    Inspect(InspectArgs),
    /// Create a queue with its companions: retry ladder, suspects, dead letters.
    #[command(
        after_help = "Examples:\n  mayfly-publisher declare documents --dry-run\n  mayfly-publisher declare documents --retry 10s,1m"
    )]
    Declare(DeclareArgs),
    /// Delete what `declare` created, if nothing waits in it and nobody consumes from it.
    #[command(
        after_help = "Examples:\n  mayfly-publisher delete documents\n  mayfly-publisher delete demo --with-messages"
    )]
    Delete(DeleteArgs),
    /// Print the completion script of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct PublishArgs {
    /// The queue.
    #[arg(value_parser = short)]
    pub(crate) queue: String,
    /// The bodies of the messages, one message each.
    #[arg(value_name = "BODY", conflicts_with_all = ["count", "stdin"])]
    pub(crate) bodies: Vec<String>,
    /// Publish this many messages with the bodies `message 1`, `message 2`, …
    #[arg(long, value_name = "N", conflicts_with = "stdin")]
    pub(crate) count: Option<u64>,
    /// Read messages from standard input. `lines`: each line is a body, published as it comes; empty lines
    /// are skipped. `json`: each line is an object with `body` and, if wanted, `queue`, `message_id`,
    /// `content_type`, `headers`; a body that is not a string is sent as JSON. All of it is read and checked
    /// first: with one bad line nothing is published.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) stdin: Option<StdinFormat>,
    /// How many messages may be on their way without a confirm.
    #[arg(long, env = "MAYFLY_PUBLISH_WINDOW", value_name = "N", default_value = "500")]
    pub(crate) window: NonZeroUsize,
    /// Content type of the messages [default: text/plain; application/json for JSON bodies].
    #[arg(long, value_name = "TYPE", value_parser = short)]
    pub(crate) content_type: Option<String>,
    /// A header of the messages; may be given several times.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    pub(crate) headers: Vec<(String, Header)>,
    /// Write the ids of the confirmed messages to this file, one a line. An existing file is replaced.
    #[arg(long, value_name = "FILE")]
    pub(crate) ids: Option<PathBuf>,
    /// How long to try to get a lost connection back.
    #[arg(long, env = "MAYFLY_RECONNECT_FOR", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(crate) reconnect_for: Duration,
    /// How long to wait while the broker blocks publishing (memory or disk alarm).
    #[arg(long, env = "MAYFLY_BLOCKED_FOR", value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub(crate) blocked_for: Duration,
    /// How long to try again while a queue is full.
    #[arg(long, env = "MAYFLY_FULL_FOR", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(crate) full_for: Duration,
    /// No progress and no notes; errors and the summary only.
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// The shape of the summary.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// The queues.
    #[arg(required = true, value_name = "QUEUE", value_parser = short)]
    pub(crate) queues: Vec<String>,
    /// The shape of the result.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DeclareArgs {
    /// The queue.
    #[arg(value_parser = short)]
    pub(crate) queue: String,
    /// The queue's type; its companions are quorum queues in any case.
    #[arg(long = "type", value_name = "TYPE", default_value = "quorum")]
    pub(crate) kind: Kind,
    /// The delays of the retry ladder.
    #[arg(long, value_name = "TIME,…", value_delimiter = ',', default_value = "5s,30s,2m,10m", value_parser = delay)]
    pub(crate) retry: Vec<Duration>,
    /// Show the queues and their arguments; connect to nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The shape of the result.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// The queue.
    #[arg(value_parser = short)]
    pub(crate) queue: String,
    /// The delays of its retry ladder, as declared.
    #[arg(long, value_name = "TIME,…", value_delimiter = ',', default_value = "5s,30s,2m,10m", value_parser = delay)]
    pub(crate) retry: Vec<Duration>,
    /// Delete waiting messages too, and take the queues away from their consumers.
    #[arg(long)]
    pub(crate) with_messages: bool,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What standard input holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StdinFormat {
    /// A line is a body.
    Lines,
    /// A line is a JSON object.
    Json,
}

/// A queue type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Replicated.
    Quorum,
    /// Not replicated; may lose a message on its way to the dead letters.
    Classic,
}

// === impl Kind ===

impl From<Kind> for QueueKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Quorum => Self::Quorum,
            Kind::Classic => Self::Classic,
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error} (examples: 30s, 5m)"))
}

/// RabbitMQ counts a time to live in milliseconds, as an unsigned 32-bit number.
fn delay(text: &str) -> Result<Duration, String> {
    let delay = duration(text)?;
    match delay.as_millis() {
        1..=4_294_967_295 => Ok(delay),
        _ => Err("a delay lies between 1ms and 49days".to_owned()),
    }
}

fn short(text: &str) -> Result<String, String> {
    match text.len() {
        1..=SHORT_LIMIT => Ok(text.to_owned()),
        length => Err(format!("it has {length} bytes; AMQP allows 1 to {SHORT_LIMIT}")),
    }
}

fn header(text: &str) -> Result<(String, Header), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    header_name(name)?;
    Ok((name.to_owned(), Header::Text(value.to_owned())))
}

/// `CC` and `BCC` are orders to the broker, not data.
pub(crate) fn header_name(name: &str) -> Result<(), String> {
    match name {
        "CC" | "BCC" => Err(format!("header {name} would send copies elsewhere and is not accepted")),
        _ => short(name).map(drop).map_err(|error| format!("header name: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn refused(words: &str) -> String {
        Args::try_parse_from(words.split(' ')).unwrap_err().to_string()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn two_sources_of_messages_are_refused() {
        for words in ["p publish q body --count 3", "p publish q --count 3 --stdin lines"] {
            Args::try_parse_from(words.split(' ')).unwrap_err();
        }
        for words in ["p publish q body body", "p publish q --count 3", "p publish q --stdin json"] {
            Args::try_parse_from(words.split(' ')).unwrap();
        }
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        assert!(refused("p publish q b --header CC=x").contains("copies elsewhere"));
        assert!(refused("p publish q b --header novalue").contains("expected NAME=VALUE"));
        assert!(refused("p publish q b --window 0").contains("--window"));
        assert!(refused("p publish q b --blocked-for 5").contains("examples: 30s"));
        assert!(refused("p declare q --retry 0s").contains("between 1ms and 49days"));
        assert!(refused(&format!("p inspect {}", "x".repeat(256))).contains("256 bytes"));
    }
}
