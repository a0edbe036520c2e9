//! What `check --connect` says of the sources that a broker offers.

use anyhow::{Result, ensure};
use mayfly_tests::{Bed, Kind, Release, on_each_release};
use serde_json::json;

use super::{LONG, fleet};

on_each_release!(check_says_which_release_it_is_and_what_to_switch_on_there);

async fn check_says_which_release_it_is_and_what_to_switch_on_there(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Classic).await?;
    let (version, advised, other) = match bed.release {
        Release::Packaged => ("broker: RabbitMQ 3.", "counters: { management:", "counters: { prometheus:"),
        Release::Trixie => ("broker: RabbitMQ 4.", "counters: { prometheus:", "counters: { management:"),
    };
    let without = fleet(bed, "without", LONG, &json!({}))?;
    let (text, code) = without.check("without", &["--connect"]).await?;
    ensure!(code == Some(0), "exit code {code:?}: {text}");
    for words in [version, "told from looks", advised] {
        ensure!(text.contains(words), "{words}: {text}");
    }
    ensure!(!text.contains(other), "advises what this release does not offer, or offers better: {text}");
    let url = format!("http://127.0.0.1:{}", bed.broker.ports.management);
    let with = fleet(bed, "with", LONG, &json!({ "counters": { "management": url } }))?;
    let (text, code) = with.check("with", &["--connect"]).await?;
    ensure!(code == Some(0), "exit code {code:?}: {text}");
    let better = match bed.release {
        Release::Packaged => "the best that this release offers",
        Release::Trixie => {
            "This release tells them to the second: rabbitmq-plugins enable rabbitmq_prometheus"
        }
    };
    ensure!(text.contains(better), "{better}: {text}");
    client.close().await
}
