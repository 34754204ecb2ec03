//! Source to nodes, after Go's `text/template/parse`.

use super::{Base, Expression, Function, MAX_DEPTH, Node, TemplateError};

/// Words that Go or Ollama know and this module does not.
const NOT_UNDERSTOOD: [&str; 22] = [
    "json",
    "len",
    "index",
    "slice",
    "printf",
    "print",
    "println",
    "html",
    "js",
    "urlquery",
    "call",
    "lt",
    "le",
    "gt",
    "ge",
    "currentDate",
    "yesterday",
    "toTypeScriptType",
    "nil",
    "break",
    "continue",
    "parameters",
];

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// `.`, or `.A.B`; the base is `$` or a variable where there is one.
    Path(String),
    Text(String),
    Number(i64),
    Word(String),
    Open,
    Close,
    Comma,
    Pipe,
    Declare,
    Assign,
}

/// One `{{ … }}`, or the text before it.
enum Piece {
    Text(String),
    Action { tokens: Vec<Token>, line: usize },
}

/// How a list of nodes ended.
enum Stop {
    Eof,
    End,
    Else(Vec<Token>, usize),
}

pub(super) fn parse(source: &str) -> Result<Vec<Node>, TemplateError> {
    let pieces = split(source)?;
    let mut parser = Parser {
        pieces: pieces.into_iter(),
        last_line: 1 + source.matches('\n').count(),
        variables: Vec::new(),
    };
    let (nodes, end) = parser.list(0)?;
    match end {
        Stop::Eof => Ok(nodes),
        Stop::End => Err(syntax(parser.line(), "unexpected {{end}}")),
        Stop::Else(_, line) => Err(syntax(line, "unexpected {{else}}")),
    }
}

fn syntax(line: usize, message: &str) -> TemplateError {
    TemplateError::Syntax(format!(":{line}: {message}"))
}

fn unsupported(what: impl Into<String>) -> TemplateError {
    TemplateError::Unsupported(what.into())
}

/// Cuts the source into text and actions, and applies the trim markers.
fn split(source: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = source;
    let mut line = 1;
    let mut trim_next = false;
    while !rest.is_empty() {
        let open = rest.find("{{");
        let text = &rest[..open.unwrap_or(rest.len())];
        let after = open.map(|at| &rest[at + 2..]);
        let trims_before = after.is_some_and(|after| after.strip_prefix('-').is_some_and(starts_blank));
        let mut shown = text;
        if trim_next {
            shown = shown.trim_start_matches(is_blank);
        }
        if trims_before {
            shown = shown.trim_end_matches(is_blank);
        }
        if !shown.is_empty() {
            pieces.push(Piece::Text(shown.to_owned()));
        }
        line += text.matches('\n').count();
        let Some(after) = after else { break };
        let inner = if trims_before { &after[1..] } else { after };
        let action = Lexer { rest: inner, line }.action()?;
        if let Some(tokens) = action.tokens {
            pieces.push(Piece::Action { tokens, line });
        }
        line += inner[..inner.len() - action.rest.len()].matches('\n').count();
        trim_next = action.trims_after;
        rest = action.rest;
    }
    Ok(pieces)
}

fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\r' | '\n')
}

fn starts_blank(text: &str) -> bool {
    text.starts_with(is_blank)
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
}

