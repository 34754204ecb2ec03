//! Parser: tokens to the syntax tree, after Go's `text/template/parse/parse.go`.

use super::{
    error::TemplateError,
    functions::TemplateFunction,
    lex::{self, Segment, TemplateToken},
    syntax::{Expression, FieldBase, Pipeline, TemplateNode, Variable},
};

/// Deepest nesting of blocks and parentheses.
const MAX_DEPTH: usize = 32;

/// Most variables in scope at one place. Bounds the time of a lookup, which is linear.
const MAX_VARIABLES: usize = 256;

/// End of a list of nodes; `{{else}}` with the tokens behind the word and its line.
enum Stop {
    Eof,
    End,
    Else(Vec<TemplateToken>, usize),
}

pub(super) fn parse(source: &str) -> Result<Vec<TemplateNode>, TemplateError> {
    let segments = lex::split(source)?;
    let mut parser = Parser {
        segments: segments.into_iter(),
        last_line: 1 + source.matches('\n').count(),
        variables: Vec::new(),
        ranges: 0,
    };
    let (nodes, end) = parser.list(0)?;
    match end {
        Stop::Eof => Ok(nodes),
        Stop::End => Err(TemplateError::syntax(parser.line(), "unexpected {{end}}")),
        Stop::Else(_, line) => Err(TemplateError::syntax(line, "unexpected {{else}}")),
    }
}

/// Adds the names of all fields in lower case.
pub(super) fn collect_names(nodes: &[TemplateNode], names: &mut Vec<String>) {
    for node in nodes {
        match node {
            TemplateNode::Text(_) | TemplateNode::Break | TemplateNode::Continue => {}
            TemplateNode::Output(pipeline) => names_of_pipeline(pipeline, names),
            TemplateNode::If { branches, otherwise } | TemplateNode::With { branches, otherwise } => {
                for (condition, body) in branches {
                    names_of_pipeline(condition, names);
                    collect_names(body, names);
                }
                collect_names(otherwise, names);
            }
            TemplateNode::Range {
                over, body, otherwise, ..
            } => {
                names_of_pipeline(over, names);
                collect_names(body, names);
                collect_names(otherwise, names);
            }
        }
    }
}

pub(super) fn names_of_pipeline(pipeline: &Pipeline, names: &mut Vec<String>) {
    names_of(&pipeline.first, names);
    for argument in pipeline.rest.iter().flat_map(|(_, arguments)| arguments) {
        names_of(argument, names);
    }
}

fn names_of(expression: &Expression, names: &mut Vec<String>) {
    match expression {
        Expression::Field { base, path } => {
            // Ollama, too, lower-cases the names before it asks which fields a template uses.
            names.extend(path.iter().map(|name| name.to_lowercase()));
            if let FieldBase::Pipeline(pipeline) = base {
                names_of_pipeline(pipeline, names);
            }
        }
        Expression::Call { arguments, .. } => {
            for argument in arguments {
                names_of(argument, names);
            }
        }
        Expression::Nil | Expression::Bool(_) | Expression::Int(_) | Expression::Float(_) | Expression::Text(_) => {}
    }
}

struct Parser {
    segments: std::vec::IntoIter<Segment>,
    last_line: usize,
    variables: Vec<String>,
    /// Number of ranges around the current place.
    ranges: usize,
}

impl Parser {
    /// Returns the line of the next action, which is the one that Go names for an unexpected `{{end}}`.
    fn line(&self) -> usize {
        self.segments
            .as_slice()
            .iter()
            .find_map(|segment| match segment {
                Segment::Action { line, .. } => Some(*line),
                Segment::Text(_) => None,
            })
            .unwrap_or(self.last_line)
    }

