//! The handlers that come with the worker: each means the same by the same outcome, gets every message as it
//! was published, and does no harm to others' messages when it fails.

mod examples;
mod faults;
mod fuzz;
mod headers;
mod names;
mod outcomes;

use anyhow::{Context, Result, ensure};
use lapin::{
    BasicProperties, Confirmation,
    message::BasicGetMessage,
    options::{BasicGetOptions, BasicPublishOptions},
    types::AMQPValue,
};
use mayfly_tests::{Bed, Client, Process, Program, node::free_port, until};
use serde_json::Value;

use super::{Crew, LIMIT, Worker, declare, exit};

/// A way to hand messages over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handler {
    Exec,
    Stdio,
    /// Bodies as they are.
    Http,
    /// All of a message as JSON.
    Envelope,
}

/// A worker with one kind of handler, behind which `brain.py` works.
struct Brain {
    worker: Worker,
    /// What `http` posts to; started again when it ends.
    server: Option<Process>,
}

/// All that differ in what they do with outcomes.
const HANDLERS: [Handler; 3] = [Handler::Exec, Handler::Stdio, Handler::Http];
const BRAIN: &str = include_str!("handlers/brain.py");
/// Starts a server again and again.
const KEEP_UP: &str = r#"while :; do python3 "$@"; done"#;

// === impl Handler ===

impl Handler {
    fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Stdio => "stdio",
            Self::Http => "http",
            Self::Envelope => "envelope",
        }
    }

    /// Starts a worker, and a server where one is needed. Names of files begin with `name`.
    fn start(self, crew: &Crew<'_>, name: &str, queue: &str, options: &[&str]) -> Result<Brain> {
        let brain = crew.bed.directory().join("brain.py");
        std::fs::write(&brain, BRAIN)?;
        let brain = brain.to_str().context("the name of a directory")?;
        let port = free_port()?.to_string();
        let url = format!("http://127.0.0.1:{port}/{}", self.name());
        let command: &[&str] = match self {
            Self::Exec => &["exec", "--", "python3", brain, "exec"],
            Self::Stdio => &["stdio", "--", "python3", brain, "stdio"],
            Self::Http => &["http", "--url", &url, "--health-path", "/health"],
            Self::Envelope => &["http", "--url", &url, "--envelope"],
        };
        let server = match self {
            Self::Exec | Self::Stdio => None,
            Self::Http | Self::Envelope => {
                let server = Program::new("/bin/sh".as_ref(), crew.bed.directory())
                    .args(["-c", KEEP_UP, "sh", brain, "http", &port])
                    .env("CREW", &crew.bed.queue)
                    .env("DIR", crew.bed.directory());
                Some(server.spawn(&format!("{name}-server"))?)
            }
        };
        let arguments = [&command[..1], &["--queue", queue], options, &command[1..]].concat();
        Ok(Brain { worker: crew.start(name, &arguments)?, server })
    }
}

// === impl Brain ===

impl Brain {
    /// Waits until it ended by idleness.
    async fn idles(&mut self) -> Result<mayfly_service::report::ExitReport> {
        self.worker.ends_with(exit::OK).await
    }
}

/// What `brain.py` noted in a file.
fn noted(bed: &Bed, file: &str) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(bed.directory().join(file)).unwrap_or_default();
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

async fn until_noted(bed: &Bed, file: &str, count: usize) -> Result<()> {
    until(&format!("{count} notes in {file}"), LIMIT, async || Ok(noted(bed, file)?.len() >= count)).await
}

fn forget(bed: &Bed, file: &str) {
    // An error means that there is none.
    let _ = std::fs::remove_file(bed.directory().join(file));
}

/// Publishes a message with any properties, and waits until the broker has it.
async fn publish(client: &Client, queue: &str, properties: BasicProperties, body: &[u8]) -> Result<()> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let published = client.channel().basic_publish("".into(), queue.into(), options, body, properties);
    let confirmation = published.await?.await?;
    ensure!(matches!(confirmation, Confirmation::Ack(None)), "not taken: {confirmation:?}");
    Ok(())
}

/// Takes the one message that must wait in `queue`.
async fn get(client: &Client, queue: &str) -> Result<BasicGetMessage> {
    let got = client.channel().basic_get(queue.into(), BasicGetOptions { no_ack: true }).await?;
    got.with_context(|| format!("nothing in {queue}"))
}

/// A header of a message, as text; empty without it.
fn text(message: &BasicGetMessage, name: &str) -> String {
    let headers = message.delivery.properties.headers().clone().unwrap_or_default();
    match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => String::new(),
    }
}

/// Waits until servers that were killed are gone, too.
async fn nothing_is_left(crew: &Crew<'_>) -> Result<()> {
    until("servers are gone", LIMIT, async || Ok(crew.running().is_empty())).await?;
    crew.nothing_is_left(&[]).await
}

fn with_id(id: &str) -> BasicProperties {
    BasicProperties::default().with_message_id(id.into()).with_delivery_mode(2)
}
