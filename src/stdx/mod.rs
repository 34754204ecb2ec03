//! What std lacks, in small named pieces.

pub mod go_duration;
mod secret;

pub use secret::Secret;
