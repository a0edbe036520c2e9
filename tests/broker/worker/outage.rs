//! The broker or the network goes away under working workers: they come back, and nothing is lost.

mod taken;

use std::{convert::Infallible, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use mayfly_service::report::ExitReason;
use mayfly_tests::{
    Bed, Fault, Kind, Signal, Way,
    fleet::get,
    ids::{self, Ids},
    node::free_port,
    on_each_release, until,
};

use super::{Crew, LIMIT, NOTE_BEGUN, NOTE_DONE, STUBBORN, WAIT_FOR_GO, Worker, declare, exit};

on_each_release!(
    a_broker_restarted_under_working_workers_loses_nothing,
    a_cut_connection_ends_its_handlers_before_the_next_one,
    a_network_that_hangs_ends_its_handlers_before_the_next_connection,
    a_broker_that_stays_away_is_given_up_and_its_messages_go_to_others,
    a_broker_that_blocks_publishers_holds_up_only_what_is_to_be_retried,
    a_full_disk_holds_up_what_is_to_be_retried_until_there_is_room,
    a_message_that_takes_longer_than_the_broker_waits_is_handled_alone_from_then_on,
    a_message_that_always_takes_longer_than_the_broker_waits_is_dead_lettered,
    connections_that_an_administrator_closes_are_made_anew,
    the_probe_says_not_ready_until_it_is_and_ready_from_then_on,
);

/// Messages per queue before each restart.
const LOAD: usize = 100;

async fn a_broker_restarted_under_working_workers_loses_nothing(bed: &Bed) -> Result<()> {
    let mut node = bed.own_node().await?;
    let crew = Crew::at(bed, node.broker().clone());
    let queues = [(Kind::Classic, "classic"), (Kind::Quorum, "quorum")];
    let client = node.broker().client().await?;
    for (kind, queue) in queues {
        declare(&client, queue, kind).await?;
    }
    client.close().await?;
    let admin = free_port()?;
    let mut workers = Vec::new();
    for (_, queue) in queues {
        let script = format!("{NOTE_BEGUN}; sleep 0.05; {NOTE_DONE}")
            .replace("/begun", &format!("/{queue}.begun"))
            .replace("/done", &format!("/{queue}.done"));
        for number in 0..2 {
            let mut options = vec!["--concurrency", "2", "--prefetch", "4"];
            options.extend(["--max-idle", "5m", "--reconnect-for", "2m"]);
            let listen = format!("127.0.0.1:{admin}");
            if workers.is_empty() {
                options.extend(["--admin-listen", &listen]);
            }
            let worker = crew.exec(&format!("{queue}-{number}"), queue, &options, &script)?;
            worker.is("ready").await?;
            workers.push(worker);
        }
    }
    let restarts = async {
        let mut published = [Ids::new(), Ids::new()];
        for hard in [false, true] {
            let client = node.broker().client().await?;
            let before = queues.map(|(_, queue)| crew.notes(&format!("{queue}.done")).map(|it| it.0.len()));
            for ((_, queue), ids) in queues.iter().zip(&mut published) {
                ids.extend(client.publish(queue, LOAD).await?);
            }
            for ((_, queue), before) in queues.iter().zip(before) {
                crew.noted(&format!("{queue}.done"), before? + 5).await?;
            }
            if hard {
                node.kill().await?;
            } else {
                node.stop().await?;
            }
            until("the handlers have ended", LIMIT, async || Ok(crew.running().len() == workers.len()))
                .await?;
            node.start_again().await?;
            for ((_, queue), ids) in queues.iter().zip(&published) {
                until(&format!("{queue} is done"), LIMIT, async || {
                    Ok(crew.notes(&format!("{queue}.done"))?.ids().is_superset(ids))
                })
                .await?;
            }
            until("every worker is back", LIMIT, async || {
                let wanted = if hard { 3 } else { 2 };
                let times: Vec<_> = workers.iter().map(times_ready).collect::<Result<_>>()?;
                Ok(times.into_iter().all(|times| times >= wanted))
            })
            .await?;
        }
        anyhow::Ok(published)
    };
    let published = tokio::select! {
        published = restarts => published?,
        broken = stays_ready(admin) => bail!("readiness went away: {broken:?}"),
    };
    for worker in &mut workers {
        worker.process.signal(Signal::TERM)?;
        let report = worker.ends_with(exit::OK).await?;
        ensure!(report.reason == ExitReason::AskedToStop, "{report:?}");
        ensure!(worker.events()? == ["started", "ready", "draining", "exit"], "{:?}", worker.events());
    }
    for ((kind, queue), published) in queues.iter().zip(&published) {
        let done = crew.notes(&format!("{queue}.done"))?;
        ids::assert_same("published", published, "done", &done.ids())?;
        eprintln!("{} {kind:?}: {} published, done again {}", bed.release, published.len(), done.repeats());
    }
    crew.nothing_is_left(&["classic", "quorum"]).await
}

/// How often its consumer was registered.
fn times_ready(worker: &Worker) -> Result<usize> {
    let lines = worker.process.log_objects()?;
    Ok(lines.iter().filter(|line| line["message"] == "ready").count())
}

/// Returns only when the worker's readiness is not there any more.
async fn stays_ready(port: u16) -> Result<Infallible> {
    loop {
        get(port, "/ready").await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A worker behind `proxy` with three stubborn handlers at work.
async fn at_work(bed: &Bed, crew: &Crew<'_>, options: &[&str]) -> Result<(Worker, Ids)> {
    let client = bed.client().await?;
    declare(&client, &bed.queue, Kind::Quorum).await?;
    let published = client.publish(&bed.queue, 3).await?;
    let script = format!("{STUBBORN}; {WAIT_FOR_GO}; {NOTE_DONE}");
    let options = [&["--concurrency", "3", "--max-idle", "1s"], options].concat();
    let worker = crew.exec("worker", &bed.queue, &options, &script)?;
    crew.noted("begun", 3).await?;
    client.close().await?;
    Ok((worker, published))
}

/// The worker behind `proxy` tries for a next connection, and no handler runs; then it gets one and finishes.
async fn comes_back(
    bed: &Bed,
    crew: &Crew<'_>,
    proxy: &mayfly_tests::Proxy,
    (mut worker, published): (Worker, Ids),
) -> Result<()> {
    until("it tries for a next connection", LIMIT, async || Ok(proxy.accepted() >= 2)).await?;
    let handlers = crew.handlers("worker", &worker);
    ensure!(handlers.is_empty(), "it connects while handlers run: {}", super::describe(&handlers));
    proxy.set(Fault::None);
    // One after the other: each may have been what cut the connection.
    crew.noted("begun", 4).await?;
    crew.go()?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!((report.messages, report.done, report.given_back) == (6, 3, 3), "{report:?}");
    let done = crew.notes("done")?;
    ids::assert_same("published", &published, "done", &done.ids())?;
    ensure!(done.0.len() == 3 && done.0.iter().all(|note| note.redelivered && note.attempt == 1), "{done:?}");
    ensure!(!bed.directory().join("overlaps").exists());
    let settled = worker.process.settled()?;
    ensure!(settled.iter().filter(|it| it.outcome == "lost").count() == 3, "{settled:?}");
    ensure!(worker.events()? == ["started", "ready", "draining", "exit"], "{:?}", worker.events());
    crew.nothing_is_left(&[&bed.queue]).await
}

async fn a_cut_connection_ends_its_handlers_before_the_next_one(bed: &Bed) -> Result<()> {
    let proxy = bed.proxy().await?;
    let crew = Crew::new(bed).over(proxy.url());
    let at_work = at_work(bed, &crew, &[]).await?;
    proxy.set(Fault::Cut);
    let noticed = async || Ok(at_work.0.process.log()?.contains("connection lost"));
    until("it has noticed", LIMIT, noticed).await?;
    // The next one stays half-open, so that there is time to look.
    proxy.set(Fault::Hang(Way::Both));
    comes_back(bed, &crew, &proxy, at_work).await
}

async fn a_network_that_hangs_ends_its_handlers_before_the_next_connection(bed: &Bed) -> Result<()> {
    let proxy = bed.proxy().await?;
    let crew = Crew::new(bed).over(format!("{}?heartbeat=2", proxy.url()));
    let at_work = at_work(bed, &crew, &[]).await?;
    proxy.set(Fault::Hang(Way::Both));
    comes_back(bed, &crew, &proxy, at_work).await
}

async fn a_broker_that_stays_away_is_given_up_and_its_messages_go_to_others(bed: &Bed) -> Result<()> {
    let proxy = bed.proxy().await?;
    let crew = Crew::new(bed).over(proxy.url());
    let (mut worker, _) = at_work(bed, &crew, &["--reconnect-for", "1s"]).await?;
    proxy.set(Fault::Refuse);
    let report = worker.ends_with(exit::UNAVAILABLE).await?;
    ensure!(report.reason == ExitReason::BrokerLost, "{report:?}");
    ensure!((report.messages, report.done, report.given_back) == (3, 0, 3), "{report:?}");
    ensure!(report.startup_ms.is_some() && report.detail.is_some(), "{report:?}");
    let client = bed.client().await?;
    client.until_ready(&bed.queue, 3, LIMIT).await?;
    crew.nothing_is_left(&[]).await?;
    client.close().await
}

/// Retries are published over a connection of their own: on the consuming one a blocked broker would hold up
/// every ack.
async fn a_broker_that_blocks_publishers_holds_up_only_what_is_to_be_retried(bed: &Bed) -> Result<()> {
    let node = bed.own_node().await?;
    let crew = Crew::at(bed, node.broker().clone());
    let client = node.broker().client().await?;
    declare(&client, "q", Kind::Quorum).await?;
    // The broker blocks a connection when it publishes: the first failure opens it and is retried still.
    let failing = client.publish("q", 2).await?;
    let good = client.publish("q", 20).await?;
    let bad = failing.iter().cloned().collect::<Vec<_>>().join(" ");
    node.broker().memory_alarm(true).await?;
    let script = format!(r#"case " $BAD " in *" $MAYFLY_MESSAGE_ID "*) exit 75 ;; esac; {NOTE_DONE}"#);
    let options = ["--concurrency", "3", "--prefetch", "6", "--max-idle", "1s"];
    let arguments = super::exec("q", &options, &script);
    let mut worker = crew.start_with("worker", &arguments, &[("BAD", &bad)])?;
    crew.noted("done", good.len()).await?;
    let is_acked = async || Ok(worker.process.done_ids()? == good);
    until("what is done is acked", LIMIT, is_acked).await?;
    until("the broker blocks the worker's publishing connection", LIMIT, async || {
        let connections = node.broker().connections().await?;
        let is_blocked = |name: &str| connections.iter().any(|it| it.name == name && it.state == "blocked");
        let name = format!("mayfly-worker {}", bed.queue);
        ensure!(!is_blocked(&name), "the consuming one is blocked");
        Ok(is_blocked(&format!("{name} (publishing)")))
    })
    .await?;
    ensure!(worker.process.ended()?.is_none(), "{}", worker.process.log_tail());
    node.broker().memory_alarm(false).await?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!((report.done, report.retried, report.given_back) == (20, 2, 0), "{report:?}");
    let retried = client.take_all("q.retry.5s", 2, LIMIT).await?;
    ids::assert_same("failing", &failing, "retried", &retried)?;
    crew.nothing_is_left(&["q", "q.retry.5s"]).await?;
    client.close().await
}

/// A disk alarm is what a memory alarm is: the worker lives through it with its message, and ends only then.
async fn a_full_disk_holds_up_what_is_to_be_retried_until_there_is_room(bed: &Bed) -> Result<()> {
    let node = bed.own_node().await?;
    let crew = Crew::at(bed, node.broker().clone());
    let client = node.broker().client().await?;
    declare(&client, "q", Kind::Quorum).await?;
    let failing = client.publish("q", 3).await?;
    node.broker().ctl(&["set_disk_free_limit", "1000000GB"]).await?;
    let mut worker = crew.exec("worker", "q", &["--max-idle", "1s"], "exit 75")?;
    until("the broker blocks the worker's publishing connection", LIMIT, async || {
        let connections = node.broker().connections().await?;
        let name = format!("mayfly-worker {} (publishing)", bed.queue);
        Ok(connections.iter().any(|it| it.name == name && it.state == "blocked"))
    })
    .await?;
    ensure!(worker.process.ended()?.is_none(), "{}", worker.process.log_tail());
    node.broker().ctl(&["set_disk_free_limit", "50MB"]).await?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!((report.done, report.retried, report.given_back) == (0, 3, 0), "{report:?}");
    ids::assert_same("failing", &failing, "retried", &client.take_all("q.retry.5s", 3, LIMIT).await?)?;
    crew.nothing_is_left(&["q", "q.retry.5s"]).await?;
    client.close().await
}

/// The broker closes the channel over it. The handler has ended before anybody gets the message again.
async fn a_message_that_takes_longer_than_the_broker_waits_is_handled_alone_from_then_on(
    bed: &Bed,
) -> Result<()> {
    let node = bed.own_node().await?;
    let crew = Crew::at(bed, node.broker().clone());
    let feeder = bed.program("mayfly-publisher")?.env("MAYFLY_BROKER_URL", node.broker().url());
    feeder.args(["declare", "q"]).run("declare", LIMIT).await?.exits_with(exit::OK, LIMIT).await?;
    let short = "application:set_env(rabbit, consumer_timeout, 3000), \
                 application:set_env(rabbit, channel_tick_interval, 1000).";
    node.broker().ctl(&["eval", short]).await?;
    let client = node.broker().client().await?;
    let published = client.publish("q", 2).await?;
    // At the first time it takes for ever.
    let script = format!(
        r#"exec 9>>"$DIR/lock"; flock -n 9 || echo "$MAYFLY_MESSAGE_ID" >>"$DIR/overlaps"
        {NOTE_BEGUN}; [ "$MAYFLY_REDELIVERED" = 1 ] || [ -e "$DIR/slow" ] || {{ : >"$DIR/slow"; sleep 1h; }}; {NOTE_DONE}"#
    );
    let mut worker = crew.exec("worker", "q", &["--max-idle", "2s"], &script)?;
    let report = worker.ends_with(exit::OK).await?;
    let log = worker.process.log()?;
    ensure!(log.contains("connection lost") && log.contains("imeout"), "{log}");
    ensure!(report.done == 2, "{report:?}");
    let done = crew.notes("done")?;
    ids::assert_same("published", &published, "done", &done.ids())?;
    ensure!(done.0.len() == 2 && !bed.directory().join("overlaps").exists(), "{done:?}");
    crew.nothing_is_left(&["q", "q.suspect", "q.dead"]).await?;
    client.close().await
}

/// Once among others, three times alone.
async fn a_message_that_always_takes_longer_than_the_broker_waits_is_dead_lettered(bed: &Bed) -> Result<()> {
    let node = bed.own_node().await?;
    let crew = Crew::at(bed, node.broker().clone());
    let short = "application:set_env(rabbit, consumer_timeout, 1000), \
                 application:set_env(rabbit, channel_tick_interval, 500).";
    node.broker().ctl(&["eval", short]).await?;
    let client = node.broker().client().await?;
    for kind in ["classic", "quorum"] {
        let feeder = bed.program("mayfly-publisher")?.env("MAYFLY_BROKER_URL", node.broker().url());
        let feeder = feeder.args(["declare", kind, "--type", kind]);
        feeder.run(&format!("declare-{kind}"), LIMIT).await?.exits_with(exit::OK, LIMIT).await?;
        client.publish_one(kind, "slow", b"").await?;
        let options = ["--max-idle", "2s", "--reconnect-for", "2m"];
        let mut worker = crew.exec(kind, kind, &options, &format!("{NOTE_BEGUN}; sleep 1h"))?;
        let dead = format!("{kind}.dead");
        until("it is given up", 3 * LIMIT, async || Ok(client.depth(&dead).await?.ready == 1))
            .await
            .with_context(|| worker.process.log_tail())?;
        let report = worker.ends_with(exit::OK).await?;
        ensure!((report.done, report.dead_lettered) == (0, 1), "{kind}: {report:?}");
        let begun = crew.notes("begun")?;
        ensure!(begun.0.len() == 4, "{kind}: {begun:?}");
        crew.nothing_is_left(&[kind, &format!("{kind}.suspect")]).await?;
        std::fs::remove_file(bed.directory().join("begun"))?;
    }
    client.close().await
}

async fn connections_that_an_administrator_closes_are_made_anew(bed: &Bed) -> Result<()> {
    let node = bed.own_node().await?;
    let crew = Crew::at(bed, node.broker().clone());
    let client = node.broker().client().await?;
    declare(&client, "q", Kind::Classic).await?;
    client.close().await?;
    let mut worker = crew.exec("worker", "q", &["--max-idle", "5m"], NOTE_DONE)?;
    worker.is("ready").await?;
    node.broker().ctl(&["close_all_connections", "for a test"]).await?;
    let noticed = async || Ok(times_ready(&worker)? == 2);
    until("it is ready again", LIMIT, noticed).await?;
    ensure!(worker.process.log()?.contains("for a test"), "{}", worker.process.log_tail());
    let client = node.broker().client().await?;
    let published = client.publish("q", 5).await?;
    until("all are acked", LIMIT, async || Ok(worker.process.done_ids()? == published)).await?;
    worker.process.signal(Signal::TERM)?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!(report.done == 5 && report.reason == ExitReason::AskedToStop, "{report:?}");
    crew.nothing_is_left(&["q"]).await?;
    client.close().await
}

async fn the_probe_says_not_ready_until_it_is_and_ready_from_then_on(bed: &Bed) -> Result<()> {
    let proxy = bed.proxy().await?;
    let crew = Crew::new(bed).over(proxy.url());
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Classic).await?;
    let listen = format!("127.0.0.1:{}", free_port()?);
    let probe = async |name: &str, code: i32| {
        let program = bed.program("mayfly-worker")?.args(["ready", "--admin-listen", &listen]);
        program.run(name, LIMIT).await?.exits_with(code, LIMIT).await
    };
    probe("nobody", exit::UNAVAILABLE).await?;
    proxy.set(Fault::Refuse);
    let arguments = ["sleep", "--queue", &bed.queue, "--admin-listen", &listen, "--max-idle", "2s"];
    let mut worker = crew.start("worker", &arguments)?;
    let tried = async || Ok(worker.process.log()?.contains("cannot connect"));
    until("it has tried to connect", LIMIT, tried).await?;
    probe("early", exit::TEMPFAIL).await?;
    proxy.set(Fault::None);
    worker.is("ready").await?;
    probe("ready", exit::OK).await?;
    proxy.set(Fault::Refuse);
    until("it has lost its connection", LIMIT, async || {
        Ok(worker.process.log()?.contains("connection lost"))
    })
    .await?;
    probe("lost", exit::OK).await?;
    proxy.set(Fault::None);
    worker.ends_with(exit::OK).await?;
    crew.nothing_is_left(&[&bed.queue]).await?;
    client.close().await
}
