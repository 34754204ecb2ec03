//! Sources of settings, and problems with them.

use std::{fmt, path::PathBuf};

use serde::Serialize;

/// Source of a value, from the weakest to the strongest. The derived order also sorts problems by file and line.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum SettingOrigin {
    #[default]
    Default,
    /// A line of the configuration file.
    File {
        path: PathBuf,
        /// Line number, counted from 1.
        line: usize,
    },
    /// An environment variable.
    Environment {
        name: String,
    },
    CommandLine,
}

impl SettingOrigin {
    /// Returns the precedence; a higher one overrides a lower one.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File { .. } => 1,
            Self::Environment { .. } => 2,
            Self::CommandLine => 3,
        }
    }
}

impl fmt::Display for SettingOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment { name } => write!(f, "environment {name}"),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

impl Serialize for SettingOrigin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A mistake in the configuration, or a setting that is probably not intended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigProblem {
    /// Source of the value.
    pub origin: SettingOrigin,
    /// Full key, such as `engine.max_queue`; empty if the problem concerns the whole file.
    pub key: String,
    /// Description of the problem and of its remedy, without the key as its subject.
    pub sentence: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin != SettingOrigin::Default {
            write!(f, "{}: ", self.origin)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.sentence)
    }
}

/// Problems of a configuration in the order of their lines. It is not empty when it is returned as an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ConfigProblems(pub Vec<ConfigProblem>);

impl fmt::Display for ConfigProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigProblems {}

/// A value without effect, because a stronger source sets the same key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShadowedValue {
    pub key: String,
    /// Source of the value without effect.
    pub hidden: SettingOrigin,
    /// Source that overrides it.
    pub by: SettingOrigin,
}

impl fmt::Display for ShadowedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} has no effect, since {} is stronger",
            self.key, self.hidden, self.by
        )
    }
}
