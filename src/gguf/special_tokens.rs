//! The chat template and the special tokens of a vocabulary.

use super::{GgufHeader, GgufValue};

/// Metadata key of the default chat template.
pub const CHAT_TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// Returns the default chat template (Jinja source).
#[must_use]
pub fn chat_template(header: &GgufHeader) -> Option<&str> {
    header.get(CHAT_TEMPLATE_KEY).and_then(GgufValue::as_str)
}

/// Returns the text of the beginning-of-sequence token.
#[must_use]
pub fn bos_token(header: &GgufHeader) -> Option<String> {
    token_text(header, "bos")
}

/// Returns the text of the end-of-sequence token.
#[must_use]
pub fn eos_token(header: &GgufHeader) -> Option<String> {
    token_text(header, "eos")
}

/// Returns the text of a special token, named as in the metadata keys: `bos`, `eos`, `padding`.
fn token_text(header: &GgufHeader, name: &str) -> Option<String> {
    let id = header.get(&format!("tokenizer.ggml.{name}_token_id"))?.as_u64()?;
    let bytes = header
        .get("tokenizer.ggml.tokens")?
        .as_strings()?
        .get(usize::try_from(id).ok()?)?;
    Some(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgufArray, GgufLayout};

    #[test]
    fn special_tokens() {
        let metadata = vec![
            (
                "tokenizer.ggml.tokens".to_owned(),
                GgufValue::Array(GgufArray::String(
                    ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].iter().collect(),
                )),
            ),
            ("tokenizer.ggml.bos_token_id".to_owned(), GgufValue::U32(1)),
            ("tokenizer.ggml.eos_token_id".to_owned(), GgufValue::U32(2)),
            ("tokenizer.ggml.padding_token_id".to_owned(), GgufValue::U32(3)),
            (
                CHAT_TEMPLATE_KEY.to_owned(),
                GgufValue::String("{{ messages }}".to_owned()),
            ),
        ];
        let plan = GgufLayout::new(metadata, Vec::new()).unwrap();
        let header = GgufHeader::read(plan.header(), plan.file_len()).unwrap();
        assert_eq!(bos_token(&header).as_deref(), Some("<|im_start|>"));
        assert_eq!(eos_token(&header).as_deref(), Some("<|im_end|>"));
        assert_eq!(token_text(&header, "padding"), None);
        assert_eq!(token_text(&header, "unknown"), None);
        assert_eq!(chat_template(&header), Some("{{ messages }}"));
    }
}
