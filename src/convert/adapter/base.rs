//! Base model of an adapter, as its GGUF header describes it: the class and sizes that its `config.json` would have,
//! and which adapters llama.cpp can apply to it.

use std::collections::HashMap;

use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use super::{ConvertError, config::AdapterConfig, refuse};
use crate::{
    convert::config::CheckpointConfig,
    gguf::{self, GgufHeader, GgufValue, TensorInfo},
    stdx::hex,
};

/// Suffixes of the two factors of a matrix in a GGUF file, after the matrix's name.
pub(super) const FACTORS: [&str; 2] = [".lora_a", ".lora_b"];
const OUTPUT: &str = "output.weight";
pub(super) const EMBEDDING: &str = "token_embd.weight";
/// Tensors that llama.cpp does not use in `ggml_mul_mat` (it looks up rows or convolves), so that it ignores adapters
/// for them.
const OUT_OF_REACH: [&str; 3] = ["position_embd.weight", "token_types.weight", "shortconv.conv.weight"];
/// Tensor that only layers with multi-head latent attention have. llama.cpp's code for them ignores adapters.
const COMPRESSED_KEYS: &str = "attn_kv_a_mqa.weight";
/// Hexadecimal digits of a fingerprint.
const FINGERPRINT_DIGITS: usize = 16;

