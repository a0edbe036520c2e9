//! A fleet in virtual time: queues, Jobs with their lives, one record, and two scalers (see `scalers`). Every
//! step checks what must never happen (see `promises`).

use std::{collections::BTreeMap, time::Duration};

use mayfly_service::report::{ExitReason, ExitReport};
use proptest::test_runner::TestCaseError;

use super::{super::*, scene::*};
use crate::{config::Config, time::Time};

pub(super) type Checked = Result<(), TestCaseError>;

/// Time between two ticks of a scaler; the two take turns.
pub(super) const TICK: u64 = 250;
/// A worker that waits for room gets it after this.
const ROOM: u64 = 20_000;
/// A message's work.
const WORK: u64 = 1500;
/// A worker without a message leaves after this.
const IDLE: u64 = 3000;
/// An ended Job is gone after this: later than any outage here ends, so that no outcome is missed.
const TTL: u64 = 60_000;

/// A Job as it truly is.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) worker: Worker,
    /// When it does its next step by itself.
    pub(super) next: u64,
    pub(super) done: u64,
    pub(super) busy: bool,
}

/// A request under way to create a Job.
#[derive(Debug, Clone)]
pub(super) struct Post {
    pub(super) pool: String,
    pub(super) intent: Intent,
    pub(super) arrives: u64,
}

/// A decision on its way to the record.
#[derive(Debug)]
pub(super) struct Act {
    pub(super) expected: u64,
    pub(super) record: StateRecord,
    pub(super) posts: Vec<(String, Intent)>,
    pub(super) commits: u64,
}

/// One scaler process.
#[derive(Debug)]
pub(super) struct Scaler {
    pub(super) memory: Memory,
    pub(super) queues: BTreeMap<String, Fact<QueueFacts>>,
    pub(super) view: Option<(Fact<Vec<Worker>>, Fact<StateRecord>)>,
    pub(super) acting: Option<Act>,
}

/// What may go wrong or change from outside.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Publish(bool, u8),
    BrokerDown(u16),
    ClusterDown(u16),
    /// A scaler is killed and starts again with nothing but the record.
    Restart(bool),
    /// The next Jobs take so long to be created, to get their node, and to start.
    Delays {
        post: u16,
        node: u16,
        start: u16,
    },
    /// The next requests to create a Job never arrive.
    LosePosts(u8),
    /// A request that arrived long ago arrives once more.
    Replay(u8),
    Fail(u8),
    LoseNode(u8),
    /// A worker that has not started gets stuck for this reason; what waits for room gets it later.
    Stick(u8, PendingCause),
    Pause(bool, bool),
}

pub(super) struct World {
    pub(super) now: u64,
    pub(super) config: Config,
    pub(super) record: StateRecord,
    pub(super) jobs: Vec<Job>,
    pub(super) ready: BTreeMap<String, u64>,
    pub(super) posts: Vec<Post>,
    pub(super) sent: Vec<Post>,
    pub(super) scalers: [Scaler; 2],
    /// Whether only the first of them runs; its writes take a pass.
    pub(super) is_alone: bool,
    /// Whether it dies before it wrote what it learned: that happens once a minute only.
    pub(super) keeps_nothing: bool,
    /// What each would remember if it had never been restarted.
    pub(super) witnesses: [Memory; 2],
    pub(super) delays: (u64, u64, u64),
    pub(super) lost_posts: u8,
    pub(super) broker_down_until: u64,
    pub(super) cluster_down_until: u64,
    pub(super) launched: u64,
    pub(super) done: u64,
    pub(super) most: usize,
}

// === impl Scaler ===

impl Scaler {
    fn new() -> Self {
        Self { memory: Memory::default(), queues: BTreeMap::new(), view: None, acting: None }
    }
}

// === impl World ===

