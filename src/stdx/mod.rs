//! What std lacks, in small named pieces.

pub mod cpu;
pub mod fs;
pub mod new_file;
mod secret;
pub mod size;
pub mod timestamp;

pub use secret::Secret;
