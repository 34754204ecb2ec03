//! Mixtures of experts: the matrices of all experts of a layer become one tensor `[experts, rows, columns]`, as
//! `ggml_mul_mat_id` wants them.

use super::{ModelBuilder, sizes::DecoderSizes, spec};
use crate::convert::{ConvertError, TensorRecipe, parts::StoredRows};

/// Names of the router and the experts of a layer in the checkpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpertWeights {
    /// Name of the matrix that chooses experts, after the layer's.
    pub(super) router: &'static str,
    /// Name before the number of an expert.
    pub(super) folder: &'static str,
    /// Names of an expert's gate, up and down projections.
    pub(super) names: [&'static str; 3],
    /// Configuration keys of the inner size of an expert.
    pub(super) size_keys: &'static [&'static str],
    /// Default number of experts.
    pub(super) count: u64,
}

impl ExpertWeights {
    fn count(&self, build: &ModelBuilder<'_>) -> Result<u64, ConvertError> {
        let keys = ["num_local_experts", "num_experts", "n_routed_experts"];
        match build.config.optional_integer(&keys)?.unwrap_or(self.count) {
            0 => Err(ConvertError::Config("it has no experts".to_owned())),
            count => Ok(count),
        }
    }

    /// Takes the router `[experts, hidden]` and all experts of a layer, stored one by one or fused.
    pub(super) fn take(
        &self,
        build: &mut ModelBuilder<'_>,
        sizes: &DecoderSizes,
        layer: &str,
        block: u64,
    ) -> Result<(), ConvertError> {
        let count = self.count(build)?;
        let inner = build.config.count(self.size_keys)?;
        let hidden = sizes.hidden;
        let router = build.take(&format!("{layer}{}.weight", self.router), &[count, hidden])?;
        build.add(&format!("blk.{block}.ffn_gate_inp.weight"), &router);

        // transformers 5 saves the experts of a layer as two fused tensors, older versions each matrix on its own.
        let fused = format!("{layer}{}.gate_up_proj", self.folder);
        if build.has(&fused) {
            let down = format!("{layer}{}.down_proj", self.folder);
            return take_fused(build, block, [&fused, &down], [count, inner, hidden]);
        }
        let [gate, up, down] = self.names;
        for (from, to, shape) in [
            (gate, "ffn_gate_exps", [inner, hidden]),
            (up, "ffn_up_exps", [inner, hidden]),
            (down, "ffn_down_exps", [hidden, inner]),
        ] {
            let mut parts = Vec::new();
            // In the order of their numbers: row `n` of the router belongs to expert `n`.
            for expert in 0..count {
                let name = format!("{layer}{}.{expert}.{from}.weight", self.folder);
                parts.push(StoredRows::all(&build.take(&name, &shape)?));
            }
            let spec = spec(&format!("blk.{block}.{to}.weight"), &[count, shape[0], shape[1]]);
            build.recipes.push(TensorRecipe::rows(spec, parts));
        }
        Ok(())
    }
}

/// Takes fused experts: gate and up `[experts, 2 * inner, hidden]`, where the rows of the gate come first, and down
/// `[experts, hidden, inner]`.
pub(super) fn take_fused(
    build: &mut ModelBuilder<'_>,
    block: u64,
    [gate_up, down]: [&str; 2],
    [count, inner, hidden]: [u64; 3],
) -> Result<(), ConvertError> {
    let both = build.take(gate_up, &[count, 2 * inner, hidden])?;
    for (to, offset) in [("ffn_gate_exps", 0), ("ffn_up_exps", inner)] {
        let parts = (0..count).map(|expert| StoredRows::some(&both, expert * 2 * inner + offset, inner, 1));
        let spec = spec(&format!("blk.{block}.{to}.weight"), &[count, inner, hidden]);
        build.recipes.push(TensorRecipe::rows(spec, parts.collect()));
    }
    let down = build.take(down, &[count, hidden, inner])?;
    build.add(&format!("blk.{block}.ffn_down_exps.weight"), &down);
    Ok(())
}
