//! From what endpoints say to one count for each queue: nodes are added up, what begins anew is carried on, and
//! endpoints that are not what they should be are refused.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::page::{Counts, Page};
use crate::{policy::Counters, time::Time};

/// A node of which a queue's counter goes back more often than this in [`FALLS_WITHIN`] is several nodes.
const FALLS: usize = 2;
const FALLS_WITHIN: Duration = Duration::from_mins(2);

/// All endpoints together.
#[derive(Debug)]
pub(crate) struct Sum {
    watched: BTreeSet<String>,
    endpoints: Vec<Endpoint>,
}

/// One endpoint's past.
#[derive(Debug, Default)]
struct Endpoint {
    node: Option<String>,
    queues: BTreeMap<String, Carried>,
    /// When the counters of which queues last went back.
    falls: VecDeque<(Time, String)>,
    /// It was found out for good: what it says is believed no more.
    refused: Option<Refused>,
}

/// A queue's counters at one endpoint, carried on where they begin anew.
#[derive(Debug, Clone, Copy, Default)]
struct Carried {
    published: Total,
    acknowledged: Total,
}

/// A number that only grows: `before` is what it had come to when it last began anew.
#[derive(Debug, Clone, Copy, Default)]
struct Total {
    before: u64,
    last: u64,
    falls: u64,
}

/// Why an endpoint cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// Different nodes answer.
    #[error(
        "several nodes answer at one address ({0} and {1}): give each node's own address, as a list \
         (counters.prometheus)"
    )]
    Balanced(String, String),
    /// Different nodes seem to answer.
    #[error(
        "its counters go back again and again, as if several nodes answered: give each node's own address"
    )]
    GoesBack,
    /// Another endpoint is the same node.
    #[error("it is the same node as another one ({0}): every message would count twice")]
    Twice(String),
    /// The broker is too old for this source.
    #[error(
        "RabbitMQ {0} does not count what is published into a queue there (4.0 and later do): use \
         counters.management"
    )]
    TooOld(String),
}

// === impl Sum ===

impl Sum {
    /// Of so many endpoints, for these queues.
    pub(crate) fn of(endpoints: usize, queues: impl IntoIterator<Item = String>) -> Self {
        let endpoints = (0..endpoints).map(|_| Endpoint::default()).collect();
        Self { watched: queues.into_iter().collect(), endpoints }
    }

    /// The queues that it is asked for.
    pub(crate) const fn queues(&self) -> &BTreeSet<String> {
        &self.watched
    }

    /// Folds in one page of each endpoint, in order, and says what it all comes to for `queues`.
    ///
    /// # Errors
    /// The number of an endpoint that is refused, and why.
    pub(crate) fn fold(&mut self, pages: &[Page], now: Time) -> Result<(), (usize, Refused)> {
        for (index, (endpoint, page)) in self.endpoints.iter_mut().zip(pages).enumerate() {
            endpoint.fold(page, &self.watched, now).map_err(|refused| (index, refused))?;
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let same = |other: &&Endpoint| other.node.is_some() && other.node == endpoint.node;
            if let Some(Endpoint { node: Some(node), .. }) = self.endpoints.iter().take(index).find(same) {
                return Err((index, Refused::Twice(node.clone())));
            }
        }
        Ok(())
    }

    /// What it comes to for one queue; `pages` are the last ones, complete at `answered`. Those
    /// of a source that is `late` may tell what was so long ago.
    pub(crate) fn counters(&self, queue: &str, pages: &[Page], answered: Time, late: Duration) -> Counters {
        let retries = format!("{queue}.retry.");
        let retry_queues = |endpoint: &'_ Endpoint| {
            let names = endpoint.queues.range(retries.clone()..).map(|(name, _)| name.clone());
            names.take_while(|name| name.starts_with(&retries)).collect::<Vec<_>>()
        };
        let delay = |name: &str| humantime::parse_duration(name.strip_prefix(&retries)?).ok();
        let names = self.endpoints.iter().flat_map(retry_queues);
        let mut returns: Vec<_> = names.filter_map(|name| Some((delay(&name)?, name))).collect();
        returns.sort_unstable();
        returns.dedup();
        let now: Vec<_> = pages.iter().filter_map(|page| page.queues.get(queue)).collect();
        let sum =
            |of: fn(&Counts) -> Option<u64>| now.iter().filter_map(|counts| of(counts)).reduce(|a, b| a + b);
        Counters {
            answered,
            late,
            published: Some(self.total(queue, |carried| carried.published)),
            restarts: self.carried(queue).map(|carried| carried.published.falls).sum(),
            returns: returns
                .into_iter()
                .map(|(delay, name)| (delay, self.total(&name, |carried| carried.published)))
                .collect(),
            acknowledged: sum(|counts| counts.acknowledged)
                .map(|_| self.total(queue, |carried| carried.acknowledged)),
            unacked: sum(|counts| counts.unacked),
            head_stamp: now
                .iter()
                .filter_map(|counts| counts.head_stamp)
                .min()
                .map(|seconds| Time::from_millis(seconds.saturating_mul(1000))),
        }
    }

    fn total(&self, queue: &str, of: fn(&Carried) -> Total) -> u64 {
        self.carried(queue).map(of).map(|total| total.before + total.last).sum()
    }

    fn carried(&self, queue: &str) -> impl Iterator<Item = &Carried> {
        self.endpoints.iter().filter_map(move |endpoint| endpoint.queues.get(queue))
    }
}

