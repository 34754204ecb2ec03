//! Serves hf: names: the one place that joins hub (files), lifecycle (a lease on a resident worker) and worker.

mod answer;
mod chat;
pub mod facts;
mod headers;
mod prompt;
mod settings;
mod taught_tools;
mod vectors;
mod waiting;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};

pub(super) use self::prompt::shorten;
use self::{
    answer::{Answering, start},
    headers::{HeaderCache, ModelHeader},
    settings::Settings,
};
use super::{CallContext, EventStream, Provider, PullStream, TokenizeRequest};
use crate::{
    config::Config,
    hub::{HfName, HubError},
    inference::{
        EmbedRequest, EmbeddingResult, Event, Failure, InferencePrompt, InferenceRequest, KeepAlive, LoadOptions,
        Message, ModelCapability, ModelCard, ModelDetails, ModelFacts, ResidentModel, TextToken,
    },
    library::{Library, LibraryError, LocalModel},
    lifecycle::{AcquireRequest, AdmissionLimits, JobStream, Lease, Lifecycle, ModelKey, TemplateHelper},
    stdx::cpu::compute_threads,
    worker::protocol::{
        AdapterSpec, ContextParams, EmbedJob, Job, JobPrompt, LoadSpec, ModelParams, WorkerQuestion, WorkerReply,
    },
};

/// Models in memory at once where nobody said, as Ollama has it without a GPU.
const DEFAULT_MAX_LOADED: usize = 3;
/// Context window where nobody said, as Ollama has it on machines with less than 23 GiB of device memory.
const DEFAULT_CONTEXT_LENGTH: u32 = 4096;

/// The provider of hf: names.
#[derive(Clone, Debug)]
pub struct HuggingFace {
    hub: Library,
    lifecycle: Lifecycle,
    helper: TemplateHelper,
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
            .base
            .files
            .first()
            .cloned()
            .ok_or_else(|| Failure::Load("the model has no files".into()))
    }
}

impl HuggingFace {
    /// Joins the parts.
    #[must_use]
    pub fn new(hub: Library, lifecycle: Lifecycle, helper: TemplateHelper) -> Self {
        Self {
            hub,
            lifecycle,
            helper,
            headers: Arc::default(),
        }
    }

    /// Finds a model on disk; downloads it first if the configuration names it or lets any name be pulled.
    async fn locate(&self, call: &CallContext, name: &str) -> Result<Located, Failure> {
        let parsed = HfName::parse(name).map_err(HubError::from)?;
        let local = match self.locate_local(call, &parsed).await {
            Err(error) if error.is_not_cached() && settings::pulls_on_use(&call.config, &parsed) => {
                tracing::info!(model.name = name, "pulling a model on its first use");
                let mut progress = self.hub.pull(&call.config.hub, &parsed);
                while let Some(event) = progress.next().await {
                    event?;
                }
                self.locate_local(call, &parsed).await?
            }
            Err(error) if error.is_not_cached() => return Err(Failure::NotFound(name.to_owned())),
            other => other?,
        };
        let header = self.headers.get(&local).await?;
        Ok(Located { local, header })
    }

    async fn locate_local(&self, call: &CallContext, name: &HfName) -> Result<LocalModel, LibraryError> {
        self.hub.locate(&call.config.hub, name).await
    }

    /// Waits until a model is resident.
    async fn acquire(
        &self,
        call: &CallContext,
        located: &Located,
        settings: &Settings,
        keep_alive: Option<KeepAlive>,
    ) -> Result<Lease, Failure> {
        if let Some(reason) = &located.header.refusal {
            return Err(Failure::Load(format!("the model could not be loaded: {reason}")));
        }
        let adapters = self.hub.adapter_files(&located.local).await?.into_iter();
        let adapters = adapters.map(|path| AdapterSpec { path, scale: 1.0 }).collect();
        let engine = &call.config.engine;
        let threads = match engine.threads {
            0 => compute_threads(),
            threads => threads,
        };
        let context_length = settings.context_length(&located.header.facts);
        let request = AcquireRequest {
            card: located.card(),
            spec: LoadSpec {
                path: located.path()?,
                adapters,
                checkpoint: located.local.base.checkpoint.clone(),
                model: ModelParams {
                    gpu_layers: settings.load.num_gpu.unwrap_or(engine.gpu_layers),
                    main_gpu: settings.load.main_gpu.unwrap_or(engine.main_gpu),
                    split_mode: engine.split_mode,
                    tensor_split: engine.tensor_split.clone(),
                    mmap: settings.load.use_mmap.unwrap_or(engine.mmap),
                    check_tensors: engine.check_tensors,
                },
                context: ContextParams {
                    context_length,
                    parallel: settings.parallel(located.header.kv_bytes_per_token, context_length),
                    batch: settings.load.num_batch.unwrap_or(engine.batch),
                    threads: settings.load.num_thread.filter(|&count| count > 0).unwrap_or(threads),
                    flash_attention: settings.flash_attention,
                    kv_type_k: settings.kv_type_k,
                    kv_type_v: settings.kv_type_v,
                },
                embeds_only: !located.header.facts.capabilities.contains(&ModelCapability::Completion),
            },
            keep_alive,
            default_keep_alive: settings.keep_alive,
            limits: AdmissionLimits {
                max_loaded: match engine.max_loaded_models {
                    0 => DEFAULT_MAX_LOADED,
                    limit => limit,
                },
                max_queue: engine.max_queue,
                load_timeout: engine.load_timeout,
                threads,
            },
        };
        self.lifecycle.acquire(request).await
    }

