//! `mayfly-scaler check`: is the configuration right, what does it mean, are its queues there?

mod cluster;
mod counters;
mod explain;
mod queues;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use mayfly_broker::BrokerArgs;
use mayfly_service::ExitCode;
use serde::Serialize;

use crate::{
    cluster::Cluster,
    config::{Config, LauncherConfig, Overrides},
};
use explain::{Explanation, explain};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The configuration.
    #[arg(env = "MAYFLY_CONFIG", value_name = "FILE")]
    file: PathBuf,
    /// Also ask the broker whether the queues are there, and the cluster for templates, state record and
    /// permissions.
    #[arg(long, env = "MAYFLY_CHECK_CONNECT")]
    connect: bool,
    /// For people, or one JSON object.
    #[arg(long, env = "MAYFLY_OUTPUT", value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    overrides: Overrides,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Everything that `check` found out.
#[derive(Debug, Default, Serialize)]
struct Findings {
    /// What is wrong with the configuration, or with the broker as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What a valid configuration means.
    #[serde(skip_serializing_if = "Option::is_none")]
    meaning: Option<Explanation>,
    /// What the broker said; empty unless asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    queues: Vec<queues::Answer>,
    /// Whether a connection may have too few channels; absent unless asked, or where it may not.
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<queues::FewChannels>,
    /// Which broker answered; absent unless asked, or where it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    broker: Option<counters::Release>,
    /// From what ages are told; empty unless asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    counters: Vec<counters::Answer>,
    /// What the cluster said; empty unless asked, or without one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cluster: Vec<cluster::Answer>,
}

/// Checks and prints. The outcome is `Ok`, `Usage` for a bad configuration, or what the broker's answer means:
/// `Unavailable` without one, `Config` for a queue that is missing or forbidden; the same for the cluster.
///
/// # Errors
/// When nothing can be printed.
pub async fn check(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let output = args.output;
    let (findings, code) = look(args).await;
    match output {
        Output::Text => findings.print(&mut io::stdout().lock(), &mut io::stderr().lock())?,
        Output::Json => {
            let mut out = io::stdout().lock();
            serde_json::to_writer(&mut out, &findings)?;
            writeln!(out)?;
        }
    }
    Ok(code)
}

async fn look(args: CheckArgs) -> (Findings, ExitCode) {
    let CheckArgs { file, connect, output: _, broker, overrides } = args;
    let mut findings = Findings::default();
    let code = match Config::load(&file, &overrides) {
        Ok(config) => {
            findings.meaning = Some(explain(&config));
            if connect {
                // Both are asked: whoever sets things up wants to know all that is missing.
                let cluster = findings.ask_cluster(&config).await;
                let broker = findings.ask_broker(&config, &broker).await;
                if broker == ExitCode::Ok { cluster } else { broker }
            } else {
                ExitCode::Ok
            }
        }
        Err(error) => findings.fail(&error.into(), ExitCode::Usage),
    };
    (findings, code)
}

// === impl Findings ===

impl Findings {
    async fn ask_cluster(&mut self, config: &Config) -> ExitCode {
        let LauncherConfig::Kubernetes { namespace, .. } = &config.launcher else { return ExitCode::Ok };
        match Cluster::infer(namespace.as_deref()).await {
            Ok(cluster) => {
                self.cluster = cluster::ask(&cluster, config).await;
                cluster::Answer::exit_code(&self.cluster)
            }
            Err(error) => self.fail(&error.into(), ExitCode::Usage),
        }
    }

    async fn ask_broker(&mut self, config: &Config, flags: &BrokerArgs) -> ExitCode {
        let url = match config.broker_args(flags).load() {
            Ok(url) => url,
            Err(error) => return self.fail(&error.into(), ExitCode::Usage),
        };
        match queues::ask(&url, config).await {
            Ok(answers) => {
                self.queues = answers.queues;
                self.channels = answers.channels;
                self.broker = counters::Release::ask(&url).await;
                self.counters = counters::ask(&url, config, self.broker.as_ref()).await;
                let queues = queues::Answer::exit_code(&self.queues);
                if queues == ExitCode::Ok { counters::Answer::exit_code(&self.counters) } else { queues }
            }
            Err(error) => {
                let code = error.exit_code();
                self.fail(&error.into(), code)
            }
        }
    }

    fn fail(&mut self, error: &anyhow::Error, code: ExitCode) -> ExitCode {
        let error = format!("{error:#}");
        self.error = Some(match self.error.take() {
            Some(before) => format!("{before}; {error}"),
            None => error,
        });
        code
    }

    fn print(&self, out: &mut impl Write, err: &mut impl Write) -> io::Result<()> {
        let Self { error, meaning, queues, channels, broker, counters, cluster } = self;
        if let Some(meaning) = meaning {
            write!(out, "{meaning}")?;
        }
        if !queues.is_empty() {
            writeln!(out, "\nat the broker")?;
        }
        if let Some(broker) = broker {
            writeln!(out, "  {broker}")?;
        }
        for answer in queues {
            writeln!(out, "  {answer}")?;
        }
        if let Some(few) = channels {
            writeln!(out, "  {few}")?;
        }
        for answer in counters {
            writeln!(out, "  {answer}")?;
        }
        if !cluster.is_empty() {
            writeln!(out, "\nin the cluster")?;
        }
        for answer in cluster {
            writeln!(out, "  {answer}")?;
        }
        out.flush()?;
        if let Some(error) = error {
            writeln!(err, "error: {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
