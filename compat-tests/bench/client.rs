//! Small HTTP client with persistent connections, which calls all contenders.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, body,
    client::conn::http1::{SendRequest, handshake},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Time limit of a call. A peer that hangs ends the run.
const LIMIT: Duration = Duration::from_secs(300);

/// Persistent connection.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    address: SocketAddr,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a POST with a JSON body and passes every piece of the reply to `each`.
    pub(crate) async fn post(&mut self, path: &str, json: &Bytes, mut each: impl FnMut(&[u8])) -> Result<()> {
        let request = Request::post(path)
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(json.clone()))?;
        let call = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let status = response.status();
            let mut reply: body::Incoming = response.into_body();
            while let Some(frame) = reply.frame().await {
                if let Ok(data) = frame?.into_data() {
                    if !status.is_success() {
                        eprintln!("{}", String::from_utf8_lossy(&data));
                    }
                    each(&data);
                }
            }
            ensure!(status.is_success(), "{path} on {} answered {status}", self.address);
            Ok(())
        };
        tokio::time::timeout(LIMIT, call)
            .await
            .with_context(|| format!("no reply from {} in time", self.address))?
    }

    /// Sends a POST with a JSON body and returns the reply as text.
    pub(crate) async fn post_text(&mut self, path: &str, json: &Bytes) -> Result<String> {
        let mut reply = Vec::new();
        self.post(path, json, |data| reply.extend_from_slice(data)).await?;
        String::from_utf8(reply).context("the reply is not UTF-8")
    }
}

/// Runs a future on a runtime with one thread, so that the client does not take cores from the measured program.
pub(crate) fn run<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}
