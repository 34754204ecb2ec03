//! The `model` field of a multipart form (RFC 7578). The form itself is not parsed here; only who answers is decided.

use std::io::Read;

/// Bytes of one part's headers.
const MAX_PART_HEADER_BYTES: usize = 8 << 10;

/// Bytes of a model name.
const MAX_NAME_BYTES: usize = 4 << 10;

/// Bytes read at once.
const BLOCK_BYTES: usize = 64 << 10;

/// The boundary that a content type names.
pub(crate) fn boundary(content_type: &str) -> Option<&str> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    parameters.split(';').find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        let value = value.trim().trim_matches('"');
        // RFC 2046 section 5.1.1: 1 to 70 characters.
        (key.trim().eq_ignore_ascii_case("boundary") && (1..=70).contains(&value.len())).then_some(value)
    })
}

/// The value of the field `model`, wherever in the form it is. The reader is read in blocks: a file may precede it.
pub(crate) fn model(mut reader: impl Read, boundary: &str) -> Option<String> {
    let delimiter = format!("--{boundary}\r\n");
    let keep = delimiter.len() + MAX_PART_HEADER_BYTES + MAX_NAME_BYTES;
    let mut window: Vec<u8> = Vec::with_capacity(keep + BLOCK_BYTES);
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        let read = reader.read(&mut block).ok()?;
        window.extend_from_slice(&block[..read]);
        let mut from = 0;
        while let Some(at) = find(&window[from..], delimiter.as_bytes()) {
            let part = &window[from + at + delimiter.len()..];
            if read > 0 && part.len() < MAX_PART_HEADER_BYTES + MAX_NAME_BYTES {
                break; // it may go on in the next block
            }
            if let Some(value) = model_of_part(part) {
                return Some(value);
            }
            from += at + delimiter.len();
        }
        if read == 0 {
            return None;
        }
        // Everything before the delimiter that is still undecided, or before a delimiter that may just begin, is done.
        let undecided = find(&window[from..], delimiter.as_bytes())
            .map_or(window.len().saturating_sub(delimiter.len()), |at| from + at);
        window.drain(..undecided.max(from).min(window.len()));
    }
}

fn model_of_part(part: &[u8]) -> Option<String> {
    let head_end = find(&part[..part.len().min(MAX_PART_HEADER_BYTES)], b"\r\n\r\n")?;
    let head = std::str::from_utf8(&part[..head_end]).ok()?;
    let is_model = head.lines().any(|line| {
        line.to_ascii_lowercase().starts_with("content-disposition:")
            && line
                .split(';')
                .any(|parameter| matches!(parameter.trim(), "name=\"model\"" | "name=model"))
    });
    if !is_model {
        return None;
    }
    let value = &part[head_end + 4..];
    let end = find(&value[..value.len().min(MAX_NAME_BYTES)], b"\r\n--")?;
    std::str::from_utf8(&value[..end])
        .ok()
        .map(str::to_owned)
        .filter(|name| !name.trim().is_empty())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(haystack, needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(file_bytes: usize) -> Vec<u8> {
        let mut form = b"--XY\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n".to_vec();
        form.extend(std::iter::repeat_n(b'-', file_bytes));
        form.extend_from_slice(
            b"\r\n--XY\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nhf:o/r:Q4\r\n--XY--\r\n",
        );
        form
    }

    // Trap 62
    #[test]
    fn the_model_is_found_behind_a_file_of_any_size() {
        for file_bytes in [
            0,
            1,
            1000,
            BLOCK_BYTES - 100,
            BLOCK_BYTES,
            BLOCK_BYTES + 1,
            5 * BLOCK_BYTES + 77,
        ] {
            assert_eq!(
                model(&form(file_bytes)[..], "XY").as_deref(),
                Some("hf:o/r:Q4"),
                "{file_bytes}"
            );
        }
        assert_eq!(model(&form(10)[..], "AB"), None);
        assert_eq!(model(&b""[..], "XY"), None);
    }

    #[test]
    fn the_boundary_comes_with_or_without_quotes() {
        assert_eq!(boundary("multipart/form-data; boundary=XY"), Some("XY"));
        assert_eq!(
            boundary("multipart/form-data; charset=utf-8; Boundary=\"X Y\""),
            Some("X Y")
        );
        assert_eq!(boundary("application/json"), None);
        assert_eq!(boundary("multipart/form-data; boundary="), None);
    }
}
