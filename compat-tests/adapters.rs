//! Models with LoRA adapters: pulling, converting, applying, listing and removing them by one name.

use std::{fs, path::Path};

use bytes::Bytes;
use hubllama::{config::HubConfig, hub::HfName, library::Library};
use serde_json::{Map, Value, json};

use crate::{
    convert::{checkpoint, convert, names},
    harness::{
        fake_hub::{FakeHub, Source},
        fixture_file::{gguf, sha256_of},
        hubllama::{Hubllama, MODEL, REPO, Setup},
    },
};

const ADAPTERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/convert/adapters");
/// Configuration with one thread, because tests share the machine.
const ENGINE: &str = "[engine]\nthreads = 1\ncontext_length = 256\n";
const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

/// Publishes a folder as a repository, with binary files as LFS files.
fn publish(hub: &FakeHub, repo: &str, folder: &Path) {
    for name in names(folder) {
        match String::from_utf8(fs::read(folder.join(&name)).expect("a file")) {
            Ok(text) => hub.add_small(repo, &name, &text),
            Err(_) => hub.add(repo, &name, Source::Path(folder.join(&name))),
        };
    }
}

/// Publishes an adapter of the fixtures as a repository.
fn publish_adapter(hub: &FakeHub, repo: &str, fixture: &str) {
    publish(hub, repo, &Path::new(ADAPTERS).join(fixture));
}

/// Returns an untrained adapter for the queries and values of SmolLM2.
fn publish_noise(hub: &FakeHub, repo: &str) {
    const LAYERS: usize = 30;
    const RANK: usize = 4;
    let mut seed = 7_u64;
    let mut noise = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((seed >> 40) as f32 / (1 << 23) as f32 - 1.0) * 0.1
    };
    let (mut header, mut data) = (Map::new(), Vec::new());
    for layer in 0..LAYERS {
        for (module, rows) in [("q_proj", 576), ("v_proj", 192)] {
            for (half, shape) in [("lora_A", [RANK, 576]), ("lora_B", [rows, RANK])] {
                let start = data.len();
                data.extend((0..shape[0] * shape[1]).flat_map(|_| noise().to_le_bytes()));
                header.insert(
                    format!("base_model.model.model.layers.{layer}.self_attn.{module}.{half}.weight"),
                    json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}),
                );
            }
        }
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    hub.add(repo, WEIGHTS, Source::Bytes(Bytes::from(file)));
    let config = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "bias": "none", "target_modules": ["q_proj", "v_proj"]});
    hub.add_small(repo, CONFIG, &config.to_string());
}

fn post(daemon: &Hubllama, path: &str, body: &Value) -> (u16, Value) {
    let (head, body) = daemon.post(path, body);
    (head.status(), serde_json::from_str(&body).unwrap_or(Value::Null))
}

/// Pulls a model and returns the last event.
fn pull(daemon: &Hubllama, model: &str) -> (u16, Value) {
    post(daemon, "/api/pull", &json!({ "model": model, "stream": false }))
}

#[track_caller]
fn pulls(daemon: &Hubllama, model: &str) {
    assert_eq!(pull(daemon, model), (200, json!({"status": "success"})), "{model}");
}

#[track_caller]
fn refuses(daemon: &Hubllama, model: &str, status: u16, parts: &[&str]) {
    let (found, reply) = pull(daemon, model);
    let error = reply["error"].as_str().unwrap_or_default();
    assert_eq!(found, status, "{model}: {reply}");
    for part in parts {
        assert!(error.contains(part), "{model}: {error}");
    }
}

fn listed(daemon: &Hubllama) -> Vec<String> {
    let tags = daemon.get_json("/api/tags");
    let models = tags["models"].as_array().cloned().unwrap_or_default();
    let name = |model: &Value| model["name"].as_str().unwrap_or_default().to_owned();
    let mut names: Vec<String> = models.iter().map(name).collect();
    names.sort();
    names
}

fn entry(daemon: &Hubllama, name: &str) -> Value {
    let tags = daemon.get_json("/api/tags");
    let models = tags["models"].as_array().cloned().unwrap_or_default();
    let found = models.into_iter().find(|model| model["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not listed"))
}

