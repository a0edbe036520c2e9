//! Under the process launcher: the start delay, being taken back during it, and the lock of the worker's file.

use std::{fs, io::Read, path::Path, time::Duration};

use anyhow::{Result, ensure};
use mayfly_service::{contract, report::ExitReason};
use mayfly_tests::{Bed, Kind, Program, Signal, bed::rounds, on_each_release, until};

use super::{Crew, Dice, LIMIT, Worker, declare, end_all, exit, having, is_locked};

on_each_release!(
    of_a_worker_and_who_takes_it_back_exactly_one_wins,
    a_signal_during_the_start_delay_claims_the_start_and_ends_it,
    a_handler_that_outlives_its_worker_does_not_hold_the_lock_of_its_file,
    a_signal_right_after_the_start_silences_no_program,
    what_a_worker_inherits_reaches_no_handler,
);

async fn of_a_worker_and_who_takes_it_back_exactly_one_wins(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Classic).await?;
    let seed = 0x57a7;
    let (mut dice, mut started) = (Dice(seed), 0);
    // The first two are decided in advance, so that both ends are seen however few the rounds are.
    let rounds = rounds(200).max(4);
    for round in 0..rounds {
        let name = format!("worker-{round}");
        let delay = if round == 0 { "1h" } else { "50ms" };
        let arguments = ["sleep", "--queue", &bed.queue, "--max-idle", "1ms"];
        let mut worker = crew.start_with(&name, &arguments, &[(contract::START_DELAY, delay)])?;
        if round == 1 {
            worker.is("started").await?;
        } else {
            tokio::time::sleep(dice.moment(Duration::from_millis(120))).await;
        }
        let taken_back = fs::File::create_new(bed.directory().join(format!("{name}.status.start"))).is_ok();
        let report = worker.ends_with(exit::OK).await?;
        if taken_back {
            ensure!(report.reason == ExitReason::Withdrawn && report.startup_ms.is_none(), "{report:?}");
            ensure!(worker.events()? == ["exit"], "{:?}", worker.events());
        } else {
            ensure!(report.reason == ExitReason::Idle, "{report:?}");
            ensure!(worker.events()? == ["started", "ready", "draining", "exit"], "{:?}", worker.events());
            started += 1;
        }
    }
    eprintln!("{}, seed {seed:#x}: {rounds} rounds, {started} started", bed.release);
    ensure!(started > 0 && started < rounds);
    crew.nothing_is_left(&[&bed.queue]).await?;
    client.close().await
}

async fn a_signal_during_the_start_delay_claims_the_start_and_ends_it(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let arguments = ["sleep", "--queue", &bed.queue];
    let mut worker = crew.start_with("worker", &arguments, &[(contract::START_DELAY, "1h")])?;
    // It listens for signals from here on: before, one would end it by default.
    until("it catches SIGTERM", LIMIT, async || catches_sigterm(worker.process.pid())).await?;
    worker.process.signal(Signal::TERM)?;
    let report = worker.ends_with(exit::OK).await?;
    ensure!(report.reason == ExitReason::AskedToStop, "{report:?}");
    ensure!(worker.events()? == ["exit"], "{:?}", worker.events());
    ensure!(bed.directory().join("worker.status.start").exists(), "it could be counted on still");
    crew.nothing_is_left(&[]).await
}

/// What a program says first, that its arguments are no good, waits in a pipe that is full: it listens by then.
const REFUSED_INTO_A_FULL_PIPE: &str = r#"
    mkfifo "$DIR/errors"
    exec 8<>"$DIR/errors"
    head -c 65536 /dev/zero >&8
    exec "$@" 2>&8"#;

async fn a_signal_right_after_the_start_silences_no_program(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let errors = bed.directory().join("errors");
    for name in ["mayfly-worker", "mayfly-scaler", "mayfly-publisher"] {
        let (program, status, termination_log) = crew.program(name, name, &["--no-such-option"])?;
        let process = program.within(&["/bin/sh", "-c", REFUSED_INTO_A_FULL_PIPE, "sh"]).spawn(name)?;
        let mut worker = Worker { process, status, termination_log };
        until(&format!("{name} catches SIGTERM"), LIMIT, async || catches_sigterm(worker.process.pid()))
            .await?;
        worker.process.signal(Signal::TERM)?;
        fs::File::open(&errors)?.read_exact(&mut vec![0; 65536])?;
        worker.process.exits_with(exit::USAGE, LIMIT).await?;
        if name == "mayfly-worker" {
            let report = worker.report(exit::USAGE)?;
            ensure!(report.reason == ExitReason::Misconfigured, "{report:?}");
        }
        fs::remove_file(&errors)?;
    }
    crew.nothing_is_left(&[]).await
}