struct Action<'a> {
    /// `None` for a comment.
    tokens: Option<Vec<Token>>,
    trims_after: bool,
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    fn action(mut self) -> Result<Action<'a>, TemplateError> {
        if let Some(comment) = self.rest.trim_start_matches(is_blank).strip_prefix("/*") {
            let (_, after) = comment
                .split_once("*/")
                .ok_or_else(|| syntax(self.line, "unclosed comment"))?;
            self.rest = after;
            let (trims_after, rest) = self
                .close()
                .ok_or_else(|| syntax(self.line, "comment ends before closing delimiter"))?;
            return Ok(Action {
                tokens: None,
                trims_after,
                rest,
            });
        }
        let mut tokens = Vec::new();
        loop {
            if let Some((trims_after, rest)) = self.close() {
                return Ok(Action {
                    tokens: Some(tokens),
                    trims_after,
                    rest,
                });
            }
            self.rest = self.rest.trim_start_matches(is_blank);
            tokens.push(self.token()?);
        }
    }

    /// The end of the action, if it is next.
    fn close(&self) -> Option<(bool, &'a str)> {
        let trimmed = self.rest.trim_start_matches(is_blank);
        if trimmed.len() < self.rest.len()
            && let Some(rest) = trimmed.strip_prefix("-}}")
        {
            return Some((true, rest));
        }
        trimmed.strip_prefix("}}").map(|rest| (false, rest))
    }

    fn token(&mut self) -> Result<Token, TemplateError> {
        let first = self
            .rest
            .chars()
            .next()
            .ok_or_else(|| syntax(self.line, "unclosed action"))?;
        let single = match first {
            '(' => Some(Token::Open),
            ')' => Some(Token::Close),
            ',' => Some(Token::Comma),
            '|' => Some(Token::Pipe),
            '=' => Some(Token::Assign),
            _ => None,
        };
        if let Some(token) = single {
            self.rest = &self.rest[1..];
            return Ok(token);
        }
        match first {
            ':' if self.rest.starts_with(":=") => {
                self.rest = &self.rest[2..];
                Ok(Token::Declare)
            }
            '"' => self.quoted(),
            '`' => {
                let (text, rest) = self.rest[1..]
                    .split_once('`')
                    .ok_or_else(|| syntax(self.line, "unterminated raw quoted string"))?;
                self.rest = rest;
                Ok(Token::Text(text.to_owned()))
            }
            '.' | '$' => Ok(Token::Path(
                self.take(|c| c.is_alphanumeric() || matches!(c, '.' | '$' | '_'))
                    .to_owned(),
            )),
            '0'..='9' | '-' | '+' => {
                let digits = self.take(|c| c.is_alphanumeric() || matches!(c, '-' | '+' | '.' | '_'));
                digits
                    .parse()
                    .map(Token::Number)
                    .map_err(|_| unsupported(format!("the number {digits}")))
            }
            first if first.is_alphabetic() || first == '_' => {
                Ok(Token::Word(self.take(|c| c.is_alphanumeric() || c == '_').to_owned()))
            }
            other => Err(syntax(self.line, &format!("unexpected {other:?} in command"))),
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

    fn quoted(&mut self) -> Result<Token, TemplateError> {
        let mut text = String::new();
        let mut characters = self.rest.char_indices().skip(1);
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(Token::Text(text));
                }
                '\n' => break,
                '\\' => match characters.next().map(|(_, escaped)| escaped) {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some(same @ ('"' | '\\' | '\'')) => text.push(same),
                    Some(other) => return Err(unsupported(format!("the escape \\{other}"))),
                    None => break,
                },
                other => text.push(other),
            }
        }
        Err(syntax(self.line, "unterminated quoted string"))
    }
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    last_line: usize,
    variables: Vec<String>,
}

impl Parser {
    /// The line of the next action, for an error about what is behind us.
    fn line(&self) -> usize {
        self.pieces
            .as_slice()
            .iter()
            .find_map(|piece| match piece {
                Piece::Action { line, .. } => Some(*line),
                Piece::Text(_) => None,
            })
            .unwrap_or(self.last_line)
    }

