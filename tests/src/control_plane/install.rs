//! Makes a namespace with everything that a user installs.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        authentication::v1::TokenRequest,
        authorization::v1::SelfSubjectAccessReview,
        batch::v1::CronJob,
        core::v1::{ConfigMap, Namespace, ServiceAccount},
        rbac::v1::{Role, RoleBinding},
    },
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::objects;
use crate::{kubernetes::access::limited, wait::until};

/// How long authorization may take to learn of a Role.
const LIMIT: Duration = Duration::from_secs(30);

/// Creates the namespace and what belongs into it.
pub(super) async fn install(admin: &Client, namespace: &str) -> Result<()> {
    let object = json!({ "metadata": { "name": namespace } });
    let namespaces = Api::<Namespace>::all(admin.clone());
    let object = serde_json::from_value(object)?;
    limited("create a namespace", namespaces.create(&PostParams::default(), &object)).await?;
    create::<ServiceAccount>(admin, namespace, objects::service_account()).await?;
    create::<Role>(admin, namespace, objects::role()?).await?;
    create::<RoleBinding>(admin, namespace, objects::role_binding(namespace)).await?;
    create::<ConfigMap>(admin, namespace, objects::state()).await?;
    create::<CronJob>(admin, namespace, objects::template(namespace)).await
}

/// Plays the cluster autoscaler, whose status there is one of in a cluster; the scaler of this namespace may read it.
pub(super) async fn autoscaler_says(admin: &Client, namespace: &str, status: &str) -> Result<()> {
    const NAMESPACE: &str = "kube-system";
    const NAME: &str = "cluster-autoscaler-status";
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": NAME }, "data": { "status": status } });
    apply::<ConfigMap>(admin, NAMESPACE, NAME, map).await?;
    let rules = json!([{ "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME], "verbs": ["get"] }]);
    let mut role = objects::role()?;
    role["metadata"]["name"] = namespace.into();
    role["rules"] = rules;
    apply::<Role>(admin, NAMESPACE, namespace, role).await?;
    let mut binding = objects::role_binding(namespace);
    binding["metadata"]["name"] = namespace.into();
    binding["roleRef"]["name"] = namespace.into();
    apply::<RoleBinding>(admin, NAMESPACE, namespace, binding).await
}

/// Creates the object, or changes it into this.
async fn apply<K>(admin: &Client, namespace: &str, name: &str, object: Value) -> Result<()>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let api = Api::<K>::namespaced(admin.clone(), namespace);
    let params = PatchParams::apply("test").force();
    limited("write an object", api.patch(name, &params, &Patch::Apply(object))).await.map(drop)
}

async fn create<K>(admin: &Client, namespace: &str, object: Value) -> Result<()>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Serialize + DeserializeOwned + Clone,
    K: std::fmt::Debug,
{
    let api = Api::<K>::namespaced(admin.clone(), namespace);
    let object = serde_json::from_value(object)?;
    limited("create an object", api.create(&PostParams::default(), &object)).await.map(drop)
}

/// A token of the scaler's service account.
pub(super) async fn token(admin: &Client, namespace: &str) -> Result<String> {
    let accounts = Api::<ServiceAccount>::namespaced(admin.clone(), namespace);
    let request: TokenRequest = serde_json::from_value(json!({ "spec": { "audiences": [] } }))?;
    let params = PostParams::default();
    let created = accounts.create_token_request(objects::SCALER, &params, &request);
    let created = limited("request a token", created).await?;
    Ok(created.status.context("no token")?.token)
}

/// Authorization learns of a new Role a moment later; a scaler is not to see that.
pub(super) async fn until_allowed(scaler: &Client, namespace: &str) -> Result<()> {
    let question = objects::may_get_state(namespace);
    let question: SelfSubjectAccessReview = serde_json::from_value(question)?;
    let questions = Api::<SelfSubjectAccessReview>::all(scaler.clone());
    until("the Role is in force", LIMIT, async || {
        let answer = questions.create(&PostParams::default(), &question).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    })
    .await
}
