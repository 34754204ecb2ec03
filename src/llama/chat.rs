//! llama.cpp's `common/chat` through `chat_shim.cpp`: rendering a conversation, and reading what a model wrote.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr::NonNull,
};

use serde::{Deserialize, Serialize};

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

/// Takes ownership of a string that the shim handed out.
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

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| "the text holds a NUL character".to_owned())
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    raw: NonNull<c_void>,
}

// SAFETY: the object behind the pointer has no thread affinity and is only read after it was made.
unsafe impl Send for ChatTemplate {}

/// A rendered conversation, with what is needed to read the answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RenderedChat {
    /// The prompt.
    pub prompt: String,
    /// The prompt's tail that belongs to the assistant's turn; the parser reads it before the answer.
    pub generation_prompt: String,
    /// llama.cpp's number of the output format.
    pub format: i32,
    /// Whether the template separates reasoning.
    pub supports_thinking: bool,
    /// As `<think>`; empty if there is none.
    pub thinking_start_tag: String,
    /// As `</think>`.
    pub thinking_end_tags: Vec<String>,
    /// Control tokens whose text must be kept for the parser.
    pub preserved_tokens: Vec<String>,
    /// Stop strings beside the request's.
    pub additional_stops: Vec<String>,
    /// The output parser, serialised; empty means plain text.
    pub parser: String,
    /// Whether the answer's text stands between markers of the format.
    pub wraps_content: bool,
    /// GBNF of well-formed answers; empty if there is none.
    pub grammar: String,
    /// Whether the grammar sleeps until one of its triggers comes.
    pub grammar_lazy: bool,
    /// What wakes it.
    pub grammar_triggers: Vec<GrammarTrigger>,
}

/// What wakes a lazy grammar.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GrammarTrigger {
    /// llama.cpp's number: 0 a token, 1 a word, 2 a pattern, 3 a pattern of the whole text.
    #[serde(rename = "type")]
    pub kind: u8,
    /// The word or pattern.
    pub value: String,
}

impl GrammarTrigger {
    /// Whether it is a word, wherever it comes.
    #[must_use]
    pub fn is_word(&self) -> bool {
        self.kind == 1
    }
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// The template engine's sentence.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, String> {
        super::init();
        let (source, bos, eos) = (c_string(source)?, c_string(bos)?, c_string(eos)?);
        let mut error = std::ptr::null_mut();
        // SAFETY: NUL-terminated strings that outlive the call.
        let raw = unsafe { hubllama_chat_templates_new(source.as_ptr(), bos.as_ptr(), eos.as_ptr(), &raw mut error) };
        NonNull::new(raw)
            .map(|raw| Self { raw })
            .ok_or_else(|| take(error).unwrap_or_else(|| "the chat template does not compile".to_owned()))
    }

    /// What the template can do, as llama.cpp's map of flags.
    ///
    /// # Errors
    /// The template engine's sentence.
    pub fn describe(&self) -> Result<serde_json::Map<String, serde_json::Value>, String> {
        let mut error = std::ptr::null_mut();
        // SAFETY: the template is valid.
        let text = unsafe { hubllama_chat_describe(self.raw.as_ptr(), &raw mut error) };
        decode(text, error)
    }

    /// Renders a conversation; `input` is the JSON text that `chat_shim.cpp` documents.
    ///
    /// # Errors
    /// The template engine's sentence, also what a template raises by itself.
    pub fn apply(&self, input: &str) -> Result<RenderedChat, String> {
        let input = c_string(input)?;
        let mut error = std::ptr::null_mut();
        // SAFETY: the template is valid and the string outlives the call.
        let text = unsafe { hubllama_chat_apply(self.raw.as_ptr(), input.as_ptr(), &raw mut error) };
        decode(text, error)
    }
}

impl Drop for ChatTemplate {
    fn drop(&mut self) {
        // SAFETY: the pointer is owned.
        unsafe { hubllama_chat_templates_free(self.raw.as_ptr()) };
    }
}

fn decode<T: serde::de::DeserializeOwned>(text: *mut c_char, error: *mut c_char) -> Result<T, String> {
    match take(text) {
        Some(text) => serde_json::from_str(&text).map_err(|error| format!("unreadable answer of common/chat: {error}")),
        None => Err(take(error).unwrap_or_else(|| "common/chat failed".to_owned())),
    }
}