    fn list(&mut self, depth: usize) -> Result<(Vec<Node>, Stop), TemplateError> {
        if depth > MAX_DEPTH {
            return Err(unsupported(format!("nesting deeper than {MAX_DEPTH}")));
        }
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (tokens, line) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action { tokens, line } => (tokens, line),
            };
            let word = match tokens.first() {
                Some(Token::Word(word)) => word.as_str(),
                _ => "",
            };
            match word {
                "end" => return Ok((nodes, Stop::End)),
                "else" => return Ok((nodes, Stop::Else(tokens[1..].to_vec(), line))),
                "if" => {
                    let node = self.conditional(&tokens[1..], line, depth)?;
                    nodes.push(node);
                }
                "range" => {
                    let node = self.range(&tokens[1..], line, depth)?;
                    nodes.push(node);
                }
                "with" | "define" | "template" | "block" => return Err(unsupported(word)),
                _ => nodes.push(Node::Output(self.pipeline(&tokens, line)?)),
            }
        }
        Ok((nodes, Stop::Eof))
    }

    fn conditional(&mut self, condition: &[Token], line: usize, depth: usize) -> Result<Node, TemplateError> {
        let mut condition = self.pipeline(condition, line)?;
        let mut branches = Vec::new();
        loop {
            let (body, end) = self.list(depth + 1)?;
            branches.push((condition, body));
            match end {
                Stop::Eof => return Err(syntax(self.last_line, "unexpected EOF")),
                Stop::End => {
                    return Ok(Node::If {
                        branches,
                        otherwise: Vec::new(),
                    });
                }
                Stop::Else(tokens, line) => match tokens.split_first() {
                    None => {
                        let otherwise = self.last_branch(depth)?;
                        return Ok(Node::If { branches, otherwise });
                    }
                    Some((Token::Word(word), rest)) if word == "if" => condition = self.pipeline(rest, line)?,
                    Some(_) => return Err(syntax(line, "unexpected token in else")),
                },
            }
        }
    }

    fn last_branch(&mut self, depth: usize) -> Result<Vec<Node>, TemplateError> {
        match self.list(depth + 1)? {
            (nodes, Stop::End) => Ok(nodes),
            (_, Stop::Eof) => Err(syntax(self.last_line, "unexpected EOF")),
            (_, Stop::Else(_, line)) => Err(syntax(line, "expected end; found {{else}}")),
        }
    }

    fn range(&mut self, tokens: &[Token], line: usize, depth: usize) -> Result<Node, TemplateError> {
        let declared = tokens.iter().position(|token| *token == Token::Declare);
        let (names, over) = match declared {
            Some(at) => (&tokens[..at], &tokens[at + 1..]),
            None => (&tokens[..0], tokens),
        };
        let over = self.pipeline(over, line)?;
        let (index, item) = match names {
            [] => (None, None),
            [Token::Path(item)] => (None, Some(item.clone())),
            [Token::Path(index), Token::Comma, Token::Path(item)] => (Some(index.clone()), Some(item.clone())),
            _ => return Err(syntax(line, "range can only initialize variables")),
        };
        let known = self.variables.len();
        self.variables.extend(index.iter().chain(&item).cloned());
        let (body, end) = self.list(depth + 1)?;
        self.variables.truncate(known);
        let otherwise = match end {
            Stop::Eof => return Err(syntax(self.last_line, "unexpected EOF")),
            Stop::End => Vec::new(),
            Stop::Else(tokens, _) if tokens.is_empty() => self.last_branch(depth)?,
            Stop::Else(_, line) => return Err(syntax(line, "unexpected token in else")),
        };
        Ok(Node::Range {
            index,
            item,
            over,
            body,
            otherwise,
        })
    }

    fn pipeline(&self, tokens: &[Token], line: usize) -> Result<Expression, TemplateError> {
        if tokens.contains(&Token::Pipe) {
            return Err(unsupported("a pipe"));
        }
        if tokens
            .iter()
            .any(|token| matches!(token, Token::Declare | Token::Assign))
        {
            return Err(unsupported("an assignment"));
        }
        let mut rest = tokens;
        let expression = self.command(&mut rest, line, 0)?;
        match rest {
            [] => Ok(expression),
            _ => Err(syntax(line, "unexpected right paren")),
        }
    }

    /// A call or a single value, up to the end or a closing parenthesis.
    fn command(&self, rest: &mut &[Token], line: usize, depth: usize) -> Result<Expression, TemplateError> {
        if depth > MAX_DEPTH {
            return Err(unsupported(format!("nesting deeper than {MAX_DEPTH}")));
        }
        let function = match rest.first() {
            None | Some(Token::Close) => return Err(syntax(line, "missing value for command")),
            Some(Token::Word(word)) if !matches!(word.as_str(), "true" | "false") => Some(function(word, line)?),
            Some(_) => None,
        };
        let Some(function) = function else {
            let operand = self.operand(rest, line, depth)?;
            return match rest.first() {
                None | Some(Token::Close) => Ok(operand),
                Some(_) => Err(syntax(line, "can't give argument to non-function")),
            };
        };
        *rest = &rest[1..];
        let mut arguments = Vec::new();
        while !matches!(rest.first(), None | Some(Token::Close)) {
            arguments.push(self.operand(rest, line, depth)?);
        }
        let fits = match function {
            Function::Not => arguments.len() == 1,
            Function::NotEqual => arguments.len() == 2,
            Function::Equal => arguments.len() >= 2,
            Function::And | Function::Or => !arguments.is_empty(),
        };
        if !fits {
            return Err(syntax(line, "wrong number of args"));
        }
        Ok(Expression::Call { function, arguments })
    }

    fn operand(&self, rest: &mut &[Token], line: usize, depth: usize) -> Result<Expression, TemplateError> {
        let Some((token, after)) = rest.split_first() else {
            return Err(syntax(line, "missing value for command"));
        };
        *rest = after;
        match token {
            Token::Text(text) => Ok(Expression::Text(text.clone())),
            Token::Number(number) => Ok(Expression::Number(*number)),
            Token::Path(path) => self.field(path, line),
            Token::Word(word) if word == "true" || word == "false" => Ok(Expression::Bool(word == "true")),
            Token::Word(word) => function(word, line)
                .and_then(|_| Err(syntax(line, &format!("function {word:?} needs parentheses here")))),
            Token::Open => {
                let inner = self.command(rest, line, depth + 1)?;
                match rest.split_first() {
                    Some((Token::Close, after)) => {
                        *rest = after;
                        Ok(inner)
                    }
                    _ => Err(syntax(line, "unclosed left paren")),
                }
            }
            Token::Close | Token::Comma | Token::Pipe | Token::Declare | Token::Assign => {
                Err(syntax(line, "unexpected token in operand"))
            }
        }
    }

    fn field(&self, path: &str, line: usize) -> Result<Expression, TemplateError> {
        let mut parts = path.split('.');
        let base = match parts.next().unwrap_or_default() {
            "" => Base::Dot,
            "$" => Base::Root,
            name if self.variables.iter().any(|known| known == name) => Base::Variable(name.to_owned()),
            name => return Err(syntax(line, &format!("undefined variable \"{name}\""))),
        };
        let path: Vec<String> = parts.filter(|part| !part.is_empty()).map(str::to_owned).collect();
        Ok(Expression::Field { base, path })
    }
}

fn function(word: &str, line: usize) -> Result<Function, TemplateError> {
    match word {
        "and" => Ok(Function::And),
        "or" => Ok(Function::Or),
        "not" => Ok(Function::Not),
        "eq" => Ok(Function::Equal),
        "ne" => Ok(Function::NotEqual),
        word if NOT_UNDERSTOOD.contains(&word) => Err(unsupported(format!("function \"{word}\""))),
        word => Err(syntax(line, &format!("function \"{word}\" not defined"))),
    }
}
