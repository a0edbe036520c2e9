//! The state record: what may be believed of it, and the names that it fixes.

use super::{super::*, scene::*};

fn record(state: PoolState) -> StateRecord {
    let mut record = StateRecord::new(ago(10_000));
    record.pools.insert("p".to_owned(), state);
    record
}

fn normalized(state: PoolState) -> PoolState {
    record(state).normalized(NOW, |_| seconds(360)).pool("p")
}

#[test]
fn stamps_from_the_future_become_now() {
    let far = in_future(1_000_000);
    let marks = QueueMarks { quiet: Some(far), turned: Some(far) };
    let state = normalized(PoolState {
        last_settled_launch: Some(far),
        failures: Failures { count: 2, last: Some(far) },
        intents: vec![intent(1, far), intent(2, ago(5))],
        estimates: Estimates { queues: [("q".to_owned(), marks)].into(), ..Estimates::default() },
        ..PoolState::default()
    });
    assert_eq!(state.last_settled_launch, Some(NOW));
    assert_eq!(state.failures, Failures { count: 2, last: Some(NOW) });
    assert_eq!(state.intents, [intent(1, NOW), intent(2, ago(5))]);
    assert_eq!(state.estimates.queues["q"], QueueMarks { quiet: Some(NOW), turned: Some(NOW) });
}

#[test]
fn a_remaining_cool_down_is_cut_to_a_fifth_above_its_cap() {
    let cut =
        |until| normalized(PoolState { cooldown_until: Some(until), ..PoolState::default() }).cooldown_until;
    assert_eq!(cut(in_future(1_000_000)), Some(in_future(432)));
    assert_eq!(cut(in_future(432)), Some(in_future(432)));
    assert_eq!(cut(in_future(5)), Some(in_future(5)));
    assert_eq!(cut(ago(5)), Some(ago(5)));
}

#[test]
fn a_record_that_needs_no_correction_stays_as_it_is() {
    let state = PoolState {
        next_serial: 7,
        last_settled_launch: Some(ago(4)),
        failures: Failures { count: 1, last: Some(ago(9)) },
        cooldown_until: Some(in_future(3)),
        paused: true,
        intents: vec![intent(6, ago(1))],
        judged: vec![1, 2],
        ..PoolState::default()
    };
    assert_eq!(normalized(state.clone()), state);
}

#[test]
fn a_record_survives_being_written_down() {
    let state = PoolState {
        next_serial: 7,
        last_settled_launch: Some(ago(4)),
        intents: vec![intent(6, ago(1))],
        judged: vec![1, 2],
        estimates: Estimates {
            counted_service_time: Some(ServiceTime { mean_ms: 1400.0, weight: 30.0, recent_ms: None }),
            service_time: Some(ServiceTime { mean_ms: 12.5, weight: 3.0, recent_ms: Some(13.5) }),
            lead_times_ms: vec![1, 2, 3],
            cold_lead_times_ms: vec![4],
            pods_per_node: Some(4),
            waiting: [("q".to_owned(), vec![Batch { since: ago(9), count: 2.5 }])].into(),
            arrivals: [("q".to_owned(), Arrivals { minute: 1.5, five_minutes: -0.25, at: ago(2) })].into(),
            queues: [("q".to_owned(), QueueMarks { quiet: Some(ago(3)), turned: None })].into(),
        },
        ..PoolState::default()
    };
    let record = record(state);
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<StateRecord>(&text).unwrap(), record);
    let newer = text.replacen('{', r#"{"from_the_future":1,"#, 1);
    assert!(serde_json::from_str::<StateRecord>(&newer).is_err(), "an unknown field means a newer writer");
}

#[test]
fn only_what_is_written_at_leisure_may_differ_without_a_write() {
    let base = record(PoolState { next_serial: 7, ..PoolState::default() });
    let differs = |change: fn(&mut StateRecord)| {
        let mut other = base.clone();
        change(&mut other);
        base.differs_in_substance(&other)
    };
    assert!(!differs(|_| {}));
    assert!(!differs(|record| record.revision += 1));
    assert!(!differs(|record| {
        record.pool_mut("p").estimates.queues.insert("q".to_owned(), QueueMarks::default());
    }));
    assert!(!differs(|record| {
        record.pool_mut("p").estimates.arrivals.insert("q".to_owned(), Arrivals::default());
    }));
    assert!(!differs(|record| _ = record.pool_mut("never-launched")));
    assert!(differs(|record| record.pool_mut("p").next_serial = 8));
    assert!(differs(|record| record.pool_mut("p").paused = true));
    assert!(differs(|record| record.pool_mut("p").judged.push(1)));
    assert!(differs(|record| record.pool_mut("p").intents.push(intent(1, NOW))));
    assert!(differs(|record| record.pool_mut("p").cooldown_until = Some(NOW)));
}

#[test]
fn a_job_name_never_changes_between_versions_and_never_returns_with_another_epoch() {
    assert_eq!(job_name("mayfly", "documents", 1_800_000_000, 42), "mayfly-documents-91ye-42");
    let name = |instance, pool, epoch| job_name(instance, pool, epoch, 1);
    let hash = |name: String| name.rsplit('-').nth(1).unwrap().to_owned();
    assert_ne!(name("mayfly", "p", 1), name("mayfly", "p", 2));
    // Where the dash stands is told by the hash alone.
    assert_ne!(name("a-b", "c", 1), name("a", "b-c", 1));
    for epoch in 0..200 {
        let hash = hash(name("mayfly", "p", epoch));
        assert_eq!(hash.len(), 4);
        assert!(hash.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()), "{hash}");
    }
}
