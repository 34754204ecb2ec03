//! Which names a daemon on loopback may be called by.
//!
//! A web page can point its own domain at 127.0.0.1 (DNS rebinding) and is then its own origin; the `Host` header is what
//! gives it away. The rules are Ollama's.

use std::net::{IpAddr, UdpSocket};

/// Endings of names that no public name server answers for.
const LOCAL_ENDINGS: [&str; 3] = [".localhost", ".local", ".internal"];

/// What the host of a request is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// An address of ours, or one that no page can be served from publicly.
    Address,
    /// A name of ours.
    Name,
    /// Somebody else's.
    Foreign,
}

/// Judges a host, with or without a port.
pub(super) fn judge(host: &str) -> Host {
    let host = without_port(host);
    if let Ok(address) = host.parse::<IpAddr>() {
        return if is_local(address.to_canonical()) {
            Host::Address
        } else {
            Host::Foreign
        };
    }
    let host = host.to_ascii_lowercase();
    let named = host.is_empty()
        || host == "localhost"
        || LOCAL_ENDINGS.iter().any(|ending| host.ends_with(ending))
        || rustix::system::uname()
            .nodename()
            .to_str()
            .is_ok_and(|name| name.eq_ignore_ascii_case(&host));
    if named { Host::Name } else { Host::Foreign }
}

fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or(host, |(address, _)| address);
    }
    match host.split_once(':') {
        // More than one colon is a bare IPv6 address.
        Some((name, port)) if !port.contains(':') => name,
        _ => host,
    }
}

fn is_local(address: IpAddr) -> bool {
    let private = match address {
        IpAddr::V4(address) => address.is_private(),
        IpAddr::V6(address) => address.is_unique_local(),
    };
    address.is_loopback() || private || address.is_unspecified() || is_interface(address)
}

/// Whether an interface of this machine has the address: only those can be bound.
fn is_interface(address: IpAddr) -> bool {
    !address.is_multicast() && UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (host, expected) in [
            ("127.0.0.1:11435", Host::Address),
            ("127.0.0.2", Host::Address),
            ("[::1]:11435", Host::Address),
            ("[::1]", Host::Address),
            ("::1", Host::Address),
            ("[::ffff:127.0.0.1]:1", Host::Address),
            ("0.0.0.0:1", Host::Address),
            ("192.168.1.7:11435", Host::Address),
            ("10.0.0.1", Host::Address),
            ("[fd00::1]:1", Host::Address),
            ("8.8.8.8", Host::Foreign),
            ("224.0.0.1", Host::Foreign),
            ("[2001:db8::1]:1", Host::Foreign),
            ("", Host::Name),
            ("localhost", Host::Name),
            ("LocalHost:1", Host::Name),
            ("box.local", Host::Name),
            ("a.b.internal:80", Host::Name),
            ("x.localhost", Host::Name),
            ("local", Host::Foreign),
            ("evil.example", Host::Foreign),
            ("localhost.evil.example", Host::Foreign),
            ("127.0.0.1.evil.example", Host::Foreign),
            ("[::1", Host::Foreign),
        ] {
            assert_eq!(judge(host), expected, "{host}");
        }
        let own = rustix::system::uname()
            .nodename()
            .to_str()
            .unwrap()
            .to_ascii_uppercase();
        assert_eq!(judge(&format!("{own}:1")), Host::Name);
    }
}
