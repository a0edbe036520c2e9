//! Real servers on loopback.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Bytes as AxumBytes,
    extract::{DefaultBodyLimit, State},
    http::HeaderMap,
    routing::{get, post},
};
use lapin::message::Delivery;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use super::*;

/// Nothing here may take longer; a hang must end as a failure and not as a hanging test.
const LIMIT: Duration = Duration::from_secs(60);

fn handler(address: &str, health_path: Option<&str>, start_limit: Duration) -> Http {
    let url = format!("http://{address}/work?a=b").parse().unwrap();
    let options = HttpOptions { url, health_path: health_path.map(str::to_owned), envelope: false };
    Http::new(options, "q", start_limit)
}

fn message(body: &[u8]) -> Message {
    Message::from(Delivery::mock(1, "".into(), "q".into(), false, body.to_vec()))
}

async fn handle(http: &Http, body: &[u8], interrupt: &Interrupt) -> Result<Outcome, CannotStart> {
    let context = Context::new(1, None, interrupt.clone());
    tokio::time::timeout(LIMIT, http.handle(&message(body), &context)).await.unwrap()
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Answers with the status that the body names, and the body in it. Unwell the first three times.
fn serve(listener: TcpListener) -> JoinHandle<()> {
    async fn work(body: AxumBytes) -> (StatusCode, HeaderMap, AxumBytes) {
        let code = String::from_utf8_lossy(&body[..3]).parse().unwrap();
        let headers = HeaderMap::from_iter([(RETRY_AFTER, 7.into())]);
        (StatusCode::from_u16(code).unwrap(), headers, body)
    }
    async fn health(State(looks): State<Arc<Mutex<u32>>>) -> StatusCode {
        let mut looks = looks.lock().unwrap();
        *looks += 1;
        if *looks > 3 { StatusCode::NO_CONTENT } else { StatusCode::SERVICE_UNAVAILABLE }
    }
    let router = Router::new()
        .route("/work", post(work))
        .route("/health", get(health))
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::default());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() })
}

/// Reads a request's beginning on one connection, writes `answer`, and closes it.
async fn answer_once(listener: &TcpListener, answer: &[u8]) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut buffer = [0; 4096];
    let _ = stream.read(&mut buffer).await.unwrap();
    stream.write_all(answer).await.unwrap();
}

#[tokio::test]
async fn the_status_is_the_outcome_and_the_beginning_of_the_body_its_reason() {
    let (listener, address) = listener().await;
    let server = serve(listener);
    let http = handler(&address, Some("/health"), LIMIT);
    http.prepare(&Interrupt::default()).await.unwrap();
    let interrupt = Interrupt::default();
    assert_eq!(handle(&http, b"200", &interrupt).await, Ok(Outcome::Done));
    let reason = "HTTP 422 Unprocessable Entity: 422 broken".to_owned();
    assert_eq!(handle(&http, b"422 broken", &interrupt).await, Ok(Outcome::DeadLetter { reason }));
    let reason = "HTTP 503 Service Unavailable: 503".to_owned();
    let after = Some(Duration::from_secs(7));
    assert_eq!(handle(&http, b"503", &interrupt).await, Ok(Outcome::Retry { reason, after }));
    let large = format!("500 {}", "x".repeat(1_000_000)).into_bytes();
    let Ok(Outcome::Retry { reason, .. }) = handle(&http, &large, &interrupt).await else { panic!() };
    assert!(reason.len() < REASON_LIMIT + 100 && reason.contains("500 xxx"), "{reason}");
    server.abort();
}

