//! Single rules as sentences, and all orders of events against a model of broker and handlers.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const RULES: Rules =
    Rules { concurrency: 2, prefetch: 4, max_idle: Duration::from_secs(20), grace: Duration::from_secs(30) };
const START: Duration = Duration::from_secs(100);
const MS: Duration = Duration::from_millis(1);

fn lifecycle() -> Lifecycle {
    Lifecycle::new(RULES, Tally::default(), START)
}

fn finished(tag: u64, verdict: Verdict) -> Event {
    Event::Finished { tag, verdict, busy: MS }
}

fn deliver(lifecycle: &mut Lifecycle, tags: std::ops::RangeInclusive<u64>) {
    for tag in tags {
        lifecycle.handle(Event::Delivered { tag }, START);
    }
}

fn acks(commands: &[Command]) -> Vec<(u64, bool)> {
    commands
        .iter()
        .filter_map(|command| match command {
            Command::Ack(ack) => Some((ack.tag, ack.multiple)),
            _ => None,
        })
        .collect()
}

fn idle_at(lifecycle: &Lifecycle) -> Duration {
    lifecycle.wake_at().unwrap()
}

#[test]
fn an_idle_worker_looks_at_the_queue_cancels_drains_closes_and_exits() {
    let mut worker = lifecycle();
    let now = idle_at(&worker);
    assert_eq!(now, START + RULES.max_idle);
    assert_eq!(worker.handle(Event::Tick, now - MS), []);
    assert_eq!(worker.handle(Event::Tick, now), [Command::AskDepth]);
    assert_eq!(worker.handle(Event::Depth { ready: 0 }, now), [Command::Cancel]);
    assert_eq!(worker.handle(Event::Drained, now), [Command::Close]);
    assert_eq!(worker.handle(Event::Closed, now), [Command::End(End::Exit(ExitReason::Idle))]);
    assert_eq!(worker.tally().idle, RULES.max_idle);
}

#[test]
fn the_idle_time_counts_from_the_last_settle_and_not_from_a_messages_start() {
    let mut worker = lifecycle();
    deliver(&mut worker, 1..=1);
    assert_eq!(worker.wake_at(), None, "nothing ends a worker that works");
    let settled = START + Duration::from_secs(7200);
    worker.handle(finished(1, Verdict::Done), settled);
    assert_eq!(idle_at(&worker), settled + RULES.max_idle);
}

#[test]
fn a_message_that_comes_with_the_cancel_is_worked_on_before_the_exit() {
    let mut worker = lifecycle();
    let now = idle_at(&worker);
    worker.handle(Event::Tick, now);
    worker.handle(Event::Depth { ready: 0 }, now);
    assert_eq!(worker.handle(Event::Delivered { tag: 1 }, now), [Command::Start { tag: 1 }]);
    assert_eq!(worker.handle(Event::Drained, now), []);
    let commands = worker.handle(finished(1, Verdict::Done), now);
    assert_eq!(acks(&commands), [(1, false)]);
    assert_eq!(commands.last(), Some(&Command::Close));
}

#[test]
fn three_looks_that_find_messages_which_never_come_mean_starved() {
    let mut worker = lifecycle();
    for look in 1..=3 {
        let now = idle_at(&worker);
        assert_eq!(worker.handle(Event::Tick, now), [Command::AskDepth]);
        let commands = worker.handle(Event::Depth { ready: 9 }, now);
        assert_eq!(commands, if look < 3 { vec![] } else { vec![Command::Cancel] });
    }
    worker.handle(Event::Drained, START);
    assert_eq!(worker.handle(Event::Closed, START), [Command::End(End::Exit(ExitReason::Starved))]);
}

#[test]
fn a_delivery_ends_the_suspicion_of_starving() {
    let mut worker = lifecycle();
    for tag in 1..=5 {
        let now = idle_at(&worker);
        worker.handle(Event::Tick, now);
        assert_eq!(worker.handle(Event::Depth { ready: 9 }, now), []);
        worker.handle(Event::Delivered { tag }, now);
        worker.handle(finished(tag, Verdict::Done), now);
    }
}

#[test]
fn acks_wait_a_little_for_others_while_all_handlers_are_busy() {
    let mut worker = lifecycle();
    deliver(&mut worker, 1..=4);
    assert_eq!(acks(&worker.handle(finished(1, Verdict::Done), START)), []);
    assert_eq!(worker.wake_at(), Some(START + Outstanding::LINGER));
    assert_eq!(acks(&worker.handle(finished(2, Verdict::Done), START + MS)), []);
    assert_eq!(acks(&worker.handle(Event::Tick, START + Outstanding::LINGER)), [(2, true)]);
}

