//! slo mode: a pool's scene as numbers for the deadline plan, and the plan as a decision (facts/scaling
//! §3.2b, §3.2c).

use std::time::Duration;

use super::{
    Hold, Intent, Launch, LaunchReason, LeadTimes,
    capacity::Capacity,
    decide::Scene,
    estimate::on_nodes,
    need::QueueNeed,
    plan::{Class, Demand, Plan, Planner, Step, Worst},
};
use crate::config::{SloConfig, Start};

/// Lead time where there is room, while none was measured.
const WARM_PRIOR: f64 = 10.0;
/// No lead time is believed to be shorter.
const WARM_LEAST: f64 = 5.0;
/// Lead time where a node has to come, while none was measured.
const COLD_PRIOR: f64 = 110.0;
/// A pending worker that is overdue is expected in this.
const OVERDUE: f64 = 2.0;
/// Nodes added by one decision.
const MOST_NODES: u32 = 12;
/// A worker on a paid node is worth its start when the backlog lasts longer than this.
const WORTH_A_START: f64 = 10.0;

/// What a pool has and can get, in seconds from now.
struct Supply {
    /// Ready workers and pending ones.
    capacity: Capacity,
    /// When each pending worker is expected, by the serial.
    pending: Vec<(Option<u64>, f64)>,
    /// Workers that the nodes there have room for.
    free: u32,
    /// Workers that the nodes on their way have room for, and when they come.
    coming: (u32, f64),
    warm: f64,
    cold: f64,
    /// Workers that fit on a node.
    per_node: u32,
}

// === impl Scene ===

