//! Everything that can go wrong at the broker, as its users must tell it apart.

use std::{fmt, time::Duration};

use mayfly_service::{DeadlineExceeded, ExitCode, chain, tls::TlsProblem};

use crate::BrokerUrl;

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
        source: Cause,
    },
    /// The broker and we did not come to terms over TLS.
    #[error("no TLS with broker {endpoint}")]
    Tls {
        /// `host:port/vhost`.
        endpoint: String,
        /// Why, and what to do about it.
        #[source]
        source: TlsAdvice,
    },
    /// What answers is not a broker, or wants TLS first.
    #[error(
        "what answers at {endpoint} does not speak AMQP 0-9-1: if it is the broker's port for TLS, write amqps://"
    )]
    NotAmqp {
        /// `host:port/vhost`.
        endpoint: String,
    },
    /// User name or password is wrong, or the user may not use this virtual host.
    #[error("broker {endpoint} refuses {who}")]
    AccessRefused {
        /// `host:port/vhost`.
        endpoint: String,
        /// Who was refused: `user "NAME"`, or that of the client certificate.
        who: String,
        /// What the broker said.
        #[source]
        source: Cause,
    },
    /// A connection cannot have as many channels as are needed.
    #[error(
        "broker {endpoint} allows {most} channels on a connection, {needed} are needed: raise channel_max in \
         its configuration, or in the url"
    )]
    TooFewChannels {
        /// `host:port/vhost`.
        endpoint: String,
        /// How many it can have.
        most: u16,
        /// How many it takes.
        needed: u16,
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
        source: Cause,
    },
    /// The queue exists with other arguments than asked for.
    #[error("queue {queue:?} exists with other properties")]
    Conflict {
        /// Its name.
        queue: String,
        /// What the broker said: names the property.
        #[source]
        source: Cause,
    },
    /// The connection or its channel ended under the call. Whether it took effect is unknown.
    #[error("connection to the broker was lost during {what}")]
    Lost {
        /// What was attempted.
        what: &'static str,
        /// What the client library said; absent when the stream just ended.
        #[source]
        source: Option<Cause>,
    },
    /// No answer in time. Whether it took effect is unknown.
    #[error(transparent)]
    Deadline(#[from] DeadlineExceeded),
    /// The broker does not accept messages: it is short of memory or disk. Which of the messages that were
    /// sent took effect is unknown.
    #[error("broker has blocked publishing for {waited:?} (memory or disk alarm)")]
    Blocked {
        /// How long we waited for it to end.
        waited: Duration,
    },
    /// The broker refused a message as such, for example because it is too large, and closed the channel.
    #[error("broker refuses a message for queue {queue:?}")]
    Refused {
        /// The queue it was meant for.
        queue: String,
        /// What the broker said.
        #[source]
        source: Cause,
    },
    /// A message was not sent: all its headers must go into one frame.
    #[error(
        "the headers of a message for queue {queue:?} take a frame of {bytes} bytes, {most} are possible (frame_max)"
    )]
    HeadersTooLarge {
        /// The queue it was meant for.
        queue: String,
        /// What the frame would have, with what the broker may add to it.
        bytes: usize,
        /// How many it can have on this connection.
        most: u32,
    },
    /// No queue can have this name: it is longer than 255 bytes.
    #[error("queue name of {length} bytes is too long (255 at most)")]
    NameTooLong {
        /// Its length in bytes.
        length: usize,
    },
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

/// What the client library or the broker said, as one line without repetitions.
#[derive(Debug, Clone)]
pub struct Cause(lapin::Error);

/// What is wrong with TLS, and the next step.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}{step}", step = next_step(.0))]
pub struct TlsAdvice(TlsProblem);

/// The reply codes of AMQP 0-9-1 that we tell apart.
mod reply {
    pub(super) const CONTENT_TOO_LARGE: u16 = 311;
    pub(super) const ACCESS_REFUSED: u16 = 403;
    pub(super) const NOT_FOUND: u16 = 404;
    pub(super) const RESOURCE_LOCKED: u16 = 405;
    pub(super) const PRECONDITION_FAILED: u16 = 406;
    pub(super) const FRAME_ERROR: u16 = 501;
    pub(super) const NOT_ALLOWED: u16 = 530;
}

// === impl Error ===

