//! OpenAI's gpt-oss: a mixture of experts with biases, in MXFP4 or plain, and attention with sinks: a logit for each
//! head that takes part in the softmax but contributes no value.

use super::{
    ModelBuilder,
    decoder::{DecoderLayout, LayerWeight, WeightChange},
    llama::LLAMA,
    sizes::{DecoderSizes, HeadDim, ModelClass, WeightDim},
    spec,
};
use crate::convert::{
    ConvertError, TensorRecipe,
    mxfp4::{BLOCK_BYTES, BLOCK_ELEMENTS, Mxfp4Rows},
    parts::{StoredColumns, StoredRows},
};

use WeightDim::{Hidden, Key, Query};

const GPT_OSS: ModelClass = ModelClass {
    arch: "gpt-oss",
    heads: Some(64),
    kv_heads: Some(8),
    head_dim: HeadDim::Or(64),
    context: 131_072,
    epsilon: 1e-5,
    theta: 150_000.0,
    experts: Some((128, 4)),
    ..LLAMA
};
const LAYER: &[LayerWeight] = &[
    LayerWeight::new("input_layernorm", "attn_norm", &[Hidden]),
    LayerWeight::new("post_attention_layernorm", "post_attention_norm", &[Hidden]),
    LayerWeight::new("self_attn.q_proj", "attn_q", &[Query, Hidden]).biased(),
    LayerWeight::new("self_attn.k_proj", "attn_k", &[Key, Hidden]).biased(),
    LayerWeight::new("self_attn.v_proj", "attn_v", &[Key, Hidden]).biased(),
    LayerWeight::new("self_attn.o_proj", "attn_output", &[Hidden, Query]).biased(),
];

/// Selection of the rows of all experts of a layer from a stored tensor.
#[derive(Clone, Copy, Debug)]
struct Matrices {
    experts: u64,
    /// Stored rows of one expert.
    rows: u64,
    columns: u64,
    /// The rows `first`, `first + step`, ... are taken.
    first: u64,
    step: u64,
}

pub(super) fn gpt_oss(build: &mut ModelBuilder<'_>) -> Result<(), ConvertError> {
    let config = build.config;
    // The class defaults to YaRN, but every published configuration states its parameters. They are not guessed.
    if config.find(&["rope_parameters", "rope_scaling"]).is_none() {
        return Err(ConvertError::Config("it has no RoPE parameters".to_owned()));
    }
    let decoder = DecoderLayout {
        class: GPT_OSS,
        layer: &[LAYER],
        experts: None,
        last_norm: WeightChange::None,
        output: true,
    };
    let sizes = decoder.build(build)?;
    // No pattern is written: llama.cpp gives a window to every other layer by default.
    let window = config.integer_or(&["sliding_window"], 128)?;
    build.put_integer("attention.sliding_window", window)?;
    build.put_integer("expert_feed_forward_length", sizes.feed_forward)?;
    let experts = config.integer_or(&["num_local_experts", "num_experts"], 128)?;
    for block in 0..sizes.blocks {
        layer(build, &sizes, experts, block)?;
    }
    Ok(())
}

fn layer(build: &mut ModelBuilder<'_>, sizes: &DecoderSizes, experts: u64, block: u64) -> Result<(), ConvertError> {
    let (from, to) = (format!("model.layers.{block}."), format!("blk.{block}."));
    let (hidden, inner) = (sizes.hidden, sizes.feed_forward);
    let sinks = build.take(&format!("{from}self_attn.sinks"), &[sizes.heads])?;
    build.add(&format!("{to}attn_sinks.weight"), &sinks);
    let router = format!("{from}mlp.router");
    build.copy(&router, &format!("{to}ffn_gate_inp"), &[experts, hidden])?;
    let bias = build.take(&format!("{router}.bias"), &[experts])?;
    build.add(&format!("{to}ffn_gate_inp.bias"), &bias);

    let down = format!("{from}mlp.experts.down_proj");
    let both = format!("{from}mlp.experts.gate_up_proj");
    let matrices = |rows, columns, first, step| Matrices {
        experts,
        rows,
        columns,
        first,
        step,
    };
    // Rows of gate and up alternate (`gate_up[..., ::2, :]` in the converter's `GptOssModel`).
    for (stem, name, matrices) in [
        (&both, "ffn_gate_exps", matrices(2 * inner, hidden, 0, 2)),
        (&both, "ffn_up_exps", matrices(2 * inner, hidden, 1, 2)),
        (&down, "ffn_down_exps", matrices(hidden, inner, 0, 1)),
    ] {
        matrices.add(build, stem, &format!("{to}{name}"))?;
    }
    // All parts have been looked at but not taken, since gate and up share them.
    for stem in [both, down] {
        for part in ["", "_blocks", "_scales", "_bias"] {
            build.tensors.remove(&format!("{stem}{part}"));
        }
    }
    Ok(())
}

impl Matrices {
    /// Adds the matrices and their biases. The stored tensors stay, because gate and up come from the same one.
    fn add(&self, build: &mut ModelBuilder<'_>, stem: &str, to: &str) -> Result<(), ConvertError> {
        let (experts, rows, columns) = (self.experts, self.rows, self.columns);
        let taken = rows / self.step;
        let spec_of = |name: String| spec(&name, &[experts, taken, columns]);
        if build.has(&format!("{stem}_blocks")) {
            if !columns.is_multiple_of(BLOCK_ELEMENTS) {
                return Err(ConvertError::Config(format!(
                    "rows of {columns} elements in blocks of {BLOCK_ELEMENTS}"
                )));
            }
            let blocks = columns / BLOCK_ELEMENTS;
            let packed = Mxfp4Rows {
                blocks: build.look(&format!("{stem}_blocks"), &[experts, rows, blocks, BLOCK_BYTES])?,
                scales: build.look(&format!("{stem}_scales"), &[experts, rows, blocks])?,
                first: self.first,
                count: experts * taken,
                step: self.step,
            };
            let recipe = TensorRecipe::mxfp4(spec_of(format!("{to}.weight")), vec![packed]);
            build.recipes.push(recipe);
        } else {
            // Without MXFP4 each expert is stored transposed, `[columns, rows]`.
            let source = build.look(stem, &[experts, columns, rows])?;
            let parts = (0..experts).map(|expert| {
                let of_expert = expert * columns..(expert + 1) * columns;
                StoredColumns::some(&source, of_expert, self.first, taken, self.step)
            });
            let recipe = TensorRecipe::columns(spec_of(format!("{to}.weight")), parts.collect());
            build.recipes.push(recipe);
        }
        // As a column, the bias is split into gate and up by the same steps as the rows of the matrix.
        let bias = build.look(&format!("{stem}_bias"), &[experts, rows])?;
        let elements = StoredRows::some(&bias.as_column(), self.first, experts * taken, self.step);
        let name = format!("{to}.bias");
        let recipe = TensorRecipe::rows(spec(&name, &[experts * taken, 1]), vec![elements]);
        build.recipes.push(recipe.reshaped(&[taken, experts]));
        Ok(())
    }
}
