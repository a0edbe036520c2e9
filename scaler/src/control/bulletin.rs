//! What is worth an Event, from what the loop sees: launches, ready workers, failures, holds that people can do
//! something about. Pure; equal news are put together, and told at a bounded rate.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    launcher::News,
    policy::{Decision, Hold, Phase, StateRecord, Worker},
    time::Time,
};

/// Between two Events of whatever kind.
const EACH: Duration = Duration::from_secs(2);
/// Between two Events of one pool and reason; what comes meanwhile is counted.
const SAME: Duration = Duration::from_secs(30);

/// What is unknown for less is how a start or a blip looks.
const UNKNOWN_AFTER: Duration = Duration::from_secs(10);

/// What was seen before, and what is to be told.
#[derive(Debug)]
pub(super) struct Bulletin {
    /// What was before is no news.
    begun: Time,
    /// Jobs seen before, and whether they were ready.
    seen: BTreeMap<String, bool>,
    /// The last failure that was told, by pool.
    failures: BTreeMap<String, Time>,
    /// The reason of each pool that holds for one worth telling.
    held: BTreeMap<String, &'static str>,
    waiting: BTreeMap<(String, &'static str), News>,
    told: BTreeMap<(String, &'static str), Time>,
    last: Option<Time>,
}

// === impl Bulletin ===

impl Bulletin {
    pub(super) const fn new(begun: Time) -> Self {
        Self {
            begun,
            seen: BTreeMap::new(),
            failures: BTreeMap::new(),
            held: BTreeMap::new(),
            waiting: BTreeMap::new(),
            told: BTreeMap::new(),
            last: None,
        }
    }

    /// Takes in what is known now.
    pub(super) fn see(
        &mut self,
        workers: Option<&[Worker]>,
        record: Option<&StateRecord>,
        decisions: &BTreeMap<String, Decision>,
        now: Time,
    ) {
        if let Some(record) = record {
            self.see_record(record, now);
        }
        if let Some(workers) = workers {
            self.see_workers(workers, now);
        }
        for (pool, decision) in decisions {
            self.see_decision(pool, decision, now);
        }
        let pools: BTreeSet<_> = decisions.keys().collect();
        self.held.retain(|pool, _| pools.contains(pool));
        self.waiting.retain(|(pool, _), _| pools.contains(pool));
        self.told.retain(|_, at| now.since(*at) < SAME);
    }

    /// The next thing to tell, if it is time for it.
    pub(super) fn due(&mut self, now: Time) -> Option<News> {
        if self.last.is_some_and(|last| now.since(last) < EACH) {
            return None;
        }
        let free = |key: &&(String, &'static str)| !self.told.contains_key(*key);
        let oldest = self.waiting.iter().filter(|(key, _)| free(key)).min_by_key(|(_, news)| news.first);
        let key = oldest.map(|(key, _)| key.clone())?;
        self.last = Some(now);
        self.told.insert(key.clone(), now);
        let mut news = self.waiting.remove(&key)?;
        if news.key.is_empty() {
            // Replicas tell it at nearly the same time: one Event is enough. The next one is [`SAME`] later.
            news.key = (now.as_millis() / 1000 / SAME.as_secs()).to_string();
        }
        Some(news)
    }

    fn see_record(&mut self, record: &StateRecord, now: Time) {
        for (pool, state) in &record.pools {
            let Some(failure) = state.last_failure.as_ref().filter(|failure| failure.at >= self.begun) else {
                continue;
            };
            if self.failures.insert(pool.clone(), failure.at) != Some(failure.at) {
                let note = format!("{} {}", failure.worker, failure.why);
                self.add(pool, "Failed", &failure.worker, note, true, now);
            }
        }
    }

    fn see_workers(&mut self, workers: &[Worker], now: Time) {
        let mut seen = BTreeMap::new();
        for worker in workers {
            let before = self.seen.get(&worker.name).copied();
            let recent = worker.serial.is_some() && worker.launched >= self.begun;
            if recent && before.is_none() {
                let words = [Some(&*worker.name), worker.reason.as_deref()];
                let note = words.into_iter().flatten().collect::<Vec<_>>().join(": ");
                self.add(&worker.pool, "Launched", &worker.name, note, false, now);
            }
            let mut ready = before == Some(true);
            if let Phase::Ready { since } = worker.phase {
                if recent && !ready {
                    let lead = since.since(worker.launched).as_secs_f64();
                    let note = format!("{} is ready, {lead:.1} s after it was launched", worker.name);
                    self.add(&worker.pool, "Ready", &worker.name, note, false, now);
                }
                ready = true;
            }
            seen.insert(worker.name.clone(), ready);
        }
        self.seen = seen;
    }

    fn see_decision(&mut self, pool: &str, decision: &Decision, now: Time) {
        // A launch is a try for room: what comes of it is told.
        if matches!(decision, Decision::Launch(_)) && self.held.get(pool) == Some(&"AtCapacity") {
            return;
        }
        let reason = match decision {
            Decision::Hold(hold) if is_worth_telling(hold, now) => Some(hold.as_str()),
            _ => None,
        };
        let before = match reason {
            Some(reason) => self.held.insert(pool.to_owned(), reason),
            None => self.held.remove(pool),
        };
        if before == reason {
            return;
        }
        // Where nothing is known, or nothing may be launched, room shows later or not at all.
        let says_nothing = matches!(
            decision,
            Decision::Hold(
                Hold::Unknown { .. }
                    | Hold::Paused { .. }
                    | Hold::QueueMissing { .. }
                    | Hold::TemplateMissing { .. }
            )
        );
        let over = match before {
            Some("AtCapacity") => Some("there is room again"),
            Some("TemplateMissing") => Some("the template is there"),
            _ => None,
        };
        if let Some(over) = over.filter(|_| !says_nothing) {
            self.add(pool, "Resumed", "", format!("{over}: {decision}"), false, now);
        }
        if let Some(reason) = reason {
            let usual = matches!(reason, "Paused" | "AtMaximum" | "QuotaReached");
            self.add(pool, reason, "", decision.to_string(), !usual, now);
        }
    }

    /// `key` as in [`News`]; empty: when it is told.
    fn add(&mut self, pool: &str, reason: &'static str, key: &str, note: String, warning: bool, now: Time) {
        let news = News {
            pool: pool.to_owned(),
            reason,
            key: key.to_owned(),
            note: note.clone(),
            warning,
            count: 0,
            first: now,
            last: now,
        };
        let entry = self.waiting.entry((pool.to_owned(), reason)).or_insert(news);
        entry.count += 1;
        entry.note = note;
        entry.last = now;
    }
}

/// Whether people may want to do something about it; the others are how scaling goes.
fn is_worth_telling(hold: &Hold, now: Time) -> bool {
    match hold {
        Hold::Unknown { unknown, .. } => now.since(unknown.since) >= UNKNOWN_AFTER,
        Hold::Paused { .. }
        | Hold::CoolingDown { .. }
        | Hold::AtMaximum { .. }
        | Hold::QuotaReached { .. }
        | Hold::QueueMissing { .. }
        | Hold::TemplateMissing { .. }
        | Hold::AtCapacity { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Launch, LaunchReason, PendingCause, Unknown, UnknownWhat, Why};

    const NOW: Time = Time::from_millis(1_800_000_000_000);

    fn later(seconds: u64) -> Time {
        NOW + Duration::from_secs(seconds)
    }

    fn worker(serial: u64, phase: Phase) -> Worker {
        Worker {
            name: format!("mayfly-p-{serial}"),
            pool: "p".to_owned(),
            serial: Some(serial),
            slot: Some(0),
            launched: NOW,
            reason: Some("3 messages wait".to_owned()),
            node: None,
            cold: false,
            generation: None,
            phase,
        }
    }

    fn pending() -> Phase {
        Phase::Pending { started: false, cause: PendingCause::Creating, since: NOW, detail: None }
    }

    fn decisions(hold: Hold) -> BTreeMap<String, Decision> {
        [("p".to_owned(), Decision::Hold(hold))].into()
    }

    fn at_capacity() -> Hold {
        Hold::AtCapacity { cause: PendingCause::NodesAtLimit, detail: None }
    }

    /// Everything that is told up to a second, with its count.
    fn told(bulletin: &mut Bulletin, seconds: std::ops::Range<u64>) -> Vec<(&'static str, u32)> {
        seconds.filter_map(|at| bulletin.due(later(at))).map(|news| (news.reason, news.count)).collect()
    }

    #[test]
    fn a_workers_launch_and_its_readiness_are_told_once_with_its_lead_time() {
        let mut bulletin = Bulletin::new(NOW);
        let idle = decisions(Hold::Empty);
        for phase in
            [pending(), pending(), Phase::Ready { since: later(7) }, Phase::Ready { since: later(7) }]
        {
            bulletin.see(Some(&[worker(1, phase)]), None, &idle, later(8));
        }
        let news: Vec<_> = (8..100).filter_map(|at| bulletin.due(later(at))).collect();
        let told: Vec<_> = news.iter().map(|news| (news.reason, &*news.note)).collect();
        let ready = "mayfly-p-1 is ready, 7.0 s after it was launched";
        assert_eq!(told, [("Launched", "mayfly-p-1: 3 messages wait"), ("Ready", ready)]);
    }

    #[test]
    fn what_was_there_before_us_is_no_news() {
        let mut bulletin = Bulletin::new(later(1));
        bulletin.see(
            Some(&[worker(1, Phase::Ready { since: NOW })]),
            None,
            &decisions(Hold::Empty),
            later(2),
        );
        assert_eq!(told(&mut bulletin, 2..100), []);
    }

    #[test]
    fn fifty_launches_at_once_are_one_event() {
        let mut bulletin = Bulletin::new(NOW);
        let fleet: Vec<_> = (1..=50).map(|serial| worker(serial, pending())).collect();
        bulletin.see(Some(&fleet[..1]), None, &decisions(Hold::Empty), NOW);
        assert_eq!(told(&mut bulletin, 0..5), [("Launched", 1)]);
        bulletin.see(Some(&fleet), None, &decisions(Hold::Empty), later(5));
        assert_eq!(told(&mut bulletin, 5..30), [], "not so soon after the first");
        bulletin.see(Some(&fleet), None, &decisions(Hold::Empty), later(30));
        assert_eq!(told(&mut bulletin, 30..100), [("Launched", 49)]);
    }

    #[test]
    fn a_hold_is_told_when_its_reason_changes_and_so_is_its_end() {
        let mut bulletin = Bulletin::new(NOW);
        for second in 0..10 {
            bulletin.see(None, None, &decisions(at_capacity()), later(second));
        }
        assert_eq!(told(&mut bulletin, 10..20), [("AtCapacity", 1)]);
        bulletin.see(None, None, &decisions(Hold::Empty), later(20));
        assert_eq!(told(&mut bulletin, 20..30), [("Resumed", 1)]);
        bulletin.see(None, None, &decisions(Hold::Paused { everything: false }), later(60));
        bulletin.see(None, None, &decisions(Hold::Empty), later(61));
        assert_eq!(told(&mut bulletin, 61..90), [("Paused", 1)], "what is usual is not told");
        bulletin.see(None, None, &decisions(at_capacity()), later(100));
        bulletin.see(None, None, &decisions(Hold::AtMaximum { occupied: 3, maximum: 3 }), later(101));
        let all = [("AtCapacity", 1), ("AtMaximum", 1), ("Resumed", 1)];
        assert_eq!(told(&mut bulletin, 101..110), all, "also where it came to its maximum");
    }

    #[test]
    fn what_is_told_again_is_another_event_and_what_replicas_tell_is_one() {
        let tells = |bulletin: &mut Bulletin, at: u64| {
            let told: Vec<_> = std::iter::from_fn(|| bulletin.due(later(at))).collect();
            told.into_iter().map(|news| (news.reason, news.key)).collect::<Vec<_>>()
        };
        let (mut one, mut other) = (Bulletin::new(NOW), Bulletin::new(NOW));
        let mut events = Vec::new();
        // The pool comes and goes all the time.
        for at in 0..120 {
            let hold = if at % 4 < 2 { at_capacity() } else { Hold::Empty };
            one.see(None, None, &decisions(hold), later(at));
            events.extend(tells(&mut one, at));
        }
        let names: BTreeSet<_> = events.iter().collect();
        assert_eq!(names.len(), events.len(), "{events:?}");
        assert_eq!(events.len(), 8, "{events:?}");
        other.see(None, None, &decisions(at_capacity()), later(1));
        assert_eq!(tells(&mut other, 1), events[..1]);
    }

    #[test]
    fn what_is_not_known_at_the_start_is_told_only_if_it_stays_so() {
        let mut bulletin = Bulletin::new(NOW);
        let unknown = decisions(Hold::Unknown {
            what: UnknownWhat::Workers,
            unknown: Unknown { why: Why::NotYetSeen, detail: String::new(), since: NOW },
        });
        bulletin.see(None, None, &unknown, later(9));
        assert_eq!(told(&mut bulletin, 9..10), []);
        bulletin.see(None, None, &unknown, later(10));
        assert_eq!(told(&mut bulletin, 10..100), [("Unknown", 1)]);
    }

    #[test]
    fn a_try_for_room_is_no_news_but_what_comes_of_it() {
        let mut bulletin = Bulletin::new(NOW);
        let launch = || {
            let reason = LaunchReason::DepthAbove { ready: 3, target: 0 };
            [("p".to_owned(), Decision::Launch(Launch { slots: vec![0], reason }))].into()
        };
        bulletin.see(None, None, &decisions(at_capacity()), NOW);
        bulletin.see(None, None, &launch(), later(5));
        bulletin.see(None, None, &decisions(at_capacity()), later(6));
        assert_eq!(told(&mut bulletin, 6..40), [("AtCapacity", 1)], "it was refused again");
        bulletin.see(None, None, &launch(), later(40));
        bulletin.see(None, None, &decisions(Hold::Empty), later(41));
        assert_eq!(told(&mut bulletin, 41..60), [("Resumed", 1)]);
    }

    #[test]
    fn a_template_that_appears_is_told_on_it() {
        let mut bulletin = Bulletin::new(NOW);
        let missing = Hold::TemplateMissing { template: "mayfly-p".to_owned(), since: NOW };
        bulletin.see(None, None, &decisions(missing), NOW);
        assert_eq!(told(&mut bulletin, 0..10), [("TemplateMissing", 1)]);
        bulletin.see(None, None, &decisions(Hold::Empty), later(10));
        assert_eq!(told(&mut bulletin, 10..20), [("Resumed", 1)]);
    }

    #[test]
    fn whatever_happens_there_is_one_event_in_two_seconds_at_most() {
        let mut bulletin = Bulletin::new(NOW);
        let mut count = 0;
        for second in 0..600 {
            let hold = if second % 2 == 0 { at_capacity() } else { Hold::Empty };
            let fleet = [worker(second, Phase::Ready { since: NOW })];
            bulletin.see(Some(&fleet), None, &decisions(hold), later(second));
            count += usize::from(bulletin.due(later(second)).is_some());
        }
        assert!(count <= 4 * 600 / 30, "{count} in 600 s");
        assert!(count >= 4 * 600 / 30 - 8, "{count} in 600 s");
    }
}
