//! Scripted provider, and events to put into its script.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value, json};

use crate::{
    inference::{
        AnswerSummary, AnswerUsage, Delta, EmbedRequest, EmbeddingResult, Event, Failure, FinishReason,
        InferencePrompt, InferenceRequest, KeepAlive, LoadOptions, ModelCapability, ModelCard, ModelDetails,
        ModelFacts, PullEvent, ResidentModel, TensorFacts, TextToken, ToolCall,
    },
    provider::{
        CallContext, DeleteScope, EventStream, ModelStore, Provider, PullStream, RunnableModel, TokenizeRequest,
    },
};

/// Provider that answers every request with the same events, and records the requests.
#[derive(Debug)]
pub(in crate::api) struct FakeProvider {
    pub(in crate::api) card: Result<ModelCard, Failure>,
    /// Failure of `infer` before the first event.
    pub(in crate::api) refusal: Option<Failure>,
    pub(in crate::api) events: Vec<Result<Event, Failure>>,
    /// If set, the stream stays open after the last event.
    pub(in crate::api) hangs: bool,
    pub(in crate::api) asked: Mutex<Vec<InferenceRequest>>,
    /// Requests to `embed`.
    pub(in crate::api) embedded: Mutex<Vec<EmbedRequest>>,
    /// Vector that `embed` returns instead of one that depends on the text.
    pub(in crate::api) vector: Option<Vec<f32>>,
    /// Requests to `tokenize`.
    pub(in crate::api) tokenized: Mutex<Vec<TokenizeRequest>>,
    pub(in crate::api) loads: Mutex<Vec<(LoadOptions, Option<KeepAlive>)>>,
    pub(in crate::api) unloads: AtomicUsize,
    pub(in crate::api) deletes: AtomicUsize,
    /// Lease that every open stream holds.
    pub(in crate::api) lease: Arc<()>,
}

impl FakeProvider {
    pub(in crate::api) fn new(events: Vec<Event>) -> Self {
        Self {
            card: Ok(card("hf:o/r:Q4_K_M")),
            refusal: None,
            events: events.into_iter().map(Ok).collect(),
            hangs: false,
            asked: Mutex::default(),
            embedded: Mutex::default(),
            vector: None,
            tokenized: Mutex::default(),
            loads: Mutex::default(),
            unloads: AtomicUsize::new(0),
            deletes: AtomicUsize::new(0),
            lease: Arc::new(()),
        }
    }

    pub(in crate::api) fn with_capabilities(mut self, capabilities: &[ModelCapability]) -> Self {
        let mut card = card("hf:o/r:Q4_K_M");
        card.facts.capabilities = capabilities.to_vec();
        self.card = Ok(card);
        self
    }

    pub(in crate::api) fn last_request(&self) -> InferenceRequest {
        self.asked.lock().unwrap().last().cloned().unwrap()
    }
}

#[async_trait]
impl ModelStore for FakeProvider {
    async fn list(&self, _: &CallContext) -> Vec<ModelCard> {
        self.card.clone().into_iter().collect()
    }

    async fn card(&self, _: &CallContext, _: &str) -> Result<ModelCard, Failure> {
        self.card.clone()
    }

    async fn show(&self, _: &CallContext, name: &str, _: bool) -> Result<ModelDetails, Failure> {
        self.card.clone().map(|_| details(name))
    }

    async fn pull(&self, _: &CallContext, _: &str) -> Result<PullStream, Failure> {
        if let Some(failure) = &self.refusal {
            return Err(failure.clone());
        }
        let events = ["pulling manifest", "success"].map(|status| Ok(PullEvent::Status(status)));
        Ok(Box::pin(stream::iter(events)))
    }

    async fn delete(&self, _: &CallContext, _: &str, _: DeleteScope) -> Result<(), Failure> {
        self.deletes.fetch_add(1, Ordering::Relaxed);
        self.card.clone().map(drop)
    }
}

#[async_trait]
impl Provider for FakeProvider {
    async fn resident(&self, _: &CallContext) -> Vec<ResidentModel> {
        Vec::new()
    }

    async fn find(self: Arc<Self>, _: &CallContext, _: &str) -> Result<Arc<dyn RunnableModel>, Failure> {
        let card = self.card.clone()?;
        Ok(Arc::new(FakeModel { provider: self, card }))
    }
}

/// The one model of a [`FakeProvider`].
#[derive(Debug)]
struct FakeModel {
    provider: Arc<FakeProvider>,
    card: ModelCard,
}

