//! Workers as their Jobs show them.

use anyhow::{Context, Result};
use k8s_openapi::api::batch::v1::Job;

/// A worker's Job, as tests look at it.
#[derive(Debug, Clone)]
pub struct WorkerJob {
    /// Its name.
    pub name: String,
    /// Its serial; `None` if a person made it.
    pub serial: Option<u64>,
    /// When its launch was decided, milliseconds since the Unix epoch.
    pub stamp: u64,
    /// Whether its pod is ready now.
    pub ready: bool,
    /// `Complete` or `Failed`, once it is.
    pub ended: Option<String>,
    /// All of it.
    pub job: Job,
}

// === impl WorkerJob ===

impl WorkerJob {
    pub(super) fn of(job: Job) -> Result<Self> {
        let label = |name: &str| job.metadata.labels.as_ref()?.get(name).cloned();
        let annotation = |name: &str| job.metadata.annotations.as_ref()?.get(name).cloned();
        let stamp =
            annotation("mayfly/intended-at").map(|text| humantime::parse_rfc3339(&text)).transpose()?;
        let stamp = stamp.map(|stamp| stamp.duration_since(std::time::UNIX_EPOCH)).transpose()?;
        let mut conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let is_end = |kind: &str| matches!(kind, "Complete" | "Failed");
        let ended = conditions.rfind(|one| one.status == "True" && is_end(&one.type_));
        Ok(Self {
            name: job.metadata.name.clone().context("a Job without a name")?,
            serial: label("mayfly/serial").map(|text| text.parse()).transpose()?,
            stamp: u64::try_from(stamp.unwrap_or_default().as_millis())?,
            ready: job.status.as_ref().and_then(|status| status.ready).unwrap_or(0) > 0,
            ended: ended.map(|condition| condition.type_.clone()),
            job,
        })
    }
}
