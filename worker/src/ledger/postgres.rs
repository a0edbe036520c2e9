//! The ledger in `PostgreSQL`: a row per message.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use mayfly_service::{
    chain,
    tls::{TlsFiles, TlsProblem},
};
use tokio_postgres::{
    Client, Config, Error, NoTls, Statement, config::SslMode, error::SqlState, types::ToSql,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    Answer, Claim, Key, LedgerError,
    link::{Driver, Link},
};

/// A `PostgreSQL` database.
pub(crate) struct Postgres {
    config: Config,
    tls: TlsFiles,
    link: Link<Session>,
    /// Connections for transactions, none of them in use.
    idle: Mutex<Vec<Session>>,
    /// Messages committed since old records were last removed.
    since_pruned: AtomicU32,
}

/// A connection with its prepared statements.
pub(crate) struct Session {
    pub(crate) client: Client,
    claim: Statement,
    look: Statement,
    renew: Statement,
    commit: Statement,
    release: Statement,
    settle: Statement,
    prune: Statement,
    _driver: Driver,
}

/// `valid_until`: when a claim expires, or a done message may be forgotten. `owner` is empty after a release.
/// One at a time: who creates at once with others would meet half of theirs in the catalogue.
const CREATE: &str = "
SELECT pg_advisory_xact_lock(hashtext('mayfly_ledger'));
CREATE TABLE IF NOT EXISTS mayfly_ledger (
    vhost text NOT NULL,
    queue text NOT NULL,
    message_id text NOT NULL,
    done boolean NOT NULL,
    owner text NOT NULL,
    epoch bigint NOT NULL,
    valid_until timestamptz NOT NULL,
    PRIMARY KEY (vhost, queue, message_id)
);
CREATE INDEX IF NOT EXISTS mayfly_ledger_valid_until ON mayfly_ledger (valid_until)";
/// A row that somebody's transaction holds just now counts as claimed elsewhere. The server notices within
/// a minute when a worker's machine is gone, and ends its transaction.
const SETTINGS: &str = "
SET lock_timeout = '1s';
SET tcp_keepalives_idle = 30;
SET tcp_keepalives_interval = 10;
SET tcp_keepalives_count = 3";
/// One row: ours. None: done or elsewhere.
const CLAIM: &str = "
INSERT INTO mayfly_ledger AS l VALUES ($1, $2, $3, false, $4, 1, clock_timestamp() + $5 * interval '1 ms')
ON CONFLICT (vhost, queue, message_id) DO UPDATE
SET owner = excluded.owner, epoch = l.epoch + 1, valid_until = excluded.valid_until
WHERE NOT l.done AND l.valid_until <= clock_timestamp()
RETURNING epoch";
const LOOK: &str = "SELECT done FROM mayfly_ledger WHERE vhost = $1 AND queue = $2 AND message_id = $3";
/// A row that is gone was not taken over.
const RENEW: &str = "
INSERT INTO mayfly_ledger AS l VALUES ($1, $2, $3, false, $4, $5, clock_timestamp() + $6 * interval '1 ms')
ON CONFLICT (vhost, queue, message_id) DO UPDATE SET valid_until = excluded.valid_until
WHERE NOT l.done AND l.owner = excluded.owner AND l.epoch = excluded.epoch";
const COMMIT: &str = "
INSERT INTO mayfly_ledger AS l VALUES ($1, $2, $3, true, $4, $5, clock_timestamp() + $6 * interval '1 ms')
ON CONFLICT (vhost, queue, message_id) DO UPDATE SET done = true, valid_until = excluded.valid_until
WHERE l.owner = excluded.owner AND l.epoch = excluded.epoch";
/// The epoch stays, so that the next claim has a higher one.
const RELEASE: &str = "
UPDATE mayfly_ledger SET owner = '', valid_until = clock_timestamp()
WHERE vhost = $1 AND queue = $2 AND message_id = $3 AND owner = $4 AND epoch = $5 AND NOT done";
/// Within a transaction of the handler's: strictly the holder's, who must still be in the table.
const SETTLE: &str = "
UPDATE mayfly_ledger SET done = true, valid_until = clock_timestamp() + $6 * interval '1 ms'
WHERE vhost = $1 AND queue = $2 AND message_id = $3 AND owner = $4 AND epoch = $5 AND NOT done";
/// Removes the oldest of what may be forgotten, twice as many as were recorded meanwhile.
const PRUNE: &str = "
DELETE FROM mayfly_ledger WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM mayfly_ledger
    WHERE valid_until < now() AND (done OR valid_until < now() - $1 * interval '1 ms')
    ORDER BY valid_until LIMIT 1000 FOR UPDATE SKIP LOCKED))";