#[test]
fn acks_go_at_once_when_a_handler_is_free() {
    let mut worker = lifecycle();
    deliver(&mut worker, 1..=2);
    assert_eq!(acks(&worker.handle(finished(2, Verdict::Done), START)), [(2, false)]);
    assert_eq!(acks(&worker.handle(finished(1, Verdict::Retried), START)), [(1, false)]);
}

#[test]
fn acks_go_when_there_are_fifty() {
    let rules = Rules { concurrency: 1, prefetch: 100, ..RULES };
    let mut worker = Lifecycle::new(rules, Tally::default(), START);
    deliver(&mut worker, 1..=100);
    for tag in 1..50 {
        assert_eq!(acks(&worker.handle(finished(tag, Verdict::Done), START)), []);
    }
    assert_eq!(acks(&worker.handle(finished(50, Verdict::Done), START)), [(50, true)]);
}

#[test]
fn asked_to_stop_it_gives_back_what_has_not_started_and_finishes_the_rest() {
    let mut worker = lifecycle();
    deliver(&mut worker, 1..=4);
    assert_eq!(worker.handle(Event::Stop, START), [Command::Cancel]);
    assert_eq!(
        worker.handle(Event::Drained, START),
        [Command::GiveBack { tag: 3 }, Command::GiveBack { tag: 4 }],
        "not before the cancel has drained, else they would come straight back"
    );
    worker.handle(finished(1, Verdict::Done), START);
    let commands = worker.handle(finished(2, Verdict::Done), START);
    assert_eq!(commands.last(), Some(&Command::Close));
    assert_eq!(worker.handle(Event::Closed, START), [Command::End(End::Exit(ExitReason::AskedToStop))]);
    let tally = worker.tally();
    assert_eq!((tally.messages, tally.done, tally.given_back), (4, 2, 2));
}

#[test]
fn at_the_end_of_grace_handlers_are_ended_and_only_then_is_their_message_given_back() {
    let mut worker = lifecycle();
    deliver(&mut worker, 1..=1);
    worker.handle(Event::Stop, START);
    worker.handle(Event::Drained, START);
    let end = START + RULES.grace;
    assert_eq!(worker.wake_at(), Some(end));
    assert_eq!(worker.handle(Event::Tick, end), [Command::Interrupt]);
    assert_eq!(worker.handle(Event::Tick, end + MS), [], "once");
    assert_eq!(
        worker.handle(finished(1, Verdict::Interrupted), end + MS),
        [Command::GiveBack { tag: 1 }, Command::Close]
    );
}

#[test]
fn a_handler_that_cannot_start_ends_the_worker_and_the_message_goes_back() {
    let mut worker = lifecycle();
    deliver(&mut worker, 1..=3);
    let unfit = Verdict::Unfit(ExitReason::HandlerUnavailable);
    assert_eq!(worker.handle(finished(1, unfit), START), [Command::Cancel]);
    worker.handle(Event::Stop, START);
    assert_eq!(
        worker.handle(Event::Drained, START),
        [Command::GiveBack { tag: 1 }, Command::GiveBack { tag: 3 }]
    );
    worker.handle(finished(2, Verdict::Done), START);
    assert_eq!(
        worker.handle(Event::Closed, START),
        [Command::End(End::Exit(ExitReason::HandlerUnavailable))],
        "the first reason stays"
    );
}

#[test]
fn a_lost_connection_kills_the_handlers_before_a_fresh_one_is_made() {
    let mut worker = lifecycle();
    deliver(&mut worker, 1..=3);
    assert_eq!(worker.handle(Event::Lost, START), [Command::Kill, Command::End(End::Reconnect)]);
    assert_eq!(worker.tally().given_back, 3);
    assert_eq!(worker.handle(finished(1, Verdict::Done), START), [], "too late");
}

#[test]
fn who_had_to_go_anyway_does_not_reconnect() {
    let mut worker = lifecycle();
    worker.handle(Event::Stop, START);
    let commands = worker.handle(Event::Lost, START);
    assert_eq!(commands.last(), Some(&Command::End(End::Exit(ExitReason::AskedToStop))));
}

