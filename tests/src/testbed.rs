//! `testbed`: brokers for tests and for development, gone when it is.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use mayfly_service::Shutdown;
use mayfly_tests::{
    Broker, Node, Release,
    bed::BROKERS,
    sandbox::{Identity, Sandbox},
};

/// How long a command may take to end after the first signal.
const GRACE: Duration = Duration::from_secs(10);
/// The exit code after a signal.
const INTERRUPTED: u8 = 130;

/// RabbitMQ brokers for tests and for development: on free loopback ports, with data of their own, never a
/// system service. Nothing of them outlives this program, however it ends.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a command beside brokers (all releases unless some are named) and exit with its code.
    Run {
        /// With the RabbitMQ package of this distribution.
        #[arg(long)]
        packaged: bool,
        /// With RabbitMQ 4, in a root file system of its own.
        #[arg(long)]
        trixie: bool,
        /// The command and its arguments; finds its brokers in `MAYFLY_TEST_BROKERS`.
        #[arg(required = true, last = true)]
        argv: Vec<String>,
    },
    /// Run one broker in the foreground, for development.
    Broker {
        /// Which RabbitMQ.
        #[arg(long, value_enum, default_value = "packaged")]
        release: Release,
    },
    /// Install RabbitMQ 4 into the cache (`MAYFLY_CACHE`) if it is not there. Needs root.
    Fetch,
}

fn main() -> ExitCode {
    let Args { command } = Args::parse();
    let outcome = tokio::runtime::Runtime::new()
        .context("no runtime")
        .and_then(|runtime| runtime.block_on(act(command)));
    outcome.unwrap_or_else(|error| {
        eprintln!("testbed: {error:#}");
        ExitCode::FAILURE
    })
}

async fn act(command: Verb) -> Result<ExitCode> {
    let shutdown = Shutdown::on_signals()?;
    // What is cancelled here is dropped, and with that ended.
    tokio::select! {
        outcome = async {
            match command {
                Verb::Run { packaged, trixie, argv } => {
                    run(&chosen(packaged, trixie), &argv, &shutdown).await
                }
                Verb::Broker { release } => serve(release, &shutdown).await,
                Verb::Fetch => Release::Trixie.ensure().await.map(|()| ExitCode::SUCCESS),
            }
        } => outcome,
        () = async {
            shutdown.stop.cancelled().await;
            tokio::time::sleep(GRACE).await;
        } => Ok(INTERRUPTED.into()),
        () = shutdown.abort.cancelled() => Ok(INTERRUPTED.into()),
    }
}

/// The releases asked for; all if none is named.
fn chosen(packaged: bool, trixie: bool) -> Vec<Release> {
    match (packaged, trixie) {
        (true, false) => vec![Release::Packaged],
        (false, true) => vec![Release::Trixie],
        _ => Release::ALL.to_vec(),
    }
}

/// Runs `argv` beside brokers; a signal is passed on to it.
async fn run(releases: &[Release], argv: &[String], shutdown: &Shutdown) -> Result<ExitCode> {
    let Some(nodes) = start(releases, shutdown).await? else { return Ok(INTERRUPTED.into()) };
    let brokers: Vec<&Broker> = nodes.iter().map(Node::broker).collect();
    // What the command leaves there when it is killed goes with us, however we end.
    let scratch = tempfile::Builder::new().prefix("mayfly-testbed-").tempdir()?;
    let mut command = Sandbox::command(Identity::Own, Some(scratch.path()), argv);
    command.env(BROKERS, serde_json::to_string(&brokers)?).env("TMPDIR", scratch.path());
    let mut sandbox = Sandbox::spawn(command)?;
    let status = tokio::select! {
        status = sandbox.wait() => status?,
        () = shutdown.stop.cancelled() => {
            sandbox.terminate().await?;
            sandbox.wait().await?;
            return Ok(INTERRUPTED.into());
        }
    };
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// One broker until a signal comes.
async fn serve(release: Release, shutdown: &Shutdown) -> Result<ExitCode> {
    let Some(nodes) = start(&[release], shutdown).await? else { return Ok(INTERRUPTED.into()) };
    let broker = nodes.first().context("no broker")?.broker();
    let management = broker.ports.management;
    eprintln!("management http://127.0.0.1:{management} guest/guest · log {}", broker.log_file().display());
    eprintln!("for single tests: export {BROKERS}='{}'", serde_json::to_string(&[broker])?);
    #[expect(clippy::print_stdout, reason = "the URL is the program's output")]
    {
        println!("{}", broker.url());
    }
    shutdown.stop.cancelled().await;
    Ok(ExitCode::SUCCESS)
}

/// Starts brokers, or gives up when a signal comes.
async fn start(releases: &[Release], shutdown: &Shutdown) -> Result<Option<Vec<Node>>> {
    tokio::select! {
        nodes = Node::start_all(releases) => nodes.map(Some),
        () = shutdown.stop.cancelled() => Ok(None),
    }
}
