//! Check of the `Host` header on loopback listeners, with Ollama's rules.
//!
//! A web page can point its own domain at 127.0.0.1 (DNS rebinding). Its requests are then same-origin, so the CORS
//! check does not see them; only the host name shows where they come from.

use std::net::{IpAddr, UdpSocket};

/// Suffixes of names that public name servers do not resolve.
const LOCAL_ENDINGS: [&str; 3] = [".localhost", ".local", ".internal"];

/// Kind of host that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostKind {
    /// An address of this machine, or a private one, from which no public page is served.
    Address,
    /// A name of this machine.
    Name,
    /// Any other name or address.
    Foreign,
}

/// Classifies a host, with or without a port. An absent host counts as a name of this machine, as in Ollama.
pub(super) fn judge(host: &str) -> HostKind {
    let host = without_port(host);
    if let Ok(address) = host.parse::<IpAddr>() {
        return if is_local(address.to_canonical()) {
            HostKind::Address
        } else {
            HostKind::Foreign
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
    if named { HostKind::Name } else { HostKind::Foreign }
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

/// Returns true when an interface of this machine has the address: only such an address can be bound.
fn is_interface(address: IpAddr) -> bool {
    !address.is_multicast() && UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (host, expected) in [
            ("127.0.0.1:11435", HostKind::Address),
            ("127.0.0.2", HostKind::Address),
            ("[::1]:11435", HostKind::Address),
            ("[::1]", HostKind::Address),
            ("::1", HostKind::Address),
            ("[::ffff:127.0.0.1]:1", HostKind::Address),
            ("0.0.0.0:1", HostKind::Address),
            ("192.168.1.7:11435", HostKind::Address),
            ("10.0.0.1", HostKind::Address),
            ("[fd00::1]:1", HostKind::Address),
            ("8.8.8.8", HostKind::Foreign),
            ("224.0.0.1", HostKind::Foreign),
            ("[2001:db8::1]:1", HostKind::Foreign),
            ("", HostKind::Name),
            ("localhost", HostKind::Name),
            ("LocalHost:1", HostKind::Name),
            ("box.local", HostKind::Name),
            ("a.b.internal:80", HostKind::Name),
            ("x.localhost", HostKind::Name),
            ("local", HostKind::Foreign),
            ("evil.example", HostKind::Foreign),
            ("localhost.evil.example", HostKind::Foreign),
            ("127.0.0.1.evil.example", HostKind::Foreign),
            ("[::1", HostKind::Foreign),
        ] {
            assert_eq!(judge(host), expected, "{host}");
        }
        let own = rustix::system::uname()
            .nodename()
            .to_str()
            .unwrap()
            .to_ascii_uppercase();
        assert_eq!(judge(&format!("{own}:1")), HostKind::Name);
    }
}
