//! Fields that the text routes of this dialect share: sampling, length, reasoning, residency, number of answers.
//!
//! Ollama's shim silently drops most of them. An hf: model honors them; a field that still has no effect is collected
//! in `ignored`, and the reply names it.

use super::choices::MAX_CHOICES;
use crate::{
    api::{
        error::ApiError,
        model::ServedModel,
        options::{MAX_STOPS, RequestOptions},
        values::{self, OptionsField},
    },
    go::{
        decode::{DecodeError, FieldPath, JsonNode},
        quote,
    },
    inference::{InferencePrompt, InferenceRequest, KeepAlive, ThinkLevel, ThinkMode},
};

/// Most tokens whose logits one request may bias.
const MAX_LOGIT_BIASES: usize = 1024;

/// Range of a logit bias, from OpenAI's reference: its ends ban and force a token.
const LOGIT_BIAS_RANGE: std::ops::RangeInclusive<f32> = -100.0..=100.0;

/// Shared fields of a request.
#[derive(Debug, Default)]
pub(super) struct SharedFields {
    pub(super) model: String,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) max_tokens: Option<i64>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) stop: Option<Vec<String>>,
    /// Names of fields without effect.
    pub(super) ignored: Vec<&'static str>,
    effort: Option<String>,
    think: ThinkMode,
    template_thinks: Option<bool>,
    thinking_budget: Option<u32>,
    keep_alive: Option<KeepAlive>,
    options: OptionsField,
    max_completion_tokens: Option<i64>,
    num_ctx: Option<i64>,
    seed: Option<i64>,
    top_k: Option<i64>,
    min_p: Option<f64>,
    logit_bias: Vec<(i32, f32)>,
    count: Option<i64>,
}

