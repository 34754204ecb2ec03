//! Planning of a conversion: reads a checkpoint's folder, chooses the type of each tensor and assembles the metadata.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{
    ConvertError, TensorRecipe, VirtualGguf, arch, card,
    config::CheckpointConfig,
    dtype::TensorDtype,
    mix::{self, ModelShape},
    safetensors,
    tokenizer::{self, TokenizerCheck, TokenizerMetadata},
};
use crate::{
    gguf::{self, GgmlType, GgufValue, TensorSpec, file_type_name},
    inference::WeightType,
};

/// `GGML_QNT_VERSION`.
const QUANTIZATION_VERSION: u32 = 2;
/// Matrices that llama.cpp's converter keeps in F32: routers, position embeddings and token types (`prepare_tensors`).
const FULL_PRECISION: [&str; 4] = ["ffn_gate_inp", "ffn_gate_inp_shexp", "position_embd", "token_types"];
/// Patch embedding of a vision encoder. ggml's convolutions take only F16 and F32 kernels.
const PATCH_KERNEL: &str = "v.patch_embd.weight";
/// Tokens that llama.cpp requires of a model with Phi 3's name.
const PHI3_TOKENS: [&str; 4] = ["</s>", "<unk>", "<s>", "<|endoftext|>"];

/// Role of a GGUF file that is made from a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GgufRole {
    /// The language model.
    Model,
    /// The vision encoder and projector (`mmproj`).
    Projector,
}

impl GgufRole {
    /// Plans the file with [`plan_checked`] or [`plan_projector`]. A projector has no vocabulary to compare.
    ///
    /// # Errors
    /// The errors of [`plan_checked`] or [`plan_projector`].
    pub fn plan(
        self,
        folder: &Path,
        name: &str,
        target: WeightType,
        tokenize: &mut EngineTokenizer<'_>,
    ) -> Result<ConversionPlan, ConvertError> {
        match self {
            Self::Model => plan_checked(folder, name, target, tokenize),
            Self::Projector => plan_projector(folder, name, target),
        }
    }

    /// Returns the value of `general.type`.
    fn general_type(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Projector => "mmproj",
        }
    }

    /// Returns the default name of the file. llama.cpp's tools find the projector of a model by the prefix `mmproj-`.
    #[must_use]
    pub fn file_name(self, name: &str, file_type: &str) -> String {
        match self {
            Self::Model => format!("{name}-{file_type}.gguf"),
            Self::Projector => format!("mmproj-{name}-{file_type}.gguf"),
        }
    }
}

/// Result of planning: the file, and findings that the user should see.
#[derive(Debug)]
pub struct ConversionPlan {
    pub model: VirtualGguf,
    /// Name of the weight type, for example `BF16`. It tells what `stored` turned out to be.
    pub file_type: &'static str,
    /// Comparison of llama.cpp's tokenizer with the checkpoint's own, if it was made.
    pub check: Option<TokenizerCheck>,
    /// Sentences for the user, for example about defaults that were used.
    pub notes: Vec<String>,
}

/// Plain type of a whole file, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileType {
    element: GgmlType,
    /// Value of `enum llama_ftype`.
    number: u32,
}

impl FileType {
    fn new(element: GgmlType) -> Self {
        let number = match element {
            GgmlType::F16 => 1,
            GgmlType::Q8_0 => 7,
            GgmlType::BF16 => 32,
            _ => 0,
        };
        Self { element, number }
    }

    /// Returns the type of a file whose experts stay MXFP4 while all else is not quantized
    /// (`LLAMA_FTYPE_MOSTLY_MXFP4_MOE`).
    fn with_packed(self) -> Self {
        const MXFP4_MOE: u32 = 38;
        match self.element {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => Self {
                number: MXFP4_MOE,
                ..self
            },
            _ => self,
        }
    }

    fn of(target: WeightType, recipes: &[TensorRecipe]) -> Self {
        Self::new(match target {
            WeightType::F32 => GgmlType::F32,
            WeightType::F16 => GgmlType::F16,
            WeightType::Bf16 => GgmlType::BF16,
            WeightType::Q8_0 => GgmlType::Q8_0,
            WeightType::Stored | WeightType::Mix(_) => most_stored(recipes),
        })
    }

