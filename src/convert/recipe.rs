//! How one tensor of the result is made from the checkpoint, any range of rows at a time.
//!
//! A row is what lies in a tensor's fastest dimension. Every change that an architecture needs sends whole rows to new
//! places or reads columns as rows, so that no tensor need ever be in memory as a whole.

use std::ops::Range;

use super::{
    ConvertError,
    cast::{Owner, check_finite, decode, encode, is_plain, is_same},
    mxfp4::Packed,
    parts::{Columns, Order, Rows},
    safetensors::{Dtype, Stored},
};
use crate::gguf::{GgmlType, TensorSpec};

/// Bytes that one step reads and writes at most, about: what stays in a core's own cache on the way.
const STEP_BYTES: u64 = 1 << 20;
/// The longest rows of real models are below a million elements.
const MAX_ROW_ELEMENTS: u64 = 16 << 20;

/// A tensor of the result.
#[derive(Clone, Debug)]
pub struct Recipe {
    spec: TensorSpec,
    /// Elements of a row: those of the fastest dimension, unless the tensor is made of smaller pieces.
    row: u64,
    content: Content,
    /// Whether the type is the engine's demand, not the caller's choice.
    is_pinned: bool,
    /// Added to every number: norms that are stored as the difference from one.
    add: f32,
    /// Multiplied with every number before.
    times: f32,
}

#[derive(Clone, Debug)]
enum Content {
    Rows(Vec<Rows>),
    /// Columns become rows.
    Columns(Vec<Columns>),
    /// Packed as they are, or unpacked into numbers.
    Mxfp4(Vec<Packed>),
    /// Computed, not stored.
    Values(Vec<f32>),
}

/// Appends rows in a type that is quantised: the type, the numbers, and how many of them make a row, which is a whole number
/// of blocks. The error is the quantiser's own sentence.
pub type RowQuantizer = fn(GgmlType, &[f32], usize, &mut Vec<u8>) -> Result<(), String>;

/// What a thread that makes rows keeps between steps: memory, and who quantises.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) stored: Vec<u8>,
    pub(super) rows: Vec<u8>,
    pub(super) numbers: Vec<f32>,
    pub(super) quantize: Option<RowQuantizer>,
}

impl Scratch {
    /// For recipes whose types may be quantised ones. One without a quantiser knows only Q8_0.
    #[must_use]
    pub fn new(quantize: Option<RowQuantizer>) -> Self {
        Self {
            quantize,
            ..Self::default()
        }
    }
}

impl Recipe {
    /// A tensor made of stored rows, one part behind the other. `dims` has the fastest dimension first.
    pub(super) fn rows(spec: TensorSpec, parts: Vec<Rows>) -> Self {
        Self {
            row: spec.dims.first().copied().unwrap_or(1),
            spec,
            content: Content::Rows(parts),
            is_pinned: false,
            add: 0.0,
            times: 1.0,
        }
    }

    /// A tensor whose rows are stored columns, one part behind the other.
    pub(super) fn columns(spec: TensorSpec, parts: Vec<Columns>) -> Self {
        Self {
            row: spec.dims.first().copied().unwrap_or(1),
            spec,
            content: Content::Columns(parts),
            is_pinned: false,
            add: 0.0,
            times: 1.0,
        }
    }

