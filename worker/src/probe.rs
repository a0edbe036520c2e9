//! `mayfly-worker ready`: an exec readiness probe, for images that hold nothing else to ask with.

use std::{io, net::SocketAddr, time::Duration};

use mayfly_service::{DeadlineExceeded, ExitCode, deadline};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A probe that takes longer has failed: Kubernetes gives it 1 s by default, people may give it more.
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("no answer from {0}")]
    Io(SocketAddr, #[source] io::Error),
    #[error(transparent)]
    Deadline(#[from] DeadlineExceeded),
}

/// Asks the admin server at `address` and says what it answered by exit code.
pub(crate) async fn probe(address: SocketAddr) -> ExitCode {
    match is_ready(address).await {
        Ok(true) => ExitCode::Ok,
        Ok(false) => {
            tracing::info!(%address, "not ready");
            ExitCode::TempFail
        }
        Err(error) => {
            tracing::error!(error = mayfly_service::chain(&error), "cannot ask the worker");
            ExitCode::Unavailable
        }
    }
}

async fn is_ready(address: SocketAddr) -> Result<bool, NoAnswer> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET /ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer.starts_with(b"HTTP/1.1 200 "))
    };
    deadline("ask whether the worker is ready", LIMIT, ask)
        .await?
        .map_err(|error| NoAnswer::Io(address, error))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use mayfly_service::admin::{AdminServer, Readiness};
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn the_exit_code_follows_the_readiness() {
        let server = AdminServer::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = server.address();
        let (readiness, stop) = (Readiness::default(), CancellationToken::new());
        let serving = tokio::spawn(server.serve(readiness.clone(), Router::new(), stop.clone()));
        assert_eq!(probe(address).await, ExitCode::TempFail);
        readiness.set();
        assert_eq!(probe(address).await, ExitCode::Ok);
        stop.cancel();
        serving.await.unwrap().unwrap();
        assert_eq!(probe(address).await, ExitCode::Unavailable);
    }
}
