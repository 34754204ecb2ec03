//! Syntax tree of a template.

use super::functions::TemplateFunction;

/// Part of a parsed template.
#[derive(Clone, Debug)]
pub(super) enum TemplateNode {
    Text(String),
    /// `{{ pipeline }}`. Prints nothing if the pipeline sets a variable.
    Output(Pipeline),
    If {
        branches: Vec<(Pipeline, Vec<TemplateNode>)>,
        otherwise: Vec<TemplateNode>,
    },
    With {
        branches: Vec<(Pipeline, Vec<TemplateNode>)>,
        otherwise: Vec<TemplateNode>,
    },
    Range {
        index: Option<String>,
        item: Option<String>,
        over: Pipeline,
        body: Vec<TemplateNode>,
        otherwise: Vec<TemplateNode>,
    },
    Break,
    Continue,
}

/// Commands joined by `|`, each with the result of the previous one as its last argument.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    pub(super) sets: Option<Variable>,
    pub(super) first: Box<Expression>,
    pub(super) rest: Vec<(TemplateFunction, Vec<Expression>)>,
}

/// Variable that a pipeline sets.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) name: String,
    /// True for `:=`, false for `=`.
    pub(super) is_new: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Expression {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Field {
        base: FieldBase,
        path: Vec<String>,
    },
    Call {
        function: TemplateFunction,
        arguments: Vec<Expression>,
    },
}

/// Value that a chain of fields starts at.
#[derive(Clone, Debug)]
pub(super) enum FieldBase {
    Dot,
    Variable(String),
    Pipeline(Pipeline),
}