    fn list(&mut self, depth: usize) -> Result<(Vec<TemplateNode>, Stop), TemplateError> {
        if depth > MAX_DEPTH {
            return Err(TemplateError::unsupported(format!("nesting deeper than {MAX_DEPTH}")));
        }
        let mut nodes = Vec::new();
        while let Some(segment) = self.segments.next() {
            let (tokens, line) = match segment {
                Segment::Text(text) => {
                    nodes.push(TemplateNode::Text(text));
                    continue;
                }
                Segment::Action { tokens, line } => (tokens, line),
            };
            let word = match tokens.first() {
                Some(TemplateToken::Word(word)) => word.as_str(),
                _ => "",
            };
            let rest = tokens.get(1..).unwrap_or_default();
            match word {
                "end" if rest.is_empty() => return Ok((nodes, Stop::End)),
                "end" => return Err(TemplateError::syntax(line, "unexpected token in end")),
                "else" => return Ok((nodes, Stop::Else(rest.to_vec(), line))),
                "if" | "with" => nodes.push(self.conditional(word, rest, line, depth)?),
                "range" => nodes.push(self.range(rest, line, depth)?),
                "break" | "continue" if self.ranges == 0 => {
                    return Err(TemplateError::syntax(
                        line,
                        &format!("{{{{{word}}}}} outside {{{{range}}}}"),
                    ));
                }
                "break" if rest.is_empty() => nodes.push(TemplateNode::Break),
                "continue" if rest.is_empty() => nodes.push(TemplateNode::Continue),
                "break" | "continue" => {
                    return Err(TemplateError::syntax(
                        line,
                        &format!("unexpected token in {{{{{word}}}}}"),
                    ));
                }
                "define" | "template" | "block" => return Err(TemplateError::unsupported(word)),
                _ => nodes.push(TemplateNode::Output(self.pipeline(&tokens, line, "command", depth)?)),
            }
        }
        Ok((nodes, Stop::Eof))
    }

    /// Parses `if` or `with` up to its end. A variable that its condition declares is in scope up to there.
    fn conditional(
        &mut self,
        word: &str,
        tokens: &[TemplateToken],
        line: usize,
        depth: usize,
    ) -> Result<TemplateNode, TemplateError> {
        let known = self.variables.len();
        let mut condition = self.pipeline(tokens, line, word, depth)?;
        let mut branches = Vec::new();
        let otherwise = loop {
            let (body, end) = self.list(depth + 1)?;
            branches.push((condition, body));
            match end {
                Stop::Eof => return Err(TemplateError::syntax(self.last_line, "unexpected EOF")),
                Stop::End => break Vec::new(),
                Stop::Else(tokens, line) => match tokens.split_first() {
                    None => break self.last_branch(depth)?,
                    // Go chains only the word of the block itself: `else if` inside of `if`, and `else with` inside of
                    // `with`.
                    Some((TemplateToken::Word(next), rest)) if next == word => {
                        condition = self.pipeline(rest, line, word, depth)?;
                    }
                    Some(_) => return Err(TemplateError::syntax(line, "unexpected token in else")),
                },
            }
        };
        self.variables.truncate(known);
        Ok(match word {
            "with" => TemplateNode::With { branches, otherwise },
            _ => TemplateNode::If { branches, otherwise },
        })
    }

    fn last_branch(&mut self, depth: usize) -> Result<Vec<TemplateNode>, TemplateError> {
        match self.list(depth + 1)? {
            (nodes, Stop::End) => Ok(nodes),
            (_, Stop::Eof) => Err(TemplateError::syntax(self.last_line, "unexpected EOF")),
            (_, Stop::Else(_, line)) => Err(TemplateError::syntax(line, "expected end; found {{else}}")),
        }
    }

