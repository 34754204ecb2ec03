//! Types of the tensors of a quantization mix such as `Q4_K_M`.
//!
//! The rules are those of `llama-quant.cpp` without an importance matrix: `tensor_allows_quantization`,
//! `llama_tensor_get_type_impl` and `tensor_type_fallback`. They were found by experiment upstream: values, `ffn_down`
//! and the output matrix matter most and get more bits, as do the first, the last and every third layer.
//! `golden::mixes` compares the result with `llama_model_quantize`, tensor by tensor.

use crate::{
    gguf::{GgmlType, GgufValue, TensorSpec},
    inference::QuantizationMix as Mix,
};

/// Parts of the names of matrices that are not quantized: norms, routers, positions, and small ones
/// (`tensor_allows_quantization`).
const UNQUANTIZED: [&str; 11] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "attn_rel_b.weight",
    ".position_embd",
    ".patch_embd",
    ".patch_merger",
];
/// Whole names of further matrices that are not quantized.
const UNQUANTIZED_NAMES: [&str; 2] = ["position_embd.weight", "token_types.weight"];

/// Returns the number of the mix in llama.cpp's `enum llama_ftype`.
pub(super) fn file_type(mix: Mix) -> u32 {
    match mix {
        Mix::Q4_0 => 2,
        Mix::Q4_1 => 3,
        Mix::Q5_0 => 8,
        Mix::Q5_1 => 9,
        Mix::Q2_K => 10,
        Mix::Q3_K_S => 11,
        Mix::Q3_K_M => 12,
        Mix::Q3_K_L => 13,
        Mix::Q4_K_S => 14,
        Mix::Q4_K_M => 15,
        Mix::Q5_K_S => 16,
        Mix::Q5_K_M => 17,
        Mix::Q6_K => 18,
        Mix::IQ4_NL => 25,
        Mix::IQ4_XS => 30,
    }
}

/// Returns the type of the matrices that no rule below singles out (`llama_ftype_get_default_type`).
fn base(mix: Mix) -> GgmlType {
    match mix {
        Mix::Q4_0 => GgmlType::Q4_0,
        Mix::Q4_1 => GgmlType::Q4_1,
        Mix::Q5_0 => GgmlType::Q5_0,
        Mix::Q5_1 => GgmlType::Q5_1,
        Mix::Q2_K => GgmlType::Q2_K,
        Mix::Q3_K_S | Mix::Q3_K_M | Mix::Q3_K_L => GgmlType::Q3_K,
        Mix::Q4_K_S | Mix::Q4_K_M => GgmlType::Q4_K,
        Mix::Q5_K_S | Mix::Q5_K_M => GgmlType::Q5_K,
        Mix::Q6_K => GgmlType::Q6_K,
        Mix::IQ4_NL => GgmlType::IQ4_NL,
        Mix::IQ4_XS => GgmlType::IQ4_XS,
    }
}

/// Properties of a model that the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModelShape {
    layers: u64,
    /// Experts of a layer; 0 in a dense model.
    experts: u64,
    /// Query heads that share a key-value head in the first layer (`hparams.n_gqa()`).
    queries_per_kv_head: u64,
    /// True if llama.cpp takes the model for `LLM_TYPE_70B`: 80 layers whose eight query heads share one value head, so
    /// that more bits for the values cost next to nothing.
    is_70b: bool,
}

impl ModelShape {
    /// Reads the properties from the metadata of the file.
    pub(super) fn of(arch: &str, metadata: &[(String, GgufValue)]) -> Self {
        let first = |key: &str| {
            let key = format!("{arch}.{key}");
            let (_, value) = metadata.iter().find(|(other, _)| *other == key)?;
            value.integers().first().copied()
        };
        let layers = first("block_count").unwrap_or(0);
        let experts = first("expert_count").unwrap_or(0);
        let heads = first("attention.head_count").unwrap_or(0);
        let key_heads = first("attention.head_count_kv").unwrap_or(heads);
        Self {
            layers,
            experts,
            queries_per_kv_head: heads.checked_div(key_heads).unwrap_or(0),
            is_70b: layers == 80
                && match arch {
                    "llama" => experts != 8 && heads != key_heads,
                    "qwen2" => true,
                    _ => false,
                },
        }
    }
}

