//! Where in Kubernetes: the current context, pinned, and the file with the broker's URL.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use kube::config::Kubeconfig;

/// What the contexts of `bin/cluster` begin with.
const OWN_CONTEXT: &str = "mayfly-";

/// The context that was current when the demo began.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) context: String,
    /// A private copy of the user's, so that nobody who chooses another context meanwhile moves the demo.
    pub(super) kubeconfig: PathBuf,
}

/// The file that holds the broker's URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UrlFile {
    pub(super) path: PathBuf,
    /// The cluster whose own broker that is, if `bin/cluster broker` wrote it.
    pub(super) cluster: Option<String>,
}

// === impl Place ===

impl Place {
    /// Finds the current context, and copies what belongs to it to `directory`.
    pub(super) fn find(directory: &Path) -> Result<Self> {
        let next =
            "next: start a cluster by bin/cluster up, or choose one by kubectl config use-context NAME";
        let mut config = Kubeconfig::read().with_context(|| format!("no kubeconfig ({next})"))?;
        let Some(context) = config.current_context.clone().filter(|context| !context.is_empty()) else {
            bail!("kubectl has no current context ({next})");
        };
        // No more credentials than needed.
        config.contexts.retain(|known| known.name == context);
        let chosen = config.contexts.iter().find_map(|known| known.context.clone()).unwrap_or_default();
        config.clusters.retain(|cluster| cluster.name == chosen.cluster);
        config.auth_infos.retain(|user| Some(&user.name) == chosen.user.as_ref());
        let kubeconfig = directory.join("kubeconfig");
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&kubeconfig)?;
        // JSON is YAML.
        serde_json::to_writer(file, &config)?;
        Ok(Self { context, kubeconfig })
    }
}

// === impl UrlFile ===

impl UrlFile {
    /// The given one, else that of the cluster's own broker if `context` is one of `bin/cluster`; `own` finds
    /// that by the cluster's name.
    pub(super) fn choose(
        context: &str,
        given: Option<PathBuf>,
        own: impl FnOnce(&str) -> Option<PathBuf>,
    ) -> Result<Self> {
        let cluster = context.strip_prefix(OWN_CONTEXT).filter(|name| !name.is_empty());
        let own = cluster.and_then(own);
        match (given, cluster) {
            (given, Some(cluster)) if own.is_some() && (given.is_none() || given == own) => {
                Ok(Self { path: own.unwrap_or_default(), cluster: Some(cluster.to_owned()) })
            }
            (Some(path), _) => Ok(Self { path, cluster: None }),
            (None, Some(cluster)) => bail!(
                "cluster {cluster} has no broker (next: bin/cluster --name {cluster} broker, or give the file \
                 that holds another one's URL: --broker-url-file FILE)"
            ),
            (None, None) => bail!(
                "--broker-url-file is missing: the broker of context {context} is not known (next: write \
                 RabbitMQ's URL, as pods reach it, to a file and give that)"
            ),
        }
    }
}

/// Where `bin/cluster broker` writes the URL of cluster `name`'s own broker; `None` if there is none.
pub(super) fn own_url_file(name: &str) -> Option<PathBuf> {
    let cache = PathBuf::from(std::env::var_os("MAYFLY_CACHE")?);
    fs::canonicalize(cache.join("clusters").join(name).join("broker-url")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file, and whose own broker it is.
    fn choose(context: &str, given: Option<&str>, own: Option<&str>) -> Result<(String, String), String> {
        let chosen = UrlFile::choose(context, given.map(Into::into), |_| own.map(Into::into));
        let told = |file: UrlFile| (file.path.display().to_string(), file.cluster.unwrap_or_default());
        chosen.map(told).map_err(|error| error.to_string())
    }

    #[test]
    fn a_given_file_counts_before_the_clusters_own() {
        let file = |path: &str, cluster: &str| Ok((path.to_owned(), cluster.to_owned()));
        assert_eq!(choose("mayfly-a", Some("f"), Some("own")), file("f", ""));
        assert_eq!(choose("mayfly-a", Some("own"), Some("own")), file("own", "a"));
        assert_eq!(choose("mayfly-a", None, Some("own")), file("own", "a"));
        assert_eq!(choose("mayfly-a", Some("f"), None), file("f", ""));
        assert_eq!(choose("work", Some("own"), Some("own")), file("own", ""));
    }

    #[test]
    fn a_missing_file_is_refused_with_the_next_step() {
        let error = choose("mayfly-a", None, None).unwrap_err();
        assert!(error.contains("bin/cluster --name a broker"), "{error}");
        let error = choose("work", None, Some("own")).unwrap_err();
        assert!(error.contains("--broker-url-file is missing") && error.contains("context work"), "{error}");
    }
}
