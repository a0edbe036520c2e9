//! Where a test of the control plane lives: a namespace with everything that a user installs, its own proxy
//! and nodes, and scalers that may do what the documented Role allows and nothing else.

use std::{panic::AssertUnwindSafe, path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow};
use futures_util::FutureExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        batch::v1::{CronJob, Job},
        core::v1::{ConfigMap, Namespace, Pod},
        scheduling::v1::PriorityClass,
    },
};
use kube::{
    Api, Client, Config, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    ApiProxy, Kubelet, Request, WorkerJob,
    install::{self, install, token, until_allowed},
    invariants, objects,
};
use crate::{
    Bed, Process, Release,
    fleet::{BROKER_URL, Scaler},
    kubernetes::access::limited,
    wait::eventually,
};

/// The environment variable in which `bin/test` hands its control plane over: the path of a kubeconfig.
pub const KUBECONFIG: &str = "MAYFLY_TEST_KUBECONFIG";
/// How long `mayfly-scaler state` may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// How many of the proxy's requests a failed test shows.
const SHOWN: usize = 60;

/// One test's space.
#[derive(Debug)]
pub struct Space<'a> {
    /// Queue, broker, directory.
    pub bed: &'a Bed,
    /// Between its scalers and the API server.
    pub proxy: ApiProxy,
    /// Its nodes.
    pub kubelet: Kubelet,
    /// Its namespace.
    pub namespace: String,
    admin: Admin,
    config: PathBuf,
}

struct Admin(Client);

/// Runs an `async fn(&Space) -> Result<()>` in a space of its own, as the test `NAME::on_a_control_plane`.
#[macro_export]
macro_rules! each_in_a_space {
    ($($(#[$attribute:meta])* $name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            $(#[$attribute])*
            fn on_a_control_plane() {
                $crate::control_plane::run(async |space| super::$name(space).await);
            }
        }
    )+};
}

/// Runs a test body in a space and cleans up after it, whether it fails or not. Whatever the body does, what
/// its scalers asked must be within their Role and their rules.
///
/// # Panics
/// When the body fails: this is how a test fails.
pub fn run(body: impl AsyncFnOnce(&Space) -> Result<()>) {
    crate::bed::run(Release::Packaged, async |bed| {
        let space = Space::make(bed).await?;
        let outcome = AssertUnwindSafe(body(&space)).catch_unwind().await;
        let outcome = outcome.unwrap_or_else(|_| Err(anyhow!("the test panicked")));
        let outcome = outcome.and_then(|()| invariants::hold(&space.proxy.requests()));
        if outcome.is_err() {
            space.show().await;
        }
        let cleaned = space.clean().await.context("the namespace of the test cannot be deleted");
        outcome.and(cleaned)
    });
}

// === impl Space ===

impl<'a> Space<'a> {
    /// In a namespace of its own on the control plane that [`KUBECONFIG`] names.
    ///
    /// # Errors
    /// When there is none, or it does not answer.
    pub async fn make(bed: &'a Bed) -> Result<Self> {
        mayfly_service::tls::install_provider();
        let path = std::env::var_os(KUBECONFIG).filter(|path| !path.is_empty());
        let path = path.context("no control plane to test on: run `bin/test control-plane`")?;
        let kubeconfig = Kubeconfig::read_from(&path).with_context(|| path.display().to_string())?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.default_retry = false;
        let admin = Client::try_from(config.clone())?;
        let namespace = bed.queue.clone();
        install(&admin, &namespace).await?;
        let token = token(&admin, &namespace).await?;
        config.auth_info = AuthInfo { token: Some(token.into()), ..AuthInfo::default() };
        let scaler = Client::try_from(config)?;
        until_allowed(&scaler, &namespace).await?;
        let proxy = ApiProxy::start(scaler).await?;
        let kubelet = Kubelet::start(admin.clone(), &namespace);
        let config = bed.directory().join("mayfly.yaml");
        let space = Self { bed, proxy, kubelet, namespace, admin: Admin(admin), config };
        space.configure(&json!({}))?;
        Ok(space)
    }