/// Role of a tensor, by its name alone (`tensor_category`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TensorClass {
    Output,
    Embedding,
    /// Values, alone or fused with queries and keys (`category_is_attn_v`).
    Value,
    Key,
    AttentionOutput,
    Down,
    Other,
}

impl TensorClass {
    fn of(name: &str) -> Self {
        let has = |part: &str| name.contains(part);
        // The order is that of `tensor_get_category`: the first part that the name contains decides.
        match name {
            "output.weight" => Self::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Self::Embedding,
            _ if ["attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight"]
                .into_iter()
                .any(has) =>
            {
                Self::Value
            }
            _ if has("attn_k.weight") => Self::Key,
            _ if has("attn_q.weight") => Self::Other,
            _ if has("attn_output.weight") => Self::AttentionOutput,
            _ if has("ffn_up") || has("ffn_gate") => Self::Other,
            _ if has("ffn_down") => Self::Down,
            _ => Self::Other,
        }
    }
}

/// Returns the type of each tensor; `None` for those that are not quantized.
pub(super) fn types(mix: Mix, shape: &ModelShape, tensors: &[&TensorSpec]) -> Vec<Option<GgmlType>> {
    // Some rules count tensors. llama.cpp's loader hands them out sorted by layer, then name (`weight_name_comparer`).
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|at| (layer(&tensors[*at].name), &tensors[*at].name));
    let count = |part: TensorClass| {
        tensors
            .iter()
            .filter(|tensor| TensorClass::of(&tensor.name) == part)
            .count() as u64
    };
    let mut chooser = Chooser {
        mix,
        shape,
        values: count(TensorClass::Value),
        has_output: count(TensorClass::Output) > 0,
        values_seen: 0,
        downs_seen: 0,
    };
    let mut types = vec![None; tensors.len()];
    for at in order {
        let tensor = tensors[at];
        if is_quantized(tensor) {
            types[at] = Some(fitting(chooser.choose(tensor), row(tensor)));
        }
    }
    types
}

/// Returns the layer in a name such as `blk.3.attn_q.weight`.
fn layer(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Returns the elements of a row.
fn row(tensor: &TensorSpec) -> u64 {
    tensor.dims.first().copied().unwrap_or(1)
}

fn is_quantized(tensor: &TensorSpec) -> bool {
    let name = tensor.name.as_str();
    // A matrix of one row is a vector for ggml (`ggml_n_dims`).
    tensor.dims.iter().skip(1).any(|dim| *dim > 1)
        && name.ends_with("weight")
        && !UNQUANTIZED.iter().any(|part| name.contains(part))
        && !UNQUANTIZED_NAMES.contains(&name)
}

/// Returns the type, or the substitute for rows whose length is no multiple of its block (`tensor_type_fallback`).
/// K-quants have blocks of 256, their substitutes of 32.
fn fitting(kind: GgmlType, row: u64) -> GgmlType {
    use GgmlType as T;
    if row.is_multiple_of(kind.block_elements()) {
        return kind;
    }
    let smaller = match kind {
        T::Q2_K | T::Q3_K => T::Q4_0,
        T::Q4_K => T::Q5_0,
        T::Q5_K => T::Q5_1,
        T::Q6_K => T::Q8_0,
        T::IQ4_XS => T::IQ4_NL,
        other => other,
    };
    if row.is_multiple_of(smaller.block_elements()) {
        smaller
    } else {
        T::F16
    }
}

/// Chooses types one by one, in the order that the counting rules require (`quantize_state_impl`).
struct Chooser<'a> {
    mix: Mix,
    shape: &'a ModelShape,
    /// Number of [`TensorClass::Value`] tensors in the model.
    values: u64,
    /// False when the embedding is the output matrix too.
    has_output: bool,
    values_seen: u64,
    downs_seen: u64,
}

