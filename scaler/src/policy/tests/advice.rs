//! What is told about each decision: why, and what would have to change for a launch.

use std::{fmt::Write, time::Duration};

use super::{super::*, scene::*};

fn holds() -> Vec<Hold> {
    let unknown = |what, why| Hold::Unknown { what, unknown: the_unknown(why) };
    let pending = |pending, cause, detail: Option<&str>| Hold::WaitingForPending {
        pending,
        age: seconds(12),
        cause,
        detail: detail.map(str::to_owned),
    };
    let capacity = |cause| Hold::AtCapacity { cause, detail: Some("0/3 nodes".to_owned()) };
    vec![
        unknown(UnknownWhat::Workers, Why::NotYetSeen),
        unknown(UnknownWhat::State, Why::Unusable),
        unknown(UnknownWhat::Queue("q".to_owned()), Why::Forbidden),
        unknown(UnknownWhat::Queue("q".to_owned()), Why::Unreachable),
        Hold::Paused { everything: false },
        Hold::Paused { everything: true },
        Hold::CoolingDown { until: in_future(20), failures: 2 },
        Hold::AtMaximum { occupied: 10, maximum: 10 },
        Hold::AtMaximum { occupied: 0, maximum: 0 },
        Hold::QuotaReached {
            occupied: 50,
            quota: 50,
            part: 25,
            age: Some(seconds(330)),
            limit: Some(seconds(300)),
        },
        Hold::QuotaReached { occupied: 0, quota: 0, part: 0, age: None, limit: None },
        Hold::Empty,
        Hold::QueueMissing { queue: "q".to_owned() },
        Hold::TemplateMissing { template: "mayfly-p".to_owned(), since: ago(60) },
        pending(1, PendingCause::Intended, None),
        pending(1, PendingCause::NodeComing, Some("a node was promised")),
        pending(3, PendingCause::Starting, None),
        capacity(PendingCause::Quota),
        capacity(PendingCause::NoRoom),
        Hold::WaitingForLook,
        Hold::Pacing { until: in_future(4) },
        Hold::BelowThreshold { ready: 3, target: 5, age: seconds(20), limit: seconds(60) },
        Hold::WouldArriveTooLate { drains_in: seconds(30), lead: seconds(90) },
        Hold::DownstreamSaturated {
            workers: [4, 6],
            per_minute: [240, 246],
            service: [seconds(1), Duration::from_millis(1450)],
        },
        Hold::OnTime { slack: seconds(45) },
        Hold::Batching { launch_by: in_future(30) },
        Hold::NothingHelps { age: seconds(400), slo: seconds(300) },
    ]
}

fn told(decisions: impl IntoIterator<Item = Decision>) -> String {
    decisions.into_iter().fold(String::new(), |mut text, decision| {
        let _ = writeln!(text, "{}: {decision}\n    launches {}", decision.as_str(), decision.advice("p"));
        text
    })
}

