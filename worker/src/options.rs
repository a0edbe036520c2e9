//! Everything a worker needs to know, checked before it touches anything.

use std::{
    num::{NonZeroU16, NonZeroU32, NonZeroU64},
    time::Duration,
};

use mayfly_broker::BrokerUrl;

use crate::{
    args::{LaunchArgs, TryArgs, WorkArgs},
    brake::Brake,
    ledger::LedgerOptions,
    lifecycle::{Carry, Rules},
    prefetch::Prefetch,
    tally::Tally,
};

/// How a worker works.
#[derive(Debug, Clone)]
pub struct Options {
    /// The broker.
    pub url: BrokerUrl,
    /// The queue to work on.
    pub queue: String,
    /// The name of the connection and the consumer's tag, as the broker's tools show them.
    pub name: String,
    /// Messages in work at once.
    pub concurrency: NonZeroU16,
    /// Messages held at once; at least the concurrency. `None`: as many as are worked on, more where work takes
    /// less than 50 ms.
    pub prefetch: Option<NonZeroU16>,
    /// How long the work on a message takes, as far as it is known beforehand.
    pub service_time_hint: Option<Duration>,
    /// The consumer's `x-priority`.
    pub priority: i32,
    /// End when nothing was in flight for this long and the queue is empty.
    pub max_idle: Duration,
    /// How long work may go on after we were asked to stop.
    pub grace: Duration,
    /// From the start until the consumer must be registered.
    pub start_deadline: Duration,
    /// How long to try for a fresh connection after one was lost.
    pub reconnect_for: Duration,
    /// How often a message is tried before it is dead-lettered.
    pub max_attempts: NonZeroU32,
    /// How long a message may take in its handler; `None`: as long as it takes.
    pub timeout: Option<Duration>,
    /// Whether to declare the standard topology first.
    pub declare: bool,
    /// Where messages go that brought down their workers; `None`: to the dead-letter queue.
    pub quarantine: Option<String>,
    /// Take no message after so many, finish and end.
    pub max_messages: Option<NonZeroU64>,
    /// Take no message after this age, finish and end.
    pub max_lifetime: Option<Duration>,
    /// Take no message when so much memory is in use (bytes; the container's where it is limited, else the
    /// worker's own with its handlers'), finish and end.
    pub max_memory: Option<u64>,
    /// The record of done messages; `None`: there is none, and what comes back is done again.
    pub ledger: Option<LedgerOptions>,
}

/// Options that make no sense together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOptions {
    /// Some handlers would never have work.
    #[error(
        "--prefetch {prefetch} is less than --concurrency {concurrency}: some of it would never have work"
    )]
    PrefetchBelowConcurrency {
        /// As given.
        prefetch: u16,
        /// As given.
        concurrency: u16,
    },
}

/// How the broker's tools show a worker of which nothing else is known.
const NAME: &str = "mayfly-worker";
const MAX_ATTEMPTS: NonZeroU32 = NonZeroU32::new(5).unwrap();
/// Behind every launched worker: one that was started by hand takes what they leave.
const PRIORITY_BY_HAND: i32 = -1000;
/// What RabbitMQ allows unless told otherwise: all headers of a message come in one frame, and one that is larger
/// ends the connection. Then twice as much is asked for. lapin reserves 64 frames, and touches what it needs.
const FRAME_MAX: u32 = 131_072;

// === impl Options ===

impl Options {
    /// The defaults of the command line, for `queue` at `url`.
    #[must_use]
    pub fn new(url: BrokerUrl, queue: &str) -> Self {
        Self {
            url: url.with_default_frame_max(FRAME_MAX),
            queue: queue.to_owned(),
            name: NAME.to_owned(),
            concurrency: NonZeroU16::MIN,
            prefetch: None,
            service_time_hint: None,
            priority: PRIORITY_BY_HAND,
            max_idle: Duration::from_secs(20),
            grace: Duration::from_secs(30),
            start_deadline: Duration::from_secs(60),
            reconnect_for: Duration::from_secs(30),
            max_attempts: MAX_ATTEMPTS,
            timeout: None,
            declare: false,
            quarantine: None,
            max_messages: None,
            max_lifetime: None,
            max_memory: None,
            ledger: None,
        }
    }

