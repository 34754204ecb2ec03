//! Architecture families: how each names its tensors and sizes, one file for each family.
//!
//! A family is a function that takes tensors out of a [`ModelBuilder`] by name and shape, and puts recipes and keys of
//! the GGUF file into it. A tensor that is left in the end is unknown, and the checkpoint is refused: leaving out a
//! weight would make a model that answers nonsense. [`build`] is called by `plan`, [`trace`] by `adapter`, which needs
//! the tensors of a family without having a checkpoint.

mod bert;
mod classifier;
mod decoder;
mod deepseek;
mod experts;
mod gemma;
mod gpt2;
mod gpt_oss;
mod granite;
mod layer_norm;
mod lfm2;
mod llama;
mod modern_bert;
mod nomic_bert;
mod olmo;
mod others;
mod phi3;
mod pooling;
mod qwen;
mod reranker;
mod rope;
mod sizes;
mod vision;
mod window;

pub(super) use vision::{build_projector, vision_config};

use std::{fmt, path::Path, sync::Arc};

use super::{
    ConvertError, TensorRecipe,
    config::{CheckpointConfig, StoredQuantization},
    dtype::TensorDtype,
    fp8,
    parts::StoredRows,
    safetensors::StoredTensors,
    stored::{ShardFile, StoredTensor},
};
use crate::gguf::{GgmlType, GgufValue, TensorSpec};

/// `LLAMA_MAX_LAYERS`.
const MAX_BLOCKS: u64 = 512;

/// Architectures whose output matrix llama.cpp requires: tied embeddings are written a second time as `output.weight`.
/// llama.cpp's converter writes only what is stored, so that its files of such checkpoints do not load.
const NEVER_TIED: [&str; 6] = ["gpt-oss", "olmo2", "olmoe", "phi2", "qwen2moe", "stablelm"];

/// Builder of a GGUF file: the tensors that are still to be taken, and the keys and recipes so far.
#[derive(Debug)]
pub(super) struct ModelBuilder<'a> {
    folder: &'a Path,
    /// Name of the model.
    name: &'a str,
    config: &'a CheckpointConfig,
    /// Tensors that no recipe has taken yet, named as in a model of text alone.
    tensors: StoredTensors,
    /// llama.cpp's name of the architecture.
    arch: &'static str,
    pub(super) keys: Vec<(String, GgufValue)>,
    pub(super) recipes: Vec<TensorRecipe>,
    /// Rows of the token embedding.
    pub(super) vocabulary: u64,
    /// Token embedding, for an output matrix that is tied to it.
    embedding: Option<StoredTensor>,
    /// If set, there is no checkpoint and every tensor that a family asks for exists.
    shape_only: Option<ShapeOnly<'a>>,
}

/// Stand-in for a checkpoint: every tensor that a family asks for exists, in the shape that it asks for, without data.
#[derive(Clone, Copy)]
struct ShapeOnly<'a> {
    /// Returns true for the optional tensors (biases, for example) that the checkpoint has.
    has: &'a dyn Fn(&str) -> bool,
    /// File that the tensors claim to be in. It is never read.
    shard: &'a Arc<ShardFile>,
}

impl fmt::Debug for ShapeOnly<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShapeOnly")
            .field("shard", &self.shard.path)
            .finish_non_exhaustive()
    }
}

impl ShapeOnly<'_> {
    fn tensor(&self, name: &str, shape: &[u64]) -> StoredTensor {
        StoredTensor {
            name: name.to_owned(),
            shard: Arc::clone(self.shard),
            offset: 0,
            dtype: TensorDtype::F32,
            shape: shape.to_vec(),
            scales: None,
        }
    }
}

