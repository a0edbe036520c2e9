//! What one scaler process knows of the fleet: the record and the workers, each as of some moment.

use std::time::Duration;

use super::course::IntentsSeen;
use crate::{
    config::Config,
    policy::{Fact, Phase, StateRecord, Unknown, Why, Worker},
    time::Time,
};

/// A record that is missing beside live workers is rebuilt after this long: by then no launch that the lost
/// record knew of can still arrive.
const REBUILD_AFTER: Duration = Duration::from_secs(120);

/// The fleet as last seen.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// The workers.
    pub(super) workers: Fact<Vec<Worker>>,
    /// The record, normalised.
    pub(super) record: Fact<StateRecord>,
    /// Whether the record was amended when it was read.
    pub(super) amended: bool,
    /// Since when the record is missing beside live workers.
    pub(super) lost_since: Option<Time>,
    /// When this process first saw each open intent, by pool and serial.
    pub(super) intents_seen: IntentsSeen,
}

/// A record to decide on, and the revision that a compare-and-swap expects to replace.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Loaded {
    pub(super) record: StateRecord,
    pub(super) expected: Option<u64>,
    /// Whether the stored one could not be believed as it was: it is to be written anew, or it would be
    /// brought to the present again at each reading.
    pub(super) amended: bool,
}

// === impl View ===

impl View {
    pub(super) fn new(now: Time) -> Self {
        let unseen = Unknown::not_yet_seen(now);
        Self {
            workers: Fact::Unknown(unseen.clone()),
            record: Fact::Unknown(unseen),
            amended: false,
            lost_since: None,
            intents_seen: IntentsSeen::new(),
        }
    }

    /// Makes of a stored record, read at `now`, one to decide on. A missing one is new where nothing lives;
    /// beside live workers it was lost: held for [`REBUILD_AFTER`], then rebuilt.
    pub(super) fn load(
        stored: Option<StateRecord>,
        workers: &[Worker],
        lost_since: &mut Option<Time>,
        config: &Config,
        now: Time,
    ) -> Result<Loaded, Unknown> {
        if let Some(record) = stored {
            *lost_since = None;
            let expected = Some(record.revision);
            let normalized = record.clone().normalized(now, |pool| cooldown_cap(config, pool));
            return Ok(Loaded { amended: normalized != record, record: normalized, expected });
        }
        let alive = alive(workers);
        if alive > 0 {
            let since = *lost_since.get_or_insert(now);
            let left = REBUILD_AFTER.saturating_sub(now.since(since));
            if left > Duration::ZERO {
                let detail = format!(
                    "missing, though {alive} workers live: rebuilt in {} s, pause and cool-down are lost",
                    left.as_secs()
                );
                return Err(Unknown { why: Why::Unusable, detail, since });
            }
        }
        Ok(Loaded { record: StateRecord::new(now), expected: None, amended: false })
    }

    /// Remembers when each open intent was first seen, and forgets the closed ones.
    pub(super) fn note_intents(&mut self, now: Time) {
        let Some(record) = self.record.known() else { return };
        let open: Vec<_> = record
            .pools
            .iter()
            .flat_map(|(pool, state)| state.intents.iter().map(move |intent| (pool.clone(), intent.serial)))
            .collect();
        self.intents_seen.retain(|intent, _| open.contains(intent));
        for intent in open {
            self.intents_seen.entry(intent).or_insert(now);
        }
    }
}

/// Workers that a record must know of; what people started by hand proves none.
pub(crate) fn alive(workers: &[Worker]) -> usize {
    let ours = |worker: &&Worker| worker.serial.is_some() && !matches!(worker.phase, Phase::Finished(_));
    workers.iter().filter(ours).count()
}

fn cooldown_cap(config: &Config, pool: &str) -> Duration {
    // A pool that is no longer configured launches nothing, so its cool-down is of no account.
    config.pool(pool).map_or(Duration::ZERO, |known| known.cooldown_cap)
}

#[cfg(test)]
mod tests {

    use super::*;

    use crate::policy::PendingCause;

    const NOW: Time = Time::from_millis(1_000_000_000);

    fn config() -> Config {
        Config::with_pools(Vec::new())
    }

    fn pending() -> Worker {
        Worker {
            name: "mayfly-a-0000-1".to_owned(),
            pool: "a".to_owned(),
            serial: Some(1),
            slot: Some(0),
            launched: NOW,
            reason: None,
            node: None,
            cold: false,
            generation: None,
            phase: Phase::Pending { started: false, cause: PendingCause::Starting, since: NOW, detail: None },
        }
    }

    #[test]
    fn a_missing_record_beside_workers_that_people_started_is_new() {
        let by_hand = Worker { serial: None, slot: None, ..pending() };
        let loaded = View::load(None, &[by_hand], &mut None, &config(), NOW).unwrap();
        assert_eq!(loaded.record, StateRecord::new(NOW));
    }

    #[test]
    fn a_missing_record_is_new_where_nothing_lives() {
        let loaded = View::load(None, &[], &mut None, &config(), NOW).unwrap();
        assert_eq!(loaded, Loaded { record: StateRecord::new(NOW), expected: None, amended: false });
    }

    #[test]
    fn a_stamp_from_the_future_becomes_now_at_first_sight_and_is_written_anew() {
        let mut stored = StateRecord::new(NOW);
        stored.pool_mut("a").last_settled_launch = Some(NOW + Duration::from_secs(1000));
        let loaded = View::load(Some(stored), &[], &mut None, &config(), NOW).unwrap();
        assert_eq!(loaded.record.pool("a").last_settled_launch, Some(NOW));
        assert!(loaded.amended);
        let again = View::load(Some(loaded.record), &[], &mut None, &config(), NOW).unwrap();
        assert!(!again.amended);
    }

    #[test]
    fn a_record_lost_beside_live_workers_holds_for_two_minutes_and_is_rebuilt_then() {
        let mut lost_since = None;
        let mut load = |now| View::load(None, &[pending()], &mut lost_since, &config(), now);
        assert_eq!(load(NOW).unwrap_err().why, Why::Unusable);
        assert_eq!(load(NOW + Duration::from_secs(119)).unwrap_err().since, NOW);
        assert_eq!(load(NOW + Duration::from_secs(120)).unwrap().expected, None);
    }
}