    /// Returns the type of one tensor by the rules of llama.cpp's converter (`prepare_tensors`, `tensor_force_quant`).
    fn of_tensor(self, recipe: &TensorRecipe) -> GgmlType {
        let spec = recipe.spec();
        // Also `v.patch_embd.weight.1`, the kernel of Qwen2-VL's second frame.
        if spec.name.starts_with(PATCH_KERNEL) {
            return if self.element == GgmlType::F16 {
                GgmlType::F16
            } else {
                GgmlType::F32
            };
        }
        let Some(name) = spec.name.strip_suffix(".weight") else {
            return GgmlType::F32;
        };
        let last = name.rsplit('.').next().unwrap_or(name);
        let is_full = FULL_PRECISION.contains(&last) || name.ends_with(".shortconv.conv");
        let row = spec.dims.first().copied().unwrap_or(1);
        // llama.cpp aborts on norms of any other type when it computes with them.
        if spec.dims.len() < 2 || name.ends_with("_norm") || is_full {
            GgmlType::F32
        // Only Q8_0 has blocks here. The converter falls back to F16, too.
        } else if !row.is_multiple_of(self.element.block_elements()) {
            GgmlType::F16
        } else {
            self.element
        }
    }
}

/// Returns the type that most elements of stored matrices have. llama.cpp's converter asks only the
/// first matrix (`--outtype auto`).
fn most_stored(recipes: &[TensorRecipe]) -> GgmlType {
    let mut counts = [(GgmlType::BF16, 0u64), (GgmlType::F16, 0), (GgmlType::F32, 0)];
    for source in recipes
        .iter()
        .filter(|recipe| recipe.spec().dims.len() > 1)
        .flat_map(TensorRecipe::sources)
    {
        let kind = match source.dtype {
            // Eight-bit floats times scales, which in published models have no more bits than BF16.
            _ if source.scales.is_some() => 0,
            TensorDtype::BF16 => 0,
            TensorDtype::F16 => 1,
            TensorDtype::F32 | TensorDtype::F64 => 2,
            TensorDtype::Other(..) => continue,
        };
        counts[kind].1 = counts[kind]
            .1
            .saturating_add(source.rows().saturating_mul(source.row_elements()));
    }
    // Of equal counts `max_by_key` takes the last: F32 rather than a type of 16 bits.
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    most.map_or(GgmlType::F16, |(kind, _)| kind)
}

/// Checks whether a checkpoint with this `config.json` can be converted, as far as that file tells. A pull asks before
/// it downloads gigabytes of weights.
///
/// # Errors
/// If the architecture is unknown, or the weights are quantized already.
pub fn check_config(json: &str) -> Result<(), ConvertError> {
    let config = CheckpointConfig::parse(json)?;
    arch::family_of(&config).map(drop)
}

/// Returns true if the checkpoint has a projector that can be converted, as far as its `config.json` tells.
#[must_use]
pub fn has_projector(folder: &Path) -> bool {
    CheckpointConfig::read(folder).is_ok_and(|config| arch::vision_config(&config).is_ok())
}

/// Function that tokenizes texts with llama.cpp. It gets the bytes of a GGUF file that has a vocabulary but no weights,
/// and returns the token ids of each text.
pub type EngineTokenizer<'a> = dyn FnMut(&[u8], &[String]) -> Result<Vec<Vec<i32>>, ConvertError> + 'a;

/// Plans the file of a checkpoint named `name`. Reads configuration, tokenizer and the headers of the weights, but no
/// weight.
///
/// # Errors
/// If the folder holds no complete checkpoint of a known architecture, or llama.cpp has no pre-tokenizer with the
/// structure of the checkpoint's.
pub fn plan(folder: &Path, name: &str, target: WeightType) -> Result<ConversionPlan, ConvertError> {
    let draft = Draft::new(folder, name, target)?;
    if !draft.tokenizer.is_known {
        return Err(ConvertError::Tokenizer(
            "llama.cpp has no pre-tokenizer that is known to split texts like this one; choose a repository with GGUF \
             files"
                .to_owned(),
        ));
    }
    draft.finish(None)
}

