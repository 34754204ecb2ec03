//! Checkpoints: repositories with safetensors instead of GGUF files.
//!
//! The functions decide which weight type a name asks for and which files a conversion reads. They are pure functions
//! of a listing, like the rules for GGUF files in [`hub::resolve`](crate::hub::resolve), and apply where these find
//! nothing.

use crate::{
    hub::{
        Selector,
        resolve::{RepoFile, ResolveError},
    },
    inference::WeightType,
};

/// Files in the root of a repository that describe a checkpoint. Pickles and weights of other frameworks are never
/// fetched: a pickle can run code.
const DESCRIPTIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "README.md",
    INDEX,
];
/// Tokenizer files that the conversion reads only if there is no `tokenizer.json`.
const OTHER_TOKENIZERS: [&str; 2] = ["tekken.json", "sentencepiece.bpe.model"];
const INDEX: &str = "model.safetensors.index.json";
const WHOLE: &str = "model.safetensors";
const TEMPLATES: &str = "additional_chat_templates/";
/// Folders whose `config.json` describes another format of the same weights.
const OTHER_FORMATS: [&str; 3] = ["original/", "onnx/", "openvino/"];

/// Checkpoint files: the files that a conversion reads, and the weight type that a name asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CheckpointFiles {
    pub(super) weight_type: WeightType,
    /// Sorted by path.
    pub(super) files: Vec<RepoFile>,
}

/// Returns true if a file may belong to a checkpoint: a quick filter, of which [`files`] keeps what a conversion reads.
pub(super) fn is_part(path: &str) -> bool {
    let in_folder = |path: &str| path.matches('/').count() == 1;
    DESCRIPTIONS.contains(&path)
        || OTHER_TOKENIZERS.contains(&path)
        || is_weights(path)
        || path.starts_with(TEMPLATES) && in_folder(path) && path.ends_with(".jinja")
        // The modules of a sentence-transformers model: pooling, and dense layers behind it.
        || path.ends_with("_Dense/model.safetensors") && in_folder(path)
        || path.ends_with("/config.json") && in_folder(path) && !OTHER_FORMATS.iter().any(|other| path.starts_with(other))
}

fn is_weights(path: &str) -> bool {
    path.ends_with(".safetensors") && path.starts_with("model") && !path.contains('/')
}

/// Returns the files of a listing that a conversion reads, sorted by path; `None` if they are no complete checkpoint.
pub(super) fn files(listing: &[RepoFile]) -> Option<Vec<RepoFile>> {
    let has = |path: &str| listing.iter().any(|file| file.path == path);
    let (is_whole, is_sharded) = (has(WHOLE), listing.iter().any(|file| is_shard(&file.path)));
    // The converter prefers the same files in the same order. A repository may hold the weights twice.
    let is_read = |path: &str| match (is_whole, is_sharded) {
        (true, _) => path == WHOLE,
        (false, true) => is_shard(path),
        (false, false) => true,
    };
    let is_surplus = |path: &str| OTHER_TOKENIZERS.contains(&path) && has("tokenizer.json");
    let is_needed = |path: &str| is_part(path) && (!is_weights(path) || is_read(path)) && !is_surplus(path);
    let mut needed: Vec<RepoFile> = listing.iter().filter(|file| is_needed(&file.path)).cloned().collect();
    needed.sort_by(|a, b| a.path.cmp(&b.path));
    let is_complete = has("config.json") && needed.iter().any(|file| is_weights(&file.path));
    is_complete.then_some(needed)
}

fn is_shard(path: &str) -> bool {
    is_weights(path) && path.contains("-of-")
}

