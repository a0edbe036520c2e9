//! A publisher that speaks AMQP by itself, for messages that no client library would send: names, ids and
//! routing keys of any bytes, headers nested as deep as a frame can hold.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::node::Broker;

/// One connection with one channel in confirm mode.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
}

/// A message's properties.
#[derive(Debug, Clone, Default)]
pub struct Properties(BTreeMap<Property, Vec<u8>>);

/// The textual ones and the headers, in the order in which AMQP writes them, by their bits from the highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "they are AMQP's names")]
pub enum Property {
    ContentType = 0,
    ContentEncoding = 1,
    Headers = 2,
    CorrelationId = 5,
    ReplyTo = 6,
    MessageId = 8,
    Type = 10,
    AppId = 12,
    ClusterId = 13,
}

/// A class and a method of it.
type Method = (u16, u16);

const LIMIT: Duration = Duration::from_secs(10);
const FRAME_END: u8 = 0xce;
const FRAME_MAX: u32 = 131_072;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;

// === impl Properties ===

impl Properties {
    /// With a textual property of at most 255 bytes; what is longer is cut.
    #[must_use]
    pub fn with(mut self, property: Property, text: &[u8]) -> Self {
        self.0.insert(property, short(text));
        self
    }

    /// With headers: names, and [values](value) as they are written.
    #[must_use]
    pub fn with_headers(mut self, entries: &[(&[u8], Vec<u8>)]) -> Self {
        self.0.insert(Property::Headers, table(entries));
        self
    }

    fn encode(&self) -> Vec<u8> {
        let flags = self.0.keys().fold(0_u16, |flags, property| flags | (1 << (15 - *property as u8)));
        [&flags.to_be_bytes()[..], &self.0.values().flatten().copied().collect::<Vec<_>>()].concat()
    }
}

/// How values of headers are written.
pub mod value {
    /// Bytes.
    #[must_use]
    pub fn text(bytes: &[u8]) -> Vec<u8> {
        [b"S", &super::long(bytes)[..]].concat()
    }

    /// A table.
    #[must_use]
    pub fn table(entries: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
        [b"F", &super::table(entries)[..]].concat()
    }

    /// Tables within each other, each under `name`.
    #[must_use]
    pub fn deep_table(name: &[u8], levels: usize) -> Vec<u8> {
        (0..levels).fold(b"V".to_vec(), |inner, _| table(&[(name, inner)]))
    }

    /// Arrays within each other.
    #[must_use]
    pub fn deep_array(levels: usize) -> Vec<u8> {
        (0..levels).fold(b"V".to_vec(), |inner, _| [b"A", &super::long(&inner)[..]].concat())
    }
}

// === impl Wire ===

impl Wire {
    /// Connects to `broker` as the user guest.
    ///
    /// # Errors
    /// When it refuses or does not answer within 10 s.
    pub async fn connect(broker: &Broker) -> Result<Self> {
        let stream = timeout(LIMIT, TcpStream::connect(("127.0.0.1", broker.ports.amqp))).await??;
        let mut wire = Self { stream };
        wire.stream.write_all(b"AMQP\0\0\x09\x01").await?;
        wire.expect((10, 10)).await?;
        let start_ok = [table(&[]), short(b"PLAIN"), long(b"\0guest\0guest"), short(b"en_US")].concat();
        wire.call(0, (10, 11), &start_ok).await?;
        wire.expect((10, 30)).await?;
        let limits = [&1_u16.to_be_bytes()[..], &FRAME_MAX.to_be_bytes(), &0_u16.to_be_bytes()].concat();
        wire.call(0, (10, 31), &limits).await?;
        wire.call(0, (10, 40), &[short(b"/"), short(b""), vec![0]].concat()).await?;
        wire.expect((10, 41)).await?;
        wire.call(1, (20, 10), &short(b"")).await?;
        wire.expect((20, 11)).await?;
        wire.call(1, (85, 10), &[0]).await?;
        wire.expect((85, 11)).await?;
        Ok(wire)
    }

    /// Publishes a message, and waits until the broker has it.
    ///
    /// # Errors
    /// When it is refused, unroutable, or not confirmed within 10 s.
    pub async fn publish(
        &mut self,
        exchange: &str,
        routing_key: &[u8],
        properties: &Properties,
        body: &[u8],
    ) -> Result<()> {
        let mandatory = [1];
        let route = [&0_u16.to_be_bytes()[..], &short(exchange.as_bytes()), &short(routing_key), &mandatory];
        self.call(1, (60, 40), &route.concat()).await?;
        let size = u64::try_from(body.len())?.to_be_bytes();
        let header = [&60_u16.to_be_bytes()[..], &0_u16.to_be_bytes(), &size, &properties.encode()].concat();
        self.frame(HEADER, 1, &header).await?;
        for part in body.chunks(FRAME_MAX as usize - 8) {
            self.frame(BODY, 1, part).await?;
        }
        self.expect((60, 80)).await
    }

    async fn call(&mut self, channel: u16, (class, method): Method, arguments: &[u8]) -> Result<()> {
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat();
        self.frame(METHOD, channel, &payload).await
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) -> Result<()> {
        let frame = [&[kind][..], &channel.to_be_bytes(), &long(payload), &[FRAME_END]].concat();
        ensure!(frame.len() <= FRAME_MAX as usize, "a frame of {} bytes", frame.len());
        Ok(timeout(LIMIT, self.stream.write_all(&frame)).await??)
    }

    /// Reads the next frame, which must be this method.
    async fn expect(&mut self, expected: Method) -> Result<()> {
        timeout(LIMIT, async {
            let kind = self.stream.read_u8().await?;
            self.stream.read_u16().await?;
            let size = self.stream.read_u32().await?;
            let mut payload = vec![0; usize::try_from(size)? + 1];
            self.stream.read_exact(&mut payload).await?;
            let number = |at: usize| Some(u16::from_be_bytes(payload.get(at..at + 2)?.try_into().ok()?));
            let got = (number(0).context("no method")?, number(2).context("no method")?);
            if kind != METHOD || got != expected {
                bail!("{expected:?} expected, got {got:?}: {}", String::from_utf8_lossy(&payload));
            }
            Ok(())
        })
        .await?
    }
}

fn short(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[length], &text[..length.into()]].concat()
}

/// What no `u32` can count fits no frame either.
fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes(), bytes].concat()
}

fn table(entries: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
    long(&entries.iter().flat_map(|(name, value)| [short(name), value.clone()].concat()).collect::<Vec<_>>())
}
