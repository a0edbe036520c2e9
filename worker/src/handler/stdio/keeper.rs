//! Keeps the program running from the worker's start to its end, and brings messages and answers together.

use std::{collections::VecDeque, io, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff};
use mayfly_service::backoff::backoff;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::talk::{Life, Talk, Turn};
use crate::handler::{
    CannotStart, Outcome,
    child::{Program, cannot_be_run, describe},
};

/// Owns the program, and every message until its reply.
#[derive(Debug)]
pub(super) struct Keeper {
    program: Program,
    start_limit: Duration,
    orders: mpsc::UnboundedReceiver<Order>,
    /// What no child has got yet.
    waiting: VecDeque<Request>,
    state: State,
    pauses: ExponentialBackoff,
    /// Since when its lives end before it has read any of its messages.
    deaf_since: Option<Instant>,
    /// Why the last try to start it came to nothing.
    last_failure: Option<String>,
    /// Until it was ready for the first time, or can't be.
    ready: Option<oneshot::Sender<Result<(), CannotStart>>>,
}

/// What handlers ask for.
#[derive(Debug)]
pub(super) enum Order {
    Work(Request),
    /// The time of a message is up.
    Stop {
        id: u64,
    },
    /// No more messages will come.
    Finish,
}

/// A message for the child.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) message_id: String,
    /// As it is written to the child.
    pub(super) line: Vec<u8>,
    pub(super) reply: oneshot::Sender<Reply>,
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Reply {
    Answer(Outcome),
    /// It was stopped before a child got it.
    Unbegun,
    /// The child that got it ended before it had read it.
    Unread,
    /// The child ended without an answer to it.
    Ended {
        reason: String,
        /// Because a message's time was up.
        by_us: bool,
    },
    CannotStart(CannotStart),
}

#[derive(Debug)]
enum State {
    /// Nothing runs; the next start.
    Down {
        start_at: Instant,
        ready_by: Instant,
    },
    /// It has not said that it is ready.
    Starting {
        talk: Box<Talk>,
        ready_by: Instant,
    },
    Up {
        talk: Box<Talk>,
    },
    /// It can't be started.
    Refused(CannotStart),
}

#[derive(Debug)]
enum Event {
    Orders,
    Turn(Turn),
    Start,
    TooLate,
}

/// The pauses after a crash, until the program has answered again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Orders taken at once.
const BATCH: usize = 64;

// === impl Keeper ===

impl Keeper {
    pub(super) fn new(
        program: Program,
        start_limit: Duration,
        orders: mpsc::UnboundedReceiver<Order>,
    ) -> Self {
        let now = Instant::now();
        Self {
            program,
            start_limit,
            orders,
            waiting: VecDeque::new(),
            state: State::Down { start_at: now, ready_by: now + start_limit },
            pauses: backoff(FIRST_PAUSE, LONGEST_PAUSE).build(),
            deaf_since: None,
            last_failure: None,
            ready: None,
        }
    }

    /// Works until it is told to finish; `ready` hears when messages can be taken, or that they can't.
    pub(super) async fn keep(mut self, ready: oneshot::Sender<Result<(), CannotStart>>) {
        self.ready = Some(ready);
        let now = Instant::now();
        self.state = State::Down { start_at: now, ready_by: now + self.start_limit };
        let mut orders = Vec::with_capacity(BATCH);
        loop {
            let event = tokio::select! {
                count = self.orders.recv_many(&mut orders, BATCH) => {
                    if count == 0 { orders.push(Order::Finish) }
                    Event::Orders
                }
                event = self.state.next() => event,
            };
            match event {
                Event::Orders => {
                    for order in orders.drain(..) {
                        match order {
                            Order::Work(request) => self.waiting.push_back(request),
                            Order::Stop { id } => self.stop(id).await,
                            Order::Finish => return self.finish().await,
                        }
                    }
                }
                Event::Start => self.start(),
                Event::Turn(turn) => self.turned(turn).await,
                Event::TooLate => self.too_late().await,
            }
            self.give();
        }
    }

    /// Hands out what waits, as far as the child can take it.
    fn give(&mut self) {
        match &mut self.state {
            State::Up { talk } => {
                while talk.takes()
                    && let Some(request) = self.waiting.pop_front()
                {
                    talk.give(request);
                }
            }
            State::Refused(error) => {
                for request in self.waiting.drain(..) {
                    request.reply(Reply::CannotStart(error.clone()));
                }
            }
            State::Down { .. } | State::Starting { .. } => {}
        }
    }

    fn start(&mut self) {
        let State::Down { ready_by, .. } = self.state else { return };
        match Talk::begin(&self.program) {
            Ok(talk) => self.state = State::Starting { talk: Box::new(talk), ready_by },
            Err(error) => self.refuse(error),
        }
    }

    async fn turned(&mut self, turn: Turn) {
        match (turn, self.take_state()) {
            (Turn::Ready, State::Starting { talk, .. }) => {
                tracing::info!("the program is ready");
                self.last_failure = None;
                if let Some(ready) = self.ready.take() {
                    // Nobody listens when the worker was asked to stop meanwhile.
                    let _ = ready.send(Ok(()));
                }
                self.state = State::Up { talk };
            }
            (Turn::Over, State::Starting { talk, ready_by }) => {
                let life = talk.over().await;
                self.ended(life, Some(ready_by));
            }
            (Turn::Over, State::Up { talk }) => {
                let life = talk.over().await;
                self.ended(life, None);
            }
            (_, state) => self.state = state,
        }
    }

