//! Where the state record lives. One trait, so that the loop does not care whether it is a file or a
//! `ConfigMap`.

mod file;

pub use file::FileState;

use std::{io, path::PathBuf};

use mayfly_service::DeadlineExceeded;

use crate::policy::StateRecord;

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
}

/// Why the record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Somebody else wrote in between: read again.
    #[error("the state record was changed by somebody else")]
    Conflict,
    /// It is not a state record.
    #[error("state record {path:?} is damaged; see `mayfly-scaler state repair --help`")]
    Corrupt {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A newer scaler wrote it: this one must not touch it.
    #[error("state record {path:?} was written by a newer mayfly-scaler ({detail}); upgrade this one")]
    Newer {
        /// Where it is.
        path: PathBuf,
        /// How we know.
        detail: String,
    },
    /// It cannot be read or written now.
    #[error("state record {path:?} cannot be {action}")]
    Unavailable {
        /// Where it is.
        path: PathBuf,
        /// "read", "written", "locked".
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
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
}
