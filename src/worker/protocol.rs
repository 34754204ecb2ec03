//! Protocol between the daemon and a worker process: the only part of `worker` that the daemon's side uses.
//!
//! The daemon sends [`DaemonCommand`]s, the worker answers with [`WorkerReport`]s. A generation is a [`Job`], whose
//! events come as a stream; everything else is a [`WorkerQuestion`] with one [`WorkerReply`]. Ids are chosen by the
//! daemon.
//!
//! A frame is a little-endian u32 length, then that many bytes of JSON. JSON, because a frame carries text and little
//! else, and because a person can read it off the socket; measured, it takes a few microseconds a decode step. Both
//! ends are the same binary, so the version is a check and not a negotiation.

use std::{
    io::{self, Read},
    path::PathBuf,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::inference::TextToken;
pub use crate::llama::{ContextParams, GrammarTrigger, ModelParams, RenderedChat};
use crate::{
    convert::{ConversionProgress, ConvertError, GgufRole},
    inference::{Event, Failure, WeightType},
};

/// Version of the protocol, raised with every change of the types below. A worker is started as `/proc/self/exe`, so
/// the two sides differ only when something is wrong.
pub const PROTOCOL_VERSION: u32 = 7;
/// Largest frame in bytes: the largest prompt with every byte escaped, and room for the rest.
pub const MAX_FRAME_BYTES: usize = 256 << 20;
/// Number of events of one stream that may be on their way to the daemon. A stream that has used them up is parked,
/// while the other sequences of the batch go on; [`DaemonCommand::Credit`] gives it more.
pub const STREAM_CREDIT: u32 = 256;

/// Message from the daemon to a worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DaemonCommand {
    /// Loads a model; the first command of a model worker, and only once.
    Load(Box<LoadSpec>),
    /// Answers a prompt with a stream of events.
    Generate(Box<Job>),
    /// Gives up a job or question; ignored if it has ended.
    Cancel { id: u64 },
    /// Allows a job to send more events, as many as its reader took.
    Credit { id: u64, events: u32 },
    /// Sets the number of compute threads, at least one, from the next decode step on.
    SetThreads { threads: u32 },
    /// Asks a question. The id is unique among the worker's jobs and questions.
    Ask { id: u64, question: Box<WorkerQuestion> },
}

/// Request that has one reply instead of a stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerQuestion {
    /// Renders a conversation (helper role).
    Render(RenderJob),
    /// Converts texts to vectors.
    Embed(EmbedJob),
    /// Converts a text to tokens.
    Tokenize {
        text: String,
        /// If set, the tokens that the model wants around every text, such as BOS, are added.
        add_special: bool,
        /// If set, the text of control tokens is read as those tokens.
        parse_special: bool,
    },
    /// Converts token ids to text.
    Detokenize { tokens: Vec<i32> },
    /// Make a GGUF file of a checkpoint (converter role).
    Convert(ConversionRequest),
}

/// Reply to a [`WorkerQuestion`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerReply {
    /// Reply to [`WorkerQuestion::Render`].
    Rendered(Box<RenderedChat>),
    /// Reply to [`WorkerQuestion::Embed`].
    Embedded {
        /// One vector for each input, not normalized.
        vectors: Vec<Vec<f32>>,
        /// Number of tokens of all inputs, after truncation.
        tokens: u32,
    },
    /// Reply to [`WorkerQuestion::Tokenize`].
    Tokens(Vec<TextToken>),
    /// Reply to [`WorkerQuestion::Detokenize`].
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

/// Texts to convert to vectors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EmbedJob {
    pub inputs: Vec<String>,
    /// If set, a text that does not fit is truncated instead of refused.
    pub truncate: bool,
    /// Largest number of tokens of one input; the loaded window is another bound.
    pub context_length: u32,
}

/// Message from a worker to the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerReport {
    /// First frame of every worker, with its [`PROTOCOL_VERSION`].
    Hello { version: u32 },
    /// Progress of the load, from 0 to 1.
    Progress { fraction: f32 },
    /// End of a load; the model is ready.
    Loaded(LoadedModel),
    /// End of a load that failed; the worker can do nothing more.
    LoadFailed { reason: String },
    /// Events of one decode step, with the ids of their jobs.
    Events(Vec<(u64, Event)>),
    /// End of a job that failed.
    Failed { id: u64, failure: Failure },
    /// Answer to [`DaemonCommand::Ask`].
    Answered {
        id: u64,
        result: Result<WorkerReply, Failure>,
    },
    /// Progress of the work on a question.
    Advanced { id: u64, advance: ConversionProgress },
    /// Sign of life during work that gives no events.
    Alive,
}

/// LoRA adapter on top of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterSpec {
    /// GGUF file of the adapter.
    pub path: PathBuf,
    /// Factor on the strength that the file gives.
    pub scale: f32,
}

