//! The admin server: `/live`, `/ready`, and what a program adds.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{Router, http::StatusCode, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Whether the program is ready: false at first, then true for good.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

/// A bound admin server that does not serve yet.
#[derive(Debug)]
pub struct AdminServer {
    listener: TcpListener,
    address: SocketAddr,
}

/// The admin server's address is taken or not ours.
#[derive(Debug, thiserror::Error)]
#[error("admin server cannot listen on {address}")]
pub struct CannotListen {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

// === impl Readiness ===

impl Readiness {
    /// From now on `/ready` answers 200.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether [`set`](Self::set) was called.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

// === impl AdminServer ===

impl AdminServer {
    /// Binds `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`CannotListen`] when the address is taken or not ours.
    pub async fn bind(address: SocketAddr) -> Result<Self, CannotListen> {
        let cannot = |source| CannotListen { address, source };
        let listener = TcpListener::bind(address).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `/live`, `/ready` and `routes` until `stop`.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(
        self,
        readiness: Readiness,
        routes: Router,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let ready = move || async move {
            if readiness.is_set() {
                (StatusCode::OK, "ready\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
            }
        };
        let app = Router::new()
            .route("/live", get(|| async { "live\n" }))
            .route("/ready", get(ready))
            .merge(routes);
        axum::serve(self.listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}