    fn range(&mut self, tokens: &[TemplateToken], line: usize, depth: usize) -> Result<TemplateNode, TemplateError> {
        let declared = tokens.iter().position(|token| *token == TemplateToken::Declare);
        let (names, over) = match declared {
            Some(at) => (&tokens[..at], &tokens[at + 1..]),
            None => (&tokens[..0], tokens),
        };
        let over = self.pipeline(over, line, "range", depth)?;
        let (index, item) = match names {
            [] => (None, None),
            // A single variable is the item and not the index, unlike in a `range` of Go itself.
            [TemplateToken::Path { text: item, .. }] => (None, Some(item.clone())),
            [
                TemplateToken::Path { text: index, .. },
                TemplateToken::Comma,
                TemplateToken::Path { text: item, .. },
            ] => (Some(index.clone()), Some(item.clone())),
            _ => return Err(TemplateError::syntax(line, "range can only initialize variables")),
        };
        if index.iter().chain(&item).any(|name| !is_variable(name)) {
            return Err(TemplateError::syntax(line, "range can only initialize variables"));
        }
        let known = self.variables.len();
        for name in index.iter().chain(&item) {
            self.declare(name)?;
        }
        self.ranges += 1;
        let (body, end) = self.list(depth + 1)?;
        // Before the else branch, where `break` has no loop to end, as in Go.
        self.ranges -= 1;
        let otherwise = match end {
            Stop::Eof => return Err(TemplateError::syntax(self.last_line, "unexpected EOF")),
            Stop::End => Vec::new(),
            Stop::Else(tokens, _) if tokens.is_empty() => self.last_branch(depth)?,
            Stop::Else(_, line) => return Err(TemplateError::syntax(line, "unexpected token in else")),
        };
        self.variables.truncate(known);
        Ok(TemplateNode::Range {
            index,
            item,
            over,
            body,
            otherwise,
        })
    }

    fn pipeline(
        &mut self,
        tokens: &[TemplateToken],
        line: usize,
        context: &str,
        depth: usize,
    ) -> Result<Pipeline, TemplateError> {
        let (sets, mut rest) = match tokens {
            [
                TemplateToken::Path { text: name, .. },
                sign @ (TemplateToken::Declare | TemplateToken::Assign),
                rest @ ..,
            ] if is_variable(name) => {
                let variable = Variable {
                    name: name.clone(),
                    is_new: *sign == TemplateToken::Declare,
                };
                (Some(variable), rest)
            }
            _ => (None, tokens),
        };
        let mut pipeline = self.commands(&mut rest, line, context, depth)?;
        if !rest.is_empty() {
            return Err(TemplateError::syntax(line, "unexpected right paren"));
        }
        // Declared last: a variable is not in scope inside of its own value.
        if let Some(Variable { name, is_new: true }) = &sets {
            self.declare(name)?;
        }
        pipeline.sets = sets;
        Ok(pipeline)
    }

    /// Parses commands with `|` between them, up to the end or a closing parenthesis.
    fn commands(
        &self,
        rest: &mut &[TemplateToken],
        line: usize,
        context: &str,
        depth: usize,
    ) -> Result<Pipeline, TemplateError> {
        if depth > MAX_DEPTH {
            return Err(TemplateError::unsupported(format!("nesting deeper than {MAX_DEPTH}")));
        }
        let missing = || TemplateError::syntax(line, &format!("missing value for {context}"));
        let (function, mut arguments) = self.command(rest, line, depth)?;
        let first = match function {
            Some(function) => Expression::Call { function, arguments },
            None => arguments.pop().ok_or_else(missing)?,
        };
        let mut later = Vec::new();
        while let Some((TemplateToken::Pipe, after)) = rest.split_first() {
            *rest = after;
            let (function, arguments) = self.command(rest, line, depth)?;
            if function.is_none() && arguments.is_empty() {
                return Err(missing());
            }
            let stage = later.len() + 2;
            let function = function.ok_or_else(|| {
                TemplateError::syntax(line, &format!("non executable command in pipeline stage {stage}"))
            })?;
            later.push((function, arguments));
        }
        if let Expression::Call { function, arguments } = &first {
            function.check_arguments(arguments.len(), line)?;
        }
        for (function, arguments) in &later {
            function.check_arguments(arguments.len() + 1, line)?;
        }
        Ok(Pipeline {
            sets: None,
            first: Box::new(first),
            rest: later,
        })
    }

