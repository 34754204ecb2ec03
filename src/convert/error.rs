//! Why a checkpoint could not be converted.

use std::{
    borrow::Cow,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{gguf, stdx::size::human_bytes};

/// Conversion error: the reason why a checkpoint could not be converted, with what to do about it.
///
/// It travels as it is from the converter process to the daemon, so its fields are plain text: the causes
/// ([`io::Error`], [`gguf::Error`]) cannot be serialized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum ConvertError {
    /// The operating system said no.
    #[error("{} cannot be {what}: {reason}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The failed operation as a participle, for example "read".
        what: Cow<'static, str>,
        /// The message of the operating system.
        reason: String,
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
        value: String,
        /// The target type.
        kind: Cow<'static, str>,
        /// What can be done.
        advice: Cow<'static, str>,
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
    #[error("{0}")]
    Gguf(String),
    /// The result would crash the engine.
    #[error("{0}")]
    Refused(String),
}

impl ConvertError {
    /// Returns a function for `map_err` that names the operation which failed on `path`.
    pub(crate) fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io {
            path,
            what: what.into(),
            reason: error.to_string(),
        }
    }

    /// Returns true if this machine or this program is at fault, not the checkpoint: the same conversion may succeed
    /// elsewhere or later.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Space { .. } | Self::Engine(_))
    }

    pub(super) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

impl From<gguf::Error> for ConvertError {
    fn from(error: gguf::Error) -> Self {
        Self::Gguf(error.to_string())
    }
}

impl From<gguf::Refusal> for ConvertError {
    fn from(refusal: gguf::Refusal) -> Self {
        Self::Refused(refusal.to_string())
    }
}
