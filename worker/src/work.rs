//! A worker's life: connections, one after the other, until there is a reason to end.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use backon::BackoffBuilder;
use mayfly_broker::{Intake, Topology};
use mayfly_service::{
    Shutdown,
    backoff::backoff,
    crash::crash_point,
    deadline,
    report::{ExitReason, ExitReport},
};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    attend::Attendant,
    forward::Forwarder,
    handler::{Handler, Interrupt},
    ledger::custody::Custody,
    lifecycle::End,
    options::Options,
    report::report,
    route::Routes,
    session::{Common, Session},
    start::{Link, StartError},
    status::Announcer,
    suspect::Course,
    warnings,
};

/// Until when a connection is tried for, and what it means when there is none by then.
#[derive(Debug, Clone)]
struct Window {
    ends: Instant,
    /// Before it was ready once, what can't heal by itself ends the worker at once: nobody has seen this
    /// configuration work. Later the same may be a broker that is being restored, and is retried.
    was_ready: bool,
    /// The error that opened it.
    cause: Option<String>,
}

/// Why no connection came about.
type NoLink = (ExitReason, Option<String>);

/// The pauses between tries.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A connection that lived this long was a good one: the next loss has a window of its own. A shorter one
/// continues the window, so that connections that break at once come to an end.
const GOOD_LIFE: Duration = LONGEST_PAUSE;

/// Works as `options` say until the queue stays idle, `shutdown` asks to stop, or it can't go on. Returns why
/// it ended and what it did; nothing of it runs afterwards.
pub async fn work<H: Handler>(options: &Options, handler: H, shutdown: &Shutdown) -> ExitReport {
    work_announced(options, handler, shutdown, &Announcer::default(), Instant::now()).await
}

/// The same; `announcer` tells others how far it is, and the worker has been alive since `epoch`.
pub(crate) async fn work_announced<H: Handler>(
    options: &Options,
    handler: H,
    shutdown: &Shutdown,
    announcer: &Announcer,
    epoch: Instant,
) -> ExitReport {
    let topology = Topology::standard(&options.queue);
    let publisher_name = format!("{} (publishing)", options.name);
    let attendant = Arc::new(Attendant {
        handler,
        routes: Routes {
            topology,
            max_attempts: options.max_attempts,
            quarantine: options.quarantine.clone(),
        },
        timeout: options.timeout,
        forwarder: Forwarder::new(options.url.clone(), publisher_name, options.reconnect_for),
        is_braked: AtomicBool::new(false),
        custody: options
            .ledger
            .as_ref()
            .map(|ledger| Custody::new(ledger, &options.name, options.url.vhost(), &options.queue)),
    });
    let topology = &attendant.routes.topology;
    let jitter = jitter();
    let mut carry = options.carry(jitter);
    let mut startup = None;
    let mut background = JoinSet::new();
    if let Some(custody) = &attendant.custody
        && let Err((reason, detail)) = reach(custody, options, epoch, shutdown).await
    {
        return report(reason, detail.as_deref(), &carry.tally);
    }
    if let Err((reason, detail)) = prepare(&attendant.handler, options, epoch, shutdown).await {
        return report(reason, detail.as_deref(), &carry.tally);
    }
    let mut options = options.clone();
    let common = Common {
        attendant: &attendant,
        announcer,
        rules: options.rules(jitter),
        max_memory: options.max_memory,
        epoch,
    };
    let mut window = Window { ends: epoch + options.start_deadline, was_ready: false, cause: None };
    let (reason, detail) = 'worker: loop {
        let mut next =
            match connect::<H>(&options, topology, carry.prefetch_of(Course::Queue), &window, shutdown).await
            {
                Ok(line) => line,
                Err(no_link) => break no_link,
            };
        announcer.ready();
        tracing::info!(queue = options.queue, "ready");
        crash_point("after-ready");
        if startup.is_none() {
            startup = Some(epoch.elapsed());
            warnings::at_start(&options);
            warnings::ask(&options, &next.0.connection, &mut background).await;
        }
        let opened = Instant::now();
        let mut course = Course::Queue;
        let lost = loop {
            let ended = Session::new(&common, next, course, carry).run(shutdown).await;
            carry = ended.carry;
            options.ask_for(ended.frame_max);
            match (ended.end, ended.link) {
                (End::Exit(reason), link) => {
                    close(link).await;
                    break 'worker (reason, ended.detail);
                }
                (End::Reconnect, _) | (End::Switch(_), None) => break ended.detail,
                (End::Switch(other), Some(link)) => {
                    course = other;
                    let prefetch = carry.prefetch_of(course);
                    tracing::debug!(?course, prefetch, "consumes anew");
                    match link.consume(&options, topology, course, prefetch).await {
                        Ok(registered) => next = registered,
                        Err(error) => break Some(error.advice(&options.queue)),
                    }
                }
            }
        };
        if window.was_ready && opened.elapsed() < GOOD_LIFE {
            window.cause = lost;
        } else {
            let ends = Instant::now() + options.reconnect_for;
            window = Window { ends, was_ready: true, cause: lost };
        }
    };
    background.shutdown().await;
    attendant.handler.finish(&until_aborted(shutdown)).await;
    attendant.forwarder.close().await;
    let mut report = report(reason, detail.as_deref(), &carry.tally);
    if let Some(custody) = &attendant.custody {
        report.unrecorded = custody.unrecorded();
        custody.close().await;
    }
    report.startup_ms = startup.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    report
}

