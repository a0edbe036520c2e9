//! `inspect`: what waits in queues.

use std::fmt;

use mayfly_broker::{BrokerArgs, CALL_LIMIT, Connection, Depth, Error, QueueState};
use mayfly_service::{ExitCode, chain};

use crate::{
    args::{InspectArgs, Output},
    failure::Failure,
    output, url,
};

/// What is known about a queue. Nothing unknown has a number.
#[derive(Debug)]
enum Seen {
    Present(Depth),
    Missing,
    Forbidden(String),
    NotReadable(String),
}

/// Reads the depth of each queue.
pub(crate) async fn inspect(args: InspectArgs, broker: &BrokerArgs) -> Result<(), Failure> {
    let InspectArgs { queues, output: format } = args;
    let connection = Connection::open(&url(broker)?, "mayfly-publisher", CALL_LIMIT).await?;
    let mut rows = Vec::with_capacity(queues.len());
    for queue in queues {
        let seen = Seen::from(look(&connection, &queue).await);
        rows.push((queue, seen));
    }
    if connection.is_alive() {
        // All answers are here; a failure to say goodbye changes none of them.
        let _ = connection.close().await;
    }
    let text = match format {
        Output::Text => as_text(&rows),
        Output::Json => as_json(&rows),
    };
    output::print(text.as_bytes())?;
    verdict(&rows)
}

/// A channel for each queue: a missing one closes it.
async fn look(connection: &Connection, queue: &str) -> mayfly_broker::Result<QueueState> {
    let channel = connection.channel().await?;
    channel.depth(queue, CALL_LIMIT).await
}

fn as_text(rows: &[(String, Seen)]) -> String {
    let mut lines = vec![["QUEUE", "READY", "CONSUMERS", "STATE"].map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|(queue, seen)| {
        let [ready, consumers] = match seen {
            Seen::Present(depth) => [depth.ready.to_string(), depth.consumers.to_string()],
            _ => ["-", "-"].map(str::to_owned),
        };
        vec![queue.clone(), ready, consumers, seen.to_string()]
    }));
    output::table(&lines)
}

fn as_json(rows: &[(String, Seen)]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|(queue, seen)| match seen {
            Seen::Present(Depth { ready, consumers }) => serde_json::json!({
                "queue": queue, "state": seen.as_str(), "ready": ready, "consumers": consumers,
            }),
            Seen::Missing => serde_json::json!({ "queue": queue, "state": seen.as_str() }),
            Seen::Forbidden(why) | Seen::NotReadable(why) => {
                serde_json::json!({ "queue": queue, "state": seen.as_str(), "error": why })
            }
        })
        .collect();
    format!("{}\n", serde_json::Value::Array(rows))
}

/// Success only if every queue was read.
fn verdict(rows: &[(String, Seen)]) -> Result<(), Failure> {
    let count = |wanted: &str| rows.iter().filter(|(_, seen)| seen.as_str() == wanted).count();
    let missing: Vec<&str> = rows
        .iter()
        .filter(|(_, seen)| matches!(seen, Seen::Missing))
        .map(|(queue, _)| queue.as_str())
        .collect();
    let total = rows.len();
    if let Some(first) = missing.first() {
        let what = format!("{} of {total} queues missing: {}", missing.len(), missing.join(", "));
        return Err(
            Failure::new(ExitCode::Config, what).with_next(format!("mayfly-publisher declare {first}"))
        );
    }
    match (count("forbidden"), count("not readable")) {
        (0, 0) => Ok(()),
        (0, lost) => {
            Err(Failure::new(ExitCode::Unavailable, format!("{lost} of {total} queues not readable")))
        }
        (refused, _) => {
            Err(Failure::new(ExitCode::Config, format!("no permission on {refused} of {total} queues")))
        }
    }
}

// === impl Seen ===

impl Seen {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Present(_) => "present",
            Self::Missing => "missing",
            Self::Forbidden(_) => "forbidden",
            Self::NotReadable(_) => "not readable",
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present(_) | Self::Missing => formatter.write_str(self.as_str()),
            Self::Forbidden(why) | Self::NotReadable(why) => write!(formatter, "{}: {why}", self.as_str()),
        }
    }
}

impl From<mayfly_broker::Result<QueueState>> for Seen {
    fn from(answer: mayfly_broker::Result<QueueState>) -> Self {
        match answer {
            Ok(QueueState::Present(depth)) => Self::Present(depth),
            Ok(QueueState::Missing) => Self::Missing,
            Err(error @ Error::Forbidden { .. }) => Self::Forbidden(chain(&error)),
            Err(error) => Self::NotReadable(chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<(String, Seen)> {
        [
            ("documents", Seen::Present(Depth { ready: 1200, consumers: 3 })),
            ("documents.dead", Seen::Present(Depth { ready: 0, consumers: 0 })),
            ("nope", Seen::Missing),
            ("secret", Seen::Forbidden("no permission on queue \"secret\"".to_owned())),
            ("late", Seen::NotReadable("read queue depth took longer than 10s".to_owned())),
        ]
        .map(|(queue, seen)| (queue.to_owned(), seen))
        .into()
    }

    #[test]
    fn what_cannot_be_read_is_never_a_number() {
        insta::assert_snapshot!(as_text(&rows()), @r#"
        QUEUE           READY  CONSUMERS  STATE
        documents        1200          3  present
        documents.dead      0          0  present
        nope                -          -  missing
        secret              -          -  forbidden: no permission on queue "secret"
        late                -          -  not readable: read queue depth took longer than 10s
        "#);
        insta::assert_snapshot!(as_json(&rows()), @r#"
        [{"consumers":3,"queue":"documents","ready":1200,"state":"present"},{"consumers":0,"queue":"documents.dead","ready":0,"state":"present"},{"queue":"nope","state":"missing"},{"error":"no permission on queue \"secret\"","queue":"secret","state":"forbidden"},{"error":"read queue depth took longer than 10s","queue":"late","state":"not readable"}]
        "#);
    }

    #[test]
    fn a_missing_or_forbidden_queue_is_a_refusal_and_a_lost_answer_is_unavailability() {
        let verdict_of =
            |range: std::ops::Range<usize>| verdict(&rows()[range]).map_err(|failure| failure.code);
        assert_eq!(verdict_of(0..2), Ok(()));
        assert_eq!(verdict_of(0..3), Err(ExitCode::Config));
        assert_eq!(verdict_of(3..4), Err(ExitCode::Config));
        assert_eq!(verdict_of(3..5), Err(ExitCode::Config));
        assert_eq!(verdict_of(4..5), Err(ExitCode::Unavailable));
        insta::assert_snapshot!(verdict(&rows()).unwrap_err(), @r"
        error: 1 of 5 queues missing: nope
        next: mayfly-publisher declare nope
        ");
    }
}