impl Error {
    /// Whether trying again later, unchanged, can succeed.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Lost { .. }
                | Self::Deadline(_)
                | Self::Blocked { .. }
                | Self::Nacked { .. }
        )
    }

    /// Whether the connection ended because the broker sent a frame larger than it may be there: a message whose
    /// headers need that much. It comes again to whoever consumes next.
    #[must_use]
    pub fn wants_larger_frames(&self) -> bool {
        matches!(self, Self::Lost { source: Some(cause), .. } if cause.reply_code() == Some(reply::FRAME_ERROR))
    }

    /// The exit code of a program that ends with this error.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unreachable { .. } | Self::Lost { .. } | Self::Deadline(_) => ExitCode::Unavailable,
            Self::Nacked { .. } | Self::Blocked { .. } => ExitCode::TempFail,
            Self::Tls { .. }
            | Self::NotAmqp { .. }
            | Self::AccessRefused { .. }
            | Self::TooFewChannels { .. }
            | Self::QueueMissing { .. }
            | Self::Forbidden { .. }
            | Self::Conflict { .. }
            | Self::Refused { .. }
            | Self::HeadersTooLarge { .. }
            | Self::NameTooLong { .. }
            | Self::Unroutable { .. } => ExitCode::Config,
        }
    }

    /// A connection attempt failed.
    pub(crate) fn connect(url: &BrokerUrl, source: lapin::Error) -> Self {
        let endpoint = url.endpoint();
        if let lapin::ErrorKind::IOError(error) = source.kind()
            && let Some(problem) = TlsProblem::of(&**error)
        {
            return Self::Tls { endpoint, source: TlsAdvice(problem) };
        }
        if matches!(source.kind(), lapin::ErrorKind::ParsingError(_)) {
            return Self::NotAmqp { endpoint };
        }
        let source = Cause(source);
        match source.reply_code() {
            // A limit on connections is reported with the code of a missing virtual host, but it passes.
            Some(reply::NOT_ALLOWED) if source.to_string().contains("limit") => {
                Self::Unreachable { endpoint, source }
            }
            Some(reply::ACCESS_REFUSED | reply::NOT_ALLOWED) => {
                Self::AccessRefused { endpoint, who: url.who(), source }
            }
            _ => Self::Unreachable { endpoint, source },
        }
    }

    /// A call that names a queue failed.
    pub(crate) fn queue(queue: &str, what: &'static str, source: lapin::Error) -> Self {
        let queue = queue.to_owned();
        let source = Cause(source);
        match source.reply_code() {
            Some(reply::NOT_FOUND) => Self::QueueMissing { queue },
            Some(reply::ACCESS_REFUSED | reply::RESOURCE_LOCKED) => Self::Forbidden { queue, source },
            Some(reply::PRECONDITION_FAILED) => Self::Conflict { queue, source },
            _ => Self::Lost { what, source: Some(source) },
        }
    }

    /// Publishing to `queue` failed.
    pub(crate) fn publish(queue: &str, source: lapin::Error) -> Self {
        let queue = queue.to_owned();
        let source = Cause(source);
        match source.reply_code() {
            Some(reply::ACCESS_REFUSED) => Self::Forbidden { queue, source },
            Some(reply::PRECONDITION_FAILED | reply::CONTENT_TOO_LARGE) => Self::Refused { queue, source },
            _ => Self::Lost { what: "publish", source: Some(source) },
        }
    }

    /// Any other call failed: its channel or connection is gone.
    pub(crate) const fn lost(what: &'static str, source: lapin::Error) -> Self {
        Self::Lost { what, source: Some(Cause(source)) }
    }
}

/// What to do about `problem`, to be put behind it.
fn next_step(problem: &TlsProblem) -> &'static str {
    match problem {
        TlsProblem::UnknownCa => {
            ": give the certificate of the authority that signed it by --broker-ca-file (scaler: broker.ca_file)"
        }
        TlsProblem::CaAsServer => {
            ": make a certificate for the broker and sign it with this one, which then goes to --broker-ca-file"
        }
        TlsProblem::Expired => ": renew it at the broker",
        TlsProblem::WrongName { .. } => ": write one of the certificate's names into the broker's url",
        TlsProblem::NotTls => ": give the broker's port for TLS (usually 5671), or write amqp://",
        TlsProblem::CertificateWanted => ": give one by --broker-cert-file and --broker-key-file",
        TlsProblem::CertificateRefused(_) => {
            ": it must be valid and signed by an authority that the broker trusts (--broker-cert-file)"
        }
        TlsProblem::NotYetValid | TlsProblem::Other(_) => "",
    }
}

// === impl Cause ===

impl Cause {
    /// The broker's reply code, where it was the broker that refused.
    fn reply_code(&self) -> Option<u16> {
        match self.0.kind() {
            lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
            _ => None,
        }
    }
}