/// Resolves a selector for which the rules for GGUF files found nothing: it names the weight type to convert to.
/// Without a selector, the default type is chosen if there is no GGUF file at all.
///
/// # Errors
/// The error `no_gguf` of those rules if there is no checkpoint either, or the list of weight types if there are no
/// GGUF files to choose from.
pub(super) fn resolve(
    listing: &[RepoFile],
    selector: Option<&Selector>,
    default: WeightType,
    no_gguf: ResolveError,
) -> Result<CheckpointFiles, ResolveError> {
    let has_gguf = match &no_gguf {
        ResolveError::NoGguf { has_safetensors: true } => false,
        ResolveError::NoSuchSelector { .. } => true,
        _ => return Err(no_gguf),
    };
    let Some(files) = files(listing) else {
        return Err(no_gguf);
    };
    let weight_type = match selector {
        None if !has_gguf => Some(default),
        Some(Selector::Label(label)) => WeightType::explicit_named(label),
        _ => None,
    };
    match weight_type {
        Some(weight_type) => Ok(CheckpointFiles { weight_type, files }),
        None if has_gguf => Err(no_gguf),
        None => Err(ResolveError::NoSuchSelector {
            selector: selector.map(ToString::to_string).unwrap_or_default(),
            available: WeightType::explicit().map(|kind| kind.to_string()).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(paths: &[&str]) -> Vec<RepoFile> {
        let file = |path: &&str| RepoFile {
            path: (*path).to_owned(),
            size: 1,
            oid: None,
            lfs_sha256: None,
        };
        paths.iter().map(file).collect()
    }

    /// Resolves a selector; returns the weight type and the paths of the files.
    fn found(paths: &[&str], selector: &str) -> Result<(String, Vec<String>), ResolveError> {
        let listing = listing(paths);
        let selector = Selector::parse(selector).unwrap();
        let unfound = crate::hub::resolve::resolve(&listing, selector.as_ref()).expect_err("no GGUF file answers");
        let checkpoint = resolve(&listing, selector.as_ref(), WeightType::Stored, unfound)?;
        let paths = checkpoint.files.into_iter().map(|file| file.path).collect();
        Ok((checkpoint.weight_type.to_string(), paths))
    }

    const SPLIT: &[&str] = &[
        "README.md",
        "tekken.json",
        "model-00002-of-00002.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "consolidated.safetensors",
        "original/consolidated.00.pth",
        "original/config.json",
        "onnx/model.onnx",
        "onnx/config.json",
        "pytorch_model.bin",
        "config.json",
        "tokenizer.json",
        "additional_chat_templates/tools.jinja",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "2_Dense/pytorch_model.bin",
    ];

    #[test]
    fn what_is_fetched() {
        let (kind, paths) = found(SPLIT, "latest").unwrap();
        assert_eq!(kind, "stored");
        assert_eq!(
            paths,
            [
                "1_Pooling/config.json",
                "2_Dense/config.json",
                "2_Dense/model.safetensors",
                "README.md",
                "additional_chat_templates/tools.jinja",
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json",
            ]
        );
        let mistral = ["config.json", "model.safetensors", "tekken.json"];
        assert_eq!(found(&mistral, "latest").unwrap().1, mistral);
        let both = ["config.json", "model.safetensors", "model.fp16.safetensors"];
        assert_eq!(found(&both, "latest").unwrap().1, ["config.json", "model.safetensors"]);
    }

    #[test]
    fn the_selector_is_a_type() {
        for (selector, kind) in [("q8_0", "Q8_0"), ("bf16", "BF16"), ("Q4_K_M", "Q4_K_M"), ("F32", "F32")] {
            assert_eq!(found(SPLIT, selector).unwrap().0, kind);
        }
        for selector in ["auto", "stored", "IQ1_S", "instruct", "model.gguf"] {
            let Err(ResolveError::NoSuchSelector { available, .. }) = found(SPLIT, selector) else {
                panic!("{selector} means nothing");
            };
            assert!(available.starts_with(&["F32".into(), "F16".into(), "BF16".into(), "Q8_0".into()]));
            assert!(available.contains(&"Q4_K_M".into()));
        }
    }

    #[test]
    fn a_repository_with_gguf_files_converts_only_what_they_are_not() {
        let paths = ["config.json", "model.safetensors", "m-Q4_K_M.gguf"];
        assert_eq!(found(&paths, "Q8_0").unwrap().0, "Q8_0");
        assert_eq!(
            found(&paths, "other"),
            Err(ResolveError::NoSuchSelector {
                selector: "other".into(),
                available: vec!["Q4_K_M".into()],
            })
        );
    }

    #[test]
    fn what_is_no_checkpoint() {
        for paths in [
            &["model.safetensors"][..],
            &["config.json", "consolidated.safetensors"],
            &["config.json", "original/model.safetensors"],
            &["config.json", "adapter_model.safetensors"],
        ] {
            assert_eq!(
                found(paths, "F16"),
                Err(ResolveError::NoGguf { has_safetensors: true }),
                "{paths:?}"
            );
        }
        assert_eq!(
            found(&["config.json", "pytorch_model.bin"], "latest"),
            Err(ResolveError::NoGguf { has_safetensors: false })
        );
    }
}
