//! Reading of GGUF headers, versions 2 and 3, little endian. The bytes are not trusted: every count is checked against
//! a limit and against the bytes that are left, before memory is reserved for it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::types::elements;
use super::value::type_id;
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, GgmlType, GgufArray, GgufError, GgufMetadata, GgufValue, StringArray};

/// Limit on keys. Real models have 20 to 80.
const MAX_KEYS: u64 = 16_384;
/// Limit on the length of a key, set by the format.
const MAX_KEY_BYTES: u64 = 65_535;
/// Limit on strings. The longest real ones are chat templates and license texts of less than 1 MiB.
const MAX_STRING_BYTES: u64 = 16 << 20;
/// Limit on arrays. The longest real ones are vocabularies and merges of less than a million.
const MAX_ARRAY_ELEMENTS: u64 = 16 << 20;
/// Limit on tensors. Mixtures of experts with a tensor for each expert have fewer than 60,000.
const MAX_TENSORS: u64 = 131_072;
/// Limit on names of tensors: `GGML_MAX_NAME` is 64 bytes with the final zero.
pub(super) const MAX_TENSOR_NAME_BYTES: u64 = 63;
/// `GGML_MAX_DIMS`.
pub(super) const MAX_DIMENSIONS: u32 = 4;
/// Limit on headers. The largest real ones, with vocabularies of 262,144 tokens, have about 16 MiB.
const MAX_HEADER_BYTES: u64 = 128 << 20;
/// Limit on the initial capacity of a list, whatever its announced length.
const INITIAL_CAPACITY: u64 = 4096;

/// Header of a GGUF file: everything but tensor data.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufHeader {
    /// Version of the format, 2 or 3.
    pub version: u32,
    pub metadata: GgufMetadata,
    /// Tensors in the order of the file.
    pub tensors: Vec<TensorInfo>,
    /// Alignment in bytes, a power of two.
    pub alignment: u64,
    /// Offset of tensor data in bytes from the start of the file.
    pub data_start: u64,
    /// Bytes of the whole file.
    pub file_len: u64,
}

/// Entry of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, for example `blk.0.attn_q.weight`.
    pub name: String,
    pub element_type: GgmlType,
    /// Dimensions, fastest first.
    pub dims: Vec<u64>,
    /// Offset of the data in bytes from [`GgufHeader::data_start`].
    pub offset: u64,
}

/// Place of a file among the shards of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgufSplit {
    /// `split.no`, counted from 0.
    pub number: u64,
    /// `split.count`.
    pub count: u64,
    /// `split.tensors.count`: tensors of all shards together.
    pub tensors: u64,
}

impl TensorInfo {
    /// Returns the number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        elements(&self.dims).unwrap_or(u64::MAX)
    }

    /// Returns the bytes of data; `None` for dimensions that the type cannot have, which no parsed header contains.
    #[must_use]
    pub fn byte_len(&self) -> Option<u64> {
        self.element_type.tensor_bytes(&self.dims)
    }
}