/// Reads a model's output as content, reasoning and tool calls.
///
/// It keeps no state: each call reads a text from its beginning, in time linear in its length. It recurses over the
/// brackets of tool calls, so the text's nesting must be bounded by the caller.
#[derive(Debug)]
pub struct ChatParser {
    raw: NonNull<c_void>,
    delimiters: Vec<String>,
}

// SAFETY: as `ChatTemplate`.
unsafe impl Send for ChatParser {}

/// What a text is in a template's format. Positions are bytes of that text.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ParsedMessage {
    /// Whether it is one.
    pub state: ParseState,
    /// Where the parser stopped; what follows is not part of the message.
    pub end: usize,
    /// Up to here the text is in the message: as content, as reasoning, as closed calls, or skipped.
    pub settled: usize,
    /// What stands right before `settled`.
    pub last: PartKind,
    /// The running text at the end, if it goes on until one of [`ChatParser::delimiters`].
    pub tail: PartKind,
    /// Visible text.
    pub content: String,
    /// Reasoning.
    pub thinking: String,
    /// Text that the parser skipped: on its way to a call, or a call of what is no tool of the request.
    pub skipped: String,
    /// Tool calls; the last may be incomplete while the text is.
    pub tool_calls: Vec<ParsedCall>,
}

/// Whether a text is in a template's format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParseState {
    /// It is not, and no continuation of it is.
    #[default]
    Failed,
    /// It is the beginning of a message.
    Open,
    /// It is, or begins with, a whole message.
    Matched,
}

/// A part of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum PartKind {
    /// No part.
    #[default]
    #[serde(rename = "")]
    None,
    /// Visible text.
    #[serde(rename = "content")]
    Content,
    /// Reasoning.
    #[serde(rename = "thinking")]
    Thinking,
    /// A closed tool call.
    #[serde(rename = "call")]
    Call,
}

/// One tool call.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ParsedCall {
    /// May be empty.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// JSON text.
    pub arguments: String,
    /// Whether the parser saw its end.
    pub closed: bool,
    /// What stands before this place is no part of the call; its opening marker stands behind it.
    pub begin: usize,
    /// Where it ends, if it is closed; its closing marker may follow.
    pub end: usize,
    /// Bytes of the message's content that stand before the call.
    pub content: usize,
}

#[derive(Deserialize)]
struct ParserDescription {
    delimiters: Vec<String>,
}

impl ChatParser {
    /// A parser for answers to a rendered prompt.
    ///
    /// # Errors
    /// A sentence if the serialised parser is not readable.
    pub fn new(rendered: &RenderedChat) -> Result<Self, String> {
        let (parser, generation) = (c_string(&rendered.parser)?, c_string(&rendered.generation_prompt)?);
        let mut error = std::ptr::null_mut();
        // SAFETY: NUL-terminated strings that outlive the call.
        let raw =
            unsafe { hubllama_chat_parser_new(rendered.format, parser.as_ptr(), generation.as_ptr(), &raw mut error) };
        let raw = NonNull::new(raw)
            .ok_or_else(|| take(error).unwrap_or_else(|| "the output parser is unreadable".to_owned()))?;
        let mut parser = Self {
            raw,
            delimiters: Vec::new(),
        };
        let mut error = std::ptr::null_mut();
        // SAFETY: the parser is valid.
        let text = unsafe { hubllama_chat_parser_describe(parser.raw.as_ptr(), &raw mut error) };
        let description: ParserDescription = decode(text, error)?;
        parser.delimiters = description.delimiters;
        Ok(parser)
    }

    /// Strings of which one must come before a message's running text can turn into anything else.
    #[must_use]
    pub fn delimiters(&self) -> &[String] {
        &self.delimiters
    }

    /// Reads a text from its beginning.
    ///
    /// # Errors
    /// The sentence of an exception; the text is then to be taken as content.
    pub fn parse(&self, text: &str) -> Result<ParsedMessage, String> {
        let mut error = std::ptr::null_mut();
        // SAFETY: the parser is valid; pointer and length describe `text`.
        let out = unsafe { hubllama_chat_parse(self.raw.as_ptr(), text.as_ptr().cast(), text.len(), &raw mut error) };
        decode(out, error)
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

    /// As those of models that see have it: a message is a list of texts and pictures.
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
        assert!(error.contains("no system role"), "{error}");
        assert!(template.apply("not json").is_err());
    }
}
