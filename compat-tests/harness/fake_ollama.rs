//! A server that plays Ollama: it keeps what it was sent, byte for byte, and answers what a test's script says.
//!
//! It shares no code with what is tested: plain sockets and threads.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use super::raw_http::{Connection, Head, PATIENCE};

/// A request as it came.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    /// Whether all of the body came.
    pub(crate) whole: bool,
}

/// Answers one request by writing to its connection. `false` closes the connection.
pub(crate) type Script = dyn Fn(&Received, &mut Connection) -> bool + Send + Sync;

/// A running fake. Its threads end with the test's process.
pub(crate) struct FakeOllama {
    address: SocketAddr,
    received: Receiver<Received>,
}

/// Requests that a test may leave unread.
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

    /// A fake that answers every request with the same bytes.
    pub(crate) fn answering(reply: impl Into<Vec<u8>>) -> Self {
        let reply = reply.into();
        Self::start(move |_, connection| connection.try_send(&reply).is_ok())
    }

    /// What `ollama.url` is set to.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address that a `Host` header names.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next request that was answered.
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
