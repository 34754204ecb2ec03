//! Frames between daemon and worker: a little-endian u32 length, then that many bytes of JSON.
//!
//! JSON because a frame carries text and little else, and because a person can read it off the socket; measured, it is
//! a few microseconds a decode step. Both ends are the same binary, so the version is a check, not a negotiation.

use std::{
    io::{self, Read},
    path::PathBuf,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::inference::TextToken;
pub use crate::llama::{ContextParams, GrammarTrigger, ModelParams, RenderedChat};
use crate::{
    convert::{ConversionProgress, ConvertError, GgufRole},
    inference::{Event, Failure, WeightType},
};

/// Changes with every change of the types below.
pub const PROTOCOL_VERSION: u32 = 7;
/// The largest frame: the largest prompt with every byte escaped, and room for the rest.
pub const MAX_FRAME_BYTES: usize = 256 << 20;
/// Events of one stream that may be on their way to the daemon; at zero its sequence is parked, not the batch.
pub const STREAM_CREDIT: u32 = 256;

/// Daemon to worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DaemonCommand {
    /// Load a model; the first command of a model worker, and only once.
    Load(Box<LoadSpec>),
    /// Answer a prompt.
    Generate(Box<Job>),
    /// Give up a job; fine if it has ended.
    Cancel {
        /// The job.
        id: u64,
    },
    /// The reader took events; as many more may be sent.
    Credit {
        /// The job.
        id: u64,
        /// Events taken.
        events: u32,
    },
    /// Compute threads from the next decode step on.
    SetThreads {
        /// At least one.
        threads: u32,
    },
    /// Answer with something other than a stream.
    Ask {
        /// Unique among the worker's jobs.
        id: u64,
        /// What is asked.
        question: Box<WorkerQuestion>,
    },
}

/// What is answered at once, not as a stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerQuestion {
    /// Render a conversation (helper role).
    Render(RenderJob),
    /// Turn texts into vectors.
    Embed(EmbedJob),
    /// Cut a text into tokens.
    Tokenize {
        /// The text.
        text: String,
        /// Add the tokens that the model wants around every text.
        add_special: bool,
        /// Read the text of control tokens as those tokens.
        parse_special: bool,
    },
    /// The text of tokens.
    Detokenize {
        /// Their ids.
        tokens: Vec<i32>,
    },
    /// Make a GGUF file of a checkpoint (converter role).
    Convert(ConversionRequest),
}

/// The answer to a [`WorkerQuestion`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerReply {
    /// To [`WorkerQuestion::Render`].
    Rendered(Box<RenderedChat>),
    /// To [`WorkerQuestion::Embed`].
    Embedded {
        /// One vector for each input, as the model gives it.
        vectors: Vec<Vec<f32>>,
        /// Tokens of all inputs, after cutting.
        tokens: u32,
    },
    /// To [`WorkerQuestion::Tokenize`].
    Tokens(Vec<TextToken>),
    /// To [`WorkerQuestion::Detokenize`].
    Text(String),
    /// To [`WorkerQuestion::Convert`].
    Converted(Result<ConvertedFile, ConvertError>),
}

/// Conversion request: one GGUF file to make from a checkpoint of safetensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConversionRequest {
    /// Folder of the checkpoint.
    pub checkpoint: PathBuf,
    /// Name of the model, for the metadata and for the default file name.
    pub name: String,
    /// Type of most weights.
    pub weight_type: WeightType,
    pub part: GgufRole,
    pub form: ConversionOutput,
    /// Path of the new file; `None` is a file in the working folder that is named after model and weight type.
    pub output: Option<PathBuf>,
    /// If set, a checkpoint is converted even if the engine tokenizes texts differently from the checkpoint's own
    /// tokenizer.
    pub allow_tokenizer_mismatch: bool,
}

/// Conversion output: the whole GGUF file, or only its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConversionOutput {
    Full,
    /// A sparse file as long as the whole one, with a hole in place of the weights: metadata, vocabulary and tensor
    /// table. Each load makes the weights again from the checkpoint.
    HeaderOnly,
}

