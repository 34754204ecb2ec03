//! Main loop of a model's worker: commands in, decode steps, reports out.

use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Arc,
        mpsc::{SyncSender, TryRecvError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    EngineInput, EngineInputs, ReportSender, WorkerError,
    embed::{Embedder, SEQUENCES},
    generation::AnswerGenerator,
    prepare::{self, ContextWindows, PrepareTask},
    protocol::{DaemonCommand, LoadSpec, LoadedModel, WorkerReport},
    quantize_rows,
};
use crate::{
    gguf,
    inference::Failure,
    llama::{self, Context, ContextParams, ContextPurpose, DeviceKind, Model, ModelParams},
};

/// Shortest time between two reports of a load's progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Largest number of tasks that wait to be prepared; the daemon sends far less at a time.
const PREPARE_QUEUE: usize = 4096;
/// Stack of the thread that prepares. Grammars and schemas are compiled by recursive parsers.
const PREPARE_STACK_BYTES: usize = 64 << 20;
/// Largest number of tokens of a text that becomes a vector. Its attention is computed in one piece, so memory grows
/// with the square of this.
const MAX_EMBED_WINDOW: u32 = 8192;
/// Number of tokens in a batch of texts, unless a single text needs more.
const EMBED_BATCH: u32 = 1024;

/// Loads the model that the first command names and serves it until the socket closes.
pub(super) fn run(inputs: &EngineInputs, sender: &SyncSender<EngineInput>, reports: &mut ReportSender) {
    let Ok(EngineInput::Command(DaemonCommand::Load(spec))) = inputs.recv() else {
        return reports.send(&WorkerReport::LoadFailed {
            reason: "the first command was not a load".into(),
        });
    };
    match Engine::load(&spec, sender, reports) {
        Ok((engine, loaded)) => {
            reports.send(&WorkerReport::Loaded(loaded));
            engine.run(inputs, reports);
        }
        Err(error) => reports.send(&WorkerReport::LoadFailed {
            reason: error.to_string(),
        }),
    }
}

/// Loads weights, vocabulary and adapters, and reports the progress. Returns the model and the bytes of its weights.
fn load_model(spec: &LoadSpec, reports: &mut ReportSender) -> Result<(Model, u64), WorkerError> {
    let mut reported = Instant::now();
    let progress = |fraction| {
        if reported.elapsed() >= PROGRESS_INTERVAL {
            reported = Instant::now();
            reports.send(&WorkerReport::Progress { fraction });
        }
        true
    };
    let mut model = match &spec.checkpoint {
        None => Model::load(&spec.path, &spec.model, progress)?,
        Some(folder) => load_checkpoint(folder, &spec.path, &spec.model, progress)?,
    };
    if model.has_encoder() {
        return Err(WorkerError::EncoderDecoder);
    }
    model.add_end_tokens(gguf::END_TOKENS_KEY);
    // `llama_model_size` does not count adapters, whose tensors are copied into memory as they are in their files.
    let mut weights = model.size_bytes();
    for adapter in &spec.adapters {
        model.add_adapter(&adapter.path, adapter.scale)?;
        weights += std::fs::metadata(&adapter.path).map_or(0, |meta| meta.len());
    }
    Ok((model, weights))
}

/// Loads a model whose weights are converted while llama.cpp reads them.
#[cfg(target_os = "linux")]
fn load_checkpoint(
    folder: &Path,
    header: &Path,
    params: &ModelParams,
    progress: impl FnMut(f32) -> bool,
) -> Result<Model, WorkerError> {
    use crate::convert;
    let plan = convert::replan(folder, header)?.with_quantizer(quantize_rows);
    let params = ModelParams {
        // The conversion refuses NaN and infinite numbers itself.
        check_tensors: false,
        ..params.clone()
    };
    Ok(Model::load_from(
        &mut convert::GgufStream::start(plan),
        &params,
        progress,
    )?)
}

#[cfg(not(target_os = "linux"))]
fn load_checkpoint(_: &Path, _: &Path, _: &ModelParams, _: impl FnMut(f32) -> bool) -> Result<Model, WorkerError> {
    Err(WorkerError::NoStreams)
}

