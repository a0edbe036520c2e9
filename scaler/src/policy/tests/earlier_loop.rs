//! The earlier system's loop, ported on its own: it shares no code with the policy. Its seven defects are
//! mended, its rules are as they were: every ten seconds, at most one worker pending; one more when more
//! messages wait than the threshold allows, or when nothing lives and messages have waited too long.

/// What one check sees.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) now_ms: u64,
    pub(super) ready: u64,
    pub(super) pending: u32,
    pub(super) running: u32,
}

/// Workers launched at once.
const SCALE_INCREMENT: u32 = 1;

/// The loop with its settings and what it remembers from check to check.
#[derive(Debug, Clone)]
pub(super) struct EarlierLoop {
    pub(super) target_queue_size: u64,
    pub(super) force_empty_queue_interval_ms: u64,
    /// Messages have waited since then at the longest: the queue was seen empty, or getting shorter.
    waiting_since_ms: Option<u64>,
    last: Option<(u64, u64)>,
}

// === impl EarlierLoop ===

impl EarlierLoop {
    pub(super) const fn new(target: u64, force_ms: u64) -> Self {
        Self {
            target_queue_size: target,
            force_empty_queue_interval_ms: force_ms,
            waiting_since_ms: None,
            last: None,
        }
    }

    /// How many workers this check launches.
    pub(super) fn check(&mut self, seen: Seen) -> u32 {
        let Seen { now_ms, ready, pending, running } = seen;
        self.waiting_since_ms = match self.last {
            _ if ready == 0 => None,
            Some((before_ms, 0)) => Some(before_ms),
            Some((_, before)) if ready < before => Some(now_ms),
            _ => self.waiting_since_ms.or(Some(now_ms)),
        };
        self.last = Some((now_ms, ready));
        let waited_ms = self.waiting_since_ms.map_or(0, |since| now_ms - since);
        if pending < 1 && ready > self.target_queue_size {
            return SCALE_INCREMENT;
        }
        if ready > 0 && running + pending < 1 && waited_ms > self.force_empty_queue_interval_ms {
            return SCALE_INCREMENT;
        }
        0
    }
}
