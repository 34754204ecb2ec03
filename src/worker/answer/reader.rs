//! Reader of an answer in a chat template's format.
//!
//! The whole text so far is parsed again and again, and what the parser has beyond what was sent goes out. Three things
//! keep that cheap and safe: running text needs no parser until one of its delimiters comes ([`ReadMode::Running`]),
//! the number of parsed bytes is bounded, and a text that leaves the format is not parsed any more.

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

/// Number of bytes behind a call that are searched for its closing marker; the longest in llama.cpp's templates has 30.
const MAX_MARKER_BYTES: usize = 64;

/// Reader of one answer in a chat template's format.
#[derive(Debug)]
pub(super) struct FormatReader {
    parser: ChatParser,
    thinking_end_tags: Vec<String>,
    control_tokens: Vec<String>,
    hides_thinking: bool,
    /// Raw text of the answer.
    whole: String,
    mode: ReadMode,
    budget: ParseBudget,
    nesting: NestingLimit,
    /// Length up to which the text is known to be in the format.
    good: usize,
    /// Position up to which the text was sent, as content, reasoning or calls.
    settled: usize,
    /// Part that stands right before `settled`.
    last: PartKind,
    /// Content as the parser has it; all of it was sent, except blanks between the reasoning and the content.
    content: String,
    /// Reasoning as the parser has it; all of it was sent, except blanks before it.
    thinking: String,
    /// Number of calls that were sent.
    calls: usize,
    /// Ids of the conversation's calls and of those in this answer.
    ids: HashSet<String>,
    /// True when some content was sent.
    sent_content: bool,
    /// True when some reasoning was sent, or hidden.
    sent_thinking: bool,
}

/// Way in which the next piece of text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadMode {
    /// The text is parsed.
    Parse,
    /// Text of one kind runs on up to a delimiter, and there is none before this position: no parser is needed.
    Running(PartKind, usize),
    /// The text has left the format: all of it is content.
    Text,
}

impl FormatReader {
    pub(super) fn new(syntax: &ChatSyntax) -> Result<Self, LlamaError> {
        let parser = ChatParser::new(&syntax.rendered)?;
        // A prompt that continues an assistant's message ends in that message's words. The parser returns them with
        // every parse, but they are not part of this answer.
        let before = parser.parse("").unwrap_or_default();
        Ok(Self {
            parser,
            thinking_end_tags: syntax.rendered.thinking_end_tags.clone(),
            // Told by their spelling. Others, such as `<tool_call>`, are words that a text may be about, and stay in
            // it.
            control_tokens: syntax
                .rendered
                .preserved_tokens
                .iter()
                .filter(|token| token.contains('|'))
                .cloned()
                .collect(),
            hides_thinking: syntax.hides_thinking,
            whole: String::new(),
            mode: ReadMode::Parse,
            budget: ParseBudget::default(),
            nesting: NestingLimit::default(),
            good: 0,
            settled: 0,
            last: before.last,
            sent_content: !before.content.trim().is_empty(),
            sent_thinking: !before.thinking.is_empty(),
            content: before.content,
            thinking: before.thinking,
            calls: before.tool_calls.len(),
            ids: syntax.used_ids.iter().cloned().collect(),
        })
    }

    /// Adds text; returns what can be sent now.
    pub(super) fn push(&mut self, text: &str) -> Delta {
        let mut delta = Delta::default();
        self.add(text, &mut delta);
        if let ReadMode::Running(kind, from) = self.mode {
            self.send_running_text(kind, from, &mut delta);
        }
        if self.mode == ReadMode::Parse && self.budget.allows(self.whole.len()) {
            match self.parse(self.whole.len()) {
                Some(now) => {
                    self.good = self.whole.len();
                    self.send(&now, false, &mut delta);
                }
                None => self.leave_format(self.whole.len(), &mut delta),
            }
        }
        delta
    }