// === impl Endpoint ===

impl Endpoint {
    fn fold(&mut self, page: &Page, watched: &BTreeSet<String>, now: Time) -> Result<(), Refused> {
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        let judged = self.judge(page, watched, now);
        // What looks like several nodes may be one that is restarted again and again.
        self.refused = judged.clone().err().filter(|refused| *refused != Refused::GoesBack);
        judged
    }

    fn judge(&mut self, page: &Page, watched: &BTreeSet<String>, now: Time) -> Result<(), Refused> {
        if !page.counts_publishing {
            return Err(Refused::TooOld(page.version.clone().unwrap_or_default()));
        }
        if let (Some(known), Some(node)) = (&self.node, &page.node)
            && known != node
        {
            return Err(Refused::Balanced(known.clone(), node.clone()));
        }
        self.node.clone_from(&page.node);
        for (queue, carried) in &mut self.queues {
            let Some(counts) = page.queues.get(queue) else {
                // It was deleted: should it come back, it begins anew.
                carried.published.carry(0);
                continue;
            };
            // Without a number nothing was counted since the broker's last start.
            if carried.published.carry(counts.published.unwrap_or(carried.published.last)) {
                self.falls.push_back((now, queue.clone()));
            }
            carried.acknowledged.carry(counts.acknowledged.unwrap_or(carried.acknowledged.last));
        }
        let is_watched = |queue: &str| {
            let of = queue.rsplit_once(".retry.").map_or(queue, |(of, _)| of);
            watched.contains(of) || watched.contains(queue)
        };
        for (queue, counts) in page.queues.iter().filter(|(queue, _)| is_watched(queue)) {
            let number = |number: Option<u64>| Total { last: number.unwrap_or(0), ..Total::default() };
            self.queues.entry(queue.clone()).or_insert_with(|| Carried {
                published: number(counts.published),
                acknowledged: number(counts.acknowledged),
            });
        }
        while self.falls.front().is_some_and(|(at, _)| now.since(*at) > FALLS_WITHIN) {
            self.falls.pop_front();
        }
        let of = |queue: &String| self.falls.iter().filter(|(_, other)| other == queue).count();
        if self.falls.iter().any(|(_, queue)| of(queue) > FALLS) { Err(Refused::GoesBack) } else { Ok(()) }
    }
}

// === impl Total ===

impl Total {
    /// Takes in the number as it is now. Whether it went back.
    const fn carry(&mut self, now: u64) -> bool {
        let fell = now < self.last;
        if fell {
            self.before = self.before.saturating_add(self.last);
            self.falls += 1;
        }
        self.last = now;
        fell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(1_800_000_000_000);

    fn page(node: Option<&str>, queues: &[(&str, u64)]) -> Page {
        let counts = |published| Counts { published: Some(published), ..Counts::default() };
        Page {
            node: node.map(str::to_owned),
            version: Some("4.0.5".to_owned()),
            counts_publishing: true,
            queues: queues.iter().map(|(queue, n)| ((*queue).to_owned(), counts(*n))).collect(),
        }
    }

    fn of(endpoints: usize) -> Sum {
        Sum::of(endpoints, ["q".to_owned()])
    }

    fn published(sum: &Sum, pages: &[Page]) -> u64 {
        sum.counters("q", pages, NOW, Duration::ZERO).published.unwrap()
    }

    #[test]
    fn nodes_are_added_up_and_one_that_begins_anew_is_carried_on() {
        let mut sum = of(2);
        let mut fold = |a, b| {
            let pages = [page(Some("a"), &[("q", a)]), page(Some("b"), &[("q", b)])];
            sum.fold(&pages, NOW).unwrap();
            published(&sum, &pages)
        };
        assert_eq!(fold(10, 5), 15);
        assert_eq!(fold(12, 5), 17);
        assert_eq!(fold(1, 5), 18, "node a was restarted, one message came since");
    }

    #[test]
    fn a_queue_that_is_no_longer_named_keeps_its_count() {
        let mut sum = of(1);
        for (queues, total) in [(&[("q", 7)][..], 7), (&[], 7), (&[("q", 2)], 9)] {
            let pages = [page(Some("a"), queues)];
            sum.fold(&pages, NOW).unwrap();
            assert_eq!(published(&sum, &pages), total);
        }
    }

    #[test]
    fn an_address_at_which_several_nodes_answer_is_refused_for_good() {
        let mut sum = of(1);
        sum.fold(&[page(Some("a"), &[])], NOW).unwrap();
        let balanced = Err((0, Refused::Balanced("a".to_owned(), "b".to_owned())));
        assert_eq!(sum.fold(&[page(Some("b"), &[])], NOW), balanced);
        assert_eq!(sum.fold(&[page(Some("a"), &[])], NOW), balanced);
    }

    #[test]
    fn a_count_that_goes_back_again_and_again_is_refused_where_nodes_do_not_say_who_they_are() {
        let mut sum = of(1);
        let mut outcomes = Vec::new();
        for round in 0..6 {
            let count = if round % 2 == 0 { 100 + round } else { 10 + round };
            outcomes.push(sum.fold(&[page(None, &[("q", count)])], NOW + Duration::from_secs(round)));
        }
        assert_eq!(outcomes.last(), Some(&Err((0, Refused::GoesBack))));
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 5, "a restart is none");
    }

