//! Downloads over the Hub's xet protocol: a content-addressed store describes a file as chunks of larger objects
//! (xorbs), which are fetched from a content network. Plain HTTP is simpler and delivers the same bytes, but the Hub
//! does not offer it for files of more than 50 GB.
//!
//! The protocol is implemented by `xet-data`, the engine of the `hf-xet` crate that `hf-hub` uses. It is driven
//! directly, because the download calls of `hf-hub` take their settings from the environment, cannot be told where to
//! write, and send telemetry; and because the sessions of `hf-xet` hide how many bytes have arrived, so that a stall
//! could not be told from a large chunk.
//!
//! The engine delivers parts of the file in any order. [`XetFetch`] writes them into the partial file like ranges of a
//! plain download: they can be resumed over either protocol, and the file is verified as a whole before it becomes
//! visible. Everything of the engine runs on its own runtime, since dropping that is the only way to end all of its
//! tasks.

use std::{error::Error, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue, USER_AGENT};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::mpsc,
    time::timeout,
};
use url::Url;
use xet_client::{
    ClientError,
    cas_client::auth::{AuthConfig, AuthError, TokenInfo, TokenRefresher},
};
use xet_data::{
    DataError,
    file_reconstruction::FileReconstructionError,
    processing::{
        FileDownloadSession, XetFileInfo,
        configurations::{SessionContext, TranslatorConfig},
    },
};
use xet_runtime::{config::XetConfig, core::XetContext, utils::ByteSize};

use super::{
    backoff::MAX_WAIT,
    client::{HubClient, MIN_BYTES, RequestSubject, XetAccess, host},
    endpoints::Endpoint,
    error::HubError,
    pool,
    tasks::blocking,
    transfer::{BlobTransfer, PROGRESS_BYTES, WRITE_BYTES},
};
use crate::config::HubConfig;

/// Threads of one transfer. They decompress chunks, about 1 GB/s each.
const THREADS: usize = 2;
/// Bytes of a file that the engine holds in memory. A part has up to 64 MiB, so that four of them fit.
const BUFFER_BYTES: u64 = 256 << 20;
/// Bytes of a file that are described by one answer of the store. The links in it expire after some time.
const SEGMENT_BYTES: u64 = 256 << 20;
/// Time ahead for which the engine requests descriptions.
const PREFETCH_TIME: Duration = Duration::from_secs(60);
/// Retries of one request inside the engine. Few, since [`XetFetch`] starts the engine again for what is missing.
const ENGINE_RETRIES: usize = 2;

/// Download of one file over xet.
pub(super) struct XetFetch<'a> {
    transfer: &'a BlobTransfer<'a>,
    /// Hash by which the store knows the file: 64 hex digits, not the sha256 of the content.
    hash: String,
    /// Endpoint that gives tokens for the store.
    endpoint: Endpoint,
}

/// Part of a file that has arrived.
#[derive(Debug)]
struct FilePart {
    offset: u64,
    bytes: Bytes,
}

/// Reason why the engine gave up.
#[derive(Debug)]
struct XetFailure {
    text: String,
    /// True when the store said something wrong, rather than nothing.
    is_protocol_error: bool,
}

/// Running engine. Dropping it ends all of its tasks.
struct RunningEngine {
    parts: mpsc::Receiver<Result<FilePart, XetFailure>>,
    session: Arc<FileDownloadSession>,
    /// Bytes that had arrived over the network at the last look.
    received: u64,
    _runtime: EngineRuntime,
}

/// Runtime of one transfer.
struct EngineRuntime(Option<Runtime>);

/// Source of tokens for the store, for transfers that take longer than a token is valid.
#[derive(Clone)]
struct HubTokens {
    client: HubClient,
    endpoint: Endpoint,
    repo: String,
    commit: String,
    /// Runtime that drives the connections of `client`.
    runtime: Handle,
}

