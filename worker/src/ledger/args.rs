//! Where the ledger is and how it is used, as the command line and the environment say.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use mayfly_service::tls::TlsFiles;

use super::{BadLedgerUrl, LedgerUrl, Terms, WhenDown};

/// Where the record of done messages is. Its URL is never an argument: arguments are visible to every user of
/// the machine.
#[derive(Debug, Args)]
pub(crate) struct LedgerArgs {
    /// File that holds the URL (redis://, rediss:// or postgres://) of a record of done messages, so that none of
    /// them runs again. Without it the variable `MAYFLY_LEDGER_URL` holds it; without both there is no ledger.
    #[arg(long, env = "MAYFLY_LEDGER_URL_FILE", value_name = "FILE")]
    ledger_url_file: Option<PathBuf>,
    /// Certificates of authorities (PEM) that are trusted besides the usual ones, for rediss:// and for
    /// postgres:// with sslmode=require.
    #[arg(long, env = "MAYFLY_LEDGER_CA_FILE", value_name = "FILE")]
    ledger_ca_file: Option<PathBuf>,
    /// What to do while the ledger does not answer.
    #[arg(long, env = "MAYFLY_LEDGER_DOWN", value_name = "stop|ignore", default_value = "stop")]
    ledger_down: WhenDown,
    /// How long a message is remembered after it was done; longer than one can come back.
    #[arg(long, env = "MAYFLY_LEDGER_KEEP", value_name = "TIME", default_value = "7d", value_parser = humantime::parse_duration)]
    ledger_keep: Duration,
    /// How long nobody else may take over a message whose worker is gone; renewed while it is worked on.
    #[arg(long, env = "MAYFLY_LEDGER_LEASE", value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    ledger_lease: Duration,
    /// The header that holds a message's id; messages without it are known by their `message_id`.
    #[arg(long, env = "MAYFLY_ID_HEADER", value_name = "NAME")]
    id_header: Option<String>,
}

/// A ledger and how it is used.
#[derive(Debug, Clone)]
pub struct LedgerOptions {
    /// Where it is.
    pub url: LedgerUrl,
    /// Whom to trust where the URL asks for TLS.
    pub tls: TlsFiles,
    /// How long claims and records last.
    pub terms: Terms,
    /// What to do while it does not answer.
    pub when_down: WhenDown,
    /// The header that holds a message's id; messages without it are known by their `message_id`.
    pub id_header: Option<String>,
}

/// Options of the ledger that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadLedger {
    /// The URL.
    #[error(transparent)]
    Url(#[from] BadLedgerUrl),
    /// Renewed at a third, by a clock of another machine.
    #[error("--ledger-lease {0:?} is too short: at least 3s")]
    ShortLease(Duration),
    /// A record must outlive the claims on its message.
    #[error("--ledger-keep {keep:?} is shorter than --ledger-lease {lease:?}")]
    ShortKeep {
        /// As given.
        keep: Duration,
        /// As given.
        lease: Duration,
    },
}

/// The environment variable that holds the URL.
const URL: &str = "MAYFLY_LEDGER_URL";
const SHORTEST_LEASE: Duration = Duration::from_secs(3);

// === impl LedgerOptions ===

impl LedgerOptions {
    /// The ledger at `url` with the defaults of the command line.
    #[must_use]
    pub fn new(url: LedgerUrl) -> Self {
        let terms = Terms { lease: Duration::from_secs(30), keep: Duration::from_hours(7 * 24) };
        Self { url, tls: TlsFiles::default(), terms, when_down: WhenDown::Stop, id_header: None }
    }
}

// === impl LedgerArgs ===

impl LedgerArgs {
    /// What is said about the ledger; `None`: there is none.
    ///
    /// # Errors
    /// [`BadLedger`] when it makes no sense.
    pub(crate) fn load(&self) -> Result<Option<LedgerOptions>, BadLedger> {
        let Self { ledger_url_file, ledger_ca_file, ledger_down, ledger_keep, ledger_lease, id_header } =
            self;
        let url = match ledger_url_file {
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .map_err(|source| BadLedgerUrl::File { path: path.clone(), source })?,
            ),
            None => std::env::var(URL).ok().filter(|text| !text.trim().is_empty()),
        };
        let Some(url) = url else { return Ok(None) };
        let (lease, keep) = (*ledger_lease, *ledger_keep);
        if lease < SHORTEST_LEASE {
            return Err(BadLedger::ShortLease(lease));
        }
        if keep < lease {
            return Err(BadLedger::ShortKeep { keep, lease });
        }
        Ok(Some(LedgerOptions {
            url: url.parse()?,
            tls: TlsFiles { ca: ledger_ca_file.clone(), ..TlsFiles::default() },
            terms: Terms { lease, keep },
            when_down: *ledger_down,
            id_header: id_header.clone(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        ledger: LedgerArgs,
    }

    fn load(arguments: &[&str]) -> Result<Option<LedgerOptions>, String> {
        let line = ["program"].iter().chain(arguments);
        Line::try_parse_from(line).unwrap().ledger.load().map_err(|error| error.to_string())
    }

    #[test]
    fn the_library_and_the_command_line_agree_on_the_defaults() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "redis://h\n").unwrap();
        let loaded = load(&["--ledger-url-file", file.path().to_str().unwrap()]).unwrap().unwrap();
        assert_eq!(format!("{loaded:?}"), format!("{:?}", LedgerOptions::new("redis://h".parse().unwrap())));
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_any_connection() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "redis://h\n").unwrap();
        let file = file.path().to_str().unwrap();
        let told =
            |arguments: &[&str]| load(&[&["--ledger-url-file", file], arguments].concat()).unwrap_err();
        assert_eq!(told(&["--ledger-lease", "2s"]), "--ledger-lease 2s is too short: at least 3s");
        assert_eq!(told(&["--ledger-keep", "10s"]), "--ledger-keep 10s is shorter than --ledger-lease 30s");
        assert!(load(&["--ledger-url-file", "/absent/url"]).unwrap_err().contains("/absent/url"));
    }

    #[test]
    fn without_a_url_there_is_no_ledger() {
        assert!(load(&["--ledger-down", "ignore"]).unwrap().is_none());
    }
}
