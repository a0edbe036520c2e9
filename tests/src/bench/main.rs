//! `bench`: what mayfly costs, as ratios to baselines measured in the same run. Reports; a missed target is
//! no failure.

mod backlog;
mod baseline;
mod report;
mod scaler;
mod spawning;
mod stage;
mod watched;
mod worker;

use std::{num::NonZeroUsize, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use mayfly_service::Shutdown;
use mayfly_tests::usage;
use tokio::runtime::{Builder, Runtime};

use self::{baseline::Bare, report::Figure, stage::Stage};

/// The exit code after Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Measures mayfly on a RabbitMQ node of its own and reports medians with their spread, ratios to baselines
/// measured in the same run, and targets. A missed target is reported and is no failure.
#[derive(Debug, Parser)]
#[command(name = "bin/bench")]
struct Args {
    #[command(subcommand)]
    what: What,
    /// Fewer repetitions: ends within a minute.
    #[arg(long, global = true)]
    quick: bool,
    /// The shape of the report; `json` is one object a line.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// From its start to its consumer, memory, throughput with each kind of handler.
    Worker {
        /// Only this part.
        #[arg(long, value_name = "PART")]
        only: Option<worker::Part>,
    },
    /// What a decision costs, one queue and a thousand with nothing to do, from a publish to a launch.
    Scaler {
        /// Only this part.
        #[arg(long, value_name = "PART")]
        only: Option<scaler::Part>,
    },
    /// A baseline, started by the others: prints the seconds that it took.
    #[command(hide = true, subcommand)]
    Baseline(Baseline),
}

#[derive(Debug, Clone, Subcommand)]
enum Baseline {
    /// Takes messages with a bare client.
    Bare {
        #[arg(long, env = "MAYFLY_BROKER_URL")]
        url: String,
        #[arg(long)]
        queue: String,
        #[arg(long)]
        count: usize,
    },
    /// Takes messages with a bare client and runs a program for each.
    Running {
        #[arg(long, env = "MAYFLY_BROKER_URL")]
        url: String,
        #[arg(long)]
        queue: String,
        #[arg(long)]
        program: PathBuf,
        #[arg(long)]
        count: usize,
        #[arg(long)]
        concurrency: NonZeroUsize,
    },
    /// Runs a program again and again.
    Spawning {
        #[arg(long)]
        program: PathBuf,
        #[arg(long)]
        count: usize,
        #[arg(long)]
        concurrency: NonZeroUsize,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    mayfly_service::tls::install_provider();
    let args = Args::parse();
    let outcome = match &args.what {
        What::Worker { .. } | What::Scaler { .. } => {
            one_thread().and_then(|runtime| runtime.block_on(bench(&args)))
        }
        What::Baseline(baseline) => run_baseline(baseline).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// As little as possible beside what is measured.
fn one_thread() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("no runtime")
}

fn run_baseline(baseline: &Baseline) -> Result<()> {
    let took = match baseline {
        Baseline::Bare { url, queue, count } => Runtime::new()?.block_on(async {
            let mut bare = Bare::register(url, queue).await?;
            let took = bare.take(*count).await?;
            bare.close().await.map(|()| took)
        })?,
        Baseline::Running { url, queue, program, count, concurrency } => one_thread()?.block_on(async {
            let mut bare = Bare::register(url, queue).await?;
            let took = bare.run(program, *count, *concurrency).await?;
            bare.close().await.map(|()| took)
        })?,
        // On one thread, as the worker's.
        Baseline::Spawning { program, count, concurrency } => {
            one_thread()?.block_on(spawning::spawn_all(program, *count, *concurrency))?
        }
    };
    show(&format!("{}\n", took.as_secs_f64()));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the report is the program's output")]
fn show(text: &str) {
    print!("{text}");
}

async fn bench(args: &Args) -> Result<ExitCode> {
    let shutdown = Shutdown::on_signals()?;
    let mut figures = Vec::new();
    // What is cancelled here is dropped, and with that ended.
    let outcome = tokio::select! {
        outcome = measure(args, &mut figures) => outcome,
        () = shutdown.stop.cancelled() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    // Also what was measured before something failed.
    show(&match args.output {
        Output::Text => report::as_text(&figures),
        Output::Json => report::as_json(&figures)?,
    });
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn measure(args: &Args, figures: &mut Vec<Figure>) -> Result<()> {
    eprintln!("starting a RabbitMQ node");
    let stage = Stage::set().await?;
    let outcome = match args.what {
        What::Worker { only } => worker::measure(&stage, args.quick, only, figures).await,
        What::Scaler { only } => scaler::measure(&stage, args.quick, only, figures).await,
        What::Baseline(_) => Ok(()),
    };
    if outcome.is_err() {
        eprintln!("--- end of the node's log:\n{}", stage.node.broker().log_tail());
    }
    outcome
}
