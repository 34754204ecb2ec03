//! Serves hf: names: the one place that joins hub (files), lifecycle (a lease on a resident worker) and worker.

mod answer;
mod headers;
mod prompt;
mod settings;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};

use self::{
    answer::{Answering, start},
    headers::{HeaderCache, ModelHeader},
    settings::Settings,
};
pub(super) use self::prompt::shorten;
use super::{Call, EventStream, Provider, PullStream, TokenizeRequest};
use crate::{
    hub::{HfName, Hub, HubError, LocalModel},
    inference::{
        EmbedRequest, Embeddings, Event, Failure, Format, InferenceRequest, KeepAlive, LoadOptions, Message, ModelCard,
        ModelDetails, ModelFacts, Prompt, ResidentModel, TextToken,
    },
    lifecycle::{Helper, JobStream, Lease, Lifecycle, Limits, Wanted},
    stdx::cpu::compute_threads,
    worker::protocol::{ChatSyntax, Job, JobPrompt, LoadSpec},
};

/// Models in memory at once where nobody said, as Ollama has it without a GPU.
const DEFAULT_MAX_LOADED: usize = 3;
/// Context window where nobody said, as Ollama has it on machines with less than 23 GiB of device memory.
const DEFAULT_CONTEXT: u32 = 4096;

/// The provider of hf: names.
#[derive(Clone, Debug)]
pub struct HuggingFace {
    hub: Hub,
    lifecycle: Lifecycle,
    helper: Helper,
    headers: Arc<HeaderCache>,
}

/// A model on disk and what its header says.
#[derive(Clone, Debug)]
struct Located {
    local: LocalModel,
    header: Arc<ModelHeader>,
}

impl Located {
    fn card(&self) -> ModelCard {
        ModelCard {
            name: self.local.canonical.clone(),
            modified_at: self.local.modified_at,
            size_bytes: self.local.size_bytes,
            digest: self.local.digest.clone(),
            facts: self.header.facts.clone(),
            parent_model: String::new(),
        }
    }

    /// The file that llama.cpp is given: it finds the other shards beside the first.
    fn path(&self) -> Result<PathBuf, Failure> {
        self.local
            .files
            .first()
            .cloned()
            .ok_or_else(|| Failure::Load("the model has no files".into()))
    }
}

impl HuggingFace {
    /// Joins the parts.
    #[must_use]
    pub fn new(hub: Hub, lifecycle: Lifecycle, helper: Helper) -> Self {
        Self {
            hub,
            lifecycle,
            helper,
            headers: Arc::default(),
        }
    }

    /// Finds a model on disk; downloads it first if the configuration names it or lets any name be pulled.
    async fn locate(&self, call: &Call, name: &str) -> Result<Located, Failure> {
        let parsed = HfName::parse(name).map_err(HubError::from)?;
        let local = match self.locate_local(call, &parsed).await {
            Err(HubError::NotCached(_)) if settings::pulls_on_use(&call.config, &parsed) => {
                tracing::info!(model.name = name, "pulling a model on its first use");
                let mut progress = self.hub.pull(&call.config.hub, &parsed);
                while let Some(event) = progress.next().await {
                    event?;
                }
                self.locate_local(call, &parsed).await?
            }
            Err(HubError::NotCached(_)) => return Err(Failure::NotFound(name.to_owned())),
            other => other?,
        };
        let header = self.headers.get(&local).await?;
        Ok(Located { local, header })
    }

    async fn locate_local(&self, call: &Call, name: &HfName) -> Result<LocalModel, HubError> {
        self.hub.locate(&call.config.hub, name).await
    }

