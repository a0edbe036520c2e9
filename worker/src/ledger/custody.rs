//! The ledger as a worker uses it: which message is asked for, what is done while it does not answer, and the
//! claim of a message in work.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use backon::BackoffBuilder;
use mayfly_broker::Message;
use mayfly_service::{backoff::backoff, chain, crash::crash_point};
use tokio::{sync::Notify, time::Instant};

use super::{Claim, Claimed, Key, Ledger, LedgerError, LedgerOptions};
use crate::handler::Interrupt;

/// What to do while the ledger does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum WhenDown {
    /// Begin no message until it answers; after 5 minutes end (75).
    #[default]
    Stop,
    /// Go on as if there were none: messages may be done again.
    Ignore,
}

/// The ledger with what this worker was told about it.
#[derive(Debug)]
pub(crate) struct Custody {
    ledger: Arc<Ledger>,
    vhost: String,
    queue: String,
    /// A header that holds the id of messages without one.
    id_header: Option<String>,
    when_down: WhenDown,
    /// A message without an id was told.
    told_no_id: AtomicBool,
    /// [`WhenDown::Ignore`]: not asked again before this time.
    ignored_until: Mutex<Option<Instant>>,
    /// Messages that ran without the ledger, or were done without its knowing.
    unrecorded: AtomicU64,
    /// The last claim that was asked for had no answer.
    is_down: AtomicBool,
    answered: Notify,
}

/// What came of asking for a message.
#[derive(Debug)]
pub(crate) enum Asked {
    /// It may run; with a claim, unless it is none of the ledger's.
    Run(Option<Arc<InHand>>),
    /// It is done already.
    Known,
    /// Somebody else works on it.
    Elsewhere,
    /// The ledger does not answer.
    Down,
    /// We were interrupted.
    Interrupted,
}

/// A claimed message in work.
pub(crate) struct InHand {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) claim: Claim,
    stage: Mutex<Stage>,
    tenure: Mutex<Tenure>,
}

/// How far the message is, as far as the ledger is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It is claimed.
    Claimed,
    /// The handler's transaction is about to record it, or nobody knows whether it did.
    Unknown,
    /// The handler's transaction has recorded it.
    Recorded,
    /// The handler's transaction has met somebody else's claim.
    TakenOver,
}

/// How sure a holder can be of its claim, by its own clock: pure.
#[derive(Debug, Clone, Copy)]
struct Tenure {
    lease: Duration,
    /// When the last claim or renewal that succeeded was asked for: the store's lease began later.
    asked_at: Instant,
}

/// What became of a done message's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// It is known as done.
    Yes,
    /// The ledger does not answer, and we go on without it.
    Ignored,
    /// Somebody else has taken it over.
    NotOurs,
    /// We were interrupted before the ledger answered.
    Interrupted,
}

/// How long to wait for somebody else's claim.
const ELSEWHERE_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at it, and between two tries at a ledger that does not answer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long a ledger that did not answer is not asked, where it can be done without.
const IGNORED_FOR: Duration = Duration::from_secs(5);

// === impl Custody ===

impl Custody {
    /// For the messages of `queue` in `vhost`; `name` is how people find this worker among the holders of
    /// claims. Nothing is connected yet.
    pub(crate) fn new(options: &LedgerOptions, name: &str, vhost: &str, queue: &str) -> Self {
        let LedgerOptions { url, tls, terms, when_down, id_header } = options;
        Self {
            ledger: Arc::new(Ledger::new(url, name, *terms, tls.clone())),
            vhost: vhost.to_owned(),
            queue: queue.to_owned(),
            id_header: id_header.clone(),
            when_down: *when_down,
            told_no_id: AtomicBool::new(false),
            ignored_until: Mutex::new(None),
            unrecorded: AtomicU64::new(0),
            is_down: AtomicBool::new(false),
            answered: Notify::new(),
        }
    }

