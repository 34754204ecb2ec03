//! Requests converted to bodies of Ollama's native routes.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::{Map, Value, value::RawValue};

use crate::inference::{
    AnswerFormat, Failure, InferencePrompt, InferenceRequest, KeepAlive, LoadOptions, Message, SamplingOptions,
    ThinkLevel, ThinkMode, ToolChoice, ToolDefinition, sampling_parameters,
};

/// Longest duration of Go in seconds; more is forever.
const MAX_SECONDS: u64 = i64::MAX as u64 / 1_000_000_000;

/// Body of `/api/chat` and `/api/generate`.
#[derive(Debug, Default, Serialize)]
pub(super) struct TextBody<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<WireMessage<'a>>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tools: &'a [ToolDefinition],
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suffix: Option<&'a str>,
    #[serde(skip_serializing_if = "is_false")]
    raw: bool,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<WireFormat<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    think: Option<WireThink>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_alive: Option<WireKeepAlive>,
    options: WireOptions<'a>,
    // If unset, Ollama decides: its default for `shift` depends on the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    truncate: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shift: Option<bool>,
    #[serde(skip_serializing_if = "is_false")]
    logprobs: bool,
    #[serde(skip_serializing_if = "is_zero")]
    top_logprobs: u8,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u8) -> bool {
    *number == 0
}

impl<'a> TextBody<'a> {
    /// Returns the route that answers `request`, and the body for it.
    pub(super) fn to_infer(model: &'a str, request: &'a InferenceRequest) -> Result<(&'static str, Self), Failure> {
        let InferenceRequest {
            prompt,
            sampling,
            load,
            format,
            think,
            thinking_budget: _,
            keep_alive,
            truncate,
            shift,
            logprobs,
            return_context: _,
        } = request;
        let mut ask = Self {
            model,
            stream: true,
            format: format.as_ref().map(WireFormat::from),
            think: WireThink::of(*think),
            keep_alive: keep_alive.map(WireKeepAlive::from),
            options: WireOptions::new(sampling, load),
            truncate: (!truncate).then_some(false),
            shift: (!shift).then_some(false),
            logprobs: logprobs.is_some(),
            top_logprobs: logprobs.unwrap_or(0),
            ..Self::default()
        };
        let path = match prompt {
            InferencePrompt::Chat { context, .. } if !context.is_empty() => {
                return Err(Failure::Invalid(
                    "Ollama takes a context only on /api/generate; send the request there".into(),
                ));
            }
            InferencePrompt::Chat {
                messages,
                tools,
                tool_choice,
                ..
            } => {
                ask.messages = Some(messages.iter().map(WireMessage::from).collect());
                // Ollama has no tool_choice. Without the tools the model cannot call any.
                if *tool_choice != ToolChoice::None {
                    ask.tools = tools;
                }
                "/api/chat"
            }
            InferencePrompt::Raw { text } => {
                ask.prompt = Some(text);
                // Otherwise Ollama would put the text into the model's template.
                ask.raw = true;
                "/api/generate"
            }
            InferencePrompt::Infill { prefix, suffix } => {
                ask.prompt = Some(prefix);
                // Without `raw`, since the model's template arranges prefix and suffix.
                ask.suffix = Some(suffix);
                "/api/generate"
            }
        };
        Ok((path, ask))
    }

    /// Returns the body that loads a model: one without a prompt.
    pub(super) fn to_load(model: &'a str, load: &'a LoadOptions, keep_alive: Option<KeepAlive>) -> Self {
        Self {
            model,
            keep_alive: keep_alive.map(WireKeepAlive::from),
            options: WireOptions::of_load(load),
            ..Self::default()
        }
    }
}

/// Body of `/api/embed`.
#[derive(Debug, Serialize)]
pub(super) struct EmbedBody<'a> {
    pub(super) model: &'a str,
    pub(super) input: &'a [String],
    pub(super) truncate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dimensions: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) keep_alive: Option<WireKeepAlive>,
    pub(super) options: WireOptions<'a>,
}

