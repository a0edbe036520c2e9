//! One message from its start to a verdict: set aside, or handled and then forwarded where it failed.

mod custody;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use mayfly_broker::{Error, Message};
use mayfly_service::{chain, crash::crash_point, report::ExitReason};
use tokio::time::Instant;

use self::custody::Hold;
use crate::{
    brake::Cause,
    forward::Forwarder,
    handler::{CannotStart, Context, Handler, Interrupt, Outcome},
    ledger::{
        custody::{Asked, Custody},
        transaction::Offer,
    },
    lifecycle::Verdict,
    route::{Forward, Place, Route, Routes},
    suspect::Course,
};

/// What all messages share.
#[derive(Debug)]
pub(crate) struct Attendant<H> {
    pub(crate) handler: H,
    pub(crate) routes: Routes,
    /// How long a message may take in its handler.
    pub(crate) timeout: Option<Duration>,
    pub(crate) forwarder: Forwarder,
    /// Message after message fails.
    pub(crate) is_braked: AtomicBool,
    /// The ledger, if there is one.
    pub(crate) custody: Option<Custody>,
}

/// Under which circumstances one channel's messages are worked on.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) course: Course,
    /// There is a suspect queue.
    pub(crate) has_suspects: bool,
    pub(crate) interrupt: Interrupt,
    /// The same for what the ledger will not remember: asked also when the connection is lost.
    pub(crate) unclaimed: Interrupt,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Attended {
    pub(crate) message: Message,
    pub(crate) verdict: Verdict,
    /// Time spent in the handler.
    pub(crate) busy: Duration,
    /// What goes into the exit report when the verdict is `Unfit`.
    pub(crate) detail: Option<String>,
}

/// From when a handler is asked to end until it is told to end at once; also how long an answer of the
/// broker is waited for at the end of the grace period.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a handler may take then, before it is dropped.
const KILL_LIMIT: Duration = Duration::from_secs(10);

// === impl Attendant ===

impl<H: Handler> Attendant<H> {
    pub(crate) async fn attend(&self, mut message: Message, site: Site) -> Attended {
        let mut busy = Duration::ZERO;
        let settled = if let Some(forward) = self.routes.before(&message, self.place(&site)) {
            tracing::info!(
                id = message.id().unwrap_or_default(),
                queue = forward.message.queue,
                reason = forward.reason,
                "message set aside"
            );
            self.forward(forward, &site.unclaimed).await
        } else {
            match self.ask(&message, &site).await {
                Asked::Run(hand) => {
                    // Its way through the suspect queue took the mark off, but it may have been begun before.
                    let redelivered = message.redelivered;
                    message.redelivered |= site.course == Course::Suspects;
                    let begun = Instant::now();
                    let outcome = match &hand {
                        Some(hand) => self.handled_in_hand(&message, hand, &site.interrupt).await,
                        None => (self.handled(&message, &site.unclaimed, self.offer(None)).await, Hold::Kept),
                    };
                    busy = begun.elapsed();
                    message.redelivered = redelivered;
                    crash_point("after-handler");
                    match &hand {
                        Some(hand) => self.settle_in_hand(&message, hand, outcome, &site).await,
                        None => self.settle(&message, outcome.0, &site).await,
                    }
                }
                Asked::Known => Ok(Verdict::Known),
                Asked::Elsewhere => self.defer(&message, &site).await,
                Asked::Down => Ok(Verdict::Held(Cause::Ledger)),
                Asked::Interrupted => Ok(Verdict::Interrupted),
            }
        };
        let (verdict, detail) = match settled {
            Ok(verdict) => (verdict, None),
            Err((reason, detail)) => (Verdict::Unfit(reason), Some(detail)),
        };
        Attended { message, verdict, busy, detail }
    }

