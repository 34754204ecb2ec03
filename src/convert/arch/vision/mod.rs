//! Vision projectors: the encoder of images and the projector after it, which turns its output into embeddings for the
//! language model. They become a separate file (`mmproj`) of the architecture `clip`, in which `projector_type`
//! selects the computation (`MmprojModel` in llama.cpp's converter).

mod gemma3;
mod idefics3;
mod qwen2_vl;
mod siglip;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::{ModelBuilder, join_scales};
use crate::{
    convert::{ConvertError, config::CheckpointConfig, files, safetensors::StoredTensors},
    gguf::{GgufArray, GgufValue},
};

/// Color channels of an image.
const CHANNELS: u64 = 3;

/// Function that builds the projector of a family.
type Family = fn(&mut ModelBuilder<'_>, &VisionContext<'_>) -> Result<(), ConvertError>;

/// Settings outside of the encoder's own configuration that a family needs.
struct VisionContext<'a> {
    /// The whole `config.json`, with the language model's keys merged over it.
    config: &'a CheckpointConfig,
    /// Embedding length of the language model.
    hidden: u64,
    /// Settings of the image preprocessor.
    preprocessor: Map<String, Json>,
}

/// Sizes of an encoder.
#[derive(Clone, Copy, Debug)]
struct Encoder {
    blocks: u64,
    width: u64,
    feed_forward: u64,
    heads: u64,
    /// Side of an image in pixels.
    image: u64,
    /// Side of a patch in pixels.
    patch: u64,
    epsilon: f64,
}

/// Returns the configuration of the encoder.
///
/// # Errors
/// If the architecture has no projector that can be converted.
pub(in crate::convert) fn vision_config(config: &CheckpointConfig) -> Result<CheckpointConfig, ConvertError> {
    family_of(config.architecture())?;
    config.part("vision_config")
}

/// Builds the keys and recipes of a projector.
pub(in crate::convert) fn build_projector<'a>(
    folder: &'a Path,
    name: &'a str,
    config: &CheckpointConfig,
    vision: &'a CheckpointConfig,
    tensors: StoredTensors,
) -> Result<ModelBuilder<'a>, ConvertError> {
    let tensors = renamed(join_scales(config, tensors)?)?;
    let mut build = ModelBuilder::new(folder, name, vision, tensors, None);
    build.arch = "clip";
    let context = VisionContext {
        config,
        hidden: config.count(&["hidden_size"])?,
        preprocessor: preprocessor(folder)?,
    };
    family_of(config.architecture())?(&mut build, &context)?;
    build.finish()
}

fn family_of(architecture: &str) -> Result<Family, ConvertError> {
    Ok(match architecture {
        "Qwen2VLForConditionalGeneration" => qwen2_vl::qwen2_vl,
        "Qwen2_5_VLForConditionalGeneration" => qwen2_vl::qwen2_5_vl,
        "Idefics3ForConditionalGeneration" | "SmolVLMForConditionalGeneration" => idefics3::idefics3,
        "Gemma3ForConditionalGeneration" => gemma3::gemma3,
        other => return Err(ConvertError::Projector(other.to_owned())),
    })
}

/// Leaves out the language model, and gives the tensors the same names for every version of transformers.
fn renamed(tensors: StoredTensors) -> Result<StoredTensors, ConvertError> {
    const STARTS: [&str; 5] = [
        "visual.",
        "vision_model.",
        "vision_tower.",
        "connector.",
        "multi_modal_projector.",
    ];
    /// A buffer that follows from the sizes, and SigLIP's head that pools a whole image into one vector.
    const UNUSED: [&str; 2] = [".position_ids", ".head."];
    let mut out = StoredTensors::new();
    for (name, tensor) in tensors {
        let short = name.strip_prefix("model.").unwrap_or(&name);
        let is_wanted = STARTS.iter().any(|start| short.starts_with(start));
        if !is_wanted || UNUSED.iter().any(|part| short.contains(part)) {
            continue;
        }
        // Versions of transformers differ in the inner `vision_model.`.
        let short = short.replace("vision_tower.vision_model.", "vision_tower.");
        if let Some(twice) = out.insert(short, tensor) {
            return Err(ConvertError::Weights(format!(
                "{:?} and {name:?} are the same tensor",
                twice.name
            )));
        }
    }
    Ok(out)
}

