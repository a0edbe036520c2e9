//! The command line.

use std::io::Write;

use clap::{CommandFactory, Parser, Subcommand};
use mayfly_service::{ExitCode, Shutdown, log::LogArgs};

use crate::{
    check::{self, CheckArgs},
    explain::{self, ExplainArgs},
    run::{self, RunArgs},
    state_command::{self, StateArgs},
};

/// Watches RabbitMQ queues and launches one worker at a time; with nothing to do, nothing runs.
#[derive(Debug, Parser)]
#[command(name = "mayfly-scaler", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  mayfly-scaler check mayfly.yaml --connect     is the configuration right, are the queues there?
  mayfly-scaler run mayfly.yaml --dry-run       what would it do? launches nothing
  mayfly-scaler run mayfly.yaml                 scale until SIGTERM
  mayfly-scaler explain documents               why is (no) worker launched? asks the running scaler
  mayfly-scaler state mayfly.yaml show          serials, intents, failures, pauses
  mayfly-scaler state mayfly.yaml pause         launch nothing more, in any pool

Exit codes: 0 asked to stop, 64 bad usage or configuration, 69 broker unreachable,
70 internal, 78 refused (queue missing, no permission, damaged state).";

#[derive(Debug, Subcommand)]
enum Command {
    /// Scale until told to stop.
    Run(RunArgs),
    /// Check a configuration and say in words what it means.
    Check(CheckArgs),
    /// Ask a running scaler what it sees, what it decided, why, and what would have to change for a launch.
    Explain(ExplainArgs),
    /// Show, repair, pause or resume what the scaler remembers.
    State(StateArgs),
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

// === impl Cli ===

impl Cli {
    /// Carries the command out.
    ///
    /// # Errors
    /// What went wrong, for people; the exit code is 70 unless the command says otherwise.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
        let Self { log, command } = self;
        log.init()?;
        match command {
            Command::Run(args) => run::run(args, shutdown).await,
            Command::Check(args) => check::check(args).await,
            Command::Explain(args) => explain::explain(args).await,
            Command::State(args) => state_command::state(args).await,
            Command::Schema => {
                let mut out = std::io::stdout().lock();
                serde_json::to_writer_pretty(&mut out, &crate::config::schema())?;
                writeln!(out)?;
                Ok(ExitCode::Ok)
            }
            Command::Completions { shell } => {
                let mut command = Self::command();
                clap_complete::generate(shell, &mut command, "mayfly-scaler", &mut std::io::stdout());
                Ok(ExitCode::Ok)
            }
        }
    }
}