async fn close(link: Option<Link>) {
    if let Some(link) = link
        && let Err(error) = link.connection.close().await
    {
        tracing::debug!(
            error = mayfly_service::chain(&error),
            "connection did not close after its channel had"
        );
    }
}

/// From 0 to 1, another number in every process: spreads what workers that began together do.
fn jitter() -> f64 {
    let random = RandomState::new().hash_one(());
    #[expect(clippy::cast_precision_loss, reason = "a fraction")]
    let fraction = random as f64 / u64::MAX as f64;
    fraction
}

/// Connects to the ledger within the start deadline.
async fn reach(
    custody: &Custody,
    options: &Options,
    epoch: Instant,
    shutdown: &Shutdown,
) -> Result<(), NoLink> {
    let reached = tokio::select! {
        biased;
        () = shutdown.stop.cancelled() => return Err((ExitReason::AskedToStop, None)),
        reached = tokio::time::timeout_at(epoch + options.start_deadline, custody.prepare()) => reached,
    };
    match reached {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err((ExitReason::Misconfigured, Some(mayfly_service::chain(&error)))),
        Err(_) => {
            let limit = humantime::format_duration(options.start_deadline);
            let detail = format!("the ledger does not answer within {limit} (--start-deadline)");
            Err((ExitReason::GaveUp, Some(detail)))
        }
    }
}

/// What ends with the worker may take its time, until a second signal.
fn until_aborted(shutdown: &Shutdown) -> Interrupt {
    Interrupt { kill: shutdown.abort.clone(), ..Interrupt::default() }
}

/// Brings the handler up within the start deadline.
async fn prepare<H: Handler>(
    handler: &H,
    options: &Options,
    epoch: Instant,
    shutdown: &Shutdown,
) -> Result<(), NoLink> {
    let interrupt = Interrupt::default();
    let preparing = tokio::time::timeout_at(epoch + options.start_deadline, handler.prepare(&interrupt));
    tokio::pin!(preparing);
    let prepared = tokio::select! {
        biased;
        () = shutdown.stop.cancelled() => {
            interrupt.kill.cancel();
            // It may have begun something that it must end itself.
            let _ = preparing.await;
            handler.finish(&until_aborted(shutdown)).await;
            return Err((ExitReason::AskedToStop, None));
        }
        prepared = &mut preparing => prepared,
    };
    let detail = match prepared {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => {
            let limit = humantime::format_duration(options.start_deadline);
            format!("handler cannot start: not ready within {limit} (--start-deadline)")
        }
    };
    handler.finish(&until_aborted(shutdown)).await;
    Err((ExitReason::HandlerUnavailable, Some(detail)))
}

/// Tries for a connection until the window ends.
async fn connect<H: Handler>(
    options: &Options,
    topology: &Topology,
    prefetch: u16,
    window: &Window,
    shutdown: &Shutdown,
) -> Result<(Link, Intake), NoLink> {
    let mut pauses = backoff(FIRST_PAUSE, LONGEST_PAUSE).build();
    let mut last_error = window.cause.clone();
    // After a loss everybody comes back at once: not without a pause.
    let mut pause = if window.was_ready { pauses.next() } else { None };
    loop {
        let left = window.ends.saturating_duration_since(Instant::now());
        let tried = async {
            tokio::time::sleep(pause.unwrap_or_default()).await;
            // What is claimed elsewhere waits in a retry queue.
            let needs_companions = H::MAY_FAIL || options.ledger.is_some();
            let link = Link::open(options, topology, needs_companions).await?;
            link.consume(options, topology, Course::Queue, prefetch).await
        };
        let tried = tokio::select! {
            biased;
            () = shutdown.stop.cancelled() => return Err((ExitReason::AskedToStop, None)),
            tried = deadline("connect", left, tried) => tried,
        };
        let error: StartError = match tried {
            Ok(Ok(registered)) => return Ok(registered),
            Ok(Err(error)) => error,
            Err(out_of_time) => {
                let reason =
                    if window.was_ready { ExitReason::BrokerLost } else { ExitReason::BrokerUnreachable };
                return Err((reason, last_error.or_else(|| Some(out_of_time.to_string()))));
            }
        };
        let advice = error.advice(&options.queue);
        if !window.was_ready && !error.is_transient() {
            return Err((ExitReason::Misconfigured, Some(advice)));
        }
        tracing::warn!(error = advice, "cannot connect, will retry");
        last_error = Some(advice);
        pause = pauses.next();
    }
}
