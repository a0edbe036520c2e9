//! The command line.

mod handlers;

use std::{
    net::SocketAddr,
    num::{NonZeroU16, NonZeroU32, NonZeroU64},
    path::PathBuf,
    time::Duration,
};

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, builder::FalseyValueParser};
use mayfly_broker::BrokerArgs;
use mayfly_service::{contract, log::LogArgs};

use crate::ledger::LedgerArgs;

pub(crate) use self::handlers::{ExecArgs, HttpArgs, NoopArgs, SleepArgs, StdioArgs};

/// Takes messages from a queue, works on them, acknowledges each only after it is done, and ends by itself
/// when the queue stays idle.
#[derive(Debug, Parser)]
#[command(name = "mayfly-worker", version, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten, next_help_heading = "Logging")]
    pub(crate) log: LogArgs,
    #[command(flatten, next_help_heading = "Broker")]
    pub(crate) broker: BrokerArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Takes messages from a queue and works on them.
#[derive(Debug, Parser)]
#[command(name = "worker", after_help = OWN_HELP)]
pub(crate) struct OwnCli {
    #[command(flatten, next_help_heading = "Logging")]
    pub(crate) log: LogArgs,
    #[command(flatten, next_help_heading = "Broker")]
    pub(crate) broker: BrokerArgs,
    #[command(flatten, next_help_heading = None::<&'static str>)]
    pub(crate) work: WorkArgs,
    #[command(flatten)]
    pub(crate) tries: TryArgs,
}

/// The environment variable of `--termination-log`, which counts also when the command line is refused.
pub(crate) const TERMINATION_LOG: &str = "MAYFLY_TERMINATION_LOG";

/// What every working program exits with, for its help.
macro_rules! exit_codes {
    () => {
        "\
Exit codes:
  0   idle, asked to stop, or recycled (--max-messages, --max-memory,
      --max-lifetime)
  64  bad usage
  69  broker unreachable at start, or lost for too long
  70  starved (messages wait, none is delivered), aborted, or a defect
  75  could begin nothing for five minutes: message after message failed, or
      the ledger did not answer (at start: within --start-deadline)
  78  refused by configuration: a queue is missing, no permission, wrong
      password, or the handler cannot start"
    };
}

const EXAMPLES: &str = concat!(
    "\
Examples:
  mayfly-worker exec --queue documents -- ./parse --fast
        run a command per message, its body on standard input
  mayfly-worker exec --queue documents --concurrency 4 --timeout 5m -- ./parse
  mayfly-worker stdio --queue documents --concurrency 4 -- python3 -u ./infer.py
        hand all messages to one long-lived program
  mayfly-worker http --queue documents --url http://127.0.0.1:8080/work
        post each message to a server, such as a sidecar
  mayfly-worker sleep --queue demo --for 1s
        only pretend to work
  mayfly-worker install /mayfly
        put this program where an image that lacks it finds it
  mayfly-worker ready --admin-listen 127.0.0.1:8080
        for an exec readiness probe

",
    exit_codes!()
);

/// `PROGRAM` is what a user's own worker is called.
const OWN_HELP: &str = concat!(
    "\
Examples:
  PROGRAM --queue documents
        works until the queue stays idle; the broker's URL comes from
        MAYFLY_BROKER_URL or --broker-url-file
  PROGRAM --queue documents --concurrency 4 --timeout 5m --max-idle 1m
  PROGRAM --queue documents --ledger-url-file /run/secrets/ledger-url

",
    exit_codes!()
);

const INSTALL_HELP: &str = "\
Examples:
  mayfly-worker install /mayfly
        in an init container, over an emptyDir that both containers mount
  /mayfly/mayfly-worker exec --queue documents -- ./parse
        then, in the container whose image lacks it";

