//! Where workers run. One trait, one launcher per place.

pub mod kubernetes;
pub mod process;
mod words;

pub use kubernetes::KubernetesLauncher;
pub use process::ProcessLauncher;

use std::{collections::BTreeMap, error::Error, time::Duration};

use mayfly_service::DeadlineExceeded;

use crate::{
    config::{Config, PoolConfig},
    policy::{MissingTemplate, Why, Worker},
    time::Time,
};

/// A place where workers run.
pub trait Launcher: Send + Sync + 'static {
    /// All workers of the instance, ended ones included while their Job exists.
    fn list(&self, look: Look, now: Time) -> impl Future<Output = Result<Vec<Worker>, LaunchError>> + Send;

    /// Creates the Job that `plan` names, a worker of `pool`. Never twice under one name.
    fn launch(
        &self,
        plan: &Plan,
        pool: &PoolConfig,
    ) -> impl Future<Output = Result<Launched, LaunchError>> + Send;

    /// Takes a worker back, only if nothing of it has started since it was listed.
    fn remove(&self, worker: &Worker, now: Time)
    -> impl Future<Output = Result<Removed, LaunchError>> + Send;

    /// Removes what ended workers left; `counted` are those whose outcome is in the record.
    fn tidy(
        &self,
        ended: &[Worker],
        counted: &[Worker],
        now: Time,
    ) -> impl Future<Output = Result<(), LaunchError>> + Send;

    /// Tells people where they look for what becomes of the pool's template. Nothing depends on it.
    fn tell(&self, _: &News, _: &PoolConfig) -> impl Future<Output = Result<(), LaunchError>> + Send {
        async { Ok(()) }
    }

    /// Of which pools the worker template is known to be missing: what was found by launches and listings. Only
    /// those of `config` are looked for again.
    fn missing_templates(&self, _: &Config, _: Time) -> BTreeMap<String, MissingTemplate> {
        BTreeMap::new()
    }

    /// Whether there is time for what can wait: routine looks and what is told must not make a launch wait.
    fn has_leisure(&self) -> bool {
        true
    }

    /// How often to list: while work waits or a worker is pending, and otherwise.
    fn cadence(&self) -> Cadence;
}

/// What a listing is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// To be told of changes: only what may have changed is asked for.
    Routine,
    /// To act on: everything is asked for afresh.
    Fresh,
}

/// How often a launcher may be asked for its workers.
#[derive(Debug, Clone, Copy)]
pub struct Cadence {
    /// While work waits or a worker is pending.
    pub busy: Duration,
    /// Otherwise.
    pub idle: Duration,
    /// The first time after an act, which has listed itself: when what it did shows.
    pub after_act: Duration,
}

/// Something that people may want to know of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// The pool.
    pub pool: String,
    /// What it is, in one word.
    pub reason: &'static str,
    /// What makes it the same news for several scalers: a worker, a time.
    pub key: String,
    /// In words; of several the last.
    pub note: String,
    /// Whether somebody should look at it.
    pub warning: bool,
    /// How often it happened.
    pub count: u32,
    /// For the first time.
    pub first: Time,
    /// For the last time.
    pub last: Time,
}

/// One Job to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Its serial.
    pub serial: u64,
    /// Its slot.
    pub slot: u32,
    /// Why.
    pub reason: String,
    /// When it was decided.
    pub stamp: Time,
    /// What a message takes, as far as known.
    pub service_time: Option<Duration>,
}

/// What a launch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launched {
    /// The Job is new.
    Created,
    /// The Job was there already, and is ours: somebody completed the intent before.
    Adopted,
}

/// What a removal did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It will never start.
    Removed,
    /// It has started, or was removed before.
    TooLate,
    /// Nobody can tell yet whether it has started: asked for again later.
    NotYet,
}

/// Why a launcher's call failed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The name is taken by something that is not ours.
    #[error("{name} exists and is not ours")]
    Foreign {
        /// The Job's name.
        name: String,
    },
    /// Definitely not done: there is no room for it now. Nobody's failure.
    #[error("{what} was refused: there is no room for it")]
    AtCapacity {
        /// What was attempted.
        what: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// Definitely not done: the pool's template does not exist. Nobody's failure, it may come yet.
    #[error("{what} has no template: {problem}")]
    NoTemplate {
        /// What was attempted.
        what: String,
        /// What is missing, and the next step.
        problem: String,
    },
    /// Definitely not done, and trying the same again at once is pointless.
    #[error("{what} was refused")]
    Refused {
        /// What was attempted.
        what: String,
        /// Whether what is missing is our permission.
        forbidden: bool,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// No proper answer: it may have been done.
    #[error("{what} got no answer")]
    Unanswered {
        /// What was attempted.
        what: String,
        /// What happened instead.
        #[source]
        source: BoxError,
    },
    /// No answer in time: it may have been done.
    #[error(transparent)]
    Deadline(#[from] DeadlineExceeded),
}

/// A cause of whatever kind.
pub type BoxError = Box<dyn Error + Send + Sync>;

// === impl LaunchError ===

impl LaunchError {
    /// A refusal for another reason than a missing permission.
    pub(crate) fn refused(what: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self::Refused { what: what.into(), forbidden: false, source: source.into() }
    }

    /// What such an error of a listing means.
    #[must_use]
    pub const fn why(&self) -> Why {
        match self {
            Self::Refused { forbidden: true, .. } => Why::Forbidden,
            _ => Why::Unreachable,
        }
    }
}