    async fn settle(
        &self,
        message: &Message,
        outcome: Result<Outcome, CannotStart>,
        site: &Site,
    ) -> Result<Verdict, (ExitReason, String)> {
        let outcome = outcome.map_err(|error| (ExitReason::HandlerUnavailable, error.to_string()))?;
        match self.routes.after(message, outcome, self.place(site)) {
            Route::Settle(verdict) => Ok(verdict),
            Route::Forward(forward) => {
                tracing::info!(
                    id = message.id().unwrap_or_default(),
                    queue = forward.message.queue,
                    reason = forward.reason,
                    "message failed"
                );
                self.forward(forward, &site.unclaimed).await
            }
        }
    }

    /// Publishes until the broker has it, or it isn't ours any more. Who is asked to end waits a little for the
    /// answer to what is on its way: given back as well, the message would be there twice.
    async fn forward(
        &self,
        forward: Forward,
        interrupt: &Interrupt,
    ) -> Result<Verdict, (ExitReason, String)> {
        tokio::select! {
            published = self.published(forward) => {
                let verdict = published.map_err(|error| (ExitReason::Misconfigured, chain(&error)))?;
                crash_point("after-retry-publish");
                Ok(verdict)
            }
            () = async {
                interrupt.asked().await;
                last_words(interrupt).await;
            } => Ok(Verdict::Interrupted),
        }
    }

    /// The same without an end, smaller if it must be.
    async fn published(&self, mut forward: Forward) -> Result<Verdict, Error> {
        loop {
            let error = match self.forwarder.publish(&forward.message, self.routes.spare(&forward)).await {
                Ok(()) => return Ok(forward.verdict),
                Err(error @ Error::HeadersTooLarge { .. }) => error,
                Err(error) => return Err(error),
            };
            if !self.routes.shrink(&mut forward) {
                tracing::warn!(error = chain(&error), "a message can't wait elsewhere and is given back");
                return Ok(Verdict::Interrupted);
            }
            tracing::debug!(error = chain(&error), queue = forward.message.queue, "tries it smaller");
        }
    }

    fn place(&self, site: &Site) -> Place {
        let Site { course, has_suspects, .. } = *site;
        Place { course, has_suspects, is_braked: self.is_braked.load(Ordering::Relaxed) }
    }

    /// The handler's outcome. Once the message's time is over, or it is asked to end, a handler that doesn't is
    /// told to end at once, and dropped if it doesn't do that either.
    async fn handled(
        &self,
        message: &Message,
        interrupt: &Interrupt,
        offer: Offer,
    ) -> Result<Outcome, CannotStart> {
        let attempt = message.attempt().saturating_add(1);
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        // Without a time of its own it ends with all others.
        let own = if deadline.is_some() { interrupt.child() } else { interrupt.clone() };
        let context = Context { offer, ..Context::new(attempt, deadline, own) };
        let handling = self.handler.handle(message, &context);
        tokio::pin!(handling);
        tokio::select! {
            biased;
            outcome = &mut handling => return outcome,
            () = until(deadline) => {}
            () = interrupt.asked() => {}
        }
        context.interrupt.end.cancel();
        let outcome = tokio::select! {
            biased;
            outcome = &mut handling => outcome,
            () = last_words(interrupt) => {
                context.interrupt.kill.cancel();
                let ended = tokio::time::timeout(KILL_LIMIT, handling).await;
                ended.unwrap_or(Ok(Outcome::Interrupted))
            }
        }?;
        Ok(match (outcome, self.timeout) {
            (Outcome::Interrupted, Some(timeout)) if !interrupt.is_asked() => {
                Outcome::retry(format!("took longer than {}", humantime::format_duration(timeout)))
            }
            (outcome, _) => outcome,
        })
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits [`LAST_WORDS`], but not when asked to end at once.
async fn last_words(interrupt: &Interrupt) {
    tokio::select! {
        () = interrupt.kill.cancelled() => {}
        () = tokio::time::sleep(LAST_WORDS) => {}
    }
}

#[cfg(test)]
mod tests;
