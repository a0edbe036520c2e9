//! `demo`: the main job, whole, on a real broker: messages in, workers one at a time, all of them done,
//! nothing left running. Ends with a summary that was checked.

mod scene;
mod screen;
mod stage;
mod summary;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use mayfly_service::Shutdown;

use self::{
    scene::{Act, Scene},
    screen::Screen,
    stage::Stage,
    summary::Summary,
};

/// Between two looks at the scaler.
const FRAME: Duration = Duration::from_millis(250);
/// Nothing done, nobody started or ended for this long (beyond the work and the start delay): given up.
const STANDSTILL: Duration = Duration::from_secs(90);
/// So many failed workers, with nothing done, are enough.
const HOPELESS: usize = 2;
/// The exit code after Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Publishes messages, lets mayfly start workers for them one at a time, watches until all is done and
/// nothing runs any more, and checks that this is so.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "bin/demo",
    after_help = "\
Uses the broker at MAYFLY_BROKER_URL if that is set, else an own RabbitMQ node on free loopback ports.

Examples:
  bin/demo                                        200 messages of 1 s
  bin/demo --messages 50 --work 2s --max-workers 3
  bin/demo --start-delay 30s                      as if a node had to be provisioned for each worker
  bin/demo --keep                                 stay afterwards: publish more, look around

Exit codes: 0 all checks hold, 1 one does not, 130 interrupted."
)]
struct Args {
    /// How many messages.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    messages: u32,
    /// How long each takes to process.
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    work: Duration,
    /// How long a worker waits before it starts, imitating a node that has to be provisioned.
    #[arg(long, default_value = "3s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    start_delay: Duration,
    /// Most workers at once.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_workers: u32,
    /// Stay afterwards, with broker and scaler up, until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    mayfly_service::tls::install_provider();
    let args = Args::parse();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no runtime")
        .and_then(|runtime| runtime.block_on(demo(&args)));
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// The whole demo, cleaned up however it ends.
async fn demo(args: &Args) -> Result<ExitCode> {
    let shutdown = Shutdown::on_signals()?;
    let mut screen = Screen::new();
    let mut stage = tokio::select! {
        () = shutdown.stop.cancelled() => return Ok(ExitCode::from(INTERRUPTED)),
        stage = Stage::set(args, &mut screen) => stage?,
    };
    let played = tokio::select! {
        () = shutdown.stop.cancelled() => None,
        played = play(args, &stage, &mut screen) => Some(played),
    };
    screen.clear();
    let Some(played) = played else {
        screen.say("interrupted: stopping the workers, the scaler and the broker");
        stage.strike().await?;
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let result = match played {
        Ok(scene) => {
            screen.hint("checking at the broker and in the process table…");
            let summary = check(args, &scene, &mut stage).await;
            screen.clear();
            summary
        }
        Err(error) => {
            screen.say(&stage.logs());
            Err(error)
        }
    };
    if let Ok(summary) = &result {
        screen.say(&summary.to_string());
    }
    if args.keep {
        stage.start_scaler().await?;
        screen.say(&stage.guide());
        shutdown.stop.cancelled().await;
    }
    stage.strike().await?;
    let holds = result?.holds();
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Looks for what is left: of the workers while the scaler still runs, of everything after it has ended.
async fn check(args: &Args, scene: &Scene, stage: &mut Stage) -> Result<Summary> {
    let mut summary = Summary::of(args, scene, stage);
    stage.stop_scaler().await?;
    summary.broker(stage).await?;
    Ok(summary)
}

/// From publishing to the last worker's end.
async fn play(args: &Args, stage: &Stage, screen: &mut Screen) -> Result<Scene> {
    let begin = Instant::now();
    let published = stage.publish(args.messages).await?;
    let mut scene = Scene::new(published, begin);
    let patience = STANDSTILL + args.work + args.start_delay;
    let mut moved = (scene.progress(), Instant::now());
    loop {
        scene.look(stage).await?;
        screen.draw(&scene);
        if scene.act() == Act::Over {
            return Ok(scene);
        }
        if scene.done.is_empty() && scene.failed() >= HOPELESS {
            bail!("{} workers failed and nothing was done", scene.failed());
        }
        if scene.progress() != moved.0 {
            moved = (scene.progress(), Instant::now());
        }
        if moved.1.elapsed() > patience {
            bail!("nothing has moved for {patience:?}; last decision: {}", scene.decision());
        }
        tokio::time::sleep(FRAME).await;
    }
}
