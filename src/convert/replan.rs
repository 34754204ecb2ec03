//! Planning from a stored header, before each load of a model whose weights are streamed. The metadata comes from the
//! header, so the tokenizer, which takes seconds to read and compare, is not read again.

use std::{fs::File, io::Read, path::Path};

use super::{ConvertError, VirtualGguf, arch, config::CheckpointConfig, safetensors};
use crate::gguf::{GgufHeader, GgufValue};

/// Plans the file of a checkpoint whose header was stored at `kept`. Reads the configuration and the headers of the
/// weights, and checks that the stored header was made from them.
///
/// # Errors
/// If the folder no longer holds that checkpoint.
pub fn replan(folder: &Path, kept: &Path) -> Result<VirtualGguf, ConvertError> {
    let changed = |what: String| {
        ConvertError::Incomplete(format!(
            "the checkpoint in {} is not the one that {} was made from ({what}); delete the model and pull it again",
            folder.display(),
            kept.display()
        ))
    };
    let header = GgufHeader::open(kept)?;
    let config = CheckpointConfig::read(folder)?;
    // Qwen 3 rerankers are recognized by the name of the model.
    let name = header
        .get("general.name")
        .and_then(GgufValue::as_str)
        .unwrap_or_default();
    let build = arch::build(folder, name, &config, safetensors::open(folder)?)?;
    // Only the family's keys are compared. All others are taken from the header: they do not affect how the weights are
    // converted.
    let differs = |(key, value): &&(String, GgufValue)| header.get(key) != Some(value);
    if let Some((key, _)) = build.keys.iter().find(differs) {
        return Err(changed(format!("{key} has another value")));
    }
    let mut recipes = build.recipes;
    if recipes.len() != header.tensors.len() {
        return Err(changed(format!("it has {} tensors", recipes.len())));
    }
    // Both have the order in which the family makes recipes, which depends only on the checkpoint. The names are
    // compared with the whole header below.
    for (recipe, tensor) in recipes.iter_mut().zip(&header.tensors) {
        recipe.set_type(tensor.element_type);
    }
    let metadata = header.metadata.iter();
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.clone())).collect();
    let model = VirtualGguf::new(metadata, recipes)?;
    let mut bytes = Vec::new();
    File::open(kept)
        .and_then(|file| file.take(header.data_start).read_to_end(&mut bytes))
        .map_err(ConvertError::io(kept, "read"))?;
    if bytes != model.header() || header.file_len != model.file_len() {
        return Err(changed("its tensors have other names or sizes".to_owned()));
    }
    Ok(model)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        convert::{golden::assembled, plan},
        inference::WeightType,
    };

    #[test]
    fn another_checkpoint_is_not_taken_for_the_same() {
        let folder = assembled("qwen3");
        let kept = folder.path().join("kept.gguf");
        let keep = |target| {
            let planned = plan(folder.path(), "test", target).unwrap();
            planned.model.create_header(&kept).unwrap().finish().unwrap();
        };
        for target in [WeightType::Q8_0, WeightType::Stored] {
            keep(target);
            let again = replan(folder.path(), &kept).unwrap();
            assert_eq!(
                again.header(),
                plan(folder.path(), "test", target).unwrap().model.header()
            );
        }
        let config = folder.path().join("config.json");
        let text = fs::read_to_string(&config).unwrap();
        let refusal = |text: &str| {
            fs::write(&config, text).unwrap();
            replan(folder.path(), &kept).unwrap_err().to_string()
        };
        let changed = text.replace("\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": 1e-05");
        assert_ne!(changed, text);
        let error = refusal(&changed);
        assert!(
            error.contains("layer_norm_rms_epsilon") && error.contains("pull it again"),
            "{error}"
        );
        assert!(refusal("{").contains("config.json"));
        fs::write(&config, &text).unwrap();
        fs::write(&kept, "GGUF").unwrap();
        assert!(replan(folder.path(), &kept).is_err());
        fs::remove_file(&kept).unwrap();
        assert!(replan(folder.path(), &kept).is_err());
    }
}
