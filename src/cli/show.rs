//! The command `show`: prints the properties of a model, its origin, and whether the Hub has an update.

use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::{client::Daemon, models::UPDATE_PATIENCE};
use crate::{
    config::{self, Config, ConfigInputs},
    gguf,
    hub::HfName,
    library::{AvailableUpdate, Library, LocalModel},
    provider::facts,
    stdx::size::human_bytes,
};

/// Width of the labels in columns.
const LABEL_WIDTH: usize = 14;

pub(super) async fn show(inputs: &ConfigInputs, name: &str, updates: bool) -> anyhow::Result<ExitCode> {
    let config = config::load(inputs)?.config;
    let shown = match Daemon::find(&config).await? {
        Some(daemon) => daemon.post("/api/show", &json!({ "model": name })).await?,
        None => {
            eprintln!("no daemon is running; looking in {}", config.hub.cache_dir.display());
            let library = Library::new(&config.state_dir);
            let model = library.locate(&config.hub, &HfName::parse(name)?).await?;
            local(&library, &model).await?
        }
    };
    print!("{}", sheet(name, &shown));
    let library = Library::new(&config.state_dir);
    if updates {
        let text = match library.update(&config.hub, &HfName::parse(name)?).await? {
            None => "none: the Hub has the same files".to_owned(),
            Some(update) => update_text(name, &update),
        };
        println!("{}", row("update", &text));
    } else if let Some(update) = known_update(&library, &config, name).await {
        println!("{}", row("update", &update_text(name, &update)));
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the update of a model if it is known or the Hub answers at once; `None` for a model outside of this user's
/// caches.
async fn known_update(library: &Library, config: &Config, name: &str) -> Option<AvailableUpdate> {
    let models = [library.locate(&config.hub, &HfName::parse(name).ok()?).await.ok()?];
    let updates = library.updates(&config.hub, &models, &config.state_dir, UPDATE_PATIENCE);
    updates.await.pop()?
}

fn update_text(name: &str, update: &AvailableUpdate) -> String {
    format!(
        "{} to fetch, commit {}; hubllama pull {name}",
        human_bytes(update.bytes),
        update.commit.get(..12).unwrap_or(&update.commit)
    )
}

/// Returns the part of `/api/show`'s answer that can be read from the files alone.
async fn local(library: &Library, model: &LocalModel) -> anyhow::Result<Value> {
    let headers: Result<Vec<gguf::GgufHeader>, _> = model
        .base
        .files
        .iter()
        .map(|file| gguf::GgufHeader::open(file))
        .collect();
    let headers = headers?;
    let mut facts = facts::model_facts(&headers);
    if let Some(Ok(projector)) = model.base.mmproj.as_deref().map(gguf::GgufHeader::open) {
        facts::add_projector(&mut facts, &projector);
    }
    let has_template = headers.first().and_then(gguf::chat_template).is_some();
    let mut info = facts::model_info(&headers, false);
    let provenance = library.provenance(model).await;
    info.extend(provenance.keys(if has_template { "gguf" } else { "none" }));
    let capabilities: Vec<Value> = facts.capabilities.iter().map(|capability| json!(capability)).collect();
    Ok(json!({
        "details": { "family": facts.architecture, "quantization_level": facts.quantization },
        "model_info": info,
        "capabilities": capabilities,
    }))
}

/// Formats the answer of `/api/show` for the terminal.
fn sheet(name: &str, shown: &Value) -> String {
    let text = |pointer: &str| {
        shown
            .pointer(pointer)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    let empty = Map::new();
    let info = shown.get("model_info").and_then(Value::as_object).unwrap_or(&empty);
    let own = |key: &str| info.get(&format!("hubllama.{key}")).and_then(Value::as_str);
    let number = |suffix: &str| {
        let architecture = info.get("general.architecture").and_then(Value::as_str)?;
        info.get(&format!("{architecture}.{suffix}")).and_then(Value::as_u64)
    };
    let mut lines = vec![name.to_owned()];
    let mut add = |label: &str, value: Option<String>| lines.extend(value.map(|value| row(label, &value)));
    add("architecture", text("/details/family").map(str::to_owned));
    add(
        "parameters",
        info.get("general.parameter_count")
            .and_then(Value::as_u64)
            .map(human_count),
    );
    add("quantization", text("/details/quantization_level").map(str::to_owned));
    add(
        "context",
        number("context_length").map(|tokens| format!("{tokens} tokens")),
    );
    add("embedding", number("embedding_length").map(|width| width.to_string()));
    let capabilities: Vec<&str> = shown
        .get("capabilities")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    add(
        "capabilities",
        Some(capabilities.join(", ")).filter(|text| !text.is_empty()),
    );
    let license = own("license").or_else(|| info.get("general.license").and_then(Value::as_str));
    add("license", license.map(str::to_owned));
    add("repository", own("repository").map(str::to_owned));
    add("commit", own("commit").map(str::to_owned));
    add("pulled from", own("endpoint").map(str::to_owned));
    let files = info.get("hubllama.files").and_then(Value::as_array);
    for file in files.into_iter().flatten() {
        let field = |key: &str| file.get(key).and_then(Value::as_str);
        let size = human_bytes(file.get("size").and_then(Value::as_u64).unwrap_or(0));
        add("file", Some(format!("{}  {size}", field("path").unwrap_or("-"))));
        add("  sha256", field("sha256").map(str::to_owned));
        add("  git sha1", field("git_sha1").map(str::to_owned));
    }
    let adapters = info.get("hubllama.adapters").and_then(Value::as_array);
    for adapter in adapters.into_iter().flatten() {
        let field = |key: &str| adapter.get(key).and_then(Value::as_str).unwrap_or("-");
        add("adapter", Some(field("repository").to_owned()));
        add("  commit", Some(field("commit").to_owned()));
    }
    add("template", own("template_source").map(str::to_owned));
    add("tokenizer", own("tokenizer_check").map(str::to_owned));
    add(
        "downloaded by",
        info.get("hubllama.downloaded").and_then(Value::as_bool).map(|ours| {
            let who = if ours {
                "hubllama"
            } else {
                "another program; hubllama rm only unlists it"
            };
            who.to_owned()
        }),
    );
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn row(label: &str, value: &str) -> String {
    // The text comes from a model card or a GGUF file. Control characters in it could rewrite the screen.
    let value: String = value.chars().filter(|c| !c.is_control()).collect();
    format!("  {label:LABEL_WIDTH$} {value}")
}

/// Formats a count with one decimal, for example 134515008 as `134.5M`.
fn human_count(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let number = count as f64;
    [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")]
        .iter()
        .find(|(unit, _)| number >= *unit)
        .map_or_else(
            || count.to_string(),
            |(unit, name)| format!("{:.1}{name}", number / unit),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_has_what_the_daemon_says() {
        let shown = json!({
            "details": {"family": "llama", "quantization_level": "Q4_1"},
            "capabilities": ["completion", "tools"],
            "model_info": {
                "general.architecture": "llama",
                "general.parameter_count": 134_515_008,
                "llama.context_length": 8192,
                "hubllama.repository": "o/r",
                "hubllama.license": "apache\u{1b}[2J-2.0",
                "hubllama.files": [{"path": "m-Q4_1.gguf", "size": 98_362_432, "sha256": "ab"}],
                "hubllama.downloaded": true,
                "hubllama.tokenizer_check": "equal: the engine cuts 22 of 22 texts into the checkpoint's own tokens",
            },
        });
        let text = sheet("hf:o/r:Q4_1", &shown);
        for line in [
            "hf:o/r:Q4_1\n",
            "  parameters     134.5M\n",
            "  context        8192 tokens\n",
            "  capabilities   completion, tools\n",
            "  license        apache[2J-2.0\n",
            "    sha256       ab\n",
            "  downloaded by  hubllama\n",
            "  tokenizer      equal: the engine cuts 22 of 22",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        assert_eq!(sheet("plain", &json!({})), "plain\n");
        assert_eq!(human_count(999), "999");
    }
}
