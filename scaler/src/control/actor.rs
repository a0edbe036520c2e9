//! The one that acts: state → fresh list → judge → decide and share for all pools → one compare-and-swap →
//! POSTs. Dying between any two of these loses and doubles nothing.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use mayfly_service::{chain, crash::crash_point};
use tokio::sync::watch;

use super::{
    course::Decider,
    view::{Loaded, View, alive},
};
use crate::{
    config::{Config, PoolConfig},
    launcher::{LaunchError, Launched, Launcher, Look, Plan, Removed},
    observe::Sight,
    policy::{
        Fact, Judgement, LastFailure, Memory, Phase, StateRecord, Unknown, Verdict, Why, Worker, judge,
    },
    state::{StateError, StateStore},
    time::{Clock, Time},
};

/// A POST needs a listing no older than this.
const LISTING_FRESH: Duration = Duration::from_secs(2);
/// So many Jobs are asked for at a time: a burst is out before its listing becomes too old.
const POSTS_AT_ONCE: usize = 8;
/// Tries to take a refused intent out of the record again.
const REFUSAL_TRIES: u32 = 3;

/// What acting takes; shared by all acts of one process.
#[derive(Debug)]
pub(super) struct Actor<L, S> {
    pub(super) launcher: L,
    pub(super) state: S,
    pub(super) clock: Clock,
    /// This process, in the intents that it writes.
    pub(super) me: String,
}

/// One act's input, besides what it reads afresh.
#[derive(Debug)]
pub(super) struct Brief {
    pub(super) config: Arc<Config>,
    pub(super) memory: Arc<Memory>,
    pub(super) sight: watch::Receiver<Sight>,
    pub(super) view: View,
    /// Whether learned estimates are due to be written.
    pub(super) persist_estimates: bool,
}

/// One act's outcome.
#[derive(Debug)]
pub(super) struct Acted {
    /// The fleet as the act left it.
    pub(super) view: View,
    /// Whether the record was written.
    pub(super) wrote: bool,
    /// Whether workers were to be removed.
    pub(super) removed: bool,
    /// Whether somebody else wrote the record meanwhile.
    pub(super) outrun: bool,
}

// === impl Actor ===

impl<L: Launcher, S: StateStore> Actor<L, S> {
    /// Acts once. Whatever goes wrong is logged and left to the next tick.
    pub(super) async fn act(&self, brief: Brief) -> Acted {
        let Brief { config, memory, sight, mut view, persist_estimates } = brief;
        let stored = self.state.read().await;
        let listed_at = self.clock.now();
        let listed = self.launcher.list(Look::Fresh, listed_at).await;
        let now = self.clock.now();
        let workers = match listed {
            Ok(workers) => workers,
            Err(error) => {
                view.workers = unknown(&view.workers, error.why(), &error, now);
                return Acted::without_effect(view);
            }
        };
        // Between reading and listing another scaler may have written the first record, and launched.
        if matches!(stored, Ok(None)) && view.lost_since.is_none() && alive(&workers) > 0 {
            return Acted { outrun: true, ..Acted::without_effect(view) };
        }
        let loaded = stored.map_err(|error| state_unknown(&view.record, &error, now)).and_then(|stored| {
            View::load(stored, &workers, &mut view.lost_since, &config, now).map_err(Fact::Unknown)
        });
        view.workers = Fact::Known { value: workers.clone(), at: listed_at };
        let Loaded { record, expected, amended } = match loaded {
            Ok(loaded) => loaded,
            Err(unknown) => {
                view.record = unknown;
                return Acted::without_effect(view);
            }
        };
        let Judgement { record: judged, verdicts } = judge(&record, &workers, &config, now);
        self.tidy(&record, &workers, now).await;
        view.record = Fact::Known { value: judged.clone(), at: now };
        view.note_intents(now);
        let workers = memory.counted(view.workers.clone());
        let mut observation = sight.borrow().clone().observation(workers, view.record.clone());
        observation.missing_templates = self.launcher.missing_templates(&config, now);
        let decider =
            Decider { config: &config, memory: &memory, observation: &observation, me: &self.me, now };
        let mut course = decider.course(&judged, &view.intents_seen);
        let wrote = persist_estimates || amended || course.record.differs_in_substance(&record);
        if wrote {
            decider.keep_estimates(&mut course.record);
            if expected.is_none() && view.lost_since.take().is_some() {
                tracing::error!(
                    "the state record was lost and is rebuilt: pause and cool-down of all pools are lost"
                );
            }
            let launches = course.has_launches(now);
            crash_point(if launches { "before-intent" } else { "before-settle" });
            match self.state.replace(expected, course.record).await {
                Ok(written) => {
                    view.record = Fact::Known { value: written, at: self.clock.now() };
                    view.amended = false;
                }
                Err(error) => {
                    let outrun = matches!(error, StateError::Conflict);
                    if !outrun {
                        view.record = state_unknown(&view.record, &error, now);
                    }
                    tracing::debug!(error = %chain(&error), "state record not written, the tick is dropped");
                    return Acted { outrun, ..Acted::without_effect(view) };
                }
            }
            crash_point(if launches { "after-intent" } else { "after-settle" });
            log_verdicts(&verdicts, &judged);
        }
        for worker in &course.removals {
            self.remove(worker).await;
        }
        let mut refused = Vec::new();
        for together in course.posts.chunks(POSTS_AT_ONCE) {
            let mut asked = Vec::new();
            for plan in together {
                // Nothing is launched for a pool that is not configured.
                let Some(pool) = config.pool(&plan.pool) else { continue };
                asked.push(async move { Some((plan, pool, self.post(plan, pool, listed_at).await?)) });
            }
            refused.extend(join_all(asked).await.into_iter().flatten());
        }
        for (plan, pool, error) in refused {
            if let Err(error) = self.withdraw_refused(plan, pool, &error, &mut view).await {
                tracing::warn!(worker = plan.name, error = %chain(&error), "refused launch stays intended for now");
            }
        }
        Acted { view, wrote, removed: !course.removals.is_empty(), outrun: false }
    }

