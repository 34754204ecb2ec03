//! Reading of the small files of a checkpoint, with limits: the files are not trusted, and a conversion must not run
//! out of memory because of one.

use std::{fs::File, io::Read, path::Path};

use serde_json::{Map, Value};

use super::ConvertError;

/// Limit for configuration files, which have a few kilobytes, and model cards, which have less than a megabyte.
pub(super) const MAX_SMALL_BYTES: u64 = 16 << 20;
/// Limit for tokenizers. The largest published `tokenizer.json` files have about 40 MB.
pub(super) const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Reads a file of at most `limit` bytes.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ConvertError> {
    let file = File::open(path).map_err(ConvertError::io(path, "opened"))?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large from one that just fits.
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(ConvertError::io(path, "read"))?;
    if bytes.len() as u64 > limit {
        return Err(ConvertError::damaged(path, format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

/// Reads a file of at most `limit` bytes; `None` if it does not exist.
pub(super) fn read_if_there(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, ConvertError> {
    if path.is_file() {
        read(path, limit).map(Some)
    } else {
        Ok(None)
    }
}

/// Reads a small file; `None` if it does not exist.
pub(super) fn bytes_if_there(path: &Path) -> Result<Option<Vec<u8>>, ConvertError> {
    read_if_there(path, MAX_SMALL_BYTES)
}

/// Reads a small UTF-8 file; `None` if it does not exist.
pub(super) fn text_if_there(path: &Path) -> Result<Option<String>, ConvertError> {
    let Some(bytes) = read_if_there(path, MAX_SMALL_BYTES)? else {
        return Ok(None);
    };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| ConvertError::damaged(path, "it is not UTF-8"))
}

/// Reads a JSON file of at most `limit` bytes; `None` if it does not exist.
pub(super) fn json_if_there(path: &Path, limit: u64) -> Result<Option<Value>, ConvertError> {
    let Some(bytes) = read_if_there(path, limit)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| ConvertError::damaged(path, error.to_string()))
}

/// Reads a small file that holds a JSON object; `None` if it does not exist.
pub(super) fn object_if_there(path: &Path) -> Result<Option<Map<String, Value>>, ConvertError> {
    match json_if_there(path, MAX_SMALL_BYTES)? {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(ConvertError::damaged(path, "it is not an object")),
    }
}
