//! A node that speaks TLS, and the authority that signs its and its clients' certificates.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, date_time_ymd,
};

use super::{Broker, Node, Release, ports};

/// Signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key, both PEM.
#[derive(Debug)]
pub struct Certificate {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

/// A node with a TLS listener beside the plain one. It asks clients for a certificate of its authority; with
/// the common name in it one may log in (EXTERNAL).
#[derive(Debug)]
pub struct TlsNode {
    /// The node.
    pub node: Node,
    /// Signed its certificate, and whom it trusts.
    pub authority: Authority,
    /// Where it speaks TLS.
    pub port: u16,
}

// === impl Authority ===

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = called(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// Its certificate.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs a certificate for `name` (the common name) at `hosts`, that is valid now or was until 2001.
    ///
    /// # Errors
    /// When a host's name is none.
    pub fn sign(&self, name: &str, hosts: &[&str], is_valid: bool) -> Result<Certificate> {
        let key = KeyPair::generate()?;
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name = called(name);
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(if is_valid { 2099 } else { 2001 }, 1, 1);
        let cert = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Certificate { cert, key: key.serialize_pem() })
    }
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

// === impl TlsNode ===

impl TlsNode {
    /// Starts one whose certificate is for 127.0.0.1; with `demands` nobody gets in without a certificate.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn start(release: Release, demands: bool) -> Result<Self> {
        let authority = Authority::new("mayfly tests")?;
        let certificate = authority.sign("broker", &["127.0.0.1"], true)?;
        let mut port = 0;
        let node = Node::start_with(release, |broker| {
            [port] = ports::free()?;
            fs::write(broker.directory.join("ca.pem"), authority.pem())?;
            show(broker, &certificate)?;
            append(broker, "enabled_plugins", "", |plugins| {
                plugins.replace("].", ",rabbitmq_auth_mechanism_ssl].")
            })?;
            let home = broker.home();
            let home = home.display();
            let conf = format!(
                "listeners.ssl.1 = 127.0.0.1:{port}\n\
                 ssl_options.cacertfile = {home}/ca.pem\n\
                 ssl_options.certfile = {home}/server.pem\n\
                 ssl_options.keyfile = {home}/server.key\n\
                 ssl_options.verify = verify_peer\n\
                 ssl_options.fail_if_no_peer_cert = {demands}\n\
                 ssl_cert_login_from = common_name\n\
                 auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = EXTERNAL\n"
            );
            append(broker, "rabbitmq.conf", &conf, |conf| conf)
        })
        .await?;
        Ok(Self { node, authority, port })
    }

    /// The AMQP URL for the user guest.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqps://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// From now on the node shows another certificate.
    ///
    /// # Errors
    /// When it cannot be written, or the node does not do as told.
    pub async fn show(&self, certificate: &Certificate) -> Result<()> {
        show(self.node.broker(), certificate)?;
        self.node.broker().ctl(&["eval", "ssl:clear_pem_cache()."]).await.map(drop)
    }
}

fn show(broker: &Broker, certificate: &Certificate) -> Result<()> {
    fs::write(broker.directory.join("server.pem"), &certificate.cert)?;
    fs::write(broker.directory.join("server.key"), &certificate.key)?;
    Ok(())
}

/// Changes a file of the node's.
fn append(broker: &Broker, name: &str, text: &str, change: impl FnOnce(String) -> String) -> Result<()> {
    let path: PathBuf = broker.directory.join(name);
    let old = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
    fs::write(path, change(old) + text).with_context(|| format!("cannot write {name}"))
}
