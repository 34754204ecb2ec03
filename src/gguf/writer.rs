//! Layout of new GGUF files, version 3. Metadata and tensors determine the header and every offset; the data is written
//! later. Tensors follow one another in the given order, without gaps other than for alignment: llama.cpp refuses
//! others.

use std::collections::HashSet;
use std::io::{self, Write};

use super::reader::{MAX_DIMENSIONS, MAX_TENSOR_NAME_BYTES, align_up, alignment};
use super::value::type_id;
use super::{ALIGNMENT_KEY, GgmlType, GgufArray, GgufError, GgufValue, StringArray, TensorInfo};

const VERSION: u32 = 3;

/// Tensor whose place in the file is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name of at most 63 bytes, the limit of ggml.
    pub name: String,
    pub element_type: GgmlType,
    /// Dimensions, fastest first.
    pub dims: Vec<u64>,
}

impl TensorSpec {
    pub fn new(name: impl Into<String>, element_type: GgmlType, dims: impl Into<Vec<u64>>) -> Self {
        Self {
            name: name.into(),
            element_type,
            dims: dims.into(),
        }
    }
}

/// Layout of a file: its final header, and the offsets of data that is still to be written.
#[derive(Clone, Debug)]
pub struct GgufLayout {
    header: Vec<u8>,
    tensors: Vec<TensorInfo>,
    alignment: u64,
    file_len: u64,
}

impl GgufLayout {
    /// Lays out a file.
    ///
    /// # Errors
    /// If a name occurs twice, or a tensor's type cannot have its dimensions.
    pub fn new(metadata: Vec<(String, GgufValue)>, tensors: Vec<TensorSpec>) -> Result<Self, GgufError> {
        let alignment = alignment(
            metadata
                .iter()
                .find(|(key, _)| key == ALIGNMENT_KEY)
                .map(|(_, value)| value),
        )?;
        let mut header = Vec::new();
        header.extend(b"GGUF");
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());

        let mut keys = HashSet::new();
        for (key, value) in &metadata {
            if key.is_empty() || !keys.insert(key) {
                return Err(GgufError::Malformed(format!(
                    "the metadata key {key:?} is empty or occurs twice"
                )));
            }
            put_string(&mut header, key.as_bytes());
            put_value(&mut header, value);
        }

        let mut names = HashSet::new();
        let mut placed = Vec::with_capacity(tensors.len());
        let mut offset = 0u64;
        for TensorSpec {
            name,
            element_type,
            dims,
        } in tensors
        {
            let tensor = TensorInfo {
                name,
                element_type,
                dims,
                offset,
            };
            let next = tensor
                .byte_len()
                .and_then(|bytes| align_up(offset.checked_add(bytes)?, alignment));
            let Some(next) = next else {
                return Err(GgufError::Malformed(format!(
                    "tensor {:?} has dimensions {:?}, which {} cannot have",
                    tensor.name,
                    tensor.dims,
                    element_type.name()
                )));
            };
            let name_bytes = tensor.name.len() as u64;
            let dimensions = tensor.dims.len() as u32;
            if name_bytes > MAX_TENSOR_NAME_BYTES || dimensions > MAX_DIMENSIONS || !names.insert(tensor.name.clone()) {
                return Err(GgufError::Malformed(format!(
                    "the tensor name {:?} occurs twice or is too long, or it has more than {MAX_DIMENSIONS} dimensions",
                    tensor.name
                )));
            }
            put_string(&mut header, tensor.name.as_bytes());
            header.extend(dimensions.to_le_bytes());
            for dim in &tensor.dims {
                header.extend(dim.to_le_bytes());
            }
            header.extend(element_type.id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            placed.push(tensor);
            offset = next;
        }

        // Tensor data begins aligned, too; the padding belongs to the header.
        let padding =
            usize::try_from(alignment).map_err(|_| GgufError::Malformed("the alignment is too large".to_owned()))?;
        header.resize(header.len().next_multiple_of(padding), 0);
        let file_len = (header.len() as u64)
            .checked_add(offset)
            .ok_or_else(|| GgufError::Malformed("the file would have more than 2^64 bytes".to_owned()))?;
        Ok(Self {
            header,
            tensors: placed,
            alignment,
            file_len,
        })
    }

    /// Returns the file's first bytes, up to the beginning of tensor data.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Returns the tensors with the offsets of their data, counted from the end of [`GgufLayout::header`].
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Returns the bytes of the whole file, final padding included.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Writes the file. `data` is called once for each tensor, in order, and must write exactly its bytes.
    ///
    /// # Errors
    /// If writing fails, or `data` writes another number of bytes.
    pub fn write<W: Write>(
        &self,
        mut out: W,
        mut data: impl FnMut(&TensorInfo, &mut dyn Write) -> io::Result<()>,
    ) -> Result<(), GgufError> {
        out.write_all(&self.header)?;
        for tensor in &self.tensors {
            let mut counted = Counted {
                out: &mut out,
                written: 0,
            };
            data(tensor, &mut counted)?;
            let written = counted.written;
            if Some(written) != tensor.byte_len() {
                return Err(GgufError::Malformed(format!(
                    "{written} bytes were written for tensor {:?}",
                    tensor.name
                )));
            }
            let padding = written.next_multiple_of(self.alignment) - written;
            io::copy(&mut io::Read::take(io::repeat(0), padding), &mut out)?;
        }
        out.flush()?;
        Ok(())
    }
}

