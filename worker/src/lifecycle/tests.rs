//! Single rules as sentences; all orders of events are in `orders`.

mod orders;

use super::*;
use crate::{prefetch::Prefetch, tally::Tally};

const RULES: Rules = Rules {
    concurrency: 2,
    max_idle: Duration::from_secs(20),
    grace: Duration::from_secs(30),
    max_messages: None,
    max_lifetime: None,
    finishes_when_lost: false,
    jitter: 0.0,
};
const START: Duration = Duration::from_secs(100);
const MS: Duration = Duration::from_millis(1);

fn carry(prefetch: u16) -> Carry {
    Carry {
        tally: Tally::default(),
        brake: Brake::default(),
        prefetch: Prefetch::fixed(prefetch),
        quiet_since: None,
        fruitless_looks: 0,
    }
}

fn lifecycle() -> Lifecycle {
    Lifecycle::new(RULES, Course::Queue, false, carry(4), START)
}

fn finished(tag: u64, verdict: Verdict) -> Event {
    Event::Finished { tag, verdict, busy: MS, message: tag }
}

fn delivered(tag: u64) -> Event {
    Event::Delivered { tag, alone: false }
}

fn depth(ready: u64) -> Event {
    Event::Depth { ready, suspects: None }
}

fn deliver(lifecycle: &mut Lifecycle, tags: std::ops::RangeInclusive<u64>) {
    for tag in tags {
        lifecycle.handle(delivered(tag), START);
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
    assert_eq!(worker.handle(Event::Tick, START + MS), []);
    assert_eq!(worker.handle(Event::Tick, now), [Command::AskDepth]);
    assert_eq!(worker.handle(depth(0), now), [Command::TellDraining, Command::Cancel]);
    assert_eq!(worker.handle(Event::Drained, now), [Command::Close]);
    assert_eq!(worker.handle(Event::Closed, now), [Command::End(End::Exit(ExitReason::Idle))]);
    assert_eq!(worker.carry().tally.idle, RULES.max_idle);
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
    worker.handle(depth(0), now);
    assert_eq!(worker.handle(delivered(1), now), [Command::Start { tag: 1 }]);
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
        let commands = worker.handle(depth(9), now);
        assert_eq!(commands, if look < 3 { vec![] } else { vec![Command::TellDraining, Command::Cancel] });
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
        assert_eq!(worker.handle(depth(9), now), []);
        worker.handle(delivered(tag), now);
        worker.handle(finished(tag, Verdict::Done), now);
    }
}

#[test]
fn acks_wait_a_little_for_others_while_all_handlers_are_busy() {
    let mut worker = Lifecycle::new(RULES, Course::Queue, false, carry(8), START);
    deliver(&mut worker, 1..=8);
    assert_eq!(acks(&worker.handle(finished(1, Verdict::Done), START)), []);
    assert_eq!(worker.wake_at(), Some(START + Outstanding::LINGER));
    assert_eq!(acks(&worker.handle(finished(2, Verdict::Done), START + MS)), []);
    assert_eq!(acks(&worker.handle(Event::Tick, START + Outstanding::LINGER)), [(2, true)]);
}

#[test]
fn acks_go_at_once_when_a_handler_is_free_but_not_one_after_the_other() {
    let mut worker = Lifecycle::new(RULES, Course::Queue, false, carry(8), START);
    deliver(&mut worker, 1..=2);
    assert_eq!(acks(&worker.handle(finished(2, Verdict::Done), START)), [(2, false)]);
    assert_eq!(acks(&worker.handle(finished(1, Verdict::Retried), START + MS)), []);
    worker.handle(delivered(3), START + 2 * MS);
    assert_eq!(acks(&worker.handle(finished(3, Verdict::Done), START + 3 * MS)), []);
    let lingered = START + MS + Outstanding::LINGER;
    assert_eq!(worker.wake_at(), Some(lingered));
    assert_eq!(acks(&worker.handle(Event::Tick, lingered)), [(3, true)]);
    worker.handle(delivered(4), lingered + Outstanding::LINGER);
    let calm = lingered + Outstanding::LINGER;
    assert_eq!(acks(&worker.handle(finished(4, Verdict::Done), calm)), [(4, false)]);
}

