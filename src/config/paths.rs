//! Default paths that depend on the machine: configuration file, state folder, Hub cache, stored token.

use std::path::{Path, PathBuf};

use super::env::{self, Environment};

/// Configuration file of a system-wide installation.
const SYSTEM_CONFIG: &str = "/etc/hubllama/config.toml";

/// Path of the configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConfigPath {
    pub path: PathBuf,
    /// If set, the path was named by the user and the file has to exist.
    pub explicit: bool,
}

/// Returns the first of: `--config`, `HUBLLAMA_CONFIG`, the system's file if it exists, the user's file.
pub(super) fn config_path(argument: Option<&Path>, environment: &Environment) -> Option<ConfigPath> {
    let explicit = |path: PathBuf| ConfigPath { path, explicit: true };
    if let Some(path) = argument {
        return Some(explicit(path.to_owned()));
    }
    if let Some(path) = env::lookup(environment, env::CONFIG_PATH) {
        return Some(explicit(expand_home(Path::new(path), environment)));
    }
    let system = PathBuf::from(SYSTEM_CONFIG);
    if system.exists() {
        return Some(ConfigPath {
            path: system,
            explicit: false,
        });
    }
    let folder = absolute(environment, "XDG_CONFIG_HOME").or_else(|| Some(home(environment)?.join(".config")))?;
    Some(ConfigPath {
        path: folder.join("hubllama/config.toml"),
        explicit: false,
    })
}

/// Returns the state folder: the one from systemd, or else the user's.
pub(super) fn state_dir(environment: &Environment) -> Option<PathBuf> {
    // systemd separates several folders by colons; the unit asks for one.
    let systemd = env::lookup(environment, "STATE_DIRECTORY").and_then(|folders| folders.split(':').next());
    if let Some(folder) = systemd {
        return Some(folder.into());
    }
    let folder = absolute(environment, "XDG_STATE_HOME").or_else(|| Some(home(environment)?.join(".local/state")))?;
    Some(folder.join("hubllama"))
}

/// Returns the default root of the Hub cache, for the case that no variable of huggingface_hub sets it.
pub(super) fn hub_cache(environment: &Environment) -> Option<PathBuf> {
    Some(hub_home(environment)?.join("hub"))
}

/// Returns the file in which `hf auth login` stores the token; `None` if it must not be used implicitly.
pub(super) fn stored_token(environment: &Environment) -> Option<PathBuf> {
    let unasked = env::lookup(environment, "HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(env::hub_flag);
    if unasked {
        None
    } else {
        Some(hub_home(environment)?.join("token"))
    }
}

/// Replaces a leading `~` by the home folder, if that is known.
pub(super) fn expand_home(path: &Path, environment: &Environment) -> PathBuf {
    match (path.strip_prefix("~"), home(environment)) {
        (Ok(rest), Some(home)) if rest.as_os_str().is_empty() => home,
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

fn hub_home(environment: &Environment) -> Option<PathBuf> {
    if let Some(home) = env::lookup(environment, "HF_HOME") {
        return Some(expand_home(Path::new(home), environment));
    }
    let cache = absolute(environment, "XDG_CACHE_HOME").or_else(|| Some(home(environment)?.join(".cache")))?;
    Some(cache.join("huggingface"))
}

fn home(environment: &Environment) -> Option<PathBuf> {
    absolute(environment, "HOME")
}

/// Returns an absolute path from a variable; the XDG specification says that relative ones are ignored.
fn absolute(environment: &Environment, name: &str) -> Option<PathBuf> {
    env::lookup(environment, name)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Find = fn(&Environment) -> Option<PathBuf>;
    type Case = (Find, &'static [(&'static str, &'static str)], Option<&'static str>);

    #[test]
    fn defaults_follow_the_environment() {
        let cases: &[Case] = &[
            (state_dir, &[("HOME", "/h")], Some("/h/.local/state/hubllama")),
            (
                state_dir,
                &[("HOME", "/h"), ("XDG_STATE_HOME", "/s")],
                Some("/s/hubllama"),
            ),
            (
                state_dir,
                &[("HOME", "/h"), ("XDG_STATE_HOME", "s")],
                Some("/h/.local/state/hubllama"),
            ),
            (
                state_dir,
                &[("STATE_DIRECTORY", "/var/lib/a:/var/lib/b"), ("HOME", "/h")],
                Some("/var/lib/a"),
            ),
            (state_dir, &[], None),
            (hub_cache, &[("HOME", "/h")], Some("/h/.cache/huggingface/hub")),
            (
                hub_cache,
                &[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")],
                Some("/c/huggingface/hub"),
            ),
            (hub_cache, &[("HOME", "/h"), ("HF_HOME", "~/hf")], Some("/h/hf/hub")),
            (stored_token, &[("HF_HOME", "/hf")], Some("/hf/token")),
            (
                stored_token,
                &[("HF_HOME", "/hf"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")],
                None,
            ),
        ];
        for (find, set, expected) in cases {
            let environment = set
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            assert_eq!(find(&environment), expected.map(PathBuf::from), "{set:?}");
        }
    }

    #[test]
    fn config_path_is_explicit_where_somebody_named_it() {
        let named = Environment::from([("HUBLLAMA_CONFIG".to_owned(), "/b".to_owned())]);
        let expected = |path: &str| {
            Some(ConfigPath {
                path: path.into(),
                explicit: true,
            })
        };
        assert_eq!(config_path(Some(Path::new("/a")), &named), expected("/a"));
        assert_eq!(config_path(None, &named), expected("/b"));
    }
}