#[test]
fn an_idle_worker_whose_close_fails_comes_back_to_see_whether_its_acks_arrived() {
    let mut worker = lifecycle();
    deliver(&mut worker, 1..=1);
    worker.handle(finished(1, Verdict::Done), START);
    let now = idle_at(&worker);
    worker.handle(Event::Tick, now);
    worker.handle(Event::Depth { ready: 0 }, now);
    assert_eq!(worker.handle(Event::Drained, now), [Command::Close]);
    assert_eq!(worker.handle(Event::Lost, now).last(), Some(&Command::End(End::Reconnect)));
    assert_eq!((worker.tally().done, worker.tally().given_back), (0, 1));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut worker = lifecycle();
    deliver(&mut worker, 1..=2);
    worker.handle(Event::Stop, START);
    assert_eq!(
        worker.handle(Event::Abort, START),
        [Command::Kill, Command::End(End::Exit(ExitReason::Aborted))]
    );
}

/// Something that broker, handlers, people or time do next.
#[derive(Debug, Clone)]
enum Move {
    Deliver,
    Finish(usize, Verdict),
    Wait(u64),
    AnswerDepth(u64),
    Drain,
    Close,
    Stop,
    Abort,
    Lose,
}

fn moves() -> impl Strategy<Value = Move> {
    let verdict = prop_oneof![
        6 => Just(Verdict::Done),
        1 => Just(Verdict::Retried),
        1 => Just(Verdict::DeadLettered),
        1 => Just(Verdict::Interrupted),
        1 => Just(Verdict::Unfit(ExitReason::HandlerUnavailable)),
    ];
    prop_oneof![
        30 => Just(Move::Deliver),
        30 => (any::<usize>(), verdict).prop_map(|(index, verdict)| Move::Finish(index, verdict)),
        20 => prop_oneof![0..15_u64, 0..70_000_u64].prop_map(Move::Wait),
        10 => (0..2_u64).prop_map(Move::AnswerDepth),
        8 => Just(Move::Drain),
        8 => Just(Move::Close),
        2 => Just(Move::Stop),
        1 => Just(Move::Abort),
        1 => Just(Move::Lose),
    ]
}

/// How far a delivery is, as the broker and the handlers know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Waiting,
    Working,
    Finished(Verdict),
    Acked,
    GivenBack,
    Lost,
}

/// A broker and handlers that notice every broken promise.
struct Model {
    worker: Lifecycle,
    rules: Rules,
    now: Duration,
    fates: BTreeMap<u64, Fate>,
    cancelled: bool,
    drained: bool,
    depth_asked: bool,
    closing: bool,
    killed: bool,
    lost: bool,
    ended: Option<End>,
}

impl Model {
    fn new(rules: Rules) -> Self {
        Self {
            worker: Lifecycle::new(rules, Tally::default(), START),
            rules,
            now: START,
            fates: BTreeMap::new(),
            cancelled: false,
            drained: false,
            depth_asked: false,
            closing: false,
            killed: false,
            lost: false,
            ended: None,
        }
    }

    fn with(&self, wanted: impl Fn(Fate) -> bool) -> Vec<u64> {
        self.fates.iter().filter(|(_, fate)| wanted(**fate)).map(|(tag, _)| *tag).collect()
    }

    fn unsettled(&self) -> Vec<u64> {
        self.with(|fate| matches!(fate, Fate::Waiting | Fate::Working | Fate::Finished(_)))
    }