    #[test]
    fn queues_that_are_deleted_and_a_broker_that_is_restarted_are_not_taken_for_several_nodes() {
        let mut sum = of(1);
        let names = ["q", "q.retry.5s", "q.retry.30s", "q.retry.2m", "q.retry.10m"];
        let mut now = NOW;
        let mut fold = |counts: &[(&str, u64)]| {
            now = now + Duration::from_secs(2);
            sum.fold(&[page(None, counts)], now).unwrap();
        };
        let all = names.map(|name| (name, 9));
        fold(&all);
        // They go one by one, come back, and begin anew one by one.
        for gone in 1..=all.len() {
            fold(&all[gone..]);
        }
        fold(&all);
        for restarted in 1..=all.len() {
            let mut counts = all;
            counts[..restarted].iter_mut().for_each(|(_, count)| *count = 1);
            fold(&counts);
        }
    }

    #[test]
    fn a_node_that_was_restarted_again_and_again_is_believed_once_it_stays() {
        let mut sum = of(1);
        for round in 0..4 {
            let count = 10 - round;
            let _ = sum.fold(&[page(None, &[("q", count)])], NOW + Duration::from_secs(round));
        }
        let mut fold = |later| sum.fold(&[page(None, &[("q", 20)])], NOW + later);
        assert_eq!(fold(Duration::from_secs(5)), Err((0, Refused::GoesBack)));
        assert_eq!(fold(FALLS_WITHIN + Duration::from_secs(5)), Ok(()));
    }

    #[test]
    fn a_queue_without_a_number_keeps_its_count() {
        let mut sum = of(1);
        let mut silent = page(None, &[("q", 0)]);
        silent.queues.insert("q".to_owned(), Counts::default());
        for (page, total) in [(page(None, &[("q", 7)]), 7), (silent, 7), (page(None, &[("q", 2)]), 9)] {
            let pages = [page];
            sum.fold(&pages, NOW).unwrap();
            assert_eq!(published(&sum, &pages), total);
        }
    }

    #[test]
    fn one_node_at_two_addresses_is_refused() {
        let mut sum = of(2);
        let pages = [page(Some("a"), &[]), page(Some("a"), &[])];
        assert_eq!(sum.fold(&pages, NOW), Err((1, Refused::Twice("a".to_owned()))));
    }

    #[test]
    fn an_older_broker_is_refused_with_what_to_use_instead() {
        let old = Page { counts_publishing: false, version: Some("3.10.8".to_owned()), ..page(None, &[]) };
        let (_, refused) = of(1).fold(&[old], NOW).unwrap_err();
        assert!(refused.to_string().contains("3.10.8") && refused.to_string().contains("management"));
    }

    #[test]
    fn retry_queues_are_told_with_their_delays() {
        let mut sum = of(1);
        let queues =
            [("q", 9), ("q.retry.5s", 3), ("q.retry.2m", 1), ("q.retry.often", 8), ("qq.retry.5s", 8)];
        let pages = [page(Some("a"), &queues)];
        sum.fold(&pages, NOW).unwrap();
        let seconds = Duration::from_secs;
        assert_eq!(
            sum.counters("q", &pages, NOW, Duration::ZERO).returns,
            [(seconds(5), 3), (seconds(120), 1)]
        );
    }

    #[test]
    fn a_queue_that_nothing_was_published_into_counts_nothing() {
        let mut sum = of(1);
        let pages = [page(Some("a"), &[])];
        sum.fold(&pages, NOW).unwrap();
        assert_eq!(published(&sum, &pages), 0);
    }
}
