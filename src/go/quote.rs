//! Texts and bytes between quotation marks, as Go prints them in error texts.

/// Returns a text as Go's `%q` prints it.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            other => push_printable(&mut quoted, other),
        }
    }
    quoted.push('"');
    quoted
}

/// Returns a byte as `quoteChar` of Go's JSON scanner prints it: between single quotes, as a Latin-1 character.
///
/// The scanner works on bytes, so the first byte of a multi-byte character is shown as a character of its own.
pub(super) fn quote_byte(byte: u8) -> String {
    match byte {
        b'\'' => "'\\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => "'\\\\'".to_owned(),
        byte => {
            let mut quoted = String::from("'");
            push_printable(&mut quoted, char::from(byte));
            quoted.push('\'');
            quoted
        }
    }
}

/// Returns a text as package `time` quotes it: every byte outside printable ASCII is `\xNN`.
pub(super) fn quote_ascii(text: &str) -> String {
    let mut quoted = String::from('"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => {
                quoted.push('\\');
                quoted.push(char::from(byte));
            }
            // Package `time` has its own small quoting, which leaves even DEL as it is.
            b' '..0x80 => quoted.push(char::from(byte)),
            _ => quoted.push_str(&format!("\\x{byte:02x}")),
        }
    }
    quoted.push('"');
    quoted
}

fn push_printable(out: &mut String, character: char) {
    match character {
        '\u{7}' => out.push_str("\\a"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{b}' => out.push_str("\\v"),
        other if u32::from(other) < 0x20 || other == '\u{7f}' => out.push_str(&format!("\\x{:02x}", u32::from(other))),
        // Go's `strconv.IsPrint` knows no-break space and soft hyphen as unprintable, Rust does not call them control.
        other if other.is_control() || other == '\u{a0}' || other == '\u{ad}' => {
            out.push_str(&format!("\\u{:04x}", u32::from(other)));
        }
        other => out.push(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_follows_go() {
        assert_eq!(quote("a \"b\" \\ \n é"), r#""a \"b\" \\ \n é""#);
        assert_eq!(quote_byte(0x1f), "'\\x1f'");
        assert_eq!(quote_byte(0xef), "'ï'");
        assert_eq!(quote_byte(b'\''), "'\\''");
        assert_eq!(quote_ascii("1µ"), r#""1\xc2\xb5""#);
    }
}
