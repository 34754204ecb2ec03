//! Parts of a tensor of the GGUF file: a selection of rows, or of columns, of one stored tensor.

use std::ops::Range;

use super::stored::StoredTensor;

/// Rows `first`, `first + step`, ... of a stored tensor whose outer dimensions are taken as one.
#[derive(Clone, Debug)]
pub(super) struct StoredRows {
    pub(super) source: StoredTensor,
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) step: u64,
    pub(super) order: RowOrder,
}

/// Columns `first`, `first + step`, ... of a range of stored rows. Each becomes a row: a transposed matrix.
#[derive(Clone, Debug)]
pub(super) struct StoredColumns {
    pub(super) source: StoredTensor,
    /// Source rows, whose number is the length of a row of the result.
    pub(super) rows: Range<u64>,
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) step: u64,
}

/// Order in which rows are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowOrder {
    AsStored,
    /// The two halves of each head of this many rows are interleaved, row `i` of the first half before row `i` of the
    /// second: `[n_head, 2, head_dim / 2]` becomes `[n_head, head_dim / 2, 2]` (`LlamaModel.permute` in llama.cpp's
    /// converter). transformers rotates pairs that are half a head apart, ggml's `GGML_ROPE_TYPE_NORMAL` neighbors.
    Interleaved(u64),
}

impl StoredRows {
    /// Takes all rows of a tensor.
    pub(super) fn all(source: &StoredTensor) -> Self {
        Self {
            first: 0,
            count: source.rows(),
            step: 1,
            order: RowOrder::AsStored,
            source: source.clone(),
        }
    }

    /// Takes `count` rows: `first` and every `step`th after it. They must lie within the tensor.
    pub(super) fn some(source: &StoredTensor, first: u64, count: u64, step: u64) -> Self {
        debug_assert!(count == 0 || first + (count - 1) * step < source.rows());
        Self {
            first,
            count,
            step,
            order: RowOrder::AsStored,
            source: source.clone(),
        }
    }

    /// Interleaves the halves of each head of this many rows.
    pub(super) fn interleaved(mut self, head: u64) -> Self {
        debug_assert!(self.step == 1 && head.is_multiple_of(2) && self.count.is_multiple_of(head));
        self.order = RowOrder::Interleaved(head);
        self
    }

    /// Takes the same rows of another tensor; `None` if the tensors differ in their number of rows.
    pub(super) fn of(&self, other: &StoredTensor) -> Option<Self> {
        (other.rows() == self.source.rows()).then(|| Self {
            source: other.clone(),
            ..self.clone()
        })
    }

    /// Returns the stored row that becomes row `at`.
    pub(super) fn stored_row(&self, at: u64) -> u64 {
        self.first
            + match self.order {
                RowOrder::AsStored => at * self.step,
                RowOrder::Interleaved(head) => {
                    let within = at % head;
                    at - within + within % 2 * (head / 2) + within / 2
                }
            }
    }

    /// Returns the range of stored rows that must be read to make a range of rows.
    pub(super) fn span(&self, rows: &Range<u64>) -> Range<u64> {
        match self.order {
            RowOrder::AsStored => self.stored_row(rows.start)..self.stored_row(rows.end - 1) + 1,
            RowOrder::Interleaved(head) => {
                self.first + rows.start / head * head..self.first + rows.end.next_multiple_of(head)
            }
        }
    }
}

impl StoredColumns {
    /// Takes all columns of a range of rows.
    pub(super) fn all(source: &StoredTensor, rows: Range<u64>) -> Self {
        Self::some(source, rows, 0, source.row_elements(), 1)
    }

    /// Takes `count` columns: `first` and every `step`th after it. They must lie within the tensor.
    pub(super) fn some(source: &StoredTensor, rows: Range<u64>, first: u64, count: u64, step: u64) -> Self {
        debug_assert!(rows.end <= source.rows());
        debug_assert!(count == 0 || first + (count - 1) * step < source.row_elements());
        Self {
            source: source.clone(),
            rows,
            first,
            count,
            step,
        }
    }
}
