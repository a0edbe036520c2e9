//! What a broker says of itself before anybody logs in. lapin reads that, and keeps it to itself.

use std::{io, time::Duration};

use futures_util::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use lapin::{
    AsyncTcpStream,
    runtime::default_runtime,
    types::{AMQPValue, FieldTable, parsing::parse_field_table},
};
use mayfly_service::deadline;

use crate::{BrokerUrl, Error, Result, connection::tls_connector};

/// What opens a connection of AMQP 0-9-1.
const HEADER: &[u8] = b"AMQP\0\0\x09\x01";
/// Begins a frame that holds a method.
const METHOD: u8 = 1;
/// Class and method of `connection.start`, and the version of the protocol.
const START: &[u8] = &[0, 10, 0, 10, 0, 9];
/// No broker says more of itself.
const LONGEST: usize = 1 << 16;

/// A broker's name and release, as it tells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Such as `RabbitMQ`.
    pub product: String,
    /// Such as `4.0.5`.
    pub version: String,
}

// === impl Greeting ===

impl Greeting {
    /// Connects, listens and leaves, within `limit`. (The broker's log has a line on that.)
    ///
    /// # Errors
    /// `Unreachable` (also when `limit` passes first), `Tls`, or `NotAmqp` where it greets in another way.
    pub async fn read(url: &BrokerUrl, limit: Duration) -> Result<Self> {
        let greeting = deadline("read the broker's greeting", limit, Box::pin(listen(url)))
            .await
            .unwrap_or_else(|late| Err(io::Error::new(io::ErrorKind::TimedOut, late).into()))
            .map_err(|source| Error::connect(url, source))?;
        Ok(greeting)
    }

    /// The first number of its version.
    #[must_use]
    pub fn major(&self) -> Option<u32> {
        self.version.split('.').next()?.parse().ok()
    }

    /// Reads the payload of `connection.start`.
    fn parse(payload: &[u8]) -> Option<Self> {
        let (_, properties) = parse_field_table(payload.strip_prefix(START)?).ok()?;
        Some(Self { product: text(&properties, "product")?, version: text(&properties, "version")? })
    }
}

fn text(properties: &FieldTable, key: &str) -> Option<String> {
    match properties.inner().get(key)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        _ => None,
    }
}

async fn listen(url: &BrokerUrl) -> lapin::Result<Greeting> {
    let runtime = default_runtime()?;
    let host = &url.uri().authority.host;
    let addresses = runtime.to_socket_addrs((host.clone(), url.uri().authority.port));
    let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
    let mut stream = match tls_connector(url)? {
        Some(connector) => stream.into_rustls(&connector, host).await?,
        None => stream,
    };
    Ok(greeted(&mut stream).await?)
}

async fn greeted(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<Greeting> {
    let strange = || io::Error::new(io::ErrorKind::InvalidData, "no greeting of an AMQP 0-9-1 broker");
    stream.write_all(HEADER).await?;
    stream.flush().await?;
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let [kind, _, _, size @ ..] = head;
    let size = usize::try_from(u32::from_be_bytes(size)).unwrap_or(usize::MAX);
    if kind != METHOD || size > LONGEST {
        return Err(strange());
    }
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload).await?;
    Greeting::parse(&payload).ok_or_else(strange)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(text: &[u8]) -> Vec<u8> {
        [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat()
    }

    fn entry(key: &str, kind: u8, value: &[u8]) -> Vec<u8> {
        [&[u8::try_from(key.len()).unwrap()], key.as_bytes(), &[kind], value].concat()
    }

    fn start(entries: &[Vec<u8>]) -> Vec<u8> {
        [START, &long(&entries.concat()), &long(b"PLAIN AMQPLAIN"), &long(b"en_US")].concat()
    }

    #[test]
    fn product_and_version_are_read_whatever_else_is_told() {
        let capabilities = long(&entry("publisher_confirms", b't', &[1]));
        let payload = start(&[
            entry("capabilities", b'F', &capabilities),
            entry("product", b'S', &long(b"RabbitMQ")),
            entry("version", b'S', &long(b"3.10.8")),
        ]);
        let greeting = Greeting::parse(&payload).unwrap();
        assert_eq!(greeting, Greeting { product: "RabbitMQ".to_owned(), version: "3.10.8".to_owned() });
        assert_eq!(greeting.major(), Some(3));
    }

    #[test]
    fn what_is_no_greeting_or_tells_no_version_is_none() {
        assert_eq!(Greeting::parse(b""), None);
        assert_eq!(Greeting::parse(b"HTTP/1.1 400 Bad Request"), None);
        assert_eq!(Greeting::parse(&start(&[entry("product", b'S', &long(b"RabbitMQ"))])), None);
        let whole = start(&[entry("product", b'S', &long(b"R")), entry("version", b'S', &long(b"4"))]);
        assert!(Greeting::parse(&whole).is_some());
        assert_eq!(Greeting::parse(&whole[..20]), None);
    }
}
