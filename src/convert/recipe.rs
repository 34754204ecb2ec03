//! Recipes: how one tensor of the GGUF file is made from the checkpoint, any range of its rows at a time.
//!
//! A row is the fastest dimension of a tensor. Every change that an architecture needs (permuting the rows of heads,
//! stacking experts, splitting fused matrices, transposing) moves whole rows to new places, or reads columns as rows,
//! so that no tensor ever has to be in memory as a whole. Recipes are written by `arch` and `adapter`, checked once,
//! and performed by `write` and `stream`.

use std::ops::Range;

use super::{
    ConvertError,
    cast::{TensorName, check_finite, decode, is_same},
    dtype::TensorDtype,
    encode::{RowFormat, RowQuantizer, RowScratch},
    mxfp4::Mxfp4Rows,
    parts::{RowOrder, StoredColumns, StoredRows},
    stored::StoredTensor,
};
use crate::gguf::{GgmlType, TensorSpec};

/// Bytes that one step reads or writes, about: what fits into the second-level cache of a core.
const STEP_BYTES: u64 = 1 << 20;
/// Sanity limit. The longest rows of published models have fewer than a million elements.
const MAX_ROW_ELEMENTS: u64 = 16 << 20;

/// Recipe of one tensor of the GGUF file: its name, type and dimensions, and the parts it is made of. An element is
/// `stored * times + add`, computed in 32 bits.
#[derive(Clone, Debug)]
pub struct TensorRecipe {
    spec: TensorSpec,
    /// Elements of a row. It is the fastest dimension, unless the tensor was reshaped and its pieces are shorter.
    row: u64,
    content: Content,
    /// True when llama.cpp requires the type, so that [`TensorRecipe::set_type`] does not change it.
    is_pinned: bool,
    add: f32,
    times: f32,
}

/// Parts of a tensor. Their rows follow one another.
#[derive(Clone, Debug)]
enum Content {
    Rows(Vec<StoredRows>),
    /// Stored columns that become rows: a transposed matrix.
    Columns(Vec<StoredColumns>),
    /// MXFP4 blocks, repacked without loss or decoded.
    Mxfp4(Vec<Mxfp4Rows>),
    /// Elements that are computed from the configuration.
    Values(Vec<f32>),
}

impl TensorRecipe {
    /// Makes a tensor of stored rows.
    pub(super) fn rows(spec: TensorSpec, parts: Vec<StoredRows>) -> Self {
        Self {
            row: spec.dims.first().copied().unwrap_or(1),
            spec,
            content: Content::Rows(parts),
            is_pinned: false,
            add: 0.0,
            times: 1.0,
        }
    }

    /// Makes a tensor whose rows are stored columns.
    pub(super) fn columns(spec: TensorSpec, parts: Vec<StoredColumns>) -> Self {
        Self {
            row: spec.dims.first().copied().unwrap_or(1),
            spec,
            content: Content::Columns(parts),
            is_pinned: false,
            add: 0.0,
            times: 1.0,
        }
    }

    /// Makes a tensor of MXFP4 rows. It stays MXFP4 until it gets another type.
    pub(super) fn mxfp4(spec: TensorSpec, parts: Vec<Mxfp4Rows>) -> Self {
        Self {
            row: spec.dims.first().copied().unwrap_or(1),
            spec: TensorSpec {
                element_type: GgmlType::MXFP4,
                ..spec
            },
            content: Content::Mxfp4(parts),
            is_pinned: false,
            add: 0.0,
            times: 1.0,
        }
    }

    /// Makes a vector of computed elements.
    pub(super) fn values(name: &str, values: Vec<f32>) -> Self {
        Self {
            row: values.len() as u64,
            spec: TensorSpec::new(name, GgmlType::F32, [values.len() as u64]),
            content: Content::Values(values),
            is_pinned: false,
            add: 0.0,
            times: 1.0,
        }
    }

    /// Adds a number to every element. Gemma stores the weights of its norms as the difference from one.
    pub(super) fn plus(mut self, add: f32) -> Self {
        self.add = add;
        self
    }