/// After so many commits, and after the first.
const PRUNE_EVERY: u32 = 500;

// === impl Postgres ===

impl Postgres {
    pub(super) fn new(config: &Config, name: &str, tls: TlsFiles) -> Self {
        let mut config = config.clone();
        if config.get_application_name().is_none() {
            config.application_name(name);
        }
        Self {
            config,
            tls,
            link: Link::new(),
            idle: Mutex::new(Vec::new()),
            since_pruned: AtomicU32::new(PRUNE_EVERY),
        }
    }

    pub(super) async fn claim(&self, key: &Key, owner: &str, lease: Duration) -> Result<Answer, LedgerError> {
        let session = self.connected().await?;
        let doubt = self.link.doubt(&session);
        let [vhost, queue, id] = parts(key);
        let lease = ms(lease);
        // A row may be removed between the two looks at it.
        loop {
            let parameters: [&(dyn ToSql + Sync); 5] = [&vhost, &queue, &id, &owner, &lease];
            let answer = match session.client.query_opt(&session.claim, &parameters).await {
                Ok(Some(row)) => Answer::Ours { epoch: row.try_get(0).map_err(told)? },
                Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Answer::Elsewhere,
                Err(error) => return Err(told(error)),
                Ok(None) => {
                    let looked = session.client.query_opt(&session.look, &[&vhost, &queue, &id]).await;
                    match looked.map_err(told)? {
                        None => continue,
                        Some(row) if row.try_get(0).map_err(told)? => Answer::Done,
                        Some(_) => Answer::Elsewhere,
                    }
                }
            };
            doubt.settle();
            return Ok(answer);
        }
    }

    pub(super) async fn renew(&self, claim: &Claim, lease: Duration) -> Result<bool, LedgerError> {
        self.execute(|session| &session.renew, claim, Some(lease)).await
    }

    pub(super) async fn commit(&self, claim: &Claim, keep: Duration) -> Result<bool, LedgerError> {
        let is_ours = self.execute(|session| &session.commit, claim, Some(keep)).await?;
        self.prune(keep).await;
        Ok(is_ours)
    }

    pub(super) async fn release(&self, claim: &Claim) -> Result<(), LedgerError> {
        self.execute(|session| &session.release, claim, None).await.map(drop)
    }

    pub(super) async fn is_done(&self, key: &Key) -> Result<bool, LedgerError> {
        let session = self.connected().await?;
        let doubt = self.link.doubt(&session);
        let [vhost, queue, id] = parts(key);
        let row = session.client.query_opt(&session.look, &[&vhost, &queue, &id]).await.map_err(told)?;
        let is_done = row.map_or(Ok(false), |row| row.try_get(0)).map_err(told)?;
        doubt.settle();
        Ok(is_done)
    }

