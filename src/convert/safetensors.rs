//! Headers of the safetensors files of a checkpoint. The files are not trusted: every offset is checked here, so that
//! later reads stay within their file. No weight is read.
//!
//! A file is the length of its header (u64, little endian), the header as JSON, and the data of its tensors. Each entry
//! of the header has a dtype, a shape and offsets from the end of the header.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    fs::File,
    io::Read,
    path::Path,
    sync::Arc,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};

use super::{
    ConvertError,
    dtype::TensorDtype,
    files,
    stored::{ShardFile, StoredTensor},
};

/// Limit of the reference implementation (`MAX_HEADER_SIZE`).
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Sanity limit. Mixtures of experts that store every matrix of every expert separately have fewer than 100,000
/// tensors.
const MAX_TENSORS: usize = 1 << 18;
/// Sanity limit. The largest published checkpoints have fewer than 400 files.
const MAX_SHARDS: usize = 4096;
const MAX_DIMENSIONS: usize = 8;
const MAX_NAME_BYTES: usize = 512;
/// File that maps tensors to shards.
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Tensors of all shards, by name.
pub(super) type StoredTensors = BTreeMap<String, StoredTensor>;

/// Reads the headers of all weights in a folder: `model.safetensors`, or the shards that an index names, or a complete
/// set of numbered shards without an index. `library::checkpoint` downloads by the same precedence.
pub(super) fn open(folder: &Path) -> Result<StoredTensors, ConvertError> {
    let single = folder.join(SINGLE);
    if single.is_file() {
        return read_shards(folder, &[SINGLE.to_owned()], None);
    }
    let index = folder.join(INDEX);
    if index.is_file() {
        let (names, map) = read_index(&index)?;
        return read_shards(folder, &names, Some((&index, &map)));
    }
    let names = unlisted_shards(folder)?;
    if names.is_empty() {
        return Err(ConvertError::Incomplete(format!(
            "{} has no model.safetensors and no {INDEX}",
            folder.display()
        )));
    }
    read_shards(folder, &names, None)
}

/// Reads the header of one file.
pub(super) fn open_file(folder: &Path, name: &str) -> Result<StoredTensors, ConvertError> {
    read_shards(folder, &[name.to_owned()], None)
}

/// Name of the shard of each tensor.
type WeightMap = HashMap<String, String>;

fn read_index(path: &Path) -> Result<(Vec<String>, WeightMap), ConvertError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: WeightMap,
    }
    let text = files::read(path, MAX_HEADER_BYTES)?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| ConvertError::damaged(path, error.to_string()))?;
    let mut names: Vec<String> = index.weight_map.values().cloned().collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() || names.len() > MAX_SHARDS {
        return Err(ConvertError::damaged(path, format!("it names {} files", names.len())));
    }
    // The index is not trusted: no file outside of the folder is opened.
    if let Some(name) = names.iter().find(|name| !is_plain(name)) {
        return Err(ConvertError::damaged(
            path,
            format!("{name:?} is not the name of a shard"),
        ));
    }
    Ok((names, index.weight_map))
}

/// Returns true for the name of a safetensors file without any folder.
fn is_plain(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}

/// Returns the names of numbered shards (`model-00001-of-00003.safetensors`) that have no index. An incomplete set is
/// an error.
fn unlisted_shards(folder: &Path) -> Result<Vec<String>, ConvertError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(ConvertError::io(folder, "read"))? {
        let name = entry.map_err(ConvertError::io(folder, "read"))?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with("model-") && is_plain(name) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    let Some(total) = names.first().and_then(|name| shard_total(name)) else {
        return Ok(Vec::new());
    };
    for number in 1..=total {
        let expected = format!("model-{number:05}-of-{total:05}.safetensors");
        if !names.contains(&expected) {
            return Err(ConvertError::Incomplete(format!(
                "{expected} is missing from {}",
                folder.display()
            )));
        }
    }
    names.truncate(total);
    Ok(names)
}

