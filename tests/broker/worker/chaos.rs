//! Everything that can go wrong, in random order while messages flow: each message is done, or lies with its
//! story in the dead-letter queue. With a ledger, what it knows as done does not run again, and what is booked in
//! its own transaction is booked once. Accounted by id, as sets.

mod flow;
mod hands;
mod lanes;
mod troubles;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::{try_join, try_join_all};
use lapin::{options::BasicGetOptions, types::AMQPValue};
use mayfly_tests::{Bed, Broker, Client, bed, ids, ids::Ids, on_each_release, store, until};

use self::{
    flow::Flow,
    hands::Hands,
    lanes::{Lane, Memory, Stores},
    troubles::{Field, Trouble},
};
use super::{COMPANIONS, Crew, Dice, LIMIT, exit};

on_each_release!(
    whatever_goes_wrong_every_message_is_done_or_isolated,
    whatever_goes_wrong_what_a_ledger_knows_as_done_never_runs_again_and_no_effect_is_doubled,
);

/// What was found in a dead-letter queue: each id with its reason. One may lie there twice.
type Dead = Vec<(String, String)>;

/// One of so many fails at its first attempt.
const ONCE: usize = 16;
/// How long it may take after the last trouble until nothing is left to do.
const SETTLE_LIMIT: Duration = Duration::from_mins(5);
/// The environment variable that asks for another order of troubles than that of the gate: a number.
const SEED: &str = "MAYFLY_TEST_SEED";
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

async fn whatever_goes_wrong_every_message_is_done_or_isolated(bed: &Bed) -> Result<()> {
    let lanes = ["classic", "quorum"].map(|queue| Lane::new(queue, Memory::Nothing, 10_000, 40));
    work_through(bed, &lanes, None).await
}

async fn whatever_goes_wrong_what_a_ledger_knows_as_done_never_runs_again_and_no_effect_is_doubled(
    bed: &Bed,
) -> Result<()> {
    let (redis, postgres) = (Memory::Ledger(store::Kind::Redis), Memory::Ledger(store::Kind::Postgres));
    let mut lanes = [
        Lane::new("classic-redis", redis, 1700, 20),
        Lane::new("quorum-redis", redis, 1700, 20),
        Lane::new("classic-postgres", postgres, 1700, 20),
        Lane::new("quorum-postgres", postgres, 1700, 20),
        Lane::new("classic-transaction", Memory::Transaction, 1700, 0),
        Lane::new("quorum-transaction", Memory::Transaction, 1700, 0),
    ];
    let stores = Stores::start(&mut lanes).await?;
    work_through(bed, &lanes, Some(stores)).await
}

