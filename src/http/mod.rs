//! Pieces of HTTP that both sides of the daemon share. No route and no dialect is known here.

pub mod go_json;
