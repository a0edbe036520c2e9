//! Single rules as sentences; all orders of events are in `orders`.

mod orders;

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
    assert_eq!(worker.handle(Event::Tick, START + MS), []);
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
    let mut worker = Lifecycle::new(Rules { prefetch: 8, ..RULES }, Tally::default(), START);
    deliver(&mut worker, 1..=8);
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
fn acks_go_when_half_the_prefetch_is_done_or_fifty() {
    for (prefetch, batch) in [(8, 4), (100, 50), (1000, 50)] {
        let rules = Rules { concurrency: 1, prefetch, ..RULES };
        let mut worker = Lifecycle::new(rules, Tally::default(), START);
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
