//! Error type of all conversions. A conversion runs in a separate process, so the error crosses a socket to the daemon:
//! it is serializable and holds texts instead of the errors it was made from.

use std::{
    borrow::Cow,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, Serializer};

use crate::{gguf, stdx::size::human_bytes};

/// Error of planning or performing a conversion. Each text says what to do, if something can be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvertError {
    /// The operating system refused an operation.
    #[error("{} cannot be {action}: {reason}", path.display())]
    Io {
        #[serde(serialize_with = "lossy_path")]
        path: PathBuf,
        /// Past participle of the operation, for example "read".
        action: Cow<'static, str>,
        /// The system's error text.
        reason: String,
    },
    /// A file's contents contradict its format.
    #[error("{} is damaged or incomplete: {reason}; download it again", path.display())]
    Damaged {
        #[serde(serialize_with = "lossy_path")]
        path: PathBuf,
        reason: String,
    },
    /// The folder holds no complete checkpoint.
    #[error("{0}")]
    Incomplete(String),
    /// The architecture has no conversion rules here. Holds its name in `config.json`.
    #[error(
        "the architecture {0:?} cannot be converted from safetensors by this version (`hubllama convert --help` lists those \
         that can); choose a repository that has GGUF files of the model"
    )]
    Architecture(String),
    /// The checkpoint is quantized by a method that cannot be converted. Holds the method's name.
    #[error(
        "the weights are quantized already ({0}), which cannot be converted; choose the original repository or one \
         with GGUF files"
    )]
    Quantized(String),
    /// The architecture has no vision encoder, or one without conversion rules. Holds its name in `config.json`.
    #[error("{0} has no projector that can be converted from safetensors by this version; look for an mmproj file")]
    Projector(String),
    /// `config.json` contradicts itself, the weights, or the definition of the architecture.
    #[error("config.json does not describe this checkpoint: {0}")]
    Config(String),
    /// A tensor is missing, unexpected or of the wrong shape.
    #[error("the weights do not fit the architecture: {0}")]
    Weights(String),
    /// The adapter cannot be applied at all, or not to this base model. The text calls the adapter "it".
    #[error("{0}")]
    Adapter(String),
    /// The tokenizer is missing or of an unsupported kind.
    #[error("the tokenizer cannot be converted: {0}")]
    Tokenizer(String),
    /// The target type cannot represent an element.
    #[error("the tensor {tensor:?} contains {value}, which {element_type} cannot hold; {advice}")]
    Number {
        /// Name of the tensor in the checkpoint.
        tensor: String,
        /// The element, printed: JSON has no NaN and no infinities.
        value: String,
        /// Name of the target type.
        element_type: Cow<'static, str>,
        advice: Cow<'static, str>,
    },
    /// The file system has too little space for the file.
    #[error("{} is needed for {} but only {} is free there", human_bytes(*needed), path.display(), human_bytes(*free))]
    Space {
        #[serde(serialize_with = "lossy_path")]
        path: PathBuf,
        /// Bytes of the file.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// llama.cpp failed, or the process in which it runs.
    #[error("{0}")]
    Engine(String),
    #[error("the conversion was cancelled")]
    Cancelled,
    /// The GGUF file cannot be laid out or read.
    #[error("{0}")]
    Gguf(String),
    /// llama.cpp would crash on the GGUF file.
    #[error(transparent)]
    Refused(#[from] gguf::GgufRefusal),
}

impl ConvertError {
    /// Returns a function for `map_err` that says which operation on `path` failed, for example "read".
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io {
            path,
            action: action.into(),
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

impl From<gguf::GgufError> for ConvertError {
    fn from(error: gguf::GgufError) -> Self {
        Self::Gguf(error.to_string())
    }
}

/// Serializes a path that need not be UTF-8: an error must not be lost because of the name of a file.
fn lossy_path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_survive_serialization() {
        let number = ConvertError::Number {
            tensor: "w".into(),
            value: f32::NAN.to_string(),
            element_type: "F16".into(),
            advice: "a".into(),
        };
        let io = ConvertError::io(Path::new("/a"), "read")(io::Error::other("b"));
        for error in [number, io, ConvertError::Cancelled] {
            let json = serde_json::to_string(&error).unwrap();
            assert_eq!(serde_json::from_str::<ConvertError>(&json).unwrap(), error);
        }
    }
}
