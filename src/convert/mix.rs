//! Which tensor gets which type in a mix as `Q4_K_M`. The rules are those of llama.cpp's quantiser, which were found by
//! trial: what the output depends on most gets more bits, and so do the first, the last and every third layer.

use super::Quantization;
use crate::gguf::{GgmlType, TensorSpec, Value};

/// Matrices that stay as they are, by what their names contain: norms, routers, positions, and what is tiny.
const KEPT: [&str; 11] = [
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
/// The same, by their whole names.
const KEPT_WHOLE: [&str; 2] = ["position_embd.weight", "token_types.weight"];

/// What the rules ask of a model as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Blocks of the model.
    layers: u64,
    /// Experts of a layer; 0 in a model without.
    experts: u64,
    /// Query heads, by each key head, of the first layer.
    heads_per_key_head: u64,
    /// Whether many heads share few values in a model so large that more bits for these cost nothing.
    is_70b: bool,
}

impl Shape {
    /// Reads it from the metadata of the file.
    pub(super) fn of(arch: &str, metadata: &[(String, Value)]) -> Self {
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
            heads_per_key_head: heads.checked_div(key_heads).unwrap_or(0),
            is_70b: layers == 80
                && match arch {
                    "llama" => experts != 8 && heads != key_heads,
                    "qwen2" => true,
                    _ => false,
                },
        }
    }
}

/// What a tensor is for. Wide: the rules know no architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Output,
    Embedding,
    /// Values, alone or with queries and keys.
    Value,
    Key,
    AttentionOutput,
    Down,
    Other,
}

