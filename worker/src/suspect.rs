//! Which messages are handled alone: pure.
//!
//! The broker marks everything that was in flight when a worker died, so the mark says little about one
//! message. Marked ones go to the suspect queue, and from there each is handled with nothing else in work: when
//! it comes back from *there*, it was alone when its worker died.

use mayfly_broker::Message;

/// Which queue is consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    /// The queue itself.
    Queue,
    /// Its suspect queue, one message at a time.
    Suspects,
}

/// What is to be done with a delivery before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Its handler may begin.
    Work,
    /// Into the suspect queue, so many deaths counted.
    Suspect { deaths: u32 },
    /// It has brought down too many workers.
    Isolate { deaths: u32 },
}

/// So many workers died while the message alone was in work.
pub(crate) const DEATHS_LIMIT: u32 = 3;

/// Decides by how `message` came. `has_suspects`: there is a suspect queue.
pub(crate) fn entry(message: &Message, course: Course, has_suspects: bool) -> Entry {
    match course {
        Course::Queue if has_suspects && message.came_back() => Entry::Suspect { deaths: message.deaths() },
        Course::Suspects if message.came_back() => died(message),
        Course::Queue | Course::Suspects => Entry::Work,
    }
}

/// One death more.
pub(crate) fn died(message: &Message) -> Entry {
    let deaths = message.deaths().saturating_add(1);
    if deaths >= DEATHS_LIMIT { Entry::Isolate { deaths } } else { Entry::Suspect { deaths } }
}

#[cfg(test)]
mod tests {
    use lapin::{
        BasicProperties,
        message::Delivery,
        types::{AMQPValue, FieldTable},
    };
    use mayfly_broker::header;

    use super::*;

    fn message(redelivered: bool, deaths: u32) -> Message {
        let mut headers = FieldTable::default();
        headers.insert(header::DEATHS.into(), AMQPValue::LongUInt(deaths));
        let mut delivery = Delivery::mock(1, "".into(), "q".into(), redelivered, Vec::new());
        delivery.properties = BasicProperties::default().with_headers(headers);
        Message::from(delivery)
    }

    #[test]
    fn what_comes_back_is_set_aside_and_accused_only_when_it_was_alone() {
        assert_eq!(entry(&message(false, 0), Course::Queue, true), Entry::Work);
        assert_eq!(entry(&message(true, 0), Course::Queue, true), Entry::Suspect { deaths: 0 });
        assert_eq!(entry(&message(false, 0), Course::Suspects, true), Entry::Work);
        assert_eq!(entry(&message(true, 0), Course::Suspects, true), Entry::Suspect { deaths: 1 });
        assert_eq!(entry(&message(true, 1), Course::Suspects, true), Entry::Suspect { deaths: 2 });
        assert_eq!(entry(&message(true, 2), Course::Suspects, true), Entry::Isolate { deaths: 3 });
        assert_eq!(
            entry(&message(true, u32::MAX), Course::Suspects, true),
            Entry::Isolate { deaths: u32::MAX }
        );
    }

    #[test]
    fn a_message_with_a_story_is_still_worked_on() {
        assert_eq!(entry(&message(false, 2), Course::Queue, true), Entry::Work);
        assert_eq!(entry(&message(false, 2), Course::Suspects, true), Entry::Work);
    }

    #[test]
    fn without_a_suspect_queue_nothing_is_set_aside() {
        assert_eq!(entry(&message(true, 0), Course::Queue, false), Entry::Work);
    }
}