/// Publishes and works, through all troubles, and accounts for it.
async fn work_through(bed: &Bed, lanes: &[Lane], stores: Option<Stores>) -> Result<()> {
    let node = bed.own_node().await?;
    let broker = node.broker().clone();
    for Lane { queue, kind, .. } in lanes {
        let program = bed.program("mayfly-publisher")?.env("MAYFLY_BROKER_URL", broker.url());
        let declare = program.args(["declare", queue, "--type", kind]);
        declare.run(&format!("declare-{queue}"), LIMIT).await?.exits_with(exit::OK, LIMIT).await?;
    }
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse().context(SEED)?,
        Err(_) => 0xc4a05,
    };
    let hands = Hands::new(Crew::at(bed, broker.clone()), lanes, Dice(seed + 1)).await?;
    let mut field = Field { node, stores, hands, dice: Dice(seed) };
    let mut flows: Vec<_> = lanes.iter().map(|lane| Flow::new(broker.clone(), lane)).collect();

    let plan = Trouble::plan(&mut field.dice, field.stores.is_some());
    for (step, trouble) in plan.iter().enumerate() {
        field.hands.tend()?;
        field.hands.fill()?;
        let (step, steps) = (step + 1, plan.len());
        let is_over = AtomicBool::new(false);
        let befall = async {
            let befallen = field.befall(*trouble).await;
            is_over.store(true, Ordering::Relaxed);
            befallen.with_context(|| format!("trouble {step} of {steps}: {trouble:?}"))
        };
        let publish = flows.iter_mut().map(|flow| flow.publish((step, steps), &is_over));
        try_join(try_join_all(publish), befall).await?;
    }
    for flow in &mut flows {
        flow.close().await?;
    }
    let client = broker.client().await?;
    let settled = tokio::time::timeout(SETTLE_LIMIT, settle(&mut field.hands, &client));
    settled.await.with_context(|| format!("not all is settled after {SETTLE_LIMIT:?}"))??;
    eprintln!("{}, seed {seed}: {}; {}", bed.release, Trouble::count(&plan), field.hands.told());
    for flow in &flows {
        account(bed, &field, flow, &client).await.with_context(|| flow.lane.queue)?;
    }
    if std::env::var_os(bed::FULL).is_some() {
        field.hands.everything_bit()?;
    }
    let crew = &field.hands.crew;
    until("no handler of a killed worker runs", LIMIT, async || Ok(crew.running().is_empty())).await?;
    client.close().await?;
    crew.nothing_is_left(&all_queues(lanes).iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// Works on until nothing waits anywhere but in the dead-letter queues.
async fn settle(hands: &mut Hands<'_>, client: &Client) -> Result<()> {
    loop {
        hands.tend()?;
        let mut is_empty = true;
        for queue in all_queues(hands.lanes) {
            is_empty &= client.depth(&queue).await?.ready == 0;
        }
        for lane in hands.lanes {
            let queue = lane.queue;
            let waiting =
                client.depth(queue).await?.ready + client.depth(&format!("{queue}.suspect")).await?.ready;
            if waiting > 0 && hands.running(queue) == 0 {
                hands.calm(lane)?;
            }
        }
        if is_empty && hands.is_empty() && nothing_is_on_its_way(&hands.crew.broker, hands.lanes).await? {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Where messages may wait for anybody, which is everywhere but among the dead.
fn all_queues(lanes: &[Lane]) -> Vec<String> {
    let waiting = COMPANIONS.into_iter().filter(|it| *it != ".dead").chain([".suspect", ""]);
    lanes.iter().flat_map(|lane| waiting.clone().map(|it| format!("{}{it}", lane.queue))).collect()
}

/// Whether the broker has no message in flight, neither to a client nor from queue to queue. It knows that of
/// a quorum queue some seconds late, so this says no for too long rather than yes too early: before it was on
/// its way, a message had waited for longer than that.
async fn nothing_is_on_its_way(broker: &Broker, lanes: &[Lane]) -> Result<bool> {
    let listed = broker.ctl(&["list_queues", "--silent", "name", "messages"]).await?;
    let mut is_empty = true;
    for line in listed.lines() {
        let (name, messages) = line.split_once('\t').with_context(|| line.to_owned())?;
        is_empty &= name.split('.').next_back() == Some("dead") || messages == "0";
    }
    if !is_empty {
        return Ok(false);
    }
    let client = broker.client().await?;
    for queue in all_queues(lanes) {
        is_empty &= client.depth(&queue).await?.ready == 0;
    }
    client.close().await?;
    Ok(is_empty)
}

/// Compares what was published with what became of it.
async fn account(bed: &Bed, field: &Field<'_>, flow: &Flow<'_>, client: &Client) -> Result<()> {
    let (lane, crew) = (flow.lane, &field.hands.crew);
    let queue = lane.queue;
    let notes = crew.notes(&format!("{queue}.done"))?;
    let mut done = notes.ids();
    let booked = match &field.stores {
        Some(stores) if lane.memory == Memory::Transaction => stores.booked(lane).await?,
        _ => Vec::new(),
    };
    done.extend(booked.iter().filter(|(_, times)| *times > 0).map(|(id, _)| id.clone()));
    let doubled: Vec<_> = booked.iter().filter(|(_, times)| *times > 1).collect();
    let again = crew.notes(&format!("{queue}.again"))?;
    let dead = take_dead(client, &format!("{queue}.dead")).await?;
    let mut reasons = BTreeMap::<_, usize>::new();
    for (id, reason) in &dead {
        let role = id.split('-').next().unwrap_or_default();
        *reasons.entry(format!("{role}: {reason}")).or_default() += 1;
    }
    let isolated: Ids = dead.iter().map(|(id, _)| id.clone()).collect();
    let found: Ids = done.union(&isolated).cloned().collect();
    let published = flow.ids();
    eprintln!(
        "{} {queue}: {} published ({} again), done redelivered {}, done {}, done again {}, known as done and begun \
         again {}, booked twice {}, dead {reasons:?}, lost {}",
        bed.release,
        published.len(),
        flow.again,
        notes.redelivered(),
        done.len(),
        notes.repeats(),
        again.0.len(),
        doubled.len(),
        published.difference(&found).count(),
    );
    ids::assert_same("published", &published, "found", &found)?;
    ensure!(doubled.is_empty(), "booked twice: {doubled:?}");
    ensure!(again.0.is_empty(), "known as done and begun again: {again:?}");
    if let Some(id) = notes.ids().first() {
        lane.would_be_known(crew, id).await?;
    }
    let is_poison = |id: &String| id.starts_with("poison-");
    let poison: Ids = published.into_iter().filter(is_poison).collect();
    let accused = dead.iter().filter(|(id, reason)| is_poison(id) && reason == "suspect");
    ids::assert_same("poison", &poison, "poison isolated", &accused.map(|(id, _)| id.clone()).collect())?;
    ensure!(!done.iter().any(is_poison), "poison is done");
    // Nothing fails twice here, so nothing may be given up for failing.
    ensure!(dead.iter().all(|(_, reason)| reason != "attempts" && reason != "rejected"), "{reasons:?}");
    Ok(())
}

/// Takes all that lies in a dead-letter queue.
async fn take_dead(client: &Client, queue: &str) -> Result<Dead> {
    let mut dead = Dead::new();
    let options = BasicGetOptions { no_ack: true };
    while let Some(got) = client.channel().basic_get(queue.into(), options).await? {
        let properties = &got.delivery.properties;
        let id = properties.message_id().as_ref().context("a dead one without an id")?.to_string();
        let reason = properties.headers().as_ref().and_then(|it| it.inner().get("x-mayfly-reason"));
        let reason = match reason {
            Some(AMQPValue::LongString(reason)) => reason.to_string(),
            Some(other) => bail!("{id}: {other:?}"),
            None => "the broker".to_owned(),
        };
        dead.push((id, reason));
    }
    Ok(dead)
}