    /// A tensor of packed rows, one part behind the other. Until it gets another type it stays packed.
    pub(super) fn mxfp4(spec: TensorSpec, parts: Vec<Packed>) -> Self {
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

    /// A vector that is not in the checkpoint.
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

    /// Adds a number to every element.
    pub(super) fn plus(mut self, add: f32) -> Self {
        self.add = add;
        self
    }

    /// Multiplies every element with a number.
    pub(super) fn times(mut self, times: f32) -> Self {
        self.times = times;
        self
    }

    /// Whether the numbers are the stored ones.
    fn is_exact(&self) -> bool {
        self.add == 0.0 && self.times == 1.0
    }

    /// The rows that it is made of, one part behind the other; `None` if it is made of something else.
    pub(super) fn row_parts(&self) -> Option<&[Rows]> {
        match &self.content {
            Content::Rows(parts) => Some(parts),
            _ => None,
        }
    }

    /// Whether it is a whole stored matrix, its columns as rows.
    pub(super) fn is_turned(&self) -> bool {
        let Content::Columns(parts) = &self.content else {
            return false;
        };
        let is_whole = |part: &Columns| {
            part.source.shape.len() == 2
                && part.rows == (0..part.source.rows())
                && (part.first, part.count, part.step) == (0, part.source.row_elements(), 1)
        };
        matches!(parts.as_slice(), [part] if is_whole(part))
    }

    /// A vector of the same elements, in the same pieces: what happens to a matrix's rows happens to its bias's elements.
    pub(super) fn flattened(self) -> Self {
        let elements = self.spec.dims.iter().product();
        self.reshaped(&[elements])
    }

    /// The same elements in the same order with other dimensions, fastest first.
    pub(super) fn reshaped(mut self, dims: &[u64]) -> Self {
        self.spec.dims = dims.to_vec();
        self
    }

    /// A tensor that has this type in files of every type.
    pub(super) fn pinned(mut self, kind: GgmlType) -> Self {
        self.spec.element_type = kind;
        self.is_pinned = true;
        self
    }

    /// Name, type and dimensions.
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

    /// Whether the checkpoint has it in a packed type.
    pub(super) fn is_packed(&self) -> bool {
        matches!(self.content, Content::Mxfp4(_))
    }

    /// The tensors of the checkpoint that it is made from.
    pub(super) fn sources(&self) -> impl Iterator<Item = &Stored> {
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

    /// Number of rows.
    #[must_use]
    pub fn row_count(&self) -> u64 {
        self.spec
            .dims
            .iter()
            .product::<u64>()
            .checked_div(self.row)
            .unwrap_or(0)
    }

    /// Bytes of one row of the result.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        let kind = self.spec.element_type;
        self.row / kind.block_elements() * kind.block_bytes()
    }

    /// Refuses what could not be made later: every part must give rows of the right length, all parts together all rows.
    pub(super) fn check(&self) -> Result<(), ConvertError> {
        let wrong = |reason: String| Err(ConvertError::Weights(format!("{:?} {reason}", self.spec.name)));
        for source in self.sources().filter(|_| !self.is_packed()) {
            if let Dtype::Other(name, _) = source.dtype {
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
                let fits = |part: &Packed| part.is_whole() && part.row_elements() == elements;
                parts.iter().all(fits) && parts.iter().map(|part| part.count).sum::<u64>() == self.row_count()
            }
            Content::Values(values) => values.len() as u64 == elements && self.row_count() == 1,
        };
        if fits && self.spec.element_type.tensor_bytes(&self.spec.dims).is_some() {
            return Ok(());
        }
        wrong(format!("cannot be made with the dimensions {:?}", self.spec.dims))
    }

    /// Rows that are worth one step of work, at most.
    pub(super) fn rows_per_step(&self) -> u64 {
        let stored_bytes = |source: &Stored| self.row * source.element_bytes();
        let widest = self.sources().map(stored_bytes).max().unwrap_or(1);
        let rows = (STEP_BYTES / widest.max(self.row_bytes()).max(1)).max(1);
        match &self.content {
            // Whole heads, so that nothing is read twice.
            Content::Rows(parts) => match parts.first().map(|part| part.order) {
                Some(Order::Interleaved(head)) => rows.next_multiple_of(head),
                _ => rows,
            },
            // One read for each stored row: the more columns at once, the fewer reads.
            Content::Columns(_) => rows * 4,
            Content::Mxfp4(_) | Content::Values(_) => rows,
        }
    }

    /// Bytes of memory that one step needs, about: what is read, in two orders, its numbers, and what is written.
    pub(super) fn step_memory(&self) -> u64 {
        let widest = self.sources().map(Stored::element_bytes).max().unwrap_or(0);
        let rows = self.rows_per_step().min(self.row_count());
        let numbers = self.row * (2 * widest + size_of::<f32>() as u64);
        rows.saturating_mul(numbers.saturating_add(self.row_bytes()))
    }

    /// Replaces `out` by the bytes of some rows.
    ///
    /// # Errors
    /// If the checkpoint cannot be read, or a number does not fit into the target type.
    pub fn produce(&self, rows: Range<u64>, scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<(), ConvertError> {
        out.clear();
        match &self.content {
            Content::Values(values) => {
                let (kind, owner) = (self.spec.element_type, Owner(&self.spec.name));
                encode_rows(owner, kind, self.row, values, scratch.quantize, out)
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
                    part.produce(wanted, self.spec.element_type, scratch, out)?;
                }
                Ok(())
            }
        }
    }

    fn produce_part(
        &self,
        part: &Rows,
        rows: Range<u64>,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Result<(), ConvertError> {
        let source = &part.source;
        let elements = source.row_elements();
        let span = part.span(&rows);
        let span_elements = span.start * elements..span.end * elements;
        let is_plain = part.order == Order::AsStored && part.step == 1;
        if is_plain && self.is_exact() && is_same(source.dtype, self.spec.element_type) {
            let start = out.len();
            source.read(span_elements, out)?;
            return check_finite(Owner(&source.name), source.dtype, &out[start..]);
        }
        let Scratch {
            stored,
            rows: ordered,
            numbers,
            quantize,
        } = scratch;
        stored.clear();
        source.read(span_elements, stored)?;
        check_finite(Owner(&source.name), source.dtype, stored)?;
        let bytes: &[u8] = if is_plain {
            stored
        } else {
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
        part: &Columns,
        wanted: Range<u64>,
        scratch: &mut Scratch,
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
        check_finite(Owner(&source.name), source.dtype, &scratch.rows)?;
        self.cast(source, &scratch.rows, &mut scratch.numbers, scratch.quantize, out)
    }

    fn cast(
        &self,
        source: &Stored,
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
        let (kind, owner) = (self.spec.element_type, Owner(&source.name));
        encode_rows(owner, kind, self.row, numbers, quantize, out)
    }
}

/// Appends whole rows of so many numbers in any type that can be made.
pub(super) fn encode_rows(
    owner: Owner<'_>,
    kind: GgmlType,
    row: u64,
    numbers: &[f32],
    quantize: Option<RowQuantizer>,
    out: &mut Vec<u8>,
) -> Result<(), ConvertError> {
    if is_plain(kind) {
        return encode(owner, kind, numbers, out);
    }
    let quantize = quantize.ok_or_else(|| ConvertError::Engine(format!("nothing here makes {}", kind.name())))?;
    quantize(kind, numbers, row as usize, out)
        .map_err(|reason| ConvertError::Weights(format!("{:?} cannot be quantised: {reason}", owner.0)))
}

/// The parts that some rows are made of, and which rows of each. `count` says how many rows a part makes.
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

    /// A checkpoint whose tensor `t` counts from zero.
    fn counting(folder: &Path, shape: &[u64]) -> Stored {
        let elements: u64 = shape.iter().product();
        let data: Vec<u8> = (0..elements).flat_map(|number| (number as f32).to_le_bytes()).collect();
        let header = format!(
            r#"{{"t":{{"dtype":"F32","shape":{shape:?},"data_offsets":[0,{}]}}}}"#,
            data.len()
        );
        fs::write(folder.join("model.safetensors"), file(&header, &data)).unwrap();
        open(folder).unwrap().remove("t").unwrap()
    }

    /// The numbers of a recipe, made a few rows at a time.
    fn numbers(recipe: &Recipe, step: u64) -> Vec<f32> {
        recipe.check().unwrap();
        let (mut scratch, mut out, mut all) = (Scratch::default(), Vec::new(), Vec::new());
        let mut row = 0;
        while row < recipe.row_count() {
            let end = (row + step).min(recipe.row_count());
            recipe.produce(row..end, &mut scratch, &mut out).unwrap();
            assert_eq!(out.len() as u64, (end - row) * recipe.row_bytes());
            decode(Dtype::F32, &out, &mut all);
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
            let recipe = Recipe::rows(f32s(&[2, 8]), vec![Rows::all(&t).interleaved(4)]);
            assert_eq!(
                numbers(&recipe, step),
                [0., 1., 4., 5., 2., 3., 6., 7., 8., 9., 12., 13., 10., 11., 14., 15.]
            );
            let parts = vec![Rows::some(&t, 6, 2, 1), Rows::some(&t, 1, 3, 2)];
            let recipe = Recipe::rows(f32s(&[2, 5]), parts).plus(0.5);
            assert_eq!(
                numbers(&recipe, step),
                [12.5, 13.5, 14.5, 15.5, 2.5, 3.5, 6.5, 7.5, 10.5, 11.5]
            );
            let recipe = Recipe::columns(f32s(&[8, 2]), vec![Columns::all(&t, 0..8)]);
            let columns: Vec<f32> = (0..16).map(|at| ((at % 8) * 2 + at / 8) as f32).collect();
            assert_eq!(numbers(&recipe, step), columns);
            let parts = vec![Columns::all(&t, 4..6), Columns::some(&t, 0..2, 1, 1, 2)];
            let recipe = Recipe::columns(f32s(&[2, 3]), parts);
            assert_eq!(numbers(&recipe, step), [8., 10., 9., 11., 1., 3.]);
        }
        assert_eq!(numbers(&Recipe::values("v", vec![1.0, 2.0]), 1), [1.0, 2.0]);
    }

    #[test]
    fn what_cannot_be_made_is_refused_before_anything_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let t = counting(folder.path(), &[8, 2]);
        for recipe in [
            Recipe::rows(f32s(&[2, 9]), vec![Rows::all(&t)]),
            Recipe::rows(f32s(&[4, 4]), vec![Rows::all(&t)]),
            Recipe::rows(f32s(&[2, 0]), vec![]),
            Recipe::columns(f32s(&[2, 8]), vec![Columns::all(&t, 0..8)]),
            Recipe::rows(TensorSpec::new("x", GgmlType::Q8_0, [2, 8]), vec![Rows::all(&t)]),
        ] {
            assert!(recipe.check().is_err(), "{recipe:?}");
        }
    }
}