/// Returns the greedy continuation of a fixed prompt.
#[track_caller]
fn says(daemon: &Hubllama, model: &str) -> String {
    let request = json!({
        "model": model, "prompt": "The capital of France is", "raw": true, "stream": false,
        "options": {"num_predict": 12, "temperature": 0},
    });
    let (status, reply) = post(daemon, "/api/generate", &request);
    assert_eq!(status, 200, "{model}: {reply}");
    reply["response"].as_str().expect("a text").to_owned()
}

fn vector(daemon: &Hubllama, model: &str) -> Value {
    let (status, reply) = post(daemon, "/api/embed", &json!({ "model": model, "input": "a text" }));
    assert_eq!(status, 200, "{model}: {reply}");
    reply["embeddings"][0].clone()
}

fn delete(daemon: &Hubllama, model: &str) -> u16 {
    let (head, _) = daemon.request("DELETE", "/api/delete", &json!({ "model": model }).to_string());
    head.status()
}

fn cached(daemon: &Hubllama, repo: &str) -> bool {
    let folder = format!("models--{}", repo.replace('/', "--"));
    daemon.folder.path().join("hub").join(folder).exists()
}

#[test]
fn an_adapter_makes_another_model_of_its_base() {
    let hub = FakeHub::start();
    hub.add(REPO, "SmolLM2-135M-Instruct.Q4_1.gguf", Source::Path(gguf()));
    publish_noise(&hub, "Example-Org/Noise");
    let pickle = hub.add(
        "Example-Org/Noise",
        "adapter_model.bin",
        Source::Bytes(Bytes::from_static(b"pickle")),
    );
    let daemon = Setup::with_model().hub(hub.url()).config(ENGINE).start();
    let name = format!("{MODEL}+Example-Org/Noise");

    assert_eq!(post(&daemon, "/api/show", &json!({ "model": name })).0, 404);
    pulls(&daemon, &format!("{MODEL}+example-org/noise:latest"));
    assert_eq!(
        hub.hits(&format!("/cdn/{pickle}")).requests,
        0,
        "pickles are never fetched"
    );
    assert_eq!(listed(&daemon), [MODEL, name.as_str()]);
    let (base, both) = (entry(&daemon, MODEL), entry(&daemon, &name));
    assert!(both["size"].as_u64() > base["size"].as_u64(), "{both}");
    assert_ne!(base["digest"], both["digest"]);
    assert_eq!(base["details"], both["details"]);

    let (_, of_base) = post(&daemon, "/api/show", &json!({ "model": MODEL }));
    let (status, shown) = post(&daemon, "/api/show", &json!({ "model": name }));
    assert_eq!(status, 200, "{shown}");
    assert_eq!(shown["capabilities"], of_base["capabilities"]);
    assert_eq!(shown["template"], of_base["template"]);
    let adapters = &shown["model_info"]["hubllama.adapters"];
    assert_eq!(adapters[0]["repository"], "Example-Org/Noise", "{shown}");
    assert_eq!(adapters[0]["commit"], hub.commit("Example-Org/Noise"));
    assert_eq!(adapters[0]["files"][1]["path"], WEIGHTS);
    assert!(of_base["model_info"].get("hubllama.adapters").is_none());

    let plain = says(&daemon, MODEL);
    let changed = says(&daemon, &name);
    assert_ne!(plain, changed);
    assert_eq!(says(&daemon, MODEL), plain, "the base is not changed");
    assert_ne!(vector(&daemon, MODEL), vector(&daemon, &name));
    let resident = daemon.get_json("/api/ps");
    let mut names: Vec<&str> = resident["models"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|model| model["name"].as_str())
        .collect();
    names.sort_unstable();
    assert_eq!(names, [MODEL, name.as_str()]);
    let (_, unloaded) = post(&daemon, "/api/generate", &json!({ "model": name, "keep_alive": 0 }));
    assert_eq!(unloaded["done_reason"], "unload");

    let daemon = daemon.again(rustix::process::Signal::TERM);
    assert_eq!(
        listed(&daemon),
        [MODEL, name.as_str()],
        "they are there after a restart"
    );
    assert_eq!(says(&daemon, &name), changed);
    assert_eq!(delete(&daemon, &name), 200);
    assert_eq!(listed(&daemon), [MODEL]);
    assert!(!cached(&daemon, "Example-Org/Noise"));
    let made = daemon.folder.path().join("state/adapters");
    assert!(names_below(&made).is_empty(), "{:?}", names_below(&made));
    assert_eq!(delete(&daemon, &name), 404);
    assert_eq!(says(&daemon, MODEL), plain);
}