    /// Asks for one Job; returns why it was definitely refused, if it was.
    async fn post(&self, plan: &Plan, pool: &PoolConfig, listed_at: Time) -> Option<LaunchError> {
        let now = self.clock.now();
        if now.since(listed_at) > LISTING_FRESH {
            tracing::warn!(worker = plan.name, "not launched yet: the listing became too old meanwhile");
            return None;
        }
        let refused = match self.launcher.launch(plan, pool).await {
            Ok(Launched::Created) => {
                let Plan { name, pool, slot, reason, .. } = plan;
                tracing::info!(worker = name, pool, slot, reason, "worker launched");
                return None;
            }
            Ok(Launched::Adopted) => {
                tracing::info!(worker = plan.name, "worker was launched before, adopted");
                return None;
            }
            Err(error @ (LaunchError::Deadline(_) | LaunchError::Unanswered { .. })) => {
                tracing::warn!(worker = plan.name, error = %chain(&error), "launch unanswered, looked for later");
                return None;
            }
            Err(error) => error,
        };
        match &refused {
            LaunchError::AtCapacity { .. } => {
                tracing::warn!(worker = plan.name, error = %chain(&refused), "no room for another worker");
            }
            LaunchError::NoTemplate { .. } => {
                tracing::warn!(worker = plan.name, error = %chain(&refused), "launches wait for their template");
            }
            _ => tracing::error!(worker = plan.name, error = %chain(&refused), "launch refused"),
        }
        Some(refused)
    }

    /// Takes the intent of a definitely refused launch out of the record; its serial is burnt.
    async fn withdraw_refused(
        &self,
        plan: &Plan,
        pool: &PoolConfig,
        refused: &LaunchError,
        view: &mut View,
    ) -> Result<(), StateError> {
        for _ in 0..REFUSAL_TRIES {
            let Some(mut record) = self.state.read().await? else { return Ok(()) };
            let expected = Some(record.revision);
            let now = self.clock.now();
            let state = record.pool_mut(&plan.pool);
            *state = state.without_intent(plan.serial);
            match refused {
                LaunchError::AtCapacity { source, .. } => state.hold_for_room(source.to_string(), now),
                LaunchError::Refused { .. } => {
                    state.fail(pool, now);
                    let why = chain(refused);
                    let worker = plan.name.clone();
                    state.last_failure = Some(LastFailure { at: now, worker, why, last_words: None });
                }
                _ => {}
            }
            match self.state.replace(expected, record).await {
                Err(StateError::Conflict) => {}
                Err(error) => return Err(error),
                Ok(written) => {
                    view.record = Fact::Known { value: written, at: now };
                    return Ok(());
                }
            }
        }
        Err(StateError::Conflict)
    }

