//! Merges the sources of the configuration: file, environment, command line. All problems are collected, so that one
//! run of `hubllama config check` shows every mistake.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::{
    Config, ConfigProblem, ConfigProblems, document,
    env::{self, Environment},
    keys::{self, ORGANIZATION_TOKENS, SettingKey, TOKEN, TOKEN_FILE},
    paths::{self, ConfigPath},
    problem::{SettingOrigin, ShadowedValue},
    suggest::hint,
    validate::validate,
    value::{Codec as _, PathCodec, Raw},
};
use crate::stdx::Secret;

/// Size limit of a configuration file. A real one has a few kilobytes; a larger file is a mistake in the path.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Inputs of a load other than the files themselves.
#[derive(Clone, Debug, Default)]
pub struct ConfigInputs {
    /// Value of `--config`.
    pub path: Option<PathBuf>,
    /// Keys and values from the command line, such as (`server.listen`, `127.0.0.1:0`). Lists are separated by commas.
    pub overrides: Vec<(String, String)>,
    pub environment: Environment,
}

impl ConfigInputs {
    /// Returns inputs with the environment of this process. Variables that are not UTF-8 are left out.
    #[must_use]
    pub fn from_process(path: Option<PathBuf>, overrides: Vec<(String, String)>) -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self {
            path,
            overrides,
            environment,
        }
    }
}

/// A configuration with the sources of its values.
#[derive(Clone, Debug)]
pub struct LoadedConfig {
    pub config: Config,
    /// Path of the configuration file, which need not exist.
    pub path: Option<PathBuf>,
    /// Content of the file, secret because it may hold a token; `None` if there is no file.
    pub text: Option<Secret<String>>,
    /// Sources of the keys that are set; all other keys have their default.
    pub origins: BTreeMap<String, SettingOrigin>,
    /// Values that a stronger source overrides.
    pub shadowed: Vec<ShadowedValue>,
    /// Settings that work but are probably not intended.
    pub warnings: Vec<ConfigProblem>,
    /// Files whose change changes the configuration, including files that do not exist yet.
    pub files: Vec<PathBuf>,
}

impl LoadedConfig {
    /// Returns the source of the value of `key`.
    #[must_use]
    pub fn origin(&self, key: &str) -> SettingOrigin {
        origin_of(&self.origins, key)
    }
}

/// Reads and validates all sources.
///
/// # Errors
///
/// [`ConfigProblems`] with the problems of all sources.
pub fn load(inputs: &ConfigInputs) -> Result<LoadedConfig, ConfigProblems> {
    let (loaded, problems) = attempt(inputs);
    if problems.is_empty() {
        Ok(loaded)
    } else {
        Err(ConfigProblems(problems))
    }
}

/// Does the work of [`load`], but returns whatever could be read along with the problems, so that it can be shown.
pub(super) fn attempt(inputs: &ConfigInputs) -> (LoadedConfig, Vec<ConfigProblem>) {
    let mut merge = SourceMerge::default();
    let file = paths::config_path(inputs.path.as_deref(), &inputs.environment);
    let text = file.as_ref().and_then(|file| merge.file(file));
    merge.environment(&inputs.environment);
    merge.command_line(&inputs.overrides);
    merge.finish(&inputs.environment);

    let SourceMerge {
        config,
        origins,
        shadowed,
        mut warnings,
        mut problems,
        mut files,
        ..
    } = merge;
    let findings = validate(&config);
    let attach = |(key, sentence): (String, String)| ConfigProblem {
        origin: origin_of(&origins, &key),
        key,
        sentence,
    };
    problems.extend(findings.problems.into_iter().map(attach));
    warnings.extend(findings.warnings.into_iter().map(attach));
    problems.sort_by(|a, b| a.origin.cmp(&b.origin));
    warnings.sort_by(|a, b| a.origin.cmp(&b.origin));

    let path = file.map(|file| file.path);
    files.extend(path.clone());
    let loaded = LoadedConfig {
        config,
        path,
        text: text.map(Secret::new),
        origins,
        shadowed,
        warnings,
        files,
    };
    (loaded, problems)
}

