//! On real processes: small shell commands stand in for workers, and the tests write their status lines.

use std::{collections::BTreeMap, fs, time::Instant};

use mayfly_service::report::ProcessIdentity;
use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::policy::{Ending, PendingCause};

const NOW: Time = Time::from_millis(1_800_000_000_000);
/// Five seconds before.
const STAMP: Time = Time::from_millis(NOW.as_millis() - 5000);
const POOL: &str = "pool";

const fn pending(started: bool) -> Phase {
    Phase::Pending { started, cause: PendingCause::Starting, since: STAMP, detail: None }
}

/// A launcher in a directory of its own, whose workers end with it.
struct Place {
    launcher: ProcessLauncher,
    pool: PoolConfig,
    directory: tempfile::TempDir,
}

impl Place {
    fn new(command: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let worker = WorkerTemplate::Process { command, env: BTreeMap::new() };
        let pool = PoolConfig::with_defaults(POOL, "queue", worker);
        let launcher = ProcessLauncher::new("mayfly", directory.path(), Duration::ZERO).unwrap();
        Self { launcher, pool, directory }
    }

    async fn launch(&self) -> Result<Launched, LaunchError> {
        self.launcher.launch(&plan(1), &self.pool).await
    }

    /// Workers that tell their process number and then live until they are killed.
    fn of_sleepers() -> Self {
        Self::new(&["setsid", "sh", "-c", "sleep 1000 & echo $$ > $MAYFLY_STATUS_FILE.pid; wait"])
    }

    async fn only(&self) -> Worker {
        let workers = self.launcher.list(Look::Fresh, NOW).await.unwrap();
        assert_eq!(workers.len(), 1, "{workers:?}");
        workers.into_iter().next().unwrap()
    }

    async fn phase(&self) -> Phase {
        self.only().await.phase
    }

    fn tell(&self, name: &str, line: &StatusLine) {
        line.append_to(&StatusLine::open(&self.launcher.files.path(name)).unwrap()).unwrap();
    }

    /// The worker's process, once it has said its number.
    async fn process(&self, name: &str) -> ProcessIdentity {
        let path = self.launcher.files.path(name).with_extension("pid");
        eventually(|| fs::read_to_string(&path).is_ok_and(|text| text.ends_with('\n'))).await;
        let pid = fs::read_to_string(path).unwrap().trim().parse().unwrap();
        let start_ticks = mayfly_service::report::start_ticks(pid).unwrap();
        ProcessIdentity { pid, start_ticks, ..ProcessIdentity::own().unwrap() }
    }

