//! Provider of one alias: it adds the alias's settings to requests and puts its name on results. All else is done by
//! the provider of its model.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};

use super::{AliasStore, ModelAlias};
use crate::{
    go::template::{GoTemplate, TemplateError},
    inference::{
        EmbedRequest, EmbeddingResult, Failure, InferencePrompt, InferenceRequest, KeepAlive, LoadOptions, Message,
        ModelCard, ModelDetails, ResidentModel, SamplingOptions, TextToken, ThinkMode,
    },
    provider::{
        CallContext, ConversationPreset, EventStream, Provider, PullStream, TokenizeRequest, huggingface::shorten,
    },
};

/// Provider of one alias. The names in its calls are ignored.
#[derive(Debug)]
pub(in crate::provider) struct AliasedProvider {
    inner: Arc<dyn Provider>,
    alias: Arc<ModelAlias>,
    store: AliasStore,
}

impl AliasedProvider {
    pub(in crate::provider) fn new(inner: Arc<dyn Provider>, alias: Arc<ModelAlias>, store: AliasStore) -> Self {
        Self { inner, alias, store }
    }

    /// Fills in what the request leaves open with the settings of the alias. Settings of the model fill in the rest
    /// later.
    fn fill(&self, request: &mut InferenceRequest) {
        fill_sampling(&mut request.sampling, &self.alias.settings.sampling);
        fill_load(&mut request.load, &self.alias.settings.load);
        if let InferencePrompt::Chat { messages, context, .. } = &mut request.prompt {
            self.put_in_front(messages, !context.is_empty());
        }
    }

    /// Puts the system prompt and messages of the alias before a conversation. A system prompt of the request replaces
    /// that of the alias, and stays first, the only place where many templates look for one. If the request continues
    /// from token ids (`goes_on`), these contain the messages already.
    fn put_in_front(&self, messages: &mut Vec<Message>, goes_on: bool) {
        let settings = &self.alias.settings;
        let is_system = |message: &Message| message.role.0 == "system";
        if !messages.first().is_some_and(is_system) && !settings.system.is_empty() {
            messages.insert(0, Message::text("system", settings.system.clone()));
        }
        if !goes_on {
            let at = messages.iter().take_while(|message| is_system(message)).count();
            messages.splice(at..at, settings.messages.iter().cloned());
        }
    }

    /// Returns the template of the alias, if it serves this request. Requests with tools, reasoning or images use the
    /// template of the model, whose grammar and parser are known. Ollama prefers it then, too.
    fn template_for(&self, request: &InferenceRequest) -> Result<Option<GoTemplate>, Failure> {
        let source = &self.alias.settings.template;
        if source.is_empty() {
            return Ok(None);
        }
        let parse = || GoTemplate::parse(source).map(Some).map_err(failure);
        match &request.prompt {
            InferencePrompt::Chat { messages, tools, .. } => {
                let needs_the_models = !tools.is_empty()
                    || matches!(request.think, ThinkMode::On | ThinkMode::Level(_))
                    || messages.iter().any(|message| !message.media.is_empty());
                if needs_the_models {
                    tracing::debug!(
                        model.name = self.alias.name,
                        "the model's own template serves this request"
                    );
                    return Ok(None);
                }
                parse()
            }
            InferencePrompt::Infill { .. } => Ok(parse()?.filter(|template| template.uses("suffix"))),
            InferencePrompt::Raw { .. } => Ok(None),
        }
    }

    /// Returns the text of token ids that a conversation continues from.
    async fn earlier(&self, call: &CallContext, context: &[i32]) -> Result<String, Failure> {
        if context.is_empty() {
            return Ok(String::new());
        }
        self.inner.detokenize(call, &self.alias.model, context.to_vec()).await
    }
}

/// Renders on a blocking thread, since a template may take long; returns the messages with the prompt.
async fn rendered(
    template: &Arc<GoTemplate>,
    messages: Vec<Message>,
    think: ThinkMode,
) -> Result<(Vec<Message>, String), Failure> {
    let template = Arc::clone(template);
    let render = move || {
        let text = template.render(&messages, think);
        (messages, text)
    };
    let (messages, text) = tokio::task::spawn_blocking(render)
        .await
        .map_err(|error| Failure::Invalid(error.to_string()))?;
    Ok((messages, text.map_err(failure)?))
}

fn failure(error: TemplateError) -> Failure {
    Failure::Invalid(error.to_string())
}

/// Fills fields that `over` leaves open from `below`.
macro_rules! fill {
    ($over:ident, $below:ident, $($field:ident),+) => {
        $(if $over.$field.is_none() {
            $over.$field.clone_from(&$below.$field);
        })+
    };
}

fn fill_sampling(over: &mut SamplingOptions, below: &SamplingOptions) {
    fill!(
        over,
        below,
        num_predict,
        num_keep,
        seed,
        temperature,
        top_k,
        top_p,
        min_p,
        typical_p,
        repeat_last_n,
        repeat_penalty,
        presence_penalty,
        frequency_penalty,
        stop
    );
    if over.logit_bias.is_empty() {
        over.logit_bias.clone_from(&below.logit_bias);
    }
}

fn fill_load(over: &mut LoadOptions, below: &LoadOptions) {
    fill!(
        over,
        below,
        context_length,
        num_batch,
        num_gpu,
        main_gpu,
        use_mmap,
        num_thread
    );
}

impl Provider for AliasedProvider {
    fn list<'a>(&'a self, call: &'a CallContext) -> BoxFuture<'a, Vec<ModelCard>> {
        async move {
            let card = self.inner.card(call, &self.alias.model).await.ok();
            vec![self.alias.card(card.as_ref())]
        }
        .boxed()
    }

