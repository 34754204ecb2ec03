//! Tables of listings and what they resolve to. Every case is run with the listing rotated in all ways.

use super::*;

fn listing(paths: &[&str]) -> Vec<RepoFile> {
    paths
        .iter()
        .map(|path| RepoFile {
            path: (*path).to_owned(),
            size: 1,
            oid: None,
            lfs_sha256: None,
        })
        .collect()
}

fn ask(files: &[RepoFile], selector: &str) -> Result<Resolution, ResolveError> {
    let selector = if selector.is_empty() {
        None
    } else {
        Selector::parse(selector).unwrap()
    };
    resolve(files, selector.as_ref())
}

/// `expected`: label, then files joined by a blank, then the projector if there is one.
#[track_caller]
fn check(paths: &[&str], selector: &str, expected: &[&str]) {
    let mut files = listing(paths);
    for _ in 0..files.len() {
        files.rotate_left(1);
        let found = ask(&files, selector).unwrap_or_else(|error| panic!("{selector}: {error:?}"));
        let mut got = vec![found.label];
        got.push(
            found
                .files
                .into_iter()
                .map(|file| file.path)
                .collect::<Vec<_>>()
                .join(" "),
        );
        got.extend(found.mmproj.map(|file| file.path));
        assert_eq!(got, expected, "{selector}");
    }
}

#[track_caller]
fn fail(paths: &[&str], selector: &str) -> ResolveError {
    let mut files = listing(paths);
    let first = ask(&files, selector).unwrap_err();
    for _ in 0..files.len() {
        files.rotate_left(1);
        assert_eq!(ask(&files, selector).unwrap_err(), first);
    }
    first
}

const USUAL: &[&str] = &[
    "README.md",
    "m-BF16.gguf",
    "m-Q2_K.gguf",
    "m-Q4_K_M.gguf",
    "m-Q4_K_S.gguf",
    "m-Q8_0.gguf",
    "m-IQ4_XS.gguf",
];

#[test]
fn labels() {
    for (name, label) in [
        ("m-Q4_K_M", Some("Q4_K_M")),
        ("m.q8_0", Some("Q8_0")),
        ("m-f16", Some("F16")),
        ("m_bf16", Some("BF16")),
        ("m-UD-Q4_K_XL", Some("UD-Q4_K_XL")),
        ("m-iq3_xxs", Some("IQ3_XXS")),
        ("m-Q4_0_4_8", Some("Q4_0_4_8")),
        ("m-MXFP4_MOE", Some("MXFP4_MOE")),
        ("m-TQ1_0", Some("TQ1_0")),
        ("Q8_0-m-Q4_K_M", Some("Q4_K_M")),
        ("m-F16-Q6_K", Some("Q6_K")),
        ("Q4_K_M", Some("Q4_K_M")),
        ("m-Q4_K_L", Some("Q4_K_L")),
        ("m-chat", None),
        ("m-SF16x", None),
        ("m-Q9_9", None),
        ("dir/Q8_0/model", Some("Q8_0")),
        ("Q8_0/dir/model", None),
    ] {
        assert_eq!(label_of(name).as_deref(), label, "{name}");
    }
}

#[test]
fn default_order() {
    check(USUAL, "", &["Q4_K_M", "m-Q4_K_M.gguf"]);
    check(
        &["m-F16.gguf", "m-Q8_0.gguf", "m-Q6_K.gguf"],
        "",
        &["Q8_0", "m-Q8_0.gguf"],
    );
    check(&["m-F16.gguf", "m-Q2_K.gguf"], "", &["F16", "m-F16.gguf"]);
    check(&["m-Q4_1.gguf", "m-F16.gguf"], "", &["Q4_1", "m-Q4_1.gguf"]);
    check(&["m-Q4_0.gguf", "m-IQ4_NL.gguf"], "", &["IQ4_NL", "m-IQ4_NL.gguf"]);
    check(&["m-IQ2_M.gguf", "m-IQ1_S.gguf"], "", &["IQ2_M", "m-IQ2_M.gguf"]);
    check(&["model.gguf"], "", &["model.gguf", "model.gguf"]);
    check(&["m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"], "", &["Q4_K_M", "m-Q4_K_M.gguf"]);
    check(
        &["sub/m-Q4_K_M.gguf", "z-Q4_K_M.gguf"],
        "",
        &["Q4_K_M", "z-Q4_K_M.gguf"],
    );
    check(&["b-Q4_K_M.gguf", "a-Q4_K_M.gguf"], "", &["Q4_K_M", "a-Q4_K_M.gguf"]);
}

