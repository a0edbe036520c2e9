//! Which outcome leads where.

use std::time::Duration;

use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldTable},
};

use super::*;

const CALM: Place = Place { course: Course::Queue, has_suspects: true, is_braked: false };
const ALONE: Place = Place { course: Course::Suspects, ..CALM };
const BRAKED: Place = Place { is_braked: true, ..CALM };

fn routes() -> Routes {
    Routes { topology: Topology::standard("q"), max_attempts: NonZeroU32::new(3).unwrap(), quarantine: None }
}

fn message(redelivered: bool, counts: &[(&str, i64)]) -> Message {
    let mut headers = FieldTable::default();
    for (name, count) in counts {
        headers.insert((*name).into(), AMQPValue::LongLongInt(*count));
    }
    let mut delivery = Delivery::mock(1, "".into(), "q".into(), redelivered, b"body".to_vec());
    delivery.properties = BasicProperties::default().with_message_id("id".into()).with_headers(headers);
    Message::from(delivery)
}

fn begun(attempt: i64) -> Message {
    message(false, &[(header::ATTEMPT, attempt)])
}

/// Where it goes, and what is written on it: attempt and deaths.
fn told(forward: Forward) -> (String, Verdict, u32, u32) {
    let Forward { message, verdict, .. } = forward;
    assert_eq!((message.message_id.as_str(), &message.body[..]), ("id", &b"body"[..]));
    let count = |name| message.count(name).unwrap_or(0);
    (message.queue.clone(), verdict, count(header::ATTEMPT), count(header::DEATHS))
}

fn after(message: &Message, outcome: Outcome, place: Place) -> (String, Verdict, u32, u32) {
    match routes().after(message, outcome, place) {
        Route::Settle(verdict) => (String::new(), verdict, message.attempt(), message.deaths()),
        Route::Forward(forward) => told(forward),
    }
}

fn to(queue: &str, verdict: Verdict, attempt: u32, deaths: u32) -> (String, Verdict, u32, u32) {
    (queue.to_owned(), verdict, attempt, deaths)
}

fn retry() -> Outcome {
    Outcome::retry("exit code 1")
}

fn reject() -> Outcome {
    Outcome::DeadLetter { reason: "exit code 65".to_owned() }
}

fn crash() -> Outcome {
    Outcome::Crashed { reason: "killed by signal 9".to_owned() }
}

#[test]
fn a_failed_message_climbs_the_ladder_until_its_attempts_are_used_up() {
    assert_eq!(after(&begun(0), retry(), CALM), to("q.retry.5s", Verdict::Retried, 1, 0));
    assert_eq!(after(&begun(1), retry(), CALM), to("q.retry.30s", Verdict::Retried, 2, 0));
    assert_eq!(after(&begun(2), retry(), CALM), to("q.dead", Verdict::DeadLettered, 3, 0));
    assert_eq!(after(&begun(i64::MAX), retry(), CALM), to("q.dead", Verdict::DeadLettered, u32::MAX, 0));
}

#[test]
fn a_handler_may_say_when_to_try_again() {
    for (seconds, queue) in [(1, "q.retry.5s"), (60, "q.retry.2m"), (86_400, "q.retry.10m")] {
        let after = Some(Duration::from_secs(seconds));
        let outcome = Outcome::Retry { reason: "busy".to_owned(), after };
        assert_eq!(super::tests::after(&begun(0), outcome, CALM), to(queue, Verdict::Retried, 1, 0));
    }
}

#[test]
fn what_can_never_succeed_is_dead_lettered_at_once() {
    assert_eq!(after(&begun(0), reject(), CALM), to("q.dead", Verdict::DeadLettered, 1, 0));
}

#[test]
fn what_is_done_or_interrupted_goes_nowhere_else() {
    assert_eq!(after(&begun(0), Outcome::Done, CALM), to("", Verdict::Done, 0, 0));
    assert_eq!(after(&begun(0), Outcome::Interrupted, CALM), to("", Verdict::Interrupted, 0, 0));
}