impl Part {
    fn of(name: &str) -> Self {
        let has = |part: &str| name.contains(part);
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

/// The type of each tensor in a mix; `None` for those that keep the type they have.
pub(super) fn types(mix: Quantization, shape: &Shape, tensors: &[&TensorSpec]) -> Vec<Option<GgmlType>> {
    // By layer and name, in which order some rules count.
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|at| (layer(&tensors[*at].name), &tensors[*at].name));
    let count = |part: Part| tensors.iter().filter(|tensor| Part::of(&tensor.name) == part).count() as u64;
    let mut chooser = Chooser {
        mix,
        shape,
        values: count(Part::Value),
        has_output: count(Part::Output) > 0,
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

/// The layer of `blk.LAYER.…`
fn layer(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

fn row(tensor: &TensorSpec) -> u64 {
    tensor.dims.first().copied().unwrap_or(1)
}

fn is_quantized(tensor: &TensorSpec) -> bool {
    let name = tensor.name.as_str();
    tensor.dims.iter().skip(1).any(|dim| *dim > 1)
        && name.ends_with("weight")
        && !KEPT.iter().any(|part| name.contains(part))
        && !KEPT_WHOLE.contains(&name)
}

/// The type, or the nearest that rows of this length can have.
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

struct Chooser<'a> {
    mix: Quantization,
    shape: &'a Shape,
    /// Tensors of this kind in the model.
    values: u64,
    /// Else the embeddings are the output too.
    has_output: bool,
    values_seen: u64,
    downs_seen: u64,
}

impl Chooser<'_> {
    fn choose(&mut self, tensor: &TensorSpec) -> GgmlType {
        use GgmlType as T;
        let base = self.mix.base;
        // Where eight experts share it, the rest of a layer is small.
        let has_eight_experts = self.shape.experts == 8;
        match Part::of(&tensor.name) {
            Part::Output => self.output(row(tensor)),
            Part::Embedding if !self.has_output => self.output(row(tensor)),
            Part::Value => {
                let chosen = self.value();
                self.values_seen += 1;
                if has_eight_experts { T::Q8_0 } else { chosen }
            }
            Part::Key if has_eight_experts => T::Q8_0,
            Part::AttentionOutput => self.attention_output(has_eight_experts),
            Part::Down => {
                // Experts of one layer do not always stand together.
                let layer = layer(&tensor.name).filter(|_| self.shape.experts > 1);
                let chosen = self.down(layer.unwrap_or(self.downs_seen));
                self.downs_seen += 1;
                chosen
            }
            Part::Embedding | Part::Key | Part::Other => base,
        }
    }

    fn output(&self, row: u64) -> GgmlType {
        if row.is_multiple_of(self.mix.base.block_elements()) {
            GgmlType::Q6_K
        } else {
            GgmlType::Q8_0
        }
    }

    fn value(&self) -> GgmlType {
        use GgmlType as T;
        let is_shared = self.shape.heads_per_key_head >= 4;
        let chosen = match self.mix.name {
            "Q2_K" if is_shared => T::Q4_K,
            "Q2_K" => T::Q3_K,
            "Q3_K_M" if self.values_seen < 2 => T::Q5_K,
            "Q3_K_M" => T::Q4_K,
            "Q3_K_L" => T::Q5_K,
            "IQ4_NL" | "IQ4_XS" if is_shared => T::Q5_K,
            "Q4_K_M" | "Q5_K_M" if gets_more(self.values_seen, self.values) => T::Q6_K,
            "Q4_K_S" if self.values_seen < 4 => T::Q5_K,
            _ => self.mix.base,
        };
        match chosen {
            T::Q3_K | T::Q4_K if self.shape.is_70b => T::Q5_K,
            chosen => chosen,
        }
    }

    fn down(&self, layer: u64) -> GgmlType {
        use GgmlType as T;
        let layers = self.shape.layers;
        match self.mix.name {
            "Q2_K" => T::Q3_K,
            "Q3_K_M" if layer < layers / 16 => T::Q5_K,
            "Q3_K_M" => T::Q4_K,
            "Q3_K_L" => T::Q5_K,
            "Q4_K_M" | "Q5_K_M" if gets_more(layer, layers) => T::Q6_K,
            "Q4_K_S" | "IQ4_NL" | "IQ4_XS" if layer < layers / 8 => T::Q5_K,
            _ => self.mix.base,
        }
    }

    fn attention_output(&self, has_eight_experts: bool) -> GgmlType {
        use GgmlType as T;
        match self.mix.name {
            "Q2_K" | "Q3_K_S" | "Q3_K_M" | "Q4_K_S" | "Q4_K_M" | "IQ4_NL" | "IQ4_XS" if has_eight_experts => T::Q5_K,
            "Q2_K" if !has_eight_experts => T::Q3_K,
            "Q3_K_M" => T::Q4_K,
            "Q3_K_L" if !has_eight_experts => T::Q5_K,
            _ => self.mix.base,
        }
    }
}

/// Whether a layer is one of those that are worth more bits.
fn gets_more(layer: u64, layers: u64) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{convert::TargetType, gguf::Array};

    fn mix(name: &str) -> Quantization {
        match name.parse() {
            Ok(TargetType::Quantized(mix)) => mix,
            other => panic!("{other:?}"),
        }
    }

    fn shape(layers: u64, experts: u64, heads_per_key_head: u64) -> Shape {
        Shape {
            layers,
            experts,
            heads_per_key_head,
            is_70b: false,
        }
    }

    /// Types of one matrix in each of 32 layers, with an output of its own.
    fn in_layers(name: &str, shape: &Shape, part: &str) -> Vec<&'static str> {
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
        let metadata = |layers: u32, heads: u32, key_heads: Value| {
            vec![
                ("llama.block_count".to_owned(), Value::U32(layers)),
                ("llama.attention.head_count".to_owned(), Value::U32(heads)),
                ("llama.attention.head_count_kv".to_owned(), key_heads),
            ]
        };
        let large = Shape::of("llama", &metadata(80, 64, Value::U32(8)));
        assert!(large.is_70b && large.heads_per_key_head == 8);
        assert!(!Shape::of("llama", &metadata(80, 64, Value::U32(64))).is_70b);
        let lists = Value::Array(Array::I32(vec![0, 8]));
        assert_eq!(Shape::of("llama", &metadata(2, 64, lists)).heads_per_key_head, 0);
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
