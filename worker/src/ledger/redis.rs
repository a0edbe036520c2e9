//! The ledger in Redis: a hash per message, changed by scripts, each of which runs as a whole.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mayfly_service::tls::TlsFiles;
use redis::{
    AsyncConnectionConfig, ErrorKind, FromRedisValue, RedisError, Script, ScriptInvocation,
    aio::MultiplexedConnection,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::{
    Answer, Claim, Key, LedgerError, Terms,
    link::{Driver, Link},
    url::RedisUrl,
};

/// A Redis server.
pub(super) struct Redis {
    url: RedisUrl,
    tls: TlsFiles,
    link: Link<Connection>,
    scripts: Scripts,
    /// Whether its settings were looked at.
    is_known: AtomicBool,
}

/// A connection that all calls share.
struct Connection {
    calls: MultiplexedConnection,
    _driver: Driver,
}

struct Scripts {
    claim: Script,
    renew: Script,
    commit: Script,
    release: Script,
}

/// `{0}` done · `{1}` elsewhere · `{2, epoch}` ours. ARGV: owner, lease, how long to keep the record (ms).
const CLAIM: &str = "
local r = redis.call('HMGET', KEYS[1], 'done', 'until', 'epoch')
if r[1] then return {0, 0} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if r[2] and tonumber(r[2]) > now then return {1, 0} end
local epoch = tonumber(r[3] or 0) + 1
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'epoch', epoch, 'until', string.format('%.0f', now + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {2, epoch}";
/// 1 ours. A record that the store has lost is written again. ARGV: owner, epoch, lease, keep.
const RENEW: &str = "
local r = redis.call('HMGET', KEYS[1], 'done', 'owner', 'epoch')
if r[1] or (r[2] and (r[2] ~= ARGV[1] or r[3] ~= ARGV[2])) then return 0 end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'epoch', ARGV[2], 'until', string.format('%.0f', now + ARGV[3]))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1";
/// 1 recorded, now or before. Who finds no record has not been overtaken. ARGV: owner, epoch, keep.
const COMMIT: &str = "
local r = redis.call('HMGET', KEYS[1], 'done', 'owner', 'epoch')
if r[2] and (r[2] ~= ARGV[1] or r[3] ~= ARGV[2]) then return 0 end
if not r[1] then
  redis.call('HSET', KEYS[1], 'done', 1, 'owner', ARGV[1], 'epoch', ARGV[2])
  redis.call('HDEL', KEYS[1], 'until')
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1";
/// The epoch stays, so that the next claim has a higher one. ARGV: owner, epoch, keep.
const RELEASE: &str = "
local r = redis.call('HMGET', KEYS[1], 'done', 'owner', 'epoch')
if r[1] or r[2] ~= ARGV[1] or r[3] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'owner', '', 'until', 0)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1";

// === impl Redis ===

impl Redis {
    pub(super) fn new(url: RedisUrl, tls: TlsFiles) -> Self {
        let [claim, renew, commit, release] = [CLAIM, RENEW, COMMIT, RELEASE].map(Script::new);
        Self {
            url,
            tls,
            link: Link::new(),
            scripts: Scripts { claim, renew, commit, release },
            is_known: AtomicBool::new(false),
        }
    }

    pub(super) async fn claim(&self, key: &Key, owner: &str, terms: Terms) -> Result<Answer, LedgerError> {
        let mut script = self.scripts.claim.prepare_invoke();
        script.key(name(key)).arg(owner).arg(ms(terms.lease)).arg(ms(terms.lease + terms.keep));
        Ok(match self.call(&script).await? {
            (0, _) => Answer::Done,
            (1, _) => Answer::Elsewhere,
            (_, epoch) => Answer::Ours { epoch },
        })
    }

    pub(super) async fn renew(&self, claim: &Claim, terms: Terms) -> Result<bool, LedgerError> {
        let mut script = of_claim(&self.scripts.renew, claim);
        script.arg(ms(terms.lease)).arg(ms(terms.lease + terms.keep));
        self.call(&script).await
    }

    pub(super) async fn commit(&self, claim: &Claim, keep: Duration) -> Result<bool, LedgerError> {
        let mut script = of_claim(&self.scripts.commit, claim);
        script.arg(ms(keep));
        self.call(&script).await
    }

    pub(super) async fn release(&self, claim: &Claim, keep: Duration) -> Result<(), LedgerError> {
        let mut script = of_claim(&self.scripts.release, claim);
        script.arg(ms(keep));
        self.call::<bool>(&script).await.map(drop)
    }