#[test]
fn while_message_after_message_fails_none_is_dead_lettered_and_no_try_counts_against_it() {
    assert_eq!(after(&begun(0), retry(), BRAKED), to("q.retry.5s", Verdict::Retried, 1, 0));
    assert_eq!(after(&begun(2), retry(), BRAKED), to("q.retry.10m", Verdict::Retried, 2, 0));
    assert_eq!(after(&begun(0), reject(), BRAKED), to("q.retry.10m", Verdict::Retried, 0, 0));
    let accused = message(false, &[(header::DEATHS, 2)]);
    let alone = Place { is_braked: true, ..ALONE };
    assert_eq!(after(&accused, crash(), alone), to("q.suspect", Verdict::Crashed, 0, 2));
}

#[test]
fn a_crash_among_others_sets_aside_and_a_crash_alone_accuses() {
    let accused = |deaths| message(false, &[(header::DEATHS, deaths)]);
    assert_eq!(after(&accused(1), crash(), CALM), to("q.suspect", Verdict::Crashed, 0, 1));
    assert_eq!(after(&accused(0), crash(), ALONE), to("q.suspect", Verdict::Crashed, 0, 1));
    assert_eq!(after(&accused(1), crash(), ALONE), to("q.suspect", Verdict::Crashed, 0, 2));
    assert_eq!(after(&accused(2), crash(), ALONE), to("q.dead", Verdict::DeadLettered, 3, 3));
    let without = Place { has_suspects: false, ..CALM };
    assert_eq!(after(&begun(0), crash(), without), to("q.retry.5s", Verdict::Retried, 1, 0));
}

#[test]
fn what_came_back_is_set_aside_before_any_work() {
    let before = |message: &Message, place| routes().before(message, place).map(told);
    let came_back = |deaths| message(true, &[(header::DEATHS, deaths)]);
    assert_eq!(before(&begun(0), CALM), None);
    assert_eq!(before(&came_back(0), CALM), Some(to("q.suspect", Verdict::Suspected, 0, 0)));
    assert_eq!(before(&came_back(1), ALONE), Some(to("q.suspect", Verdict::Suspected, 0, 2)));
    assert_eq!(before(&came_back(2), ALONE), Some(to("q.dead", Verdict::DeadLettered, 3, 3)));
    let retried = message(true, &[(header::ATTEMPT, 1), (header::DEATHS, 2)]);
    assert_eq!(before(&retried, ALONE), Some(to("q.dead", Verdict::DeadLettered, 4, 3)));
}

#[test]
fn a_quarantine_queue_takes_what_brought_down_its_workers_and_counts_anew() {
    let routes = Routes { quarantine: Some("q.large".to_owned()), ..routes() };
    let forward = routes.before(&message(true, &[(header::ATTEMPT, 1), (header::DEATHS, 2)]), ALONE).unwrap();
    assert_eq!(told(forward), to("q.large", Verdict::DeadLettered, 1, 0));
}

#[test]
fn what_is_written_on_a_message_tells_people_why_it_is_where_it_is() {
    let written = |route| {
        let Route::Forward(Forward { message, reason, .. }) = route else { panic!("{route:?}") };
        assert_eq!(message.text_header(header::ERROR), Some(reason.clone()));
        (message.queue.clone(), message.text_header(header::REASON), reason)
    };
    let told = |queue: &str, why: Option<&str>, reason: &str| {
        (queue.to_owned(), why.map(str::to_owned), reason.to_owned())
    };
    let cases = [
        (begun(0), retry(), CALM, told("q.retry.5s", None, "exit code 1")),
        (begun(2), retry(), CALM, told("q.dead", Some("attempts"), "exit code 1")),
        (begun(0), reject(), CALM, told("q.dead", Some("rejected"), "exit code 65")),
        (begun(0), reject(), BRAKED, told("q.retry.10m", None, "exit code 65")),
        (begun(0), crash(), CALM, told("q.suspect", None, "killed by signal 9")),
        (
            message(false, &[(header::DEATHS, 2)]),
            crash(),
            ALONE,
            told("q.dead", Some("suspect"), "killed by signal 9"),
        ),
    ];
    for (message, outcome, place, expected) in cases {
        assert_eq!(written(routes().after(&message, outcome, place)), expected);
    }
}

