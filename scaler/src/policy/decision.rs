//! A decision and the numbers that it was made on: log field, metric label, Event reason, page text and
//! test all derive from this one value.

use std::{fmt, time::Duration};

use super::{PendingCause, Unknown, UnknownWhat};
use crate::time::Time;

/// What to do about a pool now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Create Jobs.
    Launch(Launch),
    /// Take pending workers back.
    Withdraw(Withdraw),
    /// Do nothing, for a reason.
    Hold(Hold),
}

/// Create one Job per slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The slots, lowest free first.
    pub slots: Vec<u32>,
    /// Why.
    pub reason: LaunchReason,
}

/// Why to launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchReason {
    /// Fewer useful workers than are to be kept warm.
    BelowMinimum {
        /// Useful workers.
        useful: u32,
        /// `min_workers`.
        minimum: u32,
    },
    /// More messages wait than the threshold allows.
    DepthAbove {
        /// Ready messages.
        ready: u64,
        /// `target_queue_size`.
        target: u64,
    },
    /// The oldest message waits too long.
    MessageTooOld {
        /// Ready messages.
        ready: u64,
        /// Its estimated age.
        age: Duration,
        /// `force_empty_queue_interval`.
        limit: Duration,
    },
    /// Messages wait, and nobody knows yet how long one takes (slo mode).
    Learning {
        /// Ready messages.
        ready: u64,
    },
    /// A message, waiting or soon to arrive, would begin too late (slo mode).
    DeadlineAtRisk {
        /// Ready messages.
        ready: u64,
        /// How old the latest of them will be when it begins, with this launch.
        age: Duration,
        /// Its queue's `slo`.
        slo: Duration,
    },
    /// Nodes that are paid for have room, and the backlog is worth a start (slo mode).
    TopUp {
        /// Ready messages.
        ready: u64,
        /// Time until the queue is drained without it.
        drains_in: Duration,
    },
}

/// Take back workers that have not started and that nothing needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdraw {
    /// Their Job names, newest first.
    pub workers: Vec<String>,
    /// How long nothing needed them.
    pub unneeded_for: Duration,
}

/// Why not to launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// Something that the decision needs is not known.
    Unknown {
        /// What.
        what: UnknownWhat,
        /// Why and since when.
        unknown: Unknown,
    },
    /// A person paused the pool, or everything.
    Paused {
        /// Whether everything is paused.
        everything: bool,
    },
    /// Workers failed; wait before the next try.
    CoolingDown {
        /// Until when.
        until: Time,
        /// Failures in a row.
        failures: u32,
    },
    /// As many workers as allowed.
    AtMaximum {
        /// Occupied workers.
        occupied: u32,
        /// `max_workers`.
        maximum: u32,
    },
    /// Other pools use the quota.
    QuotaReached {
        /// Occupied workers over all pools.
        occupied: u32,
        /// The quota.
        quota: u32,
        /// The pool's own part of it, while others wish as well.
        part: u32,
        /// How old its latest message is or will be when it begins, where its wish tells, …
        age: Option<Duration>,
        /// … and how old it may be.
        limit: Option<Duration>,
    },
    /// Nothing waits.
    Empty,
    /// No queue of the pool exists.
    QueueMissing {
        /// The first of them.
        queue: String,
    },
    /// The pool's worker template does not exist, or not yet.
    TemplateMissing {
        /// Its name.
        template: String,
        /// Since when it is missed.
        since: Time,
    },
    /// A worker is not ready yet.
    WaitingForPending {
        /// Pending workers.
        pending: u32,
        /// Age of the oldest of them.
        age: Duration,
        /// Why it is not ready.
        cause: PendingCause,
        /// What the cluster says about it.
        detail: Option<String>,
    },
    /// A worker has become ready since the queues were looked at: what waited then, it may have taken.
    WaitingForLook,
    /// The cluster has no room for another worker now.
    AtCapacity {
        /// What says so: why a pending worker gets no further, or why a launch was refused.
        cause: PendingCause,
        /// What the cluster says about it.
        detail: Option<String>,
    },
    /// The last launch was too short ago.
    Pacing {
        /// When the next one may be.
        until: Time,
    },
    /// Too little waits, not long enough.
    BelowThreshold {
        /// Ready messages.
        ready: u64,
        /// `target_queue_size`.
        target: u64,
        /// The oldest message's estimated age.
        age: Duration,
        /// When the age alone would launch: `force_empty_queue_interval`.
        limit: Duration,
    },
    /// The workers there drain the queue before a new one would be ready.
    WouldArriveTooLate {
        /// Time until the queue is drained.
        drains_in: Duration,
        /// Time until a new worker would be ready.
        lead: Duration,
    },
    /// The last workers, at least two, brought no more throughput, only slower work: what is behind them is busy.
    DownstreamSaturated {
        /// Ready workers then and now.
        workers: [u32; 2],
        /// Messages a minute.
        per_minute: [u64; 2],
        /// Time a message.
        service: [Duration; 2],
    },
    /// Everything begins in time with the workers that are there and coming (slo mode).
    OnTime {
        /// By how much the latest one begins too early.
        slack: Duration,
    },
    /// A launch is needed, but does as well a little later (slo mode).
    Batching {
        /// When it is needed at the latest.
        launch_by: Time,
    },
    /// What begins too late does so whatever is launched (slo mode).
    NothingHelps {
        /// How old the latest message will be when it begins.
        age: Duration,
        /// Its queue's `slo`.
        slo: Duration,
    },
}

