//! TLS between mayfly's programs and the broker: whom they trust, who they are, and that every way in which it
//! can be wrong is said at once, with what to do about it.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use mayfly_tests::{
    Bed, Kind, Program, TlsNode,
    node::{Authority, Certificate},
    on_each_release,
};

/// For what takes milliseconds on an idle machine; far below the worker's own start deadline.
const LIMIT: Duration = Duration::from_secs(40);
const OK: i32 = 0;
const USAGE: i32 = 64;
const CONFIG: i32 = 78;

on_each_release!(
    every_program_speaks_tls_with_a_brokers_own_authority,
    whatever_is_wrong_with_tls_is_said_at_once_with_the_next_step,
    a_client_certificate_is_shown_and_can_be_the_login,
);

/// One test's files and programs.
struct Scene<'a> {
    bed: &'a Bed,
    tls: TlsNode,
}

impl<'a> Scene<'a> {
    /// With `demands` the broker lets nobody in without a certificate.
    async fn start(bed: &'a Bed, demands: bool) -> Result<Self> {
        Ok(Self { bed, tls: TlsNode::start(bed.release, demands).await? })
    }

    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.bed.directory().join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    fn ca_file(&self) -> Result<PathBuf> {
        self.file("ca.pem", self.tls.authority.pem())
    }

    fn identity(&self, name: &str, certificate: &Certificate) -> Result<[PathBuf; 2]> {
        Ok([
            self.file(&format!("{name}.crt"), &certificate.cert)?,
            self.file(&format!("{name}.key"), &certificate.key)?,
        ])
    }

    /// A worker that ends at once when its queue is empty.
    fn worker(&self, url: &str, files: &[(&str, PathBuf)]) -> Result<Program> {
        let program = self.bed.program("mayfly-worker")?.env("MAYFLY_BROKER_URL", url);
        let program = program.args(["sleep", "--queue", "q", "--for", "1ms", "--max-idle", "100ms"]);
        Ok(files.iter().fold(program, |program, (flag, file)| program.arg(flag).arg(file)))
    }

    /// Runs it: it must end with this code, having said all of `words` on its way.
    async fn ends(&self, name: &str, program: Program, code: i32, words: &[&str]) -> Result<()> {
        let mut process = program.run(name, LIMIT).await?;
        let log = process.log()?;
        process.exits_with(code, LIMIT).await.with_context(|| name.to_owned())?;
        for word in words {
            ensure!(log.contains(word), "{name}: no {word:?} in\n{log}");
        }
        ensure!(!log.contains("panicked"), "{name}: {log}");
        Ok(())
    }
}

async fn every_program_speaks_tls_with_a_brokers_own_authority(bed: &Bed) -> Result<()> {
    let scene = Scene::start(bed, false).await?;
    let (url, ca) = (scene.tls.url(), scene.ca_file()?);
    let client = scene.tls.node.broker().client().await?;
    client.declare("q", Kind::Quorum).await?;
    let published = client.publish("q", 20).await?;
    let mut worker = scene.worker(&url, &[("--broker-ca-file", ca.clone())])?.spawn("worker")?;
    worker.exits_with(OK, LIMIT).await?;
    ensure!(worker.done_ids()? == published, "{}", worker.log_tail());

    let feeder = bed
        .program("mayfly-publisher")?
        .env("MAYFLY_BROKER_URL", &url)
        .env("MAYFLY_BROKER_CA_FILE", &ca)
        .args(["publish", "q", "--count", "20"]);
    scene.ends("publisher", feeder, OK, &[]).await?;
    ensure!(client.depth("q").await?.ready == 20);

    let config = format!(
        "instance: tls\nbroker: {{ url_env: MAYFLY_BROKER_URL, ca_file: {} }}\n\
         launcher: {{ process: {{ directory: state }} }}\n\
         pools:\n  - {{ name: q, queues: [{{ name: q }}], worker: {{ command: [none] }} }}\n",
        ca.display()
    );
    let config = scene.file("mayfly.yaml", &config)?;
    let check = bed.program("mayfly-scaler")?.env("MAYFLY_BROKER_URL", &url).arg("check").arg(config);
    let check = check.arg("--connect").run("scaler", LIMIT).await?;
    let told = check.stdout()?;
    ensure!(told.contains("20"), "{told}\n{}", check.log()?);
    client.close().await
}

