//! What ended workers teach: service time, lead times, places on a node.

use mayfly_service::report::{ExitReason, ExitReport};

use super::{super::*, scene::*};

fn taught(estimates: Estimates, workers: &[Worker]) -> Estimates {
    let mut record = StateRecord::new(ago(10_000));
    record.pool_mut("p").estimates = estimates;
    judge(&record, workers, &base().config(), NOW).record.pool("p").estimates
}

/// A worker that did `done` messages of `each_ms`, and put `others` into a retry queue.
fn work(done: u64, each_ms: u64, others: u64) -> Worker {
    let report = ExitReport {
        messages: done + others,
        done,
        retried: others,
        busy_ms: (done + others) * each_ms,
        startup_ms: Some(1),
        ..ExitReport::new(ExitReason::Idle)
    };
    finished(1, Ending { report: Some(report), ..ending(0) })
}

fn with_lead(lead: u64) -> Worker {
    finished(1, Ending { lead_time: Some(seconds(lead)), ..ending(0) })
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

#[test]
fn service_time_is_a_mean_over_about_the_last_200_done_messages() {
    let mean = |estimates: &Estimates| estimates.service_time.unwrap().mean_ms;
    let learned = taught(Estimates::default(), &[work(100, 1000, 0)]);
    assert!(close(mean(&learned), 1000.0));
    let learned = taught(learned, &[work(100, 3000, 0)]);
    assert!(close(mean(&learned), 2000.0), "both halves weigh the same");
    let learned = taught(learned, &[work(1000, 500, 50)]);
    assert!(close(mean(&learned), 500.0), "200 newer ones push the older out");
    let unchanged = taught(learned.clone(), &[finished(4, ending(0))]);
    assert_eq!(unchanged.service_time, learned.service_time);
}

#[test]
fn an_increase_of_service_time_is_followed_at_once_and_a_decrease_when_it_has_lasted() {
    let plan = |estimates: &Estimates| estimates.service_time.unwrap().seconds();
    let steady = taught(Estimates::default(), &[work(200, 1000, 0)]);
    assert!(close(plan(&steady), 1.0));
    let slower = taught(steady.clone(), &[work(40, 8000, 0)]);
    assert!((5.0..6.0).contains(&plan(&slower)), "two thirds of the way after 40: {}", plan(&slower));
    let faster = taught(steady, &[work(40, 100, 0)]);
    assert!((0.8..0.9).contains(&plan(&faster)), "a fifth of the way after 40: {}", plan(&faster));
}

#[test]
fn a_few_messages_do_not_count_as_an_increase() {
    let plan = |estimates: &Estimates| estimates.service_time.unwrap().seconds();
    let few = taught(Estimates::default(), &[work(20, 1000, 0)]);
    let learned = taught(few, &[work(9, 10_000, 0)]);
    assert!(close(plan(&learned), learned.service_time.unwrap().mean_ms / 1000.0), "29 are noise");
    let learned = taught(learned, &[work(1, 60_000, 0)]);
    let recent = learned.service_time.unwrap().recent_ms.unwrap();
    assert!(plan(&learned) >= recent / 1000.0, "30 are not");
}

#[test]
fn lead_time_is_the_80th_percentile_of_the_last_20() {
    let mut learned = taught(Estimates::default(), &[with_lead(7)]);
    assert_eq!(learned.lead_time(), Some(seconds(7)));
    for lead in 1..=30 {
        learned = taught(learned, &[with_lead(lead)]);
    }
    // The last 20 are 11..=30 s.
    assert_eq!(learned.lead_times_ms.len(), 20);
    assert_eq!(learned.lead_time(), Some(seconds(26)));
    assert_eq!(Estimates::default().lead_time(), None);
}

#[test]
fn who_waited_for_a_node_teaches_another_lead_time_than_who_found_room() {
    let cold = |lead| Worker { cold: true, ..with_lead(lead) };
    let mut learned = Estimates::default();
    for lead in 1..=10 {
        learned = taught(learned, &[with_lead(lead)]);
        learned = taught(learned, &[cold(100 + lead)]);
    }
    let expected = LeadTimes { warm: Some(seconds(8)), cold: Some(seconds(107)) };
    assert_eq!(learned.lead_times(&[]), expected);
}

#[test]
fn a_ready_worker_teaches_its_lead_time_before_it_ends() {
    // Launched 30 s ago, ready since 20 s.
    let workers = [ready(1), Worker { cold: true, launched: ago(90), ..ready(2) }, starting(3)];
    let living = Estimates::default().lead_times(&Vec::from_iter(&workers));
    assert_eq!(living, LeadTimes { warm: Some(seconds(10)), cold: Some(seconds(70)) });
    let old = Estimates { lead_times_ms: vec![90_000; 20], ..Estimates::default() };
    let many: Vec<_> = (1..=20).map(ready).collect();
    assert_eq!(
        old.lead_times(&Vec::from_iter(&many)).warm,
        Some(seconds(10)),
        "the living are the younger ones"
    );
}

#[test]
fn places_on_a_node_are_the_most_that_were_ever_seen_on_one() {
    let on = |node: &str, worker| Worker { node: Some(node.to_owned()), ..worker };
    let learned = taught(Estimates::default(), &[ready(1)]);
    assert_eq!(learned.pods_per_node, None, "no node is known");
    let three = [on("a", ready(1)), on("a", starting(2)), on("b", ready(3)), on("a", finished(4, ending(1)))];
    let learned = taught(learned, &three);
    assert_eq!(learned.pods_per_node, Some(2), "who has ended takes no place");
    let learned = taught(learned, &[on("a", ready(1))]);
    assert_eq!(learned.pods_per_node, Some(2), "it does not shrink when workers leave");
}
