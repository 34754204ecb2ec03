//! An answer in a chat template's format.

use std::{
    collections::{HashSet, hash_map::RandomState},
    hash::{BuildHasher, Hasher},
};

use serde_json::{Map, Value};

use super::{
    super::{output::overlap, protocol::ChatSyntax},
    budget::{NestingLimit, ParseBudget},
};
use crate::{
    inference::{Delta, ToolCall},
    llama::{ChatParser, LlamaError, ParseState, ParsedCall, ParsedMessage, PartKind},
};

/// Bytes behind a call that are searched for its closing marker; the longest in llama.cpp's templates has 30.
const MAX_MARKER_BYTES: usize = 64;

/// Reads an answer in a chat template's format.
#[derive(Debug)]
pub(super) struct FormatReader {
    parser: ChatParser,
    thinking_end_tags: Vec<String>,
    control_tokens: Vec<String>,
    hides_thinking: bool,
    /// The raw text.
    whole: String,
    mode: Mode,
    budget: ParseBudget,
    nesting: NestingLimit,
    /// A length up to which the text is known to be in the format.
    good: usize,
    /// Up to here the text was shown, as whatever it is.
    settled: usize,
    /// What stands right before `settled`.
    last: PartKind,
    /// Content and thinking as the parser has them; all of it was shown, less the blanks around a thought.
    content: String,
    thinking: String,
    /// Calls that were shown.
    calls: usize,
    ids: HashSet<String>,
    shows_content: bool,
    shows_thinking: bool,
}

/// How the next piece of text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// With the parser.
    Parse,
    /// Running text of one kind goes on up to a delimiter, and up to this place there is none: no parser is needed.
    Running(PartKind, usize),
    /// The text has left the format: all of it is content.
    Text,
}

impl FormatReader {
    pub(super) fn new(syntax: &ChatSyntax) -> Result<Self, LlamaError> {
        let parser = ChatParser::new(&syntax.rendered)?;
        // Where the prompt ends in the assistant's own words, they are in the parser's view and were not written now.
        let before = parser.parse("").unwrap_or_default();
        Ok(Self {
            parser,
            thinking_end_tags: syntax.rendered.thinking_end_tags.clone(),
            // By their spelling: others, as `<tool_call>`, are words that a text may be about.
            control_tokens: syntax
                .rendered
                .preserved_tokens
                .iter()
                .filter(|token| token.contains('|'))
                .cloned()
                .collect(),
            hides_thinking: syntax.hides_thinking,
            whole: String::new(),
            mode: Mode::Parse,
            budget: ParseBudget::default(),
            nesting: NestingLimit::default(),
            good: 0,
            settled: 0,
            last: before.last,
            shows_content: !before.content.trim().is_empty(),
            shows_thinking: !before.thinking.is_empty(),
            content: before.content,
            thinking: before.thinking,
            calls: before.tool_calls.len(),
            ids: syntax.used_ids.iter().cloned().collect(),
        })
    }

    /// Adds text; returns what can be shown now.
    pub(super) fn push(&mut self, text: &str) -> Delta {
        let mut delta = Delta::default();
        self.add(text, &mut delta);
        if let Mode::Running(kind, from) = self.mode {
            self.run_on(kind, from, &mut delta);
        }
        if self.mode == Mode::Parse && self.budget.allows(self.whole.len()) {
            match self.parse(self.whole.len()) {
                Some(now) => {
                    self.good = self.whole.len();
                    self.show(&now, false, &mut delta);
                }
                None => self.leave(self.whole.len(), &mut delta),
            }
        }
        delta
    }

    /// Adds the last text and ends the answer; returns what was held back.
    pub(super) fn finish(&mut self, text: &str, cut: bool) -> Delta {
        let mut delta = Delta::default();
        self.add(text, &mut delta);
        if self.mode == Mode::Text {
            return delta;
        }
        let Some(now) = self.parse(self.whole.len()) else {
            self.leave(self.whole.len(), &mut delta);
            return delta;
        };
        if self.show(&now, true, &mut delta) {
            self.flush(&now, cut, &mut delta);
        }
        self.mode = Mode::Text;
        delta
    }

    fn add(&mut self, text: &str, delta: &mut Delta) {
        self.whole.push_str(text);
        if self.mode == Mode::Text {
            self.show_content(text, delta);
        } else if let Some(limit) = self.nesting.limit(&self.whole) {
            self.leave(limit + 1, delta);
        }
    }

