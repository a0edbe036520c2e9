//! The two scalers of a [`World`]: they run the policy as the control loop does, on one record under
//! compare-and-swap.

use std::collections::BTreeMap;

use super::{
    super::*,
    scene::*,
    world::{Act, Checked, Post, TICK, World},
};

// === impl World ===

impl World {
    fn observation(&self, turn: usize) -> Observation {
        let scaler = &self.scalers[turn];
        let unseen = || unknown(Why::NotYetSeen);
        let (workers, state) = scaler.view.clone().unwrap_or_else(|| (unknown(Why::NotYetSeen), unseen()));
        Observation {
            missing_templates: BTreeMap::new(),
            queues: scaler.queues.clone(),
            suspects: BTreeMap::new(),
            counters: BTreeMap::new(),
            workers,
            state,
        }
    }

    /// Looks, remembers, decides; begins to act where that says so.
    pub(super) fn tick(&mut self, turn: usize) -> Checked {
        let (time, now) = (self.time(), self.now);
        if now >= self.broker_down_until {
            for (queue, ready) in &self.ready {
                let fact = Fact::Known { value: waiting(*ready), at: time };
                self.scalers[turn].queues.insert(queue.clone(), fact);
            }
        }
        if now >= self.cluster_down_until {
            let workers = Fact::Known { value: self.workers(), at: time };
            let judged = judge(&self.record, &self.workers(), &self.config, time).record;
            self.scalers[turn].view = Some((workers, Fact::Known { value: judged, at: time }));
        }
        let observation = self.observation(turn);
        let memory = std::mem::take(&mut self.scalers[turn].memory);
        let memory = remember(memory, &observation, &self.config);
        let decisions = decide(&memory, &observation, &self.config, time);
        let witness = std::mem::take(&mut self.witnesses[turn]);
        self.witnesses[turn] = remember(witness, &observation, &self.config);
        self.check_restart(&observation)?;
        self.check_known(&observation, &decisions)?;
        let wants = share(decisions, &observation, &self.config)
            .values()
            .any(|decision| !matches!(decision, Decision::Hold(_)));
        self.scalers[turn].memory = memory;
        let cluster_answers = now >= self.cluster_down_until;
        let due = wants || now % 1000 < TICK;
        if due && cluster_answers && self.scalers[turn].acting.is_none() {
            self.act(turn)?;
        }
        Ok(())
    }

    /// Judges, decides again on fresh facts, and sends the record on its way.
    fn act(&mut self, turn: usize) -> Checked {
        let time = self.time();
        let workers = self.workers();
        let mut record = judge(&self.record, &workers, &self.config, time).record;
        let observation = Observation {
            missing_templates: BTreeMap::new(),
            queues: self.scalers[turn].queues.clone(),
            suspects: BTreeMap::new(),
            counters: BTreeMap::new(),
            workers: Fact::Known { value: workers.clone(), at: time },
            state: Fact::Known { value: record.clone(), at: time },
        };
        let memory = &self.scalers[turn].memory;
        let decisions = share(decide(memory, &observation, &self.config, time), &observation, &self.config);
        let mut posts = Vec::new();
        let mut unneeded = Vec::new();
        for pool in &self.config.pools {
            let state = record.pool(&pool.name);
            for intent in &state.intents {
                let age = time.since(intent.stamp);
                let without = state.without_intent(intent.serial);
                let wanted = decide_pool(memory, &observation, &self.config, pool, &without, time);
                if (seconds(5)..=seconds(60)).contains(&age) && matches!(wanted, Decision::Launch(_)) {
                    posts.push((pool.name.clone(), intent.clone()));
                }
            }
            record.pool_mut(&pool.name).intents.retain(|intent| time.since(intent.stamp) < seconds(120));
            match &decisions[&pool.name] {
                Decision::Launch(launch) => {
                    self.check_launch(&observation, &pool.name, &state, launch)?;
                    let Launch { slots, reason } = launch;
                    let state = record.pool_mut(&pool.name);
                    for slot in slots {
                        let intent = Intent {
                            serial: state.next_serial,
                            slot: *slot,
                            reason: reason.to_string(),
                            stamp: time,
                            by: turn.to_string(),
                        };
                        state.next_serial += 1;
                        state.intents.push(intent.clone());
                        posts.push((pool.name.clone(), intent));
                    }
                }
                Decision::Withdraw(Withdraw { workers, .. }) => unneeded.extend(workers.clone()),
                Decision::Hold(_) => {}
            }
            if !self.keeps_nothing {
                self.scalers[turn].memory.keep(pool, &mut record.pool_mut(&pool.name).estimates);
            }
        }
        let given_up = workers
            .iter()
            .filter(|worker| worker.is_removable(time) && record.pool(&worker.pool).has_given_up(worker));
        unneeded.extend(given_up.map(|worker| worker.name.clone()));
        self.take_back(&unneeded);
        // The write takes a while, in which the other scaler may act.
        let slow = self.is_alone || self.now.is_multiple_of(3);
        let commits = self.now + if slow { TICK } else { 0 };
        self.scalers[turn].acting = Some(Act { expected: self.record.revision, record, posts, commits });
        self.commit(turn)
    }

    /// Writes the record unless somebody else did, and only then asks for the Jobs.
    pub(super) fn commit(&mut self, turn: usize) -> Checked {
        let now = self.now;
        let Some(act) = self.scalers[turn].acting.take_if(|act| act.commits <= now) else { return Ok(()) };
        if act.expected != self.record.revision {
            return Ok(());
        }
        self.record = StateRecord { revision: act.expected + 1, ..act.record };
        for (pool, intent) in act.posts {
            let post = Post { pool, intent, arrives: now + self.delays.0 };
            self.sent.push(post.clone());
            match self.lost_posts.checked_sub(1) {
                Some(left) => self.lost_posts = left,
                None => self.posts.push(post),
            }
        }
        self.check_limits()
    }
}
