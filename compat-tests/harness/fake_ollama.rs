//! Fake Ollama server. It records requests byte for byte, and a test's script answers them.
//!
//! It uses plain sockets and threads and shares no code with the program under test.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use super::raw_http::{Connection, Head, PATIENCE};

/// Request as it was received.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    /// True when the whole body was received.
    pub(crate) whole: bool,
}

/// Function that answers one request by writing to its connection. It returns `false` to close the connection.
pub(crate) type Script = dyn Fn(&Received, &mut Connection) -> bool + Send + Sync;

/// Running fake server. Its threads end with the test's process.
pub(crate) struct FakeOllama {
    address: SocketAddr,
    received: Receiver<Received>,
}

/// Number of requests that a test may leave unread.
const UNREAD_REQUESTS: usize = 1024;

impl FakeOllama {
    pub(crate) fn start(script: impl Fn(&Received, &mut Connection) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().unwrap();
        let (sender, received) = sync_channel(UNREAD_REQUESTS);
        let script: Arc<Script> = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (script, sender) = (Arc::clone(&script), sender.clone());
                std::thread::spawn(move || serve(Connection::new(stream.unwrap()), &*script, &sender));
            }
        });
        Self { address, received }
    }

    /// Starts a fake server that answers every request with the same bytes.
    pub(crate) fn answering(reply: impl Into<Vec<u8>>) -> Self {
        let reply = reply.into();
        Self::start(move |_, connection| connection.try_send(&reply).is_ok())
    }

    /// Returns the base URL for `ollama.url`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the address for the `Host` header.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the next request and returns it.
    pub(crate) fn received(&self) -> Received {
        self.received
            .recv_timeout(PATIENCE)
            .expect("a request that reached Ollama")
    }
}

fn serve(mut connection: Connection, script: &Script, sender: &SyncSender<Received>) {
    while let Some(head) = connection.try_head() {
        let (body, whole) = connection.body_so_far(&head);
        let request = Received { head, body, whole };
        let go_on = whole && script(&request, &mut connection);
        let _ = sender.send(request);
        if !go_on {
            return;
        }
    }
}