    /// Renders a conversation, tokenises it in the worker, and drops its oldest turns while it does not fit.
    async fn start_chat(
        &self,
        call: &CallContext,
        lease: &Lease,
        header: &ModelHeader,
        request: &InferenceRequest,
        mut messages: Vec<Message>,
        job: &Job,
    ) -> Result<(JobStream, Event), Failure> {
        let InferencePrompt::Chat { context, .. } = &request.prompt else {
            return Err(Failure::Invalid("not a conversation".into()));
        };
        loop {
            let conversation = chat::converse(&self.helper, &call.config, header, request, &messages).await?;
            let mut job = job.clone();
            job.stop.extend(conversation.stops);
            job.prompt = JobPrompt::Text {
                text: conversation.text,
                context: context.clone(),
            };
            job.chat = conversation.syntax;
            job.reasoning = conversation.reasoning;
            job.schema = conversation.schema;
            match start(lease, job, call.config.engine.stream_timeout).await {
                Err(Failure::ContextExceeded {
                    prompt_tokens,
                    context_length,
                }) if request.truncate && prompt::shorten(&mut messages, prompt_tokens, context_length) => {
                    tracing::debug!(
                        left = messages.len(),
                        "the conversation does not fit; its oldest turns were dropped"
                    );
                }
                other => return other,
            }
        }
    }

    /// Asks a model's worker something that needs no settings.
    async fn ask(&self, call: &CallContext, name: &str, question: WorkerQuestion) -> Result<WorkerReply, Failure> {
        let (_, _, lease) = self.lease_for(call, name, &LoadOptions::default(), None).await?;
        lease.ask(question, call.config.engine.stream_timeout).await
    }

    /// A lease for a request that is not about generating.
    async fn lease_for(
        &self,
        call: &CallContext,
        name: &str,
        load: &LoadOptions,
        keep_alive: Option<KeepAlive>,
    ) -> Result<(Located, Settings, Lease), Failure> {
        let located = self.locate(call, name).await?;
        let settings = Settings::of(&self.hub, &call.config, &located.local, load).await;
        let lease = self.acquire(call, &located, &settings, keep_alive).await?;
        Ok((located, settings, lease))
    }

    /// The texts of a request, refused before anything else is done with them if they are too long.
    fn check_length(config: &Config, texts: impl IntoIterator<Item = usize>) -> Result<(), Failure> {
        let limit = config.engine.max_prompt_bytes;
        let bytes: usize = texts.into_iter().sum();
        if bytes > limit {
            return Err(Failure::Invalid(format!("the prompt has more than {limit} bytes")));
        }
        Ok(())
    }
}

/// The messages of a conversation with the configured system prompt.
fn with_system(settings: &Settings, messages: &[Message]) -> Vec<Message> {
    let mut messages = messages.to_vec();
    let has_system = messages.first().is_some_and(|message| message.role.0 == "system");
    if let (Some(system), false) = (&settings.system, has_system) {
        messages.insert(0, Message::text("system", system.clone()));
    }
    messages
}

fn prompt_lengths(prompt: &InferencePrompt) -> Vec<usize> {
    match prompt {
        InferencePrompt::Chat { messages, tools, .. } => {
            let texts = messages.iter().map(|message| message.content.len());
            texts.chain(tools.iter().map(|tool| tool.raw.get().len())).collect()
        }
        InferencePrompt::Raw { text } => vec![text.len()],
        InferencePrompt::Infill { prefix, suffix } => vec![prefix.len(), suffix.len()],
    }
}

impl Provider for HuggingFace {
    fn list<'a>(&'a self, call: &'a CallContext) -> BoxFuture<'a, Vec<ModelCard>> {
        async move {
            let mut cards = Vec::new();
            let mut missing = settings::named_models(&call.config);
            for local in self.hub.list(&call.config.hub).await {
                // A file that is no model is not listed; the log says why, once, when its header is read.
                let Ok(header) = self.headers.get(&local).await else {
                    continue;
                };
                let mut still_missing = Vec::new();
                for name in missing {
                    let is_here = match HfName::parse(&name) {
                        Ok(parsed) => self.hub.means(&call.config.hub, &parsed, &local).await,
                        Err(_) => false,
                    };
                    still_missing.extend((!is_here).then_some(name));
                }
                missing = still_missing;
                cards.push(Located { local, header }.card());
            }
            cards.extend(missing.iter().map(|name| not_downloaded(name)));
            cards
        }
        .boxed()
    }

