//! From a folder to a plan: which type each tensor gets, and what the file says of itself.

use std::{fmt, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    ConvertError, Recipe, VirtualGguf, arch, card,
    config::Config,
    mix::{self, Shape},
    safetensors::{self, Dtype},
    tokenizer::{self, Tokenizer, TokenizerCheck},
};
use crate::gguf::{self, GgmlType, TensorSpec, Value, file_type_name};

/// `GGML_QNT_VERSION`.
const QUANTIZATION_VERSION: u32 = 2;
/// Matrices that the engine wants in full precision: small, and much depends on them.
const FULL_PRECISION: [&str; 4] = ["ffn_gate_inp", "ffn_gate_inp_shexp", "position_embd", "token_types"];
/// Kernels of a convolution, of which ggml knows those of F16 and F32.
const PATCH_KERNEL: &str = "v.patch_embd.weight";
/// What the engine demands of the vocabulary of a model with Phi 3's name.
const PHI3_TOKENS: [&str; 4] = ["</s>", "<unk>", "<s>", "<|endoftext|>"];

/// In which type most weights are written. Vectors, norms and routers are always F32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum TargetType {
    /// The one that most of the checkpoint's numbers have.
    #[default]
    Stored,
    /// 32 bits.
    F32,
    /// 16 bits, of which five are the exponent.
    F16,
    /// 16 bits, of which eight are the exponent.
    Bf16,
    /// 8 bits in blocks of 32 with a scale.
    Q8_0,
    /// A mix as llama.cpp makes it, with its quantiser of rows.
    Quantized(Quantization),
}

/// A mix of types, mostly of few bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// As `Q4_K_M`.
    pub name: &'static str,
    /// llama.cpp's number.
    pub file_type: u32,
    /// What most matrices get.
    pub(super) base: GgmlType,
}

/// Those that need no sample of what the model will be used for.
const QUANTIZATIONS: &[Quantization] = &[
    quantization("Q4_0", 2, GgmlType::Q4_0),
    quantization("Q4_1", 3, GgmlType::Q4_1),
    quantization("Q5_0", 8, GgmlType::Q5_0),
    quantization("Q5_1", 9, GgmlType::Q5_1),
    quantization("Q2_K", 10, GgmlType::Q2_K),
    quantization("Q3_K_S", 11, GgmlType::Q3_K),
    quantization("Q3_K_M", 12, GgmlType::Q3_K),
    quantization("Q3_K_L", 13, GgmlType::Q3_K),
    quantization("Q4_K_S", 14, GgmlType::Q4_K),
    quantization("Q4_K_M", 15, GgmlType::Q4_K),
    quantization("Q5_K_S", 16, GgmlType::Q5_K),
    quantization("Q5_K_M", 17, GgmlType::Q5_K),
    quantization("Q6_K", 18, GgmlType::Q6_K),
    quantization("IQ4_NL", 25, GgmlType::IQ4_NL),
    quantization("IQ4_XS", 30, GgmlType::IQ4_XS),
];

const fn quantization(name: &'static str, file_type: u32, base: GgmlType) -> Quantization {
    Quantization { name, file_type, base }
}

impl TargetType {
    /// Every type that has a name of its own, the widest first, then llama.cpp's mixes.
    #[must_use]
    pub fn named() -> Vec<Self> {
        let plain = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0];
        let mixes = QUANTIZATIONS.iter().map(|mix| Self::Quantized(*mix));
        plain.into_iter().chain(mixes).collect()
    }
}

impl FromStr for TargetType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.to_ascii_uppercase().as_str() {
            "AUTO" | "STORED" => Self::Stored,
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "Q8_0" => Self::Q8_0,
            other => {
                let Some(found) = QUANTIZATIONS.iter().find(|mix| mix.name == other) else {
                    let names: Vec<&str> = QUANTIZATIONS.iter().map(|mix| mix.name).collect();
                    return Err(format!(
                        "{text:?} is none of auto, F32, F16, BF16, Q8_0, {}",
                        names.join(", ")
                    ));
                };
                Self::Quantized(*found)
            }
        })
    }
}

/// Which file is made of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// The model; of one that sees, the language model.
    Model,
    /// What makes embeddings of pictures.
    Projector,
}

