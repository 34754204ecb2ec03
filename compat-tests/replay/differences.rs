//! Where a model of ours answers otherwise than Ollama did, on purpose.

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

const PLAIN_NAME: &str = "a plain name is Ollama's, and here none answers";
const HF_NAME: &str = "a well-formed hf: name is ours, and is looked for";
const TOO_LONG: &str =
    "a single message that is longer than the context is refused before the first frame, never cut in silence";
const TOOLS: &str = "the model's template knows no tools: by default they are left out and the reply says so, since clients send them with every chat";
const OTHER_TEMPLATE: &str = "the recorded model was made with a Go template, ours has a Jinja one in its file";
const SHOWN: &str =
    "no Modelfile stands behind the model: its licence is what its header says, and it sets no parameters";
const HUB: &str = "it is the Hub that cannot be reached, not a registry";

/// Name of the recording, what differs, and why.
pub(super) const DIFFERENCES: &[(&str, Differs, &str)] = &[
    ("chat-hf-co-name", Differs::Whole, PLAIN_NAME),
    ("chat-hf-colon-name", Differs::Whole, HF_NAME),
    ("chat-long-truncated", Differs::Whole, TOO_LONG),
    ("chat-tools", Differs::Whole, TOOLS),
    ("chat-tools-stream", Differs::Whole, TOOLS),
    ("create-from-missing", Differs::Words, HUB),
    ("create-no-from", Differs::Whole, PLAIN_NAME),
    ("delete-hf-colon", Differs::Whole, HF_NAME),
    (
        "double-slash",
        Differs::Whole,
        "a doubled slash is read as one: a redirected POST becomes a GET in many clients",
    ),
    ("generate-bad-name", Differs::Whole, PLAIN_NAME),
    (
        "generate-format-bad-schema",
        Differs::Words,
        "another compiler of schemas has other words",
    ),
    ("generate-long-truncated", Differs::Whole, TOO_LONG),
    ("minilm-ps", Differs::Whole, "embedding models are not loaded yet"),
    (
        "minilm-show",
        Differs::Keys(&["model_info", "tensors"]),
        "the embedding model is a header of our own, with fewer facts",
    ),
    ("pull-bad-name", Differs::Whole, PLAIN_NAME),
    ("pull-hf-colon", Differs::Whole, HF_NAME),
    ("pull-no-network", Differs::Words, HUB),
    ("pull-no-network-once", Differs::Words, HUB),
    ("push-missing", Differs::Whole, PLAIN_NAME),
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
    (
        "unknown-path",
        Differs::Whole,
        "unknown paths are Ollama's, and here none answers",
    ),
    ("v1-chat-tools", Differs::Whole, TOOLS),
    ("v1-chat-zstd", Differs::Whole, "compressed bodies are not read yet"),
    (
        "v1-model-slash",
        Differs::Whole,
        "ids contain slashes: this one is a plain name, and here no Ollama answers",
    ),
];
