//! What the cluster autoscaler says of all its node groups (facts/kubernetes A2, row 30), in the status that it writes
//! as YAML since its release 1.30. Pure.

use serde::Deserialize;

use super::{phase::short, said::Word};
use crate::policy::PendingCause;

/// Where it stands, unless the autoscaler was told otherwise.
pub(super) const NAMESPACE: &str = "kube-system";
pub(super) const NAME: &str = "cluster-autoscaler-status";
/// The key of its `ConfigMap`.
pub(super) const KEY: &str = "status";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    node_groups: Option<Vec<Group>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    name: String,
    health: Health,
    scale_up: ScaleUp,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    #[serde(default)]
    cloud_provider_target: u64,
    max_size: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScaleUp {
    status: String,
    #[serde(default)]
    backoff_info: BackoffInfo,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BackoffInfo {
    error_code: String,
    error_message: String,
}

/// Why no node can come at all; `None` as long as any group could grow, or grows: for whom is not known.
///
/// # Errors
/// When the text is not such a status.
pub(super) fn no_node_can_come(status: &str) -> Result<Option<Word>, serde_saphyr::Error> {
    let Status { node_groups } = serde_saphyr::from_str(status)?;
    let node_groups = node_groups.unwrap_or_default();
    let refused: Vec<_> = node_groups.iter().filter(|group| group.scale_up.status == "Backoff").collect();
    let is_stuck = |group: &Group| match &*group.scale_up.status {
        "Backoff" => true,
        "NoActivity" => group.is_full(),
        _ => false,
    };
    if node_groups.is_empty() || !node_groups.iter().all(is_stuck) {
        return Ok(None);
    }
    let (cause, told) = match &refused[..] {
        [] => (PendingCause::NodesAtLimit, node_groups.iter().map(Group::limit).collect::<Vec<_>>()),
        refused => (PendingCause::NodesRefused, refused.iter().map(|group| group.refusal()).collect()),
    };
    Ok(Some(Word { cause, detail: short(&told.join("; ")) }))
}

// === impl Group ===

impl Group {
    fn is_full(&self) -> bool {
        self.health.max_size.is_some_and(|most| self.health.cloud_provider_target >= most)
    }

    fn limit(&self) -> String {
        let Self { name, health: Health { cloud_provider_target, max_size }, .. } = self;
        let most = max_size.unwrap_or_default();
        format!("node group {name} has {cloud_provider_target} of at most {most} nodes")
    }

    fn refusal(&self) -> String {
        let Self {
            name,
            scale_up: ScaleUp { backoff_info: BackoffInfo { error_code, error_message }, .. },
            ..
        } = self;
        let why: Vec<_> = [error_code, error_message]
            .into_iter()
            .filter(|text| !text.is_empty())
            .map(|text| &**text)
            .collect();
        if why.is_empty() {
            format!("node group {name} is in backoff")
        } else {
            format!("node group {name} is in backoff: {}", why.join(": "))
        }
    }
}
