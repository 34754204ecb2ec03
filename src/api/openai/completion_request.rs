//! Body of `/v1/completions`.

use super::common::{SharedFields, stops};
use crate::{
    api::{error::ApiError, values},
    go::decode::{DecodeError, FieldPath, JsonNode, entries_of},
    inference::{InferencePrompt, InferenceRequest, Message, ThinkMode, ToolChoice},
};

const ROOT: &str = "CompletionRequest";

/// Most prompts in one request.
const MAX_PROMPTS: usize = 32;

/// `top_p` of requests that do not set it, or set it to 0: Ollama's shim sends 1 then, over the model's own default.
const DEFAULT_TOP_P: Option<f32> = Some(1.0);

/// Body of `POST /v1/completions`.
#[derive(Debug, Default)]
pub(super) struct CompletionRequest {
    pub(super) common: SharedFields,
    prompts: Vec<String>,
    pub(super) suffix: String,
    /// Number of alternatives to each token; with 0, only the log-probabilities of the chosen tokens are returned.
    logprobs: Option<i64>,
}

impl CompletionRequest {
    /// Decodes a body, with the errors of the shim.
    pub(super) fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut request = Self::default();
        for (key, node) in entries_of(body, "openai.CompletionRequest")? {
            let key = key.to_ascii_lowercase();
            if let Some(node) = request.common.read(ROOT, &key, node)? {
                request.set(&key, node)?;
            }
        }
        if request.common.top_p == Some(0.0) {
            request.common.top_p = None;
        }
        Ok(request)
    }

    fn set(&mut self, key: &str, node: JsonNode<'_>) -> Result<(), DecodeError> {
        match key {
            "prompt" => self.prompts = prompts(node)?,
            "suffix" => node.read_string(&mut self.suffix, FieldPath(ROOT, "suffix"))?,
            "stop" => {
                self.common.stop = stops(node, |item| {
                    Err(DecodeError::new(format!(
                        "invalid type for 'stop' field: {}",
                        item.go_type()
                    )))
                })?;
            }
            "logprobs" => node.read_int(&mut self.logprobs, FieldPath(ROOT, "logprobs"))?,
            "echo" => {
                let mut echo = false;
                node.read_bool(&mut echo, FieldPath(ROOT, "echo"))?;
                if echo {
                    self.common.note_ignored("echo");
                }
            }
            "best_of" => {
                let mut best_of = None;
                node.read_int(&mut best_of, FieldPath(ROOT, "best_of"))?;
                if best_of.is_some_and(|best_of| best_of > 1) {
                    self.common.note_ignored("best_of");
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Makes the checks of the shim on a decoded body.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        if self.prompts.len() > MAX_PROMPTS {
            return Err(ApiError::bad_request(format!(
                "prompt holds more than {MAX_PROMPTS} texts"
            )));
        }
        self.common.check()
    }

    /// Makes the check that the native handler makes before it looks the model up.
    pub(super) fn check_range(&self) -> Result<(), ApiError> {
        self.wanted_logprobs().map(drop)
    }

    fn wanted_logprobs(&self) -> Result<Option<u8>, ApiError> {
        self.logprobs.map(values::top_logprobs).transpose()
    }

    /// Returns true if there is nothing to answer.
    pub(super) fn is_empty(&self) -> bool {
        self.prompts.iter().all(String::is_empty)
    }

    /// Returns a neutral request for each prompt.
    pub(super) fn into_inferences(self, think: ThinkMode) -> Result<Vec<InferenceRequest>, ApiError> {
        let logprobs = self.wanted_logprobs()?;
        let Self {
            common,
            prompts,
            suffix,
            ..
        } = self;
        let empty = InferencePrompt::Raw { text: String::new() };
        let mut request = common.into_inference(empty, think, DEFAULT_TOP_P)?;
        request.logprobs = logprobs;
        let requests = prompts.into_iter().map(|text| InferenceRequest {
            prompt: prompt(text, &suffix),
            ..request.clone()
        });
        Ok(requests.collect())
    }
}

/// Builds a prompt. As on Ollama's native route, to which its shim leads, the chat template is applied, unless there is
/// a suffix.
fn prompt(text: String, suffix: &str) -> InferencePrompt {
    if !suffix.is_empty() {
        return InferencePrompt::Infill {
            prefix: text,
            suffix: suffix.to_owned(),
        };
    }
    InferencePrompt::Chat {
        messages: vec![Message::text("user", text)],
        tools: Vec::new(),
        tool_choice: ToolChoice::Auto,
        parallel_tool_calls: true,
        context: Vec::new(),
    }
}

/// Reads a text, or a list of them.
fn prompts(node: JsonNode<'_>) -> Result<Vec<String>, DecodeError> {
    match node {
        JsonNode::Null => Ok(Vec::new()),
        JsonNode::String(text) => Ok(vec![text.into_owned()]),
        JsonNode::Array(items) => items
            .into_iter()
            .map(|item| match item {
                JsonNode::String(text) => Ok(text.into_owned()),
                _ => Err(DecodeError::new(
                    "prompt must be a text or a list of texts: send token ids as the text that they stand for",
                )),
            })
            .collect(),
        other => Err(other.mismatch(FieldPath(ROOT, "prompt"), "string")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(json: &str) -> CompletionRequest {
        CompletionRequest::decode(json.as_bytes()).unwrap()
    }

    fn inferences(json: &str) -> Vec<InferenceRequest> {
        decode(json).into_inferences(ThinkMode::Off).unwrap()
    }

    #[test]
    fn a_prompt_is_a_turn_of_the_user_or_a_gap_to_fill() {
        let requests = inferences(r#"{"prompt":["a","b"],"top_p":0,"logprobs":0,"stop":["x"]}"#);
        let texts: Vec<&str> = requests
            .iter()
            .map(|request| match &request.prompt {
                InferencePrompt::Chat { messages, .. } => messages[0].content.as_str(),
                _ => panic!(),
            })
            .collect();
        assert_eq!(texts, ["a", "b"]);
        let sampling = &requests[0].sampling;
        assert_eq!((sampling.temperature, sampling.top_p), (Some(1.0), Some(1.0)));
        assert_eq!(
            (&sampling.stop, requests[0].logprobs),
            (&Some(vec!["x".into()]), Some(0))
        );
        let gap = inferences(r#"{"prompt":"p","suffix":"s"}"#);
        assert!(matches!(&gap[0].prompt, InferencePrompt::Infill { prefix, suffix } if prefix == "p" && suffix == "s"));
        assert_eq!(gap[0].logprobs, None);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (body, expected) in [
            (r#"{"stop":[1]}"#, "invalid type for 'stop' field: float64"),
            (
                r#"{"prompt":[1,2]}"#,
                "prompt must be a text or a list of texts: send token ids as the text that they stand for",
            ),
            (
                r#"{"prompt":[[1,2]]}"#,
                "prompt must be a text or a list of texts: send token ids as the text that they stand for",
            ),
            (
                r#"{"prompt":5}"#,
                "json: cannot unmarshal number into Go struct field CompletionRequest.prompt of type string",
            ),
        ] {
            let error = CompletionRequest::decode(body.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        let many = format!("{{\"prompt\":[{}\"\"]}}", "\"\",".repeat(32));
        assert_eq!(
            decode(&many).check().unwrap_err().message,
            "prompt holds more than 32 texts"
        );
        for body in [r#"{"logprobs":21}"#, r#"{"logprobs":-1}"#] {
            assert_eq!(
                decode(body).check_range().unwrap_err().message,
                "top_logprobs must be between 0 and 20"
            );
        }
    }

    #[test]
    fn what_has_no_effect_is_named() {
        assert_eq!(
            decode(r#"{"echo":true,"best_of":3}"#).common.ignored,
            ["echo", "best_of"]
        );
        assert!(decode(r#"{"echo":false,"best_of":1,"n":2}"#).common.ignored.is_empty());
    }

    #[test]
    fn nothing_to_answer_is_seen() {
        for (body, empty) in [
            ("{}", true),
            (r#"{"prompt":""}"#, true),
            (r#"{"prompt":[]}"#, true),
            (r#"{"prompt":["","a"]}"#, false),
        ] {
            assert_eq!(decode(body).is_empty(), empty);
        }
    }
}