    /// Connects, for as long as it takes; a ledger that can be done without is not waited for.
    ///
    /// # Errors
    /// When the ledger refuses us.
    pub(crate) async fn prepare(&self) -> Result<(), LedgerError> {
        let mut pauses = backoff(FIRST_PAUSE, LONGEST_PAUSE).build();
        loop {
            let error = match self.ledger.connect().await {
                Ok(()) => return Ok(()),
                Err(error @ LedgerError::Refused(_)) => return Err(error),
                Err(error) => error,
            };
            if self.when_down == WhenDown::Ignore {
                self.ignore(&error);
                return Ok(());
            }
            tracing::warn!(error = chain(&error), "cannot connect to the ledger, will retry");
            tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
        }
    }

    /// Asks for `message`, and waits a little for somebody else's claim to end.
    pub(crate) async fn ask(&self, message: &Message, interrupt: &Interrupt) -> Asked {
        let Some(key) = self.key(message) else { return Asked::Run(None) };
        if self.is_ignored() {
            self.unrecorded.fetch_add(1, Ordering::Relaxed);
            return Asked::Run(None);
        }
        let begun = Instant::now();
        let mut pauses = backoff(FIRST_PAUSE, LONGEST_PAUSE).build();
        loop {
            let asked_at = Instant::now();
            let claimed = self.ledger.claim(&key).await;
            if self.is_down.swap(claimed.is_err(), Ordering::Relaxed) && claimed.is_ok() {
                self.answered.notify_one();
            }
            match claimed {
                Ok(Claimed::Ours(claim)) => {
                    crash_point("after-claim");
                    return Asked::Run(Some(Arc::new(InHand::new(&self.ledger, claim, asked_at))));
                }
                Ok(Claimed::Done) => return Asked::Known,
                Ok(Claimed::Elsewhere) => {}
                Err(error) if self.when_down == WhenDown::Ignore => {
                    self.ignore(&error);
                    self.unrecorded.fetch_add(1, Ordering::Relaxed);
                    return Asked::Run(None);
                }
                Err(error) => {
                    tracing::warn!(
                        id = key.id,
                        error = chain(&error),
                        "cannot claim a message in the ledger"
                    );
                    return Asked::Down;
                }
            }
            if begun.elapsed() >= ELSEWHERE_LIMIT {
                return Asked::Elsewhere;
            }
            if pause(&mut pauses, interrupt).await {
                return Asked::Interrupted;
            }
        }
    }

    /// Records a done message, for as long as it takes, unless it can be done without or `interrupt` asks to end.
    pub(crate) async fn record(&self, hand: &InHand, interrupt: &Interrupt) -> Recorded {
        let mut pauses = backoff(FIRST_PAUSE, LONGEST_PAUSE).build();
        let id = &hand.claim.key.id;
        crash_point("before-commit");
        loop {
            let error = match self.ledger.commit(&hand.claim).await {
                Ok(true) => {
                    crash_point("after-commit");
                    return Recorded::Yes;
                }
                Ok(false) => {
                    tracing::warn!(id, "a message is done that somebody else has taken over");
                    return Recorded::NotOurs;
                }
                Err(error) => error,
            };
            if self.when_down == WhenDown::Ignore {
                self.ignore(&error);
                self.unrecorded.fetch_add(1, Ordering::Relaxed);
                return Recorded::Ignored;
            }
            tracing::warn!(id, error = chain(&error), "cannot record a done message, will retry");
            if pause(&mut pauses, interrupt).await {
                tracing::error!(id, "a message is done and not recorded: it will run again");
                return Recorded::Interrupted;
            }
        }
    }

    /// Whether a transaction whose end is unknown has recorded its message. From then on it can't any more.
    pub(crate) async fn resolve(&self, hand: &InHand, interrupt: &Interrupt) -> Recorded {
        let mut pauses = backoff(FIRST_PAUSE, LONGEST_PAUSE).build();
        let id = &hand.claim.key.id;
        loop {
            // Waits for a commit under way, and leaves a later one nothing that it could match.
            let resolved = async {
                self.ledger.release(&hand.claim).await?;
                self.ledger.is_done(&hand.claim.key).await
            };
            match resolved.await {
                Ok(true) => return Recorded::Yes,
                Ok(false) => return Recorded::NotOurs,
                Err(error) => {
                    tracing::warn!(
                        id,
                        error = chain(&error),
                        "a transaction's end is unknown, will ask again"
                    );
                }
            }
            if pause(&mut pauses, interrupt).await {
                return Recorded::Interrupted;
            }
        }
    }

