//! Why a checkpoint could not be converted.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{gguf, stdx::size::human_bytes};

/// Why a checkpoint could not be converted. Each sentence says what to do, where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The operating system said no.
    #[error("{} cannot be {what}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// As "read".
        what: &'static str,
        /// The system's reason.
        error: io::Error,
    },
    /// A file is not what its name says.
    #[error("{} is damaged or incomplete: {reason}; download it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder holds no checkpoint, or not all of one; or another process found something wrong with it.
    #[error("{0}")]
    Incomplete(String),
    /// Nobody taught this program the architecture.
    #[error(
        "the architecture {0:?} cannot be converted from safetensors by this version (`hubllama convert --help` lists those \
         that can); choose a repository that has GGUF files of the model"
    )]
    Architecture(String),
    /// The weights were quantised by another program.
    #[error(
        "the weights are quantised already ({0}), which cannot be converted; choose the original repository or one \
         with GGUF files"
    )]
    Quantized(String),
    /// The architecture sees nothing, or nobody taught this program how.
    #[error("{0} has no projector that can be converted from safetensors by this version; look for an mmproj file")]
    Projector(String),
    /// `config.json` contradicts itself, the weights, or what is known of the architecture.
    #[error("config.json does not describe this checkpoint: {0}")]
    Config(String),
    /// Weights are missing, surplus or of another shape.
    #[error("the weights do not fit the architecture: {0}")]
    Weights(String),
    /// An adapter that cannot be applied, or not to this base. The sentence is about "it".
    #[error("{0}")]
    Adapter(String),
    /// The tokenizer is missing or of an unknown kind.
    #[error("the tokenizer cannot be converted: {0}")]
    Tokenizer(String),
    /// A number that the target type cannot hold.
    #[error("the tensor {tensor:?} contains {value}, which {kind} cannot hold; {advice}")]
    Number {
        /// The tensor in the checkpoint.
        tensor: String,
        /// NaN, an infinity or a number that is too large.
        value: f32,
        /// The target type.
        kind: &'static str,
        /// What can be done.
        advice: &'static str,
    },
    /// The file system is too small.
    #[error("{} is needed for {} but only {} is free there", human_bytes(*needed), path.display(), human_bytes(*free))]
    Space {
        /// The file that would be written.
        path: PathBuf,
        /// Its bytes.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// llama.cpp, or the process in which it runs.
    #[error("{0}")]
    Engine(String),
    /// The caller changed its mind.
    #[error("the conversion was cancelled")]
    Cancelled,
    /// The result could not be laid out.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// The result would crash the engine.
    #[error(transparent)]
    Refused(#[from] gguf::Refusal),
}

impl ConvertError {
    /// For `map_err`: what was done to `path` when the system refused.
    pub(super) fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { path, what, error }
    }

    pub(super) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// A [`ConvertError`] as it goes from one process to another: its sentence, and whose fault it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvertFault {
    /// [`ConvertError::Architecture`]
    Architecture(String),
    /// Something is wrong with the checkpoint.
    Checkpoint(String),
    /// Something is wrong with this machine or this program.
    Machine(String),
}

impl From<ConvertError> for ConvertFault {
    fn from(error: ConvertError) -> Self {
        match error {
            ConvertError::Architecture(name) => Self::Architecture(name),
            ConvertError::Io { .. }
            | ConvertError::Space { .. }
            | ConvertError::Engine(_)
            | ConvertError::Cancelled => Self::Machine(error.to_string()),
            _ => Self::Checkpoint(error.to_string()),
        }
    }
}

impl From<ConvertFault> for ConvertError {
    /// The sentence stays as it is.
    fn from(fault: ConvertFault) -> Self {
        match fault {
            ConvertFault::Architecture(name) => Self::Architecture(name),
            ConvertFault::Checkpoint(sentence) => Self::Incomplete(sentence),
            ConvertFault::Machine(sentence) => Self::Engine(sentence),
        }
    }
}
