//! Gemma 3's projector: neighboring patches are averaged into one embedding.

use serde_json::Value as Json;

use super::{Encoder, VisionContext, siglip::siglip};
use crate::{
    convert::{
        ConvertError, TensorRecipe,
        arch::{ModelBuilder, spec},
        parts::StoredRows,
    },
    gguf::GgmlType,
};

const DEFAULT: Encoder = Encoder {
    blocks: 12,
    width: 768,
    feed_forward: 3072,
    heads: 12,
    image: 224,
    patch: 16,
    epsilon: 1e-6,
};
/// Default number of embeddings of an image.
const EMBEDDINGS: u64 = 256;
/// llama.cpp's default for the side of a block of patches that becomes one embedding.
const SCALE: u64 = 4;

pub(super) fn gemma3(build: &mut ModelBuilder<'_>, context: &VisionContext<'_>) -> Result<(), ConvertError> {
    let encoder = siglip(build, context, "vision_tower.", "gemma3", DEFAULT)?;
    let said = context.preprocessor.get("image_seq_length").and_then(Json::as_u64);
    let embeddings = match said {
        Some(embeddings) => embeddings,
        None => context.config.integer_or(&["mm_tokens_per_image"], EMBEDDINGS)?,
    };
    let (side, embeddings_side) = (encoder.image / encoder.patch, embeddings.isqrt());
    if embeddings_side == 0 || embeddings_side.pow(2) != embeddings || !side.is_multiple_of(embeddings_side) {
        return Err(ConvertError::Config(format!(
            "{side} by {side} patches cannot become {embeddings} embeddings"
        )));
    }
    let scale = side / embeddings_side;
    if scale != SCALE {
        build.put_integer("vision.projector.scale_factor", scale)?;
    }
    let (width, hidden) = (encoder.width, context.hidden);
    let norm = build.take("multi_modal_projector.mm_soft_emb_norm.weight", &[width])?;
    let recipe = TensorRecipe::rows(spec("mm.soft_emb_norm.weight", &[width]), vec![StoredRows::all(&norm)]);
    // The norm of the projector is Gemma's, stored as the difference from one; those of the SigLIP encoder are not.
    build.recipes.push(recipe.plus(1.0));
    let shape = [width, hidden];
    let projection = build.take("multi_modal_projector.mm_input_projection_weight", &shape)?;
    let recipe = TensorRecipe::rows(
        spec("mm.input_projection.weight", &shape),
        vec![StoredRows::all(&projection)],
    );
    // llama.cpp transposes the matrix at run time, which ggml cannot do with block types (`Gemma3VisionModel`).
    build.recipes.push(recipe.pinned(GgmlType::F16));
    Ok(())
}
