//! The program around the worker: start claim, admin server, exit report.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    time::Duration,
};

use clap::{CommandFactory, Parser};
use mayfly_broker::BrokerArgs;
use mayfly_service::{
    ExitCode, Shutdown,
    admin::{AdminServer, Readiness},
    chain, contract,
    log::LogArgs,
    metrics,
    report::{ExitReason, ExitReport},
    tls::install_provider,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    args::{Cli, Command, HttpArgs, OwnCli, TERMINATION_LOG, TryArgs, WorkArgs},
    handler::{Exec, Handler, Http, HttpOptions, Program, Sleep, Stdio},
    install::install,
    options::Options,
    probe::probe,
    report::{exit_code, report, write_termination_log},
    status::{Announcer, StatusFile},
    tally::Tally,
    work::work_announced,
};

/// The first descriptor that is none of the standard streams.
const FIRST_OTHER: i32 = 3;

/// Reads the command line. A refusal is printed, and told wherever an end is told.
///
/// # Errors
/// The exit code to end with: 0 after help or version, 64 after bad usage.
pub fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| refused(&error))
}

/// A whole program around a handler in Rust: takes the options of `mayfly-worker` from the command line and the
/// environment, works until the queue stays idle or `shutdown` asks to stop, and tells its end wherever an end
/// is told. Returns what to exit with.
pub async fn run_with<H: Handler>(handler: H, shutdown: Shutdown) -> ExitCode {
    install_provider();
    let OwnCli { log, broker, work, tries } = match OwnCli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    if let Err(code) = start_log::<OwnCli>(&log) {
        return code;
    }
    launch(&work, Some(&tries), &broker, handler, &shutdown).await
}

/// A log filter that makes no sense is bad usage of `C`, like every other option.
fn start_log<C: CommandFactory>(log: &LogArgs) -> Result<(), ExitCode> {
    log.init()
        .map_err(|error| refused(&C::command().error(clap::error::ErrorKind::InvalidValue, chain(&error))))
}

/// Tells that the command line is no good. There are no options then: where to tell it comes from the
/// environment. Without it the scaler would take this worker for one that never got to start, and launch it
/// again and again.
fn refused(error: &clap::Error) -> ExitCode {
    // Nothing can be done when even this fails.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::Ok;
    }
    let report = ExitReport::new(ExitReason::Misconfigured).with_detail(&error.render().to_string());
    write_termination_log(std::env::var_os(TERMINATION_LOG).as_deref().map(Path::new), &report);
    if let Some(path) = std::env::var_os(contract::STATUS_FILE)
        && let Ok(file) = StatusFile::open(path.as_ref())
    {
        file.exit(&report, ExitCode::Usage.code());
    }
    ExitCode::Usage
}

/// Does what the command line says and returns what to exit with.
pub async fn run(cli: Cli, shutdown: Shutdown) -> ExitCode {
    let Cli { log, broker, command } = cli;
    if let Err(code) = start_log::<Cli>(&log) {
        return code;
    }
    // What was left open to us is no handler's business; all that we open ourselves is closed there anyway.
    close_fds::set_fds_cloexec(FIRST_OTHER, &[]);
    match command {
        Command::Sleep(args) => {
            let handler = Sleep { time: args.time };
            launch(&args.work, None, &broker, handler, &shutdown).await
        }
        Command::Noop(args) => {
            let handler = Sleep { time: Duration::ZERO };
            launch(&args.work, None, &broker, handler, &shutdown).await
        }
        Command::Exec(args) => {
            let handler = Exec::new(program(args.command, &broker), &args.work.queue);
            launch(&args.work, Some(&args.tries), &broker, handler, &shutdown).await
        }
        Command::Stdio(args) => {
            let start_limit = handler_limit(args.work.start_deadline);
            let handler = Stdio::new(program(args.command, &broker), &args.work.queue, start_limit);
            launch(&args.work, Some(&args.tries), &broker, handler, &shutdown).await
        }
        Command::Http(args) => {
            let HttpArgs { work, tries, url, health_path, envelope } = args;
            let options = HttpOptions { url, health_path, envelope };
            let handler = Http::new(options, &work.queue, handler_limit(work.start_deadline));
            launch(&work, Some(&tries), &broker, handler, &shutdown).await
        }
        Command::Install(args) => install(&args.directory),
        Command::Ready(args) => probe(args.admin_listen).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "mayfly-worker", &mut std::io::stdout());
            ExitCode::Ok
        }
    }
}

/// The user's program, which gets to see nothing of the broker.
fn program(words: Vec<OsString>, broker: &BrokerArgs) -> Program {
    Program::new(words, std::env::vars_os(), OsStr::new(&broker.broker_url_env))
}

