//! Why a worker is not ready yet, and what to do about it (facts/kubernetes A2): each cause has a deadline of
//! its own.

use std::time::Duration;

use serde::Serialize;

use super::{Phase, PoolState, Worker};
use crate::time::Time;

/// A Job without a pod may be deleted from this age on: its pod cannot be under way any more.
pub const PODLESS_REMOVABLE_AFTER: Duration = Duration::from_secs(120);
/// So long a node may take to come before we say that there is none. The worker stays: it is the probe.
const NODE_LIMIT: Duration = Duration::from_mins(5);
/// The same where an autoscaler said that a node is coming.
const PROMISED_NODE_LIMIT: Duration = Duration::from_mins(20);
/// So long a scheduled worker may take to start (volumes, network, containers).
const START_LIMIT: Duration = Duration::from_mins(5);
/// So long pulling an image may take: large ones on fresh nodes do.
const PULL_LIMIT: Duration = Duration::from_mins(15);
/// So long a registry may refuse an image: it may be out of order.
const REFUSED_PULL_LIMIT: Duration = Duration::from_mins(5);
/// So long a Secret or `ConfigMap` may come after the worker that needs it.
const LATE_CONFIGURATION: Duration = Duration::from_secs(30);

/// Why a pending worker is not ready yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PendingCause {
    /// Its intent is written, its Job not seen yet.
    Intended,
    /// Its Job has no pod yet, or the pod was not looked at by the scheduler.
    Creating,
    /// Its Job is suspended, by a person or by a queueing system.
    Suspended,
    /// The namespace's quota is exhausted.
    Quota,
    /// Its pod is refused by the cluster: policy, service account, permission.
    CreateRefused,
    /// It waits for its node, which is known to come (process launcher: the start delay).
    NodeComing,
    /// No node has room for it.
    NoRoom,
    /// Its process or containers start.
    Starting,
    /// Its image is being pulled.
    Pulling,
    /// Its image cannot be pulled.
    ImagePull,
    /// Its image can never be used as configured.
    BadImage,
    /// Its container cannot be configured: a Secret or `ConfigMap` is missing, for example.
    BadConfiguration,
    /// It runs, its consumer is not registered yet.
    NotReady,
}

/// What to do about a pending worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing: it takes its time.
    Wait,
    /// Launch no other: the cluster has no room now. The worker stays, as the probe for room.
    Hold,
    /// Give it up: a failure. It is removed and the pool cools down.
    Fail,
}

// === impl PendingCause ===

impl PendingCause {
    /// What to do about an unstarted worker that has been in this state for `waited`.
    #[must_use]
    pub fn action(self, waited: Duration) -> Action {
        let patience = |limit: Duration, then: Action| if waited < limit { Action::Wait } else { then };
        match self {
            Self::Intended | Self::Creating | Self::NotReady => Action::Wait,
            Self::Suspended | Self::Quota => Action::Hold,
            Self::CreateRefused | Self::BadImage => Action::Fail,
            Self::NoRoom => patience(NODE_LIMIT, Action::Hold),
            Self::NodeComing => patience(PROMISED_NODE_LIMIT, Action::Hold),
            Self::Starting => patience(START_LIMIT, Action::Fail),
            Self::Pulling => patience(PULL_LIMIT, Action::Fail),
            Self::ImagePull => patience(REFUSED_PULL_LIMIT, Action::Fail),
            Self::BadConfiguration => patience(LATE_CONFIGURATION, Action::Fail),
        }
    }

    /// The name used in logs, metrics and pages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Intended => "launch intended",
            Self::Creating => "pod being created",
            Self::Suspended => "job suspended",
            Self::Quota => "namespace quota exhausted",
            Self::CreateRefused => "pod refused",
            Self::NodeComing => "node coming",
            Self::NoRoom => "no room on any node",
            Self::Starting => "starting",
            Self::Pulling => "pulling its image",
            Self::ImagePull => "image cannot be pulled",
            Self::BadImage => "image refused",
            Self::BadConfiguration => "container cannot be configured",
            Self::NotReady => "running, not ready",
        }
    }

    /// Whether there is something that could have started.
    const fn has_pod(self) -> bool {
        !matches!(self, Self::Intended | Self::Creating | Self::Suspended | Self::Quota | Self::CreateRefused)
    }
}

// === impl Phase ===

impl Phase {
    /// What to do about a worker in this phase. One that has started ends by itself, so it is waited for.
    #[must_use]
    pub fn action(&self, now: Time) -> Action {
        match self {
            Self::Pending { started: false, cause, since, .. } => cause.action(now.since(*since)),
            _ => Action::Wait,
        }
    }
}

// === impl Worker ===

impl Worker {
    /// Whether it may be taken back, or removed after a failure, at `now`.
    #[must_use]
    pub fn is_removable(&self, now: Time) -> bool {
        match self.phase {
            Phase::Pending { started: false, cause, .. } => {
                cause.has_pod() || now.since(self.launched) >= PODLESS_REMOVABLE_AFTER
            }
            _ => false,
        }
    }
}

// === impl PoolState ===

impl PoolState {
    /// Whether this pending worker was counted as a failure already: nothing is expected of it any more.
    #[must_use]
    pub fn has_given_up(&self, worker: &Worker) -> bool {
        matches!(worker.phase, Phase::Pending { .. })
            && worker.serial.is_some_and(|serial| self.judged.contains(&serial))
    }
}