impl Chooser<'_> {
    fn choose(&mut self, tensor: &TensorSpec) -> GgmlType {
        use GgmlType as T;
        let base = base(self.mix);
        // In an 8-expert model such as Mixtral the attention is small next to the experts: 8 bits cost some 128 MB.
        let has_eight_experts = self.shape.experts == 8;
        match TensorClass::of(&tensor.name) {
            TensorClass::Output => self.output(row(tensor)),
            TensorClass::Embedding if !self.has_output => self.output(row(tensor)),
            TensorClass::Value => {
                let chosen = self.value();
                self.values_seen += 1;
                if has_eight_experts { T::Q8_0 } else { chosen }
            }
            TensorClass::Key if has_eight_experts => T::Q8_0,
            TensorClass::AttentionOutput => self.attention_output(has_eight_experts),
            TensorClass::Down => {
                // Mixtures are counted by layer number, since the tensors of experts need not be consecutive.
                let layer = layer(&tensor.name).filter(|_| self.shape.experts > 1);
                let chosen = self.down(layer.unwrap_or(self.downs_seen));
                self.downs_seen += 1;
                chosen
            }
            TensorClass::Embedding | TensorClass::Key | TensorClass::Other => base,
        }
    }

    fn output(&self, row: u64) -> GgmlType {
        if row.is_multiple_of(base(self.mix).block_elements()) {
            GgmlType::Q6_K
        } else {
            GgmlType::Q8_0
        }
    }

    fn value(&self) -> GgmlType {
        use GgmlType as T;
        let is_shared = self.shape.queries_per_kv_head >= 4;
        let chosen = match self.mix {
            Mix::Q2_K if is_shared => T::Q4_K,
            Mix::Q2_K => T::Q3_K,
            Mix::Q3_K_M if self.values_seen < 2 => T::Q5_K,
            Mix::Q3_K_M => T::Q4_K,
            Mix::Q3_K_L => T::Q5_K,
            Mix::IQ4_NL | Mix::IQ4_XS if is_shared => T::Q5_K,
            Mix::Q4_K_M | Mix::Q5_K_M if gets_more(self.values_seen, self.values) => T::Q6_K,
            Mix::Q4_K_S if self.values_seen < 4 => T::Q5_K,
            _ => base(self.mix),
        };
        match chosen {
            T::Q3_K | T::Q4_K if self.shape.is_70b => T::Q5_K,
            chosen => chosen,
        }
    }

    fn down(&self, layer: u64) -> GgmlType {
        use GgmlType as T;
        let layers = self.shape.layers;
        match self.mix {
            Mix::Q2_K => T::Q3_K,
            Mix::Q3_K_M if layer < layers / 16 => T::Q5_K,
            // `llama-quant.cpp` has other rules for Falcon here and below, an architecture that is never converted.
            Mix::Q3_K_M => T::Q4_K,
            Mix::Q3_K_L => T::Q5_K,
            Mix::Q4_K_M | Mix::Q5_K_M if gets_more(layer, layers) => T::Q6_K,
            Mix::Q4_K_S | Mix::IQ4_NL | Mix::IQ4_XS if layer < layers / 8 => T::Q5_K,
            _ => base(self.mix),
        }
    }

    fn attention_output(&self, has_eight_experts: bool) -> GgmlType {
        use GgmlType as T;
        match self.mix {
            Mix::Q2_K | Mix::Q3_K_S | Mix::Q3_K_M | Mix::Q4_K_S | Mix::Q4_K_M | Mix::IQ4_NL | Mix::IQ4_XS
                if has_eight_experts =>
            {
                T::Q5_K
            }
            Mix::Q2_K if !has_eight_experts => T::Q3_K,
            Mix::Q3_K_M => T::Q4_K,
            Mix::Q3_K_L if !has_eight_experts => T::Q5_K,
            _ => base(self.mix),
        }
    }
}