fn names_below(folder: &Path) -> Vec<String> {
    if folder.is_dir() { names(folder) } else { Vec::new() }
}

/// A Llama file has the rows of its heads in another order than the checkpoint; the adapter has the checkpoint's order.
#[test]
fn it_is_the_same_on_a_file_and_on_safetensors() {
    for (fixture, tokenizer) in [("llama", "spm"), ("qwen3", "qwen"), ("mixtral", "spm")] {
        let hub = FakeHub::start();
        let base = checkpoint(fixture, tokenizer);
        publish(&hub, "Example-Org/Base", base.path());
        let home = tempfile::tempdir().expect("a home");
        let file = home.path().join("base-F16.gguf");
        let [from, to] = [base.path(), file.as_path()].map(|path| path.to_str().expect("UTF-8"));
        let (is_good, said) = convert(home.path(), &[from, "--type", "F16", "--output", to]);
        assert!(is_good, "{said}");
        hub.add("Example-Org/Base-GGUF", "base-F16.gguf", Source::Path(file));
        publish_adapter(&hub, "Example-Org/Lora", fixture);
        let daemon = Setup::default().hub(hub.url()).config(ENGINE).start();
        let of = |base: &str, adapter: &str| {
            let name = format!("hf:Example-Org/{base}:F16{adapter}");
            pulls(&daemon, &name);
            says(&daemon, &name)
        };
        let (plain, adapted) = (of("Base", ""), of("Base", "+Example-Org/Lora"));
        assert_eq!(of("Base-GGUF", ""), plain, "{fixture}");
        assert_eq!(of("Base-GGUF", "+Example-Org/Lora"), adapted, "{fixture}");
        assert_ne!(plain, adapted, "{fixture}");
    }
}

#[test]
fn several_at_once_and_a_file_that_is_one_already() {
    let hub = FakeHub::start();
    publish(&hub, "Example-Org/Base", checkpoint("llama", "spm").path());
    publish_adapter(&hub, "Example-Org/One", "llama");
    publish_adapter(&hub, "Example-Org/Two", "llama-16");
    let daemon = Setup::default().hub(hub.url()).config(ENGINE).start();
    let names = [
        "+Example-Org/One",
        "+Example-Org/Two",
        "+Example-Org/One+Example-Org/Two",
    ]
    .map(|adapters| format!("hf:Example-Org/Base:F16{adapters}"));
    for name in &names {
        pulls(&daemon, name);
    }
    let texts: Vec<String> = names.iter().map(|name| says(&daemon, name)).collect();
    assert!(
        texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2],
        "{texts:?}"
    );

    // The converted adapter is a file that other programs can use, too.
    let made = daemon.folder.path().join("state/adapters/models--Example-Org--One");
    let commit = made.join(hub.commit("Example-Org/One"));
    let file = commit.join(&names_below(&commit)[0]);
    hub.add(
        "Example-Org/File",
        "one-F32.gguf",
        Source::Bytes(Bytes::from(fs::read(file).expect("made"))),
    );
    let as_file = "hf:Example-Org/Base:F16+Example-Org/File";
    pulls(&daemon, as_file);
    assert_eq!(says(&daemon, as_file), texts[0]);
    // An adapter alone is no model.
    let mut expected = vec![as_file, "hf:Example-Org/Base:F16"];
    expected.extend(names.iter().map(String::as_str));
    expected.sort_unstable();
    assert_eq!(listed(&daemon), expected);

    // Files that other models use stay.
    assert_eq!(delete(&daemon, &names[0]), 200);
    assert_eq!(says(&daemon, &names[2]), texts[2]);
    assert_eq!(delete(&daemon, "hf:Example-Org/Base:F16"), 200);
    assert!(!listed(&daemon).contains(&"hf:Example-Org/Base:F16".to_owned()));
    assert_eq!(says(&daemon, &names[1]), texts[1]);
    for name in [&names[1], &names[2], as_file] {
        assert_eq!(delete(&daemon, name), 200, "{name}");
    }
    assert_eq!(listed(&daemon), Vec::<String>::new());
    for repo in ["Base", "One", "Two", "File"] {
        assert!(!cached(&daemon, &format!("Example-Org/{repo}")), "{repo}");
    }
}