    /// The event that `step` amounts to here, if it can happen at all.
    fn event(&mut self, step: &Move) -> Option<Event> {
        match *step {
            Move::Deliver => {
                let may = !self.drained
                    && !self.closing
                    && self.unsettled().len() < usize::from(self.rules.prefetch);
                let tag = self.fates.len() as u64 + 1;
                may.then(|| {
                    self.fates.insert(tag, Fate::Waiting);
                    Event::Delivered { tag }
                })
            }
            Move::Finish(index, verdict) => {
                let working = self.with(|fate| fate == Fate::Working);
                let tag = *working.get(index.checked_rem(working.len())?)?;
                self.fates.insert(tag, Fate::Finished(verdict));
                Some(finished(tag, verdict))
            }
            Move::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                Some(Event::Tick)
            }
            Move::AnswerDepth(ready) => {
                std::mem::take(&mut self.depth_asked).then_some(Event::Depth { ready })
            }
            Move::Drain => (self.cancelled && !self.drained).then(|| {
                self.drained = true;
                Event::Drained
            }),
            Move::Close => self.closing.then_some(Event::Closed),
            Move::Stop => Some(Event::Stop),
            Move::Abort => Some(Event::Abort),
            Move::Lose => {
                self.lost = true;
                Some(Event::Lost)
            }
        }
    }

    fn step(&mut self, step: &Move) {
        if self.ended.is_none()
            && let Some(event) = self.event(step)
        {
            for command in self.worker.handle(event, self.now) {
                assert_eq!(self.ended, None, "{command:?} after the end");
                self.obey(command);
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start { tag } => {
                assert_eq!(self.fates.insert(tag, Fate::Working), Some(Fate::Waiting), "{tag}");
                assert!(self.with(|fate| fate == Fate::Working).len() <= self.rules.concurrency);
            }
            Command::Ack(ack) => self.acked(&ack),
            Command::GiveBack { tag } => {
                let before = self.fates.insert(tag, Fate::GivenBack);
                let ended = matches!(
                    before,
                    Some(Fate::Waiting | Fate::Finished(Verdict::Interrupted | Verdict::Unfit(_)))
                );
                assert!(ended, "gave back {tag}, which was {before:?}");
                assert!(self.drained || before == Some(Fate::Finished(Verdict::Interrupted)));
            }
            Command::AskDepth => {
                assert!(self.unsettled().is_empty() && !self.depth_asked && !self.cancelled);
                self.depth_asked = true;
            }
            Command::Cancel => assert!(!std::mem::replace(&mut self.cancelled, true), "cancelled twice"),
            Command::Interrupt => assert!(self.cancelled),
            Command::Kill => {
                self.killed = true;
                for tag in self.unsettled() {
                    self.fates.insert(tag, Fate::Lost);
                }
            }
            Command::Close => {
                assert!(self.drained && self.unsettled().is_empty(), "{:?}", self.fates);
                assert!(!std::mem::replace(&mut self.closing, true), "closed twice");
            }
            Command::End(end) => self.end(end),
        }
    }

    fn acked(&mut self, ack: &Ack) {
        let covered: Vec<u64> = ack.covers.iter().map(|(tag, _)| *tag).collect();
        let at_the_broker: Vec<u64> = if ack.multiple {
            self.unsettled().into_iter().filter(|tag| *tag <= ack.tag).collect()
        } else {
            vec![ack.tag]
        };
        assert_eq!(at_the_broker, covered, "the broker settles something else than we think");
        for &(tag, settled) in &ack.covers {
            let meaning = match self.fates.insert(tag, Fate::Acked) {
                Some(Fate::Finished(Verdict::Done)) => Settled::Done,
                Some(Fate::Finished(Verdict::Retried)) => Settled::Retried,
                Some(Fate::Finished(Verdict::DeadLettered)) => Settled::DeadLettered,
                other => panic!("acked {tag}, which was {other:?}"),
            };
            assert_eq!(settled, meaning);
        }
    }

    fn end(&mut self, end: End) {
        assert_eq!(self.unsettled(), [] as [u64; 0], "ended with messages in flight");
        match end {
            End::Exit(ExitReason::Idle) => assert!(self.closing && !self.lost),
            End::Exit(ExitReason::Aborted) | End::Reconnect => assert!(self.killed),
            End::Exit(_) => assert!(self.closing || self.killed),
        }
        let tally = self.worker.tally();
        let fates = tally.done + tally.retried + tally.dead_lettered + tally.given_back;
        assert_eq!(fates, self.fates.len() as u64, "every message has exactly one fate");
        assert_eq!(tally.messages, fates);
        let acked = self.with(|fate| fate == Fate::Acked).len() as u64;
        let certain = tally.done + tally.retried + tally.dead_lettered;
        assert!(certain <= acked, "{certain} certain, {acked} acked");
        assert!(self.killed || certain == acked);
        self.ended = Some(end);
    }

    /// From any state: handlers come to their end, the broker answers, time passes.
    fn run_out(&mut self) {
        for _ in 0..200 {
            for step in [Move::Finish(0, Verdict::Done), Move::AnswerDepth(0), Move::Drain, Move::Close] {
                self.step(&step);
            }
            self.now = self.worker.wake_at().map_or(self.now, |at| at.max(self.now));
            self.step(&Move::Wait(0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_message_is_dropped_and_the_worker_ends(
        concurrency in 1..4_usize,
        spare in 0..4_u16,
        steps in prop::collection::vec(moves(), 0..200),
    ) {
        let prefetch = u16::try_from(concurrency).unwrap() + spare;
        let mut model = Model::new(Rules { concurrency, prefetch, ..RULES });
        for step in &steps {
            model.step(step);
        }
        model.run_out();
        prop_assert!(model.ended.is_some(), "still alive: {:?}", model.worker);
    }
}