// === impl Decision ===

impl Decision {
    /// The name used as log field, metric label and Event reason.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Launch(launch) => launch.reason.as_str(),
            Self::Withdraw(_) => "Unneeded",
            Self::Hold(hold) => hold.as_str(),
        }
    }

    /// `launch`, `withdraw` or `hold`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Launch(_) => "launch",
            Self::Withdraw(_) => "withdraw",
            Self::Hold(_) => "hold",
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch(Launch { slots, reason }) => write!(formatter, "launch {}: {reason}", slots.len()),
            Self::Withdraw(Withdraw { workers, unneeded_for }) => {
                write!(
                    formatter,
                    "take back {}: nothing needed it for {}",
                    workers.len(),
                    seconds(*unneeded_for)
                )
            }
            Self::Hold(hold) => write!(formatter, "hold: {hold}"),
        }
    }
}

// === impl LaunchReason ===

impl LaunchReason {
    /// The name used as log field, metric label and Event reason.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::BelowMinimum { .. } => "BelowMinimum",
            Self::DepthAbove { .. } => "DepthAbove",
            Self::MessageTooOld { .. } => "MessageTooOld",
            Self::Learning { .. } => "Learning",
            Self::DeadlineAtRisk { .. } => "DeadlineAtRisk",
            Self::TopUp { .. } => "TopUp",
        }
    }
}

impl fmt::Display for LaunchReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BelowMinimum { useful, minimum } => {
                write!(formatter, "{useful} useful of at least {minimum} workers")
            }
            Self::DepthAbove { ready, target } => {
                write!(formatter, "{ready} messages wait, more than {target}")
            }
            Self::MessageTooOld { ready, age, limit } => write!(
                formatter,
                "{ready} messages wait, the oldest for {}, longer than {}",
                seconds(*age),
                seconds(*limit)
            ),
            Self::Learning { ready } => {
                write!(formatter, "{ready} messages wait, how long one takes is to be learned")
            }
            Self::DeadlineAtRisk { ready, age, slo } => write!(
                formatter,
                "{ready} messages wait; with this the latest begins {} after it came, of {}",
                seconds(*age),
                seconds(*slo)
            ),
            Self::TopUp { ready, drains_in } => write!(
                formatter,
                "{ready} messages wait, drained in {}; nodes that are paid for have room",
                seconds(*drains_in)
            ),
        }
    }
}

// === impl Hold ===