    /// Adds the last text and ends the answer; returns what was held back.
    pub(super) fn finish(&mut self, text: &str, cut: bool) -> Delta {
        let mut delta = Delta::default();
        self.add(text, &mut delta);
        if self.mode == ReadMode::Text {
            return delta;
        }
        let Some(now) = self.parse(self.whole.len()) else {
            self.leave_format(self.whole.len(), &mut delta);
            return delta;
        };
        if self.send(&now, true, &mut delta) {
            self.flush(&now, cut, &mut delta);
        }
        self.mode = ReadMode::Text;
        delta
    }

    fn add(&mut self, text: &str, delta: &mut Delta) {
        self.whole.push_str(text);
        if self.mode == ReadMode::Text {
            self.send_content(text, delta);
        } else if let Some(limit) = self.nesting.limit(&self.whole) {
            self.leave_format(limit + 1, delta);
        }
    }

    /// Parses the first `length` bytes; `None` if they are not the beginning of a message.
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
            // The parsers of some formats match a beginning of the text and ignore the rest, however little it fits.
            ParseState::Matched => {
                let rest = &text[now.end..];
                let mut delimiters = self.parser.delimiters().iter();
                let is_over = rest.trim().is_empty() || delimiters.any(|delimiter| delimiter.starts_with(rest));
                is_over.then_some(now)
            }
        }
    }

    /// Sends running text up to the next delimiter.
    fn send_running_text(&mut self, kind: PartKind, from: usize, delta: &mut Delta) {
        let delimiters = self.parser.delimiters();
        let rest = &self.whole[from..];
        let to = match delimiters.iter().filter_map(|delimiter| rest.find(delimiter)).min() {
            Some(at) => {
                self.mode = ReadMode::Parse;
                from + at
            }
            None => {
                let held = delimiters.iter().map(|delimiter| overlap(rest, delimiter)).max();
                let to = self.whole.len() - held.unwrap_or(0);
                self.mode = ReadMode::Running(kind, to);
                to
            }
        };
        let piece = self.whole[from..to].to_owned();
        (self.good, self.settled, self.last) = (to, to, kind);
        if kind == PartKind::Thinking {
            self.thinking.push_str(&piece);
            self.send_thinking(&piece, delta);
        } else {
            self.content.push_str(&piece);
            self.send_content(&piece, delta);
        }
    }

    /// Sends what `now` has beyond what was sent; false if the text leaves the format there.
    fn send(&mut self, now: &ParsedMessage, end: bool, delta: &mut Delta) -> bool {
        // Position at which the text leaves the format.
        let mut leaves_at = None;
        let mut calls = Vec::new();
        let mut content = now.content.as_str();
        for (index, call) in now.tool_calls.iter().enumerate().skip(self.calls) {
            // In some formats a call that is closed may get another argument as long as nothing follows it.
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
        if self.send_growth(content, &now.thinking, delta) {
            if end || leaves_at.is_some() {
                let skipped = self.without_markers(&now.skipped);
                self.send_content(&skipped, delta);
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
            // The parser took back what was sent. That stays, and what follows it is text.
            leaves_at = Some(self.settled);
        }
        if let Some(at) = leaves_at {
            self.give_up(at);
            self.send_rest(at, delta);
            return false;
        }
        (self.settled, self.last) = (now.settled, now.last);
        // The parser leaves out reasoning that is only blanks, and returns it with the blanks when more follows.
        let runs_on = match now.tail {
            PartKind::Content => true,
            PartKind::Thinking => !now.thinking.is_empty(),
            PartKind::None | PartKind::Call => false,
        };
        self.mode = if runs_on {
            ReadMode::Running(now.tail, self.whole.len())
        } else {
            ReadMode::Parse
        };
        true
    }

    /// Sends what was added to content and reasoning; false if they are no continuations of what was sent.
    fn send_growth(&mut self, content: &str, thinking: &str, delta: &mut Delta) -> bool {
        let (Some(more_content), Some(more_thinking)) = (
            content.strip_prefix(self.content.as_str()),
            thinking.strip_prefix(self.thinking.as_str()),
        ) else {
            return false;
        };
        self.thinking.push_str(more_thinking);
        self.content.push_str(more_content);
        self.send_thinking(more_thinking, delta);
        self.send_content(more_content, delta);
        true
    }

    /// Leaves the format, in which the first `bad` bytes are not: sends the part that is in it as such, and the rest as
    /// content.
    ///
    /// Every continuation of a text that is not in the format is not in it either. So a binary search finds the place
    /// where the text leaves the format, and that place does not depend on when the text was parsed.
    fn leave_format(&mut self, mut bad: usize, delta: &mut Delta) {
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
            return self.send_rest(self.settled, delta);
        };
        if !self.send(&now, true, delta) {
            return;
        }
        let from = match now.last {
            PartKind::Call => self.end_of_call_marker(now.settled, good),
            PartKind::Thinking => self.end_of_tag(now.settled, bad, &self.thinking_end_tags),
            PartKind::Content | PartKind::None => self.end_of_tag(now.settled, bad, &self.control_tokens),
        };
        self.send_rest(from, delta);
    }

    fn give_up(&mut self, at: usize) {
        self.mode = ReadMode::Text;
        tracing::warn!(
            counter.answers_out_of_format = 1,
            at,
            calls = self.calls,
            "the answer is not in its template's format; its rest goes out as text"
        );
    }

    fn send_rest(&mut self, from: usize, delta: &mut Delta) {
        self.mode = ReadMode::Text;
        let rest = self.whole.get(from..).unwrap_or_default().to_owned();
        self.send_content(&rest, delta);
    }

    /// Returns the end of the closing marker of the call that ends at `from`; `from` if there is none before `limit`.
    fn end_of_call_marker(&mut self, from: usize, limit: usize) -> usize {
        let limit = limit.min(from + MAX_MARKER_BYTES);
        let found = (from..=limit).find(|&at| {
            self.parse(at).is_some_and(|now| {
                now.state == ParseState::Matched && now.end == at && now.tool_calls.len() == self.calls
            })
        });
        found.unwrap_or(from)
    }

    /// Returns the end of the tag at `from`; `from` if none of `tags` is there, whole, before `limit`.
    fn end_of_tag(&self, from: usize, limit: usize, tags: &[String]) -> usize {
        let rest = self.whole.get(from..limit).unwrap_or_default().trim_start();
        tags.iter()
            .find_map(|tag| rest.strip_prefix(tag.as_str()))
            .map_or(from, |rest| limit - rest.len())
    }

    /// Sends the rest of an answer that ends in its format, or that a limit cut off.
    fn flush(&mut self, now: &ParsedMessage, cut: bool, delta: &mut Delta) {
        if now.state == ParseState::Matched {
            return;
        }
        if let Some(call) = now.tool_calls.get(self.calls) {
            if cut {
                tracing::info!(tool = call.name, "the answer was cut off inside a tool call");
            } else {
                self.give_up(call.begin);
                self.send_rest(call.begin, delta);
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
            // The rest is a part of the tag that would have ended the reasoning.
            PartKind::Thinking => self.send_thinking(&rest, delta),
            PartKind::Content | PartKind::None => self.send_content(&rest, delta),
        }
    }

    /// Removes the control tokens of the format from text that stands outside a message.
    fn without_markers(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for token in &self.control_tokens {
            text = text.replace(token.as_str(), "");
        }
        if text.trim().is_empty() { String::new() } else { text }
    }

    fn send_content(&mut self, text: &str, delta: &mut Delta) {
        // Templates put blank lines between the reasoning and the content, which belong to neither.
        let after_thought = self.sent_thinking && !self.sent_content;
        let text = if after_thought { text.trim_start() } else { text };
        self.sent_content |= !text.is_empty();
        delta.content.push_str(text);
    }

    fn send_thinking(&mut self, text: &str, delta: &mut Delta) {
        let text = if self.sent_thinking { text } else { text.trim_start() };
        self.sent_thinking |= !text.is_empty();
        if !self.hides_thinking {
            delta.thinking.push_str(text);
        }
    }

    /// Returns the model's own id if the conversation does not have it yet, or one in Ollama's form: `call_` and eight
    /// of `[a-z0-9]`.
    fn call_id(&mut self, given: &str) -> String {
        let mut id = given.to_owned();
        while id.is_empty() || self.ids.contains(&id) {
            // The hasher's random keys are unique enough for ids, and need no generator.
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

    /// Returns the number of bytes that were parsed, and of parses.
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
