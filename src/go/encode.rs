//! Encoder that writes JSON as Go's `encoding/json` does. Every answer of hubllama's own is written by it.
//!
//! The differences from serde_json: `<`, `>`, `&`, U+2028 and U+2029 are escaped inside strings (which also keeps
//! line splitters that take U+2028 for a line end from cutting a frame), whole floats have no `.0`, and exponents
//! appear only below 1e-6 and from 1e21 on.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Map, Number, Serializer, Value};

/// Largest magnitude up to which every integer is exact in an `f64`: 2^53.
const EXACT_INTEGERS: f64 = 9_007_199_254_740_992.0;

/// Encodes a value.
///
/// # Errors
/// Returns an error if the value's `Serialize` fails, or if a map has keys that are not strings.
pub fn to_vec(value: &(impl Serialize + ?Sized)) -> serde_json::Result<Vec<u8>> {
    // Enough for most frames of a stream.
    let mut bytes = Vec::with_capacity(256);
    value.serialize(&mut Serializer::with_formatter(&mut bytes, GoFormatter))?;
    Ok(bytes)
}

/// Encodes a value as text.
///
/// # Errors
/// Returns the errors of [`to_vec`].
pub fn to_string(value: &(impl Serialize + ?Sized)) -> serde_json::Result<String> {
    let bytes = to_vec(value)?;
    String::from_utf8(bytes).map_err(serde::ser::Error::custom)
}

/// Sorts the keys of every object by their bytes, as Go does when it writes a map.
#[must_use]
pub fn sorted(value: Value) -> Value {
    match value {
        Value::Array(list) => list.into_iter().map(sorted).collect(),
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
            Value::Object(pairs.into_iter().collect())
        }
        scalar => scalar,
    }
}

/// Returns a tool call's arguments as Ollama passes them on: keys keep their order at the top and are sorted below,
/// numbers have gone through `f64` (`1.0` is `1`, integers beyond 2^53 lose digits).
///
/// Ollama decodes them into an ordered map whose values are `any`, that is plain Go maps and `float64`.
#[must_use]
pub fn tool_arguments(arguments: Map<String, Value>) -> Map<String, Value> {
    arguments
        .into_iter()
        .map(|(key, value)| (key, sorted(through_f64(value))))
        .collect()
}

fn through_f64(value: Value) -> Value {
    match value {
        Value::Number(number) => normalized(&number).map_or(Value::Null, Value::Number),
        Value::Array(list) => list.into_iter().map(through_f64).collect(),
        Value::Object(map) => Value::Object(map.into_iter().map(|(key, value)| (key, through_f64(value))).collect()),
        other => other,
    }
}

/// Returns a number as `f64`, or as an integer if that is exact, so that other encoders (a chat template's, for
/// example) do not write `1.0` either.
fn normalized(number: &Number) -> Option<Number> {
    let float = number.as_f64()?;
    let is_whole = float.fract() == 0.0 && float.abs() <= EXACT_INTEGERS;
    // An integer cannot hold the negative zero, which Go writes as `-0`.
    if is_whole && !(float == 0.0 && float.is_sign_negative()) {
        Some(Number::from(float as i64))
    } else {
        Number::from_f64(float)
    }
}

struct GoFormatter;

impl Formatter for GoFormatter {
    fn write_f32<W: ?Sized + Write>(&mut self, writer: &mut W, value: f32) -> io::Result<()> {
        // Not widened to `f64`: the digits are the shortest that identify the number among those of 32 bits.
        let magnitude = value.abs();
        if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) {
            write_exponent(writer, &format!("{value:e}"))
        } else {
            write!(writer, "{value}")
        }
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let magnitude = value.abs();
        if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) {
            write_exponent(writer, &format!("{value:e}"))
        } else {
            write!(writer, "{value}")
        }
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let bytes = fragment.as_bytes();
        let mut written = 0;
        for (at, byte) in bytes.iter().enumerate() {
            let (escape, length): (&[u8], usize) = match byte {
                b'<' => (b"\\u003c", 1),
                b'>' => (b"\\u003e", 1),
                b'&' => (b"\\u0026", 1),
                // 0xe2 is the first of the three bytes of both separators.
                0xe2 if bytes[at..].starts_with("\u{2028}".as_bytes()) => (b"\\u2028", 3),
                0xe2 if bytes[at..].starts_with("\u{2029}".as_bytes()) => (b"\\u2029", 3),
                _ => continue,
            };
            writer.write_all(&bytes[written..at])?;
            writer.write_all(escape)?;
            written = at + length;
        }
        writer.write_all(&bytes[written..])
    }

    /// Writes raw JSON as Go writes a `json.RawMessage`: compacted and with its strings escaped; numbers and the order
    /// of keys stay.
    fn write_raw_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(quote) = rest.find('"') {
            write_compact(writer, &rest[..=quote])?;
            rest = &rest[quote + 1..];
            let end = string_end(rest);
            self.write_string_fragment(writer, &rest[..end])?;
            rest = &rest[end..];
            if let Some(behind) = rest.strip_prefix('"') {
                writer.write_all(b"\"")?;
                rest = behind;
            }
        }
        write_compact(writer, rest)
    }
}