/// A little less than the worker gives its handler at start, so that the handler can still say what is wrong.
fn handler_limit(start_deadline: Duration) -> Duration {
    start_deadline.mul_f64(0.95)
}

/// Claims the start, works, and tells the end wherever it should be told.
async fn launch<H: Handler>(
    args: &WorkArgs,
    tries: Option<&TryArgs>,
    broker: &BrokerArgs,
    handler: H,
    shutdown: &Shutdown,
) -> ExitCode {
    let status = match args.launch.status_file.as_deref().map(StatusFile::open).transpose() {
        Ok(status) => status,
        Err(error) => {
            tracing::error!(%error, "cannot open the status file");
            return ExitCode::Config;
        }
    };
    let announcer = Announcer::new(status, Readiness::default());
    let (report, code) = match begin(args, &announcer, shutdown).await {
        Err(report) => {
            let code = exit_code(report.reason);
            (report, code)
        }
        Ok(epoch) => match broker
            .load()
            .map_err(|error| chain(&error))
            .and_then(|url| Options::from_args(args, tries, url).map_err(|error| error.to_string()))
            .and_then(|options| {
                let ledger = args.ledger.load().map_err(|error| chain(&error))?;
                Ok(Options { ledger, ..options })
            }) {
            Err(error) => (refusal(&error), ExitCode::Usage),
            Ok(options) => {
                // On the heap: large.
                let report = Box::pin(serve(args, &options, handler, shutdown, &announcer, epoch)).await;
                let code = exit_code(report.reason);
                (report, code)
            }
        },
    };
    tell(&report, code);
    write_termination_log(args.termination_log.as_deref(), &report);
    if let Some(file) = announcer.file() {
        file.exit(&report, code.code());
    }
    code
}

/// Under the process launcher: becomes a session of its own, so that what a killed worker leaves behind can
/// be found, and waits for its turn. Returns when the worker's life begins, or why it doesn't.
async fn begin(args: &WorkArgs, announcer: &Announcer, shutdown: &Shutdown) -> Result<Instant, ExitReport> {
    let Some(file) = announcer.file() else {
        return Ok(Instant::now());
    };
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "already a process group leader");
    }
    let internal =
        |error: std::io::Error| ExitReport::new(ExitReason::Internal).with_detail(&error.to_string());
    if let Some(reason) = file.claim_start(args.launch.start_delay, shutdown).await.map_err(internal)? {
        return Err(ExitReport::new(reason));
    }
    let epoch = Instant::now();
    file.started().map_err(internal)?;
    Ok(epoch)
}

/// Works, with the admin server beside it where one is wanted.
async fn serve<H: Handler>(
    args: &WorkArgs,
    options: &Options,
    handler: H,
    shutdown: &Shutdown,
    announcer: &Announcer,
    epoch: Instant,
) -> ExitReport {
    let work = work_announced(options, handler, shutdown, announcer, epoch);
    let Some(address) = args.admin_listen else {
        return work.await;
    };
    let server = match AdminServer::bind(address).await {
        Ok(server) => server,
        Err(error) => return refusal(&chain(&error)),
    };
    let stop = CancellationToken::new();
    let routes = metrics::routes(announcer.metrics().registry(args.launch.pool.as_deref()));
    let serving = async {
        if let Err(error) = server.serve(announcer.readiness(), routes, stop.clone()).await {
            tracing::warn!(%error, "admin server ended");
        }
    };
    let work_and_stop = async {
        let report = work.await;
        stop.cancel();
        report
    };
    // Without its admin server the worker goes on.
    let (report, ()) = tokio::join!(work_and_stop, serving);
    report
}

fn refusal(detail: &str) -> ExitReport {
    report(ExitReason::Misconfigured, Some(detail), &Tally::default())
}

/// The summary, one line.
fn tell(report: &ExitReport, code: ExitCode) {
    let ExitReport {
        version: _,
        reason,
        detail,
        messages,
        done,
        known,
        unrecorded,
        retried,
        dead_lettered,
        suspected,
        given_back,
        busy_ms,
        idle_ms,
        startup_ms,
        peak_memory,
    } = report;
    let reason = reason.as_str();
    let exit_code = code.code();
    match detail {
        Some(error) if code == ExitCode::Ok => tracing::warn!(reason, error, "ends in spite of an error"),
        Some(error) => tracing::error!(reason, exit_code, error, "ends with an error"),
        None => {}
    }
    tracing::info!(
        reason,
        exit_code,
        messages,
        done,
        known,
        unrecorded,
        retried,
        dead_lettered,
        suspected,
        given_back,
        busy_ms,
        idle_ms,
        startup_ms,
        peak_memory,
        "ended"
    );
}
