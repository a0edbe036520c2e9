//! What would have to change for a launch, in words: from the decision and its numbers alone.

use super::{Decision, Hold, PendingCause, Unknown, UnknownWhat, Why, decision::seconds};

// === impl Decision ===

impl Decision {
    /// What would have to change for the next launch of pool `pool`, to follow "launches".
    #[must_use]
    pub fn advice(&self, pool: &str) -> String {
        match self {
            Self::Launch(launch) => match launch.slots.len() {
                1 => "one worker now".to_owned(),
                count => format!("{count} workers now"),
            },
            Self::Withdraw(_) => "when messages wait that need a worker".to_owned(),
            Self::Hold(hold) => hold.advice(pool),
        }
    }
}

// === impl Hold ===

impl Hold {
    fn advice(&self, pool: &str) -> String {
        match self {
            Self::Unknown { what, unknown } => when_known(what, unknown),
            Self::Paused { everything: true } => "after: mayfly-scaler state CONFIGURATION resume".to_owned(),
            Self::Paused { everything: false } => {
                format!("after: mayfly-scaler state CONFIGURATION resume {pool}")
            }
            Self::CoolingDown { until, .. } => {
                format!("after {until}, or once a message was done; the log says how workers failed")
            }
            Self::AtMaximum { maximum: 0, .. } => "with a max_workers above 0".to_owned(),
            Self::AtMaximum { maximum, .. } => {
                format!("when a worker has ended, or with a max_workers above {maximum}")
            }
            Self::QuotaReached { quota: 0, .. } => "with a quota above 0".to_owned(),
            Self::QuotaReached { quota, .. } => {
                format!("when workers of any pool have ended, or with a quota above {quota}")
            }
            Self::Empty => "when messages wait".to_owned(),
            Self::QueueMissing { queue } => {
                format!("when the queue is there and messages wait in it: mayfly-publisher declare {queue}")
            }
            Self::TemplateMissing { template, .. } => format!(
                "when CronJob {template} is there (helm upgrade makes it), or with another worker.template"
            ),
            Self::WaitingForPending { cause: PendingCause::Intended, .. } => {
                "when the worker that is being launched is ready, or given up".to_owned()
            }
            Self::WaitingForPending { pending: 1, .. } => {
                "when the pending worker is ready, or given up".to_owned()
            }
            Self::WaitingForPending { .. } => "when pending workers are ready, or given up".to_owned(),
            Self::WaitingForLook => "after the next look, if messages still wait".to_owned(),
            Self::AtCapacity { cause: PendingCause::Quota, .. } => {
                "when Jobs or pods of the namespace have ended, or with a higher resource quota".to_owned()
            }
            Self::AtCapacity { .. } => "when the pending worker has found room".to_owned(),
            Self::Pacing { until } => format!("after {until}, if messages still wait"),
            Self::BelowThreshold { ready, target, age, limit } => format!(
                "when more than {target} messages wait (now {ready}), or the oldest for more than {} (now {})",
                seconds(*limit),
                seconds(*age)
            ),
            Self::WouldArriveTooLate { drains_in, lead } => format!(
                "when what waits lasts for more than {} (now {}), or without skip_futile",
                seconds(*lead),
                seconds(*drains_in)
            ),
            Self::DownstreamSaturated { .. } => {
                "when work gets quicker or workers have left, within ten minutes as a trial, or without \
                 saturation_guard"
                    .to_owned()
            }
            Self::OnTime { slack } => {
                format!("when a message would begin too late (now {} to spare)", seconds(*slack))
            }
            Self::Batching { launch_by } => {
                format!("at {launch_by}, or earlier if more messages come")
            }
            Self::NothingHelps { age, slo } => format!(
                "when a new worker would be there in time for a message (the latest begins at {} of {})",
                seconds(*age),
                seconds(*slo)
            ),
        }
    }
}

fn when_known(what: &UnknownWhat, unknown: &Unknown) -> String {
    match (what, unknown.why) {
        (UnknownWhat::State, Why::Unusable) => {
            "when the record is sound again: mayfly-scaler state CONFIGURATION repair".to_owned()
        }
        (_, Why::NotYetSeen) => "once they were looked at, which is soon".to_owned(),
        (_, Why::Forbidden) => format!("when the scaler is allowed to see {what}"),
        (_, Why::Unreachable | Why::Stale | Why::Unusable) => format!("when {what} can be seen again"),
    }
}
