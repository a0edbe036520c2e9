//! What the scaler says of itself.

use anyhow::{Context, Result};
use kube::ResourceExt;
use serde_json::Value;

use super::Site;

impl Site {
    /// What the page of one scaler says of the pool, fetched through the API server.
    pub(crate) async fn status(&self) -> Result<Value> {
        let pods = self.scalers().await?;
        let pod = pods.first().context("there is no scaler")?.name_any();
        let path = format!("/api/v1/namespaces/{}/pods/{pod}:8080/proxy/status", self.namespace);
        let page = self.client.request_text(hyper::Request::get(path).body(Vec::new())?).await?;
        let page: Value = serde_json::from_str(&page)?;
        page.pointer("/pools/work").cloned().context("no pool on the status page")
    }
}
