//! Taking down what the installer does not know: queues at the broker, workers that would declare them again,
//! the namespace.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};

use super::{Kubernetes, eventually, limited, namespaces, publisher};

/// How long workers that are told to end may take.
const WORKERS_LIMIT: Duration = Duration::from_mins(2);
/// How long Kubernetes may take to remove the namespace.
const NAMESPACE_LIMIT: Duration = Duration::from_mins(3);

impl Kubernetes {
    /// Deletes the queues, as long as there is a scaler whose settings tell how to reach the broker.
    pub(super) async fn delete_queues(&self) -> Result<()> {
        let Some(scaler) = self.scaler.deployment().await? else { return Ok(()) };
        self.scaler.scale(0).await?;
        self.end_jobs().await?;
        publisher::delete(&self.pods(), &scaler, &self.name).await
    }

    /// Ends workers, and what an interrupted installation may have begun: either would declare the queues
    /// again. Busy workers finish their message.
    async fn end_jobs(&self) -> Result<()> {
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), &self.namespace);
        let whose = format!("app.kubernetes.io/instance={}", self.name);
        let selector = format!("{whose},app.kubernetes.io/component in (declare,worker)");
        let selector = ListParams::default().labels(&selector);
        let delete = DeleteParams::background();
        limited("delete the workers", jobs.delete_collection(&delete, &selector)).await?;
        eventually("the workers end", WORKERS_LIMIT, async || {
            let pods = limited("list pods", self.pods().list(&selector)).await?;
            Ok(pods.items.is_empty().then_some(()))
        })
        .await
    }

    /// All that is in it goes with it.
    pub(super) async fn remove_namespace(&self) -> Result<()> {
        let namespaces = namespaces(&self.client);
        if limited("look for the namespace", namespaces.get_opt(&self.namespace)).await?.is_none() {
            return Ok(());
        }
        limited("delete the namespace", namespaces.delete(&self.namespace, &DeleteParams::default())).await?;
        eventually("the namespace is gone", NAMESPACE_LIMIT, async || {
            let found = limited("look for the namespace", namespaces.get_opt(&self.namespace)).await?;
            Ok(found.is_none().then_some(()))
        })
        .await
    }
}
