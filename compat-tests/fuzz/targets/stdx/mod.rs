//! Modules of `stdx` that the fuzzed modules need.

#[path = "../../../../src/stdx/fs.rs"]
pub mod fs;
#[path = "../../../../src/stdx/hex.rs"]
pub mod hex;
#[path = "../../../../src/stdx/new_file.rs"]
pub mod new_file;
#[path = "../../../../src/stdx/size.rs"]
pub mod size;
#[path = "../../../../src/stdx/sync.rs"]
pub mod sync;
#[path = "../../../../src/stdx/text.rs"]
pub mod text;