/// Owner of the model and its contexts, on the engine thread.
struct Engine {
    model: Arc<Model>,
    /// `None` in a model that makes vectors only.
    generator: Option<AnswerGenerator>,
    /// Made for the first request for vectors; a model that makes nothing else has it from the start.
    embedder: Option<Embedder>,
    embed_params: ContextParams,
    preparing: SyncSender<PrepareTask>,
    /// Ids of the tasks that the thread that prepares has not given back. A canceled task is removed, and dropped when
    /// it comes.
    pending: HashSet<u64>,
}

impl Engine {
    fn load(
        spec: &LoadSpec,
        sender: &SyncSender<EngineInput>,
        reports: &mut ReportSender,
    ) -> Result<(Self, LoadedModel), WorkerError> {
        let device_before = device_memory_used();
        let (model, weights) = load_model(spec, reports)?;
        let model = Arc::new(model);
        let context_length = match (spec.context.context_length, model.train_context()) {
            (0, trained) => trained,
            (wanted, 0) => wanted,
            (wanted, trained) => wanted.min(trained),
        };
        let params = ContextParams {
            context_length,
            parallel: spec.context.parallel.max(1),
            threads: spec.context.threads.max(1),
            ..spec.context
        };
        let embed_window = context_length.min(MAX_EMBED_WINDOW);
        let embed_params = ContextParams {
            context_length: embed_window.max(EMBED_BATCH),
            parallel: SEQUENCES,
            batch: embed_window.max(EMBED_BATCH),
            ..params
        };
        let mut loaded = LoadedModel {
            context_length: embed_window,
            parallel: 1,
            can_shift: false,
            infill: model.infill_tokens().is_some(),
            embeds_only: spec.embeds_only,
            size_bytes: 0,
            device_bytes: 0,
        };
        // After the weights, which may be mapped: what is anonymous from here on is the context's.
        let host_before = anonymous_memory();
        let (mut generator, mut embedder) = (None, None);
        if spec.embeds_only {
            embedder = Some(Embedder::new(&model, &embed_params)?);
        } else {
            let context = Context::new(Arc::clone(&model), ContextPurpose::Generate, &params)?;
            loaded.context_length = context.context_length();
            loaded.parallel = params.parallel;
            // A hybrid model's cache answers for its attention layers alone; its recurrent state cannot be shifted.
            loaded.can_shift = context.can_shift() && !model.is_recurrent();
            generator = Some(AnswerGenerator::new(context, &loaded));
        }
        loaded.device_bytes = device_memory_used().saturating_sub(device_before);
        let host_bytes = anonymous_memory().saturating_sub(host_before);
        loaded.size_bytes = (weights + host_bytes).max(loaded.device_bytes);
        let windows = ContextWindows {
            generate: loaded.context_length,
            embed: embed_window,
            embeds_only: spec.embeds_only,
        };
        let engine = Self {
            preparing: start_preparing(&model, windows, sender)?,
            model,
            generator,
            embedder,
            embed_params,
            pending: HashSet::new(),
        };
        Ok((engine, loaded))
    }

