//! Rows of 32-bit floats into the element type of the GGUF file: plain types here, all others by a function that the
//! caller provides. Only processes that may call llama.cpp have such a function.

use super::{
    ConvertError,
    cast::{TensorName, encode, is_plain},
};
use crate::gguf::GgmlType;

/// Function that appends rows in a quantized type: the type, the elements, and the number of elements in a row, which
/// is a whole number of blocks. The error is the quantizer's own text.
pub type RowQuantizer = fn(GgmlType, &[f32], usize, &mut Vec<u8>) -> Result<(), String>;

/// Buffers that a thread reuses from one range of rows to the next, and the quantizer for the rows.
#[derive(Debug, Default)]
pub struct RowScratch {
    /// Bytes as they were read.
    pub(super) stored: Vec<u8>,
    /// Input bytes in the order of the result.
    pub(super) rows: Vec<u8>,
    /// The elements of those bytes.
    pub(super) numbers: Vec<f32>,
    pub(super) quantize: Option<RowQuantizer>,
}

impl RowScratch {
    /// Returns empty buffers. Without a quantizer the only block type that can be made is Q8_0.
    #[must_use]
    pub fn new(quantize: Option<RowQuantizer>) -> Self {
        Self {
            quantize,
            ..Self::default()
        }
    }
}

/// Form of the rows of one tensor of the GGUF file.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowFormat {
    pub(super) target: GgmlType,
    /// Elements of a row.
    pub(super) row: u64,
    pub(super) quantize: Option<RowQuantizer>,
}

impl RowFormat {
    /// Appends whole rows. `owner` names the tensor in errors.
    pub(super) fn encode(self, owner: TensorName<'_>, numbers: &[f32], out: &mut Vec<u8>) -> Result<(), ConvertError> {
        let Self { target, row, quantize } = self;
        if is_plain(target) {
            return encode(owner, target, numbers, out);
        }
        let Some(quantize) = quantize else {
            let reason = format!("this process cannot quantize to {}", target.name());
            return Err(ConvertError::Engine(reason));
        };
        quantize(target, numbers, row as usize, out)
            .map_err(|reason| ConvertError::Weights(format!("{:?} cannot be quantized: {reason}", owner.0)))
    }
}
