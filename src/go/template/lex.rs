//! Lexer: source to text and actions, after Go's `text/template/parse/lex.go`.

use super::error::TemplateError;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum TemplateToken {
    /// `.`, `.A.B`, `$` or `$x.A`. `glued` is true if no blank stands before it, as in `(…).A`.
    Path {
        text: String,
        glued: bool,
    },
    Text(String),
    Int(i64),
    Float(f64),
    Word(String),
    Open,
    Close,
    Comma,
    Pipe,
    Declare,
    Assign,
}

/// Part of the source: an action (`{{ … }}`), or the text before one.
pub(super) enum Segment {
    Text(String),
    Action { tokens: Vec<TemplateToken>, line: usize },
}

/// Splits the source into text and actions, and applies the trim markers.
pub(super) fn split(source: &str) -> Result<Vec<Segment>, TemplateError> {
    let mut segments = Vec::new();
    let mut rest = source;
    let mut line = 1;
    let mut trim_next = false;
    while !rest.is_empty() {
        let open = rest.find("{{");
        let text = &rest[..open.unwrap_or(rest.len())];
        let after = open.map(|at| &rest[at + 2..]);
        // The minus trims only if a blank follows: `{{-3}}` prints a number.
        let trims_before = after.is_some_and(|after| after.strip_prefix('-').is_some_and(starts_blank));
        let mut shown = text;
        if trim_next {
            shown = shown.trim_start_matches(is_blank);
        }
        if trims_before {
            shown = shown.trim_end_matches(is_blank);
        }
        if !shown.is_empty() {
            segments.push(Segment::Text(shown.to_owned()));
        }
        line += text.matches('\n').count();
        let Some(after) = after else { break };
        let inner = if trims_before { &after[1..] } else { after };
        // A comment stands right behind its delimiter, or behind the marker and a blank.
        let start = if trims_before { &inner[1..] } else { inner };
        let lexer = Lexer { rest: inner, line };
        let action = match start.strip_prefix("/*") {
            Some(comment) => lexer.comment(comment)?,
            None => lexer.action()?,
        };
        if let Some(tokens) = action.tokens {
            segments.push(Segment::Action { tokens, line });
        }
        line += inner[..inner.len() - action.rest.len()].matches('\n').count();
        trim_next = action.trims_after;
        rest = action.rest;
    }
    Ok(segments)
}

fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\r' | '\n')
}

fn starts_blank(text: &str) -> bool {
    text.starts_with(is_blank)
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
}

