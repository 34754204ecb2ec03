//! Leases for requests: configuration, settings and header become the load settings of a worker.

use super::{HuggingFace, located::LocatedModel, settings::RequestSettings};
use crate::{
    inference::{Failure, KeepAlive, ModelCapability},
    library::LocalModel,
    lifecycle::{AcquireRequest, AdmissionLimits, Lease, ModelKey},
    provider::CallContext,
    stdx::cpu::compute_threads,
    worker::protocol::{AdapterSpec, ContextParams, LoadSpec, ModelParams},
};

/// Models in memory at once if `engine.max_loaded_models` is 0: Ollama's number for a machine without a GPU.
const DEFAULT_MAX_LOADED: usize = 3;

impl HuggingFace {
    /// Waits until the model is resident.
    pub(super) async fn acquire(
        &self,
        call: &CallContext,
        model: &LocatedModel,
        settings: &RequestSettings,
        keep_alive: Option<KeepAlive>,
    ) -> Result<Lease, Failure> {
        // Refused here and not by a worker: models load one at a time, and others would wait for a load that must
        // crash.
        if let Some(reason) = &model.header.refusal {
            return Err(Failure::Load(format!("the model could not be loaded: {reason}")));
        }
        let engine = &call.config.engine;
        let threads = match engine.threads {
            0 => compute_threads(),
            threads => threads,
        };
        let request = AcquireRequest {
            card: model.card(),
            spec: self.load_spec(call, model, settings, threads).await?,
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

    async fn load_spec(
        &self,
        call: &CallContext,
        model: &LocatedModel,
        settings: &RequestSettings,
        threads: u32,
    ) -> Result<LoadSpec, Failure> {
        let (engine, load) = (&call.config.engine, &settings.load);
        let adapters = self.library.adapter_files(&model.local).await?.into_iter();
        let context_length = settings.context_length(&model.header.facts);
        Ok(LoadSpec {
            path: model.path()?,
            adapters: adapters.map(|path| AdapterSpec { path, scale: 1.0 }).collect(),
            checkpoint: model.local.base.checkpoint.clone(),
            model: ModelParams {
                gpu_layers: load.num_gpu.unwrap_or(engine.gpu_layers),
                main_gpu: load.main_gpu.unwrap_or(engine.main_gpu),
                split_mode: engine.split_mode,
                tensor_split: engine.tensor_split.clone(),
                mmap: load.use_mmap.unwrap_or(engine.mmap),
                check_tensors: engine.check_tensors,
            },
            context: ContextParams {
                context_length,
                parallel: settings.parallel(model.header.kv_bytes_per_token, context_length),
                batch: load.num_batch.unwrap_or(engine.batch),
                threads: load.num_thread.filter(|&count| count > 0).unwrap_or(threads),
                flash_attention: settings.flash_attention,
                kv_type_k: settings.kv_type_k,
                kv_type_v: settings.kv_type_v,
            },
            embeds_only: !model.header.facts.capabilities.contains(&ModelCapability::Completion),
        })
    }

    /// Unloads a model as soon as it is idle.
    pub(super) async fn unload(&self, local: &LocalModel) {
        // A model whose adapters cannot be prepared could not be loaded either, so there is nothing to unload.
        if let (Some(path), Ok(adapters)) = (
            local.base.files.first().cloned(),
            self.library.adapter_files(local).await,
        ) {
            self.lifecycle.unload(ModelKey { path, adapters }).await;
        }
    }
}
