//! Why a worker is not ready yet, and what to do about it (facts/kubernetes A2): each cause has a deadline of
//! its own.

use std::time::Duration;

use serde::Serialize;

use super::{Phase, PoolState, Worker};
use crate::time::Time;

/// A Job without a pod may be deleted from this age on: its pod cannot be under way any more.
pub const PODLESS_REMOVABLE_AFTER: Duration = Duration::from_secs(120);

/// How long each cause may last before it is acted upon: the defaults are those of facts/kubernetes A2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Without a promise: how long a node may take to come before we say that there is none. The worker stays:
    /// it is the probe.
    pub no_room: Duration,
    /// The same where an autoscaler said that a node is coming.
    pub node_coming: Duration,
    /// How long an autoscaler may say that the worker fits no node.
    pub misfit: Duration,
    /// How long the scheduler may fail over it.
    pub scheduler_error: Duration,
    /// How long volumes may take: on fresh nodes up to half a minute is common.
    pub volumes: Duration,
    /// The same of the network.
    pub network: Duration,
    /// How long a scheduled worker of which nothing else is known may take to start.
    pub starting: Duration,
    /// How long init containers and sidecars may take before the worker's own container starts.
    pub initializing: Duration,
    /// How long pulling an image may take: large ones on fresh nodes do.
    pub pulling: Duration,
    /// How long a registry may refuse an image: it may be out of order.
    pub image_pull: Duration,
    /// How long a Secret or `ConfigMap` may come after the worker that needs it.
    pub configuration: Duration,
    /// How long the container runtime may fail.
    pub runtime: Duration,
}

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
    /// No node has room for it, and an autoscaler may add none: its limits are reached.
    NodesAtLimit,
    /// No node has room for it, and the cloud gave the autoscaler none: out of stock, or over a quota.
    NodesRefused,
    /// An autoscaler says that it fits no node that could ever come.
    Misfit,
    /// Somebody else decides when it may be scheduled.
    Gated,
    /// The scheduler itself fails over it.
    SchedulerError,
    /// The scheduler evicts others for it.
    Preempting,
    /// Its process or containers start.
    Starting,
    /// Its volumes cannot be mounted yet.
    Volumes,
    /// Its network cannot be set up yet.
    Network,
    /// Its image is being pulled.
    Pulling,
    /// Its init containers, or sidecars, are not done.
    Initializing,
    /// Its image cannot be pulled.
    ImagePull,
    /// Its image can never be used as configured.
    BadImage,
    /// Its container cannot be configured: a Secret or `ConfigMap` is missing, for example.
    BadConfiguration,
    /// The container runtime fails over it.
    RuntimeError,
    /// A container that has to run before the worker's crashes again and again.
    CrashLoop,
    /// It runs, its consumer is not registered yet.
    NotReady,
    /// It runs, and the queue has no consumer that could be its own: in pools that are ready by consumers.
    NoConsumer,
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

// === impl Deadlines ===

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            no_room: Duration::from_mins(5),
            node_coming: Duration::from_mins(20),
            misfit: Duration::from_mins(2),
            scheduler_error: Duration::from_mins(5),
            volumes: Duration::from_mins(3),
            network: Duration::from_mins(3),
            starting: Duration::from_mins(5),
            initializing: Duration::from_mins(15),
            pulling: Duration::from_mins(15),
            image_pull: Duration::from_mins(5),
            configuration: Duration::from_secs(30),
            runtime: Duration::from_mins(2),
        }
    }
}

// === impl PendingCause ===

impl PendingCause {
    /// What to do about an unstarted worker that has been in this state for `waited`.
    #[must_use]
    pub fn action(self, waited: Duration, deadlines: &Deadlines) -> Action {
        let patience = |limit: Duration, then: Action| if waited < limit { Action::Wait } else { then };
        match self {
            Self::Intended | Self::Creating | Self::Gated | Self::NotReady | Self::NoConsumer => Action::Wait,
            Self::Suspended | Self::Quota | Self::NodesAtLimit | Self::NodesRefused => Action::Hold,
            Self::CreateRefused | Self::BadImage | Self::CrashLoop => Action::Fail,
            Self::NoRoom | Self::Preempting => patience(deadlines.no_room, Action::Hold),
            Self::NodeComing => patience(deadlines.node_coming, Action::Hold),
            Self::Misfit => patience(deadlines.misfit, Action::Fail),
            Self::SchedulerError => patience(deadlines.scheduler_error, Action::Fail),
            Self::Starting => patience(deadlines.starting, Action::Fail),
            Self::Initializing => patience(deadlines.initializing, Action::Fail),
            Self::Volumes => patience(deadlines.volumes, Action::Fail),
            Self::Network => patience(deadlines.network, Action::Fail),
            Self::Pulling => patience(deadlines.pulling, Action::Fail),
            Self::ImagePull => patience(deadlines.image_pull, Action::Fail),
            Self::BadConfiguration => patience(deadlines.configuration, Action::Fail),
            Self::RuntimeError => patience(deadlines.runtime, Action::Fail),
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
            Self::NodesAtLimit => "no room, and the autoscaler is at its limit",
            Self::NodesRefused => "no room, and the cloud has no node now",
            Self::Misfit => "fits no node",
            Self::Gated => "scheduling gated",
            Self::SchedulerError => "scheduler error",
            Self::Preempting => "others are evicted for it",
            Self::Starting => "starting",
            Self::Volumes => "volumes not mounted",
            Self::Network => "network not set up",
            Self::Pulling => "pulling its image",
            Self::Initializing => "init containers not done",
            Self::ImagePull => "image cannot be pulled",
            Self::BadImage => "image refused",
            Self::BadConfiguration => "container cannot be configured",
            Self::RuntimeError => "container runtime fails",
            Self::CrashLoop => "crashing before the worker starts",
            Self::NotReady => "running, not ready",
            Self::NoConsumer => "running, no consumer at its queue",
        }
    }

    /// Whether it waits for a node, or for room on one.
    #[must_use]
    pub const fn is_placing(self) -> bool {
        matches!(
            self,
            Self::NodeComing
                | Self::NoRoom
                | Self::NodesAtLimit
                | Self::NodesRefused
                | Self::Misfit
                | Self::Gated
                | Self::SchedulerError
                | Self::Preempting
        )
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
    pub fn action(&self, now: Time, deadlines: &Deadlines) -> Action {
        match self {
            Self::Pending { started: false, cause, since, .. } => cause.action(now.since(*since), deadlines),
            _ => Action::Wait,
        }
    }
}

// === impl Worker ===

impl Worker {
    /// Whether its init containers run: it then is not taken back, only given up.
    #[must_use]
    pub const fn is_initializing(&self) -> bool {
        matches!(self.phase, Phase::Pending { cause: PendingCause::Initializing, .. })
    }

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
