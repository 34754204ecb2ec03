//! Rotary position embeddings: the `rope.*` keys, and the factors of Llama 3.1, which llama.cpp reads from a tensor.

use super::ModelBuilder;
use crate::{
    convert::{ConvertError, TensorRecipe, config::RopeConfig},
    gguf::GgufValue,
};

/// Puts the keys that all decoders share. `theta` is the class's default base frequency; `context` stands in for the
/// original context length of YaRN where the configuration has none.
pub(super) fn keys(build: &mut ModelBuilder<'_>, theta: f64, context: u64) -> Result<(), ConvertError> {
    let rope = build.config.rope(theta)?;
    match rope.kind() {
        // Without a type llama.cpp assumes linear scaling, by a factor of 1.
        "default" => {}
        "linear" => {
            build.put("rope.scaling.type", GgufValue::String("linear".to_owned()));
            build.put_number("rope.scaling.factor", rope.needed("factor")?);
        }
        "yarn" => {
            build.put("rope.scaling.type", GgufValue::String("yarn".to_owned()));
            build.put_number("rope.scaling.factor", rope.needed("factor")?);
            let original = rope.number("original_max_position_embeddings");
            build.put_integer(
                "rope.scaling.original_context_length",
                original.map_or(context, |n| n as u64),
            )?;
            for (from, to) in [
                ("extrapolation_factor", "rope.scaling.yarn_ext_factor"),
                ("attention_factor", "rope.scaling.yarn_attn_factor"),
                ("beta_fast", "rope.scaling.yarn_beta_fast"),
                ("beta_slow", "rope.scaling.yarn_beta_slow"),
            ] {
                if let Some(number) = rope.number(from) {
                    build.put_number(to, number);
                }
            }
        }
        "longrope" => build.put("rope.scaling.type", GgufValue::String("longrope".to_owned())),
        // Written as the tensor `rope_freqs.weight`; see `llama3`. As a value of `rope.scaling.type` it would fail an
        // assertion in llama.cpp.
        "llama3" => {}
        "dynamic" => build.config.remark(
            "the model uses dynamic RoPE scaling, which llama.cpp does not support: texts longer than its context are \
             rotated differently"
                .to_owned(),
        ),
        other => {
            return Err(ConvertError::Config(format!(
                "its RoPE scaling is {other:?}, which llama.cpp does not support"
            )));
        }
    }
    build.put_number("rope.freq_base", rope.needed("rope_theta")?);
    if let Some(theta) = rope.sliding_theta {
        build.put_number("rope.freq_base_swa", theta);
    }
    Ok(())
}

/// Adds the frequency factors of Llama 3.1 (`rope_type` `llama3`), if the model has them.
pub(super) fn llama3(build: &mut ModelBuilder<'_>, theta: f64, head_dim: u64) -> Result<(), ConvertError> {
    let rope = build.config.rope(theta)?;
    if rope.kind() == "llama3" {
        build.recipes.push(TensorRecipe::values(
            "rope_freqs.weight",
            llama3_factors(&rope, head_dim)?,
        ));
    }
    Ok(())
}

/// Returns the divisor of each of the `head_dim / 2` frequencies: 1 for wavelengths far below the original context,
/// `factor` for those far above, and a smooth way between (`_compute_llama3_parameters` of transformers,
/// `generate_extra_tensors` of `LlamaModel` in llama.cpp's converter).
fn llama3_factors(rope: &RopeConfig, head_dim: u64) -> Result<Vec<f32>, ConvertError> {
    let theta = rope.needed("rope_theta")?;
    let or = |key: &str, default: f64| rope.number(key).unwrap_or(default);
    let (factor, low, high) = (
        or("factor", 8.0),
        or("low_freq_factor", 1.0),
        or("high_freq_factor", 4.0),
    );
    let original = or("original_max_position_embeddings", 8192.0);
    // In 32 bits at every step, because the reference computes with torch.float32: 64 bits would give other last
    // digits.
    let factors = (0..head_dim).step_by(2).map(|at| {
        let exponent = at as f32 / head_dim as f32;
        let frequency = 1.0 / (theta as f32).powf(exponent);
        let wavelength = (2.0 * std::f64::consts::PI) as f32 / frequency;
        if wavelength < (original / high) as f32 {
            1.0
        } else if wavelength > (original / low) as f32 {
            factor as f32
        } else {
            let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
            1.0 / ((1.0 - smooth) / factor as f32 + smooth)
        }
    });
    Ok(factors.collect())
}
