//! The subcommands that work on messages, one per kind of handler.

use std::{ffi::OsString, time::Duration};

use clap::{Args, builder::FalseyValueParser};

use super::{TryArgs, WorkArgs};
use crate::handler::{ServerUrl, parse_path};

pub(super) const NOOP_HELP: &str = "\
Example:
  mayfly-worker noop --queue demo --concurrency 100";

pub(super) const SLEEP_HELP: &str = "\
Example:
  mayfly-worker sleep --queue demo --for 200ms --concurrency 4";

pub(super) const EXEC_HELP: &str = "\
Examples:
  mayfly-worker exec --queue documents -- ./parse --fast
  mayfly-worker exec --queue documents --timeout 5m -- \\
        sh -c 'tr a-z A-Z >\"/out/$MAYFLY_MESSAGE_ID\"'

Exit code of the command:
  0         done
  65        to the dead-letter queue
  126, 127  it cannot be run: the message is given back, the worker ends (78)
  others    and signals: to a retry queue, and after the last of
            --max-attempts to the dead-letter queue

The command gets the body on standard input. It sees MAYFLY_MESSAGE_ID,
MAYFLY_QUEUE, MAYFLY_ATTEMPT (1 at first), MAYFLY_REDELIVERED (0 or 1),
MAYFLY_CONTENT_TYPE and MAYFLY_HEADERS_FILE (a file with all headers as JSON),
and no other variable whose name begins with MAYFLY_. What it leaves running in
its process group is killed before the message is settled.";

pub(super) const STDIO_HELP: &str = "\
Examples:
  mayfly-worker stdio --queue documents -- python3 -u ./infer.py
  mayfly-worker stdio --queue documents --concurrency 16 --timeout 1m -- ./infer

The program says on standard output, when it takes messages:
  {\"ready\":true}
It gets a line per message on standard input, with the body as text where it is
UTF-8, else as \"body_base64\":
  {\"id\":1,\"message_id\":\"…\",\"queue\":\"documents\",\"attempt\":1,
   \"redelivered\":false,\"content_type\":\"text/plain\",
   \"timestamp_ms\":1700000000000,\"headers\":{},\"body\":\"…\"}
and answers with a line per message, in any order:
  {\"id\":1,\"outcome\":\"done\"}
  {\"id\":2,\"outcome\":\"retry\",\"reason\":\"…\",\"after\":\"30s\"}
  {\"id\":3,\"outcome\":\"dead_letter\",\"reason\":\"…\"}
Flush after each line; logs belong on standard error. At the end of its input it
should end. It gets up to --concurrency messages at once.

When it ends by itself, the messages in it are handled alone from then on, and
it is started again. It is killed and started again when a message in it takes
longer than --timeout. A program that is not ready within --start-deadline, or
exits with 126 or 127, ends the worker (78).";

pub(super) const HTTP_HELP: &str = "\
Examples:
  mayfly-worker http --queue documents --url http://127.0.0.1:8080/work
  mayfly-worker http --queue documents --url http://127.0.0.1:8080/work \\
        --health-path /health --concurrency 8 --timeout 1m

The body is posted as it is, with the headers Content-Type, Mayfly-Message-Id,
Mayfly-Queue, Mayfly-Attempt, Mayfly-Redelivered and, up to 4 KiB, Mayfly-Headers
(JSON); with --envelope all of it is posted as JSON, as stdio gets it.

Status of the response:
  2xx                 done
  400, 413, 415, 422  to the dead-letter queue
  429, 503            to a retry queue, not before Retry-After (in seconds)
  others              to a retry queue, and after the last of --max-attempts
                      to the dead-letter queue
The beginning of the response's body is stored as the reason.

A message whose connection is cut is handled alone from then on. Where nobody
listens, the worker waits for --start-deadline, then ends (78).";

#[derive(Debug, Args)]
pub(crate) struct NoopArgs {
    #[command(flatten)]
    pub(crate) work: WorkArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SleepArgs {
    /// How long each message takes.
    #[arg(long = "for", env = "MAYFLY_FOR", value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub(crate) time: Duration,
    #[command(flatten)]
    pub(crate) work: WorkArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub(crate) work: WorkArgs,
    #[command(flatten)]
    pub(crate) tries: TryArgs,
    /// The command with its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct StdioArgs {
    #[command(flatten)]
    pub(crate) work: WorkArgs,
    #[command(flatten)]
    pub(crate) tries: TryArgs,
    /// The program with its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct HttpArgs {
    #[command(flatten)]
    pub(crate) work: WorkArgs,
    #[command(flatten)]
    pub(crate) tries: TryArgs,
    /// Where to post messages.
    #[arg(long, env = "MAYFLY_URL", value_name = "URL")]
    pub(crate) url: ServerUrl,
    /// The server is up when a GET of this path is answered with 2xx. Without it: when it takes connections.
    #[arg(long, env = "MAYFLY_HEALTH_PATH", value_name = "PATH", value_parser = parse_path)]
    pub(crate) health_path: Option<String>,
    /// Post all that is known of a message as JSON, instead of its body.
    #[arg(long, env = "MAYFLY_ENVELOPE", value_parser = FalseyValueParser::new())]
    pub(crate) envelope: bool,
}