async fn whatever_is_wrong_with_tls_is_said_at_once_with_the_next_step(bed: &Bed) -> Result<()> {
    let scene = Scene::start(bed, false).await?;
    let (url, ca) = (scene.tls.url(), scene.ca_file()?);
    let trusting = [("--broker-ca-file", ca.clone())];
    let client = scene.tls.node.broker().client().await?;
    client.declare("q", Kind::Classic).await?;
    client.close().await?;

    let words = ["signed by nobody who is trusted here", "--broker-ca-file"];
    scene.ends("unknown-ca", scene.worker(&url, &[])?, CONFIG, &words).await?;
    // As in an image without a trust store: those of the public web are built in, and that is not this one.
    let storeless =
        scene.worker(&url, &[])?.env("SSL_CERT_FILE", "/nonexistent").env("SSL_CERT_DIR", "/nonexistent");
    scene.ends("no-trust-store", storeless, CONFIG, &words).await?;
    let publisher = bed.program("mayfly-publisher")?.env("MAYFLY_BROKER_URL", &url).args(["inspect", "q"]);
    scene.ends("publisher", publisher, CONFIG, &words).await?;

    let other = scene.tls.authority.sign("broker", &["rabbit.example"], true)?;
    scene.tls.show(&other).await?;
    let words = ["127.0.0.1", "rabbit.example", "broker's url"];
    scene.ends("wrong-name", scene.worker(&url, &trusting)?, CONFIG, &words).await?;
    let nameless = scene.tls.authority.sign("127.0.0.1", &[], true)?;
    scene.tls.show(&nameless).await?;
    scene.ends("nameless", scene.worker(&url, &trusting)?, CONFIG, &["subject alternative name"]).await?;
    let expired = scene.tls.authority.sign("broker", &["127.0.0.1"], false)?;
    scene.tls.show(&expired).await?;
    scene.ends("expired", scene.worker(&url, &trusting)?, CONFIG, &["has expired", "renew it"]).await?;
    let good = scene.tls.authority.sign("broker", &["127.0.0.1"], true)?;
    scene.tls.show(&good).await?;

    let plain_port = format!("amqps://guest:guest@127.0.0.1:{}/%2f", scene.tls.node.broker().ports.amqp);
    let words = ["does not speak TLS", "5671"];
    scene.ends("tls-to-plain", scene.worker(&plain_port, &trusting)?, CONFIG, &words).await?;
    let tls_port = url.replace("amqps:", "amqp:");
    scene.ends("plain-to-tls", scene.worker(&tls_port, &[])?, CONFIG, &["AMQP", "amqps://"]).await?;

    for (name, url, files, words) in [
        ("plain-url", tls_port.as_str(), &trusting[..], ["amqp://", "not encrypted"]),
        ("no-file", &url, &[("--broker-ca-file", "/absent".into())], ["CA file", "/absent"]),
        ("half", &url, &[("--broker-cert-file", ca.clone())], ["two files", "certificate and key"]),
        (
            "no-key",
            &url,
            &[("--broker-cert-file", ca.clone()), ("--broker-key-file", ca.clone())],
            ["key file", "PRIVATE KEY"],
        ),
    ] {
        scene.ends(name, scene.worker(url, files)?, USAGE, &words).await?;
    }
    Ok(())
}

async fn a_client_certificate_is_shown_and_can_be_the_login(bed: &Bed) -> Result<()> {
    let scene = Scene::start(bed, true).await?;
    let (url, ca) = (scene.tls.url(), scene.ca_file()?);
    let broker = scene.tls.node.broker();
    let client = broker.client().await?;
    client.declare("q", Kind::Quorum).await?;
    let published = client.publish("q", 3).await?;

    let files = |name: &str, certificate: &Certificate| -> Result<Vec<(&'static str, PathBuf)>> {
        let [cert, key] = scene.identity(name, certificate)?;
        Ok(vec![("--broker-ca-file", ca.clone()), ("--broker-cert-file", cert), ("--broker-key-file", key)])
    };
    let trusting = [("--broker-ca-file", ca.clone())];
    let words = ["asks for a client certificate", "--broker-cert-file"];
    scene.ends("no-certificate", scene.worker(&url, &trusting)?, CONFIG, &words).await?;
    let stranger = files("stranger", &Authority::new("strangers")?.sign("worker", &[], true)?)?;
    let words = ["does not accept our certificate", "--broker-cert-file"];
    scene.ends("stranger", scene.worker(&url, &stranger)?, CONFIG, &words).await?;

    let known = files("known", &scene.tls.authority.sign("worker", &[], true)?)?;
    let mut worker = scene.worker(&url, &known)?.spawn("password")?;
    worker.exits_with(OK, LIMIT).await?;
    ensure!(worker.done_ids()? == published, "{}", worker.log_tail());

    // Nobody has the certificate's name yet.
    let external = format!("amqps://127.0.0.1:{}/%2f?auth_mechanism=external", scene.tls.port);
    let words = ["refuses the user of the client certificate"];
    scene.ends("nobody", scene.worker(&external, &known)?, CONFIG, &words).await?;
    broker.ctl(&["add_user", "worker", "unused"]).await?;
    broker.ctl(&["set_permissions", "worker", ".*", ".*", ".*"]).await?;
    let published = client.publish("q", 3).await?;
    let mut worker = scene.worker(&external, &known)?.spawn("external")?;
    worker.exits_with(OK, LIMIT).await?;
    ensure!(worker.done_ids()? == published, "{}", worker.log_tail());

    let words = ["auth_mechanism=external", "--broker-cert-file"];
    scene.ends("no-login", scene.worker(&external, &[])?, USAGE, &words).await?;
    client.close().await
}