/// Plans the file like [`plan`], and compares llama.cpp's tokenizer with the checkpoint's own on sample texts. If
/// several pre-tokenizers are possible, takes the first that agrees, or the one that agrees on most texts.
///
/// # Errors
/// If the folder holds no complete checkpoint of a known architecture, or `tokenize` fails.
pub fn plan_checked(
    folder: &Path,
    name: &str,
    target: WeightType,
    tokenize: &mut EngineTokenizer<'_>,
) -> Result<ConversionPlan, ConvertError> {
    let mut draft = Draft::new(folder, name, target)?;
    let texts = draft.tokenizer.texts();
    // The reference implementation cannot run, for example on a SentencePiece BPE model alone.
    if texts.is_empty() {
        return draft.finish(None);
    }
    let mut best: Option<(usize, TokenizerCheck)> = None;
    for candidate in 0..draft.tokenizer.candidates() {
        draft.tokenizer.choose(candidate);
        // A file of metadata alone: llama.cpp loads it with `vocab_only`.
        let vocabulary = gguf::GgufLayout::new(draft.metadata(), Vec::new())?;
        let check = draft.tokenizer.check(&tokenize(vocabulary.header(), &texts)?);
        // Of equal candidates the first stays: they are sorted by likelihood.
        let is_better = best.as_ref().is_none_or(|(_, best)| check.wrong < best.wrong);
        let is_enough = !check.is_mismatch();
        if is_better {
            best = Some((candidate, check));
        }
        if is_enough {
            break;
        }
    }
    if let Some((candidate, _)) = &best {
        draft.tokenizer.choose(*candidate);
    }
    draft.finish(best.map(|(_, check)| check))
}

/// Plans the file with the vision encoder and projector of a checkpoint, which llama.cpp loads next to the model's. Its
/// quantizer makes no mixes of such files, so a mix becomes the stored type.
///
/// # Errors
/// If the folder holds no complete checkpoint of an architecture whose projector can be converted.
pub fn plan_projector(folder: &Path, name: &str, target: WeightType) -> Result<ConversionPlan, ConvertError> {
    let config = CheckpointConfig::read(folder)?;
    let vision = arch::vision_config(&config)?;
    let target = match target {
        WeightType::Mix(_) => WeightType::Stored,
        plain => plain,
    };
    let tensors = safetensors::open(folder)?;
    let build = arch::build_projector(folder, name, &config, &vision, tensors)?;
    let mut notes = config.take_notes();
    notes.extend(vision.take_notes());
    let request = PlanRequest {
        folder,
        name,
        target,
        role: GgufRole::Projector,
    };
    Draft::of(&request, build, TokenizerMetadata::default(), sorted(notes))?.finish(None)
}

fn sorted(mut notes: Vec<String>) -> Vec<String> {
    notes.sort();
    notes.dedup();
    notes
}

/// Request of a plan: the checkpoint, its name, and what to make of it.
#[derive(Clone, Copy, Debug)]
struct PlanRequest<'a> {
    folder: &'a Path,
    name: &'a str,
    target: WeightType,
    role: GgufRole,
}

/// Draft of a plan. Its pre-tokenizer may still change.
struct Draft {
    general: Vec<(String, GgufValue)>,
    keys: Vec<(String, GgufValue)>,
    tokenizer: TokenizerMetadata,
    recipes: Vec<TensorRecipe>,
    file_type: &'static str,
    notes: Vec<String>,
}

impl Draft {
    fn new(folder: &Path, name: &str, target: WeightType) -> Result<Self, ConvertError> {
        let config = CheckpointConfig::read(folder)?;
        let tensors = safetensors::open(folder)?;
        let build = arch::build(folder, name, &config, tensors)?;
        let mut notes = sorted(config.take_notes());
        let tokenizer = tokenizer::read(folder, build.vocabulary, &mut notes)?;
        let request = PlanRequest {
            folder,
            name,
            target,
            role: GgufRole::Model,
        };
        Self::of(&request, build, tokenizer, notes)
    }

