//! Conversions: GGUF files that were made from checkpoints in the cache.
//!
//! A [`ConversionKey`] says what to convert, the [`ConversionStore`] knows the files in the state folder, and the
//! [`CheckpointConverter`] adds to them, one at a time, in a child process. Pulls call the converter; locating,
//! listing, removing and pruning read the store.

mod key;
mod run;
mod store;

pub(super) use key::{ConversionKey, configured_output};
pub(super) use run::{CheckpointConverter, progress_of};
pub(super) use store::{ConversionStore, occupied_bytes};

#[cfg(test)]
mod tests;
