//! What a worker does next on one channel: pure, so that every order of events can be tried.
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
    words::{Carry, Command, End, Event, Rules, Verdict, Waiting},
};
use crate::{
    brake::{self, Brake},
    prefetch::Change,
    suspect::Course,
    tally::{Proof, Settled},
};

/// The state of one channel, from its consumer's registration to its end.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    rules: Rules,
    course: Course,
    /// Messages that the broker may have in flight to us.
    prefetch: u16,
    phase: Phase,
    /// Delivered, not begun.
    waiting: VecDeque<u64>,
    /// Of these, each is worked on with nothing else in work.
    alone: BTreeSet<u64>,
    /// In their handlers.
    working: BTreeSet<u64>,
    /// Ended without a result, to be given back.
    returning: Vec<u64>,
    /// All that the broker counts as ours.
    outstanding: Outstanding,
    proof: Proof,
    carry: Carry,
    /// Since when nothing is in flight.
    empty_since: Option<Duration>,
    /// From when the idle limit counts: the last settle, ready, or a look at the queue that found messages.
    quiet_since: Duration,
    /// Whether that is more than the time at which this channel began.
    was_busy: bool,
    asking_depth: bool,
    /// When to look for suspects while there is work; `None`: never, since there is no queue of them.
    look_at: Option<Duration>,
    /// Since when suspects wait for a worker that has other work.
    wanted_by_suspects: Option<Duration>,
    told_brake: Option<brake::Cause>,
    told_draining: bool,
}

/// Where in its life the channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Messages are taken.
    Taking,
    /// The consumer is to be cancelled, or was; what is in flight goes on.
    Leaving { goal: Goal, hurry: Hurry, cancel: Cancel },
    /// All is settled; the close is under way.
    Closing { goal: Goal },
    /// Nothing happens any more.
    Over,
}

/// What comes after this channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Exit(ExitReason),
    Switch(Course),
}

/// What happens to messages in flight while leaving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hurry {
    /// All of them are worked on, for as long as it takes.
    None,
    /// What hasn't been begun is given back; what has may go on for as long as it takes.
    Begun,
    /// The same, but what has been begun may go on until this time.
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
/// What waits may be on its way: the next look comes not sooner than this.
const FRUITLESS_PAUSE: Duration = Duration::from_secs(1);
/// How often a worker with work looks whether suspects wait: each look a call to the broker, each suspect
/// handled alone.
const LOOK: Duration = Duration::from_secs(5);
/// How soon a worker looks that has set one aside itself; others may follow it.
const SOON: Duration = Duration::from_millis(250);
/// A worker at the suspect queue goes back when nothing came for this long.
const SUSPECTS_IDLE: Duration = Duration::from_millis(200);
/// So many suspects keep one worker busy; the others go on with their work meanwhile.
const SUSPECTS_PER_WORKER: u64 = 10;

// === impl Lifecycle ===

impl Lifecycle {
    /// A channel whose consumer was registered `now`. `has_suspects`: there is a suspect queue beside the queue
    /// consumed.
    pub(crate) fn new(rules: Rules, course: Course, has_suspects: bool, carry: Carry, now: Duration) -> Self {
        let prefetch = carry.prefetch_of(course);
        // On a fresh connection soon: what its worker was launched for may wait there.
        let first_look = if carry.quiet_since.is_none() { SOON } else { LOOK };
        let look_at = (course == Course::Queue && has_suspects).then_some(now + first_look);
        Self {
            rules,
            course,
            prefetch,
            phase: Phase::Taking,
            waiting: VecDeque::new(),
            alone: BTreeSet::new(),
            working: BTreeSet::new(),
            returning: Vec::new(),
            outstanding: Outstanding::default(),
            proof: Proof::new(prefetch.into()),
            empty_since: Some(now),
            quiet_since: match course {
                Course::Queue => carry.quiet_since.unwrap_or(now),
                Course::Suspects => now,
            },
            was_busy: false,
            carry,
            asking_depth: false,
            look_at,
            wanted_by_suspects: None,
            told_brake: None,
            told_draining: false,
        }
    }

    /// What outlives this channel; final once [`Command::End`] was returned.
    pub(crate) const fn carry(&self) -> &Carry {
        &self.carry
    }