    /// Chooses the types of the tensors, and assembles the `general.*` keys.
    fn of(
        request: &PlanRequest<'_>,
        build: arch::ModelBuilder<'_>,
        tokenizer: TokenizerMetadata,
        notes: Vec<String>,
    ) -> Result<Self, ConvertError> {
        let PlanRequest {
            folder,
            name,
            target,
            role,
        } = *request;
        let arch = build.arch_name();
        let mut recipes = build.recipes;
        let mut kind = FileType::of(target, &recipes);
        for recipe in &mut recipes {
            // MXFP4 experts are repacked without loss, whatever plain type the rest gets. Only a mix requantizes them.
            if recipe.is_packed() && !matches!(target, WeightType::Mix(_)) {
                kind = kind.with_packed();
                continue;
            }
            let element = kind.of_tensor(recipe);
            recipe.set_type(element);
        }
        let (file_type, number) = match target {
            WeightType::Mix(mix) => {
                let specs: Vec<&TensorSpec> = recipes.iter().map(TensorRecipe::spec).collect();
                let types = mix::types(mix, &ModelShape::of(arch, &build.keys), &specs);
                for (recipe, kind) in recipes.iter_mut().zip(types) {
                    kind.into_iter().for_each(|kind| recipe.set_type(kind));
                }
                (target.name(), mix::file_type(mix))
            }
            _ => (file_type_name(kind.number.into()).unwrap_or("F32"), kind.number),
        };
        let text = |key: &str, text: &str| (key.to_owned(), GgufValue::String(text.to_owned()));
        let mut general = vec![
            text("general.architecture", arch),
            text("general.type", role.general_type()),
        ];
        general.push(("general.file_type".to_owned(), GgufValue::U32(number)));
        general.push((
            "general.quantization_version".to_owned(),
            GgufValue::U32(QUANTIZATION_VERSION),
        ));
        let of_card = card::metadata(folder, name, &recipes)?.into_iter();
        // Dropping the name is harmless: it is only shown.
        let is_safe = |(key, value): &(String, GgufValue)| {
            key != "general.name" || value.as_str().is_some_and(|name| is_safe_name(name, tokenizer.keys()))
        };
        general.extend(of_card.filter(is_safe));
        Ok(Self {
            general,
            keys: build.keys,
            tokenizer,
            recipes,
            file_type,
            notes,
        })
    }

    fn metadata(&self) -> Vec<(String, GgufValue)> {
        // Tokenizer keys that an architecture sets take precedence over those from the tokenizer's files.
        let is_free = |key: &str| self.keys.iter().all(|(other, _)| other != key);
        let tokenizer = self.tokenizer.keys().iter().filter(|(key, _)| is_free(key));
        self.general
            .iter()
            .chain(&self.keys)
            .chain(tokenizer)
            .cloned()
            .collect()
    }

    fn finish(self, check: Option<TokenizerCheck>) -> Result<ConversionPlan, ConvertError> {
        let mut metadata = self.metadata();
        if let Some(check) = &check {
            metadata.push((gguf::TOKENIZER_CHECK_KEY.to_owned(), GgufValue::String(check.value())));
        }
        let Self {
            tokenizer,
            recipes,
            file_type,
            notes,
            ..
        } = self;
        // Freed before the header is assembled, which holds the vocabulary once more.
        drop(tokenizer);
        Ok(ConversionPlan {
            model: VirtualGguf::new(metadata, recipes)?,
            file_type,
            check,
            notes,
        })
    }
}

/// Returns false for a name with which llama.cpp would crash: it takes a model whose name contains `phi-3` for Phi 3,
/// and throws if the vocabulary lacks Phi 3's tokens.
fn is_safe_name(name: &str, metadata: &[(String, GgufValue)]) -> bool {
    let lower = name.to_ascii_lowercase();
    if !lower.contains("phi-3") && !lower.contains("phi3") {
        return true;
    }
    let tokens = metadata.iter().find(|(key, _)| key == "tokenizer.ggml.tokens");
    let tokens = tokens.and_then(|(_, value)| value.as_strings());
    tokens.is_some_and(|tokens| {
        PHI3_TOKENS
            .iter()
            .all(|wanted| tokens.iter().any(|token| token == wanted.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_the_engine_misreads() {
        let tokens = |list: &[&str]| {
            let strings = crate::gguf::GgufArray::String(list.iter().collect());
            vec![("tokenizer.ggml.tokens".to_owned(), GgufValue::Array(strings))]
        };
        assert!(is_safe_name("Llama", &[]));
        assert!(!is_safe_name("my-Phi3-mini", &tokens(&["<s>"])));
        assert!(is_safe_name("Phi-3", &tokens(&PHI3_TOKENS)));
    }
}
