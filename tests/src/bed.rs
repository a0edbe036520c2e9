//! What a test lies in: a shared broker, a queue name of its own, a directory for logs.

use std::{
    fs,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use futures_util::FutureExt;
use tempfile::TempDir;

use crate::{
    client::Client,
    node::{Broker, Node, Release},
    process::Program,
    proxy::Proxy,
};

/// The environment variable in which `testbed` hands its brokers over: a JSON list of [`Broker`]s.
pub const BROKERS: &str = "MAYFLY_TEST_BROKERS";
/// The environment variable that asks for the full number of [`rounds`].
pub const FULL: &str = "MAYFLY_TEST_FULL";
/// No test runs longer than this.
const TEST_LIMIT: Duration = Duration::from_mins(10);
/// The same in a full run.
const FULL_TEST_LIMIT: Duration = Duration::from_hours(1);
/// How many logs a failed test shows.
const LOGS_SHOWN: usize = 4;
/// What mayfly may declare beside a queue of this name (DESIGN §7), deleted with it.
const COMPANIONS: [&str; 6] = [".retry.5s", ".retry.30s", ".retry.2m", ".retry.10m", ".suspect", ".dead"];

/// One test's bed.
#[derive(Debug)]
pub struct Bed {
    /// The release under this run of the test.
    pub release: Release,
    /// A broker shared with other tests: don't stop it, raise no alarm. Who needs that starts a
    /// [`Node`] of its own.
    pub broker: Broker,
    /// A name that nobody else uses; the queue is not declared yet. Deleted at the end with its companions.
    pub queue: String,
    queues: Mutex<Vec<String>>,
    directory: TempDir,
}

/// Runs an `async fn(&Bed) -> Result<()>` once on every release, as the tests `NAME::packaged` and
/// `NAME::trixie`.
#[macro_export]
macro_rules! on_each_release {
    ($($(#[$attribute:meta])* $name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            $(#[$attribute])*
            fn packaged() {
                $crate::bed::run($crate::Release::Packaged, async |bed| super::$name(bed).await);
            }

            #[test]
            $(#[$attribute])*
            fn trixie() {
                $crate::bed::run($crate::Release::Trixie, async |bed| super::$name(bed).await);
            }
        }
    )+};
}

// === impl Bed ===

impl Bed {
    /// On the broker that `testbed` hands over.
    fn make(release: Release) -> Result<Self> {
        let brokers = std::env::var(BROKERS).ok().filter(|text| !text.is_empty());
        let brokers = brokers.context("no brokers to test on: run `bin/test broker`")?;
        let brokers: Vec<Broker> = serde_json::from_str(&brokers).context(BROKERS)?;
        let broker = brokers.into_iter().find(|broker| broker.release == release);
        let broker = broker.with_context(|| format!("no {release} broker here: run `bin/test broker`"))?;
        Self::on(broker)
    }

    /// On this broker.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn on(broker: Broker) -> Result<Self> {
        Ok(Self {
            release: broker.release,
            broker,
            queue: unique("test"),
            queues: Mutex::new(Vec::new()),
            directory: tempfile::Builder::new().prefix("mayfly-test-").tempdir()?,
        })
    }

    /// A further queue name, unique, starting with `prefix`. Deleted at the end with its companions.
    #[must_use]
    pub fn queue_name(&self, prefix: &str) -> String {
        let name = unique(prefix);
        if let Ok(mut queues) = self.queues.lock() {
            queues.push(name.clone());
        }
        name
    }

    /// A client of the shared broker.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn client(&self) -> Result<Client> {
        self.broker.client().await
    }

    /// A proxy before the shared broker.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn proxy(&self) -> Result<Proxy> {
        Proxy::before(&self.broker).await
    }

    /// A node of this release for this test alone, to be stopped and killed at will.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn own_node(&self) -> Result<Node> {
        Node::start(self.release).await
    }

    /// One of mayfly's programs, set up to use the shared broker and to log JSON with the ids of messages.
    ///
    /// # Errors
    /// When it was not built.
    pub fn program(&self, name: &str) -> Result<Program> {
        Ok(Program::of_mayfly(name, self.directory())?
            .env("MAYFLY_BROKER_URL", self.broker.url())
            .env("MAYFLY_LOG", "info,mayfly_worker::message=debug")
            .env("MAYFLY_LOG_FORMAT", "json"))
    }

    /// A directory for this test alone, deleted at its end.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The ends of the logs that programs wrote to last.
    fn last_logs(&self) -> Result<Vec<(PathBuf, String)>> {
        let mut logs = Vec::new();
        for entry in fs::read_dir(self.directory())? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                logs.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        logs.sort();
        let last = logs.into_iter().rev().take(LOGS_SHOWN);
        Ok(last.map(|(_, path)| (path.clone(), crate::process::tail(&path))).collect())
    }

    /// Deletes the queues that were handed out.
    async fn clean(&self) -> Result<()> {
        let client = self.client().await?;
        let mut names = self.queues.lock().map(|queues| queues.clone()).unwrap_or_default();
        names.push(self.queue.clone());
        for name in &names {
            client.delete(name).await?;
            for companion in COMPANIONS {
                client.delete(&format!("{name}{companion}")).await?;
            }
        }
        client.close().await
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- end of the log of {}:\n{}", self.release, self.broker.log_tail());
        }
    }
}

/// How often to do something of which a full run (`bin/test --full`) does `full`: in the gate a twentieth.
#[must_use]
pub fn rounds(full: usize) -> usize {
    if is_full() { full } else { full.div_ceil(20) }
}

fn is_full() -> bool {
    std::env::var_os(FULL).is_some()
}

/// Runs a test body in a bed and cleans up after it, whether it fails or not.
///
/// # Panics
/// When the body fails, panics or takes longer than 10 minutes (an hour in a full run): this is how a test
/// fails.
pub fn run(release: Release, body: impl AsyncFnOnce(&Bed) -> Result<()>) {
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no runtime")
        .and_then(|runtime| runtime.block_on(run_in_bed(release, body)));
    if let Err(error) = outcome {
        #[expect(clippy::panic, reason = "this is how a test fails")]
        {
            panic!("{error:#}");
        }
    }
}

async fn run_in_bed(release: Release, body: impl AsyncFnOnce(&Bed) -> Result<()>) -> Result<()> {
    let bed = Bed::make(release)?;
    let limit = if is_full() { FULL_TEST_LIMIT } else { TEST_LIMIT };
    let limited = async {
        match tokio::time::timeout(limit, body(&bed)).await {
            Ok(outcome) => outcome,
            Err(_) => bail!("the test took longer than {limit:?}"),
        }
    };
    let outcome = AssertUnwindSafe(limited).catch_unwind().await;
    let cleaned = bed.clean().await.context("the queues of the test cannot be deleted");
    match outcome {
        Ok(Ok(())) => cleaned,
        Ok(Err(error)) => {
            eprintln!("--- end of the log of {release}:\n{}", bed.broker.log_tail());
            for (path, tail) in bed.last_logs().unwrap_or_default() {
                eprintln!("--- end of {}:\n{tail}", path.display());
            }
            Err(error)
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::now_v7().simple())
}
