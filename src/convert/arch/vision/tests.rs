use std::{fs, path::Path};

use serde_json::{Value as Json, json};

use crate::{
    convert::{VirtualGguf, has_projector, plan_projector, safetensors::tests::file},
    inference::WeightType,
};

/// Copies a checkpoint to a folder where its files can be changed.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/convert"));
    for entry in fs::read_dir(fixtures.join(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn change(folder: &Path, file: &str, pointer: &str, value: Json) {
    let path = folder.join(file);
    let mut json: Json = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    json.pointer_mut(parent).unwrap()[key] = value;
    fs::write(path, json.to_string()).unwrap();
}

fn error(folder: &Path) -> String {
    plan_projector(folder, "test", WeightType::F16).unwrap_err().to_string()
}

fn header(folder: &Path) -> Vec<u8> {
    let model: VirtualGguf = plan_projector(folder, "test", WeightType::F16).unwrap().model;
    model.header().to_vec()
}

#[test]
fn what_the_engine_would_compute_otherwise_is_refused() {
    const CONFIG: &str = "config.json";
    const PREPROCESSOR: &str = "preprocessor_config.json";
    for (name, file, pointer, value, expected) in [
        (
            "qwen2_5vl",
            CONFIG,
            "/vision_config/window_size",
            json!(64),
            "window_size is 64",
        ),
        (
            "qwen2_5vl",
            CONFIG,
            "/vision_config/fullatt_block_indexes",
            json!([1, 2]),
            "layers [1, 2]",
        ),
        (
            "qwen2_5vl",
            CONFIG,
            "/vision_config/fullatt_block_indexes",
            json!([u64::MAX]),
            "equally spaced",
        ),
        (
            "qwen2_5vl",
            CONFIG,
            "/vision_config/fullatt_block_indexes",
            json!([]),
            "equally spaced",
        ),
        (
            "qwen2vl",
            CONFIG,
            "/vision_config/spatial_merge_size",
            json!(3),
            "spatial_merge_size is 3",
        ),
        (
            "qwen2vl",
            CONFIG,
            "/vision_config/temporal_patch_size",
            json!(1),
            "temporal_patch_size is 1",
        ),
        ("qwen2vl", CONFIG, "/vision_config/hidden_act", json!("gelu"), "is gelu"),
        ("qwen2vl", CONFIG, "/vision_config/num_heads", json!(3), "3 heads"),
        ("qwen2vl", CONFIG, "/vision_config/depth", json!(0), "no layers"),
        (
            "qwen2vl",
            CONFIG,
            "/vision_config/depth",
            json!(2),
            "nothing is known of the tensor",
        ),
        ("smolvlm", CONFIG, "/scale_factor", json!(3), "3 by 3"),
        (
            "smolvlm",
            CONFIG,
            "/vision_config/patch_size",
            json!(2),
            "asks for [32, 3, 2, 2]",
        ),
        (
            "smolvlm",
            CONFIG,
            "/vision_config/patch_size",
            json!([4, 4]),
            "not an integer",
        ),
        ("smolvlm", CONFIG, "/vision_config/hidden_act", json!("relu"), "is relu"),
        ("smolvlm", CONFIG, "/vision_config", json!(null), "no vision_config"),
        (
            "smolvlm",
            PREPROCESSOR,
            "/image_mean",
            json!([0.5]),
            "image_mean of the image preprocessor",
        ),
        (
            "gemma3-vision",
            PREPROCESSOR,
            "/image_seq_length",
            json!(5),
            "5 embeddings",
        ),
        (
            "gemma3-vision",
            PREPROCESSOR,
            "/image_seq_length",
            json!(0),
            "0 embeddings",
        ),
        (
            "gemma3-vision",
            CONFIG,
            "/architectures",
            json!(["LlamaForCausalLM"]),
            "has no projector",
        ),
    ] {
        let folder = copy(name);
        change(folder.path(), file, pointer, value);
        let error = error(folder.path());
        assert!(error.contains(expected), "{name} {pointer}: {error}");
    }
}

#[test]
fn newer_names_of_the_same_tensors() {
    for (name, old, new) in [
        ("gemma3-vision", "vision_tower.vision_model.", "vision_tower."),
        ("gemma3-vision", "\"multi_modal_", "\"model.multi_modal_"),
        ("qwen2vl", "\"visual.", "\"model.visual."),
    ] {
        let folder = copy(name);
        let expected = header(folder.path());
        let path = folder.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let names = std::str::from_utf8(&bytes[8..data]).unwrap().replace(old, new);
        assert!(!names.contains(old), "{name}");
        fs::write(&path, file(&names, &bytes[data..])).unwrap();
        assert!(header(folder.path()) == expected, "{name}: {new}");
    }
}

#[test]
fn what_a_file_leaves_out_is_what_its_class_says() {
    let folder = copy("smolvlm");
    fs::remove_file(folder.path().join("preprocessor_config.json")).unwrap();
    change(
        folder.path(),
        "config.json",
        "/vision_config/layer_norm_eps",
        json!(null),
    );
    let planned = plan_projector(folder.path(), "test", WeightType::F16).unwrap();
    let note = "config.json has no vision_config.layer_norm_eps: the default of its class, 0.000001, was used";
    assert_eq!(planned.notes, [note]);
}

#[test]
fn which_checkpoints_see() {
    let folder = tempfile::tempdir().unwrap();
    let has_projector = |text: &str| {
        fs::write(folder.path().join("config.json"), text).unwrap();
        has_projector(folder.path())
    };
    let json = |architecture: &str, vision: Json| {
        json!({"architectures": [architecture], "vision_config": vision}).to_string()
    };
    assert!(has_projector(&json("Qwen2VLForConditionalGeneration", json!({}))));
    assert!(!has_projector(&json("Qwen2VLForConditionalGeneration", json!(null))));
    assert!(!has_projector(&json("LlamaForCausalLM", json!({}))));
    assert!(!has_projector("{"));
}