/// Returns the source of a key, or else of the innermost table that contains it.
fn origin_of(origins: &BTreeMap<String, SettingOrigin>, key: &str) -> SettingOrigin {
    let around = |(known, _): &(&String, &SettingOrigin)| {
        key.strip_prefix(known.as_str())
            .is_some_and(|rest| rest.starts_with('.'))
    };
    origins
        .get(key)
        .or_else(|| {
            origins
                .iter()
                .filter(around)
                .max_by_key(|(known, _)| known.len())
                .map(|(_, origin)| origin)
        })
        .cloned()
        .unwrap_or_default()
}

/// State of the merge: each source is applied over the ones before it.
#[derive(Default)]
struct SourceMerge {
    config: Config,
    token_file: Option<PathBuf>,
    origins: BTreeMap<String, SettingOrigin>,
    shadowed: Vec<ShadowedValue>,
    warnings: Vec<ConfigProblem>,
    problems: Vec<ConfigProblem>,
    files: Vec<PathBuf>,
}

impl SourceMerge {
    fn problem(&mut self, origin: SettingOrigin, key: &str, sentence: impl Into<String>) {
        self.problems.push(ConfigProblem {
            origin,
            key: key.to_owned(),
            sentence: sentence.into(),
        });
    }

    fn warning(&mut self, origin: SettingOrigin, key: &str, sentence: impl Into<String>) {
        self.warnings.push(ConfigProblem {
            origin,
            key: key.to_owned(),
            sentence: sentence.into(),
        });
    }

