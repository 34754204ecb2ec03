//! Base64 as Go's `encoding/base64.StdEncoding` accepts it: padded, line breaks tolerated, stray trailing bits ignored.

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::error::DecodeError;

const ENGINE: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Decodes a text to bytes; fails with Go's sentence.
pub(crate) fn decode(text: &str) -> Result<Vec<u8>, DecodeError> {
    if let Ok(bytes) = ENGINE.decode(text) {
        return Ok(bytes);
    }
    // Go skips line breaks, the crate does not. Few texts have some, so the copy is made only after a failure.
    let joined: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    ENGINE.decode(&joined).map_err(|_| {
        DecodeError::new(format!(
            "illegal base64 data at input byte {}",
            first_illegal(text.as_bytes())
        ))
    })
}

/// Returns the index that Go's `CorruptInputError` names: that of the first foreign character or misplaced padding, or
/// the start of an incomplete last group.
fn first_illegal(text: &[u8]) -> usize {
    let mut in_group = 0;
    for (index, &byte) in text.iter().enumerate() {
        match byte {
            b'\r' | b'\n' => {}
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => in_group = (in_group + 1) % 4,
            // Padding fills a group of four characters, of which at least two are data.
            b'=' if in_group >= 2 => return after_padding(text, index, in_group),
            _ => return index,
        }
    }
    text.len() - in_group
}

/// Returns the index of the first byte behind complete padding, or the length if there is none.
fn after_padding(text: &[u8], first: usize, in_group: usize) -> usize {
    let mut missing = 4 - in_group;
    for (index, &byte) in text.iter().enumerate().skip(first) {
        match byte {
            b'\r' | b'\n' => {}
            b'=' if missing > 0 => missing -= 1,
            _ => return index,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_padded_text_with_line_breaks_decodes() {
        for (text, expected) in [("", &b""[..]), ("aGk=", b"hi"), ("aG\nk=\r\n", b"hi"), ("aGl=", b"hi")] {
            assert_eq!(decode(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn the_offending_byte_is_named() {
        for (text, at) in [
            ("%%%", 0),
            ("data:image/png;base64,aGk=", 4),
            ("aGk", 0),
            ("aGkxaG", 4),
            ("aGk=x", 4),
            ("a_b=", 1),
        ] {
            assert_eq!(
                decode(text).unwrap_err().to_string(),
                format!("illegal base64 data at input byte {at}")
            );
        }
    }
}
