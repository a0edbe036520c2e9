//! `counters`: where the broker tells what it counts.

use std::{borrow::Cow, fmt, path::PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use super::{
    ConfigError,
    checked::{conflict, missing},
    values::name,
};

/// Where the broker's counters are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountersConfig {
    /// Which plugin answers.
    pub source: CounterSource,
    /// Its addresses, one for each node; not empty. The management plugin has one for all nodes.
    pub urls: Vec<String>,
    /// Whom we ask as.
    pub user: Option<String>,
    /// Holds the user's password; given if and only if the user is.
    pub password_file: Option<PathBuf>,
    /// Certificates of authorities (PEM) that are trusted besides the system's, for `https`.
    pub ca_file: Option<PathBuf>,
}

/// A plugin of the broker that tells counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CounterSource {
    /// `rabbitmq_prometheus`, of RabbitMQ 4.0 or later.
    Prometheus,
    /// `rabbitmq_management`, of any version; it knows what was some seconds ago.
    Management,
}

/// Where the broker's counters are read: at one of the two.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Counters")]
pub(super) struct RawCounters {
    /// The plugin `rabbitmq_prometheus` of RabbitMQ 4.0 or later; several addresses where there are several nodes.
    #[schemars(with = "RawEndpoint")]
    prometheus: Option<RawEndpoint>,
    /// The plugin `rabbitmq_management` of any version: one address speaks for all nodes.
    #[schemars(with = "RawEndpoint")]
    management: Option<RawEndpoint>,
}

/// A plugin's addresses: one alone, several, or with more to say about them.
#[derive(Debug, Default)]
struct RawEndpoint(RawEndpointFields);

/// A plugin's addresses, and whom we ask as.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Endpoint")]
struct RawEndpointFields {
    /// Its address: `http://HOST:PORT` or `https://HOST:PORT`.
    #[schemars(with = "String")]
    url: Option<String>,
    /// Its addresses, one for each node.
    urls: Vec<String>,
    /// Whom we ask as: for the management plugin the user of the broker's URL unless given.
    #[schemars(with = "String")]
    user: Option<String>,
    /// The file that holds the user's password.
    #[schemars(with = "String")]
    password_file: Option<String>,
    /// Certificates of authorities (PEM) that are trusted besides the system's.
    #[schemars(with = "String")]
    ca_file: Option<String>,
}

/// What an address looks like.
const ADDRESS: &str = "expected http://HOST:PORT or https://HOST:PORT";

// === impl RawEndpoint ===

impl<'de> Deserialize<'de> for RawEndpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = RawEndpoint;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an address, a list of addresses, or { url: ADDRESS, user: NAME, … }")
            }

            fn visit_str<E>(self, url: &str) -> Result<RawEndpoint, E> {
                let url = Some(url.to_owned());
                Ok(RawEndpoint(RawEndpointFields { url, ..RawEndpointFields::default() }))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawEndpoint, A::Error> {
                let mut urls = Vec::new();
                while let Some(url) = list.next_element()? {
                    urls.push(url);
                }
                Ok(RawEndpoint(RawEndpointFields { urls, ..RawEndpointFields::default() }))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawEndpoint, A::Error> {
                RawEndpointFields::deserialize(MapAccessDeserializer::new(map)).map(RawEndpoint)
            }
        }
        deserializer.deserialize_any(Forms)
    }
}

impl JsonSchema for RawEndpoint {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Addresses".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let [one, several] = [generator.subschema_for::<String>(), generator.subschema_for::<Vec<String>>()];
        json_schema!({ "anyOf": [one, several, generator.subschema_for::<RawEndpointFields>()] })
    }
}

// === impl RawCounters ===

impl RawCounters {
    pub(super) fn checked(self) -> Result<CountersConfig, ConfigError> {
        let Self { prometheus, management } = self;
        match (prometheus, management) {
            (Some(_), Some(_)) => {
                Err(conflict("counters".to_owned(), "give prometheus or management, not both".to_owned()))
            }
            (Some(RawEndpoint(fields)), None) => fields.checked(CounterSource::Prometheus),
            (None, Some(RawEndpoint(fields))) => fields.checked(CounterSource::Management),
            (None, None) => Err(missing("counters", "expected prometheus: ADDRESS or management: ADDRESS")),
        }
    }
}

impl RawEndpointFields {
    fn checked(self, source: CounterSource) -> Result<CountersConfig, ConfigError> {
        let Self { url, urls, user, password_file, ca_file } = self;
        let path = format!("counters.{}", source.as_str());
        let urls: Vec<_> = url.into_iter().chain(urls).collect();
        if urls.is_empty() {
            return Err(missing(&path, ADDRESS));
        }
        if source == CounterSource::Management && urls.len() > 1 {
            let problem = "any node speaks for all of them: give one address".to_owned();
            return Err(conflict(path, problem));
        }
        for url in &urls {
            address(&path, url)?;
        }
        if user.is_some() != password_file.is_some() {
            let problem = "user and password_file go together".to_owned();
            return Err(conflict(path, problem));
        }
        let file = |key: &str, text: Option<String>| {
            text.map(|text| name(&format!("{path}.{key}"), &text, 4096).map(PathBuf::from)).transpose()
        };
        Ok(CountersConfig {
            source,
            urls,
            password_file: file("password_file", password_file)?,
            ca_file: file("ca_file", ca_file)?,
            user,
        })
    }
}

/// An address with nothing that belongs elsewhere. One with a password is not repeated.
fn address(path: &str, url: &str) -> Result<(), ConfigError> {
    let parsed = url.parse::<hyper::Uri>().ok();
    let authority = parsed.as_ref().and_then(hyper::Uri::authority);
    if url.contains('@') {
        let problem = "an address must not hold a password: give user and password_file";
        return Err(conflict(path.to_owned(), problem.to_owned()));
    }
    let is_good = parsed.as_ref().is_some_and(|parsed| {
        matches!(parsed.scheme_str(), Some("http" | "https")) && parsed.query().is_none()
    });
    if is_good && authority.is_some() {
        return Ok(());
    }
    Err(ConfigError::Value { path: path.to_owned(), value: url.to_owned(), allowed: ADDRESS.to_owned() })
}

// === impl CounterSource ===

impl CounterSource {
    /// Its key in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prometheus => "prometheus",
            Self::Management => "management",
        }
    }
}
