//! `hubllama template`: renders sample conversations with a model's chat template, and compares it with the template in
//! the repository.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use serde_json::Value;

use super::args::TemplateArguments;
use crate::{
    config::{self, Config, ConfigInputs},
    gguf::{self, GgufHeader},
    hub::HfName,
    library::Library,
    worker::{ProbeReport, PromptComparison, template_report},
};

/// Prefixes of links to repositories in the metadata of GGUF files.
const HUB_URLS: [&str; 2] = ["https://huggingface.co/", "https://hf.co/"];

/// A chat template and its source.
struct FoundTemplate {
    place: String,
    source: String,
}

/// Runs the command. The exit status is 1 if the two templates render differently.
pub(super) async fn run(inputs: &ConfigInputs, arguments: &TemplateArguments) -> anyhow::Result<ExitCode> {
    let config = config::load(inputs)?.config;
    let library = Library::new(&config.state_dir);
    let (path, name) = locate(&library, &config, &arguments.name).await?;
    let header = GgufHeader::open(&path).with_context(|| format!("{} is not a usable GGUF file", path.display()))?;
    if let Err(refusal) = gguf::precheck(&header) {
        bail!("{} cannot be loaded: {refusal}", path.display());
    }
    row("file", &path.display().to_string());
    let own = gguf::chat_template(&header).map(|source| FoundTemplate {
        place: "the file's key tokenizer.chat_template".into(),
        source: source.to_owned(),
    });
    let repositories = repositories(arguments.against.as_deref(), name, &header)?;
    let other = of_repository(&library, &config, &repositories).await;
    let (shown, other) = match (own, other) {
        (Some(own), other) => (own, other),
        (None, Some(other)) => {
            row("", "the file has no template; hubllama sends the messages' text alone");
            (other, None)
        }
        (None, None) => {
            row("template", "none: hubllama sends the messages' text alone");
            return Ok(ExitCode::SUCCESS);
        }
    };
    row("template", &format!("{}, {} bytes", shown.place, shown.source.len()));
    match &other {
        Some(other) => row("other", &format!("{}, {} bytes", other.place, other.source.len())),
        None => row("other", "no other template was found"),
    }
    let (bos, eos) = (
        gguf::bos_token(&header).unwrap_or_default(),
        gguf::eos_token(&header).unwrap_or_default(),
    );
    let report = template_report(
        &path,
        &shown.source,
        other.as_ref().map(|other| other.source.as_str()),
        &bos,
        &eos,
    )?;
    let flags = |wanted: bool| {
        let named = report.flags.iter().filter(|(_, value)| value.as_bool() == Some(wanted));
        named.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    };
    row("yes", &flags(true));
    row("no", &flags(false));
    let thinking = if report.thinking_start_tag.is_empty() {
        "not separated".to_owned()
    } else {
        format!("{:?} to {:?}", report.thinking_start_tag, report.thinking_end_tags)
    };
    row("thinking", &thinking);
    row("answer", &format!("begins with {:?}", report.generation_prompt));
    if !report.stops.is_empty() {
        row("stops", &format!("{:?}", report.stops));
    }
    for conversation in &report.conversations {
        print_conversation(conversation);
    }
    let comparisons = report.conversations.iter().filter_map(|one| one.comparison.as_ref());
    let is_same = comparisons
        .into_iter()
        .all(|comparison| matches!(comparison, PromptComparison::Identical | PromptComparison::BothRefuse));
    Ok(if is_same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn row(what: &str, text: &str) {
    println!("{what:9} {text}");
}

/// Returns the path of a GGUF file: `name` itself, or the first file of the model in the cache with that name.
async fn locate(library: &Library, config: &Config, name: &str) -> anyhow::Result<(PathBuf, Option<HfName>)> {
    let path = Path::new(name);
    if path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
        && path.is_file()
    {
        return Ok((path.to_owned(), None));
    }
    let parsed =
        HfName::parse(name).with_context(|| format!("{name} is neither a GGUF file nor the name of a model"))?;
    let local = library
        .locate(&config.hub, &parsed)
        .await
        .with_context(|| format!("it is not in {}; pull it first", config.hub.cache_dir.display()))?;
    let path = local.base.files.into_iter().next().context("the model has no files")?;
    let name = HfName {
        org: local.base.org,
        repo: local.base.repo,
        ..parsed
    };
    Ok((path, Some(name)))
}

/// Returns the repositories that may have a template, in the order in which they are asked.
fn repositories(against: Option<&str>, own: Option<HfName>, header: &GgufHeader) -> anyhow::Result<Vec<HfName>> {
    if let Some(against) = against {
        let name = match against
            .get(..3)
            .is_some_and(|prefix| prefix.eq_ignore_ascii_case("hf:"))
        {
            true => HfName::parse(against)?,
            false => HfName::parse(&format!("hf:{against}"))?,
        };
        return Ok(vec![name]);
    }
    let base = header
        .get("general.base_model.0.repo_url")
        .and_then(gguf::GgufValue::as_str)
        .and_then(|url| HUB_URLS.iter().find_map(|hub| url.strip_prefix(hub)))
        .and_then(|repository| HfName::parse(&format!("hf:{repository}")).ok());
    Ok(own.into_iter().chain(base).collect())
}

/// Returns the template of the first repository that has one.
async fn of_repository(library: &Library, config: &Config, repositories: &[HfName]) -> Option<FoundTemplate> {
    for name in repositories {
        let repository = name.repo_id();
        // In the order of transformers, which prefers the file to the key.
        for file in ["chat_template.jinja", "tokenizer_config.json"] {
            let text = match library.text(&config.hub, name, file).await {
                Ok(text) => text,
                Err(error) => {
                    // Not fatal: the file's own template can be shown without another.
                    eprintln!("{repository} could not be asked for {file}: {error}");
                    continue;
                }
            };
            let source = match text {
                Some(text) if file.ends_with(".json") => template_of(&text),
                other => other,
            };
            if let Some(source) = source {
                let place = format!("{file} of {repository}");
                return Some(FoundTemplate { place, source });
            }
        }
    }
    None
}

/// Returns `chat_template` of a tokenizer configuration: a text, or the default one of a list of named texts.
fn template_of(tokenizer_config: &str) -> Option<String> {
    let config: Value = serde_json::from_str(tokenizer_config).ok()?;
    match config.get("chat_template")? {
        Value::String(source) => Some(source.clone()),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str().map(str::to_owned)),
        _ => None,
    }
}

fn print_conversation(conversation: &ProbeReport) {
    println!("\n{}:", conversation.name);
    match &conversation.prompt {
        Ok(prompt) => {
            println!("--- {} tokens", conversation.tokens);
            println!("{prompt}");
            println!("---");
        }
        Err(reason) => println!("the template rejects it: {reason}"),
    }
    match &conversation.comparison {
        None => {}
        Some(PromptComparison::Identical) => println!("identical"),
        Some(PromptComparison::BothRefuse) => println!("the other template rejects it, too"),
        Some(PromptComparison::OneRefuses { reason }) => {
            println!("different: only one of the templates renders it ({reason})")
        }
        Some(PromptComparison::Differs {
            same,
            before,
            ours,
            theirs,
        }) => {
            println!("different after {same} tokens, after {before:?}");
            println!("  this one goes on with  {ours:?}");
            println!("  the other goes on with {theirs:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizer_configuration_has_one_template_or_several() {
        assert_eq!(template_of(r#"{"chat_template": "x"}"#).as_deref(), Some("x"));
        let several = r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#;
        assert_eq!(template_of(several).as_deref(), Some("d"));
        for none in ["{}", "[]", "no JSON", r#"{"chat_template": null}"#] {
            assert_eq!(template_of(none), None, "{none}");
        }
    }
}
