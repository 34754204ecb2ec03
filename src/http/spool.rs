//! Spooling of a request body that has to be read completely before it can be routed: in memory up to a limit, beyond
//! that in a temporary file.
//!
//! The file has no name, so nothing is left behind even if the process is killed. File work runs on blocking threads.

use std::{
    fs::{File, OpenOptions},
    io::{self, Cursor, Read, Write},
    os::unix::fs::FileExt,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::BoxStream};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use rustix::fs::{Mode, OFlags};

use super::body::{Body, BoxError};
use crate::stdx::task::blocking;

/// Bytes of one write or read of the file, each of which costs a switch to a blocking thread.
const FILE_BLOCK_BYTES: usize = 512 << 10;

/// Limit of the memory reserved for an announced length, which may be false.
const FIRST_RESERVATION_BYTES: u64 = 64 << 10;

/// Names that are tried for a temporary file on a file system without unnamed files.
const NAME_ATTEMPTS: usize = 16;

/// Failure to spool a body.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The body is longer than the limit; the response is 413.
    #[error("the request body is larger than {limit} bytes; raise server.max_body_bytes to allow it")]
    TooLarge {
        /// Limit in bytes.
        limit: u64,
    },
    /// The client disconnected or sent a malformed body.
    #[error("the request body could not be read to its end")]
    Body(#[source] BoxError),
    /// The temporary file cannot be written or read.
    #[error("the request body could not be kept in a temporary file; is the temporary folder full?")]
    Disk(#[source] io::Error),
}

/// A body that was read completely.
#[derive(Debug)]
pub struct SpooledBody {
    store: Store,
    len: u64,
    sized: bool,
}

#[derive(Clone, Debug)]
enum Store {
    Memory(Bytes),
    File(Arc<File>),
}

impl SpooledBody {
    /// Reads all of `body`. A body of more than `memory_bytes` goes to a file.
    ///
    /// # Errors
    ///
    /// If the body is longer than `max_bytes`, fails, or cannot be written to the file.
    pub async fn read<B>(body: B, memory_bytes: u64, max_bytes: u64) -> Result<Self, SpoolError>
    where
        B: HttpBody<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let announced = body.size_hint().exact();
        if announced.is_some_and(|len| len > max_bytes) {
            return Err(SpoolError::TooLarge { limit: max_bytes });
        }
        let first = announced.unwrap_or(0).min(memory_bytes).min(FIRST_RESERVATION_BYTES);
        let mut pending = BytesMut::with_capacity(usize::try_from(first).unwrap_or(0));
        let mut file: Option<File> = None;
        let mut len = 0u64;

        let mut body = std::pin::pin!(body);
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| SpoolError::Body(error.into()))?.into_data() else {
                continue; // trailers
            };
            len += data.len() as u64;
            if len > max_bytes {
                return Err(SpoolError::TooLarge { limit: max_bytes });
            }
            pending.extend_from_slice(&data);
            if file.is_some() && pending.len() >= FILE_BLOCK_BYTES || file.is_none() && len > memory_bytes {
                file = Some(append(file, pending.split().freeze()).await?);
            }
        }
        if file.is_some() && !pending.is_empty() {
            file = Some(append(file, pending.split().freeze()).await?);
        }
        let store = match file {
            Some(file) => Store::File(Arc::new(file)),
            None => Store::Memory(pending.freeze()),
        };
        Ok(Self {
            store,
            len,
            sized: announced.is_some(),
        })
    }

    /// Returns the length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the bytes if they are in memory. Cloning them is cheap.
    #[must_use]
    pub fn in_memory(&self) -> Option<&Bytes> {
        match &self.store {
            Store::Memory(bytes) => Some(bytes),
            Store::File(_) => None,
        }
    }

    /// Returns a reader from the start of the body. Reading may block.
    #[must_use]
    pub fn reader(&self) -> SpoolReader {
        SpoolReader(match &self.store {
            Store::Memory(bytes) => Source::Memory(Cursor::new(bytes.clone())),
            Store::File(file) => Source::File {
                file: Arc::clone(file),
                position: 0,
            },
        })
    }

    /// Returns the bytes as a body with the framing of the original: with a length if that had one, otherwise chunked.
    #[must_use]
    pub fn into_body(self) -> Body {
        let Self { store, len, sized } = self;
        let source = match store {
            Store::Memory(bytes) => futures_util::stream::iter((!bytes.is_empty()).then_some(Ok(bytes))).boxed(),
            Store::File(file) => read_back(file, len),
        };
        Replay {
            source,
            remaining: len,
            sized,
        }
        .boxed_unsync()
    }
}

/// Reader of a [`SpooledBody`], independent of other readers.
#[derive(Debug)]
pub struct SpoolReader(Source);

#[derive(Debug)]
enum Source {
    Memory(Cursor<Bytes>),
    File { file: Arc<File>, position: u64 },
}

