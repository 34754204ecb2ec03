//! llama.cpp's `common/chat` through `chat_shim.cpp`: rendering a conversation, and reading what a model wrote.
//!
//! The two halves need not run in one process: [`ChatTemplate::apply`] returns plain data ([`RenderedChat`]), which
//! holds the output parser in serialized form, and [`ChatParser::new`] loads it again. The helper renders, the model's
//! worker parses.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr::NonNull,
};

use serde::{Deserialize, Serialize};

use super::LlamaError;

unsafe extern "C" {
    fn hubllama_chat_free_string(text: *mut c_char);
    fn hubllama_chat_templates_new(
        source: *const c_char,
        bos: *const c_char,
        eos: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut c_void;
    fn hubllama_chat_templates_free(templates: *mut c_void);
    fn hubllama_chat_describe(templates: *const c_void, error: *mut *mut c_char) -> *mut c_char;
    fn hubllama_chat_apply(templates: *const c_void, input: *const c_char, error: *mut *mut c_char) -> *mut c_char;
    fn hubllama_chat_parser_new(
        format: c_int,
        parser: *const c_char,
        generation_prompt: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut c_void;
    fn hubllama_chat_parser_free(parser: *mut c_void);
    fn hubllama_chat_parser_describe(parser: *const c_void, error: *mut *mut c_char) -> *mut c_char;
    fn hubllama_chat_parse(
        parser: *const c_void,
        text: *const c_char,
        length: usize,
        error: *mut *mut c_char,
    ) -> *mut c_char;
}

/// Takes ownership of a string that the shim handed out; `None` if it is NULL.
fn take(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the shim returns NUL-terminated strings from malloc, which are ours to free.
    unsafe {
        let out = CStr::from_ptr(text).to_string_lossy().into_owned();
        hubllama_chat_free_string(text);
        Some(out)
    }
}

/// Returns the object that a function of the shim made, or the error that it reported.
fn object_or_error(raw: *mut c_void, error: *mut c_char, general: &str) -> Result<NonNull<c_void>, LlamaError> {
    NonNull::new(raw).ok_or_else(|| LlamaError::Chat(take(error).unwrap_or_else(|| general.to_owned())))
}

/// Parses the JSON that a function of the shim returned, or returns the error that it reported.
fn json_or_error<T: serde::de::DeserializeOwned>(text: *mut c_char, error: *mut c_char) -> Result<T, LlamaError> {
    match take(text) {
        Some(text) => serde_json::from_str(&text).map_err(|error| LlamaError::ChatAnswer(error.to_string())),
        None => Err(LlamaError::Chat(
            take(error).unwrap_or_else(|| "common/chat failed".to_owned()),
        )),
    }
}

fn c_string(text: &str) -> Result<CString, LlamaError> {
    CString::new(text).map_err(|_| LlamaError::Nul("text"))
}

/// Compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    raw: NonNull<c_void>,
}

// SAFETY: the object behind the pointer has no thread affinity and is only read after it was made.
unsafe impl Send for ChatTemplate {}

/// Rendered conversation, with what is needed to read the answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RenderedChat {
    pub prompt: String,
    /// Tail of the prompt that belongs to the assistant's turn; the parser reads it before the answer.
    pub generation_prompt: String,
    /// Output format, a `common_chat_format` of llama.cpp.
    pub format: i32,
    /// True when the template separates reasoning from the answer.
    pub supports_thinking: bool,
    /// Tag that opens the reasoning, such as `<think>`; empty if there is none.
    pub thinking_start_tag: String,
    /// Tags that end the reasoning, such as `</think>`.
    pub thinking_end_tags: Vec<String>,
    /// Control tokens whose text must be kept for the parser.
    pub preserved_tokens: Vec<String>,
    /// Stop strings of the format, in addition to the request's.
    pub additional_stops: Vec<String>,
    /// Serialized output parser (`common_peg_arena`); empty means plain text.
    pub parser: String,
    /// True when the answer's text stands between markers of the format, so that a JSON schema cannot describe the
    /// whole answer.
    pub wraps_content: bool,
    /// GBNF of well-formed answers; empty if there is none.
    pub grammar: String,
    /// True when the grammar sleeps until one of its triggers comes.
    pub grammar_lazy: bool,
    pub grammar_triggers: Vec<GrammarTrigger>,
}

