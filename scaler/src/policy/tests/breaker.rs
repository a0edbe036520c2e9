//! What fails again and again is tried less and less.

use super::{super::*, scene::*};
use crate::{config::PoolConfig, time::Time};

/// The times, in seconds, at which an hour with ten messages waiting launches workers that end so, each two
/// seconds after its launch.
fn hour(pool: &PoolConfig, ending: impl Fn(Time) -> Ending) -> (Vec<u64>, PoolState) {
    let config = config(vec![pool.clone()]);
    let mut record = StateRecord::new(NOW);
    let mut memory = Memory::default();
    let mut workers: Vec<(Time, Worker)> = Vec::new();
    let mut launches = Vec::new();
    for second in 0..3600 {
        let now = NOW + seconds(second);
        for (launched, worker) in &mut workers {
            if now.since(*launched) >= seconds(2) && !matches!(worker.phase, Phase::Finished(_)) {
                worker.phase = Phase::Finished(ending(now));
            }
        }
        let listed: Vec<_> = workers.iter().map(|(_, worker)| worker.clone()).collect();
        record = judge(&record, &listed, &config, now).record;
        let observation = Observation {
            missing_templates: std::collections::BTreeMap::new(),
            queues: [("q".to_owned(), Fact::Known { value: waiting(10), at: now })].into(),
            suspects: std::collections::BTreeMap::new(),
            counters: std::collections::BTreeMap::new(),
            workers: Fact::Known { value: listed, at: now },
            state: Fact::Known { value: record.clone(), at: now },
        };
        memory = remember(memory, &observation, &config);
        let Decision::Launch(launch) = &decide(&memory, &observation, &config, now)["p"] else { continue };
        for _ in &launch.slots {
            let state = record.pool_mut("p");
            let serial = state.next_serial;
            state.next_serial += 1;
            state.last_settled_launch = Some(now);
            let phase = pending(true, PendingCause::Starting, now);
            workers.push((now, Worker { slot: None, launched: now, ..worker(serial, phase) }));
            launches.push(second);
        }
    }
    (launches, record.pool("p"))
}

#[test]
fn an_image_that_crashes_at_its_start_for_an_hour_is_launched_fifteen_times_at_most() {
    let crash = |at| Ending { at, report: None, exit_code: Some(3), lead_time: None, ..ending(0) };
    let (launches, state) = hour(&pool("p"), crash);
    assert!(launches.len() <= 15, "{} launches: {launches:?}", launches.len());
    assert!(launches.len() >= 10, "it has to be tried, or nobody learns that it works again: {launches:?}");
    assert!(state.failures.count >= 6, "{:?}", state.failures);
}

#[test]
fn an_image_that_works_is_not_slowed_down() {
    let (launches, state) = hour(&pool("p"), |at| Ending { at, ..ending(1) });
    assert!(launches.len() > 300, "{}", launches.len());
    assert_eq!((state.failures.count, state.last_failure), (0, None));
}

#[test]
fn how_the_last_worker_failed_is_kept_when_it_is_forgiven() {
    let config = config(vec![pool("p")]);
    let words = Some("cannot open /models".to_owned());
    let crash = Ending { report: None, exit_code: Some(3), last_words: words.clone(), ..ending(0) };
    let record = judge(&StateRecord::new(ago(100)), &[finished(1, crash)], &config, NOW).record;
    let failure = LastFailure {
        at: NOW,
        worker: "worker-1".to_owned(),
        why: "ended with exit code 3 without a report".to_owned(),
        last_words: words,
    };
    assert_eq!(record.pool("p").last_failure, Some(failure.clone()));
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<StateRecord>(&text).unwrap(), record);
    let record = judge(&record, &[finished(2, ending(1))], &config, NOW).record;
    assert_eq!((record.pool("p").failures.count, record.pool("p").last_failure), (0, Some(failure)));
}
