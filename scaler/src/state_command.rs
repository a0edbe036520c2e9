//! `mayfly-scaler state`: what the scaler remembers, for people.

use std::{fmt::Write, path::PathBuf};

use anyhow::{Context, bail};
use mayfly_service::ExitCode;

use crate::{
    cluster::Cluster,
    config::{Config, LauncherConfig, Overrides},
    control::alive,
    launcher::{KubernetesLauncher, Launcher, Look, ProcessLauncher},
    policy::{Arrivals, LastFailure, LeadTimes, PoolState, StateRecord, judge},
    state::{ConfigMapState, FileState, StateError, StateStore},
    time::{Clock, Time},
};

/// Tries against scalers that write at the same moment.
const TRIES: u32 = 20;

/// Arguments of `state`.
#[derive(Debug, clap::Args)]
pub struct StateArgs {
    /// The configuration of the instance.
    #[arg(env = "MAYFLY_CONFIG", value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    command: StateCommand,
}

#[derive(Debug, clap::Subcommand)]
enum StateCommand {
    /// Show the record.
    Show {
        /// `text` for people, `json` as it is stored.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Move a damaged record aside and rebuild it from the workers that are there. Pause and cool-down of all
    /// pools are lost; serials go on behind the highest one seen.
    Repair,
    /// Launch nothing more. In force at once, for every scaler of the instance.
    Pause {
        /// One pool; everything if absent, also pools that are configured later.
        pool: Option<String>,
    },
    /// Launch again.
    Resume {
        /// One pool. If absent, the pause of everything ends; pools that were paused by name stay so.
        pool: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

/// Carries a `state` command out.
///
/// # Errors
/// When the record cannot be read or written.
#[expect(clippy::print_stderr, reason = "this command's output")]
pub async fn state(args: StateArgs) -> anyhow::Result<ExitCode> {
    let StateArgs { config, command } = args;
    let config = match Config::load(&config, &Overrides::default()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {:#}", anyhow::Error::from(error));
            return Ok(ExitCode::Usage);
        }
    };
    let done = match &config.launcher {
        LauncherConfig::Process { directory, start_delay } => {
            if !directory.is_dir() {
                eprintln!(
                    "error: {} does not exist: no scaler ever ran with this configuration",
                    directory.display()
                );
                return Ok(ExitCode::Config);
            }
            let launcher = ProcessLauncher::new(&config.instance, directory, *start_delay)?;
            carry_out(command, &FileState::new(directory), &launcher, &config).await
        }
        LauncherConfig::Kubernetes { namespace, .. } => {
            let cluster = match Cluster::infer(namespace.as_deref()).await {
                Ok(cluster) => cluster,
                Err(error) => {
                    eprintln!("error: {:#}", anyhow::Error::from(error));
                    return Ok(ExitCode::Usage);
                }
            };
            let launcher = KubernetesLauncher::new(cluster.clone(), &config.instance, false);
            carry_out(command, &ConfigMapState::new(cluster, &config.instance), &launcher, &config).await
        }
    };
    match done {
        Ok(()) => Ok(ExitCode::Ok),
        Err(error) if error.downcast_ref::<StateError>().is_some_and(StateError::needs_repair) => {
            eprintln!("error: {error:#}");
            Ok(ExitCode::Config)
        }
        Err(error) => Err(error),
    }
}

#[expect(clippy::print_stdout, reason = "this command's output")]
async fn carry_out(
    command: StateCommand,
    state: &impl StateStore,
    launcher: &impl Launcher,
    config: &Config,
) -> anyhow::Result<()> {
    let now = Clock::start().now();
    match command {
        StateCommand::Show { output } => print!("{}", show(state, output, now).await?),
        StateCommand::Repair => println!("{}", repair(state, launcher, config, now).await?),
        StateCommand::Pause { pool } => {
            println!("{}", pause(state, launcher, config, pool.as_deref(), true).await?);
        }
        StateCommand::Resume { pool } => {
            println!("{}", pause(state, launcher, config, pool.as_deref(), false).await?);
        }
    }
    Ok(())
}

async fn show(state: &impl StateStore, output: Output, now: Time) -> anyhow::Result<String> {
    let record = state.read().await?;
    if output == Output::Json {
        return Ok(serde_json::to_string_pretty(&record)? + "\n");
    }
    Ok(record
        .map_or_else(|| "no record: nothing was launched yet\n".to_owned(), |record| describe(&record, now)))
}

fn describe(record: &StateRecord, now: Time) -> String {
    let mut text = format!("revision {}, epoch {}\n", record.revision, record.epoch);
    if record.paused {
        text.push_str("everything is paused\n");
    }
    for (name, pool) in &record.pools {
        // Writing to a string cannot fail.
        let _ = write!(text, "pool {name}\n{}", describe_pool(pool, now));
    }
    text
}

fn describe_pool(pool: &PoolState, now: Time) -> String {
    let PoolState {
        next_serial,
        last_settled_launch,
        failures,
        cooldown_until,
        last_failure,
        at_capacity,
        paused,
        intents,
        judged,
        estimates,
    } = pool;
    let ago = |at: Time| format!("{at} ({:.0} s ago)", now.since(at).as_secs_f64());
    let mut text = format!("  launches so far   {}\n", next_serial.saturating_sub(1));
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<17} {value}");
    };
    line("last launch", last_settled_launch.map_or_else(|| "never".to_owned(), ago));
    line("paused", if *paused { "yes" } else { "no" }.to_owned());
    let since = failures.last.map_or_else(String::new, |last| format!(", the last at {}", ago(last)));
    line("failures in a row", format!("{}{since}", failures.count));
    if let Some(LastFailure { at, worker, why, last_words }) = last_failure {
        line("last failure", format!("{}: {worker} {why}", ago(*at)));
        for words in last_words.iter().flat_map(|words| words.lines()) {
            line("", format!("| {words}"));
        }
    }
    if let Some(until) = cooldown_until.filter(|until| *until > now) {
        line("cooling down", format!("until {until}"));
    }
    if let Some(capacity) = at_capacity.as_ref().filter(|capacity| capacity.until > now) {
        line("at capacity", capacity.detail.clone());
    }
    for intent in intents {
        line(
            "open launch",
            format!(
                "serial {}, slot {}, {}: {}",
                intent.serial,
                intent.slot,
                ago(intent.stamp),
                intent.reason
            ),
        );
    }
    if !judged.is_empty() {
        line("ended, counted", judged.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    }
    if let Some(time) = estimates.service_time {
        line("service time", format!("{:.0} ms a message", time.seconds() * 1000.0));
    }
    if let Some(time) = estimates.counted_service_time {
        line("by counters", format!("{:.0} ms a message", time.seconds() * 1000.0));
    }
    let LeadTimes { warm, cold } = estimates.lead_times(&[]);
    for (name, lead) in [("lead time", warm), ("with its node", cold)] {
        if let Some(lead) = lead {
            line(name, format!("{:.1} s", lead.as_secs_f64()));
        }
    }
    if let Some(places) = estimates.pods_per_node {
        line("a node holds", format!("{places} or more"));
    }
    for (queue, arrivals) in &estimates.arrivals {
        line("arrivals", format!("{:.2} messages/s in {queue}", Arrivals::per_second(arrivals)));
    }
    text
}

async fn repair(
    state: &impl StateStore,
    launcher: &impl Launcher,
    config: &Config,
    now: Time,
) -> anyhow::Result<String> {
    let aside = match state.read().await {
        Ok(Some(_)) => return Ok("the record is sound, nothing to repair".to_owned()),
        Ok(None) => None,
        Err(StateError::Corrupt { .. }) => {
            Some(state.set_aside(&format!("damaged-{}", now.as_millis())).await?)
        }
        Err(error) => return Err(error.into()),
    };
    let workers = launcher.list(Look::Fresh, now).await.context("the workers cannot be listed")?;
    let rebuilt = judge(&StateRecord::new(now), &workers, config, now).record;
    state.replace(None, rebuilt).await.context("the rebuilt record cannot be written")?;
    let aside = aside.map_or_else(String::new, |aside| format!("; the damaged one is kept as {aside}"));
    Ok(format!(
        "rebuilt from {} workers{aside}\npause and cool-down of all pools are lost: see `state pause`",
        workers.len()
    ))
}

async fn pause(
    state: &impl StateStore,
    launcher: &impl Launcher,
    config: &Config,
    pool: Option<&str>,
    paused: bool,
) -> anyhow::Result<String> {
    if let Some(name) = pool.filter(|name| config.pool(name).is_none()) {
        let known: Vec<_> = config.pools.iter().map(|pool| &*pool.name).collect();
        bail!("pool {name:?} is not configured; there are: {}", known.join(", "))
    }
    for _ in 0..TRIES {
        let now = Clock::start().now();
        let stored = state.read().await?;
        let expected = stored.as_ref().map(|record| record.revision);
        let mut record = match stored {
            Some(record) => record,
            None => first_record(launcher, now).await?,
        };
        match pool {
            Some(name) => record.pool_mut(name).paused = paused,
            None => record.paused = paused,
        }
        match state.replace(expected, record).await {
            Err(StateError::Conflict) => {}
            written => return Ok(paused_or_not(&written?, pool, paused)),
        }
    }
    bail!("the record changes too fast to write it; try again")
}

/// A new record is only for where nothing lives: beside workers it was lost, and scalers hold for a while because
/// of that, until a new one is there.
async fn first_record(launcher: &impl Launcher, now: Time) -> anyhow::Result<StateRecord> {
    let workers = launcher.list(Look::Fresh, now).await.context("the workers cannot be listed")?;
    match alive(&workers) {
        0 => Ok(StateRecord::new(now)),
        alive => bail!(
            "the record is missing, though {alive} workers live: scalers hold for two minutes and rebuild it, \
             `state repair` does so at once; then try again"
        ),
    }
}

/// What is in force now, in words.
fn paused_or_not(record: &StateRecord, pool: Option<&str>, paused: bool) -> String {
    let name = pool.unwrap_or("everything");
    if paused {
        return format!("{name}: paused: nothing more is launched, workers go on");
    }
    let others: Vec<_> =
        record.pools.iter().filter(|(_, state)| state.paused).map(|(name, _)| &**name).collect();
    match pool {
        Some(_) if record.paused => {
            format!("{name}: resumed, but everything is paused: see `state resume` without a pool")
        }
        None if !others.is_empty() => {
            format!("{name}: resumed, but for pools paused by name: {}", others.join(", "))
        }
        _ => format!("{name}: resumed"),
    }
}

#[cfg(test)]
mod tests;
