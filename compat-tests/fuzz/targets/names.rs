//! Fuzzes names and listings. A name that is accepted must print as text that parses to the same name, and no listing
//! may cause a panic.
#![no_main]
#![allow(dead_code, unused_imports)]

#[path = "../../../src/hub/name.rs"]
mod name;
#[path = "../../../src/hub/resolve/mod.rs"]
mod resolve;
mod stdx;

use libfuzzer_sys::fuzz_target;
use name::HfName;
use resolve::RepoFile;

fuzz_target!(|text: &str| {
    let mut lines = text.lines();
    let Some(Ok(name)) = lines.next().map(HfName::parse) else { return };
    assert_eq!(HfName::parse(&name.to_string()).as_ref(), Ok(&name));
    let files: Vec<RepoFile> = lines
        .take(64)
        .map(|path| RepoFile {
            path: path.to_owned(),
            size: 1,
            oid: None,
            lfs_sha256: None,
        })
        .collect();
    let models = resolve::all(&files);
    if let Ok(found) = resolve::resolve(&files, name.selector.as_ref()) {
        assert!(!found.files.is_empty() && found.files.iter().all(|file| files.contains(file)));
    }
    assert!(models.iter().all(|model| !model.files.is_empty()));
});