#[test]
fn by_label() {
    check(USUAL, "q8_0", &["Q8_0", "m-Q8_0.gguf"]);
    check(USUAL, "BF16", &["BF16", "m-BF16.gguf"]);
    // Equality comes before llama.cpp's looser test, by which Q4_K_M.gguf would answer to K_M.
    check(USUAL, "K_M", &["Q4_K_M", "m-Q4_K_M.gguf"]);
    check(
        &["m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf"],
        "Q4_K_XL",
        &["UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"],
    );
    check(
        &["m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"],
        "ud-q4_k_m",
        &["UD-Q4_K_M", "m-UD-Q4_K_M.gguf"],
    );
    check(&["m-chat.gguf", "m-base.gguf"], "chat", &["m-chat.gguf", "m-chat.gguf"]);
    check(
        &["big/model.gguf", "small/model.gguf"],
        "small",
        &["small/model.gguf", "small/model.gguf"],
    );
    check(&["Q8_0/m.gguf", "F16/m.gguf"], "q8_0", &["Q8_0", "Q8_0/m.gguf"]);
}

#[test]
fn labels_shared_by_two_models() {
    let paths = &["a-Q4_K_M.gguf", "b-Q4_K_M.gguf", "b-Q8_0.gguf"];
    check(paths, "Q4_K_M", &["Q4_K_M", "a-Q4_K_M.gguf"]);
    check(paths, "b-Q4_K_M.gguf", &["b-Q4_K_M.gguf", "b-Q4_K_M.gguf"]);
    let labels: Vec<_> = all(&listing(paths)).into_iter().map(|model| model.label).collect();
    assert_eq!(labels, ["Q4_K_M", "b-Q4_K_M.gguf", "Q8_0"]);
}

#[test]
fn by_file() {
    let paths = &["sub/M.gguf", "m.gguf", "m-Q8_0.gguf"];
    check(paths, "m.gguf", &["m.gguf", "m.gguf"]);
    check(paths, "M.gguf", &["sub/M.gguf", "sub/M.gguf"]);
    check(paths, "SUB/m.gguf", &["sub/M.gguf", "sub/M.gguf"]);
    check(paths, "m-q8_0.GGUF", &["Q8_0", "m-Q8_0.gguf"]);
    check(
        &["m-Q8_0.gguf", "mtp-m-Q4_0.gguf"],
        "mtp-m-Q4_0.gguf",
        &["mtp-m-Q4_0.gguf", "mtp-m-Q4_0.gguf"],
    );
}

#[test]
fn shards() {
    let paths = &[
        "Q4_K_M/m-Q4_K_M-00001-of-00003.gguf",
        "Q4_K_M/m-Q4_K_M-00002-of-00003.gguf",
        "Q4_K_M/m-Q4_K_M-00003-of-00003.gguf",
        "m-Q8_0-00001-of-00002.gguf",
        "m-Q8_0-00002-of-00002.gguf",
    ];
    let q4 =
        "Q4_K_M/m-Q4_K_M-00001-of-00003.gguf Q4_K_M/m-Q4_K_M-00002-of-00003.gguf Q4_K_M/m-Q4_K_M-00003-of-00003.gguf";
    let q8 = "m-Q8_0-00001-of-00002.gguf m-Q8_0-00002-of-00002.gguf";
    check(paths, "", &["Q4_K_M", q4]);
    check(paths, "Q8_0", &["Q8_0", q8]);
    check(paths, "m-Q8_0-00002-of-00002.gguf", &["Q8_0", q8]);
    check(
        &["m-Q8_0-00001-of-00001.gguf"],
        "q8_0",
        &["Q8_0", "m-Q8_0-00001-of-00001.gguf"],
    );
    check(
        &["m-00000-of-00001.gguf"],
        "",
        &["m-00000-of-00001.gguf", "m-00000-of-00001.gguf"],
    );
}

