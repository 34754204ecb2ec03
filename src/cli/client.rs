//! Client of a running daemon, for commands that leave the work to it.

use std::time::Duration;

use anyhow::{Context, anyhow};

use crate::config::Config;

/// Time limit for detecting a daemon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A running daemon.
#[derive(Debug)]
pub(super) struct Daemon {
    client: reqwest::Client,
    base: String,
}

impl Daemon {
    /// Looks for a daemon at the configured listen addresses; `None` if none answers.
    ///
    /// # Errors
    ///
    /// If no HTTP client can be built.
    pub(super) async fn find(config: &Config) -> anyhow::Result<Option<Self>> {
        crate::http::client::install_tls();
        // The daemon is on this machine, so a configured proxy must not be used.
        let client = reqwest::Client::builder()
            .no_proxy()
            // Only connecting is limited: a pull through the daemon may take hours.
            .connect_timeout(CONNECT_TIMEOUT)
            .build()?;
        for address in config
            .server
            .listen
            .iter()
            .filter(|address| !address.starts_with("unix:"))
        {
            let base = format!(
                "http://{}",
                // The unspecified address is one to listen on; not every system connects to it.
                address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")
            );
            // An Ollama that listens on this port instead has no `/health`.
            match client
                .get(format!("{base}/health"))
                .timeout(CONNECT_TIMEOUT)
                .send()
                .await
            {
                Ok(reply) if reply.status().is_success() => return Ok(Some(Self { client, base })),
                _ => {}
            }
        }
        Ok(None)
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) async fn get(&self, path: &str) -> anyhow::Result<serde_json::Value> {
        let reply = self.client.get(format!("{}{path}", self.base)).send().await?;
        decode(reply).await
    }

    pub(super) async fn post(&self, path: &str, body: &serde_json::Value) -> anyhow::Result<serde_json::Value> {
        let reply = self
            .client
            .post(format!("{}{path}", self.base))
            .json(body)
            .send()
            .await?;
        decode(reply).await
    }

    /// Sends a DELETE request; a successful response has no body.
    pub(super) async fn delete(&self, path: &str, body: &serde_json::Value) -> anyhow::Result<()> {
        let reply = self
            .client
            .delete(format!("{}{path}", self.base))
            .json(body)
            .send()
            .await?;
        if reply.status().is_success() {
            return Ok(());
        }
        decode(reply).await.map(drop)
    }

    /// Posts JSON and passes each line of the response to `line`.
    ///
    /// # Errors
    ///
    /// If the connection fails, or a line holds an error.
    pub(super) async fn post_lines(
        &self,
        path: &str,
        body: &serde_json::Value,
        mut line: impl FnMut(serde_json::Value),
    ) -> anyhow::Result<()> {
        let mut reply = self
            .client
            .post(format!("{}{path}", self.base))
            .json(body)
            .send()
            .await?;
        if !reply.status().is_success() {
            return decode(reply).await.map(drop);
        }
        let mut buffer = Vec::new();
        while let Some(chunk) = reply.chunk().await.context("the connection to the daemon was lost")? {
            buffer.extend_from_slice(&chunk);
            while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
                let frame: serde_json::Value = serde_json::from_slice(&buffer[..end])?;
                buffer.drain(..=end);
                if let Some(error) = frame.get("error").and_then(|error| error.as_str()) {
                    return Err(anyhow!("{error}"));
                }
                line(frame);
            }
        }
        Ok(())
    }
}

async fn decode(reply: reqwest::Response) -> anyhow::Result<serde_json::Value> {
    let status = reply.status();
    let value: serde_json::Value = reply
        .json()
        .await
        .with_context(|| format!("the daemon answered {status}"))?;
    match value.get("error").and_then(|error| error.as_str()) {
        Some(error) => Err(anyhow!("{error}")),
        None => Ok(value),
    }
}
