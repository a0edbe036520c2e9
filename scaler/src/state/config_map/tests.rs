//! Against an API server of one `ConfigMap`.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};

use super::*;
use crate::{cluster::tests::cluster_of, time::Time};

type Stored = Arc<Mutex<Option<Value>>>;

fn missing() -> Response {
    let status = json!({ "kind": "Status", "code": 404, "reason": "NotFound", "message": "not found" });
    (StatusCode::NOT_FOUND, Json(status)).into_response()
}

async fn read(State(stored): State<Stored>) -> Response {
    stored.lock().unwrap().clone().map_or_else(missing, |stored| Json(stored).into_response())
}

async fn write(State(stored): State<Stored>, Json(mut new): Json<Value>) -> Response {
    let mut stored = stored.lock().unwrap();
    let Some(old) = &mut *stored else { return missing() };
    let version = &old["metadata"]["resourceVersion"];
    if new["metadata"]["resourceVersion"] != *version {
        let status = json!({ "kind": "Status", "code": 409, "reason": "Conflict", "message": "changed" });
        return (StatusCode::CONFLICT, Json(status)).into_response();
    }
    let next: u64 = version.as_str().unwrap().parse::<u64>().unwrap() + 1;
    new["metadata"]["resourceVersion"] = json!(next.to_string());
    *old = new.clone();
    Json(new).into_response()
}

/// As the chart makes it: no data.
fn fresh() -> Value {
    json!({
        "metadata": { "name": "mayfly-state", "resourceVersion": "1", "labels": { "chart": "mayfly" } },
    })
}

/// A store, another one of the same record, and what is stored.
async fn stores(stored: Value) -> (ConfigMapState, ConfigMapState, Stored) {
    let stored = Arc::new(Mutex::new(Some(stored)));
    let path = "/api/v1/namespaces/work/configmaps/mayfly-state";
    let routes = Router::new().route(path, get(read).put(write)).with_state(Arc::clone(&stored));
    let cluster = cluster_of(routes).await;
    let state = || ConfigMapState::new(cluster.clone(), "mayfly");
    (state(), state(), stored)
}

fn record() -> StateRecord {
    StateRecord::new(Time::from_millis(1_000_000))
}

fn with_text(text: &str) -> Value {
    let mut stored = fresh();
    stored["data"] = json!({ "state.json": text });
    stored
}

#[tokio::test]
async fn of_two_writers_that_read_the_same_one_wins() {
    let (first, second, stored) = stores(fresh()).await;
    assert_eq!(first.read().await.unwrap(), None);
    assert_eq!(second.read().await.unwrap(), None);
    let written = first.replace(None, record()).await.unwrap();
    assert_eq!(written.revision, 1);
    assert!(matches!(second.replace(None, record()).await, Err(StateError::Conflict)));
    assert_eq!(second.read().await.unwrap(), Some(written));
    assert_eq!(second.replace(Some(1), record()).await.unwrap().revision, 2);
    assert!(matches!(first.replace(Some(1), record()).await, Err(StateError::Conflict)));
    let stored = stored.lock().unwrap().clone().unwrap();
    assert_eq!(stored["metadata"]["labels"]["chart"], "mayfly", "what is not ours stays");
}

#[tokio::test]
async fn a_write_goes_on_from_the_one_before_without_reading() {
    let (state, _, _) = stores(fresh()).await;
    let written = state.replace(None, record()).await.unwrap();
    assert_eq!(state.replace(Some(written.revision), record()).await.unwrap().revision, 2);
}

#[tokio::test]
async fn an_emptied_record_is_none_and_a_missing_config_map_says_what_to_do() {
    for text in ["", "\n"] {
        let (state, _, _) = stores(with_text(text)).await;
        assert_eq!(state.read().await.unwrap(), None);
    }
    let (state, _, stored) = stores(fresh()).await;
    *stored.lock().unwrap() = None;
    let error = state.read().await.unwrap_err();
    assert!(matches!(error, StateError::Gone { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "state record ConfigMap mayfly-state in namespace work is gone, and with it pauses and cool-downs; \
         bring it back, empty, with helm upgrade, or kubectl -n work create configmap mayfly-state"
    );
}

#[tokio::test]
async fn a_damaged_or_newer_record_is_neither_read_nor_replaced() {
    let (state, _, stored) = stores(with_text("{\"version\": 1")).await;
    assert!(matches!(state.read().await, Err(StateError::Corrupt { .. })));
    assert!(matches!(state.replace(None, record()).await, Err(StateError::Corrupt { .. })));
    assert_eq!(stored.lock().unwrap().clone().unwrap(), with_text("{\"version\": 1"));
    let (state, _, _) = stores(with_text("{\"version\": 2, \"x\": 1}")).await;
    assert!(matches!(state.read().await, Err(StateError::Newer { .. })));
    assert!(matches!(state.replace(Some(1), record()).await, Err(StateError::Newer { .. })));
}

#[tokio::test]
async fn a_record_that_is_no_utf8_is_damaged_and_set_aside_where_bytes_are_kept() {
    let mut damaged = fresh();
    damaged["binaryData"] = json!({ "state.json": "/w==" });
    let (state, _, stored) = stores(damaged).await;
    assert!(matches!(state.read().await, Err(StateError::Corrupt { .. })));
    assert!(matches!(state.replace(None, record()).await, Err(StateError::Corrupt { .. })));
    state.set_aside("damaged-7").await.unwrap();
    assert_eq!(
        stored.lock().unwrap().clone().unwrap()["binaryData"],
        json!({ "state.json.damaged-7": "/w==" })
    );
    assert_eq!(state.read().await.unwrap(), None);
    assert_eq!(state.replace(None, record()).await.unwrap().revision, 1);
}

#[tokio::test]
async fn a_sound_record_that_was_put_back_as_bytes_is_used_and_written_as_text() {
    let mut stored = fresh();
    stored["binaryData"] = json!({ "state.json": "" });
    let (state, _, stored) = stores(stored).await;
    assert_eq!(state.read().await.unwrap(), None);
    state.replace(None, record()).await.unwrap();
    let stored = stored.lock().unwrap().clone().unwrap();
    assert!(
        stored["binaryData"].get("state.json").is_none(),
        "a key may stand in one of them only: {stored}"
    );
    assert!(stored["data"]["state.json"].is_string());
}

#[tokio::test]
async fn a_damaged_record_is_set_aside_under_another_key() {
    let (state, _, stored) = stores(with_text("damaged")).await;
    let place = state.set_aside("damaged-7").await.unwrap();
    assert_eq!(place, "key state.json.damaged-7 of ConfigMap mayfly-state in namespace work");
    assert_eq!(state.read().await.unwrap(), None);
    assert_eq!(stored.lock().unwrap().clone().unwrap()["data"], json!({ "state.json.damaged-7": "damaged" }));
}