#[test]
fn incomplete_shards() {
    let paths = &[
        "m-Q4_K_M-00001-of-00003.gguf",
        "m-Q4_K_M-00003-of-00003.gguf",
        "m-Q8_0.gguf",
    ];
    let expected = ResolveError::IncompleteShards {
        label: "Q4_K_M".into(),
        present: 2,
        expected: 3,
    };
    assert_eq!(fail(paths, "Q4_K_M"), expected);
    assert_eq!(fail(paths, "m-Q4_K_M-00003-of-00003.gguf"), expected);
    // Nobody asked for the broken set, so that the whole one is taken.
    check(paths, "", &["Q8_0", "m-Q8_0.gguf"]);
    assert_eq!(all(&listing(paths)).len(), 1);
    assert!(matches!(fail(&paths[..2], ""), ResolveError::IncompleteShards { .. }));
}

#[test]
fn nothing_there() {
    assert_eq!(
        fail(USUAL, "Q5_K_M"),
        ResolveError::NoSuchSelector {
            selector: "Q5_K_M".into(),
            available: ["Q4_K_M", "Q8_0", "Q4_K_S", "IQ4_XS", "BF16", "Q2_K"]
                .map(String::from)
                .to_vec(),
        }
    );
    assert!(matches!(fail(USUAL, "n.gguf"), ResolveError::NoSuchSelector { .. }));
    assert_eq!(
        fail(&["README.md"], ""),
        ResolveError::NoGguf { has_safetensors: false }
    );
    assert_eq!(
        fail(&["model.safetensors"], "Q8_0"),
        ResolveError::NoGguf { has_safetensors: true }
    );
    let helpers = &["mmproj-F16.gguf", "imatrix.gguf", "mtp-m-Q8_0.gguf", "eagle3-m.gguf"];
    assert_eq!(fail(helpers, ""), ResolveError::NoGguf { has_safetensors: false });
}

#[test]
fn projectors() {
    check(
        &[
            "m-Q4_K_M.gguf",
            "mmproj-F32.gguf",
            "mmproj-F16.gguf",
            "mmproj-BF16.gguf",
        ],
        "",
        &["Q4_K_M", "m-Q4_K_M.gguf", "mmproj-F16.gguf"],
    );
    check(
        &["m-Q4_K_M.gguf", "mmproj-m-Q8_0.gguf", "mmproj-m-F16.gguf"],
        "",
        &["Q4_K_M", "m-Q4_K_M.gguf", "mmproj-m-Q8_0.gguf"],
    );
    check(
        &["m-BF16.gguf", "mmproj-F16.gguf", "mmproj-BF16.gguf"],
        "",
        &["BF16", "m-BF16.gguf", "mmproj-BF16.gguf"],
    );
    check(
        &["a/m-Q8_0.gguf", "a/mmproj-F32.gguf", "mmproj-Q8_0.gguf"],
        "",
        &["Q8_0", "a/m-Q8_0.gguf", "a/mmproj-F32.gguf"],
    );
    check(
        &["a/m-Q8_0.gguf", "mmproj.gguf"],
        "",
        &["Q8_0", "a/m-Q8_0.gguf", "mmproj.gguf"],
    );
    check(&["m-Q8_0.gguf", "a/mmproj-F16.gguf"], "", &["Q8_0", "m-Q8_0.gguf"]);
    check(
        &["ab/m-Q8_0.gguf", "a/mmproj-F16.gguf"],
        "",
        &["Q8_0", "ab/m-Q8_0.gguf"],
    );
}

#[test]
fn every_listed_label_finds_its_own_file() {
    let paths = &[
        "m-Q4_K_M.gguf",
        "x/m-Q4_K_M.gguf",
        "UD/m-UD-Q4_K_M.gguf",
        "m.gguf",
        "x/m.gguf",
        "M.gguf",
        "Q8_0/m.gguf",
    ];
    let files = listing(paths);
    let models = all(&files);
    assert_eq!(models.len(), paths.len());
    for model in models {
        assert_eq!(ask(&files, &model.label).unwrap(), model);
    }
}