#[test]
fn what_cannot_be_applied_is_said_before_the_base_is_fetched() {
    let hub = FakeHub::start();
    let base = checkpoint("qwen3", "qwen");
    publish(&hub, "Example-Org/Base", base.path());
    publish_adapter(&hub, "Example-Org/Good", "qwen3");
    let config = fs::read_to_string(Path::new(ADAPTERS).join("qwen3").join(CONFIG)).expect("settings");
    hub.add_small("Example-Org/Pickle", CONFIG, &config);
    hub.add(
        "Example-Org/Pickle",
        "adapter_model.bin",
        Source::Bytes(Bytes::from_static(b"pickle")),
    );
    publish_adapter(&hub, "Example-Org/Dora", "qwen3");
    hub.add_small(
        "Example-Org/Dora",
        CONFIG,
        &config.replace("\"use_dora\": false", "\"use_dora\": true"),
    );
    publish(&hub, "Example-Org/Model", base.path());
    publish_adapter(&hub, "Example-Org/Other", "phi3");
    publish_adapter(&hub, "Example-Org/Wide", "qwen2");
    let daemon = Setup::default().hub(hub.url()).config(ENGINE).start();
    let on_base = |adapter: &str| format!("hf:Example-Org/Base:F16+Example-Org/{adapter}");

    refuses(&daemon, &on_base("Absent"), 404, &["Example-Org/Absent", "not found"]);
    refuses(
        &daemon,
        &on_base("Pickle"),
        400,
        &["Example-Org/Pickle", "only as a pickle"],
    );
    refuses(&daemon, &on_base("Dora"), 400, &["Example-Org/Dora", "DoRA"]);
    refuses(
        &daemon,
        &on_base("Model"),
        400,
        &["Example-Org/Model", "no adapter_config.json"],
    );
    let weights = sha256_of(&base.path().join("model.safetensors"));
    assert_eq!(hub.hits(&format!("/cdn/{weights}")).requests, 0);
    assert_eq!(listed(&daemon), Vec::<String>::new());

    // These errors are known only when base and adapter are both downloaded.
    refuses(
        &daemon,
        &on_base("Other"),
        400,
        &["Example-Org/Other", "made for another model"],
    );
    refuses(
        &daemon,
        &on_base("Wide"),
        400,
        &["Example-Org/Wide", "made for another model"],
    );
    assert_eq!(listed(&daemon), ["hf:Example-Org/Base:F16"]);
    for repo in ["Other", "Wide"] {
        assert!(!cached(&daemon, &format!("Example-Org/{repo}")), "{repo} does not stay");
    }
    let (status, reply) = post(
        &daemon,
        "/api/generate",
        &json!({ "model": on_base("Other"), "prompt": "x" }),
    );
    assert_eq!(status, 404, "{reply}");
    pulls(&daemon, &on_base("Good"));
    says(&daemon, &on_base("Good"));
}

#[test]
fn a_model_that_a_client_makes_of_both() {
    let hub = FakeHub::start();
    publish(&hub, "Example-Org/Base", checkpoint("llama", "spm").path());
    publish_adapter(&hub, "Example-Org/Lora", "llama");
    let daemon = Setup::default().hub(hub.url()).config(ENGINE).start();
    let base = "hf:Example-Org/Base:F16";
    let request = json!({"model": "mine", "from": base, "adapters": {"hf:Example-Org/Lora": ""}, "stream": false});
    assert_eq!(
        post(&daemon, "/api/create", &request),
        (200, json!({"status": "success"}))
    );
    let both = format!("{base}+Example-Org/Lora");
    assert_eq!(listed(&daemon), [base, both.as_str(), "mine:latest"]);
    assert_eq!(says(&daemon, "mine"), says(&daemon, &both));
    assert_ne!(says(&daemon, "mine"), says(&daemon, base));
    let resident = daemon.get_json("/api/ps");
    assert_eq!(resident["models"].as_array().map(Vec::len), Some(2), "{resident}");
    let (status, shown) = post(&daemon, "/api/show", &json!({"model": "mine"}));
    assert_eq!(status, 200, "{shown}");
    assert_eq!(
        shown["model_info"]["hubllama.adapters"][0]["repository"],
        "Example-Org/Lora"
    );
    assert_eq!(delete(&daemon, "mine"), 200);
    assert_eq!(listed(&daemon), [base, both.as_str()]);
}

