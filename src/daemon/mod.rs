//! The composition root and what surrounds it: signals, reload, systemd. The only layer that knows all others.

pub mod reload;
pub mod signals;
pub mod systemd;
