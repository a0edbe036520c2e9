//! One channel's life: what happens at the broker and in the handlers goes to [`Lifecycle`], its commands are
//! carried out here.

use std::{
    collections::{BTreeMap, VecDeque},
    future::pending,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    task::{self, Poll, Waker},
    time::Duration,
};

use mayfly_broker::{CALL_LIMIT, Channel, Depth, Error, Intake, Message, QueueState, Taken};
use mayfly_service::{Shutdown, chain, crash::crash_point, deadline, report::ExitReason};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::{JoinError, JoinSet},
    time::{Instant, Interval},
};

use crate::{
    attend::{Attendant, Attended, Site},
    brake,
    handler::{Handler, Interrupt},
    lifecycle::{Ack, Carry, Command, End, Event, Lifecycle, Rules, Verdict, Waiting},
    memory,
    start::Link,
    status::{Announcer, long_work},
    suspect::Course,
    tally::Settled,
};

/// What all sessions of a worker share.
#[derive(Debug)]
pub(crate) struct Common<'a, H> {
    pub(crate) attendant: &'a Arc<Attendant<H>>,
    pub(crate) announcer: &'a Announcer,
    pub(crate) rules: Rules,
    /// Bytes.
    pub(crate) max_memory: Option<u64>,
    /// The worker's start: the lifecycle's time counts from here.
    pub(crate) epoch: Instant,
}

/// One channel with all that is in flight on it.
#[derive(Debug)]
pub(crate) struct Session<'a, H> {
    common: &'a Common<'a, H>,
    /// What is consumed, and beside what.
    course: Course,
    queues: Queues,
    link: Link,
    intake: Option<Intake>,
    /// For looks at queues; opened at the first.
    depth_channel: Option<Channel>,
    lifecycle: Lifecycle,
    tasks: JoinSet<Attended>,
    /// On several threads a handler that computes may do so beside us.
    has_one_thread: bool,
    interrupt: Interrupt,
    /// For what the ledger does not remember: asked to end also when the connection is lost.
    unclaimed: Interrupt,
    /// All deliveries that are not settled.
    held: BTreeMap<u64, Held>,
    /// What goes into the exit report.
    detail: Option<String>,
    frame_max: Option<u32>,
    /// The broker has confirmed the close.
    is_closed: bool,
    ended: Option<End>,
}

/// The queues that are looked at.
#[derive(Debug)]
struct Queues {
    consumed: String,
    /// Where it exists and is not the one that is consumed.
    suspects: Option<String>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) end: End,
    pub(crate) carry: Carry,
    /// Unless it is lost.
    pub(crate) link: Option<Link>,
    /// The error that ended it, if one did.
    pub(crate) detail: Option<String>,
    /// So many bytes per frame are to be asked for: a message came in a larger one than was asked for.
    pub(crate) frame_max: Option<u32>,
}

/// A delivery that is not settled.
#[derive(Debug)]
struct Held {
    id: String,
    /// While it is not in work.
    message: Option<Message>,
    delivered: Instant,
}

/// How long killed handlers may take to be gone before their tasks are dropped.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How often memory is looked at where it is limited.
const MEMORY_INTERVAL: Duration = Duration::from_secs(5);
/// How often is looked whether a message is held for long.
const AGE_INTERVAL: Duration = Duration::from_mins(1);

// === impl Session ===

impl<'a, H: Handler> Session<'a, H> {
    pub(crate) fn new(
        common: &'a Common<'a, H>,
        (link, intake): (Link, Intake),
        course: Course,
        carry: Carry,
    ) -> Self {
        let topology = &common.attendant.routes.topology;
        let queues = match course {
            Course::Queue => Queues {
                consumed: topology.queue.clone(),
                suspects: link.has_suspects.then(|| topology.suspect_queue()),
            },
            Course::Suspects => Queues { consumed: topology.suspect_queue(), suspects: None },
        };
        let now = common.epoch.elapsed();
        let interrupt = Interrupt::default();
        let lifecycle = Lifecycle::new(common.rules, course, queues.suspects.is_some(), carry, now);
        Self {
            common,
            course,
            queues,
            link,
            intake: Some(intake),
            depth_channel: None,
            lifecycle,
            tasks: JoinSet::new(),
            has_one_thread: Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread,
            unclaimed: interrupt.child(),
            interrupt,
            held: BTreeMap::new(),
            detail: None,
            frame_max: None,
            is_closed: false,
            ended: None,
        }
    }