#[test]
fn acks_go_at_once_when_the_broker_delivers_nothing_without_them() {
    let rules = Rules { concurrency: 6, ..RULES };
    let mut worker = Lifecycle::new(rules, Course::Queue, false, carry(6), START);
    deliver(&mut worker, 1..=6);
    assert_eq!(acks(&worker.handle(finished(1, Verdict::Done), START)), [(1, false)]);
    worker.handle(delivered(7), START);
    assert_eq!(acks(&worker.handle(finished(2, Verdict::Done), START + MS)), [(2, false)]);
}

#[test]
fn acks_go_when_half_the_prefetch_is_done_or_fifty() {
    for (prefetch, batch) in [(8, 4), (100, 50), (1000, 50)] {
        let rules = Rules { concurrency: 1, ..RULES };
        let mut worker = Lifecycle::new(rules, Course::Queue, false, carry(prefetch), START);
        deliver(&mut worker, 1..=prefetch.into());
        for tag in 1..batch {
            assert_eq!(acks(&worker.handle(finished(tag, Verdict::Done), START)), []);
        }
        assert_eq!(acks(&worker.handle(finished(batch, Verdict::Done), START)), [(batch, true)]);
    }
}

#[test]
fn asked_to_stop_it_gives_back_what_has_not_started_and_finishes_the_rest() {
    let mut worker = lifecycle();
    deliver(&mut worker, 1..=4);
    assert_eq!(worker.handle(Event::Stop, START), [Command::TellDraining, Command::Cancel]);
    assert_eq!(
        worker.handle(Event::Drained, START),
        [Command::GiveBack { tag: 3 }, Command::GiveBack { tag: 4 }],
        "not before the cancel has drained, else they would come straight back"
    );
    worker.handle(finished(1, Verdict::Done), START);
    let commands = worker.handle(finished(2, Verdict::Done), START);
    assert_eq!(commands.last(), Some(&Command::Close));
    assert_eq!(worker.handle(Event::Closed, START), [Command::End(End::Exit(ExitReason::AskedToStop))]);
    let tally = worker.carry().tally;
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
    assert_eq!(worker.handle(finished(1, unfit), START), [Command::TellDraining, Command::Cancel]);
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
    assert_eq!(worker.carry().tally.given_back, 3);
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
    worker.handle(depth(0), now);
    assert_eq!(worker.handle(Event::Drained, now), [Command::Close]);
    assert_eq!(worker.handle(Event::Lost, now).last(), Some(&Command::End(End::Reconnect)));
    assert_eq!((worker.carry().tally.done, worker.carry().tally.given_back), (0, 1));
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

mod suspects {
    //! Messages that may have brought down a worker.

    use super::*;

    fn with_suspects(course: Course, carry: Carry) -> Lifecycle {
        let quiet_since = carry.quiet_since.or(Some(START));
        Lifecycle::new(RULES, course, true, Carry { quiet_since, ..carry }, START)
    }

    #[test]
    fn on_a_fresh_connection_it_looks_soon() {
        let worker = Lifecycle::new(RULES, Course::Queue, true, carry(4), START);
        assert_eq!(worker.wake_at(), Some(START + SOON));
    }

    fn waiting(ready: u64, consumers: u64) -> Event {
        Event::Depth { ready: 0, suspects: Some(Waiting { ready, consumers }) }
    }

    #[test]
    fn a_worker_with_work_looks_for_suspects_and_goes_there_with_nothing_in_work() {
        let mut worker = with_suspects(Course::Queue, carry(2));
        deliver(&mut worker, 1..=2);
        let look = START + LOOK;
        assert_eq!(worker.wake_at(), Some(look));
        assert_eq!(worker.handle(Event::Tick, look), [Command::AskDepth]);
        assert_eq!(worker.handle(waiting(1, 0), look), [Command::Cancel], "and it is not told as draining");
        assert_eq!(worker.handle(Event::Drained, look), []);
        worker.handle(finished(1, Verdict::Done), look);
        assert_eq!(worker.handle(finished(2, Verdict::Done), look).last(), Some(&Command::Close));
        assert_eq!(worker.handle(Event::Closed, look), [Command::End(End::Switch(Course::Suspects))]);
    }

    #[test]
    fn who_has_work_leaves_suspects_to_those_who_are_at_them_already() {
        for (ready, consumers, goes) in [(10, 1, false), (11, 1, true), (1, 0, true), (0, 0, false)] {
            let mut worker = with_suspects(Course::Queue, carry(1));
            deliver(&mut worker, 1..=1);
            worker.handle(Event::Tick, START + LOOK);
            let commands = worker.handle(waiting(ready, consumers), START + LOOK);
            assert_eq!(!commands.is_empty(), goes, "{ready} {consumers}");
        }
    }

    #[test]
    fn who_leaves_for_suspects_does_so_while_no_delivery_is_under_way() {
        let look = START + LOOK;
        let asked = || {
            let mut worker = with_suspects(Course::Queue, carry(4));
            deliver(&mut worker, 1..=3);
            worker.handle(Event::Tick, look);
            assert_eq!(worker.handle(waiting(1, 0), look), [], "one may be on its way");
            worker
        };
        assert_eq!(asked().handle(delivered(4), look), [Command::Cancel]);
        assert_eq!(asked().wake_at(), Some(look + LOOK));
        assert_eq!(asked().handle(Event::Tick, look + LOOK), [Command::Cancel], "or after a while");
    }

    #[test]
    fn an_idle_worker_helps_with_suspects_before_it_ends() {
        let mut worker = with_suspects(Course::Queue, carry(4));
        let now = START + RULES.max_idle;
        worker.handle(Event::Tick, now);
        assert_eq!(worker.handle(waiting(1, 1), now), [Command::Cancel]);
        worker.handle(Event::Drained, now);
        assert_eq!(worker.handle(Event::Closed, now), [Command::End(End::Switch(Course::Suspects))]);
    }

    #[test]
    fn suspects_are_taken_one_by_one_until_none_is_left() {
        let mut worker = with_suspects(Course::Suspects, carry(4));
        for tag in 1..=3 {
            assert_eq!(worker.handle(delivered(tag), START), [Command::Start { tag }]);
            assert_eq!(acks(&worker.handle(finished(tag, Verdict::Done), START)), [(tag, false)]);
        }
        let now = START + SUSPECTS_IDLE;
        assert_eq!(worker.handle(Event::Tick, now), [Command::AskDepth]);
        assert_eq!(worker.handle(depth(0), now), [Command::Cancel]);
        worker.handle(Event::Drained, now);
        assert_eq!(worker.handle(Event::Closed, now), [Command::End(End::Switch(Course::Queue))]);
        assert_eq!(worker.carry().quiet_since, Some(START), "its idle time counts from the last suspect");
    }

    #[test]
    fn a_visit_that_found_no_suspect_does_not_make_a_worker_live_longer() {
        let quiet_since = Some(Duration::from_secs(85));
        let mut worker = with_suspects(Course::Suspects, Carry { quiet_since, ..carry(4) });
        let now = START + SUSPECTS_IDLE;
        worker.handle(Event::Tick, now);
        worker.handle(depth(0), now);
        worker.handle(Event::Drained, now);
        worker.handle(Event::Closed, now);
        assert_eq!(worker.carry().quiet_since, quiet_since);
        let worker = with_suspects(Course::Queue, worker.carry().clone());
        assert_eq!(idle_at(&worker), START + Duration::from_secs(5));
    }

    #[test]
    fn suspects_that_never_come_starve_a_worker_as_other_messages_do() {
        let mut carried = carry(4);
        let mut now = START;
        for visit in 0..9 {
            let mut worker = Lifecycle::new(RULES, Course::Queue, true, carried, now);
            now = worker.idle_at();
            worker.handle(Event::Tick, now);
            let commands = worker.handle(waiting(1, 0), now);
            worker.handle(Event::Drained, now);
            let end = worker.handle(Event::Closed, now);
            if end == [Command::End(End::Exit(ExitReason::Starved))] {
                assert_eq!((visit, commands.first()), (3, Some(&Command::TellDraining)));
                return;
            }
            let mut visitor = Lifecycle::new(RULES, Course::Suspects, true, worker.carry().clone(), now);
            now = visitor.idle_at();
            visitor.handle(Event::Tick, now);
            visitor.handle(depth(1), now);
            visitor.handle(Event::Drained, now);
            visitor.handle(Event::Closed, now);
            carried = visitor.carry().clone();
        }
        panic!("it goes back and forth for ever");
    }

    #[test]
    fn where_no_queue_sets_them_aside_each_is_worked_on_with_nothing_else_in_work() {
        let mut worker = lifecycle();
        deliver(&mut worker, 1..=1);
        assert_eq!(worker.handle(Event::Delivered { tag: 2, alone: true }, START), []);
        deliver(&mut worker, 3..=4);
        let starts = |commands: Vec<Command>| {
            commands.into_iter().filter(|it| matches!(it, Command::Start { .. })).collect::<Vec<_>>()
        };
        assert_eq!(starts(worker.handle(finished(1, Verdict::Done), START)), [Command::Start { tag: 2 }]);
        assert_eq!(
            starts(worker.handle(finished(2, Verdict::Done), START)),
            [Command::Start { tag: 3 }, Command::Start { tag: 4 }]
        );
    }
}

mod holding {
    //! Times in which nothing or not everything begins.

    use super::*;

    #[test]
    fn while_message_after_message_fails_one_is_tried_at_a_time_and_then_all_begin_again() {
        let mut worker = Lifecycle::new(RULES, Course::Queue, false, carry(20), START);
        deliver(&mut worker, 1..=14);
        for tag in 1..=9 {
            worker.handle(finished(tag, Verdict::Retried), START);
        }
        let commands = worker.handle(finished(10, Verdict::Retried), START);
        assert_eq!(commands.first(), Some(&Command::Brake(Some(brake::Cause::Failures))));
        worker.handle(finished(11, Verdict::Retried), START);
        worker.handle(Event::Tick, START + Outstanding::LINGER);
        let again = worker.wake_at().unwrap();
        assert!(again > START);
        assert_eq!(worker.handle(Event::Tick, again), [Command::Start { tag: 12 }]);
        let commands = worker.handle(finished(12, Verdict::Done), again);
        assert_eq!(
            commands[..3],
            [Command::Brake(None), Command::Start { tag: 13 }, Command::Start { tag: 14 },]
        );
    }

    #[test]
    fn a_message_that_cannot_begin_yet_waits_with_us_before_the_others() {
        let mut worker = lifecycle();
        deliver(&mut worker, 1..=3);
        let held = Verdict::Held(brake::Cause::Ledger);
        assert_eq!(worker.handle(finished(1, held), START), [Command::Brake(Some(brake::Cause::Ledger))]);
        worker.handle(finished(2, Verdict::Retried), START);
        let again = worker.wake_at().unwrap();
        assert_eq!(worker.handle(Event::Tick, again), [Command::Start { tag: 1 }]);
    }

    #[test]
    fn a_worker_that_could_not_work_for_five_minutes_gives_up_and_gives_back() {
        let mut worker = lifecycle();
        deliver(&mut worker, 1..=1);
        let mut now = START;
        let end = START + Duration::from_mins(5);
        loop {
            worker.handle(finished(1, Verdict::Held(brake::Cause::Ledger)), now);
            now = worker.wake_at().unwrap();
            if worker.handle(Event::Tick, now).contains(&Command::Cancel) {
                break;
            }
        }
        assert_eq!(now, end);
        assert_eq!(worker.handle(Event::Drained, now), [Command::GiveBack { tag: 1 }, Command::Close]);
        assert_eq!(worker.handle(Event::Closed, now), [Command::End(End::Exit(ExitReason::GaveUp))]);
    }
}

mod recycling {
    //! Making room for a fresh worker.

    use super::*;

    #[test]
    fn after_so_many_messages_it_finishes_what_it_has_and_ends() {
        let rules = Rules { max_messages: Some(2), ..RULES };
        let mut worker = Lifecycle::new(rules, Course::Queue, false, carry(4), START);
        deliver(&mut worker, 1..=1);
        assert_eq!(
            worker.handle(delivered(2), START),
            [Command::TellDraining, Command::Cancel, Command::Start { tag: 2 }]
        );
        worker.handle(delivered(3), START);
        worker.handle(Event::Drained, START);
        for tag in 1..=3 {
            worker.handle(finished(tag, Verdict::Done), START);
        }
        assert_eq!(worker.handle(Event::Closed, START), [Command::End(End::Exit(ExitReason::Recycled))]);
    }

    #[test]
    fn at_its_age_or_when_its_memory_is_used_up_it_takes_nothing_more() {
        let old = START + Duration::from_secs(5);
        let rules = Rules { max_lifetime: Some(old), ..RULES };
        let mut worker = Lifecycle::new(rules, Course::Queue, false, carry(4), START);
        assert_eq!(worker.wake_at(), Some(old));
        assert_eq!(worker.handle(Event::Tick, old), [Command::TellDraining, Command::Cancel]);
        assert_eq!(lifecycle().handle(Event::Recycle, START), [Command::TellDraining, Command::Cancel]);
    }
}

mod prefetching {
    //! Holding as many messages as the work wants.

    use super::*;

    #[test]
    fn short_work_brings_a_larger_prefetch_on_a_fresh_channel() {
        let carried = Carry { prefetch: Prefetch::auto(2, None), ..carry(1) };
        let mut worker = Lifecycle::new(RULES, Course::Queue, false, carried, START);
        for tag in 1..=30 {
            worker.handle(delivered(tag), START);
            let commands = worker.handle(finished(tag, Verdict::Done), START);
            assert!(!commands.contains(&Command::Cancel), "it holds less than it may");
        }
        worker.handle(delivered(31), START);
        assert_eq!(worker.handle(delivered(32), START)[0], Command::Cancel);
        worker.handle(finished(31, Verdict::Done), START);
        worker.handle(finished(32, Verdict::Done), START);
        worker.handle(Event::Drained, START);
        assert_eq!(worker.handle(Event::Closed, START), [Command::End(End::Switch(Course::Queue))]);
        assert_eq!(worker.carry().prefetch.current(), 100);
    }

    #[test]
    fn when_work_gets_longer_what_has_not_begun_goes_back_to_others() {
        let carried = Carry { prefetch: Prefetch::auto(1, Some(MS)), ..carry(1) };
        let mut worker =
            Lifecycle::new(Rules { concurrency: 1, ..RULES }, Course::Queue, false, carried, START);
        deliver(&mut worker, 1..=50);
        let mut commands = Vec::new();
        for tag in 1.. {
            let verdict = Verdict::Done;
            let busy = Duration::from_secs(1);
            commands = worker.handle(Event::Finished { tag, verdict, busy, message: tag }, START);
            if commands.contains(&Command::Cancel) {
                break;
            }
        }
        assert!(!commands.iter().any(|it| matches!(it, Command::Start { .. })));
        let given_back = worker.handle(Event::Drained, START);
        assert_eq!(given_back.iter().filter(|it| matches!(it, Command::GiveBack { .. })).count(), 30);
    }
}
