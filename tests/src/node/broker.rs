//! A broker as its users and its administrator see it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::process::Command;

use super::release::{Installation, Release};
use crate::{
    client::Client,
    sandbox::{Identity, Isolation, Sandbox},
};

/// How long one administrative command may take.
const CTL_LIMIT: Duration = Duration::from_mins(1);
/// Where a chroot sees the data directory.
const DATA_INSIDE: &str = "/mnt";
/// The script that goes to where a release is installed.
const ENTER: &str = include_str!("enter.sh");

/// Free loopback ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// AMQP.
    pub amqp: u16,
    /// Erlang distribution, for `rabbitmqctl`.
    pub dist: u16,
    /// The node's own port mapper.
    pub epmd: u16,
    /// The management API.
    pub management: u16,
    /// Prometheus metrics.
    pub prometheus: u16,
}

/// A node that somebody runs; enough to use and administrate it from any process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Broker {
    /// What it runs.
    pub release: Release,
    /// Where it listens.
    pub ports: Ports,
    /// Its data, its configuration and its log.
    pub directory: PathBuf,
}

/// A queue as `rabbitmqctl` sees it: live, unlike the management API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct QueueReport {
    /// Its name.
    pub name: String,
    /// Messages waiting.
    #[serde(rename = "messages_ready")]
    pub ready: u64,
    /// Messages in flight.
    #[serde(rename = "messages_unacknowledged")]
    pub unacked: u64,
    /// Registered consumers; a quorum queue also counts who holds a message by `basic.get`.
    pub consumers: u64,
}

/// A client connection as `rabbitmqctl` sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ConnectionReport {
    /// The name that the client gave itself, or nothing.
    #[serde(rename = "client_properties", deserialize_with = "connection_name")]
    pub name: String,
    /// Its user.
    pub user: String,
    /// `running`, `blocked`, …
    pub state: String,
}

// === impl Broker ===

impl Broker {
    /// The AMQP URL for `user`, virtual host `/`.
    #[must_use]
    pub fn url_for(&self, user: &str, password: &str) -> String {
        format!("amqp://{user}:{password}@127.0.0.1:{}/%2f", self.ports.amqp)
    }

