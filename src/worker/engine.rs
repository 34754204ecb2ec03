//! The loop of a model worker: commands in, decode steps, reports out.

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
    EngineInput, EngineInputs, ReportSender,
    embed::{Embedder, SEQUENCES},
    generation::Generator,
    prepare::{self, ContextWindows, PrepareTask},
    protocol::{DaemonCommand, LoadSpec, LoadedModel, WorkerReport},
};
use crate::{
    gguf,
    inference::Failure,
    llama::{self, Context, ContextParams, ContextPurpose, DeviceKind, Model, ModelParams},
};

/// Time between two reports of a load's progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Jobs whose prompts wait to be tokenised; the daemon bounds what it sends to far less.
const PREPARE_QUEUE: usize = 4096;
/// Grammars and schemas are compiled by recursive parsers.
const PREPARE_STACK_BYTES: usize = 64 << 20;
/// Tokens of a text that becomes a vector. Their attention is computed in one piece, so memory grows with the square.
const MAX_EMBED_WINDOW: u32 = 8192;
/// Tokens in a batch of texts, where one text does not need more.
const EMBED_BATCH: u32 = 1024;

/// Loads a model whose weights are made meanwhile.
#[cfg(target_os = "linux")]
fn load_checkpoint(
    folder: &Path,
    header: &Path,
    params: ModelParams,
    progress: impl FnMut(f32) -> bool,
) -> Result<Model, String> {
    use crate::convert;
    let plan = convert::replan(folder, header).map_err(|error| error.to_string())?;
    let plan = plan.with_quantizer(llama::quantize_rows);
    let params = ModelParams {
        // Broken numbers are found where the weights are made.
        check_tensors: false,
        ..params
    };
    Model::load_from(&mut convert::Stream::start(plan), &params, progress)
}

#[cfg(not(target_os = "linux"))]
fn load_checkpoint(_: &Path, _: &Path, _: ModelParams, _: impl FnMut(f32) -> bool) -> Result<Model, String> {
    Err("a checkpoint cannot be loaded on this platform without a file made of it".to_owned())
}

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
        Err(reason) => reports.send(&WorkerReport::LoadFailed { reason }),
    }
}

struct Engine {
    model: Arc<Model>,
    /// `None` in a model that makes vectors only.
    generation: Option<Generator>,
    /// Made when the first vectors are asked for; a model that makes nothing else has it from the start.
    embedder: Option<Embedder>,
    embed_params: ContextParams,
    preparing: SyncSender<PrepareTask>,
    /// What was given to the thread that prepares and has not come back; what is cancelled meanwhile is taken out.
    pending: HashSet<u64>,
}

impl Engine {
    fn load(
        spec: &LoadSpec,
        sender: &SyncSender<EngineInput>,
        reports: &mut ReportSender,
    ) -> Result<(Self, LoadedModel), String> {
        let device_before = device_memory_used();
        let params = ModelParams {
            gpu_layers: spec.gpu_layers,
            main_gpu: spec.main_gpu,
            split_mode: spec.split_mode,
            tensor_split: spec.tensor_split.clone(),
            mmap: spec.mmap,
            check_tensors: spec.check_tensors,
        };
        let mut reported = Instant::now();
        let progress = |fraction| {
            if reported.elapsed() >= PROGRESS_INTERVAL {
                reported = Instant::now();
                reports.send(&WorkerReport::Progress { fraction });
            }
            true
        };
        let mut model = match &spec.checkpoint {
            None => Model::load(&spec.path, &params, progress)?,
            Some(folder) => load_checkpoint(folder, &spec.path, params, progress)?,
        };
        if model.has_encoder() {
            return Err("encoder-decoder models are not supported".into());
        }
        model.add_ends(gguf::END_TOKENS_KEY);
        let mut weights = model.size_bytes();
        for adapter in &spec.adapters {
            model.add_adapter(&adapter.path, adapter.scale)?;
            weights += std::fs::metadata(&adapter.path).map_or(0, |meta| meta.len());
        }
        let model = Arc::new(model);
        let context_length = match (spec.context_length, model.train_context()) {
            (0, trained) => trained,
            (wanted, 0) => wanted,
            (wanted, trained) => wanted.min(trained),
        };
        let host_before = anonymous_memory();
        let params = ContextParams {
            purpose: ContextPurpose::Generate,
            context_length,
            sequences: spec.parallel.max(1),
            batch: spec.batch,
            threads: spec.threads.max(1),
            flash_attention: spec.flash_attention,
            kv_type_k: spec.kv_type_k,
            kv_type_v: spec.kv_type_v,
        };
        let embed_window = context_length.min(MAX_EMBED_WINDOW);
        let embed_params = ContextParams {
            purpose: ContextPurpose::Embed,
            context_length: embed_window.max(EMBED_BATCH),
            sequences: SEQUENCES,
            batch: embed_window.max(EMBED_BATCH),
            ..params.clone()
        };
        let embeds_only = spec.embeds_only;
        let mut loaded = LoadedModel {
            context_length,
            parallel: 1,
            can_shift: false,
            infill: model.infill_tokens().is_some(),
            embeds_only,
            size_bytes: 0,
            device_bytes: 0,
        };
        let (generation, embedder) = if embeds_only {
            loaded.context_length = embed_window;
            (None, Some(Embedder::new(&model, &embed_params)?))
        } else {
            let context = Context::new(Arc::clone(&model), &params)?;
            loaded.context_length = context.context_length();
            loaded.parallel = params.sequences;
            loaded.can_shift = context.can_shift() && !model.is_recurrent();
            (Some(Generator::new(context, &loaded)), None)
        };
        loaded.device_bytes = device_memory_used().saturating_sub(device_before);
        let host_bytes = anonymous_memory().saturating_sub(host_before);
        loaded.size_bytes = (weights + host_bytes).max(loaded.device_bytes);
        let windows = ContextWindows {
            generate: loaded.context_length,
            embed: embed_window,
            embeds_only,
        };
        let engine = Self {
            preparing: start_preparing(&model, windows, sender)?,
            model,
            generation,
            embedder,
            embed_params,
            pending: HashSet::new(),
        };
        Ok((engine, loaded))
    }

