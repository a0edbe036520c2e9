use std::{collections::BTreeMap, sync::Arc};

use super::*;
use crate::{
    config::{Config, Overrides},
    policy::{
        Counters, Estimates, Fact, Memory, Observation, Phase, QueueFacts, ServiceTime, StateRecord, Unknown,
        Why, Worker, decide, remember,
    },
    status::{Seen, Status},
    time::Time,
};

const NOW: Time = Time::from_millis(1_800_000_000_000);

const CONFIG: &str = "
instance: mayfly
launcher: { kubernetes: {} }
pools:
  - name: documents
    queues: [{ name: documents }]
    target_queue_size: 5
    worker: { template: t }
  - name: lost
    queues: [{ name: forbidden }, { name: missing }]
    worker: { template: t }
";

fn ready_worker(serial: u64) -> Worker {
    Worker {
        name: format!("mayfly-documents-0000-{serial}"),
        pool: "documents".to_owned(),
        serial: Some(serial),
        slot: Some(0),
        launched: NOW - Duration::from_secs(40),
        reason: None,
        node: None,
        cold: false,
        generation: None,
        phase: Phase::Ready { since: NOW - Duration::from_secs(33) },
    }
}

/// The page as the client reads it from what the server writes.
fn page() -> Page {
    let config = Config::parse(CONFIG, &Overrides::default()).unwrap();
    let known = |value| Fact::Known { value, at: NOW };
    let mut record = StateRecord::new(NOW);
    record.pool_mut("documents").estimates = Estimates {
        service_time: Some(ServiceTime { mean_ms: 1500.0, weight: 20.0, recent_ms: None }),
        lead_times_ms: vec![8000],
        ..Estimates::default()
    };
    let unknown = |why| Unknown { why, detail: "no permission".to_owned(), since: NOW };
    let observation = Observation {
        missing_templates: BTreeMap::new(),
        queues: BTreeMap::from([
            ("documents".to_owned(), known(QueueFacts::Present { ready: 3, consumers: 1 })),
            ("forbidden".to_owned(), Fact::Unknown(unknown(Why::Forbidden))),
            ("missing".to_owned(), known(QueueFacts::Missing)),
        ]),
        suspects: BTreeMap::from([(
            "documents".to_owned(),
            known(QueueFacts::Present { ready: 1, consumers: 0 }),
        )]),
        counters: BTreeMap::from([(
            "documents".to_owned(),
            Fact::Known {
                value: Counters { unacked: Some(1), ..Counters::default() },
                at: NOW - Duration::from_secs(5),
            },
        )]),
        workers: Fact::Known { value: vec![ready_worker(1)], at: NOW },
        state: Fact::Known { value: record, at: NOW },
    };
    let memory = remember(Memory::default(), &observation, &config);
    let decisions = decide(&memory, &observation, &config, NOW);
    let status = Status::of(&Seen {
        config: Arc::new(config),
        memory: Arc::new(memory),
        observation,
        decisions,
        at: NOW,
        dry_run: false,
        refused: None,
    });
    serde_json::from_str(&serde_json::to_string(&status).unwrap()).unwrap()
}

#[test]
fn each_pool_is_told_with_its_numbers_and_what_would_have_to_change() {
    insta::assert_snapshot!(page().to_string(), @"
    instance mayfly, as of 2027-01-15T08:00:00.000Z

    pool documents: BelowThreshold
      decided                  hold: 4 messages wait, not more than 5; the oldest for 0.0 s of 60.0 s
      launches                 when more than 5 messages wait (now 4), or the oldest for more than 60.0 s (now 0.0 s)
      queue documents
        ready                  3, 1 consumers (looks at the queue)
        oldest message         0.0 s, at least 0.0 s, no upper bound (estimated from looks at the queue)
        in flight              1, 5 s ago (the broker's counters)
        arrivals               0.00 messages/s (estimated from changes of the depth)
      queue documents.suspect
        ready                  1, 0 consumers (looks at the queue)
        oldest message         0.0 s, at least 0.0 s, no upper bound (estimated from looks at the queue)
      in the pool
        workers                1 ready, 0 pending, 0 ending, 0 lost (the launcher)
        service time           1.50 s a message (estimated from reports of ended workers)
        lead time              8.00 s from launch to ready (estimated from earlier launches)
        lead time with a node  not known yet (earlier launches)

    pool lost: Unknown
      decided                  hold: queue forbidden forbidden: no permission
      launches                 when the scaler is allowed to see queue forbidden
      queue forbidden
        ready                  forbidden: no permission (looks at the queue)
      queue missing
        ready                  the queue does not exist (looks at the queue)
        arrivals               0.00 messages/s (estimated from changes of the depth)
      in the pool
        workers                0 ready, 0 pending, 0 ending, 0 lost (the launcher)
        service time           not known yet (reports of ended workers)
        lead time              not known yet (earlier launches)
        lead time with a node  not known yet (earlier launches)
    ");
}

#[test]
fn whoever_listens_everywhere_is_asked_on_loopback() {
    let reached = |listened: &str| reachable(listened.parse().unwrap()).to_string();
    assert_eq!(reached("0.0.0.0:8080"), "127.0.0.1:8080");
    assert_eq!(reached("[::]:8080"), "[::1]:8080");
    assert_eq!(reached("10.1.2.3:80"), "10.1.2.3:80");
}

#[tokio::test]
async fn who_does_not_answer_is_named() {
    // Bound and not listened on by a scaler: closed at once.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = format!("{:#}", status(address).await.unwrap_err());
    assert!(error.starts_with(&format!("no scaler answers at {address}: ")), "{error}");
}
