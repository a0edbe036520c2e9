//! Whether a queue dead-letters what the broker gives up, which AMQP tells only by refusing to declare it anew.

use lapin::{
    ErrorKind,
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};
use mayfly_service::deadline;

use crate::{CALL_LIMIT, Channel, Error, Result, message::short};

/// What is known about it from the queue's own arguments; a policy can dead-letter, too, and shows nowhere here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadLetters {
    /// The queue was declared without.
    None,
    /// The queue was declared with it.
    Some,
    /// The broker told something else first: a missing permission, another argument, a queue that is gone.
    Unknown,
}

/// No queue can have this length. So where the queue is gone meanwhile the declare is refused and makes none.
const NO_LENGTH: i64 = -1;

impl Channel {
    /// Asks about an existing queue. The broker closes the channel over it, so give one that is of no other
    /// use, and notes that as an error in its log.
    ///
    /// # Errors
    /// `Lost` or `Deadline`.
    pub async fn dead_letters(self, queue: &str) -> Result<DeadLetters> {
        let name = short(queue).ok_or(Error::NameTooLong { length: queue.len() })?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(NO_LENGTH));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let call = self.raw().queue_declare(name, options, arguments);
        match deadline("ask for dead-lettering", CALL_LIMIT, call).await? {
            Ok(_) => Ok(DeadLetters::Unknown),
            Err(error) => match error.kind() {
                ErrorKind::ProtocolError(refusal) => {
                    Ok(DeadLetters::told(&refusal.get_message().to_string()))
                }
                _ => Err(Error::lost("ask for dead-lettering", error)),
            },
        }
    }
}

impl DeadLetters {
    /// The broker compares the arguments one by one, this one before all but expiry and time to live, and names
    /// the first that differs.
    fn told(refusal: &str) -> Self {
        let differs = |argument: &str| refusal.contains(&format!("inequivalent arg '{argument}'"));
        if differs("x-dead-letter-exchange") {
            if refusal.contains("current is none") { Self::None } else { Self::Some }
        } else if differs("x-dead-letter-routing-key") || differs("x-max-length") {
            Self::Some
        } else {
            Self::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_argument_that_differs_tells() {
        let refusal = |argument: &str, current: &str| {
            DeadLetters::told(&format!(
                "PRECONDITION_FAILED - inequivalent arg '{argument}' for queue 'q' in vhost '/': received none but \
                 current is {current}"
            ))
        };
        assert_eq!(refusal("x-dead-letter-exchange", "none"), DeadLetters::None);
        assert_eq!(refusal("x-dead-letter-exchange", "the value 'x' of type 'longstr'"), DeadLetters::Some);
        assert_eq!(refusal("x-max-length", "none"), DeadLetters::Some);
        assert_eq!(refusal("x-message-ttl", "the value '5' of type 'signedint'"), DeadLetters::Unknown);
        assert_eq!(DeadLetters::told("ACCESS_REFUSED - configure access"), DeadLetters::Unknown);
    }
}
