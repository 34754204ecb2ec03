//! How an embedding model makes one vector of many: what sentence-transformers keep beside the model.

use serde_json::{Map, Value as Json};

use super::ModelBuilder;
use crate::convert::{ConvertError, files, safetensors};

/// llama.cpp's numbers.
pub(super) const MEAN: u64 = 1;
pub(super) const CLS: u64 = 2;
const LAST: u64 = 3;

/// Layers behind the pooling for which the engine has places.
const DENSE: [&str; 2] = ["dense_2", "dense_3"];

/// A step from tokens to a vector.
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
        // A plain folder of the checkpoint, nothing else. The transformer's own is the checkpoint.
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

/// What the file of a module says.
fn settings(build: &ModelBuilder<'_>, module: &Module) -> Result<Map<String, Json>, ConvertError> {
    let path = build.folder.join(&module.path).join("config.json");
    files::object_if_there(&path)?.ok_or_else(|| ConvertError::Incomplete(format!("{} is missing", path.display())))
}

/// The kind of pooling, if the checkpoint says one.
pub(super) fn keys(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let modules = modules(build)?;
    if let Some(dense) = modules.iter().find(|module| module.kind.ends_with("Dense")) {
        build.config.remark(format!(
            "its vectors go through the layer {}, which the engine does not have in this architecture",
            dense.path
        ));
    }
    pooling_type(build, &modules)
}

/// The kind of pooling, and the layers behind it.
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
                "the layer {} is not one that the engine can have behind a pooling",
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
        "its vectors have {width} numbers, the engine can only give as many as the model is wide"
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
                    "its vectors are pooled in a way that the engine cannot; it can by mean, by the first and by the \
                     last token"
                        .to_owned(),
                ));
            }
        }
    };
    build.put_integer("pooling_type", kind)
}
