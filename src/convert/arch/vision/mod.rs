//! Projectors: the part of a checkpoint that makes embeddings of pictures. The engine has one architecture for all of
//! them, `clip`, in which `projector_type` says how to compute.

mod gemma3;
mod idefics3;
mod qwen2_vl;
mod siglip;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::{ModelBuilder, unpacked};
use crate::{
    convert::{ConvertError, config::CheckpointConfig, files, safetensors::StoredTensors},
    gguf::{GgufArray, GgufValue},
};

/// Channels of a picture.
const CHANNELS: u64 = 3;

/// What plans the projector of a family.
type Family = fn(&mut ModelBuilder<'_>, &Surroundings<'_>) -> Result<(), ConvertError>;

/// What a family must know besides the encoder's own configuration.
struct Surroundings<'a> {
    /// The whole `config.json`, the language model's keys first.
    config: &'a CheckpointConfig,
    /// Width of the language model's embeddings.
    hidden: u64,
    /// How pictures are prepared.
    preprocessor: Map<String, Json>,
}

/// Sizes of an encoder.
#[derive(Clone, Copy, Debug)]
struct Encoder {
    blocks: u64,
    width: u64,
    feed_forward: u64,
    heads: u64,
    /// Pixels of a picture's side.
    image: u64,
    /// Pixels of a patch's side.
    patch: u64,
    epsilon: f64,
}

/// The configuration of the encoder, if the architecture's projector is known.
pub(in crate::convert) fn vision_config(config: &CheckpointConfig) -> Result<CheckpointConfig, ConvertError> {
    family_of(config.architecture())?;
    config.part("vision_config")
}

/// Reads the configuration and the tensors as the architecture's projector wants them.
pub(in crate::convert) fn build_projector<'a>(
    folder: &'a Path,
    name: &'a str,
    config: &CheckpointConfig,
    vision: &'a CheckpointConfig,
    tensors: StoredTensors,
) -> Result<ModelBuilder<'a>, ConvertError> {
    let tensors = renamed(unpacked(config, tensors)?)?;
    let mut build = ModelBuilder::new(folder, name, vision, tensors, None);
    build.arch = "clip";
    let surroundings = Surroundings {
        config,
        hidden: config.count(&["hidden_size"])?,
        preprocessor: preprocessor(folder)?,
    };
    family_of(config.architecture())?(&mut build, &surroundings)?;
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

/// Leaves out the language model, and names the rest as the files of every version of the library do.
fn renamed(tensors: StoredTensors) -> Result<StoredTensors, ConvertError> {
    const STARTS: [&str; 5] = [
        "visual.",
        "vision_model.",
        "vision_tower.",
        "connector.",
        "multi_modal_projector.",
    ];
    /// Numbers that follow from the sizes, and what makes one vector of a whole picture.
    const UNUSED: [&str; 2] = [".position_ids", ".head."];
    let mut out = StoredTensors::new();
    for (name, tensor) in tensors {
        let short = name.strip_prefix("model.").unwrap_or(&name);
        let is_wanted = STARTS.iter().any(|start| short.starts_with(start));
        if !is_wanted || UNUSED.iter().any(|part| short.contains(part)) {
            continue;
        }
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

/// How pictures are prepared: what newer versions of the library write stands above what older ones wrote.
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

impl Surroundings<'_> {
    /// A number for each channel; `default` is that of the class.
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
                "preprocessor_config.json does not have {CHANNELS} numbers as {key}"
            ))),
        }
    }
}

/// The keys that all encoders share. `mean` and `deviation` are what the class of the preprocessor takes for granted.
fn keys(
    build: &mut ModelBuilder<'_>,
    around: &Surroundings<'_>,
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
            "its encoder cannot have {heads} heads in a width of {width}, and patches of {patch} in pictures of {image} \
             pixels"
        )));
    }
    build.put("has_vision_encoder", GgufValue::Bool(true));
    build.put("projector_type", GgufValue::String(projector.to_owned()));
    build.put_integer("vision.projection_dim", around.hidden)?;
    build.put_integer("vision.image_size", image)?;
    build.put_integer("vision.patch_size", patch)?;
    build.put_integer("vision.embedding_length", width)?;
    build.put_integer("vision.feed_forward_length", encoder.feed_forward)?;
    build.put_integer("vision.block_count", encoder.blocks)?;
    build.put_integer("vision.attention.head_count", heads)?;
    build.put_number("vision.attention.layer_norm_epsilon", encoder.epsilon);
    build.put("vision.image_mean", around.channels("image_mean", mean)?);
    build.put("vision.image_std", around.channels("image_std", deviation)?);
    Ok(())
}

/// Refuses an activation that the engine would not compute.
fn check_activation(build: &ModelBuilder<'_>, expected: &[&str]) -> Result<(), ConvertError> {
    match build.config.text(&["hidden_act"]) {
        Some(other) if !expected.contains(&other) => Err(ConvertError::Config(format!(
            "the activation of its encoder is {other}, which the engine does not compute for this architecture"
        ))),
        _ => Ok(()),
    }
}

/// Takes a weight of this shape, and the bias beside it.
fn take_both(build: &mut ModelBuilder<'_>, from: &str, to: &str, shape: &[u64]) -> Result<(), ConvertError> {
    let weight = build.take(&format!("{from}.weight"), shape)?;
    build.add(&format!("{to}.weight"), &weight);
    let bias = build.take(&format!("{from}.bias"), &shape[..1])?;
    build.add(&format!("{to}.bias"), &bias);
    Ok(())
}
