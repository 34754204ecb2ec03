//! From a folder to a plan: which type each tensor gets, and what the file says of itself.

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
/// Matrices that the engine wants in full precision: small, and much depends on them.
const FULL_PRECISION: [&str; 4] = ["ffn_gate_inp", "ffn_gate_inp_shexp", "position_embd", "token_types"];
/// Kernels of a convolution, of which ggml knows those of F16 and F32.
const PATCH_KERNEL: &str = "v.patch_embd.weight";
/// What the engine demands of the vocabulary of a model with Phi 3's name.
const PHI3_TOKENS: [&str; 4] = ["</s>", "<unk>", "<s>", "<|endoftext|>"];

/// Which file is made of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GgufRole {
    /// The model; of one that sees, the language model.
    Model,
    /// What makes embeddings of pictures.
    Projector,
}

impl GgufRole {
    /// Plans the file, as [`plan_checked`] or [`plan_projector`]; a projector has no vocabulary to be cut with.
    ///
    /// # Errors
    /// As these.
    pub fn plan(
        self,
        folder: &Path,
        name: &str,
        target: WeightType,
        cut: &mut EngineTokenizer<'_>,
    ) -> Result<ConversionPlan, ConvertError> {
        match self {
            Self::Model => plan_checked(folder, name, target, cut),
            Self::Projector => plan_projector(folder, name, target),
        }
    }

    /// What the file is called where nobody says: pairs of both are found by these names.
    #[must_use]
    pub fn file_name(self, name: &str, file_type: &str) -> String {
        match self {
            Self::Model => format!("{name}-{file_type}.gguf"),
            Self::Projector => format!("mmproj-{name}-{file_type}.gguf"),
        }
    }
}

/// A plan, and what its maker should know.
#[derive(Debug)]
pub struct ConversionPlan {
    /// The file.
    pub model: VirtualGguf,
    /// As `BF16`.
    pub file_type: &'static str,
    /// How the engine compares with the checkpoint's own tokenizer, if it was asked and there is one.
    pub check: Option<TokenizerCheck>,
    /// Sentences: defaults that were used, doubts.
    pub notes: Vec<String>,
}

/// The type of a whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileType {
    element: GgmlType,
    /// llama.cpp's number.
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

    /// The type of a file whose experts are MXFP4 while all else is not quantised.
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

    /// The type of one tensor, by the rules of llama.cpp's converter.
    fn of_tensor(self, recipe: &TensorRecipe) -> GgmlType {
        let spec = recipe.spec();
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
        if spec.dims.len() < 2 || name.ends_with("_norm") || is_full {
            GgmlType::F32
        } else if !row.is_multiple_of(self.element.block_elements()) {
            GgmlType::F16
        } else {
            self.element
        }
    }
}

