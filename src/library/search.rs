//! Searching the Hub for models, and judging which of them this machine can run.

use std::{fs, sync::Arc};

use super::Library;
use crate::{
    config::HubConfig,
    hub::{HubError, SearchHit, client::HubClient},
};

/// Memory that a model needs besides its weights: a small context, compute buffers, the program itself.
const OVERHEAD_BYTES: u64 = 512 << 20;

/// Memory fit: the outcome of comparing a model's size with the memory of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryFit {
    /// The model needs at most three quarters of the memory.
    Fits,
    /// The model fits if little else runs.
    Tight,
    TooLarge,
    /// The size of the memory is not known.
    Unknown,
}

impl MemoryFit {
    /// Judges a model of `model_bytes` on a machine with `memory_bytes` of memory; 0 means that the amount is unknown.
    #[must_use]
    pub fn of(model_bytes: u64, memory_bytes: u64) -> Self {
        let needed = model_bytes
            .saturating_add(model_bytes / 10)
            .saturating_add(OVERHEAD_BYTES);
        match memory_bytes {
            0 => Self::Unknown,
            memory if needed <= memory / 4 * 3 => Self::Fits,
            memory if needed <= memory => Self::Tight,
            _ => Self::TooLarge,
        }
    }
}

/// Returns the bytes of memory that this machine has in all, or 0 if `/proc/meminfo` does not say.
#[must_use]
pub fn total_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = text.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()
    });
    kibibytes.unwrap_or(0) << 10
}

impl Library {
    /// Searches the Hub for repositories with GGUF files, the most downloaded first, with the models in each.
    ///
    /// # Errors
    /// If the Hub is switched off or cannot be asked.
    pub async fn search(&self, config: &HubConfig, words: &str, limit: usize) -> Result<Vec<SearchHit>, HubError> {
        if config.offline {
            return Err(HubError::SwitchedOff);
        }
        let client = HubClient::new(&self.0.pool, Arc::new(config.clone()))?;
        client.search_models(words, limit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_decides_what_fits() {
        let memory = 10 << 30;
        assert_eq!(MemoryFit::of(4 << 30, memory), MemoryFit::Fits);
        assert_eq!(MemoryFit::of(8 << 30, memory), MemoryFit::Tight);
        assert_eq!(MemoryFit::of(16 << 30, memory), MemoryFit::TooLarge);
        assert_eq!(MemoryFit::of(1, 0), MemoryFit::Unknown);
    }
}
