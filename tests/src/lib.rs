//! The harness of the black-box tests: own RabbitMQ nodes, a fault proxy, processes that cannot outlive us,
//! and a bed for tests to lie in. It knows mayfly only by its programs, never by its code.
//!
//! Tests get a [`Bed`] from [`on_each_release!`], once on every RabbitMQ release of the run:
//!
//! ```ignore
//! on_each_release!(a_worker_empties_its_queue_and_leaves);
//! async fn a_worker_empties_its_queue_and_leaves(bed: &Bed) -> Result<()> {
//!     let client = bed.client().await?;
//!     client.declare(&bed.queue, Kind::Quorum).await?;
//!     let published = client.publish(&bed.queue, 20).await?;
//!     let mut worker = bed.program("mayfly-worker").args(["--queue", &bed.queue, "sleep"]).spawn("worker")?;
//!     worker.exits_with(0, Duration::from_secs(30)).await?;
//!     ids::assert_same("published", &published, "done", &worker.done_ids()?)
//! }
//! ```

pub mod bed;
pub mod client;
pub mod control_plane;
pub mod counters;
pub mod fleet;
pub mod ids;
pub mod kubernetes;
pub mod node;
pub mod process;
pub mod proxy;
pub mod sandbox;
pub mod store;
pub mod usage;
pub mod wait;
pub mod wire;

pub use bed::Bed;
pub use client::{Client, Kind};
pub use fleet::Fleet;
pub use node::{Broker, Node, Release, TlsNode};
pub use process::{Process, Program, Signal};
pub use proxy::{Fault, Proxy, Way};
pub use store::Store;
pub use wait::{eventually, until};
pub use wire::Wire;