/// Converted file: the GGUF file that a [`ConversionRequest`] produced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConvertedFile {
    pub path: PathBuf,
    /// Length in bytes, including the hole of a header.
    pub bytes: u64,
    /// GGUF file type, for example `Q4_K_M`; the outcome when the stored type was requested.
    pub file_type: String,
    /// Sentences for the user: assumed defaults, doubts about the tokenizer.
    pub notes: Vec<String>,
}

/// Texts to turn into vectors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EmbedJob {
    /// One vector each.
    pub inputs: Vec<String>,
    /// Cut what does not fit instead of refusing it.
    pub truncate: bool,
    /// Tokens of one input at most; the loaded window bounds it too.
    pub context_length: u32,
}

/// Worker to daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerReport {
    /// First frame of every worker.
    Hello {
        /// [`PROTOCOL_VERSION`] of the worker.
        version: u32,
    },
    /// The load advances.
    Progress {
        /// 0 to 1.
        fraction: f32,
    },
    /// The model is ready.
    Loaded(LoadedModel),
    /// The model cannot be loaded; the worker can do nothing more.
    LoadFailed {
        /// One sentence.
        reason: String,
    },
    /// What one decode step produced, over all jobs.
    Events(Vec<(u64, Event)>),
    /// A job ended without an answer.
    Failed {
        /// The job.
        id: u64,
        /// Why.
        failure: Failure,
    },
    /// The answer to [`DaemonCommand::Ask`].
    Answered {
        /// The job.
        id: u64,
        /// Or why there is none.
        result: Result<WorkerReply, Failure>,
    },
    /// The work on a question advances.
    Advanced {
        /// The job.
        id: u64,
        /// How far it is.
        advance: ConversionProgress,
    },
    /// The worker is at work on something that gives no events.
    Alive,
}

/// A LoRA adapter on top of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterSpec {
    /// A GGUF file.
    pub path: PathBuf,
    /// How many times as strongly as the file says it is applied.
    pub scale: f32,
}

/// Model to load, and the way it is loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadSpec {
    /// GGUF file; of a sharded one the first shard, next to the others. If `checkpoint` is set, this file has metadata only.
    pub path: PathBuf,
    /// Folder of a checkpoint that the weights are converted from while they are loaded; only if [`crate::convert::CAN_STREAM`].
    pub checkpoint: Option<PathBuf>,
    /// LoRA adapters, all of which are applied.
    pub adapters: Vec<AdapterSpec>,
    pub model: ModelParams,
    /// Parameters of the generating context. A `context_length` of 0 is the one that the model was trained with.
    pub context: ContextParams,
    /// True for a model that makes vectors only, no text.
    pub embeds_only: bool,
}

/// What was loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedModel {
    /// Context window of one sequence in tokens, as allocated.
    pub context_length: u32,
    /// Sequences decoded at once.
    pub parallel: u32,
    /// Whether a full context can be shifted.
    pub can_shift: bool,
    /// Whether the vocabulary has fill-in-the-middle tokens.
    pub infill: bool,
    /// Whether it makes vectors only, no text.
    pub embeds_only: bool,
    /// Weights, KV cache and compute buffers in bytes.
    pub size_bytes: u64,
    /// The part of it on devices.
    pub device_bytes: u64,
}

/// One prompt to answer. Everything is resolved: nothing here has a default.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Unique among the worker's jobs.
    pub id: u64,
    /// What to continue.
    pub prompt: JobPrompt,
    /// How tokens are chosen.
    pub sampling: SamplerSettings,
    /// Tokens to generate at most.
    pub max_tokens: u32,
    /// Tokens at the front that a context shift keeps.
    pub keep: u32,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Context window of this job in tokens; at most the loaded one.
    pub context_length: u32,
    /// Shift a full context instead of ending the answer.
    pub shift: bool,
    /// Log-probabilities of the chosen token and of this many alternatives.
    pub logprobs: Option<u8>,
    /// Return prompt and answer as token ids.
    pub return_context: bool,
    /// How to read the answer; `None` is plain text. A grammar in it is in force.
    pub chat: Option<ChatSyntax>,
    /// How reasoning is marked; `None` if there can be none.
    pub reasoning: Option<ReasoningSyntax>,
    /// What the answer must satisfy, once the reasoning is over.
    pub schema: Option<JsonSchema>,
}