/// Writes a number in Rust's exponent form as Go's: `1e+21`, not `1e21`.
fn write_exponent<W: ?Sized + Write>(writer: &mut W, text: &str) -> io::Result<()> {
    match text.split_once('e') {
        Some((mantissa, exponent)) if !exponent.starts_with('-') => write!(writer, "{mantissa}e+{exponent}"),
        // No padding: `encoding/json` strips the zero that `strconv` puts into `1e-07`.
        _ => writer.write_all(text.as_bytes()),
    }
}

/// Returns the index of the closing quote of a string whose opening quote stands before `text`.
fn string_end(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at,
            _ => {}
        }
    }
    text.len()
}

fn write_compact<W: ?Sized + Write>(writer: &mut W, text: &str) -> io::Result<()> {
    text.split([' ', '\t', '\n', '\r'])
        .try_for_each(|piece| writer.write_all(piece.as_bytes()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use serde_json::value::RawValue;

    use super::*;

    fn check(value: &(impl Serialize + ?Sized), expected: &str) {
        assert_eq!(to_string(value).unwrap(), expected);
    }

    // Line separators are escaped, so that no client's line splitter cuts a frame, and so is markup (traps 34, 63).
    #[test]
    fn strings() {
        for (text, expected) in [
            ("plain", r#""plain""#),
            ("<x> & y", r#""\u003cx\u003e \u0026 y""#),
            ("\u{2028}\u{2029}\u{2027}\u{202a}", "\"\\u2028\\u2029\u{2027}\u{202a}\""),
            ("\u{8}\u{c}\n\r\t", r#""\b\f\n\r\t""#),
            ("\0\u{1}\u{b}\u{1f}", r#""\u0000\u0001\u000b\u001f""#),
            ("\u{7f}\u{85}", "\"\u{7f}\u{85}\""),
            ("quote \" slash / back \\", r#""quote \" slash / back \\""#),
            ("é 漢 🦙 â", "\"é 漢 🦙 â\""),
            ("a<", r#""a\u003c""#),
            ("<\n>", r#""\u003c\n\u003e""#),
            ("", r#""""#),
        ] {
            check(text, expected);
        }
        check(&json!({"<k>": 1}), r#"{"\u003ck\u003e":1}"#);
    }

    #[test]
    fn floats() {
        for (value, expected) in [
            (1.0, "1"),
            (0.0, "0"),
            (-0.0, "-0"),
            (-2.5, "-2.5"),
            (0.1, "0.1"),
            (100_000.0, "100000"),
            (0.00001, "0.00001"),
            (0.000001, "0.000001"),
            (0.0000001, "1e-7"),
            (-1.5e-9, "-1.5e-9"),
            (1e-10, "1e-10"),
            (1e20, "100000000000000000000"),
            // 2^63: the shortest digits, filled up with zeros.
            (9_223_372_036_854_775_808.0, "9223372036854776000"),
            (1e21, "1e+21"),
            (1.25e22, "1.25e+22"),
            (1e100, "1e+100"),
            (f64::NAN, "null"),
        ] {
            check(&value, expected);
        }
        check(&0.1f32, "0.1");
        check(&1e-5f32, "0.00001");
        check(&1e-7f32, "1e-7");
        check(&-0.063_402_97_f32, "-0.06340297");
        check(&f64::from(0.1f32), "0.10000000149011612");
        check(&16_777_216f32, "16777216");
        check(&1e21f32, "1e+21");
    }

    #[test]
    fn integers_are_exact() {
        check(&u64::MAX, "18446744073709551615");
        check(&i64::MIN, "-9223372036854775808");
    }

    #[test]
    fn raw_values_are_compacted_and_escaped() {
        for (raw, expected) in [
            (
                r#" { "b" : 1.0 , "a" : [ "x y" , "<\">" ] } "#,
                r#"{"b":1.0,"a":["x y","\u003c\"\u003e"]}"#,
            ),
            (r#""\\""#, r#""\\""#),
            (r#"[ "a\\", "b" ]"#, r#"["a\\","b"]"#),
            ("[\n\t1e400,\r\ntrue ]", "[1e400,true]"),
        ] {
            check(&RawValue::from_string(raw.to_owned()).unwrap(), expected);
        }
    }

    #[test]
    fn sorting_reaches_every_level() {
        let value = json!({"b": {"z": 1, "a": [{"d": 1, "c": 2}]}, "B": 2, "é": 3, "a": 4});
        check(&sorted(value), r#"{"B":2,"a":4,"b":{"a":[{"c":2,"d":1}],"z":1},"é":3}"#);
    }

    #[test]
    fn tool_arguments_keep_their_order_only_at_the_top() {
        let text =
            r#"{"b":1.0,"a":"<x>","n":{"z":1,"y":[2.50,{"q":1e3,"p":-0.0}]},"big":9007199254740993,"huge":1e300}"#;
        let arguments = serde_json::from_str(text).unwrap();
        let expected = concat!(
            r#"{"b":1,"a":"\u003cx\u003e","n":{"y":[2.5,{"p":-0,"q":1000}],"z":1},"#,
            r#""big":9007199254740992,"huge":1e+300}"#
        );
        check(&tool_arguments(arguments), expected);
    }
}
