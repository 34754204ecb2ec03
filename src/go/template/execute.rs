//! Execution: syntax tree and data to text.

use super::{
    error::TemplateError,
    functions::TemplateFunction,
    syntax::{Expression, FieldBase, Pipeline, TemplateNode},
    value::{TemplateData, Value},
};

/// Most nodes and expressions that one rendering evaluates: nested ranges multiply.
const MAX_STEPS: usize = 1 << 20;

/// Most bytes that one rendering writes, into the prompt and into variables, and compares.
const MAX_WRITTEN_BYTES: usize = 128 << 20;

/// Control flow after a node.
#[derive(Clone, Copy, PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// Work and output that are left to a rendering.
#[derive(Debug)]
pub(super) struct RenderBudget {
    steps: usize,
    bytes: usize,
}

impl Default for RenderBudget {
    fn default() -> Self {
        Self {
            steps: MAX_STEPS,
            bytes: MAX_WRITTEN_BYTES,
        }
    }
}

impl RenderBudget {
    fn step(&mut self) -> Result<(), TemplateError> {
        self.steps = self.steps.checked_sub(1).ok_or(TemplateError::TooLong)?;
        Ok(())
    }

    fn write(&mut self, bytes: usize) -> Result<(), TemplateError> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or(TemplateError::TooLong)?;
        Ok(())
    }
}

struct Executor<'a, 'b> {
    root: &'a TemplateData,
    variables: Vec<(&'a str, Value<'a>)>,
    budget: &'b mut RenderBudget,
    out: &'b mut String,
}

/// Renders the nodes with `root` as the data, and appends the text to `out`.
pub(super) fn execute(
    nodes: &[TemplateNode],
    root: &TemplateData,
    budget: &mut RenderBudget,
    out: &mut String,
) -> Result<(), TemplateError> {
    let mut executor = Executor {
        root,
        variables: Vec::new(),
        budget,
        out,
    };
    executor.list(nodes, &Value::from(root)).map(drop)
}