/// A JSON schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JsonSchema {
    /// Its JSON text; `{}` is any JSON value.
    pub text: String,
    /// Refuse what cannot be enforced, instead of leaving it out.
    pub strict: bool,
}

/// How reasoning is marked in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasoningSyntax {
    /// As `<think>`.
    pub start: String,
    /// As `</think>`; the first is the one that is written for a model whose budget is spent.
    pub ends: Vec<String>,
    /// Whether the prompt ends inside the reasoning.
    pub begins_inside: bool,
    /// Whether the model may begin to reason by itself.
    pub expected: bool,
    /// Tokens of reasoning at most.
    pub budget: Option<u32>,
}

/// What to continue.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobPrompt {
    /// Text, with the text of control tokens read as those tokens.
    Text {
        /// The whole prompt.
        text: String,
        /// Token ids put in front of it.
        context: Vec<i32>,
    },
    /// Fill in the middle.
    Infill {
        /// Text before the gap.
        prefix: String,
        /// Text after the gap.
        suffix: String,
    },
}

/// How to read an answer in a chat template's format.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatSyntax {
    /// What rendering returned, its prompt left out.
    pub rendered: RenderedChat,
    /// Whether the answer begins with a call, after the reasoning if there is any.
    pub must_call: bool,
    /// Whether reasoning is read and thrown away: for models that cannot be told not to think.
    pub hides_thinking: bool,
    /// Ids of the conversation's tool calls; a new call gets none of them.
    pub used_ids: Vec<String>,
}

/// How tokens are chosen; meaning and units as in [`crate::inference::SamplingOptions`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented at inference::Sampling")]
pub struct SamplerSettings {
    /// `None` is random.
    pub seed: Option<u32>,
    pub temperature: f32,
    pub top_k: i32,
    pub top_p: f32,
    pub min_p: f32,
    pub typical_p: f32,
    pub repeat_last_n: i32,
    pub repeat_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub logit_bias: Vec<(i32, f32)>,
}

/// A conversation to render.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenderJob {
    /// The template's source.
    pub template: String,
    /// Text of the beginning-of-sequence token.
    pub bos: String,
    /// Text of the end-of-sequence token.
    pub eos: String,
    /// The conversation as JSON text, in the shape that `chat_shim.cpp` documents.
    pub input: String,
}

/// Appends a frame to `out`.
///
/// # Errors
/// When the frame is larger than [`MAX_FRAME_BYTES`].
pub fn encode<T: Serialize>(value: &T, out: &mut Vec<u8>) -> io::Result<()> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    serde_json::to_writer(&mut *out, value)?;
    let length = out.len() - start - 4;
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes is too large"),
        ));
    }
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(())
}

/// Reads one frame; `None` at a clean end. The inner error is a whole frame that does not decode: the next one may.
///
/// # Errors
/// When the stream ends inside a frame, or the frame is too large.
pub fn read<T: DeserializeOwned>(reader: &mut impl Read) -> io::Result<Option<serde_json::Result<T>>> {
    let mut length = [0u8; 4];
    match reader.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes is too large"),
        ));
    }
    let mut bytes = Vec::new();
    reader.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(serde_json::from_slice(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_way() {
        let mut bytes = Vec::new();
        for id in 0..3 {
            encode(&DaemonCommand::Cancel { id }, &mut bytes).expect("small");
        }
        let mut reader = bytes.as_slice();
        for expected in 0..3 {
            assert!(matches!(read(&mut reader), Ok(Some(Ok(DaemonCommand::Cancel { id }))) if id == expected));
        }
        assert!(matches!(read::<DaemonCommand>(&mut reader), Ok(None)));
    }

    #[test]
    fn a_cut_or_hostile_frame_is_an_error() {
        let mut bytes = Vec::new();
        encode(&DaemonCommand::Cancel { id: 1 }, &mut bytes).expect("small");
        assert!(read::<DaemonCommand>(&mut &bytes[..bytes.len() - 1]).is_err());
        assert!(read::<DaemonCommand>(&mut [0xff; 8].as_slice()).is_err());
        assert!(matches!(
            read::<DaemonCommand>(&mut [1, 0, 0, 0, b'x'].as_slice()),
            Ok(Some(Err(_)))
        ));
    }
}
