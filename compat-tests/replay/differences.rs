//! Where a model of ours answers otherwise than Ollama did, on purpose.

use std::fmt;

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Differs {
    /// Only the words of an error: status, headers and shape are as recorded.
    Words,
    /// Only these members, wherever they are.
    Keys(&'static [&'static str]),
    /// More than that.
    Whole,
}

impl fmt::Display for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Words => f.write_str("the words of the error"),
            Self::Keys(keys) => write!(f, "`{}`", keys.join("`, `")),
            Self::Whole => f.write_str("the reply"),
        }
    }
}

const PLAIN_NAME: &str = "a plain name is Ollama's, and here none answers";
const HF_NAME: &str = "a well-formed hf: name is ours, and is looked for";
const TOO_LONG: &str =
    "a single message that is longer than the context is refused before the first frame, never cut in silence";
const TOOLS: &str = "the model's template knows no tools: by default they are left out and the reply says so, since clients send them with every chat";
const OTHER_TEMPLATE: &str = "the recorded model was made with a Go template, ours has a Jinja one in its file";
const SHOWN: &str =
    "no Modelfile stands behind the model: its licence is what its header says, and it sets no parameters";
const MULTIMODAL: &str =
    "a model that cannot hear is known before its engine is asked, whose words Ollama wraps once more";
const INDEXES: &str = "Ollama gives a message and the call behind it the same index and never ends the message, which clients that put items together by index cannot follow";
const KEPT_CHOICE: &str = "tool_choice is kept: what comes before the call is the model's reasoning, where Ollama lets it talk instead of calling";
const VECTORS: &str = "models that generate text make good vectors too: they are not refused";
const HUB: &str = "it is the Hub that cannot be reached, not a registry";

/// Name of the recording, what differs, and why.
pub(super) const DIFFERENCES: &[(&str, Differs, &str)] = &[
    (
        "anthropic-count-tokens",
        Differs::Whole,
        "Ollama has no such route, and agents ask for the count before every turn",
    ),
    (
        "anthropic-stop",
        Differs::Keys(&["stop_reason", "stop_sequence"]),
        "a stop sequence of the request is named, as Anthropic names it",
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
        "a doubled slash is read as one: a redirected POST becomes a GET in many clients",
    ),
    ("embed-one", Differs::Whole, VECTORS),
    ("embed-two", Differs::Whole, VECTORS),
    ("embeddings-prompt", Differs::Whole, VECTORS),
    ("generate-bad-name", Differs::Whole, PLAIN_NAME),
    (
        "generate-format-bad-schema",
        Differs::Words,
        "another compiler of schemas has other words",
    ),
    ("generate-long-truncated", Differs::Whole, TOO_LONG),
    (
        "minilm-show",
        Differs::Keys(&["license", "model_info"]),
        "the recorded file's header also names the data that the model was trained with; the licence is what the header says",
    ),
    ("pull-bad-name", Differs::Whole, PLAIN_NAME),
    ("pull-hf-colon", Differs::Whole, HF_NAME),
    ("pull-no-network", Differs::Words, HUB),
    ("pull-no-network-once", Differs::Words, HUB),
    (
        "push-no-namespace",
        Differs::Whole,
        "a model of the Hub is not pushed to a registry, and nothing is begun",
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
        "unknown paths are Ollama's, and here none answers",
    ),
    ("v1-chat-tools", Differs::Whole, TOOLS),
    ("v1-completions-list", Differs::Whole, "lists of prompts are answered"),
    ("v1-embeddings", Differs::Whole, VECTORS),
    ("v1-embeddings-base64", Differs::Whole, VECTORS),
    (
        "v1-model-slash",
        Differs::Whole,
        "ids contain slashes: this one is a plain name, and here no Ollama answers",
    ),
    ("v1-transcriptions-text-model", Differs::Words, MULTIMODAL),
];