const READY_HELP: &str = "\
Examples:
  mayfly-worker ready --admin-listen 127.0.0.1:8080
  MAYFLY_ADMIN_LISTEN=127.0.0.1:8080 mayfly-worker ready
        the variable serves the worker, too: it listens there";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command for each message, its body on standard input.
    #[command(after_help = handlers::EXEC_HELP)]
    Exec(ExecArgs),
    /// Hand all messages to one long-lived program, as lines of JSON: for what is slow to start.
    #[command(after_help = handlers::STDIO_HELP)]
    Stdio(StdioArgs),
    /// Post each message to a server nearby, such as a sidecar.
    #[command(after_help = handlers::HTTP_HELP)]
    Http(HttpArgs),
    /// Sleep for each message: for demos and measurements.
    #[command(after_help = handlers::SLEEP_HELP)]
    Sleep(SleepArgs),
    /// Do nothing with a message, which is done at once: for measurements.
    #[command(after_help = handlers::NOOP_HELP)]
    Noop(NoopArgs),
    /// Copy this program to DIR/mayfly-worker, for a container whose image lacks it: say so in an init
    /// container, over a volume that both mount, and the user's image needs no change.
    #[command(after_help = INSTALL_HELP)]
    Install(InstallArgs),
    /// Ask a worker on this machine whether it is ready: 0 yes, 75 not yet, 69 no answer.
    #[command(after_help = READY_HELP)]
    Ready(ReadyArgs),
    /// Print shell completions.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

/// What every subcommand takes whose work can fail.
#[derive(Debug, Args)]
pub(crate) struct TryArgs {
    /// How long a message may take; then what works on it is ended and the attempt has failed. Without it: as
    /// long as it takes.
    #[arg(long, env = "MAYFLY_TIMEOUT", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// How often a message is tried before it is dead-lettered.
    #[arg(long, env = "MAYFLY_MAX_ATTEMPTS", value_name = "COUNT", default_value = "5")]
    pub(crate) max_attempts: NonZeroU32,
    /// Where messages go that brought down their worker three times while they alone were in work, for example
    /// the queue of a pool with more memory. Without it: to the dead-letter queue.
    #[arg(long, env = "MAYFLY_QUARANTINE_QUEUE", value_name = "QUEUE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) quarantine_queue: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ReadyArgs {
    /// Where the worker's admin server listens.
    #[arg(long, env = "MAYFLY_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub(crate) admin_listen: SocketAddr,
}

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    /// The directory.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

/// What every working subcommand takes.
#[derive(Debug, Args)]
pub(crate) struct WorkArgs {
    /// The queue to work on.
    #[arg(long, env = "MAYFLY_QUEUE", value_name = "QUEUE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) queue: String,
    /// Messages in work at once.
    #[arg(long, env = "MAYFLY_CONCURRENCY", value_name = "COUNT", default_value = "1")]
    pub(crate) concurrency: NonZeroU16,
    /// Messages held at once, the waiting ones included; at least the concurrency. `auto`: as many as are
    /// worked on, more where work takes less than 50 ms.
    #[arg(long, env = "MAYFLY_PREFETCH", value_name = "COUNT|auto", default_value = "auto", value_parser = parse_prefetch)]
    pub(crate) prefetch: Prefetch,
    /// End when nothing was in flight for this long and the queue is empty.
    #[arg(long, env = contract::MAX_IDLE, value_name = "TIME", default_value = "20s", value_parser = humantime::parse_duration)]
    pub(crate) max_idle: Duration,
    /// How long work in progress may go on after SIGTERM; then it is ended and given back.
    #[arg(long, env = "MAYFLY_GRACE", value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) grace: Duration,
    /// How long the broker may be unreachable at start.
    #[arg(long, env = "MAYFLY_START_DEADLINE", value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) start_deadline: Duration,
    /// How long to try for a fresh connection after one was lost.
    #[arg(long, env = "MAYFLY_RECONNECT_FOR", value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) reconnect_for: Duration,
    /// Create the queue, its retry queues and its dead-letter queue where they are missing.
    #[arg(long, env = "MAYFLY_DECLARE", value_parser = FalseyValueParser::new())]
    pub(crate) declare: bool,
    /// Consume with the same priority as all others. By default lower slots are served first, so that
    /// surplus workers find nothing and end.
    #[arg(long, env = "MAYFLY_NO_PACKING", value_parser = FalseyValueParser::new())]
    pub(crate) no_packing: bool,
    /// Serve /live, /ready and /metrics here.
    #[arg(long, env = "MAYFLY_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub(crate) admin_listen: Option<SocketAddr>,
    /// Write the exit report to this file. Default: /dev/termination-log where it exists.
    #[arg(long, env = TERMINATION_LOG, value_name = "FILE")]
    pub(crate) termination_log: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) recycle: RecycleArgs,
    #[command(flatten, next_help_heading = "Ledger")]
    pub(crate) ledger: LedgerArgs,
    #[command(flatten, next_help_heading = None::<&'static str>)]
    pub(crate) launch: LaunchArgs,
}

