//! Keep-alive time of a model.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Time that a model stays loaded after the end of its last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepAlive {
    /// No limit: the model stays until a request unloads it or another model needs its room.
    Forever,
    /// A limited time; zero unloads the model as soon as it is idle.
    For(Duration),
}

impl KeepAlive {
    /// The time that unloads a model as soon as it is idle.
    pub const ZERO: Self = Self::For(Duration::ZERO);

    /// Returns true if the model is to be unloaded as soon as it is idle.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }
}
