//! The installation's scaler, reached through the API server.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, LogParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{START_LIMIT, eventually, limited};
use crate::stage::POOL;

/// How long its pods may take to end.
const STOP_LIMIT: Duration = Duration::from_mins(2);
/// How many of its last lines an error shows.
const TAIL_LINES: i64 = 12;

/// Its Deployment and its pods.
pub(super) struct Scaler {
    client: Client,
    namespace: String,
    name: String,
    deployments: Api<Deployment>,
    pods: Api<Pod>,
    selector: ListParams,
}

// === impl Scaler ===

impl Scaler {
    pub(super) fn new(client: &Client, namespace: &str, instance: &str) -> Self {
        let selector = format!("app.kubernetes.io/instance={instance},app.kubernetes.io/component=scaler");
        Self {
            client: client.clone(),
            namespace: namespace.to_owned(),
            name: format!("{instance}-scaler"),
            deployments: Api::namespaced(client.clone(), namespace),
            pods: Api::namespaced(client.clone(), namespace),
            selector: ListParams::default().labels(&selector),
        }
    }

    pub(super) async fn deployment(&self) -> Result<Option<Deployment>> {
        limited("read the scaler's Deployment", self.deployments.get_opt(&self.name)).await
    }

    /// What its `/status` says of the pool, through the API server's proxy for its Deployment's pod.
    pub(super) async fn status(&self) -> Result<Value> {
        let pods = limited("list the scaler's pods", self.pods.list(&self.selector)).await?;
        let pod = pods.iter().find(|pod| is_ready(pod)).context("the scaler has no ready pod")?;
        let path = format!("/api/v1/namespaces/{}/pods/{}:8080/proxy/status", self.namespace, pod.name_any());
        let request = hyper::Request::get(path).body(Vec::new())?;
        let page: Value = limited("read the scaler's page", self.client.request(request)).await?;
        page.pointer(&format!("/pools/{POOL}")).cloned().context("the scaler's page has no pool yet")
    }

    pub(super) async fn sees_the_empty_queue(&self) -> Result<()> {
        eventually("the scaler sees the empty queue", START_LIMIT, async || {
            let status = self.status().await?;
            anyhow::ensure!(status["reason"] == "Empty", "its decision is {}", status["text"]);
            Ok(Some(()))
        })
        .await
    }

    /// Changes how many there are, and waits until those that are too many are gone. One that does not exist
    /// is not there.
    pub(super) async fn scale(&self, replicas: u32) -> Result<()> {
        if self.deployment().await?.is_none() {
            return Ok(());
        }
        let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        let parameters = PatchParams::default();
        let scaled = self.deployments.patch_scale(&self.name, &parameters, &patch);
        limited("scale the scaler", scaled).await?;
        eventually("the scaler's pods end", STOP_LIMIT, async || {
            let pods = limited("list the scaler's pods", self.pods.list(&self.selector)).await?;
            Ok((pods.items.len() <= usize::try_from(replicas)?).then_some(()))
        })
        .await
    }

    /// The end of its log, for an error; empty if it cannot be read.
    pub(super) async fn logs(&self) -> String {
        let Ok(pods) = limited("list the scaler's pods", self.pods.list(&self.selector)).await else {
            return String::new();
        };
        let tail = LogParams { tail_lines: Some(TAIL_LINES), ..LogParams::default() };
        let mut parts = Vec::new();
        for pod in pods.iter().map(ResourceExt::name_any) {
            if let Ok(log) = limited("read the scaler's log", self.pods.logs(&pod, &tail)).await {
                parts.push(format!("--- end of {pod}'s log:\n{log}\n"));
            }
        }
        parts.concat()
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
