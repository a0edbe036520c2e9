//! The examples do what they say.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use mayfly_tests::{Bed, Kind, Program, node::free_port, on_each_release, process::program_path};
use serde_json::{Value, json};

use super::{Crew, declare, exit, nothing_is_left, publish, with_id};

on_each_release!(the_examples_do_what_they_say);

/// A message, and the words in it; `None` for what is no text.
const MESSAGES: [(&str, &[u8], Option<u64>); 3] =
    [("one", b"one two three", Some(3)), ("a/b c", b"", Some(0)), ("broken", b"\xff", None)];

async fn the_examples_do_what_they_say(bed: &Bed) -> Result<()> {
    let crew = Crew::new(bed);
    let client = bed.client().await?;
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").canonicalize()?;
    let path = |name: &str| examples.join(name).to_string_lossy().into_owned();
    let port = free_port()?.to_string();
    let url = format!("http://127.0.0.1:{port}/work");
    let (exec, stdio, server) =
        (path("python-exec/count.py"), path("python-stdio/count.py"), path("python-http/server.py"));
    let cases: [(&str, &[&str]); 3] = [
        ("exec", &["exec", "--", &exec]),
        ("stdio", &["stdio", "--", &stdio]),
        ("http", &["http", "--url", &url, "--health-path", "/health"]),
    ];
    for (name, command) in cases {
        let queue = bed.queue_name("test-worker");
        declare(&client, &queue, Kind::Quorum).await?;
        for (id, body, _) in MESSAGES {
            let mut headers = FieldTable::default();
            headers.insert("tenant".into(), AMQPValue::LongString("a".into()));
            publish(&client, &queue, with_id(id).with_headers(headers), body).await?;
        }
        let out = out(bed, name)?;
        let _server = match name {
            "http" => Some(
                Program::new(server.as_ref(), bed.directory())
                    .arg(&port)
                    .env("OUT", &out)
                    .env("CREW", &bed.queue)
                    .spawn("server")?,
            ),
            _ => None,
        };
        let arguments = [&command[..1], &["--queue", &queue, "--max-idle", "300ms"], &command[1..]].concat();
        let environment = [("OUT", out.to_str().context("a path")?), ("LOADING", "0.5")];
        let mut worker = crew.start_with(name, &arguments, &environment)?;
        let report = worker.ends_with(exit::OK).await?;
        ensure!(report.done == 2 && report.dead_lettered == 1, "{name}: {report:?}");
        let tenant = if name == "http" { None } else { Some("a") };
        let mut expected = BTreeMap::new();
        for (id, _, words) in MESSAGES {
            if let Some(words) = words {
                let mut result = json!({ "words": words });
                if let Some(tenant) = tenant {
                    result["tenant"] = json!(tenant);
                }
                expected.insert(format!("{}.json", id.replace('/', "%2F").replace(' ', "%20")), result);
            }
        }
        let mut results = BTreeMap::new();
        for entry in fs::read_dir(&out)? {
            let entry = entry?;
            let result: Value = serde_json::from_str(&fs::read_to_string(entry.path())?)?;
            results.insert(entry.file_name().to_string_lossy().into_owned(), result);
        }
        ensure!(results == expected, "{name}: {results:?} is not {expected:?}");
    }
    one_liner(bed, &crew, &client, &path("shell/run")).await?;
    nothing_is_left(&crew).await?;
    client.close().await
}

/// The script finds the worker on its path.
async fn one_liner(bed: &Bed, crew: &Crew<'_>, client: &mayfly_tests::Client, script: &str) -> Result<()> {
    declare(client, &bed.queue, Kind::Classic).await?;
    publish(client, &bed.queue, BasicProperties::default().with_message_id("one".into()), b"shout").await?;
    let out = out(bed, "shell")?;
    let programs = program_path("mayfly-worker")?;
    let programs = programs.parent().context("a directory")?;
    let path = format!("{}:{}", programs.display(), std::env::var("PATH")?);
    let mut shell = Program::new(script.as_ref(), bed.directory())
        .arg(&bed.queue)
        .env("PATH", path)
        .env("OUT", &out)
        .env("MAYFLY_BROKER_URL", &crew.url)
        .env("MAYFLY_MAX_IDLE", "300ms")
        .env("CREW", &bed.queue)
        .spawn("shell")?;
    shell.exits_with(exit::OK, super::LIMIT).await?;
    ensure!(fs::read_to_string(out.join("one"))? == "SHOUT");
    Ok(())
}

fn out(bed: &Bed, name: &str) -> Result<PathBuf> {
    let out = bed.directory().join(format!("out-{name}"));
    fs::create_dir(&out)?;
    Ok(out)
}
