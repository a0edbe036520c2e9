//! A TCP proxy that can be told to misbehave.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::node::{Broker, ports};

/// What the proxy does, to connections that are there and to new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Forwards.
    None,
    /// Forwards each piece (up to 16 KiB) this much later, one after the other.
    Delay(Duration),
    /// Resets what is there; new connections are reset as soon as they are made.
    Cut,
    /// Resets what is there; new connections are refused, as where nobody listens.
    Refuse,
    /// Forwards until this many more bytes went `Way::ToBroker`, exactly; from there on like `Cut`.
    CutAfter(u64),
    /// Forwards nothing in these directions, and nobody is told: sockets stay open, new ones are accepted.
    Hang(Way),
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client.
    ToBroker,
    /// To the client.
    ToClient,
    /// Both.
    Both,
}

/// A running proxy. Dropping it resets its connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    fault: watch::Sender<Fault>,
    to_broker: AtomicU64,
    to_client: AtomicU64,
    accepted: AtomicU64,
}

// === impl Proxy ===

impl Proxy {
    /// Starts forwarding from a free loopback port to `target`.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let [port] = ports::free()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let shared = Arc::new(Shared {
            fault: watch::Sender::new(Fault::None),
            to_broker: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
        });
        let task = tokio::spawn(serve(listener, port, target, Arc::clone(&shared)));
        Ok(Self { port, shared, task })
    }

    /// Starts one before `broker`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn before(broker: &Broker) -> Result<Self> {
        Self::start((Ipv4Addr::LOCALHOST, broker.ports.amqp).into()).await
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The AMQP URL through the proxy, for the user guest.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_for("guest", "guest")
    }

    /// The AMQP URL through the proxy.
    #[must_use]
    pub fn url_for(&self, user: &str, password: &str) -> String {
        format!("amqp://{user}:{password}@127.0.0.1:{}/%2f", self.port)
    }

    /// From now on does this.
    pub fn set(&self, fault: Fault) {
        self.shared.fault.send_replace(fault);
    }

    /// What it does now: [`Fault::CutAfter`] becomes [`Fault::Cut`] by itself.
    #[must_use]
    pub fn fault(&self) -> Fault {
        *self.shared.fault.borrow()
    }

    /// Connections accepted so far, those that were reset at once included.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Relaxed)
    }

    /// Bytes forwarded to the broker so far.
    #[must_use]
    pub fn bytes_to_broker(&self) -> u64 {
        self.shared.to_broker.load(Relaxed)
    }

    /// Bytes forwarded to the client so far.
    #[must_use]
    pub fn bytes_to_client(&self) -> u64 {
        self.shared.to_client.load(Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl Fault ===

impl Fault {
    const fn resets(self) -> bool {
        matches!(self, Self::Cut | Self::Refuse)
    }

    /// Whether it lets bytes pass in the direction `way`.
    fn forwards(self, way: Way) -> bool {
        !matches!(self, Self::Hang(stuck) if stuck == way || stuck == Way::Both)
    }
}

/// Accepts connections as long as the proxy lives.
async fn serve(listener: TcpListener, port: u16, target: SocketAddr, shared: Arc<Shared>) {
    let mut fault = shared.fault.subscribe();
    let mut connections = JoinSet::new();
    let mut listener = Some(listener);
    loop {
        let now = *fault.borrow_and_update();
        if now == Fault::Refuse {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.ok();
        }
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok((client, _)) = accept => {
                shared.accepted.fetch_add(1, Relaxed);
                connections.spawn(connect(client, target, Arc::clone(&shared)));
            }
            changed = fault.changed() => if changed.is_err() { return },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection. However it ends, both sockets are reset if the fault wants that, else closed in order.
async fn connect(mut client: TcpStream, target: SocketAddr, shared: Arc<Shared>) {
    let mut fault = shared.fault.subscribe();
    let _ = client.set_nodelay(true);
    if fault.borrow().resets() {
        let _ = client.set_zero_linger();
        return;
    }
    let Ok(mut broker) = TcpStream::connect(target).await else {
        let _ = client.set_zero_linger();
        return;
    };
    let _ = broker.set_nodelay(true);
    let (mut from_client, mut to_client) = client.split();
    let (mut from_broker, mut to_broker) = broker.split();
    let forwarded = async {
        tokio::try_join!(
            pump(&mut from_client, &mut to_broker, Way::ToBroker, &shared),
            pump(&mut from_broker, &mut to_client, Way::ToClient, &shared),
        )
    };
    let reset = tokio::select! {
        // Whoever resets one side means the other one.
        outcome = forwarded => outcome.is_err() || shared.fault.borrow().resets(),
        _ = fault.wait_for(|fault| fault.resets()) => true,
    };
    if reset {
        let _ = client.set_zero_linger();
        let _ = broker.set_zero_linger();
    }
}

/// Forwards one direction until its end.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    way: Way,
    shared: &Shared,
) -> std::io::Result<()> {
    let mut fault = shared.fault.subscribe();
    let mut buffer = vec![0; 16 * 1024];
    let passed = match way {
        Way::ToBroker => &shared.to_broker,
        Way::ToClient | Way::Both => &shared.to_client,
    };
    loop {
        // Not even read while it hangs, so that the sender's buffers fill up as on a dead network.
        let _ = fault.wait_for(|fault| fault.forwards(way)).await;
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        let now = *fault.borrow();
        if let Fault::Delay(delay) = now {
            tokio::time::sleep(delay).await;
        }
        let _ = fault.wait_for(|fault| fault.forwards(way)).await;
        let allowed = if way == Way::ToBroker { allowance(shared, read) } else { read };
        to.write_all(&buffer[..allowed]).await?;
        passed.fetch_add(allowed as u64, Relaxed);
        if allowed < read || (way == Way::ToBroker && *fault.borrow() == Fault::CutAfter(0)) {
            shared.fault.send_replace(Fault::Cut);
        }
    }
}

/// How many of `wanted` bytes may pass before the cut; takes them off the rest.
fn allowance(shared: &Shared, wanted: usize) -> usize {
    let mut allowed = wanted;
    shared.fault.send_if_modified(|fault| {
        if let Fault::CutAfter(rest) = fault {
            allowed = usize::try_from(*rest).unwrap_or(usize::MAX).min(wanted);
            *rest -= allowed as u64;
        }
        // The rest is of no interest to those who wait for another fault.
        false
    });
    allowed
}
