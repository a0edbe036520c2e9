//! The ledger on real stores, without workers: what it promises about claims and records, also while its store
//! is down, and to two who ask at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use mayfly_service::{chain, tls::TlsFiles};
use mayfly_tests::{
    eventually,
    node::Authority,
    store::{Kind, Store},
    until,
};
use mayfly_worker::ledger::{Claim, Claimed, Key, Ledger, LedgerError, Terms};

/// Runs an `async fn(Store) -> Result<()>` once with every kind of store, as the tests `NAME::redis` and
/// `NAME::postgres`.
macro_rules! on_each_store {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[tokio::test]
            async fn redis() {
                super::run(mayfly_tests::store::Kind::Redis, async |store| super::$name(store).await).await;
            }

            #[tokio::test]
            async fn postgres() {
                super::run(mayfly_tests::store::Kind::Postgres, async |store| super::$name(store).await).await;
            }
        }
    )+};
}

on_each_store!(
    whatever_is_asked_in_whatever_order_the_store_answers_as_the_model,
    of_many_who_claim_at_once_one_gets_it,
    a_claim_expires_by_the_clock_of_the_store_unless_it_is_renewed,
    what_is_done_stays_known_when_the_store_dies_and_comes_back,
    a_store_that_is_down_is_told_within_the_deadline_and_used_again_when_it_is_back,
    a_store_that_hangs_is_told_within_the_deadline,
    old_records_go_and_young_ones_stay,
    a_wrong_password_is_refused_and_not_repeated,
    over_tls_its_certificate_is_verified,
    keys_that_look_alike_are_different_messages,
);

const LIMIT: Duration = Duration::from_secs(40);
const LONG: Terms = Terms { lease: Duration::from_secs(60), keep: Duration::from_secs(600) };
/// Claims that have expired when they are made.
const EXPIRED: Terms = Terms { lease: Duration::ZERO, keep: Duration::from_secs(600) };

async fn run(kind: Kind, body: impl AsyncFnOnce(Store) -> Result<()>) {
    let outcome = async { body(Store::start(kind).await?).await };
    let outcome = tokio::time::timeout(Duration::from_secs(300), outcome).await;
    if let Err(error) = outcome.context("the test took too long").flatten() {
        #[expect(clippy::panic, reason = "this is how a test fails")]
        {
            panic!("{error:#}");
        }
    }
}

fn ledger(store: &Store, name: &str, terms: Terms) -> Result<Ledger> {
    Ok(Ledger::new(&store.url().parse()?, name, terms, TlsFiles::default()))
}

fn key(id: &str) -> Key {
    Key { vhost: "/".to_owned(), queue: "documents".to_owned(), id: id.to_owned() }
}

async fn ours(ledger: &Ledger, id: &str) -> Result<Claim> {
    match ledger.claim(&key(id)).await? {
        Claimed::Ours(claim) => Ok(claim),
        other => bail!("{id} is {other:?}"),
    }
}

/// What a ledger should know about one message.
#[derive(Debug, Clone, Default)]
struct Model {
    done: bool,
    holder: Option<String>,
    is_live: bool,
    epoch: i64,
}

/// A generator of numbers that a seed repeats (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, count: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(count).unwrap_or(u64::MAX)).unwrap_or(0)
    }
}

impl Model {
    fn is_held_by(&self, claim: &Claim) -> bool {
        self.holder.as_deref() == Some(&claim.owner) && self.epoch == claim.epoch
    }
}

