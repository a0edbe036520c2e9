//! The age of the oldest ready message from what the broker counts (DESIGN §7): of `total` arrivals the last
//! `ready` wait, so the head is arrival `total − ready + 1`; when it arrived stands in the counter's history.

use std::{collections::VecDeque, time::Duration};

use super::super::Counters;
use crate::time::Time;

/// A counter that was read longer ago says nothing about the present head.
pub(crate) const STALE_AFTER: Duration = Duration::from_secs(20);
/// Readings may be further apart the older they are: by this part of their age. So an hour takes some hundred.
const RESOLUTION: u32 = 100;
/// So many readings later it is seen to that.
const THINNED_EVERY: usize = 32;
/// What was read within this time is kept also when the head is younger: messages may be given back.
const KEPT: Duration = Duration::from_mins(15);
/// Looks are kept for so much longer than the counter may be late.
const LOOKS_KEPT: Duration = Duration::from_secs(2);
/// A message that comes back from a retry queue does so a little later than its delay says.
const RETURNS_KEPT: Duration = Duration::from_secs(60);

/// The history of one queue's arrivals, and where in it the head stands.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Counted {
    /// Oldest first; only those that the present head's age may need.
    readings: VecDeque<Reading>,
    /// The last depths seen, oldest first.
    looks: VecDeque<Look>,
    /// The head as of the first look after the last reading, or after something was given back since.
    head: Option<Position>,
    /// Whether there was no look since the last reading.
    unpaired: bool,
    /// How late the last reading may have been.
    late: Duration,
    /// The counter as it was read last, and how often it had begun anew.
    published: Option<(u64, u64)>,
    /// What was published into each retry queue, by its delay.
    returns: Vec<(Duration, VecDeque<(Time, u64)>)>,
    /// Up to here the counter began anew: how many arrivals it missed is not known.
    unsure_up_to: Option<Position>,
}

/// The how-manieth arrival, counted from anywhere.
type Position = i64;

/// A depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) at: Time,
    pub(super) ready: u64,
    pub(super) consumers: u64,
}

/// The counter, read at some moment between two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    asked: Time,
    answered: Time,
    total: Position,
}

/// When the head arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrived {
    /// Between two readings.
    Between {
        /// Not before.
        earliest: Time,
        /// Not after, if that is certain.
        latest: Option<Time>,
        /// Most likely.
        estimate: Time,
    },
    /// After the last reading, which was asked for then.
    Since(Time),
}

// === impl Counted ===

impl Counted {
    /// Folds in a depth.
    pub(super) fn look(&mut self, look: Look) {
        let last = self.looks.back().copied();
        if let Some(last) = last.filter(|last| look.consumers < last.consumers && look.ready > last.ready) {
            // Whoever left gave back what it held.
            let back = |head: Position| head.saturating_sub_unsigned(look.ready - last.ready);
            self.head = self.position().or(self.head).map(back);
        }
        self.looks.push_back(look);
        if self.unpaired && self.readings.back().is_some_and(|last| look.at >= last.answered) {
            self.unpaired = false;
            self.pair(look);
        }
        let forgotten = look.at - self.late - LOOKS_KEPT;
        while self.looks.front().is_some_and(|look| look.at < forgotten) {
            self.looks.pop_front();
        }
    }

    /// Folds in what was asked for at `asked`. What was folded in before changes nothing.
    pub(super) fn read(&mut self, counters: &Counters, asked: Time) {
        let Some(published) = counters.published else { return };
        let last = self.readings.back().copied();
        if last.is_some_and(|last| asked <= last.asked) {
            return;
        }
        let returned = self.read_returns(counters, asked);
        let (before, since) = match (last, self.published) {
            (Some(last), Some((before, restarts))) => {
                let anew = published < before;
                if anew || counters.restarts > restarts {
                    // What came between the last reading and the new beginning is in no count.
                    self.unsure_up_to = Some(last.total);
                }
                (last.total, if anew { published } else { published - before })
            }
            _ => (0, 0),
        };
        self.published = Some((published, counters.restarts));
        let total = before.saturating_add_unsigned(since).saturating_add_unsigned(returned);
        self.readings.push_back(Reading { asked, answered: counters.answered.max(asked), total });
        self.late = counters.late;
        self.unpaired = true;
        self.forget(asked);
    }

    /// When the oldest ready message arrived; `None` where the history does not reach back to that.
    pub(super) fn head(&self, now: Time) -> Option<Arrived> {
        let last = self.readings.back()?;
        if now.since(last.answered) > STALE_AFTER {
            return None;
        }
        let position = self.position()?;
        let next = self.readings.partition_point(|reading| reading.total < position);
        let before = self.readings.get(next.checked_sub(1)?)?;
        let Some(after) = self.readings.get(next) else { return Some(Arrived::Since(before.asked)) };
        let span = after.answered.since(before.asked);
        #[expect(clippy::cast_precision_loss, reason = "a part of a second, not an account")]
        let part = (position - before.total) as f64 / (after.total - before.total).max(1) as f64;
        let certain = self.unsure_up_to.is_none_or(|unsure| unsure < position);
        Some(Arrived::Between {
            earliest: before.asked,
            latest: certain.then_some(after.answered),
            estimate: before.asked + span.mul_f64(part.clamp(0.0, 1.0)),
        })
    }

