//! Worker templates as read a moment ago, and those that are missing. Pure.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use crate::{
    config::{Config, WorkerTemplate},
    policy::MissingTemplate,
    time::Time,
};

/// A template is read once for launches that belong together.
const FRESH: Duration = Duration::from_secs(2);
/// How often a missing one is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What is known of templates, by name.
#[derive(Debug, Default)]
pub(super) struct Templates {
    known: BTreeMap<String, (Instant, Value)>,
    missing: BTreeMap<String, Missed>,
}

#[derive(Debug, Clone, Copy)]
struct Missed {
    since: Instant,
    looked: Instant,
}

// === impl Templates ===

impl Templates {
    /// The template, if it was read so recently that it may be launched from.
    pub(super) fn fresh(&self, name: &str, now: Instant) -> Option<Value> {
        let (read, template) = self.known.get(name)?;
        (now.duration_since(*read) < FRESH).then(|| template.clone())
    }

    /// The template as it was last read, also if it is missing now.
    pub(super) fn known(&self, name: &str) -> Option<Value> {
        self.known.get(name).map(|(_, template)| template.clone())
    }

    /// It was read: asked for at `asked`.
    pub(super) fn take(&mut self, name: &str, template: &Value, asked: Instant) {
        self.missing.remove(name);
        self.known.insert(name.to_owned(), (asked, template.clone()));
    }

    /// It was not there.
    pub(super) fn miss(&mut self, name: &str, asked: Instant) {
        let missed = self.missing.entry(name.to_owned()).or_insert(Missed { since: asked, looked: asked });
        missed.looked = missed.looked.max(asked);
        // Nothing is launched from what is gone.
        if let Some((read, _)) = self.known.get_mut(name) {
            *read = (*read).min(asked.checked_sub(FRESH).unwrap_or(*read));
        }
    }

    /// One that is missing and may be looked for again: the one that was not looked for longest.
    pub(super) fn due(&mut self, now: Instant) -> Option<String> {
        let (name, missed) = self.missing.iter_mut().min_by_key(|(_, missed)| missed.looked)?;
        if now.duration_since(missed.looked) < LOOK_AGAIN {
            return None;
        }
        // Also if there is no answer: the others come first.
        missed.looked = now;
        Some(name.clone())
    }

    /// The pools of `config` whose template is missing. What no pool names any more is forgotten.
    pub(super) fn missing(
        &mut self,
        config: &Config,
        clock: Instant,
        now: Time,
    ) -> BTreeMap<String, MissingTemplate> {
        if self.missing.is_empty() {
            return BTreeMap::new();
        }
        let named = |pool: &crate::config::PoolConfig| match &pool.worker {
            WorkerTemplate::CronJob(name) => Some((pool.name.clone(), name.clone())),
            WorkerTemplate::Process { .. } => None,
        };
        let pools: Vec<_> = config.pools.iter().filter_map(named).collect();
        self.missing.retain(|template, _| pools.iter().any(|(_, name)| name == template));
        let missing = |(pool, name): (String, String)| {
            let since = now - clock.duration_since(self.missing.get(&name)?.since);
            Some((pool, MissingTemplate { name, since }))
        };
        pools.into_iter().filter_map(missing).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Overrides;

    #[test]
    fn a_template_is_fresh_for_two_seconds_and_not_once_it_is_gone() {
        let (mut templates, now) = (Templates::default(), Instant::now());
        templates.take("a", &json!({ "x": 1 }), now);
        assert_eq!(templates.fresh("a", now + Duration::from_millis(1999)), Some(json!({ "x": 1 })));
        assert_eq!(templates.fresh("a", now + FRESH), None);
        let later = now + Duration::from_secs(60);
        templates.take("a", &json!({ "x": 2 }), later);
        templates.miss("a", later);
        assert_eq!(templates.fresh("a", later), None);
        assert_eq!(templates.known("a"), Some(json!({ "x": 2 })), "Events may still name it");
    }

    #[test]
    fn what_is_missing_is_looked_for_every_five_seconds_one_at_a_time_until_it_is_there() {
        let (mut templates, now) = (Templates::default(), Instant::now());
        let after = |seconds: u64| now + Duration::from_secs(seconds);
        templates.miss("a", now);
        templates.miss("b", after(1));
        assert_eq!(templates.due(after(4)), None);
        assert_eq!(templates.due(after(5)), Some("a".to_owned()));
        assert_eq!(templates.due(after(5)), None, "b has time");
        assert_eq!(templates.due(after(6)), Some("b".to_owned()));
        templates.take("a", &json!({}), after(7));
        assert_eq!(templates.due(after(100)), Some("b".to_owned()), "a is there");
        assert_eq!(templates.due(after(100)), None);
    }

    #[test]
    fn a_pool_that_names_another_template_is_not_waiting_for_the_old_one() {
        let (mut templates, clock) = (Templates::default(), Instant::now() + Duration::from_secs(60));
        let config = |template: &str| {
            let text = format!(
                "{{ instance: i, launcher: {{ kubernetes: {{}} }}, \
                 pools: [{{ name: p, queues: [{{ name: q }}], worker: {{ template: {template} }} }}] }}"
            );
            Config::parse(&text, &Overrides::default()).unwrap()
        };
        let now = Time::from_millis(1_800_000_000_000);
        templates.miss("a", clock.checked_sub(Duration::from_secs(30)).unwrap());
        let expected = MissingTemplate { name: "a".to_owned(), since: now - Duration::from_secs(30) };
        let missing = templates.missing(&config("a"), clock, now);
        assert_eq!(missing, BTreeMap::from([("p".to_owned(), expected)]));
        assert!(templates.missing(&config("b"), clock, now).is_empty());
        assert_eq!(templates.due(clock + Duration::from_secs(60)), None, "nobody looks for it");
    }
}
