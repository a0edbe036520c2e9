//! A message's way through the ledger: claimed before its handler, recorded when it is done, given up when it
//! goes elsewhere.

use std::sync::Arc;

use mayfly_broker::Message;
use mayfly_service::report::ExitReason;

use super::{Attendant, KILL_LIMIT, Site};
use crate::{
    handler::{CannotStart, Handler, Interrupt, Outcome},
    ledger::{
        custody::{Asked, InHand, Recorded, Stage},
        transaction::Offer,
    },
    lifecycle::Verdict,
};

/// What became of the claim during the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// As far as is known it is still ours.
    Kept,
    /// Somebody else may have it: the work was ended.
    Lost,
}

// === impl Attendant ===

impl<H: Handler> Attendant<H> {
    pub(super) async fn ask(&self, message: &Message, site: &Site) -> Asked {
        match &self.custody {
            Some(custody) => custody.ask(message, &site.unclaimed).await,
            None => Asked::Run(None),
        }
    }

    /// Waits until the ledger answers after it did not.
    pub(crate) async fn ledger_answered(&self) {
        match &self.custody {
            Some(custody) => custody.answered().await,
            None => std::future::pending().await,
        }
    }

    /// What a handler gets of the ledger.
    pub(super) fn offer(&self, hand: Option<&Arc<InHand>>) -> Offer {
        match (&self.custody, hand) {
            (None, _) => Offer::None,
            (Some(_), None) => Offer::NotClaimed,
            (Some(_), Some(hand)) => Offer::Claimed(Arc::clone(hand)),
        }
    }

    /// The handler's outcome, its claim renewed meanwhile; ended when that is lost.
    pub(super) async fn handled_in_hand(
        &self,
        message: &Message,
        hand: &Arc<InHand>,
        interrupt: &Interrupt,
    ) -> (Result<Outcome, CannotStart>, Hold) {
        let own = interrupt.child();
        let handling = self.handled(message, &own, self.offer(Some(hand)));
        tokio::pin!(handling);
        tokio::select! {
            biased;
            outcome = &mut handling => (outcome, Hold::Kept),
            () = hand.keep() => {
                own.kill.cancel();
                let ended = tokio::time::timeout(KILL_LIMIT, handling).await;
                (ended.unwrap_or(Ok(Outcome::Interrupted)), Hold::Lost)
            }
        }
    }

    /// Records what is done; what is not goes where its outcome says, and its claim is given up.
    pub(super) async fn settle_in_hand(
        &self,
        message: &Message,
        hand: &InHand,
        (outcome, hold): (Result<Outcome, CannotStart>, Hold),
        site: &Site,
    ) -> Result<Verdict, (ExitReason, String)> {
        let Some(custody) = &self.custody else { return self.settle(message, outcome, site).await };
        let recorded = match (hand.stage(), &outcome) {
            (Stage::Recorded, _) => Some(Recorded::Yes),
            (Stage::TakenOver, _) => return self.defer(message, site).await,
            (Stage::Unknown, _) => Some(custody.resolve(hand, &site.interrupt).await),
            (Stage::Claimed, Ok(Outcome::Done)) => Some(custody.record(hand, &site.interrupt).await),
            (Stage::Claimed, _) => None,
        };
        match recorded {
            Some(Recorded::Yes | Recorded::Ignored) => return Ok(Verdict::Done),
            Some(Recorded::Interrupted) => return Ok(Verdict::Interrupted),
            // Done, and not by us.
            Some(Recorded::NotOurs) if outcome == Ok(Outcome::Done) => {
                return self.defer(message, site).await;
            }
            Some(Recorded::NotOurs) | None => {}
        }
        if hold == Hold::Lost && outcome == Ok(Outcome::Interrupted) && !site.interrupt.is_asked() {
            return self.defer(message, site).await;
        }
        let settled = self.settle(message, outcome, site).await;
        hand.release().await;
        settled
    }

    /// Lets a message wait that somebody else works on.
    pub(super) async fn defer(
        &self,
        message: &Message,
        site: &Site,
    ) -> Result<Verdict, (ExitReason, String)> {
        match self.routes.deferred(message, site.course) {
            Some(forward) => {
                let id = message.id().unwrap_or_default();
                tracing::info!(
                    id,
                    queue = forward.message.queue,
                    reason = forward.reason,
                    "message deferred"
                );
                self.forward(forward, &site.unclaimed).await
            }
            None => Ok(Verdict::Interrupted),
        }
    }
}