    /// Kills the worker itself, and only it.
    async fn kill(&self, name: &str) -> ProcessIdentity {
        let process = self.process(name).await;
        kill_process(Pid::from_raw(process.pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
        eventually_async(async || matches!(self.phase().await, Phase::Finished(_))).await;
        process
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for entry in fs::read_dir(workers_directory(self.directory.path())).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "pid")
                && let Ok(pid) = fs::read_to_string(&path).unwrap().trim().parse::<i32>()
            {
                // The worker leads its session and its process group.
                let _ = rustix::process::kill_process_group(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
        }
    }
}

/// What a worker launched with this pool's limits is told of its idle time.
async fn told_idle(change: impl FnOnce(&mut PoolConfig)) -> String {
    let told = tempfile::tempdir().unwrap();
    let file = told.path().join("idle");
    let mut place = Place::new(&["sh", "-c", &format!("echo \"$MAYFLY_MAX_IDLE\" > {}", file.display())]);
    change(&mut place.pool);
    place.launch().await.unwrap();
    eventually(|| fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'))).await;
    fs::read_to_string(file).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_worker_is_warm_by_the_minimum_of_the_window_that_it_was_launched_in() {
    let window = crate::config::scheduled;
    // The stamp is 2027-01-15T07:59:55Z.
    let warm = "{ start: 0 7 * * *, end: 0 8 * * *, min_workers: 1 }";
    assert_eq!(told_idle(|pool| pool.schedule = window(warm)).await, "10m");
    let over = "{ start: 0 6 * * *, end: 0 7 * * *, min_workers: 1 }";
    assert_eq!(told_idle(|pool| pool.schedule = window(over)).await, "");
    let cold = "{ start: 0 7 * * *, end: 0 8 * * *, min_workers: 0 }";
    let always_warm = |pool: &mut PoolConfig| *pool = PoolConfig { min_workers: 1, ..pool.clone() };
    assert_eq!(told_idle(always_warm).await, "10m");
    let but_now =
        |pool: &mut PoolConfig| *pool = PoolConfig { min_workers: 1, schedule: window(cold), ..pool.clone() };
    assert_eq!(told_idle(but_now).await, "");
}

async fn eventually(mut condition: impl FnMut() -> bool) {
    eventually_async(async || condition()).await;
}

async fn eventually_async(mut condition: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !condition().await {
        assert!(begin.elapsed() < Duration::from_secs(20), "waited for too long");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn plan(serial: u64) -> Plan {
    Plan {
        name: format!("mayfly-pool-0000-{serial}"),
        pool: POOL.to_owned(),
        serial,
        slot: 0,
        reason: "a test".to_owned(),
        stamp: STAMP,
        service_time: None,
    }
}

#[tokio::test]
async fn a_name_is_launched_once_and_adopted_after_that() {
    let place = Place::new(&["sh", "-c", "echo started >> $MAYFLY_STATUS_FILE.log"]);
    assert_eq!(place.launch().await.unwrap(), Launched::Created);
    assert_eq!(place.launch().await.unwrap(), Launched::Adopted);
    eventually_async(async || matches!(place.phase().await, Phase::Finished(_))).await;
    assert_eq!(place.launch().await.unwrap(), Launched::Adopted);
    let log = fs::read_to_string(place.launcher.files.log_path(&plan(1).name)).unwrap();
    assert_eq!(log, "started\n");
}

#[tokio::test]
async fn a_name_that_somebody_else_took_is_foreign() {
    let place = Place::of_sleepers();
    fs::write(place.launcher.files.path(&plan(1).name), "{}\n").unwrap();
    let error = place.launch().await.unwrap_err();
    assert!(matches!(error, LaunchError::Foreign { .. }), "{error}");
    assert_eq!(place.launcher.list(Look::Fresh, NOW).await.unwrap(), []);
}

#[tokio::test]
async fn a_worker_goes_through_its_phases() {
    let place = Place::of_sleepers();
    place.launch().await.unwrap();
    let name = plan(1).name;
    let process = place.process(&name).await;
    assert_eq!(place.phase().await, pending(false));

    place.tell(&name, &StatusLine::Started { at: NOW.as_millis(), process: process.clone() });
    let not_ready = Phase::Pending { started: true, cause: PendingCause::NotReady, since: NOW, detail: None };
    assert_eq!(place.phase().await, not_ready);
    place.tell(&name, &StatusLine::Ready { at: NOW.as_millis() });
    assert_eq!(place.phase().await, Phase::Ready { since: NOW });
    place.tell(&name, &StatusLine::Draining { at: NOW.as_millis() });
    assert_eq!(place.phase().await, Phase::Draining);
    let report = ExitReport { done: 3, ..ExitReport::new(ExitReason::Idle) };
    place.tell(&name, &StatusLine::Exit { at: NOW.as_millis(), report: report.clone(), exit_code: 0 });
    assert_eq!(place.phase().await, Phase::Draining);

    place.kill(&name).await;
    let lead_time = Some(Duration::from_secs(5));
    let ending = Ending {
        at: NOW,
        started: true,
        lead_time,
        exit_code: Some(0),
        report: Some(report),
        detail: None,
        last_words: None,
        disrupted: false,
    };
    assert_eq!(place.phase().await, Phase::Finished(ending));
}

#[tokio::test]
async fn a_worker_killed_before_it_started_never_started() {
    let place = Place::of_sleepers();
    place.launch().await.unwrap();
    place.kill(&plan(1).name).await;
    let Phase::Finished(Ending { started, report, exit_code, .. }) = place.phase().await else { panic!() };
    assert_eq!((started, report, exit_code), (false, None, None));
}

#[tokio::test]
async fn the_last_words_of_a_worker_without_a_report_are_those_of_its_log() {
    let place =
        Place::new(&["sh", "-c", "seq 5000; echo loading; printf 'cannot open \\377\\n' >&2; exit 3"]);
    place.launch().await.unwrap();
    let words = async || match place.phase().await {
        Phase::Finished(Ending { last_words, .. }) => last_words,
        _ => None,
    };
    eventually_async(async || words().await.is_some()).await;
    let lines = (4993..=5000).map(|line| line.to_string()).chain(["loading".to_owned()]);
    let expected = lines.chain(["cannot open \u{fffd}".to_owned()]).collect::<Vec<_>>().join("\n");
    assert_eq!(words().await, Some(expected));
    // With a report, that says it.
    let report = ExitReport::new(ExitReason::Internal);
    place.tell(&plan(1).name, &StatusLine::Exit { at: NOW.as_millis(), report, exit_code: 70 });
    assert_eq!(words().await, None);
}

#[tokio::test]
async fn a_command_that_does_not_exist_ends_its_worker_with_the_cause() {
    let place = Place::new(&["/does/not/exist"]);
    assert_eq!(place.launch().await.unwrap(), Launched::Created);
    let Phase::Finished(Ending { report: Some(report), exit_code, .. }) = place.phase().await else {
        panic!()
    };
    assert_eq!((report.reason, exit_code), (ExitReason::SpawnFailed, Some(78)));
    assert!(report.detail.unwrap().contains("No such file"));
}

#[tokio::test]
async fn who_claims_the_start_first_wins() {
    let place = Place::of_sleepers();
    place.launch().await.unwrap();
    let worker = place.only().await;
    assert_eq!(place.launcher.remove(&worker, NOW).await.unwrap(), Removed::Removed);
    assert_eq!(place.launcher.remove(&worker, NOW).await.unwrap(), Removed::TooLate);
    // The worker itself claims by the same file, so a claimed one is never taken back.
    assert_eq!(place.phase().await, pending(true));
}

#[tokio::test]
async fn what_a_dead_worker_left_running_is_ended() {
    let place = Place::of_sleepers();
    place.launch().await.unwrap();
    let name = plan(1).name;
    let process = place.process(&name).await;
    place.tell(&name, &StatusLine::Started { at: NOW.as_millis(), process: process.clone() });
    let group_lives = || {
        let group = Pid::from_raw(process.pid.cast_signed()).unwrap();
        rustix::process::test_kill_process_group(group).is_ok()
    };
    place.kill(&name).await;
    assert!(group_lives(), "the worker's child outlives it");
    let ended = [place.only().await];
    place.launcher.tidy(&ended, &[], NOW).await.unwrap();
    eventually(|| !group_lives()).await;
}

#[tokio::test]
async fn a_later_session_under_the_same_number_is_left_alone() {
    let mut stranger =
        std::process::Command::new("setsid").args(["sh", "-c", "sleep 1000 & wait"]).spawn().unwrap();
    let pid = stranger.id();
    let children = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    eventually(|| !children().is_empty()).await;
    let start_ticks = mayfly_service::report::start_ticks(pid).unwrap();
    let leader = ProcessIdentity { pid, start_ticks, ..ProcessIdentity::own().unwrap() };
    // Its leader started at another time than our worker, or in another boot.
    session::end_leftovers(&ProcessIdentity { start_ticks: start_ticks - 1, ..leader.clone() });
    session::end_leftovers(&ProcessIdentity { boot_id: "another".to_owned(), ..leader.clone() });
    assert_eq!(stranger.try_wait().unwrap(), None, "its shell waits for the child, so the child lives");
    // The same call does end the session that is meant.
    session::end_leftovers(&leader);
    stranger.wait().unwrap();
}

#[tokio::test]
async fn files_of_a_counted_worker_go_after_five_minutes() {
    let place = Place::new(&["/does/not/exist"]);
    place.launch().await.unwrap();
    let worker = place.only().await;
    let Phase::Finished(Ending { at, .. }) = worker.phase else { panic!() };
    let counted = [worker];
    place.launcher.tidy(&counted, &[], at + Duration::from_secs(3600)).await.unwrap();
    place.launcher.tidy(&counted, &counted, at + Duration::from_secs(299)).await.unwrap();
    place.only().await;
    place.launcher.tidy(&counted, &counted, at + Duration::from_secs(300)).await.unwrap();
    assert_eq!(place.launcher.list(Look::Fresh, NOW).await.unwrap(), []);
    assert_eq!(fs::read_dir(workers_directory(place.directory.path())).unwrap().count(), 0);
}

#[tokio::test]
async fn workers_of_another_instance_are_not_ours() {
    let place = Place::new(&["/does/not/exist"]);
    place.launch().await.unwrap();
    let other = ProcessLauncher { instance: "other".to_owned(), ..place.launcher.clone() };
    assert_eq!(other.list(Look::Fresh, NOW).await.unwrap(), []);
    let error = other.launch(&plan(1), &place.pool).await.unwrap_err();
    assert!(matches!(error, LaunchError::Foreign { .. }), "{error}");
}