    fn file(&mut self, file: &ConfigPath) -> Option<String> {
        let text = match read_bounded(&file.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !file.explicit => return None,
            Err(error) => {
                let sentence = format!("cannot read the configuration file {}: {error}", file.path.display());
                self.problem(SettingOrigin::Default, "", sentence);
                return None;
            }
        };
        let document = document::read(&text, &file.path);
        self.problems.extend(document.problems);
        self.warnings.extend(document.warnings);
        self.config.models = document.models;
        self.config.aliases = document.aliases;
        self.origins.extend(document.origins);
        let names: Vec<&str> = document.settings.iter().map(|(key, ..)| key.name).collect();
        let has = |name| names.contains(&name);
        let both_tokens = has(TOKEN) && has(TOKEN_FILE);
        let secret = [TOKEN, ORGANIZATION_TOKENS].into_iter().find(|key| has(key));
        for (key, raw, origin) in document.settings {
            if key.name == TOKEN_FILE && both_tokens {
                self.problem(origin, key.name, "is set in addition to hub.token; keep one of the two");
                continue;
            }
            if let Err(sentence) = self.apply(key, &raw, origin.clone()) {
                self.problem(origin, key.name, sentence);
            }
        }
        if let Some(key) = secret
            && std::fs::metadata(&file.path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
        {
            let sentence = "stands in a file that everybody on this machine can read; chmod o-r it, or use token_file";
            self.warning(self.origins.get(key).cloned().unwrap_or_default(), key, sentence);
        }
        Some(text)
    }

    fn environment(&mut self, environment: &Environment) {
        for env::Setting {
            name,
            key,
            text,
            replaced_by,
            lenient,
        } in env::settings(environment)
        {
            let origin = SettingOrigin::Environment { name: name.to_owned() };
            let Some(key) = keys::find(key) else { continue };
            if let Some(current) = replaced_by {
                if env::lookup(environment, current).is_some() {
                    let sentence = format!("is the old name of {current}, which is set too; remove {name}");
                    self.problem(origin, "", sentence);
                    continue;
                }
                self.warning(origin.clone(), "", format!("is deprecated; it is called {current} now"));
            }
            let applied = text.and_then(|text| self.apply(key, &Raw::Word(text), origin.clone()));
            match applied {
                Ok(()) => {}
                Err(sentence) if lenient => self.warning(origin, key.name, format!("{sentence}; it is ignored")),
                Err(sentence) => self.problem(origin, key.name, sentence),
            }
        }
        for (name, sentence) in env::without_effect(environment) {
            self.warning(SettingOrigin::Environment { name }, "", sentence);
        }
    }

    fn command_line(&mut self, overrides: &[(String, String)]) {
        for (name, text) in overrides {
            let applied = match keys::find(name) {
                Some(key) => self.apply(key, &Raw::Word(text.clone()), SettingOrigin::CommandLine),
                None => Err(format!(
                    "is not a setting{}",
                    hint(name, keys::KEYS.iter().map(|key| key.name))
                )),
            };
            if let Err(sentence) = applied {
                self.problem(SettingOrigin::CommandLine, name, sentence);
            }
        }
    }

    /// Applies a value. Sources are merged from weak to strong, so it replaces what is there.
    fn apply(&mut self, key: &SettingKey<Config>, raw: &Raw, origin: SettingOrigin) -> Result<(), String> {
        (key.read)(&mut self.config, raw)?;
        match key.name {
            // Both keys stand for one setting, so a value under one of them removes that of a weaker source under the
            // other.
            TOKEN => self.token_file = None,
            TOKEN_FILE => {
                self.config.hub.token = None;
                self.token_file = Some(PathCodec::read(raw)?);
            }
            _ => {}
        }
        let mut hidden = None;
        for set in key.sets {
            let before = self.origins.insert((*set).to_owned(), origin.clone());
            // In the file, a shorthand and a key that it sets may be combined. Two variables for one key conflict.
            hidden = before.filter(|before| {
                before.rank() < origin.rank()
                    || matches!(before, SettingOrigin::Environment { .. }) && *before != origin
            });
        }
        if let Some(hidden) = hidden {
            self.shadowed.push(ShadowedValue {
                key: key.name.to_owned(),
                hidden,
                by: origin,
            });
        }
        Ok(())
    }

    /// Fills in the defaults that depend on the machine, and normalizes paths and URLs.
    fn finish(&mut self, environment: &Environment) {
        let hub = &mut self.config.hub;
        // Without a home folder the path stays empty, which `validate` reports.
        if hub.cache_dir.as_os_str().is_empty() {
            hub.cache_dir = paths::hub_cache(environment).unwrap_or_default();
        }
        hub.cache_dir = paths::expand_home(&hub.cache_dir, environment);
        for extra in &mut hub.extra_caches {
            *extra = paths::expand_home(extra, environment);
        }
        hub.mirrors.iter_mut().for_each(trim_slashes);
        // Paths are joined with a slash, so `https://host/` and `https://host` have to be equal.
        trim_slashes(&mut hub.endpoint);
        trim_slashes(&mut self.config.ollama.url);
        if self.config.state_dir.as_os_str().is_empty() {
            self.config.state_dir = paths::state_dir(environment).unwrap_or_default();
        }
        self.config.state_dir = paths::expand_home(&self.config.state_dir, environment);
        self.read_token(environment);
    }

    fn read_token(&mut self, environment: &Environment) {
        let origin = self.origins.get(TOKEN).cloned().unwrap_or_default();
        let path = match self.token_file.take() {
            Some(path) => paths::expand_home(&path, environment),
            // The token itself is set; an empty one means that no token is wanted.
            None if origin != SettingOrigin::Default => return,
            None => match paths::stored_token(environment) {
                Some(path) => path,
                None => return,
            },
        };
        match read_bounded(&path) {
            Ok(text) => {
                self.config.hub.token = Some(text.trim())
                    .filter(|text| !text.is_empty())
                    .map(|text| Secret::new(text.to_owned()))
            }
            // A path in hubllama's own file or command line is explicit; the other ones are only places to look.
            Err(error) if matches!(origin, SettingOrigin::File { .. } | SettingOrigin::CommandLine) => {
                self.problem(origin, TOKEN_FILE, format!("cannot read {}: {error}", path.display()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let sentence = format!(
                    "cannot read {}: {error}; the Hub is asked without a token",
                    path.display()
                );
                self.warning(origin, TOKEN, sentence);
            }
        }
        // Also if it cannot be read: `hf auth login` may create it later, and the watcher then asks for a reload.
        self.files.push(path);
    }
}

fn trim_slashes(url: &mut String) {
    url.truncate(url.trim_end().trim_end_matches('/').len());
}

/// Reads a text file of at most [`MAX_FILE_BYTES`].
pub(super) fn read_bounded(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    // Reading a pipe could block forever, and a device may never end.
    if !meta.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large from one that just fits. The size in the metadata may
    // change while the file is read.
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        io::Error::other(format!("line {line} is not UTF-8"))
    })
}
