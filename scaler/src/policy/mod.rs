//! The pure core: no await, clock, environment, log or client. Everything that it knows is an argument, so
//! the live loop, the tests and the simulator run the same code.

mod advice;
mod age;
mod arrivals;
mod attended;
mod capacity;
mod cooldown;
mod decide;
mod decision;
mod estimate;
mod judge;
mod memory;
mod need;
mod observation;
mod pending;
mod plan;
mod record;
mod sample;
mod saturation;
mod served;
mod share;
mod slo;
mod surplus;
mod waiting;

pub use age::{Age, AgeSource, QueueMarks};
pub use arrivals::Arrivals;
pub use decide::{Counts, LISTING_STALE_AFTER, decide, decide_pool};
pub use decision::{Decision, Hold, Launch, LaunchReason, Withdraw};
pub use estimate::LeadTimes;
pub use judge::{Judgement, Verdict, judge};
pub use memory::{Memory, remember};
pub use need::DEPTH_STALE_AFTER;
pub use observation::{
    Counters, Ending, Fact, MissingTemplate, Observation, Phase, QueueFacts, Unknown, UnknownWhat, Why,
    Worker,
};
pub use pending::{Action, Deadlines, PODLESS_REMOVABLE_AFTER, PendingCause};
pub use record::{
    Capacity, Estimates, Failures, Intent, LastFailure, PoolState, RECORD_VERSION, ServiceTime, StateRecord,
    job_name,
};
pub use sample::Sample;
pub use served::ServiceSource;
pub use share::share;
pub use waiting::Batch;

#[cfg(test)]
mod tests;
