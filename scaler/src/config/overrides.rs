//! Flags and environment variables that override the file: those that speak of a pool need a file with one.

use super::{ConfigError, raw::RawConfig};

/// Overrides of the configuration file. Values are written as in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Overrides of the configuration file")]
pub struct Overrides {
    /// Time between two looks at the queues.
    #[arg(long, env = "MAYFLY_CHECK_INTERVAL", value_name = "DURATION")]
    pub check_interval: Option<String>,
    /// Most workers over all pools.
    #[arg(long, env = "MAYFLY_QUOTA", value_name = "N")]
    pub quota: Option<String>,
    /// How long every worker waits before it starts, imitating a node that has to come first.
    #[arg(long, env = "MAYFLY_LAUNCH_START_DELAY", value_name = "DURATION")]
    pub start_delay: Option<String>,
    /// More ready messages than this launch a worker.
    #[arg(long, env = "MAYFLY_TARGET_QUEUE_SIZE", value_name = "N")]
    pub target_queue_size: Option<String>,
    /// A message older than this launches a worker whatever the depth (a bare number: milliseconds).
    #[arg(long, env = "MAYFLY_FORCE_EMPTY_QUEUE_INTERVAL", value_name = "DURATION")]
    pub force_empty_queue_interval: Option<String>,
    /// Least time between two launches.
    #[arg(long, env = "MAYFLY_LAUNCH_INTERVAL", value_name = "DURATION")]
    pub launch_interval: Option<String>,
    /// Workers launched at once, and pending at once.
    #[arg(long, env = "MAYFLY_SCALE_INCREMENT", value_name = "N")]
    pub scale_increment: Option<String>,
    /// Pending workers allowed while all of them wait for a node that is known to come.
    #[arg(long, env = "MAYFLY_MAX_PENDING_WHILE_SCALING", value_name = "N")]
    pub max_pending_while_scaling: Option<String>,
    /// Workers kept warm.
    #[arg(long, env = "MAYFLY_MIN_WORKERS", value_name = "N")]
    pub min_workers: Option<String>,
    /// Most workers occupied at any time; `unlimited` is allowed, 0 launches nothing.
    #[arg(long, env = "MAYFLY_MAX_WORKERS", value_name = "N")]
    pub max_workers: Option<String>,
    /// A pending worker that nothing needs for this long is taken back.
    #[arg(long, env = "MAYFLY_WITHDRAW_AFTER", value_name = "DURATION")]
    pub withdraw_after: Option<String>,
    /// First cool-down after a failure.
    #[arg(long, env = "MAYFLY_COOLDOWN_BASE", value_name = "DURATION")]
    pub cooldown_base: Option<String>,
    /// Longest cool-down.
    #[arg(long, env = "MAYFLY_COOLDOWN_CAP", value_name = "DURATION")]
    pub cooldown_cap: Option<String>,
    /// Whether slot i consumes with priority −i.
    #[arg(long, env = "MAYFLY_PACKING", value_name = "BOOL")]
    pub packing: Option<String>,
}

// === impl Overrides ===

impl Overrides {
    /// Puts them over what the file says.
    pub(super) fn apply(&self, raw: &mut RawConfig) -> Result<(), ConfigError> {
        let Self {
            check_interval,
            quota,
            start_delay,
            target_queue_size,
            force_empty_queue_interval,
            launch_interval,
            scale_increment,
            max_pending_while_scaling,
            min_workers,
            max_workers,
            withdraw_after,
            cooldown_base,
            cooldown_cap,
            packing,
        } = self;
        over(&mut raw.check_interval, check_interval.as_ref());
        over(&mut raw.quota, quota.as_ref());
        if let Some(launcher) = &mut raw.launcher {
            match &mut launcher.process {
                Some(process) => over(&mut process.start_delay, start_delay.as_ref()),
                None if start_delay.is_some() => {
                    let problem = "only local processes have a start delay (launcher.process)".to_owned();
                    return Err(ConfigError::Conflict { path: "--start-delay".to_owned(), problem });
                }
                None => {}
            }
        }
        let of_a_pool = [
            ("--target-queue-size", target_queue_size),
            ("--force-empty-queue-interval", force_empty_queue_interval),
            ("--launch-interval", launch_interval),
            ("--scale-increment", scale_increment),
            ("--max-pending-while-scaling", max_pending_while_scaling),
            ("--min-workers", min_workers),
            ("--max-workers", max_workers),
            ("--withdraw-after", withdraw_after),
            ("--cooldown-base", cooldown_base),
            ("--cooldown-cap", cooldown_cap),
            ("--packing", packing),
        ];
        let Some((flag, _)) = of_a_pool.iter().find(|(_, value)| value.is_some()) else { return Ok(()) };
        let [pool] = &mut *raw.pools else {
            return Err(ConfigError::ManyPools { flag, pools: raw.pools.len() });
        };
        if launch_interval.is_some() {
            pool.check_trigger_interval = None;
        }
        over(&mut pool.target_queue_size, target_queue_size.as_ref());
        over(&mut pool.force_empty_queue_interval, force_empty_queue_interval.as_ref());
        over(&mut pool.launch_interval, launch_interval.as_ref());
        over(&mut pool.scale_increment, scale_increment.as_ref());
        over(&mut pool.max_pending_while_scaling, max_pending_while_scaling.as_ref());
        over(&mut pool.min_workers, min_workers.as_ref());
        over(&mut pool.max_workers, max_workers.as_ref());
        over(&mut pool.withdraw_after, withdraw_after.as_ref());
        over(&mut pool.cooldown_base, cooldown_base.as_ref());
        over(&mut pool.cooldown_cap, cooldown_cap.as_ref());
        over(&mut pool.packing, packing.as_ref());
        Ok(())
    }
}

fn over(value: &mut Option<String>, by: Option<&String>) {
    if let Some(by) = by {
        *value = Some(by.clone());
    }
}
