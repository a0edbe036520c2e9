//! The JSON Schema of the configuration file, from the types that read it: editors complete and check by it.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::Value;

use super::raw::RawConfig;

/// A duration with its unit. (Fields are read as text; this and the others tell what text.)
pub(super) struct Span;
/// A duration; a bare number, quoted or not, has the unit that it had in the earlier system.
pub(super) struct EarlierSpan;
/// A whole number, quoted or not.
pub(super) struct EarlierNumber;
/// A whole number, or the word `unlimited`.
pub(super) struct Limit;
/// When to launch where nobody lives.
pub(super) struct StartWord;
/// What tells that a worker is ready.
pub(super) struct ReadyWord;
/// One value, as its text.
pub(super) struct Scalar;

/// Keys that must be there, by definition: to the types that read them every key is optional, so that what is
/// missing is told in one place, by its path.
const REQUIRED: [(&str, &[&str]); 5] = [
    ("", &["instance", "launcher", "pools"]),
    ("/definitions/Process", &["directory"]),
    ("/definitions/Pool", &["name", "queues", "worker"]),
    ("/definitions/Queue", &["name"]),
    ("/definitions/Window", &["start", "end"]),
];

/// The schema, as JSON Schema draft 7: what Helm and most editors read.
#[must_use]
pub fn schema() -> Value {
    let schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<RawConfig>();
    let mut schema = schema.to_value();
    without_null_defaults(&mut schema);
    for (place, keys) in REQUIRED {
        if let Some(Value::Object(definition)) = schema.pointer_mut(place) {
            definition.insert("required".to_owned(), keys.iter().copied().collect());
        }
    }
    schema
}

/// A key that may be absent has no default that could be written.
fn without_null_defaults(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, value| {
                key != "default" || !(value.is_null() || value == &Value::Array(vec![]))
            });
            fields.values_mut().for_each(without_null_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null_defaults),
        _ => {}
    }
}

/// Implements [`JsonSchema`] in place.
macro_rules! text {
    ($type:ty, $name:literal, $schema:tt) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

text!(Span, "Duration", {
    "type": "string",
    "pattern": "^ *([0-9]+ *[a-zA-Zµ]+ *)+$",
    "examples": ["250ms", "10s", "5m"],
});
text!(EarlierSpan, "EarlierDuration", {
    "anyOf": [
        { "type": "string", "pattern": "^ *([0-9]+|([0-9]+ *[a-zA-Zµ]+ *)+) *$" },
        { "type": "integer", "minimum": 0 },
    ],
    "examples": ["250ms", "10s", "5m"],
});
text!(EarlierNumber, "EarlierNumber", {
    "anyOf": [{ "type": "integer", "minimum": 0 }, { "type": "string", "pattern": "^ *[0-9]+ *$" }],
});
text!(Limit, "Limit", {
    "anyOf": [{ "type": "integer", "minimum": 0, "maximum": 100_000 }, { "const": "unlimited" }],
});
text!(StartWord, "Start", { "enum": ["immediate", "latest"] });
text!(ReadyWord, "Ready", { "enum": ["probe", "consumers"] });
text!(Scalar, "Scalar", { "type": ["string", "number", "boolean"] });

#[cfg(test)]
mod chart;

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Value {
        schema()["definitions"]["Pool"].clone()
    }

    #[test]
    fn every_key_is_described() {
        fn undescribed(at: &str, value: &Value, found: &mut Vec<String>) {
            for (key, property) in value["properties"].as_object().into_iter().flatten() {
                let at = format!("{at}.{key}");
                if !property["description"].is_string() {
                    found.push(at.clone());
                }
                undescribed(&at, property, found);
            }
        }
        let schema = schema();
        let mut found = Vec::new();
        undescribed("", &schema, &mut found);
        for (name, definition) in schema["definitions"].as_object().unwrap() {
            undescribed(name, definition, &mut found);
        }
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn what_must_be_there_is_required_and_nothing_else_is_allowed() {
        let schema = schema();
        for (place, keys) in REQUIRED {
            let definition = schema.pointer(place).unwrap();
            assert_eq!(definition["required"], serde_json::json!(keys), "{place}");
            for key in keys {
                assert!(definition["properties"][key].is_object(), "{place} has no {key}");
            }
        }
        for definition in schema["definitions"].as_object().unwrap().values().chain([&schema]) {
            assert_eq!(definition["additionalProperties"], Value::Bool(false), "{definition}");
        }
    }

    #[test]
    fn values_have_the_types_that_people_write() {
        let pool = pool();
        let property = |key: &str| pool["properties"][key].clone();
        assert_eq!(property("launch_interval")["type"], "string");
        // The earlier system's values stand in files as texts of digits, too.
        for (key, own) in
            [("force_empty_queue_interval", 0), ("check_trigger_interval", 0), ("target_queue_size", 1)]
        {
            let pattern = &property(key)["anyOf"][own]["pattern"];
            assert!(pattern.as_str().unwrap().contains("[0-9]+"), "{key}: {pattern}");
        }
        assert_eq!(property("packing")["type"], "boolean");
        assert_eq!(property("weight")["minimum"], 1);
        assert_eq!(property("max_workers")["anyOf"][1]["const"], "unlimited");
        assert_eq!(property("start")["enum"], serde_json::json!(["immediate", "latest"]));
    }
}
