//! Tensors of a checkpoint where they lie in their files, and reading any range of their elements.
//!
//! A tensor of eight-bit floats that has been joined with its scales (module `fp8`) is read as 32-bit floats, so that
//! no other module needs to know of scales.

use std::{fs::File, ops::Range, os::unix::fs::FileExt, path::PathBuf, sync::Arc};

use super::{
    ConvertError,
    cast::{E4M3, decode},
    dtype::TensorDtype,
};

/// Safetensors file, open for positioned reads.
#[derive(Debug)]
pub(super) struct ShardFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
}

/// A tensor of the checkpoint: its place in a file, type and shape. Its last dimension is called its row.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor {
    pub(super) name: String,
    pub(super) shard: Arc<ShardFile>,
    /// Bytes from the start of the file.
    pub(super) offset: u64,
    /// Type of the elements that [`StoredTensor::read`] returns.
    pub(super) dtype: TensorDtype,
    /// Slowest dimension first, as in PyTorch.
    pub(super) shape: Vec<u64>,
    /// If set, the stored bytes are E4M3 and `dtype` is [`TensorDtype::F32`].
    pub(super) scales: Option<Arc<Scales>>,
}

/// Rows and columns of a weight that share one scale.
pub(super) type ScaleBlock = [u64; 2];

/// Factors of a weight of eight-bit floats: one for each block of each of its matrices.
#[derive(Clone, Debug)]
pub(super) struct Scales {
    /// Shape `[..., scale_rows, columns / block[1]]`, rounded up.
    pub(super) stored: StoredTensor,
    pub(super) block: ScaleBlock,
    /// Rows of one matrix of the weight, and of the scales that belong to it.
    pub(super) rows: u64,
    pub(super) scale_rows: u64,
}

impl StoredTensor {
    /// Returns the elements of a row.
    pub(super) fn row_elements(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Returns the number of rows: the product of all dimensions but the last.
    pub(super) fn rows(&self) -> u64 {
        let outer = self.shape.len().saturating_sub(1);
        self.shape[..outer].iter().product()
    }

    /// Returns the bytes of one element as [`StoredTensor::read`] returns it.
    pub(super) fn element_bytes(&self) -> u64 {
        self.dtype.element_bytes().unwrap_or(1)
    }

    /// Returns a vector `[n]` as the matrix `[n, 1]`, whose rows can be permuted like those of its weight.
    pub(super) fn as_column(&self) -> Self {
        let mut column = self.clone();
        column.shape.push(1);
        column
    }

    /// Returns the tensor with its `last` fastest dimensions flattened into one.
    pub(super) fn merged(&self, last: usize) -> Self {
        let mut merged = self.clone();
        let fast = merged.shape.split_off(merged.shape.len().saturating_sub(last));
        merged.shape.push(fast.iter().product());
        merged
    }

    /// Appends the bytes of a range of elements, multiplied with their scales if there are any.
    pub(super) fn read(&self, elements: Range<u64>, out: &mut Vec<u8>) -> Result<(), ConvertError> {
        let Some(scales) = &self.scales else {
            return self.read_stored(elements, self.element_bytes(), out);
        };
        let mut bytes = Vec::new();
        self.read_stored(elements.clone(), 1, &mut bytes)?;
        scales.scale(&bytes, elements, self.row_elements(), out)
    }

    fn read_stored(&self, elements: Range<u64>, width: u64, out: &mut Vec<u8>) -> Result<(), ConvertError> {
        let start = out.len();
        out.resize(start + ((elements.end - elements.start) * width) as usize, 0);
        let shard = &self.shard;
        let read = shard
            .file
            .read_exact_at(&mut out[start..], self.offset + elements.start * width);
        read.map_err(ConvertError::io(&shard.path, "read"))
    }
}

impl Scales {
    /// Returns the row of `stored` with the scales of a row of the weight.
    fn row_of(&self, weight_row: u64) -> u64 {
        weight_row / self.rows * self.scale_rows + weight_row % self.rows / self.block[0]
    }

    /// Appends elements of a weight as 32-bit floats: `bytes` are its E4M3 bytes, `elements` their range in the weight,
    /// `columns` the length of its rows.
    fn scale(&self, bytes: &[u8], elements: Range<u64>, columns: u64, out: &mut Vec<u8>) -> Result<(), ConvertError> {
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
            // One run: the rest of the row that lies in the same block.
            let (row, column) = (at / columns, at % columns);
            let block = column / self.block[1];
            let end = columns.min((block + 1) * self.block[1]);
            let count = (end - column).min(elements.end - at);
            let scale = scales[((self.row_of(row) - first) * width + block) as usize];
            let (run, rest) = bytes.split_at(count as usize);
            out.extend(
                run.iter()
                    .flat_map(|byte| (E4M3[usize::from(*byte)] * scale).to_le_bytes()),
            );
            bytes = rest;
            at += count;
        }
        Ok(())
    }
}
