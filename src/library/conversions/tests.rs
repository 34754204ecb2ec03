//! Conversions with a converter that starts no process.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{run::OnProgress, *};
use crate::{
    convert::{ConversionProgress, ConversionStage, ConvertError},
    hub::{
        cache::{
            CachedModel, RepoFolder,
            tests::{OLD, name, put},
        },
        ledger::Ledger,
    },
    inference::WeightType,
    library::{DeleteOutcome, error::LibraryError},
    lifecycle::WorkerCommand,
    worker::protocol::{ConversionOutput, ConversionRequest, ConvertedFile},
};

/// Conversions whose converter writes a word instead of starting a process, and counts how often.
struct Bench {
    store: ConversionStore,
    converter: CheckpointConverter,
    runs: AtomicUsize,
}

impl Bench {
    fn new(state_dir: &Path) -> Self {
        let store = ConversionStore::new(state_dir);
        Self {
            converter: CheckpointConverter::new(store.clone(), WorkerCommand::default()),
            store,
            runs: AtomicUsize::default(),
        }
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed)
    }

    async fn convert(&self, key: ConversionKey, output: ConversionOutput) -> Result<String, LibraryError> {
        let run = |request, progress| {
            self.runs.fetch_add(1, Ordering::Relaxed);
            write_word(request, progress)
        };
        self.converter.convert_with(key, output, false, run).await
    }
}

async fn write_word(request: ConversionRequest, mut progress: OnProgress) -> Result<ConvertedFile, ConvertError> {
    tokio::task::yield_now().await;
    assert!(request.checkpoint.join("config.json").is_file() && request.name == "r");
    let path = request.output.unwrap();
    match request.form {
        ConversionOutput::Full => fs::write(&path, "made").unwrap(),
        // With a hole behind it.
        ConversionOutput::HeaderOnly => {
            fs::write(&path, "head").unwrap();
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(64 << 20).unwrap();
        }
    }
    progress(ConversionProgress {
        stage: ConversionStage::Writing,
        done: 4,
        total: 4,
    });
    let label = match request.weight_type {
        WeightType::F32 => "F32",
        WeightType::Q8_0 => "Q8_0",
        _ => "BF16",
    };
    Ok(ConvertedFile {
        path,
        bytes: 4,
        file_type: label.to_owned(),
        notes: Vec::new(),
    })
}

/// Puts a checkpoint into a cache; the returned function makes the key of its conversion to a type.
fn checkpoint(cache: &Path) -> impl Fn(WeightType) -> ConversionKey + use<> {
    put(cache, "o/r", OLD, "config.json", "{}");
    put(cache, "o/r", OLD, "model.safetensors", "weights");
    let folder = RepoFolder::new(cache, "o", "r");
    move |weight_type| ConversionKey {
        folder: folder.clone(),
        commit: OLD.to_owned(),
        weight_type,
    }
}