struct Counted<'a, W> {
    out: &'a mut W,
    written: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    out.extend((string.len() as u64).to_le_bytes());
    out.extend(string);
}

fn put_value(out: &mut Vec<u8>, value: &GgufValue) {
    let mut put = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        GgufValue::U8(x) => put(type_id::U8, &x.to_le_bytes()),
        GgufValue::I8(x) => put(type_id::I8, &x.to_le_bytes()),
        GgufValue::U16(x) => put(type_id::U16, &x.to_le_bytes()),
        GgufValue::I16(x) => put(type_id::I16, &x.to_le_bytes()),
        GgufValue::U32(x) => put(type_id::U32, &x.to_le_bytes()),
        GgufValue::I32(x) => put(type_id::I32, &x.to_le_bytes()),
        GgufValue::U64(x) => put(type_id::U64, &x.to_le_bytes()),
        GgufValue::I64(x) => put(type_id::I64, &x.to_le_bytes()),
        GgufValue::F32(x) => put(type_id::F32, &x.to_le_bytes()),
        GgufValue::F64(x) => put(type_id::F64, &x.to_le_bytes()),
        GgufValue::Bool(x) => put(type_id::BOOL, &[u8::from(*x)]),
        GgufValue::String(text) => {
            put(type_id::STRING, &[]);
            put_string(out, text.as_bytes());
        }
        GgufValue::Array(array) => {
            put(type_id::ARRAY, &[]);
            put_array(out, array);
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &GgufArray) {
    fn put<T: Copy, const N: usize>(out: &mut Vec<u8>, kind: u32, list: &[T], encode: fn(T) -> [u8; N]) {
        out.extend(kind.to_le_bytes());
        out.extend((list.len() as u64).to_le_bytes());
        for element in list {
            out.extend(encode(*element));
        }
    }
    fn put_strings(out: &mut Vec<u8>, strings: &StringArray) {
        out.extend(type_id::STRING.to_le_bytes());
        out.extend((strings.len() as u64).to_le_bytes());
        for string in strings.iter() {
            put_string(out, string);
        }
    }
    match array {
        GgufArray::U8(list) => put(out, type_id::U8, list, u8::to_le_bytes),
        GgufArray::I8(list) => put(out, type_id::I8, list, i8::to_le_bytes),
        GgufArray::U16(list) => put(out, type_id::U16, list, u16::to_le_bytes),
        GgufArray::I16(list) => put(out, type_id::I16, list, i16::to_le_bytes),
        GgufArray::U32(list) => put(out, type_id::U32, list, u32::to_le_bytes),
        GgufArray::I32(list) => put(out, type_id::I32, list, i32::to_le_bytes),
        GgufArray::U64(list) => put(out, type_id::U64, list, u64::to_le_bytes),
        GgufArray::I64(list) => put(out, type_id::I64, list, i64::to_le_bytes),
        GgufArray::F32(list) => put(out, type_id::F32, list, f32::to_le_bytes),
        GgufArray::F64(list) => put(out, type_id::F64, list, f64::to_le_bytes),
        GgufArray::Bool(list) => put(out, type_id::BOOL, list, |flag| [u8::from(flag)]),
        GgufArray::String(strings) => put_strings(out, strings),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::{btree_map, vec};
    use proptest::num::{f32 as any_f32, f64 as any_f64};
    use proptest::prelude::*;

    use super::*;
    use crate::gguf::GgufHeader;

    /// Generates numbers other than NaN, which is not equal to itself.
    fn f32s() -> impl Strategy<Value = f32> {
        any_f32::NORMAL | any_f32::SUBNORMAL | any_f32::ZERO | any_f32::INFINITE | any_f32::NEGATIVE
    }

    fn f64s() -> impl Strategy<Value = f64> {
        any_f64::NORMAL | any_f64::SUBNORMAL | any_f64::ZERO | any_f64::INFINITE | any_f64::NEGATIVE
    }

    fn arrays() -> impl Strategy<Value = GgufArray> {
        prop_oneof![
            vec(any::<u8>(), 0..20).prop_map(GgufArray::U8),
            vec(any::<i8>(), 0..20).prop_map(GgufArray::I8),
            vec(any::<u16>(), 0..20).prop_map(GgufArray::U16),
            vec(any::<i16>(), 0..20).prop_map(GgufArray::I16),
            vec(any::<u32>(), 0..20).prop_map(GgufArray::U32),
            vec(any::<i32>(), 0..20).prop_map(GgufArray::I32),
            vec(any::<u64>(), 0..20).prop_map(GgufArray::U64),
            vec(any::<i64>(), 0..20).prop_map(GgufArray::I64),
            vec(f32s(), 0..20).prop_map(GgufArray::F32),
            vec(f64s(), 0..20).prop_map(GgufArray::F64),
            vec(any::<bool>(), 0..20).prop_map(GgufArray::Bool),
            vec(vec(any::<u8>(), 0..9), 0..20).prop_map(|list| GgufArray::String(list.iter().collect())),
        ]
    }

    fn values() -> impl Strategy<Value = GgufValue> {
        prop_oneof![
            any::<u8>().prop_map(GgufValue::U8),
            any::<i8>().prop_map(GgufValue::I8),
            any::<u16>().prop_map(GgufValue::U16),
            any::<i16>().prop_map(GgufValue::I16),
            any::<u32>().prop_map(GgufValue::U32),
            any::<i32>().prop_map(GgufValue::I32),
            any::<u64>().prop_map(GgufValue::U64),
            any::<i64>().prop_map(GgufValue::I64),
            f32s().prop_map(GgufValue::F32),
            f64s().prop_map(GgufValue::F64),
            any::<bool>().prop_map(GgufValue::Bool),
            any::<String>().prop_map(GgufValue::String),
            arrays().prop_map(GgufValue::Array),
        ]
    }

    fn tensor_lists() -> impl Strategy<Value = BTreeMap<String, (GgmlType, Vec<u64>)>> {
        let kinds = prop::sample::select(GgmlType::ALL);
        let shape = (kinds, vec(0u64..3, 0..4)).prop_map(|(kind, rest)| {
            let rows = rest.into_iter().skip(usize::from(kind.block_elements() > 1));
            let blocks = (kind.block_elements() > 1).then(|| 2 * kind.block_elements());
            (kind, blocks.into_iter().chain(rows).collect::<Vec<u64>>())
        });
        btree_map("[a-z.é]{1,20}", shape, 0..6)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            metadata in btree_map("[a-z._é]{1,12}", values(), 0..10),
            tensors in tensor_lists(),
            alignment in prop::option::of(0u32..9),
        ) {
            let mut metadata: Vec<_> = metadata.into_iter().collect();
            metadata.extend(alignment.map(|power| (ALIGNMENT_KEY.to_owned(), GgufValue::U32(1 << power))));
            let specs: Vec<_> =
                tensors.iter().map(|(name, (kind, dims))| TensorSpec::new(name, *kind, dims.clone())).collect();
            let plan = GgufLayout::new(metadata.clone(), specs).unwrap();
            let mut bytes = Vec::new();
            plan.write(&mut bytes, |tensor, out| {
                (0..tensor.byte_len().unwrap()).try_for_each(|_| out.write_all(&[7]))
            }).unwrap();
            prop_assert_eq!(bytes.len() as u64, plan.file_len());

            let header = GgufHeader::read(bytes.as_slice(), bytes.len() as u64).unwrap();
            prop_assert_eq!(header.metadata.iter().map(|(k, v)| (k.to_owned(), v.clone())).collect::<Vec<_>>(), metadata);
            prop_assert_eq!(&header.tensors, plan.tensors());
            prop_assert_eq!(header.data_start, plan.header().len() as u64);
            for tensor in &header.tensors {
                let start = usize::try_from(header.data_start + tensor.offset).unwrap();
                let end = start + usize::try_from(tensor.byte_len().unwrap()).unwrap();
                prop_assert!(bytes[start..end].iter().all(|byte| *byte == 7));
                prop_assert_eq!(start as u64 % header.alignment, 0);
            }
        }
    }

    #[test]
    fn refuses_what_cannot_be_read_back() {
        let spec = || TensorSpec::new("a", GgmlType::F32, [1]);
        assert!(GgufLayout::new(vec![], vec![spec(), spec()]).is_err());
        assert!(GgufLayout::new(vec![], vec![TensorSpec::new("a", GgmlType::Q8_0, [1])]).is_err());
        assert!(GgufLayout::new(vec![], vec![TensorSpec::new("a".repeat(64), GgmlType::F32, [1])]).is_err());
        assert!(GgufLayout::new(vec![(String::new(), GgufValue::U8(1))], vec![]).is_err());
        assert!(
            GgufLayout::new(
                vec![("k".to_owned(), GgufValue::U8(1)), ("k".to_owned(), GgufValue::U8(1))],
                vec![]
            )
            .is_err()
        );
        assert!(GgufLayout::new(vec![(ALIGNMENT_KEY.to_owned(), GgufValue::U32(24))], vec![]).is_err());
        let plan = GgufLayout::new(vec![], vec![spec()]).unwrap();
        assert!(plan.write(io::sink(), |_, out| out.write_all(&[0; 3])).is_err());
    }
}