/// The type that most numbers of matrices have.
fn most_stored(recipes: &[TensorRecipe]) -> GgmlType {
    let mut counts = [(GgmlType::BF16, 0u64), (GgmlType::F16, 0), (GgmlType::F32, 0)];
    for source in recipes
        .iter()
        .filter(|recipe| recipe.spec().dims.len() > 1)
        .flat_map(TensorRecipe::sources)
    {
        let kind = match source.dtype {
            // The scales have no more bits in the models that were made so.
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
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    most.map_or(GgmlType::F16, |(kind, _)| kind)
}

/// Whether the checkpoint that a `config.json` describes can be planned, as far as that file shows: worth asking before
/// gigabytes of weights are fetched.
///
/// # Errors
/// If its architecture is unknown, or the weights are quantised already.
pub fn check_config(json: &str) -> Result<(), ConvertError> {
    let config = CheckpointConfig::parse(json)?;
    arch::family_of(&config).map(drop)
}

/// Whether a checkpoint has a projector that can be planned, as far as its `config.json` shows.
#[must_use]
pub fn has_projector(folder: &Path) -> bool {
    CheckpointConfig::read(folder).is_ok_and(|config| arch::vision_config(&config).is_ok())
}

/// What the engine makes of texts with the vocabulary of a file, given as bytes, that has no weights.
pub type EngineTokenizer<'a> = dyn FnMut(&[u8], &[String]) -> Result<Vec<Vec<i32>>, ConvertError> + 'a;

/// Plans the file of a checkpoint. Reads configuration, tokenizer and the headers of the weights, but no weight.
///
/// # Errors
/// If the folder holds no complete checkpoint of a known architecture.
pub fn plan(folder: &Path, name: &str, target: WeightType) -> Result<ConversionPlan, ConvertError> {
    let draft = Draft::new(folder, name, target)?;
    if !draft.tokenizer.is_known {
        return Err(ConvertError::Tokenizer(
            "llama.cpp has no pre-tokenizer that is known to cut texts as this one does; choose a repository with GGUF \
             files"
                .to_owned(),
        ));
    }
    draft.finish(None)
}

/// As [`plan`], and compares the engine with the checkpoint's own tokenizer on some texts. Of several ways in which the
/// engine could cut them, it takes the first that is right, or the best.
///
/// # Errors
/// As [`plan`], and those of `cut`.
pub fn plan_checked(
    folder: &Path,
    name: &str,
    target: WeightType,
    cut: &mut EngineTokenizer<'_>,
) -> Result<ConversionPlan, ConvertError> {
    let mut draft = Draft::new(folder, name, target)?;
    let texts = draft.tokenizer.texts();
    if texts.is_empty() {
        return draft.finish(None);
    }
    let mut best: Option<(usize, TokenizerCheck)> = None;
    for candidate in 0..draft.tokenizer.candidates() {
        draft.tokenizer.choose(candidate);
        let vocabulary = gguf::GgufLayout::new(draft.metadata(), Vec::new())?;
        let check = draft.tokenizer.check(&cut(vocabulary.header(), &texts)?);
        let is_better = best.as_ref().is_none_or(|(_, best)| check.wrong < best.wrong);
        let is_enough = !check.is_doubtful();
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

/// Plans the file with the part of a checkpoint that makes embeddings of pictures, which the engine reads beside the
/// model's: the encoder and the projector behind it. llama.cpp makes no mix of such a file; where one is asked for, the
/// plan is that of the stored type.
///
/// # Errors
/// If the folder holds no complete checkpoint of an architecture whose projector is known.
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
    let (none, notes) = (TokenizerMetadata::default(), sorted(notes));
    Draft::of(folder, build, "mmproj", name, target, none, notes)?.finish(None)
}

fn sorted(mut notes: Vec<String>) -> Vec<String> {
    notes.sort();
    notes.dedup();
    notes
}

/// A plan whose tokenizer may still change.
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
        Self::of(folder, build, "model", name, target, tokenizer, notes)
    }

    /// Chooses the types of the tensors, and says what the file is.
    fn of(
        folder: &Path,
        build: arch::ModelBuilder<'_>,
        file: &str,
        name: &str,
        target: WeightType,
        tokenizer: TokenizerMetadata,
        notes: Vec<String>,
    ) -> Result<Self, ConvertError> {
        let arch = build.arch_name();
        let mut recipes = build.recipes;
        let mut kind = FileType::of(target, &recipes);
        for recipe in &mut recipes {
            // What is packed stays so, unless all is to be packed in another way.
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
        let mut general = vec![text("general.architecture", arch), text("general.type", file)];
        general.push(("general.file_type".to_owned(), GgufValue::U32(number)));
        general.push((
            "general.quantization_version".to_owned(),
            GgufValue::U32(QUANTIZATION_VERSION),
        ));
        let of_card = card::metadata(folder, name, &recipes)?.into_iter();
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
        // What an architecture says of its tokenizer stands above what the tokenizer's files say.
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
        drop(tokenizer);
        Ok(ConversionPlan {
            model: VirtualGguf::new(metadata, recipes)?,
            file_type,
            check,
            notes,
        })
    }
}

/// The engine takes a model of this name for Phi 3, and throws where it lacks Phi 3's tokens.
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