/// An adapter that `hf download` has put into the cache is used, and is not deleted.
#[test]
fn an_adapter_that_is_in_the_cache_needs_no_hub() {
    let home = tempfile::tempdir().expect("a home");
    let base = checkpoint("qwen3", "qwen");
    let adapter = Path::new(ADAPTERS).join("qwen3");
    for (repo, folder) in [("Base", base.path()), ("Lora", adapter.as_path())] {
        let repository = home.path().join(format!("models--Example-Org--{repo}"));
        let snapshot = repository.join("snapshots/0123456789abcdef0123456789abcdef01234567");
        fs::create_dir_all(&snapshot).expect("folders");
        fs::create_dir_all(repository.join("blobs")).expect("folders");
        for name in names(folder) {
            let hash = sha256_of(&folder.join(&name));
            fs::copy(folder.join(&name), repository.join("blobs").join(&hash)).expect("copied");
            std::os::unix::fs::symlink(format!("../../blobs/{hash}"), snapshot.join(&name)).expect("linked");
        }
    }
    let daemon = Setup::default()
        .cache(home.path().to_owned())
        .config(&format!("{ENGINE}[hub]\noffline = true\n"))
        .start();
    let (plain, both) = ("hf:Example-Org/Base:F16", "hf:Example-Org/Base:F16+Example-Org/Lora");
    refuses(
        &daemon,
        "hf:Example-Org/Base:F16+Example-Org/Absent",
        500,
        &["HF_HUB_OFFLINE"],
    );
    pulls(&daemon, plain);
    // Both are in the cache, so no pull is needed.
    says(&daemon, both);
    assert_eq!(listed(&daemon), [plain]);
    pulls(&daemon, both);
    assert_eq!(listed(&daemon), [plain, both]);
    let (_, shown) = post(&daemon, "/api/show", &json!({ "model": both }));
    assert_eq!(shown["model_info"]["hubllama.downloaded"], false, "{shown}");
    assert_eq!(delete(&daemon, both), 200);
    assert_eq!(listed(&daemon), [plain]);
    assert_eq!(post(&daemon, "/api/show", &json!({ "model": both })).0, 404);
    let weights = home
        .path()
        .join("models--Example-Org--Lora/snapshots/0123456789abcdef0123456789abcdef01234567");
    assert_eq!(names(&weights), names(&adapter), "what others have downloaded stays");
    pulls(&daemon, both);
    says(&daemon, both);
    assert_eq!(listed(&daemon), [plain, both]);
}

#[test]
fn a_new_commit_of_an_adapter_is_an_update() {
    let hub = FakeHub::start();
    publish(&hub, "Example-Org/Base", checkpoint("llama", "spm").path());
    publish_adapter(&hub, "Example-Org/Lora", "llama");
    let daemon = Setup::default().hub(hub.url()).config(ENGINE).start();
    let (plain, both) = ("hf:Example-Org/Base:F16", "hf:Example-Org/Base:F16+Example-Org/Lora");
    pulls(&daemon, both);
    let (unadapted, before) = (says(&daemon, plain), says(&daemon, both));
    assert_ne!(unadapted, before);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let config = HubConfig {
        endpoint: hub.url(),
        cache_dir: daemon.folder.path().join("hub"),
        ..HubConfig::default()
    };
    let update = || {
        let name = HfName::parse(both).expect("a name");
        let known = Library::new(&daemon.folder.path().join("state"));
        runtime.block_on(known.update(&config, &name)).expect("the Hub answers")
    };
    assert_eq!(update(), None);
    hub.add_small("Example-Org/Lora", "README.md", "another text");
    assert_eq!(update(), None, "a commit without other weights is no update");

    // All elements are zero now, so the adapter has no effect.
    let mut weights = fs::read(Path::new(ADAPTERS).join("llama").join(WEIGHTS)).expect("weights");
    let header = u64::from_le_bytes(weights[..8].try_into().expect("eight bytes")) as usize;
    weights[8 + header..].fill(0);
    let bytes = weights.len() as u64;
    hub.add("Example-Org/Lora", WEIGHTS, Source::Bytes(Bytes::from(weights)));
    assert_eq!(update().map(|update| update.bytes), Some(bytes));
    pulls(&daemon, both);
    assert_eq!(update(), None);
    assert_eq!(says(&daemon, both), unadapted, "it changes nothing any more");
}
