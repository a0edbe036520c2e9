//! What goes wrong.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use mayfly_tests::{Fault, Node, Way, bed::rounds, until};

use super::{super::Dice, Hands, Stores};

/// One thing that goes wrong, and heals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// kill -9 of a worker and its handlers; where there are many queues, of one for two of them.
    KillWorker,
    /// SIGTERM of as many.
    StopWorker,
    /// Half of the connections are reset.
    Cut,
    /// The same in the middle of something.
    CutWithin,
    /// Half of the connections carry nothing any more, one way or both, for shorter or longer than heartbeats
    /// need to tell.
    Hang,
    /// The broker closes all connections.
    CloseConnections,
    /// The broker closes every channel that holds a message.
    CloseChannels,
    /// The broker blocks everybody who publishes.
    Alarm,
    /// kill -9 of the broker.
    KillBroker,
    /// The broker is stopped in order and started again.
    RestartBroker,
    /// kill -9 of the ledgers' stores.
    KillStores,
}

/// Where it happens.
pub(super) struct Field<'a> {
    pub(super) node: Node,
    /// Where the ledgers are, if there are any.
    pub(super) stores: Option<Stores>,
    pub(super) hands: Hands<'a>,
    pub(super) dice: Dice,
}

/// How often in a full run. What takes the broker seconds comes as rarely as it must.
const COUNTS: [(Trouble, usize); 11] = [
    (Trouble::KillWorker, 120),
    (Trouble::StopWorker, 120),
    (Trouble::Cut, 40),
    (Trouble::CutWithin, 40),
    (Trouble::Hang, 10),
    (Trouble::CloseConnections, 10),
    (Trouble::CloseChannels, 10),
    (Trouble::Alarm, 10),
    (Trouble::KillBroker, 10),
    (Trouble::RestartBroker, 10),
    (Trouble::KillStores, 10),
];
/// Every 50 ms the broker looks for messages held for too long, which from now on is a millisecond. A channel is
/// looked at as often as the setting said when it was opened.
const SHORT_LEASES: &str = "[application:set_env(rabbit, K, V) || {K, V} <- [{consumer_timeout, 1}, \
                            {channel_tick_interval, 50}]].";
/// As they were.
const LONG_LEASES: &str = "application:set_env(rabbit, consumer_timeout, 1800000).";

// === impl Trouble ===

impl Trouble {
    /// All of them in random order.
    pub(super) fn plan(dice: &mut Dice, has_stores: bool) -> Vec<Self> {
        let times = |(trouble, count): (Self, usize)| std::iter::repeat_n(trouble, rounds(count));
        let counts = COUNTS.into_iter().filter(|(trouble, _)| has_stores || *trouble != Self::KillStores);
        let mut plan: Vec<_> = counts.flat_map(times).collect();
        for last in (1..plan.len()).rev() {
            plan.swap(last, dice.below(last + 1));
        }
        plan
    }

    /// For people.
    pub(super) fn count(plan: &[Self]) -> String {
        let mut counts = BTreeMap::<_, usize>::new();
        for trouble in plan {
            *counts.entry(trouble).or_default() += 1;
        }
        format!("{counts:?}")
    }
}

// === impl Field ===

impl Field<'_> {
    /// Lets it happen, and ends it.
    pub(super) async fn befall(&mut self, trouble: Trouble) -> Result<()> {
        let Self { node, stores, hands, dice } = self;
        // Until workers have something in their hands, of any age.
        tokio::time::sleep(dice.moment(Duration::from_millis(150))).await;
        let side = dice.below(2);
        match trouble {
            Trouble::KillWorker => {
                for _ in 0..hands.lanes.len() / 2 {
                    hands.kill().await?;
                }
            }
            Trouble::StopWorker => {
                for _ in 0..hands.lanes.len() / 2 {
                    hands.stop()?;
                }
            }
            Trouble::Cut => {
                hands.proxies[side].set(Fault::Cut);
                tokio::time::sleep(dice.moment(Duration::from_millis(300))).await;
            }
            Trouble::CutWithin => {
                let proxy = &hands.proxies[side];
                proxy.set(Fault::CutAfter(dice.below(1000) as u64));
                let cut =
                    until("it is cut", Duration::from_secs(2), async || Ok(proxy.fault() == Fault::Cut));
                // With nobody at work on this side nothing is sent.
                let _ = cut.await;
            }
            Trouble::Hang => {
                let way = [Way::ToBroker, Way::ToClient, Way::Both][dice.below(3)];
                hands.proxies[side].set(Fault::Hang(way));
                tokio::time::sleep(Duration::from_secs(1) + dice.moment(Duration::from_secs(6))).await;
            }
            Trouble::CloseConnections => {
                // The broker waits for one after the other, also for one that is about to end: then that was all.
                if let Err(error) = node.broker().ctl(&["close_all_connections", "of a test"]).await {
                    eprintln!("not all connections are closed: {error:#}");
                }
            }
            Trouble::CloseChannels => {
                node.broker().ctl(&["eval", SHORT_LEASES]).await?;
                // For fresh channels.
                hands.proxies.iter().for_each(|proxy| proxy.set(Fault::Cut));
                tokio::time::sleep(Duration::from_millis(50)).await;
                hands.proxies.iter().for_each(|proxy| proxy.set(Fault::None));
                tokio::time::sleep(Duration::from_secs(1)).await;
                node.broker().ctl(&["eval", LONG_LEASES]).await?;
            }
            Trouble::Alarm => {
                node.broker().memory_alarm(true).await?;
                tokio::time::sleep(dice.moment(Duration::from_secs(3))).await;
                node.broker().memory_alarm(false).await?;
            }
            Trouble::KillBroker => {
                node.kill().await?;
                node.start_again().await?;
            }
            Trouble::RestartBroker => {
                node.stop().await?;
                node.start_again().await?;
            }
            Trouble::KillStores => {
                if let Some(stores) = stores {
                    stores.kill().await?;
                }
            }
        }
        hands.proxies.iter().for_each(|proxy| proxy.set(Fault::None));
        Ok(())
    }
}
