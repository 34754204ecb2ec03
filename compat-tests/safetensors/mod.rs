//! Repositories that hold only safetensors: pulling, converting and serving them.

mod streamed;

use std::{fs, path::Path};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    convert::{checkpoint, names, smollm2, widen},
    harness::{
        fake_hub::{FakeHub, Source},
        fixture_file::{gguf, sha256_of},
        hubllama::{Hubllama, Setup, is_alive, wait_until},
        raw_http::PATIENCE,
    },
};

const REPO: &str = "Example-Org/SmolLM2";
const NAME: &str = "hf:Example-Org/SmolLM2:BF16";
const EIGHT: &str = "hf:Example-Org/SmolLM2:Q8_0";
const TINY: &str = "Example-Org/Tiny";

/// Publishes a folder as a repository, with weights as LFS files.
pub(crate) fn publish(hub: &FakeHub, repo: &str, folder: &Path) {
    for name in names(folder) {
        let path = folder.join(&name);
        if name.ends_with(".safetensors") {
            hub.add(repo, &name, Source::Path(path));
        } else {
            hub.add_small(repo, &name, &fs::read_to_string(path).expect("a text"));
        }
    }
}

fn post(daemon: &Hubllama, path: &str, body: &Value) -> (u16, Value) {
    let (head, body) = daemon.post(path, body);
    (head.status(), serde_json::from_str(&body).unwrap_or(Value::Null))
}

/// Returns the statuses of a pull without those of files. A conversion reports its bytes under its own digest.
fn pull(daemon: &Hubllama, model: &str) -> Vec<String> {
    let (head, body) = daemon.post("/api/pull", &json!({ "model": model }));
    assert_eq!(head.status(), 200, "{body}");
    let frames: Vec<Value> = body
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let counted = |frame: &&Value| frame["status"] == "converting model" && frame.get("digest").is_some();
    let counted: Vec<&Value> = frames.iter().filter(counted).collect();
    if let Some(last) = counted.last() {
        assert!(last["total"].as_u64().is_some_and(|total| total > 0), "{last}");
        assert_eq!(last["completed"], last["total"]);
        assert_eq!(last["digest"].as_str().map(str::len), Some("sha256:".len() + 64));
        assert!(counted.iter().all(|frame| frame["digest"] == last["digest"]));
        let completed = counted.iter().map(|frame| frame["completed"].as_u64());
        assert!(completed.is_sorted(), "{body}");
    }
    let frames = frames.iter().filter(|frame| frame.get("digest").is_none());
    let mut statuses: Vec<String> = frames
        .map(|frame| {
            frame["status"]
                .as_str()
                .map_or_else(|| frame.to_string(), str::to_owned)
        })
        .collect();
    statuses.dedup();
    statuses
}