    /// Writes the scalers' configuration, `changes` laid over that of the pool.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, changes: &Value) -> Result<()> {
        self.configure_on(&json!({}), changes)
    }

    /// The same, with `on` laid over the launcher's configuration.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure_on(&self, on: &Value, changes: &Value) -> Result<()> {
        let mut pool = pool(objects::POOL, &self.bed.queue);
        lay(&mut pool, changes);
        self.configure_pools(on, &[pool])
    }

    /// Writes the scalers' configuration of a pool for each of these queues, named as its queue.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure_queues(&self, queues: &[String]) -> Result<()> {
        let pools: Vec<_> = queues.iter().map(|queue| pool(queue, queue)).collect();
        self.configure_pools(&json!({}), &pools)
    }

    fn configure_pools(&self, on: &Value, pools: &[Value]) -> Result<()> {
        let mut kubernetes = json!({ "namespace": self.namespace });
        lay(&mut kubernetes, on);
        let config = json!({
            "instance": objects::INSTANCE,
            "broker": { "url_env": BROKER_URL },
            "launcher": { "kubernetes": kubernetes },
            "pools": pools,
        });
        Ok(std::fs::write(&self.config, serde_json::to_vec_pretty(&config)?)?)
    }

    /// Starts a scaler; `name` names its logs, and it in the proxy's record. `environment` is added to its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn scaler(&self, name: &str, environment: &[(&str, &str)]) -> Result<Scaler> {
        let mut program = self.bed.program("mayfly-scaler")?.arg("run").arg(&self.config);
        program = program.args(["--log-format", "json"]).env("KUBECONFIG", self.kubeconfig(name)?);
        for (variable, value) in environment {
            program = program.env(variable, value);
        }
        Scaler::spawn(program, name)
    }

    /// Runs `mayfly-scaler state ARGUMENTS`, expects it to exit with `code`, and returns it.
    ///
    /// # Errors
    /// When it exits otherwise.
    pub async fn state_command(&self, name: &str, arguments: &[&str], code: i32) -> Result<Process> {
        let program = self.bed.program("mayfly-scaler")?.arg("state").arg(&self.config).args(arguments);
        let program = program.env("KUBECONFIG", self.kubeconfig(name)?);
        let mut process = program.run(name, COMMAND_LIMIT).await?;
        process.exits_with(code, Duration::from_secs(1)).await?;
        Ok(process)
    }

    /// A client of our own through the proxy, with a scaler's rights.
    ///
    /// # Errors
    /// When the kubeconfig cannot be written or read.
    pub async fn client(&self, name: &str) -> Result<Client> {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig(name)?)?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.default_retry = false;
        Ok(Client::try_from(config)?)
    }

    fn kubeconfig(&self, client: &str) -> Result<PathBuf> {
        let path = self.bed.directory().join(format!("{client}.kubeconfig"));
        self.proxy.write_kubeconfig(&path, client, &self.namespace)?;
        Ok(path)
    }

    /// Objects of the namespace, with all rights.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.admin.0.clone(), &self.namespace)
    }

    /// The cluster autoscaler's status from now on, which the scaler may read.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn autoscaler_says(&self, status: &str) -> Result<()> {
        install::autoscaler_says(&self.admin.0, &self.namespace, status).await
    }

    /// Creates an object in the namespace, with all rights.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn create<K>(&self, object: Value) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Serialize + DeserializeOwned + Clone,
        K: std::fmt::Debug,
    {
        let object = serde_json::from_value(object)?;
        limited("create an object", self.api::<K>().create(&PostParams::default(), &object)).await
    }

    /// A priority of this value; the name of its class, which goes with the space.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn priority(&self, value: i32) -> Result<String> {
        let name = format!("{}-{value}", self.namespace);
        let labels = json!({ (objects::NODES): self.namespace });
        let class = json!({ "metadata": { "name": name, "labels": labels }, "value": value });
        let classes = Api::<PriorityClass>::all(self.admin.0.clone());
        let class = serde_json::from_value(class)?;
        limited("create a priority class", classes.create(&PostParams::default(), &class)).await?;
        Ok(name)
    }

    /// Merges `changes` into an object of the namespace, with all rights.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn patch<K>(&self, name: &str, changes: &Value) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone,
        K: std::fmt::Debug,
    {
        let api = self.api::<K>();
        limited("change an object", api.patch(name, &PatchParams::default(), &Patch::Merge(changes))).await
    }

    /// A Job as `kubectl create job --from=cronjob/…` makes it.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn create_by_hand(&self, name: &str) -> Result<Job> {
        let template = limited("get the template", self.api::<CronJob>().get(objects::TEMPLATE)).await?;
        let job = template.spec.context("a template without spec")?.job_template;
        let mut metadata = job.metadata.unwrap_or_default();
        metadata.name = Some(name.to_owned());
        let by_hand = ("cronjob.kubernetes.io/instantiate".to_owned(), "manual".to_owned());
        metadata.annotations.get_or_insert_default().extend([by_hand]);
        let job = Job { metadata, spec: job.spec, status: None };
        limited("create a job", self.api::<Job>().create(&PostParams::default(), &job)).await
    }

    /// The workers' Jobs by serial, those made by hand first.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn jobs(&self) -> Result<Vec<WorkerJob>> {
        let jobs = limited("list jobs", self.api::<Job>().list(&ListParams::default())).await?;
        let mut jobs = jobs.items.into_iter().map(WorkerJob::of).collect::<Result<Vec<_>>>()?;
        jobs.sort_by_key(|job| job.serial);
        Ok(jobs)
    }

    /// The same, once `condition` holds of them.
    ///
    /// # Errors
    /// When `limit` passes first.
    pub async fn jobs_when(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&[WorkerJob]) -> bool,
    ) -> Result<Vec<WorkerJob>> {
        eventually(what, limit, async || {
            let jobs = self.jobs().await?;
            Ok(condition(&jobs).then_some(jobs))
        })
        .await
    }

    /// The pods of the namespace.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn pods(&self) -> Result<Vec<Pod>> {
        Ok(limited("list pods", self.api::<Pod>().list(&ListParams::default())).await?.items)
    }

    /// The pool's part of the state record; `Null` if there is none.
    ///
    /// # Errors
    /// When it is not readable.
    pub async fn state(&self) -> Result<Value> {
        let record = self.record().await?.map(|text| serde_json::from_str::<Value>(&text)).transpose()?;
        Ok(record.unwrap_or_default()["pools"][objects::POOL].clone())
    }

    /// The state record as it is stored.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn record(&self) -> Result<Option<String>> {
        let map = limited("get the state", self.api::<ConfigMap>().get_opt(objects::STATE)).await?;
        Ok(map.and_then(|map| map.data?.remove("state.json")))
    }

    /// Lays `data` over that of the state's `ConfigMap`; `Null` takes a key away.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn overwrite_state(&self, data: Value) -> Result<()> {
        self.patch::<ConfigMap>(objects::STATE, &json!({ "data": data })).await.map(drop)
    }

    /// Deletes the state's `ConfigMap`.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete_state(&self) -> Result<()> {
        let api = self.api::<ConfigMap>();
        limited("delete the state", api.delete(objects::STATE, &DeleteParams::default())).await.map(drop)
    }

    /// Creates the state's `ConfigMap` again, empty.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create_state(&self) -> Result<()> {
        self.create::<ConfigMap>(objects::state()).await.map(drop)
    }

    /// Changes the worker template.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn patch_template(&self, changes: &Value) -> Result<()> {
        self.patch::<CronJob>(objects::TEMPLATE, changes).await.map(drop)
    }

    /// What a failed test shows.
    async fn show(&self) {
        let requests = self.proxy.requests();
        let skipped = requests.len().saturating_sub(SHOWN);
        let first = requests.first().map(|request| request.at);
        eprintln!("--- the last of {} requests to the API server:", requests.len());
        for Request { at, client, verb, resource, name, status, message, .. } in &requests[skipped..] {
            let at = first.map(|first| at.duration_since(first)).unwrap_or_default().as_secs_f64();
            let name = name.as_deref().unwrap_or_default();
            let message = message.as_deref().unwrap_or_default();
            eprintln!("{at:8.3} {client} {verb} {resource} {name} {status:?} {message}");
        }
        eprintln!("--- {}; its pods: {:?}", self.kubelet.trouble(), self.kubelet.seen());
        eprintln!("--- state: {}", self.state().await.unwrap_or_default());
        for WorkerJob { name, job, .. } in self.jobs().await.unwrap_or_default() {
            eprintln!("--- job {name}: {}", serde_json::to_string(&job.status).unwrap_or_default());
        }
        for pod in self.pods().await.unwrap_or_default() {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            eprintln!("--- pod {name}: {}", serde_json::to_string(&pod.status).unwrap_or_default());
        }
    }

    /// Takes away the namespace with all that is in it, and the nodes.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn clean(&self) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.admin.0.clone());
        limited("delete a namespace", namespaces.delete(&self.namespace, &DeleteParams::default())).await?;
        // Nobody plays for them any more: at once. Pods without a node go with the namespace.
        let at_once = DeleteParams::default().grace_period(0);
        let on_nodes = ListParams::default().fields("spec.nodeName!=");
        limited("delete pods", self.api::<Pod>().delete_collection(&at_once, &on_nodes)).await?;
        let classes = Api::<PriorityClass>::all(self.admin.0.clone());
        let ours = ListParams::default().labels(&format!("{}={}", objects::NODES, self.namespace));
        let as_usual = DeleteParams::default();
        limited("delete priority classes", classes.delete_collection(&as_usual, &ours)).await?;
        self.kubelet.clean().await
    }
}

/// Lays the values of `over` over those of `under`.
fn lay(under: &mut Value, over: &Value) {
    for (key, value) in over.as_object().into_iter().flatten() {
        under[key] = value.clone();
    }
}

fn pool(name: &str, queue: &str) -> Value {
    json!({
        "name": name,
        "queues": [{ "name": queue }],
        "worker": { "template": objects::TEMPLATE },
    })
}

// === impl Admin ===

impl std::fmt::Debug for Admin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Admin")
    }
}
