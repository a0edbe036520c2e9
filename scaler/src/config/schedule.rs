//! Other limits at certain times: windows between two cron expressions, in a time zone.

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, Zoned, tz::TimeZone};

use super::{
    ConfigError, PoolConfig,
    checked::{MOST_WORKERS, conflict, required},
    raw::RawWindow,
    values::{limit, number},
};
use crate::time::Time;

/// Limits that hold from each time of `start` to the next of `end`.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// When it begins: minute, hour, day of the month, month, day of the week.
    pub start: Cron,
    /// When it ends.
    pub end: Cron,
    /// Where these times are told.
    pub time_zone: TimeZone,
    /// Workers kept warm meanwhile; as always if `None`.
    pub min_workers: Option<u32>,
    /// Most workers meanwhile (`Some(None)` is unlimited); as always if `None`.
    pub max_workers: Option<Option<u32>>,
}

/// How many workers a pool has at least and at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Workers kept warm.
    pub min_workers: u32,
    /// Most workers occupied; `None` is unlimited, 0 launches nothing.
    pub max_workers: Option<u32>,
}

pub(super) fn checked(path: &str, windows: Vec<RawWindow>) -> Result<Vec<Window>, ConfigError> {
    let checked = |(index, window): (usize, RawWindow)| window.checked(&format!("{path}.schedule[{index}]"));
    windows.into_iter().enumerate().map(checked).collect()
}

// === impl RawWindow ===

impl RawWindow {
    fn checked(self, path: &str) -> Result<Window, ConfigError> {
        let Self { start, end, time_zone, min_workers, max_workers } = self;
        let at = |key: &str| format!("{path}.{key}");
        if min_workers.is_none() && max_workers.is_none() {
            return Err(conflict(
                path.to_owned(),
                "changes nothing: give min_workers or max_workers".to_owned(),
            ));
        }
        let five = "five fields: minute, hour, day of the month, month, day of the week";
        let zone = time_zone.as_deref().unwrap_or("UTC");
        Ok(Window {
            start: cron(&at("start"), &required(&at("start"), start, five)?)?,
            end: cron(&at("end"), &required(&at("end"), end, five)?)?,
            time_zone: TimeZone::get(zone).map_err(|_| ConfigError::Value {
                path: at("time_zone"),
                value: zone.to_owned(),
                allowed: "expected a time zone such as UTC or Europe/Berlin".to_owned(),
            })?,
            min_workers: min_workers
                .map(|text| number(&at("min_workers"), &text, 0..=MOST_WORKERS))
                .transpose()?,
            max_workers: max_workers
                .map(|text| limit(&at("max_workers"), &text, MOST_WORKERS))
                .transpose()?,
        })
    }
}

fn cron(path: &str, text: &str) -> Result<Cron, ConfigError> {
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    let refused = |problem: &dyn std::fmt::Display| ConfigError::Value {
        path: path.to_owned(),
        value: text.to_owned(),
        allowed: format!("expected a cron expression such as 0 8 * * mon-fri: {problem}"),
    };
    let cron = parser.parse(text).map_err(|error| refused(&error))?;
    // What never came would be looked for in all the past, at each decision.
    let any_time = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    match cron.find_next_occurrence(&any_time, true) {
        Ok(_) => Ok(cron),
        Err(_) => Err(refused(&"there is no such day")),
    }
}

// === impl Window ===

impl Window {
    /// Whether `now` lies in it: it has begun since it last ended. Where both fall together it has ended.
    #[must_use]
    pub fn contains(&self, now: Time) -> bool {
        let Some(now) = zoned(now, &self.time_zone) else { return false };
        let last = |cron: &Cron| cron.find_previous_occurrence(&now, true).ok();
        last(&self.start) > last(&self.end)
    }
}

fn zoned(time: Time, time_zone: &TimeZone) -> Option<Zoned> {
    let millis = i64::try_from(time.as_millis()).ok()?;
    Some(Timestamp::from_millisecond(millis).ok()?.to_zoned(time_zone.clone()))
}

// === impl PoolConfig ===

impl PoolConfig {
    /// The limits that hold at `now`.
    #[must_use]
    pub fn limits(&self, now: Time) -> Limits {
        let window = self.schedule.iter().find(|window| window.contains(now));
        window.map_or_else(|| self.always(), |window| self.within(window))
    }

    /// The limits outside of every window.
    pub(super) const fn always(&self) -> Limits {
        Limits { min_workers: self.min_workers, max_workers: self.max_workers }
    }

    /// The limits within `window`.
    pub(super) fn within(&self, window: &Window) -> Limits {
        Limits {
            min_workers: window.min_workers.unwrap_or(self.min_workers),
            max_workers: window.max_workers.unwrap_or(self.max_workers),
        }
    }

    /// The most workers that are ever kept warm.
    pub(super) fn greatest_minimum(&self) -> u32 {
        let of_windows = self.schedule.iter().filter_map(|window| window.min_workers);
        of_windows.fold(self.min_workers, u32::max)
    }
}

