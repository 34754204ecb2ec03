//! Multipart forms (RFC 7578): the `model` field of one that is still being read, which decides who answers it, and the
//! parts of one that is in memory.

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

/// Parts of one form.
const MAX_PARTS: usize = 1000;

/// One part of a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part<'a> {
    /// The field's name.
    pub(crate) name: &'a str,
    /// Whether it is a file.
    pub(crate) is_file: bool,
    /// What it holds.
    pub(crate) bytes: &'a [u8],
}

/// The parts of a whole form; `None` if it breaks off, or has more than anybody sends.
pub(crate) fn parts<'a>(form: &'a [u8], boundary: &str) -> Option<Vec<Part<'a>>> {
    let delimiter = format!("\r\n--{boundary}");
    // What precedes the first delimiter is no part, and neither is the line break before it.
    let first = delimiter[2..].as_bytes();
    let mut rest = if form.starts_with(first) {
        &form[first.len()..]
    } else {
        &form[find(form, delimiter.as_bytes())? + delimiter.len()..]
    };
    let mut parts = Vec::new();
    while !rest.starts_with(b"--") {
        let content = &rest[find(rest, b"\r\n")? + 2..];
        let end = find(content, delimiter.as_bytes())?;
        if parts.len() == MAX_PARTS {
            return None;
        }
        parts.extend(part(&content[..end]));
        rest = &content[end + delimiter.len()..];
    }
    Some(parts)
}

/// A part; `None` if it has no name.
fn part(content: &[u8]) -> Option<Part<'_>> {
    let head_end = find(&content[..content.len().min(MAX_PART_HEADER_BYTES)], b"\r\n\r\n")?;
    let head = std::str::from_utf8(&content[..head_end]).ok()?;
    let disposition = head.lines().find(|line| {
        line.get(.."content-disposition:".len())
            .is_some_and(|start| start.eq_ignore_ascii_case("content-disposition:"))
    })?;
    let parameter = |wanted: &str| {
        disposition.split(';').find_map(|parameter| {
            let (key, value) = parameter.split_once('=')?;
            key.trim()
                .eq_ignore_ascii_case(wanted)
                .then_some(value.trim().trim_matches('"'))
        })
    };
    Some(Part {
        name: parameter("name")?,
        is_file: parameter("filename").is_some(),
        bytes: &content[head_end + 4..],
    })
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
    fn a_whole_form_has_its_parts() {
        let form = form(3);
        let expected = [
            Part {
                name: "file",
                is_file: true,
                bytes: b"---",
            },
            Part {
                name: "model",
                is_file: false,
                bytes: b"hf:o/r:Q4",
            },
        ];
        assert_eq!(parts(&form, "XY").unwrap(), expected);
        let with_preamble = [b"preamble\r\n", &form[..]].concat();
        assert_eq!(parts(&with_preamble, "XY").unwrap(), expected);
        assert_eq!(parts(b"--XY--\r\n", "XY"), Some(Vec::new()));
        assert_eq!(parts(&form[..form.len() - 8], "XY"), None);
        assert_eq!(parts(&form, "AB"), None);
        assert_eq!(parts(b"", "XY"), None);
        let empty = b"--XY\r\ncontent-disposition: form-data; name=\"file\"; filename=\"\"\r\n\r\n\r\n--XY--";
        assert_eq!(
            parts(empty, "XY").unwrap(),
            [Part {
                name: "file",
                is_file: true,
                bytes: b""
            }]
        );
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
