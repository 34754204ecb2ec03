//! Projector of Idefics 3 and SmolVLM: the vectors of `scale_factor`² neighboring patches are concatenated and
//! projected to one embedding (pixel shuffle).

use serde_json::Value as Json;

use super::{Encoder, VisionContext, siglip::siglip};
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

pub(super) fn idefics3(build: &mut ModelBuilder<'_>, context: &VisionContext<'_>) -> Result<(), ConvertError> {
    let encoder = siglip(build, context, "vision_model.", "idefics3", DEFAULT)?;
    let scale = context.config.integer_or(&["scale_factor"], 2)?;
    let side = encoder.image / encoder.patch;
    if scale == 0 || !side.is_multiple_of(scale) {
        return Err(ConvertError::Config(format!(
            "{side} patches on a side cannot be grouped {scale} by {scale}"
        )));
    }
    build.put_integer("vision.projector.scale_factor", scale)?;
    // Images are scaled to this side and then split into tiles of `image_size`.
    let longest = context
        .preprocessor
        .get("size")
        .and_then(|size| size.get("longest_edge"));
    let longest = longest.and_then(Json::as_u64).unwrap_or(encoder.image);
    build.put_integer("vision.preproc_image_size", longest)?;
    let shape = [context.hidden, encoder.width.saturating_mul(scale.pow(2))];
    let projection = build.take("connector.modality_projection.proj.weight", &shape)?;
    build.add("mm.model.fc.weight", &projection);
    Ok(())
}