/// Returns the number of shards in the name of a shard.
fn shard_total(name: &str) -> Option<usize> {
    let total = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?.1;
    total.parse().ok().filter(|total| (1..=MAX_SHARDS).contains(total))
}

fn read_shards(
    folder: &Path,
    names: &[String],
    index: Option<(&Path, &WeightMap)>,
) -> Result<StoredTensors, ConvertError> {
    let mut all = StoredTensors::new();
    for name in names {
        let path = folder.join(name);
        if !path.is_file() {
            return Err(ConvertError::Incomplete(format!(
                "{name} is missing from {}",
                folder.display()
            )));
        }
        for tensor in read_header(&path)? {
            if let Some((index_path, map)) = index
                && map.get(&tensor.name) != Some(name)
            {
                let reason = format!("it does not say that {name} has the tensor {:?}", tensor.name);
                return Err(ConvertError::damaged(index_path, reason));
            }
            if let Some(twice) = all.insert(tensor.name.clone(), tensor) {
                return Err(ConvertError::damaged(
                    &path,
                    format!("the tensor {:?} is in two files", twice.name),
                ));
            }
            if all.len() > MAX_TENSORS {
                return Err(ConvertError::damaged(
                    &path,
                    format!("there are more than {MAX_TENSORS} tensors"),
                ));
            }
        }
    }
    // The other direction: a tensor that the index promises must exist.
    if let Some((_, map)) = index
        && let Some((tensor, shard)) = map.iter().find(|(tensor, _)| !all.contains_key(*tensor))
    {
        return Err(ConvertError::damaged(
            &folder.join(shard),
            format!("the index says that it has the tensor {tensor:?}, which it does not have"),
        ));
    }
    Ok(all)
}

/// Entry of a header.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Entries of a header in the order of the file, without its free-form metadata. Parsed by hand, because a map would
/// hide names that occur twice.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Entries;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if entries.len() == MAX_TENSORS || name.len() > MAX_NAME_BYTES {
                        return Err(A::Error::custom("too many tensors, or too long a name"));
                    }
                    entries.push((name, map.next_value()?));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

fn read_header(path: &Path) -> Result<Vec<StoredTensor>, ConvertError> {
    let mut file = File::open(path).map_err(ConvertError::io(path, "opened"))?;
    let file_bytes = file.metadata().map_err(ConvertError::io(path, "read"))?.len();
    let mut length = [0; 8];
    if file_bytes < 8 {
        return Err(ConvertError::damaged(path, format!("it has {file_bytes} bytes")));
    }
    file.read_exact(&mut length).map_err(ConvertError::io(path, "read"))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > file_bytes - 8 {
        return Err(ConvertError::damaged(
            path,
            format!("its header should have {length} bytes, the file has {file_bytes}"),
        ));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(ConvertError::io(path, "read"))?;
    let Entries(entries) = serde_json::from_slice(&header)
        .map_err(|error| ConvertError::damaged(path, format!("its header does not parse: {error}")))?;
    // The JSON of large checkpoints has tens of megabytes.
    drop(header);

    let data_start = 8 + length;
    check_layout(&entries, file_bytes - data_start).map_err(|reason| ConvertError::damaged(path, reason))?;
    let shard = Arc::new(ShardFile {
        path: path.to_owned(),
        file,
    });
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let Some(dtype) = TensorDtype::parse(&entry.dtype) else {
            let reason = format!("the tensor {name:?} has the unknown type {:?}", entry.dtype);
            return Err(ConvertError::damaged(path, reason));
        };
        tensors.push(StoredTensor {
            name,
            shard: Arc::clone(&shard),
            offset: data_start + entry.data_offsets.0,
            dtype,
            shape: entry.shape,
            scales: None,
        });
    }
    Ok(tensors)
}

