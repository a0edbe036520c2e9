//! One message from its start to a verdict: handler, then a companion queue where it failed.

use std::{num::NonZeroU32, time::Duration};

use mayfly_broker::{Message, Topology};
use mayfly_service::{crash::crash_point, report::ExitReason};
use tokio::time::Instant;

use crate::{
    forward::Forwarder,
    handler::{Handler, Interrupt},
    lifecycle::Verdict,
    route::{Route, route},
};

/// What all messages share.
#[derive(Debug)]
pub(crate) struct Attendant<H> {
    pub(crate) handler: H,
    pub(crate) topology: Topology,
    pub(crate) max_attempts: NonZeroU32,
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

// === impl Attendant ===

impl<H: Handler> Attendant<H> {
    pub(crate) async fn attend(&self, message: Message, interrupt: Interrupt) -> Attended {
        let tag = message.tag;
        let begun = Instant::now();
        let outcome = self.handler.handle(&message, &interrupt).await;
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
}