impl GgufHeader {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// If the file cannot be read, is not a GGUF, or is incomplete.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let file = File::open(path)?;
        let file_len = file.metadata()?.len();
        Self::read(file, file_len)
    }

    /// Reads a header from the beginning of a file of `file_len` bytes. The reader may end after the header.
    ///
    /// # Errors
    /// The errors of [`GgufHeader::open`]; [`GgufError::Truncated`] if the reader ends inside the header.
    pub fn read(reader: impl Read, file_len: u64) -> Result<Self, GgufError> {
        let mut source = Source {
            reader: BufReader::with_capacity(1 << 16, reader),
            position: 0,
            file_len,
        };
        let magic = source.bytes::<4>()?;
        if &magic != b"GGUF" {
            return Err(GgufError::NotGguf(magic));
        }
        let version = source.u32()?;
        match version {
            2 | 3 => {}
            // A small version with its bytes swapped.
            swapped if swapped != 0 && swapped & 0xffff == 0 => return Err(GgufError::BigEndian),
            other => return Err(GgufError::Version(other)),
        }
        let tensor_count = bounded("the number of tensors", source.u64()?, MAX_TENSORS)?;
        let key_count = bounded("the number of metadata keys", source.u64()?, MAX_KEYS)?;

        let metadata = source.metadata(key_count)?;
        let alignment = alignment(metadata.get(ALIGNMENT_KEY))?;
        let tensors = source.tensors(tensor_count)?;
        let data_start = align_up(source.position, alignment)
            .ok_or_else(|| GgufError::Malformed("the data section begins beyond 2^64 bytes".to_owned()))?;
        for tensor in &tensors {
            // Gaps and overlaps are left to llama.cpp, which refuses them with an error.
            check_extent(tensor, data_start, file_len)?;
        }
        Ok(Self {
            version,
            metadata,
            tensors,
            alignment,
            data_start,
            file_len,
        })
    }

    /// Returns the value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(key)
    }

    /// Returns `general.architecture`; empty if it is missing, as in all shards but the first and in some adapters.
    #[must_use]
    pub fn architecture(&self) -> &str {
        self.get("general.architecture")
            .and_then(GgufValue::as_str)
            .unwrap_or_default()
    }

    /// Returns the value of `<architecture>.<suffix>`.
    #[must_use]
    pub fn hyperparameter(&self, suffix: &str) -> Option<&GgufValue> {
        self.get(&format!("{}.{suffix}", self.architecture()))
    }

    /// Returns the place of the file among shards; `None` for a file that is not split.
    #[must_use]
    pub fn split(&self) -> Option<GgufSplit> {
        let number = |key| self.get(key).and_then(GgufValue::as_u64);
        // A split of one file is a whole file.
        let count = number("split.count").filter(|count| *count > 1)?;
        Some(GgufSplit {
            number: number("split.no").unwrap_or_default(),
            count,
            tensors: number("split.tensors.count").unwrap_or_default(),
        })
    }
}

/// Returns the alignment that a value of [`ALIGNMENT_KEY`] sets.
pub(super) fn alignment(value: Option<&GgufValue>) -> Result<u64, GgufError> {
    match value {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(GgufValue::U32(bytes)) if bytes.is_power_of_two() => Ok((*bytes).into()),
        Some(GgufValue::U32(bytes)) => Err(GgufError::Malformed(format!(
            "{ALIGNMENT_KEY} is {bytes}, which is not a power of two"
        ))),
        Some(_) => Err(GgufError::Malformed(format!(
            "{ALIGNMENT_KEY} is not a 32-bit unsigned integer"
        ))),
    }
}

/// Rounds up to a multiple of a power of two; `None` on overflow.
pub(super) fn align_up(position: u64, alignment: u64) -> Option<u64> {
    position.checked_next_multiple_of(alignment)
}

fn bounded(what: &'static str, value: u64, limit: u64) -> Result<u64, GgufError> {
    if value > limit {
        Err(GgufError::TooLarge { what, value, limit })
    } else {
        Ok(value)
    }
}

fn check_extent(tensor: &TensorInfo, data_start: u64, file_len: u64) -> Result<(), GgufError> {
    let TensorInfo {
        name,
        element_type,
        dims,
        offset,
    } = tensor;
    let bytes = element_type.tensor_bytes(dims).ok_or_else(|| {
        GgufError::Malformed(format!(
            "tensor {name:?} has dimensions {dims:?}, which {} cannot have",
            element_type.name()
        ))
    })?;
    let end = data_start
        .checked_add(*offset)
        .and_then(|start| start.checked_add(bytes))
        .unwrap_or(u64::MAX);
    if end > file_len {
        return Err(GgufError::OutsideFile {
            name: name.clone(),
            end,
            file_len,
        });
    }
    Ok(())
}

struct Source<R> {
    reader: BufReader<R>,
    position: u64,
    file_len: u64,
}

impl<R: Read> Source<R> {
    fn metadata(&mut self, count: u64) -> Result<GgufMetadata, GgufError> {
        let mut seen = HashSet::new();
        let mut pairs = Vec::new();
        for _ in 0..count {
            let key = self.utf8("the length of a metadata key", MAX_KEY_BYTES)?;
            if key.is_empty() {
                return Err(GgufError::Malformed("a metadata key is empty".to_owned()));
            }
            if !seen.insert(key.clone()) {
                return Err(GgufError::Malformed(format!("the metadata key {key:?} occurs twice")));
            }
            let kind = self.u32()?;
            let value = self.value(kind).map_err(|error| match error {
                GgufError::Malformed(problem) => GgufError::Malformed(format!("metadata key {key:?}: {problem}")),
                other => other,
            })?;
            pairs.push((key, value));
        }
        Ok(GgufMetadata::from_unique(pairs))
    }