    /// The AMQP URL for the user guest, who may do anything.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_for("guest", "guest")
    }

    /// A client of our own, not mayfly's code.
    ///
    /// # Errors
    /// When the broker does not answer within 10 s.
    pub async fn client(&self) -> Result<Client> {
        Client::connect(&self.url()).await
    }

    /// Runs `rabbitmqctl` on the node and returns what it prints. Takes a second or two.
    ///
    /// # Errors
    /// When it fails or takes longer than a minute; the text holds its output.
    pub async fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let installation = self.release.installation()?;
        let program = installation.scripts.join("rabbitmqctl");
        let mut argv = self.enter(&installation);
        argv.push(program.as_os_str().to_owned());
        argv.extend(["-q", "-n", NODE_NAME].map(|word| OsStr::new(word).to_owned()));
        argv.extend(arguments.iter().map(|word| OsStr::new(word).to_owned()));
        let mut command = Sandbox::short(Identity::Root, &argv);
        self.set_environment(&mut command);
        let what = || format!("rabbitmqctl {}", arguments.join(" "));
        let output = tokio::time::timeout(CTL_LIMIT, command.output())
            .await
            .with_context(|| format!("{} took longer than {CTL_LIMIT:?}", what()))?
            .with_context(what)?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!("{} failed ({}): {}", what(), output.status, String::from_utf8_lossy(&said).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// All queues, live.
    ///
    /// # Errors
    /// As [`ctl`](Self::ctl).
    pub async fn queues(&self) -> Result<Vec<QueueReport>> {
        let columns = ["name", "messages_ready", "messages_unacknowledged", "consumers"];
        self.list("list_queues", &columns).await
    }

    /// One queue, live; `None` if there is no such queue.
    ///
    /// # Errors
    /// As [`ctl`](Self::ctl).
    pub async fn queue(&self, name: &str) -> Result<Option<QueueReport>> {
        Ok(self.queues().await?.into_iter().find(|queue| queue.name == name))
    }

    /// All client connections, live.
    ///
    /// # Errors
    /// As [`ctl`](Self::ctl).
    pub async fn connections(&self) -> Result<Vec<ConnectionReport>> {
        self.list("list_connections", &["client_properties", "user", "state"]).await
    }

    /// Its consumers, as `rabbitmqctl list_consumers` shows them in JSON.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn consumers(&self) -> Result<Vec<serde_json::Value>> {
        let columns = ["queue_name", "prefetch_count", "arguments", "ack_required"];
        let command = ["--formatter", "json", "list_consumers"];
        Ok(serde_json::from_str(&self.ctl(&[&command[..], &columns].concat()).await?)?)
    }

    /// Raises or clears the memory alarm: while raised, the broker blocks everybody who publishes.
    ///
    /// # Errors
    /// As [`ctl`](Self::ctl).
    pub async fn memory_alarm(&self, on: bool) -> Result<()> {
        let watermark = if on { "0.00001" } else { "0.6" };
        self.ctl(&["set_vm_memory_high_watermark", watermark]).await.map(drop)
    }

    /// Closes all client connections from the broker's side and refuses new ones, without ending the node.
    ///
    /// # Errors
    /// As [`ctl`](Self::ctl).
    pub async fn stop_app(&self) -> Result<()> {
        self.ctl(&["stop_app"]).await.map(drop)
    }

    /// The opposite of [`stop_app`](Self::stop_app).
    ///
    /// # Errors
    /// As [`ctl`](Self::ctl).
    pub async fn start_app(&self) -> Result<()> {
        self.ctl(&["start_app"]).await.map(drop)
    }

    /// The node's log.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.directory.join("node.log")
    }

    /// The end of the node's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        crate::process::tail(&self.log_file())
    }

    async fn list<T: DeserializeOwned>(&self, command: &str, columns: &[&str]) -> Result<Vec<T>> {
        let text = self.ctl(&[&["--formatter", "json", command], columns].concat()).await?;
        serde_json::from_str(&text).with_context(|| format!("{command} said {text:?}"))
    }

    /// Its data directory as the node itself sees it.
    pub(super) fn home(&self) -> PathBuf {
        match self.release {
            Release::Packaged => self.directory.clone(),
            Release::Trixie => DATA_INSIDE.into(),
        }
    }

    /// The words to put before a command that belongs to the release.
    pub(super) fn enter(&self, installation: &Installation) -> Vec<std::ffi::OsString> {
        let root = installation.root.as_deref().unwrap_or_else(|| Path::new(""));
        let private = if Isolation::here().is_private() { "yes" } else { "no" };
        let words = [
            "sh".as_ref(),
            "-c".as_ref(),
            ENTER.as_ref(),
            "enter".as_ref(),
            root.as_os_str(),
            self.directory.as_os_str(),
            private.as_ref(),
        ];
        words.map(OsStr::to_owned).to_vec()
    }

    /// The environment of the node and of its tools, and nothing else.
    pub(super) fn set_environment(&self, command: &mut Command) {
        let home = self.home();
        let Ports { dist, epmd, .. } = self.ports;
        command
            .env_clear()
            .current_dir("/")
            .env("HOME", &home)
            .env("LANG", "C.UTF-8")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", epmd.to_string())
            .env("RABBITMQ_NODENAME", NODE_NAME)
            .env("RABBITMQ_DIST_PORT", dist.to_string())
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILE", home.join("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", home.join("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", home.join("db"))
            .env("RABBITMQ_LOG_BASE", home.join("log"))
            .env("RABBITMQ_LOGS", "-");
    }
}

/// Every node has its own port mapper, so they can all have one name.
const NODE_NAME: &str = "mayfly@localhost";

/// Finds the name among a connection's client properties: `[["connection_name", "longstr", NAME], …]`. Of one that
/// is only beginning, `rabbitmqctl` prints "none" in their place.
fn connection_name<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let properties: serde_json::Value = Deserialize::deserialize(deserializer)?;
    let mut properties = properties.as_array().into_iter().flatten();
    let name = properties.find(|property| property[0] == "connection_name");
    Ok(name.and_then(|property| property[2].as_str()).unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_connection_that_is_only_beginning_has_no_name() {
        let name = |properties| {
            let report = json!({ "client_properties": properties, "user": "", "state": "starting" });
            serde_json::from_value::<ConnectionReport>(report).unwrap().name
        };
        assert_eq!(name(json!("none")), "");
        assert_eq!(name(json!([["product", "longstr", "x"], ["connection_name", "longstr", "me"]])), "me");
    }
}