    /// Parses a function and its arguments, or a single value.
    fn command(
        &self,
        rest: &mut &[TemplateToken],
        line: usize,
        depth: usize,
    ) -> Result<(Option<TemplateFunction>, Vec<Expression>), TemplateError> {
        let function = match rest.first() {
            Some(TemplateToken::Word(word)) if !matches!(word.as_str(), "true" | "false" | "nil") => {
                *rest = &rest[1..];
                Some(TemplateFunction::named(word, line)?)
            }
            _ => None,
        };
        let mut arguments = Vec::new();
        while !matches!(rest.first(), None | Some(TemplateToken::Close | TemplateToken::Pipe)) {
            arguments.push(self.operand(rest, line, depth)?);
        }
        match function {
            None if arguments.len() > 1 => Err(TemplateError::syntax(line, "can't give argument to non-function")),
            function => Ok((function, arguments)),
        }
    }

    fn operand(&self, rest: &mut &[TemplateToken], line: usize, depth: usize) -> Result<Expression, TemplateError> {
        let Some((token, after)) = rest.split_first() else {
            return Err(TemplateError::syntax(line, "missing value for command"));
        };
        *rest = after;
        match token {
            TemplateToken::Text(text) => Ok(Expression::Text(text.clone())),
            TemplateToken::Int(number) => Ok(Expression::Int(*number)),
            TemplateToken::Float(number) => Ok(Expression::Float(*number)),
            TemplateToken::Path { text, .. } => self.field(text, line),
            TemplateToken::Word(word) => match word.as_str() {
                "true" | "false" => Ok(Expression::Bool(word == "true")),
                "nil" => Ok(Expression::Nil),
                word => {
                    let function = TemplateFunction::named(word, line)?;
                    function.check_arguments(0, line)?;
                    Ok(Expression::Call {
                        function,
                        arguments: Vec::new(),
                    })
                }
            },
            TemplateToken::Open => {
                let inner = self.commands(rest, line, "parenthesized pipeline", depth + 1)?;
                let Some((TemplateToken::Close, after)) = rest.split_first() else {
                    return Err(TemplateError::syntax(line, "unclosed left paren"));
                };
                *rest = after;
                let mut path = Vec::new();
                if let Some((TemplateToken::Path { text, glued: true }, after)) = rest.split_first()
                    && text.len() > 1
                    && text.starts_with('.')
                {
                    *rest = after;
                    path = names_in(text);
                }
                Ok(Expression::Field {
                    base: FieldBase::Pipeline(inner),
                    path,
                })
            }
            TemplateToken::Close
            | TemplateToken::Comma
            | TemplateToken::Pipe
            | TemplateToken::Declare
            | TemplateToken::Assign => Err(TemplateError::syntax(line, "unexpected token in operand")),
        }
    }

    fn field(&self, path: &str, line: usize) -> Result<Expression, TemplateError> {
        let base = match path.split('.').next().unwrap_or_default() {
            "" => FieldBase::Dot,
            name => {
                self.known(name, line)?;
                FieldBase::Variable(name.to_owned())
            }
        };
        Ok(Expression::Field {
            base,
            path: names_in(path),
        })
    }

    fn declare(&mut self, name: &str) -> Result<(), TemplateError> {
        if self.variables.len() == MAX_VARIABLES {
            return Err(TemplateError::unsupported(format!(
                "more than {MAX_VARIABLES} variables"
            )));
        }
        self.variables.push(name.to_owned());
        Ok(())
    }

    fn known(&self, name: &str, line: usize) -> Result<(), TemplateError> {
        if name == "$" || self.variables.iter().any(|known| known == name) {
            return Ok(());
        }
        Err(TemplateError::syntax(line, &format!("undefined variable \"{name}\"")))
    }
}

/// Returns the names behind the dots.
fn names_in(path: &str) -> Vec<String> {
    path.split('.')
        .skip(1)
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

fn is_variable(text: &str) -> bool {
    text.len() > 1 && text.starts_with('$') && !text.contains('.')
}