    /// The first `length` bytes as a message; `None` if they are not the beginning of one.
    fn parse(&mut self, length: usize) -> Option<ParsedMessage> {
        let text = self.whole.get(..length)?;
        self.budget.spend(length);
        let now = match self.parser.parse(text) {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!(%error, "the output parser failed");
                return None;
            }
        };
        match now.state {
            ParseState::Failed => None,
            ParseState::Open => Some(now),
            // Some formats have no end: what does not fit is not looked at.
            ParseState::Matched => {
                let rest = &text[now.end..];
                let mut delimiters = self.parser.delimiters().iter();
                let is_over = rest.trim().is_empty() || delimiters.any(|delimiter| delimiter.starts_with(rest));
                is_over.then_some(now)
            }
        }
    }

    /// Shows running text up to the next delimiter.
    fn run_on(&mut self, kind: PartKind, from: usize, delta: &mut Delta) {
        let delimiters = self.parser.delimiters();
        let rest = &self.whole[from..];
        let to = match delimiters.iter().filter_map(|delimiter| rest.find(delimiter)).min() {
            Some(at) => {
                self.mode = Mode::Parse;
                from + at
            }
            None => {
                let held = delimiters.iter().map(|delimiter| overlap(rest, delimiter)).max();
                let to = self.whole.len() - held.unwrap_or(0);
                self.mode = Mode::Running(kind, to);
                to
            }
        };
        let piece = self.whole[from..to].to_owned();
        (self.good, self.settled, self.last) = (to, to, kind);
        if kind == PartKind::Thinking {
            self.thinking.push_str(&piece);
            self.show_thinking(&piece, delta);
        } else {
            self.content.push_str(&piece);
            self.show_content(&piece, delta);
        }
    }

    /// Shows what `now` has beyond what was shown; `false` if that was the last thing in the format.
    fn show(&mut self, now: &ParsedMessage, end: bool, delta: &mut Delta) -> bool {
        // Where the text stops being a message.
        let mut leaves_at = None;
        let mut calls = Vec::new();
        let mut content = now.content.as_str();
        for (index, call) in now.tool_calls.iter().enumerate().skip(self.calls) {
            // As long as nothing follows it, a call in some formats may get another argument.
            let is_whole = call.closed && (end || index + 1 < now.tool_calls.len() || now.end > call.end);
            if !is_whole {
                break;
            }
            match arguments(call) {
                Ok(arguments) => calls.push((call, arguments)),
                Err(error) => {
                    tracing::warn!(%error, tool = call.name, "a tool call's arguments are no JSON object; it goes out as text");
                    content = content.get(..call.content).unwrap_or(content);
                    leaves_at = Some(call.begin);
                    break;
                }
            }
        }
        if self.grow(content, &now.thinking, delta) {
            if end || leaves_at.is_some() {
                let skipped = self.without_markers(&now.skipped);
                self.show_content(&skipped, delta);
            }
            for (call, arguments) in calls {
                self.calls += 1;
                delta.tool_calls.push(ToolCall {
                    id: self.call_id(&call.id),
                    name: call.name.clone(),
                    arguments,
                });
            }
        } else {
            // The parser took back what was shown. It stays; what follows it is text.
            leaves_at = Some(self.settled);
        }
        if let Some(at) = leaves_at {
            self.give_up(at);
            self.show_rest(at, delta);
            return false;
        }
        (self.settled, self.last) = (now.settled, now.last);
        // A thought of blanks only is not in `thinking` yet, and will be when more follows.
        let runs_on = match now.tail {
            PartKind::Content => true,
            PartKind::Thinking => !now.thinking.is_empty(),
            PartKind::None | PartKind::Call => false,
        };
        self.mode = if runs_on {
            Mode::Running(now.tail, self.whole.len())
        } else {
            Mode::Parse
        };
        true
    }

    /// Shows how content and thinking have grown; `false` if they are not what they were.
    fn grow(&mut self, content: &str, thinking: &str, delta: &mut Delta) -> bool {
        let (Some(more_content), Some(more_thinking)) = (
            content.strip_prefix(self.content.as_str()),
            thinking.strip_prefix(self.thinking.as_str()),
        ) else {
            return false;
        };
        self.thinking.push_str(more_thinking);
        self.content.push_str(more_content);
        self.show_thinking(more_thinking, delta);
        self.show_content(more_content, delta);
        true
    }

    /// The first `bad` bytes are not in the format: shows what is, and the rest as content.
    ///
    /// A text that is not in the format is not the beginning of one that is, so that the place where it leaves the format
    /// does not depend on when the parser was asked.
    fn leave(&mut self, mut bad: usize, delta: &mut Delta) {
        let mut good = self.good.min(bad);
        let mut message = None;
        loop {
            let middle = self.whole.floor_char_boundary(good + (bad - good) / 2);
            let middle = if middle > good {
                middle
            } else {
                self.whole.ceil_char_boundary(good + 1)
            };
            if middle >= bad {
                break;
            }
            match self.parse(middle) {
                Some(now) => (good, message) = (middle, Some(now)),
                None => bad = middle,
            }
        }
        self.give_up(good);
        let Some(now) = message.or_else(|| self.parse(good)) else {
            return self.show_rest(self.settled, delta);
        };
        if !self.show(&now, true, delta) {
            return;
        }
        let from = match now.last {
            PartKind::Call => self.behind_call(now.settled, good),
            PartKind::Thinking => self.behind_tag(now.settled, bad, &self.thinking_end_tags),
            PartKind::Content | PartKind::None => self.behind_tag(now.settled, bad, &self.control_tokens),
        };
        self.show_rest(from, delta);
    }

    fn give_up(&mut self, at: usize) {
        self.mode = Mode::Text;
        tracing::warn!(
            counter.answers_out_of_format = 1,
            at,
            calls = self.calls,
            "the answer is not in its template's format; its rest goes out as text"
        );
    }

    fn show_rest(&mut self, from: usize, delta: &mut Delta) {
        self.mode = Mode::Text;
        let rest = self.whole.get(from..).unwrap_or_default().to_owned();
        self.show_content(&rest, delta);
    }

    /// The end of the closing marker of the call that ends at `from`; `from` if there is none before `limit`.
    fn behind_call(&mut self, from: usize, limit: usize) -> usize {
        let limit = limit.min(from + MAX_MARKER_BYTES);
        let found = (from..=limit).find(|&at| {
            self.parse(at).is_some_and(|now| {
                now.state == ParseState::Matched && now.end == at && now.tool_calls.len() == self.calls
            })
        });
        found.unwrap_or(from)
    }

    /// The end of the tag at `from`; `from` if none of `tags` is there, whole, before `limit`.
    fn behind_tag(&self, from: usize, limit: usize, tags: &[String]) -> usize {
        let rest = self.whole.get(from..limit).unwrap_or_default().trim_start();
        tags.iter()
            .find_map(|tag| rest.strip_prefix(tag.as_str()))
            .map_or(from, |rest| limit - rest.len())
    }

    /// Shows what is left of a whole answer that is in its format, or of one that was cut off.
    fn flush(&mut self, now: &ParsedMessage, cut: bool, delta: &mut Delta) {
        if now.state == ParseState::Matched {
            return;
        }
        if let Some(call) = now.tool_calls.get(self.calls) {
            if cut {
                tracing::info!(tool = call.name, "the answer was cut off inside a tool call");
            } else {
                self.give_up(call.begin);
                self.show_rest(call.begin, delta);
            }
            return;
        }
        let rest = self.whole.get(now.settled..).unwrap_or_default().to_owned();
        let is_fragment = cut
            && self
                .parser
                .delimiters()
                .iter()
                .any(|delimiter| rest.contains(delimiter));
        match now.last {
            // Nothing but markers stands between a call and the next one's name.
            PartKind::Call => {}
            _ if is_fragment || rest.trim().is_empty() => {}
            // Part of the tag that would have ended the thought.
            PartKind::Thinking => self.show_thinking(&rest, delta),
            PartKind::Content | PartKind::None => self.show_content(&rest, delta),
        }
    }

    /// Text that stands outside a message, without the control tokens of the format.
    fn without_markers(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for token in &self.control_tokens {
            text = text.replace(token.as_str(), "");
        }
        if text.trim().is_empty() { String::new() } else { text }
    }

    fn show_content(&mut self, text: &str, delta: &mut Delta) {
        let after_thought = self.shows_thinking && !self.shows_content;
        let text = if after_thought { text.trim_start() } else { text };
        self.shows_content |= !text.is_empty();
        delta.content.push_str(text);
    }

    fn show_thinking(&mut self, text: &str, delta: &mut Delta) {
        let text = if self.shows_thinking { text } else { text.trim_start() };
        self.shows_thinking |= !text.is_empty();
        if !self.hides_thinking {
            delta.thinking.push_str(text);
        }
    }

    /// The model's own id if the conversation does not have it yet, or one in Ollama's form: `call_` and eight of `[a-z0-9]`.
    fn call_id(&mut self, given: &str) -> String {
        let mut id = given.to_owned();
        while id.is_empty() || self.ids.contains(&id) {
            // std's per-instance random keys: unique enough for ids, and no generator to carry around.
            let mut random = RandomState::new().build_hasher().finish();
            id = String::from("call_");
            for _ in 0..8 {
                id.push(char::from(
                    b"abcdefghijklmnopqrstuvwxyz0123456789"[(random % 36) as usize],
                ));
                random /= 36;
            }
        }
        self.ids.insert(id.clone());
        id
    }

    /// Bytes that were parsed, and how often.
    #[cfg(test)]
    pub(super) fn spent(&self) -> (usize, usize) {
        self.budget.spent()
    }
}

fn arguments(call: &ParsedCall) -> serde_json::Result<Map<String, Value>> {
    match call.arguments.trim() {
        "" => Ok(Map::new()),
        text => serde_json::from_str(text),
    }
}