/// Trigger of a lazy grammar, as `common/chat` writes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GrammarTrigger {
    /// Number of the kind in llama.cpp: 0 a token, 1 a word, 2 a pattern, 3 a pattern of the whole text.
    #[serde(rename = "type")]
    pub kind: u8,
    /// The word or pattern.
    pub value: String,
}

impl GrammarTrigger {
    /// True for a word that triggers the grammar at any place of the text.
    #[must_use]
    pub fn is_word(&self) -> bool {
        self.kind == 1
    }
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of those tokens, which templates may use as variables.
    ///
    /// # Errors
    /// [`LlamaError::Chat`] with the template engine's sentence.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, LlamaError> {
        // The log of llama.cpp would go to stderr otherwise.
        super::backend::init();
        let (source, bos, eos) = (c_string(source)?, c_string(bos)?, c_string(eos)?);
        let mut error = std::ptr::null_mut();
        // SAFETY: NUL-terminated strings that outlive the call.
        let raw = unsafe { hubllama_chat_templates_new(source.as_ptr(), bos.as_ptr(), eos.as_ptr(), &raw mut error) };
        object_or_error(raw, error, "the chat template does not compile").map(|raw| Self { raw })
    }

    /// Returns what the template can do, as llama.cpp's map of flags.
    ///
    /// # Errors
    /// [`LlamaError::Chat`] with the template engine's sentence.
    pub fn describe(&self) -> Result<serde_json::Map<String, serde_json::Value>, LlamaError> {
        let mut error = std::ptr::null_mut();
        // SAFETY: the template is valid.
        let text = unsafe { hubllama_chat_describe(self.raw.as_ptr(), &raw mut error) };
        json_or_error(text, error)
    }

    /// Renders a conversation; `input` is the JSON text that `chat_shim.cpp` documents at `hubllama_chat_apply`.
    ///
    /// # Errors
    /// [`LlamaError::Chat`] with the template engine's sentence, or that of a `raise_exception` in the template.
    pub fn apply(&self, input: &str) -> Result<RenderedChat, LlamaError> {
        let input = c_string(input)?;
        let mut error = std::ptr::null_mut();
        // SAFETY: the template is valid and the string outlives the call.
        let text = unsafe { hubllama_chat_apply(self.raw.as_ptr(), input.as_ptr(), &raw mut error) };
        json_or_error(text, error)
    }
}

impl Drop for ChatTemplate {
    fn drop(&mut self) {
        // SAFETY: the pointer is owned.
        unsafe { hubllama_chat_templates_free(self.raw.as_ptr()) };
    }
}

/// Parser that reads a model's output as content, reasoning and tool calls.
///
/// It keeps no state: each call reads a text from its beginning, in time linear in its length. It recurses over the
/// brackets of tool calls, so the text's nesting must be bounded by the caller.
#[derive(Debug)]
pub struct ChatParser {
    raw: NonNull<c_void>,
    delimiters: Vec<String>,
}

// SAFETY: as for `ChatTemplate`.
unsafe impl Send for ChatParser {}

/// Text as its template's format has it. Positions are bytes of that text.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ParsedMessage {
    pub state: ParseState,
    /// Position at which the parser stopped; the rest is not part of the message.
    pub end: usize,
    /// Position up to which the text has found its place in the message: as content, as reasoning, as closed calls, or
    /// skipped.
    pub settled: usize,
    /// Part that stands right before `settled`.
    pub last: PartKind,
    /// Kind of the running text at the end, if that goes on until one of [`ChatParser::delimiters`].
    pub tail: PartKind,
    /// Visible text.
    pub content: String,
    /// Reasoning.
    pub thinking: String,
    /// Text that the parser skipped: on its way to a call, or a call of a tool that the request does not have.
    pub skipped: String,
    /// Tool calls; the last may be incomplete while the text is.
    pub tool_calls: Vec<ParsedCall>,
}

/// Relation of a text to its template's format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParseState {
    /// Neither the text nor any continuation of it is in the format.
    #[default]
    Failed,
    /// The text is the beginning of a message.
    Open,
    /// The text is, or begins with, a whole message.
    Matched,
}

/// Part of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum PartKind {
    #[default]
    #[serde(rename = "")]
    None,
    /// Visible text.
    #[serde(rename = "content")]
    Content,
    /// Reasoning.
    #[serde(rename = "thinking")]
    Thinking,
    /// Closed tool call.
    #[serde(rename = "call")]
    Call,
}

