//! The harness itself: what the other tests rely on.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use mayfly_tests::{
    Bed, Broker, Client, Fault, Kind, Release, Way, ids, on_each_release, process::Program, until,
};

const LIMIT: Duration = Duration::from_secs(30);

on_each_release!(
    a_node_answers_and_counts_what_waits_and_what_is_in_flight,
    a_message_survives_a_stop_and_a_kill_of_the_node,
    a_memory_alarm_blocks_publishers_until_it_ends,
    a_client_notices_a_cut_and_gets_through_again_afterwards,
    a_refused_connection_is_refused_and_not_reset,
    a_cut_after_some_bytes_comes_after_exactly_those,
    a_hanging_network_keeps_the_connection_and_delivers_later,
    a_delay_delays,
);

async fn a_node_answers_and_counts_what_waits_and_what_is_in_flight(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    for (kind, queue) in [(Kind::Classic, bed.queue.clone()), (Kind::Quorum, bed.queue_name("test-quorum"))] {
        client.declare(&queue, kind).await?;
        let published = client.publish(&queue, 20).await?;
        ensure!(client.depth(&queue).await?.ready == 20);

        let holder = bed.client().await?;
        let get =
            holder.channel().basic_get(queue.as_str().into(), lapin::options::BasicGetOptions::default());
        get.await?.context("a message")?;
        // A quorum queue counts a moment later.
        until("19 ready, 1 unacked", LIMIT, async || {
            let report = bed.broker.queue(&queue).await?.context("the queue")?;
            ensure!((report.ready, report.unacked) == (19, 1), "{report:?}");
            Ok(true)
        })
        .await?;
        let names: Vec<_> = bed.broker.connections().await?.into_iter().map(|it| it.name).collect();
        ensure!(names.iter().filter(|name| *name == "mayfly-tests").count() >= 2, "{names:?}");
        holder.close().await?;

        client.until_ready(&queue, 20, LIMIT).await?;
        ids::assert_same("published", &published, "taken", &client.take_all(&queue, 20, LIMIT).await?)?;
    }
    client.close().await
}

async fn a_message_survives_a_stop_and_a_kill_of_the_node(bed: &Bed) -> Result<()> {
    let mut node = bed.own_node().await?;
    let queues = [(Kind::Classic, "classic"), (Kind::Quorum, "quorum")];
    let client = node.broker().client().await?;
    let mut published = Vec::new();
    for (kind, queue) in queues {
        client.declare(queue, kind).await?;
        published.push(client.publish(queue, 5).await?);
    }
    node.stop().await?;
    ensure!(node.broker().client().await.is_err(), "a stopped node answers");
    node.start_again().await?;
    let client = node.broker().client().await?;
    for (_, queue) in queues {
        client.until_ready(queue, 5, LIMIT).await?;
    }
    node.kill().await?;
    ensure!(client.depth("classic").await.is_err(), "a killed node answers");
    node.start_again().await?;
    let client = node.broker().client().await?;
    for ((_, queue), published) in queues.into_iter().zip(published) {
        client.until_ready(queue, 5, LIMIT).await?;
        ids::assert_same("published", &published, "taken", &client.take_all(queue, 5, LIMIT).await?)?;
    }
    let directory = node.broker().directory.clone();
    ensure!(directory.exists());
    drop(node);
    ensure!(!directory.exists(), "the node's data are still there");
    Ok(())
}

async fn a_memory_alarm_blocks_publishers_until_it_ends(bed: &Bed) -> Result<()> {
    let node = bed.own_node().await?;
    let client = node.broker().client().await?;
    client.declare("q", Kind::Classic).await?;
    node.broker().memory_alarm(true).await?;
    let blocked = node.broker().client().await?;
    // The broker blocks a connection when it publishes, so the first message still comes through.
    blocked.publish_one("q", "first", b"").await?;
    let published = blocked.publish("q", 10);
    tokio::pin!(published);
    let is_blocked = until("the broker blocks the publisher", LIMIT, async || {
        Ok(node.broker().connections().await?.iter().any(|it| it.state == "blocked"))
    });
    tokio::select! {
        outcome = &mut published => bail!("published in spite of the alarm: {outcome:?}"),
        outcome = is_blocked => outcome?,
    }
    node.broker().memory_alarm(false).await?;
    published.await?;
    client.until_ready("q", 11, LIMIT).await
}