impl World {
    pub(super) fn new(config: Config) -> Self {
        Self {
            now: 0,
            record: StateRecord::new(NOW),
            jobs: Vec::new(),
            ready: config.pools.iter().map(|pool| (pool.queues[0].clone(), 0)).collect(),
            config,
            posts: Vec::new(),
            sent: Vec::new(),
            scalers: [Scaler::new(), Scaler::new()],
            is_alone: false,
            keeps_nothing: false,
            witnesses: [Memory::default(), Memory::default()],
            delays: (10, 2000, 500),
            lost_posts: 0,
            broker_down_until: 0,
            cluster_down_until: 0,
            launched: 0,
            done: 0,
            most: 0,
        }
    }

    /// A world with one scaler.
    pub(super) fn alone(config: Config) -> Self {
        Self { is_alone: true, ..Self::new(config) }
    }

    pub(super) fn alive(&self) -> usize {
        self.jobs.iter().filter(|job| !matches!(job.worker.phase, Phase::Finished(_))).count()
    }

    pub(super) fn waiting(&self) -> u64 {
        self.ready.values().sum()
    }

    pub(super) fn time(&self) -> Time {
        NOW + Duration::from_millis(self.now)
    }

    pub(super) fn workers(&self) -> Vec<Worker> {
        self.jobs.iter().map(|job| job.worker.clone()).collect()
    }

    fn pool_name(&self, second: bool) -> String {
        self.config.pools[usize::from(second)].name.clone()
    }

    pub(super) fn apply(&mut self, event: &Event) {
        let count = self.jobs.len().max(1);
        match *event {
            Event::Publish(second, n) => {
                let queue = self.config.pools[usize::from(second)].queues[0].clone();
                *self.ready.entry(queue).or_default() += u64::from(n);
            }
            Event::BrokerDown(lasts) => self.broker_down_until = self.now + u64::from(lasts),
            Event::ClusterDown(lasts) => self.cluster_down_until = self.now + u64::from(lasts),
            Event::Restart(second) => self.scalers[usize::from(second)] = Scaler::new(),
            Event::Delays { post, node, start } => self.delays = (post.into(), node.into(), start.into()),
            Event::LosePosts(n) => self.lost_posts = n,
            Event::Replay(index) => {
                let index = usize::from(index) % self.sent.len().max(1);
                if let Some(post) = self.sent.get(index) {
                    self.posts.push(Post { arrives: self.now, ..post.clone() });
                }
            }
            Event::Fail(index) => {
                if let Some(job) = self.jobs.get_mut(usize::from(index) % count) {
                    job.finish(NOW + Duration::from_millis(self.now), self.now, 78);
                }
            }
            Event::LoseNode(index) => {
                if let Some(job) = self.jobs.get_mut(usize::from(index) % count)
                    && !matches!(job.worker.phase, Phase::Finished(_))
                {
                    job.worker.phase = Phase::Lost;
                    job.next = self.now + 30_000;
                }
            }
            Event::Stick(index, cause) => {
                let (now, time) = (self.now, self.time());
                let unstarted =
                    |job: &&mut Job| matches!(job.worker.phase, Phase::Pending { started: false, .. });
                if let Some(job) = self.jobs.iter_mut().filter(unstarted).nth(usize::from(index % 2)) {
                    job.worker.phase = pending(false, cause, time);
                    let gets_room = job.worker.phase.action(time, &Deadlines::default()) != Action::Fail;
                    job.next = if gets_room { now + ROOM } else { u64::MAX };
                }
            }
            Event::Pause(second, paused) => {
                let name = self.pool_name(second);
                self.record.pool_mut(&name).paused = paused;
                self.record.revision += 1;
            }
        }
    }

    pub(super) fn run(&mut self, millis: u64) -> Checked {
        let until = self.now + millis;
        while self.now < until {
            self.now += TICK / 2;
            self.arrive();
            self.live();
            let turn = usize::from(self.now / (TICK / 2) % 2 == 1);
            if turn == 0 || !self.is_alone {
                self.commit(turn)?;
                self.tick(turn)?;
            }
            self.check_limits()?;
        }
        Ok(())
    }

