//! Listening sockets: TCP over IPv4 and IPv6, and Unix sockets.

use std::{
    fmt, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

/// Connections that the kernel queues until they are accepted.
const BACKLOG: u32 = 1024;

/// Failure to open a listener.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The entry of `server.listen` is neither `host:port` nor `unix:/path`.
    #[error("server.listen: {entry:?} is neither host:port nor unix:/path")]
    Malformed { entry: String },
    /// Another process listens at the address.
    #[error("{entry} is in use; is hubllama running already? Stop it, or change server.listen")]
    InUse { entry: String },
    /// The file at the path is not a socket.
    #[error("{entry} is not a socket; remove it, or change server.listen")]
    NotASocket { entry: String },
    /// The system refused.
    #[error("{entry} cannot be listened on; see server.listen")]
    Refused {
        entry: String,
        #[source]
        source: io::Error,
    },
    /// No entry could be opened.
    #[error("server.listen names no address that this machine has")]
    Nothing,
}

/// Address of an open listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BoundAddress {
    /// TCP address with the actual port, also if port 0 was asked for.
    Tcp(SocketAddr),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An open listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) address: BoundAddress,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(
        UnixListener,
        #[expect(dead_code, reason = "removes the file when dropped")] SocketFile,
    ),
}

/// An accepted connection.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Opens the sockets of one entry of `server.listen`: a host name may stand for several addresses.
    pub(super) async fn open(entry: &str) -> Result<Vec<Self>, BindError> {
        if let Some(path) = entry.strip_prefix("unix:") {
            return Ok(vec![open_unix(entry, Path::new(path)).await?]);
        }
        let (_, port) = entry
            .rsplit_once(':')
            .ok_or_else(|| BindError::Malformed { entry: entry.into() })?;
        if port.parse::<u16>().is_err() {
            return Err(BindError::Malformed { entry: entry.into() });
        }
        let refused = |source| BindError::Refused {
            entry: entry.into(),
            source,
        };
        let addresses = tokio::net::lookup_host(entry).await.map_err(refused)?;
        let mut open = Vec::new();
        for address in addresses {
            match open_tcp(address) {
                Ok(socket) => {
                    let address = socket.local_addr().map_err(refused)?;
                    open.push(Self {
                        address: BoundAddress::Tcp(address),
                        socket: Socket::Tcp(socket),
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    return Err(BindError::InUse { entry: entry.into() });
                }
                // The default listens on ::1, too; a machine without IPv6 must still start.
                Err(error) if address.is_ipv6() && is_missing_family(&error) => {
                    tracing::warn!(%address, %error, "address not listened on, because this machine has no IPv6 there");
                }
                Err(error) => return Err(refused(error)),
            }
        }
        Ok(open)
    }

    /// Returns true for a loopback address. Web pages can reach it with DNS rebinding, so the host has to be checked.
    pub(super) fn is_loopback(&self) -> bool {
        matches!(self.address, BoundAddress::Tcp(address) if address.ip().is_loopback())
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Each frame is one write and must not wait for the next (Nagle's algorithm).
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "no TCP_NODELAY on a connection");
                }
                Ok(Accepted::Tcp(stream))
            }
            Socket::Unix(listener, _) => Ok(Accepted::Unix(listener.accept().await?.0)),
        }
    }
}

/// Kind of an error of `accept`, by its meaning for the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AcceptFailure {
    /// One connection is lost; the listener goes on.
    Connection,
    /// Out of file descriptors or memory: wait and go on.
    Exhausted,
    /// The listener itself is broken.
    Listener,
}

/// Classifies an error by the list in accept(2): network errors of one connection do not concern the listener.
pub(super) fn classify(error: &io::Error) -> AcceptFailure {
    use rustix::io::Errno;

    match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => AcceptFailure::Exhausted,
        Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP | Errno::FAULT) => AcceptFailure::Listener,
        _ => AcceptFailure::Connection,
    }
}

fn is_missing_family(error: &io::Error) -> bool {
    use rustix::io::Errno;

    matches!(
        Errno::from_io_error(error),
        Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT)
    )
}

fn open_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() {
        let socket = TcpSocket::new_v6()?;
        // IPv4 has its own socket; a dual-stack one, the default on Linux, would conflict with it.
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
        socket
    } else {
        TcpSocket::new_v4()?
    };
    // Connections of an earlier process that are in TIME_WAIT must not keep a restarted daemon from its port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn open_unix(entry: &str, path: &Path) -> Result<Listener, BindError> {
    if !path.is_absolute() {
        return Err(BindError::Malformed { entry: entry.into() });
    }
    let refused = |source| BindError::Refused {
        entry: entry.into(),
        source,
    };
    // A symbolic link is not followed: it is no socket of ours, and what it points to must not be removed.
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(BindError::NotASocket { entry: entry.into() });
        }
        match UnixStream::connect(path).await {
            // Nobody accepts: a daemon that was killed left the file behind.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(refused)?;
            }
            _ => return Err(BindError::InUse { entry: entry.into() }),
        }
    }
    let listener = UnixListener::bind(path).map_err(refused)?;
    let file = SocketFile::new(path).map_err(refused)?;
    Ok(Listener {
        address: BoundAddress::Unix(path.to_owned()),
        socket: Socket::Unix(listener, file),
    })
}

/// Removes a socket's file when dropped, unless another daemon has replaced it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "socket not removed");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn port_0_takes_a_port() {
        let open = Listener::open("127.0.0.1:0").await.unwrap();
        let [listener] = &open[..] else { panic!("{open:?}") };
        let BoundAddress::Tcp(address) = listener.address else {
            panic!("{listener:?}")
        };
        assert_ne!(address.port(), 0);
        assert!(listener.is_loopback());
        let again = Listener::open(&address.to_string()).await;
        assert!(matches!(again, Err(BindError::InUse { .. })), "{again:?}");
    }

    #[tokio::test]
    async fn malformed_entries() {
        for entry in [
            "",
            "11435",
            "127.0.0.1",
            "127.0.0.1:x",
            "unix:relative",
            "127.0.0.1:70000",
        ] {
            let result = Listener::open(entry).await;
            assert!(
                matches!(result, Err(BindError::Malformed { .. })),
                "{entry}: {result:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_unix_socket_is_removed_and_a_stale_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let entry = format!("unix:{}", path.display());

        let first = Listener::open(&entry).await.unwrap();
        assert!(matches!(Listener::open(&entry).await, Err(BindError::InUse { .. })));
        drop(first);
        assert!(!path.exists());

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = Listener::open(&entry).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "somebody else's").unwrap();
        drop(second);
        assert!(path.exists());
        assert!(matches!(
            Listener::open(&entry).await,
            Err(BindError::NotASocket { .. })
        ));
    }

    #[test]
    fn accept_errors() {
        use rustix::io::Errno;

        for (errno, expected) in [
            (Errno::CONNABORTED, AcceptFailure::Connection),
            (Errno::NETDOWN, AcceptFailure::Connection),
            (Errno::PERM, AcceptFailure::Connection),
            (Errno::MFILE, AcceptFailure::Exhausted),
            (Errno::NOMEM, AcceptFailure::Exhausted),
            (Errno::BADF, AcceptFailure::Listener),
        ] {
            assert_eq!(classify(&errno.into()), expected, "{errno}");
        }
    }
}
