//! Reader of the TOML file: turns it into settings, each with its line.
//!
//! The document is walked by hand instead of deserialized with serde, so that one mistake does not hide the next and
//! each problem has a line.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::Path,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Config, ConfigProblem, ModelConfig,
    keys::{self, KEYS, MODEL_KEYS, RenamedKey, SettingKey},
    problem::SettingOrigin,
    suggest::hint,
    value::Raw,
};

const MODELS: &str = "models";
const ALIASES: &str = "aliases";

/// Content of a configuration file.
#[derive(Default)]
pub(super) struct Document {
    /// Keys that are set, in the order of [`KEYS`].
    pub settings: Vec<(&'static SettingKey<Config>, Raw, SettingOrigin)>,
    pub models: BTreeMap<String, ModelConfig>,
    pub aliases: BTreeMap<String, String>,
    /// Lines of models and aliases, which have no entry in [`KEYS`].
    pub origins: BTreeMap<String, SettingOrigin>,
    pub problems: Vec<ConfigProblem>,
    /// Settings under a deprecated name.
    pub warnings: Vec<ConfigProblem>,
}

/// Parses the text of the file at `path`. The path is only used in problems.
pub(super) fn read(text: &str, path: &Path) -> Document {
    let mut walk = DocumentReader {
        text,
        path,
        found: Document::default(),
        deprecated: Vec::new(),
    };
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        walk.root(document.get_ref());
        walk.resolve_deprecated();
    } else {
        // The parser recovers from syntax errors, but settings of a broken document would cause misleading problems.
        for error in errors {
            let sentence = error.message().trim().replace('\n', "; ");
            walk.problem(error.span().unwrap_or_default(), "", sentence);
        }
    }
    // The order in which the parser yields keys says nothing, but a shorthand has to be applied before the keys that it
    // sets.
    let mut found = walk.found;
    found
        .settings
        .sort_by_key(|(key, ..)| KEYS.iter().position(|known| known.name == key.name));
    found
}

/// Returns a component of a key path, in quotes if TOML requires them.
pub(super) fn quoted(name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if bare { name.to_owned() } else { format!("{name:?}") }
}

struct DocumentReader<'a> {
    text: &'a str,
    path: &'a Path,
    found: Document,
    /// Values under deprecated names, kept until it is known that the new name is not set too.
    deprecated: Vec<(&'static RenamedKey, Raw, SettingOrigin)>,
}

