//! `bench`: what mayfly costs, as ratios to a bare client measured in the same run. Reports; a missed
//! target is no failure.

mod baseline;
mod report;
mod scaler;
mod stage;
mod usage;
mod watched;
mod worker;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use mayfly_service::Shutdown;

use self::{report::Figure, stage::Stage};

/// The exit code after Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Measures mayfly on a RabbitMQ node of its own and reports medians with their spread, ratios to a bare
/// client measured in the same run, and targets. A missed target is reported and is no failure.
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

#[derive(Debug, Clone, Copy, Subcommand)]
enum What {
    /// From its start to its consumer, memory, throughput.
    Worker,
    /// What it costs while there is nothing to do.
    Scaler,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    mayfly_service::tls::install_provider();
    let args = Args::parse();
    // One thread, like the worker: the bare client should differ by what mayfly does, and by nothing else.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.context("no runtime").and_then(|runtime| runtime.block_on(bench(&args)));
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

async fn bench(args: &Args) -> Result<ExitCode> {
    let shutdown = Shutdown::on_signals()?;
    // What is cancelled here is dropped, and with that ended.
    let figures = tokio::select! {
        figures = measure(args) => figures?,
        () = shutdown.stop.cancelled() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let text = match args.output {
        Output::Text => report::as_text(&figures),
        Output::Json => report::as_json(&figures)?,
    };
    #[expect(clippy::print_stdout, reason = "the report is the program's output")]
    {
        print!("{text}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &Args) -> Result<Vec<Figure>> {
    eprintln!("starting a RabbitMQ node");
    let stage = Stage::set().await?;
    let figures = match args.what {
        What::Worker => worker::measure(&stage, args.quick).await,
        What::Scaler => scaler::measure(&stage, args.quick).await,
    };
    if figures.is_err() {
        eprintln!("--- end of the node's log:\n{}", stage.node.broker().log_tail());
    }
    figures
}
