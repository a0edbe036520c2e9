//! What the scaler sees of the broker.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use mayfly_tests::{Bed, Kind, Release, bed::rounds, eventually, fleet::Scaler, on_each_release};
use serde_json::{Value, json};

use super::{LONG, SOON, ends, fleet};

/// A broker that hangs costs some seconds, again and again.
pub(super) const LATE: Duration = Duration::from_secs(60);

/// Estimates are written once a minute.
const KEPT: Duration = Duration::from_secs(100);

on_each_release!(
    a_pool_whose_only_messages_wait_as_suspects_gets_a_worker,
    queues_that_are_missing_or_forbidden_hide_no_other_among_many,
    a_queue_that_does_not_answer_hides_no_other,
    the_age_is_told_from_what_the_broker_counts,
    how_long_work_takes_is_told_before_the_first_worker_has_ended,
);

/// What is known of a queue: `present`, `missing`, or why it is unknown.
fn known_of(status: &Value, queue: &str) -> Option<String> {
    let facts = &status["queues"][queue]["facts"];
    if let Some(why) = facts["unknown"]["why"].as_str() {
        return Some(why.to_owned());
    }
    match &facts["known"]["value"] {
        Value::String(word) => Some(word.clone()),
        Value::Object(object) => object.keys().next().cloned(),
        _ => None,
    }
}

/// Waits until of all `queues` this is known.
pub(super) async fn all_are(
    scaler: &Scaler,
    queues: &[String],
    what: &str,
    limit: Duration,
) -> Result<Value> {
    eventually(&format!("all are {what}"), limit, async || {
        let status = scaler.status().await?;
        for queue in queues {
            let known = known_of(&status, queue);
            ensure!(known.as_deref() == Some(what), "{queue}: {}", status["queues"][queue]["facts"]);
        }
        Ok(Some(status))
    })
    .await
}

