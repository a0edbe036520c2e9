//! `mayfly-scaler run`: builds the parts, lets them run, stops them in order.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use mayfly_broker::BrokerArgs;
use mayfly_service::{
    ExitCode, Shutdown,
    admin::{AdminServer, Readiness},
    metrics,
};
use tokio::sync::watch;

use crate::{
    cluster::Cluster,
    config::{Config, LauncherConfig, Overrides},
    control::Control,
    launcher::{KubernetesLauncher, Launcher, ProcessLauncher},
    setup::{Setup, SetupWatch, Source},
    state::{ConfigMapState, FileState, StateStore},
    status,
    time::Clock,
};

/// lapin keeps 64 frames a connection; passive declares need no large ones.
const FRAME_MAX: u32 = 8192;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The configuration. When it changes it takes effect within about a second; a bad one is refused, and the
    /// one before stays in force.
    #[arg(env = "MAYFLY_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Look, decide and tell, but launch nothing, take nothing back and write nothing; also beside a scaler that
    /// does.
    #[arg(long, env = "MAYFLY_DRY_RUN")]
    dry_run: bool,
    /// Where /live, /ready, /status and /metrics are served; port 0 takes a free one. Off if absent.
    #[arg(long, env = "MAYFLY_ADMIN_LISTEN", value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    overrides: Overrides,
}

/// What runs around the loop.
struct Frame {
    setup: (SetupWatch, watch::Receiver<Setup>),
    clock: Clock,
    admin: Option<AdminServer>,
    dry_run: bool,
}

/// Scales until the first signal.
///
/// # Errors
/// When the state directory cannot be made, or the admin server fails.
pub async fn run(args: RunArgs, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
    let RunArgs { config: path, dry_run, admin_listen, broker, overrides } = args;
    let read = Config::read(&path).and_then(|text| Ok((Config::parse(&text, &overrides)?, text)));
    let (config, text) = match read {
        Ok(read) => read,
        Err(error) => return Ok(refuse(&error.into(), ExitCode::Usage)),
    };
    let url = match config.broker_args(&broker).load() {
        Ok(url) => url.with_default_frame_max(FRAME_MAX),
        Err(error) => return Ok(refuse(&error.into(), ExitCode::Usage)),
    };
    let admin = match admin_listen {
        Some(address) => Some(AdminServer::bind(address).await?),
        None => None,
    };
    tracing::info!(
        instance = config.instance,
        pools = config.pools.len(),
        broker = url.endpoint(),
        admin = admin.as_ref().map(|server| server.address().to_string()),
        dry_run,
        "mayfly-scaler {} runs",
        env!("CARGO_PKG_VERSION"),
    );
    let clock = Clock::start();
    let (instance, launcher) = (config.instance.clone(), config.launcher.clone());
    let source = Source { path, overrides };
    let setup = match SetupWatch::new(source, (text, config), url, clock, shutdown.stop.clone()) {
        Ok(setup) => setup,
        Err(error) => return Ok(refuse(&error.into(), ExitCode::Usage)),
    };
    let frame = Frame { setup, clock, admin, dry_run };
    match launcher {
        LauncherConfig::Process { directory, start_delay } => {
            let launcher = if dry_run {
                ProcessLauncher::to_look(&instance, &directory, start_delay)
            } else {
                ProcessLauncher::new(&instance, &directory, start_delay)
                    .with_context(|| format!("state directory {} cannot be made", directory.display()))?
            };
            serve(frame, launcher, FileState::new(&directory), shutdown).await?;
        }
        LauncherConfig::Kubernetes { namespace, autoscaler_status } => {
            let cluster = match Cluster::infer(namespace.as_deref()).await {
                Ok(cluster) => cluster,
                Err(error) => return Ok(refuse(&error.into(), ExitCode::Usage)),
            };
            tracing::info!(namespace = cluster.namespace(), "workers are jobs of a Kubernetes cluster");
            let launcher = KubernetesLauncher::new(cluster.clone(), &instance, autoscaler_status);
            serve(frame, launcher, ConfigMapState::new(cluster, &instance), shutdown).await?;
        }
    }
    tracing::info!("asked to stop; workers go on by themselves");
    Ok(ExitCode::Ok)
}

/// Runs the loop, what it works with, and the admin server until the loop has ended.
async fn serve<L: Launcher, S: StateStore>(
    frame: Frame,
    launcher: L,
    state: S,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let Frame { setup: (setup, receiver), clock, admin, dry_run } = frame;
    let (telling, seen) = watch::channel(None);
    let readiness = Readiness::default();
    let routes = status::routes(seen).merge(metrics::routes(setup.registry()));
    let following = tokio::spawn(setup.run());
    let serving =
        admin.map(|server| tokio::spawn(server.serve(readiness.clone(), routes, shutdown.stop.clone())));
    let control = Control::new(receiver, launcher, state, clock, telling, readiness);
    control.dry_run(dry_run).run(shutdown).await;
    following.await.context("the watch over configuration and queues ended abnormally")?;
    if let Some(serving) = serving {
        serving.await.context("the admin server ended abnormally")?.context("the admin server failed")?;
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a refusal is for the person at the terminal")]
fn refuse(error: &anyhow::Error, code: ExitCode) -> ExitCode {
    eprintln!("error: {error:#}");
    code
}