impl Part {
    /// Plans the file, as [`plan_checked`] or [`plan_projector`]; a projector has no vocabulary to be cut with.
    ///
    /// # Errors
    /// As these.
    pub fn plan(
        self,
        folder: &Path,
        name: &str,
        target: TargetType,
        cut: &mut Cut<'_>,
    ) -> Result<Planned, ConvertError> {
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
pub struct Planned {
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

    fn of(target: TargetType, recipes: &[Recipe]) -> Self {
        Self::new(match target {
            TargetType::F32 => GgmlType::F32,
            TargetType::F16 => GgmlType::F16,
            TargetType::Bf16 => GgmlType::BF16,
            TargetType::Q8_0 => GgmlType::Q8_0,
            TargetType::Stored | TargetType::Quantized(_) => most_stored(recipes),
        })
    }

    /// The type of one tensor, by the rules of llama.cpp's converter.
    fn of_tensor(self, recipe: &Recipe) -> GgmlType {
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
fn most_stored(recipes: &[Recipe]) -> GgmlType {
    let mut counts = [(GgmlType::BF16, 0u64), (GgmlType::F16, 0), (GgmlType::F32, 0)];
    for source in recipes
        .iter()
        .filter(|recipe| recipe.spec().dims.len() > 1)
        .flat_map(Recipe::sources)
    {
        let kind = match source.dtype {
            // The scales have no more bits in the models that were made so.
            _ if source.scales.is_some() => 0,
            Dtype::BF16 => 0,
            Dtype::F16 => 1,
            Dtype::F32 | Dtype::F64 => 2,
            Dtype::Other(..) => continue,
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
    let config = Config::parse(json)?;
    arch::family_of(&config).map(drop)
}

/// Whether a checkpoint has a projector that can be planned, as far as its `config.json` shows.
#[must_use]
pub fn has_projector(folder: &Path) -> bool {
    Config::read(folder).is_ok_and(|config| arch::vision_config(&config).is_ok())
}

/// What the engine makes of texts with the vocabulary of a file, given as bytes, that has no weights.
pub type Cut<'a> = dyn FnMut(&[u8], &[String]) -> Result<Vec<Vec<i32>>, ConvertError> + 'a;

/// Plans the file of a checkpoint. Reads configuration, tokenizer and the headers of the weights, but no weight.
///
/// # Errors
/// If the folder holds no complete checkpoint of a known architecture.
pub fn plan(folder: &Path, name: &str, target: TargetType) -> Result<Planned, ConvertError> {
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
pub fn plan_checked(folder: &Path, name: &str, target: TargetType, cut: &mut Cut<'_>) -> Result<Planned, ConvertError> {
    let mut draft = Draft::new(folder, name, target)?;
    let texts = draft.tokenizer.texts();
    if texts.is_empty() {
        return draft.finish(None);
    }
    let mut best: Option<(usize, TokenizerCheck)> = None;
    for candidate in 0..draft.tokenizer.candidates() {
        draft.tokenizer.choose(candidate);
        let vocabulary = gguf::Plan::new(draft.metadata(), Vec::new())?;
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
pub fn plan_projector(folder: &Path, name: &str, target: TargetType) -> Result<Planned, ConvertError> {
    let config = Config::read(folder)?;
    let vision = arch::vision_config(&config)?;
    let target = match target {
        TargetType::Quantized(_) => TargetType::Stored,
        plain => plain,
    };
    let tensors = safetensors::open(folder)?;
    let build = arch::build_projector(folder, name, &config, &vision, tensors)?;
    let mut notes = config.take_notes();
    notes.extend(vision.take_notes());
    let (none, notes) = (Tokenizer::default(), sorted(notes));
    Draft::of(folder, build, "mmproj", name, target, none, notes)?.finish(None)
}

fn sorted(mut notes: Vec<String>) -> Vec<String> {
    notes.sort();
    notes.dedup();
    notes
}

/// A plan whose tokenizer may still change.
struct Draft {
    general: Vec<(String, Value)>,
    keys: Vec<(String, Value)>,
    tokenizer: Tokenizer,
    recipes: Vec<Recipe>,
    file_type: &'static str,
    notes: Vec<String>,
}

impl Draft {
    fn new(folder: &Path, name: &str, target: TargetType) -> Result<Self, ConvertError> {
        let config = Config::read(folder)?;
        let tensors = safetensors::open(folder)?;
        let build = arch::build(folder, name, &config, tensors)?;
        let mut notes = sorted(config.take_notes());
        let tokenizer = tokenizer::read(folder, build.vocabulary, &mut notes)?;
        Self::of(folder, build, "model", name, target, tokenizer, notes)
    }

    /// Chooses the types of the tensors, and says what the file is.
    fn of(
        folder: &Path,
        build: arch::Build<'_>,
        file: &str,
        name: &str,
        target: TargetType,
        tokenizer: Tokenizer,
        notes: Vec<String>,
    ) -> Result<Self, ConvertError> {
        let arch = build.arch_name();
        let mut recipes = build.recipes;
        let mut kind = FileType::of(target, &recipes);
        for recipe in &mut recipes {
            // What is packed stays so, unless all is to be packed in another way.
            if recipe.is_packed() && !matches!(target, TargetType::Quantized(_)) {
                kind = kind.with_packed();
                continue;
            }
            let element = kind.of_tensor(recipe);
            recipe.set_type(element);
        }
        let (file_type, number) = match target {
            TargetType::Quantized(mix) => {
                let specs: Vec<&TensorSpec> = recipes.iter().map(Recipe::spec).collect();
                let types = mix::types(mix, &Shape::of(arch, &build.keys), &specs);
                for (recipe, kind) in recipes.iter_mut().zip(types) {
                    kind.into_iter().for_each(|kind| recipe.set_type(kind));
                }
                (mix.name, mix.file_type)
            }
            _ => (file_type_name(kind.number.into()).unwrap_or("F32"), kind.number),
        };
        let text = |key: &str, text: &str| (key.to_owned(), Value::String(text.to_owned()));
        let mut general = vec![text("general.architecture", arch), text("general.type", file)];
        general.push(("general.file_type".to_owned(), Value::U32(number)));
        general.push((
            "general.quantization_version".to_owned(),
            Value::U32(QUANTIZATION_VERSION),
        ));
        let of_card = card::metadata(folder, name, &recipes)?.into_iter();
        let is_safe = |(key, value): &(String, Value)| {
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

    fn metadata(&self) -> Vec<(String, Value)> {
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

    fn finish(self, check: Option<TokenizerCheck>) -> Result<Planned, ConvertError> {
        let mut metadata = self.metadata();
        if let Some(check) = &check {
            metadata.push((gguf::TOKENIZER_CHECK_KEY.to_owned(), Value::String(check.value())));
        }
        let Self {
            tokenizer,
            recipes,
            file_type,
            notes,
            ..
        } = self;
        drop(tokenizer);
        Ok(Planned {
            model: VirtualGguf::new(metadata, recipes)?,
            file_type,
            check,
            notes,
        })
    }
}

/// The engine takes a model of this name for Phi 3, and throws where it lacks Phi 3's tokens.
fn is_safe_name(name: &str, metadata: &[(String, Value)]) -> bool {
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

impl TryFrom<String> for TargetType {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<TargetType> for String {
    fn from(target: TargetType) -> Self {
        target.to_string()
    }
}

impl fmt::Display for TargetType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stored => "auto",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Quantized(mix) => mix.name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_types() {
        for kind in [
            TargetType::Stored,
            TargetType::F32,
            TargetType::F16,
            TargetType::Bf16,
            TargetType::Q8_0,
        ] {
            assert_eq!(kind.to_string().to_lowercase().parse(), Ok(kind));
        }
        for mix in QUANTIZATIONS {
            assert_eq!(mix.name.parse(), Ok(TargetType::Quantized(*mix)));
            assert_eq!(file_type_name(mix.file_type.into()), Some(mix.name));
        }
        assert!("IQ1_S".parse::<TargetType>().unwrap_err().contains("none of"));
    }

    #[test]
    fn a_name_that_the_engine_misreads() {
        let tokens = |list: &[&str]| {
            let strings = crate::gguf::Array::String(list.iter().collect());
            vec![("tokenizer.ggml.tokens".to_owned(), Value::Array(strings))]
        };
        assert!(is_safe_name("Llama", &[]));
        assert!(!is_safe_name("my-Phi3-mini", &tokens(&["<s>"])));
        assert!(is_safe_name("Phi-3", &tokens(&PHI3_TOKENS)));
    }
}