/// Builds the keys and recipes of a checkpoint.
///
/// # Errors
/// If the architecture is unknown, or the checkpoint does not fit it.
pub(super) fn build<'a>(
    folder: &'a Path,
    name: &'a str,
    config: &'a CheckpointConfig,
    tensors: StoredTensors,
) -> Result<ModelBuilder<'a>, ConvertError> {
    let tensors = renamed(join_scales(config, tensors)?)?;
    let mut build = ModelBuilder::new(folder, name, config, tensors, None);
    family_of(config)?(&mut build)?;
    build.finish()
}

/// Joins tensors with their scales, if the checkpoint has some.
fn join_scales(config: &CheckpointConfig, tensors: StoredTensors) -> Result<StoredTensors, ConvertError> {
    match config.quantization() {
        Some(StoredQuantization::Fp8(block)) => fp8::join(tensors, block),
        _ => Ok(tensors),
    }
}

/// Returns the recipes that a family would make of a checkpoint with this configuration, without data. `has` tells
/// which optional tensors it has; `shard` is the file that its tensors claim to be in.
pub(super) fn trace(
    config: &CheckpointConfig,
    shard: &Arc<ShardFile>,
    has: impl Fn(&str) -> bool,
) -> Result<Vec<TensorRecipe>, ConvertError> {
    // Families look for other files of the checkpoint (`modules.json`, the card) and find none here.
    let folder = shard.path.parent().unwrap_or(&shard.path);
    let shape_only = ShapeOnly { has: &has, shard };
    let mut build = ModelBuilder::new(folder, "", config, StoredTensors::new(), Some(shape_only));
    family_of(config)?(&mut build)?;
    // Without `finish`: there are no stored tensors of which one could be left.
    Ok(build.recipes)
}

/// Names of the families that can be converted, as their makers spell them, for `--help` and the documents.
pub const FAMILIES: &[&str] = &[
    "Llama",
    "Mistral",
    "Ministral",
    "Mixtral",
    "Qwen 2 and 3",
    "Gemma 1 to 3",
    "EmbeddingGemma",
    "gpt-oss",
    "DeepSeek 2 and 3",
    "Phi 2 and 3",
    "Granite 3",
    "Command R and Cohere 2",
    "SmolLM",
    "OLMo 2 and 3",
    "OLMoE",
    "EXAONE 4",
    "ERNIE 4.5",
    "Seed-OSS",
    "InternLM 3",
    "LFM 2",
    "StableLM",
    "StarCoder 2",
    "GPT-2",
    "BERT",
    "RoBERTa",
    "XLM-RoBERTa",
    "ModernBERT",
    "Nomic's BERT",
    "Qwen2-VL",
    "Qwen2.5-VL",
    "SmolVLM",
    "Idefics 3",
];

