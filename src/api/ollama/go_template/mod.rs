//! The common shape of Ollama's Go templates, for the `template` field of a request: `.System`, `.Prompt`,
//! `.Response`, `.Suffix`, `range .Messages` with `.Role` and `.Content`, `if`, `else`, `eq`, `ne`, `and`, `or`, `not`.
//!
//! Templates of models are Jinja and none of this module's business.

mod parse;
mod render;

/// Source of a template in bytes.
const MAX_SOURCE_BYTES: usize = 256 << 10;

/// Blocks and parentheses within each other.
const MAX_DEPTH: usize = 32;

/// Nodes evaluated in one rendering: nested ranges multiply.
const MAX_STEPS: usize = 1 << 16;

/// A rendered prompt in bytes.
const MAX_OUTPUT_BYTES: usize = 64 << 20;

/// Why a template gave no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
    /// No Go template either; the text is Go's.
    #[error("template: {0}")]
    Syntax(String),
    /// A Go template, but beyond what is understood here.
    #[error("template: {0} is not understood for hf: models; use the model's own template, or raw")]
    Unsupported(String),
    /// It grows without end.
    #[error("template: the rendered prompt is too long")]
    TooLong,
}

/// What a template is filled with.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    pub(super) system: String,
    pub(super) prompt: String,
    pub(super) suffix: String,
}

/// A parsed template.
#[derive(Debug)]
pub(super) struct Template {
    nodes: Vec<Node>,
}

#[derive(Debug)]
enum Node {
    Text(String),
    Output(Expression),
    If {
        branches: Vec<(Expression, Vec<Node>)>,
        otherwise: Vec<Node>,
    },
    Range {
        index: Option<String>,
        item: Option<String>,
        over: Expression,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

#[derive(Debug)]
enum Expression {
    Field {
        base: Base,
        path: Vec<String>,
    },
    Text(String),
    Number(i64),
    Bool(bool),
    Call {
        function: Function,
        arguments: Vec<Expression>,
    },
}

#[derive(Debug)]
enum Base {
    Dot,
    Root,
    Variable(String),
}

#[derive(Clone, Copy, Debug)]
enum Function {
    And,
    Or,
    Not,
    Equal,
    NotEqual,
}

impl Template {
    /// Reads a template.
    pub(super) fn parse(source: &str) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::Unsupported(format!(
                "a template of more than {MAX_SOURCE_BYTES} bytes"
            )));
        }
        parse::parse(source).map(|nodes| Self { nodes })
    }

    /// The prompt for a request. A template without messages ends where the response would stand.
    pub(super) fn render(&self, values: &Values) -> Result<String, TemplateError> {
        render::render(&self.nodes, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, TemplateError> {
        let values = Values {
            system: "S".into(),
            prompt: "P".into(),
            suffix: String::new(),
        };
        Template::parse(source)?.render(&values)
    }

    #[test]
    fn the_common_shapes_render_as_in_go() {
        for (source, expected) in [
            ("Q: {{ .Prompt }}\nA:", "Q: P\nA:"),
            ("{{ .System }} {{ .Prompt }}", "S P"),
            (
                "{{ if .System }}<s>{{ .System }}</s>{{ end }}{{ .Prompt }}{{ .Response }}<end>",
                "<s>S</s>P",
            ),
            ("{{ if .Suffix }}a{{ else if .System }}b{{ else }}c{{ end }}", "b"),
            ("{{ if not .Suffix }}x{{ end }}", "x"),
            ("{{ if and .System (not .Suffix) }}x{{ else }}y{{ end }}", "x"),
            ("{{ or .Suffix \"none\" }}", "none"),
            ("a  {{- /* why */ -}}  b", "ab"),
            ("a \n {{- .Prompt -}} \n b", "aPb"),
            ("{{ `}}` }}{{ \"\\n\\\"\" }}", "}}\n\""),
            (
                "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
                "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                "{{ range $i, $m := .Messages }}{{ if eq $m.Role \"user\" }}{{ $i }}{{ $m.Content }}{{ $.System }}{{ end }}{{ end }}",
                "1PS",
            ),
            (
                "{{ if eq .System \"A\" \"S\" }}x{{ end }}{{ if ne .System \"S\" }}y{{ end }}",
                "x",
            ),
            ("{{ range .Tools }}t{{ else }}none{{ end }}", "none"),
            ("plain { } text", "plain { } text"),
        ] {
            assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn what_go_cannot_parse_is_a_syntax_error_in_its_words() {
        for (source, expected) in [
            ("{{ .Prompt", "template: :1: unclosed action"),
            ("a\n{{ if .System }}b", "template: :2: unexpected EOF"),
            ("{{ end }}", "template: :1: unexpected {{end}}"),
            ("{{ }}", "template: :1: missing value for command"),
            ("{{ foo .Prompt }}", "template: :1: function \"foo\" not defined"),
            ("{{ \"a }}", "template: :1: unterminated quoted string"),
            ("{{ (.Prompt }}", "template: :1: unclosed left paren"),
            (
                "{{ if ne .System \"a\" \"b\" }}{{ end }}",
                "template: :1: wrong number of args",
            ),
            ("{{ $x.Y }}", "template: :1: undefined variable \"$x\""),
        ] {
            let error = render(source).unwrap_err();
            assert!(matches!(error, TemplateError::Syntax(_)), "{source}: {error}");
            assert_eq!(error.to_string(), expected, "{source}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (source, part) in [
            ("{{ json .Messages }}", "function \"json\""),
            ("{{ $last := 1 }}", "an assignment"),
            ("{{ .Prompt | len }}", "a pipe"),
            ("{{ with .System }}{{ end }}", "with"),
            ("{{ .Unknown }}", "field .Unknown"),
            ("{{ .Messages }}", "printing a list"),
        ] {
            let error = render(source).unwrap_err();
            assert!(matches!(error, TemplateError::Unsupported(_)), "{source}: {error}");
            assert!(error.to_string().contains(part), "{source}: {error}");
        }
    }

    #[test]
    fn nesting_and_length_are_bounded() {
        let deep = "{{ if .System }}".repeat(10_000);
        assert!(matches!(render(&deep), Err(TemplateError::Unsupported(_))));
        let wide = format!("{}x{}", "{{ range $.Messages }}".repeat(30), "{{ end }}".repeat(30));
        assert_eq!(render(&wide), Err(TemplateError::TooLong));
        let parentheses = format!("{{{{ {}.System{} }}}}", "(".repeat(10_000), ")".repeat(10_000));
        assert!(matches!(render(&parentheses), Err(TemplateError::Unsupported(_))));
    }
}
