//! What each architecture family calls its tensors and sizes, one file per family.
//!
//! A family takes tensors out of the checkpoint by name and shape and puts recipes and keys into the [`ModelBuilder`]. What it
//! leaves is not part of the architecture, and refused.

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

/// llama.cpp's own limit.
const MAX_BLOCKS: u64 = 512;

/// Architectures for which the engine does not take the embedding where there is no output matrix.
const NEVER_TIED: [&str; 6] = ["gpt-oss", "olmo2", "olmoe", "phi2", "qwen2moe", "stablelm"];

/// A file in the making.
#[derive(Debug)]
pub(super) struct ModelBuilder<'a> {
    folder: &'a Path,
    /// What the model is called.
    name: &'a str,
    config: &'a CheckpointConfig,
    /// Those that no recipe has taken yet, their names without what other modalities put in front.
    tensors: StoredTensors,
    /// llama.cpp's name of the architecture.
    arch: &'static str,
    pub(super) keys: Vec<(String, GgufValue)>,
    pub(super) recipes: Vec<TensorRecipe>,
    /// Rows of the token embedding.
    pub(super) vocabulary: u64,
    embedding: Option<StoredTensor>,
    /// Instead of a checkpoint, where there is none.
    imagined: Option<ShapeOnly<'a>>,
}

/// Stands in for a checkpoint: every tensor that a family asks for is there, in the shape that it asks for, without
/// numbers.
#[derive(Clone, Copy)]
struct ShapeOnly<'a> {
    /// Which of the tensors are there that some checkpoints do not have.
    has: &'a dyn Fn(&str) -> bool,
    /// The file that they say they are in.
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

/// Reads the configuration and the tensors as the architecture wants them.
pub(super) fn build<'a>(
    folder: &'a Path,
    name: &'a str,
    config: &'a CheckpointConfig,
    tensors: StoredTensors,
) -> Result<ModelBuilder<'a>, ConvertError> {
    let tensors = renamed(unpacked(config, tensors)?)?;
    let mut build = ModelBuilder::new(folder, name, config, tensors, None);
    family_of(config)?(&mut build)?;
    build.finish()
}

/// The tensors with their scales, where they have some.
fn unpacked(config: &CheckpointConfig, tensors: StoredTensors) -> Result<StoredTensors, ConvertError> {
    match config.packing() {
        Some(StoredQuantization::Fp8(block)) => fp8::join(tensors, block),
        _ => Ok(tensors),
    }
}

/// What a family would make of a checkpoint with this configuration, and of which of its tensors. `has` says which of those
/// are there that some checkpoints do not have; `shard` is the file that none of them is read from.
pub(super) fn trace(
    config: &CheckpointConfig,
    shard: &Arc<ShardFile>,
    has: impl Fn(&str) -> bool,
) -> Result<Vec<TensorRecipe>, ConvertError> {
    // There is nothing beside the weights, either.
    let folder = shard.path.parent().unwrap_or(&shard.path);
    let imagined = ShapeOnly { has: &has, shard };
    let mut build = ModelBuilder::new(folder, "", config, StoredTensors::new(), Some(imagined));
    family_of(config)?(&mut build)?;
    Ok(build.recipes)
}

/// What can be converted, for people: the families of `family_of` by the names that their makers give them.
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

/// What plans the files of a family.
type Family = fn(&mut ModelBuilder<'_>) -> Result<(), ConvertError>;

/// The family of an architecture.
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
    // Others have no names for it.
    if config.packing() == Some(StoredQuantization::Mxfp4) && config.architecture() != "GptOssForCausalLM" {
        return Err(ConvertError::Quantized("mxfp4".to_owned()));
    }
    Ok(family)
}

/// Leaves out what belongs to pictures and sounds, and shortens the names of the language model beside them.
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
        imagined: Option<ShapeOnly<'a>>,
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
            imagined,
        }
    }

    /// llama.cpp's name of the architecture.
    pub(super) fn arch_name(&self) -> &'static str {
        self.arch
    }

    /// Puts a key of this architecture.
    fn put(&mut self, key: &str, value: GgufValue) {
        self.keys.push((format!("{}.{key}", self.arch), value));
    }

    fn put_integer(&mut self, key: &str, integer: u64) -> Result<(), ConvertError> {
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
                "it has {blocks} layers; the engine can hold {MAX_BLOCKS}"
            ))),
            blocks => Ok(blocks),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.imagined.is_some_and(|imagined| (imagined.has)(name))
    }

    /// Takes a tensor of any shape.
    fn take_any(&mut self, name: &str) -> Result<StoredTensor, ConvertError> {
        self.tensors.remove(name).ok_or_else(|| missing(name))
    }

    /// Takes a tensor that must have this shape, slowest dimension first.
    fn take(&mut self, name: &str, shape: &[u64]) -> Result<StoredTensor, ConvertError> {
        let taken = self.look(name, shape)?;
        self.tensors.remove(name);
        Ok(taken)
    }

    /// A tensor that must have this shape and stays for others.
    fn look(&self, name: &str, shape: &[u64]) -> Result<StoredTensor, ConvertError> {
        if let Some(imagined) = self.imagined {
            return Ok(imagined.tensor(name, shape));
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

    /// Takes the weight of this shape below a name, and adds it below another.
    fn copy(&mut self, from: &str, to: &str, shape: &[u64]) -> Result<(), ConvertError> {
        let source = self.take(&format!("{from}.weight"), shape)?;
        self.add(&format!("{to}.weight"), &source);
        Ok(())
    }

    /// Takes the token embedding; its rows are the vocabulary.
    fn take_embedding(&mut self, name: &str, hidden: u64) -> Result<(), ConvertError> {
        let said = self.config.optional_integer(&["vocab_size"])?;
        let source = match (self.imagined, said) {
            (Some(imagined), Some(rows)) => imagined.tensor(name, &[rows, hidden]),
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

    /// Takes the output matrix where it is stored; else the embedding is it, too.
    fn take_output(&mut self, name: &str, hidden: u64) -> Result<(), ConvertError> {
        if self.has(name) {
            let source = self.take(name, &[self.vocabulary, hidden])?;
            self.add("output.weight", &source);
            let bias = name.replace(".weight", ".bias");
            if self.has(&bias) {
                let source = self.take(&bias, &[self.vocabulary])?;
                self.add("output.bias", &source);
            }
            return Ok(());
        }
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

/// A tensor in full precision, whose type is chosen later.
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