    /// Waits until a model is resident.
    async fn acquire(
        &self,
        call: &Call,
        located: &Located,
        settings: &Settings,
        keep_alive: Option<KeepAlive>,
    ) -> Result<Lease, Failure> {
        if let Some(reason) = &located.header.refusal {
            return Err(Failure::Load(format!("the model could not be loaded: {reason}")));
        }
        let engine = &call.config.engine;
        let threads = match engine.threads {
            0 => compute_threads(),
            threads => threads,
        };
        let context_length = settings.context_length(&located.header.facts);
        let wanted = Wanted {
            card: located.card(),
            spec: LoadSpec {
                path: located.path()?,
                context_length,
                parallel: settings.parallel(located.header.kv_bytes_per_token, context_length),
                batch: settings.load.num_batch.unwrap_or(engine.batch),
                threads: settings.load.num_thread.filter(|&count| count > 0).unwrap_or(threads),
                gpu_layers: settings.load.num_gpu.unwrap_or(engine.gpu_layers),
                main_gpu: settings.load.main_gpu.unwrap_or(engine.main_gpu),
                split_mode: engine.split_mode,
                tensor_split: engine.tensor_split.clone(),
                flash_attention: settings.flash_attention,
                kv_type_k: settings.kv_type_k,
                kv_type_v: settings.kv_type_v,
                mmap: settings.load.use_mmap.unwrap_or(engine.mmap),
                check_tensors: engine.check_tensors,
            },
            needs_context: context_length,
            keep_alive,
            default_keep_alive: settings.keep_alive,
            limits: Limits {
                max_loaded: match engine.max_loaded_models {
                    0 => DEFAULT_MAX_LOADED,
                    limit => limit,
                },
                max_queue: engine.max_queue,
                load_timeout: engine.load_timeout,
                threads,
            },
        };
        self.lifecycle.acquire(wanted).await
    }

    /// Renders a conversation, tokenises it in the worker, and drops its oldest turns while it does not fit.
    async fn start_chat(
        &self,
        lease: &Lease,
        header: &ModelHeader,
        request: &InferenceRequest,
        mut messages: Vec<Message>,
        job: &Job,
        stall_timeout: Duration,
    ) -> Result<(JobStream, Event), Failure> {
        let Prompt::Chat { tools, context, .. } = &request.prompt else {
            return Err(Failure::Invalid("not a conversation".into()));
        };
        loop {
            let think = if request.format.is_some() {
                prompt::without_thinking()
            } else {
                prompt::thinking(request.think)
            };
            let render = prompt::render_job(header, &messages, tools, think)?;
            let mut rendered = self.helper.render(render).await?;
            let text = std::mem::take(&mut rendered.prompt);
            let mut job = job.clone();
            job.stop.append(&mut rendered.additional_stops.clone());
            job.prompt = JobPrompt::Text {
                text,
                context: context.clone(),
            };
            let reads_format =
                !tools.is_empty() || rendered.supports_thinking || !rendered.thinking_start_tag.is_empty();
            if reads_format && request.format.is_none() {
                job.chat = Some(ChatSyntax {
                    rendered,
                    tools: !tools.is_empty(),
                });
            }
            match start(lease, job, stall_timeout).await {
                Err(Failure::ContextExceeded {
                    prompt_tokens,
                    context_tokens,
                }) if request.truncate && prompt::shorten(&mut messages, prompt_tokens, context_tokens) => {
                    tracing::debug!(
                        left = messages.len(),
                        "the conversation does not fit; its oldest turns were dropped"
                    );
                }
                other => return other,
            }
        }
    }
}

impl Provider for HuggingFace {
    fn list<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Vec<ModelCard>> {
        async move {
            let mut cards = Vec::new();
            for local in self.hub.list(&call.config.hub).await {
                // A file that is no model is not listed; the log says why, once, when its header is read.
                if let Ok(header) = self.headers.get(&local).await {
                    cards.push(Located { local, header }.card());
                }
            }
            let expected = settings::named_models(&call.config);
            for name in expected {
                if !cards.iter().any(|card| settings::same_model(&card.name, &name)) {
                    cards.push(not_downloaded(&name));
                }
            }
            cards
        }
        .boxed()
    }

    fn resident<'a>(&'a self, _: &'a Call) -> BoxFuture<'a, Vec<ResidentModel>> {
        async move {
            self.lifecycle
                .residents()
                .await
                .into_iter()
                .map(|resident| resident.model)
                .collect()
        }
        .boxed()
    }

