//! Nodes to text.

use super::{Base, Expression, Function, MAX_OUTPUT_BYTES, MAX_STEPS, Node, TemplateError, Values};

/// A value during rendering.
#[derive(Clone, Copy, PartialEq)]
enum Value<'a> {
    Text(&'a str),
    Number(i64),
    Bool(bool),
    Root,
    Messages,
    /// Index of a message.
    Message(usize),
    /// A list that is always empty here, as the tools.
    Nothing,
}

/// A turn that a template sees.
struct Turn<'a> {
    role: &'static str,
    content: &'a str,
}

struct Renderer<'a> {
    values: &'a Values,
    turns: Vec<Turn<'a>>,
    variables: Vec<(&'a str, Value<'a>)>,
    /// Whether the template ends where the response begins: so do those that know no messages.
    ends_at_response: bool,
    steps: usize,
    out: String,
}

/// Whether to go on.
#[derive(PartialEq)]
enum Flow {
    On,
    Ended,
}

pub(super) fn render(nodes: &[Node], values: &Values) -> Result<String, TemplateError> {
    let mut turns = Vec::with_capacity(2);
    if !values.system.is_empty() {
        turns.push(Turn {
            role: "system",
            content: &values.system,
        });
    }
    turns.push(Turn {
        role: "user",
        content: &values.prompt,
    });
    let mut renderer = Renderer {
        values,
        turns,
        variables: Vec::new(),
        ends_at_response: !nodes.iter().any(uses_messages),
        steps: 0,
        out: String::new(),
    };
    renderer.list(nodes, Value::Root)?;
    Ok(renderer.out)
}

fn uses_messages(node: &Node) -> bool {
    match node {
        Node::Text(_) => false,
        Node::Output(expression) => names_messages(expression),
        Node::If { branches, otherwise } => {
            branches
                .iter()
                .any(|(condition, body)| names_messages(condition) || body.iter().any(uses_messages))
                || otherwise.iter().any(uses_messages)
        }
        Node::Range {
            over, body, otherwise, ..
        } => names_messages(over) || body.iter().chain(otherwise).any(uses_messages),
    }
}

fn names_messages(expression: &Expression) -> bool {
    match expression {
        Expression::Field { path, .. } => path.first().is_some_and(|first| first == "Messages"),
        Expression::Call { arguments, .. } => arguments.iter().any(names_messages),
        Expression::Text(_) | Expression::Number(_) | Expression::Bool(_) => false,
    }
}

impl<'a> Renderer<'a> {
    fn list(&mut self, nodes: &'a [Node], dot: Value<'a>) -> Result<Flow, TemplateError> {
        for node in nodes {
            self.steps += 1;
            if self.steps > MAX_STEPS || self.out.len() > MAX_OUTPUT_BYTES {
                return Err(TemplateError::TooLong);
            }
            let flow = match node {
                Node::Text(text) => {
                    self.out.push_str(text);
                    Flow::On
                }
                Node::Output(expression) => self.output(expression, dot)?,
                Node::If { branches, otherwise } => self.conditional(branches, otherwise, dot)?,
                Node::Range {
                    index,
                    item,
                    over,
                    body,
                    otherwise,
                } => {
                    let names = (index.as_deref(), item.as_deref());
                    self.range(names, over, body, otherwise, dot)?
                }
            };
            if flow == Flow::Ended {
                return Ok(Flow::Ended);
            }
        }
        Ok(Flow::On)
    }

    fn output(&mut self, expression: &'a Expression, dot: Value<'a>) -> Result<Flow, TemplateError> {
        if self.ends_at_response && is_response(expression) {
            return Ok(Flow::Ended);
        }
        match self.evaluate(expression, dot)? {
            Value::Text(text) => self.out.push_str(text),
            Value::Number(number) => self.out.push_str(&number.to_string()),
            Value::Bool(value) => self.out.push_str(if value { "true" } else { "false" }),
            Value::Root | Value::Messages | Value::Message(_) | Value::Nothing => {
                return Err(TemplateError::Unsupported("printing a list or an object".to_owned()));
            }
        }
        Ok(Flow::On)
    }

    fn conditional(
        &mut self,
        branches: &'a [(Expression, Vec<Node>)],
        otherwise: &'a [Node],
        dot: Value<'a>,
    ) -> Result<Flow, TemplateError> {
        for (condition, body) in branches {
            if is_true(self.evaluate(condition, dot)?) {
                return self.list(body, dot);
            }
        }
        self.list(otherwise, dot)
    }

