//! Folds what the listing proves into the record, once fleet-wide: settled intents, and outcomes of ended
//! workers with what they teach.

use mayfly_service::{ExitCode, report::ExitReason};

use super::{Action, Deadlines, Ending, LastFailure, Phase, PoolState, StateRecord, Worker};
use crate::{config::Config, time::Time};

/// A judged record.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// The record with everything folded in.
    pub record: StateRecord,
    /// What was folded in, for the log.
    pub verdicts: Vec<(String, Verdict)>,
}

/// What an ended worker means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It did its part, or ended for a reason that is nobody's fault.
    Fine(Option<ExitReason>),
    /// It failed, in words.
    Failed(String),
    /// The cluster took it away, in words: no failure.
    Disrupted(String),
    /// It never started: no failure, its serial is burnt.
    NeverStarted,
}

/// What is known of a worker once nothing more is expected of it.
struct Outcome<'a> {
    at: Time,
    verdict: Verdict,
    /// `None` if it was given up before it started.
    ending: Option<&'a Ending>,
}

/// Folds `workers`, listed after `record` was read, into it.
#[must_use]
pub fn judge(record: &StateRecord, workers: &[Worker], config: &Config, now: Time) -> Judgement {
    let mut judgement = Judgement { record: record.clone(), verdicts: Vec::new() };
    let names = workers.iter().map(|worker| worker.pool.clone()).chain(record.pools.keys().cloned());
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        let mut listed: Vec<_> = workers.iter().filter(|worker| worker.pool == name).collect();
        listed.sort_by_key(|worker| worker.serial);
        let state = judgement.record.pool_mut(&name);
        settle_intents(state, &listed);
        state.estimates.learn_places(listed.iter().copied());
        judge_outcomes(state, &name, &listed, config, now, &mut judgement.verdicts);
        // A serial is kept while its Job exists: the record was read before the listing, so a Job that the
        // listing lacks is gone for good.
        state.judged.retain(|serial| listed.iter().any(|worker| worker.serial == Some(*serial)));
    }
    judgement
}

fn settle_intents(state: &mut PoolState, listed: &[&Worker]) {
    let (settled, open) = std::mem::take(&mut state.intents)
        .into_iter()
        .partition(|intent| listed.iter().any(|worker| worker.serial == Some(intent.serial)));
    state.intents = open;
    for intent in Vec::from_iter(settled) {
        state.last_settled_launch = state.last_settled_launch.max(Some(intent.stamp));
    }
    // A Job of ours whose intent was withdrawn, or whose record was lost, must not be named again.
    if let Some(highest) = listed.iter().filter_map(|worker| worker.serial).max() {
        state.next_serial = state.next_serial.max(highest.saturating_add(1));
    }
}

fn judge_outcomes(
    state: &mut PoolState,
    name: &str,
    listed: &[&Worker],
    config: &Config,
    now: Time,
    verdicts: &mut Vec<(String, Verdict)>,
) {
    let deadlines = config.pool(name).map(|pool| pool.deadlines).unwrap_or_default();
    let mut outcomes: Vec<_> = listed
        .iter()
        .filter_map(|worker| {
            let serial = worker.serial.filter(|serial| !state.judged.contains(serial))?;
            Some((worker, serial, Outcome::of(&worker.phase, &deadlines, now)?))
        })
        .collect();
    outcomes.sort_by_key(|(_, _, outcome)| outcome.at);
    for (worker, serial, Outcome { verdict, ending, .. }) in outcomes {
        state.judged.push(serial);
        if let Some(ending) = ending {
            state.estimates.learn(ending, worker.cold);
            if ending.report.as_ref().is_some_and(|report| report.done > 0) {
                state.forgive();
            }
        }
        if let (Verdict::Failed(why), Some(pool)) = (&verdict, config.pool(name)) {
            state.fail(pool, now);
            state.last_failure = Some(LastFailure {
                at: now,
                worker: worker.name.clone(),
                why: why.clone(),
                last_words: ending.and_then(|ending| ending.last_words.clone()),
            });
        }
        verdicts.push((worker.name.clone(), verdict));
    }
    state.judged.sort_unstable();
}

// === impl Outcome ===

impl<'a> Outcome<'a> {
    fn of(phase: &'a Phase, deadlines: &Deadlines, now: Time) -> Option<Self> {
        match phase {
            Phase::Finished(ending) => {
                Some(Self { at: ending.at, verdict: ending.verdict(), ending: Some(ending) })
            }
            Phase::Pending { cause, since, detail, .. } if phase.action(now, deadlines) == Action::Fail => {
                let detail = detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
                let waited = now.since(*since).as_secs();
                let text = format!("given up after {waited} s: {}{detail}", cause.as_str());
                Some(Self { at: now, verdict: Verdict::Failed(text), ending: None })
            }
            _ => None,
        }
    }
}

// === impl Ending ===

impl Ending {
    /// Whether the worker failed (facts/scaling §3.4): exit 78 or 75, or an end before ready, always; exit 70
    /// or an end without report, unless something was done. Exit 69 after ready is a disruption, and so is
    /// every bad end of a worker that the cluster took away.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self.own_verdict() {
            Verdict::Failed(why) if self.disrupted => Verdict::Disrupted(why),
            verdict => verdict,
        }
    }

    fn own_verdict(&self) -> Verdict {
        if !self.started && self.report.is_none() {
            return Verdict::NeverStarted;
        }
        let Some(report) = &self.report else {
            return Verdict::Failed(self.text());
        };
        let was_ready = report.startup_ms.is_some();
        let is = |code: ExitCode| self.exit_code == Some(code.code());
        let fine = is(ExitCode::Ok)
            || (is(ExitCode::Unavailable) && was_ready)
            || (!is(ExitCode::Config) && !is(ExitCode::TempFail) && was_ready && report.done > 0);
        if fine { Verdict::Fine(Some(report.reason)) } else { Verdict::Failed(self.text()) }
    }

    /// The end in words: what the worker said of it, or that it said nothing; and what the cluster says.
    fn text(&self) -> String {
        let code = match self.exit_code {
            Some(code) => format!(" with exit code {code}"),
            None if self.report.is_some() => " without an exit code".to_owned(),
            None => String::new(),
        };
        let told = self.report.as_ref().map_or_else(
            || " without a report".to_owned(),
            |report| {
                let detail = report.detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
                format!(" ({}){detail}", report.reason.as_str())
            },
        );
        let seen = self.detail.as_ref().map_or_else(String::new, |detail| format!("; {detail}"));
        format!("ended{code}{told}{seen}")
    }
}
