//! TLS: one provider for the whole process, one owner of whom we trust and who we are.

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

/// What a program was told about TLS. Files are read at each connection, so that renewed ones are taken up
/// without a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of authorities (PEM) that are trusted besides those of [`roots`].
    pub ca: Option<PathBuf>,
    /// Our certificate (PEM), its chain behind it, for servers that ask for one. Needs `key`.
    pub cert: Option<PathBuf>,
    /// The private key of `cert` (PEM, not encrypted).
    pub key: Option<PathBuf>,
}

/// A file for TLS cannot be used. Texts name files and never what stands in them.
#[derive(Debug, thiserror::Error)]
pub enum BadTls {
    /// A file cannot be read.
    #[error("{what} {path:?} cannot be read")]
    Unreadable {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file was read and holds something else.
    #[error("{what} {path:?} is not what it should be: expected {expected}, in PEM form")]
    Content {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The PEM sections that are allowed.
        expected: &'static str,
    },
    /// A certificate without its key, or the other way round.
    #[error("a client certificate needs two files, certificate and key: only {0:?} is given")]
    Half(PathBuf),
    /// The two do not belong together.
    #[error("certificate {cert:?} and key {key:?} cannot be used together")]
    Identity {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// Why a server and we did not come to terms over TLS. Trying again, unchanged, will not help.
#[derive(Debug, Clone, PartialEq)]
pub enum TlsProblem {
    /// Nobody whom we trust has signed its certificate.
    UnknownCa,
    /// Its certificate is one of an authority, which cannot be a server's.
    CaAsServer,
    /// Its certificate has expired.
    Expired,
    /// Its certificate will be valid later, or our clock is slow.
    NotYetValid,
    /// Its certificate is for other names than the one that we connected to.
    WrongName {
        /// What we connected to.
        asked: String,
        /// The names that it is for.
        valid_for: Vec<String>,
    },
    /// What answers does not speak TLS.
    NotTls,
    /// It wants to see a certificate of ours.
    CertificateWanted,
    /// It doesn't accept our certificate.
    CertificateRefused(AlertDescription),
    /// Anything else.
    Other(rustls::Error),
}

/// Installs ring as the process's TLS provider; the first line of every main. Two crates with different
/// built-in defaults would otherwise panic at the first handshake.
pub fn install_provider() {
    // An error means that a provider is there already: this function ran before.
    let _ = ring::default_provider().install_default();
}

/// Whom we trust: the system's certificate authorities (`SSL_CERT_FILE` and `SSL_CERT_DIR` choose others);
/// where the system has none, as in our images, those of the public web, built in; and those in `ca`.
///
/// # Errors
/// [`BadTls`] when `ca` cannot be used.
pub fn roots(ca: Option<&Path>) -> Result<RootCertStore, BadTls> {
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "a trusted certificate of the system cannot be used");
    }
    roots_beside(system.certs, ca)
}

fn roots_beside(system: Vec<CertificateDer<'static>>, ca: Option<&Path>) -> Result<RootCertStore, BadTls> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system);
    if roots.is_empty() {
        tracing::debug!("the system has no trusted certificates: those of the public web are used");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(path) = ca {
        let what = "CA file";
        for certificate in certificates(what, path)? {
            roots.add(certificate).map_err(|_| BadTls::content(what, path, CERTIFICATE))?;
        }
    }
    Ok(roots)
}

const CERTIFICATE: &str = "BEGIN CERTIFICATE";
const PRIVATE_KEY: &str = "BEGIN PRIVATE KEY (or RSA or EC PRIVATE KEY), not encrypted";

// === impl TlsFiles ===

impl TlsFiles {
    /// Whether nothing is given.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        matches!(self, Self { ca: None, cert: None, key: None })
    }

    /// A client that trusts [`roots`] and shows its certificate where it has one. Reads the files.
    ///
    /// # Errors
    /// [`BadTls`] when one of them cannot be used.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, BadTls> {
        let Self { ca, cert, key } = self;
        // Who uses us as a library may have installed none, without which the builder panics.
        install_provider();
        let builder = ClientConfig::builder().with_root_certificates(roots(ca.as_deref())?);
        let config = match (cert, key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let chain = certificates("certificate file", cert)?;
                let secret = private_key(key)?;
                builder.with_client_auth_cert(chain, secret).map_err(|source| BadTls::Identity {
                    cert: cert.clone(),
                    key: key.clone(),
                    source,
                })?
            }
            (Some(alone), None) | (None, Some(alone)) => return Err(BadTls::Half(alone.clone())),
        };
        Ok(Arc::new(config))
    }
}