/// Function that builds the files of a family.
type Family = fn(&mut ModelBuilder<'_>) -> Result<(), ConvertError>;

/// Returns the family of `architectures[0]`.
pub(super) fn family_of(config: &CheckpointConfig) -> Result<Family, ConvertError> {
    let family: Family = match config.architecture() {
        "LlamaForCausalLM" | "LLaMAForCausalLM" | "LlamaModel" => llama::llama,
        "MistralForCausalLM" => llama::mistral,
        "Mistral3ForConditionalGeneration" | "Ministral3ForCausalLM" => llama::mistral3,
        "Idefics3ForConditionalGeneration" | "SmolVLMForConditionalGeneration" => llama::idefics3,
        "MixtralForCausalLM" => llama::mixtral,
        "InternLM3ForCausalLM" => llama::internlm3,
        "SmolLM3ForCausalLM" => llama::smollm3,
        "GraniteForCausalLM" => granite::granite,
        "GraniteMoeForCausalLM" | "GraniteMoeSharedForCausalLM" => granite::granite_moe,
        "DeepseekV2ForCausalLM" => deepseek::v2,
        "DeepseekV3ForCausalLM" => deepseek::v3,
        "Qwen2ForCausalLM" | "Qwen2Model" => qwen::qwen2,
        "Qwen2VLForConditionalGeneration" | "Qwen2_5_VLForConditionalGeneration" => qwen::qwen2_vl,
        "Qwen2MoeForCausalLM" => qwen::qwen2_moe,
        "Qwen3ForCausalLM" | "Qwen3Model" => qwen::qwen3,
        "Qwen3MoeForCausalLM" => qwen::qwen3_moe,
        "GemmaForCausalLM" => gemma::gemma,
        "Gemma2ForCausalLM" => gemma::gemma2,
        "Gemma3ForCausalLM" | "Gemma3ForConditionalGeneration" => gemma::gemma3,
        "Gemma3TextModel" => gemma::embedding,
        "Phi3ForCausalLM" => phi3::phi3,
        "Olmo2ForCausalLM" => olmo::olmo2,
        "Olmo3ForCausalLM" => olmo::olmo3,
        "OlmoeForCausalLM" => olmo::olmoe,
        "GptOssForCausalLM" => gpt_oss::gpt_oss,
        "Starcoder2ForCausalLM" => layer_norm::starcoder2,
        "StableLmForCausalLM" | "StableLMEpochForCausalLM" => layer_norm::stablelm,
        "PhiForCausalLM" => layer_norm::phi2,
        "CohereForCausalLM" => layer_norm::command_r,
        "Cohere2ForCausalLM" => layer_norm::cohere2,
        "SeedOssForCausalLM" => others::seed_oss,
        "Exaone4ForCausalLM" => others::exaone4,
        "Ernie4_5ForCausalLM" | "Ernie4_5_ForCausalLM" => others::ernie4_5,
        "GPT2LMHeadModel" => gpt2::gpt2,
        "Lfm2ForCausalLM" | "LFM2ForCausalLM" => lfm2::lfm2,
        "BertModel" | "BertForMaskedLM" | "BertForSequenceClassification" => bert::bert,
        "RobertaModel" | "RobertaForMaskedLM" | "RobertaForSequenceClassification" => bert::roberta,
        "XLMRobertaModel" | "XLMRobertaForMaskedLM" | "XLMRobertaForSequenceClassification" => bert::roberta,
        "ModernBertModel" | "ModernBertForMaskedLM" | "ModernBertForSequenceClassification" => modern_bert::modern_bert,
        "NomicBertModel" => nomic_bert::nomic_bert,
        other => return Err(ConvertError::Architecture(other.to_owned())),
    };
    // Only gpt-oss stores `_blocks` and `_scales`; other families would not find their tensors.
    if config.quantization() == Some(StoredQuantization::Mxfp4) && config.architecture() != "GptOssForCausalLM" {
        return Err(ConvertError::Quantized("mxfp4".to_owned()));
    }
    Ok(family)
}

/// Leaves out tensors of vision and audio encoders and buffers that follow from the configuration, and removes the
/// prefixes of a language model that is part of a larger one (`filter_tensors` in llama.cpp's converter).
fn renamed(tensors: StoredTensors) -> Result<StoredTensors, ConvertError> {
    const OTHER_STARTS: [&str; 4] = ["mlp1.", "merger.", "resampler.", "visual."];
    const OTHER_PARTS: [&str; 8] = [
        ".visual.",
        "vision_",
        "audio_",
        "projector.",
        "image_newline",
        "patch_embed",
        "patch_merger.",
        "model.connector.",
    ];
    // The two names with `bias` are GPT-2's causal mask. Its real biases belong to `c_attn` and `c_proj`.
    const DERIVED: [&str; 4] = [
        ".rotary_emb.inv_freq",
        ".attn.bias",
        ".attn.masked_bias",
        ".position_ids",
    ];
    let mut out = StoredTensors::new();
    for (name, tensor) in tensors {
        let is_other = OTHER_STARTS.iter().any(|start| name.starts_with(start))
            || OTHER_PARTS.iter().any(|part| name.contains(part))
            || DERIVED.iter().any(|end| name.ends_with(end));
        if is_other {
            continue;
        }
        // Both `language_model.model.` and `model.language_model.` occur.
        let short = name.replace("language_model.", "").replace("text_model.", "");
        if let Some(twice) = out.insert(short, tensor) {
            return Err(ConvertError::Weights(format!(
                "{:?} and {name:?} are the same tensor",
                twice.name
            )));
        }
    }
    Ok(out)
}

impl<'a> ModelBuilder<'a> {
    fn new(
        folder: &'a Path,
        name: &'a str,
        config: &'a CheckpointConfig,
        tensors: StoredTensors,
        shape_only: Option<ShapeOnly<'a>>,
    ) -> Self {
        Self {
            folder,
            name,
            config,
            tensors,
            arch: "",
            keys: Vec::new(),
            recipes: Vec::new(),
            vocabulary: 0,
            embedding: None,
            shape_only,
        }
    }

    pub(super) fn arch_name(&self) -> &'static str {
        self.arch
    }

    /// Puts a key with the prefix of the architecture.
    fn put(&mut self, key: &str, value: GgufValue) {
        self.keys.push((format!("{}.{key}", self.arch), value));
    }

    fn put_integer(&mut self, key: &str, integer: u64) -> Result<(), ConvertError> {
        // `gguf-py` writes all integers in 32 bits, and llama.cpp refuses a key of another width.
        let number = u32::try_from(integer).map_err(|_| ConvertError::Config(format!("{key} would be {integer}")))?;
        self.put(key, GgufValue::U32(number));
        Ok(())
    }

    fn put_number(&mut self, key: &str, number: f64) {
        self.put(key, GgufValue::F32(number as f32));
    }

    fn blocks(&self, keys: &[&str]) -> Result<u64, ConvertError> {
        Self::check_blocks(self.config.count(keys)?)
    }

    fn blocks_or(&self, keys: &[&str], default: u64) -> Result<u64, ConvertError> {
        Self::check_blocks(self.config.integer_or(keys, default)?)
    }

    fn check_blocks(blocks: u64) -> Result<u64, ConvertError> {
        match blocks {
            0 => Err(ConvertError::Config("it has no layers".to_owned())),
            blocks if blocks > MAX_BLOCKS => Err(ConvertError::Config(format!(
                "it has {blocks} layers; llama.cpp supports at most {MAX_BLOCKS}"
            ))),
            blocks => Ok(blocks),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.shape_only.is_some_and(|shape_only| (shape_only.has)(name))
    }

    /// Takes a tensor of any shape.
    fn take_any(&mut self, name: &str) -> Result<StoredTensor, ConvertError> {
        self.tensors.remove(name).ok_or_else(|| missing(name))
    }

    /// Takes a tensor of this shape, slowest dimension first.
    fn take(&mut self, name: &str, shape: &[u64]) -> Result<StoredTensor, ConvertError> {
        let taken = self.look(name, shape)?;
        self.tensors.remove(name);
        Ok(taken)
    }

    /// Returns a tensor of this shape without taking it.
    fn look(&self, name: &str, shape: &[u64]) -> Result<StoredTensor, ConvertError> {
        if let Some(shape_only) = self.shape_only {
            return Ok(shape_only.tensor(name, shape));
        }
        let Some(found) = self.tensors.get(name) else {
            return Err(missing(name));
        };
        if found.shape != shape {
            return Err(ConvertError::Weights(format!(
                "the tensor {name:?} has the shape {:?}, but config.json asks for {shape:?}",
                found.shape
            )));
        }
        Ok(found.clone())
    }

    /// Adds a tensor as it is stored.
    fn add(&mut self, name: &str, source: &StoredTensor) {
        let recipe = TensorRecipe::rows(spec(name, &source.shape), vec![StoredRows::all(source)]);
        self.recipes.push(recipe);
    }

    /// Takes the weight of this shape and adds it under another name.
    fn copy(&mut self, from: &str, to: &str, shape: &[u64]) -> Result<(), ConvertError> {
        let source = self.take(&format!("{from}.weight"), shape)?;
        self.add(&format!("{to}.weight"), &source);
        Ok(())
    }

    /// Takes the token embedding `[vocabulary, hidden]`, whose rows decide the size of the vocabulary.
    fn take_embedding(&mut self, name: &str, hidden: u64) -> Result<(), ConvertError> {
        let said = self.config.optional_integer(&["vocab_size"])?;
        let source = match (self.shape_only, said) {
            (Some(shape_only), Some(rows)) => shape_only.tensor(name, &[rows, hidden]),
            _ => self.take_any(name)?,
        };
        let [rows, columns] = source.shape[..] else {
            return Err(ConvertError::Weights(format!("the tensor {name:?} is not a matrix")));
        };
        if columns != hidden || said.is_some_and(|said| said != rows) {
            return Err(ConvertError::Weights(format!(
                "the tensor {name:?} has the shape {:?}, but config.json asks for a vocabulary of {} and a width of \
                 {hidden}",
                source.shape,
                said.unwrap_or(rows)
            )));
        }
        self.vocabulary = rows;
        self.add("token_embd.weight", &source);
        self.embedding = Some(source);
        Ok(())
    }

    /// Takes the output matrix if it is stored; otherwise it is tied to the embedding. llama.cpp falls back to the
    /// embedding by itself, except in [`NEVER_TIED`] architectures.
    fn take_output(&mut self, name: &str, hidden: u64) -> Result<(), ConvertError> {
        if self.has(name) {
            let source = self.take(name, &[self.vocabulary, hidden])?;
            self.add("output.weight", &source);
            // Phi 2's output matrix has a bias, which llama.cpp requires.
            let bias = name.replace(".weight", ".bias");
            if self.has(&bias) {
                let source = self.take(&bias, &[self.vocabulary])?;
                self.add("output.bias", &source);
            }
            return Ok(());
        }
        // A missing setting may mean tied or untied, depending on the class. Only an explicit false makes a missing
        // matrix an error.
        let is_tied = self.config.flag("tie_word_embeddings") != Some(false);
        if !is_tied && self.config.architecture().ends_with("ForCausalLM") {
            return Err(missing(name));
        }
        if let Some(embedding) = self.embedding.take().filter(|_| NEVER_TIED.contains(&self.arch)) {
            self.add("output.weight", &embedding);
        }
        Ok(())
    }

    fn finish(self) -> Result<Self, ConvertError> {
        if let Some((name, _)) = self.tensors.first_key_value() {
            return Err(ConvertError::Weights(format!(
                "nothing is known of the tensor {name:?} in {} ({} such tensors)",
                self.config.architecture(),
                self.tensors.len()
            )));
        }
        Ok(self)
    }
}

fn missing(name: &str) -> ConvertError {
    ConvertError::Weights(format!("the tensor {name:?} is missing"))
}

/// Returns the spec of a tensor with dimensions in GGUF's order, fastest first. Its type is chosen later.
fn spec(name: &str, shape: &[u64]) -> TensorSpec {
    let dims: Vec<u64> = shape.iter().rev().copied().collect();
    TensorSpec::new(name, GgmlType::F32, dims)
}

#[cfg(test)]
mod tests {
    use super::FAMILIES;

    #[test]
    fn the_documents_name_every_family() {
        for (name, text) in [
            ("docs/safetensors.md", include_str!("../../../docs/safetensors.md")),
            ("CHANGELOG.md", include_str!("../../../CHANGELOG.md")),
        ] {
            let text: Vec<&str> = text.split_whitespace().collect();
            let text = text.join(" ");
            for family in FAMILIES {
                assert!(text.contains(family), "{name} does not name {family}");
            }
        }
    }
}