impl DocumentReader<'_> {
    fn origin(&self, span: &Range<usize>) -> SettingOrigin {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        SettingOrigin::File {
            path: self.path.to_owned(),
            line,
        }
    }

    fn problem(&mut self, span: Range<usize>, key: &str, sentence: impl Into<String>) {
        let origin = self.origin(&span);
        self.found.problems.push(ConfigProblem {
            origin,
            key: key.to_owned(),
            sentence: sentence.into(),
        });
    }

    fn root(&mut self, root: &DeTable<'_>) {
        for (name, value) in root {
            match name.get_ref().as_ref() {
                MODELS => self.table(name.span(), value, MODELS, Self::models),
                ALIASES => self.table(name.span(), value, ALIASES, Self::aliases),
                _ => self.entry("", name.span(), name.get_ref(), value),
            }
        }
    }

    fn table<'d>(
        &mut self,
        name: Range<usize>,
        value: &Spanned<DeValue<'d>>,
        path: &str,
        inside: impl FnOnce(&mut Self, &DeTable<'d>),
    ) {
        match value.get_ref().as_table() {
            Some(table) => inside(self, table),
            None => self.problem(name, path, format!("is a table; write [{path}] on a line of its own")),
        }
    }

    /// Reads a key, or a table of keys, with the given `name` below `prefix`, which is empty or ends with a dot.
    fn entry(&mut self, prefix: &str, span: Range<usize>, name: &str, value: &Spanned<DeValue<'_>>) {
        let path = format!("{prefix}{name}");
        if let Some(key) = keys::find(&path) {
            let origin = self.origin(&span);
            self.found.settings.push((key, raw(value.get_ref()), origin));
            return;
        }
        if let Some(renamed) = keys::renamed(&path) {
            let origin = self.origin(&span);
            self.deprecated.push((renamed, raw(value.get_ref()), origin));
            return;
        }
        let below = format!("{path}.");
        if KEYS.iter().any(|key| key.name.starts_with(&below)) {
            self.table(span, value, &path, |walk, table| {
                for (name, value) in table {
                    walk.entry(&below, name.span(), name.get_ref(), value);
                }
            });
            return;
        }
        let path = format!("{prefix}{}", quoted(name));
        self.problem(span, &path, format!("is not known{}", known_elsewhere(prefix, name)));
    }

    /// Adds the values under deprecated names to the settings, each with a warning. Both names together are a problem,
    /// since either value could be the intended one.
    fn resolve_deprecated(&mut self) {
        for (RenamedKey { old, new }, raw, origin) in std::mem::take(&mut self.deprecated) {
            let Some(key) = keys::find(new) else { continue };
            let is_set_twice = self.found.settings.iter().any(|(set, ..)| set.name == *new);
            let (list, sentence) = if is_set_twice {
                let sentence = format!("is the old name of {new}, which is set too; remove {old}");
                (&mut self.found.problems, sentence)
            } else {
                self.found.settings.push((key, raw, origin.clone()));
                (
                    &mut self.found.warnings,
                    format!("is deprecated; it is called {new} now"),
                )
            };
            list.push(ConfigProblem {
                origin,
                key: (*old).to_owned(),
                sentence,
            });
        }
    }

    fn models(&mut self, models: &DeTable<'_>) {
        for (name, value) in models {
            let path = format!("{MODELS}.{}", quoted(name.get_ref()));
            let origin = self.origin(&name.span());
            self.found.origins.insert(path.clone(), origin);
            self.table(name.span(), value, &path, |walk, table| {
                let model = walk.model(&path, table);
                walk.found.models.insert(name.get_ref().to_string(), model);
            });
        }
    }

    fn model(&mut self, path: &str, table: &DeTable<'_>) -> ModelConfig {
        let mut model = ModelConfig::default();
        let mut known = BTreeSet::new();
        for key in MODEL_KEYS {
            let spelled = |name: &str| key.name == name || key.other_names.contains(&name);
            let mut written: Vec<_> = table.iter().filter(|(name, _)| spelled(name.get_ref())).collect();
            // By line, so that the first spelling counts and the problem is reported at the second.
            written.sort_by_key(|(name, _)| name.span().start);
            let Some(((name, value), repeated)) = written.split_first() else {
                continue;
            };
            known.insert(name.get_ref().as_ref());
            let full = format!("{path}.{}", name.get_ref());
            match (key.read)(&mut model, &raw(value.get_ref())) {
                Ok(()) => {
                    let origin = self.origin(&name.span());
                    let set = key.sets.iter().map(|set| (format!("{path}.{set}"), origin.clone()));
                    self.found.origins.extend(set);
                }
                Err(sentence) => self.problem(name.span(), &full, sentence),
            }
            for (second, _) in repeated {
                known.insert(second.get_ref().as_ref());
                let sentence = format!("is another name of {}; keep one of the two", name.get_ref());
                self.problem(second.span(), &format!("{path}.{}", second.get_ref()), sentence);
            }
        }
        for (name, _) in table
            .iter()
            .filter(|(name, _)| !known.contains(name.get_ref().as_ref()))
        {
            let names = MODEL_KEYS
                .iter()
                .flat_map(|key| key.other_names.iter().chain([&key.name]).copied());
            let full = format!("{path}.{}", quoted(name.get_ref()));
            self.problem(
                name.span(),
                &full,
                format!("is not known{}", hint(name.get_ref(), names)),
            );
        }
        model
    }

    fn aliases(&mut self, aliases: &DeTable<'_>) {
        for (name, value) in aliases {
            let path = format!("{ALIASES}.{}", quoted(name.get_ref()));
            match value.get_ref().as_str() {
                Some(target) => {
                    let origin = self.origin(&name.span());
                    self.found.origins.insert(path, origin);
                    self.found.aliases.insert(name.get_ref().to_string(), target.to_owned());
                }
                None => self.problem(
                    name.span(),
                    &path,
                    "expected the name of a model, such as \"hf:org/repo\"",
                ),
            }
        }
    }
}

/// Returns a hint for an unknown name: a similar name in this table, or the table in which the name is known.
fn known_elsewhere(prefix: &str, name: &str) -> String {
    let here = KEYS
        .iter()
        .filter_map(|key| key.name.strip_prefix(prefix))
        .filter_map(|rest| rest.split('.').next());
    let top: &[&str] = if prefix.is_empty() { &[MODELS, ALIASES] } else { &[] };
    let near = hint(name, here.chain(top.iter().copied()));
    if !near.is_empty() {
        return near;
    }
    let elsewhere = KEYS
        .iter()
        .filter_map(|key| key.name.rsplit_once('.'))
        .find(|(_, last)| *last == name);
    elsewhere
        .map(|(table, _)| format!(" (it belongs in [{table}])"))
        .unwrap_or_default()
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        // A number beyond 128 bits fits no key either; the largest one is refused with a sentence about the range.
        DeValue::Integer(number) => {
            Raw::Integer(i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX))
        }
        // Every key refuses NaN.
        DeValue::Float(number) => Raw::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => Raw::Boolean(*flag),
        DeValue::Datetime(_) => Raw::Date,
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Table(_) => Raw::Table,
    }
}
