//! Conversion of LoRA adapters of the PEFT library to GGUF: two low-rank factors A `[rank, in]` and B `[out, rank]` for
//! each matrix `[out, in]`, whose product is added to it.
//!
//! Names and row orders come from the architecture families that convert whole checkpoints: [`arch::trace`] runs a
//! family on the sizes of the base without weights, and the rows of B are permuted like the rows of its matrix. The
//! columns of A are those of the matrix, which no family changes. llama.cpp's `convert_lora_to_gguf.py` does the same
//! with symbolic tensors.

mod base;
mod config;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

pub use base::{AdapterBase, check_adapter_config};

use base::{EMBEDDING, FACTORS};
use config::AdapterConfig;

use super::{
    ConvertError, TensorRecipe, VirtualGguf, arch,
    dtype::TensorDtype,
    parts::{StoredColumns, StoredRows},
    safetensors,
    stored::StoredTensor,
};
use crate::gguf::{GgmlType, GgufValue, TensorSpec};

/// File with the weights of an adapter.
const WEIGHTS: &str = "adapter_model.safetensors";
/// Prefix of all names in PEFT's files.
const PREFIX: &str = "base_model.model.";
/// PEFT's default adapter name, which some tools leave in the names of tensors.
const NAMELESS: &str = ".default";
/// Prefixes of classes before names that they share with others.
const CLASS_PREFIXES: [&str; 4] = ["model.", "transformer.", "bert.", "roberta."];

/// Factors of a matrix.
#[derive(Debug)]
struct FactorPair {
    /// PEFT's name of the module, which the patterns of its settings match.
    module: String,
    /// `[rank, columns]`.
    a: StoredTensor,
    /// `[rows, rank]`.
    b: StoredTensor,
    /// True for the factors of an embedding (`lora_embedding_A`), which PEFT stores transposed.
    is_embedding: bool,
}

/// Factors by the stem of their matrix.
type FactorPairs = BTreeMap<String, FactorPair>;

/// Plans the GGUF file of the adapter in a folder for a base. Reads its configuration and the header of its weights.
///
/// # Errors
/// If the folder holds no LoRA adapter, or one that cannot be applied to the base.
pub fn plan_adapter(folder: &Path, name: &str, base: &AdapterBase) -> Result<VirtualGguf, ConvertError> {
    let config = AdapterConfig::read(folder)?;
    let base_config = base.config()?;
    let pairs = pairs(safetensors::open_file(folder, WEIGHTS)?)?;
    let Some(first) = pairs.values().next() else {
        return refuse("it changes nothing".to_owned());
    };
    let alpha = config.usual_strength(rank(first));
    let mut matrices: BTreeSet<String> = pairs.keys().cloned().collect();
    matrices.extend(base.optional_matrices().map(str::to_owned));
    let traced = arch::trace(&base_config, &first.a.shard, |name| matrices.contains(&stem(name)))?;

    let mut unused: BTreeSet<&str> = pairs.keys().map(String::as_str).collect();
    let mut recipes = Vec::new();
    for recipe in &traced {
        let stems: Vec<String> = recipe.sources().map(|source| stem(&source.name)).collect();
        let found: Vec<&FactorPair> = stems.iter().filter_map(|stem| pairs.get(stem)).collect();
        if found.is_empty() {
            continue;
        }
        // The experts of a layer are one tensor, and llama.cpp has one pair of factors for all of them.
        if found.len() < stems.len() {
            return refuse(format!("it changes only some of the parts of {:?}", recipe.spec().name));
        }
        for stem in &stems {
            unused.remove(stem.as_str());
        }
        recipes.extend(factors(recipe, &found, &config, alpha)?);
    }
    if let Some(name) = unused.first() {
        return refuse(format!(
            "it changes {name:?}, which a base of the architecture {:?} does not have; it was made for another model",
            base.architecture()
        ));
    }
    let text = |key: &str, text: &str| (key.to_owned(), GgufValue::String(text.to_owned()));
    let metadata = vec![
        text("general.architecture", base.architecture()),
        text("general.type", "adapter"),
        text("general.name", name),
        text("adapter.type", "lora"),
        ("adapter.lora.alpha".to_owned(), GgufValue::F32(alpha as f32)),
    ];
    VirtualGguf::new(metadata, recipes)
}

fn refuse<T>(reason: String) -> Result<T, ConvertError> {
    Err(ConvertError::Adapter(reason))
}

fn rank(pair: &FactorPair) -> u64 {
    pair.a.shape.first().copied().unwrap_or(0)
}

/// Returns the name of a matrix without prefixes and suffixes that differ between classes.
fn stem(name: &str) -> String {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let name = name.replace("language_model.", "").replace("text_model.", "");
    let mut rest = name.as_str();
    while let Some(shorter) = CLASS_PREFIXES.iter().find_map(|prefix| rest.strip_prefix(prefix)) {
        rest = shorter;
    }
    rest.to_owned()
}