    fn resident<'a>(&'a self, _: &'a CallContext) -> BoxFuture<'a, Vec<ResidentModel>> {
        self.lifecycle.residents().boxed()
    }

    fn card<'a>(&'a self, call: &'a CallContext, name: &'a str) -> BoxFuture<'a, Result<ModelCard, Failure>> {
        async move { Ok(self.locate(call, name).await?.card()) }.boxed()
    }

    fn card_now<'a>(&'a self, call: &'a CallContext, name: &'a str) -> BoxFuture<'a, Result<ModelCard, Failure>> {
        async move {
            match HfName::parse(name) {
                Ok(parsed) if waiting::is_awaited(self, call, &parsed).await => Ok(not_downloaded(name)),
                _ => self.card(call, name).await,
            }
        }
        .boxed()
    }

    fn show<'a>(
        &'a self,
        call: &'a CallContext,
        name: &'a str,
        verbose: bool,
    ) -> BoxFuture<'a, Result<ModelDetails, Failure>> {
        async move {
            let located = self.locate(call, name).await?;
            let settings = Settings::of(&self.hub, &call.config, &located.local, &LoadOptions::default()).await;
            let files = located.local.base.files.clone();
            let projector = located.local.base.mmproj.clone();
            let (mut model_info, tensors, license, projector_info) =
                headers::details(files, projector, verbose).await?;
            let provenance = self.hub.provenance(&located.local).await;
            let has_template = !located.header.template.is_empty();
            model_info.extend(provenance.keys(if has_template { "gguf" } else { "none" }));
            let license = if license.is_empty() {
                provenance.license.unwrap_or_default()
            } else {
                license
            };
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
        call: &'a CallContext,
        name: &'a str,
        options: LoadOptions,
        keep_alive: Option<KeepAlive>,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let located = self.locate(call, name).await?;
            let settings = Settings::of(&self.hub, &call.config, &located.local, &options).await;
            self.acquire(call, &located, &settings, keep_alive).await.map(drop)
        }
        .boxed()
    }

    fn unload<'a>(&'a self, call: &'a CallContext, name: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let parsed = HfName::parse(name).map_err(HubError::from)?;
            match self.locate_local(call, &parsed).await {
                Ok(local) => {
                    // One whose adapters cannot be applied is not resident.
                    if let (Some(path), Ok(adapters)) =
                        (local.base.files.first().cloned(), self.hub.adapter_files(&local).await)
                    {
                        self.lifecycle.unload(ModelKey { path, adapters }).await;
                    }
                    Ok(())
                }
                Err(error) if error.is_not_cached() => Err(Failure::NotFound(name.to_owned())),
                Err(error) => Err(error.into()),
            }
        }
        .boxed()
    }

    fn infer<'a>(
        &'a self,
        call: &'a CallContext,
        name: &'a str,
        request: InferenceRequest,
    ) -> BoxFuture<'a, Result<EventStream, Failure>> {
        async move {
            let request = match waiting::begin(self, call, name, request).await {
                Ok(stream) => return Ok(stream),
                Err(request) => request,
            };
            let located = self.locate(call, name).await?;
            Self::check_length(&call.config, prompt_lengths(&request.prompt))?;
            prompt::check_media(&request.prompt, located.local.base.mmproj.is_some())?;
            let settings = Settings::of(&self.hub, &call.config, &located.local, &request.load).await;
            let lease = self.acquire(call, &located, &settings, request.keep_alive).await?;
            let load_duration = call.arrived.elapsed();
            let context_length = settings.window(&located.header.facts, lease.loaded().context_length);
            let (sampler, max_tokens, keep, stop) = settings.sampling(&call.config, &request.sampling, context_length);
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
                context_length,
                shift: request.shift,
                logprobs: request.logprobs,
                return_context: request.return_context,
                chat: None,
                reasoning: None,
                schema: chat::plain_schema(&call.config, &request),
            };
            let stalled = call.config.engine.stream_timeout;
            let (stream, first) = match &request.prompt {
                InferencePrompt::Chat { messages, .. } => {
                    let messages = with_system(&settings, messages);
                    self.start_chat(call, &lease, &located.header, &request, messages, &job)
                        .await?
                }
                InferencePrompt::Raw { text } => {
                    let prompt = JobPrompt::Text {
                        text: text.clone(),
                        context: Vec::new(),
                    };
                    start(&lease, Job { prompt, ..job }, stalled).await?
                }
                InferencePrompt::Infill { prefix, suffix } => {
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
        call: &'a CallContext,
        name: &'a str,
        request: EmbedRequest,
    ) -> BoxFuture<'a, Result<EmbeddingResult, Failure>> {
        async move {
            Self::check_length(&call.config, request.inputs.iter().map(String::len))?;
            let (located, settings, lease) = self.lease_for(call, name, &request.load, request.keep_alive).await?;
            let load_duration = call.arrived.elapsed();
            let context_length = settings.window(&located.header.facts, lease.loaded().context_length);
            let question = WorkerQuestion::Embed(EmbedJob {
                inputs: request.inputs,
                truncate: request.truncate,
                context_length,
            });
            let reply = lease.ask(question, call.config.engine.stream_timeout).await?;
            let WorkerReply::Embedded { mut vectors, tokens } = reply else {
                return Err(unexpected_reply());
            };
            let unit = vectors::is_unit(request.normalization, located.header.numbers);
            for vector in &mut vectors {
                vectors::finish(vector, request.dimensions, unit)?;
            }
            let at_least = |duration: Duration| duration.max(Duration::from_nanos(1));
            Ok(EmbeddingResult {
                vectors,
                prompt_tokens: tokens,
                load_duration: at_least(load_duration),
                total_duration: at_least(call.arrived.elapsed()),
            })
        }
        .boxed()
    }

    fn render<'a>(
        &'a self,
        call: &'a CallContext,
        name: &'a str,
        request: InferenceRequest,
    ) -> BoxFuture<'a, Result<String, Failure>> {
        async move {
            let located = self.locate(call, name).await?;
            Self::check_length(&call.config, prompt_lengths(&request.prompt))?;
            prompt::check_media(&request.prompt, located.local.base.mmproj.is_some())?;
            let settings = Settings::of(&self.hub, &call.config, &located.local, &request.load).await;
            match &request.prompt {
                InferencePrompt::Chat { messages, .. } => {
                    let messages = with_system(&settings, messages);
                    let conversation =
                        chat::converse(&self.helper, &call.config, &located.header, &request, &messages).await?;
                    Ok(conversation.text)
                }
                InferencePrompt::Raw { text } => Ok(text.clone()),
                InferencePrompt::Infill { .. } => Err(Failure::Invalid(
                    "a prompt with a suffix is made of tokens and has no text to show".into(),
                )),
            }
        }
        .boxed()
    }

    fn tokenize<'a>(
        &'a self,
        call: &'a CallContext,
        name: &'a str,
        request: TokenizeRequest,
    ) -> BoxFuture<'a, Result<Vec<TextToken>, Failure>> {
        async move {
            Self::check_length(&call.config, [request.text.len()])?;
            let question = WorkerQuestion::Tokenize {
                text: request.text,
                add_special: request.add_special,
                parse_special: request.parse_special,
            };
            match self.ask(call, name, question).await? {
                WorkerReply::Tokens(tokens) => Ok(tokens),
                _ => Err(unexpected_reply()),
            }
        }
        .boxed()
    }

    fn detokenize<'a>(
        &'a self,
        call: &'a CallContext,
        name: &'a str,
        tokens: Vec<i32>,
    ) -> BoxFuture<'a, Result<String, Failure>> {
        async move {
            match self.ask(call, name, WorkerQuestion::Detokenize { tokens }).await? {
                WorkerReply::Text(text) => Ok(text),
                _ => Err(unexpected_reply()),
            }
        }
        .boxed()
    }

    fn pull<'a>(&'a self, call: &'a CallContext, name: &'a str) -> BoxFuture<'a, Result<PullStream, Failure>> {
        async move {
            let parsed = HfName::parse(name).map_err(HubError::from)?;
            let progress = self.hub.pull(&call.config.hub, &parsed);
            Ok(progress.map(|event| event.map_err(Failure::from)).boxed())
        }
        .boxed()
    }

    fn delete<'a>(&'a self, call: &'a CallContext, name: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let parsed = HfName::parse(name).map_err(HubError::from)?;
            self.unload(call, name).await?;
            self.hub.delete(&call.config.hub, &parsed).await?;
            Ok(())
        }
        .boxed()
    }

    fn delete_files<'a>(&'a self, call: &'a CallContext, name: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let parsed = HfName::parse(name).map_err(HubError::from)?;
            match self.unload(call, name).await {
                // What is not listed any more may still have files.
                Ok(()) | Err(Failure::NotFound(_)) => {}
                Err(failure) => return Err(failure),
            }
            self.hub.delete_files(&call.config.hub, &parsed).await?;
            Ok(())
        }
        .boxed()
    }
}

fn unexpected_reply() -> Failure {
    Failure::Worker("the worker answered something else than it was asked".into())
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
