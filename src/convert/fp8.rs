//! Checkpoints of eight-bit floats (`"quant_method": "fp8"`): joins each weight with its scales.
//!
//! Scales are a tensor named like the weight with `_scale_inv` appended: one for the whole matrix, one for each row, or
//! one for each block of `weight_block_size`. A weight's value is its E4M3 value multiplied with the scale
//! (`dequant_simple` in llama.cpp's `convert_hf_to_gguf.py`). After joining, a weight is read as 32-bit floats.

use std::sync::Arc;

use super::{
    ConvertError,
    dtype::TensorDtype,
    safetensors::StoredTensors,
    stored::{ScaleBlock, Scales, StoredTensor},
};

/// Suffix of scales. They are the inverse of what quantization multiplied with, so weights are multiplied, not divided.
const SUFFIX: &str = "_scale_inv";
/// Scales of activations. They serve kernels that quantize activations to eight bits too, which llama.cpp does not.
const ACTIVATION_SUFFIXES: [&str; 3] = [".activation_scale", "_activation_scale", ".input_scale"];

/// Joins the weights with their scales. `block` is the configuration's `weight_block_size`.
///
/// # Errors
/// If scales belong to no E4M3 weight, or have a shape that does not fit it.
pub(super) fn join(mut tensors: StoredTensors, block: Option<ScaleBlock>) -> Result<StoredTensors, ConvertError> {
    tensors.retain(|name, _| !ACTIVATION_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)));
    let names: Vec<String> = tensors.keys().filter(|name| name.ends_with(SUFFIX)).cloned().collect();
    for name in names {
        let Some(scales) = tensors.remove(&name) else { continue };
        let weight = name.strip_suffix(SUFFIX).and_then(|weight| tensors.get_mut(weight));
        let weight = weight.filter(|weight| matches!(weight.dtype, TensorDtype::Other("F8_E4M3", _)));
        let Some(weight) = weight else {
            return Err(ConvertError::Weights(format!(
                "{name:?} scales no tensor of the type F8_E4M3"
            )));
        };
        let scales = Scales::new(scales, weight, block)?;
        // From here on `read` returns the product.
        weight.dtype = TensorDtype::F32;
        weight.scales = Some(Arc::new(scales));
    }
    // A weight of eight bits without scales keeps its type, which `TensorRecipe::check` refuses.
    Ok(tensors)
}

impl Scales {
    fn new(stored: StoredTensor, weight: &StoredTensor, block: Option<ScaleBlock>) -> Result<Self, ConvertError> {
        let wrong = || {
            ConvertError::Weights(format!(
                "{:?} has the shape {:?}, which does not fit {:?} with the shape {:?}",
                stored.name, stored.shape, weight.name, weight.shape
            ))
        };
        let [outer @ .., rows, columns] = weight.shape.as_slice() else {
            return Err(wrong());
        };
        let (rows, columns) = (*rows, *columns);
        if !matches!(stored.dtype, TensorDtype::F32 | TensorDtype::F16 | TensorDtype::BF16) || rows == 0 || columns == 0
        {
            return Err(wrong());
        }
        let all = |stored: StoredTensor, block, rows, scale_rows| Self {
            stored,
            block,
            rows,
            scale_rows,
        };
        // One scale, whatever the configuration says of blocks.
        if stored.shape.iter().all(|dim| *dim == 1) {
            return Ok(all(stored, [weight.rows(), columns], weight.rows(), 1));
        }
        // Without a block size there is one scale for each row.
        let block = block.unwrap_or([1, columns]);
        let grid = [rows.div_ceil(block[0]), columns.div_ceil(block[1])];
        let shape = [outer, &grid].concat();
        // Scales of whole rows are stored as [rows] or [rows, 1].
        if stored.shape != shape && !(grid[1] == 1 && stored.shape == shape[..shape.len() - 1]) {
            return Err(wrong());
        }
        let stored = StoredTensor { shape, ..stored };
        Ok(all(stored, block, rows, grid[0]))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, ops::Range};

    use super::*;
    use crate::convert::{
        cast::decode,
        safetensors::{open, tests::file},
    };

    /// Returns a weight of ones, and scales that count from one.
    fn tensors(weight: &[u64], scales: &[u64]) -> (tempfile::TempDir, StoredTensors) {
        let folder = tempfile::tempdir().unwrap();
        let (ones, count) = (weight.iter().product::<u64>(), scales.iter().product::<u64>());
        let mut data = vec![0x38; ones as usize];
        data.extend((1..=count).flat_map(|number| (number as f32).to_le_bytes()));
        let header = format!(
            r#"{{"w":{{"dtype":"F8_E4M3","shape":{weight:?},"data_offsets":[0,{ones}]}},
                "w_scale_inv":{{"dtype":"F32","shape":{scales:?},"data_offsets":[{ones},{}]}}}}"#,
            data.len()
        );
        fs::write(folder.path().join("model.safetensors"), file(&header, &data)).unwrap();
        let tensors = open(folder.path()).unwrap();
        (folder, tensors)
    }

    fn scaled(weight: &[u64], scales: &[u64], block: Option<ScaleBlock>, elements: Range<u64>) -> Vec<f32> {
        let (_folder, tensors) = tensors(weight, scales);
        let weight = join(tensors, block).unwrap().remove("w").unwrap();
        let (mut bytes, mut numbers) = (Vec::new(), Vec::new());
        weight.read(elements, &mut bytes).unwrap();
        decode(weight.dtype, &bytes, &mut numbers);
        numbers
    }

    #[test]
    fn scales_of_every_reach() {
        assert_eq!(scaled(&[2, 3], &[], None, 0..6), [1.0; 6]);
        assert_eq!(scaled(&[2, 3], &[1], Some([2, 2]), 2..6), [1.0; 4]);
        for shape in [&[2][..], &[2, 1]] {
            assert_eq!(scaled(&[2, 3], shape, None, 1..6), [1., 1., 2., 2., 2.]);
        }
        // Blocks that reach beyond the matrix's edge, then a weight of two matrices.
        let numbers = scaled(&[3, 3], &[2, 2], Some([2, 2]), 0..9);
        assert_eq!(numbers, [1., 1., 2., 1., 1., 2., 3., 3., 4.]);
        let numbers = scaled(&[2, 3, 3], &[2, 2, 2], Some([2, 2]), 7..14);
        assert_eq!(numbers, [3., 4., 5., 5., 6., 5., 5.]);
        assert_eq!(scaled(&[2, 1, 2], &[2, 1, 1], Some([2, 2]), 0..4), [1., 1., 2., 2.]);
    }

    #[test]
    fn scales_that_do_not_fit() {
        for (weight, scales, block) in [
            (&[4, 4][..], &[3, 2][..], Some([2, 2])),
            (&[4, 4], &[2, 2], None),
            (&[4], &[2], None),
            (&[2, 4, 4], &[2, 2], Some([2, 2])),
        ] {
            let (_folder, tensors) = tensors(weight, scales);
            assert!(join(tensors, block).is_err(), "{weight:?} {scales:?}");
        }
        let (_folder, mut tensors) = tensors(&[4, 4], &[1]);
        tensors.remove("w");
        assert!(
            join(tensors, None)
                .unwrap_err()
                .to_string()
                .contains("scales no tensor")
        );
    }
}
