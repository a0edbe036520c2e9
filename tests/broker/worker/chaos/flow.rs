//! The messages of one queue, published one after the other whatever happens to the broker.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Result;
use mayfly_tests::{Broker, Client, eventually, ids::Ids};

use super::Lane;

pub(super) struct Flow<'a> {
    broker: Broker,
    pub(super) lane: &'a Lane,
    client: Option<Client>,
    published: usize,
    /// Published again, as nobody can say whether the broker has the first one.
    pub(super) again: usize,
}

/// How long the broker may take to confirm a message, its restarts included.
const PUBLISH_LIMIT: Duration = Duration::from_mins(3);
/// Between two messages.
const PACE: Duration = Duration::from_millis(200);

// === impl Flow ===

impl<'a> Flow<'a> {
    pub(super) fn new(broker: Broker, lane: &'a Lane) -> Self {
        Self { broker, lane, client: None, published: 0, again: 0 }
    }

    /// Publishes until as much of it is out as `step` is of `steps`: the first at once, the others little by
    /// little, so that there is work until the trouble `is_over`.
    pub(super) async fn publish(
        &mut self,
        (step, steps): (usize, usize),
        is_over: &AtomicBool,
    ) -> Result<()> {
        let end = self.lane.total * step / steps;
        let at_once = self.published + (end - self.published) / 4;
        while self.published < end {
            let id = self.lane.id(self.published);
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
            client.publish_one(self.lane.queue, id, self.lane.body(id).as_bytes()).await?;
            Ok(Some(client))
        });
        self.client = Some(confirmed.await?);
        self.again += tries - 1;
        Ok(())
    }

    pub(super) fn ids(&self) -> Ids {
        (0..self.published).map(|number| self.lane.id(number)).collect()
    }

    pub(super) async fn close(&mut self) -> Result<()> {
        match self.client.take() {
            Some(client) => client.close().await,
            None => Ok(()),
        }
    }
}