async fn a_client_notices_a_cut_and_gets_through_again_afterwards(bed: &Bed) -> Result<()> {
    let proxy = bed.proxy().await?;
    let client = Client::connect(&proxy.url()).await?;
    client.declare(&bed.queue, Kind::Classic).await?;
    proxy.set(Fault::Cut);
    ensure!(client.depth(&bed.queue).await.is_err(), "a cut connection answers");
    ensure!(Client::connect(&proxy.url()).await.is_err(), "a cut proxy lets somebody through");
    ensure!(proxy.accepted() == 2, "{} connections", proxy.accepted());
    proxy.set(Fault::None);
    let client = Client::connect(&proxy.url()).await?;
    ensure!(client.depth(&bed.queue).await?.ready == 0);
    Ok(())
}

async fn a_refused_connection_is_refused_and_not_reset(bed: &Bed) -> Result<()> {
    let proxy = bed.proxy().await?;
    let client = Client::connect(&proxy.url()).await?;
    proxy.set(Fault::Refuse);
    ensure!(client.depth(&bed.queue).await.is_err(), "a cut connection answers");
    let refused = async || Ok(tokio::net::TcpStream::connect(proxy.address()).await.is_err());
    until("nobody listens at the proxy's port", LIMIT, refused).await?;
    proxy.set(Fault::None);
    until("it listens again", LIMIT, async || Ok(Client::connect(&proxy.url()).await.is_ok())).await
}

async fn a_cut_after_some_bytes_comes_after_exactly_those(bed: &Bed) -> Result<()> {
    let proxy = bed.proxy().await?;
    let client = Client::connect(&proxy.url()).await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let before = proxy.bytes_to_broker();
    proxy.set(Fault::CutAfter(10_000));
    ensure!(client.publish(&bed.queue, 1000).await.is_err(), "1000 messages fit into 10 kB");
    ensure!(proxy.fault() == Fault::Cut);
    ensure!(proxy.bytes_to_broker() - before == 10_000, "{}", proxy.bytes_to_broker() - before);
    let arrived = bed.client().await?.depth(&bed.queue).await?.ready;
    ensure!((0..1000).contains(&arrived), "{arrived} messages arrived");
    Ok(())
}

async fn a_hanging_network_keeps_the_connection_and_delivers_later(bed: &Bed) -> Result<()> {
    let proxy = bed.proxy().await?;
    let direct = bed.client().await?;
    direct.declare(&bed.queue, Kind::Classic).await?;
    let client = Client::connect(&proxy.url()).await?;

    // The message arrives, its confirm does not.
    proxy.set(Fault::Hang(Way::ToClient));
    let published = client.publish_one(&bed.queue, "one", b"");
    tokio::pin!(published);
    tokio::select! {
        outcome = &mut published => bail!("confirmed through a hanging network: {outcome:?}"),
        arrived = direct.until_ready(&bed.queue, 1, LIMIT) => arrived?,
    }
    proxy.set(Fault::None);
    published.await?;

    // Not even the message arrives; the same connection delivers it later.
    proxy.set(Fault::Hang(Way::Both));
    let before = proxy.bytes_to_broker();
    let published = client.publish_one(&bed.queue, "two", b"");
    tokio::pin!(published);
    for _ in 0..20 {
        tokio::select! {
            outcome = &mut published => bail!("confirmed through a hanging network: {outcome:?}"),
            depth = direct.depth(&bed.queue) => ensure!(depth?.ready == 1),
        }
    }
    ensure!(proxy.bytes_to_broker() == before);
    proxy.set(Fault::None);
    published.await?;
    direct.until_ready(&bed.queue, 2, LIMIT).await
}