impl Scene<'_> {
    /// What to launch by the deadline plan. Something waits, and there is room.
    pub(super) fn planned(&self, slo: &SloConfig, room: u32) -> Result<Launch, Hold> {
        let room = slo.max_pending.map_or(room, |most| room.min(most.saturating_sub(self.counts.pending)));
        let Self { counts, need, .. } = self;
        let ready = need.ready;
        let Some(demand) = self.demand(slo) else {
            // Whatever the first worker does teaches how long work takes.
            return if counts.pending == 0 {
                Ok(self.launch_of(1, LaunchReason::Learning { ready }))
            } else {
                Err(self.waiting_for_pending())
            };
        };
        let supply = self.supply(slo);
        let planner = Planner::new(&demand, supply.cold);
        // Never more workers than take a message at once; pending ones do.
        let takers = ready.div_ceil(u64::from(self.pool.concurrency));
        let limit = u64::from(room).min(takers.saturating_sub(u64::from(counts.pending)));
        let steps = supply.steps(u32::try_from(limit).unwrap_or(u32::MAX));
        let put_off = slo.start == Start::Latest || counts.useful() > 0;
        let plan = planner.plan(&supply.capacity, counts.pending > 0, &steps, put_off);
        // What is paid for is used whatever the plan: more need never gets less of it.
        let top_up = self.top_up(&demand, &supply, room);
        if let Some((count, drains_in)) = top_up.filter(|_| !matches!(plan, Plan::Launch(..))) {
            return Ok(self.launch_of(count, LaunchReason::TopUp { ready, drains_in }));
        }
        match plan {
            Plan::OnTime(slack) => Err(Hold::OnTime { slack: duration(slack) }),
            Plan::Batching(slack) => Err(Hold::Batching { launch_by: self.now + duration(slack) }),
            Plan::NothingHelps(_) if steps.is_empty() && counts.pending > 0 => {
                Err(self.waiting_for_pending())
            }
            Plan::NothingHelps(Worst { age, slo }) => {
                Err(Hold::NothingHelps { age: duration(age), slo: duration(slo) })
            }
            Plan::Launch(count, Worst { age, slo }) => {
                let count = count.max(top_up.map_or(0, |(count, _)| count));
                let (age, slo) = (duration(age), duration(slo));
                Ok(self.launch_of(count, LaunchReason::DeadlineAtRisk { ready, age, slo }))
            }
        }
    }

    /// How many pending workers nothing needs: they would find nothing, or the plan holds without them. Whole
    /// nodes: who shares one with a needed worker is free.
    pub(super) fn surplus(&self, slo: &SloConfig) -> u32 {
        let Self { counts, need, .. } = self;
        if need.unknown.is_some() || !need.any_known {
            return 0;
        }
        let count = |workers: usize| u32::try_from(workers).unwrap_or(u32::MAX);
        let mut unstarted = self.withdrawable();
        let most = count(unstarted.len());
        let takers = need.ready.div_ceil(u64::from(self.pool.concurrency));
        let takers = u32::try_from(takers).unwrap_or(u32::MAX);
        let empty_handed = counts.pending.saturating_sub(takers).min(most);
        let Some(demand) = self.demand(slo).filter(|_| takers > 0) else { return empty_handed };
        // A node that is there is paid for: who waits on it only for its image costs no more.
        unstarted.retain(|worker| worker.node.is_none());
        let most = count(unstarted.len());
        let placed = count(self.pending().filter(|(worker, ..)| worker.node.is_some()).count());
        let unplaced = counts.pending.saturating_sub(placed);
        let supply = self.supply(slo);
        let planner = Planner::new(&demand, supply.cold);
        let holds_without = |count: u32| {
            let gone: Vec<_> = unstarted.iter().take(count as usize).map(|worker| worker.serial).collect();
            planner.holds_safely(&supply.capacity_without(counts.ready, &gone))
        };
        // Fewer workers never hold where more do not.
        let (mut holds, mut fails) = (0, most + 1);
        while fails - holds > 1 {
            let middle = u32::midpoint(holds, fails);
            if holds_without(middle) { holds = middle } else { fails = middle }
        }
        let needed = unplaced.saturating_sub(holds).next_multiple_of(supply.per_node);
        empty_handed.max(unplaced.saturating_sub(needed))
    }

    /// What waits, by queue; `None` while nobody knows how long work takes.
    #[expect(clippy::cast_precision_loss, reason = "a plan, not an account")]
    fn demand(&self, slo: &SloConfig) -> Option<Demand> {
        let service = self.service()?;
        let classes = self.pool.queues.iter().zip(&slo.targets).filter_map(|(queue, target)| {
            let QueueNeed { ready, suspects, suspects_age } = *self.need.queues.get(queue)?;
            let mut batches = self.memory.waiting(queue, ready, self.now);
            if suspects > 0 {
                batches.push((suspects as f64, suspects_age.as_secs_f64()));
            }
            Some(Class {
                batches,
                per_second: self.memory.arrivals(queue).map_or(0.0, |rates| rates.per_second()),
                slo: target.as_secs_f64(),
            })
        });
        // Ready workers have their hands full as long as something waits.
        Some(Demand { classes: classes.collect(), service, busy: self.in_work() })
    }

    fn supply(&self, slo: &SloConfig) -> Supply {
        let LeadTimes { warm, cold } = self.state.estimates.lead_times(&self.workers);
        let warm = warm.map_or(WARM_PRIOR, |lead| lead.as_secs_f64()).max(WARM_LEAST);
        let cold = cold.map_or(COLD_PRIOR, |lead| lead.as_secs_f64()).max(warm);
        let per_node = slo.pods_per_node.or(self.state.estimates.pods_per_node).unwrap_or(1).max(1);
        // Other pools' workers take places as well.
        let hosted = on_nodes(self.everybody.iter());
        let ours = on_nodes(self.workers.iter().copied());
        let free_on = |node: &str| per_node.saturating_sub(hosted.get(node).copied().unwrap_or(0));
        let mut free: u32 = ours.keys().map(|node| free_on(node)).sum();

        let mut pending = Vec::new();
        let mut without_node = 0;
        let mut coming_in = f64::INFINITY;
        let mut expect = |serial, launched, waits_for_node: bool, has_node: bool| {
            let waits_for_node = waits_for_node || (!has_node && free == 0);
            let lead = if waits_for_node { cold } else { warm };
            let left = (lead - self.now.since(launched).as_secs_f64()).max(OVERDUE);
            if waits_for_node && !has_node {
                without_node += 1;
                coming_in = f64::min(coming_in, left);
            } else if !has_node {
                free -= 1;
            }
            pending.push((serial, left));
        };
        for (worker, cause, _) in self.pending() {
            let waits = worker.cold || cause.is_placing();
            expect(worker.serial, worker.launched, waits, worker.node.is_some());
        }
        // An older one whose Job is not seen never becomes a worker.
        let expected = |intent: &&Intent| self.now.since(intent.stamp) <= Intent::COMPLETE_UNTIL;
        for intent in self.unseen_intents().filter(expected) {
            expect(Some(intent.serial), intent.stamp, false, false);
        }
        let coming = u32::next_multiple_of(without_node, per_node) - without_node;
        let mut supply = Supply {
            capacity: Capacity::default(),
            pending,
            free,
            coming: (coming, coming_in.max(warm)),
            warm,
            cold,
            per_node,
        };
        supply.capacity = supply.capacity_without(self.counts.ready, &[]);
        supply
    }

    /// More workers for nodes that are paid for anyway, where the backlog is worth their start.
    fn top_up(&self, demand: &Demand, supply: &Supply, room: u32) -> Option<(u32, Duration)> {
        let Self { counts, need, .. } = self;
        if counts.pending > 0 || counts.ready == 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a plan, not an account")]
        let messages = need.ready as f64;
        let workers = f64::from(counts.ready);
        let drains_in = messages * demand.service / workers;
        // What is left when a new one could begin, and what keeps each new one busy for long enough.
        let left = messages - 1.5 * workers * supply.warm / demand.service;
        let worth = (messages * demand.service / WORTH_A_START).min(left);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates where it must"
        )]
        let count = supply.free.min(room).min(worth as u32);
        (drains_in > WORTH_A_START && count > 0).then(|| (count, duration(drains_in)))
    }
}

// === impl Supply ===

impl Supply {
    /// Ready workers and pending ones, but for those with these serials.
    fn capacity_without(&self, ready: u32, gone: &[Option<u64>]) -> Capacity {
        let mut capacity = Capacity::default();
        capacity.join(0.0, ready);
        for (serial, left) in &self.pending {
            if !gone.contains(serial) {
                capacity.join(*left, 1);
            }
        }
        capacity
    }

    /// What could be added, the cheapest first: one by one where room is paid for, then whole nodes; at most
    /// `limit` workers.
    fn steps(&self, limit: u32) -> Vec<Step> {
        let (coming, coming_in) = self.coming;
        let singles = std::iter::repeat_n((1, self.warm), self.free as usize)
            .chain(std::iter::repeat_n((1, coming_in), coming as usize));
        let nodes = std::iter::repeat_n((self.per_node, self.cold), MOST_NODES as usize);
        let mut left = limit;
        let within = |(workers, after): Step| {
            let workers = workers.min(left);
            left -= workers;
            (workers > 0).then_some((workers, after))
        };
        singles.chain(nodes).map_while(within).collect()
    }
}

fn duration(seconds: f64) -> Duration {
    // A launch decides nothing beyond a year.
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX).min(Duration::from_hours(8784))
}
