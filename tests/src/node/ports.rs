//! Free loopback ports below the range from which the system takes client ports, so that a node that is
//! down for a while finds its ports free again.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, TcpListener},
};

use anyhow::{Result, bail};

/// From here …
const FIRST: u16 = 12_000;
/// … to below the default of `ip_local_port_range` (ip(7)).
const COUNT: u16 = 18_000;

/// Whether nobody listens on `port`.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// `N` different ports on which nobody listens now.
pub(crate) fn free<const N: usize>() -> Result<[u16; N]> {
    let random = RandomState::new();
    let mut found = BTreeSet::new();
    for attempt in 0..1000_u32 {
        let offset = u16::try_from(random.hash_one(attempt) % u64::from(COUNT))?;
        if is_free(FIRST + offset) {
            found.insert(FIRST + offset);
        }
        if found.len() == N {
            let mut ports = [0; N];
            ports.iter_mut().zip(found).for_each(|(slot, port)| *slot = port);
            return Ok(ports);
        }
    }
    bail!("no {N} free ports on 127.0.0.1 from {FIRST} on")
}