/// lapin's own texts repeat their source and name its internals.
impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind() {
            lapin::ErrorKind::ProtocolError(error) => write!(formatter, "{}", error.get_message()),
            // What an `io::Error` wraps is its own text already, but not the causes of that.
            lapin::ErrorKind::IOError(error) => match error.get_ref() {
                Some(wrapped) => formatter.write_str(&chain(wrapped)),
                None => write!(formatter, "{error}"),
            },
            lapin::ErrorKind::ParsingError(_) => write!(formatter, "its answer is not AMQP 0-9-1"),
            lapin::ErrorKind::InvalidChannelState(..) => write!(formatter, "the channel is closed"),
            lapin::ErrorKind::InvalidConnectionState(_) => write!(formatter, "the connection is closed"),
            _ => write!(formatter, "{}", self.0),
        }
    }
}

impl std::error::Error for Cause {}

#[cfg(test)]
mod tests {
    use lapin::{
        ErrorKind,
        protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError},
    };

    use super::*;

    fn soft(kind: AMQPSoftError) -> lapin::Error {
        ErrorKind::ProtocolError(AMQPError::new(AMQPErrorKind::Soft(kind), "told".into())).into()
    }

    fn hard(kind: AMQPHardError, text: &str) -> lapin::Error {
        ErrorKind::ProtocolError(AMQPError::new(AMQPErrorKind::Hard(kind), text.into())).into()
    }

    fn io() -> lapin::Error {
        std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into()
    }

    #[test]
    fn a_refused_login_is_told_from_a_broker_that_is_away_or_full() {
        let url: BrokerUrl = "amqp://u:p@h/jobs".parse().unwrap();
        let connect = |error| Error::connect(&url, error);
        assert!(matches!(connect(soft(AMQPSoftError::ACCESSREFUSED)), Error::AccessRefused { .. }));
        let missing = hard(AMQPHardError::NOTALLOWED, "NOT_ALLOWED - vhost jobs not found");
        assert!(matches!(connect(missing), Error::AccessRefused { .. }));
        let full = hard(AMQPHardError::NOTALLOWED, "NOT_ALLOWED - connection limit (1) is reached");
        assert!(matches!(connect(full), Error::Unreachable { .. }));
        let starting = hard(AMQPHardError::INTERNALERROR, "INTERNAL_ERROR - vhost is down");
        assert!(matches!(connect(starting), Error::Unreachable { .. }));
        assert!(matches!(connect(io()), Error::Unreachable { .. }));
    }

    #[test]
    fn what_the_broker_says_about_a_queue_is_told_apart() {
        let queue = |error| Error::queue("q", "declare queue", error);
        assert!(matches!(queue(soft(AMQPSoftError::NOTFOUND)), Error::QueueMissing { .. }));
        assert!(matches!(queue(soft(AMQPSoftError::ACCESSREFUSED)), Error::Forbidden { .. }));
        assert!(matches!(queue(soft(AMQPSoftError::RESOURCELOCKED)), Error::Forbidden { .. }));
        assert!(matches!(queue(soft(AMQPSoftError::PRECONDITIONFAILED)), Error::Conflict { .. }));
        assert!(matches!(queue(hard(AMQPHardError::CONNECTIONFORCED, "")), Error::Lost { .. }));
        assert!(matches!(queue(io()), Error::Lost { .. }));
    }

    /// To try such a message again would never end.
    #[test]
    fn a_message_that_the_broker_refuses_as_such_is_not_transient() {
        let publish = |error| Error::publish("q", error);
        assert!(!publish(soft(AMQPSoftError::PRECONDITIONFAILED)).is_transient());
        assert!(!publish(soft(AMQPSoftError::CONTENTTOOLARGE)).is_transient());
        assert!(!publish(soft(AMQPSoftError::ACCESSREFUSED)).is_transient());
        assert!(publish(hard(AMQPHardError::CONNECTIONFORCED, "")).is_transient());
        assert!(publish(soft(AMQPSoftError::NOTFOUND)).is_transient());
    }

    #[test]
    fn a_frame_that_was_too_large_is_told_from_other_ends() {
        let lost = |error| Error::lost("consume", error);
        assert!(lost(hard(AMQPHardError::FRAMEERROR, "frame too large: 204900 bytes")).wants_larger_frames());
        assert!(!lost(hard(AMQPHardError::CONNECTIONFORCED, "")).wants_larger_frames());
        assert!(!lost(io()).wants_larger_frames());
    }

    #[test]
    fn a_cause_is_said_once() {
        let error = Error::queue("q", "declare queue", soft(AMQPSoftError::PRECONDITIONFAILED));
        let source = std::error::Error::source(&error).unwrap();
        assert_eq!(source.to_string(), "told");
        assert!(source.source().is_none());
    }
}