impl<'a> XetFetch<'a> {
    pub(super) fn new(transfer: &'a BlobTransfer<'a>, hash: String, endpoint: Endpoint) -> Self {
        Self {
            transfer,
            hash,
            endpoint,
        }
    }

    /// Downloads everything that is missing, over as many tries as make progress.
    pub(super) async fn run(&self) -> Result<(), HubError> {
        let mut backoff = self.transfer.client.backoff();
        loop {
            let before = self.transfer.partial.completed();
            let Err(error) = self.pass().await else { return Ok(()) };
            if is_final(&error) {
                return Err(error);
            }
            if self.transfer.partial.completed() >= before + PROGRESS_BYTES {
                backoff.reset();
            }
            // Every kind of error is worth a retry: the next pass has a new token, new links and perhaps another
            // server.
            backoff.wait_anyway(error).await?;
        }
    }

    /// Tries once to download everything that is missing.
    async fn pass(&self) -> Result<(), HubError> {
        let BlobTransfer { client, partial, .. } = self.transfer;
        let access = client.xet_access(&self.endpoint, &self.transfer.about()).await?;
        let store = access.store.clone();
        let mut engine = RunningEngine::start(self, access, partial.missing()).await?;
        self.receive(&mut engine, &store).await
    }

    /// Writes parts until all have arrived.
    async fn receive(&self, engine: &mut RunningEngine, store: &Url) -> Result<(), HubError> {
        let BlobTransfer { client, partial, .. } = self.transfer;
        while let Some(part) = self.next(engine, store).await? {
            let FilePart { mut offset, mut bytes } = part;
            // In pieces, so that progress and the bandwidth limit are smooth: a part can have 64 MiB.
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(WRITE_BYTES));
                let (at, partial) = (offset, Arc::clone(partial));
                offset += piece.len() as u64;
                client.throttle(piece.len()).await;
                self.transfer.report(blocking(move || partial.write(at, &piece)).await?);
            }
        }
        if partial.missing().is_empty() {
            return Ok(());
        }
        Err(client.protocol(store, "it describes less of the file than was asked for"))
    }

    /// Waits for the next part; `None` after the last one.
    async fn next(&self, engine: &mut RunningEngine, store: &Url) -> Result<Option<FilePart>, HubError> {
        let after = self.transfer.client.config().stall_timeout;
        loop {
            match timeout(after, engine.parts.recv()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(part))) => return Ok(Some(part)),
                Ok(Some(Err(failure))) if failure.is_protocol_error => {
                    return Err(self.transfer.client.protocol(store, &failure.text));
                }
                Ok(Some(Err(failure))) => return Err(self.transfer.interrupted(&failure.text)),
                // A part takes longer than the timeout on a slow network. It is a stall only if no bytes arrive either.
                Err(_) if engine.has_advanced() => {}
                Err(_) => {
                    return Err(HubError::Stalled {
                        host: host(store),
                        after,
                    });
                }
            }
        }
    }
}

impl RunningEngine {
    async fn start(xet: &XetFetch<'_>, access: XetAccess, missing: Vec<(u64, u64)>) -> Result<Self, HubError> {
        let transfer = xet.transfer;
        let failed = |error: &dyn Error| transfer.interrupted(&format!("the xet engine does not start: {error}"));
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("xet")
            .enable_all()
            .build()
            .map_err(|error| failed(&error))?;
        let runtime = EngineRuntime(Some(runtime));
        let engine = runtime.handle();
        let about = transfer.about();
        let tokens = HubTokens {
            client: transfer.client.clone(),
            endpoint: xet.endpoint.clone(),
            repo: about.repo.to_owned(),
            commit: about.revision.to_owned(),
            runtime: Handle::current(),
        };
        let context = XetContext::from_external(engine.clone(), engine_config(transfer.client.config()));
        let config = Arc::new(translator_config(context, access, tokens));
        // Whatever the engine does has to begin on its runtime: it spawns tasks on the one that it finds itself on.
        let session = engine.spawn(FileDownloadSession::new(config, None)).await;
        let session = session
            .map_err(|error| failed(&error))?
            .map_err(|error| failed(&error))?;
        // One part only: the engine counts its memory until the part is handed over.
        let (sender, parts) = mpsc::channel(1);
        let file = XetFileInfo::new(xet.hash.clone(), transfer.target.size);
        let produced = Arc::clone(&session);
        engine.spawn(async move {
            if let Err(failure) = produce(&produced, &file, missing, &sender).await {
                let _ = sender.send(Err(failure)).await;
            }
        });
        Ok(Self {
            parts,
            session,
            received: 0,
            _runtime: runtime,
        })
    }

