//! Log of the process. Components log through `tracing` with their own fields; this module only sets up the output.

mod logging;

pub use logging::{LogControl, init};