    fn card<'a>(&'a self, call: &'a Call, name: &'a str) -> BoxFuture<'a, Result<ModelCard, Failure>> {
        async move { Ok(self.locate(call, name).await?.card()) }.boxed()
    }

    fn show<'a>(
        &'a self,
        call: &'a Call,
        name: &'a str,
        verbose: bool,
    ) -> BoxFuture<'a, Result<ModelDetails, Failure>> {
        async move {
            let located = self.locate(call, name).await?;
            let settings = Settings::resolve(&call.config, &located.local.canonical, &LoadOptions::default());
            let files = located.local.files.clone();
            let projector = located.local.mmproj.clone();
            let (model_info, tensors, license, projector_info) = headers::details(files, projector, verbose).await?;
            Ok(ModelDetails {
                from: located.local.canonical.clone(),
                messages: Vec::new(),
                template: located.header.template.clone(),
                license,
                system: settings.system.clone().unwrap_or_default(),
                parameters: settings.parameters(),
                model_info,
                projector_info,
                tensors,
                card: located.card(),
            })
        }
        .boxed()
    }

    fn load<'a>(
        &'a self,
        call: &'a Call,
        name: &'a str,
        options: LoadOptions,
        keep_alive: Option<KeepAlive>,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let located = self.locate(call, name).await?;
            let settings = Settings::resolve(&call.config, &located.local.canonical, &options);
            self.acquire(call, &located, &settings, keep_alive).await.map(drop)
        }
        .boxed()
    }

    fn unload<'a>(&'a self, call: &'a Call, name: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let parsed = HfName::parse(name).map_err(HubError::from)?;
            match self.locate_local(call, &parsed).await {
                Ok(local) => {
                    if let Some(path) = local.files.first() {
                        self.lifecycle.unload(path.clone()).await;
                    }
                    Ok(())
                }
                Err(HubError::NotCached(_)) => Err(Failure::NotFound(name.to_owned())),
                Err(error) => Err(error.into()),
            }
        }
        .boxed()
    }

    fn infer<'a>(
        &'a self,
        call: &'a Call,
        name: &'a str,
        request: InferenceRequest,
    ) -> BoxFuture<'a, Result<EventStream, Failure>> {
        async move {
            let located = self.locate(call, name).await?;
            let settings = Settings::resolve(&call.config, &located.local.canonical, &request.load);
            let lease = self.acquire(call, &located, &settings, request.keep_alive).await?;
            let load_duration = call.arrived.elapsed();
            let context = match settings.requested_context {
                Some(_) => settings
                    .context_length(&located.header.facts)
                    .min(lease.loaded().context_length),
                None => lease.loaded().context_length,
            };
            let (sampler, max_tokens, keep, stop) = settings.sampling(&call.config, &request.sampling, context);
            let schema = request.format.as_ref().map(|format| match format {
                // The word asks for an object in every client's documentation.
                Format::Json => r#"{"type":"object"}"#.to_owned(),
                Format::Schema(schema) => schema.get().to_owned(),
            });
            let job = Job {
                id: 0,
                prompt: JobPrompt::Text {
                    text: String::new(),
                    context: Vec::new(),
                },
                sampling: sampler,
                max_tokens,
                keep,
                stop,
                context_limit: context,
                shift: request.shift,
                logprobs: request.logprobs,
                return_context: request.return_context,
                chat: None,
                schema,
            };
            let too_long = |text: &str| {
                let limit = call.config.engine.max_prompt_bytes;
                (text.len() > limit).then(|| Failure::Invalid(format!("the prompt has more than {limit} bytes")))
            };
            let stalled = call.config.engine.stream_timeout;
            let (stream, first) = match &request.prompt {
                Prompt::Chat { messages, .. } => {
                    let mut messages = messages.clone();
                    if messages.iter().any(|message| !message.media.is_empty()) {
                        // In llama-server's words, which clients of Ollama see.
                        return Err(Failure::Invalid(
                            "Multimodal data provided, but model does not support multimodal requests.".into(),
                        ));
                    }
                    if let (Some(system), false) = (
                        &settings.system,
                        messages.first().is_some_and(|message| message.role.0 == "system"),
                    ) {
                        messages.insert(0, Message::text("system", system.clone()));
                    }
                    let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
                    if bytes > call.config.engine.max_prompt_bytes {
                        return Err(Failure::Invalid(format!(
                            "the conversation has more than {} bytes",
                            call.config.engine.max_prompt_bytes
                        )));
                    }
                    self.start_chat(&lease, &located.header, &request, messages, &job, stalled)
                        .await?
                }
                Prompt::Raw { text } => {
                    if let Some(failure) = too_long(text) {
                        return Err(failure);
                    }
                    let prompt = JobPrompt::Text {
                        text: text.clone(),
                        context: Vec::new(),
                    };
                    start(&lease, Job { prompt, ..job }, stalled).await?
                }
                Prompt::Infill { prefix, suffix } => {
                    if let Some(failure) = too_long(prefix).or_else(|| too_long(suffix)) {
                        return Err(failure);
                    }
                    let prompt = JobPrompt::Infill {
                        prefix: prefix.clone(),
                        suffix: suffix.clone(),
                    };
                    start(&lease, Job { prompt, ..job }, stalled).await?
                }
            };
            Ok(Answering::new(stream, first, lease, call.arrived, load_duration, stalled).boxed())
        }
        .boxed()
    }

    fn embed<'a>(
        &'a self,
        _call: &'a Call,
        name: &'a str,
        _request: EmbedRequest,
    ) -> BoxFuture<'a, Result<Embeddings, Failure>> {
        async move { Err(Failure::Unavailable(format!("{name}: no embeddings from hf: models yet"))) }.boxed()
    }

    fn render<'a>(
        &'a self,
        _call: &'a Call,
        name: &'a str,
        _request: InferenceRequest,
    ) -> BoxFuture<'a, Result<String, Failure>> {
        async move { Err(Failure::Unavailable(format!("{name}: not for hf: models yet"))) }.boxed()
    }

    fn tokenize<'a>(
        &'a self,
        _call: &'a Call,
        name: &'a str,
        _request: TokenizeRequest,
    ) -> BoxFuture<'a, Result<Vec<TextToken>, Failure>> {
        async move { Err(Failure::Unavailable(format!("{name}: not for hf: models yet"))) }.boxed()
    }

    fn detokenize<'a>(
        &'a self,
        _call: &'a Call,
        name: &'a str,
        _tokens: Vec<i32>,
    ) -> BoxFuture<'a, Result<String, Failure>> {
        async move { Err(Failure::Unavailable(format!("{name}: not for hf: models yet"))) }.boxed()
    }

    fn pull<'a>(&'a self, call: &'a Call, name: &'a str) -> BoxFuture<'a, Result<PullStream, Failure>> {
        async move {
            let parsed = HfName::parse(name).map_err(HubError::from)?;
            let progress = self.hub.pull(&call.config.hub, &parsed);
            Ok(progress.map(|event| event.map_err(Failure::from)).boxed())
        }
        .boxed()
    }

    fn delete<'a>(&'a self, call: &'a Call, name: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let parsed = HfName::parse(name).map_err(HubError::from)?;
            self.unload(call, name).await?;
            self.hub.delete(&call.config.hub, &parsed).await?;
            Ok(())
        }
        .boxed()
    }
}

/// The card of a model that the configuration names and nobody has pulled yet.
fn not_downloaded(name: &str) -> ModelCard {
    ModelCard {
        name: name.to_owned(),
        modified_at: std::time::SystemTime::UNIX_EPOCH,
        size_bytes: 0,
        digest: "0".repeat(64),
        facts: ModelFacts {
            quantization: "unknown".into(),
            ..ModelFacts::default()
        },
        parent_model: String::new(),
    }
}
