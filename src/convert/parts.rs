//! What a tensor of the result is made of: some rows, or some columns, of what is stored.

use std::{ops::Range, os::unix::fs::FileExt};

use super::{ConvertError, safetensors::Stored};

/// Some rows of a stored tensor, its outer dimensions taken as one.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    pub(super) source: Stored,
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) step: u64,
    pub(super) order: Order,
}

/// Some columns of some stored rows, which become rows.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    pub(super) source: Stored,
    /// As many as a row of the result has elements.
    pub(super) rows: Range<u64>,
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) step: u64,
}

/// In which order rows are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    AsStored,
    /// Within each head of this many rows, the two halves are interleaved: the checkpoint rotates pairs that are half
    /// a head apart, llama.cpp neighbours.
    Interleaved(u64),
}

impl Rows {
    /// All rows of a tensor.
    pub(super) fn all(source: &Stored) -> Self {
        Self {
            first: 0,
            count: source.rows(),
            step: 1,
            order: Order::AsStored,
            source: source.clone(),
        }
    }

    /// `count` rows from `first` on, every `step`th. The caller keeps within the tensor.
    pub(super) fn some(source: &Stored, first: u64, count: u64, step: u64) -> Self {
        debug_assert!(count == 0 || first + (count - 1) * step < source.rows());
        Self {
            first,
            count,
            step,
            order: Order::AsStored,
            source: source.clone(),
        }
    }

    /// Heads of this many rows, their halves interleaved.
    pub(super) fn interleaved(mut self, head: u64) -> Self {
        debug_assert!(self.step == 1 && head.is_multiple_of(2) && self.count.is_multiple_of(head));
        self.order = Order::Interleaved(head);
        self
    }

    /// The same rows of another tensor; `None` if it has not as many.
    pub(super) fn of(&self, other: &Stored) -> Option<Self> {
        (other.rows() == self.source.rows()).then(|| Self {
            source: other.clone(),
            ..self.clone()
        })
    }

    /// The stored row that becomes row `at`.
    pub(super) fn stored_row(&self, at: u64) -> u64 {
        self.first
            + match self.order {
                Order::AsStored => at * self.step,
                Order::Interleaved(head) => {
                    let within = at % head;
                    at - within + within % 2 * (head / 2) + within / 2
                }
            }
    }

    /// Stored rows that hold all of some rows.
    pub(super) fn span(&self, rows: &Range<u64>) -> Range<u64> {
        match self.order {
            Order::AsStored => self.stored_row(rows.start)..self.stored_row(rows.end - 1) + 1,
            Order::Interleaved(head) => {
                self.first + rows.start / head * head..self.first + rows.end.next_multiple_of(head)
            }
        }
    }
}

impl Columns {
    /// All columns of these rows.
    pub(super) fn all(source: &Stored, rows: Range<u64>) -> Self {
        Self::some(source, rows, 0, source.row_elements(), 1)
    }

    /// `count` columns from `first` on, every `step`th. The caller keeps within the tensor.
    pub(super) fn some(source: &Stored, rows: Range<u64>, first: u64, count: u64, step: u64) -> Self {
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

impl Stored {
    /// Elements of a row.
    pub(super) fn row_elements(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows, all outer dimensions taken together.
    pub(super) fn rows(&self) -> u64 {
        let outer = self.shape.len().saturating_sub(1);
        self.shape[..outer].iter().product()
    }

    pub(super) fn element_bytes(&self) -> u64 {
        self.dtype.element_bytes().unwrap_or(1)
    }

    /// A vector as a matrix of one column.
    pub(super) fn as_column(&self) -> Self {
        let mut column = self.clone();
        column.shape.push(1);
        column
    }

    /// The `last` fastest dimensions as one.
    pub(super) fn merged(&self, last: usize) -> Self {
        let mut merged = self.clone();
        let fast = merged.shape.split_off(merged.shape.len().saturating_sub(last));
        merged.shape.push(fast.iter().product());
        merged
    }

    /// Appends the bytes of some elements.
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
