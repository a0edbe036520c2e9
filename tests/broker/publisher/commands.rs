//! What the commands do when nothing is wrong, and what they say of queues that are not as they should be.

use anyhow::{Context, Result, ensure};
use lapin::{
    options::BasicGetOptions,
    types::{AMQPValue, FieldTable},
};
use mayfly_tests::{Bed, Kind, Process, on_each_release};
use serde_json::{Value, json};

use super::{LIMIT, exit};

on_each_release!(
    a_message_carries_what_the_contract_promises,
    a_topology_that_exists_can_be_declared_again,
    a_queue_with_other_arguments_is_named_and_nothing_is_created,
    inspect_tells_what_waits_and_what_is_missing,
    delete_spares_what_is_in_use_and_leaves_nothing_of_the_rest,
);

/// Runs one command to its end.
pub(super) async fn run(bed: &Bed, url: &str, arguments: &[&str], code: i32) -> Result<Process> {
    let program = bed.program("mayfly-publisher")?.env("MAYFLY_BROKER_URL", url).args(arguments);
    let mut process = program.spawn(&format!("publisher-{}", uuid::Uuid::now_v7().simple()))?;
    process.exits_with(code, LIMIT).await?;
    Ok(process)
}

async fn a_message_carries_what_the_contract_promises(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let before = now_ms()?;
    let command = ["publish", &bed.queue, "a body", "--header", "tenant=a"];
    run(bed, &bed.broker.url(), &command, exit::OK).await?;
    let get = client.channel().basic_get(bed.queue.as_str().into(), BasicGetOptions { no_ack: true });
    let message = get.await?.context("a message")?;
    let properties = &message.properties;
    let id = properties.message_id().as_ref().context("an id")?;
    ensure!(uuid::Uuid::parse_str(id.as_str())?.get_version_num() == 7, "{id}");
    ensure!(properties.delivery_mode() == &Some(2), "{properties:?}");
    ensure!(properties.content_type().as_ref().is_some_and(|kind| kind.as_str() == "text/plain"));
    let headers = properties.headers().as_ref().context("headers")?.inner();
    ensure!(headers.get("tenant") == Some(&AMQPValue::LongString("a".into())), "{headers:?}");
    let Some(AMQPValue::LongLongInt(stamp)) = headers.get("timestamp_in_ms") else {
        anyhow::bail!("no time stamp in milliseconds: {headers:?}")
    };
    let stamp = u64::try_from(*stamp)?;
    ensure!((before..=now_ms()?).contains(&stamp), "{stamp}");
    ensure!(properties.timestamp() == &Some(stamp / 1000), "{properties:?}");
    ensure!(message.data == b"a body");
    Ok(())
}

async fn a_topology_that_exists_can_be_declared_again(bed: &Bed) -> Result<()> {
    let declare = ["declare", &bed.queue, "--output", "json"];
    let suffixes = ["", ".dead", ".retry.10m", ".retry.2m", ".retry.30s", ".retry.5s", ".suspect"];
    for state in ["created", "existed"] {
        let rows = json_of(&run(bed, &bed.broker.url(), &declare, exit::OK).await?)?;
        let mut names = Vec::new();
        for row in rows.as_array().context("rows")? {
            ensure!(row["state"] == state, "{row}");
            names.push(row["queue"].as_str().context("a name")?.to_owned());
        }
        names.sort();
        ensure!(names == suffixes.map(|suffix| format!("{}{suffix}", bed.queue)), "{names:?}");
    }
    let there = bed.broker.queues().await?;
    for suffix in suffixes {
        ensure!(there.iter().any(|queue| queue.name == format!("{}{suffix}", bed.queue)), "{suffix}");
    }
    Ok(())
}

async fn a_queue_with_other_arguments_is_named_and_nothing_is_created(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let companion = format!("{}.retry.2m", bed.queue);
    for (queue, kind) in [(&companion, Kind::Quorum), (&bed.queue, Kind::Classic)] {
        client.declare_with(queue, kind, FieldTable::default()).await?;
        let process = run(bed, &bed.broker.url(), &["declare", &bed.queue], exit::CONFIG).await?;
        let log = process.log()?;
        ensure!(log.contains(&format!("queue {queue:?} exists with other properties")), "{log}");
        ensure!(log.contains("inequivalent arg 'x-") && log.contains("next: "), "{log}");
        let mine = bed.broker.queues().await?.into_iter().map(|it| it.name);
        let mine: Vec<_> = mine.filter(|name| name.starts_with(&bed.queue)).collect();
        ensure!(mine == [queue.as_str()], "{mine:?}");
        client.delete(queue).await?;
    }
    Ok(())
}

async fn delete_spares_what_is_in_use_and_leaves_nothing_of_the_rest(bed: &Bed) -> Result<()> {
    let url = bed.broker.url();
    let left = async || -> Result<usize> {
        let queues = bed.broker.queues().await?;
        Ok(queues.iter().filter(|queue| queue.name.starts_with(&bed.queue)).count())
    };
    run(bed, &url, &["declare", &bed.queue], exit::OK).await?;
    run(bed, &url, &["publish", &bed.queue, "a body"], exit::OK).await?;
    let refused = run(bed, &url, &["delete", &bed.queue], exit::CONFIG).await?.log()?;
    ensure!(refused.contains(&format!("{} (1 ready, 0 consumers)", bed.queue)), "{refused}");
    ensure!(left().await? == 7, "a refusal deletes nothing");
    run(bed, &url, &["delete", &bed.queue, "--with-messages"], exit::OK).await?;
    ensure!(left().await? == 0, "all of the topology goes");
    // What is gone is no error.
    let again = run(bed, &url, &["delete", &bed.queue], exit::OK).await?.stdout()?;
    ensure!(again.lines().count() == 7 && again.lines().all(|line| line.starts_with("missing")), "{again}");
    Ok(())
}

async fn inspect_tells_what_waits_and_what_is_missing(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 3).await?;
    let missing = bed.queue_name("test-missing");
    let url = bed.broker.url();

    let process = run(bed, &url, &["inspect", &bed.queue, "--output", "json"], exit::OK).await?;
    let present = json!({ "queue": bed.queue, "state": "present", "ready": 3, "consumers": 0 });
    ensure!(json_of(&process)? == json!([present]), "{}", process.stdout()?);

    // A missing one does not hide what comes after it.
    let command = ["inspect", &missing, &bed.queue, "--output", "json"];
    let process = run(bed, &url, &command, exit::CONFIG).await?;
    let absent = json!({ "queue": missing, "state": "missing" });
    ensure!(json_of(&process)? == json!([absent, present]), "{}", process.stdout()?);
    let log = process.log()?;
    ensure!(log.contains(&format!("next: mayfly-publisher declare {missing}")), "{log}");

    let text = run(bed, &url, &["inspect", &missing, &bed.queue], exit::CONFIG).await?.stdout()?;
    let rows: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(
        rows[1..] == [vec![&missing, "-", "-", "missing"], vec![&bed.queue, "3", "0", "present"]],
        "{text}"
    );
    Ok(())
}

fn json_of(process: &Process) -> Result<Value> {
    let text = process.stdout()?;
    serde_json::from_str(&text).with_context(|| format!("{text:?}"))
}

fn now_ms() -> Result<u64> {
    Ok(u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis())?)
}