    async fn remove(&self, worker: &Worker) {
        match self.launcher.remove(worker, self.clock.now()).await {
            Ok(Removed::Removed) => {
                tracing::info!(worker = worker.name, "worker removed before it started");
            }
            Ok(Removed::NotYet) => tracing::debug!(worker = worker.name, "worker cannot be removed yet"),
            Ok(Removed::TooLate) => tracing::debug!(worker = worker.name, "worker has started, it stays"),
            Err(error) => {
                tracing::warn!(worker = worker.name, error = %chain(&error), "worker not removed");
            }
        }
    }

    async fn tidy(&self, stored: &StateRecord, workers: &[Worker], now: Time) {
        let ended: Vec<_> =
            workers.iter().filter(|worker| matches!(worker.phase, Phase::Finished(_))).cloned().collect();
        let is_counted = |worker: &&Worker| {
            let judged = stored.pools.get(&worker.pool).map(|state| &state.judged);
            worker.serial.zip(judged).is_some_and(|(serial, judged)| judged.contains(&serial))
        };
        let counted: Vec<_> = ended.iter().filter(is_counted).cloned().collect();
        if !ended.is_empty()
            && let Err(error) = self.launcher.tidy(&ended, &counted, now).await
        {
            tracing::warn!(error = %chain(&error), "ended workers not tidied up");
        }
    }
}

// === impl Acted ===

impl Acted {
    /// An act that came no further than looking.
    const fn without_effect(view: View) -> Self {
        Self { view, wrote: false, removed: false, outrun: false }
    }
}

fn log_verdicts(verdicts: &[(String, Verdict)], judged: &StateRecord) {
    let last_words = |worker: &str| {
        let failures = judged.pools.values().filter_map(|state| state.last_failure.as_ref());
        failures.into_iter().find(|failure| failure.worker == worker)?.last_words.as_deref()
    };
    for (worker, verdict) in verdicts {
        match verdict {
            Verdict::Fine(reason) => {
                tracing::info!(
                    worker,
                    reason = reason.map(mayfly_service::report::ExitReason::as_str),
                    "worker ended"
                );
            }
            Verdict::Failed(why) => {
                tracing::warn!(worker, why, last_words = last_words(worker), "worker failed");
            }
            Verdict::Disrupted(why) => tracing::warn!(worker, why, "worker lost to a disruption"),
            Verdict::NeverStarted => tracing::warn!(worker, "worker never started, its serial is burnt"),
        }
    }
}

/// What failed to be observed, since the moment when it first failed for this reason.
pub(super) fn unknown<T>(before: &Fact<T>, why: Why, error: &dyn std::error::Error, now: Time) -> Fact<T> {
    let (unknown, is_new) = unknown_since(before, why, error, now);
    if is_new {
        tracing::warn!(why = why.as_str(), error = %chain(error), "workers or state cannot be observed");
    }
    unknown
}

fn unknown_since<T>(before: &Fact<T>, why: Why, error: &dyn std::error::Error, now: Time) -> (Fact<T>, bool) {
    let since = before.unknown().filter(|before| before.why == why).map(|before| before.since);
    (Fact::Unknown(Unknown { why, detail: chain(error), since: since.unwrap_or(now) }), since.is_none())
}

/// The same for the state record. One that is damaged or gone is as loud as one that was lost.
pub(super) fn state_unknown(before: &Fact<StateRecord>, error: &StateError, now: Time) -> Fact<StateRecord> {
    let why = if error.needs_repair() { Why::Unusable } else { Why::Unreachable };
    if !error.is_loss() {
        return unknown(before, why, error, now);
    }
    let (unknown, is_new) = unknown_since(before, why, error, now);
    if is_new {
        tracing::error!(why = why.as_str(), error = %chain(error), "the state record cannot be used");
    }
    unknown
}