    /// Lists resident models under their own names: the weights are in memory once for all aliases.
    fn resident<'a>(&'a self, call: &'a CallContext) -> BoxFuture<'a, Vec<ResidentModel>> {
        self.inner.resident(call)
    }

    fn card<'a>(&'a self, call: &'a CallContext, _: &'a str) -> BoxFuture<'a, Result<ModelCard, Failure>> {
        async move {
            let card = self.inner.card(call, &self.alias.model).await?;
            Ok(self.alias.card(Some(&card)))
        }
        .boxed()
    }

    fn show<'a>(
        &'a self,
        call: &'a CallContext,
        _: &'a str,
        verbose: bool,
    ) -> BoxFuture<'a, Result<ModelDetails, Failure>> {
        async move {
            let details = self.inner.show(call, &self.alias.model, verbose).await?;
            Ok(self.alias.details(details))
        }
        .boxed()
    }

    fn load<'a>(
        &'a self,
        call: &'a CallContext,
        _: &'a str,
        mut options: LoadOptions,
        keep_alive: Option<KeepAlive>,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        fill_load(&mut options, &self.alias.settings.load);
        self.inner.load(call, &self.alias.model, options, keep_alive)
    }

    fn unload<'a>(&'a self, call: &'a CallContext, _: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        self.inner.unload(call, &self.alias.model)
    }

    fn infer<'a>(
        &'a self,
        call: &'a CallContext,
        _: &'a str,
        mut request: InferenceRequest,
    ) -> BoxFuture<'a, Result<EventStream, Failure>> {
        async move {
            self.fill(&mut request);
            let Some(template) = self.template_for(&request)? else {
                return self.inner.infer(call, &self.alias.model, request).await;
            };
            let template = Arc::new(template);
            let (mut messages, earlier) = match &mut request.prompt {
                InferencePrompt::Chat { messages, context, .. } => {
                    (std::mem::take(messages), self.earlier(call, context).await?)
                }
                InferencePrompt::Infill { prefix, suffix } => {
                    let text = template.render_infill(prefix, suffix, request.think).map_err(failure)?;
                    request.prompt = InferencePrompt::Raw { text };
                    return self.inner.infer(call, &self.alias.model, request).await;
                }
                InferencePrompt::Raw { .. } => return self.inner.infer(call, &self.alias.model, request).await,
            };
            loop {
                let text;
                (messages, text) = rendered(&template, messages, request.think).await?;
                request.prompt = InferencePrompt::Raw {
                    text: format!("{earlier}{text}"),
                };
                match self.inner.infer(call, &self.alias.model, request.clone()).await {
                    Err(Failure::ContextExceeded {
                        prompt_tokens,
                        context_length,
                    }) if request.truncate && shorten(&mut messages, prompt_tokens, context_length) => {
                        tracing::debug!(
                            left = messages.len(),
                            "the conversation does not fit; its oldest turns were dropped"
                        );
                    }
                    other => return other,
                }
            }
        }
        .boxed()
    }

    fn embed<'a>(
        &'a self,
        call: &'a CallContext,
        _: &'a str,
        mut request: EmbedRequest,
    ) -> BoxFuture<'a, Result<EmbeddingResult, Failure>> {
        fill_load(&mut request.load, &self.alias.settings.load);
        self.inner.embed(call, &self.alias.model, request)
    }

    fn render<'a>(
        &'a self,
        call: &'a CallContext,
        _: &'a str,
        mut request: InferenceRequest,
    ) -> BoxFuture<'a, Result<String, Failure>> {
        async move {
            self.fill(&mut request);
            match (self.template_for(&request)?, &request.prompt) {
                (Some(template), InferencePrompt::Chat { messages, context, .. }) => {
                    let earlier = self.earlier(call, context).await?;
                    let (_, text) = rendered(&Arc::new(template), messages.clone(), request.think).await?;
                    Ok(earlier + &text)
                }
                (Some(template), InferencePrompt::Infill { prefix, suffix }) => {
                    template.render_infill(prefix, suffix, request.think).map_err(failure)
                }
                _ => self.inner.render(call, &self.alias.model, request).await,
            }
        }
        .boxed()
    }

    fn tokenize<'a>(
        &'a self,
        call: &'a CallContext,
        _: &'a str,
        request: TokenizeRequest,
    ) -> BoxFuture<'a, Result<Vec<TextToken>, Failure>> {
        self.inner.tokenize(call, &self.alias.model, request)
    }

    fn detokenize<'a>(
        &'a self,
        call: &'a CallContext,
        _: &'a str,
        tokens: Vec<i32>,
    ) -> BoxFuture<'a, Result<String, Failure>> {
        self.inner.detokenize(call, &self.alias.model, tokens)
    }

    fn pull<'a>(&'a self, call: &'a CallContext, _: &'a str) -> BoxFuture<'a, Result<PullStream, Failure>> {
        self.inner.pull(call, &self.alias.model)
    }

    fn preset(&self) -> Option<ConversationPreset<'_>> {
        Some(ConversationPreset {
            system: &self.alias.settings.system,
            messages: &self.alias.settings.messages,
        })
    }

    /// Removes the alias; its model stays.
    fn delete<'a>(&'a self, _: &'a CallContext, _: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            match self.store.remove(&self.alias.name).await? {
                true => Ok(()),
                false => Err(Failure::NotFound(self.alias.name.clone())),
            }
        }
        .boxed()
    }
}
