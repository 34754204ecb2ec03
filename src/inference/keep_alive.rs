//! How long a model stays in memory.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a model stays resident after its last request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepAlive {
    /// Until somebody unloads it.
    Forever,
    /// This long; zero unloads it as soon as it is idle.
    For(Duration),
}

impl KeepAlive {
    /// Unload as soon as idle.
    pub const ZERO: Self = Self::For(Duration::ZERO);

    /// Whether the model is to be unloaded as soon as it is idle.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }
}
