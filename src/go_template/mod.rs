//! Templates as Ollama writes them: Go's `text/template`, filled with a conversation.
//!
//! The chat templates of models are Jinja and none of this module's business. These ones come from clients: the `template`
//! of a request, and the `TEMPLATE` of a model that a client made. Strangers write them, so source, nesting, work and
//! output are bounded. What is left out of the language (`define`, `template`, `block` and a few functions) is named in
//! the error.

mod chat;
mod execute;
mod functions;
mod lex;
mod parse;
#[cfg(test)]
mod tests;
mod value;

use self::functions::Function;

/// Source of a template in bytes.
const MAX_SOURCE_BYTES: usize = 256 << 10;

/// Blocks and parentheses within each other.
const MAX_DEPTH: usize = 32;

/// Variables that are known in one place: each use looks through them.
const MAX_VARIABLES: usize = 256;

/// Nodes and expressions evaluated in one rendering: nested ranges multiply.
const MAX_STEPS: usize = 1 << 20;

/// Bytes that one rendering may write, into the prompt and into variables, and compare.
const MAX_WRITTEN_BYTES: usize = 128 << 20;

/// Why a template gave no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// No Go template; the text is Go's.
    #[error("template: {0}")]
    Syntax(String),
    /// It asks for something that is not there, as a field that messages do not have.
    #[error("template: {0}")]
    Execution(String),
    /// A Go template, but beyond what is understood here.
    #[error("template: {0} is not understood for hf: models; use the model's own template, or raw")]
    Unsupported(String),
    /// It grows without end.
    #[error("template: the rendered prompt is too long")]
    TooLong,
}

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    nodes: Vec<Node>,
    /// Names of fields and variables, in lower case.
    names: Vec<String>,
}

#[derive(Clone, Debug)]
enum Node {
    Text(String),
    /// `{{ pipeline }}`; prints nothing where it sets a variable.
    Output(Pipeline),
    If {
        branches: Vec<(Pipeline, Vec<Node>)>,
        otherwise: Vec<Node>,
    },
    With {
        branches: Vec<(Pipeline, Vec<Node>)>,
        otherwise: Vec<Node>,
    },
    Range {
        index: Option<String>,
        item: Option<String>,
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Break,
    Continue,
}

/// Commands, each with the result of the one before as its last argument.
#[derive(Clone, Debug)]
struct Pipeline {
    sets: Option<Variable>,
    first: Box<Expression>,
    rest: Vec<(Function, Vec<Expression>)>,
}

#[derive(Clone, Debug)]
struct Variable {
    name: String,
    /// `:=`, not `=`.
    is_new: bool,
}

#[derive(Clone, Debug)]
enum Expression {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Field {
        base: Base,
        path: Vec<String>,
    },
    Call {
        function: Function,
        arguments: Vec<Expression>,
    },
}

#[derive(Clone, Debug)]
enum Base {
    Dot,
    Variable(String),
    Pipeline(Pipeline),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// If Go could not read it either, or it uses what is not understood here.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::Unsupported(format!(
                "a template of more than {MAX_SOURCE_BYTES} bytes"
            )));
        }
        let mut nodes = parse::parse(source)?;
        let mut names = Vec::new();
        parse::collect_names(&nodes, &mut names);
        names.sort();
        names.dedup();
        let has = |name: &str| names.binary_search_by(|known| known.as_str().cmp(name)).is_ok();
        if !has("messages") && !has("response") {
            // Where a turn ends is where the answer would stand.
            nodes.push(chat::response());
        }
        Ok(Self { nodes, names })
    }

    /// Whether a field of this name is used anywhere, in any case, as `suffix`.
    #[must_use]
    pub fn uses(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }
}