#[test]
fn every_reason_to_hold_says_what_would_have_to_change() {
    insta::assert_snapshot!(told(holds().into_iter().map(Decision::Hold)), @"
    Unknown: hold: workers not looked at yet: no answer
        launches once they were looked at, which is soon
    Unknown: hold: state record unusable: no answer
        launches when the record is sound again: mayfly-scaler state CONFIGURATION repair
    Unknown: hold: queue q forbidden: no answer
        launches when the scaler is allowed to see queue q
    Unknown: hold: queue q unreachable: no answer
        launches when queue q can be seen again
    Paused: hold: the pool is paused
        launches after: mayfly-scaler state CONFIGURATION resume p
    Paused: hold: everything is paused
        launches after: mayfly-scaler state CONFIGURATION resume
    CoolingDown: hold: cooling down until 2027-01-15T08:00:20.000Z after 2 failed workers
        launches after 2027-01-15T08:00:20.000Z, or once a message was done; the log says how workers failed
    AtMaximum: hold: 10 of at most 10 workers
        launches when a worker has ended, or with a max_workers above 10
    AtMaximum: hold: 0 of at most 0 workers
        launches with a max_workers above 0
    QuotaReached: hold: 50 workers over all pools, the quota is 50, this pool's part 25; its latest message: 330.0 s of 300.0 s
        launches when workers of any pool have ended, or with a quota above 50
    QuotaReached: hold: 0 workers over all pools, the quota is 0, this pool's part 0
        launches with a quota above 0
    Empty: hold: nothing waits
        launches when messages wait
    QueueMissing: hold: queue q does not exist
        launches when the queue is there and messages wait in it: mayfly-publisher declare q
    TemplateMissing: hold: worker template mayfly-p does not exist, missed since 2027-01-15T07:59:00.000Z
        launches when CronJob mayfly-p is there (helm upgrade makes it), or with another worker.template
    WaitingForPending: hold: 1 workers pending, the oldest for 12.0 s (launch intended)
        launches when the worker that is being launched is ready, or given up
    WaitingForPending: hold: 1 workers pending, the oldest for 12.0 s (node coming: a node was promised)
        launches when the pending worker is ready, or given up
    WaitingForPending: hold: 3 workers pending, the oldest for 12.0 s (starting)
        launches when pending workers are ready, or given up
    AtCapacity: hold: at capacity: namespace quota exhausted: 0/3 nodes
        launches when Jobs or pods of the namespace have ended, or with a higher resource quota
    AtCapacity: hold: at capacity (unconfirmed): no room on any node: 0/3 nodes
        launches when the pending worker has found room
    WaitingForLook: hold: a worker became ready after the last look, and may have taken what waits
        launches after the next look, if messages still wait
    Pacing: hold: the next launch may be at 2027-01-15T08:00:04.000Z
        launches after 2027-01-15T08:00:04.000Z, if messages still wait
    BelowThreshold: hold: 3 messages wait, not more than 5; the oldest for 20.0 s of 60.0 s
        launches when more than 5 messages wait (now 3), or the oldest for more than 60.0 s (now 20.0 s)
    WouldArriveTooLate: hold: drained in 30.0 s, before a new worker would be ready in 90.0 s
        launches when what waits lasts for more than 90.0 s (now 30.0 s), or without skip_futile
    DownstreamSaturated: hold: 6 workers do 246 messages a minute in 1.4 s each, 4 did 240 in 1.0 s
        launches when work gets quicker or workers have left, within ten minutes as a trial, or without saturation_guard
    OnTime: hold: all begins in time, with 45.0 s to spare
        launches when a message would begin too late (now 45.0 s to spare)
    Batching: hold: a launch is needed by 2027-01-15T08:00:30.000Z, not before
        launches at 2027-01-15T08:00:30.000Z, or earlier if more messages come
    NothingHelps: hold: the latest begins 400.0 s after it came, of 300.0 s, whatever is launched
        launches when a new worker would be there in time for a message (the latest begins at 400.0 s of 300.0 s)
    ");
}

#[test]
fn the_table_has_every_reason_to_hold() {
    // Who adds a reason comes by here.
    let number = |hold: &Hold| match hold {
        Hold::Unknown { .. } => 0,
        Hold::Paused { .. } => 1,
        Hold::CoolingDown { .. } => 2,
        Hold::AtMaximum { .. } => 3,
        Hold::QuotaReached { .. } => 4,
        Hold::Empty => 5,
        Hold::QueueMissing { .. } => 6,
        Hold::WaitingForPending { .. } => 7,
        Hold::AtCapacity { .. } => 8,
        Hold::Pacing { .. } => 9,
        Hold::BelowThreshold { .. } => 10,
        Hold::WouldArriveTooLate { .. } => 11,
        Hold::OnTime { .. } => 12,
        Hold::Batching { .. } => 13,
        Hold::NothingHelps { .. } => 14,
        Hold::DownstreamSaturated { .. } => 15,
        Hold::TemplateMissing { .. } => 16,
        Hold::WaitingForLook => 17,
    };
    let numbers: std::collections::BTreeSet<_> = holds().iter().map(number).collect();
    assert_eq!(numbers, (0..18).collect());
}

#[test]
fn launches_and_withdrawals_are_told_as_well() {
    let withdraw = Withdraw { workers: vec!["w-2".to_owned()], unneeded_for: seconds(11) };
    let decisions = [launches([0], DEPTH), launches([0, 1], DEPTH), Decision::Withdraw(withdraw)];
    insta::assert_snapshot!(told(decisions), @"
    DepthAbove: launch 1: 3 messages wait, more than 0
        launches one worker now
    DepthAbove: launch 2: 3 messages wait, more than 0
        launches 2 workers now
    Unneeded: take back 1: nothing needed it for 11.0 s
        launches when messages wait that need a worker
    ");
}
