//! What the loop works with: the configuration in force and the sight of its queues. Follows the
//! configuration's file: a sound change takes effect, a bad one is refused and told.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use mayfly_broker::BrokerUrl;
use mayfly_service::{chain, deadline, metrics::Registry};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, ConfigError, Overrides, PoolConfig},
    observe::{
        CounterWatch, QueueWatch, Sight,
        counters::endpoint::{CannotRead, Endpoint, Login},
    },
    time::{Clock, Time},
};

/// What the loop works with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// In force.
    pub config: Arc<Config>,
    /// Of the queues that it names.
    pub sight: watch::Receiver<Sight>,
    /// The file as it is now, where that was refused.
    pub refused: Option<Refused>,
}

/// A refused configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// When it was seen.
    pub since: Time,
    /// What is wrong with it.
    pub error: String,
}

/// Where a configuration comes from.
#[derive(Debug)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// What stands above it.
    pub overrides: Overrides,
}

/// Follows the file, and looks at the queues that it names.
#[derive(Debug)]
pub struct SetupWatch {
    source: Source,
    url: BrokerUrl,
    clock: Clock,
    stop: CancellationToken,
    setup: watch::Sender<Setup>,
    watching: Watching,
    /// The content that was judged last, …
    judged: Option<String>,
    /// … and the one that was read last: it is judged once it is read twice, for it may be half written.
    read: Option<String>,
    metrics: Metrics,
}

/// The watches over queues that run.
#[derive(Debug)]
struct Watching {
    queues: JoinHandle<()>,
    counters: Option<JoinHandle<()>>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Metrics {
    changes: Counter,
    refused: Gauge,
}

/// Why a configuration does not take effect.
#[derive(Debug, thiserror::Error)]
pub enum RefusedChange {
    /// It is no sound configuration.
    #[error(transparent)]
    Unsound(#[from] ConfigError),
    /// It changes what this process rests on.
    #[error("{0} cannot change while the scaler runs: restart it to change that")]
    Fixed(String),
    /// What counts cannot be asked.
    #[error("counters cannot be read")]
    Counters(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Between two looks at the file.
const CADENCE: Duration = Duration::from_millis(500);
/// How long other queues may take until they are seen for the first time; then it goes on without.
const FIRST_LOOK: Duration = Duration::from_secs(5);

// === impl SetupWatch ===

impl SetupWatch {
    /// Begins with `config`, which was read from `source` as `text`, and looks at its queues at `url` until `stop`.
    ///
    /// # Errors
    /// `Counters` where a file for them cannot be used.
    pub fn new(
        source: Source,
        (text, config): (String, Config),
        url: BrokerUrl,
        clock: Clock,
        stop: CancellationToken,
    ) -> Result<(Self, watch::Receiver<Setup>), RefusedChange> {
        let (watching, sight) = Watching::start(&config, &url, clock, &stop)?;
        let (setup, receiver) = watch::channel(Setup { config: Arc::new(config), sight, refused: None });
        let metrics = Metrics::default();
        let (judged, read) = (Some(text.clone()), Some(text));
        Ok((Self { source, url, clock, stop, setup, watching, judged, read, metrics }, receiver))
    }

    /// Its figures.
    #[must_use]
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        self.metrics.register(&mut registry);
        registry
    }

    /// Follows the file until it is told to stop, then ends the watch over the queues.
    pub async fn run(mut self) {
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(CADENCE) => {}
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.look() => {}
            }
        }
        self.watching.end().await;
    }

    async fn look(&mut self) {
        let path = self.source.path.clone();
        let read = tokio::task::spawn_blocking(move || Config::read(&path));
        let Ok(Ok(read)) = deadline("read the configuration", FIRST_LOOK, read).await else { return };
        let text = read.as_ref().ok().cloned();
        let is_steady = std::mem::replace(&mut self.read, text.clone()) == text;
        if !is_steady || text == self.judged {
            return;
        }
        self.judged = text;
        let change = read.and_then(|text| Config::parse(&text, &self.source.overrides));
        let old = Arc::clone(&self.setup.borrow().config);
        let adopted = match change.map_err(RefusedChange::from).and_then(|new| fits(&old, new)) {
            Ok(new) => self.adopt(&old, new).await,
            Err(error) => Err(error),
        };
        if let Err(error) = adopted {
            self.refuse(&error);
        }
    }

