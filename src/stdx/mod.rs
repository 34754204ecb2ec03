//! What std lacks, in small named pieces.

mod secret;

pub use secret::Secret;
