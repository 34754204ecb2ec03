//! Metadata values. The widths of integers are kept, because llama.cpp refuses a key of another width than it expects.

/// Metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    /// Text. Invalid UTF-8 was replaced when it was read.
    String(String),
    Array(GgufArray),
}

/// List of values of one type. GGUF's nested arrays are not accepted: llama.cpp refuses them, too.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufArray {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(StringArray),
}

/// Type numbers of the format (`enum gguf_type`).
pub(super) mod type_id {
    pub(in crate::gguf) const U8: u32 = 0;
    pub(in crate::gguf) const I8: u32 = 1;
    pub(in crate::gguf) const U16: u32 = 2;
    pub(in crate::gguf) const I16: u32 = 3;
    pub(in crate::gguf) const U32: u32 = 4;
    pub(in crate::gguf) const I32: u32 = 5;
    pub(in crate::gguf) const F32: u32 = 6;
    pub(in crate::gguf) const BOOL: u32 = 7;
    pub(in crate::gguf) const STRING: u32 = 8;
    pub(in crate::gguf) const ARRAY: u32 = 9;
    pub(in crate::gguf) const U64: u32 = 10;
    pub(in crate::gguf) const I64: u32 = 11;
    pub(in crate::gguf) const F64: u32 = 12;
}

impl GgufValue {
    /// Returns an integer of any width that is not negative.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(x) => Some(x.into()),
            Self::I8(x) => x.try_into().ok(),
            Self::U16(x) => Some(x.into()),
            Self::I16(x) => x.try_into().ok(),
            Self::U32(x) => Some(x.into()),
            Self::I32(x) => x.try_into().ok(),
            Self::U64(x) => Some(x),
            Self::I64(x) => x.try_into().ok(),
            _ => None,
        }
    }

    /// Returns a floating-point number.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(x) => Some(x.into()),
            Self::F64(x) => Some(x),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(flag) => Some(flag),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_array(&self) -> Option<&GgufArray> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_strings(&self) -> Option<&StringArray> {
        match self {
            Self::Array(GgufArray::String(strings)) => Some(strings),
            _ => None,
        }
    }

    /// Returns a single integer, or the integers of a list: hyperparameters may be given once or for each layer. Empty
    /// for other types; negative numbers are left out.
    #[must_use]
    pub fn integers(&self) -> Vec<u64> {
        match self {
            Self::Array(array) => array.integers(),
            scalar => scalar.as_u64().into_iter().collect(),
        }
    }
}

impl GgufArray {
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::U8(list) => list.len(),
            Self::I8(list) => list.len(),
            Self::U16(list) => list.len(),
            Self::I16(list) => list.len(),
            Self::U32(list) => list.len(),
            Self::I32(list) => list.len(),
            Self::U64(list) => list.len(),
            Self::I64(list) => list.len(),
            Self::F32(list) => list.len(),
            Self::F64(list) => list.len(),
            Self::Bool(list) => list.len(),
            Self::String(list) => list.len(),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn integers(&self) -> Vec<u64> {
        fn collect<T: Copy + TryInto<u64>>(list: &[T]) -> Vec<u64> {
            list.iter().filter_map(|x| (*x).try_into().ok()).collect()
        }
        match self {
            Self::U8(list) => collect(list),
            Self::I8(list) => collect(list),
            Self::U16(list) => collect(list),
            Self::I16(list) => collect(list),
            Self::U32(list) => collect(list),
            Self::I32(list) => collect(list),
            Self::U64(list) => collect(list),
            Self::I64(list) => collect(list),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::String(_) => Vec::new(),
        }
    }
}

/// List of byte strings in one buffer: a vocabulary has hundreds of thousands, and its tokens need not be UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StringArray {
    bytes: Vec<u8>,
    /// End of each string in `bytes`.
    ends: Vec<usize>,
}

impl StringArray {
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    #[must_use]
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        self.bytes.get(start..end)
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    pub fn push(&mut self, string: &[u8]) {
        self.bytes.extend_from_slice(string);
        self.ends.push(self.bytes.len());
    }
}

impl<S: AsRef<[u8]>> FromIterator<S> for StringArray {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut list = Self::default();
        for string in strings {
            list.push(string.as_ref());
        }
        list
    }
}

/// Metadata: unique keys with values, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufMetadata(Vec<(String, GgufValue)>);

impl GgufMetadata {
    /// Wraps pairs whose keys the caller has checked to be unique.
    pub(super) fn from_unique(pairs: Vec<(String, GgufValue)>) -> Self {
        Self(pairs)
    }

    /// Returns the value of a key, by linear search: headers have a few dozen keys.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &GgufValue)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