async fn whatever_is_asked_in_whatever_order_the_store_answers_as_the_model(store: Store) -> Result<()> {
    let ledgers = [ledger(&store, "a", LONG)?, ledger(&store, "b", LONG)?, ledger(&store, "z", EXPIRED)?];
    let mut dice = Dice(0x1ed9);
    let mut committed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for round in 0..60 {
        let id = format!("message {round}");
        let mut model = Model::default();
        let mut claims: Vec<(usize, Claim)> = Vec::new();
        let mut told = Vec::new();
        for _ in 0..14 {
            let who = dice.below(ledgers.len());
            let ledger = &ledgers[who];
            let of = (!claims.is_empty()).then(|| claims[dice.below(claims.len())].clone());
            let act = dice.below(5);
            match (act, of) {
                (0 | 1, _) | (_, None) => {
                    let answer = ledger.claim(&key(&id)).await?;
                    told.push(format!("{who} claims: {answer:?}"));
                    match &answer {
                        Claimed::Done => ensure!(model.done, "{told:#?}"),
                        Claimed::Elsewhere => ensure!(!model.done && model.is_live, "{told:#?}"),
                        Claimed::Ours(claim) => {
                            ensure!(!model.done && !model.is_live, "{told:#?}");
                            ensure!(claim.epoch == model.epoch + 1, "{told:#?}");
                            model.epoch = claim.epoch;
                            model.holder = Some(claim.owner.clone());
                            model.is_live = who != 2;
                            claims.push((who, claim.clone()));
                        }
                    }
                }
                (2, Some((who, claim))) => {
                    let answer = ledgers[who].renew(&claim).await?;
                    told.push(format!("{who} renews {}: {answer}", claim.epoch));
                    ensure!(answer == (model.is_held_by(&claim) && !model.done), "{told:#?}");
                    if answer {
                        model.is_live = who != 2;
                    }
                }
                (3, Some((who, claim))) => {
                    let answer = ledgers[who].commit(&claim).await?;
                    told.push(format!("{who} commits {}: {answer}", claim.epoch));
                    ensure!(answer == model.is_held_by(&claim), "{told:#?}");
                    if answer {
                        model.done = true;
                        committed.entry(id.clone()).or_default().insert(claim.owner);
                    }
                }
                (_, Some((who, claim))) => {
                    ledgers[who].release(&claim).await?;
                    told.push(format!("{who} releases {}", claim.epoch));
                    if model.is_held_by(&claim) && !model.done {
                        model.holder = None;
                        model.is_live = false;
                    }
                }
            }
        }
    }
    ensure!(committed.len() > 10, "{} of 60 were committed", committed.len());
    ensure!(committed.values().all(|by| by.len() == 1), "{committed:?}");
    Ok(())
}

async fn of_many_who_claim_at_once_one_gets_it(store: Store) -> Result<()> {
    let ledgers: Vec<_> = (0..8).map(|_| ledger(&store, "one of many", LONG)).collect::<Result<_>>()?;
    // At once, too: each makes what the store needs.
    let connecting = ledgers.iter().map(|ledger| {
        until("it is connected", LIMIT, async || {
            ledger.connect().await?;
            Ok(true)
        })
    });
    futures_util::future::try_join_all(connecting).await?;
    for round in 0..5 {
        let asked = ledgers.iter().map(|ledger| async move { ledger.claim(&key(&round.to_string())).await });
        let answers = futures_util::future::try_join_all(asked).await?;
        let ours = answers.iter().filter(|answer| matches!(answer, Claimed::Ours(_))).count();
        let elsewhere = answers.iter().filter(|answer| matches!(answer, Claimed::Elsewhere)).count();
        ensure!((ours, elsewhere) == (1, 7), "{answers:?}");
    }
    Ok(())
}

async fn a_claim_expires_by_the_clock_of_the_store_unless_it_is_renewed(store: Store) -> Result<()> {
    let short = Terms { lease: Duration::from_secs(2), keep: LONG.keep };
    let (first, second) = (ledger(&store, "first", short)?, ledger(&store, "second", short)?);
    let claim = ours(&first, "m").await?;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        ensure!(first.renew(&claim).await?, "lost while renewed");
        ensure!(second.claim(&key("m")).await? == Claimed::Elsewhere);
    }
    let taken_over = eventually("it expires", LIMIT, async || {
        Ok(match second.claim(&key("m")).await? {
            Claimed::Ours(claim) => Some(claim),
            _ => None,
        })
    })
    .await?;
    ensure!(taken_over.epoch == claim.epoch + 1, "{taken_over:?} after {claim:?}");
    ensure!(!first.renew(&claim).await? && !first.commit(&claim).await?, "the first still holds it");
    first.release(&claim).await?;
    ensure!(second.commit(&taken_over).await?, "the first could give up the claim of the second");
    ensure!(!first.commit(&claim).await?, "done by another is not done by us");
    ensure!(first.claim(&key("m")).await? == Claimed::Done);
    Ok(())
}

async fn what_is_done_stays_known_when_the_store_dies_and_comes_back(mut store: Store) -> Result<()> {
    let ledger = ledger(&store, "w", LONG)?;
    let mut held = Vec::new();
    for number in 0..20 {
        let claim = ours(&ledger, &format!("done {number}")).await?;
        ensure!(ledger.commit(&claim).await?);
        held.push(ours(&ledger, &format!("held {number}")).await?);
    }
    store.kill().await?;
    store.start_again().await?;
    for number in 0..20 {
        let answer = ledger.claim(&key(&format!("done {number}"))).await;
        // The first call may meet the old connection.
        let answer =
            if answer.is_err() { ledger.claim(&key(&format!("done {number}"))).await? } else { answer? };
        ensure!(answer == Claimed::Done, "{number}: {answer:?}");
    }
    for claim in held {
        ensure!(ledger.commit(&claim).await?, "{claim:?}");
        ensure!(ledger.commit(&claim).await?, "said again, it answers the same");
    }
    Ok(())
}

