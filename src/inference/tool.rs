//! Tools that a client offers a model.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

/// Tool that a client offers: its definition in OpenAI's shape, and the name in it.
#[derive(Clone, Debug)]
pub struct ToolDefinition {
    /// Name of the function; empty if the definition has none.
    pub name: String,
    /// Definition as the client sent it, the order of its keys kept: chat templates print it.
    pub raw: Box<RawValue>,
}

impl ToolDefinition {
    /// Creates a tool and reads the name from its definition.
    #[must_use]
    pub fn new(raw: Box<RawValue>) -> Self {
        #[derive(Deserialize)]
        struct Definition {
            function: Function,
        }
        #[derive(Deserialize)]
        struct Function {
            name: String,
        }
        let name =
            serde_json::from_str(raw.get()).map_or_else(|_| String::new(), |Definition { function }| function.name);
        Self { name, raw }
    }
}

impl Serialize for ToolDefinition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The raw text, so that numbers and the order of keys stay as the client wrote them.
        self.raw.serialize(serializer)
    }
}