    /// `tries` is absent where work can't fail.
    ///
    /// # Errors
    /// [`BadOptions`] when options contradict each other.
    pub(crate) fn from_args(
        args: &WorkArgs,
        tries: Option<&TryArgs>,
        url: BrokerUrl,
    ) -> Result<Self, BadOptions> {
        if let Some(prefetch) = args.prefetch.filter(|prefetch| *prefetch < args.concurrency) {
            let (prefetch, concurrency) = (prefetch.get(), args.concurrency.get());
            return Err(BadOptions::PrefetchBelowConcurrency { prefetch, concurrency });
        }
        Ok(Self {
            name: name(&args.launch),
            concurrency: args.concurrency,
            prefetch: args.prefetch,
            service_time_hint: args.launch.service_time_hint,
            priority: if args.no_packing { 0 } else { priority(args.launch.slot) },
            max_idle: args.max_idle,
            grace: args.grace,
            start_deadline: args.start_deadline,
            reconnect_for: args.reconnect_for,
            max_attempts: tries.map_or(MAX_ATTEMPTS, |tries| tries.max_attempts),
            timeout: tries.and_then(|tries| tries.timeout),
            declare: args.declare,
            quarantine: tries.and_then(|tries| tries.quarantine_queue.clone()),
            max_messages: args.recycle.max_messages,
            max_lifetime: args.recycle.max_lifetime,
            max_memory: args.recycle.max_memory.map(|size| size.as_u64()),
            ..Self::new(url, &args.queue)
        })
    }

    /// From the next connection on, if it is to be more than before.
    pub(crate) fn ask_for(&mut self, frame_max: Option<u32>) {
        if let Some(frame_max) = frame_max {
            tracing::warn!(frame_max, "a message has more headers than a frame holds: asks for larger ones");
            self.url = self.url.clone().with_frame_max(frame_max);
        }
    }

    /// Whether no other worker of the pool is likely to be there, or it belongs to none.
    pub(crate) const fn is_first(&self) -> bool {
        matches!(self.priority, 0 | PRIORITY_BY_HAND)
    }

    pub(crate) fn rules(&self, jitter: f64) -> Rules {
        Rules {
            concurrency: self.concurrency.get().into(),
            max_idle: self.max_idle,
            grace: self.grace,
            max_messages: self.max_messages.map(NonZeroU64::get),
            max_lifetime: self.max_lifetime,
            finishes_when_lost: self.ledger.is_some(),
            jitter,
        }
    }

    pub(crate) fn carry(&self, jitter: f64) -> Carry {
        let prefetch = match self.prefetch {
            Some(count) => Prefetch::fixed(count.get()),
            None => Prefetch::auto(self.concurrency.get(), self.service_time_hint),
        };
        Carry {
            tally: Tally::default(),
            brake: Brake::new(jitter),
            prefetch,
            quiet_since: None,
            fruitless_looks: 0,
        }
    }
}

fn priority(slot: Option<u32>) -> i32 {
    slot.map_or(PRIORITY_BY_HAND, |slot| i32::try_from(slot).map_or(i32::MIN, |slot| -slot))
}

/// `mayfly-worker INSTANCE-POOL-SERIAL`, as far as these are known.
fn name(launch: &LaunchArgs) -> String {
    let serial = launch.serial.map(|serial| serial.to_string());
    let parts: Vec<&str> = [launch.instance.as_deref(), launch.pool.as_deref(), serial.as_deref()]
        .into_iter()
        .flatten()
        .collect();
    format!("{NAME} {}", parts.join("-")).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn options(arguments: &[&str]) -> Result<Options, BadOptions> {
        let line = ["mayfly-worker", "sleep", "--queue", "q"].iter().chain(arguments);
        let Command::Sleep(sleep) = Cli::try_parse_from(line).unwrap().command else { unreachable!() };
        Options::from_args(&sleep.work, None, "amqp://localhost".parse().unwrap())
    }

    #[test]
    fn lower_slots_are_served_first_and_workers_without_one_last() {
        assert_eq!(options(&["--slot", "0"]).unwrap().priority, 0);
        assert_eq!(options(&["--slot", "3"]).unwrap().priority, -3);
        assert_eq!(options(&[]).unwrap().priority, -1000);
        assert_eq!(options(&["--slot", "3", "--no-packing"]).unwrap().priority, 0);
    }

    #[test]
    fn the_prefetch_follows_the_concurrency_and_cannot_be_below_it() {
        let held = |arguments: &[&str]| options(arguments).unwrap().carry(0.0).prefetch.current();
        assert_eq!(held(&["--concurrency", "4"]), 4);
        assert_eq!(held(&["--concurrency", "4", "--service-time-hint", "10ms"]), 20);
        assert_eq!(held(&["--concurrency", "4", "--prefetch", "9"]), 9);
        assert_eq!(held(&["--concurrency", "4", "--prefetch", "auto"]), 4);
        assert_eq!(
            options(&["--concurrency", "4", "--prefetch", "3"]).unwrap_err(),
            BadOptions::PrefetchBelowConcurrency { prefetch: 3, concurrency: 4 }
        );
    }

    #[test]
    fn the_broker_sees_which_worker_it_is() {
        assert_eq!(options(&[]).unwrap().name, "mayfly-worker");
        let launched = options(&["--instance", "prod", "--pool", "documents", "--serial", "7"]).unwrap();
        assert_eq!(launched.name, "mayfly-worker prod-documents-7");
    }
}
