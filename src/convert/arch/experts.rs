//! Mixtures of experts: many small matrices that become one.

use super::{ModelBuilder, sizes::DecoderSizes, spec};
use crate::convert::{ConvertError, TensorRecipe, parts::StoredRows};

/// How a class stores the experts of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpertWeights {
    /// The matrix that chooses experts, below the layer's name.
    pub(super) router: &'static str,
    /// What is before and behind an expert's number.
    pub(super) folder: &'static str,
    /// An expert's matrices: gate, up and down.
    pub(super) names: [&'static str; 3],
    /// Where the inner size of an expert is said.
    pub(super) size_keys: &'static [&'static str],
    /// Experts by default.
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

    /// Takes the router and all experts of a layer.
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

        // transformers 5 can store all experts of a layer as one tensor.
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

/// Experts in two tensors: gate and up of each behind one another, and down.
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
