//! Puts the sources together: file, environment, command line; every problem of all of them at once.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::{
    Config, Origin, Problem, Problems, Shadowed, document,
    env::{self, Environment},
    keys::{self, Key, ORGANISATION_TOKENS, TOKEN, TOKEN_FILE},
    paths::{self, ConfigPath},
    suggest::hint,
    validate::validate,
    value::{Codec as _, Folder, Raw},
};
use crate::stdx::Secret;

/// A file of settings is a few kilobytes; a larger one is a mistake in the path.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Everything a configuration is made from, but the files themselves.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// `--config`.
    pub path: Option<PathBuf>,
    /// Keys that the command line sets, as (`server.listen`, `127.0.0.1:0`). Lists are separated by commas.
    pub overrides: Vec<(String, String)>,
    /// The process's environment.
    pub environment: Environment,
}

impl Inputs {
    /// With the environment of this process. Variables that are not UTF-8 are none of ours and left out.
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

/// A configuration and how it came to be.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// Where the file is, or would be.
    pub path: Option<PathBuf>,
    /// What the file held; secret because it may hold a token. `None` where there is no file.
    pub text: Option<Secret<String>>,
    /// Who set a key; what is not in here has its default.
    pub origins: BTreeMap<String, Origin>,
    /// Values that something stronger hides.
    pub shadowed: Vec<Shadowed>,
    /// Doubtful, but usable.
    pub warnings: Vec<Problem>,
    /// Files whose change changes the configuration, also those that do not exist yet.
    pub files: Vec<PathBuf>,
}

impl Loaded {
    /// Who set `key`.
    #[must_use]
    pub fn origin(&self, key: &str) -> Origin {
        origin_of(&self.origins, key)
    }
}

/// Reads and validates everything.
///
/// # Errors
///
/// All problems of all sources.
pub fn load(inputs: &Inputs) -> Result<Loaded, Problems> {
    let (loaded, problems) = attempt(inputs);
    if problems.is_empty() {
        Ok(loaded)
    } else {
        Err(Problems(problems))
    }
}

/// As [`load`], but what could be read comes back also where something was wrong; for people to look at.
pub(super) fn attempt(inputs: &Inputs) -> (Loaded, Vec<Problem>) {
    let mut merge = Merge::default();
    let file = paths::config_path(inputs.path.as_deref(), &inputs.environment);
    let text = file.as_ref().and_then(|file| merge.file(file));
    merge.environment(&inputs.environment);
    merge.command_line(&inputs.overrides);
    merge.finish(&inputs.environment);

    let Merge {
        config,
        origins,
        shadowed,
        mut warnings,
        mut problems,
        mut files,
        ..
    } = merge;
    let findings = validate(&config);
    let attach = |(key, sentence): (String, String)| Problem {
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
    let loaded = Loaded {
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

/// The nearest origin: of the key itself, or of the table around it.
fn origin_of(origins: &BTreeMap<String, Origin>, key: &str) -> Origin {
    let around = |(known, _): &(&String, &Origin)| {
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

/// The state between the sources: each one is laid over those before it.
#[derive(Default)]
struct Merge {
    config: Config,
    token_file: Option<PathBuf>,
    origins: BTreeMap<String, Origin>,
    shadowed: Vec<Shadowed>,
    warnings: Vec<Problem>,
    problems: Vec<Problem>,
    files: Vec<PathBuf>,
}

impl Merge {
    fn problem(&mut self, origin: Origin, key: &str, sentence: impl Into<String>) {
        self.problems.push(Problem {
            origin,
            key: key.to_owned(),
            sentence: sentence.into(),
        });
    }

    fn warning(&mut self, origin: Origin, key: &str, sentence: impl Into<String>) {
        self.warnings.push(Problem {
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
                self.problem(Origin::Default, "", sentence);
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
        let secret = [TOKEN, ORGANISATION_TOKENS].into_iter().find(|key| has(key));
        for (key, raw, origin) in document.settings {
            if key.name == TOKEN_FILE && both_tokens {
                self.problem(origin, key.name, "is set beside hub.token; keep one of the two");
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
            lenient,
        } in env::settings(environment)
        {
            let origin = Origin::Environment { name: name.to_owned() };
            let Some(key) = keys::find(key) else { continue };
            let applied = text.and_then(|text| self.apply(key, &Raw::Word(text), origin.clone()));
            match applied {
                Ok(()) => {}
                Err(sentence) if lenient => self.warning(origin, key.name, format!("{sentence}; it is ignored")),
                Err(sentence) => self.problem(origin, key.name, sentence),
            }
        }
        for (name, sentence) in env::without_effect(environment) {
            self.warning(Origin::Environment { name }, "", sentence);
        }
    }

    fn command_line(&mut self, overrides: &[(String, String)]) {
        for (name, text) in overrides {
            let applied = match keys::find(name) {
                Some(key) => self.apply(key, &Raw::Word(text.clone()), Origin::CommandLine),
                None => Err(format!(
                    "is no setting{}",
                    hint(name, keys::KEYS.iter().map(|key| key.name))
                )),
            };
            if let Err(sentence) = applied {
                self.problem(Origin::CommandLine, name, sentence);
            }
        }
    }

    /// Lays one value over what is there.
    fn apply(&mut self, key: &Key<Config>, raw: &Raw, origin: Origin) -> Result<(), String> {
        (key.read)(&mut self.config, raw)?;
        match key.name {
            TOKEN => self.token_file = None,
            TOKEN_FILE => {
                self.config.hub.token = None;
                self.token_file = Some(Folder::read(raw)?);
            }
            _ => {}
        }
        let mut hidden = None;
        for set in key.sets {
            let before = self.origins.insert((*set).to_owned(), origin.clone());
            // Within the file a shorthand and the key it sets go together; two variables for one key do not.
            hidden = before.filter(|before| {
                before.rank() < origin.rank() || matches!(before, Origin::Environment { .. }) && *before != origin
            });
        }
        if let Some(hidden) = hidden {
            self.shadowed.push(Shadowed {
                key: key.name.to_owned(),
                hidden,
                by: origin,
            });
        }
        Ok(())
    }

    /// What nobody set and the machine decides, and the few values that are tidied.
    fn finish(&mut self, environment: &Environment) {
        let hub = &mut self.config.hub;
        if hub.cache_dir.as_os_str().is_empty() {
            hub.cache_dir = paths::hub_cache(environment).unwrap_or_default();
        }
        hub.cache_dir = paths::expand_home(&hub.cache_dir, environment);
        for extra in &mut hub.extra_caches {
            *extra = paths::expand_home(extra, environment);
        }
        hub.mirrors.iter_mut().for_each(trim_slashes);
        // `https://host/` and `https://host` mean the same; paths are joined with a slash.
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
            // Somebody set the token itself, perhaps to nothing.
            None if origin != Origin::Default => return,
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
            // Only who wrote a path into our own file must have meant it; the others are places to look.
            Err(error) if matches!(origin, Origin::File { .. } | Origin::CommandLine) => {
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
        self.files.push(path);
    }
}

fn trim_slashes(url: &mut String) {
    url.truncate(url.trim_end().trim_end_matches('/').len());
}

/// A whole text file of at most [`MAX_FILE_BYTES`].
pub(super) fn read_bounded(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    // A pipe could block for ever, a device never end.
    if !meta.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
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
