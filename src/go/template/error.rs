//! Failure to parse or render a template.

/// Reason why a template gave no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Source that is no Go template. The text is Go's.
    #[error("template: {0}")]
    Syntax(String),
    /// Use of something that does not exist, such as a field that messages do not have.
    #[error("template: {0}")]
    Execution(String),
    /// Go template that uses a part of the language that is left out here.
    #[error("template: {0} is not understood for hf: models; use the model's own template, or raw")]
    Unsupported(String),
    /// Rendering beyond the limits of work or output.
    #[error("template: the rendered prompt is too long")]
    TooLong,
}

impl TemplateError {
    /// Returns the error that Go's parser gives for a line, counted from 1.
    pub(super) fn syntax(line: usize, message: &str) -> Self {
        Self::Syntax(format!(":{line}: {message}"))
    }

    pub(super) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported(what.into())
    }
}
