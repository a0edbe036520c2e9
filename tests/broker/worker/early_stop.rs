//! SIGTERM while a worker starts: so a kubelet ends one whose removal it hears of too late.

use std::{os::unix::process::ExitStatusExt, time::Duration};

use anyhow::{Result, ensure};
use mayfly_service::report::ExitReason;
use mayfly_tests::{
    Bed, Kind, Signal,
    bed::rounds,
    ids::{self, Ids},
    on_each_release,
};
use tokio::time::Instant;

use super::{Crew, Dice, LIMIT, NOTE_DONE, both, exit};

on_each_release!(workers_stopped_from_their_start_on_lose_nothing_and_do_nothing_twice);

/// How often a worker is stopped where the figures are reported.
const STOPS: usize = 200;

async fn workers_stopped_from_their_start_on_lose_nothing_and_do_nothing_twice(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let crew = Crew::new(bed);
    for (kind, queue) in both(bed, &client).await? {
        let seed = 0xea51 + u64::from(kind == Kind::Quorum);
        let stops = rounds(STOPS);
        let (mut dice, mut published) = (Dice(seed), Ids::new());
        let file = format!("{queue}.done");
        let script = format!("sleep 0.01; {NOTE_DONE}").replace("/done", &format!("/{file}"));
        let start = |name: &str, options: &[&str]| {
            let options = [&["--concurrency", "2", "--prefetch", "6"], options].concat();
            crew.exec(&format!("{queue}-{name}"), &queue, &options, &script)
        };
        // How long a start takes here: the second one, for which nothing is loaded any more.
        let mut startup = Duration::ZERO;
        for name in ["first", "second"] {
            let begun = Instant::now();
            let mut worker = start(name, &[])?;
            worker.is("ready").await?;
            startup = begun.elapsed();
            worker.process.signal(Signal::TERM)?;
            worker.ends_with(exit::OK).await?;
        }

        let (mut unready, mut given_back, mut done) = (0, 0, 0);
        for number in 0..stops {
            published.extend(client.publish(&queue, 8).await?);
            let mut worker = start(&number.to_string(), &[])?;
            // Half of the instants are before it is ready.
            tokio::time::sleep(dice.moment(2 * startup)).await;
            worker.process.signal(Signal::TERM)?;
            let status = worker.process.exits(LIMIT).await?;
            let was_ready = worker.events()?.iter().any(|event| event == "ready");
            unready += usize::from(!was_ready);
            if status.signal() == Some(Signal::TERM.as_raw()) {
                ensure!(!was_ready, "it does not obey the signal\n{}", worker.process.log_tail());
                continue;
            }
            let report = worker.ends_with(exit::OK).await?;
            ensure!(report.reason == ExitReason::AskedToStop, "{report:?}");
            given_back += report.given_back;
            done += report.done;
        }
        let last = start("last", &["--max-idle", "1s"])?.ends_with(exit::OK).await?;
        let noted = crew.notes(&file)?;
        eprintln!(
            "{} {kind:?}, seed {seed:#x}: {} published, {stops} stops within {:?}, {unready} of them before it was \
             ready, {given_back} given back, done again {}",
            bed.release,
            published.len(),
            2 * startup,
            noted.repeats()
        );
        ids::assert_same("published", &published, "done", &noted.ids())?;
        ensure!(noted.repeats() == 0, "done again: {:?}", noted.count());
        ensure!(done + last.done == published.len() as u64, "{done} and {} done", last.done);
        let both_sides = unready > 0 && unready < stops;
        ensure!(both_sides || stops < STOPS, "{unready} of {stops} before it was ready: that is no race");
        crew.nothing_is_left(&[&queue]).await?;
    }
    client.close().await
}