// === impl BadTls ===

impl BadTls {
    fn content(what: &'static str, path: &Path, expected: &'static str) -> Self {
        Self::Content { what, path: path.to_owned(), expected }
    }
}

/// One or more of them.
fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, BadTls> {
    let text = read(what, path)?;
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&text).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| BadTls::content(what, path, CERTIFICATE))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, BadTls> {
    let what = "key file";
    PrivateKeyDer::from_pem_slice(&read(what, path)?).map_err(|_| BadTls::content(what, path, PRIVATE_KEY))
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, BadTls> {
    std::fs::read(path).map_err(|source| BadTls::Unreadable { what, path: path.to_owned(), source })
}

// === impl TlsProblem ===

impl TlsProblem {
    /// The problem behind `error`, if it is one of TLS at all.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        // An `io::Error` is not the source of what it wraps, but hides it; and it may wrap another one.
        let inner = |mut error: &(dyn Error + 'static)| -> Option<rustls::Error> {
            while let Some(wrapped) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                error = wrapped;
            }
            error.downcast_ref().cloned()
        };
        std::iter::successors(Some(error), |&error| error.source()).find_map(inner).map(Self::from)
    }
}

impl From<rustls::Error> for TlsProblem {
    fn from(error: rustls::Error) -> Self {
        use AlertDescription as Alert;
        use CertificateError as Cert;
        match error {
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            rustls::Error::AlertReceived(Alert::CertificateRequired | Alert::NoCertificate) => {
                Self::CertificateWanted
            }
            rustls::Error::AlertReceived(
                alert @ (Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::DecryptError),
            ) => Self::CertificateRefused(alert),
            rustls::Error::InvalidCertificate(Cert::UnknownIssuer) => Self::UnknownCa,
            rustls::Error::InvalidCertificate(Cert::Expired | Cert::ExpiredContext { .. }) => Self::Expired,
            rustls::Error::InvalidCertificate(Cert::NotValidYet | Cert::NotValidYetContext { .. }) => {
                Self::NotYetValid
            }
            rustls::Error::InvalidCertificate(Cert::NotValidForNameContext { expected, presented }) => {
                // The library's own form: `DnsName("a.example")`, `IpAddress(…)`.
                let bare = |name: &String| match name.split_once('(').zip(name.strip_suffix(')')) {
                    Some(((kind, _), rest)) => rest[kind.len() + 1..].trim_matches('"').to_owned(),
                    None => name.clone(),
                };
                let valid_for = presented.iter().map(bare).collect();
                Self::WrongName { asked: expected.to_str().into_owned(), valid_for }
            }
            // The library keeps this one as an error of the crate below it.
            rustls::Error::InvalidCertificate(Cert::Other(ref other))
                if other.to_string().contains("CaUsedAsEndEntity") =>
            {
                Self::CaAsServer
            }
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for TlsProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownCa => formatter.write_str("its certificate is signed by nobody who is trusted here"),
            Self::CaAsServer => formatter
                .write_str("its certificate is an authority's own (CA:TRUE), which a server's cannot be"),
            Self::Expired => formatter.write_str("its certificate has expired"),
            Self::NotYetValid => {
                formatter.write_str("its certificate is not valid yet, by this machine's clock")
            }
            Self::WrongName { asked, valid_for } if valid_for.is_empty() => {
                write!(formatter, "its certificate is not for {asked:?}: it has no subject alternative name")
            }
            Self::WrongName { asked, valid_for } => {
                write!(formatter, "its certificate is not for {asked:?} but for {}", valid_for.join(", "))
            }
            Self::NotTls => formatter.write_str("what answers there does not speak TLS"),
            Self::CertificateWanted => formatter.write_str("it asks for a client certificate"),
            Self::CertificateRefused(alert) => {
                write!(formatter, "it does not accept our certificate ({alert:?})")
            }
            Self::Other(error) => write!(formatter, "{error}"),
        }
    }
}

