//! A handler's effect and the record that its message is done, committed as one.

use std::{ops::Deref, sync::Arc, time::Duration};

use mayfly_service::{DeadlineExceeded, chain, crash::crash_point, deadline};
use tokio_postgres::Client;

use super::{
    CALL_LIMIT, LedgerError,
    custody::{InHand, Stage},
    postgres::Session,
};
use crate::handler::{CannotStart, Context, Outcome};

/// A transaction in the ledger's database, for the effect of one message. Its [`commit`](Self::commit) also
/// records the message as done, if nobody else has taken it over: both or neither.
///
/// It is used like a [`Client`] (queries, prepared statements, COPY); don't send it BEGIN, COMMIT or ROLLBACK.
/// Dropped, it is rolled back.
#[derive(Debug)]
pub struct Transaction {
    session: Session,
    hand: Arc<InHand>,
}

/// Why there is no transaction, or why it was not committed.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// The worker has no ledger in `PostgreSQL`.
    #[error("transactions need a ledger in PostgreSQL: set MAYFLY_LEDGER_URL to a postgres:// url")]
    NoDatabase,
    /// The ledger cannot know this message: it has no id, or the ledger does without (`--ledger-down ignore`).
    #[error("the message is not claimed in the ledger: it has no id, or the ledger was down and is ignored")]
    NotClaimed,
    /// The database cannot be reached, or refuses us.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The database refuses a statement or the commit; nothing was committed.
    #[error("database refuses the transaction")]
    Database(#[from] tokio_postgres::Error),
    /// Somebody else has taken over the message; nothing was committed.
    #[error("the message was taken over by another worker")]
    TakenOver,
    /// The connection was lost during the commit: the worker asks the ledger what became of it and settles the
    /// message accordingly, whatever the handler returns.
    #[error("the end of the transaction is unknown")]
    Unknown(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What a message has of its worker's ledger.
#[derive(Debug, Clone, Default)]
pub(crate) enum Offer {
    /// There is none with transactions.
    #[default]
    None,
    /// There is one, but without a claim.
    NotClaimed,
    Claimed(Arc<InHand>),
}

/// The ledger's own statements give up soon on a row that somebody holds; a handler's wait as its database says.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout TO DEFAULT";
/// A commit may take longer than other calls: deferred constraints are checked in it.
const COMMIT_LIMIT: Duration = Duration::from_secs(30);

// === impl Context ===

impl Context {
    /// Begins a transaction in the ledger's database.
    ///
    /// # Errors
    /// [`TransactionError`]: without a ledger in `PostgreSQL`, or when it does not answer.
    pub async fn transaction(&self) -> Result<Transaction, TransactionError> {
        let hand = match &self.offer {
            Offer::None => return Err(TransactionError::NoDatabase),
            Offer::NotClaimed => return Err(TransactionError::NotClaimed),
            Offer::Claimed(hand) => Arc::clone(hand),
        };
        let postgres = hand.ledger.postgres().ok_or(TransactionError::NoDatabase)?;
        let begun = async {
            let session = postgres.separate().await?;
            session.client.batch_execute(BEGIN).await.map_err(super::postgres::told)?;
            Ok::<_, LedgerError>(session)
        };
        let session =
            deadline("begin a transaction", CALL_LIMIT, begun).await.map_err(LedgerError::from)??;
        Ok(Transaction { session, hand })
    }

    /// Runs `work` in a transaction and commits it together with the record that the message is done. What
    /// fails, the database included, is rolled back and tried again later; `work` can say otherwise with an
    /// [`Outcome`] of its own as error.
    ///
    /// ```no_run
    /// # use mayfly_worker::{CannotStart, Context, Handler, Message, Outcome};
    /// # struct Store;
    /// # impl Handler for Store {
    /// async fn handle(&self, message: &Message, context: &Context) -> Result<Outcome, CannotStart> {
    ///     context
    ///         .in_transaction(async |transaction| {
    ///             transaction.execute("INSERT INTO bodies VALUES ($1)", &[&message.body]).await?;
    ///             Ok(())
    ///         })
    ///         .await
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`CannotStart`] when the worker has no ledger in `PostgreSQL`.
    pub async fn in_transaction(
        &self,
        work: impl AsyncFnOnce(&Transaction) -> Result<(), Outcome>,
    ) -> Result<Outcome, CannotStart> {
        let done = async {
            let transaction = self.transaction().await?;
            match work(&transaction).await {
                Ok(()) => transaction.commit().await.map(|()| Outcome::Done),
                Err(outcome) => {
                    transaction.rollback().await?;
                    Ok(outcome)
                }
            }
        };
        match done.await {
            Ok(outcome) => Ok(outcome),
            Err(error @ TransactionError::NoDatabase) => Err(CannotStart { reason: error.to_string() }),
            Err(error) => Ok(Outcome::retry(chain(&error))),
        }
    }
}

/// A statement that failed is tried again with its message.
impl From<tokio_postgres::Error> for Outcome {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::retry(chain(&error))
    }
}

// === impl Transaction ===

impl Transaction {
    /// Commits, and records the message as done; after that the handler's outcome is [`Outcome::Done`], whatever
    /// it returns.
    ///
    /// # Errors
    /// [`TransactionError`]: nothing was committed, but for [`TransactionError::Unknown`].
    pub async fn commit(self) -> Result<(), TransactionError> {
        let Self { session, hand } = self;
        let keep = hand.ledger.terms().keep;
        let settled = deadline("record in a transaction", COMMIT_LIMIT, session.settle(&hand.claim, keep));
        if !settled.await.map_err(LedgerError::from)?? {
            hand.set_stage(Stage::TakenOver);
            give_back(session, &hand).await?;
            return Err(TransactionError::TakenOver);
        }
        hand.set_stage(Stage::Unknown);
        crash_point("before-transaction-commit");
        let committed = deadline("commit", COMMIT_LIMIT, session.client.batch_execute("COMMIT")).await;
        match committed {
            Ok(Ok(())) => {
                hand.set_stage(Stage::Recorded);
                crash_point("after-transaction-commit");
                if let Some(postgres) = hand.ledger.postgres() {
                    postgres.put_back(session);
                }
                Ok(())
            }
            // The server has said so itself.
            Ok(Err(error)) if error.code().is_some() && !session.client.is_closed() => {
                hand.set_stage(Stage::Claimed);
                Err(error.into())
            }
            Ok(Err(error)) => Err(TransactionError::Unknown(error.into())),
            Err(late) => Err(unknown(late)),
        }
    }

    /// Undoes all of it.
    ///
    /// # Errors
    /// [`TransactionError`] when the database does not answer: it undoes it by itself then.
    pub async fn rollback(self) -> Result<(), TransactionError> {
        let Self { session, hand } = self;
        give_back(session, &hand).await
    }
}

fn unknown(late: DeadlineExceeded) -> TransactionError {
    TransactionError::Unknown(late.into())
}

/// Undoes what was begun; the connection serves again.
async fn give_back(session: Session, hand: &InHand) -> Result<(), TransactionError> {
    let undone = deadline("roll back", CALL_LIMIT, session.client.batch_execute("ROLLBACK"));
    undone.await.map_err(LedgerError::from)??;
    if let Some(postgres) = hand.ledger.postgres() {
        postgres.put_back(session);
    }
    Ok(())
}

impl Deref for Transaction {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.session.client
    }
}
