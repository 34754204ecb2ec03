//! Matrices in MXFP4: numbers of four bits in blocks of 32 with a power of two.
//!
//! A checkpoint has them in two tensors, `_blocks` and `_scales`; the engine wants each scale before its block, and the
//! halves of a block beside each other where the checkpoint has neighbours. Nothing is rounded on the way.

use std::ops::Range;

use super::{
    ConvertError,
    cast::Owner,
    recipe::{Scratch, encode_rows},
    safetensors::{Dtype, Stored},
};
use crate::gguf::GgmlType;

/// Elements of a block.
pub(super) const BLOCK_ELEMENTS: u64 = 32;
/// Bytes of a block in the checkpoint, without its scale.
pub(super) const BLOCK_BYTES: u64 = BLOCK_ELEMENTS / 2;
/// OCP Microscaling Formats 1.0: this exponent is no number.
const NAN_EXPONENT: u8 = 0xff;
/// Numbers of the low three bits; the fourth is the sign.
const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Some rows of a matrix, or of several behind each other.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    pub(super) blocks: Stored,
    pub(super) scales: Stored,
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) step: u64,
}

impl Packed {
    /// Blocks of a row.
    fn row_blocks(&self) -> u64 {
        self.scales.row_elements()
    }

    /// Elements of a row.
    pub(super) fn row_elements(&self) -> u64 {
        self.row_blocks() * BLOCK_ELEMENTS
    }

    /// Whether blocks and scales belong together and have all rows.
    pub(super) fn is_whole(&self) -> bool {
        let is_bytes = |stored: &Stored| matches!(stored.dtype, Dtype::Other("U8", _));
        let [outer @ .., bytes] = self.blocks.shape.as_slice() else {
            return false;
        };
        is_bytes(&self.blocks)
            && is_bytes(&self.scales)
            && *bytes == BLOCK_BYTES
            && outer == self.scales.shape
            && (self.count == 0 || self.first + (self.count - 1) * self.step < self.scales.rows())
    }

    /// Appends some rows in the target type: MXFP4, or any that numbers can be cast to.
    pub(super) fn produce(
        &self,
        rows: Range<u64>,
        target: GgmlType,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Result<(), ConvertError> {
        let blocks_of_row = self.row_blocks();
        let stored_row = |row: u64| self.first + row * self.step;
        let span = stored_row(rows.start)..stored_row(rows.end - 1) + 1;
        let Scratch {
            stored,
            rows: scales,
            numbers,
            quantize,
        } = scratch;
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
                if *scale == NAN_EXPONENT {
                    return Err(Owner(&self.scales.name).refuse(f32::NAN, "a model"));
                }
                if target == GgmlType::MXFP4 {
                    out.push(*scale);
                    out.extend(repacked(block));
                } else {
                    numbers.extend(decoded(block, *scale));
                }
            }
        }
        if target == GgmlType::MXFP4 {
            return Ok(());
        }
        let owner = Owner(&self.blocks.name);
        encode_rows(owner, target, self.row_elements(), numbers, *quantize, out)
    }
}

/// The four bits of an element: a byte of the checkpoint holds two neighbours, the first in its low half.
fn nibble(block: &[u8; BLOCK_BYTES as usize], element: usize) -> u8 {
    block[element / 2] >> (element % 2 * 4) & 0x0f
}

/// A byte of the engine's holds an element of the first half of a block and its counterpart of the second.
fn repacked(block: &[u8; BLOCK_BYTES as usize]) -> [u8; BLOCK_BYTES as usize] {
    std::array::from_fn(|at| nibble(block, at) | nibble(block, at + BLOCK_BYTES as usize) << 4)
}

fn decoded(block: &[u8; BLOCK_BYTES as usize], scale: u8) -> [f32; BLOCK_ELEMENTS as usize] {
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

    /// Elements 0 to 31 count up, modulo 16.
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
        // The smallest scale is no normal number.
        assert_eq!(decoded(&counting(), 0)[2], f32::from_bits(0x0040_0000));
    }
}
