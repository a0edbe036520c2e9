//! The loop: observe → remember → decide → share → act. It decides from state, never from the event that
//! woke it, and it never waits inside an action.

mod actor;
mod bulletin;
mod course;
mod view;

pub(crate) use self::view::alive;

use std::{sync::Arc, time::Duration};

use mayfly_service::{Shutdown, admin::Readiness, chain};
use tokio::{sync::watch, task::JoinHandle};

use self::{
    actor::{Acted, Actor, Brief},
    bulletin::Bulletin,
    view::View,
};
use crate::{
    config::Config,
    launcher::{Launcher, Look},
    observe::{Jitter, Sight},
    policy::{Decision, Fact, Memory, Phase, QueueFacts, Worker, decide, judge, remember, share},
    setup::Setup,
    state::{StateError, StateStore},
    status::Seen,
    time::{Clock, Time},
};

/// How often the state is read when nothing makes us write it …
const STATE_CADENCE: Duration = Duration::from_secs(10);
/// … and while it could not be read.
const STATE_RETRY: Duration = Duration::from_secs(1);
/// Between two acts that remove workers: those that cannot be removed now are not asked for at every tick.
const REMOVAL_CADENCE: Duration = Duration::from_secs(2);
/// How often estimates alone are worth a write.
const ESTIMATES_CADENCE: Duration = Duration::from_secs(60);
/// How often intents that somebody left open are looked after.
const INTENT_CADENCE: Duration = Duration::from_secs(1);
/// How long an act may take to end when the scaler stops. Breaking it off is safe at any step.
const ACT_LIMIT: Duration = Duration::from_millis(800);

/// One scaler process.
#[derive(Debug)]
pub struct Control<L, S> {
    actor: Arc<Actor<L, S>>,
    setup: watch::Receiver<Setup>,
    config: Arc<Config>,
    sight: watch::Receiver<Sight>,
    seen: watch::Sender<Option<Arc<Seen>>>,
    readiness: Readiness,
    /// Whether it only tells what it would do.
    dry_run: bool,
    memory: Arc<Memory>,
    view: View,
    acting: Option<JoinHandle<Acted>>,
    bulletin: Bulletin,
    /// What is being told.
    telling: Option<JoinHandle<()>>,
    due: Due,
    /// The last decision's name by pool, so that only changes are logged.
    told: std::collections::BTreeMap<String, &'static str>,
}

/// When the next of each recurring thing is due.
#[derive(Debug, Clone, Copy)]
struct Due {
    listing: Time,
    state: Time,
    estimates: Time,
    intents: Time,
    removals: Time,
}

// === impl Control ===

impl<L: Launcher, S: StateStore> Control<L, S> {
    /// A scaler that knows nothing yet. `seen` gets what it sees and decides; `readiness` is set when it
    /// has seen workers and state.
    pub fn new(
        mut setup: watch::Receiver<Setup>,
        launcher: L,
        state: S,
        clock: Clock,
        seen: watch::Sender<Option<Arc<Seen>>>,
        readiness: Readiness,
    ) -> Self {
        let now = clock.now();
        let me = uuid::Uuid::now_v7().to_string();
        let Setup { config, sight, .. } = setup.borrow_and_update().clone();
        Self {
            actor: Arc::new(Actor { launcher, state, clock, me }),
            setup,
            config,
            sight,
            seen,
            readiness,
            dry_run: false,
            memory: Arc::default(),
            view: View::new(now),
            acting: None,
            bulletin: Bulletin::new(now),
            telling: None,
            due: Due { listing: now, state: now, estimates: now, intents: now, removals: now },
            told: std::collections::BTreeMap::new(),
        }
    }

    /// One that launches nothing and writes nothing: it only tells what it would do.
    #[must_use]
    pub fn dry_run(self, dry_run: bool) -> Self {
        Self { dry_run, ..self }
    }

