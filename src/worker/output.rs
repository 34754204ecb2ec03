//! Conversion of tokens' bytes to text that may be sent: whole code points, and nothing that could be part of a stop
//! string.
//!
//! Pure. The whole text does not depend on how its bytes are distributed over tokens.

/// Converter of token bytes to text, which holds back what is not decided yet.
#[derive(Clone, Debug, Default)]
pub(super) struct TextStream {
    stops: Vec<String>,
    /// Beginning of a code point whose rest has not come.
    partial: Vec<u8>,
    /// Text whose end may be the beginning of a stop string.
    held: String,
    stopped_by: Option<String>,
}

impl TextStream {
    /// Makes a stream that ends at the first of `stops`; empty ones are ignored.
    pub(super) fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(),
            ..Self::default()
        }
    }

    /// True when a stop string was found. Nothing is added to the text after that.
    pub(super) fn stopped(&self) -> bool {
        self.stopped_by.is_some()
    }

    /// Returns the stop string that was found.
    pub(super) fn stopped_by(&self) -> Option<&str> {
        self.stopped_by.as_deref()
    }

    /// Adds the bytes of one token; returns the text that is now certain.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        if self.stopped() {
            return String::new();
        }
        self.partial.extend_from_slice(bytes);
        let decoded = take_whole(&mut self.partial);
        self.add(&decoded)
    }

    /// Ends the text and returns what was held back. A code point that is not complete becomes U+FFFD.
    pub(super) fn finish(&mut self) -> String {
        if self.stopped() {
            return String::new();
        }
        let rest = String::from_utf8_lossy(&std::mem::take(&mut self.partial)).into_owned();
        let mut text = self.add(&rest);
        if !self.stopped() {
            text.push_str(&std::mem::take(&mut self.held));
        }
        text
    }

    fn add(&mut self, text: &str) -> String {
        if self.stops.is_empty() {
            return text.to_owned();
        }
        self.held.push_str(text);
        // The earliest stop string ends the answer; of two at one place the first in the request (`min_by_key` keeps
        // the first).
        let found = self
            .stops
            .iter()
            .filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        if let Some((end, stop)) = found.min_by_key(|&(end, _)| end) {
            self.stopped_by = Some(stop.clone());
            self.held.truncate(end);
            return std::mem::take(&mut self.held);
        }
        let keep = self
            .stops
            .iter()
            .map(|stop| overlap(&self.held, stop))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Returns the number of bytes at the end of `text` that are a proper prefix of `stop`.
pub(super) fn overlap(text: &str, stop: &str) -> usize {
    let (text, stop) = (text.as_bytes(), stop.as_bytes());
    (1..stop.len().min(text.len() + 1))
        .rev()
        .find(|&length| text.ends_with(&stop[..length]))
        // A prefix of a str's bytes may end inside a code point, but `text` ends at a boundary, so it cannot match
        // there.
        .unwrap_or(0)
}

/// Removes all whole code points from the front of `bytes` and returns them. Bytes that can never become one are
/// U+FFFD.
fn take_whole(bytes: &mut Vec<u8>) -> String {
    let mut out = String::new();
    let mut start = 0;
    loop {
        match std::str::from_utf8(&bytes[start..]) {
            Ok(text) => {
                out.push_str(text);
                bytes.clear();
                return out;
            }
            Err(error) => {
                let valid = start + error.valid_up_to();
                out.push_str(std::str::from_utf8(&bytes[start..valid]).unwrap_or_default());
                match error.error_len() {
                    Some(length) => {
                        out.push(char::REPLACEMENT_CHARACTER);
                        start = valid + length;
                    }
                    None => {
                        bytes.drain(..valid);
                        return out;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut stream = TextStream::new(&stops);
        let mut out: Vec<String> = pieces.iter().map(|piece| stream.push(piece)).collect();
        out.push(stream.finish());
        (out, stream.stopped())
    }

    #[test]
    fn a_code_point_split_over_tokens_comes_out_whole() {
        let smile = "😀".as_bytes();
        let (out, _) = run(&[], &[b"a", &smile[..1], &smile[1..3], &smile[3..], b"b"]);
        assert_eq!(out, ["a", "", "", "😀", "b", ""]);
    }

    #[test]
    fn a_dangling_code_point_is_replaced_at_the_end() {
        let (out, _) = run(&[], &[b"a", &"é".as_bytes()[..1]]);
        assert_eq!(out.concat(), "a\u{fffd}");
    }

    #[test]
    fn what_may_begin_a_stop_string_is_held_until_decided() {
        let (out, stopped) = run(&["END"], &[b"x E", b"N", b"x", b" EN", b"D tail"]);
        assert_eq!(out, ["x ", "", "ENx", " ", "", ""]);
        assert!(stopped);
    }

    #[test]
    fn the_earliest_stop_string_wins() {
        let (out, stopped) = run(&["world", "lo w"], &[b"hello world"]);
        assert_eq!(out.concat(), "hel");
        assert!(stopped);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_cutting_gives_the_same_text(
            text in "[a-dé😀]{0,40}",
            stops in proptest::collection::vec("[a-dé]{1,4}", 0..3),
            cuts in proptest::collection::vec(0usize..160, 0..20),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut whole = TextStream::new(&stops);
            let mut expected = whole.push(bytes);
            expected.push_str(&whole.finish());
            let mut cut_up = TextStream::new(&stops);
            let (mut out, mut from) = (String::new(), 0);
            for cut in cuts {
                out.push_str(&cut_up.push(&bytes[from..cut]));
                from = cut;
            }
            out.push_str(&cut_up.finish());
            prop_assert_eq!(out, expected);
            prop_assert_eq!(cut_up.stopped(), whole.stopped());
        }
    }
}
