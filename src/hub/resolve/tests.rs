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

fn ask(files: &[RepoFile], selector: &str) -> Result<ResolvedModel, ResolveError> {
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

#[test]
fn in_a_folder() {
    let paths = &[
        "a/m-Q8_0.gguf",
        "a/deep/m-Q4_K_M.gguf",
        "b/m-Q8_0.gguf",
        "m-Q4_K_M.gguf",
        "mmproj-F16.gguf",
    ];
    let ask = |path: &str, label: Option<&str>| {
        let selector = Selector::Folder {
            path: path.into(),
            label: label.map(str::to_owned),
        };
        resolve(&listing(paths), Some(&selector)).map(|found| (found.files[0].path.clone(), found.mmproj.is_some()))
    };
    assert_eq!(ask("a", None), Ok(("a/deep/m-Q4_K_M.gguf".into(), true)));
    assert_eq!(ask("A", Some("q8_0")), Ok(("a/m-Q8_0.gguf".into(), true)));
    assert_eq!(ask("b", None), Ok(("b/m-Q8_0.gguf".into(), true)));
    for (path, label) in [("b", Some("Q4_K_M")), ("c", None), ("a/dee", None)] {
        assert!(
            matches!(ask(path, label), Err(ResolveError::NoSuchSelector { .. })),
            "{path}"
        );
    }
}

/// The listings and picks of llama.cpp's own test of its resolution, as data.
mod published {
    use super::*;

    const FLAT: &[&str] = &[
        "README.md",
        "model-BF16.gguf",
        "model-Q4_K_M.gguf",
        "model-Q8_0.gguf",
        "mmproj-model-BF16.gguf",
        "mmproj-model-Q8_0.gguf",
        "mtp-model-BF16.gguf",
        "mtp-model-Q4_0.gguf",
        "mtp-model-Q8_0.gguf",
        "dflash-model-BF16.gguf",
        "dflash-model-Q8_0.gguf",
    ];
    const SHARDED: &[&str] = &[
        "mmproj-model-f16.gguf",
        "model-mtp-BF16.gguf",
        "model-mtp-Q8_0.gguf",
        "Q3_K_M/model-Q3_K_M-00001-of-00003.gguf",
        "Q3_K_M/model-Q3_K_M-00002-of-00003.gguf",
        "Q3_K_M/model-Q3_K_M-00003-of-00003.gguf",
        "Q8_0/model-Q8_0-00001-of-00002.gguf",
        "Q8_0/model-Q8_0-00002-of-00002.gguf",
    ];
    const HOLE: &[&str] = &[
        "model-BF16.gguf",
        "model-Q4_K_M.gguf",
        "model-Q8_0.gguf",
        "mtp-model-BF16.gguf",
        "mtp-model-Q4_0.gguf",
        "mtp-model-Q8_0.gguf",
        "dflash-model-BF16.gguf",
        "dflash-model-Q8_0.gguf",
    ];
    const SUFFIXED: &[&str] = &["model-UD-Q8_K_XL.gguf", "mmproj-BF16.gguf", "model-MTP-BF16.gguf"];
    const VENDORS: &[&str] = &["TheDrummer_Model-24B-v4.1-Q8_0.gguf", "BlackSheep-24B.Q8_0.gguf"];
    const QUAD: &[&str] = &[
        "model-Q8_0.gguf",
        "mtp-model-Q8_0.gguf",
        "dflash-model-Q8_0.gguf",
        "eagle3-model-Q8_0.gguf",
        "dspark-model-Q8_0.gguf",
    ];
    const SPARK: &[&str] = &[
        "README.md",
        "model-MXFP4.gguf",
        "dspark-model-BF16.gguf",
        "dspark-model-MXFP4.gguf",
    ];

    struct Case {
        files: &'static [&'static str],
        selector: &'static str,
        /// First file, or nothing where none answers.
        model: &'static str,
        shards: usize,
        mmproj: &'static str,
    }

    const fn case(
        files: &'static [&'static str],
        selector: &'static str,
        model: &'static str,
        shards: usize,
        mmproj: &'static str,
    ) -> Case {
        Case {
            files,
            selector,
            model,
            shards,
            mmproj,
        }
    }

    const CASES: &[Case] = &[
        case(FLAT, "Q8_0", "model-Q8_0.gguf", 1, "mmproj-model-Q8_0.gguf"),
        case(FLAT, "", "model-Q4_K_M.gguf", 1, "mmproj-model-Q8_0.gguf"),
        case(SUFFIXED, "", "model-UD-Q8_K_XL.gguf", 1, "mmproj-BF16.gguf"),
        case(FLAT, "model-BF16.gguf", "model-BF16.gguf", 1, "mmproj-model-BF16.gguf"),
        case(FLAT, "nope.gguf", "", 0, ""),
        case(
            SHARDED,
            "Q3_K_M",
            "Q3_K_M/model-Q3_K_M-00001-of-00003.gguf",
            3,
            "mmproj-model-f16.gguf",
        ),
        // A quantization that only draft models have is no model.
        case(HOLE, "Q4_0", "", 0, ""),
        case(HOLE, "", "model-Q4_K_M.gguf", 1, ""),
        // llama.cpp knows `mtp-` in lower case only and would take -MTP- for a model.
        case(SUFFIXED, "Q8_K_XL", "model-UD-Q8_K_XL.gguf", 1, "mmproj-BF16.gguf"),
        // Of two files of the same quantization llama.cpp takes the first listed; hubllama takes the first by name.
        case(VENDORS, "Q8_0", "BlackSheep-24B.Q8_0.gguf", 1, ""),
        case(QUAD, "Q8_0", "model-Q8_0.gguf", 1, ""),
        case(SPARK, "", "model-MXFP4.gguf", 1, ""),
        case(SPARK, "BF16", "", 0, ""),
        case(&["draft-model-Q4_K_M.gguf"], "", "draft-model-Q4_K_M.gguf", 1, ""),
        case(&["preset.ini", "model-Q8_0.gguf"], "", "model-Q8_0.gguf", 1, ""),
    ];

    #[test]
    fn cases() {
        for case in CASES {
            let mut files = listing(case.files);
            for turn in 0..files.len() {
                files.rotate_left(1);
                if turn % 2 == 1 {
                    files.reverse();
                }
                let context = format!("{:?} {}", case.files, case.selector);
                let Ok(found) = ask(&files, case.selector) else {
                    assert_eq!(case.model, "", "{context}");
                    continue;
                };
                assert_eq!(found.files[0].path, case.model, "{context}");
                assert_eq!(found.files.len(), case.shards, "{context}");
                let mmproj = found.mmproj.as_ref().map_or("", |file| file.path.as_str());
                assert_eq!(mmproj, case.mmproj, "{context}");
            }
        }
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// Names as people give them, and some as nobody should.
    fn path() -> impl Strategy<Value = String> {
        let folder = prop::option::of(prop::sample::select(vec![
            "a",
            "A",
            "Q8_0",
            "UD-Q4_K_XL",
            "a/b",
            "mtp-x",
        ]));
        let stem = prop::sample::select(vec![
            "m", "M", "mmproj", "mmproj-m", "mtp-m", "imatrix", "Q4_K_M", "x.y", "eagle3-m",
        ]);
        let label = prop::sample::select(vec![
            "",
            "-Q4_K_M",
            ".q4_k_m",
            "-Q8_0",
            "-UD-Q4_K_XL",
            "-F16",
            "_BF16",
            "-IQ2_XXS",
            "-chat",
            "-MXFP4",
        ]);
        let shard = prop::sample::select(vec![
            "",
            "",
            "",
            "-00001-of-00002",
            "-00002-of-00002",
            "-00001-of-00001",
            "-00003-of-00002",
        ]);
        let suffix = prop::sample::select(vec![".gguf", ".gguf", ".gguf", ".GGUF", ".safetensors", ".bin"]);
        (folder, stem, label, shard, suffix).prop_map(|(folder, stem, label, shard, suffix)| {
            let folder = folder.map(|folder| format!("{folder}/")).unwrap_or_default();
            format!("{folder}{stem}{label}{shard}{suffix}")
        })
    }

    fn files() -> impl Strategy<Value = Vec<RepoFile>> {
        prop::collection::btree_set(path(), 0..14)
            .prop_map(|paths| listing(&paths.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    fn selector() -> impl Strategy<Value = Option<Selector>> {
        let label = prop::sample::select(vec!["Q4_K_M", "q8_0", "Q4_K_XL", "f16", "chat", "K_M", "a", "Q5_0"]);
        prop::option::of(prop_oneof![
            label.clone().prop_map(|label| Selector::Label(label.to_owned())),
            path().prop_map(Selector::File),
            (prop::sample::select(vec!["a", "A/B", "q8_0"]), prop::option::of(label)).prop_map(|(path, label)| {
                Selector::Folder {
                    path: path.to_owned(),
                    label: label.map(str::to_owned),
                }
            }),
        ])
    }

    proptest! {
        #[test]
        fn the_order_of_a_listing_does_not_matter(
            (files, shuffled) in files().prop_flat_map(|files| (Just(files.clone()), Just(files).prop_shuffle())),
            selector in selector(),
        ) {
            prop_assert_eq!(resolve(&files, selector.as_ref()), resolve(&shuffled, selector.as_ref()));
            prop_assert_eq!(all(&files), all(&shuffled));
        }

        #[test]
        fn every_listed_model_is_found_by_its_label(files in files()) {
            let models = all(&files);
            let folded: std::collections::HashSet<String> =
                files.iter().map(|file| file_name(&file.path).to_lowercase()).collect();
            for model in &models {
                prop_assert_eq!(&ask(&files, &model.label), &Ok(model.clone()));
                // Where two names differ in case alone, case is what tells them apart.
                if folded.len() == files.len() {
                    prop_assert_eq!(&ask(&files, &model.label.to_ascii_lowercase()), &Ok(model.clone()));
                }
            }
            match resolve(&files, None) {
                Ok(usual) => prop_assert!(models.contains(&usual)),
                Err(_) => prop_assert!(models.is_empty()),
            }
        }

        #[test]
        fn an_answer_is_whole_and_of_this_listing(files in files(), selector in selector()) {
            let Ok(found) = resolve(&files, selector.as_ref()) else { return Ok(()) };
            prop_assert!(!found.files.is_empty() && found.files.iter().all(|file| files.contains(file)));
            let shards: Vec<_> = found.files.iter().filter_map(|file| shard_of(&file.path)).collect();
            if let Some((_, _, count)) = shards.first() {
                prop_assert_eq!(shards.len(), *count);
                prop_assert!(shards.iter().enumerate().all(|(at, shard)| shard.1 == at + 1));
            } else {
                prop_assert_eq!(found.files.len(), 1);
            }
            let home: Vec<&str> = folders(&found.files[0].path).collect();
            if let Some(beside) = &found.mmproj {
                prop_assert!(files.contains(beside) && !found.files.contains(beside));
                prop_assert!(home.starts_with(&folders(&beside.path).collect::<Vec<_>>()));
            }
            if let Some(Selector::Folder { path, .. }) = &selector {
                prop_assert!(is_below(&found.files[0].path, path));
            }
        }

        #[test]
        fn nothing_panics(paths in prop::collection::vec("\\PC{0,30}(\\.gguf)?", 0..8), label in "\\PC{0,12}") {
            let files = listing(&paths.iter().map(String::as_str).collect::<Vec<_>>());
            let _ = all(&files);
            for selector in [Selector::Label(label.clone()), Selector::File(label.clone()),
                Selector::Folder { path: label.clone(), label: Some(label) }] {
                let _ = resolve(&files, Some(&selector));
            }
        }
    }
}
