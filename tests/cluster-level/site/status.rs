//! What the scaler says of itself.

use anyhow::{Context, Result};
use kube::ResourceExt;
use serde_json::Value;

use super::Site;

impl Site {
    /// What the page of one scaler says of the pool `work`, fetched through the API server.
    pub(crate) async fn status(&self) -> Result<Value> {
        self.status_of("work").await
    }

    /// The same of another pool.
    pub(crate) async fn status_of(&self, pool: &str) -> Result<Value> {
        let pods = self.scalers().await?;
        let scaler = pods.first().context("there is no scaler")?.name_any();
        let path = format!("/api/v1/namespaces/{}/pods/{scaler}:8080/proxy/status", self.namespace);
        let page = self.client.request_text(hyper::Request::get(path).body(Vec::new())?).await?;
        let page: Value = serde_json::from_str(&page)?;
        page["pools"].get(pool).cloned().context("no pool on the status page")
    }
}
