//! How a command fails: the thing, its cause, the next step, and the exit code.

use std::{error::Error, fmt};

use mayfly_broker::{BadUrl, Error as BrokerError};
use mayfly_service::{ExitCode, chain};

/// Why a command failed, as told to its user.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What the program exits with.
    pub(crate) code: ExitCode,
    /// The thing and its cause.
    what: String,
    /// What to do about it.
    next: Option<String>,
}

// === impl Failure ===

impl Failure {
    pub(crate) fn new(code: ExitCode, what: impl Into<String>) -> Self {
        Self { code, what: what.into(), next: None }
    }

    /// The command line, or what came with it, makes no sense.
    pub(crate) fn usage(error: &dyn Error) -> Self {
        Self::new(ExitCode::Usage, chain(error))
    }

    pub(crate) fn with_next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, next, .. } = self;
        writeln!(formatter, "error: {what}")?;
        match next {
            Some(next) => writeln!(formatter, "next: {next}"),
            None => Ok(()),
        }
    }
}

impl From<BadUrl> for Failure {
    fn from(error: BadUrl) -> Self {
        Self::new(ExitCode::Config, chain(&error))
    }
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        let code = error.exit_code();
        let next = next_step(&error);
        Self { code, what: chain(&error), next }
    }
}

fn next_step(error: &BrokerError) -> Option<String> {
    let next = match error {
        BrokerError::Unreachable { .. } | BrokerError::Deadline(_) => {
            "check host, port and scheme of the broker's URL, and that the broker runs"
        }
        BrokerError::AccessRefused { .. } => "check user, password and virtual host in the broker's URL",
        BrokerError::QueueMissing { queue } => return Some(format!("mayfly-publisher declare {queue}")),
        BrokerError::Forbidden { .. } => {
            "let an administrator grant it: rabbitmqctl set_permissions -p VHOST USER CONFIGURE WRITE READ"
        }
        BrokerError::Conflict { .. } => {
            "arguments of a queue cannot be changed: declare it as it is (--type, --retry), or empty and delete it first"
        }
        BrokerError::Blocked { .. } => "free memory or disk at the broker, then publish the rest",
        BrokerError::Nacked { .. } => "let workers drain it or raise its length limit, then publish the rest",
        BrokerError::Refused { .. } => {
            "the broker's limits decide (max_message_size); publish smaller messages"
        }
        // The text says it already, or there is none.
        BrokerError::Tls { .. }
        | BrokerError::NotAmqp { .. }
        | BrokerError::TooFewChannels { .. }
        | BrokerError::Lost { .. }
        | BrokerError::Unroutable { .. }
        | BrokerError::NameTooLong { .. }
        | BrokerError::HeadersTooLarge { .. } => {
            return None;
        }
    };
    Some(next.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_thing_the_cause_and_the_next_step() {
        let missing = Failure::from(BrokerError::QueueMissing { queue: "jobs".to_owned() });
        insta::assert_snapshot!(missing, @r#"
        error: queue "jobs" does not exist
        next: mayfly-publisher declare jobs
        "#);
        assert_eq!(missing.code, ExitCode::Config);
        let file = std::io::Error::from(std::io::ErrorKind::NotFound);
        let file = BadUrl::File { path: "/run/secret".into(), source: file };
        insta::assert_snapshot!(Failure::from(file), @r#"error: broker url file "/run/secret" cannot be read: entity not found"#);
    }
}
