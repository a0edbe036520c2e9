//! `declare`: the standard topology of a queue.

use mayfly_broker::{BrokerArgs, CALL_LIMIT, Connection, Declared, Header, QueueSpec, Topology};

use crate::{
    args::{DeclareArgs, Output},
    failure::Failure,
    output, url,
};

/// What became of one queue of the topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It would be declared.
    Planned,
    Known(Declared),
}

/// Declares the topology, or only shows it.
pub(crate) async fn declare(args: DeclareArgs, broker: &BrokerArgs) -> Result<(), Failure> {
    let DeclareArgs { queue, kind, mut retry, dry_run, output: format } = args;
    retry.sort_unstable();
    retry.dedup();
    let topology = Topology { queue, kind: kind.into(), ladder: retry };
    let rows = if dry_run {
        topology.queues().into_iter().map(|spec| (spec, State::Planned)).collect()
    } else {
        let connection = Connection::open(&url(broker)?, "mayfly-publisher", CALL_LIMIT).await?;
        let declared = topology.declare_each(&connection).await?;
        connection.close().await?;
        declared.into_iter().map(|(spec, declared)| (spec, State::Known(declared))).collect::<Vec<_>>()
    };
    let text = match format {
        Output::Text => as_text(&rows),
        Output::Json => as_json(&rows),
    };
    output::print(text.as_bytes())
}

/// A line for each queue; its arguments only where nothing was done yet.
fn as_text(rows: &[(QueueSpec, State)]) -> String {
    let mut lines = Vec::new();
    for (spec, state) in rows {
        lines.push(format!("{:<13} {}\n", state.as_str(), spec.name));
        if *state == State::Planned {
            let arguments = spec.describe().into_iter();
            lines.extend(
                arguments.map(|(name, value)| format!("{:16}{name} = {:?}\n", "", value.to_string())),
            );
        }
    }
    lines.concat()
}

fn as_json(rows: &[(QueueSpec, State)]) -> String {
    let value = |header: Header| match header {
        Header::Text(text) => serde_json::Value::from(text),
        Header::Number(number) => serde_json::Value::from(number),
    };
    let rows: Vec<_> = rows
        .iter()
        .map(|(spec, state)| {
            let arguments: serde_json::Map<_, _> =
                spec.describe().into_iter().map(|(name, header)| (name, value(header))).collect();
            serde_json::json!({ "queue": spec.name, "state": state.as_str(), "arguments": arguments })
        })
        .collect();
    format!("{}\n", serde_json::Value::Array(rows))
}

// === impl State ===

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "would declare",
            Self::Known(Declared::Created) => "created",
            Self::Known(Declared::Existed) => "existed",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mayfly_broker::QueueKind;

    use super::*;

    fn rows(state: State) -> Vec<(QueueSpec, State)> {
        let ladder = vec![Duration::from_secs(5)];
        let topology = Topology { queue: "q".to_owned(), kind: QueueKind::Classic, ladder };
        topology.queues().into_iter().map(|spec| (spec, state)).collect()
    }

    #[test]
    fn a_dry_run_shows_every_argument() {
        insta::assert_snapshot!(as_text(&rows(State::Planned)), @r#"
        would declare q.dead
                        x-queue-type = "quorum"
        would declare q.suspect
                        x-dead-letter-exchange = ""
                        x-dead-letter-routing-key = "q.dead"
                        x-dead-letter-strategy = "at-least-once"
                        x-overflow = "reject-publish"
                        x-queue-type = "quorum"
        would declare q
                        x-dead-letter-exchange = ""
                        x-dead-letter-routing-key = "q.dead"
                        x-queue-type = "classic"
        would declare q.retry.5s
                        x-dead-letter-exchange = ""
                        x-dead-letter-routing-key = "q"
                        x-dead-letter-strategy = "at-least-once"
                        x-message-ttl = "5000"
                        x-overflow = "reject-publish"
                        x-queue-type = "quorum"
        "#);
    }

    #[test]
    fn what_was_declared_is_one_line_a_queue() {
        insta::assert_snapshot!(as_text(&rows(State::Known(Declared::Created))), @r"
        created       q.dead
        created       q.suspect
        created       q
        created       q.retry.5s
        ");
        insta::assert_snapshot!(as_json(&rows(State::Known(Declared::Existed))[2..3]), @r#"
        [{"arguments":{"x-dead-letter-exchange":"","x-dead-letter-routing-key":"q.dead","x-queue-type":"classic"},"queue":"q","state":"existed"}]
        "#);
    }
}
