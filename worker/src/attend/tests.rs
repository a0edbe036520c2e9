//! A message's time, and what its handler gets to know.

use std::{num::NonZeroU32, sync::Mutex};

use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldTable},
};
use mayfly_broker::{Topology, header};

use super::*;

/// What a handler waits for.
#[derive(Debug, Clone, Copy)]
enum Until {
    Nothing,
    AskedToEnd,
    AskedToEndAtOnce,
    Never,
}

struct Waiting {
    until: Until,
    /// The attempt, and whether the message may have been begun before.
    seen: Mutex<Option<(u32, bool)>>,
}

impl Handler for Waiting {
    async fn handle(&self, message: &Message, context: &Context) -> Result<Outcome, CannotStart> {
        *self.seen.lock().unwrap() = Some((context.attempt, message.redelivered));
        match self.until {
            Until::Nothing => return Ok(Outcome::Done),
            Until::AskedToEnd => context.interrupt.end.cancelled().await,
            Until::AskedToEndAtOnce => context.interrupt.kill.cancelled().await,
            Until::Never => std::future::pending().await,
        }
        Ok(Outcome::Interrupted)
    }
}

const TIMEOUT: Duration = Duration::from_secs(90);

fn attendant(until: Until) -> Attendant<Waiting> {
    Attendant {
        handler: Waiting { until, seen: Mutex::default() },
        routes: Routes { topology: Topology::standard("q"), max_attempts: NonZeroU32::MIN, quarantine: None },
        timeout: Some(TIMEOUT),
        forwarder: Forwarder::new("amqp://localhost".parse().unwrap(), String::new(), Duration::ZERO),
        is_braked: AtomicBool::new(false),
        custody: None,
    }
}

fn message(attempt: i64) -> Message {
    let mut headers = FieldTable::default();
    headers.insert(header::ATTEMPT.into(), AMQPValue::LongLongInt(attempt));
    let mut delivery = Delivery::mock(1, "".into(), "q".into(), false, Vec::new());
    delivery.properties = BasicProperties::default().with_headers(headers);
    Message::from(delivery)
}

async fn attended(until: Until, interrupt: &Interrupt) -> Outcome {
    attendant(until).handled(&message(0), interrupt, Offer::None).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_time_is_over_is_tried_again_even_if_its_handler_is_deaf() {
    let steps = [
        (Until::AskedToEnd, TIMEOUT),
        (Until::AskedToEndAtOnce, TIMEOUT + LAST_WORDS),
        (Until::Never, TIMEOUT + LAST_WORDS + KILL_LIMIT),
    ];
    for (until, time) in steps {
        let (begun, others) = (Instant::now(), Interrupt::default());
        assert_eq!(attended(until, &others).await, Outcome::retry("took longer than 1m 30s"), "{until:?}");
        // The clock is a paused one: exact.
        assert_eq!(begun.elapsed().as_secs(), time.as_secs(), "{until:?}");
        assert!(!others.is_asked(), "other messages go on");
    }
}

/// Whoever waits for it would wait until kill -9.
#[tokio::test(start_paused = true)]
async fn a_deaf_handler_whose_time_is_not_limited_ends_some_time_after_it_was_asked_to() {
    for (until, asked, time) in [
        (Until::AskedToEnd, "end", Duration::ZERO),
        (Until::AskedToEndAtOnce, "end", LAST_WORDS),
        (Until::Never, "end", LAST_WORDS + KILL_LIMIT),
        (Until::AskedToEndAtOnce, "kill", Duration::ZERO),
        (Until::Never, "kill", KILL_LIMIT),
    ] {
        let attendant = Attendant { timeout: None, ..attendant(until) };
        let (begun, interrupt) = (Instant::now(), Interrupt::default());
        let token = if asked == "end" { &interrupt.end } else { &interrupt.kill };
        token.cancel();
        let outcome = attendant.handled(&message(0), &interrupt, Offer::None).await;
        assert_eq!(outcome, Ok(Outcome::Interrupted), "{until:?} {asked}");
        assert_eq!(begun.elapsed().as_secs(), time.as_secs(), "{until:?} {asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_interrupted_before_its_time_is_over_has_not_failed() {
    let interrupt = Interrupt::default();
    interrupt.end.cancel();
    assert_eq!(attended(Until::AskedToEnd, &interrupt).await, Outcome::Interrupted);
}

#[tokio::test]
async fn a_handler_learns_which_try_it_is_and_that_a_suspect_may_have_been_begun_before() {
    for (course, attempt) in [(Course::Queue, 0), (Course::Suspects, 2)] {
        let attendant = attendant(Until::Nothing);
        let site = Site {
            course,
            has_suspects: true,
            interrupt: Interrupt::default(),
            unclaimed: Interrupt::default(),
        };
        let attended = attendant.attend(message(attempt), site).await;
        assert_eq!(attended.verdict, Verdict::Done);
        assert!(!attended.message.redelivered, "what is given back is as it came");
        let seen = *attendant.handler.seen.lock().unwrap();
        assert_eq!(seen, Some((u32::try_from(attempt).unwrap() + 1, course == Course::Suspects)));
    }
}
