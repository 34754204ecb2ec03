//! Multipart forms (RFC 7578), read as leniently as Go's `mime/multipart` reads them.
//!
//! [`model`] finds the field that decides who answers a form, without keeping the form in memory; [`parts`] returns the
//! parts of a form that is in memory.

use std::io::{self, BufRead};

/// Largest headers of one part in bytes.
const MAX_PART_HEADER_BYTES: usize = 8 << 10;

/// Longest model name in bytes.
const MAX_NAME_BYTES: usize = 4 << 10;

/// Most bytes of a line that are read at once; a longer line comes in pieces.
const MAX_LINE_BYTES: usize = 8 << 10;

/// Most parts of one form.
const MAX_PARTS: usize = 1000;

/// Part of a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FormPart<'a> {
    pub(crate) name: String,
    pub(crate) is_file: bool,
    pub(crate) bytes: &'a [u8],
}

/// Returns the boundary that a content type names; `None` if it is no form.
pub(crate) fn boundary(content_type: &str) -> Option<String> {
    let (kind, _) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    // RFC 2046 section 5.1.1: 1 to 70 characters.
    parameter(content_type, |name| name == "boundary").filter(|value| (1..=70).contains(&value.len()))
}

/// Returns the value of the field `model`, wherever in the form it stands. Memory is bounded, although a file of any
/// size may precede the field.
pub(crate) fn model(reader: impl BufRead, boundary: &str) -> Option<String> {
    Form::new(reader, boundary).model()
}

/// Returns the parts of a form; `None` if it breaks off or has more than [`MAX_PARTS`].
pub(crate) fn parts<'a>(form: &'a [u8], boundary: &str) -> Option<Vec<FormPart<'a>>> {
    let mut reader = Form::new(form, boundary);
    let mut parts = Vec::new();
    let mut follows = reader.skip_part()?;
    while follows {
        if parts.len() == MAX_PARTS {
            return None;
        }
        let Disposition { name, is_file } = reader.disposition()?;
        let start = form.len() - reader.reader.len();
        follows = reader.skip_part()?;
        // The reader stands behind the delimiter, and the line end before the delimiter is no content.
        let behind = reader.reader.len() + reader.line.len() + reader.line_end().len();
        let bytes = &form[start..form.len().saturating_sub(behind).max(start)];
        parts.extend(name.map(|name| FormPart { name, is_file, bytes }));
    }
    Some(parts)
}

/// Reader of a form, line by line.
struct Form<R> {
    reader: R,
    delimiter: Vec<u8>,
    /// Last line, or piece of one, that was read.
    line: Vec<u8>,
    /// Last two bytes that were read: a line may come in pieces, and so may its end.
    tail: [u8; 2],
    /// Line end of this form, as the first delimiter has it.
    line_end: Option<&'static [u8]>,
}

/// Kind of a line.
enum Line {
    Content,
    Delimiter,
    LastDelimiter,
}

/// `Content-Disposition` of a part.
#[derive(Default)]
struct Disposition {
    name: Option<String>,
    /// True when the part has a file name, whatever its other parameters.
    is_file: bool,
}

impl<R: BufRead> Form<R> {
    fn new(reader: R, boundary: &str) -> Self {
        Self {
            delimiter: format!("--{boundary}").into_bytes(),
            reader,
            line: Vec::new(),
            // As if a line had just ended: the first delimiter may stand at the very start of the form.
            tail: *b"\r\n",
            line_end: None,
        }
    }

    fn model(&mut self) -> Option<String> {
        while self.skip_part()? {
            let Disposition { name, is_file } = self.disposition()?;
            // Go's `FormValue` does not look at files either.
            if name.as_deref() == Some("model") && !is_file {
                return self.value();
            }
        }
        None
    }

