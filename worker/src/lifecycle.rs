//! What a worker does next on one connection: pure, so that every order of events can be tried.
//!
//! [`Lifecycle::handle`] takes what happened and the time (since the worker's start, monotonic), and returns
//! what to do, in order. Each call looks at the whole state ("what is to be done now?") and not only at the
//! event, so nothing is forgotten when two things happen at once.

mod settle;
#[cfg(test)]
mod tests;
mod words;

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use mayfly_service::report::ExitReason;

use self::settle::Outstanding;
pub(crate) use self::{
    settle::Ack,
    words::{Command, End, Event, Rules, Verdict},
};
use crate::tally::{Proof, Settled, Tally};

/// The state of one connection, from ready to its end.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    rules: Rules,
    phase: Phase,
    /// Delivered, not begun.
    waiting: VecDeque<u64>,
    /// In their handlers.
    working: BTreeSet<u64>,
    /// Ended without a result, to be given back.
    returning: Vec<u64>,
    /// All that the broker counts as ours.
    outstanding: Outstanding,
    proof: Proof,
    tally: Tally,
    /// Since when nothing is in flight.
    empty_since: Option<Duration>,
    /// From when the idle limit counts: the last settle, ready, or a look at the queue that found messages.
    quiet_since: Duration,
    /// Looks at the queue, since the last delivery, that found messages.
    fruitless_looks: u32,
    asking_depth: bool,
}

/// Where in its life the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Messages are taken.
    Taking,
    /// The consumer is to be cancelled, or was; what is in flight goes on.
    Leaving { reason: ExitReason, hurry: Hurry, cancel: Cancel },
    /// All is settled; the close is under way.
    Closing { reason: ExitReason },
    /// Nothing happens any more.
    Over,
}

/// What happens to messages in flight while leaving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hurry {
    /// All of them are worked on, for as long as it takes.
    None,
    /// What hasn't been begun is given back; what has may go on until this time.
    Until(Duration),
    /// Handlers were asked to end.
    Interrupted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cancel {
    Due,
    Sent,
    Drained,
}

/// So many looks at a queue that holds messages, without one delivery, mean that we are starved.
const STARVED_AFTER: u32 = 3;

// === impl Lifecycle ===

impl Lifecycle {
    /// A connection whose consumer was registered `now`; `tally` is what earlier connections did.
    pub(crate) fn new(rules: Rules, tally: Tally, now: Duration) -> Self {
        Self {
            rules,
            phase: Phase::Taking,
            waiting: VecDeque::new(),
            working: BTreeSet::new(),
            returning: Vec::new(),
            outstanding: Outstanding::default(),
            proof: Proof::new(rules.prefetch.into()),
            tally,
            empty_since: Some(now),
            quiet_since: now,
            fruitless_looks: 0,
            asking_depth: false,
        }
    }

    /// The figures; final once [`Command::End`] was returned.
    pub(crate) const fn tally(&self) -> Tally {
        self.tally
    }