/// llama.cpp's architectures, and the classes of transformers with their tensors. The second class is for models with
/// experts, if the architecture covers both.
const CLASSES: &[(&str, &str, Option<&str>)] = &[
    ("bert", "BertModel", None),
    ("cohere2", "Cohere2ForCausalLM", None),
    ("command-r", "CohereForCausalLM", None),
    ("ernie4_5", "Ernie4_5ForCausalLM", None),
    ("exaone4", "Exaone4ForCausalLM", None),
    ("gemma", "GemmaForCausalLM", None),
    ("gemma2", "Gemma2ForCausalLM", None),
    ("gemma3", "Gemma3ForCausalLM", None),
    ("gpt2", "GPT2LMHeadModel", None),
    ("gpt-oss", "GptOssForCausalLM", None),
    ("granite", "GraniteForCausalLM", None),
    ("granitemoe", "GraniteMoeForCausalLM", None),
    ("lfm2", "Lfm2ForCausalLM", None),
    ("llama", "LlamaForCausalLM", Some("MixtralForCausalLM")),
    ("mistral3", "Mistral3ForConditionalGeneration", None),
    ("modern-bert", "ModernBertModel", None),
    ("olmo2", "Olmo2ForCausalLM", None),
    ("olmoe", "OlmoeForCausalLM", None),
    ("phi2", "PhiForCausalLM", None),
    ("phi3", "Phi3ForCausalLM", None),
    ("qwen2", "Qwen2ForCausalLM", None),
    ("qwen2moe", "Qwen2MoeForCausalLM", None),
    // The language model of Qwen2-VL has the tensors of Qwen 2.
    ("qwen2vl", "Qwen2ForCausalLM", None),
    ("qwen3", "Qwen3ForCausalLM", None),
    ("qwen3moe", "Qwen3MoeForCausalLM", None),
    ("seed_oss", "SeedOssForCausalLM", None),
    ("smollm3", "SmolLM3ForCausalLM", None),
    ("starcoder2", "Starcoder2ForCausalLM", None),
];
/// Sizes: the key in the GGUF file after the architecture, and the key in `config.json`.
const SIZES: &[(&str, &str)] = &[
    ("block_count", "num_hidden_layers"),
    ("context_length", "max_position_embeddings"),
    ("context_length", "n_positions"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("feed_forward_length", "n_inner"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ("expert_shared_feed_forward_length", "shared_intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("expert_count", "num_experts"),
    ("expert_count", "num_local_experts"),
    ("expert_used_count", "num_experts_per_tok"),
    ("shortconv.l_cache", "conv_L_cache"),
];

/// Base model of an adapter.
#[derive(Debug)]
pub struct AdapterBase {
    architecture: String,
    /// Reconstructed `config.json`; `None` if no class is known for the architecture.
    config: Option<String>,
    /// Dimensions of the tensors by name, fastest first.
    dims: HashMap<String, Vec<u64>>,
}

impl AdapterBase {
    /// Describes the base whose file, or shards, have these headers.
    #[must_use]
    pub fn of(shards: &[GgufHeader]) -> Self {
        let architecture = shards
            .iter()
            .map(GgufHeader::architecture)
            .find(|name| !name.is_empty());
        let tensors = shards.iter().flat_map(|shard| &shard.tensors);
        let mut base = Self {
            architecture: architecture.unwrap_or_default().to_owned(),
            config: None,
            dims: tensors
                .map(|tensor| (tensor.name.clone(), tensor.dims.clone()))
                .collect(),
        };
        let header = shards
            .iter()
            .find(|shard| shard.hyperparameter("block_count").is_some());
        base.config = header.and_then(|header| base.config_of(header));
        base
    }

    fn config_of(&self, header: &GgufHeader) -> Option<String> {
        let sizes = |key: &str| header.hyperparameter(key).map(GgufValue::integers).unwrap_or_default();
        let (_, class, mixture) = CLASSES.iter().find(|(name, ..)| *name == self.architecture)?;
        let has_experts = sizes("expert_count").iter().any(|count| *count > 0);
        let class = mixture.filter(|_| has_experts).unwrap_or(class);
        let mut config = json!({
            "architectures": [class],
            "vocab_size": self.dims.get(EMBEDDING).and_then(|dims| dims.get(1)),
            "type_vocab_size": self.dims.get("token_types.weight").and_then(|dims| dims.get(1)),
            "tie_word_embeddings": self.is_tied(),
            // Any valid value: RoPE parameters change neither names nor shapes.
            "rope_parameters": {"rope_type": "default"},
            // The only values that conversion accepts for the architecture.
            "norm_topk_prob": self.architecture == "qwen3moe",
            "block_auto_adjust_ff_dim": false,
        });
        for (from, to) in SIZES {
            // A list with one size for each layer has 0 for layers without the part, for example without attention.
            if let Some(size) = sizes(from).into_iter().max() {
                config[*to] = Json::from(size);
            }
        }
        let key_heads = sizes("attention.head_count_kv");
        if key_heads.len() > 1 {
            let kinds = key_heads.iter().map(|heads| match heads {
                0 => "conv",
                _ => "full_attention",
            });
            config["layer_types"] = kinds.collect();
        }
        Some(config.to_string())
    }

    /// Returns true if the output matrix is tied to the embedding.
    fn is_tied(&self) -> bool {
        !self.dims.contains_key(OUTPUT)
    }

    /// Returns a fingerprint that is equal for bases for which an adapter is converted to the same file.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let text = self.config.as_deref().unwrap_or(&self.architecture);
        let digest = Sha256::digest(text);
        let mut digits = hex::encode(digest);
        digits.truncate(FINGERPRINT_DIGITS);
        digits
    }

    pub(super) fn architecture(&self) -> &str {
        &self.architecture
    }

    pub(super) fn config(&self) -> Result<CheckpointConfig, ConvertError> {
        match &self.config {
            Some(json) => CheckpointConfig::parse(json),
            None => refuse(format!(
                "adapters cannot be converted for the architecture {:?} of the base; choose an adapter that is a GGUF file",
                self.architecture
            )),
        }
    }

    /// Returns the optional matrices of the class that this base has.
    pub(super) fn optional_matrices(&self) -> impl Iterator<Item = &'static str> {
        (!self.is_tied()).then_some("lm_head").into_iter()
    }

    /// Refuses an adapter that llama.cpp would refuse, ignore in part, or crash on.
    ///
    /// # Errors
    /// [`ConvertError::Adapter`] with the reason.
    pub fn check(&self, adapter: &GgufHeader) -> Result<(), ConvertError> {
        let text = |key: &str| adapter.get(key).and_then(GgufValue::as_str).unwrap_or_default();
        if (text("general.type"), text("adapter.type")) != ("adapter", "lora") {
            return refuse("its GGUF file is no LoRA adapter but a model".to_owned());
        }
        if adapter.architecture() != self.architecture {
            return refuse(format!(
                "it was made for a model of the architecture {:?}, and the base is of {:?}",
                adapter.architecture(),
                self.architecture
            ));
        }
        // llama.cpp aborts on an alpha of another type, and without one does not scale the product.
        if !matches!(adapter.get("adapter.lora.alpha"), Some(GgufValue::F32(alpha)) if alpha.is_finite()) {
            return refuse("its GGUF file has no adapter.lora.alpha".to_owned());
        }
        if adapter.get("adapter.alora.invocation_tokens").is_some() {
            return refuse("it is an aLoRA, which applies only to a part of the text".to_owned());
        }
        // The file may come from the Hub, and llama.cpp reads it with the same code as a model.
        gguf::precheck(adapter)?;
        if adapter.tensors.is_empty() {
            return refuse("it changes nothing".to_owned());
        }
        let [first, second] = FACTORS;
        let named: HashMap<&str, &TensorInfo> = adapter.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        for tensor in &adapter.tensors {
            let name = tensor.name.as_str();
            // llama.cpp would silently leave out norms and apply the rest.
            let Some(matrix) = name.strip_suffix(first).or_else(|| name.strip_suffix(second)) else {
                return refuse(format!("{name:?} is not a factor of a matrix"));
            };
            let factor = |suffix: &str| named.get(format!("{matrix}{suffix}").as_str()).copied();
            let (Some(a), Some(b)) = (factor(first), factor(second)) else {
                return refuse(format!("one of the factors of {matrix:?} is missing"));
            };
            self.check_pair(matrix, &a.dims, &b.dims)?;
        }
        Ok(())
    }

    /// Returns true if llama.cpp would ignore an adapter for this matrix.
    fn is_out_of_reach(&self, matrix: &str) -> bool {
        let Some((layer, part)) = matrix.rsplit_once(".attn_") else {
            return OUT_OF_REACH.iter().any(|end| matrix.ends_with(end));
        };
        part != "output.weight" && self.dims.contains_key(&format!("{layer}.{COMPRESSED_KEYS}"))
    }

    fn check_pair(&self, matrix: &str, a: &[u64], b: &[u64]) -> Result<(), ConvertError> {
        let Some(dims) = self.dims.get(matrix) else {
            return refuse(match (matrix, self.is_tied()) {
                (OUTPUT, true) => "it changes the output matrix, which in this base is the embedding".to_owned(),
                _ => format!("it changes {matrix:?}, which the base does not have"),
            });
        };
        if self.is_out_of_reach(matrix) {
            return refuse(format!(
                "it changes {matrix:?}, to which llama.cpp does not apply adapters for the architecture {:?}",
                self.architecture
            ));
        }
        let is_embedding = matrix == EMBEDDING;
        if is_embedding && self.is_tied() {
            return refuse("it changes the embedding, which in this base is the output matrix, too".to_owned());
        }
        // The first factor of an embedding is stored transposed, because llama.cpp looks up its rows
        // (`build_inp_embd`).
        let fits = match (dims.as_slice(), a, b) {
            ([inner, outer], [rank, rows], [columns, height]) if is_embedding => {
                rank == columns && rows == outer && height == inner
            }
            ([inner, outer], [width, rank], [columns, height]) => width == inner && rank == columns && height == outer,
            ([inner, outer, experts], [width, rank, many], [columns, height, as_many]) => {
                width == inner && rank == columns && height == outer && many == experts && as_many == experts
            }
            _ => false,
        };
        if fits {
            return Ok(());
        }
        refuse(format!(
            "its factors of {matrix:?} have the dimensions {a:?} and {b:?}, which do not make a matrix of {dims:?}; it was \
             made for another model"
        ))
    }
}

/// Refuses an adapter that can never be applied, as far as its `adapter_config.json` tells. A pull asks before it
/// downloads weights.
///
/// # Errors
/// [`ConvertError::Adapter`] with the reason.
pub fn check_adapter_config(json: &str) -> Result<(), ConvertError> {
    AdapterConfig::parse(json).map(drop)
}