    /// When [`Event::Tick`] is due; `None`: only events matter.
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        let taking = self.phase == Phase::Taking;
        let idle = (taking && self.is_empty() && !self.asking_depth).then(|| self.idle_at());
        let look = self.look_at.filter(|_| taking && !self.asking_depth);
        let recycle = self.rules.max_lifetime.filter(|_| taking);
        let wanted = self.wanted_by_suspects.map(|since| since + LOOK).filter(|_| taking);
        let grace = match self.phase {
            Phase::Leaving { hurry: Hurry::Until(deadline), .. } => Some(deadline),
            _ => None,
        };
        let brake = Some(&self.carry.brake).filter(|_| self.is_patient());
        let can_try = self.working.is_empty() && !self.waiting.is_empty();
        let next_try = brake.and_then(Brake::tries_at).filter(|_| can_try);
        let give_up = brake.and_then(Brake::gives_up_at);
        [wanted, idle, look, recycle, grace, next_try, give_up, self.outstanding.flush_at()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Takes in what happened and says what to do.
    pub(crate) fn handle(&mut self, event: Event, now: Duration) -> Vec<Command> {
        if self.phase == Phase::Over {
            return Vec::new();
        }
        match event {
            Event::Delivered { tag, alone } => self.delivered(tag, alone, now),
            Event::Finished { tag, verdict, busy, message } => {
                self.finished(tag, verdict, busy, message, now);
            }
            Event::Depth { ready, suspects } => self.looked(ready, suspects, now),
            Event::Drained => {
                if let Phase::Leaving { cancel, .. } = &mut self.phase {
                    *cancel = Cancel::Drained;
                }
            }
            Event::LedgerAnswered => self.carry.brake.ledger_answered(),
            Event::Recycle => self.leave(Goal::Exit(ExitReason::Recycled), Hurry::None),
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

    /// Whether the broker delivers nothing before we settle something.
    fn is_full(&self) -> bool {
        self.outstanding.len() >= self.prefetch.into()
    }

    fn idle_at(&self) -> Duration {
        let limit = match self.course {
            Course::Queue => self.rules.max_idle,
            Course::Suspects => SUSPECTS_IDLE,
        };
        let is_fruitless = self.carry.fruitless_looks > 0;
        self.quiet_since + if is_fruitless { limit.max(FRUITLESS_PAUSE) } else { limit }
    }

    /// Whether what waits with us is going to be begun.
    fn is_patient(&self) -> bool {
        matches!(self.phase, Phase::Taking | Phase::Leaving { hurry: Hurry::None, .. })
    }

    fn delivered(&mut self, tag: u64, alone: bool, now: Duration) {
        let Carry { tally, fruitless_looks, .. } = &mut self.carry;
        tally.messages += 1;
        *fruitless_looks = 0;
        self.proof.delivered(tag, tally);
        self.outstanding.delivered(tag);
        self.waiting.push_back(tag);
        if alone {
            self.alone.insert(tag);
        }
        if let Some(since) = self.empty_since.take() {
            tally.idle += now.saturating_sub(since);
        }
        if self.rules.max_messages.is_some_and(|most| tally.messages >= most) {
            self.leave(Goal::Exit(ExitReason::Recycled), Hurry::None);
        }
    }

    fn finished(&mut self, tag: u64, verdict: Verdict, busy: Duration, message: u64, now: Duration) {
        if !self.working.remove(&tag) {
            return;
        }
        let Carry { tally, brake, prefetch, .. } = &mut self.carry;
        tally.busy += busy;
        match verdict {
            Verdict::Done => brake.done(),
            Verdict::Retried | Verdict::DeadLettered | Verdict::Crashed => brake.failed(message, now),
            Verdict::Held(cause) => brake.hold(cause, now),
            Verdict::Known
            | Verdict::Deferred
            | Verdict::Suspected
            | Verdict::Interrupted
            | Verdict::Unfit(_) => {}
        }
        if matches!(verdict, Verdict::Done | Verdict::Retried | Verdict::DeadLettered) {
            prefetch.observe(busy);
        }
        let settled = match verdict {
            Verdict::Done => Settled::Done,
            Verdict::Known => Settled::Known,
            Verdict::Retried | Verdict::Deferred => Settled::Retried,
            Verdict::DeadLettered => Settled::DeadLettered,
            Verdict::Suspected | Verdict::Crashed => Settled::Suspected,
            Verdict::Held(_) => return self.waiting.push_front(tag),
            Verdict::Interrupted => return self.returning.push(tag),
            Verdict::Unfit(reason) => {
                self.returning.push(tag);
                return self.hurry(reason, now);
            }
        };
        self.alone.remove(&tag);
        self.outstanding.settled(tag, settled, now);
        if settled == Settled::Suspected {
            self.look_at = self.look_at.map(|at| at.min(now + SOON));
        }
    }

    fn looked(&mut self, ready: u64, suspects: Option<Waiting>, now: Duration) {
        self.asking_depth = false;
        self.looked_for_suspects(now);
        if self.phase != Phase::Taking {
            return;
        }
        let is_idle = self.is_empty() && now >= self.idle_at();
        let suspects_wait = suspects.is_some_and(|Waiting { ready, consumers }| {
            ready > if is_idle { 0 } else { consumers * SUSPECTS_PER_WORKER }
        });
        if !is_idle {
            self.wanted_by_suspects = suspects_wait.then(|| self.wanted_by_suspects.unwrap_or(now));
            return;
        }
        if ready > 0 {
            self.quiet_since = now;
            self.was_busy = true;
            self.carry.fruitless_looks += 1;
        }
        let goal = match self.course {
            Course::Suspects => Goal::Switch(Course::Queue),
            Course::Queue if self.carry.fruitless_looks >= STARVED_AFTER => Goal::Exit(ExitReason::Starved),
            Course::Queue if suspects_wait => Goal::Switch(Course::Suspects),
            Course::Queue if ready > 0 => return,
            Course::Queue => Goal::Exit(ExitReason::Idle),
        };
        self.leave(goal, Hurry::None);
    }

    fn looked_for_suspects(&mut self, now: Duration) {
        if self.look_at.is_some() {
            self.look_at = Some(now + LOOK.mul_f64(1.0 + self.rules.jitter));
        }
    }

    /// Takes nothing more. Who leaves already goes on doing so, but an exit comes before a switch.
    fn leave(&mut self, goal: Goal, hurry: Hurry) {
        match &mut self.phase {
            Phase::Taking => self.phase = Phase::Leaving { goal, hurry, cancel: Cancel::Due },
            Phase::Leaving { goal: old @ Goal::Switch(_), .. } if matches!(goal, Goal::Exit(_)) => {
                *old = goal;
            }
            _ => {}
        }
    }

    /// Leaves within the grace period. The first reason to hurry stays the reason.
    fn hurry(&mut self, reason: ExitReason, now: Duration) {
        let cancel = match self.phase {
            Phase::Taking => Cancel::Due,
            Phase::Leaving { hurry: Hurry::None | Hurry::Begun, cancel, .. } => cancel,
            Phase::Closing { goal: Goal::Switch(_) } => {
                self.phase = Phase::Closing { goal: Goal::Exit(reason) };
                return;
            }
            _ => return,
        };
        let hurry = Hurry::Until(now + self.rules.grace);
        self.phase = Phase::Leaving { goal: Goal::Exit(reason), hurry, cancel };
    }

    /// All that is to be done now.
    fn advance(&mut self, now: Duration) -> Vec<Command> {
        let mut commands = Vec::new();
        self.reconsider(now);
        self.tell(&mut commands);
        if let Phase::Leaving { cancel: cancel @ Cancel::Due, .. } = &mut self.phase {
            *cancel = Cancel::Sent;
            commands.push(Command::Cancel);
        }
        self.interrupt(now, &mut commands);
        self.start(now, &mut commands);
        self.give_back(&mut commands);
        self.flush(now, &mut commands);
        if self.is_empty() && self.empty_since.is_none() {
            self.empty_since = Some(now);
            self.quiet_since = now;
            self.was_busy = true;
        }
        match self.phase {
            Phase::Taking if !self.asking_depth && self.is_time_to_look(now) => {
                self.asking_depth = true;
                commands.push(Command::AskDepth);
            }
            Phase::Leaving { goal, cancel: Cancel::Drained, .. } if self.is_empty() => {
                self.phase = Phase::Closing { goal };
                commands.push(Command::Close);
            }
            _ => {}
        }
        commands
    }

    /// Whether the time has come to leave.
    fn reconsider(&mut self, now: Duration) {
        if self.is_patient() && self.carry.brake.gives_up_at().is_some_and(|at| now >= at) {
            self.hurry(ExitReason::GaveUp, now);
        }
        if self.phase != Phase::Taking {
            return;
        }
        if self.rules.max_lifetime.is_some_and(|most| now >= most) {
            self.leave(Goal::Exit(ExitReason::Recycled), Hurry::None);
        } else if let Some(since) = self.wanted_by_suspects
            && (self.is_full() || self.is_empty() || now >= since + LOOK)
        {
            // While deliveries are under way a cancel brings those of a quorum queue back as new suspects.
            self.leave(Goal::Switch(Course::Suspects), Hurry::None);
        } else if self.course == Course::Queue
            && let is_full = self.is_full()
            && let Some(change) = self.carry.prefetch.adapt(now, is_full)
        {
            let hurry = match change {
                Change::Larger => Hurry::None,
                Change::Smaller => Hurry::Begun,
            };
            self.leave(Goal::Switch(Course::Queue), hurry);
        }
    }

    fn is_time_to_look(&self, now: Duration) -> bool {
        (self.is_empty() && now >= self.idle_at()) || self.look_at.is_some_and(|at| now >= at)
    }

    fn tell(&mut self, commands: &mut Vec<Command>) {
        let cause = self.carry.brake.cause();
        if self.told_brake != cause {
            self.told_brake = cause;
            commands.push(Command::Brake(cause));
        }
        let (Phase::Leaving { goal, .. } | Phase::Closing { goal }) = self.phase else { return };
        if !self.told_draining && matches!(goal, Goal::Exit(_)) {
            self.told_draining = true;
            commands.push(Command::TellDraining);
        }
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

    fn start(&mut self, now: Duration, commands: &mut Vec<Command>) {
        while self.is_patient()
            && let Some(&tag) = self.waiting.front()
            && self.may_begin(tag, now)
        {
            self.waiting.pop_front();
            self.working.insert(tag);
            commands.push(Command::Start { tag });
        }
    }

    fn may_begin(&self, tag: u64, now: Duration) -> bool {
        let is_alone = self.alone.contains(&tag) || !self.working.is_disjoint(&self.alone);
        match self.carry.brake.tries_at() {
            Some(at) => self.working.is_empty() && now >= at,
            None if is_alone => self.working.is_empty(),
            None => self.working.len() < self.concurrency(),
        }
    }

    fn concurrency(&self) -> usize {
        match self.course {
            Course::Queue => self.rules.concurrency,
            Course::Suspects => 1,
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
                self.alone.remove(&tag);
                self.outstanding.given_back(tag);
                self.proof.written(Settled::GivenBack);
                commands.push(Command::GiveBack { tag });
            }
        }
    }

    fn flush(&mut self, now: Duration, commands: &mut Vec<Command>) {
        let due = self.outstanding.due();
        let has_room = self.working.len() < self.concurrency();
        // Acks that follow each other closely wait for others, unless messages wait for them.
        let at_once = self.is_full() || self.phase != Phase::Taking || self.outstanding.is_calm(now);
        let lingered = self.outstanding.flush_at().is_some_and(|at| now >= at);
        if due > 0 && (due >= self.batch() || (has_room && at_once) || lingered) {
            for ack in self.outstanding.flush(now) {
                ack.covers.iter().for_each(|&(_, settled)| self.proof.written(settled));
                commands.push(Command::Ack(ack));
            }
        }
    }

    /// At half the prefetch, so that the next deliveries come while the rest is worked on.
    fn batch(&self) -> usize {
        usize::from(self.prefetch / 2).min(Outstanding::BATCH)
    }

    fn closed(&mut self, now: Duration) -> Vec<Command> {
        let Phase::Closing { goal } = self.phase else {
            return self.lost(now);
        };
        self.proof.closed(&mut self.carry.tally);
        let end = match goal {
            Goal::Exit(reason) => End::Exit(reason),
            Goal::Switch(course) => End::Switch(course),
        };
        self.end(end, now)
    }

    /// Who had to go anyway goes; an idle worker comes back to see whether its last acks arrived.
    fn lost(&mut self, now: Duration) -> Vec<Command> {
        let end = match self.phase {
            Phase::Leaving { goal: Goal::Exit(reason), .. } | Phase::Closing { goal: Goal::Exit(reason) }
                if reason != ExitReason::Idle =>
            {
                End::Exit(reason)
            }
            _ => End::Reconnect,
        };
        let until = match self.phase {
            Phase::Leaving { hurry: Hurry::Until(deadline), .. } => deadline,
            Phase::Leaving { hurry: Hurry::Interrupted, .. } => now,
            _ => now + self.rules.grace,
        };
        let finishes = self.rules.finishes_when_lost && !self.working.is_empty() && until > now;
        let mut commands = Vec::from_iter(finishes.then_some(Command::Finish { until }));
        commands.extend(self.cut_off(end, now));
        commands
    }

    /// Ends without settling: the broker gives what is in flight to others as soon as it notices.
    fn cut_off(&mut self, end: End, now: Duration) -> Vec<Command> {
        let tally = &mut self.carry.tally;
        self.proof.lost(tally);
        for _ in 0..self.outstanding.len() {
            tally.count(Settled::Lost);
        }
        let mut commands = vec![Command::Kill];
        commands.extend(self.end(end, now));
        commands
    }

    fn end(&mut self, end: End, now: Duration) -> Vec<Command> {
        self.phase = Phase::Over;
        if let Some(since) = self.empty_since.take() {
            self.carry.tally.idle += now.saturating_sub(since);
        }
        match end {
            // Where no suspect came, the idle time goes on.
            End::Switch(_) if self.course == Course::Suspects && !self.was_busy => {}
            End::Switch(_) => self.carry.quiet_since = Some(self.quiet_since),
            End::Reconnect | End::Exit(_) => self.carry.quiet_since = None,
        }
        vec![Command::End(end)]
    }
}
