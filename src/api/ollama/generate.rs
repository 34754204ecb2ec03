//! `POST /api/generate`

use hyper::Response;

use super::{
    chat::{answer, load, render, unload},
    frames::TextRoute,
    request::GenerateRequest,
};
use crate::{
    api::{error::ApiError, model::ServedModel, reply, routed::RoutedRequest},
    go::template::{GoTemplate, TemplateError},
    http::body::Body,
    inference::{InferencePrompt, Message, ThinkMode, ToolChoice},
    provider::{CallContext, ConversationPreset},
};

/// Makes the checks that need no model.
pub(crate) fn check(body: &[u8]) -> Result<(), ApiError> {
    GenerateRequest::decode(body)?.common.check_range()
}

/// Answers `POST /api/generate` for a model of a provider.
pub(crate) async fn generate(call: &CallContext, request: RoutedRequest) -> Result<Response<Body>, ApiError> {
    let (routed, mut request) = request.decode(GenerateRequest::decode)?;
    request.common.check_range()?;
    let model = ServedModel::find(call, routed, request.common.model.clone()).await?;
    // The order of the checks is Ollama's, since it decides which error a client sees: unload, raw, thinking, text,
    // insert, options, load.
    if request.prompt.is_empty() && request.common.unloads() {
        return unload(&model, TextRoute::Generate).await;
    }
    let is_shaped = !request.template.is_empty() || !request.system.is_empty() || !request.context.is_empty();
    if request.raw && is_shaped {
        return Err(ApiError::bad_request(
            "raw mode does not support template, system, or context",
        ));
    }
    let think = model.think(request.common.think)?;
    model.require_text("generate")?;
    if !request.suffix.is_empty() {
        model.require_insert()?;
    }
    let options = request.common.take_options()?;
    if request.prompt.is_empty() {
        return load(&model, options.load, request.common.keep_alive, TextRoute::Generate).await;
    }
    let (streams, only_renders) = (request.common.streams(), request.common.debug_render_only);
    // A prompt for fill in the middle has no place for a system prompt, so the reply names it as ignored.
    let ignores_system = !request.suffix.is_empty() && !request.system.is_empty() && request.template.is_empty();
    let earlier = earlier(&model, &mut request).await?;
    // Ollama returns no `context` for a raw prompt.
    let return_context = !request.raw;
    let GenerateRequest {
        common,
        prompt,
        suffix,
        system,
        template,
        context,
        raw,
        images,
    } = request;
    let mut preset = model.inner.preset();
    if !earlier.is_empty() {
        // A conversation that continues has had the preset messages already.
        preset.messages = &[];
    }
    let mut prompt = Parts {
        prompt,
        suffix,
        system,
        template,
        context,
        raw,
        images,
    }
    .into_prompt(preset, think)?;
    if let InferencePrompt::Raw { text } = &mut prompt {
        text.insert_str(0, &earlier);
    }
    let inference = common.into_inference(prompt, options, think, return_context)?;
    let mut response = if only_renders {
        render(&model, inference, TextRoute::Generate).await?
    } else {
        answer(&model, inference, TextRoute::Generate, streams).await?
    };
    if ignores_system {
        reply::mark_ignored(response.headers_mut(), &["system"]);
    }
    Ok(response)
}

/// Returns the text of an earlier answer that the request gives as token ids (`context`), to be put before the prompt
/// of the request's own template.
async fn earlier(model: &ServedModel, request: &mut GenerateRequest) -> Result<String, ApiError> {
    if request.template.is_empty() || request.context.is_empty() {
        return Ok(String::new());
    }
    model
        .inner
        .detokenize(std::mem::take(&mut request.context))
        .await
        .map_err(|failure| model.failure(failure))
}

/// Parts of the request that a prompt is built from.
struct Parts {
    prompt: String,
    suffix: String,
    system: String,
    template: String,
    context: Vec<i32>,
    raw: bool,
    images: Vec<Vec<u8>>,
}

impl Parts {
    /// Builds the prompt. `preset` has the system prompt and messages of an alias, for a template of the request.
    fn into_prompt(self, preset: ConversationPreset<'_>, think: ThinkMode) -> Result<InferencePrompt, ApiError> {
        let Self {
            prompt,
            suffix,
            system,
            template,
            context,
            raw,
            images,
        } = self;
        let as_text = raw || !suffix.is_empty() || !template.is_empty();
        if as_text && !images.is_empty() {
            return Err(ApiError::bad_request(
                "images together with raw, suffix or template are not supported for hf: models",
            ));
        }
        // Only a suffix gets here with a context: `earlier` has taken that of a template, and raw was refused before.
        if as_text && !context.is_empty() {
            return Err(ApiError::bad_request(
                "context together with suffix is not supported for hf: models",
            ));
        }
        if !template.is_empty() {
            let template = GoTemplate::parse(&template).map_err(template_error)?;
            let text = if suffix.is_empty() {
                // As in Ollama, a system prompt of the request replaces that of the model.
                let system = if system.is_empty() { preset.system } else { &system };
                let mut messages = Vec::with_capacity(preset.messages.len() + 2);
                messages.extend((!system.is_empty()).then(|| Message::text("system", system)));
                messages.extend_from_slice(preset.messages);
                messages.push(Message::text("user", prompt));
                template.render(&messages, think)
            } else {
                template.render_infill(&prompt, &suffix, think)
            };
            let text = text.map_err(template_error)?;
            return Ok(InferencePrompt::Raw { text });
        }
        if !suffix.is_empty() {
            return Ok(InferencePrompt::Infill { prefix: prompt, suffix });
        }
        if raw {
            return Ok(InferencePrompt::Raw { text: prompt });
        }
        let mut messages = Vec::with_capacity(2);
        if !system.is_empty() {
            messages.push(Message::text("system", system));
        }
        messages.push(Message {
            media: images,
            ..Message::text("user", prompt)
        });
        Ok(InferencePrompt::Chat {
            messages,
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            context,
        })
    }
}

/// Converts an error of a template. A template that Ollama cannot parse either is a 500, as there; one that only
/// exceeds what is understood here is a 400.
fn template_error(error: TemplateError) -> ApiError {
    match &error {
        TemplateError::Syntax(_) | TemplateError::Execution(_) => ApiError::internal(error.to_string()),
        TemplateError::Unsupported(_) | TemplateError::TooLong => ApiError::bad_request(error.to_string()),
    }
}