impl FakeModel {
    fn refuse(&self) -> Result<(), Failure> {
        self.provider.refusal.clone().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl RunnableModel for FakeModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    async fn load(&self, options: LoadOptions, keep_alive: Option<KeepAlive>) -> Result<(), Failure> {
        self.provider.loads.lock().unwrap().push((options, keep_alive));
        self.refuse()
    }

    async fn unload(&self) -> Result<(), Failure> {
        self.provider.unloads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn infer(&self, request: InferenceRequest) -> Result<EventStream, Failure> {
        self.provider.asked.lock().unwrap().push(request);
        self.refuse()?;
        let lease = Arc::clone(&self.provider.lease);
        let tail = if self.provider.hangs {
            stream::pending().boxed()
        } else {
            stream::empty().boxed()
        };
        let events = stream::iter(self.provider.events.clone())
            .chain(tail)
            .map(move |event| {
                // A closure that mentions the lease owns it, so that it lives as long as the stream.
                let _held = &lease;
                event
            });
        Ok(Box::pin(events))
    }

    /// Returns one vector for each input: its length in bytes, then 0.5. A token is a byte.
    async fn embed(&self, request: EmbedRequest) -> Result<EmbeddingResult, Failure> {
        self.provider.embedded.lock().unwrap().push(request.clone());
        self.refuse()?;
        let vector = |text: &String| {
            let vector = self.provider.vector.clone();
            vector.unwrap_or_else(|| vec![text.len() as f32, 0.5])
        };
        Ok(EmbeddingResult {
            vectors: request.inputs.iter().map(vector).collect(),
            prompt_tokens: request.inputs.iter().map(|text| text.len() as u32).sum(),
            load_duration: Duration::from_nanos(1),
            total_duration: Duration::from_nanos(2),
        })
    }

    /// Returns the contents of all messages, one line each.
    async fn render(&self, request: InferenceRequest) -> Result<String, Failure> {
        Ok(match request.prompt {
            InferencePrompt::Chat { messages, .. } => {
                messages.into_iter().map(|message| message.content + "\n").collect()
            }
            InferencePrompt::Raw { text } => text,
            InferencePrompt::Infill { prefix, suffix } => prefix + &suffix,
        })
    }

    /// Returns one token for each byte.
    async fn tokenize(&self, request: TokenizeRequest) -> Result<Vec<TextToken>, Failure> {
        self.provider.tokenized.lock().unwrap().push(request.clone());
        let token = |byte: u8| TextToken {
            id: i32::from(byte),
            bytes: vec![byte],
        };
        Ok(request.text.bytes().map(token).collect())
    }

    async fn detokenize(&self, tokens: Vec<i32>) -> Result<String, Failure> {
        tokens
            .into_iter()
            .map(|token| u8::try_from(token).map(char::from))
            .collect::<Result<_, _>>()
            .map_err(|_| Failure::Invalid("no such token".into()))
    }
}

pub(in crate::api) fn card(name: &str) -> ModelCard {
    ModelCard {
        name: name.to_owned(),
        modified_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_416_634),
        size_bytes: 4_920_734_272,
        digest: "0123456789abcdef".repeat(4),
        facts: ModelFacts {
            architecture: "llama".into(),
            families: vec!["llama".into()],
            parameter_count: 8_030_261_248,
            quantization: "Q4_K_M".into(),
            context_length: 131_072,
            embedding_length: 4096,
            capabilities: vec![ModelCapability::Completion, ModelCapability::Tools],
        },
        parent_model: String::new(),
    }
}

pub(in crate::api) fn details(name: &str) -> ModelDetails {
    let model_info = json!({"general.architecture": "llama", "general.basename": "r"});
    ModelDetails {
        card: card(name),
        from: name.to_owned(),
        messages: Vec::new(),
        template: "{{ a }}\n".into(),
        license: "MIT".into(),
        system: "You are terse.".into(),
        parameters: vec![
            ("stop".into(), "\"<|im_end|>\"".into()),
            ("temperature".into(), "0.2".into()),
        ],
        model_info: model_info.as_object().cloned().unwrap_or_else(Map::new),
        projector_info: None,
        tensors: vec![TensorFacts {
            name: "t".into(),
            element_type: "Q4_K".into(),
            shape: vec![4096, 4096],
        }],
    }
}

pub(in crate::api) fn delta(delta: Delta) -> Event {
    Event::Delta(delta)
}

pub(in crate::api) fn text(content: &str) -> Event {
    delta(Delta {
        content: content.to_owned(),
        ..Delta::default()
    })
}

pub(in crate::api) fn thinking(thinking: &str) -> Event {
    delta(Delta {
        thinking: thinking.to_owned(),
        ..Delta::default()
    })
}

/// Returns an event with calls of these ids, names and arguments.
pub(in crate::api) fn calls(calls: &[(&str, &str, &str)]) -> Event {
    let tool_calls = calls
        .iter()
        .map(|(id, name, arguments)| ToolCall {
            id: (*id).to_owned(),
            name: (*name).to_owned(),
            arguments: serde_json::from_str(arguments).unwrap(),
        })
        .collect();
    delta(Delta {
        tool_calls,
        ..Delta::default()
    })
}

pub(in crate::api) fn finish(reason: FinishReason, context: &[i32]) -> Event {
    let usage = AnswerUsage {
        prompt_tokens: 10,
        cached_tokens: 3,
        prompt_duration: Duration::from_nanos(20),
        output_tokens: 2,
        reasoning_tokens: 0,
        output_duration: Duration::from_nanos(10),
        load_duration: Duration::ZERO,
        total_duration: Duration::from_nanos(40),
    };
    Event::Finished(AnswerSummary {
        reason,
        stop_string: None,
        usage,
        context: context.to_vec(),
    })
}

/// Replaces every `created_at` by `T`.
pub(in crate::api) fn mask(bytes: &[u8]) -> String {
    let mut text = String::from_utf8(bytes.to_vec()).unwrap();
    let key = "\"created_at\":\"";
    let mut from = 0;
    while let Some(at) = text[from..].find(key) {
        let start = from + at + key.len();
        let length = text[start..].find('"').unwrap();
        let value: Value = text[start..start + length].into();
        assert!(value.as_str().unwrap().ends_with('Z'), "{value}");
        text.replace_range(start..start + length, "T");
        from = start;
    }
    text
}
