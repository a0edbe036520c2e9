//! Figures, and how they are shown.

use anyhow::Result;
use serde::Serialize;

/// One measured figure.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    bench: &'static str,
    case: String,
    /// The median; of processor time the mean.
    value: f64,
    unit: &'static str,
    /// The lowest and the highest measurement.
    spread: Option<[f64; 2]>,
    /// The same of what it is compared with, measured in the same run.
    baseline: Option<f64>,
    ratio: Option<f64>,
    /// The lowest and the highest ratio of one round.
    ratio_spread: Option<[f64; 2]>,
    target: Option<f64>,
    /// What the target asks for.
    target_is: Option<TargetIs>,
    holds: Option<bool>,
}

/// What a target asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum TargetIs {
    /// A value of at most this.
    MostValue,
    /// A value of at least this.
    LeastValue,
    /// A ratio of at least this.
    LeastRatio,
}

// === impl Figure ===

impl Figure {
    /// The median of `samples`, of which there is at least one.
    pub(crate) fn median(bench: &'static str, case: &str, unit: &'static str, samples: &[f64]) -> Self {
        Self::new(bench, case, unit, quantile(samples, 0.5)).with_spread(samples)
    }

    /// A single figure.
    pub(crate) fn new(bench: &'static str, case: &str, unit: &'static str, value: f64) -> Self {
        Self {
            bench,
            case: case.to_owned(),
            value,
            unit,
            spread: None,
            baseline: None,
            ratio: None,
            ratio_spread: None,
            target: None,
            target_is: None,
            holds: None,
        }
    }

    /// Medians of `samples` and `baselines`, measured in turns. The ratio is the median of the rounds' ratios:
    /// what else the machine does weighs on both sides of a round alike.
    pub(crate) fn paired(
        bench: &'static str,
        case: &str,
        unit: &'static str,
        samples: &[f64],
        baselines: &[f64],
    ) -> Self {
        let ratios: Vec<f64> = samples.iter().zip(baselines).map(|(ours, theirs)| ours / theirs).collect();
        Self {
            baseline: Some(quantile(baselines, 0.5)),
            ratio: Some(quantile(&ratios, 0.5)),
            ratio_spread: Some(range(&ratios)),
            ..Self::median(bench, case, unit, samples)
        }
    }

    /// Compared with what the baseline took.
    pub(crate) fn against(self, baseline: f64) -> Self {
        Self { ratio: Some(self.value / baseline), baseline: Some(baseline), ..self }
    }

    /// It should be at most this.
    pub(crate) fn at_most(self, target: f64) -> Self {
        let holds = self.value <= target;
        self.with_target(target, TargetIs::MostValue, holds)
    }

    /// It should be at least this.
    pub(crate) fn at_least(self, target: f64) -> Self {
        let holds = self.value >= target;
        self.with_target(target, TargetIs::LeastValue, holds)
    }

    /// It should be at least so many times the baseline.
    pub(crate) fn at_least_times(self, target: f64) -> Self {
        let holds = self.ratio.is_some_and(|ratio| ratio >= target);
        self.with_target(target, TargetIs::LeastRatio, holds)
    }

    pub(crate) fn with_spread(self, samples: &[f64]) -> Self {
        Self { spread: Some(range(samples)), ..self }
    }

    fn with_target(self, target: f64, is: TargetIs, holds: bool) -> Self {
        Self { target: Some(target), target_is: Some(is), holds: Some(holds), ..self }
    }

    fn target_text(&self) -> String {
        let Some((target, is)) = self.target.map(shown).zip(self.target_is) else { return String::new() };
        match is {
            TargetIs::MostValue => format!("≤ {target}"),
            TargetIs::LeastValue => format!("≥ {target}"),
            TargetIs::LeastRatio => format!("≥ {target} ×"),
        }
    }
}

fn range(samples: &[f64]) -> [f64; 2] {
    [quantile(samples, 0.0), quantile(samples, 1.0)]
}

/// The value below which the share `q` of the samples lies (nearest rank); of none: not a number.
pub(crate) fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a handful of samples and a share between 0 and 1"
    )]
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// One object a line.
pub(crate) fn as_json(figures: &[Figure]) -> Result<String> {
    let lines = figures.iter().map(|figure| Ok(serde_json::to_string(figure)? + "\n"));
    lines.collect()
}

/// A table.
pub(crate) fn as_text(figures: &[Figure]) -> String {
    let heading =
        ["", "value", "", "lowest – highest", "baseline", "ratio", "lowest – highest", "target", ""];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(figures.iter().map(|figure| {
        let number = |value: Option<f64>| value.map(shown).unwrap_or_default();
        let range = |ends: Option<[f64; 2]>| {
            ends.map(|[low, high]| format!("{} – {}", shown(low), shown(high))).unwrap_or_default()
        };
        let verdict = match figure.holds {
            Some(true) => "holds",
            Some(false) => "MISSED",
            None => "",
        };
        [
            format!("{}: {}", figure.bench, figure.case),
            shown(figure.value),
            figure.unit.to_owned(),
            range(figure.spread),
            number(figure.baseline),
            number(figure.ratio),
            range(figure.ratio_spread),
            figure.target_text(),
            verdict.to_owned(),
        ]
    }));
    let widths: Vec<usize> = (0..heading.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 | 2 | 8 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Three digits are all that a measurement on a shared machine is good for.
fn shown(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "a quantile is a sample, to the bit")]
    fn a_quantile_is_one_of_the_samples() {
        let samples = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!([0.0, 0.5, 0.9, 1.0].map(|q| quantile(&samples, q)), [1.0, 3.0, 5.0, 5.0]);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_missed_target_is_told_in_both_shapes() {
        let figures = [
            Figure::median("worker", "start", "ms", &[30.0, 20.0, 10.0]).against(5.0).at_most(15.0),
            Figure::new("worker", "memory", "MB", 123.4),
        ];
        let expected = "\
                        value       lowest – highest  baseline  ratio  lowest – highest  target
worker: start             20.0  ms       10.0 – 30.0      5.00   4.00                    ≤ 15.0  MISSED
worker: memory             123  MB
";
        let squeeze = |text: &str| -> Vec<Vec<String>> {
            text.lines().map(|line| line.split_whitespace().map(ToOwned::to_owned).collect()).collect()
        };
        assert_eq!(squeeze(&as_text(&figures)), squeeze(expected));
        let json = as_json(&figures).unwrap();
        let lines: Vec<serde_json::Value> =
            json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let missed = serde_json::json!({
            "bench": "worker", "case": "start", "value": 20.0, "unit": "ms", "spread": [10.0, 30.0],
            "baseline": 5.0, "ratio": 4.0, "ratio_spread": null,
            "target": 15.0, "target_is": "most_value", "holds": false,
        });
        assert_eq!(lines[0], missed);
        assert!(lines[1]["baseline"].is_null() && lines[1]["holds"].is_null());
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_and_a_target_may_be_one() {
        // The second round ran beside something else.
        let figure =
            Figure::paired("worker", "rate", "messages/s", &[96.0, 10.0, 99.0], &[100.0, 10.0, 90.0]);
        assert_eq!((figure.value, figure.baseline, figure.ratio), (96.0, Some(90.0), Some(1.0)));
        assert_eq!(figure.ratio_spread, Some([0.96, 1.1]));
        let figure = figure.at_least_times(1.05);
        assert_eq!((figure.holds, figure.target_text().as_str()), (Some(false), "≥ 1.05 ×"));
        let figure = figure.at_least(96.0);
        assert_eq!((figure.holds, figure.target_text().as_str()), (Some(true), "≥ 96.0"));
    }
}