    /// Runs one of the statements that begin with a claim; whether it met its row.
    async fn execute(
        &self,
        statement: impl FnOnce(&Session) -> &Statement,
        claim: &Claim,
        time: Option<Duration>,
    ) -> Result<bool, LedgerError> {
        let session = self.connected().await?;
        let doubt = self.link.doubt(&session);
        let [vhost, queue, id] = parts(&claim.key);
        let time = time.map(ms);
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&vhost, &queue, &id, &claim.owner, &claim.epoch];
        parameters.extend(time.as_ref().map(|time| time as &(dyn ToSql + Sync)));
        let rows = session.client.execute(statement(&session), &parameters).await.map_err(told)?;
        doubt.settle();
        Ok(rows == 1)
    }

    /// Now and then; its failure is told and nothing else.
    async fn prune(&self, keep: Duration) {
        if self.since_pruned.fetch_add(1, Ordering::Relaxed) < PRUNE_EVERY {
            return;
        }
        self.since_pruned.store(0, Ordering::Relaxed);
        let pruned = async {
            let session = self.connected().await?;
            session.client.execute(&session.prune, &[&ms(keep)]).await.map_err(told)
        };
        match pruned.await {
            Ok(0) => {}
            Ok(records) => tracing::debug!(records, "removed old records from the ledger"),
            Err(error) => tracing::debug!(error = chain(&error), "cannot remove old records from the ledger"),
        }
    }

    /// Connecting is on the heap: large, and needed only for a moment.
    async fn connected(&self) -> Result<Arc<Session>, LedgerError> {
        self.link.get(|session| !session.client.is_closed(), Box::pin(self.open())).await
    }

    pub(super) async fn connect(&self) -> Result<(), LedgerError> {
        self.connected().await.map(drop)
    }

    /// A connection of its own, for a transaction.
    pub(crate) async fn separate(&self) -> Result<Session, LedgerError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle.filter(|session| !session.client.is_closed()) {
            Some(session) => Ok(session),
            None => Box::pin(self.open()).await,
        }
    }

    /// Nothing is under way on `session`: it may serve another transaction.
    pub(crate) fn put_back(&self, session: Session) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
    }

    async fn open(&self) -> Result<Session, LedgerError> {
        let (client, driver) = if self.config.get_ssl_mode() == SslMode::Disable {
            let (client, connection) = self.config.connect(NoTls).await.map_err(told)?;
            (client, drive(connection))
        } else {
            let tls = self.tls.client_config().map_err(LedgerError::refused)?;
            let tls = MakeRustlsConnect::new(tls.as_ref().clone());
            let (client, connection) = self.config.connect(tls).await.map_err(told)?;
            (client, drive(connection))
        };
        client.batch_execute(SETTINGS).await.map_err(told)?;
        make_table(&client).await.map_err(told)?;
        Session::prepare(client, driver).await.map_err(told)
    }

    pub(super) async fn close(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.link.close().await;
    }
}

fn drive(connection: impl Future<Output = Result<(), Error>> + Send + 'static) -> Driver {
    Driver::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = chain(&error), "connection to the ledger ended");
        }
    })
}

/// Who may not create tables can use one that is there.
async fn make_table(client: &Client) -> Result<(), Error> {
    const IS_THERE: &str = "SELECT to_regclass('mayfly_ledger') IS NOT NULL";
    if client.query_one(IS_THERE, &[]).await?.try_get(0)? {
        return Ok(());
    }
    match client.batch_execute(CREATE).await {
        Ok(()) => Ok(()),
        // Two who create at once: one of them meets the other's in the catalogue.
        Err(error) => {
            if client.query_one(IS_THERE, &[]).await?.try_get(0)? {
                Ok(())
            } else {
                Err(error)
            }
        }
    }
}

/// As text cannot hold NUL in this database.
fn parts(key: &Key) -> [String; 3] {
    [&key.vhost, &key.queue, &key.id].map(|part| part.replace('\\', "\\\\").replace('\0', "\\0"))
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 285,000 years")]
fn ms(time: Duration) -> f64 {
    time.as_millis() as f64
}

pub(crate) fn told(error: Error) -> LedgerError {
    if let Some(problem) = TlsProblem::of(&error) {
        return LedgerError::refused(problem);
    }
    let refused = error.code().is_some_and(|code| {
        // Invalid authorization, a missing database, no permission.
        code.code().starts_with("28")
            || [SqlState::INVALID_CATALOG_NAME, SqlState::INSUFFICIENT_PRIVILEGE].contains(code)
    });
    if refused { LedgerError::refused(error) } else { LedgerError::down(error) }
}

// === impl Session ===

impl Session {
    async fn prepare(client: Client, driver: Driver) -> Result<Self, Error> {
        // All at once: the server answers them in one go.
        let (claim, look, renew, commit, release, settle, prune) = tokio::try_join!(
            client.prepare(CLAIM),
            client.prepare(LOOK),
            client.prepare(RENEW),
            client.prepare(COMMIT),
            client.prepare(RELEASE),
            client.prepare(SETTLE),
            client.prepare(PRUNE),
        )?;
        Ok(Self { client, claim, look, renew, commit, release, settle, prune, _driver: driver })
    }

    /// Records, in the transaction under way on this connection, that the claimed message is done. `false`: the
    /// claim was taken over.
    pub(crate) async fn settle(&self, claim: &Claim, keep: Duration) -> Result<bool, Error> {
        let [vhost, queue, id] = parts(&claim.key);
        let rows = self
            .client
            .execute(&self.settle, &[&vhost, &queue, &id, &claim.owner, &claim.epoch, &ms(keep)])
            .await?;
        Ok(rows == 1)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").finish_non_exhaustive()
    }
}

/// Without the password.
impl fmt::Debug for Postgres {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Postgres").finish_non_exhaustive()
    }
}
