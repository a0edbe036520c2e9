//! Asking a cluster's API server.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// How long one call may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A client of the cluster that this kubeconfig names as current.
///
/// # Errors
/// When the file is not readable or makes no sense.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| kubeconfig.display().to_string())?;
    of(Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)
}

/// A client of the cluster that is current for the user: `KUBECONFIG`, or `~/.kube/config`.
///
/// # Errors
/// When there is none.
pub async fn current_client() -> Result<Client> {
    of(Config::from_kubeconfig(&KubeConfigOptions::default()).await?)
}

fn of(mut config: Config) -> Result<Client> {
    mayfly_service::tls::install_provider();
    // Whoever asks decides about asking again.
    config.default_retry = false;
    config.connect_timeout = Some(LIMIT);
    Ok(Client::try_from(config)?)
}

/// What selects the Jobs and pods of an instance's workers.
#[must_use]
pub fn worker_selector(instance: &str) -> String {
    format!("app.kubernetes.io/instance={instance},app.kubernetes.io/component=worker")
}

/// One call, with its deadline.
pub(crate) async fn limited<T>(what: &'static str, call: impl Future<Output = kube::Result<T>>) -> Result<T> {
    mayfly_service::deadline(what, LIMIT, call).await?.context(what)
}
