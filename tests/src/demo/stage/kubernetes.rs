//! In the current Kubernetes context: what people use (`bin/install`, `bin/publish`, `bin/uninstall`) in a
//! namespace of its own, seen through the API server.

mod broker;
mod place;
mod publisher;
mod scaler;
mod script;
mod teardown;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, Client, api::ListParams};
use mayfly_broker::{BrokerArgs, BrokerUrl};
use mayfly_tests::{
    ids::Ids,
    kubernetes::{self, Outcome, Worker, Workers, worker_selector},
};
use serde_json::{Value, json};

use self::{
    place::{Place, UrlFile},
    scaler::Scaler,
    script::Scripts,
};
use super::{Ending, Look, MAX_IDLE, POOL, Remains, Sighting, Stage, WORKER_LOG, queues, unique_name, words};
use crate::{Args, screen::Screen};

/// The variable in which `bin/demo` says where the project is.
const ROOT: &str = "MAYFLY_ROOT";
/// How long one request may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the scaler may take to see the empty queue once it is ready.
const START_LIMIT: Duration = Duration::from_mins(1);
/// How long consumers may take to be gone from the broker's books.
const SETTLE_LIMIT: Duration = Duration::from_secs(15);
/// For how long the cluster may be silent.
const SILENCE_LIMIT: Duration = Duration::from_mins(1);

/// An installation of its own: its namespace, its release and its queue have one name.
pub(crate) struct Kubernetes {
    place: Place,
    url_file: UrlFile,
    url: BrokerUrl,
    client: Client,
    scripts: Scripts,
    /// Of the release and of the queue.
    name: String,
    namespace: String,
    /// Where the namespace was there before: it stays.
    stays: bool,
    scaler: Scaler,
    workers: Workers,
    /// How many messages of each worker were told.
    told: BTreeMap<String, usize>,
    /// The last look that succeeded.
    looked: Instant,
    /// Whether there can be anything to take down.
    begun: bool,
    /// Whether the installation succeeded; if not, it has said why.
    installed: bool,
    /// Holds the copy of the kubeconfig, values and ids.
    directory: tempfile::TempDir,
}

// === impl Kubernetes ===

impl Kubernetes {
    /// Finds the context and the broker; changes nothing.
    pub(crate) async fn new(args: &Args, screen: &Screen) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("mayfly-demo-").tempdir()?;
        let place = Place::find(directory.path())?;
        screen.say(&format!("context     {}", place.context));
        let root = PathBuf::from(std::env::var_os(ROOT).context("run it as bin/demo")?);
        let readable = |path: &PathBuf| {
            let what = || format!("the broker url file {} cannot be read", path.display());
            fs::canonicalize(path).with_context(what)
        };
        let given = args.broker_url_file.as_ref().map(readable).transpose()?;
        let url_file = UrlFile::choose(&place.context, given, place::own_url_file)?;
        let url = BrokerArgs { broker_url_file: Some(url_file.path.clone()), ..BrokerArgs::default() };
        let url = url.load()?;
        let client = kubernetes::client(&place.kubeconfig).await?;
        let name = unique_name();
        let namespace = args.namespace.clone().unwrap_or_else(|| name.clone());
        let found = limited("look for the namespace", namespaces(&client).get_opt(&namespace)).await;
        let found = found.with_context(|| format!("context {} is not usable", place.context))?;
        Ok(Self {
            scripts: Scripts { directory: root.join("bin"), kubeconfig: place.kubeconfig.clone() },
            stays: found.is_some(),
            scaler: Scaler::new(&client, &namespace, &name),
            workers: Workers::new(&client, &namespace, &name),
            place,
            url_file,
            url,
            client,
            name,
            namespace,
            told: BTreeMap::new(),
            looked: Instant::now(),
            begun: false,
            installed: false,
            directory,
        })
    }

    /// Runs one of the scripts on our installation.
    async fn script(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let ours = ["--namespace", &self.namespace, "--release", &self.name];
        self.scripts.run(name, &[arguments, &ours].concat()).await
    }

    fn values(&self, args: &Args) -> Value {
        let time = |duration| words(duration).replace(' ', "");
        json!({
            "log": WORKER_LOG,
            "logFormat": "json",
            "pools": [{
                "name": POOL,
                "queue": self.name,
                "declare": true,
                "max_workers": args.max_workers,
                "worker": { "handler": { "sleep": time(args.work) }, "max_idle": MAX_IDLE },
            }],
        })
    }

    fn file(&self, name: &str) -> Result<String> {
        let path = self.directory.path().join(name);
        path.to_str().map(str::to_owned).context("the temporary directory's name is not UTF-8")
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn try_look(&mut self) -> Result<Look> {
        self.workers.look().await?;
        let mut look = Look { page: self.scaler.status().await?, ..Look::default() };
        for worker in self.workers.iter() {
            look.workers.insert(worker.name.clone(), sighting(worker));
            let told = self.told.entry(worker.name.clone()).or_default();
            let news = worker.log.done.iter().skip(*told);
            look.done.extend(news.map(|id| (worker.name.clone(), id.clone())));
            *told = worker.log.done.len();
        }
        Ok(look)
    }
}

