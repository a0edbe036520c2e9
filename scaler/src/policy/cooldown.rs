//! Failures and the cool-down that follows (facts/scaling §3.4): doubling up to a cap, forgiven one step per
//! cap without a failure, and wholly by the first done message.

use std::time::Duration;

use super::{Failures, PoolState};
use crate::{config::PoolConfig, time::Time};

/// Jitter on top of a cool-down is at most this part of it.
const JITTER: f64 = 0.2;

// === impl Failures ===

impl Failures {
    /// How many still count at `now`: one is forgiven per `cap` without a failure.
    #[must_use]
    pub fn standing(&self, now: Time, cap: Duration) -> u32 {
        let Some(last) = self.last else { return self.count };
        let forgiven = now.since(last).as_millis().checked_div(cap.as_millis()).unwrap_or(0);
        self.count.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }
}

// === impl PoolState ===

impl PoolState {
    /// Counts a failure at `now` and begins its cool-down.
    pub fn fail(&mut self, pool: &PoolConfig, now: Time) {
        let count = self.failures.standing(now, pool.cooldown_cap).saturating_add(1);
        self.failures = Failures { count, last: Some(now) };
        self.cooldown_until = Some(now + cooldown(pool, count));
    }

    /// Forgives everything: a message was done.
    pub const fn forgive(&mut self) {
        self.failures = Failures { count: 0, last: None };
        self.cooldown_until = None;
    }
}

/// `min(base · 2^(count−1), cap)` plus 0…20 % that depend on the pool's name and the count only.
fn cooldown(pool: &PoolConfig, count: u32) -> Duration {
    let doubled = 2_u32
        .checked_pow(count.saturating_sub(1))
        .and_then(|factor| pool.cooldown_base.checked_mul(factor))
        .unwrap_or(pool.cooldown_cap);
    let hash =
        pool.name.bytes().fold(count, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    doubled.min(pool.cooldown_cap).mul_f64(1.0 + JITTER * f64::from(hash % 101) / 100.0)
}
