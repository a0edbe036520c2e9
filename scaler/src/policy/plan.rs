//! The deadline plan (facts/scaling §3.2b): which message would begin too late, and what helps against it.
//! Numbers only: all times are seconds from now, work is in seconds of one worker.

use super::capacity::Capacity;

/// A message is to begin within this part of its SLO, …
const TARGET_PART: f64 = 0.95;
/// … less these seconds: estimates err, and a begun message is not yet done.
const TARGET_SPARE: f64 = 10.0;
/// However short the SLO, the target is not below this part of it.
const TARGET_FLOOR: f64 = 0.5;
/// While workers are pending, a lateness below this part of the SLO is left to them.
const GRACE: f64 = 0.08;
/// Arrivals that keep less than this many workers busy are not planned for.
const NEGLIGIBLE_LOAD: f64 = 0.05;
/// A step is put off as long as it would still do so many seconds later.
const PUT_OFF: f64 = 5.0;

/// What waits in one queue, and what will.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Class {
    /// Messages that came together, the oldest first: how many, and how old they are.
    pub(super) batches: Vec<(f64, f64)>,
    /// Arrivals per second.
    pub(super) per_second: f64,
    /// The acceptable age.
    pub(super) slo: f64,
}

/// What work there is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Demand {
    /// In the order in which workers take them.
    pub(super) classes: Vec<Class>,
    /// Work per message.
    pub(super) service: f64,
    /// Messages in work.
    pub(super) busy: f64,
}

/// Workers that could be added: how many, and when they would begin to serve.
pub(super) type Step = (u32, f64);

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Plan {
    /// Nothing: all begins in time, with so many seconds to spare.
    OnTime(f64),
    /// Nothing yet: a launch would do even when it is so many seconds later.
    Batching(f64),
    /// Nothing: what begins too late does so whatever is launched.
    NothingHelps(Worst),
    /// Launch so many workers.
    Launch(u32, Worst),
}

/// The message that is the latest, measured by its SLO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Worst {
    /// How old it will be when it begins.
    pub(super) age: f64,
    /// Its SLO.
    pub(super) slo: f64,
}

/// A message, waiting or soon to arrive, that shows whether those around it begin in time.
#[derive(Debug, Clone, Copy)]
struct Due {
    /// Work that is before it.
    work: f64,
    /// Workers kept busy by what will come before it.
    load: f64,
    /// How old it is now; below zero if it is yet to come.
    age: f64,
    slo: f64,
}

/// A demand as the messages that matter.
#[derive(Debug)]
pub(super) struct Planner {
    dues: Vec<Due>,
}

/// When a message is to begin at the latest, as age.
fn target(slo: f64) -> f64 {
    TARGET_PART.mul_add(slo, -TARGET_SPARE).max(TARGET_FLOOR * slo)
}

// === impl Due ===

impl Due {
    /// By how much it begins too late.
    fn lateness(&self, capacity: &Capacity) -> f64 {
        self.begins(capacity) - self.latest()
    }

    fn begins(&self, capacity: &Capacity) -> f64 {
        capacity.until(self.work, self.load)
    }

    /// When it is to begin at the latest.
    fn latest(&self) -> f64 {
        target(self.slo) - self.age
    }

    /// The margin between its target and its SLO.
    fn margin(&self) -> f64 {
        self.slo - target(self.slo)
    }
}

// === impl Planner ===

impl Planner {
    /// Looks at `demand`; workers for which a node has to come take `cold` seconds.
    pub(super) fn new(demand: &Demand, cold: f64) -> Self {
        let Demand { classes, service, busy } = demand;
        let mut dues = Vec::new();
        let (mut before, mut load) = (busy * service / 2.0, 0.0);
        for Class { batches, per_second, slo } in classes {
            let mut work = before;
            for (count, age) in batches {
                // Of those that came together the last one begins last.
                work += count * service;
                dues.push(Due { work: (work - service).max(before), load, age: *age, slo: *slo });
            }
            let arriving = per_second * service;
            if arriving > NEGLIGIBLE_LOAD {
                for after in [cold / 2.0, cold, cold + slo / 2.0] {
                    dues.push(Due { work: after.mul_add(arriving, work), load, age: -after, slo: *slo });
                }
                load += arriving;
            }
            before = work;
        }
        Self { dues }
    }

    /// Whether everything begins in time with `capacity`, and a part `spare` of its SLO earlier.
    pub(super) fn holds(&self, capacity: &Capacity, spare: f64) -> bool {
        self.dues.iter().all(|due| spare.mul_add(due.slo, due.lateness(capacity)) <= 0.0)
    }

    /// Whether `capacity` leaves so much to spare that no launch would follow soon.
    pub(super) fn holds_safely(&self, capacity: &Capacity) -> bool {
        self.holds(capacity, GRACE)
    }

    /// What to do where `capacity` is there and coming (`pending` if any is), and `steps` could be added, all
    /// up to and including one of them. `put_off`: launches may wait for the last moment.
    pub(super) fn plan(&self, capacity: &Capacity, pending: bool, steps: &[Step], put_off: bool) -> Plan {
        // Pending ones are given their chance.
        if self.holds(capacity, if pending { -GRACE } else { 0.0 }) {
            return Plan::OnTime(self.slack(capacity));
        }
        let with = |count: usize, later: f64| {
            let mut capacity = capacity.clone();
            for (workers, after) in &steps[..count] {
                capacity.join(after + later, *workers);
            }
            capacity
        };
        let most = with(steps.len(), 0.0);
        // Where even the most would be late, what is nearly as good will do: each message is granted the margin
        // between its target and its SLO.
        let allowed: Vec<_> =
            self.dues.iter().map(|due| due.latest().max(due.begins(&most) + due.margin())).collect();
        let does = |capacity: &Capacity| {
            self.dues.iter().zip(&allowed).all(|(due, allowed)| due.begins(capacity) <= *allowed)
        };
        // More never begins later, so the smallest step that does is found by halving.
        let (mut fails, mut smallest) = (0, steps.len());
        if does(capacity) {
            return Plan::NothingHelps(self.worst(capacity));
        }
        while smallest - fails > 1 {
            let middle = fails.midpoint(smallest);
            if does(&with(middle, 0.0)) { smallest = middle } else { fails = middle }
        }
        let chosen = with(smallest, 0.0);
        if put_off && self.holds(&with(smallest, PUT_OFF), 0.0) {
            return Plan::Batching(self.slack(&chosen));
        }
        Plan::Launch(steps[..smallest].iter().map(|(workers, _)| workers).sum(), self.worst(&chosen))
    }

    /// By how much the latest begins too early.
    fn slack(&self, capacity: &Capacity) -> f64 {
        self.dues.iter().map(|due| -due.lateness(capacity)).fold(f64::INFINITY, f64::min)
    }

    /// The message that is the latest.
    fn worst(&self, capacity: &Capacity) -> Worst {
        let worst = |due: &Due| Worst { age: due.age + due.begins(capacity), slo: due.slo };
        let later = |a: Worst, b: Worst| if b.age / b.slo > a.age / a.slo { b } else { a };
        self.dues.iter().map(worst).fold(Worst { age: 0.0, slo: 1.0 }, later)
    }
}
