//! One connection's life: what happens at the broker and in the handlers goes to [`Lifecycle`], its commands
//! are carried out here.

use std::{
    collections::{BTreeMap, VecDeque},
    future::pending,
    sync::Arc,
    time::Duration,
};

use mayfly_broker::{CALL_LIMIT, Channel, Connection, Error, Intake, Message, QueueState, Taken};
use mayfly_service::{Shutdown, chain, crash::crash_point, deadline, report::ExitReason};
use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};

use crate::{
    attend::{Attendant, Attended},
    handler::{Handler, Interrupt},
    lifecycle::{Ack, Command, End, Event, Lifecycle, Rules},
    start::Link,
    status::Announcer,
    tally::{Settled, Tally},
};

/// One connection with all that is in flight on it.
#[derive(Debug)]
pub(crate) struct Session<'a, H> {
    queue: &'a str,
    attendant: Arc<Attendant<H>>,
    announcer: &'a Announcer,
    /// The worker's start: the lifecycle's time counts from here.
    epoch: Instant,
    connection: Option<Connection>,
    intake: Option<Intake>,
    /// For looks at the queue; opened at the first.
    depth_channel: Option<Channel>,
    lifecycle: Lifecycle,
    tasks: JoinSet<Attended>,
    interrupt: Interrupt,
    /// All deliveries that are not settled.
    held: BTreeMap<u64, Held>,
    /// What goes into the exit report.
    detail: Option<String>,
    ended: Option<End>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) end: End,
    pub(crate) tally: Tally,
    /// The error that ended it, if one did.
    pub(crate) detail: Option<String>,
}

/// A delivery that is not settled.
#[derive(Debug)]
struct Held {
    id: String,
    /// Until work on it begins.
    message: Option<Message>,
}

/// How long killed handlers may take to be gone before their tasks are dropped.
const KILL_LIMIT: Duration = Duration::from_secs(10);

// === impl Session ===

impl<'a, H: Handler> Session<'a, H> {
    pub(crate) fn new(
        link: Link,
        queue: &'a str,
        attendant: Arc<Attendant<H>>,
        announcer: &'a Announcer,
        lifecycle: (Rules, Tally, Instant),
    ) -> Self {
        let Link { connection, intake } = link;
        let (rules, tally, epoch) = lifecycle;
        Self {
            queue,
            attendant,
            announcer,
            epoch,
            connection: Some(connection),
            intake: Some(intake),
            depth_channel: None,
            lifecycle: Lifecycle::new(rules, tally, epoch.elapsed()),
            tasks: JoinSet::new(),
            interrupt: Interrupt::default(),
            held: BTreeMap::new(),
            detail: None,
            ended: None,
        }
    }

    /// Works until the connection is lost or the worker's end is reached. No handler runs afterwards.
    pub(crate) async fn run(mut self, shutdown: &Shutdown) -> Ended {
        let mut is_stopping = false;
        loop {
            let wake_at = self.lifecycle.wake_at().map(|at| self.epoch + at);
            let event = tokio::select! {
                biased;
                () = shutdown.abort.cancelled() => Event::Abort,
                () = shutdown.stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    Event::Stop
                }
                Some(attended) = self.tasks.join_next() => self.finished(attended),
                taken = next(self.intake.as_mut()) => self.taken(taken),
                () = sleep_until(wake_at) => Event::Tick,
            };
            self.act(event, shutdown).await;
            if let Some(end) = self.ended {
                return Ended { end, tally: self.lifecycle.tally(), detail: self.detail };
            }
        }
    }

    fn taken(&mut self, taken: Result<Taken, Error>) -> Event {
        match taken {
            Ok(Taken::Message(message)) => {
                let tag = message.tag;
                let id = message.id().unwrap_or_default().to_owned();
                self.held.insert(tag, Held { id, message: Some(message) });
                Event::Delivered { tag }
            }
            Ok(Taken::Drained) => Event::Drained,
            Err(error) => self.failed(&error),
        }
    }

    fn finished(&mut self, attended: Result<Attended, JoinError>) -> Event {
        match attended {
            Ok(Attended { tag, verdict, busy, detail }) => {
                if detail.is_some() {
                    self.detail = detail;
                }
                Event::Finished { tag, verdict, busy }
            }
            Err(error) => {
                self.detail = Some(format!("a handler panicked: {error}"));
                Event::Panicked
            }
        }
    }

    fn failed(&mut self, error: &Error) -> Event {
        let error = chain(error);
        tracing::warn!(error, "connection lost");
        self.detail.get_or_insert(error);
        Event::Lost
    }

    /// Carries out what the lifecycle says to `event`, and to what follows from that.
    async fn act(&mut self, event: Event, shutdown: &Shutdown) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.epoch.elapsed();
            for command in self.lifecycle.handle(event, now) {
                let is_final = matches!(command, Command::Kill | Command::End(_));
                let done = tokio::select! {
                    biased;
                    () = shutdown.abort.cancelled(), if !is_final => Ok(Some(Event::Abort)),
                    done = self.execute(command) => done,
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

    async fn execute(&mut self, command: Command) -> Result<Option<Event>, Error> {
        match command {
            Command::Start { tag } => self.start(tag),
            Command::Ack(ack) => self.ack(ack).await?,
            Command::GiveBack { tag } => {
                self.intake.as_ref().ok_or_else(already_closed)?.give_back(tag).await?;
                self.settled(tag, Settled::GivenBack);
            }
            Command::AskDepth => return self.ask_depth().await.map(Some),
            Command::Cancel => {
                self.announcer.draining();
                self.intake.as_mut().ok_or_else(already_closed)?.cancel().await?;
            }
            Command::Interrupt => self.interrupt.end.cancel(),
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

    fn start(&mut self, tag: u64) {
        if let Some(message) = self.held.get_mut(&tag).and_then(|held| held.message.take()) {
            let attendant = Arc::clone(&self.attendant);
            let interrupt = self.interrupt.clone();
            self.tasks.spawn(async move { attendant.attend(message, interrupt).await });
        }
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
            tracing::debug!(
                target: "mayfly_worker::message",
                id = held.id,
                outcome = settled.as_str(),
                "message settled"
            );
        }
    }

    async fn ask_depth(&mut self) -> Result<Event, Error> {
        let channel = match self.depth_channel.take() {
            Some(channel) => channel,
            None => self.connection.as_ref().ok_or_else(already_closed)?.channel().await?,
        };
        match channel.depth(self.queue, CALL_LIMIT).await? {
            QueueState::Present(depth) => {
                self.depth_channel = Some(channel);
                Ok(Event::Depth { ready: depth.ready })
            }
            QueueState::Missing => Err(Error::QueueMissing { queue: self.queue.to_owned() }),
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
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::debug!(error = chain(&error), "connection did not close after its channel had");
        }
        Ok(Event::Closed)
    }
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

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => pending().await,
    }
}