    fn range(
        &mut self,
        (index, item): (Option<&'a str>, Option<&'a str>),
        over: &'a Expression,
        body: &'a [Node],
        otherwise: &'a [Node],
        dot: Value<'a>,
    ) -> Result<Flow, TemplateError> {
        let count = match self.evaluate(over, dot)? {
            Value::Messages => self.turns.len(),
            Value::Nothing => 0,
            _ => {
                return Err(TemplateError::Unsupported(
                    "range over something that is no list".to_owned(),
                ));
            }
        };
        if count == 0 {
            return self.list(otherwise, dot);
        }
        for turn in 0..count {
            let known = self.variables.len();
            if let Some(name) = index {
                self.variables.push((name, Value::Number(turn as i64)));
            }
            if let Some(name) = item {
                self.variables.push((name, Value::Message(turn)));
            }
            let flow = self.list(body, Value::Message(turn));
            self.variables.truncate(known);
            if flow? == Flow::Ended {
                return Ok(Flow::Ended);
            }
        }
        Ok(Flow::On)
    }

    fn evaluate(&self, expression: &'a Expression, dot: Value<'a>) -> Result<Value<'a>, TemplateError> {
        match expression {
            Expression::Text(text) => Ok(Value::Text(text)),
            Expression::Number(number) => Ok(Value::Number(*number)),
            Expression::Bool(value) => Ok(Value::Bool(*value)),
            Expression::Field { base, path } => {
                let mut value = match base {
                    Base::Dot => dot,
                    Base::Root => Value::Root,
                    Base::Variable(name) => self.variable(name)?,
                };
                for name in path {
                    value = self.member(value, name)?;
                }
                Ok(value)
            }
            Expression::Call { function, arguments } => self.call(*function, arguments, dot),
        }
    }

    fn variable(&self, name: &str) -> Result<Value<'a>, TemplateError> {
        self.variables
            .iter()
            .rev()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
            .ok_or_else(|| TemplateError::Syntax(format!(":1: undefined variable \"{name}\"")))
    }

    fn member(&self, value: Value<'a>, name: &str) -> Result<Value<'a>, TemplateError> {
        let found = match value {
            Value::Root => match name {
                "System" => Some(Value::Text(&self.values.system)),
                "Prompt" => Some(Value::Text(&self.values.prompt)),
                "Suffix" => Some(Value::Text(&self.values.suffix)),
                "Response" | "ThinkLevel" => Some(Value::Text("")),
                "Messages" => Some(Value::Messages),
                "Tools" => Some(Value::Nothing),
                "Think" | "IsThinkSet" => Some(Value::Bool(false)),
                _ => None,
            },
            Value::Message(index) => self.turns.get(index).and_then(|turn| match name {
                "Role" => Some(Value::Text(turn.role)),
                "Content" => Some(Value::Text(turn.content)),
                "Thinking" | "ToolName" => Some(Value::Text("")),
                "ToolCalls" | "Images" => Some(Value::Nothing),
                _ => None,
            }),
            _ => None,
        };
        found.ok_or_else(|| TemplateError::Unsupported(format!("field .{name}")))
    }

    fn call(
        &self,
        function: Function,
        arguments: &'a [Expression],
        dot: Value<'a>,
    ) -> Result<Value<'a>, TemplateError> {
        let mut last = Value::Bool(false);
        match function {
            Function::And | Function::Or => {
                // The first value that decides, or the last one.
                for argument in arguments {
                    last = self.evaluate(argument, dot)?;
                    if is_true(last) == matches!(function, Function::Or) {
                        break;
                    }
                }
                Ok(last)
            }
            Function::Not => {
                for argument in arguments {
                    last = self.evaluate(argument, dot)?;
                }
                Ok(Value::Bool(!is_true(last)))
            }
            Function::Equal | Function::NotEqual => {
                let Some((first, others)) = arguments.split_first() else {
                    return Ok(last);
                };
                let first = self.evaluate(first, dot)?;
                let mut equal = false;
                for other in others {
                    equal |= self.evaluate(other, dot)? == first;
                }
                Ok(Value::Bool(equal == matches!(function, Function::Equal)))
            }
        }
    }
}

fn is_response(expression: &Expression) -> bool {
    matches!(expression, Expression::Field { base: Base::Dot | Base::Root, path } if path.len() == 1 && path[0] == "Response")
}

fn is_true(value: Value<'_>) -> bool {
    match value {
        Value::Text(text) => !text.is_empty(),
        Value::Number(number) => number != 0,
        Value::Bool(value) => value,
        Value::Root | Value::Messages | Value::Message(_) => true,
        Value::Nothing => false,
    }
}