    /// When [`Event::Tick`] is due; `None`: only events matter.
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        let phase = match self.phase {
            Phase::Taking if self.is_empty() && !self.asking_depth => {
                Some(self.quiet_since + self.rules.max_idle)
            }
            Phase::Leaving { hurry: Hurry::Until(deadline), .. } => Some(deadline),
            _ => None,
        };
        [phase, self.outstanding.flush_at()].into_iter().flatten().min()
    }

    /// Takes in what happened and says what to do.
    pub(crate) fn handle(&mut self, event: Event, now: Duration) -> Vec<Command> {
        if self.phase == Phase::Over {
            return Vec::new();
        }
        match event {
            Event::Delivered { tag } => self.delivered(tag, now),
            Event::Finished { tag, verdict, busy } => self.finished(tag, verdict, busy, now),
            Event::Depth { ready } => self.looked(ready, now),
            Event::Drained => {
                if let Phase::Leaving { cancel, .. } = &mut self.phase {
                    *cancel = Cancel::Drained;
                }
            }
            Event::Stop => self.hurry(ExitReason::AskedToStop, now),
            Event::Tick => {}
            Event::Closed => return self.closed(now),
            Event::Lost => return self.lost(now),
            Event::Panicked => return self.cut_off(End::Exit(ExitReason::Internal), now),
            Event::Abort => return self.cut_off(End::Exit(ExitReason::Aborted), now),
        }
        self.advance(now)
    }

    fn is_empty(&self) -> bool {
        self.outstanding.len() == 0
    }

    fn delivered(&mut self, tag: u64, now: Duration) {
        self.tally.messages += 1;
        self.proof.delivered(tag, &mut self.tally);
        self.outstanding.delivered(tag);
        self.waiting.push_back(tag);
        self.fruitless_looks = 0;
        if let Some(since) = self.empty_since.take() {
            self.tally.idle += now.saturating_sub(since);
        }
    }

    fn finished(&mut self, tag: u64, verdict: Verdict, busy: Duration, now: Duration) {
        if !self.working.remove(&tag) {
            return;
        }
        self.tally.busy += busy;
        match verdict {
            Verdict::Done => self.outstanding.settled(tag, Settled::Done, now),
            Verdict::Retried => self.outstanding.settled(tag, Settled::Retried, now),
            Verdict::DeadLettered => self.outstanding.settled(tag, Settled::DeadLettered, now),
            Verdict::Interrupted => self.returning.push(tag),
            Verdict::Unfit(reason) => {
                self.returning.push(tag);
                self.hurry(reason, now);
            }
        }
    }

    fn looked(&mut self, ready: u64, now: Duration) {
        self.asking_depth = false;
        if self.phase != Phase::Taking || !self.is_empty() {
            return;
        }
        let leave = |reason| Phase::Leaving { reason, hurry: Hurry::None, cancel: Cancel::Due };
        if ready == 0 {
            self.phase = leave(ExitReason::Idle);
            return;
        }
        self.quiet_since = now;
        self.fruitless_looks += 1;
        if self.fruitless_looks >= STARVED_AFTER {
            self.phase = leave(ExitReason::Starved);
        }
    }

    /// Leaves within the grace period. The first reason to hurry stays the reason.
    fn hurry(&mut self, reason: ExitReason, now: Duration) {
        let cancel = match self.phase {
            Phase::Taking => Cancel::Due,
            Phase::Leaving { hurry: Hurry::None, cancel, .. } => cancel,
            _ => return,
        };
        self.phase = Phase::Leaving { reason, hurry: Hurry::Until(now + self.rules.grace), cancel };
    }

    /// All that is to be done now.
    fn advance(&mut self, now: Duration) -> Vec<Command> {
        let mut commands = Vec::new();
        if let Phase::Leaving { cancel: cancel @ Cancel::Due, .. } = &mut self.phase {
            *cancel = Cancel::Sent;
            commands.push(Command::Cancel);
        }
        self.interrupt(now, &mut commands);
        self.start(&mut commands);
        self.give_back(&mut commands);
        self.flush(now, &mut commands);
        if self.is_empty() && self.empty_since.is_none() {
            self.empty_since = Some(now);
            self.quiet_since = now;
        }
        match self.phase {
            Phase::Taking
                if self.is_empty() && !self.asking_depth && now >= self.quiet_since + self.rules.max_idle =>
            {
                self.asking_depth = true;
                commands.push(Command::AskDepth);
            }
            Phase::Leaving { reason, cancel: Cancel::Drained, .. } if self.is_empty() => {
                self.phase = Phase::Closing { reason };
                commands.push(Command::Close);
            }
            _ => {}
        }
        commands
    }

    fn interrupt(&mut self, now: Duration, commands: &mut Vec<Command>) {
        if let Phase::Leaving { hurry, .. } = &mut self.phase
            && let Hurry::Until(deadline) = *hurry
            && now >= deadline
        {
            *hurry = Hurry::Interrupted;
            commands.push(Command::Interrupt);
        }
    }

    fn start(&mut self, commands: &mut Vec<Command>) {
        let begins = match self.phase {
            Phase::Taking => true,
            Phase::Leaving { hurry, .. } => hurry == Hurry::None,
            Phase::Closing { .. } | Phase::Over => false,
        };
        while begins
            && self.working.len() < self.rules.concurrency
            && let Some(tag) = self.waiting.pop_front()
        {
            self.working.insert(tag);
            commands.push(Command::Start { tag });
        }
    }

    /// Nothing is given back before the cancel has drained: the broker would deliver it to us again.
    fn give_back(&mut self, commands: &mut Vec<Command>) {
        let (all, some) = match self.phase {
            Phase::Taking => (false, true),
            Phase::Leaving { hurry, cancel: Cancel::Drained, .. } => (hurry != Hurry::None, true),
            _ => (false, false),
        };
        if all {
            self.returning.extend(self.waiting.drain(..));
        }
        if some {
            for tag in self.returning.drain(..) {
                self.outstanding.given_back(tag);
                self.proof.written(Settled::GivenBack);
                commands.push(Command::GiveBack { tag });
            }
        }
    }

    fn flush(&mut self, now: Duration, commands: &mut Vec<Command>) {
        let due = self.outstanding.due();
        let has_room = self.working.len() < self.rules.concurrency;
        let lingered = self.outstanding.flush_at().is_some_and(|at| now >= at);
        if due > 0 && (due >= self.batch() || has_room || lingered) {
            for ack in self.outstanding.flush() {
                ack.covers.iter().for_each(|&(_, settled)| self.proof.written(settled));
                commands.push(Command::Ack(ack));
            }
        }
    }

    /// At half the prefetch, so that the next deliveries come while the rest is worked on.
    fn batch(&self) -> usize {
        usize::from(self.rules.prefetch / 2).min(Outstanding::BATCH)
    }

    fn closed(&mut self, now: Duration) -> Vec<Command> {
        let Phase::Closing { reason } = self.phase else {
            return self.lost(now);
        };
        self.proof.closed(&mut self.tally);
        self.end(End::Exit(reason), now)
    }

    /// Who had to go anyway goes; an idle worker comes back to see whether its last acks arrived.
    fn lost(&mut self, now: Duration) -> Vec<Command> {
        let end = match self.phase {
            Phase::Leaving { reason, .. } | Phase::Closing { reason } if reason != ExitReason::Idle => {
                End::Exit(reason)
            }
            _ => End::Reconnect,
        };
        self.cut_off(end, now)
    }

    /// Ends without settling: the broker gives what is in flight to others as soon as it notices.
    fn cut_off(&mut self, end: End, now: Duration) -> Vec<Command> {
        self.proof.lost(&mut self.tally);
        for _ in 0..self.outstanding.len() {
            self.tally.count(Settled::Lost);
        }
        let mut commands = vec![Command::Kill];
        commands.extend(self.end(end, now));
        commands
    }

    fn end(&mut self, end: End, now: Duration) -> Vec<Command> {
        self.phase = Phase::Over;
        if let Some(since) = self.empty_since.take() {
            self.tally.idle += now.saturating_sub(since);
        }
        vec![Command::End(end)]
    }
}
