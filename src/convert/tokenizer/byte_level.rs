//! Byte-level BPE, as GPT-2 introduced it: every byte of a text is written as one printable letter, so that a
//! vocabulary of texts can hold any bytes.

use serde_json::{Value as Json, json};

/// Returns the `ByteLevel` decoder of a `tokenizer.json`, which turns letters into bytes again.
pub(super) fn decoder() -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true})
}

/// Returns the letter of each byte (`bytes_to_unicode` in GPT-2's `encoder.py`): printable bytes stand for themselves,
/// all others for the letters from U+0100 on, in order.
pub(super) fn letters() -> [char; 256] {
    let mut next = 256;
    std::array::from_fn(|byte| {
        let is_itself = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if is_itself { byte as u32 } else { next };
        next += u32::from(!is_itself);
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_letters_of_bytes() {
        let letters = letters();
        assert_eq!(
            (letters[b'a' as usize], letters[b' ' as usize], letters[0xff]),
            ('a', '\u{120}', '\u{ff}')
        );
        assert_eq!(
            (letters[0], letters[0xad], letters[0x7f]),
            ('\u{100}', '\u{143}', '\u{121}')
        );
    }
}
