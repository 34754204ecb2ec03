//! Addresses in the configuration: their grammar, and a check that forwarded requests do not come back to this server.
//!
//! No host name is resolved; only `localhost` and literal addresses are known to be this machine.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use url::Url;

/// Host part of an address.
pub(super) enum HostAddress {
    Address(IpAddr),
    Name(String),
}

impl HostAddress {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        match bracketed {
            Some(inside) => inside
                .parse::<Ipv6Addr>()
                .ok()
                .map(|address| Self::Address(address.into())),
            None => match text.parse::<Ipv4Addr>() {
                Ok(address) => Some(Self::Address(address.into())),
                Err(_) => {
                    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
                    let named = !text.is_empty() && text.bytes().all(good);
                    named.then(|| Self::Name(text.to_ascii_lowercase()))
                }
            },
        }
    }

    pub(super) fn is_loopback(&self) -> bool {
        match self {
            Self::Address(address) => address.is_loopback(),
            Self::Name(name) => name == "localhost" || name.ends_with(".localhost"),
        }
    }

    fn is_unspecified(&self) -> bool {
        matches!(self, Self::Address(address) if address.is_unspecified())
    }

    /// Returns true when a connection to `self` can arrive at a listener on `listener`.
    fn reaches(&self, listener: &Self) -> bool {
        let ours = |host: &Self| host.is_loopback() || host.is_unspecified();
        match (self, listener) {
            // A listener on an unspecified address accepts on all addresses of this machine; a connection to one goes
            // to this machine.
            _ if listener.is_unspecified() || self.is_unspecified() => ours(self) && ours(listener),
            (Self::Address(a), Self::Address(b)) => a == b,
            (Self::Name(a), Self::Name(b)) if a == b => true,
            // localhost stands for 127.0.0.1 and ::1, but for no other loopback address.
            (Self::Name(_), Self::Address(address)) | (Self::Address(address), Self::Name(_)) => {
                let first = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
                ours(self) && ours(listener) && first.contains(address)
            }
            _ => ours(self) && ours(listener),
        }
    }
}

/// An entry of `server.listen`.
pub(super) enum ListenAddress {
    Tcp(HostAddress, u16),
    Unix,
}

impl ListenAddress {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            Err(format!(
                "{text:?} {why}; write it as \"127.0.0.1:11435\" or \"unix:/path\""
            ))
        };
        if let Some(path) = text.strip_prefix("unix:") {
            if !Path::new(path).is_absolute() {
                return wrong("has no absolute path");
            }
            // sockaddr_un holds 108 bytes, including the terminating zero.
            if path.len() > 107 {
                return wrong("is a longer path than a socket can have");
            }
            return Ok(Self::Unix);
        }
        if text.contains("://") {
            return wrong("is a URL, not an address");
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return wrong("has no port");
        };
        let Ok(port) = port.parse::<u16>() else {
            return wrong("has no port from 0 to 65535");
        };
        if host.contains(':') && !host.starts_with('[') {
            return wrong("has an IPv6 address without brackets");
        }
        match HostAddress::parse(host) {
            Some(host) => Ok(Self::Tcp(host, port)),
            None => wrong("has no host"),
        }
    }

    pub(super) fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(_, port) => Some(*port),
            Self::Unix => None,
        }
    }

    pub(super) fn is_reached_by(&self, url: &Url) -> bool {
        let Self::Tcp(host, port) = self else { return false };
        let target = url.host_str().and_then(HostAddress::parse);
        // The system chooses the port for 0, so no URL can name it in advance.
        *port != 0 && url.port_or_known_default() == Some(*port) && target.is_some_and(|target| target.reaches(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_recognised() {
        let cases = [
            ("127.0.0.1:11434", "http://127.0.0.1:11434", true),
            ("127.0.0.1:11434", "http://localhost:11434", true),
            ("localhost:11434", "http://[::1]:11434", true),
            ("0.0.0.0:11434", "http://127.0.0.1:11434", true),
            ("[::]:11434", "http://localhost:11434", true),
            ("127.0.0.1:80", "http://127.0.0.1", true),
            ("gateway:11434", "http://Gateway:11434", true),
            ("127.0.0.1:11435", "http://127.0.0.1:11434", false),
            ("[::1]:11434", "http://127.0.0.1:11434", false),
            ("127.0.0.2:11434", "http://127.0.0.1:11434", false),
            ("127.0.0.2:11434", "http://localhost:11434", false),
            ("0.0.0.0:11434", "http://10.0.0.7:11434", false),
            ("127.0.0.1:0", "http://127.0.0.1:11434", false),
            ("unix:/run/x.sock", "http://127.0.0.1:11434", false),
        ];
        for (listen, url, expected) in cases {
            let listen_parsed = ListenAddress::parse(listen).unwrap_or_else(|sentence| panic!("{sentence}"));
            let url_parsed = Url::parse(url).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(listen_parsed.is_reached_by(&url_parsed), expected, "{listen} {url}");
        }
    }
}
