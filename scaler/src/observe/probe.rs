//! What is asked of the broker about one queue, and when again.

use std::time::Duration;

use mayfly_broker::suspect_queue;
use mayfly_service::chain;
use tokio::time::Instant;

use super::{Jitter, Part, Sight, lane::Told};
use crate::{
    policy::{Fact, QueueFacts, Unknown, Why},
    time::Clock,
};

/// Between two looks at a queue that is missing, forbidden or late, or two tries of a refused password (±10 %):
/// each costs the broker a line of its log.
pub(super) const REFUSED: Duration = Duration::from_millis(6500);
/// The same after a connection was lost meanwhile.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);
/// Between two looks at `Q.suspect` while nothing waits there: only the end of a worker can change that. Short
/// enough that emptiness is watched without a gap.
const NO_SUSPECTS: Duration = Duration::from_secs(1);
/// Between two looks at a `Q.suspect` that is missing: many have none.
const NO_SUSPECT_QUEUE: Duration = Duration::from_secs(60);

/// A configured queue: what is asked about it and about its suspects.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) queue: Probe,
    pub(super) suspects: Probe,
}

/// One queue that is asked for.
#[derive(Debug)]
pub(super) struct Probe {
    part: Part,
    /// The configured queue.
    queue: String,
    /// The queue to ask for.
    asked: String,
    /// Whether it was there at the last look, so that it is asked for together with others.
    present: bool,
    look_again: Option<Instant>,
    /// When it closed a channel last.
    refused: Option<Instant>,
    jitter: Jitter,
}

// === impl Watched ===

impl Watched {
    pub(super) fn new(queue: &str) -> Self {
        let probe = |part, asked| Probe {
            part,
            queue: queue.to_owned(),
            asked,
            present: false,
            look_again: None,
            refused: None,
            jitter: Jitter::default(),
        };
        Self {
            queue: probe(Part::Queue, queue.to_owned()),
            suspects: probe(Part::Suspects, suspect_queue(queue)),
        }
    }

    /// Its probes.
    pub(super) fn probes(&self) -> [&Probe; 2] {
        [&self.queue, &self.suspects]
    }

    /// The probe of this part.
    pub(super) const fn probe_mut(&mut self, part: Part) -> &mut Probe {
        match part {
            Part::Queue => &mut self.queue,
            Part::Suspects => &mut self.suspects,
        }
    }

    /// What is to be asked for now, in a `whole` look or between two of them. Without the queue itself nobody needs
    /// its suspects.
    pub(super) fn due(&self, whole: bool, now: Instant) -> impl Iterator<Item = &Probe> {
        let suspects = Some(&self.suspects).filter(|_| self.queue.present);
        std::iter::once(&self.queue).chain(suspects).filter(move |probe| probe.is_due(whole, now))
    }

    /// Folds in an answer.
    pub(super) fn take_in(&mut self, part: Part, at: Instant, told: &Told, clock: &Clock, sight: &mut Sight) {
        let was_present = self.queue.present;
        self.probe_mut(part).take_in(at, told, clock, sight);
        if !was_present && self.queue.present {
            // Whoever created it has created the other one along.
            self.suspects.look_again = None;
        }
    }
}

// === impl Probe ===

impl Probe {
    pub(super) const fn part(&self) -> Part {
        self.part
    }

    /// The queue to ask for.
    pub(super) fn asked(&self) -> &str {
        &self.asked
    }

    /// Whether it was there at the last look.
    pub(super) const fn is_present(&self) -> bool {
        self.present
    }

    /// After the connection was lost it is asked for soon; at once if that costs the broker nothing, however
    /// often connections are lost.
    pub(super) fn begin_anew(&mut self) {
        self.look_again = self.refused.map(|refused| refused + REFUSED_AGAIN);
    }

    /// Since when it is due; `None` comes first.
    pub(super) const fn due_since(&self) -> Option<Instant> {
        self.look_again
    }

    fn is_due(&self, whole: bool, now: Instant) -> bool {
        self.look_again.map_or(whole || !self.present, |again| again <= now)
    }

    fn take_in(&mut self, at: Instant, told: &Told, clock: &Clock, sight: &mut Sight) {
        self.present = matches!(told, Told::Present(_));
        self.refused = matches!(told, Told::Missing | Told::Forbidden(_)).then(Instant::now);
        let pause = match (told, self.part) {
            (Told::Present(depth), Part::Suspects) if depth.ready == 0 => Some(NO_SUSPECTS),
            (Told::Present(_), _) => None,
            (Told::Missing, Part::Suspects) => Some(NO_SUSPECT_QUEUE),
            _ => Some(REFUSED),
        };
        self.look_again = pause.map(|pause| Instant::now() + self.jitter.spread(pause));
        let unknown =
            |why, error: &_| Fact::Unknown(Unknown { why, detail: chain(error), since: clock.now() });
        let known = |value| Fact::Known { value, at: clock.at(at) };
        let fact = match told {
            Told::Present(depth) => {
                known(QueueFacts::Present { ready: depth.ready, consumers: depth.consumers })
            }
            Told::Missing => known(QueueFacts::Missing),
            Told::Forbidden(error) => unknown(Why::Forbidden, error),
            Told::Late(error) => unknown(Why::Unreachable, error),
        };
        self.tell(sight, fact);
    }

    /// Replaces a fact; one that stays unknown for the same reason stays so since then.
    pub(super) fn tell(&self, sight: &mut Sight, mut fact: Fact<QueueFacts>) {
        let facts = sight.part(self.part);
        let queue = &self.asked;
        let Some(told) = facts.get_mut(&self.queue) else { return };
        match (&mut fact, &*told) {
            (Fact::Unknown(new), Fact::Unknown(old)) if old.why == new.why => new.since = old.since,
            (Fact::Unknown(new), _) => {
                tracing::warn!(
                    queue,
                    why = new.why.as_str(),
                    detail = new.detail,
                    "queue cannot be observed"
                );
            }
            (Fact::Known { .. }, Fact::Unknown(old)) if old.why != Why::NotYetSeen => {
                tracing::info!(queue, "queue is observed again");
            }
            _ => {}
        }
        *told = fact;
    }
}