    /// Works until the connection is lost, another channel is wanted, or the worker's end is reached. No
    /// handler runs afterwards.
    pub(crate) async fn run(mut self, shutdown: &Shutdown) -> Ended {
        let mut is_stopping = false;
        let mut memory_looks = self.common.max_memory.map(|_| tokio::time::interval(MEMORY_INTERVAL));
        let mut age_looks = tokio::time::interval(AGE_INTERVAL);
        // These outlive a turn of the loop: there are several turns per message.
        let (aborted, stopped) = (shutdown.abort.cancelled(), shutdown.stop.cancelled());
        let timer = tokio::time::sleep_until(self.common.epoch);
        let mut timer_at = None;
        tokio::pin!(aborted, stopped, timer);
        loop {
            let wake_at = self.lifecycle.wake_at().map(|at| self.common.epoch + at);
            if timer_at != wake_at {
                timer_at = wake_at;
                if let Some(at) = wake_at {
                    timer.as_mut().reset(at);
                }
            }
            let event = tokio::select! {
                biased;
                () = &mut aborted => Event::Abort,
                () = &mut stopped, if !is_stopping => {
                    is_stopping = true;
                    Event::Stop
                }
                Some(attended) = self.tasks.join_next() => self.joined(attended),
                taken = next(self.intake.as_mut()) => self.taken(taken),
                () = self.common.attendant.ledger_answered() => Event::LedgerAnswered,
                () = &mut timer, if timer_at.is_some() => {
                    timer_at = None;
                    Event::Tick
                }
                () = tick(memory_looks.as_mut()) => self.look_at_memory(),
                _ = age_looks.tick() => self.look_at_age(),
            };
            self.act(event, shutdown).await;
            if let Some(end) = self.ended {
                let Self { lifecycle, link, is_closed, mut detail, frame_max, .. } = self;
                if end == End::Exit(ExitReason::GaveUp) {
                    detail =
                        detail.or_else(|| lifecycle.carry().brake.cause().map(|it| it.as_str().to_owned()));
                }
                let link = is_closed.then_some(link);
                return Ended { end, carry: lifecycle.carry().clone(), link, detail, frame_max };
            }
        }
    }

    fn look_at_memory(&mut self) -> Event {
        let in_use = memory::in_use().unwrap_or_default();
        if self.common.max_memory.is_some_and(|most| in_use >= most) {
            tracing::info!(in_use, "memory limit reached, makes room for a fresh worker");
            return Event::Recycle;
        }
        Event::Tick
    }

    /// The oldest one comes first.
    fn look_at_age(&self) -> Event {
        let oldest = self.held.first_key_value().map(|(_, held)| held.delivered.elapsed());
        if oldest.is_some_and(|age| self.common.announcer.is_long(age)) {
            tracing::warn!("{}", long_work("a message has been in flight for 25 minutes"));
        }
        Event::Tick
    }

    fn taken(&mut self, taken: Result<Taken, Error>) -> Event {
        match taken {
            Ok(Taken::Message(message)) => {
                let tag = message.tag;
                let id = message.id().unwrap_or_default().to_owned();
                let alone = !self.link.has_suspects && message.came_back();
                self.common.announcer.metrics().delivered(&message, self.held.len() + 1);
                self.held.insert(tag, Held { id, message: Some(message), delivered: Instant::now() });
                Event::Delivered { tag, alone }
            }
            Ok(Taken::Drained) => Event::Drained,
            Err(error) => self.failed(&error),
        }
    }

    fn joined(&mut self, attended: Result<Attended, JoinError>) -> Event {
        match attended {
            Ok(attended) => self.finished(attended),
            Err(error) => self.panicked(&error.to_string()),
        }
    }

    fn finished(&mut self, attended: Attended) -> Event {
        let Attended { message, verdict, busy, detail } = attended;
        if detail.is_some() {
            self.detail = detail;
        }
        self.common.announcer.metrics().handled(busy);
        let tag = message.tag;
        let told_apart = message.id().map_or_else(|| hash(tag), hash);
        if matches!(verdict, Verdict::Held(_) | Verdict::Interrupted | Verdict::Unfit(_))
            && let Some(held) = self.held.get_mut(&tag)
        {
            held.message = Some(message);
        }
        Event::Finished { tag, verdict, busy, message: told_apart }
    }

