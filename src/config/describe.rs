//! The configuration for people: JSON for `GET /config`, text for `hubllama config check`. Secrets are replaced by
//! `[redacted]`.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use super::{
    Config, ConfigInputs, ConfigProblem, LoadedConfig,
    document::quoted,
    env,
    keys::{KEYS, MODEL_KEYS},
    load,
    problem::SettingOrigin,
};

/// Returns every value as JSON in the structure of the file.
fn redacted(config: &Config) -> Json {
    let mut root = Map::new();
    for key in KEYS.iter().filter(|key| !key.is_shorthand()) {
        let mut path: Vec<&str> = key.name.split('.').collect();
        let last = path.pop().unwrap_or_default();
        insert(&mut root, &path, last, (key.show)(config));
    }
    let model = |model| {
        let set = MODEL_KEYS
            .iter()
            .filter(|key| !key.is_shorthand())
            .map(|key| (key.name.to_owned(), (key.show)(model)));
        Json::Object(set.filter(|(_, value)| !value.is_null()).collect())
    };
    let models = config
        .models
        .iter()
        .map(|(name, settings)| (name.clone(), model(settings)))
        .collect();
    root.insert("models".into(), Json::Object(models));
    root.insert("aliases".into(), json!(config.aliases));
    Json::Object(root)
}

fn insert(table: &mut Map<String, Json>, path: &[&str], name: &str, value: Json) {
    match path.split_first() {
        None => {
            table.insert(name.to_owned(), value);
        }
        Some((first, rest)) => {
            let below = table.entry(*first).or_insert_with(|| Json::Object(Map::new()));
            if let Json::Object(below) = below {
                insert(below, rest, name, value);
            }
        }
    }
}

/// Returns every value with its source, hidden values and warnings: the answer to `GET /config`.
pub(super) fn describe(loaded: &LoadedConfig) -> Json {
    json!({
        "path": loaded.path,
        "config": redacted(&loaded.config),
        "sources": loaded.origins,
        "shadowed": loaded.shadowed,
        "warnings": loaded.warnings,
    })
}

/// Result of `hubllama config check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// Lines to print; the last one ends with a newline, too.
    pub text: String,
    /// True when the daemon would start with this configuration.
    pub good: bool,
}

/// Loads all sources and reports the files, the problems, and every value with its source.
#[must_use]
pub fn check_report(inputs: &ConfigInputs) -> CheckReport {
    let (loaded, problems) = load::attempt(inputs);
    let good = problems.is_empty();
    let text = report_text(&loaded, &problems);
    CheckReport { text, good }
}

fn report_text(loaded: &LoadedConfig, problems: &[ConfigProblem]) -> String {
    let mut text = String::new();
    match (&loaded.path, &loaded.text) {
        (Some(path), Some(_)) => line(&mut text, format_args!("file      {}", path.display())),
        (Some(path), None) => line(&mut text, format_args!("file      {} (not there)", path.display())),
        (None, _) => line(
            &mut text,
            format_args!("file      none: there is no home folder to look in"),
        ),
    }
    line(
        &mut text,
        format_args!("state     {}", loaded.config.state_dir.display()),
    );

    section(&mut text, "problems", problems);
    section(&mut text, "warnings", &loaded.warnings);
    section(&mut text, "hidden", &loaded.shadowed);

    line(&mut text, format_args!("\nvalues"));
    for key in KEYS.iter().filter(|key| !key.is_shorthand()) {
        let value = (key.show)(&loaded.config);
        let origin = loaded.origin(key.name);
        // A default without a value carries no information.
        if origin == SettingOrigin::Default && value.is_null() {
            continue;
        }
        let names = env::names_of(key.name);
        let hint = if names.is_empty() || origin != SettingOrigin::Default {
            String::new()
        } else {
            format!(", or {}", names[0])
        };
        line(&mut text, format_args!("  {} = {value}  # {origin}{hint}", key.name));
    }
    for (name, model) in &loaded.config.models {
        let path = format!("models.{}", quoted(name));
        line(&mut text, format_args!("  {path}  # {}", loaded.origin(&path)));
        for key in MODEL_KEYS.iter().filter(|key| !key.is_shorthand()) {
            let value = (key.show)(model);
            if !value.is_null() {
                let key = format!("{path}.{}", key.name);
                line(&mut text, format_args!("  {key} = {value}  # {}", loaded.origin(&key)));
            }
        }
    }
    for (alias, target) in &loaded.config.aliases {
        let path = format!("aliases.{}", quoted(alias));
        line(
            &mut text,
            format_args!("  {path} = {target:?}  # {}", loaded.origin(&path)),
        );
    }

    let verdict = match problems.len() {
        0 => "\nThe configuration is good.".to_owned(),
        1 => {
            "\n1 problem; the daemon does not start with this configuration, and a reload does not apply it.".to_owned()
        }
        count => {
            format!(
                "\n{count} problems; the daemon does not start with this configuration, and a reload does not apply it."
            )
        }
    };
    line(&mut text, format_args!("{verdict}"));
    text
}

fn section(text: &mut String, title: &str, entries: &[impl std::fmt::Display]) {
    if !entries.is_empty() {
        line(text, format_args!("\n{title}"));
    }
    for entry in entries {
        line(text, format_args!("  {entry}"));
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{arguments}");
}
