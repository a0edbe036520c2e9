//! The ledger: a record of messages known as done, so that none of them ever runs again.
//!
//! A message is claimed before its handler begins and committed once it is done, before it is acknowledged.
//! Whoever meets it again, because the acknowledgement never arrived, finds it done. A claim keeps two workers
//! from working on one message at once; it ends by itself, by the store's clock, when its holder stops renewing
//! it. Each take-over raises the claim's epoch, and a commit counts only from the present holder.

mod args;
pub(crate) mod custody;
mod link;
mod postgres;
mod redis;
pub(crate) mod transaction;
mod url;

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use mayfly_service::{
    DeadlineExceeded, deadline,
    tls::{TlsFiles, TlsProblem},
};

pub(crate) use self::args::LedgerArgs;
pub use self::{
    args::LedgerOptions,
    custody::WhenDown,
    transaction::{Transaction, TransactionError},
    url::{BadLedgerUrl, LedgerUrl},
};
use self::{postgres::Postgres, redis::Redis};

/// Which message is meant. Equal ids in different queues are different messages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The broker's virtual host.
    pub vhost: String,
    /// The queue that the worker works on.
    pub queue: String,
    /// The message's id.
    pub id: String,
}

/// The right to work on one message until it expires or somebody else has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The message.
    pub key: Key,
    /// Who holds it: no two claims ever have the same.
    pub owner: String,
    /// Fencing number: higher than that of every claim before it.
    pub epoch: i64,
}

/// What came of asking for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// It is ours for the length of a lease.
    Ours(Claim),
    /// It is known as done: it must not run again.
    Done,
    /// Somebody else works on it now.
    Elsewhere,
}

/// Why the ledger gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Not reachable, or it cannot serve now; later it may.
    #[error("ledger does not answer")]
    Down(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It refuses us: wrong password, no permission, no such database.
    #[error("ledger refuses us")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It took too long; whether the call took effect is unknown.
    #[error(transparent)]
    Deadline(#[from] DeadlineExceeded),
}

/// How long things last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long a claim lasts unless it is renewed; at least a second.
    pub lease: Duration,
    /// How long a message is remembered after it was done.
    pub keep: Duration,
}

/// A connection to the ledger that comes back by itself.
#[derive(Debug)]
pub struct Ledger {
    store: Store,
    terms: Terms,
    /// Unique to this worker.
    owner: String,
    claims: AtomicU64,
}

#[derive(Debug)]
enum Store {
    Redis(Redis),
    Postgres(Postgres),
}

/// One call, connecting included.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(5);

// === impl Ledger ===

impl Ledger {
    /// A ledger at `url`; nothing is connected yet. `name` is how people find this worker among the holders of
    /// claims; `tls` is used where the URL asks for TLS, and read at each connection.
    #[must_use]
    pub fn new(url: &LedgerUrl, name: &str, terms: Terms, tls: TlsFiles) -> Self {
        let store = match url {
            LedgerUrl::Redis(url) => Store::Redis(Redis::new(url.clone(), tls)),
            LedgerUrl::Postgres(config) => Store::Postgres(Postgres::new(config, name, tls)),
        };
        let owner = format!("{name} {}", uuid::Uuid::now_v7().simple());
        Self { store, terms, owner, claims: AtomicU64::new(0) }
    }

    /// How long claims and records last.
    #[must_use]
    pub const fn terms(&self) -> Terms {
        self.terms
    }

    /// Asks for the message, and takes it over from a holder whose claim has expired.
    ///
    /// # Errors
    /// [`LedgerError`]: nothing is known about the message then, and a claim may exist until it expires.
    pub async fn claim(&self, key: &Key) -> Result<Claimed, LedgerError> {
        let owner = format!("{}/{}", self.owner, self.claims.fetch_add(1, Ordering::Relaxed));
        let lease = self.terms.lease;
        let claimed = match &self.store {
            Store::Redis(redis) => within("claim", redis.claim(key, &owner, self.terms)).await,
            Store::Postgres(postgres) => within("claim", postgres.claim(key, &owner, lease)).await,
        }?;
        Ok(match claimed {
            Answer::Ours { epoch } => Claimed::Ours(Claim { key: key.clone(), owner, epoch }),
            Answer::Done => Claimed::Done,
            Answer::Elsewhere => Claimed::Elsewhere,
        })
    }

