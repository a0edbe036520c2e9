//! Queues, and what the workers of each remember.

use anyhow::{Context, Result, ensure};
use mayfly_tests::{
    Program,
    bed::rounds,
    store::{self, Store},
};

use super::super::{Crew, LIMIT, exit};

/// A queue with all its messages and workers.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) queue: &'static str,
    /// Its type, as the publisher says it.
    pub(super) kind: &'static str,
    pub(super) memory: Memory,
    /// How many messages there will be.
    pub(super) total: usize,
    /// How many of these bring down every worker that begins them.
    pub(super) poison: usize,
    /// For its workers.
    pub(super) environment: Vec<(&'static str, String)>,
}

/// What workers know of messages that were done before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    Nothing,
    /// What is in a ledger.
    Ledger(store::Kind),
    /// What is in the ledger whose transaction holds the effect: `examples/rust-postgres`.
    Transaction,
}

/// A Redis and a `PostgreSQL` server.
pub(super) struct Stores([Store; 2]);

/// An account for each message that is booked: its balance is how often that happened. Booking takes a while.
const ACCOUNTS: &str = "CREATE TABLE accounts (name text PRIMARY KEY, balance bigint NOT NULL);
    CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(random() * 0.07); RETURN NEW; END $$;
    CREATE TRIGGER linger BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION linger()";
