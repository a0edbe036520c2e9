//! Where the RabbitMQ releases that we test on are installed.

use std::{
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::sandbox::{Identity, Isolation, Sandbox};

/// The script that builds the root file system with RabbitMQ 4.
const BUILD: &str = include_str!("rootfs.sh");
/// The name of that root file system in the cache; a new number makes everybody build it anew.
const ROOTFS: &str = "rabbitmq-trixie-1";

/// A RabbitMQ release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Release {
    /// The package of the distribution that we run on (3.10 on Debian bookworm).
    Packaged,
    /// 4.0 of Debian trixie, in a root file system of its own.
    Trixie,
}

/// An installed release.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    /// Its root directory; `None` is our own.
    pub(super) root: Option<PathBuf>,
    /// Where its scripts are, seen from its root.
    pub(super) scripts: PathBuf,
}

// === impl Release ===

impl Release {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Packaged, Self::Trixie];

    /// Finds the installation.
    pub(super) fn installation(self) -> Result<Installation> {
        let root = match self {
            Self::Packaged => None,
            Self::Trixie => {
                ensure!(Isolation::here().is_private(), "{self} needs namespaces: run as root");
                Some(rootfs()?)
            }
        };
        let base = root.as_deref().unwrap_or_else(|| Path::new("/"));
        let scripts = scripts_below(base).with_context(|| match self {
            Self::Packaged => "no RabbitMQ here: install the package rabbitmq-server".to_owned(),
            Self::Trixie => format!("no RabbitMQ 4 in {}: run `testbed fetch` as root", base.display()),
        })?;
        Ok(Installation { scripts: Path::new("/").join(scripts.strip_prefix(base)?), root })
    }

    /// Makes the release available: builds the root file system where it is missing, under another name
    /// until it is complete. Of an interrupted build nothing stays.
    ///
    /// # Errors
    /// When it cannot be had here; the text says what is missing.
    pub async fn ensure(self) -> Result<()> {
        let root = rootfs()?;
        if self == Self::Packaged || root.exists() || !Isolation::here().is_private() {
            return self.installation().map(drop);
        }
        ensure!(
            Isolation::here() == Isolation::Root,
            "RabbitMQ 4 is not in {}: run `testbed fetch` as root",
            root.display()
        );
        let new = root.with_extension(format!("new.{}", uuid::Uuid::now_v7().simple()));
        let script = ["bash", "-c", BUILD, "rootfs"].map(OsStr::new);
        let argv = [&script[..], &[root.as_os_str(), new.as_os_str()]].concat();
        let status = Sandbox::spawn(Sandbox::command(Identity::Root, Some(&new), &argv))?.wait().await?;
        if !status.success() {
            bail!("RabbitMQ 4 could not be installed into {} ({status})", root.display());
        }
        self.installation().map(drop)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Packaged => "packaged",
            Self::Trixie => "trixie",
        })
    }
}

/// Where caches of ours are: `MAYFLY_CACHE`, else `mayfly` in the user's cache directory.
///
/// # Errors
/// When the environment has neither `MAYFLY_CACHE`, `XDG_CACHE_HOME` nor `HOME`.
pub fn cache() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("MAYFLY_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("mayfly")))
        .or_else(|| Some(variable("HOME")?.join(".cache/mayfly")))
        .context("neither MAYFLY_CACHE nor HOME is set: nowhere to keep RabbitMQ 4")
}

fn rootfs() -> Result<PathBuf> {
    Ok(cache()?.join("rootfs").join(ROOTFS))
}

/// `usr/lib/rabbitmq/lib/rabbitmq_server-VERSION/sbin` below `root`.
fn scripts_below(root: &Path) -> Result<PathBuf> {
    let versions = root.join("usr/lib/rabbitmq/lib");
    let entries = std::fs::read_dir(&versions).with_context(|| format!("no {}", versions.display()))?;
    for entry in entries {
        let scripts = entry?.path().join("sbin");
        if scripts.join("rabbitmq-server").exists() {
            return Ok(scripts);
        }
    }
    bail!("no rabbitmq-server below {}", versions.display())
}
