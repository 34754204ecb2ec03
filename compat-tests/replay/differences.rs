//! Intended differences between hubllama's replies and the recorded replies of Ollama. `docs/compatibility.md` lists
//! them.

use std::fmt;

/// Part of a reply that differs from the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Differs {
    /// Only the text of an error: status, headers and structure are as recorded.
    Words,
    /// Only members with these names, at any depth.
    Keys(&'static [&'static str]),
    /// The whole reply.
    Whole,
}

impl fmt::Display for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Words => f.write_str("the error text"),
            Self::Keys(keys) => write!(f, "`{}`", keys.join("`, `")),
            Self::Whole => f.write_str("the reply"),
        }
    }
}

const PLAIN_NAME: &str = "a plain name is forwarded to Ollama, which is not running in this test";
const HF_NAME: &str = "hubllama serves hf: names, and looks for the model";
const TOO_LONG: &str =
    "a single message that is longer than the context is refused before the first frame; Ollama truncates it silently";
const TOOLS: &str = "the model's template does not support tools: by default they are ignored and a header says so, because some clients send tools with every chat";
const OTHER_TEMPLATE: &str =
    "the recorded model was created with a Go template; the test model has a Jinja template in its file";
const SHOWN: &str =
    "an hf: model has no Modelfile: the license comes from the file's header, and there are no parameters";
const MULTIMODAL: &str = "hubllama knows that the model has no audio input; Ollama wraps the error of its engine";
const INDEXES: &str = "Ollama gives a message and the tool call after it the same index and never ends the message, so that clients cannot assemble the items by index";
const KEPT_CHOICE: &str = "`tool_choice` is enforced, and the text before the call is returned as reasoning; Ollama lets the model answer without a call";
const VECTORS: &str = "hubllama computes embeddings with models that generate text as well; Ollama refuses them";
const HUB: &str = "the model is pulled from the Hub, not from Ollama's registry";

/// Name of the recording, the difference and its reason.
pub(super) const DIFFERENCES: &[(&str, Differs, &str)] = &[
    (
        "anthropic-count-tokens",
        Differs::Whole,
        "Ollama does not have this route, but agents request the count before every turn",
    ),
    (
        "anthropic-stop",
        Differs::Keys(&["stop_reason", "stop_sequence"]),
        "hubllama reports the stop sequence that ended the answer, as Anthropic does",
    ),
    ("anthropic-tools", Differs::Whole, TOOLS),
    ("chat-hf-co-name", Differs::Whole, PLAIN_NAME),
    ("chat-hf-colon-name", Differs::Whole, HF_NAME),
    ("chat-long-truncated", Differs::Whole, TOO_LONG),
    ("chat-tools", Differs::Whole, TOOLS),
    ("chat-tools-stream", Differs::Whole, TOOLS),
    ("create-no-from", Differs::Whole, PLAIN_NAME),
    ("delete-hf-colon", Differs::Whole, HF_NAME),
    (
        "double-slash",
        Differs::Whole,
        "hubllama treats a doubled slash as one, because many clients turn a redirected POST into a GET",
    ),
    ("embed-one", Differs::Whole, VECTORS),
    ("embed-two", Differs::Whole, VECTORS),
    ("embeddings-prompt", Differs::Whole, VECTORS),
    ("generate-bad-name", Differs::Whole, PLAIN_NAME),
    (
        "generate-format-bad-schema",
        Differs::Words,
        "another schema compiler words its errors differently",
    ),
    ("generate-long-truncated", Differs::Whole, TOO_LONG),
    (
        "minilm-show",
        Differs::Keys(&["license", "model_info"]),
        "the header of the recorded file also names the training data; the license comes from the file's header",
    ),
    ("pull-bad-name", Differs::Whole, PLAIN_NAME),
    ("pull-hf-colon", Differs::Whole, HF_NAME),
    ("pull-no-network", Differs::Words, HUB),
    ("pull-no-network-once", Differs::Words, HUB),
    (
        "push-no-namespace",
        Differs::Whole,
        "an hf: model cannot be pushed to a registry; the request is refused before it starts",
    ),
    ("show-bad-name", Differs::Whole, PLAIN_NAME),
    ("show-case", Differs::Keys(&["license", "parameters"]), SHOWN),
    ("show-hf-colon-name", Differs::Whole, HF_NAME),
    ("show-latest", Differs::Keys(&["license", "parameters"]), SHOWN),
    ("show-model", Differs::Keys(&["license", "parameters"]), SHOWN),
    ("show-name-key", Differs::Keys(&["license", "parameters"]), SHOWN),
    ("show-system-override", Differs::Keys(&["license", "parameters"]), SHOWN),
    ("show-verbose", Differs::Keys(&["license", "parameters"]), SHOWN),
    (
        "tools-show",
        Differs::Keys(&["license", "capabilities", "parameters", "parent_model"]),
        OTHER_TEMPLATE,
    ),
    ("tools-choice-required-v1", Differs::Keys(&["reasoning"]), KEPT_CHOICE),
    ("tools-text-then-call-responses-stream", Differs::Whole, INDEXES),
    (
        "unknown-path",
        Differs::Whole,
        "unknown paths are forwarded to Ollama, which is not running in this test",
    ),
    ("v1-chat-tools", Differs::Whole, TOOLS),
    (
        "v1-completions-list",
        Differs::Whole,
        "hubllama accepts a list of prompts",
    ),
    ("v1-embeddings", Differs::Whole, VECTORS),
    ("v1-embeddings-base64", Differs::Whole, VECTORS),
    (
        "v1-model-slash",
        Differs::Whole,
        "an id may contain slashes; this one is a plain name, and Ollama is not running in this test",
    ),
    ("v1-transcriptions-text-model", Differs::Words, MULTIMODAL),
];
