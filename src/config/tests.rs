//! Tests of loading as a whole: files, environments and arguments in; values, problems and reports out.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::json;
use tempfile::TempDir;

use super::{
    describe::describe,
    diff::ConfigDiff,
    keys::{KEYS, MODEL_KEYS},
    problem::SettingOrigin,
    *,
};
use crate::inference::{AutoSwitch, KeepAlive, KvCacheType};

const EXAMPLE: &str = include_str!("../../config.toml.example");

struct Bench {
    folder: TempDir,
    inputs: ConfigInputs,
}

impl Bench {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("config.toml");
        fs::write(&path, text).expect("the folder is writable");
        let home = ("HOME".to_owned(), folder.path().to_string_lossy().into_owned());
        let inputs = ConfigInputs {
            path: Some(path),
            overrides: Vec::new(),
            environment: [home].into(),
        };
        Self { folder, inputs }
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.inputs.environment.insert(name.into(), value.into());
        self
    }

    fn set(mut self, key: &str, value: &str) -> Self {
        self.inputs.overrides.push((key.into(), value.into()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn load(&self) -> LoadedConfig {
        load(&self.inputs).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// Returns all problems without the folder's name.
    fn problems(&self) -> Vec<String> {
        let folder = format!("{}/config.toml:", self.folder.path().display());
        match load(&self.inputs) {
            Ok(_) => Vec::new(),
            Err(problems) => problems
                .0
                .iter()
                .map(|problem| problem.to_string().replace(&folder, ""))
                .collect(),
        }
    }
}

#[test]
fn problems_of_files() {
    // Each file with the beginnings of its problems, in order.
    let cases: &[(&str, &[&str])] = &[
        ("", &[]),
        ("# nothing\n[server]\n[models]\n[aliases]\n", &[]),
        // Shape.
        ("[server\n", &["1: "]),
        ("a = 1\na = 2\n", &["2: "]),
        ("server = 3\n", &["1: server: is a table; write [server]"]),
        ("models = 3\n", &["1: models: is a table; write [models]"]),
        ("[[server]]\nlisten = \"x\"\n", &["1: server: is a table"]),
        ("[engine]\nsampling = true\n", &["2: engine.sampling: is a table"]),
        (
            "state_dir = {}\n",
            &["1: state_dir: expected a path in quotes, found a table"],
        ),
        // Names.
        (
            "[sever]\nlisten = \"x\"\n",
            &["1: sever: is not known (did you mean \"server\"?)"],
        ),
        ("[model]\n", &["1: model: is not known (did you mean \"models\"?)"]),
        (
            "[server]\nlisten_on = 1\nlisen = 1\n",
            &[
                "2: server.listen_on: is not known",
                "3: server.lisen: is not known (did you mean \"listen\"?)",
            ],
        ),
        (
            "max_queue = 5\n",
            &["1: max_queue: is not known (it belongs in [engine])"],
        ),
        (
            "[engine]\ntop_k = 5\n",
            &["2: engine.top_k: is not known (it belongs in [engine.sampling])"],
        ),
        ("\"a b\" = 5\n", &["1: \"a b\": is not known"]),
        // Types.
        (
            "[engine]\nmax_queue = \"5\"\n",
            &["2: engine.max_queue: expected a whole number, found \"5\""],
        ),
        (
            "[engine]\nmax_queue = -5\n",
            &["2: engine.max_queue: expected a whole number, 0 or more, found -5"],
        ),
        (
            "[engine]\nmax_queue = 1.5\n",
            &["2: engine.max_queue: expected a whole number, found 1.5"],
        ),
        (
            "[engine]\nthreads = 99999999999\n",
            &["2: engine.threads: 99999999999 is out of range"],
        ),
        (
            "[engine]\nmmap = \"yes\"\n",
            &["2: engine.mmap: expected true or false, found \"yes\""],
        ),
        (
            "[engine]\nkeep_alive = \"soon\"\n",
            &["2: engine.keep_alive: expected a duration such as \"5m\""],
        ),
        (
            "[engine]\nkeep_alive = 2020-01-01\n",
            &["2: engine.keep_alive: expected a duration such as \"5m\""],
        ),
        (
            "[engine]\nload_timeout = \"-5m\"\n",
            &["2: engine.load_timeout: expected a duration that is not negative"],
        ),
        (
            "[engine]\nkv_cache_type = \"q8\"\n",
            &["2: engine.kv_cache_type: expected one of \"f16\""],
        ),
        (
            "[engine]\ntensor_split = [1, \"a\"]\n",
            &["2: engine.tensor_split: expected a number, found \"a\""],
        ),
        (
            "[server]\nmax_header_bytes = \"64XB\"\n",
            &["2: server.max_header_bytes: expected a size"],
        ),
        (
            "[server]\norigins = [1]\n",
            &["2: server.origins: expected a text in quotes, found 1"],
        ),
        ("[hub]\ntoken = 5\n", &["2: hub.token: expected a text in quotes"]),
        (
            "[ollama]\npriority = [\"olama\"]\n",
            &[
                "2: ollama.priority: expected one of \"ollama\", \"huggingface\", found \"olama\" (did you mean \"ollama\"?)",
            ],
        ),
        // Meaning.
        ("[server]\nlisten = []\n", &["2: server.listen: is empty"]),
        (
            "[server]\nlisten = \"127.0.0.1\"\n",
            &["2: server.listen: \"127.0.0.1\" has no port"],
        ),
        (
            "[server]\nlisten = \"::1:80\"\n",
            &["2: server.listen: \"::1:80\" has an IPv6 address without brackets"],
        ),
        (
            "[server]\nlisten = \":80\"\n",
            &["2: server.listen: \":80\" has no host"],
        ),
        (
            "[server]\nlisten = \"a:99999\"\n",
            &["2: server.listen: \"a:99999\" has no port from 0 to 65535"],
        ),
        (
            "[server]\nlisten = \"http://a:1\"\n",
            &["2: server.listen: \"http://a:1\" is a URL"],
        ),
        (
            "[server]\nlisten = \"unix:x\"\n",
            &["2: server.listen: \"unix:x\" has no absolute path"],
        ),
        (
            "[server]\nlisten = [\"a:1\", \"a:1\"]\n",
            &["2: server.listen: \"a:1\" is named twice"],
        ),
        ("[server]\nlisten = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\n", &[]),
        (
            "[server]\norigins = [\"http://*.a.*\", \"localhost\"]\n",
            &[
                "2: server.origins: \"http://*.a.*\" has more",
                "2: server.origins: \"localhost\" has no scheme",
            ],
        ),
        (
            "[server]\nmax_header_bytes = 10\n",
            &["2: server.max_header_bytes: 10 is out of range; set 8192 to 16777216"],
        ),
        (
            "[server]\nmax_connections = 0\n",
            &["2: server.max_connections: 0 is out of range"],
        ),
        (
            "[ollama]\nurl = \"localhost:11434\"\n",
            &["2: ollama.url: \"localhost:11434\" does not begin with http://"],
        ),
        (
            "[ollama]\nurl = \"nonsense\"\n",
            &["2: ollama.url: \"nonsense\" is not a URL"],
        ),
        (
            "[ollama]\nurl = \"http://u:p@h\"\n",
            &["2: ollama.url: must not hold a user"],
        ),
        (
            "[ollama]\nurl = \"http://h/?a\"\n",
            &["2: ollama.url: \"http://h/?a\" has more than"],
        ),
        (
            "[ollama]\nurl = \"http://localhost:11435\"\n",
            &["2: ollama.url: is one of our own addresses"],
        ),
        ("[ollama]\nenabled = false\nurl = \"http://localhost:11435\"\n", &[]),
        (
            "[ollama]\nenabled = false\n[hub]\nenabled = false\n",
            &["4: hub.enabled: is false and so is"],
        ),
        (
            "[ollama]\nfallback_version = \"new\"\n",
            &["2: ollama.fallback_version: \"new\" is not a version"],
        ),
        (
            "[ollama]\npriority = [\"ollama\", \"ollama\"]\n",
            &["2: ollama.priority: names a provider twice"],
        ),
        (
            "[hub]\nendpoint = \"ftp://x\"\n",
            &["2: hub.endpoint: \"ftp://x\" does not begin with"],
        ),
        (
            "[hub]\ntoken = \"hf_a b\"\n",
            &["2: hub.token: has characters that no token has"],
        ),
        (
            "[hub]\ntoken = \"a\"\ntoken_file = \"/b\"\n",
            &["3: hub.token_file: is set in addition to hub.token"],
        ),
        (
            "[hub]\ntoken_file = \"/nowhere/token\"\n",
            &["2: hub.token_file: cannot read /nowhere/token"],
        ),
        (
            "[hub]\ncache_dir = \"a/b\"\n",
            &["2: hub.cache_dir: \"a/b\" is not absolute"],
        ),
        (
            "[hub]\nparallel_ranges = 0\nretry_attempts = 101\n",
            &["2: hub.parallel_ranges: 0 is out", "3: hub.retry_attempts: 101 is out"],
        ),
        (
            "[engine]\ngpu_layers = -2\n",
            &["2: engine.gpu_layers: -2 is out of range"],
        ),
        (
            "[engine]\ntensor_split = [0, 0]\n",
            &["2: engine.tensor_split: must hold"],
        ),
        (
            "[engine]\nflash_attention = false\nkv_cache_type = \"q8_0\"\n",
            &["3: engine.kv_cache_type_v: needs flash attention"],
        ),
        ("[engine]\nflash_attention = \"off\"\nkv_cache_type_k = \"q8_0\"\n", &[]),
        (
            "[engine.sampling]\ntop_p = 1.5\ntemperature = -1\nstop = [\"\"]\n",
            &[
                "2: engine.sampling.top_p: 1.5",
                "3: engine.sampling.temperature: -1",
                "4: engine.sampling.stop: holds an empty",
            ],
        ),
        (
            "[engine.sampling]\ntemperature = nan\n",
            &["2: engine.sampling.temperature: expected a finite number"],
        ),
        (
            "state_dir = \"relative\"\n",
            &["1: state_dir: \"relative\" is not absolute"],
        ),
        (
            "[log]\nlevel = \"verbos\"\n",
            &["2: log.level: \"verbos\" is not a level"],
        ),
        (
            "[log]\nlevel = \"inof\"\n",
            &[
                "2: log.level: \"inof\" is not a level; set one of off, error, warn, info, debug, trace (did you mean \"info\"?)",
            ],
        ),
        (
            "[log]\nlevel = \"hubllama=loud\"\n",
            &["2: log.level: \"hubllama=loud\" is not a filter"],
        ),
        (
            "[log]\nlevel = \"info,hubllama=debug\"\nformat = \"xml\"\n",
            &["3: log.format: expected one of \"text\", \"json\""],
        ),
        // Old names.
        (
            "[ollama]\nv1_via_native = true\nhonest_v1 = false\n",
            &[
                "3: ollama.honest_v1: is the old name of ollama.v1_via_native, which is set too; remove ollama.honest_v1",
            ],
        ),
        (
            "[hub]\ndoubtful_tokenizers = \"ask\"\n",
            &["2: hub.tokenizer_mismatch: expected one of \"refuse\", \"warn\", found \"ask\""],
        ),
        // Models and aliases.
        (
            "[models.\"hf:a/b\"]\nnum_ctx = 4096\nnum_ctz = 1\n",
            &["3: models.\"hf:a/b\".num_ctz: is not known (did you mean \"num_ctx\"?)"],
        ),
        (
            "[models.\"hf:a/b\"]\nnum_ctx = 1\ncontext_length = 2\n",
            &["3: models.\"hf:a/b\".context_length: is another name of num_ctx"],
        ),
        (
            "[models.\"hf:a/b\"]\ntop_p = 7\n",
            &["2: models.\"hf:a/b\".top_p: 7 is out of range"],
        ),
        (
            "[models.\"hf:a/b\"]\nkv_cache_type = \"q4_0\"\nflash_attention = \"off\"\n",
            &["2: models.\"hf:a/b\".kv_cache_type_v: needs flash"],
        ),
        (
            "[engine]\nkv_cache_type = \"q8_0\"\n[models.\"hf:a/b\"]\nflash_attention = \"off\"\n",
            &["3: models.\"hf:a/b\".kv_cache_type_v: needs flash"],
        ),
        (
            "[models.llama3]\n",
            &["1: models.llama3: \"llama3\" is not the name of a Hub model"],
        ),
        (
            "[models.\"hf:llama3\"]\n",
            &["1: models.\"hf:llama3\": \"hf:llama3\" is not"],
        ),
        (
            "[models.\"hf:a/b\"]\n[models.\"HF:a/b\"]\n",
            &["1: models.\"hf:a/b\": is the same model as \"HF:a/b\""],
        ),
        (
            "[models.\"hf.co/a/b\"]\n",
            &["1: models.\"hf.co/a/b\": \"hf.co/a/b\" is not"],
        ),
        (
            "[hub]\nclaim_hf_co = true\n[models.\"hf:a/b:Q4_0\"]\n[models.\"HF.co/a/b:Q4_0\"]\n[models.\"hf.co/a/c:Q4_0\"]\n",
            &["3: models.\"hf:a/b:Q4_0\": is the same model as \"HF.co/a/b:Q4_0\""],
        ),
        ("[models]\n\"hf:a/b\" = 1\n", &["2: models.\"hf:a/b\": is a table"]),
        (
            "[aliases]\nsmall = \"llama3\"\n",
            &["2: aliases.small: \"llama3\" is not"],
        ),
        ("[aliases]\nsmall = 3\n", &["2: aliases.small: expected the name"]),
        (
            "[aliases]\n\"hf:a/b\" = \"hf:c/d\"\n",
            &["2: aliases.\"hf:a/b\": already means"],
        ),
        ("[aliases]\n\"a b\" = \"hf:c/d\"\n", &["2: aliases.\"a b\": is not"]),
        (
            "[aliases]\nSmall = \"hf:c/d\"\n\"small:latest\" = \"hf:c/d\"\n",
            &["3: aliases.\"small:latest\": is the same name as \"Small\""],
        ),
        // All kinds together, in the order of the lines.
        (
            "[engine]\nmax_queue = -1\n[server]\nlisten = \"x\"\n[log]\nlevl = 1\n",
            &["2: engine.max_queue", "4: server.listen", "6: log.levl"],
        ),
    ];
    let mut wrong = String::new();
    for (text, expected) in cases {
        let found = Bench::new(text).problems();
        let same = found.len() == expected.len() && found.iter().zip(*expected).all(|(f, e)| f.starts_with(e));
        if !same {
            wrong += &format!("{text}found {found:#?}\nexpected {expected:#?}\n\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn values_arrive() {
    let bench = Bench::new(
        r#"
state_dir = "~/state"
[server]
listen = "unix:/run/hubllama.sock"
max_header_bytes = "16KiB"
body_memory_bytes = 4_096
[ollama]
url = "http://10.0.0.7:11434/"
priority = ["huggingface"]
[hub]
token = "hf_secret"
cache_dir = "~/hub"
[engine]
keep_alive = -1
load_timeout = 1.5
kv_cache_type = "q8_0"
kv_cache_type_k = "f16"
flash_attention = true
tensor_split = [3, 1.5]
[engine.sampling]
stop = "END"
[models."hf:org/repo:Q4_K_M"]
system = "Be brief."
keep_alive = "1h30m"
context_length = 8192
gpu_layers = 0
mmap = false
temperature = 0.2
stop = ["a", "b"]
kv_cache_type = "f32"
[aliases]
small = "hf:org/repo:Q4_K_M"
"#,
    );
    let Config {
        server,
        ollama,
        hub,
        engine,
        models,
        aliases,
        state_dir,
        ..
    } = bench.load().config;
    assert_eq!(state_dir, bench.path("state"));
    assert_eq!(server.listen, ["unix:/run/hubllama.sock"]);
    assert_eq!((server.max_header_bytes, server.body_memory_bytes), (16 << 10, 4096));
    assert_eq!(ollama.url, "http://10.0.0.7:11434");
    assert_eq!(ollama.priority, [ProviderName::HuggingFace]);
    assert_eq!(
        hub.token.as_ref().map(|token| token.expose().as_str()),
        Some("hf_secret")
    );
    assert_eq!(hub.cache_dir, bench.path("hub"));
    assert_eq!(engine.keep_alive, KeepAlive::Forever);
    assert_eq!(engine.load_timeout, Duration::from_millis(1500));
    assert_eq!(
        (engine.kv_cache_type_k, engine.kv_cache_type_v),
        (KvCacheType::F16, KvCacheType::Q8_0)
    );
    assert_eq!(engine.flash_attention, AutoSwitch::On);
    assert_eq!(engine.tensor_split, [3.0, 1.5]);
    assert_eq!(engine.sampling.stop, Some(vec!["END".into()]));
    let model = &models["hf:org/repo:Q4_K_M"];
    assert_eq!(model.system.as_deref(), Some("Be brief."));
    assert_eq!(model.keep_alive, Some(KeepAlive::For(Duration::from_secs(5400))));
    assert_eq!(
        (model.load.context_length, model.load.num_gpu, model.load.use_mmap),
        (Some(8192), Some(0), Some(false))
    );
    assert_eq!(model.sampling.temperature, Some(0.2));
    assert_eq!(model.sampling.stop, Some(vec!["a".into(), "b".into()]));
    assert_eq!(
        (model.kv_cache_type_k, model.kv_cache_type_v),
        (Some(KvCacheType::F32), Some(KvCacheType::F32))
    );
    assert_eq!(aliases["small"], "hf:org/repo:Q4_K_M");
}

#[test]
fn stronger_sources_win_and_say_so() {
    let file = "[server]\nlisten = \"127.0.0.1:1\"\n[engine]\nmax_loaded_models = 2\nkv_cache_type_v = \"f32\"\n";
    let bench = Bench::new(file)
        .env("HUBLLAMA_LISTEN", "127.0.0.1:2, [::1]:2")
        .env("MAX_CONCURRENT_MODELS", "4")
        .env("OLLAMA_MAX_LOADED_MODELS", "3")
        .env("OLLAMA_KV_CACHE_TYPE", "q8_0")
        .set("server.listen", "127.0.0.1:3");
    let loaded = bench.load();
    assert_eq!(loaded.config.server.listen, ["127.0.0.1:3"]);
    assert_eq!(loaded.config.engine.max_loaded_models, 4);
    assert_eq!(loaded.config.engine.kv_cache_type_v, KvCacheType::Q8_0);
    assert_eq!(loaded.origin("server.listen"), SettingOrigin::CommandLine);
    let file = bench.path("config.toml").display().to_string();
    let shadowed: Vec<String> = loaded
        .shadowed
        .iter()
        .map(|shadowed| shadowed.to_string().replace(&file, "file"))
        .collect();
    assert_eq!(
        shadowed,
        [
            "engine.max_loaded_models: file:4 has no effect, since environment OLLAMA_MAX_LOADED_MODELS is stronger",
            "engine.kv_cache_type: file:5 has no effect, since environment OLLAMA_KV_CACHE_TYPE is stronger",
            "engine.max_loaded_models: environment OLLAMA_MAX_LOADED_MODELS has no effect, since environment \
             MAX_CONCURRENT_MODELS is stronger",
            "server.listen: file:2 has no effect, since environment HUBLLAMA_LISTEN is stronger",
            "server.listen: environment HUBLLAMA_LISTEN has no effect, since command line is stronger",
        ]
    );
}

#[test]
fn mistakes_outside_the_file() {
    let bench = Bench::new("")
        .env("RETRY_DELAY_MS", "soon")
        .env("HUBLLAMA_UPSTREAM", "nonsense")
        .env("OLLAMA_NUM_PARALLEL", "many")
        .env("HUBLLAMA_LOGS", "x")
        .set("engine.max_queu", "1")
        .set("engine.max_queue", "x");
    assert_eq!(
        bench.problems(),
        [
            "environment HUBLLAMA_UPSTREAM: ollama.url: \"nonsense\" is not a URL; write it as \"http://127.0.0.1:11434\"",
            "environment RETRY_DELAY_MS: hub.retry_delay: expected whole milliseconds, found \"soon\"",
            "command line: engine.max_queu: is not a setting (did you mean \"engine.max_queue\"?)",
            "command line: engine.max_queue: expected a whole number, found \"x\"",
        ]
    );

    let bench = Bench::new("")
        .env("OLLAMA_NUM_PARALLEL", "many")
        .env("HUBLLAMA_LOGS", "x");
    let warnings: Vec<String> = bench.load().warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "environment HUBLLAMA_LOGS: is not a setting (did you mean \"HUBLLAMA_LOG\"?)",
            "environment OLLAMA_NUM_PARALLEL: engine.parallel: expected a whole number, found \"many\"; it is ignored",
        ]
    );
}

#[test]
fn old_names_work_with_a_warning() {
    let bench = Bench::new("[hub]\ndoubtful_tokenizers = \"warn\"\n[ollama]\nhonest_v1 = true\n");
    let loaded = bench.load();
    assert_eq!(loaded.config.hub.tokenizer_mismatch, TokenizerMismatch::Warn);
    assert!(loaded.config.ollama.v1_via_native);
    let folder = format!("{}/config.toml:", bench.folder.path().display());
    let warnings: Vec<String> = loaded
        .warnings
        .iter()
        .map(|warning| warning.to_string().replace(&folder, ""))
        .collect();
    let expected = [
        "2: hub.doubtful_tokenizers: is deprecated; it is called hub.tokenizer_mismatch now",
        "4: ollama.honest_v1: is deprecated; it is called ollama.v1_via_native now",
    ];
    assert_eq!(warnings, expected);
    let bench = bench.env("HUBLLAMA_ORGANISATION_TOKENS", "my-org=hf_x");
    let loaded = bench.load();
    assert!(loaded.config.hub.organization_tokens.contains_key("my-org"));
    let sentence =
        "environment HUBLLAMA_ORGANISATION_TOKENS: is deprecated; it is called HUBLLAMA_ORGANIZATION_TOKENS now";
    assert_eq!(
        loaded.warnings.last().map(ToString::to_string).as_deref(),
        Some(sentence)
    );
    let both = Bench::new("")
        .env("HUBLLAMA_ORGANISATION_TOKENS", "my-org=hf_x")
        .env("HUBLLAMA_ORGANIZATION_TOKENS", "my-org=hf_y");
    assert_eq!(
        both.problems(),
        [
            "environment HUBLLAMA_ORGANISATION_TOKENS: is the old name of HUBLLAMA_ORGANIZATION_TOKENS, which is set \
             too; remove HUBLLAMA_ORGANISATION_TOKENS"
        ]
    );
    let report = check_report(&bench.inputs);
    assert!(
        report.good && expected.iter().all(|line| report.text.contains(line)),
        "{}",
        report.text
    );
    let value = "  ollama.v1_via_native = true  # ";
    assert!(report.text.contains(value), "{}", report.text);
}

#[test]
fn file_may_be_missing_only_where_nobody_named_it() {
    let mut bench = Bench::new("");
    fs::remove_file(bench.path("config.toml")).expect("it is there");
    assert!(bench.problems()[0].contains("cannot read the configuration file"));
    bench.inputs.path = None;
    let bench = bench.env("XDG_CONFIG_HOME", "/nowhere/at/all");
    let loaded = bench.load();
    // If the machine has a system-wide file, that one is read.
    assert!(loaded.text.is_some() || loaded.path == Some("/nowhere/at/all/hubllama/config.toml".into()));

    for (bytes, sentence) in [
        (&b"a = 1\n\xff"[..], "line 2 is not UTF-8"),
        (&[b'#'; 1 << 21][..], "larger than"),
    ] {
        let bench = Bench::new("");
        fs::write(bench.path("config.toml"), bytes).expect("writable");
        assert!(bench.problems()[0].contains(sentence), "{:?}", bench.problems());
    }
    let mut bench = Bench::new("");
    bench.inputs.path = Some(bench.folder.path().to_owned());
    assert!(bench.problems()[0].contains("not a regular file"));
}

#[test]
fn token_comes_from_the_strongest_place() {
    let token = |bench: &Bench| bench.load().config.hub.token.map(|token| token.expose().clone());
    let stored = |bench: Bench| {
        for (name, text) in [("hf/token", "stored\n"), ("own", "own\n"), ("empty", "\n")] {
            let path = bench.path(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
            fs::write(path, text).expect("writable");
        }
        let home = bench.path("hf").display().to_string();
        bench.env("HF_HOME", &home)
    };
    let bench = stored(Bench::new(""));
    assert_eq!(token(&bench).as_deref(), Some("stored"));
    assert_eq!(bench.load().config.hub.cache_dir, bench.path("hf/hub"));
    assert!(bench.load().files.contains(&bench.path("hf/token")));

    let bench = stored(Bench::new("[hub]\ntoken_file = \"~/own\"\n"));
    assert_eq!(token(&bench).as_deref(), Some("own"));
    assert_eq!(token(&bench.env("HF_TOKEN", " hf_env ")).as_deref(), Some("hf_env"));

    let bench = stored(Bench::new("[hub]\ntoken = \"\"\n"));
    assert_eq!(token(&bench), None);
    let bench = stored(Bench::new("[hub]\ntoken_file = \"~/empty\"\n"));
    assert_eq!(token(&bench), None);
    let bench = stored(Bench::new("[hub]\ntoken = \"hf_file\"\n")).env("HF_TOKEN_PATH", "/nowhere");
    assert_eq!(token(&bench), None);
    let bench = stored(Bench::new("")).env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1");
    assert_eq!(token(&bench), None);
}

#[test]
fn readable_token_and_open_listener_are_doubtful() {
    use std::os::unix::fs::PermissionsExt as _;

    let bench =
        Bench::new("[server]\nlisten = \"0.0.0.0:11435\"\n[hub]\nendpoint = \"http://hub.lan\"\ntoken = \"a\"\n");
    fs::set_permissions(bench.path("config.toml"), fs::Permissions::from_mode(0o644)).expect("ours");
    let keys: Vec<String> = bench.load().warnings.into_iter().map(|warning| warning.key).collect();
    assert_eq!(keys, ["server.listen", "hub.endpoint", "hub.token"]);
}

#[test]
fn nothing_shows_a_secret() {
    let bench = Bench::new("[hub]\ntoken = \"hf_secret\"\nendpoint = \"nonsense\"\n");
    let report = check_report(&bench.inputs);
    assert!(!report.good);
    let bench = Bench::new("[hub]\ntoken = \"hf_secret\"\n");
    let good = check_report(&bench.inputs);
    assert!(
        good.good && good.text.contains("hub.token = \"[redacted]\""),
        "{}",
        good.text
    );
    let loaded = bench.load();
    let shown = [
        report.text,
        good.text,
        format!("{loaded:?}"),
        describe(&loaded).to_string(),
    ];
    for text in shown {
        assert!(!text.contains("hf_secret"), "{text}");
    }
}

#[test]
fn report_names_every_source() {
    let text = "[engine]\nmax_queue = 5\nkeep_alive = \"10m\"\n[models.\"hf:a/b\"]\nnum_ctx = 4096\n[aliases]\nx = \"hf:a/b\"\n";
    let bench = Bench::new(text)
        .env("OLLAMA_KEEP_ALIVE", "-1")
        .set("log.level", "debug");
    let report = check_report(&bench.inputs);
    let folder = bench.folder.path().display().to_string();
    let text = report.text.replace(&folder, "");
    for line in [
        "file      /config.toml\n",
        "\nhidden\n  engine.keep_alive: /config.toml:3 has no effect, since environment OLLAMA_KEEP_ALIVE is stronger\n",
        "  engine.max_queue = 5  # /config.toml:2\n",
        "  engine.keep_alive = -1  # environment OLLAMA_KEEP_ALIVE\n",
        "  engine.max_loaded_models = 0  # default, or MAX_CONCURRENT_MODELS\n",
        "  log.level = \"debug\"  # command line\n",
        "  models.\"hf:a/b\".num_ctx = 4096  # /config.toml:5\n",
        "  aliases.x = \"hf:a/b\"  # /config.toml:7\n",
        "\nThe configuration is good.\n",
    ] {
        assert!(text.contains(line), "{line}\nnot in\n{text}");
    }

    let bench = Bench::new("[engine]\nmax_queue = \"x\"\n");
    let report = check_report(&bench.inputs);
    let expected = "/config.toml:2: engine.max_queue: expected a whole number, found \"x\"\n";
    assert!(!report.good && report.text.contains(expected), "{}", report.text);
    assert!(
        report.text.contains("\n1 problem; the daemon does not start"),
        "{}",
        report.text
    );
}

#[test]
fn described_values_have_the_shape_of_the_file() {
    let bench = Bench::new("[models.\"hf:a/b\"]\ntop_k = 3\n[server]\nbody_memory_bytes = \"1MiB\"\n");
    let described = describe(&bench.load());
    assert_eq!(described["config"]["server"]["body_memory_bytes"], json!("1MiB"));
    assert_eq!(described["config"]["models"]["hf:a/b"], json!({"top_k": 3}));
    assert_eq!(described["config"]["engine"]["sampling"]["top_k"], json!(null));
    let source = format!("{}:4", bench.path("config.toml").display());
    assert_eq!(described["sources"]["server.body_memory_bytes"], json!(source));
}

/// Returns the example with every commented key uncommented: `#key = …` is a key, `# text` is prose.
fn uncommented_example() -> String {
    let is_prose = |rest: &str| rest.is_empty() || rest.starts_with([' ', '#']);
    let lines = EXAMPLE
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !is_prose(rest)).unwrap_or(line));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn example_is_good_as_it_is_and_changes_nothing() {
    let bench = Bench::new(EXAMPLE);
    let plain = Bench::new("");
    let mut expected = plain.load().config;
    let found = bench.load().config;
    expected.hub.cache_dir.clone_from(&found.hub.cache_dir);
    expected.state_dir.clone_from(&found.state_dir);
    assert_eq!(found, expected);
}

#[test]
fn example_with_every_key_is_good_and_shows_the_defaults() {
    let text = uncommented_example();
    // Token and token file exclude each other, and the example's token file does not exist here.
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with("token_file"))
        .map(|line| format!("{line}\n"))
        .collect();
    let bench = Bench::new(&text);
    assert_eq!(bench.problems(), Vec::<String>::new());
    let changed = ConfigDiff::between(&Bench::new("").load().config, &bench.load().config).changed;
    // Keys without a default, or with one that depends on the machine, show an example instead.
    let examples = [
        "hub.token",
        "hub.mirrors",
        "hub.organization_tokens",
        "hub.cache_dir",
        "hub.extra_caches",
        "server.origins",
        "engine.tensor_split",
        "state_dir",
    ];
    let example = |key: &str| {
        ["engine.sampling.", "models.", "aliases."]
            .iter()
            .any(|prefix| key.starts_with(prefix))
    };
    for key in changed {
        assert!(
            examples.contains(&key.as_str()) || example(&key),
            "{key} does not show its default"
        );
    }
}

#[test]
fn example_has_every_key() {
    let text = uncommented_example();
    let (document, errors) = toml::de::DeTable::parse_recoverable(&text);
    assert!(errors.is_empty(), "{errors:?}");
    let root = document.get_ref();
    for key in KEYS {
        let mut value = None;
        for part in key.name.split('.') {
            let table = value.map_or(Some(root), |value: &toml::Spanned<toml::de::DeValue<'_>>| {
                value.get_ref().as_table()
            });
            value = table.and_then(|table| table.get(part));
            assert!(value.is_some(), "{} is not in config.toml.example", key.name);
        }
    }
    let models = root
        .get("models")
        .and_then(|models| models.get_ref().as_table())
        .expect("a table");
    let (_, model) = models.iter().next().expect("a model");
    let model = model.get_ref().as_table().expect("a table");
    for key in MODEL_KEYS {
        assert!(
            model.get(key.name).is_some(),
            "{} of a model is not in config.toml.example",
            key.name
        );
    }
}