/// Returns true for the first and the last eighth of the layers and every third between (`use_more_bits`).
fn gets_more(layer: u64, layers: u64) -> bool {
    let eighth = layers / 8;
    // The subtraction cannot underflow: smaller numbers have fulfilled the first condition.
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gguf::{GgufArray, file_type_name},
        inference::WeightType,
    };

    #[test]
    fn file_types_of_mixes() {
        for weight_type in WeightType::explicit() {
            if let WeightType::Mix(mix) = weight_type {
                assert_eq!(file_type_name(file_type(mix).into()), Some(weight_type.name()));
            }
        }
    }

    fn mix(name: &str) -> Mix {
        match name.parse() {
            Ok(WeightType::Mix(mix)) => mix,
            other => panic!("{other:?}"),
        }
    }

    fn shape(layers: u64, experts: u64, queries_per_kv_head: u64) -> ModelShape {
        ModelShape {
            layers,
            experts,
            queries_per_kv_head,
            is_70b: false,
        }
    }

    /// Returns the types of one matrix in each layer of a model with an output matrix.
    fn in_layers(name: &str, shape: &ModelShape, part: &str) -> Vec<&'static str> {
        let mut tensors = vec![TensorSpec::new("output.weight", GgmlType::F32, [256, 8])];
        let layers = (0..shape.layers).rev();
        tensors
            .extend(layers.map(|layer| TensorSpec::new(format!("blk.{layer}.{part}.weight"), GgmlType::F32, [256, 8])));
        let types = types(mix(name), shape, &tensors.iter().collect::<Vec<_>>());
        assert_eq!(types[0], Some(GgmlType::Q6_K));
        types[1..].iter().rev().map(|kind| kind.unwrap().name()).collect()
    }

    #[test]
    fn some_layers_get_more_bits() {
        let more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];
        for part in ["attn_v", "attn_qkv", "ffn_down"] {
            let types = in_layers("Q4_K_M", &shape(32, 0, 1), part);
            let found: Vec<usize> = (0..32).filter(|layer| types[*layer] == "Q6_K").collect();
            assert_eq!(found, more, "{part}");
            assert!((0..32).all(|layer| more.contains(&layer) || types[layer] == "Q4_K"));
        }
        let types = in_layers("Q4_K_S", &shape(32, 0, 1), "ffn_down");
        assert_eq!(types[..5], ["Q5_K", "Q5_K", "Q5_K", "Q5_K", "Q4_K"]);
        let types = in_layers("Q3_K_M", &shape(32, 0, 1), "ffn_down");
        assert_eq!(types[..3], ["Q5_K", "Q5_K", "Q4_K"]);
        assert_eq!(in_layers("Q2_K", &shape(32, 0, 1), "attn_v")[7], "Q3_K");
        assert_eq!(in_layers("Q2_K", &shape(32, 0, 4), "attn_v")[7], "Q4_K");
        assert_eq!(in_layers("Q4_K_M", &shape(32, 8, 4), "attn_v")[7], "Q8_0");
        assert_eq!(in_layers("Q4_K_M", &shape(32, 8, 4), "attn_output")[7], "Q5_K");
        assert_eq!(in_layers("Q4_K_M", &shape(32, 0, 4), "ffn_up")[0], "Q4_K");
    }

    #[test]
    fn the_shape_is_read_from_the_metadata() {
        let metadata = |layers: u32, heads: u32, key_heads: GgufValue| {
            vec![
                ("llama.block_count".to_owned(), GgufValue::U32(layers)),
                ("llama.attention.head_count".to_owned(), GgufValue::U32(heads)),
                ("llama.attention.head_count_kv".to_owned(), key_heads),
            ]
        };
        let large = ModelShape::of("llama", &metadata(80, 64, GgufValue::U32(8)));
        assert!(large.is_70b && large.queries_per_kv_head == 8);
        assert!(!ModelShape::of("llama", &metadata(80, 64, GgufValue::U32(64))).is_70b);
        let lists = GgufValue::Array(GgufArray::I32(vec![0, 8]));
        assert_eq!(ModelShape::of("llama", &metadata(2, 64, lists)).queries_per_kv_head, 0);
        assert_eq!(in_layers("Q4_K_M", &large, "attn_v")[11], "Q5_K");
    }

    #[test]
    fn what_is_small_or_of_odd_length_is_spared() {
        let tensors = [
            ("token_embd.weight", vec![96, 10]),
            ("blk.0.attn_norm.weight", vec![256]),
            ("blk.0.ffn_gate_inp.weight", vec![256, 8]),
            ("blk.0.ffn_up.weight", vec![96, 8]),
            ("blk.0.ffn_down.weight", vec![40, 8]),
            ("blk.0.attn_q.bias", vec![256, 8]),
            ("cls.weight", vec![256, 1]),
            ("position_embd.weight", vec![256, 8]),
        ];
        let specs: Vec<TensorSpec> = tensors
            .into_iter()
            .map(|(name, dims)| TensorSpec::new(name, GgmlType::F32, dims))
            .collect();
        let found = types(mix("Q4_K_M"), &shape(1, 0, 1), &specs.iter().collect::<Vec<_>>());
        let found: Vec<Option<&str>> = found.into_iter().map(|kind| kind.map(GgmlType::name)).collect();
        assert_eq!(
            found,
            [Some("Q8_0"), None, None, Some("Q5_0"), Some("F16"), None, None, None]
        );
    }
}