/// When a worker makes room for a fresh one: it takes nothing more, finishes what it has and exits with 0.
#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "they are the names of the flags")]
pub(crate) struct RecycleArgs {
    /// Take no message after so many; what was delivered by then is finished.
    #[arg(long, env = "MAYFLY_MAX_MESSAGES", value_name = "COUNT")]
    pub(crate) max_messages: Option<NonZeroU64>,
    /// Take no message when so much memory is in use (512MiB, 2GB): the container's where it has a limit, else
    /// that of the worker and its handlers.
    #[arg(long, env = "MAYFLY_MAX_MEMORY", value_name = "SIZE")]
    pub(crate) max_memory: Option<ByteSize>,
    /// Take no message after this age.
    #[arg(long, env = "MAYFLY_MAX_LIFETIME", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) max_lifetime: Option<Duration>,
}

/// What the scaler says about a worker that it launches.
#[derive(Debug, Args)]
pub(crate) struct LaunchArgs {
    /// The scaler's instance.
    #[arg(long, env = contract::INSTANCE, value_name = "NAME", hide = true)]
    pub(crate) instance: Option<String>,
    /// The worker's pool.
    #[arg(long, env = contract::POOL, value_name = "NAME", hide = true)]
    pub(crate) pool: Option<String>,
    /// The worker's serial.
    #[arg(long, env = contract::SERIAL, value_name = "NUMBER", hide = true)]
    pub(crate) serial: Option<u64>,
    /// How long the work on a message takes, as the scaler knows it.
    #[arg(long, env = contract::SERVICE_TIME_HINT, value_name = "TIME", value_parser = humantime::parse_duration, hide = true)]
    pub(crate) service_time_hint: Option<Duration>,
    /// The worker's slot.
    #[arg(long, env = contract::SLOT, value_name = "NUMBER", hide = true)]
    pub(crate) slot: Option<u32>,
    /// The worker's status file.
    #[arg(long, env = contract::STATUS_FILE, value_name = "FILE", hide = true)]
    pub(crate) status_file: Option<PathBuf>,
    /// How long to wait before starting, where there is a status file.
    #[arg(long, env = contract::START_DELAY, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration, hide = true)]
    pub(crate) start_delay: Duration,
}

/// Of `--prefetch`; `None`: `auto`. An alias, since clap takes an `Option` for one that may be absent.
pub(crate) type Prefetch = std::option::Option<NonZeroU16>;

fn parse_prefetch(text: &str) -> Result<Prefetch, String> {
    if text == "auto" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "expected a number from 1 to 65535, or auto".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn whoever_asks_for_help_sees_an_example() {
        let cli = Cli::command();
        for command in cli.get_subcommands().filter(|command| command.get_name() != "completions") {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(
                help.contains(&format!("mayfly-worker {}", command.get_name())),
                "{}",
                command.get_name()
            );
        }
        for command in [cli, OwnCli::command()] {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Examples:") && help.contains("the ledger"), "{help}");
        }
    }

    #[test]
    fn every_option_can_come_from_the_environment() {
        for command in Cli::command().get_subcommands() {
            for option in command.get_arguments().filter(|argument| argument.get_long().is_some()) {
                let name = option.get_id();
                assert!(
                    option.get_env().is_some_and(|env| env.to_string_lossy().starts_with("MAYFLY_")),
                    "{name}"
                );
            }
        }
    }
}
