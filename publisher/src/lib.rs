//! mayfly's publisher: publish with confirms, inspect queues, declare the standard topology.

mod args;
mod declare;
mod delivery;
mod failure;
mod input;
mod inspect;
mod output;
mod progress;
mod publish;
mod tally;

pub use args::Args;

use clap::CommandFactory;
use mayfly_service::{ExitCode, Shutdown};

use crate::{args::Command, failure::Failure};

/// Runs one command. Results go to standard output, everything else to standard error.
pub async fn run(args: Args, shutdown: Shutdown) -> ExitCode {
    let Args { command, broker, log } = args;
    let outcome = async {
        log.init().map_err(|error| Failure::usage(&error))?;
        match command {
            Command::Publish(args) => publish::publish(args, &broker, shutdown).await,
            Command::Inspect(args) => inspect::inspect(args, &broker).await,
            Command::Declare(args) => declare::declare(args, &broker).await,
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Args::command(), "mayfly-publisher", &mut script);
                output::print(&script)
            }
        }
    };
    match outcome.await {
        Ok(()) => ExitCode::Ok,
        Err(failure) => {
            eprint!("{failure}");
            failure.code
        }
    }
}