impl Stage for Kubernetes {
    /// Kubernetes tells times in seconds, and its API server has others to serve.
    const FRAME: Duration = Duration::from_secs(1);
    /// A node may have to come.
    const PATIENCE: Duration = Duration::from_mins(10);

    async fn build_up(&mut self, args: &Args, screen: &Screen) -> Result<()> {
        let UrlFile { path, cluster } = &self.url_file;
        let whose = if cluster.is_some() { "bin/cluster broker" } else { "--broker-url-file" };
        screen.say(&format!("broker      {}, by {whose} ({})", self.url.endpoint(), path.display()));
        let stays = if self.stays { " (it is there, and stays)" } else { "" };
        screen.say(&format!("namespace   {}{stays}", self.namespace));
        screen.say("install     bin/install; the first build of the images takes some minutes");
        let values = self.file("values.json")?;
        fs::write(&values, serde_json::to_vec_pretty(&self.values(args))?)?;
        let url_file = self.url_file.path.to_str().context("the broker url file's name is not UTF-8")?;
        self.begun = true;
        let mut arguments = vec!["--broker-url-file", url_file, "--values", &values];
        arguments.extend(args.install.iter().map(String::as_str));
        self.script("install", &arguments).await?;
        self.installed = true;
        self.scaler.sees_the_empty_queue().await?;
        screen.say(&format!(
            "queue       {} (quorum, with its retry, suspect and dead-letter queues)",
            self.name
        ));
        screen.say(&format!(
            "scaler      up to {} workers, one at a time; {} of work a message",
            args.max_workers,
            words(args.work)
        ));
        Ok(())
    }

    async fn publish(&mut self, count: u32) -> Result<Ids> {
        let ids = self.file("published")?;
        self.script("publish", &[&count.to_string(), "--ids", &ids]).await?;
        self.looked = Instant::now();
        Ok(fs::read_to_string(ids)?.lines().map(str::to_owned).collect())
    }

    /// A cluster that is silent for a while is looked at again.
    async fn look(&mut self) -> Result<Look> {
        match self.try_look().await {
            Ok(look) => {
                self.looked = Instant::now();
                Ok(look)
            }
            Err(error) if self.looked.elapsed() < SILENCE_LIMIT => {
                Ok(Look { page: json!({ "text": format!("not known: {error:#}") }), ..Look::default() })
            }
            Err(error) => Err(error),
        }
    }

    async fn running(&self) -> Result<usize> {
        let selector = ListParams::default().labels(&worker_selector(&self.name));
        let pods = limited("list pods", self.pods().list(&selector)).await?;
        let phase = |pod: &Pod| pod.status.as_ref()?.phase.clone();
        let ended = |pod: &&Pod| matches!(phase(pod).as_deref(), Some("Succeeded" | "Failed"));
        Ok(pods.iter().filter(|pod| !ended(pod)).count())
    }

    async fn stop_scaler(&mut self) -> Result<()> {
        self.scaler.scale(0).await
    }

    async fn start_scaler(&mut self) -> Result<()> {
        self.scaler.scale(1).await?;
        self.scaler.sees_the_empty_queue().await
    }