async fn a_pool_whose_only_messages_wait_as_suspects_gets_a_worker(bed: &Bed) -> Result<()> {
    let declare = bed.program("mayfly-publisher")?.args(["declare", &bed.queue]);
    declare.run("declare", SOON).await?.exits_with(0, SOON).await?;
    let fleet = fleet(bed, "fleet", LONG, &json!({}))?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    scaler.decides("Empty", SOON).await?;
    let client = bed.client().await?;
    client.publish(&format!("{}.suspect", bed.queue), 1).await?;
    fleet.workers_when("a worker is launched", SOON, |workers| !workers.is_empty()).await?;
    // It may have been launched for what it says only: the queue itself stays empty.
    ensure!(client.depth(&bed.queue).await?.ready == 0);
    let reason = fleet.workers()?.first().map(|worker| worker.reason.clone());
    ensure!(reason.as_deref() == Some("1 messages wait, more than 0"), "{reason:?}");
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn queues_that_are_missing_or_forbidden_hide_no_other_among_many(bed: &Bed) -> Result<()> {
    let node = bed.own_node().await?;
    let client = node.broker().client().await?;
    let there: Vec<_> = (0..rounds(2000)).map(|n| format!("there-{n}")).collect();
    let missing: Vec<_> = (0..rounds(100)).map(|n| format!("there-{n}-missing")).collect();
    let forbidden: Vec<_> = (0..rounds(100)).map(|n| format!("there-{n}-of-another")).collect();
    for queue in &there {
        client.declare(queue, Kind::Classic).await?;
    }
    for queue in &forbidden {
        // It belongs to this connection alone.
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        client.channel().queue_declare(queue.as_str().into(), options, FieldTable::default()).await?;
    }
    let all: Vec<_> = [&there, &missing, &forbidden].into_iter().flatten().collect();
    let queues: Vec<_> = all.iter().map(|name| json!({ "name": name })).collect();
    let changes = json!({ "queues": queues, "target_queue_size": 1000, "max_workers": 1 });
    let mut fleet = fleet(bed, "fleet", LONG, &changes)?;
    // The broker refuses a seventeenth channel. Each queue that is missing uses up a channel's number, and each
    // has a queue for suspects that is missing too: with so few numbers two thousand would take minutes.
    let most = if there.len() > 1000 { 128 } else { 16 };
    fleet.url = format!("{}?channel_max={most}", node.broker().url());
    let mut scaler = fleet.scaler("scaler", &[])?;
    all_are(&scaler, &there, "present", LATE).await?;
    all_are(&scaler, &missing, "missing", LATE).await?;
    all_are(&scaler, &forbidden, "forbidden", LATE).await?;

    // Some go and one of the missing ones comes while the rest is looked at.
    let gone: Vec<_> = there.iter().step_by(7).cloned().collect();
    for queue in &gone {
        client.delete(queue).await?;
    }
    all_are(&scaler, &gone, "missing", LATE).await?;
    let rest: Vec<_> = there.iter().filter(|queue| !gone.contains(queue)).cloned().collect();
    all_are(&scaler, &rest, "present", LATE).await?;
    let last = rest.last().context("one is left")?;
    client.publish(last, 3).await?;
    for queue in gone.iter().chain(&missing) {
        client.declare(queue, Kind::Classic).await?;
    }
    let status = all_are(&scaler, &[gone, missing].concat(), "present", LATE).await?;
    ensure!(status["queues"][last]["facts"]["known"]["value"]["present"]["ready"] == 3, "{last}");
    ensure!(fleet.workers()?.is_empty(), "what is missing is no reason to launch");
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_queue_that_does_not_answer_hides_no_other(bed: &Bed) -> Result<()> {
    let node = bed.own_node().await?;
    let client = node.broker().client().await?;
    let queues = ["a", "hangs", "z"].map(str::to_owned);
    for queue in &queues {
        client.declare(queue, Kind::Classic).await?;
    }
    let listed: Vec<_> = queues.iter().map(|name| json!({ "name": name })).collect();
    let mut fleet = fleet(bed, "fleet", LONG, &json!({ "queues": listed }))?;
    fleet.url = node.broker().url();
    let mut scaler = fleet.scaler("scaler", &[])?;
    all_are(&scaler, &queues, "present", LATE).await?;
    let tell = async |what: &str| {
        let found = r#"{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"hangs">>))"#;
        node.broker().ctl(&["eval", &format!("{found}, sys:{what}(amqqueue:get_pid(Q)).")]).await
    };
    tell("suspend").await?;
    all_are(&scaler, &["hangs".to_owned()], "unreachable", LATE).await?;
    all_are(&scaler, &["a".to_owned(), "z".to_owned()], "present", LATE).await?;
    // What comes into the others is seen all the same.
    client.publish("z", 1).await?;
    fleet.workers_when("a worker is launched", LATE, |workers| !workers.is_empty()).await?;
    tell("resume").await?;
    all_are(&scaler, &queues, "present", LATE).await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

/// An older broker does not count what is published there: the status page says so, and ages are told from looks.
async fn the_age_is_told_from_what_the_broker_counts(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let prometheus = format!("http://127.0.0.1:{}", bed.broker.ports.prometheus);
    let fleet =
        fleet(bed, "fleet", LONG, &json!({ "max_workers": 0, "counters": { "prometheus": prometheus } }))?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    let counts = bed.release == Release::Trixie;
    eventually("the counters are read, or refused", SOON, async || {
        let status = scaler.status().await?;
        let counters = &status["queues"][&bed.queue]["counters"];
        let detail = counters["unknown"]["detail"].as_str();
        let refused = detail.is_some_and(|detail| detail.contains("does not count what is published"));
        ensure!(if counts { counters["known"].is_object() } else { refused }, "{counters}");
        Ok(Some(()))
    })
    .await?;
    client.publish(&bed.queue, 1).await?;
    let source = if counts { "counters" } else { "looks" };
    eventually("an age is told", SOON, async || {
        let status = scaler.status().await?;
        let age = &status["queues"][&bed.queue]["age"];
        ensure!(age["source"] == source, "{status}");
        Ok(Some(()))
    })
    .await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Where the broker counts without delay; else arrivals are counted, and the time is left to reports.
async fn how_long_work_takes_is_told_before_the_first_worker_has_ended(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let ports = bed.broker.ports;
    let live = bed.release == Release::Trixie;
    let (plugin, port) =
        if live { ("prometheus", ports.prometheus) } else { ("management", ports.management) };
    let counters = json!({ plugin: format!("http://127.0.0.1:{port}") });
    let changes = json!({ "max_workers": 1, "launch_interval": "0s", "counters": counters });
    let fleet = fleet(bed, "fleet", "100ms", &changes)?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    scaler.decides("Empty", SOON).await?;
    client.publish(&bed.queue, 1500).await?;
    let source = if live { "the broker's counters" } else { "reports of ended workers" };
    eventually("it is told from counters", SOON, async || {
        let status = scaler.status().await?;
        let inputs = status["inputs"].as_array().context("no inputs")?;
        let input = |what: &str| inputs.iter().find(|input| input["what"] == what).context("it is not told");
        let (arrivals, service) = (input("arrivals")?, input("service time")?);
        ensure!(arrivals["source"] == "the broker's counters", "{arrivals}");
        ensure!(arrivals["value"].as_f64().is_some_and(|rate| rate > 0.5), "{arrivals}");
        ensure!(service["source"] == source, "{service}");
        // A sleep takes no less, and much else may run here.
        ensure!(!live || service["value"].as_f64().is_some_and(|it| (0.09..1.0).contains(&it)), "{service}");
        Ok(Some(()))
    })
    .await?;
    ensure!(client.depth(&bed.queue).await?.ready > 0, "the worker may have ended");
    if live {
        // What is known goes into the record once a minute; from there the next process has it.
        let kept = eventually("it is kept", KEPT, async || {
            Ok(fleet.state()?["estimates"]["counted_service_time"]["mean_ms"].as_f64())
        })
        .await?;
        scaler.process.kill().await?;
        scaler = fleet.scaler("next", &[])?;
        let told = eventually("it is told by the next one", SOON, async || {
            let status = scaler.status().await?;
            let inputs = status["inputs"].as_array().context("no inputs")?;
            let service = inputs.iter().find(|input| input["what"] == "service time").context("not told")?;
            Ok(service["value"].as_f64().map(|value| (value, service["source"].clone())))
        })
        .await?;
        // It goes on counting.
        let differs = (told.0 * 1000.0 / kept - 1.0).abs();
        ensure!(told.1 == source && differs < 0.5, "{kept} ms was kept, {told:?} is told");
    }
    ends(&mut scaler.process).await?;
    client.close().await
}