async fn a_delay_delays(bed: &Bed) -> Result<()> {
    let proxy = bed.proxy().await?;
    let client = Client::connect(&proxy.url()).await?;
    client.declare(&bed.queue, Kind::Classic).await?;
    let delay = Duration::from_millis(200);
    proxy.set(Fault::Delay(delay));
    let begun = tokio::time::Instant::now();
    client.depth(&bed.queue).await?;
    // A lower bound only: one way there, one way back.
    ensure!(begun.elapsed() >= 2 * delay, "{:?}", begun.elapsed());
    Ok(())
}

/// What of `brokers` is still there: processes that name their directories, mounts, ports that answer.
fn traces(brokers: &[Broker]) -> Result<BTreeSet<String>> {
    let mut traces = BTreeSet::new();
    for broker in brokers {
        let directory = broker.directory.to_string_lossy().into_owned();
        for process in fs::read_dir("/proc")? {
            let process = process?.path();
            let names = |file: &str| {
                // A process that is not ours, or gone meanwhile.
                let bytes = fs::read(process.join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).contains(&directory)
            };
            for file in ["cmdline", "environ", "mountinfo"] {
                if process.file_name().is_some_and(|name| name != "self") && names(file) {
                    traces.insert(format!("{}", process.join(file).display()));
                }
            }
        }
        let ports = broker.ports;
        for port in [ports.amqp, ports.dist, ports.epmd, ports.management, ports.prometheus] {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                traces.insert(format!("port {port}"));
            }
        }
        if broker.directory.exists() {
            traces.insert(directory);
        }
    }
    Ok(traces)
}

/// Starts a testbed of its own and ends it in the way `end` says.
async fn nothing_is_left_of_a_testbed_after(
    directory: &Path,
    end: impl AsyncFnOnce(&mut mayfly_tests::Process) -> Result<()>,
) -> Result<()> {
    let told = directory.join("brokers");
    let script = format!(
        r#"setsid sleep 4321 & printf %s "$MAYFLY_TEST_BROKERS" >'{0}.new'; mv '{0}.new' '{0}'; sleep 4321"#,
        told.display()
    );
    let mut program = Program::new(Path::new(env!("CARGO_BIN_EXE_testbed")), directory);
    if let Some(cache) = std::env::var_os("MAYFLY_CACHE") {
        program = program.env("MAYFLY_CACHE", cache);
    }
    let mut testbed = program.args(["run", "--", "sh", "-c", &script]).spawn("testbed")?;
    until("the testbed has told its brokers", Duration::from_mins(2), async || {
        if let Some(status) = testbed.ended()? {
            bail!("the testbed ended with {status}\n{}", testbed.log_tail());
        }
        Ok(told.exists())
    })
    .await?;
    let brokers: Vec<Broker> = serde_json::from_str(&fs::read_to_string(&told)?)?;
    ensure!(brokers.len() == Release::ALL.len());
    let before = traces(&brokers)?;
    ensure!(before.len() > brokers.len() * 7, "the look for traces is blind: {before:?}");
    end(&mut testbed).await?;
    let mut left = BTreeSet::new();
    let gone = until("nothing is left of the testbed", LIMIT, async || {
        left = traces(&brokers)?;
        Ok(left.is_empty())
    });
    gone.await.with_context(|| format!("left: {left:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_testbed_that_was_killed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    nothing_is_left_of_a_testbed_after(directory.path(), async |testbed| testbed.kill().await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_testbed_that_was_interrupted() -> Result<()> {
    let directory = tempfile::tempdir()?;
    nothing_is_left_of_a_testbed_after(directory.path(), async |testbed| {
        testbed.signal(mayfly_tests::Signal::INT)?;
        testbed.exits_with(130, LIMIT).await
    })
    .await
}
