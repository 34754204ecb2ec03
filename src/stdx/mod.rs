//! Small tools that the standard library lacks, each in a module of its own.
//!
//! All other modules may use this one; it uses none of them. A helper belongs here when two modules need it and it says
//! nothing about models, HTTP or the configuration.

pub mod cpu;
pub mod fs;
pub mod hex;
pub mod new_file;
mod secret;
pub mod size;
pub mod sync;
pub mod task;
pub mod text;
pub mod timestamp;

pub use secret::Secret;
