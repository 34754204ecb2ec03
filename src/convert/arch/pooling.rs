//! How an embedding model makes one vector of many: what sentence-transformers keep beside the model.

use serde_json::Value as Json;

use super::Build;
use crate::convert::{ConvertError, files};

/// llama.cpp's numbers.
pub(super) const MEAN: u64 = 1;
pub(super) const CLS: u64 = 2;
const LAST: u64 = 3;

/// The kind of pooling, if the checkpoint says one.
pub(super) fn keys(build: &mut Build<'_>) -> Result<(), ConvertError> {
    let folder = build.folder;
    let modules = files::json_if_there(&folder.join("modules.json"), files::MAX_SMALL_BYTES)?;
    let modules = modules.as_ref().and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    let text = |module: &Json, key: &str| module.get(key).and_then(Json::as_str).map(str::to_owned);
    let module = modules
        .iter()
        .find(|module| text(module, "type").is_some_and(|kind| kind.ends_with("Pooling")));
    let Some(path) = module.and_then(|module| text(module, "path")) else {
        return Ok(());
    };
    // A plain folder of the checkpoint, nothing else.
    if path.contains(['/', '\\', '\0']) || path.starts_with('.') {
        return Err(ConvertError::damaged(
            &folder.join("modules.json"),
            format!("{path:?} is not the name of a folder"),
        ));
    }
    let config = folder.join(path).join("config.json");
    let Some(pooling) = files::object_if_there(&config)? else {
        return Err(ConvertError::Incomplete(format!("{} is missing", config.display())));
    };
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