impl SharedFields {
    /// Reads a shared field by its lower-case key; returns the node of any other.
    pub(super) fn read<'a>(
        &mut self,
        root: &'static str,
        key: &str,
        node: JsonNode<'a>,
    ) -> Result<Option<JsonNode<'a>>, DecodeError> {
        match key {
            "model" => node.read_string(&mut self.model, FieldPath(root, "model"))?,
            // Unlike on the native routes, absent means false.
            "stream" => node.read_bool(&mut self.stream, FieldPath(root, "stream"))?,
            "stream_options" => {
                for (key, node) in node.read_object(FieldPath(root, "stream_options"), "openai.StreamOptions")? {
                    if key.eq_ignore_ascii_case("include_usage") {
                        node.read_bool(&mut self.include_usage, FieldPath(root, "stream_options.include_usage"))?;
                    }
                }
            }
            // An empty effort counts as absent, as in Ollama.
            "reasoning_effort" => self.set_effort(node, FieldPath(root, "reasoning_effort"))?,
            "think" => self.think = values::think(&node)?,
            "thinking_budget_tokens" => {
                let mut tokens = None;
                node.read_int(&mut tokens, FieldPath(root, "thinking_budget_tokens"))?;
                // In llama-server's API a negative budget is no limit.
                self.thinking_budget = tokens.and_then(|tokens| match tokens {
                    ..0 => None,
                    tokens => Some(u32::try_from(tokens).unwrap_or(u32::MAX)),
                });
            }
            "chat_template_kwargs" => self.read_template_kwargs(root, node)?,
            "keep_alive" => self.keep_alive = values::keep_alive(&node)?,
            "options" => self.options = OptionsField::read(node, root)?,
            "max_tokens" => node.read_int(&mut self.max_tokens, FieldPath(root, "max_tokens"))?,
            "max_completion_tokens" => {
                node.read_int(
                    &mut self.max_completion_tokens,
                    FieldPath(root, "max_completion_tokens"),
                )?;
            }
            "num_ctx" => node.read_int(&mut self.num_ctx, FieldPath(root, "num_ctx"))?,
            "seed" => node.read_int(&mut self.seed, FieldPath(root, "seed"))?,
            "top_k" => node.read_int(&mut self.top_k, FieldPath(root, "top_k"))?,
            "temperature" => node.read_float(&mut self.temperature, FieldPath(root, "temperature"))?,
            "top_p" => node.read_float(&mut self.top_p, FieldPath(root, "top_p"))?,
            "min_p" => node.read_float(&mut self.min_p, FieldPath(root, "min_p"))?,
            "frequency_penalty" => {
                node.read_float(&mut self.frequency_penalty, FieldPath(root, "frequency_penalty"))?
            }
            "presence_penalty" => node.read_float(&mut self.presence_penalty, FieldPath(root, "presence_penalty"))?,
            "logit_bias" => self.logit_bias = logit_bias(node)?,
            "n" => node.read_int(&mut self.count, FieldPath(root, "n"))?,
            _ => return Ok(Some(node)),
        }
        Ok(None)
    }

    /// Reads `reasoning_effort`, or the field that has it on another route.
    pub(super) fn set_effort(&mut self, node: JsonNode<'_>, field: FieldPath) -> Result<(), DecodeError> {
        let mut effort = String::new();
        node.read_string(&mut effort, field)?;
        if !effort.is_empty() {
            self.effort = Some(effort);
        }
        Ok(())
    }

    /// Returns the effort as the client sent it.
    pub(super) fn effort(&self) -> Option<&str> {
        self.effort.as_deref()
    }

    /// Reads variables of the chat template. Only `enable_thinking`, which clients of llama-server send, is honored.
    fn read_template_kwargs(&mut self, root: &'static str, node: JsonNode<'_>) -> Result<(), DecodeError> {
        let field = FieldPath(root, "chat_template_kwargs");
        for (key, node) in node.read_object(field, "map[string]interface {}")? {
            match (key.as_ref(), node) {
                ("enable_thinking", JsonNode::Bool(thinks)) => self.template_thinks = Some(thinks),
                (_, JsonNode::Null) => {}
                _ => self.note_ignored("chat_template_kwargs"),
            }
        }
        Ok(())
    }

    pub(super) fn note_ignored(&mut self, name: &'static str) {
        if !self.ignored.contains(&name) {
            self.ignored.push(name);
        }
    }

    /// Makes the checks of the shim on decoded fields.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        self.level()?;
        self.choices().map(drop)
    }

    /// Returns the number of answers to one prompt.
    pub(super) fn choices(&self) -> Result<usize, ApiError> {
        let count = self.count.unwrap_or(1);
        usize::try_from(count)
            .ok()
            .filter(|count| (1..=MAX_CHOICES).contains(count))
            .ok_or_else(|| ApiError::bad_request(format!("n must be between 1 and {MAX_CHOICES}")))
    }

    /// Returns the reasoning that is asked for. `reasoning_effort`, which Ollama reads, goes before `think`, which it
    /// does not.
    fn level(&self) -> Result<ThinkMode, ApiError> {
        let Some(effort) = &self.effort else {
            return Ok(self.think);
        };
        Ok(match effort.as_str() {
            "none" => ThinkMode::Off,
            "minimal" | "low" => ThinkMode::Level(ThinkLevel::Low),
            "medium" => ThinkMode::Level(ThinkLevel::Medium),
            "high" => ThinkMode::Level(ThinkLevel::High),
            "max" | "xhigh" | "ultra" => ThinkMode::Level(ThinkLevel::Max),
            other => {
                return Err(ApiError::bad_request(format!(
                    "invalid reasoning value: {} (must be \"minimal\", \"low\", \"medium\", \"high\", \"xhigh\", \"ultra\", \"max\", or \"none\")",
                    quote(other)
                )));
            }
        })
    }

    /// Returns true if the request has any field about reasoning.
    pub(super) fn speaks_of_thinking(&self) -> bool {
        self.effort.is_some() || self.think != ThinkMode::Unset || self.template_thinks.is_some()
    }

    /// Returns the reasoning to ask this model for.
    pub(super) fn thinking(&self, model: &ServedModel) -> Result<ThinkMode, ApiError> {
        match (self.level()?, self.template_thinks) {
            (ThinkMode::Unset, Some(false)) => Ok(ThinkMode::Off),
            // A template ignores variables that it does not use, so this is no error for a model without reasoning.
            (ThinkMode::Unset, Some(true)) => Ok(model.think_if_able(ThinkMode::On).think),
            (asked, _) => model.think(asked),
        }
    }

    /// Converts to the neutral request. `top_p` is the default of the route, which goes before the model's.
    pub(super) fn into_inference(
        self,
        prompt: InferencePrompt,
        think: ThinkMode,
        top_p: Option<f32>,
    ) -> Result<InferenceRequest, ApiError> {
        let RequestOptions {
            mut sampling,
            mut load,
            thinking_budget,
        } = self.options.into_options()?;
        // `max_tokens` is OpenAI's older name, and clients send both.
        if let Some(tokens) = self.max_completion_tokens.or(self.max_tokens) {
            sampling.num_predict = Some(tokens);
        }
        if let Some(tokens) = self.num_ctx {
            load.context_length = values::context_length(tokens);
        }
        sampling.seed = self.seed.or(sampling.seed);
        sampling.top_k = self.top_k.map(values::top_k).or(sampling.top_k);
        sampling.min_p = self.min_p.map(values::to_f32).or(sampling.min_p);
        sampling.frequency_penalty = self
            .frequency_penalty
            .map(values::to_f32)
            .or(sampling.frequency_penalty);
        sampling.presence_penalty = self.presence_penalty.map(values::to_f32).or(sampling.presence_penalty);
        sampling.stop = self.stop.or(sampling.stop);
        // OpenAI's default of 1 goes before the model's own, as in Ollama's shim.
        sampling.temperature = Some(
            self.temperature
                .map(values::to_f32)
                .or(sampling.temperature)
                .unwrap_or(1.0),
        );
        sampling.top_p = self.top_p.map(values::to_f32).or(sampling.top_p).or(top_p);
        sampling.logit_bias = self.logit_bias;
        Ok(InferenceRequest {
            prompt,
            sampling,
            load,
            format: None,
            think,
            thinking_budget: self.thinking_budget.or(thinking_budget),
            keep_alive: self.keep_alive,
            // OpenAI's API has no such parameters here; Ollama's shim leaves them at the native defaults.
            truncate: true,
            shift: true,
            logprobs: None,
            return_context: false,
        })
    }

    /// Returns true if the request, should it have nothing to answer, unloads the model.
    pub(super) fn unloads(&self) -> bool {
        self.keep_alive.is_some_and(KeepAlive::is_zero)
    }

    /// Loads or unloads the model, which a request without anything to answer asks for. Returns the finish reason for
    /// that.
    pub(super) async fn settle(self, model: &ServedModel) -> Result<&'static str, ApiError> {
        let (done, word) = if self.unloads() {
            (model.inner.unload().await, "unload")
        } else {
            // Only the load options are used. The conversion is made so that an error in `options` is reported here,
            // too.
            let nothing = InferencePrompt::Raw { text: String::new() };
            let request = self.into_inference(nothing, ThinkMode::Unset, None)?;
            let load = model.inner.load(request.load, request.keep_alive);
            (load.await, "load")
        };
        done.map_err(|failure| model.failure(failure))?;
        Ok(word)
    }
}