    /// It ended by itself: those in work are told, and it is started again after a pause. `ready_by` holds
    /// for a program that was never ready.
    fn ended(&mut self, life: Life, ready_by: Option<Instant>) {
        let Life { status, last_line, left, has_answered, was_deaf } = life;
        let what = match &status {
            Ok(status) => describe(*status, &last_line),
            Err(error) => wait_failed(error),
        };
        if status.is_ok_and(cannot_be_run) {
            let error = CannotStart { reason: what };
            for reply in left {
                send(reply, Reply::CannotStart(error.clone()));
            }
            return self.refuse(error);
        }
        let now = Instant::now();
        if !was_deaf {
            self.deaf_since = None;
        } else if now - *self.deaf_since.get_or_insert(now) >= self.start_limit {
            let reason = format!("the program ends again and again before it reads a message: {what}");
            return self.refuse(CannotStart { reason });
        }
        if has_answered {
            self.pauses = backoff(FIRST_PAUSE, LONGEST_PAUSE).build();
        }
        let pause = self.pauses.next().unwrap_or(LONGEST_PAUSE);
        let in_work = left.len();
        tracing::warn!(in_work, ?pause, "the program ended and will be started again: {what}");
        for reply in left {
            let reason = format!("the program ended while this message was in work: {what}");
            send(reply, Reply::Ended { reason, by_us: false });
        }
        let start_at = now + pause;
        self.state = State::Down { start_at, ready_by: ready_by.unwrap_or(start_at + self.start_limit) };
        self.last_failure = Some(what);
    }

    /// The time of a message is up: without it where it waits, else without the child that has it.
    async fn stop(&mut self, id: u64) {
        if let Some(index) = self.waiting.iter().position(|request| request.id == id)
            && let Some(request) = self.waiting.remove(index)
        {
            return request.reply(Reply::Unbegun);
        }
        match self.take_state() {
            State::Up { talk } if talk.has(id) => {
                let life = talk.end().await;
                let in_work = life.left.len();
                tracing::warn!(in_work, "the program was killed: a message in it had to end, and did not");
                for reply in life.left {
                    let reason = "the program was killed because another message had to end".to_owned();
                    send(reply, Reply::Ended { reason, by_us: true });
                }
                let now = Instant::now();
                self.state = State::Down { start_at: now, ready_by: now + self.start_limit };
            }
            state => self.state = state,
        }
    }

    /// It was not ready in time.
    async fn too_late(&mut self) {
        let state = self.take_state();
        let mut last_failure = self.last_failure.take();
        if let State::Starting { talk, .. } = state {
            let Life { last_line, .. } = talk.end().await;
            if !last_line.is_empty() {
                last_failure = Some(last_line);
            }
        }
        let limit = humantime::format_duration(self.start_limit);
        let what = format!("the program did not say {{\"ready\":true}} within {limit} (--start-deadline)");
        let reason = last_failure.map_or_else(|| what.clone(), |failure| format!("{what}: {failure}"));
        self.refuse(CannotStart { reason });
    }

    fn refuse(&mut self, error: CannotStart) {
        if let Some(ready) = self.ready.take() {
            let _ = ready.send(Err(error.clone()));
        }
        self.state = State::Refused(error);
    }

    async fn finish(mut self) {
        for request in self.waiting.drain(..) {
            request.reply(Reply::Unbegun);
        }
        if let State::Starting { talk, .. } | State::Up { talk } = self.state {
            let life = talk.finish().await;
            match life.status {
                Ok(status) => tracing::debug!("the program ended: {}", describe(status, "")),
                Err(error) => tracing::warn!("{}", wait_failed(&error)),
            }
        }
    }

    /// The state, with a harmless one in its place until the next is known.
    fn take_state(&mut self) -> State {
        let now = Instant::now();
        std::mem::replace(&mut self.state, State::Down { start_at: now, ready_by: now + self.start_limit })
    }
}

// === impl State ===

impl State {
    /// Waits for what happens next. Nothing is lost when this is dropped before it is ready.
    async fn next(&mut self) -> Event {
        match self {
            Self::Down { start_at, ready_by } => {
                tokio::time::sleep_until((*start_at).min(*ready_by)).await;
                if *start_at < *ready_by { Event::Start } else { Event::TooLate }
            }
            Self::Starting { talk, ready_by } => tokio::select! {
                turn = talk.turn() => Event::Turn(turn),
                () = tokio::time::sleep_until(*ready_by) => Event::TooLate,
            },
            Self::Up { talk } => Event::Turn(talk.turn().await),
            Self::Refused(_) => std::future::pending().await,
        }
    }
}

// === impl Request ===

impl Request {
    fn reply(self, reply: Reply) {
        send(self.reply, reply);
    }
}

/// Nobody listens when the worker has let go of the message.
fn send(to: oneshot::Sender<Reply>, reply: Reply) {
    let _ = to.send(reply);
}

fn wait_failed(error: &io::Error) -> String {
    format!("waiting for the program failed: {error}")
}
