//! The chart's values for the scaler are those of its configuration: `values.schema.json` takes them from the
//! types. `MAYFLY_WRITE_SCHEMA=1 cargo test -p mayfly-scaler values_schema` writes the file anew.

use std::fs;

use serde_json::{Map, Value, json};

use super::schema;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/mayfly/values.schema.json");
/// Values of a pool that are the chart's own …
const OWN: [&str; 4] = ["name", "queue", "declare", "worker"];
/// … and keys of the configuration's pool that the chart writes itself.
const WRITTEN: [&str; 3] = ["name", "queues", "worker"];
/// What a place for counters may not say in the chart: passwords there are the broker's.
const LOGIN: [&str; 2] = ["user", "password_file"];

fn object(value: &mut Value) -> &mut Map<String, Value> {
    value.as_object_mut().unwrap()
}

/// `values` with what comes from the types as the types have it.
fn derived(mut values: Value) -> Value {
    let mut config = schema();
    let mut of_pool = Map::new();
    let pool = &mut values["properties"]["pools"]["items"]["properties"];
    for key in OWN {
        of_pool.insert(key.to_owned(), pool[key].take());
    }
    for (key, value) in object(&mut config["definitions"]["Pool"]["properties"]) {
        if !WRITTEN.contains(&&**key) {
            of_pool.insert(key.clone(), value.take());
        }
    }
    // A worker of the chart takes from one queue.
    of_pool.insert("slo".to_owned(), config["definitions"]["Queue"]["properties"]["slo"].take());
    *pool = of_pool.into();
    object(&mut config["definitions"]["Endpoint"]["properties"]).retain(|key, _| !LOGIN.contains(&&**key));
    for name in ["Window", "Counters", "Endpoint", "Deadlines"] {
        values["definitions"][name] = config["definitions"][name].take();
    }
    for key in ["check_interval", "counters", "quota"] {
        values["properties"][key] = config["properties"][key].take();
    }
    // Values are overridden, never removed: null is how to say "not given".
    for key in ["counters", "quota"] {
        let given = values["properties"][key].take();
        let description = given["description"].clone();
        values["properties"][key] =
            json!({ "description": description, "anyOf": [given, { "type": "null" }] });
    }
    values
}

#[test]
fn the_charts_values_schema_has_what_the_configuration_knows() {
    let text = fs::read_to_string(FILE).unwrap();
    let values: Value = serde_json::from_str(&text).unwrap();
    let derived = serde_json::to_string_pretty(&derived(values)).unwrap() + "\n";
    if std::env::var_os("MAYFLY_WRITE_SCHEMA").is_some() {
        fs::write(FILE, derived).unwrap();
        return;
    }
    assert_eq!(
        text, derived,
        "write it anew: MAYFLY_WRITE_SCHEMA=1 cargo test -p mayfly-scaler values_schema"
    );
}