    /// Runs until the first signal; an act that has begun is finished if it is short.
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut jitter = Jitter::default();
        loop {
            tokio::select! {
                () = shutdown.stop.cancelled() => break,
                () = self.tick() => {}
            }
            let pause = tokio::time::sleep(jitter.spread(self.config.check_interval));
            tokio::select! {
                () = shutdown.stop.cancelled() => break,
                // A look at the queues is worth a decision at once. The sender lives as long as we do.
                Ok(()) = self.sight.changed() => {}
                acted = ended(&mut self.acting) => self.take_in(acted),
                () = pause => {}
            }
        }
        if let Some(telling) = self.telling.take() {
            telling.abort();
        }
        if let Some(mut acting) = self.acting.take() {
            tokio::select! {
                () = shutdown.abort.cancelled() => acting.abort(),
                ended = tokio::time::timeout(ACT_LIMIT, &mut acting) => if ended.is_err() { acting.abort() },
            }
        }
    }

    async fn tick(&mut self) {
        self.take_over();
        let config = Arc::clone(&self.config);
        // While an act runs it has the fresher view: reading beside it would only bring an older one.
        if self.acting.is_none() && self.actor.launcher.has_leisure() {
            self.refresh().await;
        }
        let now = self.actor.clock.now();
        let sight = self.sight.borrow_and_update().clone();
        let mut observation = sight.observation(self.view.workers.clone(), self.view.record.clone());
        observation.missing_templates = self.actor.launcher.missing_templates(&config, now);
        self.memory =
            Arc::new(remember(Arc::unwrap_or_clone(std::mem::take(&mut self.memory)), &observation, &config));
        observation.workers = self.memory.counted(observation.workers);
        let mut unjudged = false;
        let mut given_up = false;
        if let (Fact::Known { value: record, .. }, Some(workers)) =
            (&mut observation.state, observation.workers.known())
        {
            let judged = judge(record, workers, &config, now).record;
            unjudged = course::is_worth_an_act(record, &judged, now);
            given_up = course::given_up(&judged, workers, now).next().is_some();
            *record = judged;
        }
        let decisions = share(decide(&self.memory, &observation, &config, now), &observation, &config);
        self.tell(&decisions);
        let wants_to_launch = decisions.values().any(|decision| matches!(decision, Decision::Launch(_)));
        let wants_to_remove =
            given_up || decisions.values().any(|decision| matches!(decision, Decision::Withdraw(_)));
        let wants_to_act = wants_to_launch || (wants_to_remove && now >= self.due.removals);
        let persist_estimates = self.estimates_are_due(&config, now);
        let intents = self.intents_are_due(now);
        if !self.dry_run {
            self.publish(&decisions, now).await;
        }
        let has_chores = unjudged || self.view.amended || persist_estimates;
        if !self.dry_run
            && self.acting.is_none()
            && (wants_to_act || intents || has_chores && self.actor.launcher.has_leisure())
        {
            let actor = Arc::clone(&self.actor);
            let brief = Brief {
                config: Arc::clone(&config),
                memory: Arc::clone(&self.memory),
                sight: self.sight.clone(),
                view: self.view.clone(),
                persist_estimates,
            };
            self.acting = Some(tokio::spawn(async move { actor.act(brief).await }));
        }
        // Only a receiver that is gone has no use for it.
        self.seen.send_replace(Some(Arc::new(Seen {
            config,
            memory: Arc::clone(&self.memory),
            observation,
            decisions,
            at: now,
            dry_run: self.dry_run,
            refused: self.setup.borrow().refused.clone(),
        })));
    }

    /// Goes on with another configuration, if there is one. An act that runs ends with the one that it has.
    fn take_over(&mut self) {
        if !self.setup.has_changed().unwrap_or(false) {
            return;
        }
        let Setup { config, sight, .. } = self.setup.borrow_and_update().clone();
        self.sight = sight;
        if !Arc::ptr_eq(&config, &self.config) {
            let memory = Arc::unwrap_or_clone(std::mem::take(&mut self.memory));
            self.memory = Arc::new(memory.of(&config));
            self.told.retain(|pool, _| config.pool(pool).is_some());
            self.config = config;
        }
    }

    /// Lists workers and reads the state where that is due.
    async fn refresh(&mut self) {
        let Self { actor, config, view, due, readiness, dry_run, .. } = self;
        let now = actor.clock.now();
        let stored = if now >= due.state {
            let read = actor.state.read().await;
            // Without acts of its own it sees launches of others only here.
            due.state = now + if read.is_ok() && !*dry_run { STATE_CADENCE } else { STATE_RETRY };
            Some(read)
        } else {
            None
        };
        // Where the state gets no answer, the workers get none either: that is told first.
        let hangs = matches!(stored, Some(Err(StateError::Deadline(_))));
        if now >= due.listing && !hangs {
            let listed = actor.launcher.list(Look::Routine, now).await;
            view.workers = match listed {
                Ok(value) => Fact::Known { value, at: now },
                Err(error) => actor::unknown(&view.workers, error.why(), &error, now),
            };
        }
        if let Some(mut stored) = stored {
            let workers = view.workers.known().map_or(&[][..], Vec::as_slice);
            // Between reading and listing another scaler may have written the first record, and launched.
            if matches!(stored, Ok(None)) && view::alive(workers) > 0 {
                stored = actor.state.read().await;
            }
            view.record = match stored {
                Ok(stored) => match View::load(stored, workers, &mut view.lost_since, config, now) {
                    Ok(loaded) => {
                        view.amended = loaded.amended;
                        Fact::Known { value: loaded.record, at: now }
                    }
                    Err(unknown) => {
                        let told = matches!(&view.record, Fact::Unknown(before) if before.why == unknown.why);
                        if !told {
                            tracing::error!(detail = unknown.detail, "the state record is lost");
                        }
                        Fact::Unknown(unknown)
                    }
                },
                Err(error) => actor::state_unknown(&view.record, &error, now),
            };
            view.note_intents(now);
        }
        if view.workers.known().is_some() && view.record.known().is_some() {
            readiness.set();
        }
        if now >= self.due.listing && !hangs {
            let cadence = self.actor.launcher.cadence();
            self.due.listing = now + if self.is_busy() { cadence.busy } else { cadence.idle };
        }
    }

    /// Whether work waits or a worker is pending.
    fn is_busy(&self) -> bool {
        let waiting =
            |fact: &Fact<_>| matches!(fact.known(), Some(QueueFacts::Present { ready, .. }) if *ready > 0);
        let pending = |worker: &Worker| matches!(worker.phase, Phase::Pending { .. });
        let sight = self.sight.borrow();
        sight.queues.values().chain(sight.suspects.values()).any(waiting)
            || self.view.workers.known().is_none_or(|workers| workers.iter().any(pending))
    }

    fn take_in(&mut self, acted: Option<Acted>) {
        let now = self.actor.clock.now();
        let Some(Acted { view, wrote, removed, outrun }) = acted else {
            self.due.state = now;
            self.due.listing = now;
            return;
        };
        self.view = view;
        self.due.state = match &self.view.record {
            // What was written meanwhile may have settled everything.
            _ if outrun => now,
            Fact::Known { .. } => now + STATE_CADENCE,
            Fact::Unknown(_) => now + STATE_RETRY,
        };
        self.due.listing = now + self.actor.launcher.cadence().after_act;
        if wrote {
            self.due.estimates = now + ESTIMATES_CADENCE;
        }
        if removed {
            self.due.removals = now + REMOVAL_CADENCE;
        }
    }

    /// Estimates are written when a wait began or turned, or arrivals or the counted service time changed, at
    /// most once a minute.
    fn estimates_are_due(&self, config: &Config, now: Time) -> bool {
        let Some(record) = self.view.record.known().filter(|_| now >= self.due.estimates) else {
            return false;
        };
        config.pools.iter().any(|pool| {
            let persisted = record.pool(&pool.name).estimates;
            let turned = self.memory.marks(pool).any(|(queue, marks)| {
                marks.turned != persisted.queues.get(&queue).and_then(|marks| marks.turned)
            });
            let counted = self.memory.counted_service_time(&pool.name).is_some_and(|counted| {
                persisted.counted_service_time.is_none_or(|known| counted.differs_notably(&known))
            });
            turned
                || counted
                || pool.queues.iter().any(|queue| {
                    let arrivals = self.memory.arrivals(queue).unwrap_or_default();
                    let ages = self.memory.ages(queue);
                    let known = persisted.arrivals.get(queue).copied().unwrap_or_default();
                    ages || arrivals.differs_notably(&known)
                })
        })
    }

    /// Intents that somebody may have to complete or withdraw are looked after once a second.
    fn intents_are_due(&mut self, now: Time) -> bool {
        let Some(record) = self.view.record.known().filter(|_| now >= self.due.intents) else { return false };
        let mut intents = record.pools.values().flat_map(|state| &state.intents);
        let is_due = intents.any(|intent| course::is_left_open(intent, now));
        if is_due {
            self.due.intents = now + INTENT_CADENCE;
        }
        is_due
    }

    /// Tells of what is new where people look for it. Nothing waits for that, and nothing depends on it.
    async fn publish(&mut self, decisions: &std::collections::BTreeMap<String, Decision>, now: Time) {
        let Self { bulletin, view, telling, actor, config, .. } = self;
        let (workers, record) = (view.workers.known(), view.record.known());
        bulletin.see(workers.map(Vec::as_slice), record, decisions, now);
        if let Some(over) = telling.take_if(|telling| telling.is_finished())
            && let Err(panic) = over.await
        {
            tracing::error!(error = %chain(&panic), "an event's telling ended abnormally");
        }
        if telling.is_some() || !actor.launcher.has_leisure() {
            return;
        }
        let Some(news) = bulletin.due(now) else { return };
        let Some(pool) = config.pool(&news.pool).cloned() else { return };
        let actor = Arc::clone(actor);
        *telling = Some(tokio::spawn(async move {
            if let Err(error) = actor.launcher.tell(&news, &pool).await {
                tracing::debug!(error = %chain(&error), reason = news.reason, "an event cannot be written");
            }
        }));
    }

    /// Logs each hold whose reason is new; the act tells of launches and withdrawals, where there is one.
    fn tell(&mut self, decisions: &std::collections::BTreeMap<String, Decision>) {
        for (pool, decision) in decisions {
            let is_new = self.told.insert(pool.clone(), decision.as_str()) != Some(decision.as_str());
            match decision {
                Decision::Hold(hold) if is_new => {
                    tracing::info!(pool, reason = hold.as_str(), "{decision}");
                }
                Decision::Launch(_) | Decision::Withdraw(_) if is_new && self.dry_run => {
                    tracing::info!(pool, reason = decision.as_str(), "dry run: would {decision}");
                }
                _ => {}
            }
        }
    }
}

/// Waits for the running act, for ever if there is none. `None` is an act that panicked.
async fn ended(acting: &mut Option<JoinHandle<Acted>>) -> Option<Acted> {
    let Some(running) = acting else { return std::future::pending().await };
    let joined = running.await;
    *acting = None;
    joined.inspect_err(|panic| tracing::error!(error = %chain(panic), "an act ended abnormally")).ok()
}