/// Notes in `again` that a message begins which the ledger knows as done, once the ledger answers `ASK`.
const NOTE_AGAIN: &str = r#"
    for psql in /usr/lib/postgresql/*/bin/psql; do :; done
    while :; do
        case $(ASK 2>/dev/null) in
            0) break ;;
            1) echo "$MAYFLY_MESSAGE_ID 0 1" >>"$DIR/QUEUE.again"; break ;;
            *) sleep 0.1 ;;
        esac
    done"#;
const ASK_REDIS: &str =
    r#"redis-cli -p "$STORE_PORT" HEXISTS "mayfly:ledger:1:/:LENGTH:QUEUE:$MAYFLY_MESSAGE_ID" done"#;
const ASK_POSTGRES: &str = r#""$psql" -XAtqc "SELECT count(*) FROM mayfly_ledger
    WHERE done AND vhost = '/' AND queue = 'QUEUE' AND message_id = '$MAYFLY_MESSAGE_ID'" "$STORE_URL""#;

// === impl Lane ===

impl Lane {
    /// `full` messages and `poison` among them in a full run.
    pub(super) fn new(queue: &'static str, memory: Memory, full: usize, poison: usize) -> Self {
        let kind = if queue.starts_with("classic") { "classic" } else { "quorum" };
        let poison = if poison == 0 { 0 } else { rounds(poison) };
        Self { queue, kind, memory, total: rounds(full), poison, environment: Vec::new() }
    }

    /// What handlers do before anything else.
    pub(super) fn prologue(&self) -> String {
        let ask = match self.memory {
            Memory::Nothing | Memory::Transaction => return String::new(),
            Memory::Ledger(store::Kind::Redis) => ASK_REDIS,
            Memory::Ledger(store::Kind::Postgres) => ASK_POSTGRES,
        };
        let length = self.queue.len().to_string();
        NOTE_AGAIN.replace("ASK", ask).replace("LENGTH", &length).replace("QUEUE", self.queue)
    }

    /// What `message` holds: what to book, where something is booked.
    pub(super) fn body(&self, id: &str) -> String {
        format!("{} 1", self.account(id))
    }

    pub(super) fn account(&self, id: &str) -> String {
        format!("{}/{id}", self.queue)
    }

    /// Each message by its number. Its name says what its handler does: see [`hands`](super::hands).
    pub(super) fn id(&self, number: usize) -> String {
        let every = self.total / self.poison.max(1);
        // Odd and even ones.
        if self.poison > 0 && number % every == every / 2 + number / every % 2 {
            format!("poison-{number}")
        } else if number.is_multiple_of(super::ONCE) {
            format!("once-{number}")
        } else {
            format!("good-{number}")
        }
    }

    /// The steps at which a worker may die.
    pub(super) const fn steps(&self) -> &'static [&'static str] {
        match self.memory {
            Memory::Nothing => {
                &["after-ready", "after-handler", "after-retry-publish", "before-ack", "before-close"]
            }
            Memory::Ledger(_) => &[
                "after-ready",
                "after-claim",
                "after-handler",
                "before-commit",
                "after-commit",
                "after-retry-publish",
                "before-ack",
                "before-close",
            ],
            Memory::Transaction => &[
                "after-ready",
                "after-claim",
                "before-transaction-commit",
                "after-transaction-commit",
                "after-handler",
                "before-ack",
                "before-close",
            ],
        }
    }

    /// A message that is `done` would have been noted, had it begun again.
    pub(super) async fn would_be_known(&self, crew: &Crew<'_>, done: &str) -> Result<()> {
        let prologue = self.prologue();
        if prologue.is_empty() {
            return Ok(());
        }
        let mut program = Program::new("/bin/sh".as_ref(), crew.bed.directory())
            .args(["-c", &prologue])
            .env("DIR", crew.bed.directory())
            .env("MAYFLY_MESSAGE_ID", done);
        for (name, value) in &self.environment {
            program = program.env(name, value);
        }
        program.run(&format!("asks-{}", self.queue), LIMIT).await?.exits_with(exit::OK, LIMIT).await?;
        let noted = crew.notes(&format!("{}.again", self.queue))?;
        ensure!(noted.0.len() == 1, "{done} is done, and nobody would know: {noted:?}");
        Ok(())
    }
}

// === impl Stores ===

impl Stores {
    /// Starts both, for the workers of `lanes`.
    pub(super) async fn start(lanes: &mut [Lane]) -> Result<Self> {
        let stores =
            Self([Store::start(store::Kind::Redis).await?, Store::start(store::Kind::Postgres).await?]);
        let database = stores.0[1].postgres().await?;
        database.batch_execute(ACCOUNTS).await?;
        for lane in lanes {
            let store = match lane.memory {
                Memory::Nothing => continue,
                Memory::Ledger(store::Kind::Redis) => &stores.0[0],
                Memory::Ledger(store::Kind::Postgres) | Memory::Transaction => &stores.0[1],
            };
            lane.environment = vec![
                ("MAYFLY_LEDGER_URL", store.url()),
                ("MAYFLY_LEDGER_LEASE", "3s".to_owned()),
                ("STORE_URL", store.url()),
                ("STORE_PORT", store.port().to_string()),
                ("REDISCLI_AUTH", store::PASSWORD.to_owned()),
            ];
            if lane.memory == Memory::Transaction {
                let names: Vec<_> = (0..lane.total).map(|number| lane.account(&lane.id(number))).collect();
                database.execute("INSERT INTO accounts SELECT unnest($1::text[]), 0", &[&names]).await?;
            }
        }
        Ok(stores)
    }

    /// kill -9 of both, which come back with their data.
    pub(super) async fn kill(&mut self) -> Result<()> {
        for store in &mut self.0 {
            store.kill().await?;
            store.start_again().await?;
        }
        Ok(())
    }

    /// How often each message of `lane` was booked.
    pub(super) async fn booked(&self, lane: &Lane) -> Result<Vec<(String, i64)>> {
        let names: Vec<_> = (0..lane.total).map(|number| lane.account(&lane.id(number))).collect();
        let database = self.0[1].postgres().await?;
        let rows =
            database.query("SELECT name, balance FROM accounts WHERE name = ANY($1)", &[&names]).await?;
        let row = |row: &tokio_postgres::Row| -> Result<(String, i64)> {
            let name: String = row.try_get(0)?;
            let id = name.strip_prefix(lane.queue).and_then(|it| it.strip_prefix('/')).context("a name")?;
            Ok((id.to_owned(), row.try_get(1)?))
        };
        rows.iter().map(row).collect()
    }
}