/// Reads stop strings, a string or a list. `wrong` is called for an item that is no string: the routes differ there.
pub(super) fn stops(
    node: JsonNode<'_>,
    wrong: impl Fn(&JsonNode<'_>) -> Result<(), DecodeError>,
) -> Result<Option<Vec<String>>, DecodeError> {
    match node {
        JsonNode::String(text) => Ok(Some(vec![text.into_owned()])),
        JsonNode::Array(items) if items.len() > MAX_STOPS => {
            Err(DecodeError::new(format!("stop holds more than {MAX_STOPS} strings")))
        }
        JsonNode::Array(items) => {
            let mut stops = Vec::with_capacity(items.len());
            for item in items {
                match item {
                    JsonNode::String(text) => stops.push(text.into_owned()),
                    other => wrong(&other)?,
                }
            }
            Ok(Some(stops))
        }
        // Ollama decodes `stop` as an `any`, and skips a value of another type.
        _ => Ok(None),
    }
}

/// Reads `logit_bias`, a map from token id to bias.
fn logit_bias(node: JsonNode<'_>) -> Result<Vec<(i32, f32)>, DecodeError> {
    let wrong = || DecodeError::new("logit_bias must map token ids to numbers from -100 to 100");
    let entries = match node {
        JsonNode::Null => return Ok(Vec::new()),
        JsonNode::Object(entries) => entries,
        _ => return Err(wrong()),
    };
    if entries.len() > MAX_LOGIT_BIASES {
        return Err(DecodeError::new(format!(
            "logit_bias holds more than {MAX_LOGIT_BIASES} tokens"
        )));
    }
    entries
        .into_iter()
        .map(|(key, value)| {
            let token = key.parse().ok().filter(|token: &i32| *token >= 0).ok_or_else(wrong)?;
            let JsonNode::Number(digits) = value else {
                return Err(wrong());
            };
            let bias = digits.parse().ok().filter(|bias| LOGIT_BIAS_RANGE.contains(bias));
            Ok((token, bias.ok_or_else(wrong)?))
        })
        .collect()
}
