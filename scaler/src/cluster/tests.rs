//! On real connections: what is certain after which answer, and what becomes of a connection that hangs.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{
    Router,
    response::{IntoResponse, Response},
};
use k8s_openapi::api::{batch::v1::Job, core::v1::ConfigMap};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

/// A cluster whose API server is `listener`, namespace `work`.
fn cluster_at(listener: &TcpListener) -> Cluster {
    mayfly_service::tls::install_provider();
    let address = format!("http://{}", listener.local_addr().unwrap());
    Cluster::configured(kube::Config::new(address.parse().unwrap()), Some("work")).unwrap()
}

/// A cluster whose API server is `routes`.
pub(crate) async fn cluster_of(routes: Router) -> Cluster {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cluster = cluster_at(&listener);
    tokio::spawn(async move { axum::serve(listener, routes).await });
    cluster
}

/// A cluster that answers everything alike, and how often it was asked.
async fn cluster_that_says(
    answer: impl Fn() -> Response + Clone + Send + Sync + 'static,
) -> (Cluster, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let routes = Router::new().fallback(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready(answer())
    });
    (cluster_of(routes).await, asked)
}

fn status(code: u16, reason: &str, message: &str) -> Response {
    let body = json!({
        "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message,
    });
    (StatusCode::from_u16(code).unwrap(), body.to_string()).into_response()
}

fn empty_list() -> String {
    json!({ "kind": "JobList", "apiVersion": "batch/v1", "metadata": {}, "items": [] }).to_string()
}

#[tokio::test]
async fn every_answer_is_known_for_what_is_certain_after_it() {
    // The answer; whether nothing was done for certain; and what it is besides.
    type Also = fn(&CallError) -> bool;
    let quota = "jobs.batch \"x\" is forbidden: exceeded quota: q, requested: count/jobs.batch=1";
    let table: [(u16, &str, &str, bool, Also); 11] = [
        (400, "BadRequest", "x", true, |_| true),
        (401, "Unauthorized", "x", true, CallError::is_forbidden),
        (403, "Forbidden", "x", true, |e| e.is_forbidden() && !e.is_exceeded_quota()),
        (403, "Forbidden", quota, true, CallError::is_exceeded_quota),
        (404, "NotFound", "x", true, CallError::is_not_found),
        (409, "AlreadyExists", "x", true, |e| e.is_already_exists() && !e.is_conflict()),
        (409, "Conflict", "x", true, |e| e.is_conflict() && !e.is_already_exists()),
        (422, "Invalid", "x", true, |_| true),
        (429, "TooManyRequests", "x", false, |_| true),
        (500, "InternalError", "x", false, |_| true),
        (504, "Timeout", "x", false, |_| true),
    ];
    for (code, reason, message, definite, also) in table {
        let answer = move || status(code, reason, message);
        let (cluster, asked) = cluster_that_says(answer).await;
        let error = cluster.create::<Job>("create a job", &Job::default()).await.unwrap_err();
        assert_eq!(matches!(error, CallError::Refused(_)), definite, "{code} {reason}");
        assert!(also(&error), "{code} {reason}: {error:?}");
        assert!(!definite || error.to_string() == message, "{error}");
        assert_eq!(asked.load(Ordering::SeqCst), 1, "{code} {reason} was asked again");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_status_is_no_panic() {
    for body in ["", "Too many requests, please try again later.\n", "{}", "null", "<html>"] {
        for code in [403, 429, 502] {
            let answer = move || (StatusCode::from_u16(code).unwrap(), body).into_response();
            let (cluster, _) = cluster_that_says(answer).await;
            let error = cluster.get::<Job>("read a job", "x").await.unwrap_err();
            assert_eq!(matches!(error, CallError::Refused(_)), code == 403, "{code} {body:?}: {error:?}");
        }
    }
    let (cluster, _) = cluster_that_says(|| "nonsense".into_response()).await;
    let error = cluster.list::<Job>("list jobs", &ListParams::default()).await.unwrap_err();
    assert!(matches!(error, CallError::Unanswered(_)), "{error:?}");
}

#[tokio::test]
async fn an_overloaded_api_server_is_left_alone_for_as_long_as_it_asks() {
    let busy = || (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "1")], "later").into_response();
    let (cluster, asked) = cluster_that_says(busy).await;
    let list = async || cluster.list::<Job>("list jobs", &ListParams::default()).await;
    assert!(matches!(list().await, Err(CallError::Unanswered(_))));
    for _ in 0..3 {
        assert!(matches!(list().await, Err(CallError::Busy(left)) if left <= Duration::from_secs(1)));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    tokio::time::sleep(Duration::from_millis(1050)).await;
    assert!(matches!(list().await, Err(CallError::Unanswered(_))));
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

/// Reads a request and says nothing; ends when the client closes.
async fn swallow(mut connection: TcpStream) {
    let mut buffer = [0; 4096];
    while connection.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}

/// Answers requests on a connection, all alike.
async fn answer(mut connection: TcpStream, body: String) {
    let mut buffer = [0; 4096];
    while connection.read(&mut buffer).await.is_ok_and(|count| count > 0) {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        connection.write_all((head + &body).as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_that_hangs_hides_no_api_server_that_is_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cluster = cluster_at(&listener);
    let server = tokio::spawn(async move {
        let (hung, _) = listener.accept().await.unwrap();
        let hung = tokio::spawn(swallow(hung));
        let (next, _) = listener.accept().await.unwrap();
        tokio::spawn(answer(next, empty_list()));
        // The one that hangs is closed when the other one has answered.
        hung.await.unwrap();
    });
    let begun = Instant::now();
    let jobs = cluster.list::<Job>("list jobs", &ListParams::default()).await.unwrap();
    assert!(jobs.is_empty());
    assert!(begun.elapsed() < 2 * READ_AGAIN, "{:?}", begun.elapsed());
    tokio::time::timeout(Duration::from_secs(5), server).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_write_that_is_given_up_closes_its_connection_and_is_sent_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cluster = cluster_at(&listener);
    let changed = ConfigMap::default();
    let write = cluster.replace("write", "x", &changed);
    let given_up = tokio::time::timeout(Duration::from_millis(300), write);
    let (outcome, accepted) = tokio::join!(given_up, listener.accept());
    assert!(outcome.is_err(), "it was answered");
    let (connection, _) = accepted.unwrap();
    tokio::time::timeout(Duration::from_secs(5), swallow(connection)).await.expect("it stays open");
    let again = tokio::time::timeout(Duration::from_millis(300), listener.accept()).await;
    assert!(again.is_err(), "it was sent again");
}