    fn run(mut self, inputs: &EngineInputs, reports: &mut ReportSender) {
        while self.take_inputs(inputs, reports) {
            if let Some(generation) = &mut self.generation {
                generation.advance(reports);
            }
            if let Some(embedder) = self.embedder.as_mut().filter(|embedder| embedder.is_busy()) {
                embedder.step(|report| reports.send(&report));
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.generation.as_ref().is_some_and(Generator::is_busy)
            || self.embedder.as_ref().is_some_and(Embedder::is_busy)
    }

    /// Takes what has arrived; waits if there is nothing to compute. `false` when the socket is closed.
    fn take_inputs(&mut self, inputs: &EngineInputs, reports: &mut ReportSender) -> bool {
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
                EngineInput::Command(command) => self.obey(command, reports),
                EngineInput::Prepared(id, prepared) => {
                    if !self.pending.remove(&id) {
                        continue;
                    }
                    match (prepared, &mut self.generation) {
                        (Ok(prepared), Some(generation)) => generation.push(*prepared),
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

    fn obey(&mut self, command: DaemonCommand, reports: &mut ReportSender) {
        match command {
            DaemonCommand::Generate(job) => {
                let id = job.id;
                if self.prepare(id, PrepareTask::Job(job)).is_err() {
                    reports.send(&WorkerReport::Failed {
                        id,
                        failure: Failure::Busy,
                    });
                }
            }
            DaemonCommand::Ask { id, question } => {
                if self.prepare(id, PrepareTask::Question(id, question)).is_err() {
                    reports.send(&WorkerReport::Answered {
                        id,
                        result: Err(Failure::Busy),
                    });
                }
            }
            DaemonCommand::Cancel { id } => {
                self.pending.remove(&id);
                if let Some(generation) = &mut self.generation {
                    generation.cancel(id);
                }
                if let Some(embedder) = &mut self.embedder {
                    embedder.cancel(id);
                }
            }
            DaemonCommand::Credit { id, events } => {
                if let Some(generation) = &mut self.generation {
                    generation.credit(id, events);
                }
            }
            DaemonCommand::SetThreads { threads } => {
                self.embed_params.threads = threads;
                if let Some(generation) = &mut self.generation {
                    generation.set_threads(threads);
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

    /// Hands something to the thread that prepares; an error if too much waits for it.
    fn prepare(&mut self, id: u64, task: PrepareTask) -> Result<(), ()> {
        self.preparing.try_send(task).map_err(|_| ())?;
        self.pending.insert(id);
        Ok(())
    }

    fn embed(&mut self, task: super::embed::EmbedTask, reports: &mut ReportSender) {
        let embedder = match &mut self.embedder {
            Some(embedder) => embedder,
            empty => match Embedder::new(&self.model, &self.embed_params) {
                Ok(embedder) => empty.insert(embedder),
                Err(reason) => {
                    let failure = Failure::Load(format!("no memory to make vectors with: {reason}"));
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
) -> Result<SyncSender<PrepareTask>, String> {
    let (sender, tasks) = sync_channel(PREPARE_QUEUE);
    let (model, engine) = (Arc::clone(model), engine.clone());
    thread::Builder::new()
        .name("prepare".into())
        .stack_size(PREPARE_STACK_BYTES)
        .spawn(move || prepare::run(&model, windows, &tasks, &engine))
        .map_err(|error| format!("a thread could not be started: {error}"))?;
    Ok(sender)
}

/// Bytes in use on all devices with memory of their own.
fn device_memory_used() -> u64 {
    llama::devices()
        .iter()
        .filter(|device| matches!(device.kind, DeviceKind::Gpu | DeviceKind::IntegratedGpu))
        .map(|device| device.total_bytes.saturating_sub(device.free_bytes))
        .sum()
}

/// Bytes of this process that no file backs.
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