/// Reads the settings of the image preprocessor. `processor_config.json`, which newer versions of transformers write,
/// takes precedence over `preprocessor_config.json`.
fn preprocessor(folder: &Path) -> Result<Map<String, Json>, ConvertError> {
    let object = |name: &str| Ok::<_, ConvertError>(files::object_if_there(&folder.join(name))?.unwrap_or_default());
    let mut merged = object("preprocessor_config.json")?;
    let mut newer = object("processor_config.json")?;
    let inner = newer.remove("image_processor");
    merged.extend(newer);
    if let Some(Json::Object(inner)) = inner {
        merged.extend(inner);
    }
    Ok(merged)
}

impl VisionContext<'_> {
    /// Returns one number for each channel. `default` is that of the preprocessor's class.
    fn channels(&self, key: &str, default: [f64; 3]) -> Result<GgufValue, ConvertError> {
        let numbers: Option<Vec<f64>> = match self.preprocessor.get(key).and_then(Json::as_array) {
            Some(list) => list.iter().map(Json::as_f64).collect(),
            None => Some(default.to_vec()),
        };
        match numbers.filter(|numbers| numbers.len() as u64 == CHANNELS) {
            Some(numbers) => {
                let numbers = numbers.into_iter().map(|number| number as f32).collect();
                Ok(GgufValue::Array(GgufArray::F32(numbers)))
            }
            None => Err(ConvertError::Config(format!(
                "{key} of the image preprocessor does not have {CHANNELS} numbers"
            ))),
        }
    }
}

/// Puts the keys that all encoders share. `mean` and `deviation` are the defaults of the preprocessor's class.
fn keys(
    build: &mut ModelBuilder<'_>,
    context: &VisionContext<'_>,
    encoder: &Encoder,
    projector: &str,
    [mean, deviation]: [[f64; 3]; 2],
) -> Result<(), ConvertError> {
    let Encoder {
        width,
        heads,
        image,
        patch,
        ..
    } = *encoder;
    if heads == 0 || !width.is_multiple_of(heads) || patch == 0 || image < patch {
        return Err(ConvertError::Config(format!(
            "its encoder cannot have {heads} heads with a width of {width}, or patches of {patch} pixels in images of {image}"
        )));
    }
    build.put("has_vision_encoder", GgufValue::Bool(true));
    build.put("projector_type", GgufValue::String(projector.to_owned()));
    build.put_integer("vision.projection_dim", context.hidden)?;
    build.put_integer("vision.image_size", image)?;
    build.put_integer("vision.patch_size", patch)?;
    build.put_integer("vision.embedding_length", width)?;
    build.put_integer("vision.feed_forward_length", encoder.feed_forward)?;
    build.put_integer("vision.block_count", encoder.blocks)?;
    build.put_integer("vision.attention.head_count", heads)?;
    build.put_number("vision.attention.layer_norm_epsilon", encoder.epsilon);
    build.put("vision.image_mean", context.channels("image_mean", mean)?);
    build.put("vision.image_std", context.channels("image_std", deviation)?);
    Ok(())
}

/// Refuses an activation that llama.cpp does not use for the architecture.
fn check_activation(build: &ModelBuilder<'_>, expected: &[&str]) -> Result<(), ConvertError> {
    match build.config.text(&["hidden_act"]) {
        Some(other) if !expected.contains(&other) => Err(ConvertError::Config(format!(
            "the activation of its encoder is {other}, which llama.cpp does not support for this architecture"
        ))),
        _ => Ok(()),
    }
}

/// Takes a weight of this shape and its bias.
fn take_both(build: &mut ModelBuilder<'_>, from: &str, to: &str, shape: &[u64]) -> Result<(), ConvertError> {
    let weight = build.take(&format!("{from}.weight"), shape)?;
    build.add(&format!("{to}.weight"), &weight);
    let bias = build.take(&format!("{from}.bias"), &shape[..1])?;
    build.add(&format!("{to}.bias"), &bias);
    Ok(())
}