impl Read for SpoolReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Source::Memory(cursor) => cursor.read(buffer),
            Source::File { file, position } => {
                let read = file.read_at(buffer, *position)?;
                *position += read as u64;
                Ok(read)
            }
        }
    }
}

/// Body that announces its length only if the original did.
struct Replay {
    source: BoxStream<'static, Result<Bytes, BoxError>>,
    remaining: u64,
    sized: bool,
}

impl HttpBody for Replay {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let next = std::task::ready!(self.source.poll_next_unpin(cx));
        if let Some(Ok(bytes)) = &next {
            self.remaining = self.remaining.saturating_sub(bytes.len() as u64);
        }
        Poll::Ready(next.map(|item| item.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        // hyper sends a body that is at its end from the start as none at all, without the framing of the original.
        self.sized && self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        if self.sized {
            SizeHint::with_exact(self.remaining)
        } else {
            SizeHint::default()
        }
    }
}

fn read_back(file: Arc<File>, len: u64) -> BoxStream<'static, Result<Bytes, BoxError>> {
    futures_util::stream::try_unfold((file, 0u64), move |(file, position)| async move {
        if position >= len {
            return Ok(None);
        }
        let want = usize::try_from(len - position)
            .unwrap_or(usize::MAX)
            .min(FILE_BLOCK_BYTES);
        let read = move || {
            let mut block = vec![0; want];
            file.read_exact_at(&mut block, position)?;
            Ok::<_, io::Error>((file, block))
        };
        let (file, block) = blocking(read).await?;
        Ok(Some((Bytes::from(block), (file, position + want as u64))))
    })
    .boxed()
}

/// Appends to the file, which is created by the first call.
async fn append(file: Option<File>, bytes: Bytes) -> Result<File, SpoolError> {
    let work = move || {
        let mut file = match file {
            Some(file) => file,
            None => nameless_file(&std::env::temp_dir())?,
        };
        file.write_all(&bytes)?;
        Ok::<_, io::Error>(file)
    };
    blocking(work).await.map_err(SpoolError::Disk)
}

/// Creates a file without a name in `folder`.
fn nameless_file(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(descriptor) => Ok(File::from(descriptor)),
        // Some file systems (NFS, older overlayfs) do not support O_TMPFILE.
        Err(_) => created_and_unlinked(folder),
    }
}

fn created_and_unlinked(folder: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for _ in 0..NAME_ATTEMPTS {
        let path = folder.join(format!("hubllama-{:016x}.spool", rand::random::<u64>()));
        match OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            // As for the file without a name: a prompt is for its user alone.
            .mode(0o600)
            .open(&path)
        {
            Ok(file) => {
                // Removed at once: the open file lives on without its name.
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
    }

    fn chunked(data: &[u8], size: usize) -> Body {
        let chunks: Vec<_> = data
            .chunks(size)
            .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
            .collect();
        body::stream(futures_util::stream::iter(chunks))
    }

    async fn check(len: usize, memory_bytes: u64) {
        let data = bytes(len);
        for (original, sized) in [(body::full(data.clone()), true), (chunked(&data, 7001), false)] {
            let spooled = SpooledBody::read(original, memory_bytes, 1 << 30).await.unwrap();
            assert_eq!(spooled.len(), len as u64);
            assert_eq!(spooled.in_memory().is_some(), len as u64 <= memory_bytes);
            for _ in 0..2 {
                let mut read = Vec::new();
                spooled.reader().read_to_end(&mut read).unwrap();
                assert!(read == data, "reader differs at {len}");
            }
            let again = spooled.into_body();
            assert_eq!(again.size_hint().exact(), sized.then_some(len as u64));
            assert_eq!(again.is_end_stream(), sized && len == 0);
            assert!(
                again.collect().await.unwrap().to_bytes() == data,
                "body differs at {len}"
            );
        }
    }

    #[tokio::test]
    async fn bytes_come_back_as_they_went_in() {
        for len in [
            0,
            1,
            999,
            1000,
            1001,
            FILE_BLOCK_BYTES,
            FILE_BLOCK_BYTES + 1,
            3 * FILE_BLOCK_BYTES + 17,
        ] {
            check(len, 1000).await;
        }
    }

    #[tokio::test]
    async fn too_large_is_refused_with_and_without_a_length() {
        for body in [body::full(bytes(101)), chunked(&bytes(101), 10)] {
            let error = SpooledBody::read(body, 10, 100).await.unwrap_err();
            assert!(matches!(error, SpoolError::TooLarge { limit: 100 }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_broken_body_is_an_error() {
        let broken = body::stream(futures_util::stream::iter([Ok(Bytes::from("a")), Err("gone".into())]));
        assert!(matches!(
            SpooledBody::read(broken, 10, 100).await,
            Err(SpoolError::Body(_))
        ));
    }

    #[test]
    fn a_file_without_nameless_files_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = created_and_unlinked(folder.path()).unwrap();
        file.write_all(b"x").unwrap();
        drop(nameless_file(folder.path()).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
