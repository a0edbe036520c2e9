//! Where a test of the cluster level plays: a namespace of its own in the cluster of this run, and the scripts by
//! which users work with it.

mod accounts;
mod machine;
mod report;
mod status;

use std::{
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures_util::FutureExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::DeleteParams};
use mayfly_service::Shutdown;
use mayfly_tests::{
    Client, Process, Program, eventually,
    ids::Ids,
    kubernetes::{self, Watcher, Workers},
};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) use self::{
    accounts::Requests,
    machine::{Machine, NODE},
};

/// The environment variables in which `bin/test` hands its cluster over: its name, the path of its kubeconfig,
/// the path of a file with the URL of its broker as pods reach it, and the tag of the images that it has.
const CLUSTER: &str = "MAYFLY_CLUSTER";
const KUBECONFIG: &str = "MAYFLY_TEST_CLUSTER_KUBECONFIG";
const BROKER_URL_FILE: &str = "MAYFLY_TEST_CLUSTER_BROKER";
const IMAGE_TAG: &str = "MAYFLY_TEST_CLUSTER_TAG";
/// What scripts need of our own environment beside `PATH` and `HOME`.
const PASSED_ON: [&str; 6] =
    ["MAYFLY_CACHE", "CARGO_TARGET_DIR", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", CLUSTER];
/// The broker's image, which node 0 has: it holds a shell, too.
pub(crate) const BROKER_IMAGE: &str = "mayfly.test/rabbitmq:4";
/// No test runs longer than this.
const TEST_LIMIT: Duration = Duration::from_mins(10);
/// How long `bin/install` may take; images are there.
const INSTALL_LIMIT: Duration = Duration::from_mins(4);
/// How long any other script may take.
pub(crate) const SCRIPT_LIMIT: Duration = Duration::from_mins(2);
/// How long a namespace may take to be gone.
const CLEAN_LIMIT: Duration = Duration::from_mins(2);

/// One test's site.
pub(crate) struct Site {
    /// The namespace, also the name of the queue.
    pub(crate) namespace: String,
    /// Talks to the API server as an administrator.
    pub(crate) client: kube::Client,
    kubeconfig: PathBuf,
    broker_url: String,
    image_tag: String,
    directory: TempDir,
    begun: Instant,
}

/// Runs a test body on a site of its own and cleans up after it, whether it fails or not.
///
/// # Panics
/// When the body fails: this is how a test fails.
pub(crate) fn run(name: &str, body: impl AsyncFnOnce(&Site) -> Result<()>) {
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no runtime")
        .and_then(|runtime| runtime.block_on(run_on_site(name, body)));
    if let Err(error) = outcome {
        #[expect(clippy::panic, reason = "this is how a test fails")]
        {
            panic!("{error:#}");
        }
    }
}

async fn run_on_site(name: &str, body: impl AsyncFnOnce(&Site) -> Result<()>) -> Result<()> {
    let shutdown = Shutdown::on_signals()?;
    let site = Site::find(name).await?;
    let limited = async {
        let outcome = tokio::time::timeout(TEST_LIMIT, body(&site)).await;
        outcome.unwrap_or_else(|_| Err(anyhow!("the test took longer than {TEST_LIMIT:?}")))
    };
    let outcome = tokio::select! {
        outcome = AssertUnwindSafe(limited).catch_unwind() => outcome,
        // The scripts that run are ended; what they did goes with the cluster.
        () = shutdown.stop.cancelled() => bail!("interrupted"),
    };
    let outcome = outcome.unwrap_or_else(|_| Err(anyhow!("the test panicked")));
    if outcome.is_err() {
        eprintln!("{}", site.report().await);
    }
    let cleaned = site.clean().await.context("the namespace of the test cannot be deleted");
    outcome.and(cleaned)
}

// === impl Site ===

impl Site {
    async fn find(name: &str) -> Result<Self> {
        let variable = |name: &str| -> Result<String> {
            let value = std::env::var(name).ok().filter(|value| !value.is_empty());
            value.with_context(|| format!("no cluster to test on ({name}): run `bin/test cluster`"))
        };
        variable(CLUSTER)?;
        let kubeconfig = PathBuf::from(variable(KUBECONFIG)?);
        let broker_url = std::fs::read_to_string(variable(BROKER_URL_FILE)?).context(BROKER_URL_FILE)?;
        let site = Self {
            namespace: format!("test-{name}"),
            client: kubernetes::client(&kubeconfig).await?,
            kubeconfig,
            broker_url: broker_url.trim().to_owned(),
            image_tag: variable(IMAGE_TAG)?,
            directory: tempfile::Builder::new().prefix("mayfly-test-").tempdir()?,
            begun: Instant::now(),
        };
        // What an earlier run has left.
        site.clean().await?;
        Ok(site)
    }

    /// Tells people how far the test is.
    pub(crate) fn tell(&self, what: &str) {
        eprintln!("{:6.1} s  {}: {what}", self.begun.elapsed().as_secs_f64(), self.namespace);
    }

    /// Values for the chart: a pool that serves this site's queue by sleeping, `worker` laid over its worker and
    /// `pool` over the pool.
    pub(crate) fn values(&self, pool: &Value, worker: &Value) -> Value {
        let mut values = json!({
            "image": { "tag": self.image_tag },
            "log": "info,mayfly_worker::message=debug",
            "logFormat": "json",
            "pools": [{
                "name": "work",
                "queue": self.namespace,
                "declare": true,
                "launch_interval": "3s",
                "worker": { "handler": { "sleep": "1s" }, "max_idle": "5s" },
            }],
        });
        let lay = |under: &mut Value, over: &Value| {
            for (key, value) in over.as_object().into_iter().flatten() {
                under[key] = value.clone();
            }
        };
        lay(&mut values["pools"][0]["worker"], worker);
        lay(&mut values["pools"][0], pool);
        values
    }

    /// One of the images that `bin/images` builds.
    pub(crate) fn image(&self, program: &str) -> String {
        format!("{program}:{}", self.image_tag)
    }

    /// `bin/install` with these values and the images that `bin/test` has built.
    pub(crate) async fn install(&self, name: &str, values: &Value) -> Result<()> {
        // A lost peer is noticed in some ten seconds.
        let url = self.file("broker-url", &format!("{}?heartbeat=5", self.broker_url))?;
        let values = self.file(&format!("{name}.values"), &values.to_string())?;
        let install = self.script("install").arg("--no-images");
        let install = install.arg("--broker-url-file").arg(url).arg("--values").arg(values);
        install.run(name, INSTALL_LIMIT).await?.exits_with(0, Duration::ZERO).await
    }

    /// `bin/publish COUNT`: the ids of the confirmed messages.
    pub(crate) async fn publish(&self, count: usize) -> Result<Ids> {
        let name = format!("publish-{}", uuid::Uuid::now_v7().simple());
        let file = self.directory.path().join(format!("{name}.ids"));
        let publish = self.script("publish").arg(count.to_string()).arg("--ids").arg(&file);
        publish.run(&name, SCRIPT_LIMIT).await?.exits_with(0, Duration::ZERO).await?;
        let ids: Ids = std::fs::read_to_string(file)?.lines().map(str::to_owned).collect();
        ensure!(ids.len() == count, "{} of {count} messages were published", ids.len());
        Ok(ids)
    }

    /// One of `bin/`, for this site's namespace and release.
    pub(crate) fn script(&self, name: &str) -> Program {
        self.program(name).args(["--namespace", &self.namespace, "--release", &self.namespace])
    }

    /// One of `bin/` without arguments.
    pub(crate) fn program(&self, name: &str) -> Program {
        let program = Program::new(&root().join("bin").join(name), self.directory.path());
        let passed_on = PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        passed_on
            .fold(program, |program, (name, value)| program.env(name, value))
            .env("KUBECONFIG", &self.kubeconfig)
    }

    /// What `kubectl ARGUMENTS` prints.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let name = format!("kubectl-{}", uuid::Uuid::now_v7().simple());
        let kubectl = self.program("cluster").arg("kubectl").args(arguments);
        let mut kubectl = kubectl.run(&name, SCRIPT_LIMIT).await?;
        kubectl.exits_with(0, Duration::ZERO).await?;
        kubectl.stdout()
    }

    /// The workers.
    pub(crate) fn workers(&self) -> Workers {
        Workers::new(&self.client, &self.namespace, &self.namespace)
    }

    /// Begins to record who is pending when.
    pub(crate) async fn watcher(&self) -> Result<Watcher> {
        Watcher::start(&self.client, &self.namespace, &self.namespace).await
    }

    /// A client of the broker, by way of a port that kubectl forwards as long as the process lives.
    pub(crate) async fn broker(&self) -> Result<(Client, Process)> {
        let authority = self.broker_url.split_once("://").context("no URL")?.1;
        let (user, place) = authority.rsplit_once('@').context("no user in the broker's URL")?;
        let (host, vhost) = place.split_once('/').unwrap_or((place, ""));
        let (host, port) = host.split_once(':').unwrap_or((host, "5672"));
        let mut names = host.split('.');
        let (service, namespace) = (names.next().unwrap_or_default(), names.next().unwrap_or("default"));
        let name = format!("forward-{}", uuid::Uuid::now_v7().simple());
        let (service, ports) = (format!("service/{service}"), format!(":{port}"));
        let forward = ["kubectl", "--namespace", namespace, "port-forward", &service, &ports];
        let forward = self.program("cluster").args(forward).spawn(&name)?;
        let local = eventually("kubectl forwards a port", SCRIPT_LIMIT, async || {
            let text = forward.stdout()?;
            let port = text.lines().find_map(|line| line.strip_prefix("Forwarding from 127.0.0.1:"));
            Ok(port.and_then(|rest| rest.split(' ').next()).map(str::to_owned))
        });
        let local = local.await.with_context(|| forward.log_tail())?;
        let client = Client::connect(&format!("amqp://{user}@127.0.0.1:{local}/{vhost}")).await?;
        Ok((client, forward))
    }

    /// Fails if anything is left in the namespace that is not Kubernetes' own.
    pub(crate) async fn is_clean(&self) -> Result<()> {
        let kinds = self.kubectl(&["api-resources", "--verbs=list", "--namespaced", "--output=name"]).await?;
        let kinds: Vec<_> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
        let kinds = kinds.join(",");
        eventually("the namespace is clean", CLEAN_LIMIT, async || {
            let question =
                ["--namespace", &self.namespace, "get", &kinds, "--output=name", "--ignore-not-found"];
            let left = self.kubectl(&question).await?;
            let own = ["serviceaccount/default", "configmap/kube-root-ca.crt"];
            let left: Vec<_> = left.lines().filter(|name| !own.contains(name)).collect();
            ensure!(left.is_empty(), "left: {left:?}");
            Ok(Some(()))
        })
        .await
    }

    /// Files and logs of this test.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Deletes the namespace with all that is in it. The queues go with the broker.
    async fn clean(&self) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        eventually("the namespace is gone", CLEAN_LIMIT, async || {
            let deleted = namespaces.delete(&self.namespace, &DeleteParams::background()).await;
            match deleted {
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Some(())),
                outcome => outcome.map(|_| None).map_err(Into::into),
            }
        })
        .await
    }
}

/// The top of the project.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