    /// Multiplies every element with a number.
    pub(super) fn times(mut self, times: f32) -> Self {
        self.times = times;
        self
    }

    /// Returns true if elements keep their stored values.
    fn is_exact(&self) -> bool {
        self.add == 0.0 && self.times == 1.0
    }

    /// Returns the parts of a tensor of rows; `None` for any other.
    pub(super) fn row_parts(&self) -> Option<&[StoredRows]> {
        match &self.content {
            Content::Rows(parts) => Some(parts),
            _ => None,
        }
    }

    /// Returns true if the tensor is one whole stored matrix, transposed.
    pub(super) fn is_transposed(&self) -> bool {
        let Content::Columns(parts) = &self.content else {
            return false;
        };
        let is_whole = |part: &StoredColumns| {
            part.source.shape.len() == 2
                && part.rows == (0..part.source.rows())
                && (part.first, part.count, part.step) == (0, part.source.row_elements(), 1)
        };
        matches!(parts.as_slice(), [part] if is_whole(part))
    }

    /// Reshapes to a vector, made in the same pieces: a bias `[n, 1]` that was permuted like the rows of its weight
    /// becomes `[n]` again.
    pub(super) fn flattened(self) -> Self {
        let elements = self.spec.dims.iter().product();
        self.reshaped(&[elements])
    }

    /// Changes the dimensions (fastest first) without changing the elements or their order.
    pub(super) fn reshaped(mut self, dims: &[u64]) -> Self {
        self.spec.dims = dims.to_vec();
        self
    }

    /// Fixes the type, whatever the weight type of the file.
    pub(super) fn pinned(mut self, kind: GgmlType) -> Self {
        self.spec.element_type = kind;
        self.is_pinned = true;
        self
    }

    #[must_use]
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// Chooses the type, unless it is pinned.
    pub(super) fn set_type(&mut self, kind: GgmlType) {
        if !self.is_pinned {
            self.spec.element_type = kind;
        }
    }

    /// Returns true if the checkpoint has the tensor in MXFP4.
    pub(super) fn is_packed(&self) -> bool {
        matches!(self.content, Content::Mxfp4(_))
    }

    /// Iterates over the stored tensors that the recipe reads.
    pub(super) fn sources(&self) -> impl Iterator<Item = &StoredTensor> {
        let (mut rows, mut columns, mut packed) = (&[][..], &[][..], &[][..]);
        match &self.content {
            Content::Rows(parts) => rows = parts,
            Content::Columns(parts) => columns = parts,
            Content::Mxfp4(parts) => packed = parts,
            Content::Values(_) => {}
        }
        let rows = rows.iter().map(|part| &part.source);
        let columns = columns.iter().map(|part| &part.source);
        let packed = packed.iter().flat_map(|part| [&part.blocks, &part.scales]);
        rows.chain(columns).chain(packed)
    }

    #[must_use]
    pub fn row_count(&self) -> u64 {
        self.spec
            .dims
            .iter()
            .product::<u64>()
            .checked_div(self.row)
            .unwrap_or(0)
    }