/// A schedule of this one window.
#[cfg(test)]
pub(crate) fn scheduled(window: &str) -> Vec<Window> {
    let text = format!(
        "instance: m\nlauncher: {{ process: {{ directory: d }} }}\npools:\n- name: p\n  queues: [{{ name: q }}]\n  \
         worker: {{ command: [w] }}\n  schedule: [{window}]\n"
    );
    super::Config::parse(&text, &super::Overrides::default()).unwrap().pools.remove(0).schedule
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides};

    fn pool(lines: &str) -> Result<PoolConfig, ConfigError> {
        let text = format!(
            "instance: m\nlauncher: {{ process: {{ directory: d }} }}\npools:\n- name: p\n  queues: [{{ name: q }}]\n  \
             worker: {{ command: [w] }}\n  min_workers: 1\n  schedule:\n{lines}"
        );
        Config::parse(&text, &Overrides::default()).map(|mut config| config.pools.remove(0))
    }

    fn limits(pool: &PoolConfig, time: &str) -> (u32, Option<u32>) {
        let time: Timestamp = time.parse().unwrap();
        let time = Time::from_millis(u64::try_from(time.as_millisecond()).unwrap());
        let Limits { min_workers, max_workers } = pool.limits(time);
        (min_workers, max_workers)
    }

    #[test]
    fn limits_change_with_the_hours_of_a_place_and_its_summer_time() {
        let pool = pool(
            "  - { start: 0 8 * * mon-fri, end: 0 18 * * mon-fri, time_zone: Europe/Berlin, min_workers: 3, max_workers: unlimited }",
        )
        .unwrap();
        let outside = (1, Some(10));
        let table = [
            ("a Monday in winter before 8", "2026-01-12T06:59:59Z", outside),
            ("at 8", "2026-01-12T07:00:00Z", (3, None)),
            ("before 18", "2026-01-12T16:59:59Z", (3, None)),
            ("at 18", "2026-01-12T17:00:00Z", outside),
            ("a Sunday at noon", "2026-01-11T12:00:00Z", outside),
            ("a Monday in summer before 8", "2026-07-13T05:59:59Z", outside),
            ("at 8 in summer", "2026-07-13T06:00:00Z", (3, None)),
        ];
        for (name, time, expected) in table {
            assert_eq!(limits(&pool, time), expected, "{name}");
        }
    }

    #[test]
    fn of_overlapping_windows_the_first_counts_and_what_it_is_silent_on_is_as_always() {
        let pool = pool(
            "  - { start: 0 12 * * *, end: 0 13 * * *, max_workers: 0, min_workers: 0 }\n  \
             - { start: 0 22 * * *, end: 0 20 * * *, max_workers: 4 }",
        )
        .unwrap();
        assert_eq!(limits(&pool, "2026-01-12T12:30:00Z"), (0, Some(0)));
        assert_eq!(limits(&pool, "2026-01-12T13:30:00Z"), (1, Some(4)), "over midnight");
        assert_eq!(limits(&pool, "2026-01-12T21:00:00Z"), (1, Some(10)));
    }

    #[test]
    fn a_window_whose_times_never_come_is_refused() {
        for never in ["0 0 30 2 *", "0 0 31 4 *"] {
            for (start, end) in [(never, "0 0 * * *"), ("0 0 * * *", never)] {
                let window = format!("  - {{ start: {start}, end: {end}, min_workers: 5 }}");
                let error = pool(&window).unwrap_err().to_string();
                assert!(error.ends_with("there is no such day"), "{error}");
            }
        }
        let leap = pool("  - { start: 0 0 29 2 *, end: 0 0 1 3 *, min_workers: 5 }").unwrap();
        assert_eq!(limits(&leap, "2028-02-29T12:30:00Z"), (5, Some(10)));
        assert_eq!(limits(&leap, "2027-02-28T12:30:00Z"), (1, Some(10)));
    }

    #[test]
    fn a_window_whose_times_fall_together_is_none() {
        let at_once = pool("  - { start: 0 8 * * *, end: 0 8 * * *, min_workers: 5 }").unwrap();
        assert_eq!(limits(&at_once, "2026-01-12T12:30:00Z"), (1, Some(10)));
    }

    #[test]
    fn every_mistake_in_a_schedule_names_its_place() {
        let table = [
            (
                "end: 0 8 * * *, max_workers: 2",
                "pools[0].schedule[0].start: is missing; five fields: minute, hour, day of the month, month, day of the week",
            ),
            (
                "start: 0 8 * * *, end: 0 9 * * *",
                "pools[0].schedule[0]: changes nothing: give min_workers or max_workers",
            ),
            (
                "start: 0 8 * * *, end: 0 9 * * *, min_workers: 11",
                "pools[0].schedule[0].min_workers: 11 is more than max_workers (10)",
            ),
            (
                "start: 0 8 * * *, end: 0 9 * * *, max_workers: 0",
                "pools[0].schedule[0].min_workers: 1 is more than max_workers (0)",
            ),
            (
                "start: 0 8 * * *, end: 0 9 * * *, max_workers: 2, time_zone: Mars",
                "pools[0].schedule[0].time_zone: \"Mars\" is not allowed; expected a time zone such as UTC or Europe/Berlin",
            ),
        ];
        for (window, expected) in table {
            assert_eq!(pool(&format!("  - {{ {window} }}")).unwrap_err().to_string(), expected, "{window}");
        }
        for wrong in ["8", "0 25 * * *", "0 0 8 * * *", "0 8 * * someday"] {
            let text = format!("  - {{ start: {wrong}, end: 0 9 * * *, max_workers: 2 }}");
            let error = pool(&text).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("pools[0].schedule[0].start: \"{wrong}\" is not allowed")),
                "{error}"
            );
        }
    }
}
