//! Redis and `PostgreSQL` servers of our own: never a system service, gone when we are.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};

use crate::{
    node::{Authority, ports},
    process::tail,
    sandbox::{Identity, Sandbox},
    wait::eventually,
};

/// What kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The distribution's Redis, with an append-only file.
    Redis,
    /// The distribution's `PostgreSQL`.
    Postgres,
}

/// A server that we own. Dropping it ends it and deletes its data.
#[derive(Debug)]
pub struct Store {
    kind: Kind,
    port: u16,
    /// Where it speaks TLS, if it does; `PostgreSQL` does so at its one port.
    tls_port: Option<u16>,
    directory: PathBuf,
    sandbox: Option<Sandbox>,
}

/// The password of every store's user.
pub const PASSWORD: &str = "hunter2";
/// How long a server may take to answer, or to be gone.
const LIMIT: Duration = Duration::from_secs(60);
/// How often a server may find its port taken before that is an error.
const CLASHES: u32 = 3;

// === impl Store ===

impl Store {
    /// Starts a server without data and waits until it answers.
    ///
    /// # Errors
    /// When it is not installed, or does not answer; the text holds its log's end.
    pub async fn start(kind: Kind) -> Result<Self> {
        Self::start_with(kind, None).await
    }

    /// The same with a certificate of `authority`: it speaks TLS, too.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with(kind: Kind, authority: Option<&Authority>) -> Result<Self> {
        for _ in 0..CLASHES {
            let [port, tls_port] = ports::free()?;
            let directory = tempfile::Builder::new().prefix("mayfly-store-").tempdir()?.keep();
            let tls_port = authority.map(|_| tls_port);
            let mut store = Self { kind, port, tls_port, directory, sandbox: None };
            store.make().await?;
            if let Some(authority) = authority {
                let certificate = authority.sign("store", &["127.0.0.1"], true)?;
                fs::write(store.file("cert"), certificate.cert)?;
                fs::write(store.file("key"), certificate.key)?;
                fs::set_permissions(store.file("key"), fs::Permissions::from_mode(0o600))?;
            }
            match store.start_again().await {
                Err(_) if store.log_tail().contains("Address already in use") => {}
                outcome => return outcome.map(|()| store),
            }
        }
        bail!("no free port for {kind:?}")
    }

    /// What a ledger at it is called, with its password.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_at(self.port)
    }

    /// The same over TLS.
    ///
    /// # Errors
    /// When it does not speak TLS.
    pub fn tls_url(&self) -> Result<String> {
        let port = self.tls_port.context("it does not speak TLS")?;
        Ok(match self.kind {
            Kind::Redis => format!("rediss://:{PASSWORD}@127.0.0.1:{port}"),
            Kind::Postgres => format!("{}?sslmode=require", self.url()),
        })
    }

    /// The same through another port of this machine.
    #[must_use]
    pub fn url_at(&self, port: u16) -> String {
        match self.kind {
            Kind::Redis => format!("redis://:{PASSWORD}@127.0.0.1:{port}"),
            Kind::Postgres => format!("postgres://mayfly:{PASSWORD}@127.0.0.1:{port}/postgres"),
        }
    }

    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The port at which it listens on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A client of a `PostgreSQL` store.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn postgres(&self) -> Result<tokio_postgres::Client> {
        let (client, connection) = tokio_postgres::connect(&self.url(), tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Lets a Redis store do something, and returns its answer as it was sent.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn redis(&self, command: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address()).await?;
        stream.write_all(format!("AUTH {PASSWORD}\r\n{command}\r\nQUIT\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let answer = answer.strip_prefix("+OK\r\n").with_context(|| format!("not let in: {answer}"))?;
        Ok(answer.trim_end_matches("+OK\r\n").trim_end().to_owned())
    }

    /// The ledger's records that it holds, for people.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn records(&self) -> Result<String> {
        match self.kind {
            Kind::Redis => self.redis("KEYS mayfly:ledger:*").await,
            Kind::Postgres => {
                let rows =
                    self.postgres().await?.query("SELECT l::text FROM mayfly_ledger AS l", &[]).await?;
                let rows: Result<Vec<String>, _> = rows.iter().map(|row| row.try_get(0)).collect();
                Ok(rows?.join("\n"))
            }
        }
    }

    /// Starts it again after [`kill`](Self::kill): same port, same data.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_again(&mut self) -> Result<()> {
        // Of a killed server; a later process may have the number in it.
        let _ = fs::remove_file(self.data().join("postmaster.pid"));
        let (port, data) = (self.port.to_string(), self.data());
        let argv: Vec<OsString> = match self.kind {
            Kind::Redis => {
                let mut argv = words(&["redis-server", "--bind", "127.0.0.1", "--port", &port, "--save", ""]);
                argv.extend(words(&["--appendonly", "yes", "--appendfsync", "always"]));
                if let Some(port) = self.tls_port {
                    argv.extend(words(&["--tls-port", &port.to_string(), "--tls-auth-clients", "no"]));
                    argv.extend(["--tls-cert-file".into(), self.file("cert").into()]);
                    argv.extend(["--tls-key-file".into(), self.file("key").into()]);
                    argv.extend(["--tls-ca-cert-file".into(), self.file("cert").into()]);
                }
                argv.extend(words(&["--requirepass", PASSWORD, "--maxmemory-policy", "noeviction", "--dir"]));
                argv.push(data.into());
                argv
            }
            Kind::Postgres => {
                let mut argv = unprivileged(&installed("postgres")?);
                // The machine does not go down under it, so what it has written stays.
                argv.extend(words(&["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1"]));
                if self.tls_port.is_some() {
                    let setting = |name: &str, file: &str| format!("{name}={}", self.file(file).display());
                    let (cert, key) = (setting("ssl_cert_file", "cert"), setting("ssl_key_file", "key"));
                    argv.extend(words(&["-c", "ssl=on", "-c", &cert, "-c", &key]));
                }
                argv.extend(words(&["-c", "unix_socket_directories=", "-p", &port, "-D"]));
                argv.push(data.into());
                argv
            }
        };
        let mut command = Sandbox::command(Identity::Own, Some(&self.directory), &argv);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file())?;
        command.stdout(log.try_clone()?).stderr(log);
        self.sandbox = Some(Sandbox::spawn(command)?);
        let answers = eventually("the store answers", LIMIT, async || {
            if let Some(status) = self.sandbox.as_mut().context("no sandbox")?.ended()? {
                return Ok(Some(Err(status)));
            }
            match self.kind {
                Kind::Redis => ensure!(self.redis("PING").await?.contains("PONG")),
                Kind::Postgres => drop(self.postgres().await?),
            }
            Ok(Some(Ok(())))
        });
        let failure = match answers.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(status)) => anyhow::anyhow!("it ended with {status}"),
            Err(error) => error,
        };
        self.sandbox = None;
        bail!("{:?} does not start: {failure:#}\n{}", self.kind, self.log_tail())
    }

    /// kill -9. Its data stay.
    ///
    /// # Errors
    /// When it was down, or does not go away.
    pub async fn kill(&mut self) -> Result<()> {
        let mut sandbox = self.sandbox.take().context("the store is down")?;
        sandbox.kill().await?;
        tokio::time::timeout(LIMIT, sandbox.wait()).await.context("the store does not die")??;
        Ok(())
    }

    /// Makes the data that it starts with.
    async fn make(&self) -> Result<()> {
        fs::create_dir(self.data())?;
        if self.kind == Kind::Redis {
            return Ok(());
        }
        let password = self.directory.join("password");
        fs::write(&password, PASSWORD)?;
        let mut argv = unprivileged(&installed("initdb")?);
        argv.extend(words(&["--no-sync", "--username", "mayfly", "--auth", "scram-sha-256"]));
        argv.extend(words(&["--encoding", "UTF8", "--locale", "C.UTF-8", "--pwfile"]));
        argv.extend([password.into(), "-D".into(), self.data().into()]);
        let made = Command::new(&argv[0]).args(&argv[1..]).kill_on_drop(true).output();
        let made = tokio::time::timeout(LIMIT, made).await.context("initdb does not end")??;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.file("data")
    }

    fn log_file(&self) -> PathBuf {
        self.file("log")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn log_tail(&self) -> String {
        tail(&self.log_file())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- end of the log of {:?}:\n{}", self.kind, self.log_tail());
        }
        self.sandbox = None;
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(Into::into).collect()
}

/// `PostgreSQL` refuses to run as root. In a user namespace of its own, root is somebody else and its files
/// are still its own.
fn unprivileged(program: &Path) -> Vec<OsString> {
    let mut argv = Vec::new();
    if rustix::process::geteuid().is_root() {
        argv = words(&["unshare", "--user", "--map-user=1000", "--map-group=1000"]);
    }
    argv.push(program.into());
    argv
}

/// A program of the newest `PostgreSQL` here: Debian keeps them apart from others.
fn installed(name: &str) -> Result<PathBuf> {
    let versions =
        fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is missing: run `bin/test broker`")?;
    let mut programs: Vec<_> = versions
        .filter_map(|version| Some(version.ok()?.path()))
        .map(|version| {
            (version.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or(0_u32), version)
        })
        .map(|(version, path)| (version, path.join("bin").join(name)))
        .filter(|(_, path)| path.exists())
        .collect();
    programs.sort();
    let newest = programs.pop().with_context(|| format!("no {name} in /usr/lib/postgresql"))?;
    Ok(newest.1)
}
