//! Promises on waiting times.

use std::time::Duration;

use super::{
    ConfigError,
    checked::conflict,
    raw::{RawPool, RawQueue},
    values::{ANY_DURATION, Bare, duration, number},
};

/// A shorter SLO cannot be kept by starting workers.
const SLOS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=*ANY_DURATION.end();
/// Most pods that anybody puts on a node.
const MOST_PER_NODE: u32 = 1000;
/// More at once is no limit.
const MOST_PENDING: u32 = 100_000;

/// What makes a pool one with an SLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SloConfig {
    /// The acceptable age of the oldest message of each queue, in their order.
    pub targets: Vec<Duration>,
    /// Workers that fit on one node; learned if `None`.
    pub pods_per_node: Option<u32>,
    /// Most workers pending at once; as many as the pool may have if `None`.
    pub max_pending: Option<u32>,
    /// When to launch where nothing lives.
    pub start: Start,
}

/// When to launch where nothing lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// As soon as something waits.
    #[default]
    Immediate,
    /// At the last moment that does.
    Latest,
}

// === impl RawPool ===

impl RawPool {
    /// What is promised on waiting times: for all queues or for none.
    pub(super) fn slo(&self, path: &str) -> Result<Option<SloConfig>, ConfigError> {
        let at = |key: &str| format!("{path}.{key}");
        let with_slo = self.queues.iter().filter(|queue| queue.slo.is_some()).count();
        if with_slo == 0 {
            let of_slo = [
                ("pods_per_node", &self.pods_per_node),
                ("max_pending", &self.max_pending),
                ("start", &self.start),
            ];
            return match of_slo.into_iter().find(|(_, value)| value.is_some()) {
                Some((key, _)) => {
                    Err(conflict(at(key), "is for queues with an slo: give them one".to_owned()))
                }
                None => Ok(None),
            };
        }
        if let Some(without) = self.queues.iter().position(|queue| queue.slo.is_none()) {
            let problem = "is missing: give one to all queues of a pool or to none";
            return Err(conflict(at(&format!("queues[{without}].slo")), problem.to_owned()));
        }
        let of_classic = [
            ("target_queue_size", &self.target_queue_size),
            ("force_empty_queue_interval", &self.force_empty_queue_interval),
            ("max_pending_while_scaling", &self.max_pending_while_scaling),
            ("skip_futile", &self.skip_futile),
        ];
        if let Some((key, _)) = of_classic.into_iter().find(|(_, value)| value.is_some()) {
            let problem = "is for queues without an slo: with one, deadlines alone decide";
            return Err(conflict(at(key), problem.to_owned()));
        }
        let target = |(index, queue): (usize, &RawQueue)| {
            let text = queue.slo.as_deref().unwrap_or_default();
            duration(&at(&format!("queues[{index}].slo")), text, Bare::Refused, SLOS)
        };
        let counted = |key: &str, text: &Option<String>, most: u32| {
            text.as_ref().map(|text| number(&at(key), text, 1..=most)).transpose()
        };
        let start = self.start.as_ref().map(|text| match text.trim() {
            "immediate" => Ok(Start::Immediate),
            "latest" => Ok(Start::Latest),
            _ => Err(ConfigError::Value {
                path: at("start"),
                value: text.clone(),
                allowed: "expected immediate or latest".to_owned(),
            }),
        });
        Ok(Some(SloConfig {
            targets: self.queues.iter().enumerate().map(target).collect::<Result<_, _>>()?,
            pods_per_node: counted("pods_per_node", &self.pods_per_node, MOST_PER_NODE)?,
            max_pending: counted("max_pending", &self.max_pending, MOST_PENDING)?,
            start: start.transpose()?.unwrap_or_default(),
        }))
    }
}
