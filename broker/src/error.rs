//! Everything that can go wrong at the broker, as its users must tell it apart.

use mayfly_service::{DeadlineExceeded, ExitCode};

/// The result of a broker call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a broker call failed. Texts name the thing and never hold a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No TCP or TLS connection, or the broker closed it during the handshake.
    #[error("broker {endpoint} is unreachable")]
    Unreachable {
        /// `host:port/vhost`.
        endpoint: String,
        /// What the client library said.
        #[source]
        source: lapin::Error,
    },
    /// User name or password is wrong, or the user may not use this virtual host.
    #[error("broker {endpoint} refuses user {user:?}")]
    AccessRefused {
        /// `host:port/vhost`.
        endpoint: String,
        /// Who was refused.
        user: String,
        /// What the broker said.
        #[source]
        source: lapin::Error,
    },
    /// The queue does not exist.
    #[error("queue {queue:?} does not exist")]
    QueueMissing {
        /// Its name.
        queue: String,
    },
    /// The user has no permission on the queue.
    #[error("no permission on queue {queue:?}")]
    Forbidden {
        /// Its name.
        queue: String,
        /// What the broker said.
        #[source]
        source: lapin::Error,
    },
    /// The queue exists with other arguments than asked for.
    #[error("queue {queue:?} exists with other properties")]
    Conflict {
        /// Its name.
        queue: String,
        /// What the broker said: names the property.
        #[source]
        source: lapin::Error,
    },
    /// The connection or its channel ended under the call. Whether it took effect is unknown.
    #[error("connection to the broker was lost during {what}")]
    Lost {
        /// What was attempted.
        what: &'static str,
        /// What the client library said; absent when the stream just ended.
        #[source]
        source: Option<lapin::Error>,
    },
    /// No answer in time. Whether it took effect is unknown.
    #[error(transparent)]
    Deadline(#[from] DeadlineExceeded),
    /// The broker did not take a message: its queue is full.
    #[error("broker refused message {message_id} for queue {queue:?}: the queue is full")]
    Nacked {
        /// The queue it was meant for.
        queue: String,
        /// The message.
        message_id: String,
    },
    /// A mandatory message could not be routed: no such queue.
    #[error("message {message_id} could not be routed to queue {queue:?}")]
    Unroutable {
        /// The queue it was meant for.
        queue: String,
        /// The message.
        message_id: String,
    },
}

// === impl Error ===

impl Error {
    /// Whether trying again later, unchanged, can succeed.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Lost { .. } | Self::Deadline(_) | Self::Nacked { .. })
    }

    /// The exit code of a program that ends with this error.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unreachable { .. } | Self::Lost { .. } | Self::Deadline(_) => ExitCode::Unavailable,
            Self::Nacked { .. } => ExitCode::TempFail,
            Self::AccessRefused { .. }
            | Self::QueueMissing { .. }
            | Self::Forbidden { .. }
            | Self::Conflict { .. }
            | Self::Unroutable { .. } => ExitCode::Config,
        }
    }
}
