//! Everything that can go wrong, in random order while messages flow: each message is done, or lies with its
//! story in the dead-letter queue. Accounted by id, as sets.

mod hands;
mod troubles;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lapin::{options::BasicGetOptions, types::AMQPValue};
use mayfly_tests::{Bed, Broker, Client, bed::rounds, eventually, ids, ids::Ids, on_each_release, until};

use self::{
    hands::Hands,
    troubles::{Field, Trouble},
};
use super::{COMPANIONS, Crew, Dice, LIMIT, exit};

on_each_release!(whatever_goes_wrong_every_message_is_done_or_isolated);

/// The messages of one queue, published one after the other whatever happens to the broker.
struct Flow {
    broker: Broker,
    queue: &'static str,
    client: Option<Client>,
    /// How many there will be.
    total: usize,
    published: usize,
    /// Published again, as nobody can say whether the broker has the first one.
    again: usize,
}

/// What was found in a dead-letter queue: each id with its reason. One may lie there twice.
type Dead = Vec<(String, String)>;

/// The queues: the type of each is its name.
const QUEUES: [&str; 2] = ["classic", "quorum"];
/// Per queue, in a full run.
const MESSAGES: usize = 10_000;
/// Of these so many bring down every worker that begins them.
const POISON: usize = 40;
/// One of so many fails at its first attempt.
const ONCE: usize = 16;
/// How long the broker may take to confirm a message, its restarts included.
const PUBLISH_LIMIT: Duration = Duration::from_mins(3);
/// How long it may take after the last trouble until nothing is left to do.
const SETTLE_LIMIT: Duration = Duration::from_mins(5);
/// Between two messages.
const PACE: Duration = Duration::from_millis(200);
/// The environment variable that asks for another order of troubles than that of the gate: a number.
const SEED: &str = "MAYFLY_TEST_SEED";
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

