//! How wrong each source is, by queue and phase.

use anyhow::{Result, ensure};
use mayfly_tests::{Kind, Release, bed::rounds};
use serde_json::Value;

use super::truth::{Log, Millis};

/// A delivery or a publish is known to the moment only as well as it takes.
const MARGIN: Millis = 150;
/// The same, in seconds.
const SLACK: f64 = 0.15;

/// An age as told, in seconds.
#[derive(Debug, Clone)]
pub(super) struct Age {
    at_least: f64,
    at_most: f64,
    estimate: f64,
    source: String,
}

/// One age as told, beside the truth.
#[derive(Debug)]
pub(super) struct Sample {
    /// The age of the oldest message when the scaler looked, in seconds as of when it told.
    truth: f64,
    told: Option<Age>,
    /// Whether the truth lies between the bounds.
    holds: bool,
}

/// All samples of a run.
#[derive(Debug)]
pub(super) struct Table {
    release: Release,
    samples: Vec<(&'static str, Kind, &'static str, Sample)>,
}

// === impl Age ===

impl Age {
    /// As it stands on the status page.
    pub(super) fn read(page: &Value) -> Option<Self> {
        Some(Self {
            at_least: page["at_least"].as_f64()?,
            at_most: page["at_most"].as_f64().unwrap_or(f64::INFINITY),
            estimate: page["estimate"].as_f64()?,
            source: page["source"].as_str()?.to_owned(),
        })
    }
}

// === impl Sample ===

impl Sample {
    /// What was told at one moment of what was seen at another; `None` where nothing waited just then.
    pub(super) fn of(log: &Log, (at, seen): (Millis, Millis), told: Option<Age>) -> Option<Self> {
        let truth = |moment| log.oldest(moment).map(|since| seconds(since, at));
        let around: Option<Vec<_>> = log.moments(seen, MARGIN).into_iter().map(truth).collect();
        let (now, around) = (truth(seen)?, around?);
        let holds = told.as_ref().is_none_or(|Age { at_least, at_most, .. }| {
            around.iter().any(|truth| at_least - SLACK <= *truth && *truth <= at_most + SLACK)
        });
        Some(Self { truth: now, told, holds })
    }
}

// === impl Table ===

impl Table {
    pub(super) const fn of(release: Release) -> Self {
        Self { release, samples: Vec::new() }
    }

    pub(super) fn add(&mut self, source: &'static str, kind: Kind, phase: &'static str, sample: Sample) {
        self.samples.push((source, kind, phase, sample));
    }

    fn of_source(&self, source: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |(of, ..)| *of == source).map(|(.., sample)| sample)
    }

    /// A row for each phase, and one for all of them.
    #[expect(clippy::print_stdout, reason = "the figures are what a full run is for")]
    pub(super) fn print(&self) {
        let mut groups: Vec<_> = self.samples.iter().map(|(source, kind, ..)| (*source, *kind)).collect();
        groups.sort_by_key(|(source, kind)| (*source, *kind == Kind::Quorum));
        groups.dedup();
        println!("| source | RabbitMQ | queue | phase | samples | known | p50 | p95 | worst | in bounds |");
        for (source, kind) in groups {
            let own = self.samples.iter().filter(|(of, queue, ..)| (*of, *queue) == (source, kind));
            let mut phases: Vec<_> = own.clone().map(|(.., phase, _)| *phase).collect();
            phases.dedup();
            for phase in phases.into_iter().chain(["all"]) {
                let samples: Vec<_> = own
                    .clone()
                    .filter(|(_, _, of, _)| phase == "all" || *of == phase)
                    .map(|(.., sample)| sample)
                    .collect();
                let errors = errors(samples.iter().copied());
                let known = samples.iter().filter(|sample| sample.told.is_some()).count();
                let hold = samples.iter().filter(|sample| sample.holds).count();
                println!(
                    "| {source} | {} | {kind:?} | {phase} | {} | {known} | {:.2} | {:.2} | {:.2} | {hold} |",
                    self.release,
                    samples.len(),
                    percentile(&errors, 0.5),
                    percentile(&errors, 0.95),
                    percentile(&errors, 1.0),
                );
            }
        }
    }

    /// What must hold of stamps: they are whole seconds, and while nobody takes anything nothing else errs.
    pub(super) fn judge_stamps(&self, source: &str, unattended: &str) -> Result<()> {
        let is_stamp = |it: &Sample| it.told.as_ref().is_some_and(|age| age.source == "head_stamp");
        let all: Vec<_> = self.of_source(source).collect();
        let stamped = all.iter().filter(|it| is_stamp(it)).count();
        ensure!(!all.is_empty() && stamped * 10 >= all.len() * 9, "{stamped} of {} by stamp", all.len());
        let outside: Vec<_> = self.samples.iter().filter(|(.., it)| is_stamp(it) && !it.holds).collect();
        ensure!(outside.is_empty(), "the truth lies outside: {outside:#?}");
        let quiet = self.samples.iter().filter(|(_, _, phase, it)| *phase == unattended && is_stamp(it));
        let errors = errors(quiet.map(|(.., sample)| sample));
        let worst = percentile(&errors, 1.0);
        ensure!(worst <= 1.0 + SLACK, "wrong by {worst} s though nothing was taken");
        Ok(())
    }

    /// What must hold of each source.
    pub(super) fn judge(&self) -> Result<()> {
        // A short run has too few samples to tell its 95th percentile from its worst second.
        let part = if rounds(20) == 20 { 0.95 } else { 0.5 };
        for (source, limit) in [("looks", f64::INFINITY), ("management", 5.0), ("prometheus", 1.0)] {
            let samples: Vec<_> = self.of_source(source).collect();
            // RabbitMQ 3.10 counts no publishing there.
            if samples.is_empty() && source == "prometheus" && self.release == Release::Packaged {
                continue;
            }
            let known = samples.iter().filter(|sample| sample.told.is_some()).count();
            ensure!(known * 20 >= samples.len() * 19, "{source}: {known} of {} are known", samples.len());
            let error = percentile(&errors(self.of_source(source)), part);
            ensure!(error <= limit, "{source}: wrong by {error} s at {part}");
            if source == "looks" {
                let outside: Vec<_> =
                    self.samples.iter().filter(|(of, .., it)| *of == source && !it.holds).collect();
                ensure!(outside.is_empty(), "the truth lies outside: {outside:#?}");
                continue;
            }
            let is_counted = |it: &&&Sample| it.told.as_ref().is_some_and(|age| age.source == "counters");
            let counted = samples.iter().filter(is_counted).count();
            ensure!(counted * 10 >= samples.len() * 9, "{source}: {counted} of {}", samples.len());
        }
        Ok(())
    }
}

fn errors<'a>(samples: impl Iterator<Item = &'a Sample>) -> Vec<f64> {
    let error = |sample: &Sample| sample.told.as_ref().map(|age| (age.estimate - sample.truth).abs());
    let mut errors: Vec<_> = samples.filter_map(error).collect();
    errors.sort_by(f64::total_cmp);
    errors
}

/// NaN of nothing.
fn percentile(sorted: &[f64], part: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let index = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of some minutes")]
fn seconds(from: Millis, to: Millis) -> f64 {
    to.saturating_sub(from) as f64 / 1000.0
}
