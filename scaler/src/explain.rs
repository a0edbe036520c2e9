//! `mayfly-scaler explain`: what a running scaler sees, what it decided, why, and what would have to change.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper::{StatusCode, body::Bytes};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use mayfly_service::{ExitCode, deadline};
use serde::{Deserialize, Serialize};

use crate::{policy::LastFailure, setup::Refused, status::Input};

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// One pool; all if absent.
    pool: Option<String>,
    /// Where the scaler serves /status: what it was given as --admin-listen.
    #[arg(long, env = "MAYFLY_ADMIN_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    admin: SocketAddr,
    /// For people, or one JSON object.
    #[arg(long, env = "MAYFLY_OUTPUT", value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// What of the status page explains a decision.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Page {
    instance: String,
    at: String,
    dry_run: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<Refused>,
    pools: BTreeMap<String, Pool>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pool {
    decision: String,
    reason: String,
    text: String,
    launches: String,
    inputs: Vec<Input>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_failure: Option<LastFailure>,
}

/// How long the scaler may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Asks and prints. The outcome is `Usage` for a pool that is not there, `Unavailable` without an answer.
///
/// # Errors
/// When nothing can be printed, or the answer is not that of a scaler.
#[expect(clippy::print_stderr, reason = "a refusal is for the person at the terminal")]
pub async fn explain(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let ExplainArgs { pool, admin, output } = args;
    let text = match status(admin).await {
        Ok(text) => text,
        Err(error) => {
            eprintln!(
                "error: {error:#}; start it with --admin-listen ADDRESS and give explain the same as --admin"
            );
            return Ok(ExitCode::Unavailable);
        }
    };
    let mut page: Page = serde_json::from_str(&text)
        .with_context(|| format!("what {admin} answers is not the status of a scaler of this version"))?;
    if let Some(name) = pool {
        if !page.pools.contains_key(&name) {
            let there: Vec<_> = page.pools.keys().map(String::as_str).collect();
            eprintln!("error: pool {name:?} is not configured; there are: {}", there.join(", "));
            return Ok(ExitCode::Usage);
        }
        page.pools.retain(|pool, _| *pool == name);
    }
    let mut out = io::stdout().lock();
    match output {
        Output::Text => write!(out, "{page}")?,
        Output::Json => {
            serde_json::to_writer(&mut out, &page)?;
            writeln!(out)?;
        }
    }
    Ok(ExitCode::Ok)
}

/// The status page of the scaler at `admin`.
async fn status(admin: SocketAddr) -> anyhow::Result<String> {
    let uri = format!("http://{}/status", reachable(admin)).parse().context("no address")?;
    let client: Client<_, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).timer(TokioTimer::new()).build_http();
    let exchange = async {
        let answer = client.get(uri).await.with_context(|| format!("no scaler answers at {admin}"))?;
        let status = answer.status();
        let body = answer.into_body().collect().await.context("the answer broke off")?.to_bytes();
        anyhow::Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    let (status, body) = deadline("answer of the scaler", ANSWER_LIMIT, exchange).await??;
    match status {
        StatusCode::OK => Ok(body),
        StatusCode::SERVICE_UNAVAILABLE => {
            bail!("the scaler at {admin} has seen nothing yet: ask again soon")
        }
        other => bail!("what listens at {admin} answers with {other}: it is no scaler"),
    }
}

/// Whoever listens on all addresses is reached by the loopback one.
fn reachable(admin: SocketAddr) -> SocketAddr {
    match admin.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), admin.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), admin.port())
        }
        _ => admin,
    }
}

// === impl Page ===

impl fmt::Display for Page {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, at, dry_run, refused, pools } = self;
        writeln!(formatter, "instance {instance}, as of {at}")?;
        if *dry_run {
            writeln!(formatter, "dry run: it only tells, and launches nothing")?;
        }
        if let Some(Refused { since, error }) = refused {
            writeln!(formatter, "configuration refused at {since}, the one before stays in force: {error}")?;
        }
        for (name, Pool { decision: _, reason, text, launches, inputs, last_failure }) in pools {
            writeln!(formatter, "\npool {name}: {reason}")?;
            writeln!(formatter, "  {:<24} {text}", "decided")?;
            writeln!(formatter, "  {:<24} {launches}", "launches")?;
            if let Some(LastFailure { at, worker, why, last_words }) = last_failure {
                writeln!(formatter, "  {:<24} {at}: {worker} {why}", "last failure")?;
                for line in last_words.iter().flat_map(|words| words.lines()) {
                    writeln!(formatter, "    | {line}")?;
                }
            }
            let mut queue = &None;
            for input in inputs {
                if input.queue != *queue {
                    queue = &input.queue;
                    if let Some(queue) = queue {
                        writeln!(formatter, "  queue {queue}")?;
                    } else {
                        writeln!(formatter, "  in the pool")?;
                    }
                }
                let Input { what, text, source, estimate, .. } = input;
                let estimated = if *estimate { "estimated from " } else { "" };
                writeln!(formatter, "    {what:<22} {text} ({estimated}{source})")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
