//! Gemma 3: the average of neighbouring patches becomes an embedding.

use serde_json::Value as Json;

use super::{Encoder, Surroundings, siglip::siglip};
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
/// Embeddings of a picture.
const EMBEDDINGS: u64 = 256;
/// How many patches on a side become one embedding, unless the file says otherwise.
const SCALE: u64 = 4;

pub(super) fn gemma3(build: &mut ModelBuilder<'_>, around: &Surroundings<'_>) -> Result<(), ConvertError> {
    let encoder = siglip(build, around, "vision_tower.", "gemma3", DEFAULT)?;
    let said = around.preprocessor.get("image_seq_length").and_then(Json::as_u64);
    let embeddings = match said {
        Some(embeddings) => embeddings,
        None => around.config.integer_or(&["mm_tokens_per_image"], EMBEDDINGS)?,
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
    let (width, hidden) = (encoder.width, around.hidden);
    let norm = build.take("multi_modal_projector.mm_soft_emb_norm.weight", &[width])?;
    let recipe = TensorRecipe::rows(spec("mm.soft_emb_norm.weight", &[width]), vec![StoredRows::all(&norm)]);
    // Stored as the difference from one, as all norms of Gemma, but none of its encoder's.
    build.recipes.push(recipe.plus(1.0));
    let shape = [width, hidden];
    let projection = build.take("multi_modal_projector.mm_input_projection_weight", &shape)?;
    let recipe = TensorRecipe::rows(
        spec("mm.input_projection.weight", &shape),
        vec![StoredRows::all(&projection)],
    );
    // The engine transposes it, which it can only do with numbers that are not in blocks.
    build.recipes.push(recipe.pinned(GgmlType::F16));
    Ok(())
}