/// Pairs the factors of a file.
fn pairs(tensors: safetensors::StoredTensors) -> Result<FactorPairs, ConvertError> {
    let mut halves: BTreeMap<(String, bool), [Option<StoredTensor>; 2]> = BTreeMap::new();
    for (name, tensor) in tensors {
        // Some tools store the base's own weights next to the factors.
        if name.contains(".base_layer.") {
            continue;
        }
        let Some((module, half, is_embedding)) = factor_of(&name) else {
            return refuse(format!(
                "it holds {name:?}, which is not a factor of a matrix and cannot be applied; merge the adapter into its base and \
                 serve that"
            ));
        };
        let pair = halves.entry((module, is_embedding)).or_default();
        if pair[half].replace(tensor).is_some() {
            return refuse(format!("it holds {name:?} twice"));
        }
    }
    let mut pairs = FactorPairs::new();
    for ((module, is_embedding), halves) in halves {
        let [Some(a), Some(b)] = halves else {
            return refuse(format!("one of the factors of {module:?} is missing"));
        };
        let fits = match (a.shape.as_slice(), b.shape.as_slice()) {
            ([rank, _], [_, columns]) => rank == columns,
            _ => false,
        };
        if !fits {
            return refuse(format!(
                "the factors of {module:?} have the shapes {:?} and {:?}, which make no matrix",
                a.shape, b.shape
            ));
        }
        let stem = stem(&module);
        let pair = FactorPair {
            module,
            a,
            b,
            is_embedding,
        };
        if let Some(twice) = pairs.insert(stem, pair) {
            return refuse(format!("it changes {:?} twice", twice.module));
        }
    }
    Ok(pairs)
}

/// Returns the module of a factor, its index (0 is A), and whether it belongs to an embedding.
fn factor_of(name: &str) -> Option<(String, usize, bool)> {
    const ENDS: [(&str, usize, bool); 4] = [
        (".lora_A", 0, false),
        (".lora_B", 1, false),
        (".lora_embedding_A", 0, true),
        (".lora_embedding_B", 1, true),
    ];
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let name = name.strip_suffix(NAMELESS).unwrap_or(name);
    let (module, half, is_embedding) = ENDS
        .iter()
        .find_map(|(end, half, is_embedding)| Some((name.strip_suffix(end)?, *half, *is_embedding)))?;
    Some((module.to_owned(), half, is_embedding))
}

/// Makes the factors for the tensor that a recipe makes. `alpha` is that of the whole file.
fn factors(
    recipe: &TensorRecipe,
    pairs: &[&FactorPair],
    config: &AdapterConfig,
    alpha: f64,
) -> Result<[TensorRecipe; 2], ConvertError> {
    let name = recipe.spec().name.as_str();
    let [name_a, name_b] = FACTORS.map(|suffix| format!("{name}{suffix}"));
    let unsuited = || refuse(format!("it changes {name:?}, to which llama.cpp cannot apply adapters"));
    let Some(first) = pairs.first() else {
        return unsuited();
    };
    let is_same_size = |pair: &&FactorPair| pair.a.shape == first.a.shape && pair.b.shape == first.b.shape;
    if !pairs.iter().all(is_same_size) {
        return refuse(format!("its factors of the parts of {name:?} have different sizes"));
    }
    // The file has one alpha. A module with another one gets its B scaled.
    let strength = |pair: &FactorPair| (config.strength(&pair.module, rank(pair)) / alpha) as f32;
    if pairs.iter().any(|pair| strength(pair) != strength(first)) {
        return refuse(format!(
            "its factors of the parts of {name:?} are of different strength"
        ));
    }
    let columns = first.a.row_elements();
    let (rank, dims) = (rank(first), recipe.spec().dims.as_slice());
    let (a, b) = match (dims, recipe.row_parts()) {
        // llama.cpp looks up rows of the embedding's A, so it is transposed.
        (_, Some([_])) if first.is_embedding && name == EMBEDDING => {
            let spec = TensorSpec::new(name_a, GgmlType::F32, [rank, columns]);
            let transposed = TensorRecipe::columns(spec, vec![StoredColumns::all(&first.a, 0..first.a.rows())]);
            (transposed, plain(name_b, &first.b))
        }
        _ if first.is_embedding => return unsuited(),
        ([_, rows], Some([part])) => {
            let Some(same) = part.of(&first.b) else {
                return refuse(format!(
                    "its {:?} has {} rows, which is not what the base has; it was made for another model",
                    first.b.name,
                    first.b.rows()
                ));
            };
            let spec = TensorSpec::new(name_b, GgmlType::F32, [rank, *rows]);
            (plain(name_a, &first.a), TensorRecipe::rows(spec, vec![same]))
        }
        // GPT-2 stores matrices transposed, but PEFT does not store their factors so.
        ([_, _], None) if recipe.is_transposed() => (plain(name_a, &first.a), plain(name_b, &first.b)),
        ([_, rows, experts], Some(parts)) if parts.len() as u64 == *experts && parts.len() == pairs.len() => {
            let stacked = |name: String, dims: [u64; 2], of: fn(&FactorPair) -> &StoredTensor| {
                let spec = TensorSpec::new(name, GgmlType::F32, [dims[0], dims[1], *experts]);
                TensorRecipe::rows(spec, pairs.iter().map(|pair| StoredRows::all(of(pair))).collect())
            };
            (
                stacked(name_a, [columns, rank], |pair| &pair.a),
                stacked(name_b, [rank, *rows], |pair| &pair.b),
            )
        }
        _ => return unsuited(),
    };
    Ok([typed(a, &first.a, 1.0), typed(b, &first.b, strength(first))])
}

/// Makes a tensor of a whole stored factor.
fn plain(name: String, source: &StoredTensor) -> TensorRecipe {
    let dims: Vec<u64> = source.shape.iter().rev().copied().collect();
    TensorRecipe::rows(
        TensorSpec::new(name, GgmlType::F32, dims),
        vec![StoredRows::all(source)],
    )
}

/// Gives a factor its stored type, or F32 if its elements are scaled.
fn typed(mut recipe: TensorRecipe, source: &StoredTensor, times: f32) -> TensorRecipe {
    let kind = match source.dtype {
        TensorDtype::F16 if times == 1.0 => GgmlType::F16,
        TensorDtype::BF16 if times == 1.0 => GgmlType::BF16,
        _ => GgmlType::F32,
    };
    recipe.set_type(kind);
    recipe.times(times)
}