    async fn adopt(&mut self, old: &Config, new: Config) -> Result<(), RefusedChange> {
        let sight = |config| (queues(config), config.check_interval, &config.counters);
        let other = if sight(old) == sight(&new) {
            None
        } else {
            Some(Watching::start(&new, &self.url, self.clock, &self.stop)?)
        };
        self.metrics.refused.set(0);
        if *old == new {
            // Comments, or back to what is in force.
            self.setup.send_modify(|setup| setup.refused = None);
            return Ok(());
        }
        tracing::info!(changes = changes(old, &new), "the configuration has changed");
        self.metrics.changes.inc();
        let config = Arc::new(new);
        let Some((watching, mut sight)) = other else {
            self.setup.send_modify(|setup| (setup.config, setup.refused) = (config, None));
            return Ok(());
        };
        // The old watch goes on until the new one has looked, so that nothing is unknown in between.
        if deadline("first look at the queues", FIRST_LOOK, sight.changed()).await.is_err() {
            tracing::debug!("the queues were not seen yet");
        }
        self.setup.send_replace(Setup { config, sight, refused: None });
        std::mem::replace(&mut self.watching, watching).end().await;
        Ok(())
    }

    fn refuse(&mut self, error: &RefusedChange) {
        let error = chain(error);
        tracing::error!(error, "the changed configuration is refused, the one before stays in force");
        self.metrics.refused.set(1);
        let refused = Refused { since: self.clock.now(), error };
        self.setup.send_modify(|setup| setup.refused = Some(refused));
    }
}

/// Whether a running scaler can go on with `new`.
fn fits(old: &Config, new: Config) -> Result<Config, RefusedChange> {
    match &*old.fixed_differences(&new) {
        [] => Ok(new),
        differences => Err(RefusedChange::Fixed(differences.join(", "))),
    }
}

fn queues(config: &Config) -> BTreeSet<&String> {
    config.pools.iter().flat_map(|pool| &pool.queues).collect()
}

/// What changed, for the log.
fn changes(old: &Config, new: &Config) -> String {
    let by_name =
        |config: &Config| config.pools.iter().map(|pool| (pool.name.clone(), pool.clone())).collect();
    let (before, after): (BTreeMap<String, PoolConfig>, BTreeMap<String, PoolConfig>) =
        (by_name(old), by_name(new));
    let added = after.keys().filter(|name| !before.contains_key(*name)).map(|name| format!("{name} is new"));
    let removed =
        before.keys().filter(|name| !after.contains_key(*name)).map(|name| format!("{name} is gone"));
    let changed = after.iter().filter(|(name, pool)| before.get(*name).is_some_and(|before| before != *pool));
    let pools = added.chain(removed).chain(changed.map(|(name, _)| format!("{name} is changed")));
    let pools = pools.map(|change| format!("pool {change}"));
    let rest = [
        (old.quota != new.quota, "quota"),
        (old.check_interval != new.check_interval, "check_interval"),
        (old.counters != new.counters, "counters"),
        (before == after && old.pools != new.pools, "order of the pools"),
    ];
    let rest = rest.into_iter().filter(|(differs, _)| *differs).map(|(_, what)| what.to_owned());
    pools.chain(rest).collect::<Vec<_>>().join(", ")
}

// === impl RefusedChange ===

impl From<CannotRead> for RefusedChange {
    fn from(error: CannotRead) -> Self {
        Self::Counters(error.into())
    }
}

// === impl Watching ===

impl Watching {
    fn start(
        config: &Config,
        url: &BrokerUrl,
        clock: Clock,
        stop: &CancellationToken,
    ) -> Result<(Self, watch::Receiver<Sight>), RefusedChange> {
        let names: Vec<_> = queues(config).into_iter().cloned().collect();
        let endpoints = |counters| Endpoint::all(counters, url.vhost(), Login::of(url));
        let endpoints = config.counters.as_ref().map(endpoints).transpose()?;
        let stop = stop.child_token();
        let (watch, sight) = QueueWatch::new(url.clone(), &config.instance, names.clone(), clock);
        let counters = config.counters.as_ref().zip(endpoints).map(|(counters, endpoints)| {
            let watch = CounterWatch::new(endpoints, counters.source, names, watch.teller(), clock);
            tokio::spawn(watch.run(stop.clone()))
        });
        let queues = tokio::spawn(watch.run(config.check_interval, stop.clone()));
        Ok((Self { queues, counters, stop }, sight))
    }

    async fn end(self) {
        let Self { queues, counters, stop } = self;
        stop.cancel();
        for task in [Some(queues), counters].into_iter().flatten() {
            if let Err(panic) = task.await {
                tracing::error!(error = %chain(&panic), "a watch over the queues ended abnormally");
            }
        }
    }
}

// === impl Metrics ===

impl Metrics {
    fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("mayfly_scaler_config");
        registry.register("changes", "Changes of the configuration that took effect", self.changes.clone());
        registry.register(
            "refused",
            "1 while the configuration's file is refused and the one before stays in force",
            self.refused.clone(),
        );
    }
}

#[cfg(test)]
mod tests;