async fn what_a_worker_inherits_reaches_no_handler(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    declare(&client, &bed.queue, Kind::Classic).await?;
    let list = r#"ls -l "/proc/$$/fd" >"$DIR/files"; "#;
    let answer = r#"echo '{"ready":true}'; read -r line; echo '{"id":1,"outcome":"done"}'; read -r line"#;
    for (handler, script) in [("exec", list.to_owned()), ("stdio", format!("{list}{answer}"))] {
        client.publish(&bed.queue, 1).await?;
        let arguments =
            [handler, "--queue", &bed.queue, "--max-messages", "1", "--", "/bin/sh", "-c", &script];
        let (program, status, termination_log) = crew.program("mayfly-worker", handler, &arguments)?;
        let script = r#"exec 9>"$DIR/inherited"; exec "$@""#;
        let process = program.within(&["/bin/sh", "-c", script, "sh"]).spawn(handler)?;
        let report = Worker { process, status, termination_log }.ends_with(exit::OK).await?;
        ensure!(report.done == 1, "{handler}: {report:?}");
        let files = fs::read_to_string(bed.directory().join("files"))?;
        ensure!(files.contains("pipe:") && !files.contains("inherited"), "{handler}: {files}");
    }
    crew.nothing_is_left(&[&bed.queue]).await?;
    client.close().await
}

/// Whether a process has a handler for SIGTERM (`SigCgt` of `/proc/PID/status`, proc(5)).
fn catches_sigterm(pid: i32) -> Result<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim();
    Ok(u64::from_str_radix(mask, 16)? & (1 << (Signal::TERM.as_raw() - 1)) != 0)
}

async fn a_handler_that_outlives_its_worker_does_not_hold_the_lock_of_its_file(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    declare(&client, &bed.queue, Kind::Quorum).await?;
    let published = client.publish(&bed.queue, 1).await?;
    let file = bed.directory().join("worker.status");
    let mut process = locked_worker(bed, &crew, &file)?.spawn("worker-process")?;
    crew.noted("begun", 1).await?;
    ensure!(is_locked(&file)?, "the worker does not hold the lock: the test would see nothing");
    // Session and group of its own, so that it escapes everything.
    process.kill().await?;
    let survivors = having(&format!("CREW={}", bed.queue));
    ensure!(!survivors.is_empty(), "no handler is left: the test would see nothing");
    ensure!(!is_locked(&file)?, "held by {}", super::describe(&survivors));
    end_all(&survivors);
    until("they are gone", LIMIT, async || Ok(crew.running().is_empty())).await?;
    ensure!(client.take_all(&bed.queue, 1, LIMIT).await? == published);
    crew.nothing_is_left(&[&bed.queue]).await?;
    client.close().await
}

/// A worker as the process launcher starts it: its file, locked, is its standard input.
fn locked_worker(bed: &Bed, crew: &Crew<'_>, file: &Path) -> Result<Program> {
    fs::File::create_new(file)?;
    let worker = mayfly_tests::process::program_path("mayfly-worker")?;
    let handler = format!("{}; setsid sleep 1h & wait", super::NOTE_BEGUN);
    let script = r#"exec <"$MAYFLY_STATUS_FILE"; flock -n 0 || exit 1; exec "$@""#;
    Ok(Program::new(Path::new("/bin/sh"), bed.directory())
        .args(["-c", script, "sh"])
        .arg(worker)
        .args(super::exec(&bed.queue, &[], &handler))
        .env("MAYFLY_BROKER_URL", &crew.url)
        .env(contract::STATUS_FILE, file)
        .env(contract::INSTANCE, &bed.queue)
        .env("CREW", &bed.queue)
        .env("DIR", bed.directory()))
}