    fn line_end(&self) -> &'static [u8] {
        self.line_end.unwrap_or(b"\n")
    }

    /// Reads the next line or piece of a line; `None` at the end of the form.
    fn next(&mut self) -> Option<Line> {
        let starts = self.tail.ends_with(self.line_end());
        self.line.clear();
        let mut limited = io::Read::take(&mut self.reader, MAX_LINE_BYTES as u64);
        limited.read_until(b'\n', &mut self.line).ok()?;
        self.tail = match self.line[..] {
            [] => return None,
            [last] => [self.tail[1], last],
            [.., before, last] => [before, last],
        };
        Some(self.kind(starts))
    }

    /// Returns the kind of the line. `starts` is true if it begins at a place where a delimiter may.
    fn kind(&mut self, starts: bool) -> Line {
        let Some(rest) = self.line.strip_prefix(&self.delimiter[..]).filter(|_| starts) else {
            return Line::Content;
        };
        // Go accepts blanks and any line end behind the last delimiter.
        if rest.trim_ascii_end() == b"--" {
            return Line::LastDelimiter;
        }
        // Go, too, takes the line end of the first delimiter for that of the whole form, even a bare `\n`, which the
        // RFC forbids.
        let line_end = *self
            .line_end
            .get_or_insert(if rest.ends_with(b"\r\n") { b"\r\n" } else { b"\n" });
        match rest.strip_suffix(line_end) {
            Some(blanks) if blanks.iter().all(|byte| matches!(byte, b' ' | b'\t')) => Line::Delimiter,
            _ => Line::Content,
        }
    }

    /// Skips to the next delimiter; returns true if a part follows it.
    fn skip_part(&mut self) -> Option<bool> {
        loop {
            match self.next()? {
                Line::Content => {}
                Line::Delimiter => return Some(true),
                Line::LastDelimiter => return Some(false),
            }
        }
    }

    /// Reads the headers of a part. Headers that are too long count as none.
    fn disposition(&mut self) -> Option<Disposition> {
        let (mut found, mut read) = (Disposition::default(), 0);
        loop {
            self.next()?;
            read += self.line.len();
            if read > MAX_PART_HEADER_BYTES {
                return Some(Disposition::default());
            }
            let Ok(line) = std::str::from_utf8(self.line.trim_ascii_end()) else {
                continue;
            };
            if line.is_empty() {
                return Some(found);
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-disposition")
            {
                found = Disposition {
                    name: parameter(value, |name| name == "name"),
                    // Also `filename*`, the encoded form of RFC 5987.
                    is_file: parameter(value, |name| name.starts_with("filename")).is_some(),
                };
            }
        }
    }

    /// Reads the content of a part as text.
    fn value(&mut self) -> Option<String> {
        let mut value = Vec::new();
        while let Line::Content = self.next()? {
            value.extend_from_slice(&self.line);
            if value.len() > MAX_NAME_BYTES {
                return None;
            }
        }
        // The line end before a delimiter belongs to the delimiter (RFC 2046 section 5.1.1).
        let value = value.strip_suffix(self.line_end())?;
        String::from_utf8(value.to_vec()).ok()
    }
}

/// Returns the value of the first parameter of a header (`…; name=value; name="quoted; value"`) whose lower-case name
/// is `wanted`.
fn parameter(header: &str, wanted: impl Fn(&str) -> bool) -> Option<String> {
    let (_, mut rest) = header.split_once(';')?;
    loop {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        // A word without a value may stand before the name, as in `x; name="model"`.
        let name = name.rsplit(';').next().unwrap_or_default();
        if wanted(&name.trim().to_ascii_lowercase()) {
            return Some(value);
        }
        rest = after.trim_start().strip_prefix(';')?;
    }
}