    /// Returns the bytes of one row in the GGUF file.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        // `check` has made sure that the row is a whole number of blocks.
        let kind = self.spec.element_type;
        self.row / kind.block_elements() * kind.block_bytes()
    }

    /// Checks that the recipe can be performed: every part has rows of the right length, and all parts together have as
    /// many rows as the tensor. Later steps rely on it.
    pub(super) fn check(&self) -> Result<(), ConvertError> {
        let wrong = |reason: String| Err(ConvertError::Weights(format!("{:?} {reason}", self.spec.name)));
        // MXFP4 blocks are stored as U8; `Mxfp4Rows::is_whole` checks them.
        for source in self.sources().filter(|_| !self.is_packed()) {
            if let TensorDtype::Other(name, _) = source.dtype {
                return Err(ConvertError::Quantized(format!("{:?} is {name}", source.name)));
            }
        }
        let elements = self.row;
        if elements == 0 || elements > MAX_ROW_ELEMENTS || self.row_count() == 0 {
            return wrong(format!("would have the dimensions {:?}", self.spec.dims));
        }
        let fits = match &self.content {
            Content::Rows(parts) => {
                parts.iter().all(|part| part.source.row_elements() == elements)
                    && parts.iter().map(|part| part.count).sum::<u64>() == self.row_count()
            }
            Content::Columns(parts) => {
                parts.iter().all(|part| part.rows.end - part.rows.start == elements)
                    && parts.iter().map(|part| part.count).sum::<u64>() == self.row_count()
            }
            Content::Mxfp4(parts) => {
                let fits = |part: &Mxfp4Rows| part.is_whole() && part.row_elements() == elements;
                parts.iter().all(fits) && parts.iter().map(|part| part.count).sum::<u64>() == self.row_count()
            }
            Content::Values(values) => values.len() as u64 == elements && self.row_count() == 1,
        };
        if fits && self.spec.element_type.tensor_bytes(&self.spec.dims).is_some() {
            return Ok(());
        }
        wrong(format!("cannot be made with the dimensions {:?}", self.spec.dims))
    }

    /// Returns the number of rows that one step of work makes.
    pub(super) fn rows_per_step(&self) -> u64 {
        let stored_bytes = |source: &StoredTensor| self.row * source.element_bytes();
        let widest = self.sources().map(stored_bytes).max().unwrap_or(1);
        let rows = (STEP_BYTES / widest.max(self.row_bytes()).max(1)).max(1);
        match &self.content {
            // Interleaving needs both halves of a head: a step that ended inside of one would read it twice.
            Content::Rows(parts) => match parts.first().map(|part| part.order) {
                Some(RowOrder::Interleaved(head)) => rows.next_multiple_of(head),
                _ => rows,
            },
            // Each step reads a short piece of every stored row: more columns per step mean fewer reads.
            Content::Columns(_) => rows * 4,
            Content::Mxfp4(_) | Content::Values(_) => rows,
        }
    }

    /// Returns the bytes of memory that one step needs, about: the stored bytes in both orders, their elements in 32
    /// bits, and the result.
    pub(super) fn step_memory(&self) -> u64 {
        let widest = self.sources().map(StoredTensor::element_bytes).max().unwrap_or(0);
        let rows = self.rows_per_step().min(self.row_count());
        let numbers = self.row * (2 * widest + size_of::<f32>() as u64);
        rows.saturating_mul(numbers.saturating_add(self.row_bytes()))
    }

    /// Replaces `out` by the bytes of a range of rows.
    ///
    /// # Errors
    /// If the checkpoint cannot be read, or the target type cannot represent an element.
    pub fn produce(&self, rows: Range<u64>, scratch: &mut RowScratch, out: &mut Vec<u8>) -> Result<(), ConvertError> {
        out.clear();
        match &self.content {
            Content::Values(values) => {
                // The range is ignored: `check` has made sure that the elements are a single row.
                let format = self.format(scratch.quantize);
                format.encode(TensorName(&self.spec.name), values, out)
            }
            Content::Rows(parts) => {
                for (part, wanted) in overlapping(parts, |part| part.count, &rows) {
                    self.produce_part(part, wanted, scratch, out)?;
                }
                Ok(())
            }
            Content::Columns(parts) => {
                for (part, wanted) in overlapping(parts, |part| part.count, &rows) {
                    self.produce_columns(part, wanted, scratch, out)?;
                }
                Ok(())
            }
            Content::Mxfp4(parts) => {
                for (part, wanted) in overlapping(parts, |part| part.count, &rows) {
                    part.produce(wanted, self.format(scratch.quantize), scratch, out)?;
                }
                Ok(())
            }
        }
    }

    fn format(&self, quantize: Option<RowQuantizer>) -> RowFormat {
        RowFormat {
            target: self.spec.element_type,
            row: self.row,
            quantize,
        }
    }

    fn produce_part(
        &self,
        part: &StoredRows,
        rows: Range<u64>,
        scratch: &mut RowScratch,
        out: &mut Vec<u8>,
    ) -> Result<(), ConvertError> {
        let source = &part.source;
        let elements = source.row_elements();
        let span = part.span(&rows);
        let span_elements = span.start * elements..span.end * elements;
        let is_plain = part.order == RowOrder::AsStored && part.step == 1;
        // Most tensors of most conversions end here: their bytes are copied.
        if is_plain && self.is_exact() && is_same(source.dtype, self.spec.element_type) {
            let start = out.len();
            source.read(span_elements, out)?;
            return check_finite(TensorName(&source.name), source.dtype, &out[start..]);
        }
        let RowScratch {
            stored,
            rows: ordered,
            numbers,
            quantize,
        } = scratch;
        stored.clear();
        source.read(span_elements, stored)?;
        check_finite(TensorName(&source.name), source.dtype, stored)?;
        let bytes: &[u8] = if is_plain {
            stored
        } else {
            // Move the bytes before decoding: moving 16-bit elements costs half as much as moving their 32-bit values.
            let row_bytes = (elements * source.element_bytes()) as usize;
            ordered.clear();
            for row in rows {
                let at = (part.stored_row(row) - span.start) as usize * row_bytes;
                ordered.extend_from_slice(&stored[at..at + row_bytes]);
            }
            ordered
        };
        self.cast(source, bytes, numbers, *quantize, out)
    }

    fn produce_columns(
        &self,
        part: &StoredColumns,
        wanted: Range<u64>,
        scratch: &mut RowScratch,
        out: &mut Vec<u8>,
    ) -> Result<(), ConvertError> {
        let source = &part.source;
        let width = source.element_bytes() as usize;
        let count = (wanted.end - wanted.start) as usize;
        let height = (part.rows.end - part.rows.start) as usize;
        let first = part.first + wanted.start * part.step;
        let last = part.first + (wanted.end - 1) * part.step;
        scratch.rows.clear();
        scratch.rows.resize(count * height * width, 0);
        for (row, stored_row) in part.rows.clone().enumerate() {
            let start = stored_row * source.row_elements();
            scratch.stored.clear();
            source.read(start + first..start + last + 1, &mut scratch.stored)?;
            let numbers = scratch.stored.chunks_exact(width).step_by(part.step as usize);
            for (column, number) in numbers.enumerate() {
                let at = (column * height + row) * width;
                scratch.rows[at..at + width].copy_from_slice(number);
            }
        }
        check_finite(TensorName(&source.name), source.dtype, &scratch.rows)?;
        self.cast(source, &scratch.rows, &mut scratch.numbers, scratch.quantize, out)
    }

    fn cast(
        &self,
        source: &StoredTensor,
        bytes: &[u8],
        numbers: &mut Vec<f32>,
        quantize: Option<RowQuantizer>,
        out: &mut Vec<u8>,
    ) -> Result<(), ConvertError> {
        if self.is_exact() && is_same(source.dtype, self.spec.element_type) {
            out.extend_from_slice(bytes);
            return Ok(());
        }
        numbers.clear();
        decode(source.dtype, bytes, numbers);
        if !self.is_exact() {
            for number in numbers.iter_mut() {
                *number = *number * self.times + self.add;
            }
        }
        self.format(quantize).encode(TensorName(&source.name), numbers, out)
    }
}

