//! Provider of one alias: it adds the alias's settings to requests and puts its name on results. All else is done by
//! the provider of its model.

use std::sync::Arc;

use async_trait::async_trait;

use super::{AliasStore, ModelAlias};
use crate::{
    go::template::{GoTemplate, TemplateError},
    inference::{
        EmbedRequest, EmbeddingResult, Failure, InferencePrompt, InferenceRequest, KeepAlive, LoadOptions, Message,
        ModelCard, ModelDetails, ResidentModel, TextToken, ThinkMode,
    },
    provider::{
        CallContext, ConversationPreset, DeleteScope, EventStream, ModelStore, Provider, PullStream, RunnableModel,
        TokenizeRequest, huggingface::drop_oldest_turns,
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
}

/// The model behind an alias, with the alias's settings.
#[derive(Debug)]
struct AliasedModel {
    model: Arc<dyn RunnableModel>,
    alias: Arc<ModelAlias>,
    card: ModelCard,
}

impl AliasedModel {
    /// Fills in what the request leaves open with the settings of the alias. Settings of the model fill in the rest
    /// later.
    fn fill(&self, request: &mut InferenceRequest) {
        let settings = &self.alias.settings;
        request.sampling = std::mem::take(&mut request.sampling).or(&settings.sampling);
        request.load = std::mem::take(&mut request.load).or(&settings.load);
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
    async fn earlier(&self, context: &[i32]) -> Result<String, Failure> {
        if context.is_empty() {
            return Ok(String::new());
        }
        self.model.detokenize(context.to_vec()).await
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

#[async_trait]
impl ModelStore for AliasedProvider {
    async fn list(&self, call: &CallContext) -> Vec<ModelCard> {
        let card = self.inner.card(call, &self.alias.model).await.ok();
        vec![self.alias.card(card.as_ref())]
    }

    async fn card(&self, call: &CallContext, _: &str) -> Result<ModelCard, Failure> {
        let card = self.inner.card(call, &self.alias.model).await?;
        Ok(self.alias.card(Some(&card)))
    }

    async fn show(&self, call: &CallContext, _: &str, verbose: bool) -> Result<ModelDetails, Failure> {
        let details = self.inner.show(call, &self.alias.model, verbose).await?;
        Ok(self.alias.details(details))
    }

    /// Downloads the model again if its files are gone.
    async fn pull(&self, call: &CallContext, _: &str) -> Result<PullStream, Failure> {
        self.inner.pull(call, &self.alias.model).await
    }

    /// Removes the alias; the model stays.
    async fn delete(&self, _: &CallContext, _: &str, _: DeleteScope) -> Result<(), Failure> {
        match self.store.remove(&self.alias.name).await? {
            true => Ok(()),
            false => Err(Failure::NotFound(self.alias.name.clone())),
        }
    }
}

#[async_trait]
impl Provider for AliasedProvider {
    /// Returns the residents under the names of the models themselves: the weights are in memory once, for all aliases
    /// of them.
    async fn resident(&self, call: &CallContext) -> Vec<ResidentModel> {
        self.inner.resident(call).await
    }

    async fn find(self: Arc<Self>, call: &CallContext, _: &str) -> Result<Arc<dyn RunnableModel>, Failure> {
        let model = Arc::clone(&self.inner).find(call, &self.alias.model).await?;
        Ok(Arc::new(AliasedModel {
            card: self.alias.card(Some(model.card())),
            alias: Arc::clone(&self.alias),
            model,
        }))
    }
}

#[async_trait]
impl RunnableModel for AliasedModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn preset(&self) -> ConversationPreset<'_> {
        ConversationPreset {
            system: &self.alias.settings.system,
            messages: &self.alias.settings.messages,
        }
    }

    fn unsupported_parameters(&self, request: &InferenceRequest) -> Vec<&'static str> {
        self.model.unsupported_parameters(request)
    }

    async fn load(&self, options: LoadOptions, keep_alive: Option<KeepAlive>) -> Result<(), Failure> {
        let options = options.or(&self.alias.settings.load);
        self.model.load(options, keep_alive).await
    }

    async fn unload(&self) -> Result<(), Failure> {
        self.model.unload().await
    }

    async fn infer(&self, mut request: InferenceRequest) -> Result<EventStream, Failure> {
        self.fill(&mut request);
        let Some(template) = self.template_for(&request)? else {
            return self.model.infer(request).await;
        };
        let template = Arc::new(template);
        let (mut messages, earlier) = match &mut request.prompt {
            InferencePrompt::Chat { messages, context, .. } => (std::mem::take(messages), self.earlier(context).await?),
            InferencePrompt::Infill { prefix, suffix } => {
                let text = template.render_infill(prefix, suffix, request.think).map_err(failure)?;
                request.prompt = InferencePrompt::Raw { text };
                return self.model.infer(request).await;
            }
            InferencePrompt::Raw { .. } => return self.model.infer(request).await,
        };
        loop {
            let text;
            (messages, text) = rendered(&template, messages, request.think).await?;
            request.prompt = InferencePrompt::Raw {
                text: format!("{earlier}{text}"),
            };
            // A clone, because a prompt that does not fit is rendered again from fewer turns.
            match self.model.infer(request.clone()).await {
                Err(Failure::ContextExceeded {
                    prompt_tokens,
                    context_length,
                }) if request.truncate && drop_oldest_turns(&mut messages, prompt_tokens, context_length) => {
                    tracing::debug!(
                        left = messages.len(),
                        "the conversation does not fit; its oldest turns were dropped"
                    );
                }
                other => return other,
            }
        }
    }

    async fn embed(&self, mut request: EmbedRequest) -> Result<EmbeddingResult, Failure> {
        request.load = request.load.or(&self.alias.settings.load);
        self.model.embed(request).await
    }

    async fn render(&self, mut request: InferenceRequest) -> Result<String, Failure> {
        self.fill(&mut request);
        match (self.template_for(&request)?, &request.prompt) {
            (Some(template), InferencePrompt::Chat { messages, context, .. }) => {
                let earlier = self.earlier(context).await?;
                let (_, text) = rendered(&Arc::new(template), messages.clone(), request.think).await?;
                Ok(earlier + &text)
            }
            (Some(template), InferencePrompt::Infill { prefix, suffix }) => {
                template.render_infill(prefix, suffix, request.think).map_err(failure)
            }
            _ => self.model.render(request).await,
        }
    }

    async fn tokenize(&self, request: TokenizeRequest) -> Result<Vec<TextToken>, Failure> {
        self.model.tokenize(request).await
    }

    async fn detokenize(&self, tokens: Vec<i32>) -> Result<String, Failure> {
        self.model.detokenize(tokens).await
    }
}