/// Returns the text up to the closing quote, and the rest behind it.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = quoted.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            // Other backslashes are kept, as in Go: old browsers send paths of Windows unescaped.
            '\\' => value.push(match characters.next_if(|(_, next)| matches!(next, '"' | '\\')) {
                Some((_, escaped)) => escaped,
                None => '\\',
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    fn part(head: &str, content: &[u8]) -> Vec<u8> {
        [
            b"--XY\r\nContent-Disposition: form-data; ",
            head.as_bytes(),
            b"\r\n\r\n",
            content,
            b"\r\n",
        ]
        .concat()
    }

    fn form(parts: &[Vec<u8>]) -> Vec<u8> {
        [&parts.concat()[..], b"--XY--\r\n"].concat()
    }

    fn file(content: &[u8]) -> Vec<u8> {
        part("name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav", content)
    }

    fn named(name: &str) -> Vec<u8> {
        part("name=\"model\"", name.as_bytes())
    }

    fn find(form: &[u8]) -> Option<String> {
        model(form, "XY")
    }

    // The field is found without keeping the form in memory (trap 62).
    #[test]
    fn the_model_is_found_before_and_behind_a_file_of_any_size() {
        for file_bytes in [
            0,
            1,
            1000,
            MAX_LINE_BYTES - 2,
            MAX_LINE_BYTES - 1,
            MAX_LINE_BYTES,
            5 * MAX_LINE_BYTES + 77,
        ] {
            for byte in [b'-', b'\n', b'\r', b'x'] {
                let content = vec![byte; file_bytes];
                for parts in [
                    [named("hf:o/r:Q4"), file(&content)],
                    [file(&content), named("hf:o/r:Q4")],
                ] {
                    assert_eq!(find(&form(&parts)).as_deref(), Some("hf:o/r:Q4"), "{file_bytes} {byte}");
                }
            }
        }
        assert_eq!(model(&form(&[named("a")])[..], "AB"), None);
        assert_eq!(find(b""), None);
        assert_eq!(find(&form(&[file(b"x")])), None);
        assert_eq!(find(&form(&[file(b"x"), named("a")])[..130]), None, "cut off");
    }

    #[test]
    fn the_first_field_of_that_name_counts_and_a_file_is_no_field() {
        assert_eq!(find(&form(&[named("a"), named("b")])).as_deref(), Some("a"));
        assert_eq!(find(&form(&[named(""), named("b")])).as_deref(), Some(""));
        let decoys = [
            part("name=\"model\"; filename=\"x\"", b"c"),
            part("name=\"model\"; filename*=UTF-8''x", b"c"),
            part("name=\"Model\"", b"c"),
            part("name=\"models\"", b"c"),
            part("name=\"file\"; filename=\"a; name=model\"", b"c"),
            part("name=\"file\"; filename=\"a\\\"; name=\\\"model\"", b"c"),
        ];
        for decoy in decoys {
            assert_eq!(find(&form(&[decoy, named("b")])).as_deref(), Some("b"));
        }
        for head in [
            "name=model",
            "NAME = \"model\"",
            "x; name=\"model\"",
            "x=\"\\\\\" ; name=\"mod\\el\"; name=model",
        ] {
            let expected = if head.contains("mod\\el") { None } else { Some("a") };
            assert_eq!(find(&form(&[part(head, b"a")])).as_deref(), expected, "{head}");
        }
    }

    #[test]
    fn a_delimiter_stands_alone_on_a_line() {
        let inner = b"--XY\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nfake\r\n--XY";
        for before in ["x", "x\n", "\n"] {
            let content = [before.as_bytes(), inner].concat();
            assert_eq!(
                find(&form(&[file(&content), named("b")])).as_deref(),
                Some("b"),
                "{before:?}"
            );
        }
        let tail = b"--XYZ\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nfake\r\n--XYZ";
        assert_eq!(find(&form(&[file(tail), named("b")])).as_deref(), Some("b"));
        // A preamble, blanks behind the delimiter, Unix line ends, a name of two lines.
        let odd = b"preamble\r\n--XY \t\r\nContent-Disposition: form-data; name=model\r\n\r\na\r\nb\r\n--XY--";
        assert_eq!(find(odd).as_deref(), Some("a\r\nb"));
        let unix = b"--XY\nContent-Disposition: form-data; name=model\n\na\n--XY--";
        assert_eq!(find(unix).as_deref(), Some("a"));
        let ended = [b"--XY--\r\n".to_vec(), named("a")].concat();
        assert_eq!(find(&ended), None, "what follows the last delimiter is no part");
        assert_eq!(find(&form(&[named(&"n".repeat(MAX_NAME_BYTES + 1))])), None);
    }

    #[test]
    fn a_whole_form_has_its_parts() {
        let whole = form(&[file(b"-\r\n-"), named("hf:o/r:Q4"), part("x=y", b"nameless"), named("")]);
        let field = |bytes| FormPart {
            name: "model".into(),
            is_file: false,
            bytes,
        };
        let expected = [
            FormPart {
                name: "file".into(),
                is_file: true,
                bytes: b"-\r\n-",
            },
            field(b"hf:o/r:Q4"),
            field(b""),
        ];
        assert_eq!(parts(&whole, "XY").unwrap(), expected);
        let with_preamble = [b"preamble\r\n", &whole[..]].concat();
        assert_eq!(parts(&with_preamble, "XY").unwrap(), expected);
        assert_eq!(parts(b"--XY--\r\n", "XY"), Some(Vec::new()));
        assert_eq!(parts(&whole[..whole.len() - 8], "XY"), None);
        assert_eq!(parts(&whole, "AB"), None);
        assert_eq!(parts(b"", "XY"), None);
        // Nothing at all between the headers and the delimiter.
        let empty = b"--XY\r\ncontent-disposition: form-data; name=\"a\"; filename=\"\"\r\n\r\n--XY--";
        let found = parts(empty, "XY").unwrap();
        assert_eq!((found[0].is_file, found[0].bytes), (true, &b""[..]));
        assert_eq!(parts(&form(&vec![named("a"); MAX_PARTS + 1]), "XY"), None);
    }

    #[test]
    fn the_boundary_comes_with_or_without_quotes() {
        for (content_type, expected) in [
            ("multipart/form-data; boundary=XY", Some("XY")),
            ("multipart/form-data; charset=utf-8; Boundary=\"X Y\"", Some("X Y")),
            ("Multipart/Form-Data;boundary=\"X;Y=\\\"Z\"; a=b", Some("X;Y=\"Z")),
            ("multipart/form-data; boundary=----a=b; x", Some("----a=b")),
            ("multipart/form-data; a=\"boundary=no\"; boundary=yes", Some("yes")),
            ("application/json", None),
            ("application/json; boundary=XY", None),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data; boundary=\"XY", None),
            ("multipart/form-data", None),
        ] {
            assert_eq!(boundary(content_type).as_deref(), expected, "{content_type}");
        }
    }

    proptest! {
        #[test]
        fn the_way_a_form_is_cut_changes_nothing(
            content in prop::collection::vec(prop::sample::select(vec!["--XY", "--XY--", "\r\n", "\n", "x", "model"]), 0..40),
            first in any::<bool>(),
            size in 1usize..100,
        ) {
            let content = content.concat().into_bytes();
            let parts = if first { [named("a"), file(&content)] } else { [file(&content), named("a")] };
            let form = form(&parts);
            prop_assert_eq!(model(BufReader::with_capacity(size, &form[..]), "XY"), find(&form));
        }
    }
}
