//! One message from its start to a verdict: handler, then a companion queue where it failed.

use std::{num::NonZeroU32, time::Duration};

use mayfly_broker::{Message, Topology};
use mayfly_service::{crash::crash_point, report::ExitReason};
use tokio::time::Instant;

use crate::{
    forward::Forwarder,
    handler::{CannotStart, Context, Handler, Interrupt, Outcome},
    lifecycle::Verdict,
    route::{Route, route},
};

/// What all messages share.
#[derive(Debug)]
pub(crate) struct Attendant<H> {
    pub(crate) handler: H,
    pub(crate) topology: Topology,
    pub(crate) max_attempts: NonZeroU32,
    /// How long a message may take in its handler.
    pub(crate) timeout: Option<Duration>,
    pub(crate) forwarder: Forwarder,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Attended {
    pub(crate) tag: u64,
    pub(crate) verdict: Verdict,
    /// Time spent in the handler.
    pub(crate) busy: Duration,
    /// What goes into the exit report when the verdict is `Unfit`.
    pub(crate) detail: Option<String>,
}

/// From the end of a message's time until its handler is told to end at once.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a handler may take then, before it is dropped.
const KILL_LIMIT: Duration = Duration::from_secs(10);

// === impl Attendant ===

impl<H: Handler> Attendant<H> {
    pub(crate) async fn attend(&self, message: Message, interrupt: Interrupt) -> Attended {
        let tag = message.tag;
        let begun = Instant::now();
        let outcome = self.handled(&message, &interrupt).await;
        let busy = begun.elapsed();
        crash_point("after-handler");
        let (verdict, detail) = match outcome {
            Err(error) => (Verdict::Unfit(ExitReason::HandlerUnavailable), Some(error.to_string())),
            Ok(outcome) => match route(&message, outcome, self.max_attempts, &self.topology) {
                Route::Settle(verdict) => (verdict, None),
                Route::Forward { message: outgoing, verdict, reason } => {
                    let id = message.id().unwrap_or_default();
                    tracing::info!(id, queue = outgoing.queue, reason, "message failed");
                    tokio::select! {
                        published = self.forwarder.publish(&outgoing) => match published {
                            Ok(()) => {
                                crash_point("after-retry-publish");
                                (verdict, None)
                            }
                            Err(error) => {
                                let detail = mayfly_service::chain(&error);
                                (Verdict::Unfit(ExitReason::Misconfigured), Some(detail))
                            }
                        },
                        () = interrupt.asked() => (Verdict::Interrupted, None),
                    }
                }
            },
        };
        Attended { tag, verdict, busy, detail }
    }

    /// The handler's outcome, within the message's time.
    async fn handled(&self, message: &Message, interrupt: &Interrupt) -> Result<Outcome, CannotStart> {
        let attempt = message.attempt().saturating_add(1);
        let Some(timeout) = self.timeout else {
            let context = Context::new(attempt, None, interrupt.clone());
            return self.handler.handle(message, &context).await;
        };
        let deadline = Instant::now() + timeout;
        let context = Context::new(attempt, Some(deadline), interrupt.child());
        let handling = self.handler.handle(message, &context);
        tokio::pin!(handling);
        if let Ok(outcome) = tokio::time::timeout_at(deadline, &mut handling).await {
            return outcome;
        }
        context.interrupt.end.cancel();
        let outcome = if let Ok(outcome) = tokio::time::timeout(LAST_WORDS, &mut handling).await {
            outcome?
        } else {
            context.interrupt.kill.cancel();
            let ended = tokio::time::timeout(KILL_LIMIT, handling).await;
            ended.unwrap_or(Ok(Outcome::Interrupted))?
        };
        Ok(match outcome {
            Outcome::Interrupted if !interrupt.is_asked() => {
                Outcome::retry(format!("took longer than {}", humantime::format_duration(timeout)))
            }
            outcome => outcome,
        })
    }
}

#[cfg(test)]
mod tests {
    use lapin::message::Delivery;

    use super::*;

    /// Ends in its own time when asked to, or never.
    struct Slow {
        ends: bool,
    }

    impl Handler for Slow {
        async fn handle(&self, _message: &Message, context: &Context) -> Result<Outcome, CannotStart> {
            if self.ends {
                context.interrupt.asked().await;
                return Ok(Outcome::Interrupted);
            }
            std::future::pending().await
        }
    }

    async fn attended(ends: bool, interrupt: Interrupt) -> Outcome {
        let attendant = Attendant {
            handler: Slow { ends },
            topology: Topology::standard("q"),
            max_attempts: NonZeroU32::MIN,
            timeout: Some(Duration::from_secs(90)),
            forwarder: Forwarder::new("amqp://localhost".parse().unwrap(), String::new(), Duration::ZERO),
        };
        let message = Message::from(Delivery::mock(1, "".into(), "q".into(), false, Vec::new()));
        attendant.handled(&message, &interrupt).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_whose_time_is_over_is_tried_again_even_if_its_handler_is_deaf() {
        for ends in [true, false] {
            let late = Outcome::retry("took longer than 1m 30s");
            assert_eq!(attended(ends, Interrupt::default()).await, late, "{ends}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_interrupted_before_its_time_is_over_has_not_failed() {
        let interrupt = Interrupt::default();
        interrupt.end.cancel();
        assert_eq!(attended(true, interrupt).await, Outcome::Interrupted);
    }
}