/// Body of the older `/api/embeddings`.
#[derive(Debug, Serialize)]
pub(super) struct EmbeddingsBody<'a> {
    pub(super) model: &'a str,
    pub(super) prompt: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) keep_alive: Option<WireKeepAlive>,
    pub(super) options: WireOptions<'a>,
}

/// Body of `/api/show`.
#[derive(Debug, Serialize)]
pub(super) struct ShowBody<'a> {
    pub(super) model: &'a str,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) verbose: bool,
}

#[derive(Debug, Serialize)]
struct WireMessage<'a> {
    role: &'a str,
    content: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    thinking: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    images: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<WireToolCall<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    tool_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    tool_call_id: &'a str,
}

#[derive(Debug, Serialize)]
struct WireToolCall<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    function: WireFunction<'a>,
}

#[derive(Debug, Serialize)]
struct WireFunction<'a> {
    index: usize,
    name: &'a str,
    arguments: &'a Map<String, Value>,
}

impl<'a> From<&'a Message> for WireMessage<'a> {
    fn from(message: &'a Message) -> Self {
        let Message {
            role,
            content,
            thinking,
            media,
            tool_calls,
            tool_name,
            tool_call_id,
        } = message;
        let call = |(index, call): (usize, &'a crate::inference::ToolCall)| WireToolCall {
            id: &call.id,
            function: WireFunction {
                index,
                name: &call.name,
                arguments: &call.arguments,
            },
        };
        Self {
            role: &role.0,
            content,
            thinking,
            images: media.iter().map(|bytes| BASE64_STANDARD.encode(bytes)).collect(),
            tool_calls: tool_calls.iter().enumerate().map(call).collect(),
            tool_name,
            tool_call_id,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum WireFormat<'a> {
    Word(&'static str),
    Schema(&'a RawValue),
}

impl<'a> From<&'a AnswerFormat> for WireFormat<'a> {
    fn from(format: &'a AnswerFormat) -> Self {
        match format {
            AnswerFormat::Json => Self::Word("json"),
            AnswerFormat::Schema(schema) => Self::Schema(schema),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum WireThink {
    Switch(bool),
    Level(ThinkLevel),
}

impl WireThink {
    fn of(think: ThinkMode) -> Option<Self> {
        match think {
            ThinkMode::Unset => None,
            ThinkMode::Off => Some(Self::Switch(false)),
            ThinkMode::On => Some(Self::Switch(true)),
            ThinkMode::Level(level) => Some(Self::Level(level)),
        }
    }
}

/// Keep-alive in seconds, -1 for forever, or as a Go duration.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum WireKeepAlive {
    Seconds(i64),
    Duration(String),
}

impl From<KeepAlive> for WireKeepAlive {
    fn from(keep_alive: KeepAlive) -> Self {
        match keep_alive {
            KeepAlive::For(time) if time.as_secs() < MAX_SECONDS => Self::of(time),
            KeepAlive::For(_) | KeepAlive::Forever => Self::Seconds(-1),
        }
    }
}

impl WireKeepAlive {
    fn of(time: Duration) -> Self {
        match i64::try_from(time.as_secs()) {
            Ok(seconds) if time.subsec_nanos() == 0 => Self::Seconds(seconds),
            _ => Self::Duration(format!("{}ns", time.as_nanos())),
        }
    }
}

/// Returns the parameters of a request that Ollama's native routes have no field for, by their names on the wire.
pub(super) fn unsupported_parameters(request: &InferenceRequest) -> Vec<&'static str> {
    let mut unsupported = Vec::new();
    if let InferencePrompt::Chat {
        tools,
        tool_choice,
        parallel_tool_calls,
        ..
    } = &request.prompt
    {
        if matches!(tool_choice, ToolChoice::Required | ToolChoice::Function(_)) {
            unsupported.push("tool_choice");
        }
        if !parallel_tool_calls && !tools.is_empty() {
            unsupported.push("parallel_tool_calls");
        }
    }
    if !request.sampling.logit_bias.is_empty() {
        unsupported.push("logit_bias");
    }
    if request.thinking_budget.is_some() {
        unsupported.push("thinking_budget");
    }
    unsupported
}

/// The `options` object: everything that is set, under Ollama's names.
#[derive(Debug, Default)]
pub(super) struct WireOptions<'a> {
    sampling: Option<&'a SamplingOptions>,
    load: Option<&'a LoadOptions>,
}

impl<'a> WireOptions<'a> {
    fn new(sampling: &'a SamplingOptions, load: &'a LoadOptions) -> Self {
        Self {
            sampling: Some(sampling),
            load: Some(load),
        }
    }

    pub(super) fn of_load(load: &'a LoadOptions) -> Self {
        Self {
            sampling: None,
            load: Some(load),
        }
    }
}

impl Serialize for WireOptions<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        macro_rules! entries {
            ($options:expr; $($name:ident: $type:ty,)*) => {
                $(if let Some(value) = &$options.$name {
                    map.serialize_entry(stringify!($name), value)?;
                })*
            };
        }
        if let Some(load) = self.load {
            if let Some(length) = load.context_length {
                map.serialize_entry("num_ctx", &length)?;
            }
            entries! { load; num_batch: u32, num_gpu: i32, main_gpu: i32, use_mmap: bool, num_thread: u32, }
        }
        if let Some(sampling) = self.sampling {
            // `logit_bias` is not in the table: Ollama has no such option, and `unsupported_parameters` reports it.
            sampling_parameters!(entries! { sampling; });
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::inference::ToolCall;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.into()).unwrap()
    }

    fn request(prompt: InferencePrompt) -> InferenceRequest {
        InferenceRequest {
            prompt,
            sampling: SamplingOptions::default(),
            load: LoadOptions::default(),
            format: None,
            think: ThinkMode::Unset,
            thinking_budget: None,
            keep_alive: None,
            truncate: true,
            shift: true,
            logprobs: None,
            return_context: false,
        }
    }

    fn chat(messages: Vec<Message>, tool_choice: ToolChoice) -> InferencePrompt {
        InferencePrompt::Chat {
            messages,
            tools: vec![ToolDefinition::new(raw(
                r#"{"type":"function","function":{"name":"f"}}"#,
            ))],
            tool_choice,
            parallel_tool_calls: true,
            context: Vec::new(),
        }
    }

    #[track_caller]
    fn check(request: &InferenceRequest, path: &str, expected: &Value) {
        let (route, ask) = TextBody::to_infer("m", request).unwrap();
        assert_eq!((route, &serde_json::to_value(&ask).unwrap()), (path, expected));
    }

    #[test]
    fn what_is_not_asked_is_not_said() {
        check(
            &request(chat(vec![Message::text("user", "x")], ToolChoice::None)),
            "/api/chat",
            &json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": true, "options": {}}),
        );
        check(
            &request(InferencePrompt::Raw { text: "x".into() }),
            "/api/generate",
            &json!({"model": "m", "prompt": "x", "raw": true, "stream": true, "options": {}}),
        );
        check(
            &request(InferencePrompt::Infill {
                prefix: "a".into(),
                suffix: "b".into(),
            }),
            "/api/generate",
            &json!({"model": "m", "prompt": "a", "suffix": "b", "stream": true, "options": {}}),
        );
    }

    #[test]
    fn everything_that_is_asked_is_said() {
        let mut answer = Message::text("assistant", "");
        answer.thinking = "Hm".into();
        answer.tool_calls = vec![ToolCall {
            id: "c1".into(),
            name: "f".into(),
            arguments: serde_json::from_str(r#"{"b":1,"a":2}"#).unwrap(),
        }];
        let mut result = Message::text("tool", "7");
        result.tool_name = "f".into();
        result.tool_call_id = "c1".into();
        let mut picture = Message::text("user", "what is it?");
        picture.media = vec![b"\xff\x00?".to_vec()];
        let mut request = request(chat(vec![answer, result, picture], ToolChoice::Required));
        request.sampling = SamplingOptions {
            num_predict: Some(5),
            num_keep: Some(1),
            seed: Some(-1),
            temperature: Some(0.7),
            top_k: Some(3),
            top_p: Some(0.9),
            min_p: Some(0.05),
            typical_p: Some(1.0),
            repeat_last_n: Some(-1),
            repeat_penalty: Some(1.1),
            presence_penalty: Some(0.1),
            frequency_penalty: Some(0.2),
            stop: Some(vec!["a".into()]),
            logit_bias: vec![(1, 2.0)],
        };
        request.load = LoadOptions {
            context_length: Some(2048),
            num_batch: Some(512),
            num_gpu: Some(-1),
            main_gpu: Some(0),
            use_mmap: Some(false),
            num_thread: Some(4),
        };
        request.format = Some(AnswerFormat::Schema(raw(r#"{"type":"object"}"#)));
        request.think = ThinkMode::Level(ThinkLevel::High);
        request.keep_alive = Some(KeepAlive::Forever);
        (request.truncate, request.shift) = (false, false);
        request.logprobs = Some(2);
        let (path, ask) = TextBody::to_infer("m", &request).unwrap();
        assert_eq!(path, "/api/chat");
        assert_eq!(
            serde_json::to_string(&ask).unwrap(),
            concat!(
                r#"{"model":"m","messages":[{"role":"assistant","content":"","thinking":"Hm","#,
                r#""tool_calls":[{"id":"c1","function":{"index":0,"name":"f","arguments":{"b":1,"a":2}}}]},"#,
                r#"{"role":"tool","content":"7","tool_name":"f","tool_call_id":"c1"},"#,
                r#"{"role":"user","content":"what is it?","images":["/wA/"]}],"#,
                r#""tools":[{"type":"function","function":{"name":"f"}}],"stream":true,"format":{"type":"object"},"#,
                r#""think":"high","keep_alive":-1,"options":{"num_ctx":2048,"num_batch":512,"num_gpu":-1,"main_gpu":0,"#,
                r#""use_mmap":false,"num_thread":4,"num_predict":5,"num_keep":1,"seed":-1,"temperature":0.7,"top_k":3,"#,
                r#""top_p":0.9,"min_p":0.05,"typical_p":1.0,"repeat_last_n":-1,"repeat_penalty":1.1,"#,
                r#""presence_penalty":0.1,"frequency_penalty":0.2,"stop":["a"]},"truncate":false,"shift":false,"#,
                r#""logprobs":true,"top_logprobs":2}"#,
            )
        );
    }

    #[test]
    fn keep_alive_has_a_form_that_ollama_reads() {
        for (keep_alive, expected) in [
            (KeepAlive::Forever, json!(-1)),
            (KeepAlive::ZERO, json!(0)),
            (KeepAlive::For(Duration::from_secs(300)), json!(300)),
            (KeepAlive::For(Duration::from_millis(1500)), json!("1500000000ns")),
            (KeepAlive::For(Duration::MAX), json!(-1)),
        ] {
            assert_eq!(serde_json::to_value(WireKeepAlive::from(keep_alive)).unwrap(), expected);
        }
    }

    #[test]
    fn thinking_and_format_have_their_short_forms() {
        for (think, expected) in [(ThinkMode::Off, json!(false)), (ThinkMode::On, json!(true))] {
            let mut request = request(InferencePrompt::Raw { text: "x".into() });
            request.think = think;
            request.format = Some(AnswerFormat::Json);
            let (_, ask) = TextBody::to_infer("m", &request).unwrap();
            let ask = serde_json::to_value(&ask).unwrap();
            assert_eq!((&ask["think"], &ask["format"]), (&expected, &json!("json")));
        }
    }

    #[test]
    fn a_context_has_no_place_in_a_chat() {
        let mut prompt = chat(Vec::new(), ToolChoice::Auto);
        if let InferencePrompt::Chat { context, .. } = &mut prompt {
            context.push(1);
        }
        assert!(matches!(
            TextBody::to_infer("m", &request(prompt)),
            Err(Failure::Invalid(_))
        ));
    }
}
