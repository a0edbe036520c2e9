//! The admin server: `/live`, `/ready`, and what a program adds.

use std::{
    future::IntoFuture,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long clients may hold up the end.
const STOP_LIMIT: Duration = Duration::from_millis(250);

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

    /// Serves `/live`, `/ready` and `routes` until `stop`; requests under way get a quarter of a second to end.
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
        let serving = axum::serve(self.listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
        let given_up = async {
            stop.cancelled().await;
            tokio::time::sleep(STOP_LIMIT).await;
        };
        tokio::select! {
            served = serving.into_future() => served,
            () = given_up => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    #[tokio::test]
    async fn readiness_is_told_and_a_client_that_hangs_does_not_hold_up_the_end() {
        let server = AdminServer::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = server.address();
        let (readiness, stop) = (Readiness::default(), CancellationToken::new());
        let serving = tokio::spawn(server.serve(readiness.clone(), Router::new(), stop.clone()));
        let status = async || {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer.split(' ').nth(1).unwrap().to_owned()
        };
        assert_eq!(status().await, "503");
        readiness.set();
        assert_eq!(status().await, "200");
        let mut hanging = TcpStream::connect(address).await.unwrap();
        hanging.write_all(b"GET /ready HTTP/1.1\r\nHost:").await.unwrap();
        stop.cancel();
        serving.await.unwrap().unwrap();
    }
}