/// Checks that every byte after the header belongs to exactly one tensor, and that each tensor has as many bytes as its
/// shape requires. The reference implementation demands the same.
fn check_layout(entries: &[(String, Entry)], data_bytes: u64) -> Result<(), String> {
    let mut names = HashSet::with_capacity(entries.len());
    let mut spans = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        if !names.insert(name) {
            return Err(format!("the tensor {name:?} occurs twice"));
        }
        let (start, end) = entry.data_offsets;
        let needed = TensorDtype::parse(&entry.dtype).and_then(|dtype| {
            let elements = entry
                .shape
                .iter()
                .try_fold(1u64, |product, dim| product.checked_mul(*dim))?;
            let bits = elements.checked_mul(dtype.bits())?;
            bits.is_multiple_of(8).then_some(bits / 8)
        });
        if entry.shape.len() > MAX_DIMENSIONS || start > end || needed != Some(end - start) {
            return Err(format!(
                "the tensor {name:?} of type {} and shape {:?} cannot lie at bytes {start} to {end}",
                entry.dtype, entry.shape
            ));
        }
        spans.push((start, end, name));
    }
    spans.sort_unstable();
    let mut position = 0;
    for (start, end, name) in spans {
        if start < position {
            return Err(format!("the tensor {name:?} overlaps the one before it"));
        }
        if start > position {
            return Err(format!("the bytes {position} to {start} belong to no tensor"));
        }
        position = end;
    }
    // Checked against the file, so that a truncated download is found here and not in the middle of a conversion.
    if position > data_bytes {
        return Err(format!(
            "its tensors need {position} bytes but only {data_bytes} are there"
        ));
    }
    if position < data_bytes {
        return Err(format!(
            "{} bytes at its end belong to no tensor",
            data_bytes - position
        ));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    /// Returns the bytes of a file with this header and data.
    pub(in crate::convert) fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<StoredTensor>, ConvertError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, bytes).unwrap();
        read_header(&path)
    }

    #[test]
    fn a_sound_header() {
        let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
                         "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
        let tensors = read(&file(header, &[0; 16])).unwrap();
        assert_eq!(tensors.len(), 2);
        assert_eq!((tensors[0].name.as_str(), tensors[0].dtype), ("b", TensorDtype::BF16));
        assert_eq!(tensors[0].shape, [2, 3]);
        assert_eq!(tensors[0].offset, 8 + header.len() as u64 + 4);
    }

    #[test]
    fn hostile_headers() {
        let entry = |dtype: &str, shape: &str, from: u64, to: u64| {
            format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
        };
        let one = entry("F32", "[4]", 0, 16);
        for (header, data, reason) in [
            (format!(r#"{{"a":{one}}}"#), 15, "only 15 are there"),
            (format!(r#"{{"a":{one}}}"#), 17, "1 bytes at its end"),
            (format!(r#"{{"a":{one},"a":{one}}}"#), 16, "occurs twice"),
            (format!(r#"{{"a":{one},"b":{one}}}"#), 16, "overlaps"),
            (
                format!(r#"{{"a":{}}}"#, entry("F32", "[4]", 4, 20)),
                20,
                "bytes 0 to 4 belong to no tensor",
            ),
            (format!(r#"{{"a":{}}}"#, entry("F32", "[4]", 0, 12)), 12, "cannot lie"),
            (format!(r#"{{"a":{}}}"#, entry("F32", "[4]", 16, 0)), 16, "cannot lie"),
            (format!(r#"{{"a":{}}}"#, entry("F99", "[4]", 0, 16)), 16, "cannot lie"),
            (format!(r#"{{"a":{}}}"#, entry("F4", "[3]", 0, 1)), 1, "cannot lie"),
            (
                format!(r#"{{"a":{}}}"#, entry("F32", "[4611686018427387904,4]", 0, 0)),
                0,
                "cannot lie",
            ),
            (
                format!(r#"{{"a":{}}}"#, entry("F32", "[1,1,1,1,1,1,1,1,1]", 0, 4)),
                4,
                "cannot lie",
            ),
            (format!(r#"{{"{}":{one}}}"#, "x".repeat(600)), 16, "too long a name"),
            ("[1]".to_owned(), 0, "does not parse"),
            ("{".to_owned(), 0, "does not parse"),
            (
                format!("{}1{}", "[".repeat(5000), "]".repeat(5000)),
                0,
                "does not parse",
            ),
        ] {
            let error = read(&file(&header, &vec![0; data])).expect_err(&header).to_string();
            assert!(error.contains(reason), "{error:?} does not say {reason:?}");
            assert!(error.contains("download it again"), "{error}");
        }
        for bytes in [&[][..], &[1, 2, 3], &u64::MAX.to_le_bytes(), &9u64.to_le_bytes()] {
            assert!(read(bytes).is_err());
        }
    }

    /// Writes files that hold the named tensors of one element each.
    fn sharded(shards: &[(&str, &[&str])], index: Option<&str>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, tensors) in shards {
            let entries: Vec<String> = tensors
                .iter()
                .enumerate()
                .map(|(at, tensor)| {
                    let (from, to) = (at * 2, at * 2 + 2);
                    format!(r#""{tensor}":{{"dtype":"F16","shape":[1],"data_offsets":[{from},{to}]}}"#)
                })
                .collect();
            let header = format!("{{{}}}", entries.join(","));
            fs::write(folder.path().join(name), file(&header, &vec![0; tensors.len() * 2])).unwrap();
        }
        if let Some(map) = index {
            fs::write(folder.path().join(INDEX), format!(r#"{{"weight_map":{{{map}}}}}"#)).unwrap();
        }
        folder
    }

    const ONE: &str = "model-00001-of-00002.safetensors";
    const TWO: &str = "model-00002-of-00002.safetensors";

    #[test]
    fn shards() {
        let map = format!(r#""a":"{ONE}","b":"{TWO}","c":"{TWO}""#);
        let folder = sharded(&[(ONE, &["a"]), (TWO, &["b", "c"])], Some(&map));
        assert_eq!(open(folder.path()).unwrap().keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        let folder = sharded(&[(ONE, &["a"]), (TWO, &["b"])], None);
        assert_eq!(open(folder.path()).unwrap().len(), 2);
    }

    #[test]
    fn incomplete_sets() {
        let map = format!(r#""a":"{ONE}","b":"{TWO}""#);
        let cases = [
            (sharded(&[(ONE, &["a"])], Some(&map)), format!("{TWO} is missing")),
            (sharded(&[(ONE, &["a"])], None), format!("{TWO} is missing")),
            (sharded(&[], None), "has no model.safetensors".to_owned()),
            (
                sharded(&[(ONE, &["a"]), (TWO, &[])], Some(&map)),
                "which it does not have".to_owned(),
            ),
            (
                sharded(&[(ONE, &["a", "x"]), (TWO, &["b"])], Some(&map)),
                "does not say that".to_owned(),
            ),
            (
                sharded(&[(ONE, &["a"]), (TWO, &["a"])], None),
                "in two files".to_owned(),
            ),
            (
                sharded(&[], Some(r#""a":"../secret.safetensors""#)),
                "not the name of a shard".to_owned(),
            ),
            (sharded(&[], Some("")), "names 0 files".to_owned()),
        ];
        for (folder, reason) in cases {
            let error = open(folder.path()).unwrap_err().to_string();
            assert!(error.contains(&reason), "{error:?} does not say {reason:?}");
        }
    }

    proptest! {
        /// Any bytes give either tensors that lie within the file, or an error.
        #[test]
        fn arbitrary_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..64), flip in any::<proptest::sample::Index>(), with: u8) {
            let _ = read(&bytes);
            let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
            bytes = file(header, &[0; 8]);
            let at = flip.index(bytes.len());
            bytes[at] = with;
            if let Ok(tensors) = read(&bytes) {
                for tensor in tensors {
                    let size = tensor.shape.iter().product::<u64>() * tensor.dtype.bits() / 8;
                    prop_assert!(tensor.offset + size <= bytes.len() as u64);
                }
            }
        }
    }
}