    /// The head's position now, as far as the last reading tells. It never moves back but by messages that are
    /// given back, and those cannot be told from new ones before the next reading.
    fn position(&self) -> Option<Position> {
        let (look, last) = (self.looks.back()?, self.readings.back()?);
        let earliest = last.total.saturating_sub_unsigned(look.ready) + 1;
        (look.ready > 0).then(|| earliest.max(self.head.unwrap_or(Position::MIN)))
    }

    /// Finds the head at the first look after a reading. It is not before the counter then says; and at a look
    /// before the reading it was not after that. So what was given back is known from new ones.
    fn pair(&mut self, look: Look) {
        let Some(last) = self.readings.back() else { return };
        let head_at = |look: Look| last.total.saturating_sub_unsigned(look.ready) + 1;
        let before = self.looks.iter().rev().find(|look| look.at <= last.asked - self.late);
        let latest = before.filter(|look| look.ready > 0).map(|look| head_at(*look));
        let went_back = latest.zip(self.head).is_some_and(|(latest, head)| head > latest);
        // Where nothing waits there is no head.
        let keeps = !went_back && look.ready > 0;
        self.head = Some(self.head.filter(|_| keeps).map_or(head_at(look), |head| head.max(head_at(look))));
    }

    /// How many messages came back from retry queues between the last reading and the present one.
    fn read_returns(&mut self, counters: &Counters, asked: Time) -> u64 {
        let last = self.readings.back().map(|last| last.asked);
        let mut returned = 0;
        for &(delay, published) in &counters.returns {
            // What is told late on average comes back so much sooner after it was told.
            let wait = delay.saturating_sub(counters.late / 2);
            let index = self.returns.iter().position(|(known, _)| *known == delay).unwrap_or_else(|| {
                // A retry queue is not told of before its first message.
                let nothing = last.map(|last| (last, 0));
                self.returns.push((delay, nothing.into_iter().collect()));
                self.returns.len() - 1
            });
            let Some((_, history)) = self.returns.get_mut(index) else { continue };
            if history.back().is_some_and(|(_, before)| published < *before) {
                history.clear();
            }
            // Of readings of the same number the first and the last tell all.
            let mut ends = history.iter().rev().map(|(_, published)| *published);
            if ends.next() == Some(published) && ends.next() == Some(published) {
                history.pop_back();
            }
            history.push_back((asked, published));
            if let Some(last) = last {
                returned += at_time(history, asked - wait).saturating_sub(at_time(history, last - wait));
            }
            let forgotten = asked - delay - RETURNS_KEPT;
            while history.get(1).is_some_and(|(at, _)| *at < forgotten) {
                history.pop_front();
            }
        }
        returned
    }

    /// Forgets what no head can need any more.
    fn forget(&mut self, now: Time) {
        let needed = self.head.unwrap_or(Position::MAX);
        let is_past = |next: &Reading| next.total < needed && now.since(next.asked) > KEPT;
        while self.readings.len() > 2 && self.readings.get(1).is_some_and(is_past) {
            self.readings.pop_front();
        }
        // Of readings of the same number the first and the last tell all.
        let mut ends = self.readings.iter().rev().map(|reading| reading.total);
        let (last, middle, first) = (ends.next(), ends.next(), ends.next());
        if middle.is_some() && last == middle && middle == first {
            self.readings.remove(self.readings.len() - 2);
        }
        if self.readings.len().is_multiple_of(THINNED_EVERY) {
            self.thin(now);
        }
    }

    fn thin(&mut self, now: Time) {
        let mut kept: VecDeque<Reading> = VecDeque::with_capacity(self.readings.len());
        for (index, reading) in self.readings.iter().enumerate() {
            let (before, after) = (kept.back(), self.readings.get(index + 1));
            let is_needless = before.zip(after).is_some_and(|(before, after)| {
                after.asked.since(before.asked) < now.since(after.asked) / RESOLUTION
            });
            if !is_needless {
                kept.push_back(*reading);
            }
        }
        self.readings = kept;
    }
}

/// A counter's value at `moment`, between readings in proportion; before the first one it was the same.
fn at_time(history: &VecDeque<(Time, u64)>, moment: Time) -> u64 {
    let next = history.partition_point(|(at, _)| *at <= moment);
    let before = next.checked_sub(1).and_then(|index| history.get(index));
    match (before, history.get(next)) {
        (None, Some((_, value))) | (Some((_, value)), None) => *value,
        (Some((from, low)), Some((to, high))) => {
            let part = milliseconds(moment.since(*from)) / milliseconds(to.since(*from)).max(1.0);
            #[expect(clippy::cast_precision_loss, reason = "a part of what happened within seconds")]
            let ahead = part * high.saturating_sub(*low) as f64;
            low.saturating_add_signed(whole(ahead))
        }
        (None, None) => 0,
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_possible_truncation, reason = "more messages than fit never arrive")]
const fn whole(count: f64) -> i64 {
    count.round() as i64
}
