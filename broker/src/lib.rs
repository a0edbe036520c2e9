//! RabbitMQ for mayfly, nothing else: connect, topology, message contract, consume, publish, depth.
//!
//! Every call here has a deadline; nothing recovers by itself. When a connection or channel fails, its
//! owner drops it and opens a fresh one.

mod connection;
mod dead_letters;
mod depth;
mod error;
mod greeting;
mod headers;
mod intake;
mod message;
mod publisher;
mod topology;
mod url;

pub use connection::{CALL_LIMIT, Channel, Connection};
pub use dead_letters::DeadLetters;
pub use depth::{Depth, Depths, QueueState};
pub use error::{Cause, Error, Result, TlsAdvice};
pub use greeting::Greeting;
pub use intake::{Intake, IntakeOptions, Taken};
pub use message::{Header, Message, Outgoing, SHORT_LIMIT, header};
pub use publisher::{BatchReport, Publisher, Receipt};
pub use topology::{Declared, QueueKind, QueueSpec, Topology, suspect_queue};
pub use url::{BadUrl, BrokerArgs, BrokerUrl};