#[tokio::test]
async fn made_once_found_by_type_and_gone_with_the_checkpoint() {
    let (cache, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let roots = [cache.path().to_owned()];
    let key = checkpoint(cache.path());
    let bench = Bench::new(state.path());
    let locate_by = |text: &str, default| {
        bench
            .store
            .locate(&roots, &name(text), default)
            .map(|model| model.label)
    };
    let locate = |text: &str| locate_by(text, WeightType::Stored);

    let eight = || bench.convert(key(WeightType::Q8_0), ConversionOutput::Full);
    assert_eq!(tokio::join!(eight(), eight()), (Ok("Q8_0".into()), Ok("Q8_0".into())));
    assert_eq!(bench.runs(), 1, "the second finds it made");
    assert_eq!(locate("hf:O/R").as_deref(), Ok("Q8_0"), "better than nothing");
    assert_eq!(
        bench.convert(key(WeightType::Stored), ConversionOutput::Full).await,
        Ok("BF16".into())
    );
    assert_eq!(
        bench.convert(key(WeightType::Bf16), ConversionOutput::Full).await,
        Ok("BF16".into())
    );
    assert_eq!(bench.runs(), 2, "the stored type by its name is the same file");
    assert_eq!(
        bench.convert(key(WeightType::F32), ConversionOutput::Full).await,
        Ok("F32".into())
    );
    assert_eq!(
        locate("hf:o/r").as_deref(),
        Ok("BF16"),
        "the stored type, not the widest"
    );
    for (default, label) in [(WeightType::Q8_0, "Q8_0"), (WeightType::F16, "BF16")] {
        assert_eq!(
            locate_by("hf:o/r", default).as_deref(),
            Ok(label),
            "the setting, if it was made"
        );
    }
    assert_eq!(locate("hf:o/r:q8_0").as_deref(), Ok("Q8_0"));
    assert!(locate("hf:o/r:F16").is_err() && locate("hf:o/r@other").is_err());
    let all: Vec<String> = bench.store.all(&roots).into_iter().map(|model| model.label).collect();
    assert_eq!(all, ["F32", "BF16", "Q8_0"]);

    let made = bench.store.folder(&RepoFolder::new(cache.path(), "o", "r"), OLD);
    fs::write(made.join("0-F16.gguf"), "of an older version").unwrap();
    assert_eq!(bench.store.stale(&roots).len(), 1);
    fs::remove_dir_all(cache.path().join("models--o--r")).unwrap();
    assert!(bench.store.all(&roots).is_empty() && locate("hf:o/r").is_err());
    assert_eq!(bench.store.stale(&roots).len(), 4, "what was made, but not the link");
}

#[tokio::test]
async fn only_our_files_of_a_checkpoint_go_and_with_the_last_conversion() {
    let (cache, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let roots = [cache.path().to_owned()];
    let ledger = Ledger::load(state.path());
    let theirs = put(cache.path(), "o/r", OLD, "config.json", "{}");
    let ours = put(cache.path(), "o/r", OLD, "model.safetensors", "weights");
    ledger.add(ours.clone()).unwrap();
    let bench = Bench::new(state.path());
    for weight_type in [WeightType::Stored, WeightType::Q8_0] {
        let folder = RepoFolder::new(cache.path(), "o", "r");
        let commit = OLD.to_owned();
        let key = ConversionKey {
            folder,
            commit,
            weight_type,
        };
        bench.convert(key, ConversionOutput::Full).await.unwrap();
    }
    let delete = |text: &str| {
        let model = bench.store.locate(&roots, &name(text), WeightType::Stored).unwrap();
        bench.store.delete(cache.path(), &ledger, &model, None, false)
    };
    assert_eq!(delete("hf:o/r"), Ok(DeleteOutcome::Removed { bytes_freed: 4 }));
    assert!(ours.exists());
    assert_eq!(delete("hf:o/r:Q8_0"), Ok(DeleteOutcome::Removed { bytes_freed: 4 + 7 }));
    assert!(theirs.exists() && !ours.exists());
    let left = fs::read_dir(state.path().join("converted")).unwrap().count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_header_stands_for_its_file_until_there_is_one() {
    let (cache, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let roots = [cache.path().to_owned()];
    let key = checkpoint(cache.path());
    let bench = Bench::new(state.path());
    let locate = |text: &str| bench.store.locate(&roots, &name(text), WeightType::Stored).unwrap();
    for weight_type in [WeightType::Q8_0, WeightType::Stored, WeightType::Bf16] {
        bench
            .convert(key(weight_type), ConversionOutput::HeaderOnly)
            .await
            .unwrap();
    }
    assert_eq!(bench.runs(), 2);
    let model = locate("hf:o/r");
    let snapshot = cache.path().join("models--o--r/snapshots").join(OLD);
    assert_eq!((model.label.as_str(), model.size_bytes), ("BF16", 64 << 20));
    assert_eq!(model.checkpoint, Some(snapshot));
    assert_eq!(bench.store.all(&roots).len(), 2);

    // The configuration wants files now.
    assert_eq!(
        bench.convert(key(WeightType::Bf16), ConversionOutput::Full).await,
        Ok("BF16".into())
    );
    assert_eq!(bench.runs(), 3);
    let file = locate("hf:o/r");
    assert_eq!((file.checkpoint, file.size_bytes), (None, 4), "still the default");
    assert_eq!(file.digest, model.digest);
    assert_ne!(file.files, model.files);
    assert!(!model.files[0].exists() && bench.store.stale(&roots).is_empty());
    // And headers again: the file is as good.
    for weight_type in [WeightType::Stored, WeightType::Bf16] {
        bench
            .convert(key(weight_type), ConversionOutput::HeaderOnly)
            .await
            .unwrap();
    }
    assert_eq!(bench.runs(), 3);

    let ledger = Ledger::load(state.path());
    let deleted = bench
        .store
        .delete(cache.path(), &ledger, &locate("hf:o/r:Q8_0"), None, false);
    let Ok(DeleteOutcome::Removed { bytes_freed }) = deleted else {
        panic!("{deleted:?}");
    };
    assert!(bytes_freed < 1 << 20, "a hole takes no place: {bytes_freed}");
    assert_eq!(locate("hf:o/r").label, "BF16");
    assert_eq!(bench.store.all(&roots).len(), 1);
}

#[tokio::test]
async fn a_projector_serves_all_models_of_a_commit_and_goes_with_the_last() {
    let (cache, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let roots = [cache.path().to_owned()];
    let config = r#"{"architectures":["Qwen2VLForConditionalGeneration"],"vision_config":{}}"#;
    put(cache.path(), "o/r", OLD, "config.json", config);
    put(cache.path(), "o/r", OLD, "model.safetensors", "weights");
    let bench = Bench::new(state.path());
    for weight_type in [WeightType::Stored, WeightType::Q8_0] {
        let key = ConversionKey {
            folder: RepoFolder::new(cache.path(), "o", "r"),
            commit: OLD.to_owned(),
            weight_type,
        };
        bench.convert(key, ConversionOutput::Full).await.unwrap();
    }
    assert_eq!(bench.runs(), 3, "two models and one projector");
    let locate = |text: &str| bench.store.locate(&roots, &name(text), WeightType::Stored).unwrap();
    let (model, eight) = (locate("hf:o/r"), locate("hf:o/r:Q8_0"));
    let projector = model.mmproj.clone().unwrap();
    assert_eq!((eight.mmproj.as_ref(), model.size_bytes), (Some(&projector), 8));
    assert!(bench.store.stale(&roots).is_empty());

    let ledger = Ledger::load(state.path());
    let delete = |model: &CachedModel| bench.store.delete(cache.path(), &ledger, model, None, false);
    assert_eq!(delete(&model).unwrap(), DeleteOutcome::Removed { bytes_freed: 4 });
    assert!(projector.is_file());
    assert_eq!(delete(&eight).unwrap(), DeleteOutcome::Removed { bytes_freed: 8 });
    assert!(!projector.exists() && bench.store.all(&roots).is_empty());
}
