//! HTTP/1.1 client and server without any normalization, so that spelling, order and framing can be compared.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Maximum wait for a byte. A test that needs more has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Head of a request or response.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// First line, without its line ending.
    pub(crate) line: String,
    /// Names and values in the order and spelling in which they were received.
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the status of a response.
    pub(crate) fn status(&self) -> u16 {
        self.line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("{}", self.line))
    }

    /// Returns the headers except those with these names.
    pub(crate) fn without(&self, names: &[&str]) -> Vec<(String, String)> {
        let wanted = |name: &str| !names.iter().any(|other| other.eq_ignore_ascii_case(name));
        self.headers.iter().filter(|(name, _)| wanted(name)).cloned().collect()
    }
}

/// Connection of a client or a server.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).expect("the server listens"))
    }

    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the other side reads");
    }

    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes.as_ref())
    }

    /// Sends `bytes` as chunks of this size, followed by the chunk that ends the body.
    pub(crate) fn send_chunked(&mut self, bytes: &[u8], size: usize) {
        for chunk in bytes.chunks(size) {
            self.send(chunk_of(chunk));
        }
        self.send("0\r\n\r\n");
    }

    /// Returns the next head; `None` if the peer has closed the connection.
    pub(crate) fn try_head(&mut self) -> Option<Head> {
        let line = self.line()?;
        let mut headers = Vec::new();
        loop {
            let header = self.line().expect("a head ends with an empty line");
            if header.is_empty() {
                return Some(Head { line, headers });
            }
            let (name, value) = header
                .split_once(':')
                .unwrap_or_else(|| panic!("no header: {header:?}"));
            let value = value.strip_prefix(' ').unwrap_or(value);
            headers.push((name.to_owned(), value.to_owned()));
        }
    }

    pub(crate) fn head(&mut self) -> Head {
        self.try_head().expect("a head")
    }

    /// Returns the body that follows `head`, according to its framing.
    pub(crate) fn body(&mut self, head: &Head) -> Vec<u8> {
        let (body, whole) = self.body_so_far(head);
        assert!(whole, "the body broke off after {} bytes", body.len());
        body
    }

    /// Returns the body that follows `head`, and true if it is complete.
    pub(crate) fn body_so_far(&mut self, head: &Head) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        if head.header("transfer-encoding") == Some("chunked") {
            loop {
                match self.try_chunk() {
                    Some(chunk) if chunk.is_empty() => return (body, true),
                    Some(chunk) => body.extend_from_slice(&chunk),
                    None => return (body, false),
                }
            }
        }
        if let Some(length) = head.header("content-length") {
            let length: u64 = length.parse().expect("a length");
            let _ = self.stream.by_ref().take(length).read_to_end(&mut body);
            let whole = body.len() as u64 == length;
            return (body, whole);
        }
        if head.line.starts_with("HTTP/") && head.status() != 204 {
            self.stream.read_to_end(&mut body).expect("a body up to the end");
        }
        (body, true)
    }

    /// Returns the next chunk; `None` at the end of the body.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        Some(self.try_chunk().expect("a whole chunk")).filter(|chunk| !chunk.is_empty())
    }

    /// Returns the next chunk, an empty one at the end of the body; `None` if the connection ends early.
    pub(crate) fn try_chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.line()?;
        let size = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("no chunk size: {size:?}"));
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk).ok()?;
        assert!(chunk.ends_with(b"\r\n"));
        chunk.truncate(size);
        Some(chunk)
    }

    /// Discards input until the peer closes the connection; returns true if it does so within [`PATIENCE`].
    pub(crate) fn closes(&mut self) -> bool {
        let mut rest = [0; 4096];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Returns the next line; `None` if the connection ends early.
    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        match self.stream.read_until(b'\n', &mut line) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no line in time"),
            Err(_) => return None,
            Ok(_) => {}
        }
        if !line.ends_with(b"\r\n") {
            return None;
        }
        line.truncate(line.len() - 2);
        Some(String::from_utf8(line).expect("text"))
    }
}

/// Returns a chunk with its framing.
pub(crate) fn chunk_of(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
    chunk.extend_from_slice(bytes);
    chunk.extend_from_slice(b"\r\n");
    chunk
}
