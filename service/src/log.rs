//! Structured logs on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How a program logs; flattened into its arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// What to log: a level, or directives such as `info,mayfly_worker::message=debug`.
    #[arg(long = "log", env = "MAYFLY_LOG", value_name = "FILTER", default_value = "info", global = true)]
    filter: String,
    /// How to write it: `text` for people, `json` for collectors (one object a line).
    #[arg(
        long = "log-format",
        env = "MAYFLY_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        global = true
    )]
    format: LogFormat,
}

/// These libraries log as errors what they also return as errors, a missing queue for example. Those who want
/// to see that ask for it by name: `info,lapin=info`.
const QUIET: &str = "lapin=off,kube_client=off";

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The filter given by `--log` cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("log filter {filter:?} is not valid")]
pub struct BadFilter {
    filter: String,
    #[source]
    source: tracing_subscriber::filter::ParseError,
}

// === impl LogArgs ===

impl LogArgs {
    /// Installs the process's subscriber. Later calls in one process change nothing.
    ///
    /// # Errors
    /// [`BadFilter`] when the filter has no meaning.
    pub fn init(&self) -> Result<(), BadFilter> {
        let filter = EnvFilter::try_new(format!("{QUIET},{}", self.filter))
            .map_err(|source| BadFilter { filter: self.filter.clone(), source })?;
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        // An error means that a subscriber is there already.
        let _ = match self.format {
            LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
            LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
        };
        Ok(())
    }
}
