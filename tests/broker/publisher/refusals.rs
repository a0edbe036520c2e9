//! What cannot be delivered, and to whom: told by name, with the code that says so.

use anyhow::{Result, ensure};
use mayfly_tests::{Bed, Fault, Kind, Process, ids, ids::Ids, on_each_release};
use serde_json::json;

use super::{Found, LIMIT, Publish, exit};

on_each_release!(
    unroutable_messages_are_named_and_the_others_are_delivered,
    a_missing_queue_is_named_with_the_command_that_creates_it,
    a_wrong_password_is_refused_and_not_shown,
    a_broker_that_is_away_is_told,
    one_bad_line_keeps_everything_from_being_published,
);

async fn unroutable_messages_are_named_and_the_others_are_delivered(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let other = bed.queue_name("test-other");
    client.declare(&bed.queue, Kind::Quorum).await?;
    client.declare(&other, Kind::Classic).await?;
    let missing = bed.queue_name("test-missing");
    // In all windows, also in one that has nothing else; the good ones before, between and after.
    let target = |number: usize| match number {
        3 | 50..55 | 119 => &missing,
        _ if number.is_multiple_of(2) => &other,
        _ => &bed.queue,
    };
    let id = |number: usize| format!("id-{number:03}");
    let all =
        |queue: &String| -> Ids { (0..120).filter(|&number| target(number) == queue).map(&id).collect() };
    let lines: String = (0..120)
        .map(|number| json!({ "queue": target(number), "message_id": id(number), "body": "x" }))
        .map(|line| line.to_string() + "\n")
        .collect();
    let program =
        Publish::program(bed, &bed.broker.url(), &bed.queue, &["--stdin", "json", "--window", "5"])?;
    let outcome = Publish::spawn(bed.directory(), program.stdin(lines)?)?.ends_with(exit::CONFIG).await?;

    let mut delivered = Ids::new();
    for queue in [&bed.queue, &other] {
        let found = Found::take(&client, queue).await?;
        ensure!(found.repeats() == 0, "{found:?}");
        ids::assert_same("meant for it", &all(queue), "in the queue", &found.ids())?;
        delivered.append(&mut found.ids());
    }
    ids::assert_same("called confirmed", &outcome.confirmed, "delivered", &delivered)?;
    let told = outcome.told;
    ensure!(told.unroutable.len() == 1 && told.unroutable.get(&missing) == Some(&7), "{told:?}");
    ensure!((told.not_confirmed, told.not_sent, told.sent_again) == (0, Some(0), 0), "{told:?}");
    let log = outcome.log;
    let named: Ids = log.split_whitespace().filter(|word| word.starts_with("id-")).map(Into::into).collect();
    ids::assert_same("unroutable", &all(&missing), "named", &named)?;
    ensure!(log.contains(&missing) && log.contains(&format!("next: mayfly-publisher declare {missing}")));
    Ok(())
}

async fn a_missing_queue_is_named_with_the_command_that_creates_it(bed: &Bed) -> Result<()> {
    let publish = Publish::start(bed, &bed.broker.url(), &bed.queue, &["--count", "30"])?;
    let outcome = publish.ends_with(exit::CONFIG).await?;
    ensure!(outcome.confirmed.is_empty(), "{:?}", outcome.confirmed);
    ensure!(outcome.told.unroutable.get(&bed.queue) == Some(&30), "{:?}", outcome.told);
    ensure!(outcome.log.contains(&format!("queue {:?} does not exist", bed.queue)), "{}", outcome.log);
    let command = ["declare", bed.queue.as_str()];
    ensure!(
        outcome.log.contains(&format!("next: mayfly-publisher {}", command.join(" "))),
        "{}",
        outcome.log
    );

    // The command does what it promises.
    run(bed, &bed.broker.url(), &command, exit::OK).await?;
    let publish = Publish::start(bed, &bed.broker.url(), &bed.queue, &["--count", "30"])?;
    ensure!(publish.ends_with(exit::OK).await?.confirmed.len() == 30);
    Ok(())
}

async fn a_wrong_password_is_refused_and_not_shown(bed: &Bed) -> Result<()> {
    let url = bed.broker.url_for("guest", "s3cret-of-mine");
    for command in [&["publish", &bed.queue, "body"][..], &["declare", &bed.queue], &["inspect", &bed.queue]]
    {
        let process = run(bed, &url, command, exit::CONFIG).await?;
        let log = process.log()?;
        ensure!(
            log.contains("refuses user \"guest\"") && log.contains("next: check user, password"),
            "{log}"
        );
        ensure!(!log.contains("s3cret") && !process.stdout()?.contains("s3cret"), "{log}");
    }
    Ok(())
}

async fn a_broker_that_is_away_is_told(bed: &Bed) -> Result<()> {
    let proxy = bed.proxy().await?;
    // Nobody listens; somebody listens and hangs up.
    for fault in [Fault::Refuse, Fault::Cut] {
        proxy.set(fault);
        for command in
            [&["publish", &bed.queue, "body"][..], &["declare", &bed.queue], &["inspect", &bed.queue]]
        {
            let log = run(bed, &proxy.url(), command, exit::UNAVAILABLE).await?.log()?;
            ensure!(log.contains(&format!("broker {}/", proxy.address())), "{log}");
            ensure!(log.contains("is unreachable") && log.contains("next: check host, port"), "{log}");
        }
    }
    Ok(())
}

async fn one_bad_line_keeps_everything_from_being_published(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Classic).await?;
    let mut lines: Vec<_> = (0..2000).map(|number| json!({ "body": number }).to_string()).collect();
    lines[1500] = json!({ "bodi": "x" }).to_string();
    let arguments = ["publish", &bed.queue, "--stdin", "json", "--window", "10"];
    let program = bed.program("mayfly-publisher")?.args(arguments);
    let mut process = program.stdin(lines.join("\n"))?.spawn("publisher")?;
    process.exits_with(exit::USAGE, LIMIT).await?;
    let log = process.log()?;
    ensure!(
        log.contains("nothing was published") && log.contains("line 1501: unknown field `bodi`"),
        "{log}"
    );
    ensure!(client.depth(&bed.queue).await?.ready == 0);

    // The same without the mistake.
    lines[1500] = json!({ "body": "x" }).to_string();
    let program = bed.program("mayfly-publisher")?.args(arguments);
    program.stdin(lines.join("\n"))?.spawn("again")?.exits_with(exit::OK, LIMIT).await?;
    ensure!(client.depth(&bed.queue).await?.ready == 2000);
    Ok(())
}

async fn run(bed: &Bed, url: &str, arguments: &[&str], code: i32) -> Result<Process> {
    super::commands::run(bed, url, arguments, code).await
}