async fn a_store_that_is_down_is_told_within_the_deadline_and_used_again_when_it_is_back(
    mut store: Store,
) -> Result<()> {
    let ledger = ledger(&store, "w", LONG)?;
    let claim = ours(&ledger, "m").await?;
    store.kill().await?;
    for _ in 0..3 {
        let answer = ledger.commit(&claim).await;
        ensure!(matches!(answer, Err(LedgerError::Down(_))), "{answer:?}");
    }
    store.start_again().await?;
    until("the ledger answers again", LIMIT, async || Ok(ledger.commit(&claim).await?)).await
}

async fn a_store_that_hangs_is_told_within_the_deadline(store: Store) -> Result<()> {
    // Accepts and says nothing.
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = store.url_at(deaf.local_addr()?.port()).parse()?;
    let ledger = Ledger::new(&url, "w", LONG, TlsFiles::default());
    let answer = ledger.claim(&key("m")).await;
    ensure!(matches!(answer, Err(LedgerError::Deadline(_))), "{answer:?}");
    Ok(())
}

async fn old_records_go_and_young_ones_stay(store: Store) -> Result<()> {
    let short = Terms { lease: Duration::from_millis(1), keep: Duration::from_millis(300) };
    let (forgetful, other) = (ledger(&store, "forgetful", short)?, ledger(&store, "other", LONG)?);
    let young = ours(&other, "young").await?;
    ensure!(other.commit(&young).await?);
    for number in 0..3 {
        // Its lease may be over by then, but nobody else has taken it.
        let claim = ours(&forgetful, &format!("old {number}")).await?;
        ensure!(forgetful.commit(&claim).await?);
        ours(&forgetful, &format!("abandoned {number}")).await?;
    }
    until("only the young one is left", LIMIT, async || {
        // Each worker removes old records after its first commit.
        let new = ledger(&store, "new", short)?;
        let claim = ours(&new, &format!("new {}", uuid::Uuid::now_v7())).await?;
        new.commit(&claim).await?;
        let left = store.records().await?;
        ensure!(!left.contains("old") && !left.contains("abandoned"), "{left}");
        ensure!(left.contains("young"), "{left}");
        Ok(true)
    })
    .await?;
    ensure!(other.claim(&key("young")).await? == Claimed::Done);
    Ok(())
}

async fn a_wrong_password_is_refused_and_not_repeated(store: Store) -> Result<()> {
    let url = store.url().replace("hunter2", "hunter3");
    let ledger = Ledger::new(&url.parse()?, "w", LONG, TlsFiles::default());
    let Err(error) = ledger.connect().await else { bail!("let in with a wrong password") };
    ensure!(matches!(error, LedgerError::Refused(_)), "{error:?}");
    let told = format!("{} {error:?} {ledger:?}", chain(&error));
    ensure!(!told.contains("hunter"), "{told}");
    Ok(())
}

async fn over_tls_its_certificate_is_verified(plain: Store) -> Result<()> {
    let authority = Authority::new("ours")?;
    let store = Store::start_with(plain.kind(), Some(&authority)).await?;
    let directory = tempfile::tempdir()?;
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, authority.pem())?;
    let trusting = TlsFiles { ca: Some(ca), ..TlsFiles::default() };
    let ledger = Ledger::new(&store.tls_url()?.parse()?, "w", LONG, trusting);
    let claim = ours(&ledger, "m").await?;
    ensure!(ledger.commit(&claim).await?);
    let other = Ledger::new(&store.tls_url()?.parse()?, "w", LONG, TlsFiles::default());
    let Err(error) = other.connect().await else { bail!("it trusts anybody") };
    ensure!(matches!(error, LedgerError::Refused(_)), "{error:?}");
    ensure!(chain(&error).contains("signed by nobody who is trusted"), "{}", chain(&error));
    Ok(())
}

async fn keys_that_look_alike_are_different_messages(store: Store) -> Result<()> {
    let ledger = ledger(&store, "w", LONG)?;
    let parts = [("/", "a", "b"), ("/a", "", "b"), ("/", "a:b", ""), ("/", "a", "b\0"), ("/", "a", "b\\0")];
    for (vhost, queue, id) in parts {
        let key = Key { vhost: vhost.to_owned(), queue: queue.to_owned(), id: id.to_owned() };
        let claimed = ledger.claim(&key).await?;
        let Claimed::Ours(claim) = claimed else { bail!("{key:?}: {claimed:?}") };
        ensure!(ledger.commit(&claim).await?);
        ensure!(ledger.claim(&key).await? == Claimed::Done);
    }
    Ok(())
}
