//! All orders of events, against a model of broker and handlers that notices every broken promise.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use mayfly_service::ExitCode;

use super::*;
use crate::report::exit_code;

/// Something that broker, handlers, people or time do next.
#[derive(Debug, Clone)]
enum Move {
    Deliver { alone: bool },
    Finish(usize, Verdict),
    Wait(u64),
    AnswerDepth(u64, Option<Waiting>),
    Recycle,
    Drain,
    Close,
    Stop,
    Abort,
    Lose,
    Panic,
    AnswerLedger,
}

fn moves() -> impl Strategy<Value = Move> {
    let verdict = prop_oneof![
        6 => Just(Verdict::Done),
        1 => Just(Verdict::Known),
        1 => Just(Verdict::Retried),
        1 => Just(Verdict::Deferred),
        1 => Just(Verdict::DeadLettered),
        1 => Just(Verdict::Suspected),
        1 => Just(Verdict::Crashed),
        1 => Just(Verdict::Held(brake::Cause::Ledger)),
        1 => Just(Verdict::Held(brake::Cause::Failures)),
        1 => Just(Verdict::Interrupted),
        1 => Just(Verdict::Unfit(ExitReason::HandlerUnavailable)),
        1 => Just(Verdict::Unfit(ExitReason::Misconfigured)),
    ];
    prop_oneof![
        30 => prop::bool::weighted(0.1).prop_map(|alone| Move::Deliver { alone }),
        30 => (any::<usize>(), verdict).prop_map(|(index, verdict)| Move::Finish(index, verdict)),
        20 => prop_oneof![0..15_u64, 0..70_000_u64].prop_map(Move::Wait),
        10 => (0..2_u64, prop::option::of((0..2_u64, 0..2_u64))).prop_map(|(ready, suspects)| {
            let suspects = suspects.map(|(ready, consumers)| Waiting { ready, consumers });
            Move::AnswerDepth(ready, suspects)
        }),
        1 => Just(Move::Recycle),
        8 => Just(Move::Drain),
        8 => Just(Move::Close),
        2 => Just(Move::Stop),
        1 => Just(Move::Abort),
        1 => Just(Move::Lose),
        1 => Just(Move::Panic),
        3 => Just(Move::AnswerLedger),
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
#[expect(clippy::struct_excessive_bools, reason = "independent facts that any order of events may set")]
struct Model {
    worker: Lifecycle,
    rules: Rules,
    prefetch: u16,
    now: Duration,
    alone: BTreeSet<u64>,
    fates: BTreeMap<u64, Fate>,
    cancelled: bool,
    drained: bool,
    depth_asked: bool,
    draining_told: bool,
    closing: bool,
    killed: bool,
    lost: bool,
    ended: Option<End>,
}

impl Model {
    fn new(rules: Rules, course: Course, prefetch: Prefetch) -> Self {
        let (rules, count) = match course {
            Course::Queue => (rules, prefetch.current()),
            Course::Suspects => (Rules { concurrency: 1, ..rules }, 1),
        };
        Self {
            worker: Lifecycle::new(rules, course, true, Carry { prefetch, ..carry(1) }, START),
            rules,
            prefetch: count,
            now: START,
            alone: BTreeSet::new(),
            fates: BTreeMap::new(),
            cancelled: false,
            drained: false,
            depth_asked: false,
            draining_told: false,
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
            Move::Deliver { alone } => {
                let may =
                    !self.drained && !self.closing && self.unsettled().len() < usize::from(self.prefetch);
                let tag = self.fates.len() as u64 + 1;
                may.then(|| {
                    self.fates.insert(tag, Fate::Waiting);
                    self.alone.extend(alone.then_some(tag));
                    Event::Delivered { tag, alone }
                })
            }
            Move::Finish(index, verdict) => {
                let working = self.with(|fate| fate == Fate::Working);
                let tag = *working.get(index.checked_rem(working.len())?)?;
                let is_held = matches!(verdict, Verdict::Held(_));
                self.fates.insert(tag, if is_held { Fate::Waiting } else { Fate::Finished(verdict) });
                Some(finished(tag, verdict))
            }
            Move::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                Some(Event::Tick)
            }
            Move::AnswerDepth(ready, suspects) => {
                std::mem::take(&mut self.depth_asked).then_some(Event::Depth { ready, suspects })
            }
            Move::Recycle => Some(Event::Recycle),
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
            Move::Panic => Some(Event::Panicked),
            Move::AnswerLedger => Some(Event::LedgerAnswered),
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
            let idle_loop = event == Event::Tick && self.worker.wake_at().is_some_and(|at| at <= self.now);
            assert!(!idle_loop, "wakes up for nothing: {:?}", self.worker);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start { tag } => {
                assert_eq!(self.fates.insert(tag, Fate::Working), Some(Fate::Waiting), "{tag}");
                let working = self.with(|fate| fate == Fate::Working);
                assert!(working.len() <= self.rules.concurrency);
                assert!(working.len() == 1 || working.iter().all(|tag| !self.alone.contains(tag)));
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
                assert!(!self.depth_asked && !self.cancelled);
                self.depth_asked = true;
            }
            Command::Brake(_) => {}
            Command::TellDraining => {
                assert!(!std::mem::replace(&mut self.draining_told, true), "told twice");
            }
            Command::Cancel => assert!(!std::mem::replace(&mut self.cancelled, true), "cancelled twice"),
            Command::Interrupt => assert!(self.cancelled),
            Command::Finish { until } => {
                assert!(self.lost && self.rules.finishes_when_lost && !self.killed);
                assert!(self.now < until && until <= self.now + self.rules.grace);
                assert!(!self.with(|fate| fate == Fate::Working).is_empty());
            }
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
                Some(Fate::Finished(Verdict::Known)) => Settled::Known,
                Some(Fate::Finished(Verdict::Retried | Verdict::Deferred)) => Settled::Retried,
                Some(Fate::Finished(Verdict::DeadLettered)) => Settled::DeadLettered,
                Some(Fate::Finished(Verdict::Suspected | Verdict::Crashed)) => Settled::Suspected,
                other => panic!("acked {tag}, which was {other:?}"),
            };
            assert_eq!(settled, meaning);
        }
    }

    fn end(&mut self, end: End) {
        assert_eq!(self.unsettled(), [] as [u64; 0], "ended with messages in flight");
        match end {
            End::Exit(ExitReason::Idle) => assert!(self.closing && !self.lost),
            End::Exit(ExitReason::Aborted | ExitReason::Internal) | End::Reconnect => assert!(self.killed),
            End::Exit(_) => assert!(self.draining_told && (self.closing || self.killed)),
            End::Switch(_) => assert!(self.closing && !self.lost && !self.draining_told),
        }
        let tally = self.worker.carry().tally;
        let certain = tally.done + tally.known + tally.retried + tally.dead_lettered + tally.suspected;
        let fates = certain + tally.given_back;
        assert_eq!(fates, self.fates.len() as u64, "every message has exactly one fate");
        assert_eq!(tally.messages, fates);
        let acked = self.with(|fate| fate == Fate::Acked).len() as u64;
        assert!(certain <= acked, "{certain} certain, {acked} acked");
        assert!(self.killed || certain == acked);
        if let End::Exit(reason) = end
            && exit_code(reason) == ExitCode::Ok
        {
            // Who loses the connection when it had to go anyway does not make a fresh one.
            let is_cut_off = self.lost && matches!(reason, ExitReason::AskedToStop | ExitReason::Recycled);
            let is_all_settled = certain == acked && self.with(|fate| fate == Fate::Lost).is_empty();
            assert!(is_all_settled || is_cut_off, "{reason:?} with messages in flight");
        }
        self.ended = Some(end);
    }

    /// From any state: handlers come to their end, the broker answers, time passes.
    fn run_out(&mut self) {
        for _ in 0..200 {
            for step in [Move::Finish(0, Verdict::Done), Move::AnswerDepth(0, None), Move::Drain, Move::Close]
            {
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
        concurrency in 1..4_u16,
        spare in prop::option::of(0..4_u16),
        course in prop_oneof![3 => Just(Course::Queue), 1 => Just(Course::Suspects)],
        max_messages in prop::option::of(1..50_u64),
        max_lifetime in prop::option::of((100..10_000_u64).prop_map(Duration::from_secs)),
        finishes_when_lost: bool,
        steps in prop::collection::vec(moves(), 0..200),
    ) {
        let rules = Rules {
            concurrency: concurrency.into(),
            max_messages,
            max_lifetime,
            finishes_when_lost,
            ..RULES
        };
        let prefetch = match spare {
            Some(spare) => Prefetch::fixed(concurrency + spare),
            None => Prefetch::auto(concurrency, None),
        };
        let mut model = Model::new(rules, course, prefetch);
        for step in &steps {
            model.step(step);
        }
        model.run_out();
        prop_assert!(model.ended.is_some(), "still alive: {:?}", model.worker);
    }
}
