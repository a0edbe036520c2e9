//! mayfly's publisher: publish with confirms, inspect queues, declare and delete the standard topology.

mod args;
mod declare;
mod delete;
mod delivery;
mod draft;
mod failure;
mod input;
mod inspect;
mod output;
mod progress;
mod publish;
mod tally;

pub use args::Args;

use clap::CommandFactory;
use mayfly_broker::{BadUrl, BrokerArgs, BrokerUrl};
use mayfly_service::{ExitCode, Shutdown};

use crate::{args::Command, failure::Failure};

/// Bytes per frame: lapin keeps 64 of them, and small messages need no more.
const FRAME_MAX: u32 = 16_384;

/// Runs one command. Results go to standard output, everything else to standard error.
pub async fn run(args: Args, shutdown: Shutdown) -> ExitCode {
    let Args { command, broker, log } = args;
    let outcome = async {
        log.init().map_err(|error| Failure::usage(&error))?;
        match command {
            Command::Publish(args) => publish::publish(args, &broker, shutdown).await,
            Command::Inspect(args) => inspect::inspect(args, &broker).await,
            Command::Declare(args) => declare::declare(args, &broker).await,
            Command::Delete(args) => delete::delete(args, &broker).await,
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

fn url(broker: &BrokerArgs) -> Result<BrokerUrl, BadUrl> {
    Ok(broker.load()?.with_default_frame_max(FRAME_MAX))
}
