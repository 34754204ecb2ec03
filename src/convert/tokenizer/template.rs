//! Chat templates of a checkpoint, from the four places where versions of transformers keep them (`SpecialVocab` in
//! llama.cpp's `gguf-py`).

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::{
    convert::{ConvertError, files},
    gguf::{GgufArray, GgufValue},
};

/// Limit on named templates. Published models have at most three.
const MAX_TEMPLATES: usize = 64;
const FOLDER: &str = "additional_chat_templates";

/// Returns the templates as metadata: the default one, then those with a name.
pub(super) fn metadata(folder: &Path, config: &Map<String, Json>) -> Result<Vec<(String, GgufValue)>, ConvertError> {
    let templates = find(folder, config)?;
    let mut out = Vec::new();
    let mut names = Vec::new();
    for (name, template) in templates.into_iter().take(MAX_TEMPLATES) {
        // `gguf-py` replaces other characters in the same way, since the name becomes part of a key.
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        if name == "default" {
            out.push(("tokenizer.chat_template".to_owned(), GgufValue::String(template)));
        } else if !name.is_empty() && !names.contains(&name) {
            out.push((format!("tokenizer.chat_template.{name}"), GgufValue::String(template)));
            names.push(name);
        }
    }
    if !names.is_empty() {
        let names = GgufValue::Array(GgufArray::String(names.iter().collect()));
        out.push(("tokenizer.chat_templates".to_owned(), names));
    }
    Ok(out)
}

/// Returns names and templates from the first place that has some. The template that is used by default is called
/// `default`.
fn find(folder: &Path, config: &Map<String, Json>) -> Result<Vec<(String, String)>, ConvertError> {
    let of_config = config.get("chat_template").map(named).unwrap_or_default();
    if !of_config.is_empty() {
        return Ok(of_config);
    }
    if let Some(template) = files::text_if_there(&folder.join("chat_template.jinja"))? {
        let mut all = vec![("default".to_owned(), template)];
        let more = folder.join(FOLDER);
        if more.is_dir() {
            let mut paths = Vec::new();
            for entry in std::fs::read_dir(&more).map_err(ConvertError::io(&more, "read"))? {
                paths.push(entry.map_err(ConvertError::io(&more, "read"))?.path());
            }
            // Sorted, because the order of a directory differs between machines.
            paths.sort();
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
            for path in paths.iter().take(MAX_TEMPLATES) {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                if let Some(template) = files::text_if_there(path)? {
                    all.push((name, template));
                }
            }
        }
        return Ok(all);
    }
    // Both belong to multimodal models: the first to newer versions of transformers, the second to older ones.
    for file in ["chat_template.json", "processor_config.json"] {
        let json = files::object_if_there(&folder.join(file))?.unwrap_or_default();
        let templates = json.get("chat_template").map(named).unwrap_or_default();
        if !templates.is_empty() {
            return Ok(templates);
        }
    }
    Ok(Vec::new())
}

/// Returns a single template as `default`, or the templates of a list.
fn named(value: &Json) -> Vec<(String, String)> {
    match value {
        Json::String(template) => vec![("default".to_owned(), template.clone())],
        Json::Array(list) => list
            .iter()
            .filter_map(|entry| {
                let text = |key: &str| entry.get(key).and_then(Json::as_str).map(str::to_owned);
                Some((text("name")?, text("template")?))
            })
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn keys(folder: &Path, config: Json) -> Vec<(String, GgufValue)> {
        metadata(folder, config.as_object().unwrap()).unwrap()
    }

    fn text(key: &str, text: &str) -> (String, GgufValue) {
        (key.to_owned(), GgufValue::String(text.to_owned()))
    }

    #[test]
    fn every_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(keys(path, json!({})), []);
        fs::write(
            path.join("processor_config.json"),
            r#"{"chat_template":"from processor"}"#,
        )
        .unwrap();
        assert_eq!(
            keys(path, json!({})),
            [text("tokenizer.chat_template", "from processor")]
        );
        fs::write(path.join("chat_template.json"), r#"{"chat_template":"from json"}"#).unwrap();
        assert_eq!(keys(path, json!({})), [text("tokenizer.chat_template", "from json")]);
        fs::write(path.join("chat_template.jinja"), "from jinja").unwrap();
        assert_eq!(keys(path, json!({})), [text("tokenizer.chat_template", "from jinja")]);
        fs::create_dir(path.join(FOLDER)).unwrap();
        fs::write(path.join(FOLDER).join("tool-use.jinja"), "tools").unwrap();
        fs::write(path.join(FOLDER).join("README.md"), "no").unwrap();
        let names = GgufValue::Array(GgufArray::String(["tool_use"].iter().collect()));
        let expected = [
            text("tokenizer.chat_template", "from jinja"),
            text("tokenizer.chat_template.tool_use", "tools"),
            ("tokenizer.chat_templates".to_owned(), names),
        ];
        assert_eq!(keys(path, json!({})), expected);
        assert_eq!(
            keys(path, json!({"chat_template": "from config"})),
            [text("tokenizer.chat_template", "from config")]
        );
        let list =
            json!({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}, 1]});
        assert_eq!(
            keys(path, list)[..2],
            [
                text("tokenizer.chat_template.rag", "r"),
                text("tokenizer.chat_template", "d")
            ]
        );
    }
}