    fn panicked(&mut self, error: &str) -> Event {
        self.detail = Some(format!("a handler panicked: {error}"));
        Event::Panicked
    }

    fn failed(&mut self, error: &Error) -> Event {
        if error.wants_larger_frames() {
            self.frame_max = Some(self.link.connection.frame_max().saturating_mul(2));
        }
        let error = chain(error);
        tracing::warn!(error, "connection lost");
        self.detail.get_or_insert(error);
        Event::Lost
    }

    /// Carries out what the lifecycle says to `event`, and to what follows from that.
    async fn act(&mut self, event: Event, shutdown: &Shutdown) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.common.epoch.elapsed();
            for command in self.lifecycle.handle(event, now) {
                let is_final = matches!(command, Command::Finish { .. } | Command::Kill | Command::End(_));
                let done = tokio::select! {
                    biased;
                    () = shutdown.abort.cancelled(), if !is_final => Ok(Some(Event::Abort)),
                    done = self.execute(command, shutdown) => done,
                };
                match done {
                    Ok(None) => {}
                    Ok(Some(event @ Event::Abort)) => {
                        events = [event].into();
                        break;
                    }
                    Ok(Some(event)) => events.push_back(event),
                    Err(error) => {
                        events = [self.failed(&error)].into();
                        break;
                    }
                }
            }
        }
    }

    async fn execute(&mut self, command: Command, shutdown: &Shutdown) -> Result<Option<Event>, Error> {
        match command {
            Command::Start { tag } => return Ok(self.start(tag)),
            Command::Ack(ack) => self.ack(ack).await?,
            Command::GiveBack { tag } => self.give_back(tag).await?,
            Command::Brake(cause) => self.brake(cause),
            Command::AskDepth => return self.ask_depth().await.map(Some),
            Command::Cancel => self.intake.as_mut().ok_or_else(already_closed)?.cancel().await?,
            Command::TellDraining => self.common.announcer.draining(),
            Command::Interrupt => self.interrupt.end.cancel(),
            Command::Finish { until } => self.finish(self.common.epoch + until, shutdown).await,
            Command::Kill => self.kill().await,
            Command::Close => return self.close().await.map(Some),
            Command::End(end) => {
                if end == End::Exit(ExitReason::Starved) {
                    let why = "messages wait, but none is delivered to this worker (single active consumer?)";
                    self.detail.get_or_insert_with(|| why.to_owned());
                }
                self.ended = Some(end);
            }
        }
        Ok(None)
    }

    /// Begins work on a message. What is done at once needs no task of its own, which would cost a turn of the
    /// runtime, a system call included, for each message.
    fn start(&mut self, tag: u64) -> Option<Event> {
        let message = self.held.get_mut(&tag).and_then(|held| held.message.take())?;
        self.common.announcer.metrics().began(&message, self.course == Course::Suspects);
        let attendant = Arc::clone(self.common.attendant);
        let site = Site {
            course: self.course,
            has_suspects: self.link.has_suspects,
            interrupt: self.interrupt.clone(),
            unclaimed: self.unclaimed.clone(),
        };
        let mut attending = Box::pin(async move { attendant.attend(message, site).await });
        if self.has_one_thread {
            let mut context = task::Context::from_waker(Waker::noop());
            match catch_unwind(AssertUnwindSafe(|| attending.as_mut().poll(&mut context))) {
                Ok(Poll::Ready(attended)) => return Some(self.finished(attended)),
                Ok(Poll::Pending) => {}
                // What it said went to standard error, as that of every thread.
                Err(_) => return Some(self.panicked("at its beginning")),
            }
        }
        self.tasks.spawn(attending);
        None
    }

    async fn ack(&mut self, ack: Ack) -> Result<(), Error> {
        crash_point("before-ack");
        self.intake.as_ref().ok_or_else(already_closed)?.ack(ack.tag, ack.multiple).await?;
        for (tag, settled) in ack.covers {
            self.settled(tag, settled);
        }
        Ok(())
    }

    /// One line per message, and only after what it says was sent: tests and the demo compare these ids.
    fn settled(&mut self, tag: u64, settled: Settled) {
        if let Some(held) = self.held.remove(&tag) {
            self.common.announcer.metrics().settled(settled, self.held.len());
            tracing::debug!(
                target: "mayfly_worker::message",
                id = held.id,
                outcome = settled.as_str(),
                "message settled"
            );
        }
    }

    /// A suspect goes back as if nobody had taken it: the mark that a give-back leaves would accuse it.
    async fn give_back(&mut self, tag: u64) -> Result<(), Error> {
        let message = self.held.get(&tag).and_then(|held| held.message.as_ref());
        let intake = self.intake.as_ref().ok_or_else(already_closed)?;
        if let (Course::Suspects, Some(message)) = (self.course, message) {
            let Attendant { routes, forwarder, .. } = self.common.attendant.as_ref();
            let publishing = async { forwarder.publish(&routes.back_to_suspects(message), 0).await };
            let error = match deadline("give a suspect back", CALL_LIMIT, publishing).await {
                Ok(Ok(())) => {
                    intake.ack(tag, false).await?;
                    self.settled(tag, Settled::GivenBack);
                    return Ok(());
                }
                Ok(Err(error)) => chain(&error),
                Err(late) => chain(&late),
            };
            tracing::warn!(error, "a suspect goes back with a mark");
        }
        intake.give_back(tag).await?;
        self.settled(tag, Settled::GivenBack);
        Ok(())
    }

    fn brake(&self, cause: Option<brake::Cause>) {
        let is_braked = cause == Some(brake::Cause::Failures);
        self.common.attendant.is_braked.store(is_braked, Ordering::Relaxed);
        if let Some(cause) = cause {
            tracing::warn!(cause = cause.as_str(), "begins one message at a time, with growing pauses");
        } else {
            tracing::info!("begins messages as usual again");
        }
    }

    async fn ask_depth(&mut self) -> Result<Event, Error> {
        let consumed = self.queues.consumed.clone();
        let Some(Depth { ready, .. }) = self.depth(&consumed).await? else {
            return Err(Error::QueueMissing { queue: consumed });
        };
        let suspects = match self.queues.suspects.clone() {
            Some(queue) => self.depth(&queue).await?,
            None => None,
        };
        let suspects = suspects.map(|Depth { ready, consumers }| Waiting { ready, consumers });
        Ok(Event::Depth { ready, suspects })
    }

    /// `None`: there is no such queue.
    async fn depth(&mut self, queue: &str) -> Result<Option<Depth>, Error> {
        let channel = match self.depth_channel.take() {
            Some(channel) => channel,
            None => self.link.connection.channel().await?,
        };
        match channel.depth(queue, CALL_LIMIT).await? {
            QueueState::Present(depth) => {
                self.depth_channel = Some(channel);
                Ok(Some(depth))
            }
            // The broker closes a channel that asked for a missing queue.
            QueueState::Missing => Ok(None),
        }
    }

    /// Waits for what the ledger will remember; what it will not is ended at once.
    async fn finish(&mut self, until: Instant, shutdown: &Shutdown) {
        self.unclaimed.kill.cancel();
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        tokio::select! {
            () = all_ended => {}
            () = tokio::time::sleep_until(until) => {}
            () = shutdown.abort.cancelled() => {}
        }
    }

    /// Ends all handlers; what is still held is lost with the connection.
    async fn kill(&mut self) {
        self.interrupt.kill.cancel();
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        if let Err(error) = deadline("end handlers", KILL_LIMIT, all_ended).await {
            tracing::error!(%error, "handlers are dropped");
            self.tasks.shutdown().await;
        }
        for tag in self.held.keys().copied().collect::<Vec<_>>() {
            self.settled(tag, Settled::Lost);
        }
    }

    /// All acks are certain when the broker has confirmed this.
    async fn close(&mut self) -> Result<Event, Error> {
        crash_point("before-close");
        self.intake.take().ok_or_else(already_closed)?.close().await?;
        if let Some(channel) = self.depth_channel.take() {
            channel.close().await?;
        }
        self.is_closed = true;
        Ok(Event::Closed)
    }
}

fn hash(value: impl std::hash::Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(value)
}

const fn already_closed() -> Error {
    Error::Lost { what: "use after close", source: None }
}

async fn next(intake: Option<&mut Intake>) -> Result<Taken, Error> {
    match intake {
        Some(intake) => intake.next().await,
        None => pending().await,
    }
}

async fn tick(interval: Option<&mut Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => pending().await,
    }
}