/// Model to load, and the way it is loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadSpec {
    /// GGUF file; of a sharded one the first shard, next to the others. If `checkpoint` is set, this file has metadata
    /// only.
    pub path: PathBuf,
    /// Folder of a checkpoint that the weights are converted from while they are loaded; only if
    /// [`crate::convert::CAN_STREAM`].
    pub checkpoint: Option<PathBuf>,
    /// LoRA adapters, all of which are applied.
    pub adapters: Vec<AdapterSpec>,
    pub model: ModelParams,
    /// Parameters of the generating context. A `context_length` of 0 is the one that the model was trained with.
    pub context: ContextParams,
    /// True for a model that makes vectors only, no text.
    pub embeds_only: bool,
}

/// Properties of a model after its load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedModel {
    /// Context length of one sequence in tokens, as allocated.
    pub context_length: u32,
    /// Number of sequences that are decoded at once.
    pub parallel: u32,
    /// True when a full context can be shifted.
    pub can_shift: bool,
    /// True when the vocabulary has fill-in-the-middle tokens.
    pub infill: bool,
    /// True for a model that makes vectors only, no text.
    pub embeds_only: bool,
    /// Size of weights, KV cache and compute buffers in bytes.
    pub size_bytes: u64,
    /// Part of `size_bytes` that is on devices.
    pub device_bytes: u64,
}

/// Prompt to answer. All settings are resolved: no field has a default.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Id that is unique among the worker's jobs and questions.
    pub id: u64,
    pub prompt: JobPrompt,
    pub sampling: SamplerSettings,
    /// Largest number of tokens to generate.
    pub max_tokens: u32,
    /// Number of tokens at the front that a context shift keeps.
    pub keep: u32,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Context length of this job in tokens; the loaded one is another bound.
    pub context_length: u32,
    /// If set, a full context is shifted instead of ending the answer.
    pub shift: bool,
    /// Number of alternatives whose log-probabilities are sent along with that of the chosen token; `None` sends none.
    pub logprobs: Option<u8>,
    /// If set, the last event returns prompt and answer as token ids.
    pub return_context: bool,
    /// Format of the answer; `None` is plain text. A grammar in it is in force.
    pub chat: Option<ChatSyntax>,
    /// Marks of reasoning; `None` if there can be none.
    pub reasoning: Option<ReasoningSyntax>,
    /// Schema that the answer must satisfy, once the reasoning is over.
    pub schema: Option<JsonSchema>,
}

/// JSON schema as a request gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JsonSchema {
    /// JSON text of the schema; `{}` admits any JSON value.
    pub text: String,
    /// If set, a schema with parts that cannot be enforced is refused; otherwise those parts are left out.
    pub strict: bool,
}

/// Marks of reasoning in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasoningSyntax {
    /// Tag that opens the reasoning, such as `<think>`.
    pub start: String,
    /// Tags that end it, such as `</think>`. The first is written for a model whose budget is spent.
    pub ends: Vec<String>,
    /// True when the prompt ends inside the reasoning.
    pub begins_inside: bool,
    /// True when the model may begin to reason by itself.
    pub expected: bool,
    /// Largest number of tokens of reasoning.
    pub budget: Option<u32>,
}

/// Text that a job continues.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobPrompt {
    /// Prompt in which the text of control tokens is read as those tokens, behind the tokens of `context`.
    Text { text: String, context: Vec<i32> },
    /// Texts before and after a gap that the model fills.
    Infill { prefix: String, suffix: String },
}

/// Format of an answer to a chat template's prompt.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatSyntax {
    /// Result of the rendering, without its prompt.
    pub rendered: RenderedChat,
    /// If set, the answer has to begin with a call, after the reasoning if there is any.
    pub must_call: bool,
    /// If set, reasoning is read and thrown away: for models that cannot be told not to think.
    pub hides_thinking: bool,
    /// Ids of the conversation's tool calls, which new calls must not have.
    pub used_ids: Vec<String>,
}

/// Settings of the sampler; meaning and units as in [`crate::inference::SamplingOptions`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplerSettings {
    /// Seed of the random choice; `None` takes a random seed.
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

/// Conversation to render.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenderJob {
    /// Source of the template.
    pub template: String,
    /// Text of the beginning-of-sequence token.
    pub bos: String,
    /// Text of the end-of-sequence token.
    pub eos: String,
    /// Conversation in the shape that `chat_shim.cpp` documents.
    pub input: Box<RawValue>,
}

/// Appends a frame to `out`.
///
/// # Errors
/// If the frame is larger than [`MAX_FRAME_BYTES`].
pub fn encode<T: Serialize>(value: &T, out: &mut Vec<u8>) -> io::Result<()> {
    let start = out.len();
    // Room for the length, which is known only afterwards.
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

/// Reads one frame; `None` at a clean end. The inner error is of a whole frame that does not decode; the next frame
/// may.
///
/// # Errors
/// If the stream ends inside a frame, or the frame is too large.
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
    // Grown while reading: a broken length must not allocate a quarter of a gigabyte.
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