    fn tensors(&mut self, count: u64) -> Result<Vec<TensorInfo>, GgufError> {
        let mut seen = HashSet::new();
        let mut tensors = Vec::new();
        for _ in 0..count {
            let name = self.utf8("the length of a tensor name", MAX_TENSOR_NAME_BYTES)?;
            if !seen.insert(name.clone()) {
                return Err(GgufError::Malformed(format!("the tensor name {name:?} occurs twice")));
            }
            let dimensions = self.u32()?;
            if dimensions > MAX_DIMENSIONS {
                return Err(GgufError::Malformed(format!(
                    "tensor {name:?} has {dimensions} dimensions, the limit is {MAX_DIMENSIONS}"
                )));
            }
            let dims = (0..dimensions).map(|_| self.u64()).collect::<Result<_, _>>()?;
            let id = self.u32()?;
            let element_type = GgmlType::from_id(id).ok_or_else(|| {
                GgufError::Malformed(format!(
                    "tensor {name:?} has the element type {id}, which is removed or unknown"
                ))
            })?;
            let offset = self.u64()?;
            tensors.push(TensorInfo {
                name,
                element_type,
                dims,
                offset,
            });
        }
        Ok(tensors)
    }

    fn value(&mut self, kind: u32) -> Result<GgufValue, GgufError> {
        Ok(match kind {
            type_id::U8 => GgufValue::U8(u8::from_le_bytes(self.bytes()?)),
            type_id::I8 => GgufValue::I8(i8::from_le_bytes(self.bytes()?)),
            type_id::U16 => GgufValue::U16(u16::from_le_bytes(self.bytes()?)),
            type_id::I16 => GgufValue::I16(i16::from_le_bytes(self.bytes()?)),
            type_id::U32 => GgufValue::U32(self.u32()?),
            type_id::I32 => GgufValue::I32(i32::from_le_bytes(self.bytes()?)),
            type_id::U64 => GgufValue::U64(self.u64()?),
            type_id::I64 => GgufValue::I64(i64::from_le_bytes(self.bytes()?)),
            type_id::F32 => GgufValue::F32(f32::from_le_bytes(self.bytes()?)),
            type_id::F64 => GgufValue::F64(f64::from_le_bytes(self.bytes()?)),
            // Any byte but 0 is true, like in ggml.
            type_id::BOOL => GgufValue::Bool(self.bytes()? != [0]),
            type_id::STRING => {
                let mut bytes = Vec::new();
                self.string("the length of a string", MAX_STRING_BYTES, &mut bytes)?;
                GgufValue::String(lossy(bytes))
            }
            type_id::ARRAY => {
                let kind = self.u32()?;
                let count = bounded("the number of elements of an array", self.u64()?, MAX_ARRAY_ELEMENTS)?;
                GgufValue::Array(self.array(kind, count)?)
            }
            unknown => return Err(GgufError::Malformed(format!("unknown value type {unknown}"))),
        })
    }

    fn array(&mut self, kind: u32, count: u64) -> Result<GgufArray, GgufError> {
        Ok(match kind {
            type_id::U8 => GgufArray::U8(self.list(count, u8::from_le_bytes)?),
            type_id::I8 => GgufArray::I8(self.list(count, i8::from_le_bytes)?),
            type_id::U16 => GgufArray::U16(self.list(count, u16::from_le_bytes)?),
            type_id::I16 => GgufArray::I16(self.list(count, i16::from_le_bytes)?),
            type_id::U32 => GgufArray::U32(self.list(count, u32::from_le_bytes)?),
            type_id::I32 => GgufArray::I32(self.list(count, i32::from_le_bytes)?),
            type_id::U64 => GgufArray::U64(self.list(count, u64::from_le_bytes)?),
            type_id::I64 => GgufArray::I64(self.list(count, i64::from_le_bytes)?),
            type_id::F32 => GgufArray::F32(self.list(count, f32::from_le_bytes)?),
            type_id::F64 => GgufArray::F64(self.list(count, f64::from_le_bytes)?),
            type_id::BOOL => GgufArray::Bool(self.list(count, |byte| byte != [0])?),
            type_id::STRING => {
                // Each string takes at least the 8 bytes of its length.
                self.claim(count.saturating_mul(8))?;
                let mut strings = StringArray::default();
                let mut buffer = Vec::new();
                for _ in 0..count {
                    buffer.clear();
                    self.string("the length of a string", MAX_STRING_BYTES, &mut buffer)?;
                    strings.push(&buffer);
                }
                GgufArray::String(strings)
            }
            type_id::ARRAY => return Err(GgufError::Malformed("arrays of arrays are not supported".to_owned())),
            unknown => return Err(GgufError::Malformed(format!("unknown array element type {unknown}"))),
        })
    }

