//! News as Events on a pool's template. Pure.

use serde_json::{Value, json};

use super::phase::short;
use crate::launcher::News;

/// Who reports.
const COMPONENT: &str = "mayfly-scaler";

/// The Event about the `CronJob` `template` of this uid. Its name follows from what it tells, so that several
/// scalers that tell the same make one.
pub(super) fn event(news: &News, template: &str, uid: &Value, namespace: &str) -> Value {
    let News { pool, reason, key, note, warning, count, first, last } = news;
    let key: String = key.chars().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect();
    let name = format!("{template}.{pool}.{}.{}", reason.to_lowercase(), key.trim_start_matches(['-', '.']));
    let pool_said = format!("pool {pool}: {note}");
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": name, "namespace": namespace },
        "involvedObject": {
            "apiVersion": "batch/v1", "kind": "CronJob", "name": template, "namespace": namespace, "uid": uid,
        },
        "type": if *warning { "Warning" } else { "Normal" },
        "reason": reason,
        "message": short(&pool_said),
        "count": count,
        "firstTimestamp": first.to_string(),
        "lastTimestamp": last.to_string(),
        "source": { "component": COMPONENT },
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
    })
}