#[test]
fn what_somebody_else_works_on_waits_where_it_comes_back_from_and_nothing_is_counted() {
    let message = message(false, &[(header::ATTEMPT, 1), (header::DEATHS, 2)]);
    let deferred = |course| routes().deferred(&message, course).map(told);
    assert_eq!(deferred(Course::Queue), Some(to("q.retry.5s", Verdict::Deferred, 1, 2)));
    assert_eq!(deferred(Course::Suspects), Some(to("q.suspect", Verdict::Deferred, 1, 2)));
    let back = routes().back_to_suspects(&message);
    assert_eq!((back.queue.as_str(), back.count(header::DEATHS)), ("q.suspect", Some(2)));
}

/// What is left of a forward that never fits: where it goes, its verdict and its headers, try after try.
fn tries(mut forward: Forward) -> Vec<(String, Verdict, Vec<&'static str>)> {
    let names = [header::ATTEMPT, header::DEATHS, header::ERROR, header::REASON, "own"];
    let mut tries = Vec::new();
    loop {
        let message = &forward.message;
        let has = |name: &str| message.text_header(name).is_some() || message.count(name).is_some();
        tries.push((
            message.queue.clone(),
            forward.verdict,
            names.into_iter().filter(|it| has(it)).collect(),
        ));
        if !routes().shrink(&mut forward) {
            return tries;
        }
    }
}

#[test]
fn what_does_not_fit_into_a_frame_becomes_smaller_until_the_dead_letter_queue_can_have_it() {
    use Verdict::{DeadLettered, Retried, Suspected};
    let (attempt, deaths, error, reason) = (header::ATTEMPT, header::DEATHS, header::ERROR, header::REASON);
    let at = |queue: &str, verdict, headers: &[&'static str]| (queue.to_owned(), verdict, headers.to_vec());
    let own = message(false, &[("own", 1)]);
    let Route::Forward(failed) = routes().after(&own, retry(), CALM) else { panic!() };
    assert_eq!(
        tries(failed),
        [
            at("q.retry.5s", Retried, &[attempt, error, "own"]),
            at("q.retry.5s", Retried, &[attempt, "own"]),
            at("q.dead", DeadLettered, &[attempt, error, reason, "own"]),
            at("q.dead", DeadLettered, &[attempt, reason, "own"]),
            at("q.dead", DeadLettered, &["own"]),
            at("q.dead", DeadLettered, &[error, reason]),
            at("q.dead", DeadLettered, &[reason]),
            at("q.dead", DeadLettered, &[]),
        ]
    );
    let set_aside = tries(routes().before(&message(true, &[("own", 1)]), CALM).unwrap());
    assert_eq!(set_aside[1], at("q.suspect", Suspected, &[deaths, "own"]));
    assert_eq!(set_aside[2], at("q.dead", DeadLettered, &[deaths, error, reason, "own"]));
    let deferred = tries(routes().deferred(&own, Course::Queue).unwrap());
    assert_eq!(deferred, [at("q.retry.5s", Verdict::Deferred, &["own"])], "somebody else may be doing it");
}

#[test]
fn only_in_the_dead_letter_queue_nothing_is_added_to_a_message() {
    let Route::Forward(retried) = routes().after(&begun(0), retry(), CALM) else { panic!() };
    let Route::Forward(dead) = routes().after(&begun(0), reject(), CALM) else { panic!() };
    assert_eq!((routes().spare(&retried), routes().spare(&dead)), (SPARE, 0));
}

#[test]
fn a_reason_is_one_line_of_bounded_length() {
    let line = bounded(&"\u{1F980}\n".repeat(1000));
    assert!(line.len() <= REASON_LIMIT && !line.contains('\n'));
}
