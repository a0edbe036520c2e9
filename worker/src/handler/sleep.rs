//! A handler for demos and measurements: every message takes the same time and succeeds.

use std::time::Duration;

use mayfly_broker::Message;

use super::{CannotStart, Context, Handler, Outcome};

/// Sleeps for `time` per message.
#[derive(Debug, Clone, Copy)]
pub struct Sleep {
    /// How long.
    pub time: Duration,
}

// === impl Sleep ===

impl Handler for Sleep {
    const MAY_FAIL: bool = false;

    async fn handle(&self, _message: &Message, context: &Context) -> Result<Outcome, CannotStart> {
        if self.time.is_zero() {
            // A timer would take a millisecond.
            return Ok(Outcome::Done);
        }
        Ok(tokio::select! {
            () = tokio::time::sleep(self.time) => Outcome::Done,
            () = context.interrupt.asked() => Outcome::Interrupted,
        })
    }
}
