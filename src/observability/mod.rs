//! What the daemon says of itself: the log. Nothing here knows a component; components bring their own fields.

mod logging;

pub use logging::{LogControl, init};