/// One tool call. Positions are bytes of the text.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ParsedCall {
    /// Id that the model gave; may be empty.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// JSON text of the arguments.
    pub arguments: String,
    /// True when the parser saw the call's end.
    pub closed: bool,
    /// Position before the call's opening marker; nothing before it belongs to the call.
    pub begin: usize,
    /// Position of the end, if the call is closed; its closing marker may follow.
    pub end: usize,
    /// Number of bytes of the message's content that stand before the call.
    pub content: usize,
}

#[derive(Deserialize)]
struct ParserDescription {
    delimiters: Vec<String>,
}

impl ChatParser {
    /// Loads the parser for answers to a rendered prompt.
    ///
    /// # Errors
    /// [`LlamaError::Chat`] if the serialized parser is not readable.
    pub fn new(rendered: &RenderedChat) -> Result<Self, LlamaError> {
        let (parser, generation) = (c_string(&rendered.parser)?, c_string(&rendered.generation_prompt)?);
        let mut error = std::ptr::null_mut();
        // SAFETY: NUL-terminated strings that outlive the call.
        let raw =
            unsafe { hubllama_chat_parser_new(rendered.format, parser.as_ptr(), generation.as_ptr(), &raw mut error) };
        let mut parser = Self {
            raw: object_or_error(raw, error, "the output parser is unreadable")?,
            delimiters: Vec::new(),
        };
        let mut error = std::ptr::null_mut();
        // SAFETY: the parser is valid.
        let text = unsafe { hubllama_chat_parser_describe(parser.raw.as_ptr(), &raw mut error) };
        let description: ParserDescription = json_or_error(text, error)?;
        parser.delimiters = description.delimiters;
        Ok(parser)
    }

    /// Returns the strings of which one must come before a message's running text can turn into anything else.
    #[must_use]
    pub fn delimiters(&self) -> &[String] {
        &self.delimiters
    }

    /// Parses a text from its beginning.
    ///
    /// # Errors
    /// [`LlamaError::Chat`] with the sentence of an exception; the text is then to be taken as content.
    pub fn parse(&self, text: &str) -> Result<ParsedMessage, LlamaError> {
        let mut error = std::ptr::null_mut();
        // SAFETY: the parser is valid; pointer and length describe `text`.
        let out = unsafe { hubllama_chat_parse(self.raw.as_ptr(), text.as_ptr().cast(), text.len(), &raw mut error) };
        json_or_error(out, error)
    }
}

impl Drop for ChatParser {
    fn drop(&mut self) {
        // SAFETY: the pointer is owned.
        unsafe { hubllama_chat_parser_free(self.raw.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                          {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    #[test]
    fn renders_a_conversation() {
        let template = ChatTemplate::new(CHATML, "<s>", "</s>").expect("compiles");
        let rendered = template
            .apply(r#"{"messages":[{"role":"user","content":"Hi <b>"}]}"#)
            .expect("renders");
        assert_eq!(
            rendered.prompt,
            "<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\n"
        );
        let parser = ChatParser::new(&rendered).expect("parser");
        let parsed = parser.parse("Hello").expect("parses");
        assert_eq!((parsed.content.as_str(), parsed.tail), ("Hello", PartKind::Content));
    }

    // Templates of vision models take a message as a list of texts and pictures.
    #[test]
    fn a_template_that_wants_parts_gets_them() {
        let source = "{% for message in messages %}{{ message.role | capitalize }}\
                      {% if message.content[0].type == 'image' %}:{% else %}: {% endif %}\
                      {% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}\
                      {% elif part.type == 'image' %}<image>{% endif %}{% endfor %}<end>\n{% endfor %}\
                      {% if add_generation_prompt %}Assistant:{% endif %}";
        let template = ChatTemplate::new(source, "", "<end>").unwrap();
        let input = r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}]}"#;
        let rendered = template.apply(input).unwrap();
        assert_eq!(rendered.prompt, "System: Be brief.<end>\nUser: Hi<end>\nAssistant:");
    }

    #[test]
    fn an_error_of_the_template_is_a_sentence() {
        assert!(ChatTemplate::new("{% for %}", "", "").is_err());
        let template = ChatTemplate::new("{{ raise_exception('no system role') }}", "", "").expect("compiles");
        let error = template
            .apply(r#"{"messages":[{"role":"user","content":"Hi"}]}"#)
            .expect_err("raises");
        assert!(error.to_string().contains("no system role"), "{error}");
        assert!(template.apply("not json").is_err());
    }
}
