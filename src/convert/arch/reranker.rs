//! Qwen 3 rerankers: language models that answer "yes" or "no". The head is made of the rows of these two tokens in the
//! output matrix (`Qwen3Model._get_cls_out_tensor` of llama.cpp's converter).

use super::{ModelBuilder, classifier, spec};
use crate::{
    convert::{ConvertError, TensorRecipe, files, parts::StoredRows, stored::StoredTensor},
    gguf::{GgufArray, GgufValue},
};

const ANSWERS: [&str; 2] = ["yes", "no"];
/// Prompt of the model card, which llama.cpp's server reads as the chat template `rerank`.
const TEMPLATE: &str = concat!(
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. ",
    "Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n",
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n",
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n",
    "<|im_start|>assistant\n<think>\n\n</think>\n\n",
);

/// Returns true if the checkpoint is a reranker. Its class is that of the language model: only its name and its card
/// tell.
pub(super) fn is_reranker(build: &ModelBuilder<'_>) -> bool {
    let is_name = |name: &str| name.to_ascii_lowercase().contains("qwen3-reranker");
    if is_name(build.name) || build.config.text(&["_name_or_path"]).is_some_and(is_name) {
        return true;
    }
    // An unreadable card counts as a missing one: the model is converted as a language model.
    let card = files::read(&build.folder.join("README.md"), files::MAX_SMALL_BYTES).unwrap_or_default();
    String::from_utf8_lossy(&card)
        .to_ascii_lowercase()
        .contains("# qwen3-reranker")
}

/// Adds the head `[2, hidden]` and its keys.
pub(super) fn head(build: &mut ModelBuilder<'_>, output: &StoredTensor) -> Result<(), ConvertError> {
    let mut rows = Vec::new();
    for answer in ANSWERS {
        let token = token(build, answer)?;
        if token >= output.rows() {
            return Err(ConvertError::Weights(format!(
                "{:?} has no row for the token {answer:?}",
                output.name
            )));
        }
        rows.push(StoredRows::some(output, token, 1, 1));
    }
    let spec = spec("cls.output.weight", &[rows.len() as u64, output.row_elements()]);
    build.recipes.push(TensorRecipe::rows(spec, rows));
    classifier::keys(build, ANSWERS)?;
    let names = GgufValue::Array(GgufArray::String(["rerank"].into_iter().collect()));
    build.keys.push(("tokenizer.chat_templates".to_owned(), names));
    let template = GgufValue::String(TEMPLATE.to_owned());
    build.keys.push(("tokenizer.chat_template.rerank".to_owned(), template));
    Ok(())
}

/// Returns the id of the token that is a word.
fn token(build: &ModelBuilder<'_>, word: &str) -> Result<u64, ConvertError> {
    let path = build.folder.join("tokenizer.json");
    let tokenizer = files::json_if_there(&path, files::MAX_TOKENIZER_BYTES)?;
    let id = tokenizer.and_then(|json| json.pointer("/model/vocab")?.get(word)?.as_u64());
    id.ok_or_else(|| ConvertError::Tokenizer(format!("a reranker needs a token {word:?} in tokenizer.json")))
}
