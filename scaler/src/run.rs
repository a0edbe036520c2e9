//! `mayfly-scaler run`: builds the parts, lets them run, stops them in order.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context;
use mayfly_broker::{BrokerArgs, BrokerUrl};
use mayfly_service::{
    ExitCode, Shutdown,
    admin::{AdminServer, Readiness},
};
use tokio::sync::watch;

use crate::{
    cluster::Cluster,
    config::{Config, LauncherConfig, Overrides},
    control::Control,
    launcher::{KubernetesLauncher, Launcher, ProcessLauncher},
    observe::{
        CounterWatch, QueueWatch,
        counters::endpoint::{Endpoint, Login},
    },
    state::{ConfigMapState, FileState, StateStore},
    status,
    time::Clock,
};

/// lapin keeps 64 frames a connection; passive declares need no large ones.
const FRAME_MAX: u32 = 8192;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The configuration.
    #[arg(env = "MAYFLY_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Where /live, /ready and /status are served; port 0 takes a free one. Off if absent.
    #[arg(long, env = "MAYFLY_ADMIN_LISTEN", value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    overrides: Overrides,
}

/// Scales until the first signal.
///
/// # Errors
/// When the state directory cannot be made, or the admin server fails.
pub async fn run(args: RunArgs, shutdown: Shutdown) -> anyhow::Result<ExitCode> {
    let RunArgs { config, admin_listen, broker, overrides } = args;
    let config = match Config::load(&config, &overrides) {
        Ok(config) => Arc::new(config),
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
        "mayfly-scaler {} runs",
        env!("CARGO_PKG_VERSION"),
    );
    match &config.launcher {
        LauncherConfig::Process { directory, start_delay } => {
            let launcher = ProcessLauncher::new(&config, directory, *start_delay)
                .with_context(|| format!("state directory {} cannot be made", directory.display()))?;
            let state = FileState::new(directory);
            serve(Arc::clone(&config), url, launcher, state, admin, shutdown).await?;
        }
        LauncherConfig::Kubernetes { namespace } => {
            let cluster = match Cluster::infer(namespace.as_deref()).await {
                Ok(cluster) => cluster,
                Err(error) => return Ok(refuse(&error.into(), ExitCode::Usage)),
            };
            tracing::info!(namespace = cluster.namespace(), "workers are jobs of a Kubernetes cluster");
            let launcher = KubernetesLauncher::new(cluster.clone(), &config);
            let state = ConfigMapState::new(cluster, &config.instance);
            serve(Arc::clone(&config), url, launcher, state, admin, shutdown).await?;
        }
    }
    tracing::info!("asked to stop; workers go on by themselves");
    Ok(ExitCode::Ok)
}

/// Runs the loop, the watch over the queues and the admin server until the loop has ended.
async fn serve<L: Launcher, S: StateStore>(
    config: Arc<Config>,
    url: BrokerUrl,
    launcher: L,
    state: S,
    admin: Option<AdminServer>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let clock = Clock::start();
    let queues: Vec<_> = config.pools.iter().flat_map(|pool| pool.queues.clone()).collect();
    let counters = match &config.counters {
        Some(counters) => {
            let endpoints = Endpoint::all(counters, url.vhost(), Login::of(&url))?;
            Some((counters.source, endpoints))
        }
        None => None,
    };
    let (watch, facts) = QueueWatch::new(url, &config.instance, queues.clone(), clock);
    let counting = counters.map(|(source, endpoints)| {
        let watch = CounterWatch::new(endpoints, source, queues, watch.teller(), clock);
        tokio::spawn(watch.run(shutdown.stop.clone()))
    });
    let (status_page, status) = watch::channel(None);
    let readiness = Readiness::default();
    let watching = tokio::spawn(watch.run(config.check_interval, shutdown.stop.clone()));
    let serving = admin.map(|server| {
        tokio::spawn(server.serve(readiness.clone(), status::routes(status), shutdown.stop.clone()))
    });
    Control::new(config, launcher, state, clock, facts, status_page, readiness).run(shutdown).await;
    watching.await.context("the watch over the queues ended abnormally")?;
    if let Some(counting) = counting {
        counting.await.context("the watch over the counters ended abnormally")?;
    }
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
