//! Modules of `stdx` that a conversion needs.

#[path = "../../../../src/stdx/fs.rs"]
pub mod fs;
#[path = "../../../../src/stdx/new_file.rs"]
pub mod new_file;
#[path = "../../../../src/stdx/size.rs"]
pub mod size;