    fn list<T, const N: usize>(&mut self, count: u64, decode: fn([u8; N]) -> T) -> Result<Vec<T>, GgufError> {
        self.claim(count.saturating_mul(N as u64))?;
        let mut list = Vec::with_capacity(usize::try_from(count.min(INITIAL_CAPACITY)).unwrap_or_default());
        for _ in 0..count {
            list.push(decode(self.bytes()?));
        }
        Ok(list)
    }

    fn utf8(&mut self, what: &'static str, limit: u64) -> Result<String, GgufError> {
        let mut bytes = Vec::new();
        self.string(what, limit, &mut bytes)?;
        String::from_utf8(bytes).map_err(|error| {
            GgufError::Malformed(format!(
                "the name {:?} is not UTF-8",
                String::from_utf8_lossy(error.as_bytes())
            ))
        })
    }

    /// Reads a length and appends that many bytes to `into`.
    fn string(&mut self, what: &'static str, limit: u64, into: &mut Vec<u8>) -> Result<(), GgufError> {
        let length = bounded(what, self.u64()?, limit)?;
        self.claim(length)?;
        // The reader may end before the file does. Memory is taken for bytes that arrive, not for the length that is
        // announced.
        let read = (&mut self.reader).take(length).read_to_end(into)? as u64;
        self.position += read;
        if read < length {
            Err(GgufError::Truncated {
                position: self.position,
            })
        } else {
            Ok(())
        }
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        self.claim(N as u64)?;
        let mut buffer = [0; N];
        self.reader
            .read_exact(&mut buffer)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => GgufError::Truncated {
                    position: self.position,
                },
                _ => GgufError::Io(error),
            })?;
        self.position += N as u64;
        Ok(buffer)
    }

    /// Checks that the file and the limit on headers allow for this many more bytes.
    fn claim(&self, bytes: u64) -> Result<(), GgufError> {
        let end = self.position.saturating_add(bytes);
        if end > self.file_len {
            return Err(GgufError::Truncated {
                position: self.position,
            });
        }
        bounded("the size of the header in bytes", end, MAX_HEADER_BYTES)?;
        Ok(())
    }
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::gguf::{GgufLayout, TensorSpec, precheck};

    fn sample() -> Vec<u8> {
        let string = |text: &str| GgufValue::String(text.to_owned());
        let plan = GgufLayout::new(
            vec![
                ("general.architecture".to_owned(), string("llama")),
                ("llama.block_count".to_owned(), GgufValue::U32(1)),
                (
                    "llama.attention.layer_norm_rms_epsilon".to_owned(),
                    GgufValue::F32(1e-5),
                ),
                (
                    "llama.attention.head_count_kv".to_owned(),
                    GgufValue::Array(GgufArray::I32(vec![1, 2])),
                ),
                ("tokenizer.ggml.model".to_owned(), string("gpt2")),
                (
                    "tokenizer.ggml.tokens".to_owned(),
                    GgufValue::Array(GgufArray::String(["a", "b", "cd"].iter().collect())),
                ),
                ("flag".to_owned(), GgufValue::Bool(true)),
                ("wide".to_owned(), GgufValue::U64(7)),
            ],
            vec![
                TensorSpec::new("token_embd.weight", GgmlType::Q8_0, [32, 3]),
                TensorSpec::new("output_norm.weight", GgmlType::F32, [32]),
            ],
        )
        .unwrap();
        let mut bytes = Vec::new();
        plan.write(&mut bytes, |tensor, out| {
            out.write_all(&vec![1; usize::try_from(tensor.byte_len().unwrap()).unwrap()])
        })
        .unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Result<GgufHeader, GgufError> {
        GgufHeader::read(bytes, bytes.len() as u64)
    }

    /// Returns the first position of `needle`, plus `skip`.
    fn find(bytes: &[u8], needle: &[u8], skip: usize) -> usize {
        bytes.windows(needle.len()).position(|window| window == needle).unwrap() + skip
    }

    #[test]
    fn reads_what_was_written() {
        let header = read(&sample()).unwrap();
        assert_eq!(
            (header.version, header.architecture(), header.alignment),
            (3, "llama", 32)
        );
        assert_eq!(
            header.hyperparameter("block_count").and_then(GgufValue::as_u64),
            Some(1)
        );
        assert_eq!(header.metadata.len(), 8);
        assert_eq!(header.tensors.len(), 2);
        assert_eq!(header.tensors[1].offset, 128);
        assert_eq!(header.split(), None);
        precheck(&header).unwrap();
    }

    #[test]
    fn a_prefix_that_holds_the_header_is_enough() {
        let bytes = sample();
        let whole = read(&bytes).unwrap();
        let start = usize::try_from(whole.data_start).unwrap();
        assert_eq!(GgufHeader::read(&bytes[..start], bytes.len() as u64).unwrap(), whole);
        assert!(matches!(
            GgufHeader::read(&bytes[..100], bytes.len() as u64),
            Err(GgufError::Truncated { .. })
        ));
    }

    #[test]
    fn each_fault_has_its_sentence() {
        type Damage = fn(&mut Vec<u8>);
        // Bytes 8 to 15 are the number of tensors, 16 to 23 that of keys, and 24 to 31 the length of the first key.
        let cases: &[(Damage, &str)] = &[
            (|b| b[0] = b'X', "not a GGUF file"),
            (|b| b[4..8].copy_from_slice(&3u32.to_be_bytes()), "big endian"),
            (|b| b[4] = 1, "version 1"),
            (|b| b[4] = 0, "version 0"),
            (|b| b[15] = 0x80, "the number of tensors"),
            (|b| b[23] = 0x80, "the number of metadata keys"),
            (|b| b[31] = 1, "the length of a metadata key"),
            (|b| b.truncate(40), "incomplete"),
            (|b| b.truncate(b.len() - 64), "incomplete"),
            (
                |b| {
                    let at = find(b, b"wide", 0);
                    b[at..at + 4].copy_from_slice(b"flag");
                },
                "occurs twice",
            ),
            (
                |b| {
                    let at = find(b, b"flag", 0);
                    b[at] = 0xff;
                },
                "not UTF-8",
            ),
            (
                |b| {
                    let at = find(b, b"flag", 4);
                    b[at] = 99;
                },
                "unknown value type 99",
            ),
            (
                |b| {
                    let at = find(b, b"tokenizer.ggml.tokens", 25);
                    b[at] = 9;
                },
                "arrays of arrays",
            ),
            (
                |b| {
                    let at = find(b, b"tokenizer.ggml.tokens", 29);
                    b[at + 3] = 2;
                },
                "the number of elements of an array",
            ),
            (
                |b| {
                    let at = find(b, b"token_embd.weight", 17);
                    b[at] = 5;
                },
                "5 dimensions",
            ),
            (
                |b| {
                    let at = find(b, b"token_embd.weight", 21);
                    b[at] = 31;
                },
                "which Q8_0 cannot have",
            ),
            (
                |b| {
                    let at = find(b, b"token_embd.weight", 37);
                    b[at] = 4;
                },
                "removed or unknown",
            ),
            (
                |b| {
                    let at = find(b, b"token_embd.weight", 48);
                    b[at] = 0xff;
                },
                "token_embd.weight",
            ),
        ];
        for (damage, expected) in cases {
            let mut bytes = sample();
            damage(&mut bytes);
            let sentence = read(&bytes).unwrap_err().to_string();
            assert!(sentence.contains(expected), "{expected:?} in {sentence:?}");
        }
    }

    #[test]
    fn no_damage_makes_it_panic() {
        let bytes = sample();
        for length in 0..bytes.len() {
            let _ = read(&bytes[..length]);
        }
        let mut random = StdRng::seed_from_u64(7);
        for _ in 0..20_000 {
            let mut damaged = bytes.clone();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..damaged.len());
                damaged[at] = if random.random() {
                    random.random()
                } else {
                    damaged[at] ^ (1 << random.random_range(0..8))
                };
            }
            if let Ok(header) = read(&damaged) {
                let _ = precheck(&header);
            }
        }
    }
}