    /// Lengthens the claim to a lease from now. `false`: somebody else has taken it over.
    ///
    /// # Errors
    /// [`LedgerError`]: the claim may have been lengthened or not.
    pub async fn renew(&self, claim: &Claim) -> Result<bool, LedgerError> {
        match &self.store {
            Store::Redis(redis) => within("renew a claim", redis.renew(claim, self.terms)).await,
            Store::Postgres(postgres) => {
                within("renew a claim", postgres.renew(claim, self.terms.lease)).await
            }
        }
    }

    /// Records the message as done, if the claim was not taken over; said again, it answers the same. `false`:
    /// somebody else has it, and nothing was recorded.
    ///
    /// # Errors
    /// [`LedgerError`]: the message may have been recorded or not; say it again.
    pub async fn commit(&self, claim: &Claim) -> Result<bool, LedgerError> {
        match &self.store {
            Store::Redis(redis) => within("commit", redis.commit(claim, self.terms.keep)).await,
            Store::Postgres(postgres) => within("commit", postgres.commit(claim, self.terms.keep)).await,
        }
    }

    /// Gives up the claim, so that the next one need not wait until it expires. Nothing happens when it is not
    /// ours any more.
    ///
    /// # Errors
    /// [`LedgerError`]: it may have been given up or not; it expires in any case.
    pub async fn release(&self, claim: &Claim) -> Result<(), LedgerError> {
        match &self.store {
            Store::Redis(redis) => within("release a claim", redis.release(claim, self.terms.keep)).await,
            Store::Postgres(postgres) => within("release a claim", postgres.release(claim)).await,
        }
    }

    /// Whether the message is known as done.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn is_done(&self, key: &Key) -> Result<bool, LedgerError> {
        match &self.store {
            Store::Redis(redis) => within("look into the ledger", redis.is_done(key)).await,
            Store::Postgres(postgres) => within("look into the ledger", postgres.is_done(key)).await,
        }
    }

    /// Connects, if that has not happened, and makes what the store needs.
    ///
    /// # Errors
    /// [`LedgerError`] when that fails.
    pub async fn connect(&self) -> Result<(), LedgerError> {
        match &self.store {
            Store::Redis(redis) => within("connect to the ledger", redis.connect()).await,
            Store::Postgres(postgres) => within("connect to the ledger", postgres.connect()).await,
        }
    }

    /// The database that also keeps the ledger, where it is one with transactions.
    pub(crate) const fn postgres(&self) -> Option<&Postgres> {
        match &self.store {
            Store::Postgres(postgres) => Some(postgres),
            Store::Redis(_) => None,
        }
    }

    /// Closes its connections.
    pub async fn close(&self) {
        match &self.store {
            Store::Redis(redis) => redis.close().await,
            Store::Postgres(postgres) => postgres.close().await,
        }
    }
}

/// A store's answer to a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Ours { epoch: i64 },
    Done,
    Elsewhere,
}

async fn within<T>(
    what: &'static str,
    call: impl Future<Output = Result<T, LedgerError>>,
) -> Result<T, LedgerError> {
    deadline(what, CALL_LIMIT, call).await?
}

// === impl LedgerError ===

impl LedgerError {
    /// Connecting failed: a problem of TLS does not pass by itself.
    fn unreachable(error: std::io::Error) -> Self {
        match TlsProblem::of(&error) {
            Some(problem) => Self::refused(problem),
            None => Self::down(error),
        }
    }

    fn refused(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Refused(error.into())
    }

    pub(crate) fn down(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Down(error.into())
    }
}

// === impl Key ===

/// For logs.
impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of {}", self.id, self.queue)
    }
}