struct Action<'a> {
    /// Tokens of the action; `None` for a comment.
    tokens: Option<Vec<TemplateToken>>,
    trims_after: bool,
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    fn comment(mut self, comment: &'a str) -> Result<Action<'a>, TemplateError> {
        let (_, after) = comment.split_once("*/").ok_or_else(|| self.error("unclosed comment"))?;
        self.rest = after;
        let (trims_after, rest) = self
            .close()
            .ok_or_else(|| self.error("comment ends before closing delimiter"))?;
        Ok(Action {
            tokens: None,
            trims_after,
            rest,
        })
    }

    fn action(mut self) -> Result<Action<'a>, TemplateError> {
        let mut tokens = Vec::new();
        loop {
            if let Some((trims_after, rest)) = self.close() {
                return Ok(Action {
                    tokens: Some(tokens),
                    trims_after,
                    rest,
                });
            }
            let glued = !starts_blank(self.rest);
            self.rest = self.rest.trim_start_matches(is_blank);
            let place = if tokens.is_empty() { "command" } else { "operand" };
            tokens.push(self.token(glued, place)?);
        }
    }

    fn error(&self, message: &str) -> TemplateError {
        TemplateError::syntax(self.line, message)
    }

    /// Returns true for a trimming end, and the rest, if the end of the action is next.
    fn close(&self) -> Option<(bool, &'a str)> {
        // A minus trims only behind a blank, as at the start of an action.
        let trimmed = self.rest.trim_start_matches(is_blank);
        if trimmed.len() < self.rest.len()
            && let Some(rest) = trimmed.strip_prefix("-}}")
        {
            return Some((true, rest));
        }
        trimmed.strip_prefix("}}").map(|rest| (false, rest))
    }

    fn token(&mut self, glued: bool, place: &str) -> Result<TemplateToken, TemplateError> {
        let first = self.rest.chars().next().ok_or_else(|| self.error("unclosed action"))?;
        let single = match first {
            '(' => Some(TemplateToken::Open),
            ')' => Some(TemplateToken::Close),
            ',' => Some(TemplateToken::Comma),
            '|' => Some(TemplateToken::Pipe),
            '=' => Some(TemplateToken::Assign),
            _ => None,
        };
        if let Some(token) = single {
            self.rest = &self.rest[1..];
            return Ok(token);
        }
        let after = self.rest[first.len_utf8()..].chars().next();
        match first {
            ':' if after == Some('=') => {
                self.rest = &self.rest[2..];
                Ok(TemplateToken::Declare)
            }
            ':' => Err(self.error("expected :=")),
            '"' => self.quoted(),
            '`' => {
                let (text, rest) = self.rest[1..]
                    .split_once('`')
                    .ok_or_else(|| self.error("unterminated raw quoted string"))?;
                self.rest = rest;
                Ok(TemplateToken::Text(text.to_owned()))
            }
            '\'' => Err(TemplateError::unsupported("a character constant")),
            '.' if after.is_some_and(|next| next.is_ascii_digit()) => self.number(),
            '.' | '$' => {
                let text = self.take(|c| is_word(c) || matches!(c, '.' | '$')).to_owned();
                self.terminated().map(|()| TemplateToken::Path { text, glued })
            }
            '0'..='9' | '-' | '+' => self.number(),
            first if is_word(first) => {
                let word = self.take(is_word).to_owned();
                self.terminated().map(|()| TemplateToken::Word(word))
            }
            other if other.is_ascii_graphic() => Err(self.error(&format!("unexpected \"{other}\" in {place}"))),
            other => Err(self.error(&format!("unrecognized character in action: {}", name_of(other)))),
        }
    }

    fn take(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let end = self
            .rest
            .find(|character| !belongs(character))
            .unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    /// Fails if a word or a field may not end here.
    fn terminated(&self) -> Result<(), TemplateError> {
        match self.rest.chars().next() {
            None | Some('.' | ',' | '|' | ':' | ')' | '(' | '=') => Ok(()),
            Some(blank) if is_blank(blank) => Ok(()),
            Some(_) if self.rest.starts_with("}}") => Ok(()),
            Some(other) => Err(self.error(&format!("bad character {}", name_of(other)))),
        }
    }

    fn number(&mut self) -> Result<TemplateToken, TemplateError> {
        let text = self.take(|c| is_word(c) || matches!(c, '-' | '+' | '.'));
        let digits = text.replace('_', "");
        let (is_negative, bare) = match digits.strip_prefix('-') {
            Some(bare) => (true, bare),
            None => (false, digits.strip_prefix('+').unwrap_or(&digits)),
        };
        let lower = bare.to_ascii_lowercase();
        let radix = [("0x", 16), ("0o", 8), ("0b", 2)]
            .iter()
            .find_map(|&(prefix, radix)| Some((lower.strip_prefix(prefix)?, radix)));
        let whole = match radix {
            Some((digits, radix)) => i64::from_str_radix(digits, radix),
            None => bare.parse(),
        };
        let bad = || self.error(&format!("bad number syntax: {text:?}"));
        if let Ok(number) = whole {
            return Ok(TemplateToken::Int(if is_negative { -number } else { number }));
        }
        // Rust parses `inf` and `nan`, which Go does not.
        if radix.is_some() || !bare.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return Err(bad());
        }
        bare.parse()
            .map(|number: f64| TemplateToken::Float(if is_negative { -number } else { number }))
            .map_err(|_| bad())
    }

    fn quoted(&mut self) -> Result<TemplateToken, TemplateError> {
        let mut text = String::new();
        let mut characters = self.rest.char_indices().skip(1);
        let line = self.line;
        let unterminated = || TemplateError::syntax(line, "unterminated quoted string");
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(TemplateToken::Text(text));
                }
                '\n' => break,
                '\\' => {
                    let (_, escaped) = characters.next().ok_or_else(unterminated)?;
                    let digits = match escaped {
                        'x' => 2,
                        'u' => 4,
                        'U' => 8,
                        _ => 0,
                    };
                    let code: String = characters.by_ref().take(digits).map(|(_, digit)| digit).collect();
                    let invalid = || TemplateError::syntax(line, "invalid syntax");
                    let plain = match escaped {
                        'a' => '\u{7}',
                        'b' => '\u{8}',
                        'f' => '\u{c}',
                        'n' => '\n',
                        'r' => '\r',
                        't' => '\t',
                        'v' => '\u{b}',
                        same @ ('"' | '\\') => same,
                        'x' | 'u' | 'U' => u32::from_str_radix(&code, 16)
                            .ok()
                            // In Go `\xNN` is a byte; one beyond ASCII would be half a character.
                            .filter(|&code| digits > 2 || code < 0x80)
                            .and_then(char::from_u32)
                            .ok_or_else(invalid)?,
                        _ => return Err(invalid()),
                    };
                    text.push(plain);
                }
                other => text.push(other),
            }
        }
        Err(unterminated())
    }
}

/// Returns a character as Go's `%#U` prints it.
fn name_of(character: char) -> String {
    format!("U+{:04X} '{character}'", u32::from(character))
}
