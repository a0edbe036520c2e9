//! What our Jobs and pods are called, and how they are found.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{launcher::Plan, time::Time};

/// The program that runs in it.
pub(super) const NAME: (&str, &str) = ("app.kubernetes.io/name", "mayfly-worker");
/// Which part of mayfly it is.
pub(super) const COMPONENT: (&str, &str) = ("app.kubernetes.io/component", "worker");
/// Who made it.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "mayfly-scaler");
/// The instance.
pub(super) const INSTANCE: &str = "app.kubernetes.io/instance";
/// The pool.
pub(super) const POOL: &str = "mayfly/pool";
/// The slot; absent where a person made the Job.
pub(super) const SLOT: &str = "mayfly/slot";
/// The serial; absent where a person made the Job.
pub(super) const SERIAL: &str = "mayfly/serial";
/// Annotation: why it was launched.
pub(super) const REASON: &str = "mayfly/reason";
/// Annotation: when that was decided.
pub(super) const INTENDED_AT: &str = "mayfly/intended-at";
/// Label of a Job: the generation of the template that it was made from.
pub(super) const GENERATION: &str = "mayfly/template-generation";
/// Label of a pod: the uid of its Job. (Its longer form is younger than some clusters.)
pub(super) const CONTROLLER: &str = "controller-uid";

/// Selects the instance's workers, Jobs and pods alike.
pub(super) fn selector(instance: &str) -> String {
    format!("{INSTANCE}={instance},{}={}", COMPONENT.0, COMPONENT.1)
}

/// The labels of a Job that we make, and of its pod.
pub(super) fn labels(instance: &str, plan: &Plan) -> [(&'static str, String); 7] {
    [
        (NAME.0, NAME.1.to_owned()),
        (COMPONENT.0, COMPONENT.1.to_owned()),
        (MANAGED_BY.0, MANAGED_BY.1.to_owned()),
        (INSTANCE, instance.to_owned()),
        (POOL, plan.pool.clone()),
        (SLOT, plan.slot.to_string()),
        (SERIAL, plan.serial.to_string()),
    ]
}

/// Who a Job or pod is, by its labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) pool: String,
    pub(super) serial: Option<u64>,
    pub(super) slot: Option<u32>,
}

// === impl Identity ===

impl Identity {
    /// From the labels of a Job or pod.
    pub(super) fn of(metadata: &ObjectMeta) -> Self {
        let label = |key: &str| metadata.labels.as_ref().and_then(|labels| labels.get(key));
        Self {
            pool: label(POOL).cloned().unwrap_or_default(),
            serial: label(SERIAL).and_then(|text| text.parse().ok()),
            slot: label(SLOT).and_then(|text| text.parse().ok()),
        }
    }

    /// The same for a Job of this name: what a person copied from one of ours has its labels, not its name.
    pub(super) fn of_job(metadata: &ObjectMeta) -> Self {
        let named = Self::of(metadata);
        let name = metadata.name.as_deref().unwrap_or_default();
        let ours = named.serial.is_some_and(|serial| name.ends_with(&format!("-{serial}")));
        if ours { named } else { Self { serial: None, slot: None, ..named } }
    }
}

/// The generation of the template that a Job was made from, as its label says.
pub(super) fn generation(metadata: &ObjectMeta) -> Option<u64> {
    metadata.labels.as_ref()?.get(GENERATION)?.parse().ok()
}

/// When the launch was decided, as its annotation says.
pub(super) fn intended_at(metadata: &ObjectMeta) -> Option<Time> {
    serde_json::from_value(metadata.annotations.as_ref()?.get(INTENDED_AT)?.as_str().into()).ok()
}

/// Why it was launched, as its annotation says.
pub(super) fn reason(metadata: &ObjectMeta) -> Option<String> {
    metadata.annotations.as_ref()?.get(REASON).cloned()
}
