//! Reader of a model's text as content, reasoning and tool calls, while it is written.
//!
//! The result depends on the text alone, never on how it was cut into pieces: a piece is sent only when nothing that
//! may follow can take it back. A text that leaves its template's format goes out as content, from the place where it
//! was last understood; nothing of it is lost and nothing sent twice. `reader` parses, with the parser that
//! `common/chat` made for the template, and `budget` bounds how often.

mod budget;
mod reader;
#[cfg(test)]
mod tests;

use self::reader::FormatReader;
use super::{output::TextStream, protocol::ChatSyntax};
use crate::{inference::Delta, llama::LlamaError};

/// Reader of one answer.
#[derive(Debug)]
pub struct AnswerReader {
    text: TextStream,
    format: AnswerFormat,
}

#[derive(Debug)]
enum AnswerFormat {
    /// Text that is all content.
    Plain,
    /// Text in a chat template's format.
    Chat(Box<FormatReader>),
}

impl AnswerReader {
    /// Makes the reader of an answer that ends at the first of `stops`; without `chat` all of it is content.
    ///
    /// # Errors
    /// If the output parser that came with the rendered prompt is unreadable.
    pub fn new(stops: &[String], chat: Option<&ChatSyntax>) -> Result<Self, LlamaError> {
        let format = match chat {
            None => AnswerFormat::Plain,
            Some(syntax) => AnswerFormat::Chat(Box::new(FormatReader::new(syntax)?)),
        };
        Ok(Self {
            text: TextStream::new(stops),
            format,
        })
    }

    /// True when a stop string was found.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.text.stopped()
    }

    /// Returns the stop string that was found.
    pub(super) fn stopped_by(&self) -> Option<&str> {
        self.text.stopped_by()
    }

    /// Adds the bytes of one token; returns what can be sent now.
    pub fn push(&mut self, bytes: &[u8]) -> Delta {
        let text = self.text.push(bytes);
        match &mut self.format {
            AnswerFormat::Plain => content(text),
            AnswerFormat::Chat(_) if text.is_empty() => Delta::default(),
            AnswerFormat::Chat(reader) => reader.push(&text),
        }
    }

    /// Ends the answer; returns what was held back. `cut` is set when a limit ended the answer: an incomplete call at
    /// its end is dropped then, instead of being sent as text.
    pub fn finish(&mut self, cut: bool) -> Delta {
        let text = self.text.finish();
        match &mut self.format {
            AnswerFormat::Plain => content(text),
            AnswerFormat::Chat(reader) => reader.finish(&text, cut),
        }
    }
}

fn content(content: String) -> Delta {
    Delta {
        content,
        ..Delta::default()
    }
}
