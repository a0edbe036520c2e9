//! Where the state record lives. One trait, so that the loop does not care whether it is a file or a
//! `ConfigMap`.

mod config_map;
mod file;

pub use config_map::ConfigMapState;
pub use file::FileState;

use std::error::Error;

use mayfly_service::DeadlineExceeded;
use serde::Deserialize;

use crate::policy::{RECORD_VERSION, StateRecord};

/// The durable record, replaced as a whole by compare-and-swap.
pub trait StateStore: Send + Sync + 'static {
    /// Reads the record; `None` if there is none, or an empty one.
    fn read(&self) -> impl Future<Output = Result<Option<StateRecord>, StateError>> + Send;

    /// Writes `record` if the stored one still has the revision `expected` (`None`: there is none), and
    /// returns what was written, with its new revision.
    fn replace(
        &self,
        expected: Option<u64>,
        record: StateRecord,
    ) -> impl Future<Output = Result<StateRecord, StateError>> + Send;

    /// Moves a damaged record aside, so that the next read finds none, and says where it went. `suffix` is
    /// part of its new name.
    fn set_aside(&self, suffix: &str) -> impl Future<Output = Result<String, StateError>> + Send;
}

/// Why the record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Somebody else wrote in between: read again.
    #[error("the state record was changed by somebody else")]
    Conflict,
    /// It is not a state record.
    #[error("state record {place} is damaged; see `mayfly-scaler state repair --help`")]
    Corrupt {
        /// Where it is.
        place: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A newer scaler wrote it: this one must not touch it.
    #[error("state record {place} was written by a newer mayfly-scaler ({detail}); upgrade this one")]
    Newer {
        /// Where it is.
        place: String,
        /// How we know.
        detail: String,
    },
    /// It cannot be read or written now.
    #[error("state record {place} cannot be {action}")]
    Unavailable {
        /// Where it is.
        place: String,
        /// "read", "written", "locked".
        action: &'static str,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// What holds it is gone.
    #[error("state record {place} is gone, and with it pauses and cool-downs; {remedy}")]
    Gone {
        /// Where it was.
        place: String,
        /// How to get one again.
        remedy: String,
    },
    /// No answer in time.
    #[error(transparent)]
    Deadline(#[from] DeadlineExceeded),
}

// === impl StateError ===

impl StateError {
    /// Whether only a person can mend it.
    #[must_use]
    pub const fn needs_repair(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Newer { .. })
    }

    /// Whether what it held is gone or out of use, pauses and cool-downs with it.
    #[must_use]
    pub const fn is_loss(&self) -> bool {
        self.needs_repair() || matches!(self, Self::Gone { .. })
    }
}

/// Reads a stored record; `None` if it is empty. Damage may have left anything, so these are bytes.
///
/// # Errors
/// `Corrupt`, or `Newer`.
fn parse(text: &[u8], place: &str) -> Result<Option<StateRecord>, StateError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    let corrupt = |source| StateError::Corrupt { place: place.to_owned(), source };
    let newer = |detail| StateError::Newer { place: place.to_owned(), detail };
    let Versioned { version } = serde_json::from_slice(text).map_err(corrupt)?;
    if version > RECORD_VERSION {
        return Err(newer(format!("its version is {version}, ours {RECORD_VERSION}")));
    }
    serde_json::from_slice(text).map(Some).map_err(|error: serde_json::Error| {
        let text = error.to_string();
        if text.starts_with("unknown field") { newer(text) } else { corrupt(error) }
    })
}
