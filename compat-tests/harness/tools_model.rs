//! A model that supports tools and reasoning: the weights of SmolLM2 with another chat template.
//!
//! It never makes a call or reasons by itself. At temperature 0 it copies what its history repeats, so a test that
//! needs a call or reasoning repeats one in the history.

use std::{
    fs::{self, File},
    io::{BufWriter, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use hubllama::gguf::{GgufHeader, GgufLayout, GgufValue, TensorSpec};
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use super::fixture_file;

/// Repository of the model in a daemon's cache.
pub(crate) const REPO: &str = "Example-Org/Tools-GGUF";
/// Canonical name of the model.
pub(crate) const MODEL: &str = "hf:Example-Org/Tools-GGUF:Q4_1";
/// File name in the repository.
pub(crate) const FILE: &str = "tools-Q4_1.gguf";

const TEMPLATE: &str = include_str!("../../fixtures/templates/tools-and-thinking.jinja");

/// One tool call in the template's format. `CITY` stands for the city in the question.
pub(crate) const CALL: &str =
    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"CITY\"}}\n</tool_call>";
/// Reasoning and an answer.
pub(crate) const THOUGHT: &str = "<think>\nThe user asks about CITY.\n</think>\n\nIt is sunny.";

/// Returns two calls, for the city in the question and for London.
pub(crate) fn two_calls() -> String {
    format!("{CALL}\n{}", CALL.replace("CITY", "London"))
}

/// Returns a conversation in which every question has this answer, followed by a question about Paris.
pub(crate) fn history(answer: &str) -> Json {
    let turns = ["Rome", "Oslo", "Bern", "Lima", "Cairo"].into_iter().flat_map(|city| {
        [
            json!({"role": "user", "content": format!("Weather in {city}?")}),
            json!({"role": "assistant", "content": answer.replace("CITY", city)}),
        ]
    });
    turns
        .chain([json!({"role": "user", "content": "Weather in Paris?"})])
        .collect()
}

/// Returns the definition of the tool.
pub(crate) fn tool() -> Json {
    json!({"type": "function", "function": {
        "name": "get_weather", "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }})
}

/// Returns the path of the file, which the first caller writes next to the original unless an earlier run did.
pub(crate) fn gguf() -> PathBuf {
    static WRITTEN: OnceLock<PathBuf> = OnceLock::new();
    let written = WRITTEN.get_or_init(|| {
        let hash = Sha256::digest(TEMPLATE);
        let path =
            fixture_file::gguf().with_file_name(format!("tools-{:02x}{:02x}{:02x}.gguf", hash[0], hash[1], hash[2]));
        if !path.exists() {
            let whole = path.with_extension("new");
            write_with(
                &[("tokenizer.chat_template", GgufValue::String(TEMPLATE.into()))],
                &whole,
            );
            fs::rename(whole, &path).expect("renamed");
        }
        path
    });
    written.clone()
}

/// Writes a copy of the real model with these metadata keys replaced or added.
pub(crate) fn write_with(keys: &[(&str, GgufValue)], path: &Path) {
    let original = fixture_file::gguf();
    let header = GgufHeader::open(&original).expect("a model");
    let replaced = header.metadata.iter().map(|(key, value)| {
        let new = keys.iter().find(|(replaced, _)| *replaced == key);
        (key.to_owned(), new.map_or(value, |(_, value)| value).clone())
    });
    let added = keys.iter().filter(|(key, _)| header.get(key).is_none());
    let metadata = replaced.chain(added.map(|(key, value)| ((*key).to_owned(), value.clone())));
    let tensors = header
        .tensors
        .iter()
        .map(|tensor| TensorSpec::new(&tensor.name, tensor.element_type, tensor.dims.clone()));
    let plan = GgufLayout::new(metadata.collect(), tensors.collect()).expect("a plan");
    let mut weights = File::open(original).expect("a model");
    let file = File::create(path).expect("a file");
    plan.write(BufWriter::new(file), |tensor, out| {
        let at = header
            .tensors
            .iter()
            .find(|other| other.name == tensor.name)
            .expect("the same tensors");
        weights.seek(SeekFrom::Start(header.data_start + at.offset))?;
        std::io::copy(&mut (&weights).take(at.byte_len().expect("a size")), out).map(drop)
    })
    .expect("written");
}