    /// Messages that ran without the ledger, or were done without its knowing.
    pub(crate) fn unrecorded(&self) -> u64 {
        self.unrecorded.load(Ordering::Relaxed)
    }

    /// Waits until the ledger answers after it did not.
    pub(crate) async fn answered(&self) {
        self.answered.notified().await;
    }

    pub(crate) async fn close(&self) {
        self.ledger.close().await;
    }

    /// `None`: the message has no id.
    fn key(&self, message: &Message) -> Option<Key> {
        // First: who had no `message_id` has one of ours since it was retried.
        let named = self.id_header.as_deref().and_then(|name| message.text_header(name));
        let own = message.id().map(str::to_owned);
        let id = [named, own].into_iter().flatten().find(|id| !id.is_empty());
        if id.is_none() && !self.told_no_id.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                queue = self.queue,
                "a message has no message_id that is text: the ledger cannot know such messages, so they may \
                 be done twice; if a header holds their id, name it with --id-header"
            );
        }
        Some(Key { vhost: self.vhost.clone(), queue: self.queue.clone(), id: id? })
    }

    fn is_ignored(&self) -> bool {
        let until = *self.ignored_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn ignore(&self, error: &LedgerError) {
        tracing::error!(
            error = chain(error),
            "the ledger does not answer and is done without: messages may be done twice"
        );
        *self.ignored_until.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Instant::now() + IGNORED_FOR);
    }
}

/// Waits until the next try. `true`: we were interrupted.
async fn pause(pauses: &mut impl Iterator<Item = Duration>, interrupt: &Interrupt) -> bool {
    tokio::select! {
        () = tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)) => false,
        () = interrupt.asked() => true,
    }
}

// === impl InHand ===

impl InHand {
    fn new(ledger: &Arc<Ledger>, claim: Claim, asked_at: Instant) -> Self {
        let tenure = Tenure { lease: ledger.terms().lease, asked_at };
        let stage = Mutex::new(Stage::Claimed);
        Self { ledger: Arc::clone(ledger), claim, stage, tenure: Mutex::new(tenure) }
    }

    pub(crate) fn stage(&self) -> Stage {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_stage(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    /// Renews the claim until it is lost; runs beside the work, and is dropped after it.
    pub(crate) async fn keep(&self) {
        let mut tenure = *self.tenure.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = tenure.renew_at();
        loop {
            tokio::time::sleep_until(next).await;
            let asked_at = Instant::now();
            let renewed = tokio::time::timeout_at(tenure.ends_at(), self.ledger.renew(&self.claim)).await;
            match renewed {
                Ok(Ok(true)) => {
                    tenure.asked_at = asked_at;
                    *self.tenure.lock().unwrap_or_else(PoisonError::into_inner) = tenure;
                    next = tenure.renew_at();
                    continue;
                }
                // A transaction of the handler's has the last word.
                Ok(Ok(false)) if self.stage() != Stage::Claimed => return std::future::pending().await,
                Ok(Ok(false)) => {
                    tracing::warn!(id = self.claim.key.id, "somebody else has taken over a message in work");
                    return;
                }
                Ok(Err(error)) => {
                    tracing::warn!(id = self.claim.key.id, error = chain(&error), "cannot renew a claim");
                }
                Err(_) => {}
            }
            if Instant::now() >= tenure.ends_at() {
                tracing::warn!(
                    id = self.claim.key.id,
                    "a claim has ended in spite of the work on its message"
                );
                return;
            }
            next = tenure.try_again_at(Instant::now());
        }
    }

    /// Gives up the claim; what fails is told and expires.
    pub(crate) async fn release(&self) {
        if let Err(error) = self.ledger.release(&self.claim).await {
            tracing::debug!(id = self.claim.key.id, error = chain(&error), "cannot release a claim");
        }
    }
}

/// Without the ledger, whose Debug would repeat itself in every message.
impl fmt::Debug for InHand {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("InHand").field("claim", &self.claim).finish_non_exhaustive()
    }
}

// === impl Tenure ===

impl Tenure {
    /// Twice a lease may go by in vain.
    fn renew_at(self) -> Instant {
        self.asked_at + self.lease / 3
    }