    pub(super) async fn is_done(&self, key: &Key) -> Result<bool, LedgerError> {
        let connection = self.connected().await?;
        let doubt = self.link.doubt(&connection);
        let mut look = redis::cmd("HEXISTS");
        look.arg(name(key)).arg("done");
        let is_done = look.query_async(&mut connection.calls.clone()).await.map_err(told)?;
        doubt.settle();
        Ok(is_done)
    }

    /// Whatever fails, the next call has a fresh connection: this one may lead to a server that is a replica
    /// by now.
    async fn call<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, LedgerError> {
        let connection = self.connected().await?;
        let doubt = self.link.doubt(&connection);
        let answer = script.invoke_async(&mut connection.calls.clone()).await.map_err(told)?;
        doubt.settle();
        Ok(answer)
    }

    /// Connecting is on the heap: large, and needed only for a moment.
    async fn connected(&self) -> Result<Arc<Connection>, LedgerError> {
        self.link.get(|_| true, Box::pin(self.open())).await
    }

    pub(super) async fn connect(&self) -> Result<(), LedgerError> {
        self.connected().await.map(drop)
    }

    async fn open(&self) -> Result<Connection, LedgerError> {
        let RedisUrl { host, port, tls, settings } = &self.url;
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(LedgerError::down)?;
        stream.set_nodelay(true).map_err(LedgerError::down)?;
        // Our own deadline holds for the whole call.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let connection = if *tls {
            let name = ServerName::try_from(host.clone()).map_err(LedgerError::refused)?;
            let connector = TlsConnector::from(self.tls.client_config().map_err(LedgerError::refused)?);
            let stream = connector.connect(name, stream).await.map_err(LedgerError::unreachable)?;
            let (calls, driver) =
                MultiplexedConnection::new_with_config(settings, stream, config).await.map_err(told)?;
            Connection { calls, _driver: Driver::spawn(driver) }
        } else {
            let (calls, driver) =
                MultiplexedConnection::new_with_config(settings, stream, config).await.map_err(told)?;
            Connection { calls, _driver: Driver::spawn(driver) }
        };
        if !self.is_known.swap(true, Ordering::Relaxed) {
            warn_of_forgetting(&mut connection.calls.clone()).await;
        }
        Ok(connection)
    }

    pub(super) async fn close(&self) {
        self.link.close().await;
    }
}

/// Settings with which a done message may be forgotten. Servers that don't tell are believed.
async fn warn_of_forgetting(calls: &mut MultiplexedConnection) {
    let ask = async |calls: &mut MultiplexedConnection, name: &str| {
        let answer: Result<Vec<String>, RedisError> =
            redis::cmd("CONFIG").arg("GET").arg(name).query_async(calls).await;
        answer.ok().and_then(|pair| pair.into_iter().nth(1))
    };
    if let Some(policy) = ask(calls, "maxmemory-policy").await
        && policy != "noeviction"
    {
        tracing::warn!(
            policy,
            "the ledger's Redis may evict records when its memory is full, so that done messages run again: \
             set maxmemory-policy to noeviction"
        );
    }
    if ask(calls, "appendonly").await.is_some_and(|appendonly| appendonly == "no") {
        tracing::warn!(
            "the ledger's Redis keeps no append-only file: after its restart the latest done messages may run \
             again"
        );
    }
}

/// Lengths before names, so that no two keys share a name.
fn name(key: &Key) -> String {
    let Key { vhost, queue, id } = key;
    format!("mayfly:ledger:{}:{vhost}:{}:{queue}:{id}", vhost.len(), queue.len())
}

fn of_claim<'a>(script: &'a Script, claim: &Claim) -> ScriptInvocation<'a> {
    let mut script = script.prepare_invoke();
    script.key(name(&claim.key)).arg(&claim.owner).arg(claim.epoch);
    script
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn told(error: RedisError) -> LedgerError {
    let refused = matches!(error.kind(), ErrorKind::AuthenticationFailed)
        || matches!(error.code(), Some("NOAUTH" | "NOPERM" | "WRONGPASS"));
    if refused { LedgerError::refused(error) } else { LedgerError::down(error) }
}

/// Without the password.
impl fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Redis").field("url", &self.url).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_whose_parts_join_alike_have_different_names() {
        let key = |vhost: &str, queue: &str, id: &str| {
            name(&Key { vhost: vhost.to_owned(), queue: queue.to_owned(), id: id.to_owned() })
        };
        let names =
            [key("/", "a", "b:c"), key("/", "a:b", "c"), key("/:a", "b", "c"), key("", "/:1:a", "b:c")];
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }
}