impl Error for TlsProblem {}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn told(files: &TlsFiles) -> String {
        files.client_config().unwrap_err().to_string()
    }

    #[test]
    fn a_ca_file_adds_to_whom_the_system_trusts() {
        let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap();
        let ca = file(&ca.cert.pem());
        let without = roots(None).unwrap().len();
        assert!(without > 50, "{without} trusted authorities");
        assert_eq!(roots(Some(ca.path())).unwrap().len(), without + 1);
    }

    #[test]
    fn where_the_system_trusts_nobody_the_public_web_is_trusted_and_only_there() {
        let certificate = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap().cert;
        assert!(roots_beside(Vec::new(), None).unwrap().len() > 50);
        assert_eq!(roots_beside(vec![certificate.der().clone()], None).unwrap().len(), 1);
        let ca = file(&certificate.pem());
        let web = roots_beside(Vec::new(), None).unwrap().len();
        assert_eq!(roots_beside(Vec::new(), Some(ca.path())).unwrap().len(), web + 1);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_and_not_repeated() {
        let secret = file("hunter2");
        let path = Some(secret.path().to_owned());
        let good = rcgen::generate_simple_self_signed(["c".to_owned()]).unwrap();
        let cert = Some(file(&good.cert.pem()));
        let cert = cert.as_ref().map(|file| file.path().to_owned());
        let other = file(&rcgen::KeyPair::generate().unwrap().serialize_pem());
        let other = Some(other.path().to_owned());
        let none = TlsFiles::default();
        let cases = [
            (TlsFiles { ca: path.clone(), ..none.clone() }, "CA file"),
            (TlsFiles { ca: Some("/absent/ca.pem".into()), ..none.clone() }, "/absent/ca.pem"),
            (TlsFiles { cert: cert.clone(), ..none.clone() }, "certificate and key"),
            (TlsFiles { key: other.clone(), ..none.clone() }, "certificate and key"),
            (TlsFiles { cert: path.clone(), key: other.clone(), ..none.clone() }, "certificate file"),
            (TlsFiles { cert: cert.clone(), key: path, ..none.clone() }, "key file"),
            (TlsFiles { cert, key: other, ..none }, "cannot be used together"),
        ];
        for (files, expected) in cases {
            let told = told(&files);
            assert!(told.contains(expected) && !told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn names_are_told_as_people_write_them() {
        let presented = ["DnsName(\"a.example\")", "IpAddress(10.0.0.1)", "odd"].map(str::to_owned).to_vec();
        let expected = "b.example".try_into().unwrap();
        let wrong = CertificateError::NotValidForNameContext { expected, presented };
        let told = TlsProblem::from(rustls::Error::InvalidCertificate(wrong)).to_string();
        assert_eq!(told, "its certificate is not for \"b.example\" but for a.example, 10.0.0.1, odd");
    }

    #[test]
    fn a_problem_is_found_below_what_wraps_it() {
        let tls = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::new(io::ErrorKind::InvalidData, tls);
        assert_eq!(TlsProblem::of(&wrapped), Some(TlsProblem::UnknownCa));
        assert_eq!(TlsProblem::of(&io::Error::other("reset")), None);
    }
}
