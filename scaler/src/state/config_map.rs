//! The record as a `ConfigMap`: the API server compares its resource version.

use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::ConfigMap;

use super::{StateError, StateStore, parse};
use crate::{
    cluster::{CallError, Cluster},
    policy::StateRecord,
};

/// The key that holds the record.
const KEY: &str = "state.json";

/// `ConfigMap` `<instance>-state`, which the chart makes, without `data`: so nothing but us writes it.
#[derive(Debug)]
pub struct ConfigMapState {
    cluster: Cluster,
    name: String,
    /// As last read: what a write replaces. The API server refuses the write if it is not the stored one.
    last: Mutex<Option<ConfigMap>>,
}

// === impl ConfigMapState ===

impl ConfigMapState {
    /// The record of `instance`.
    #[must_use]
    pub fn new(cluster: Cluster, instance: &str) -> Self {
        Self { cluster, name: format!("{instance}-state"), last: Mutex::new(None) }
    }

    fn place(&self) -> String {
        format!("ConfigMap {} in namespace {}", self.name, self.cluster.namespace())
    }

    async fn fetch(&self) -> Result<ConfigMap, StateError> {
        let fetched = self.cluster.get::<ConfigMap>("read state record", &self.name).await;
        let fetched = fetched.map_err(|error| self.failed("read", error))?;
        self.keep(Some(fetched.clone()));
        Ok(fetched)
    }

    async fn put(&self, changed: &ConfigMap) -> Result<(), StateError> {
        let put = self.cluster.replace("write state record", &self.name, changed).await;
        // Whatever comes of it, the old one is no more what a next write replaces.
        self.keep(None);
        self.keep(Some(put.map_err(|error| self.failed("written", error))?));
        Ok(())
    }

    fn failed(&self, action: &'static str, error: CallError) -> StateError {
        match error {
            CallError::Deadline(deadline) => StateError::Deadline(deadline),
            error if error.is_conflict() => StateError::Conflict,
            error if error.is_not_found() => StateError::Gone {
                place: self.place(),
                remedy: format!(
                    "bring it back, empty, with helm upgrade, or kubectl -n {} create configmap {}",
                    self.cluster.namespace(),
                    self.name
                ),
            },
            error => StateError::Unavailable { place: self.place(), action, source: error.into() },
        }
    }

    fn record_of(&self, stored: &ConfigMap) -> Result<Option<StateRecord>, StateError> {
        let text = stored.data.as_ref().and_then(|data| data.get(KEY)).map(String::as_bytes);
        // What is no UTF-8 is kept here, whoever wrote it.
        let binary = stored.binary_data.as_ref().and_then(|data| data.get(KEY)).map(|bytes| &*bytes.0);
        parse(text.or(binary).unwrap_or_default(), &self.place())
    }

    fn last(&self) -> Option<ConfigMap> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, stored: Option<ConfigMap>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = stored;
    }
}

impl StateStore for ConfigMapState {
    async fn read(&self) -> Result<Option<StateRecord>, StateError> {
        let stored = self.fetch().await?;
        self.record_of(&stored)
    }

    async fn replace(
        &self,
        expected: Option<u64>,
        mut record: StateRecord,
    ) -> Result<StateRecord, StateError> {
        let mut stored = match self.last() {
            Some(last) => last,
            None => self.fetch().await?,
        };
        if self.record_of(&stored)?.map(|record| record.revision) != expected {
            return Err(StateError::Conflict);
        }
        record.revision = expected.unwrap_or(0) + 1;
        let text = serde_json::to_string_pretty(&record)
            .map_err(|source| StateError::Corrupt { place: self.place(), source })?;
        // The API server refuses a key that stands in both.
        if let Some(binary) = &mut stored.binary_data {
            binary.remove(KEY);
        }
        stored.data.get_or_insert_default().insert(KEY.to_owned(), text);
        self.put(&stored).await?;
        Ok(record)
    }

    async fn set_aside(&self, suffix: &str) -> Result<String, StateError> {
        let mut stored = self.fetch().await?;
        let aside = format!("{KEY}.{suffix}");
        if let Some(data) = &mut stored.data
            && let Some(damaged) = data.remove(KEY)
        {
            data.insert(aside.clone(), damaged);
        }
        if let Some(binary) = &mut stored.binary_data
            && let Some(damaged) = binary.remove(KEY)
        {
            binary.insert(aside.clone(), damaged);
        }
        self.put(&stored).await?;
        Ok(format!("key {aside} of {}", self.place()))
    }
}

#[cfg(test)]
mod tests;
