//! RabbitMQ nodes of our own: never a system service, gone when we are.

mod broker;
pub(crate) mod ports;
mod release;
mod tls;

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use anyhow::{Context, Result, bail};
use futures_util::future::try_join_all;

pub use self::{
    broker::{Broker, ConnectionReport, Ports, QueueReport},
    release::{Release, cache},
    tls::{Authority, Certificate, TlsNode},
};
use crate::{
    sandbox::{Identity, Sandbox},
    wait::{eventually, until},
};

/// How long a node may take to answer.
const START_LIMIT: Duration = Duration::from_secs(90);
/// How long a node may take to end.
const STOP_LIMIT: Duration = Duration::from_mins(1);
/// How often a new node is begun, each time with other ports: somebody may take one after it was found free.
const STARTS: u32 = 3;
/// What a node runs beside its port mapper.
const SERVE: &str = r#"epmd -address 127.0.0.1 -port "$ERL_EPMD_PORT" & exec "$0""#;

/// A loopback port on which nobody listens now.
///
/// # Errors
/// When none is found.
pub fn free_port() -> Result<u16> {
    ports::free().map(|[port]| port)
}

/// A node that we own. Dropping it ends it and deletes its data.
#[derive(Debug)]
pub struct Node {
    broker: Broker,
    sandbox: Option<Sandbox>,
}

// === impl Node ===

impl Node {
    /// Starts a node with no data and waits until it serves AMQP.
    ///
    /// # Errors
    /// When the release is not installed, or the node does not answer in 90 s; the text holds its log's end.
    pub async fn start(release: Release) -> Result<Self> {
        Self::start_with(release, |_| Ok(())).await
    }

    /// The same; `change` may change what the node reads at its start. It runs again, with other ports, when
    /// the node did not start.
    ///
    /// # Errors
    /// As [`start`](Self::start), or what `change` returns.
    pub async fn start_with(release: Release, mut change: impl FnMut(&Broker) -> Result<()>) -> Result<Self> {
        release.ensure().await?;
        let mut start = 1;
        loop {
            let [amqp, dist, epmd, management, prometheus] = ports::free()?;
            let ports = Ports { amqp, dist, epmd, management, prometheus };
            let directory = tempfile::Builder::new().prefix("mayfly-node-").tempdir()?.keep();
            let mut node = Self { broker: Broker { release, ports, directory }, sandbox: None };
            configure(&node.broker)?;
            change(&node.broker)?;
            match node.start_again().await {
                Ok(()) => return Ok(node),
                Err(error) if start < STARTS => eprintln!("start {start} of {STARTS}: {error:#}"),
                Err(error) => return Err(error),
            }
            start += 1;
        }
    }

    /// Several at once.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_all(releases: &[Release]) -> Result<Vec<Self>> {
        // One after the other first: building a root file system at the same time as starting would say both
        // at once.
        for release in releases {
            release.ensure().await?;
        }
        try_join_all(releases.iter().map(|release| Self::start(*release))).await
    }

    /// The node as its users see it.
    #[must_use]
    pub const fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Starts it again after [`stop`](Self::stop) or [`kill`](Self::kill): same ports, same data.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_again(&mut self) -> Result<()> {
        let Broker { release, ports, ref directory } = self.broker;
        let Ports { amqp, dist, epmd, management, prometheus } = ports;
        let all = [amqp, dist, epmd, management, prometheus];
        until("the node's ports are free", STOP_LIMIT, async || Ok(all.into_iter().all(ports::is_free)))
            .await?;

        let installation = release.installation()?;
        let mut argv = self.broker.enter(&installation);
        argv.extend(["sh", "-c", SERVE].map(Into::into));
        argv.push(installation.scripts.join("rabbitmq-server").into());
        let mut command = Sandbox::command(Identity::Root, Some(directory), &argv);
        self.broker.set_environment(&mut command);
        command.env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            // Idle schedulers sleep at once: the machine's cores are for the tests.
            "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none",
        );
        let log = fs::OpenOptions::new().create(true).append(true).open(self.broker.log_file())?;
        command.stdout(log.try_clone()?).stderr(log);
        self.sandbox = Some(Sandbox::spawn(command)?);

        let answers = eventually("the node answers", START_LIMIT, async || {
            if let Some(status) = self.sandbox.as_mut().context("no sandbox")?.ended()? {
                return Ok(Some(Err(status)));
            }
            self.broker.client().await?.close().await?;
            Ok(Some(Ok(())))
        });
        let failure = match answers.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(status)) => anyhow::anyhow!("it ended with {status}"),
            Err(error) => error,
        };
        self.sandbox = None;
        bail!("node {release} does not start: {failure:#}\n{}", self.broker.log_tail())
    }

    /// Ends it in order (SIGTERM) and waits until it is gone. Its data stay.
    ///
    /// # Errors
    /// When it does not end within a minute.
    pub async fn stop(&mut self) -> Result<()> {
        let mut sandbox = self.sandbox.take().context("the node is down")?;
        sandbox.terminate().await?;
        tokio::time::timeout(STOP_LIMIT, sandbox.wait()).await.context("the node does not stop")??;
        Ok(())
    }

    /// kill -9. Its data stay.
    ///
    /// # Errors
    /// When it was down, or does not go away.
    pub async fn kill(&mut self) -> Result<()> {
        let mut sandbox = self.sandbox.take().context("the node is down")?;
        sandbox.kill().await?;
        tokio::time::timeout(STOP_LIMIT, sandbox.wait()).await.context("the node does not die")??;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- end of the log of {}:\n{}", self.broker.release, self.broker.log_tail());
        }
        self.sandbox = None;
        let _ = fs::remove_dir_all(&self.broker.directory);
    }
}

/// Writes what a node reads at its start.
fn configure(broker: &Broker) -> Result<()> {
    let Broker { ports: Ports { amqp, management, prometheus, .. }, directory, .. } = broker;
    let conf = format!(
        "listeners.tcp.1 = 127.0.0.1:{amqp}\n\
         management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n\
         prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {prometheus}\n\
         log.connection.level = warning\n\
         disk_free_limit.absolute = 50MB\n"
    );
    let write = |name: &str, text: &str| {
        fs::write(directory.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    write("rabbitmq.conf", &conf)?;
    write("enabled_plugins", "[rabbitmq_management,rabbitmq_prometheus].\n")?;
    let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
    write("hosts", &format!("127.0.0.1 localhost {host}"))?;
    write(".erlang.cookie", &uuid::Uuid::now_v7().simple().to_string())?;
    fs::set_permissions(directory.join(".erlang.cookie"), fs::Permissions::from_mode(0o400))?;
    fs::create_dir(directory.join("db"))?;
    fs::create_dir(directory.join("log"))?;
    Ok(())
}