    async fn remains(&mut self) -> Result<Remains> {
        let scaler = self.scaler.deployment().await?.context("the scaler's Deployment is gone")?;
        let end = Instant::now() + SETTLE_LIMIT;
        loop {
            let remains = match &self.url_file.cluster {
                Some(cluster) => broker::remains(&self.scripts, cluster, &self.name).await?,
                None => publisher::inspect(&self.pods(), &scaler, &queues(&self.name)).await?,
            };
            if remains.is_nothing() || Instant::now() > end {
                return Ok(remains);
            }
        }
    }

    async fn logs(&self) -> String {
        if !self.installed {
            return String::new();
        }
        let mut parts = vec![self.scaler.logs().await];
        let last = self.workers.iter().max_by_key(|worker| worker.launched);
        parts.extend(
            last.map(|last| format!("--- end of {}'s log:\n{}\n", last.name, last.log.tail.join("\n"))),
        );
        let unread = self.workers.unread().into_iter();
        parts.extend(unread.map(|(worker, why)| format!("--- the log of {worker} is not readable: {why}\n")));
        parts.concat()
    }

    fn guide(&self) -> String {
        let Self { namespace, name, .. } = self;
        let ours = format!("--namespace {namespace} --release {name}");
        format!(
            "kept until Ctrl-C. In another terminal:\n  bin/publish 50 {ours}\n  bin/logs workers {ours}\n  \
             bin/logs scaler {ours}\n  kubectl -n {namespace} get jobs,pods\n  \
             kubectl -n {namespace} exec deployment/{name}-scaler -- /mayfly-scaler state show"
        )
    }

    fn farewell(&self) -> &'static str {
        "removing the queues, the installation and its namespace"
    }

    fn traces(&self) -> String {
        if !self.begun {
            return String::new();
        }
        let Self { namespace, name, .. } = self;
        let context = &self.place.context;
        format!(
            "release {name} in namespace {namespace} of context {context} (bin/uninstall --now --namespace \
             {namespace} --release {name}), queues {name} and {name}.* at the broker (mayfly-publisher delete \
             {name} --with-messages)"
        )
    }

    /// The queues go before the Secret by which they are reached.
    async fn strike(&mut self, screen: &Screen) -> Result<()> {
        if !self.begun {
            return Ok(());
        }
        let deleted = self.delete_queues().await;
        let uninstalled = self.script("uninstall", &["--now"]).await;
        let removed = if self.stays { Ok(()) } else { self.remove_namespace().await };
        let left = |what: String| move || format!("{what} may be left");
        deleted.with_context(left(format!("queues {0} and {0}.* at the broker", self.name)))?;
        removed.with_context(left(format!("namespace {}", self.namespace)))?;
        uninstalled?;
        let namespace = if self.stays { String::new() } else { format!(" and namespace {}", self.namespace) };
        screen.say(&format!("gone        release {0}, queues {0} and {0}.*{namespace}", self.name));
        Ok(())
    }
}

fn sighting(worker: &Worker) -> Sighting {
    let is_over = worker.outcome.is_some() || worker.is_gone;
    Sighting {
        serial: worker.serial.unwrap_or(0),
        slot: worker.slot.map_or(0, u64::from),
        launched: worker.launched,
        ending: is_over.then(|| Ending {
            at: worker.ended.unwrap_or(worker.launched),
            exit_code: worker.exit_code.and_then(|code| u64::try_from(code).ok()),
            reason: worker.reason.clone(),
            complete: Some(worker.outcome == Some(Outcome::Complete)),
            started: worker.log.has_begun,
        }),
    }
}

fn namespaces(client: &Client) -> Api<Namespace> {
    Api::all(client.clone())
}

/// As the tests' own, at a pace that others' API servers can bear.
async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let mut pace = tokio::time::interval(PAUSE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    mayfly_tests::eventually(what, limit, async || {
        pace.tick().await;
        probe().await
    })
    .await
}

/// One request, with its deadline.
async fn limited<T>(what: &'static str, call: impl Future<Output = kube::Result<T>>) -> Result<T> {
    // Futures of requests are large.
    mayfly_service::deadline(what, CALL_LIMIT, Box::pin(call)).await?.context(what)
}
