//! Pooling of embedding models: how one vector is made of the vectors of all tokens. sentence-transformers describes it
//! in `modules.json` and a folder for each module.

use serde_json::{Map, Value as Json};

use super::ModelBuilder;
use crate::convert::{ConvertError, files, safetensors};

/// Values of `enum llama_pooling_type`.
pub(super) const MEAN: u64 = 1;
pub(super) const CLS: u64 = 2;
const LAST: u64 = 3;

/// Names of the linear layers after the pooling that llama.cpp supports, in EmbeddingGemma only.
const DENSE: [&str; 2] = ["dense_2", "dense_3"];

/// Module of `modules.json`.
struct Module {
    kind: String,
    path: String,
}

fn modules(build: &ModelBuilder<'_>) -> Result<Vec<Module>, ConvertError> {
    let path = build.folder.join("modules.json");
    let modules = files::json_if_there(&path, files::MAX_SMALL_BYTES)?;
    let modules = modules.as_ref().and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    let text = |module: &Json, key: &str| module.get(key).and_then(Json::as_str).map(str::to_owned);
    let module = |module| Some((text(module, "type")?, text(module, "path")?));
    let mut found = Vec::new();
    for (kind, folder) in modules.iter().filter_map(module) {
        // The file is not trusted: only folders directly below the checkpoint are read. The path of the transformer is
        // "".
        if folder.contains(['/', '\\', '\0']) || folder.starts_with('.') {
            return Err(ConvertError::damaged(
                &path,
                format!("{folder:?} is not the name of a folder"),
            ));
        }
        found.push(Module { kind, path: folder });
    }
    Ok(found)
}

/// Reads the `config.json` of a module.
fn settings(build: &ModelBuilder<'_>, module: &Module) -> Result<Map<String, Json>, ConvertError> {
    let path = build.folder.join(&module.path).join("config.json");
    files::object_if_there(&path)?.ok_or_else(|| ConvertError::Incomplete(format!("{} is missing", path.display())))
}

/// Puts the type of pooling, if the checkpoint says one.
pub(super) fn keys(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let modules = modules(build)?;
    if let Some(dense) = modules.iter().find(|module| module.kind.ends_with("Dense")) {
        build.config.remark(format!(
            "its embeddings pass through the layer {}, which llama.cpp does not support for this architecture",
            dense.path
        ));
    }
    pooling_type(build, &modules)
}

/// Puts the type of pooling and takes the linear layers after it.
pub(super) fn with_dense(build: &mut ModelBuilder<'_>, hidden: u64) -> Result<(), ConvertError> {
    let modules = modules(build)?;
    pooling_type(build, &modules)?;
    let dense = modules.iter().filter(|module| module.kind.ends_with("Dense"));
    let mut width = hidden;
    let mut places = DENSE.into_iter();
    for module in dense {
        let settings = settings(build, module)?;
        let size = |key: &str| settings.get(key).and_then(Json::as_u64);
        let is_plain = settings.get("bias") == Some(&Json::Bool(false))
            && (settings.get("activation_function").and_then(Json::as_str))
                .is_none_or(|name| name.ends_with("Identity"));
        let (Some(place), Some(out), true) = (
            places.next(),
            size("out_features").filter(|_| size("in_features") == Some(width)),
            is_plain,
        ) else {
            return Err(ConvertError::Config(format!(
                "llama.cpp does not support the layer {} after the pooling",
                module.path
            )));
        };
        let mut tensors = safetensors::open(&build.folder.join(&module.path))?;
        let weight = tensors
            .remove("linear.weight")
            .filter(|weight| weight.shape == [out, width]);
        let weight = weight
            .ok_or_else(|| ConvertError::Weights(format!("{} has no matrix of {out} rows of {width}", module.path)))?;
        build.add(&format!("{place}.weight"), &weight);
        build.put_integer(&format!("{place}_feat_in"), width)?;
        build.put_integer(&format!("{place}_feat_out"), out)?;
        width = out;
    }
    if width == hidden {
        return Ok(());
    }
    Err(ConvertError::Config(format!(
        "its embeddings have {width} elements, but llama.cpp can only return as many as the model's width, {hidden}"
    )))
}

fn pooling_type(build: &mut ModelBuilder<'_>, modules: &[Module]) -> Result<(), ConvertError> {
    let Some(module) = modules.iter().find(|module| module.kind.ends_with("Pooling")) else {
        return Ok(());
    };
    let pooling = settings(build, module)?;
    let is_on = |key: &str| pooling.get(key) == Some(&Json::Bool(true));
    let kind = if is_on("pooling_mode_mean_tokens") {
        MEAN
    } else if is_on("pooling_mode_cls_token") {
        CLS
    } else if is_on("pooling_mode_lasttoken") {
        LAST
    } else {
        match pooling.get("pooling_mode").and_then(Json::as_str) {
            Some("mean") => MEAN,
            Some("cls") => CLS,
            Some("lasttoken") => LAST,
            _ => {
                return Err(ConvertError::Config(
                    "its pooling is not supported; the mean, the first and the last token are".to_owned(),
                ));
            }
        }
    };
    build.put_integer("pooling_type", kind)
}
