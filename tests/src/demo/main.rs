//! `demo`: the main job, whole, on a real broker: messages in, workers one at a time, all of them done,
//! nothing left running. Ends with a summary that was checked.

mod scene;
mod screen;
mod stage;
mod summary;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use mayfly_service::Shutdown;

use self::{
    scene::{Act, Scene},
    screen::Screen,
    stage::{Kubernetes, Local, Stage},
    summary::Summary,
};

/// So many failed workers, with nothing done, are enough.
const HOPELESS: usize = 2;
/// The exit code after Ctrl-C.
const INTERRUPTED: u8 = 130;

/// How a play ended that did not fail.
enum End {
    /// It was checked; whether all checks hold.
    Checked(bool),
    /// By a signal.
    Interrupted,
}

/// Publishes messages, lets mayfly start workers for them one at a time, watches until all is done and
/// nothing runs any more, and checks that this is so.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "bin/demo",
    after_help = "\
Uses the broker at MAYFLY_BROKER_URL if that is set, else an own RabbitMQ node on free loopback ports. In
Kubernetes the broker is the one that --broker-url-file names, else that of `bin/cluster broker`.

Examples:
  bin/demo                                        200 messages of 1 s
  bin/demo --messages 50 --work 2s --max-workers 3
  bin/demo --start-delay 30s                      as if a node had to be provisioned for each worker
  bin/demo --keep                                 stay afterwards: publish more, look around
  bin/demo --kubernetes                           in the cluster of bin/cluster up and bin/cluster broker
  bin/demo --kubernetes --broker-url-file url -- --image-registry registry.example/me

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
    /// Not in Kubernetes, where a node really has to come.
    #[arg(long, default_value = "3s", value_name = "DURATION", conflicts_with = "kubernetes", value_parser = humantime::parse_duration)]
    start_delay: Duration,
    /// Most workers at once.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_workers: u32,
    /// Stay afterwards, with broker and scaler up, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Play in the cluster of the current kubectl context: install there, publish, look, uninstall.
    #[arg(long)]
    kubernetes: bool,
    /// In Kubernetes: the file that holds RabbitMQ's URL, as pods reach it.
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    broker_url_file: Option<PathBuf>,
    /// In Kubernetes: the namespace; one that exists stays [default: a new one, removed at the end].
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    namespace: Option<String>,
    /// In Kubernetes: more for bin/install.
    #[arg(last = true, value_name = "OPTION", requires = "kubernetes")]
    install: Vec<String>,
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
    let screen = Screen::new();
    if !args.kubernetes {
        return show(args, Local::new()?, screen, &shutdown).await;
    }
    match shutdown.stop.run_until_cancelled(Kubernetes::new(args, &screen)).await {
        Some(stage) => Box::pin(show(args, stage?, screen, &shutdown)).await,
        None => Ok(ExitCode::from(INTERRUPTED)),
    }
}

/// The demo on `stage`, which is struck however it ends; a second signal cuts that short.
async fn show(
    args: &Args,
    mut stage: impl Stage,
    mut screen: Screen,
    shutdown: &Shutdown,
) -> Result<ExitCode> {
    let end = perform(args, &mut stage, &mut screen, shutdown).await;
    screen.clear();
    if matches!(end, Ok(End::Interrupted)) {
        screen.say(&format!("interrupted: {}", stage.farewell()));
    }
    let traces = stage.traces();
    let struck = tokio::select! {
        () = shutdown.abort.cancelled() => {
            if !traces.is_empty() {
                screen.say(&format!("aborted; what may be left: {traces}"));
            }
            return Ok(ExitCode::from(INTERRUPTED));
        }
        struck = stage.strike(&screen) => struck,
    };
    match (end, struck) {
        (Err(error), Err(left)) => bail!("{error:#}; not all is taken down: {left:#}"),
        (Err(error), Ok(())) | (Ok(_), Err(error)) => Err(error),
        (Ok(End::Checked(true)), Ok(())) => Ok(ExitCode::SUCCESS),
        (Ok(End::Checked(false)), Ok(())) => Ok(ExitCode::FAILURE),
        (Ok(End::Interrupted), Ok(())) => Ok(ExitCode::from(INTERRUPTED)),
    }
}

/// From nothing to the checked summary, and on until Ctrl-C if all is to be kept.
async fn perform(
    args: &Args,
    stage: &mut impl Stage,
    screen: &mut Screen,
    shutdown: &Shutdown,
) -> Result<End> {
    let stopped = &shutdown.stop;
    let Some(built) = stopped.run_until_cancelled(stage.build_up(args, screen)).await else {
        return Ok(End::Interrupted);
    };
    if let Err(error) = built {
        screen.say(&stage.logs().await);
        return Err(error);
    }
    let Some(played) = stopped.run_until_cancelled(play(args, stage, screen)).await else {
        return Ok(End::Interrupted);
    };
    screen.clear();
    let summary = match played {
        Ok(scene) => {
            screen.hint("checking what is left…");
            let checked = stopped.run_until_cancelled(check(args, &scene, stage)).await;
            screen.clear();
            let Some(summary) = checked else { return Ok(End::Interrupted) };
            summary
        }
        Err(error) => {
            screen.say(&stage.logs().await);
            Err(error)
        }
    };
    if let Ok(summary) = &summary {
        screen.say(&summary.to_string());
    }
    if args.keep {
        stage.start_scaler().await?;
        screen.say(&stage.guide());
        stopped.cancelled().await;
    }
    Ok(End::Checked(summary?.holds()))
}

/// From publishing to the last worker's end.
async fn play<S: Stage>(args: &Args, stage: &mut S, screen: &mut Screen) -> Result<Scene> {
    let begin = Instant::now();
    let published = stage.publish(args.messages).await?;
    let mut scene = Scene::new(published, begin);
    let patience = S::PATIENCE + args.work + args.start_delay;
    let mut moved = (scene.progress(), Instant::now());
    loop {
        scene.take_in(stage.look().await?);
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
        tokio::time::sleep(S::FRAME).await;
    }
}

/// Looks for what is left: of the workers while the scaler still runs, of everything after it has ended.
async fn check(args: &Args, scene: &Scene, stage: &mut impl Stage) -> Result<Summary> {
    let mut summary = Summary::of(scene, args.max_workers, stage.running().await?);
    stage.stop_scaler().await?;
    summary.broker(&stage.remains().await?);
    Ok(summary)
}
