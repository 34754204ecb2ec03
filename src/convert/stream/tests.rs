use std::{fs, path::Path};

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    convert::{
        TensorRecipe,
        parts::{StoredColumns, StoredRows},
        safetensors::{open, tests::file},
    },
    gguf::{GgmlType, GgufValue, TensorSpec},
};

/// Rows of the large tensor: more than fit into one step.
const ROWS: u64 = 2500;
const WIDTH: u64 = 1024;

/// Writes a checkpoint with a large matrix, all rows of which differ, and a small one.
fn checkpoint(folder: &Path) {
    let number = |at: u64| ((at % 251) as f32 + (at / WIDTH) as f32) / 16.0;
    let bytes = |count: u64| (0..count).flat_map(move |at| number(at).to_le_bytes());
    let large = ROWS * WIDTH * 4;
    let data: Vec<u8> = bytes(ROWS * WIDTH).chain(bytes(64 * 3)).collect();
    let header = format!(
        r#"{{"large":{{"dtype":"F32","shape":[{ROWS},{WIDTH}],"data_offsets":[0,{large}]}},"small":{{"dtype":"F32","shape":[3,64],"data_offsets":[{large},{}]}}}}"#,
        large + 64 * 3 * 4,
    );
    fs::write(folder.join("model.safetensors"), file(&header, &data)).unwrap();
}

/// Returns a plan with every kind of recipe, and padding between tensors.
fn model(folder: &Path) -> VirtualGguf {
    let mut tensors = open(folder).unwrap();
    let (large, small) = (tensors.remove("large").unwrap(), tensors.remove("small").unwrap());
    let spec = |name: &str, kind, dims: [u64; 2]| TensorSpec::new(name, kind, dims);
    let all = || vec![StoredRows::all(&large)];
    let recipes = vec![
        TensorRecipe::rows(spec("token_embd.weight", GgmlType::Q8_0, [WIDTH, ROWS]), all()),
        TensorRecipe::values("rope.weight", vec![1.5; 3]),
        TensorRecipe::rows(spec("blk.0.a.weight", GgmlType::BF16, [WIDTH, ROWS]), all()).plus(1.0),
        TensorRecipe::rows(
            spec("blk.0.b.weight", GgmlType::F16, [WIDTH, 1000]),
            vec![StoredRows::some(&large, 500, 1000, 1).interleaved(100)],
        ),
        TensorRecipe::rows(
            spec("blk.0.norm.weight", GgmlType::F32, [64, 3]),
            vec![StoredRows::all(&small)],
        ),
        TensorRecipe::rows(
            spec("blk.1.a.weight", GgmlType::F32, [WIDTH, 700]),
            vec![StoredRows::some(&large, 0, 400, 2), StoredRows::some(&large, 3, 300, 1)],
        ),
        TensorRecipe::columns(
            spec("blk.1.b.weight", GgmlType::F32, [3, 64]),
            vec![StoredColumns::all(&small, 0..small.rows())],
        ),
    ];
    VirtualGguf::new(
        vec![("general.architecture".into(), GgufValue::String("test".into()))],
        recipes,
    )
    .unwrap()
}

fn written(folder: &Path) -> Vec<u8> {
    let path = folder.join("out.gguf");
    model(folder)
        .write(&path, &|_, _| {}, &CancellationToken::new())
        .unwrap();
    fs::read(path).unwrap()
}

/// Reads a range as far as it lies within the file.
fn read(stream: &mut GgufStream, offset: u64, count: usize) -> Vec<u8> {
    stream.seek(SeekFrom::Start(offset)).unwrap();
    let mut out = Vec::new();
    stream.take(count as u64).read_to_end(&mut out).unwrap();
    out
}

#[test]
fn from_the_beginning_to_the_end_it_is_the_file() {
    let folder = tempfile::tempdir().unwrap();
    checkpoint(folder.path());
    let expected = written(folder.path());
    for threads in [0, 1, 3] {
        let mut stream = GgufStream::with_threads(model(folder.path()), threads);
        assert_eq!(stream.file_len(), expected.len() as u64);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert!(all == expected, "with {threads} threads");
        assert_eq!(stream.seek(SeekFrom::End(-4)).unwrap(), expected.len() as u64 - 4);
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 4);
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
        assert!(read(&mut stream, u64::MAX - 1, 9).is_empty());
        stream.rewind().unwrap();
        assert!(stream.seek(SeekFrom::Current(-1)).is_err());
    }
}

/// Reads like llama.cpp: tensors in another order than the file's, each from a little before its beginning, in small
/// pieces.
#[test]
fn tensors_in_another_order_and_in_small_pieces() {
    let folder = tempfile::tempdir().unwrap();
    checkpoint(folder.path());
    let expected = written(folder.path());
    let plan = model(folder.path());
    let mut stream = GgufStream::start(model(folder.path()));
    for tensor in [5, 0, 6, 3, 2, 4, 1, 3] {
        let (start, end) = (
            plan.data_offset(tensor),
            plan.data_offset(tensor) + plan.tensor_bytes(tensor),
        );
        let mut at = start & !8191;
        let mut piece = [0; 8192];
        while at < end {
            let count = stream.read_at(at, &mut piece).unwrap();
            assert!(count > 0 && piece[..count] == expected[at as usize..at as usize + count]);
            at += count as u64;
        }
    }
}

#[test]
fn what_waits_for_the_reader_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    checkpoint(folder.path());
    let mut stream = GgufStream::with_threads(model(folder.path()), 1);
    let held = |stream: &GgufStream| {
        let state = stream.shared.lock();
        (state.slots.len(), state.spare.len())
    };
    for _ in 0..200 {
        stream.read_exact(&mut [0; 50_000]).unwrap();
        let (slots, spare) = held(&stream);
        assert!(slots <= stream.shared.ahead && spare <= stream.shared.ahead);
    }
}

#[test]
fn an_error_comes_where_it_belongs_and_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    checkpoint(folder.path());
    let plan = model(folder.path());
    let mut stream = GgufStream::with_threads(model(folder.path()), 2);
    // The checkpoint shrinks under the reader: its beginning is all there is.
    let path = folder.path().join("model.safetensors");
    let shard = fs::OpenOptions::new().write(true).open(&path).unwrap();
    shard.set_len(1 << 20).unwrap();
    for _ in 0..2 {
        let error = stream.read_at(plan.data_offset(5), &mut [0; 8192]).unwrap_err();
        assert!(
            matches!(&error, ConvertError::Io { path: found, .. } if *found == path),
            "{error}"
        );
        assert!(read(&mut stream, 0, 64) == plan.header()[..64]);
    }
    stream.seek(SeekFrom::Start(plan.data_offset(5))).unwrap();
    let error = stream.read(&mut [0; 8]).unwrap_err().to_string();
    assert!(error.contains("model.safetensors cannot be read"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn any_reads_give_the_bytes_of_the_file(
        reads in prop::collection::vec((any::<prop::sample::Index>(), 1usize..200_000), 1..60),
        threads in 0usize..3,
    ) {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(folder.path());
        let expected = written(folder.path());
        let mut stream = GgufStream::with_threads(model(folder.path()), threads);
        for (start, count) in reads {
            let start = start.index(expected.len());
            let end = (start + count).min(expected.len());
            prop_assert!(read(&mut stream, start as u64, count) == expected[start..end], "{start} {count}");
        }
    }
}