    /// Until when nobody else can have it: the last sixth is for what is slow to end, and for clocks that
    /// don't run alike.
    fn ends_at(self) -> Instant {
        self.asked_at + self.lease - self.lease / 6
    }

    fn try_again_at(self, now: Instant) -> Instant {
        self.ends_at().min(now + self.lease / 15)
    }
}

#[cfg(test)]
mod tests {
    use lapin::{
        BasicProperties,
        message::Delivery,
        types::{AMQPValue, FieldTable},
    };

    use super::*;
    use crate::ledger::LedgerUrl;

    /// Asks for a renewal at every moment that the tenure names; `answers` says whether each is heard.
    fn last_sure_moment(lease: Duration, answers: &[bool]) -> (Duration, Duration) {
        let begun = Instant::now();
        let mut tenure = Tenure { lease, asked_at: begun };
        let mut renewed_at = begun;
        let mut next = tenure.renew_at();
        for is_heard in answers {
            if next >= tenure.ends_at() {
                break;
            }
            if *is_heard {
                renewed_at = next;
                tenure.asked_at = next;
                next = tenure.renew_at();
            } else {
                next = tenure.try_again_at(next);
            }
        }
        (tenure.ends_at() - begun, renewed_at - begun)
    }

    fn message(id: Option<&str>, order: Option<&str>) -> Message {
        let mut properties = BasicProperties::default();
        if let Some(id) = id {
            properties = properties.with_message_id(id.into());
        }
        if let Some(order) = order {
            let mut headers = FieldTable::default();
            headers.insert("x-order".into(), AMQPValue::LongString(order.into()));
            properties = properties.with_headers(headers);
        }
        let mut delivery = Delivery::mock(1, "".into(), "q".into(), false, Vec::new());
        delivery.properties = properties;
        Message::from(delivery)
    }

    #[test]
    fn a_message_is_known_by_the_header_that_was_named_or_else_by_its_id() {
        let url = "redis://localhost".parse::<LedgerUrl>().unwrap();
        let options = LedgerOptions { id_header: Some("x-order".to_owned()), ..LedgerOptions::new(url) };
        let named = Custody::new(&options, "worker", "/", "q");
        let plain = Custody::new(&LedgerOptions { id_header: None, ..options }, "worker", "/", "q");
        let cases = [
            ((Some("id"), Some("order")), Some("order"), Some("id")),
            ((Some("id"), None), Some("id"), Some("id")),
            ((Some("id"), Some("")), Some("id"), Some("id")),
            ((None, Some("order")), Some("order"), None),
            ((Some("\u{1a}"), Some("order")), Some("order"), None),
            ((Some(""), None), None, None),
        ];
        for ((id, order), by_header, by_id) in cases {
            let message = message(id, order);
            let known = |custody: &Custody| custody.key(&message).map(|key| key.id);
            assert_eq!(
                (known(&named).as_deref(), known(&plain).as_deref()),
                (by_header, by_id),
                "{id:?} {order:?}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn a_holder_stops_before_its_lease_ends_and_not_after_one_renewal_in_vain(
            lease in 1_u64..3600,
            answers in proptest::collection::vec(proptest::bool::ANY, 0..50),
        ) {
            let lease = Duration::from_secs(lease);
            let (ends, renewed) = last_sure_moment(lease, &answers);
            assert!(ends < renewed + lease, "the store may have given it away by then");
            assert!(ends + Duration::from_millis(1) >= renewed + lease * 5 / 6);
        }
    }

    #[test]
    fn a_lost_renewal_is_tried_several_times_before_the_claim_ends() {
        let begun = Instant::now();
        let tenure = Tenure { lease: Duration::from_secs(30), asked_at: begun };
        let mut tries = Vec::new();
        let mut next = tenure.renew_at();
        while next < tenure.ends_at() {
            tries.push((next - begun).as_secs());
            next = tenure.try_again_at(next);
        }
        assert_eq!(tries, [10, 12, 14, 16, 18, 20, 22, 24]);
    }
}