async fn whatever_goes_wrong_every_message_is_done_or_isolated(bed: &Bed) -> Result<()> {
    let node = bed.own_node().await?;
    let broker = node.broker().clone();
    for queue in QUEUES {
        let program = bed.program("mayfly-publisher")?.env("MAYFLY_BROKER_URL", broker.url());
        let declare = program.args(["declare", queue, "--type", queue]);
        declare.run(&format!("declare-{queue}"), LIMIT).await?.exits_with(exit::OK, LIMIT).await?;
    }
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse().context(SEED)?,
        Err(_) => 0xc4a05,
    };
    let hands = Hands::new(Crew::at(bed, broker.clone()), Dice(seed + 1)).await?;
    let mut field = Field { node, hands, dice: Dice(seed) };
    let mut flows = QUEUES.map(|queue| Flow::new(broker.clone(), queue));

    let plan = Trouble::plan(&mut field.dice);
    for (step, trouble) in plan.iter().enumerate() {
        field.hands.tend()?;
        field.hands.fill()?;
        let [classic, quorum] = &mut flows;
        let (step, steps) = (step + 1, plan.len());
        let is_over = AtomicBool::new(false);
        let befall = async {
            let befallen = field.befall(*trouble).await;
            is_over.store(true, Ordering::Relaxed);
            befallen.with_context(|| format!("trouble {step} of {steps}: {trouble:?}"))
        };
        let share = (step, steps);
        tokio::try_join!(classic.publish(share, &is_over), quorum.publish(share, &is_over), befall)?;
    }
    for flow in &mut flows {
        flow.close().await?;
    }
    let client = broker.client().await?;
    let settled = tokio::time::timeout(SETTLE_LIMIT, settle(&mut field.hands, &client));
    settled.await.with_context(|| format!("not all is settled after {SETTLE_LIMIT:?}"))??;
    eprintln!("{}, seed {seed}: {}; {}", bed.release, Trouble::count(&plan), field.hands.told());
    for flow in &flows {
        account(bed, &field.hands.crew, flow, &client).await?;
    }
    let crew = &field.hands.crew;
    until("no handler of a killed worker runs", LIMIT, async || Ok(crew.running().is_empty())).await?;
    client.close().await?;
    crew.nothing_is_left(&all_queues().iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// Works on until nothing waits anywhere but in the dead-letter queues.
async fn settle(hands: &mut Hands<'_>, client: &Client) -> Result<()> {
    loop {
        hands.tend()?;
        let mut is_empty = true;
        for queue in all_queues() {
            is_empty &= client.depth(&queue).await?.ready == 0;
        }
        for queue in QUEUES {
            let waiting =
                client.depth(queue).await?.ready + client.depth(&format!("{queue}.suspect")).await?.ready;
            if waiting > 0 && hands.running(queue) == 0 {
                hands.calm(queue)?;
            }
        }
        if is_empty && hands.is_empty() && nothing_is_on_its_way(&hands.crew.broker).await? {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Where messages may wait for anybody, which is everywhere but among the dead.
fn all_queues() -> Vec<String> {
    let waiting = COMPANIONS.into_iter().filter(|it| *it != ".dead").chain([".suspect", ""]);
    QUEUES.iter().flat_map(|queue| waiting.clone().map(move |it| format!("{queue}{it}"))).collect()
}

/// Whether the broker has no message in flight, neither to a client nor from queue to queue. It knows that of
/// a quorum queue some seconds late, so this says no for too long rather than yes too early: before it was on
/// its way, a message had waited for longer than that.
async fn nothing_is_on_its_way(broker: &Broker) -> Result<bool> {
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
    for queue in all_queues() {
        is_empty &= client.depth(&queue).await?.ready == 0;
    }
    client.close().await?;
    Ok(is_empty)
}

/// Compares what was published with what became of it.
async fn account(bed: &Bed, crew: &Crew<'_>, flow: &Flow, client: &Client) -> Result<()> {
    let queue = flow.queue;
    let done = crew.notes(&format!("{queue}.done"))?;
    let dead = take_dead(client, &format!("{queue}.dead")).await?;
    let mut reasons = BTreeMap::<_, usize>::new();
    for (id, reason) in &dead {
        let role = id.split('-').next().unwrap_or_default();
        *reasons.entry(format!("{role}: {reason}")).or_default() += 1;
    }
    let isolated: Ids = dead.iter().map(|(id, _)| id.clone()).collect();
    let found: Ids = done.ids().union(&isolated).cloned().collect();
    let published = flow.ids();
    eprintln!(
        "{} {queue}: {} published ({} again), begun redelivered {}, done {}, done again {}, dead {reasons:?}, lost {}",
        bed.release,
        published.len(),
        flow.again,
        done.redelivered(),
        done.ids().len(),
        done.repeats(),
        published.difference(&found).count(),
    );
    ids::assert_same("published", &published, "found", &found).with_context(|| queue)?;
    let is_poison = |id: &String| id.starts_with("poison-");
    let poison: Ids = published.into_iter().filter(is_poison).collect();
    let accused = dead.iter().filter(|(id, reason)| is_poison(id) && reason == "suspect");
    ids::assert_same("poison", &poison, "poison isolated", &accused.map(|(id, _)| id.clone()).collect())?;
    ensure!(!done.ids().iter().any(is_poison), "{queue}: poison is done");
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

// === impl Flow ===

impl Flow {
    fn new(broker: Broker, queue: &'static str) -> Self {
        Self { broker, queue, client: None, total: rounds(MESSAGES), published: 0, again: 0 }
    }

    /// Publishes until as much of it is out as `step` is of `steps`: the first at once, the others little by
    /// little, so that there is work until the trouble `is_over`.
    async fn publish(&mut self, (step, steps): (usize, usize), is_over: &AtomicBool) -> Result<()> {
        let end = self.total * step / steps;
        let at_once = self.published + (end - self.published) / 4;
        while self.published < end {
            let id = self.id(self.published);
            self.insist(&id).await?;
            self.published += 1;
            if self.published > at_once && !is_over.load(Ordering::Relaxed) {
                tokio::time::sleep(PACE).await;
            }
        }
        Ok(())
    }

    /// Publishes one until the broker has confirmed it.
    async fn insist(&mut self, id: &str) -> Result<()> {
        let mut tries = 0;
        let what = format!("{id} is confirmed");
        let confirmed = eventually(&what, PUBLISH_LIMIT, async || {
            let client = match self.client.take() {
                Some(client) => client,
                None => self.broker.client().await?,
            };
            tries += 1;
            client.publish_one(self.queue, id, id.as_bytes()).await?;
            Ok(Some(client))
        });
        self.client = Some(confirmed.await?);
        self.again += tries - 1;
        Ok(())
    }

    /// Its name says what its handler does: see [`hands`].
    fn id(&self, number: usize) -> String {
        let every = self.total / rounds(POISON);
        // Odd and even ones.
        if number % every == every / 2 + number / every % 2 {
            format!("poison-{number}")
        } else if number.is_multiple_of(ONCE) {
            format!("once-{number}")
        } else {
            format!("good-{number}")
        }
    }

    fn ids(&self) -> Ids {
        (0..self.published).map(|number| self.id(number)).collect()
    }

    async fn close(&mut self) -> Result<()> {
        match self.client.take() {
            Some(client) => client.close().await,
            None => Ok(()),
        }
    }
}