    fn run(mut self, inputs: &EngineInputs, reports: &mut ReportSender) {
        while self.take_inputs(inputs, reports) {
            if let Some(generator) = &mut self.generator {
                generator.advance(reports);
            }
            if let Some(embedder) = self.embedder.as_mut().filter(|embedder| embedder.is_busy()) {
                embedder.step(|report| reports.send(&report));
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.generator.as_ref().is_some_and(AnswerGenerator::is_busy)
            || self.embedder.as_ref().is_some_and(Embedder::is_busy)
    }

    /// Takes the inputs that have arrived; waits if there is nothing to compute. Returns false when the socket is
    /// closed.
    fn take_inputs(&mut self, inputs: &EngineInputs, reports: &mut ReportSender) -> bool {
        // All of them before the next decode step, so that a canceled job computes nothing more.
        loop {
            let input = if self.is_busy() {
                match inputs.try_recv() {
                    Ok(input) => input,
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            } else {
                match inputs.recv() {
                    Ok(input) => input,
                    Err(_) => return false,
                }
            };
            match input {
                EngineInput::Command(command) => self.handle_command(command, reports),
                EngineInput::Prepared(id, prepared) => {
                    // Canceled meanwhile.
                    if !self.pending.remove(&id) {
                        continue;
                    }
                    match (prepared, &mut self.generator) {
                        (Ok(prepared), Some(generator)) => generator.push(*prepared),
                        (Ok(_), None) => {}
                        (Err(failure), _) => reports.send(&WorkerReport::Failed { id, failure }),
                    }
                }
                EngineInput::Embed(task) => {
                    if self.pending.remove(&task.id()) {
                        self.embed(task, reports);
                    }
                }
                EngineInput::Report(report) => {
                    if let WorkerReport::Answered { id, .. } = &report {
                        self.pending.remove(id);
                    }
                    reports.send(&report);
                }
            }
        }
    }

    fn handle_command(&mut self, command: DaemonCommand, reports: &mut ReportSender) {
        match command {
            DaemonCommand::Generate(job) => {
                let id = job.id;
                if let Err(failure) = self.prepare(id, PrepareTask::Job(job)) {
                    reports.send(&WorkerReport::Failed { id, failure });
                }
            }
            DaemonCommand::Ask { id, question } => {
                if let Err(failure) = self.prepare(id, PrepareTask::Question(id, question)) {
                    let result = Err(failure);
                    reports.send(&WorkerReport::Answered { id, result });
                }
            }
            DaemonCommand::Cancel { id } => {
                self.pending.remove(&id);
                if let Some(generator) = &mut self.generator {
                    generator.cancel(id);
                }
                if let Some(embedder) = &mut self.embedder {
                    embedder.cancel(id);
                }
            }
            DaemonCommand::Credit { id, events } => {
                if let Some(generator) = &mut self.generator {
                    generator.credit(id, events);
                }
            }
            DaemonCommand::SetThreads { threads } => {
                self.embed_params.threads = threads;
                if let Some(generator) = &mut self.generator {
                    generator.set_threads(threads);
                }
                if let Some(embedder) = &mut self.embedder {
                    embedder.set_threads(threads);
                }
            }
            DaemonCommand::Load(_) => reports.send(&WorkerReport::LoadFailed {
                reason: "this worker holds a model already".into(),
            }),
        }
    }

    /// Hands a task to the thread that prepares.
    ///
    /// # Errors
    /// [`Failure::Busy`] if too many tasks wait for it.
    fn prepare(&mut self, id: u64, task: PrepareTask) -> Result<(), Failure> {
        self.preparing.try_send(task).map_err(|_| Failure::Busy)?;
        self.pending.insert(id);
        Ok(())
    }

    fn embed(&mut self, task: super::embed::EmbedTask, reports: &mut ReportSender) {
        let embedder = match &mut self.embedder {
            Some(embedder) => embedder,
            empty => match Embedder::new(&self.model, &self.embed_params) {
                Ok(embedder) => empty.insert(embedder),
                Err(error) => {
                    let failure = Failure::Load(format!("there is not enough memory for embeddings: {error}"));
                    return reports.send(&WorkerReport::Answered {
                        id: task.id(),
                        result: Err(failure),
                    });
                }
            },
        };
        embedder.push(task);
    }
}

fn start_preparing(
    model: &Arc<Model>,
    windows: ContextWindows,
    engine: &SyncSender<EngineInput>,
) -> Result<SyncSender<PrepareTask>, WorkerError> {
    let (sender, tasks) = sync_channel(PREPARE_QUEUE);
    let (model, engine) = (Arc::clone(model), engine.clone());
    thread::Builder::new()
        .name("prepare".into())
        .stack_size(PREPARE_STACK_BYTES)
        .spawn(move || prepare::run(&model, windows, &tasks, &engine))
        .map_err(WorkerError::Thread)?;
    Ok(sender)
}

/// Returns the bytes that are in use on all GPUs, by any process.
fn device_memory_used() -> u64 {
    llama::devices()
        .iter()
        .filter(|device| matches!(device.kind, DeviceKind::Gpu | DeviceKind::IntegratedGpu))
        .map(|device| device.total_bytes.saturating_sub(device.free_bytes))
        .sum()
}

/// Returns the bytes of this process's resident memory that no file backs; 0 where there is no procfs.
fn anonymous_memory() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/self/statm") else {
        return 0;
    };
    let mut fields = text
        .split_ascii_whitespace()
        .skip(1)
        .map_while(|field| field.parse::<u64>().ok());
    let (resident, shared) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
    resident.saturating_sub(shared) * rustix::param::page_size() as u64
}
