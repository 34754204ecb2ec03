//! Matrices in MXFP4 (OCP Microscaling Formats 1.0): blocks of 32 four-bit floats (E2M1) that share a power of two
//! (E8M0).
//!
//! A checkpoint has such a matrix in two tensors: `_blocks` `[..., blocks, 16]`, two neighboring elements in each byte,
//! and `_scales` `[..., blocks]`. ggml's `block_mxfp4` is the scale followed by 16 bytes, each of which holds an
//! element of the first half of the block and its counterpart of the second half. Repacking loses nothing
//! (`repack_mxfp4` in `conversion/gpt_oss.py` of llama.cpp).

use std::ops::Range;

use super::{
    ConvertError,
    cast::TensorName,
    dtype::TensorDtype,
    encode::{RowFormat, RowScratch},
    stored::StoredTensor,
};
use crate::gguf::GgmlType;

/// Elements of a block (`QK_MXFP4`).
pub(super) const BLOCK_ELEMENTS: u64 = 32;
/// Bytes of a block without its scale.
pub(super) const BLOCK_BYTES: u64 = BLOCK_ELEMENTS / 2;
/// The E8M0 scale that stands for NaN.
const NAN_EXPONENT: u8 = 0xff;
/// E2M1 values of the low three bits. The fourth bit is the sign.
const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Rows `first`, `first + step`, ... of an MXFP4 matrix whose outer dimensions (experts) are taken as one.
#[derive(Clone, Debug)]
pub(super) struct Mxfp4Rows {
    pub(super) blocks: StoredTensor,
    pub(super) scales: StoredTensor,
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) step: u64,
}

impl Mxfp4Rows {
    /// Returns the blocks of a row.
    fn row_blocks(&self) -> u64 {
        self.scales.row_elements()
    }

    pub(super) fn row_elements(&self) -> u64 {
        self.row_blocks() * BLOCK_ELEMENTS
    }

    /// Returns true if blocks and scales fit each other and contain all rows.
    pub(super) fn is_whole(&self) -> bool {
        let is_bytes = |stored: &StoredTensor| matches!(stored.dtype, TensorDtype::Other("U8", _));
        let [outer @ .., bytes] = self.blocks.shape.as_slice() else {
            return false;
        };
        is_bytes(&self.blocks)
            && is_bytes(&self.scales)
            && *bytes == BLOCK_BYTES
            && outer == self.scales.shape
            && (self.count == 0 || self.first + (self.count - 1) * self.step < self.scales.rows())
    }

    /// Appends a range of rows: repacked if the target is MXFP4, else decoded and encoded again.
    pub(super) fn produce(
        &self,
        rows: Range<u64>,
        format: RowFormat,
        scratch: &mut RowScratch,
        out: &mut Vec<u8>,
    ) -> Result<(), ConvertError> {
        let blocks_of_row = self.row_blocks();
        let stored_row = |row: u64| self.first + row * self.step;
        let span = stored_row(rows.start)..stored_row(rows.end - 1) + 1;
        let RowScratch {
            stored,
            rows: scales,
            numbers,
            ..
        } = scratch;
        let is_repacked = format.target == GgmlType::MXFP4;
        stored.clear();
        scales.clear();
        let blocks = span.start * blocks_of_row..span.end * blocks_of_row;
        self.blocks
            .read(blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES, stored)?;
        self.scales.read(blocks, scales)?;
        let (packed, _) = stored.as_chunks::<{ BLOCK_BYTES as usize }>();
        numbers.clear();
        for row in rows {
            let start = ((stored_row(row) - span.start) * blocks_of_row) as usize;
            let end = start + blocks_of_row as usize;
            for (block, scale) in packed[start..end].iter().zip(&scales[start..end]) {
                // E2M1 has no NaN, so only the scale can be one.
                if *scale == NAN_EXPONENT {
                    return Err(TensorName(&self.scales.name).refuse(f32::NAN, "a model"));
                }
                if is_repacked {
                    out.push(*scale);
                    out.extend(repacked(block));
                } else {
                    numbers.extend(decoded(block, *scale));
                }
            }
        }
        if is_repacked {
            return Ok(());
        }
        format.encode(TensorName(&self.blocks.name), numbers, out)
    }
}

/// Returns the four bits of an element. A stored byte holds two neighbors, the first in its low half.
fn nibble(block: &[u8; BLOCK_BYTES as usize], element: usize) -> u8 {
    block[element / 2] >> (element % 2 * 4) & 0x0f
}

/// Returns a block in ggml's order: byte `n` holds element `n` in its low half and element `n + 16` in its high half.
fn repacked(block: &[u8; BLOCK_BYTES as usize]) -> [u8; BLOCK_BYTES as usize] {
    std::array::from_fn(|at| nibble(block, at) | nibble(block, at + BLOCK_BYTES as usize) << 4)
}

fn decoded(block: &[u8; BLOCK_BYTES as usize], scale: u8) -> [f32; BLOCK_ELEMENTS as usize] {
    // E8M0: a biased exponent and nothing else.
    let power = 2.0f32.powi(i32::from(scale) - 127);
    std::array::from_fn(|at| {
        let bits = nibble(block, at);
        let magnitude = MAGNITUDES[usize::from(bits & 7)] * power;
        if bits & 8 == 0 { magnitude } else { -magnitude }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a block whose elements count up, modulo 16.
    fn counting() -> [u8; 16] {
        std::array::from_fn(|at| (2 * at % 16) as u8 | (((2 * at + 1) % 16) << 4) as u8)
    }

    #[test]
    fn halves_lie_beside_each_other() {
        let expected: [u8; 16] = std::array::from_fn(|at| at as u8 | (at as u8) << 4);
        assert_eq!(repacked(&counting()), expected);
    }

    #[test]
    fn numbers_of_four_bits() {
        let numbers = decoded(&counting(), 128);
        assert_eq!(numbers[..8], [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]);
        assert_eq!(numbers[9..16], [-1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0]);
        assert_eq!(numbers[..16], numbers[16..]);
        // The smallest scale, 2^-127, is subnormal.
        assert_eq!(decoded(&counting(), 0)[2], f32::from_bits(0x0040_0000));
    }
}
