//! Go's `text/template`, filled with a conversation as Ollama fills it.
//!
//! [`GoTemplate::parse`] splits the source into tokens (`lex`) and builds a syntax tree (`parse`, `syntax`);
//! [`GoTemplate::render`] evaluates it (`execute`, `functions`, `value`) with the fields that Ollama offers (`chat`).
//!
//! The chat templates inside model files are Jinja and not rendered here. These templates come from clients: the
//! `template` of a request, and the `TEMPLATE` of a model that a client created. They are untrusted, so source,
//! nesting, work and output are bounded. The parts of the language that are left out (`define`, `template`, `block` and
//! a few functions) are named in the error.

mod chat;
mod error;
mod execute;
mod functions;
mod lex;
mod parse;
mod syntax;
#[cfg(test)]
mod tests;
mod value;

pub use self::error::TemplateError;
use self::syntax::TemplateNode;

/// Largest source of a template in bytes.
const MAX_SOURCE_BYTES: usize = 256 << 10;

/// Parsed template.
#[derive(Clone, Debug)]
pub struct GoTemplate {
    nodes: Vec<TemplateNode>,
    /// Names of all fields in lower case, sorted.
    names: Vec<String>,
}

impl GoTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// Returns an error if Go could not parse it either, or if it uses a part of the language that is left out here.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::unsupported(format!(
                "a template of more than {MAX_SOURCE_BYTES} bytes"
            )));
        }
        let mut nodes = parse::parse(source)?;
        let mut names = Vec::new();
        parse::collect_names(&nodes, &mut names);
        names.sort();
        names.dedup();
        let has = |name: &str| names.binary_search_by(|used| used.as_str().cmp(name)).is_ok();
        if !has("messages") && !has("response") {
            // Ollama appends `{{ .Response }}`, too: a template of one turn has the answer at its end.
            nodes.push(chat::response());
        }
        Ok(Self { nodes, names })
    }

    /// Returns true if the template uses a field of this lower-case name, such as `suffix`, in any case.
    #[must_use]
    pub fn uses(&self, name: &str) -> bool {
        self.names.iter().any(|used| used == name)
    }
}