/// Iterates over the parts that a range of rows touches, with the range within each part. `count` returns the rows of a
/// part.
fn overlapping<'a, T>(
    parts: &'a [T],
    count: impl Fn(&T) -> u64 + 'a,
    rows: &Range<u64>,
) -> impl Iterator<Item = (&'a T, Range<u64>)> {
    let (rows, mut start) = (rows.clone(), 0);
    parts.iter().filter_map(move |part| {
        let end = start + count(part);
        let wanted = rows.start.max(start)..rows.end.min(end);
        let found = (wanted.start < wanted.end).then(|| (part, wanted.start - start..wanted.end - start));
        start = end;
        found
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::convert::safetensors::{open, tests::file};

    /// Returns a tensor of this shape whose elements count from zero.
    fn counting(folder: &Path, shape: &[u64]) -> StoredTensor {
        let elements: u64 = shape.iter().product();
        let data: Vec<u8> = (0..elements).flat_map(|number| (number as f32).to_le_bytes()).collect();
        let header = format!(
            r#"{{"t":{{"dtype":"F32","shape":{shape:?},"data_offsets":[0,{}]}}}}"#,
            data.len()
        );
        fs::write(folder.join("model.safetensors"), file(&header, &data)).unwrap();
        open(folder).unwrap().remove("t").unwrap()
    }

    /// Returns the elements of a recipe, made `step` rows at a time.
    fn numbers(recipe: &TensorRecipe, step: u64) -> Vec<f32> {
        recipe.check().unwrap();
        let (mut scratch, mut out, mut all) = (RowScratch::default(), Vec::new(), Vec::new());
        let mut row = 0;
        while row < recipe.row_count() {
            let end = (row + step).min(recipe.row_count());
            recipe.produce(row..end, &mut scratch, &mut out).unwrap();
            assert_eq!(out.len() as u64, (end - row) * recipe.row_bytes());
            decode(TensorDtype::F32, &out, &mut all);
            row = end;
        }
        all
    }

    fn f32s(dims: &[u64]) -> TensorSpec {
        TensorSpec::new("x", GgmlType::F32, dims)
    }

    #[test]
    fn rows_are_taken_in_every_order() {
        let folder = tempfile::tempdir().unwrap();
        let t = counting(folder.path(), &[8, 2]);
        for step in [1, 3, 4, 8] {
            // Two heads of four rows: 0 2 1 3, 4 6 5 7.
            let recipe = TensorRecipe::rows(f32s(&[2, 8]), vec![StoredRows::all(&t).interleaved(4)]);
            assert_eq!(
                numbers(&recipe, step),
                [0., 1., 4., 5., 2., 3., 6., 7., 8., 9., 12., 13., 10., 11., 14., 15.]
            );
            let parts = vec![StoredRows::some(&t, 6, 2, 1), StoredRows::some(&t, 1, 3, 2)];
            let recipe = TensorRecipe::rows(f32s(&[2, 5]), parts).plus(0.5);
            assert_eq!(
                numbers(&recipe, step),
                [12.5, 13.5, 14.5, 15.5, 2.5, 3.5, 6.5, 7.5, 10.5, 11.5]
            );
            let recipe = TensorRecipe::columns(f32s(&[8, 2]), vec![StoredColumns::all(&t, 0..8)]);
            let columns: Vec<f32> = (0..16).map(|at| ((at % 8) * 2 + at / 8) as f32).collect();
            assert_eq!(numbers(&recipe, step), columns);
            let parts = vec![StoredColumns::all(&t, 4..6), StoredColumns::some(&t, 0..2, 1, 1, 2)];
            let recipe = TensorRecipe::columns(f32s(&[2, 3]), parts);
            assert_eq!(numbers(&recipe, step), [8., 10., 9., 11., 1., 3.]);
        }
        assert_eq!(numbers(&TensorRecipe::values("v", vec![1.0, 2.0]), 1), [1.0, 2.0]);
    }

    #[test]
    fn what_cannot_be_made_is_refused_before_anything_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let t = counting(folder.path(), &[8, 2]);
        for recipe in [
            TensorRecipe::rows(f32s(&[2, 9]), vec![StoredRows::all(&t)]),
            TensorRecipe::rows(f32s(&[4, 4]), vec![StoredRows::all(&t)]),
            TensorRecipe::rows(f32s(&[2, 0]), vec![]),
            TensorRecipe::columns(f32s(&[2, 8]), vec![StoredColumns::all(&t, 0..8)]),
            TensorRecipe::rows(TensorSpec::new("x", GgmlType::Q8_0, [2, 8]), vec![StoredRows::all(&t)]),
        ] {
            assert!(recipe.check().is_err(), "{recipe:?}");
        }
    }
}
