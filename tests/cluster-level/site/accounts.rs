//! How many requests the scaler makes, counted by the API server for its service account alone: a flow schema of
//! its own puts its name on the API server's metrics.

use std::time::Instant;

use anyhow::{Context, Result};
use k8s_openapi::api::flowcontrol::v1::FlowSchema;
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

use super::Site;

/// Counts the requests of a site's scaler.
pub(crate) struct Requests {
    client: Client,
    name: String,
}

/// How many there had been at one time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    requests: f64,
    at: Instant,
}

// === impl Requests ===

impl Requests {
    /// Begins to count.
    pub(crate) async fn of_scaler(site: &Site) -> Result<Self> {
        let schemas = Api::<FlowSchema>::all(site.client.clone());
        let name = format!("{}-scaler", site.namespace);
        let schema: FlowSchema = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": {
                // Before the one that all service accounts share, and like it.
                "matchingPrecedence": 100,
                "priorityLevelConfiguration": { "name": "workload-low" },
                "distinguisherMethod": { "type": "ByUser" },
                "rules": [{
                    "subjects": [{
                        "kind": "ServiceAccount",
                        "serviceAccount": { "namespace": site.namespace, "name": name },
                    }],
                    "resourceRules": [{
                        "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
                        "namespaces": ["*"], "clusterScope": true,
                    }],
                    "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
                }],
            },
        }))?;
        match schemas.delete(&name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            outcome => drop(outcome.context("delete a flow schema")?),
        }
        schemas.create(&PostParams::default(), &schema).await.context("create a flow schema")?;
        Ok(Self { client: site.client.clone(), name })
    }

    /// Reads the meter.
    pub(crate) async fn read(&self) -> Result<Reading> {
        let request = hyper::Request::get("/metrics").body(Vec::new())?;
        let metrics = self.client.request_text(request).await.context("read the API server's metrics")?;
        let at = Instant::now();
        let own = format!("flow_schema=\"{}\"", self.name);
        let counted = metrics.lines().filter(|line| {
            line.starts_with("apiserver_flowcontrol_dispatched_requests_total{") && line.contains(&own)
        });
        let values = counted.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(Reading { requests: values.sum(), at })
    }
}

// === impl Reading ===

impl Reading {
    /// Requests per second since an earlier reading.
    pub(crate) fn rate_since(&self, earlier: &Self) -> f64 {
        (self.requests - earlier.requests) / (self.at - earlier.at).as_secs_f64()
    }
}