    /// True when enough bytes have arrived since the last call.
    fn has_advanced(&mut self) -> bool {
        let received = self.session.report().total_transfer_bytes_completed;
        let has_advanced = received >= self.received + MIN_BYTES as u64;
        self.received = received;
        has_advanced
    }
}

impl EngineRuntime {
    fn handle(&self) -> Handle {
        let runtime = self.0.as_ref().expect("it is taken only when it is dropped");
        runtime.handle().clone()
    }
}

impl Drop for EngineRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // A plain drop would wait for the threads, which is forbidden inside another runtime.
            runtime.shutdown_background();
        }
    }
}

#[async_trait]
impl TokenRefresher for HubTokens {
    async fn refresh(&self) -> Result<TokenInfo, AuthError> {
        let tokens = self.clone();
        // Not on the engine's runtime: a pooled connection ends with the runtime that it was opened on.
        let asked = self.runtime.spawn(async move {
            let about = RequestSubject {
                repo: &tokens.repo,
                revision: &tokens.commit,
                path: "",
            };
            tokens.client.xet_access(&tokens.endpoint, &about).await
        });
        match asked.await {
            Ok(Ok(access)) => Ok((access.token.expose().clone(), access.expires)),
            Ok(Err(error)) => Err(AuthError::token_refresh_failure(error)),
            Err(error) => Err(AuthError::token_refresh_failure(error)),
        }
    }
}

