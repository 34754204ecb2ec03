//! Weights of eight bits, E4M3, and their scales: one for a whole matrix, for each of its rows or for each block.
//!
//! Scales lie in a tensor beside the weight's, named as it with `_scale_inv` behind. A weight that has met its scales is
//! read as numbers of 32 bits, so that nothing else need know of them.

use std::{ops::Range, sync::Arc};

use super::{
    ConvertError,
    cast::decode,
    safetensors::{Dtype, Stored, Tensors},
};

const SUFFIX: &str = "_scale_inv";
/// Scales of what a weight is multiplied with; who computes with more bits needs none.
const ACTIVATION_SUFFIXES: [&str; 3] = [".activation_scale", "_activation_scale", ".input_scale"];

/// Rows and columns that share a scale.
pub(super) type Block = [u64; 2];

/// The numbers of all bytes.
static NUMBERS: [f32; 256] = numbers();

/// What the numbers of a weight are multiplied with.
#[derive(Clone, Debug)]
pub(super) struct Scales {
    stored: Stored,
    block: Block,
    /// Rows of the weight and of the scales that make one matrix.
    rows: u64,
    scale_rows: u64,
}

/// Joins weights with their scales. `block` is what the configuration says.
pub(super) fn join(mut tensors: Tensors, block: Option<Block>) -> Result<Tensors, ConvertError> {
    tensors.retain(|name, _| !ACTIVATION_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)));
    let names: Vec<String> = tensors.keys().filter(|name| name.ends_with(SUFFIX)).cloned().collect();
    for name in names {
        let Some(scales) = tensors.remove(&name) else { continue };
        let weight = name.strip_suffix(SUFFIX).and_then(|weight| tensors.get_mut(weight));
        let weight = weight.filter(|weight| matches!(weight.dtype, Dtype::Other("F8_E4M3", _)));
        let Some(weight) = weight else {
            return Err(ConvertError::Weights(format!(
                "{name:?} scales no tensor of the type F8_E4M3"
            )));
        };
        let scales = Scales::new(scales, weight, block)?;
        weight.dtype = Dtype::F32;
        weight.scales = Some(Arc::new(scales));
    }
    Ok(tensors)
}

impl Scales {
    fn new(stored: Stored, weight: &Stored, block: Option<Block>) -> Result<Self, ConvertError> {
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
        if !matches!(stored.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) || rows == 0 || columns == 0 {
            return Err(wrong());
        }
        let all = |stored: Stored, block, rows, scale_rows| Self {
            stored,
            block,
            rows,
            scale_rows,
        };
        if stored.shape.iter().all(|dim| *dim == 1) {
            return Ok(all(stored, [weight.rows(), columns], weight.rows(), 1));
        }
        let block = block.unwrap_or([1, columns]);
        let grid = [rows.div_ceil(block[0]), columns.div_ceil(block[1])];
        let shape = [outer, &grid].concat();
        // A scale for each row need not be a matrix.
        if stored.shape != shape && !(grid[1] == 1 && stored.shape == shape[..shape.len() - 1]) {
            return Err(wrong());
        }
        let stored = Stored { shape, ..stored };
        Ok(all(stored, block, rows, grid[0]))
    }

    fn row_of(&self, weight_row: u64) -> u64 {
        weight_row / self.rows * self.scale_rows + weight_row % self.rows / self.block[0]
    }

    /// Appends some elements of a weight, from their bytes, as numbers of 32 bits. `columns` is the length of its rows.
    pub(super) fn scale(
        &self,
        bytes: &[u8],
        elements: Range<u64>,
        columns: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), ConvertError> {
        if elements.is_empty() {
            return Ok(());
        }
        let width = self.stored.row_elements();
        let first = self.row_of(elements.start / columns);
        let last = self.row_of((elements.end - 1) / columns);
        let (mut raw, mut scales) = (Vec::new(), Vec::new());
        self.stored.read(first * width..(last + 1) * width, &mut raw)?;
        decode(self.stored.dtype, &raw, &mut scales);
        let mut bytes = bytes;
        let mut at = elements.start;
        while at < elements.end {
            // As far as one scale reaches.
            let (row, column) = (at / columns, at % columns);
            let block = column / self.block[1];
            let end = columns.min((block + 1) * self.block[1]);
            let count = (end - column).min(elements.end - at);
            let scale = scales[((self.row_of(row) - first) * width + block) as usize];
            let (some, rest) = bytes.split_at(count as usize);
            out.extend(
                some.iter()
                    .flat_map(|byte| (NUMBERS[usize::from(*byte)] * scale).to_le_bytes()),
            );
            bytes = rest;
            at += count;
        }
        Ok(())
    }
}

/// E4M3 as in OCP's Open Compute 8-bit floating point: no infinities, and NaN only where all bits but the sign are set.
const fn numbers() -> [f32; 256] {
    let mut numbers = [0.0; 256];
    let mut byte = 0;
    while byte < 128 {
        let (exponent, fraction) = (byte >> 3, (byte & 7) as u32);
        let magnitude = match exponent {
            15 if fraction == 7 => f32::NAN,
            // Steps of 2^-9.
            0 => fraction as f32 / 512.0,
            _ => f32::from_bits((exponent as u32 + 120) << 23 | fraction << 20),
        };
        numbers[byte] = magnitude;
        numbers[byte + 128] = -magnitude;
        byte += 1;
    }
    numbers
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::convert::safetensors::{open, tests::file};

    #[test]
    fn numbers_of_eight_bits() {
        for (byte, number) in [
            (0x00, 0.0),
            (0x01, 0.001_953_125),
            (0x07, 0.013_671_875),
            (0x08, 0.015_625),
            (0x38, 1.0),
            (0x39, 1.125),
            (0x7e, 448.0),
            (0xfe, -448.0),
            (0xb8, -1.0),
        ] {
            assert_eq!(NUMBERS[byte], number, "{byte:#x}");
        }
        assert!(NUMBERS[0x7f].is_nan() && NUMBERS[0xff].is_nan());
        assert_eq!(NUMBERS.iter().filter(|number| !number.is_finite()).count(), 2);
    }

    /// A weight of ones, and scales that count from one.
    fn tensors(weight: &[u64], scales: &[u64]) -> (tempfile::TempDir, Tensors) {
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

    fn scaled(weight: &[u64], scales: &[u64], block: Option<Block>, elements: Range<u64>) -> Vec<f32> {
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
        // Blocks that reach beyond the matrix, and two matrices.
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
