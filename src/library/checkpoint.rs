//! Repositories with a checkpoint of safetensors instead of GGUF files: which type of weights a name asks for, and which
//! files its conversion reads. Pure over a listing, like the rules for GGUF files.

use crate::{
    config::WeightType,
    convert::TargetType,
    hub::{
        Selector,
        resolve::{RepoFile, ResolveError},
    },
};

/// Files in the root that describe a checkpoint. Weights as pickles, or in other frameworks' formats, are never fetched.
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
/// Tokenizers of which nothing is read where there is a `tokenizer.json`.
const OTHER_TOKENIZERS: [&str; 2] = ["tekken.json", "sentencepiece.bpe.model"];
const INDEX: &str = "model.safetensors.index.json";
const WHOLE: &str = "model.safetensors";
const TEMPLATES: &str = "additional_chat_templates/";
/// Folders whose `config.json` belongs to other formats of the same weights.
const OTHER_FORMATS: [&str; 3] = ["original/", "onnx/", "openvino/"];

/// What a name stands for in a repository without the GGUF file that it asks for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Checkpoint {
    /// The type of the weights.
    pub(crate) kind: TargetType,
    /// What the conversion reads, sorted by path.
    pub(crate) files: Vec<RepoFile>,
}

/// Whether a file may be one that a conversion reads; [`files`] is exact.
pub(crate) fn is_part(path: &str) -> bool {
    let in_folder = |path: &str| path.matches('/').count() == 1;
    DESCRIPTIONS.contains(&path)
        || OTHER_TOKENIZERS.contains(&path)
        || is_weights(path)
        || path.starts_with(TEMPLATES) && in_folder(path) && path.ends_with(".jinja")
        // Pooling of an embedding model, and layers behind it.
        || path.ends_with("_Dense/model.safetensors") && in_folder(path)
        || path.ends_with("/config.json") && in_folder(path) && !OTHER_FORMATS.iter().any(|other| path.starts_with(other))
}

fn is_weights(path: &str) -> bool {
    path.ends_with(".safetensors") && path.starts_with("model") && !path.contains('/')
}

/// The files of a listing that a conversion reads, sorted by path; `None` if they are no checkpoint.
pub(crate) fn files(listing: &[RepoFile]) -> Option<Vec<RepoFile>> {
    let has = |path: &str| listing.iter().any(|file| file.path == path);
    let (is_whole, is_split) = (has(WHOLE), listing.iter().any(|file| is_shard(&file.path)));
    // The converter looks for them in the same order.
    let is_read = |path: &str| match (is_whole, is_split) {
        (true, _) => path == WHOLE,
        (false, true) => is_shard(path),
        (false, false) => true,
    };
    let is_surplus = |path: &str| OTHER_TOKENIZERS.contains(&path) && has("tokenizer.json");
    let is_wanted = |path: &str| is_part(path) && (!is_weights(path) || is_read(path)) && !is_surplus(path);
    let mut wanted: Vec<RepoFile> = listing.iter().filter(|file| is_wanted(&file.path)).cloned().collect();
    wanted.sort_by(|a, b| a.path.cmp(&b.path));
    let is_complete = has("config.json") && wanted.iter().any(|file| is_weights(&file.path));
    is_complete.then_some(wanted)
}

fn is_shard(path: &str) -> bool {
    is_weights(path) && path.contains("-of-")
}

/// The type that a word of a name means.
pub(crate) fn type_named(word: &str) -> Option<TargetType> {
    TargetType::named()
        .into_iter()
        .find(|kind| kind.to_string().eq_ignore_ascii_case(word))
}

/// The type that a setting means.
pub(crate) fn default_type(setting: WeightType) -> TargetType {
    type_named(setting.name()).unwrap_or_default()
}

/// What a name stands for where the rules for GGUF files find nothing: a type of weights that can be made. The default one
/// is made where nothing is asked for and there is no GGUF file at all.
///
/// # Errors
/// The error of those rules if there is no checkpoint either, or `unfound` with the types where nothing else can be asked for.
pub(crate) fn resolve(
    listing: &[RepoFile],
    selector: Option<&Selector>,
    default: TargetType,
    unfound: ResolveError,
) -> Result<Checkpoint, ResolveError> {
    let has_gguf = match &unfound {
        ResolveError::NoGguf { has_safetensors: true } => false,
        ResolveError::NoSuchSelector { .. } => true,
        _ => return Err(unfound),
    };
    let Some(files) = files(listing) else {
        return Err(unfound);
    };
    let kind = match selector {
        None if !has_gguf => Some(default),
        Some(Selector::Label(label)) => type_named(label),
        _ => None,
    };
    match kind {
        Some(kind) => Ok(Checkpoint { kind, files }),
        None if has_gguf => Err(unfound),
        None => Err(ResolveError::NoSuchSelector {
            selector: selector.map(ToString::to_string).unwrap_or_default(),
            available: TargetType::named().iter().map(ToString::to_string).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_names_what_can_be_made() {
        let names: Vec<String> = WeightType::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
        let made = TargetType::named().into_iter().map(|kind| kind.to_string());
        assert_eq!(names, ["stored".to_owned()].into_iter().chain(made).collect::<Vec<_>>());
        assert_eq!(default_type(WeightType::default()), TargetType::Stored);
        assert!(
            WeightType::ALL[1..]
                .iter()
                .all(|(name, kind)| default_type(*kind).to_string() == *name)
        );
    }

    fn listing(paths: &[&str]) -> Vec<RepoFile> {
        let file = |path: &&str| RepoFile {
            path: (*path).to_owned(),
            size: 1,
            oid: None,
            lfs_sha256: None,
        };
        paths.iter().map(file).collect()
    }

    /// What a name's selector gives: the type and the paths.
    fn found(paths: &[&str], selector: &str) -> Result<(String, Vec<String>), ResolveError> {
        let listing = listing(paths);
        let selector = Selector::parse(selector).unwrap();
        let unfound = crate::hub::resolve::resolve(&listing, selector.as_ref()).expect_err("no GGUF file answers");
        let checkpoint = resolve(&listing, selector.as_ref(), TargetType::Stored, unfound)?;
        let paths = checkpoint.files.into_iter().map(|file| file.path).collect();
        Ok((checkpoint.kind.to_string(), paths))
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
        assert_eq!(kind, "auto");
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
