//! Idefics 3 and SmolVLM: neighbouring patches become one embedding, as wide as all of them.

use serde_json::Value as Json;

use super::{Encoder, Surroundings, siglip::siglip};
use crate::convert::{ConvertError, arch::ModelBuilder};

const DEFAULT: Encoder = Encoder {
    blocks: 12,
    width: 1152,
    feed_forward: 3072,
    heads: 16,
    image: 224,
    patch: 32,
    epsilon: 1e-6,
};

pub(super) fn idefics3(build: &mut ModelBuilder<'_>, around: &Surroundings<'_>) -> Result<(), ConvertError> {
    let encoder = siglip(build, around, "vision_model.", "idefics3", DEFAULT)?;
    let scale = around.config.integer_or(&["scale_factor"], 2)?;
    let side = encoder.image / encoder.patch;
    if scale == 0 || !side.is_multiple_of(scale) {
        return Err(ConvertError::Config(format!(
            "{side} patches on a side cannot be taken {scale} by {scale}"
        )));
    }
    build.put_integer("vision.projector.scale_factor", scale)?;
    // A large picture is cut into several, after it was made this large.
    let longest = around
        .preprocessor
        .get("size")
        .and_then(|size| size.get("longest_edge"));
    let longest = longest.and_then(Json::as_u64).unwrap_or(encoder.image);
    build.put_integer("vision.preproc_image_size", longest)?;
    let shape = [around.hidden, encoder.width.saturating_mul(scale.pow(2))];
    let projection = build.take("connector.modality_projection.proj.weight", &shape)?;
    build.add("mm.model.fc.weight", &projection);
    Ok(())
}