    /// Jobs whose request arrives come into being, once.
    fn arrive(&mut self) {
        let now = self.now;
        let (arrived, on_the_way) =
            std::mem::take(&mut self.posts).into_iter().partition(|post| post.arrives <= now);
        self.posts = on_the_way;
        for Post { pool, intent, .. } in Vec::from_iter(arrived) {
            let name = job_name(&self.config.instance, &pool, self.record.epoch, intent.serial);
            // The name is taken while the Job exists. A request is no older than two minutes.
            let too_late = self.time().since(intent.stamp) > Duration::from_secs(110);
            if too_late || self.jobs.iter().any(|job| job.worker.name == name) {
                continue;
            }
            // A Job that came and went is not created again by an honest request that is late: its name
            // would still be there, because Jobs outlive the requests for them.
            if self.record.pool(&pool).intents.iter().all(|open| open.serial != intent.serial) {
                continue;
            }
            let phase = pending(false, PendingCause::NodeComing, self.time());
            let worker = Worker {
                name,
                pool,
                serial: Some(intent.serial),
                slot: Some(intent.slot),
                launched: intent.stamp,
                reason: None,
                node: None,
                cold: true,
                generation: None,
                phase,
            };
            self.jobs.push(Job { worker, next: now + self.delays.1, done: 0, busy: false });
            self.launched += 1;
        }
        self.most = self.most.max(self.alive());
    }

    /// Workers do what they do by themselves.
    fn live(&mut self) {
        let (now, time, start) = (self.now, self.time(), self.delays.2);
        for job in &mut self.jobs {
            if job.next > now {
                continue;
            }
            let pool = self.config.pool(&job.worker.pool).unwrap();
            let ready = self.ready.get_mut(&pool.queues[0]).unwrap();
            match &job.worker.phase {
                Phase::Pending { started: false, .. } => {
                    job.worker.phase = pending(true, PendingCause::Starting, time);
                    job.next = now + start;
                }
                Phase::Pending { started: true, .. } => {
                    job.worker.phase = Phase::Ready { since: time };
                    job.next = now + IDLE;
                }
                Phase::Ready { .. } => {
                    if std::mem::take(&mut job.busy) {
                        job.done += 1;
                        self.done += 1;
                        job.next = now + IDLE;
                    } else if *ready == 0 {
                        job.worker.phase = Phase::Draining;
                        job.next = now + 1000;
                    }
                }
                Phase::Draining | Phase::Lost => job.finish(time, now, 0),
                Phase::Finished(_) => {}
            }
        }
        for job in &mut self.jobs {
            let ready = self.ready.get_mut(&self.config.pool(&job.worker.pool).unwrap().queues[0]).unwrap();
            if matches!(job.worker.phase, Phase::Ready { .. }) && !job.busy && *ready > 0 {
                *ready -= 1;
                job.busy = true;
                job.next = now + WORK;
            }
        }
        self.jobs.retain(|job| !matches!(job.worker.phase, Phase::Finished(_)) || job.next > now);
    }

    pub(super) fn take_back(&mut self, names: &[String]) {
        let (time, now) = (self.time(), self.now);
        for job in self.jobs.iter_mut().filter(|job| names.contains(&job.worker.name)) {
            if let Phase::Pending { started: false, .. } = job.worker.phase {
                job.finish(time, now, 0);
                if let Phase::Finished(ending) = &mut job.worker.phase {
                    *ending = Ending { started: false, report: None, exit_code: None, ..ending.clone() };
                }
            }
        }
    }
}

// === impl Job ===

impl Job {
    fn finish(&mut self, at: Time, now: u64, exit_code: u8) {
        if matches!(self.worker.phase, Phase::Finished(_)) {
            return;
        }
        let was_ready = !matches!(self.worker.phase, Phase::Pending { .. });
        let report = ExitReport {
            messages: self.done,
            done: self.done,
            busy_ms: self.done * WORK,
            startup_ms: was_ready.then_some(1),
            ..ExitReport::new(ExitReason::Idle)
        };
        let ending = Ending { at, exit_code: Some(exit_code), report: Some(report), ..ending(0) };
        self.worker.phase = Phase::Finished(ending);
        self.next = now + TTL;
    }
}
