//! One TLS provider for the whole process.

/// Installs ring as the process's TLS provider; the first line of every main. Two crates with different
/// built-in defaults would otherwise panic at the first handshake.
pub fn install_provider() {
    // An error means that a provider is there already: this function ran before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
