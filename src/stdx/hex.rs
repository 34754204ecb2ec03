//! Hexadecimal text, in which hashes and commits are written.

/// Returns `bytes` as lowercase hexadecimal digits, two for each byte.
#[must_use]
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bytes = bytes.as_ref();
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0xf)]));
    }
    text
}

/// Returns true when `text` consists of exactly `digits` lowercase hexadecimal digits. Such a text is safe as a file
/// name.
#[must_use]
pub fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_in_lowercase() {
        assert_eq!(encode([0x00, 0x1f, 0xab, 0xff]), "001fabff");
        assert_eq!(encode(""), "");
        assert!(is_hex("001fabff", 8));
        for wrong in ["001fabf", "001FABFF", "001fabfg", "001fab/f"] {
            assert!(!is_hex(wrong, 8), "{wrong}");
        }
    }
}