impl Hold {
    /// The name used as log field and metric label.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "Unknown",
            Self::Paused { .. } => "Paused",
            Self::CoolingDown { .. } => "CoolingDown",
            Self::AtMaximum { .. } => "AtMaximum",
            Self::QuotaReached { .. } => "QuotaReached",
            Self::Empty => "Empty",
            Self::QueueMissing { .. } => "QueueMissing",
            Self::TemplateMissing { .. } => "TemplateMissing",
            Self::WaitingForPending { .. } => "WaitingForPending",
            Self::WaitingForLook => "WaitingForLook",
            Self::AtCapacity { .. } => "AtCapacity",
            Self::Pacing { .. } => "Pacing",
            Self::BelowThreshold { .. } => "BelowThreshold",
            Self::WouldArriveTooLate { .. } => "WouldArriveTooLate",
            Self::DownstreamSaturated { .. } => "DownstreamSaturated",
            Self::OnTime { .. } => "OnTime",
            Self::Batching { .. } => "Batching",
            Self::NothingHelps { .. } => "NothingHelps",
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { what, unknown } => write!(formatter, "{what} {unknown}"),
            Self::Paused { everything: true } => formatter.write_str("everything is paused"),
            Self::Paused { everything: false } => formatter.write_str("the pool is paused"),
            Self::CoolingDown { until, failures } => {
                write!(formatter, "cooling down until {until} after {failures} failed workers")
            }
            Self::AtMaximum { occupied, maximum } => {
                write!(formatter, "{occupied} of at most {maximum} workers")
            }
            Self::QuotaReached { occupied, quota, part, age, limit } => {
                write!(
                    formatter,
                    "{occupied} workers over all pools, the quota is {quota}, this pool's part {part}"
                )?;
                let Some((age, limit)) = age.zip(*limit) else { return Ok(()) };
                write!(formatter, "; its latest message: {} of {}", seconds(age), seconds(limit))
            }
            Self::Empty => formatter.write_str("nothing waits"),
            Self::QueueMissing { queue } => write!(formatter, "queue {queue} does not exist"),
            Self::TemplateMissing { template, since } => {
                write!(formatter, "worker template {template} does not exist, missed since {since}")
            }
            Self::WaitingForPending { pending, age, cause, detail } => {
                write!(
                    formatter,
                    "{pending} workers pending, the oldest for {} ({}{})",
                    seconds(*age),
                    cause.as_str(),
                    explained(detail.as_ref())
                )
            }
            Self::WaitingForLook => formatter
                .write_str("a worker became ready after the last look, and may have taken what waits"),
            Self::AtCapacity { cause, detail } => {
                // No autoscaler said so: it may only be slow.
                let unconfirmed = if *cause == PendingCause::NoRoom { " (unconfirmed)" } else { "" };
                let (cause, detail) = (cause.as_str(), explained(detail.as_ref()));
                write!(formatter, "at capacity{unconfirmed}: {cause}{detail}")
            }
            Self::Pacing { until } => write!(formatter, "the next launch may be at {until}"),
            Self::BelowThreshold { ready, target, age, limit } => write!(
                formatter,
                "{ready} messages wait, not more than {target}; the oldest for {} of {}",
                seconds(*age),
                seconds(*limit)
            ),
            Self::WouldArriveTooLate { drains_in, lead } => write!(
                formatter,
                "drained in {}, before a new worker would be ready in {}",
                seconds(*drains_in),
                seconds(*lead)
            ),
            Self::DownstreamSaturated { workers, per_minute, service } => {
                let ([few, many], [less, more], [quick, slow]) = (workers, per_minute, service);
                write!(
                    formatter,
                    "{many} workers do {more} messages a minute in {} each, {few} did {less} in {}",
                    seconds(*slow),
                    seconds(*quick)
                )
            }
            Self::OnTime { slack } => {
                write!(formatter, "all begins in time, with {} to spare", seconds(*slack))
            }
            Self::Batching { launch_by } => {
                write!(formatter, "a launch is needed by {launch_by}, not before")
            }
            Self::NothingHelps { age, slo } => write!(
                formatter,
                "the latest begins {} after it came, of {}, whatever is launched",
                seconds(*age),
                seconds(*slo)
            ),
        }
    }
}

fn explained(detail: Option<&String>) -> String {
    detail.map_or_else(String::new, |detail| format!(": {detail}"))
}

pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