fn listed(daemon: &Hubllama) -> Vec<String> {
    let tags = daemon.get_json("/api/tags");
    let models = tags["models"].as_array().cloned().unwrap_or_default();
    let mut names: Vec<String> = models
        .iter()
        .map(|model| model["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    names.sort();
    names
}

fn asks_for_paris(daemon: &Hubllama, model: &str) {
    let request = json!({
        "model": model, "stream": false, "options": {"temperature": 0, "num_predict": 20, "num_ctx": 512},
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    });
    let (status, reply) = post(daemon, "/api/chat", &request);
    let answer = reply["message"]["content"].as_str().unwrap_or_default();
    assert!(status == 200 && answer.contains("Paris"), "{model}: {reply}");
}

/// Returns a checkpoint of an unknown architecture.
fn unknown() -> tempfile::TempDir {
    let unknown = checkpoint("qwen3", "qwen");
    let path = unknown.path().join("config.json");
    let config = fs::read_to_string(&path).expect("a configuration");
    fs::write(path, config.replace("Qwen3ForCausalLM", "BrandNewForCausalLM")).expect("written");
    fs::write(unknown.path().join("model.safetensors"), "never fetched").expect("written");
    unknown
}

fn generate(daemon: &Hubllama, model: &str) -> (u16, Value) {
    let request = json!({"model": model, "prompt": "The capital of France is", "raw": true, "stream": false, "options": {"num_predict": 1, "temperature": 0, "num_ctx": 64}});
    post(daemon, "/api/generate", &request)
}

#[test]
fn a_checkpoint_is_pulled_converted_once_and_talks() {
    let home = tempfile::tempdir().expect("a home");
    let folder = home.path().join("SmolLM2");
    smollm2::write(&folder, &gguf());
    let hub = FakeHub::start();
    publish(&hub, REPO, &folder);
    let unwanted: Vec<String> = ["consolidated.safetensors", "pytorch_model.bin"]
        .iter()
        .map(|name| hub.add(REPO, name, Source::Bytes(Bytes::copy_from_slice(name.as_bytes()))))
        .collect();
    let daemon = Setup::default()
        .hub(hub.url())
        .config("[engine]\nthreads = 2\n[hub]\nsafetensors = \"file\"\n")
        .start();

    let steps = [
        "pulling manifest",
        "verifying sha256 digest",
        "writing manifest",
        "converting model",
        "success",
    ];
    assert_eq!(pull(&daemon, "hf:example-org/smollm2:latest"), steps);
    assert!(
        unwanted
            .iter()
            .all(|hash| hub.hits(&format!("/cdn/{hash}")).requests == 0)
    );
    assert_eq!(listed(&daemon), [NAME]);
    asks_for_paris(&daemon, "hf:Example-Org/SmolLM2");

    let before = hub.hits("/cdn").bytes;
    assert_eq!(pull(&daemon, "hf:Example-Org/SmolLM2:q8_0"), steps);
    assert_eq!(hub.hits("/cdn").bytes, before, "the checkpoint was there");
    assert_eq!(listed(&daemon), [NAME, EIGHT]);
    let (status, reply) = generate(&daemon, EIGHT);
    assert_eq!((status, reply["response"].as_str()), (200, Some(" Paris")), "{reply}");
    let (status, shown) = post(&daemon, "/api/show", &json!({ "model": EIGHT }));
    assert_eq!((status, &shown["details"]["quantization_level"]), (200, &json!("Q8_0")));
    let (_, shown) = post(&daemon, "/api/show", &json!({ "model": "hf:Example-Org/SmolLM2" }));
    assert_eq!(
        shown["details"]["quantization_level"], "BF16",
        "the stored type is the default"
    );

    // A second pull fetches and converts nothing.
    for name in ["hf:Example-Org/SmolLM2", NAME, EIGHT] {
        let again = pull(&daemon, name);
        assert!(again.ends_with(&["success".to_owned()]), "{again:?}");
        assert!(!again.contains(&"converting model".to_owned()), "{again:?}");
    }
    assert_eq!(hub.hits("/cdn").bytes, before);

    let (status, reply) = post(
        &daemon,
        "/api/pull",
        &json!({"model": "hf:Example-Org/SmolLM2:IQ1_S", "stream": false}),
    );
    let error = reply["error"].as_str().unwrap_or_default();
    assert_eq!(status, 404, "{reply}");
    assert!(
        error.contains("F32, F16, BF16, Q8_0, Q4_0") && error.contains("Q4_K_M"),
        "{error}"
    );

    let daemon = daemon.again(rustix::process::Signal::TERM);
    assert_eq!(listed(&daemon), [NAME, EIGHT], "they are there after a restart");
    let delete = |model: &str| daemon.request("DELETE", "/api/delete", &json!({ "model": model }).to_string());
    assert_eq!(delete("hf:Example-Org/SmolLM2").0.status(), 200);
    assert_eq!(listed(&daemon), [EIGHT]);
    let checkpoint = daemon.folder.path().join("hub/models--Example-Org--SmolLM2");
    assert!(
        checkpoint.join("snapshots").exists(),
        "what another model is made of stays"
    );
    assert_eq!(delete(EIGHT).0.status(), 200);
    assert_eq!(listed(&daemon), Vec::<String>::new());
    assert!(!checkpoint.exists());
    assert_eq!(generate(&daemon, NAME).0, 404);
}

#[test]
fn a_model_that_sees_has_its_projector_beside_it() {
    let hub = FakeHub::start();
    publish(&hub, TINY, checkpoint("qwen2vl", "qwen").path());
    let daemon = Setup::default()
        .hub(hub.url())
        .config("[engine]\nthreads = 1\n")
        .start();
    for name in ["hf:Example-Org/Tiny", "hf:Example-Org/Tiny:Q8_0"] {
        let statuses = pull(&daemon, name);
        assert_eq!(statuses.last().map(String::as_str), Some("success"), "{statuses:?}");
        let (status, shown) = post(&daemon, "/api/show", &json!({ "model": name }));
        let projector = &shown["projector_info"];
        assert_eq!(
            (status, &projector["clip.projector_type"]),
            (200, &json!("qwen2vl_merger")),
            "{name}"
        );
        assert_eq!(shown["details"]["families"], json!(["qwen2vl", "clip"]));
        let (status, reply) = generate(&daemon, name);
        assert_eq!((status, &reply["done"]), (200, &json!(true)), "{name}: {reply}");
        let picture =
            json!({"model": name, "stream": false, "messages": [{"role": "user", "content": "x", "images": ["aGk="]}]});
        let (status, reply) = post(&daemon, "/api/chat", &picture);
        let error = reply["error"].as_str().unwrap_or_default();
        assert!(
            status == 400 && error.contains("images of requests are not read yet"),
            "{reply}"
        );
    }
    let delete = |model: &str| daemon.request("DELETE", "/api/delete", &json!({ "model": model }).to_string());
    for name in listed(&daemon) {
        assert_eq!(delete(&name).0.status(), 200, "{name}");
    }
    let made = daemon.folder.path().join("state/converted");
    assert!(!made.exists() || names(&made).is_empty());
}

#[test]
fn a_first_use_converts_too_and_says_what_cannot_be_converted() {
    let hub = FakeHub::start();
    let tiny = checkpoint("qwen3", "qwen");
    publish(&hub, TINY, tiny.path());
    hub.add("Example-Org/Both", "both-F16.gguf", Source::Path(gguf()));
    publish(&hub, "Example-Org/Both", tiny.path());
    let unknown = unknown();
    publish(&hub, "Example-Org/Unknown", unknown.path());
    let daemon = Setup::default()
        .hub(hub.url())
        .config("[engine]\nthreads = 1\n[hub]\nauto_pull = true\n")
        .start();

    for name in [
        "hf:Example-Org/Tiny",
        "hf:Example-Org/Tiny:q4_k_m",
        "hf:Example-Org/Both:Q8_0",
    ] {
        let (status, reply) = generate(&daemon, name);
        assert_eq!((status, &reply["done"]), (200, &json!(true)), "{name}: {reply}");
    }
    let expected = [
        "hf:Example-Org/Both:Q8_0",
        "hf:Example-Org/Tiny:BF16",
        "hf:Example-Org/Tiny:Q4_K_M",
    ];
    assert_eq!(listed(&daemon), expected);
    let (status, reply) = generate(&daemon, "hf:Example-Org/Unknown");
    let error = reply["error"].as_str().unwrap_or_default();
    assert!(
        status == 400 && error.contains("BrandNewForCausalLM"),
        "{status} {reply}"
    );
    let (status, reply) = post(
        &daemon,
        "/api/pull",
        &json!({"model": "hf:Example-Org/Unknown", "stream": false}),
    );
    assert_eq!(status, 400, "{reply}");
    let hash = sha256_of(&unknown.path().join("model.safetensors"));
    assert_eq!(
        hub.hits(&format!("/cdn/{hash}")).requests,
        0,
        "weights that are of no use are not fetched"
    );
    assert_eq!(listed(&daemon), expected, "what failed is not listed");
}

/// A tokenizer mismatch is refused by default; with the setting `warn` it is converted, and `/api/show` reports it.
#[test]
fn a_tokenizer_mismatch_is_refused_or_reported() {
    let hub = FakeHub::start();
    let tiny = checkpoint("qwen3", "qwen");
    fs::write(tiny.path().join("README.md"), "---\nlicense: apache-2.0\n---\n# Tiny\n").expect("written");
    publish(&hub, TINY, tiny.path());
    let path = tiny.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).expect("a tokenizer")).expect("JSON");
    tokenizer["normalizer"] = json!({"type": "Replace", "pattern": {"String": "e"}, "content": "a"});
    fs::write(&path, tokenizer.to_string()).expect("written");
    publish(&hub, "Example-Org/Doubtful", tiny.path());
    let check = |daemon: &Hubllama, name: &str| {
        let (status, shown) = post(daemon, "/api/show", &json!({ "model": name }));
        assert_eq!(status, 200, "{shown}");
        assert_eq!(
            shown["license"], "apache-2.0",
            "the card is read, and the file says what it said"
        );
        assert_eq!(shown["model_info"]["general.license"], "apache-2.0");
        shown["model_info"]["hubllama.tokenizer_check"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };

    let daemon = Setup::default().hub(hub.url()).start();
    pull(&daemon, "hf:Example-Org/Tiny");
    // llama.cpp does not implement its normalization of accents.
    assert!(check(&daemon, "hf:Example-Org/Tiny").starts_with("tolerable: llama.cpp tokenizes 1 of "));
    let body = json!({"model": "hf:Example-Org/Doubtful", "stream": false});
    let (status, reply) = post(&daemon, "/api/pull", &body);
    let error = reply["error"].as_str().unwrap_or_default();
    assert!(
        status == 400 && error.contains("differently from the checkpoint's own tokenizer"),
        "{status} {reply}"
    );

    let daemon = Setup::default()
        .hub(hub.url())
        .config("[engine]\nthreads = 1\n[hub]\ntokenizer_mismatch = \"warn\"\n")
        .start();
    pull(&daemon, "hf:Example-Org/Doubtful");
    assert!(check(&daemon, "hf:Example-Org/Doubtful").starts_with("mismatch: llama.cpp tokenizes "));
    assert_eq!(generate(&daemon, "hf:Example-Org/Doubtful").0, 200);
}

/// GGUF has keys for three end tokens. This checkpoint names a fourth, and the answer ends with that.
#[test]
fn an_answer_ends_at_every_token_that_ends_one() {
    let home = tempfile::tempdir().expect("a home");
    let folder = home.path().join("SmolLM2");
    smollm2::write(&folder, &gguf());
    let tokenizer = fs::read(folder.join("tokenizer.json")).expect("a tokenizer");
    let tokenizer: Value = serde_json::from_slice(&tokenizer).expect("JSON");
    let paris = &tokenizer["model"]["vocab"]["\u{120}Paris"];
    assert!(paris.is_u64(), "one token");
    let ends = json!({"eos_token_id": [0, 1, 2, paris]});
    fs::write(folder.join("generation_config.json"), ends.to_string()).expect("written");
    let hub = FakeHub::start();
    publish(&hub, REPO, &folder);
    let daemon = Setup::default()
        .hub(hub.url())
        .config("[engine]\nthreads = 2\n")
        .start();
    pull(&daemon, NAME);
    let body = json!({"model": NAME, "prompt": "The capital of France is", "raw": true, "stream": false,
                      "options": {"num_predict": 8, "temperature": 0, "num_ctx": 64}});
    let (status, reply) = post(&daemon, "/api/generate", &body);
    assert_eq!(
        (status, &reply["response"], &reply["done_reason"]),
        (200, &json!(""), &json!("stop")),
        "{reply}"
    );
}

#[test]
fn what_cannot_be_converted_is_said_with_where_it_is_to_be_had() {
    let hub = FakeHub::start();
    publish(&hub, "Example-Org/Unknown", unknown().path());
    let made_from = "base_model:quantized:Example-Org/Unknown";
    for (repo, tag) in [
        ("A/Other-GGUF", "base_model:quantized:Example-Org/Another"),
        ("A/Tuned-GGUF", "base_model:finetune:Example-Org/Unknown"),
        ("B/Unknown-GGUF", made_from),
        ("C/Unknown-GGUF", made_from),
        ("D/Unknown-GGUF", made_from),
        ("E/Unknown-GGUF", made_from),
    ] {
        hub.add_small(repo, "m-Q4_0.gguf", repo);
        hub.set_tags(repo, &["license:mit", tag]);
    }
    hub.add_small("A/Unknown-AWQ", "model.safetensors", "others");
    hub.set_tags("A/Unknown-AWQ", &[made_from]);
    let daemon = Setup::default().hub(hub.url()).start();
    let error = |model: &str| {
        let (status, reply) = post(&daemon, "/api/pull", &json!({"model": model, "stream": false}));
        assert_eq!(status, 400, "{reply}");
        reply["error"].as_str().unwrap_or_default().to_owned()
    };
    let said = error("hf:example-org/unknown");
    assert!(said.contains("BrandNewForCausalLM"), "{said}");
    assert!(
        said.ends_with("GGUF files of it: hf:B/Unknown-GGUF, hf:C/Unknown-GGUF, hf:D/Unknown-GGUF"),
        "{said}"
    );
    // Without alternatives, and when the search does not answer.
    let other = unknown();
    publish(&hub, "Example-Org/Lonely", other.path());
    assert!(error("hf:Example-Org/Lonely").ends_with("GGUF files of the model"));
    hub.faults(|faults| faults.search_hangs = true);
    let started = std::time::Instant::now();
    assert!(error("hf:Example-Org/Unknown").ends_with("GGUF files of the model"));
    assert!(
        started.elapsed() < std::time::Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
}

/// A setting chooses the weight type of names that ask for none.
#[test]
fn a_name_without_a_type_gets_the_configured_one() {
    let hub = FakeHub::start();
    publish(&hub, TINY, checkpoint("qwen3", "qwen").path());
    let daemon = Setup::default()
        .hub(hub.url())
        .config("[engine]\nthreads = 1\n[hub]\nauto_pull = true\nsafetensors_type = \"Q8_0\"\n")
        .start();
    let (status, reply) = generate(&daemon, "hf:Example-Org/Tiny");
    assert_eq!(status, 200, "{reply}");
    pull(&daemon, "hf:Example-Org/Tiny:BF16");
    assert_eq!(
        listed(&daemon),
        ["hf:Example-Org/Tiny:BF16", "hf:Example-Org/Tiny:Q8_0"]
    );
    let (_, shown) = post(&daemon, "/api/show", &json!({ "model": "hf:Example-Org/Tiny" }));
    assert_eq!(shown["details"]["quantization_level"], "Q8_0");
}

/// A conversion runs in a process with limited memory, and is cancelled with the last pull that waits for it.
#[test]
fn who_goes_away_ends_the_conversion() {
    let hub = FakeHub::start();
    let wide = checkpoint("qwen3", "qwen");
    widen(wide.path());
    publish(&hub, "Example-Org/Wide", wide.path());
    let daemon = Setup::default().hub(hub.url()).start();
    let request = json!({ "model": "hf:Example-Org/Wide:Q4_K_M" });
    let (client, _) = daemon.open("POST", "/api/pull", &request.to_string());
    let worker = wait_until(PATIENCE, || daemon.converters().first().copied()).expect("a worker");
    let limited = wait_until(PATIENCE, || {
        let limits = fs::read_to_string(format!("/proc/{worker}/limits")).expect("its limits");
        let data = limits.lines().find(|line| line.starts_with("Max data size"))?;
        data.contains(&(8u64 << 30).to_string()).then_some(())
    });
    assert!(limited.is_some(), "its memory has no bound");
    drop(client);
    let ended = wait_until(PATIENCE, || (!is_alive(worker)).then_some(()));
    assert!(ended.is_some(), "the worker lives on");
    assert_eq!(listed(&daemon), Vec::<String>::new());
    let made = daemon.folder.path().join("state/converted");
    assert!(!made.exists() || names(&made).is_empty(), "{:?}", names(&made));
    let (status, _) = post(&daemon, "/api/show", &json!({ "model": "hf:Example-Org/Wide:Q4_K_M" }));
    assert_eq!(status, 404, "the daemon goes on");
}

/// Deleting a checkpoint from the cache removes its conversions.
#[test]
fn a_conversion_whose_checkpoint_is_gone_is_ignored() {
    let hub = FakeHub::start();
    publish(&hub, TINY, checkpoint("qwen3", "qwen").path());
    let home = tempfile::tempdir().expect("a home");
    let daemon = Setup::default().hub(hub.url()).cache(home.path().to_owned()).start();
    pull(&daemon, "hf:Example-Org/Tiny");
    assert_eq!(listed(&daemon), ["hf:Example-Org/Tiny:BF16"]);
    fs::remove_dir_all(home.path().join("models--Example-Org--Tiny")).expect("removed");
    assert_eq!(listed(&daemon), Vec::<String>::new());
    assert_eq!(generate(&daemon, "hf:Example-Org/Tiny").0, 404);
}

/// A checkpoint that `hf download` has put into the cache is served; its files stay when the model is deleted.
#[test]
fn a_checkpoint_that_is_in_the_cache_needs_no_hub() {
    let home = tempfile::tempdir().expect("a home");
    let repository = home.path().join("models--Example-Org--Tiny");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let (snapshot, blobs) = (repository.join("snapshots").join(commit), repository.join("blobs"));
    fs::create_dir_all(&snapshot).expect("folders");
    fs::create_dir_all(&blobs).expect("folders");
    let tiny = checkpoint("qwen3", "qwen");
    for name in names(tiny.path()) {
        let hash = sha256_of(&tiny.path().join(&name));
        fs::copy(tiny.path().join(&name), blobs.join(&hash)).expect("copied");
        std::os::unix::fs::symlink(format!("../../blobs/{hash}"), snapshot.join(&name)).expect("linked");
    }
    // An address at which nothing listens.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let nobody = format!("http://{}", nobody.expect("an address"));
    let daemon = Setup::default().cache(home.path().to_owned()).hub(nobody).start();
    let pulled = pull(&daemon, "hf:example-org/tiny:Q8_0");
    assert!(pulled.ends_with(&["success".to_owned()]), "{pulled:?}");
    let body = json!({"model": "hf:Example-Org/Tiny:Q8_0"}).to_string();
    assert_eq!(daemon.request("DELETE", "/api/delete", &body).0.status(), 200);
    drop(daemon);
    let daemon = Setup::default()
        .cache(home.path().to_owned())
        .config("[engine]\nthreads = 1\n[hub]\noffline = true\n")
        .start();
    assert_eq!(listed(&daemon), Vec::<String>::new());
    let steps = ["pulling manifest", "planning model", "success"];
    assert_eq!(pull(&daemon, "hf:Example-Org/Tiny:F16"), steps);
    assert_eq!(listed(&daemon), ["hf:Example-Org/Tiny:F16"]);
    let (status, reply) = generate(&daemon, "hf:Example-Org/Tiny:F16");
    assert_eq!(status, 200, "{reply}");
    let (_, shown) = post(&daemon, "/api/show", &json!({"model": "hf:Example-Org/Tiny:F16"}));
    assert_eq!(shown["model_info"]["hubllama.downloaded"], false, "somebody else did");
    let body = json!({"model": "hf:Example-Org/Tiny:F16"}).to_string();
    assert_eq!(daemon.request("DELETE", "/api/delete", &body).0.status(), 200);
    assert_eq!(listed(&daemon), Vec::<String>::new());
    assert_eq!(
        names(&snapshot),
        names(tiny.path()),
        "what others have downloaded stays"
    );
}

/// A classifier returns a score for each label, and a reranker the probability of its answers.
#[test]
fn models_with_labels_give_scores() {
    const JUDGE: &str = "hf:Example-Org/Judge:F32";
    // Only its name tells that the model is a reranker.
    const RERANKER: &str = "hf:Example-Org/Qwen3-Reranker-Tiny:F32";
    let hub = FakeHub::start();
    let judge = checkpoint("bert-classifier", "wordpiece");
    publish(&hub, "Example-Org/Judge", judge.path());
    let reranker = checkpoint("qwen3-reranker", "qwen-reranker");
    publish(&hub, "Example-Org/Qwen3-Reranker-Tiny", reranker.path());
    let daemon = Setup::default()
        .hub(hub.url())
        .config("[engine]\nthreads = 2\n")
        .start();
    let scores = |model: &str| {
        let (status, reply) = post(
            &daemon,
            "/api/embed",
            &json!({"model": model, "input": ["the heat is on", "a hot thing"]}),
        );
        assert_eq!(status, 200, "{reply}");
        serde_json::from_value::<Vec<Vec<f64>>>(reply["embeddings"].clone()).expect("numbers")
    };
    for model in [JUDGE, RERANKER] {
        pull(&daemon, model);
    }
    let judged = scores(JUDGE);
    assert!(
        judged.len() == 2 && judged.iter().all(|labels| labels.len() == 3),
        "{judged:?}"
    );
    let length: f64 = judged[0].iter().map(|score| score * score).sum();
    assert!((length - 1.0).abs() > 1e-3, "{judged:?}");
    let ranked = scores(RERANKER);
    assert!(
        ranked.len() == 2 && ranked.iter().all(|answers| answers.len() == 2),
        "{ranked:?}"
    );
    let all: f64 = ranked[0].iter().sum();
    assert!((all - 1.0).abs() < 1e-5, "{ranked:?}");
}