impl<'a> Executor<'a, '_> {
    /// Executes a list of nodes. Variables that it declares are in scope to its end.
    fn list(&mut self, nodes: &'a [TemplateNode], dot: &Value<'a>) -> Result<Flow, TemplateError> {
        let known = self.variables.len();
        let mut flow = Flow::Next;
        for node in nodes {
            self.budget.step()?;
            flow = match node {
                TemplateNode::Text(text) => self.write(text)?,
                TemplateNode::Output(pipeline) => self.output(pipeline, dot)?,
                TemplateNode::If { branches, otherwise } => self.conditional(branches, otherwise, dot, false)?,
                TemplateNode::With { branches, otherwise } => self.conditional(branches, otherwise, dot, true)?,
                TemplateNode::Range {
                    index,
                    item,
                    over,
                    body,
                    otherwise,
                } => {
                    let names = (index.as_deref(), item.as_deref());
                    self.range(names, over, body, otherwise, dot)?
                }
                TemplateNode::Break => Flow::Break,
                TemplateNode::Continue => Flow::Continue,
            };
            if flow != Flow::Next {
                break;
            }
        }
        self.variables.truncate(known);
        Ok(flow)
    }

    fn write(&mut self, text: &str) -> Result<Flow, TemplateError> {
        self.budget.write(text.len())?;
        self.out.push_str(text);
        Ok(Flow::Next)
    }

    fn output(&mut self, pipeline: &'a Pipeline, dot: &Value<'a>) -> Result<Flow, TemplateError> {
        let value = self.pipeline(pipeline, dot)?;
        if pipeline.sets.is_some() {
            return Ok(Flow::Next);
        }
        match value.as_text() {
            Some(text) => self.write(text),
            None => {
                let text = value
                    .print()
                    .ok_or_else(|| TemplateError::Unsupported("printing an object".to_owned()))?;
                self.write(&text)
            }
        }
    }

    /// Executes the first branch whose condition is true. `with` makes the condition's value the dot.
    fn conditional(
        &mut self,
        branches: &'a [(Pipeline, Vec<TemplateNode>)],
        otherwise: &'a [TemplateNode],
        dot: &Value<'a>,
        is_with: bool,
    ) -> Result<Flow, TemplateError> {
        let known = self.variables.len();
        let mut chosen = (otherwise, dot.clone());
        for (condition, body) in branches {
            let value = self.pipeline(condition, dot)?;
            if value.is_true() {
                chosen = (body, if is_with { value } else { dot.clone() });
                break;
            }
        }
        let flow = self.list(chosen.0, &chosen.1)?;
        self.variables.truncate(known);
        Ok(flow)
    }

    fn range(
        &mut self,
        (index, item): (Option<&'a str>, Option<&'a str>),
        over: &'a Pipeline,
        body: &'a [TemplateNode],
        otherwise: &'a [TemplateNode],
        dot: &Value<'a>,
    ) -> Result<Flow, TemplateError> {
        let known = self.variables.len();
        let items = match self.pipeline(over, dot)? {
            Value::List(items) => Items::List(items),
            Value::Object(TemplateData::Map(members)) => Items::Map(members),
            // Go's templates range over integers since Go 1.24.
            Value::Int(count) => Items::Count(count.max(0)),
            Value::Nothing => Items::Count(0),
            _ => {
                return Err(TemplateError::Execution(
                    "range can't iterate over something that is no list".to_owned(),
                ));
            }
        };
        let mut at = 0;
        while let Some((key, value)) = items.get(at) {
            self.budget.step()?;
            if let Some(name) = index {
                self.variables.push((name, key));
            }
            if let Some(name) = item {
                self.variables.push((name, value.clone()));
            }
            let flow = self.list(body, &value)?;
            self.variables.truncate(known);
            if flow == Flow::Break {
                return Ok(Flow::Next);
            }
            at += 1;
        }
        if at == 0 {
            return self.list(otherwise, dot);
        }
        Ok(Flow::Next)
    }

    /// Evaluates a pipeline, and sets its variable if it has one.
    fn pipeline(&mut self, pipeline: &'a Pipeline, dot: &Value<'a>) -> Result<Value<'a>, TemplateError> {
        let mut value = self.evaluate(&pipeline.first, dot)?;
        for (function, arguments) in &pipeline.rest {
            value = self.call(*function, arguments, Some(value), dot)?;
        }
        match &pipeline.sets {
            Some(variable) if variable.is_new => self.variables.push((&variable.name, value.clone())),
            Some(variable) => {
                // Backwards: of several variables of one name, the innermost is meant.
                let mut known = self.variables.iter_mut().rev();
                let (_, place) = known
                    .find(|(name, _)| *name == variable.name)
                    .ok_or_else(|| TemplateError::Execution(format!("undefined variable: {}", variable.name)))?;
                *place = value.clone();
            }
            None => {}
        }
        Ok(value)
    }

    fn evaluate(&mut self, expression: &'a Expression, dot: &Value<'a>) -> Result<Value<'a>, TemplateError> {
        self.budget.step()?;
        match expression {
            Expression::Nil => Ok(Value::Nothing),
            Expression::Bool(value) => Ok(Value::Bool(*value)),
            Expression::Int(number) => Ok(Value::Int(*number)),
            Expression::Float(number) => Ok(Value::Float(*number)),
            Expression::Text(text) => Ok(Value::Text(text)),
            Expression::Field { base, path } => {
                let mut value = match base {
                    FieldBase::Dot => dot.clone(),
                    FieldBase::Variable(name) => self.variable(name),
                    FieldBase::Pipeline(pipeline) => self.pipeline(pipeline, dot)?,
                };
                for name in path {
                    value = member(&value, name)?;
                }
                Ok(value)
            }
            Expression::Call { function, arguments } => self.call(*function, arguments, None, dot),
        }
    }

    fn variable(&self, name: &str) -> Value<'a> {
        if name == "$" {
            return self.root.into();
        }
        // The parser refuses unknown variables.
        self.variables
            .iter()
            .rev()
            .find(|(known, _)| *known == name)
            .map_or(Value::Nothing, |(_, value)| value.clone())
    }

    fn call(
        &mut self,
        function: TemplateFunction,
        arguments: &'a [Expression],
        last: Option<Value<'a>>,
        dot: &Value<'a>,
    ) -> Result<Value<'a>, TemplateError> {
        let decides = match function {
            TemplateFunction::And => Some(false),
            TemplateFunction::Or => Some(true),
            _ => None,
        };
        let mut values = Vec::with_capacity(arguments.len() + 1);
        for argument in arguments {
            let value = self.evaluate(argument, dot)?;
            if decides == Some(value.is_true()) {
                return Ok(value);
            }
            values.push(value);
        }
        // Go passes the value of the stage before as the last argument.
        values.extend(last);
        if function.compares() {
            self.budget.write(compared_bytes(&values))?;
        }
        let value = function.call(&values)?;
        if let Value::Made(text) = &value {
            self.budget.write(text.len())?;
        }
        Ok(value)
    }
}

/// Returns an upper bound of the bytes that are read when the first value is compared with each of the others.
fn compared_bytes(values: &[Value<'_>]) -> usize {
    let length = |value: &Value<'_>| value.as_text().map_or(0, str::len);
    let first = values.first().map_or(0, length);
    values.iter().skip(1).map(|other| length(other).min(first)).sum()
}

/// Items that a range iterates over.
enum Items<'a> {
    List(&'a [TemplateData]),
    Map(&'a [(String, TemplateData)]),
    Count(i64),
}

impl<'a> Items<'a> {
    fn get(&self, at: usize) -> Option<(Value<'a>, Value<'a>)> {
        let number = i64::try_from(at).ok()?;
        match self {
            Self::List(items) => items.get(at).map(|item| (Value::Int(number), item.into())),
            Self::Map(members) => members.get(at).map(|(key, value)| (Value::Text(key), value.into())),
            Self::Count(count) => (number < *count).then_some((Value::Int(number), Value::Int(number))),
        }
    }
}

fn member<'a>(value: &Value<'a>, name: &str) -> Result<Value<'a>, TemplateError> {
    value.member(name).ok_or_else(|| match value {
        Value::Nothing => TemplateError::Execution(format!("nil pointer evaluating interface {{}}.{name}")),
        _ => TemplateError::Execution(format!("can't evaluate field {name}")),
    })
}