#[tokio::test]
async fn a_connection_that_is_cut_is_a_crash_and_one_that_answers_nonsense_is_not() {
    let (listener, address) = listener().await;
    let http = handler(&address, None, LIMIT);
    let interrupt = Interrupt::default();
    let (cut, ()) = tokio::join!(handle(&http, b"x", &interrupt), answer_once(&listener, b""));
    assert!(matches!(cut, Ok(Outcome::Crashed { .. })), "{cut:?}");
    let half = b"HTTP/1.1 200 OK\r\nContent-Le";
    let (cut, ()) = tokio::join!(handle(&http, b"x", &interrupt), answer_once(&listener, half));
    assert!(matches!(cut, Ok(Outcome::Crashed { .. })), "{cut:?}");
    let nonsense = b"SSH-2.0-hello\r\n\r\n";
    let (odd, ()) = tokio::join!(handle(&http, b"x", &interrupt), answer_once(&listener, nonsense));
    assert!(matches!(odd, Ok(Outcome::Retry { .. })), "{odd:?}");
    // The status has told all; what follows is for people.
    let cut_late = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhal";
    let (done, ()) = tokio::join!(handle(&http, b"x", &interrupt), answer_once(&listener, cut_late));
    assert_eq!(done, Ok(Outcome::Done));
}

#[tokio::test]
async fn a_message_waits_for_a_server_that_is_down_and_not_for_ever() {
    let (taken, address) = listener().await;
    drop(taken);
    let http = handler(&address, None, LIMIT);
    let bound = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        TcpListener::bind(&address).await.unwrap()
    };
    let interrupt = Interrupt::default();
    let served = async {
        let server = serve(bound.await);
        assert_eq!(handle(&http, b"200", &interrupt).await, Ok(Outcome::Done));
        [server]
    };
    let (outcome, [up]) = tokio::join!(handle(&http, b"200", &interrupt), served);
    assert_eq!(outcome, Ok(Outcome::Done));
    up.abort();
    assert!(up.await.is_err());

    let limit = Duration::from_secs(1);
    let http = handler(&address, None, limit);
    let reason = http.prepare(&interrupt).await.unwrap_err().reason;
    assert!(reason.contains("within 1s") && reason.contains("refused"), "{reason}");
    assert!(handle(&http, b"200", &interrupt).await.unwrap_err().reason.contains("refused"));
}

#[tokio::test]
async fn a_server_that_is_unwell_is_not_up() {
    let (listener, address) = listener().await;
    let server = serve(listener);
    let http = handler(&address, Some("/none"), Duration::from_secs(1));
    let reason = http.prepare(&Interrupt::default()).await.unwrap_err().reason;
    assert!(reason.contains("GET /none: HTTP 404"), "{reason}");
    server.abort();
}

#[tokio::test]
async fn an_interrupted_message_may_be_answered_yet_and_is_let_go_then() {
    let (listener, address) = listener().await;
    let http = handler(&address, None, LIMIT);
    for (kill, answer) in [(false, true), (false, false), (true, false)] {
        let interrupt = Interrupt::default();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
            if kill { &interrupt.kill } else { &interrupt.end }.cancel();
            if answer {
                stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await.unwrap();
            }
            // The end of the connection is how the server hears of it.
            assert_eq!(stream.read(&mut buffer).await.unwrap_or(0), 0);
        };
        let outcome = async {
            let outcome = handle(&http, b"x", &interrupt).await;
            assert_eq!(outcome, Ok(if answer { Outcome::Done } else { Outcome::Interrupted }));
        };
        tokio::time::timeout(LIMIT, async { tokio::join!(outcome, server) }).await.unwrap();
    }
}

#[test]
fn only_urls_of_servers_nearby_are_taken() {
    assert!("http://[::1]:8080/work?x=y".parse::<ServerUrl>().is_ok());
    assert_eq!("http://[::1]".parse::<ServerUrl>().unwrap().address(), ("::1", 80));
    for bad in
        ["https://localhost/", "localhost:80", "/work", "http://", "http://user:pass@host/", "amqp://host"]
    {
        assert!(bad.parse::<ServerUrl>().is_err(), "{bad}");
    }
    assert!(parse_path("/health?x=y").is_ok());
    assert!(parse_path("health").is_err());
}
