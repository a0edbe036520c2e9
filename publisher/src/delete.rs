//! `delete`: the opposite of `declare`.

use mayfly_broker::{BrokerArgs, CALL_LIMIT, Connection, Depth, QueueKind, QueueState, Topology};
use mayfly_service::ExitCode;

use crate::{args::DeleteArgs, failure::Failure, output, url};

/// Deletes a queue with its companions. AMQP tells nothing of messages in flight, but who has one is, as a
/// rule, a consumer. A message that comes between the look and the deletion goes with its queue: quorum queues
/// cannot be deleted on condition that they are empty.
pub(crate) async fn delete(args: DeleteArgs, broker: &BrokerArgs) -> Result<(), Failure> {
    let DeleteArgs { queue, retry, with_messages } = args;
    let topology = Topology { queue, kind: QueueKind::default(), ladder: retry };
    // A queue goes before those that it dead-letters to.
    let specs = topology.queues().into_iter().rev();
    let connection = Connection::open(&url(broker)?, "mayfly-publisher", CALL_LIMIT).await?;
    let mut found = Vec::new();
    for spec in specs {
        // A missing queue closes the channel that asked for it.
        let state = connection.channel().await?.depth(&spec.name, CALL_LIMIT).await?;
        found.push((spec, state));
    }
    if !with_messages {
        refuse_used(found.iter().map(|(spec, state)| (spec.name.as_str(), *state)))?;
    }
    let mut told = Vec::new();
    for (spec, state) in &found {
        let what = if *state == QueueState::Missing { "missing" } else { "deleted" };
        spec.delete(&connection).await?;
        told.push(format!("{what:<13} {}\n", spec.name));
    }
    connection.close().await?;
    output::print(told.concat().as_bytes())
}

/// Nothing is deleted if anything is in use.
fn refuse_used<'a>(queues: impl Iterator<Item = (&'a str, QueueState)>) -> Result<(), Failure> {
    let used = |(queue, state)| match state {
        QueueState::Present(Depth { ready, consumers }) if ready + consumers > 0 => {
            Some(format!("{queue} ({ready} ready, {consumers} consumers)"))
        }
        _ => None,
    };
    let used: Vec<String> = queues.filter_map(used).collect();
    if used.is_empty() {
        return Ok(());
    }
    let what = format!("nothing was deleted: {}", used.join(", "));
    Err(Failure::new(ExitCode::Config, what)
        .with_next("let workers drain it and end, or delete the messages too: --with-messages"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(ready: u64, consumers: u64) -> QueueState {
        QueueState::Present(Depth { ready, consumers })
    }

    #[test]
    fn what_is_in_use_is_refused_by_name() {
        refuse_used([("q", present(0, 0)), ("q.dead", QueueState::Missing)].into_iter()).unwrap();
        let queues = [("q", present(0, 2)), ("q.suspect", present(0, 0)), ("q.dead", present(7, 0))];
        let refusal = refuse_used(queues.into_iter()).unwrap_err();
        assert_eq!(refusal.code, ExitCode::Config);
        insta::assert_snapshot!(refusal, @r"
        error: nothing was deleted: q (0 ready, 2 consumers), q.dead (7 ready, 0 consumers)
        next: let workers drain it and end, or delete the messages too: --with-messages
        ");
    }
}
