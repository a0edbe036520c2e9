//! mayfly's worker: takes messages from a queue, works on them, acknowledges each only after it is done, and
//! ends by itself when the queue stays idle.
//!
//! The binary runs a command per message. For work in Rust, implement [`Handler`] and call [`work`]:
//!
//! ```
//! use mayfly_worker::{CannotStart, Context, Handler, Message, Outcome};
//!
//! struct Count;
//!
//! impl Handler for Count {
//!     async fn handle(&self, message: &Message, _context: &Context) -> Result<Outcome, CannotStart> {
//!         match std::str::from_utf8(&message.body) {
//!             Ok(text) => println!("{} words", text.split_whitespace().count()),
//!             Err(error) => return Ok(Outcome::DeadLetter { reason: error.to_string() }),
//!         }
//!         Ok(Outcome::Done)
//!     }
//! }
//! ```
//!
//! # Exit codes
//! | code | reasons |
//! |---|---|
//! | 0 | idle; asked to stop; recycled (its message, memory or time limit); withdrawn before it started |
//! | 64 | bad usage |
//! | 69 | broker unreachable until the start deadline, or lost for longer than the reconnect window |
//! | 70 | starved (messages wait, none is delivered); aborted by a second signal; a defect |
//! | 75 | could begin nothing for five minutes: message after message failed, or the ledger did not answer |
//! | 78 | at start: wrong password, no permission, a queue missing; at any time: the handler can't start |
//!
//! Exit code 0 says that nothing was in flight and every ack had arrived, with one exception: a worker that was
//! asked to stop, or recycles, and loses its connection before it is through, makes no fresh one for that. Its
//! handlers are ended first, what it held is counted as given back, and `detail` names the error.
//!
//! What is refused at start with 78 is retried when it happens later, and ends with 69 after the reconnect
//! window: this configuration has worked before, so the broker may be in restoration. If it is not, the next
//! worker meets the same at its start and exits 78, so a wrong configuration is counted where it is certain.
//!
//! # Log lines per message
//! Each delivered message gets one line at level debug, target `mayfly_worker::message`, with `id` (its
//! `message_id`, or empty) and `outcome`: `done`, `retried`, `dead_lettered` after its ack was written to the
//! broker, and so is `suspected`, for one that was set aside; `given_back` after its nack was; `lost` when the connection ended before either. A `done` line is
//! never written before the ack, but the ack may die with the connection after it: such a message is
//! delivered again and gets another line there.

mod args;
mod attend;
mod brake;
mod forward;
mod handler;
mod install;
pub mod ledger;
mod lifecycle;
mod memory;
mod metrics;
mod options;
mod prefetch;
mod probe;
mod report;
mod route;
mod run;
mod session;
mod start;
mod status;
mod suspect;
mod tally;
mod warnings;
mod work;

pub use args::Cli;
pub use handler::{
    CannotStart, Context, Exec, Handler, Http, HttpOptions, Interrupt, Outcome, Program, ServerUrl, Sleep,
    Stdio,
};
pub use ledger::{Transaction, TransactionError};
pub use mayfly_broker::{BrokerUrl, Message};
pub use mayfly_service::{Shutdown, report::ExitReport};
pub use options::{BadOptions, Options};
pub use report::exit_code;
pub use run::{parse, run, run_with};
pub use work::work;
