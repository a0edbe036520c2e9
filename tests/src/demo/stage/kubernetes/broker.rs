//! The broker that `bin/cluster broker` runs, asked by its own tool: it tells what AMQP does not.

use anyhow::{Context, Result};
use mayfly_tests::node::{ConnectionReport, QueueReport};
use serde::de::DeserializeOwned;

use super::script::Scripts;
use crate::stage::Remains;

/// Where it runs, for `bin/cluster kubectl`.
const PLACE: [&str; 6] = ["kubectl", "--namespace", "rabbitmq", "exec", "deployment/rabbitmq", "--"];
/// The tool itself: what is on the path in its image wants to be root.
const TOOL: [&str; 4] =
    ["sh", "-c", "exec /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmqctl \"$@\"", "rabbitmqctl"];

/// What is left in `cluster`'s broker of the queue `name` with its companions, and of connections whose names
/// hold `name`.
pub(super) async fn remains(scripts: &Scripts, cluster: &str, name: &str) -> Result<Remains> {
    let columns = ["name", "messages_ready", "messages_unacknowledged", "consumers"];
    let queues: Vec<QueueReport> = list(scripts, cluster, "list_queues", &columns).await?;
    let columns = ["client_properties", "user", "state"];
    let connections: Vec<ConnectionReport> = list(scripts, cluster, "list_connections", &columns).await?;
    Ok(judge(name, &queues, &connections))
}

async fn list<T: DeserializeOwned>(
    scripts: &Scripts,
    cluster: &str,
    command: &str,
    columns: &[&str],
) -> Result<Vec<T>> {
    let question = ["--quiet", "--formatter", "json", command];
    let words = [&["--name", cluster], &PLACE[..], &TOOL, &question, columns].concat();
    let printed = scripts.output("cluster", &words).await?;
    serde_json::from_str(&printed).with_context(|| format!("{command} said {printed:?}"))
}

fn judge(name: &str, queues: &[QueueReport], connections: &[ConnectionReport]) -> Remains {
    let is_ours = |queue: &&QueueReport| {
        queue.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let ours: Vec<_> = queues.iter().filter(is_ours).collect();
    Remains {
        queues: ours.len(),
        ready: ours.iter().map(|queue| queue.ready).sum(),
        consumers: ours.iter().map(|queue| queue.consumers).sum(),
        unacked: Some(ours.iter().map(|queue| queue.unacked).sum()),
        // The names of all of ours hold the instance's.
        connections: Some(connections.iter().filter(|connection| connection.name.contains(name)).count()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_ours_counts() {
        let queue = |name: &str, unacked: u64| json!({ "name": name, "messages_ready": 1, "messages_unacknowledged": unacked, "consumers": 0 });
        let queues = json!([queue("d", 1), queue("d.dead", 0), queue("dd", 5), queue("other.d", 7)]);
        let connection = |name: &str| json!({ "client_properties": [["connection_name", "longstr", name]], "user": "u", "state": "running" });
        let connections =
            json!([connection("mayfly-worker d-demo-1"), connection("mayfly-scaler d"), connection("x")]);
        let queues: Vec<_> = serde_json::from_value(queues).unwrap();
        let connections: Vec<_> = serde_json::from_value(connections).unwrap();
        let expected = Remains { queues: 2, ready: 2, consumers: 0, unacked: Some(1), connections: Some(2) };
        assert_eq!(judge("d", &queues, &connections), expected);
    }
}