/// Sends the parts of all missing ranges.
async fn produce(
    session: &FileDownloadSession,
    file: &XetFileInfo,
    missing: Vec<(u64, u64)>,
    sender: &mpsc::Sender<Result<FilePart, XetFailure>>,
) -> Result<(), XetFailure> {
    for (start, end) in missing {
        let (_, mut stream) = session.download_unordered_stream(file, Some(start..end)).await?;
        while let Some((offset, bytes)) = stream.next().await? {
            // Offsets are relative to the range.
            let offset = start.saturating_add(offset);
            if offset.saturating_add(bytes.len() as u64) > end {
                return Err(XetFailure {
                    text: "it describes more of the file than was asked for".into(),
                    is_protocol_error: true,
                });
            }
            if sender.send(Ok(FilePart { offset, bytes })).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Settings of the engine, taken from our own. Its defaults, not `XetConfig::new()`, which reads `HF_XET_*` variables.
fn engine_config(config: &HubConfig) -> XetConfig {
    let parallel = config.parallel_ranges.max(1);
    let mut xet = XetConfig::default();
    xet.telemetry.enabled = false;
    xet.client.connect_timeout = config.connect_timeout;
    xet.client.read_timeout = config.stall_timeout;
    xet.client.retry_max_attempts = ENGINE_RETRIES.min(config.retry_attempts as usize);
    xet.client.retry_base_delay = config.retry_delay;
    xet.client.retry_max_duration = MAX_WAIT;
    xet.client.ac_initial_download_concurrency = parallel;
    xet.client.ac_max_download_concurrency = parallel;
    xet.reconstruction.download_buffer_size = ByteSize::from(BUFFER_BYTES);
    xet.reconstruction.download_buffer_limit = ByteSize::from(BUFFER_BYTES);
    xet.reconstruction.download_buffer_perfile_size = ByteSize::from(0);
    // One size for all descriptions: the engine keeps the content of a xorb for as long as its description mentions it
    // again.
    xet.reconstruction.min_reconstruction_fetch_size = ByteSize::from(SEGMENT_BYTES);
    xet.reconstruction.max_reconstruction_fetch_size = ByteSize::from(SEGMENT_BYTES);
    xet.reconstruction.min_prefetch_buffer = ByteSize::from(SEGMENT_BYTES);
    xet.reconstruction.target_block_completion_time = PREFETCH_TIME;
    xet
}

fn translator_config(ctx: XetContext, access: XetAccess, tokens: HubTokens) -> TranslatorConfig {
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static(pool::USER_AGENT));
    // A literal instead of `TranslatorConfig::new`, which creates folders for uploads in the cache of huggingface_hub.
    TranslatorConfig {
        ctx,
        session: SessionContext {
            endpoint: access.store.as_str().trim_end_matches('/').to_owned(),
            auth: Some(AuthConfig {
                token: access.token.expose().clone(),
                token_expiration: access.expires,
                token_refresher: Arc::new(tokens),
            }),
            custom_headers: Some(Arc::new(headers)),
            repo_paths: Vec::new(),
            session_id: None,
            cache_root: None,
        },
        shard_cache_directory: "".into(),
        shard_session_directory: "".into(),
        force_disable_progress_aggregation: false,
    }
}

/// True when another try, or another protocol, cannot help.
pub(super) fn is_final(error: &HubError) -> bool {
    matches!(
        error,
        HubError::Cancelled | HubError::Io { .. } | HubError::DiskFull { .. }
    )
}

impl From<DataError> for XetFailure {
    fn from(error: DataError) -> Self {
        let is_network_error = match &error {
            DataError::ClientError(cause) => is_network_error(cause),
            DataError::FileReconstructionError(FileReconstructionError::ClientError(cause)) => is_network_error(cause),
            error => matches!(error, DataError::AuthError(_) | DataError::IOError(_)),
        };
        Self {
            text: format!("xet: {error}"),
            is_protocol_error: !is_network_error,
        }
    }
}

impl From<FileReconstructionError> for XetFailure {
    fn from(error: FileReconstructionError) -> Self {
        DataError::from(error).into()
    }
}

fn is_network_error(error: &ClientError) -> bool {
    match error {
        ClientError::ReqwestError(..)
        | ClientError::ReqwestMiddlewareError(_)
        | ClientError::AuthError(_)
        | ClientError::IOError(_) => true,
        // A body that breaks off in the middle of a chunk.
        ClientError::FormatError(cause) => cause.source().is_some_and(<dyn Error>::is::<io::Error>),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_takes_our_settings() {
        let config = HubConfig {
            parallel_ranges: 3,
            retry_attempts: 1,
            stall_timeout: Duration::from_secs(7),
            ..HubConfig::default()
        };
        let xet = engine_config(&config);
        assert!(!xet.telemetry.enabled);
        assert_eq!(xet.client.ac_max_download_concurrency, 3);
        assert_eq!(xet.client.retry_max_attempts, 1);
        assert_eq!(xet.client.read_timeout, Duration::from_secs(7));
        assert_eq!(xet.reconstruction.download_buffer_limit.as_u64(), BUFFER_BYTES);
        let many = engine_config(&HubConfig {
            retry_attempts: 100,
            ..config
        });
        assert_eq!(many.client.retry_max_attempts, ENGINE_RETRIES);
    }

    #[test]
    fn a_broken_connection_is_no_protocol_error() {
        let is_protocol_error = |error: ClientError| XetFailure::from(DataError::from(error)).is_protocol_error;
        let broken = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert!(!is_protocol_error(ClientError::IOError(broken)));
        assert!(!is_protocol_error(ClientError::AuthError(
            AuthError::token_refresh_failure("expired")
        )));
        assert!(is_protocol_error(ClientError::InvalidRange));
        let corrupt = FileReconstructionError::CorruptedReconstruction("no such xorb".into());
        assert!(XetFailure::from(corrupt).is_protocol_error);
    }
}
