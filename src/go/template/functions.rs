//! Functions of Go's templates, and those that Ollama adds (`json`, `currentDate`, `yesterdayDate`).

use jiff::{Timestamp, civil::Date, tz::TimeZone};

use super::{
    error::TemplateError,
    value::{TemplateData, Value},
};

/// Functions of Go or Ollama that are left out here.
const LEFT_OUT: [&str; 5] = ["html", "js", "urlquery", "call", "toTypeScriptType"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TemplateFunction {
    And,
    Or,
    Not,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Len,
    Index,
    Slice,
    Print,
    PrintLine,
    Printf,
    Json,
    CurrentDate,
    YesterdayDate,
}

/// Name, function, least and greatest number of arguments.
const FUNCTIONS: [(&str, TemplateFunction, usize, usize); 18] = [
    ("and", TemplateFunction::And, 1, usize::MAX),
    ("or", TemplateFunction::Or, 1, usize::MAX),
    ("not", TemplateFunction::Not, 1, 1),
    ("eq", TemplateFunction::Equal, 2, usize::MAX),
    ("ne", TemplateFunction::NotEqual, 2, 2),
    ("lt", TemplateFunction::Less, 2, 2),
    ("le", TemplateFunction::LessOrEqual, 2, 2),
    ("gt", TemplateFunction::Greater, 2, 2),
    ("ge", TemplateFunction::GreaterOrEqual, 2, 2),
    ("len", TemplateFunction::Len, 1, 1),
    ("index", TemplateFunction::Index, 1, usize::MAX),
    ("slice", TemplateFunction::Slice, 1, 3),
    ("print", TemplateFunction::Print, 0, usize::MAX),
    ("println", TemplateFunction::PrintLine, 0, usize::MAX),
    ("printf", TemplateFunction::Printf, 1, usize::MAX),
    ("json", TemplateFunction::Json, 1, 1),
    ("currentDate", TemplateFunction::CurrentDate, 0, usize::MAX),
    ("yesterdayDate", TemplateFunction::YesterdayDate, 0, usize::MAX),
];

/// Returns today's date in the time zone of this machine.
fn today() -> Date {
    TimeZone::system().to_datetime(Timestamp::now()).date()
}

impl TemplateFunction {
    pub(super) fn named(word: &str, line: usize) -> Result<Self, TemplateError> {
        match FUNCTIONS.iter().find(|(name, ..)| *name == word) {
            Some((_, function, ..)) => Ok(*function),
            None if LEFT_OUT.contains(&word) => Err(TemplateError::unsupported(format!("function \"{word}\""))),
            None => Err(TemplateError::syntax(line, &format!("function \"{word}\" not defined"))),
        }
    }

    fn name(self) -> &'static str {
        FUNCTIONS
            .iter()
            .find(|(_, function, ..)| *function == self)
            .map_or("", |(name, ..)| name)
    }

    pub(super) fn check_arguments(self, given: usize, line: usize) -> Result<(), TemplateError> {
        let fits = FUNCTIONS
            .iter()
            .any(|&(_, function, fewest, most)| function == self && (fewest..=most).contains(&given));
        if fits {
            return Ok(());
        }
        Err(TemplateError::syntax(
            line,
            &format!("wrong number of args for {}", self.name()),
        ))
    }

    /// Returns true for functions whose work grows with the length of their arguments although they make no text, so
    /// that their work is charged to the budget separately.
    pub(super) fn compares(self) -> bool {
        matches!(
            self,
            Self::Equal | Self::NotEqual | Self::Less | Self::LessOrEqual | Self::Greater | Self::GreaterOrEqual
        )
    }

    fn fails(self, why: &str) -> TemplateError {
        TemplateError::Execution(format!("error calling {}: {why}", self.name()))
    }

    /// Calls the function with evaluated arguments. `and` and `or` have been short-circuited by the caller.
    pub(super) fn call<'a>(self, arguments: &[Value<'a>]) -> Result<Value<'a>, TemplateError> {
        let none = Value::Nothing;
        let first = arguments.first().unwrap_or(&none);
        let second = arguments.get(1).unwrap_or(&none);
        Ok(match self {
            Self::And | Self::Or => arguments.last().cloned().unwrap_or(none),
            Self::Not => Value::Bool(!first.is_true()),
            Self::Equal => {
                // Go's `eq` is true if the first argument equals any of the others.
                for other in arguments.iter().skip(1) {
                    if self.equal(first, other)? {
                        return Ok(Value::Bool(true));
                    }
                }
                Value::Bool(false)
            }
            Self::NotEqual => Value::Bool(!self.equal(first, second)?),
            Self::Less => Value::Bool(self.order(first, second)?.is_lt()),
            Self::LessOrEqual => Value::Bool(self.order(first, second)?.is_le()),
            Self::Greater => Value::Bool(self.order(first, second)?.is_gt()),
            Self::GreaterOrEqual => Value::Bool(self.order(first, second)?.is_ge()),
            Self::Len => self.len(first)?,
            Self::Index => {
                let mut value = first.clone();
                for key in arguments.iter().skip(1) {
                    value = self.index(&value, key)?;
                }
                value
            }
            Self::Slice => self.slice(first, arguments.get(1..).unwrap_or_default())?,
            Self::Print => Value::made(self.joined(arguments)?),
            Self::PrintLine => {
                let texts: Vec<String> = arguments
                    .iter()
                    .map(|value| self.text(value))
                    .collect::<Result<_, _>>()?;
                Value::made(texts.join(" ") + "\n")
            }
            Self::Printf => Value::made(self.formatted(first, arguments.get(1..).unwrap_or_default())?),
            Self::Json => Value::made(first.to_json_text()),
            Self::CurrentDate => Value::made(today().to_string()),
            Self::YesterdayDate => Value::made(today().yesterday().unwrap_or_else(|_| today()).to_string()),
        })
    }

    fn equal(self, a: &Value<'_>, b: &Value<'_>) -> Result<bool, TemplateError> {
        match (a, b) {
            (Value::Nothing, Value::Nothing) => Ok(true),
            (Value::Nothing, _) | (_, Value::Nothing) => Ok(false),
            (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
            (Value::Int(a), Value::Int(b)) => Ok(a == b),
            (Value::Float(a), Value::Float(b)) => Ok(a == b),
            _ => match (a.as_text(), b.as_text()) {
                (Some(a), Some(b)) => Ok(a == b),
                _ => Err(self.fails("incompatible types for comparison")),
            },
        }
    }

    fn order(self, a: &Value<'_>, b: &Value<'_>) -> Result<std::cmp::Ordering, TemplateError> {
        let order = match (a, b) {
            (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
            (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
            _ => a.as_text().zip(b.as_text()).map(|(a, b)| a.cmp(b)),
        };
        order.ok_or_else(|| self.fails("incompatible types for comparison"))
    }

    fn len<'a>(self, value: &Value<'a>) -> Result<Value<'a>, TemplateError> {
        let length = match value {
            Value::List(items) => items.len(),
            Value::Object(TemplateData::Map(members)) => members.len(),
            other => match other.as_text() {
                // Go counts bytes, too.
                Some(text) => text.len(),
                None => return Err(self.fails("it has no length")),
            },
        };
        Ok(Value::Int(i64::try_from(length).unwrap_or(i64::MAX)))
    }

    fn index<'a>(self, value: &Value<'a>, key: &Value<'a>) -> Result<Value<'a>, TemplateError> {
        match (value, key) {
            (Value::List(items), Value::Int(index)) => usize::try_from(*index)
                .ok()
                .and_then(|index| items.get(index))
                .map(Value::from)
                .ok_or_else(|| self.fails(&format!("index out of range: {index}"))),
            (Value::Object(TemplateData::Map(_)), key) if key.as_text().is_some() => Ok(value
                .member(key.as_text().unwrap_or_default())
                // A missing key is no error in Go.
                .unwrap_or(Value::Nothing)),
            (Value::Nothing, _) => Err(self.fails("index of untyped nil")),
            _ => Err(self.fails("it cannot be indexed so")),
        }
    }

    fn slice<'a>(self, value: &Value<'a>, bounds: &[Value<'a>]) -> Result<Value<'a>, TemplateError> {
        let length = match (value, value.as_text()) {
            (Value::List(items), _) => items.len(),
            (_, Some(text)) => text.len(),
            _ => return Err(self.fails("it cannot be sliced")),
        };
        let bound = |at: usize, otherwise: usize| match bounds.get(at) {
            None => Ok(otherwise),
            Some(Value::Int(bound)) => usize::try_from(*bound)
                .ok()
                .filter(|bound| *bound <= length)
                .ok_or_else(|| self.fails(&format!("index out of range: {bound}"))),
            Some(_) => Err(self.fails("cannot index slice/array with that type")),
        };
        let (from, to) = (bound(0, 0)?, bound(1, length)?);
        // This is also the error for a bound inside of a character: Go would cut the character, but a `str` cannot.
        let empty = || self.fails(&format!("invalid slice index: {from} > {to}"));
        match value {
            Value::List(items) => items.get(from..to).map(Value::List).ok_or_else(empty),
            Value::Text(text) => text.get(from..to).map(Value::Text).ok_or_else(empty),
            _ => value
                .as_text()
                .and_then(|text| text.get(from..to))
                .map(|text| Value::made(text.to_owned()))
                .ok_or_else(empty),
        }
    }

    fn text(self, value: &Value<'_>) -> Result<String, TemplateError> {
        value
            .print()
            .ok_or_else(|| TemplateError::Unsupported("printing an object".to_owned()))
    }

    /// Joins values as Go's `fmt.Sprint`: with a blank between two values neither of which is a text.
    fn joined(self, values: &[Value<'_>]) -> Result<String, TemplateError> {
        let mut out = String::new();
        for (at, value) in values.iter().enumerate() {
            let is_text = value.as_text().is_some();
            if at > 0 && !is_text && values[at - 1].as_text().is_none() {
                out.push(' ');
            }
            out.push_str(&self.text(value)?);
        }
        Ok(out)
    }

    /// Formats `%s`, `%v`, `%d`, `%q` and `%%`, without widths.
    fn formatted(self, format: &Value<'_>, arguments: &[Value<'_>]) -> Result<String, TemplateError> {
        let Some(format) = format.as_text() else {
            return Err(self.fails("the format is no text"));
        };
        let mut out = String::new();
        let mut arguments = arguments.iter();
        let mut characters = format.chars();
        while let Some(character) = characters.next() {
            if character != '%' {
                out.push(character);
                continue;
            }
            let verb = characters.next().unwrap_or(' ');
            if verb == '%' {
                out.push('%');
                continue;
            }
            if !matches!(verb, 's' | 'v' | 'd' | 'q') {
                return Err(TemplateError::Unsupported(format!("printf's %{verb}")));
            }
            let Some(argument) = arguments.next() else {
                // A missing argument is no error in Go: `fmt` writes this instead.
                out.push_str(&format!("%!{verb}(MISSING)"));
                continue;
            };
            match (verb, argument) {
                ('q', text) if text.as_text().is_some() => out.push_str(&text.to_json_text()),
                // Go prints something like `%!s(bool=true)` here, which has no place in a prompt.
                ('s' | 'q', Value::Bool(_) | Value::Int(_) | Value::Float(_)) | ('d', Value::Float(_)) => {
                    return Err(TemplateError::Unsupported(format!("printf's %{verb} of this value")));
                }
                _ => out.push_str(&self.text(argument)?),
            }
        }
        Ok(out)
    }
}
