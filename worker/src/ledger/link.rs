//! One connection that is made again after it was lost.

use std::{fmt, sync::Arc};

use tokio::{sync::Mutex, task::JoinHandle};

use super::LedgerError;

/// Holds the connection while it is good. Calls share it; who finds it broken puts it away.
pub(super) struct Link<C> {
    slot: Mutex<Option<Arc<C>>>,
}

/// A call on a connection whose end is not known yet.
pub(super) struct Doubt<'a, C> {
    link: &'a Link<C>,
    connection: Option<Arc<C>>,
}

/// A task that ends with its owner.
#[derive(Debug)]
pub(super) struct Driver(JoinHandle<()>);

// === impl Link ===

impl<C> Link<C> {
    pub(super) fn new() -> Self {
        Self { slot: Mutex::new(None) }
    }

    /// The connection; `connect` makes one where there is none. Who comes meanwhile waits for the same.
    pub(super) async fn get(
        &self,
        is_good: impl FnOnce(&C) -> bool,
        connect: impl Future<Output = Result<C, LedgerError>>,
    ) -> Result<Arc<C>, LedgerError> {
        let mut slot = self.slot.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| is_good(connection)) {
            return Ok(Arc::clone(connection));
        }
        *slot = None;
        let connection = Arc::new(connect.await?);
        *slot = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Unless settled, the connection is put away: a call on it failed, or was given up.
    pub(super) fn doubt<'a>(&'a self, connection: &Arc<C>) -> Doubt<'a, C> {
        Doubt { link: self, connection: Some(Arc::clone(connection)) }
    }

    fn put_away(&self, connection: &Arc<C>) {
        // Somebody who holds the lock is about to replace it.
        if let Ok(mut slot) = self.slot.try_lock()
            && slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection))
        {
            *slot = None;
        }
    }

    /// Ends it.
    pub(super) async fn close(&self) {
        self.slot.lock().await.take();
    }
}

/// Without the connection: it knows the password.
impl<C> fmt::Debug for Link<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Link").finish_non_exhaustive()
    }
}

// === impl Doubt ===

impl<C> Doubt<'_, C> {
    /// The connection is as good as before.
    pub(super) fn settle(mut self) {
        self.connection = None;
    }
}

impl<C> Drop for Doubt<'_, C> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.link.put_away(&connection);
        }
    }
}

// === impl Driver ===

impl Driver {
    pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}
