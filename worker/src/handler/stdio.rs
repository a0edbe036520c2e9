//! One long-lived program for all messages, spoken to in lines of JSON: for what is slow to start.

mod keeper;
mod talk;

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mayfly_broker::Message;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use self::keeper::{Keeper, Order, Reply, Request};
use super::{
    CannotStart, Context, Handler, Interrupt, Outcome,
    child::{Program, time_is_up},
    envelope::envelope,
};

/// Hands every message to one child, which may work on several at once and answer in any order.
///
/// The child says `{"ready":true}` first. When it ends by itself, the messages in work are
/// [`Outcome::Crashed`] and it is started again. One message in it cannot be interrupted: when a message is
/// asked to end and isn't answered within two seconds, the child is killed with its process group and started
/// again; of the others in it nobody knows how far they are, so they are `Crashed` too, unless they are asked
/// to end as well.
#[derive(Debug)]
pub struct Stdio {
    queue: String,
    next_id: AtomicU64,
    orders: mpsc::UnboundedSender<Order>,
    /// Until it runs.
    keeper: Mutex<Option<Keeper>>,
    /// While it runs.
    keeping: Mutex<Option<JoinHandle<()>>>,
}

// === impl Stdio ===

impl Stdio {
    /// Talks with `program` about messages of `queue`. Whenever it is started, it must be ready within
    /// `start_limit`, tries included.
    #[must_use]
    pub fn new(program: Program, queue: &str, start_limit: Duration) -> Self {
        let (orders, ordered) = mpsc::unbounded_channel();
        Self {
            queue: queue.to_owned(),
            next_id: AtomicU64::new(1),
            orders,
            keeper: Mutex::new(Some(Keeper::new(program, start_limit, ordered))),
            keeping: Mutex::default(),
        }
    }

    /// Hands the message over and waits for what becomes of it.
    async fn ask(&self, message: &Message, context: &Context) -> Result<Reply, CannotStart> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line = envelope(id, message, &self.queue, context.attempt);
        line.push(b'\n');
        let message_id = message.id().unwrap_or_default().to_owned();
        let (reply, mut replied) = oneshot::channel();
        self.orders.send(Order::Work(Request { id, message_id, line, reply })).map_err(|_| gone())?;
        tokio::select! {
            biased;
            reply = &mut replied => reply.map_err(|_| gone()),
            () = time_is_up(&context.interrupt) => {
                self.orders.send(Order::Stop { id }).map_err(|_| gone())?;
                replied.await.map_err(|_| gone())
            }
        }
    }
}

impl Handler for Stdio {
    async fn prepare(&self, interrupt: &Interrupt) -> Result<(), CannotStart> {
        let (ready, is_ready) = oneshot::channel();
        if let Some(keeper) = take(&self.keeper) {
            let keeping = tokio::spawn(keeper.keep(ready));
            *self.keeping.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeping);
        }
        tokio::select! {
            ready = is_ready => ready.unwrap_or_else(|_| Err(gone())),
            () = interrupt.asked() => Ok(()),
        }
    }

    async fn handle(&self, message: &Message, context: &Context) -> Result<Outcome, CannotStart> {
        let interrupt = &context.interrupt;
        loop {
            match self.ask(message, context).await? {
                // Not begun: the next child gets it. The keeper gives up on children that read nothing.
                Reply::Unread if !interrupt.is_asked() => {}
                Reply::Unread | Reply::Unbegun => return Ok(Outcome::Interrupted),
                Reply::Answer(outcome) => return Ok(outcome),
                Reply::Ended { by_us: true, .. } if interrupt.is_asked() => return Ok(Outcome::Interrupted),
                Reply::Ended { .. } if interrupt.kill.is_cancelled() => return Ok(Outcome::Interrupted),
                Reply::Ended { reason, .. } => return Ok(Outcome::Crashed { reason }),
                Reply::CannotStart(error) => return Err(error),
            }
        }
    }

    async fn finish(&self, interrupt: &Interrupt) {
        let Some(mut keeping) = take(&self.keeping) else { return };
        // An error means that it has ended.
        let _ = self.orders.send(Order::Finish);
        let kept = tokio::select! {
            kept = &mut keeping => kept,
            () = interrupt.kill.cancelled() => {
                // With its keeper the program is killed.
                keeping.abort();
                keeping.await
            }
        };
        if let Err(error) = kept
            && !error.is_cancelled()
        {
            tracing::error!(%error, "what kept the program ended badly");
        }
    }
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Nobody keeps the program: not prepared, finished, or a defect.
fn gone() -> CannotStart {
    CannotStart { reason: "nothing keeps the program running".to_owned() }
}

#[cfg(test)]
mod tests;
