//! Compiles `src/llama/chat_shim.cpp` against llama.cpp's own `common/chat`, which llama-cpp-sys-2 builds and links
//! (`libllama-common.a`) but does not bind.
//!
//! The headers must be those that the sys crate was built from. It exports its output folder only, but CMake's cache in there
//! names the source folder.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=src/llama/chat_shim.cpp");
    let root =
        PathBuf::from(env::var_os("DEP_LLAMA_ROOT").expect("llama-cpp-sys-2 exports its output folder as `root`"));
    let cache = root.join("build/CMakeCache.txt");
    let text = fs::read_to_string(&cache).unwrap_or_else(|error| panic!("{}: {error}", cache.display()));
    let source = text
        .lines()
        .find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="))
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("{} does not name llama.cpp's source folder", cache.display()));
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .file("src/llama/chat_shim.cpp")
        // llama.cpp's headers are full of them.
        .warnings(false);
    for include in ["common", "include", "ggml/include", "vendor"] {
        build.include(source.join(include));
    }
    build.compile("hubllama_chat_shim");
}
