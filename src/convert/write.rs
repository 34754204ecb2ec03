//! Writing of a planned file: on all cores, with positioned writes, and either the whole file or none. It is written
//! under a temporary name and renamed when it is complete.

use std::{
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use tokio_util::sync::CancellationToken;

use super::{ConvertError, TensorRecipe, VirtualGguf};
use crate::stdx::{fs::free_bytes, new_file::NewFile, sync::lock};

/// Bytes of memory that the steps of all threads may use, about.
const MEMORY_BYTES: u64 = 160 << 20;

/// Callback for progress: the bytes written so far, and the bytes of the whole file. It is called from several threads.
pub type WriteProgress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Unit of work: a range of rows of a tensor.
struct RowBatch {
    tensor: usize,
    rows: Range<u64>,
}

/// Work that is left, in the order of the file. Threads take batches from it.
struct RowBatches<'a> {
    recipes: &'a [TensorRecipe],
    next: Mutex<(usize, u64)>,
}

impl RowBatches<'_> {
    fn take(&self) -> Option<RowBatch> {
        let mut next = lock(&self.next);
        let (tensor, start) = *next;
        let recipe = self.recipes.get(tensor)?;
        let end = (start + recipe.rows_per_step()).min(recipe.row_count());
        *next = if end == recipe.row_count() {
            (tensor + 1, 0)
        } else {
            (tensor, end)
        };
        Some(RowBatch {
            tensor,
            rows: start..end,
        })
    }
}

impl VirtualGguf {
    /// Creates the file with its header and a hole (no disk blocks) in place of the weights. That is enough to load the
    /// vocabulary, to list the model, and to plan it again for a load.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create_header(&self, path: &Path) -> Result<NewFile, ConvertError> {
        create_header(self, path)
    }

    /// Creates the file with its header, after checking that there is disk space for the weights too.
    ///
    /// # Errors
    /// If there is too little space, or the file cannot be written.
    pub fn create(&self, path: &Path) -> Result<NewFile, ConvertError> {
        create(self, path)
    }

    /// Writes the weights into a file that [`VirtualGguf::create`] created, on all cores and in any order.
    ///
    /// # Errors
    /// The errors of [`VirtualGguf::write`].
    pub fn fill(
        &self,
        new: &NewFile,
        progress: WriteProgress<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), ConvertError> {
        fill(self, new, progress, cancel)
    }

    /// Writes the whole file. It is renamed to `path` when it is complete: `path` is never a partial file.
    ///
    /// # Errors
    /// If there is too little space, the checkpoint cannot be read, a type cannot represent an element, or the caller
    /// cancels.
    pub fn write(
        &self,
        path: &Path,
        progress: WriteProgress<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), ConvertError> {
        write(self, path, progress, cancel)
    }
}

/// Writes the whole file; see [`VirtualGguf::write`].
fn write(
    model: &VirtualGguf,
    path: &Path,
    progress: WriteProgress<'_>,
    cancel: &CancellationToken,
) -> Result<(), ConvertError> {
    let new = create(model, path)?;
    fill(model, &new, progress, cancel)?;
    // No thread sees a cancellation that comes with the last rows. The file must not appear even then.
    if cancel.is_cancelled() {
        return Err(ConvertError::Cancelled);
    }
    new.finish().map_err(ConvertError::io(path, "written"))
}

/// Creates the file with its header; see [`VirtualGguf::create`].
fn create(model: &VirtualGguf, path: &Path) -> Result<NewFile, ConvertError> {
    let failed = || ConvertError::io(path, "written");
    let (needed, free) = (model.file_len(), free_bytes(path).map_err(failed())?);
    if free < needed {
        return Err(ConvertError::Space {
            path: path.to_owned(),
            needed,
            free,
        });
    }
    create_header(model, path)
}

/// Creates the file with its header; see [`VirtualGguf::create_header`].
fn create_header(model: &VirtualGguf, path: &Path) -> Result<NewFile, ConvertError> {
    let failed = || ConvertError::io(path, "written");
    let new = NewFile::create(path).map_err(failed())?;
    // Padding between tensors is never written: the system fills a file that is extended with zeros.
    new.file().set_len(model.file_len()).map_err(failed())?;
    new.file().write_all_at(model.header(), 0).map_err(failed())?;
    Ok(new)
}

/// Writes the weights; see [`VirtualGguf::fill`].
fn fill(
    model: &VirtualGguf,
    new: &NewFile,
    progress: WriteProgress<'_>,
    cancel: &CancellationToken,
) -> Result<(), ConvertError> {
    let path = new.destination();
    let steps = RowBatches {
        recipes: model.recipes(),
        next: Mutex::default(),
    };
    let written = AtomicU64::new(model.header().len() as u64);
    let failed = AtomicBool::new(false);
    let work = || -> Result<(), ConvertError> {
        let (mut scratch, mut bytes) = (model.scratch(), Vec::new());
        while let Some(step) = steps.take() {
            if cancel.is_cancelled() {
                return Err(ConvertError::Cancelled);
            }
            // Relaxed is enough: the flag only makes other threads stop sooner.
            if failed.load(Ordering::Relaxed) {
                break;
            }
            let recipe = &model.recipes()[step.tensor];
            recipe.produce(step.rows.clone(), &mut scratch, &mut bytes)?;
            let offset = model.data_offset(step.tensor) + step.rows.start * recipe.row_bytes();
            new.write_all_at(&bytes, offset)
                .map_err(ConvertError::io(path, "written"))?;
            let done = written.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
            progress(done, model.file_len());
        }
        Ok(())
    };
    let work = || work().inspect_err(|_| failed.store(true, Ordering::Relaxed));
    let step = model.recipes().iter().map(TensorRecipe::step_memory).max().unwrap_or(0);
    // Very long rows make large steps: then fewer threads run, so that memory stays bounded.
    let affordable = (MEMORY_BYTES / step.max(1)).max(1);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(usize::try_from(affordable).unwrap_or(cores));
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|number| {
                thread::Builder::new()
                    .name(format!("convert-{number}"))
                    .spawn_scoped(scope, work)
            })
            .collect();
        let mut result = work();
        for other in others {
            // A thread that could not be started is no error: the others do its work.
            let Ok(other) = other else { continue };
            let other = other.join().unwrap_or_else(|_| {
                let error = io::Error::other("a thread of the conversion panicked");
                Err(ConvertError::io(path, "written")(error))
            });
            result = result.and(other);
        }
        result
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        convert::{
            VirtualGguf,
            parts::StoredRows,
            safetensors::{open, tests::file},
        },
        gguf::{GgmlType, GgufHeader, GgufValue, TensorSpec},
    };

    fn folder_with(dtype: &str, element: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let data = element.repeat(3 * 64);
        let header = format!(
            r#"{{"t":{{"dtype":"{dtype}","shape":[3,64],"data_offsets":[0,{}]}}}}"#,
            data.len()
        );
        fs::write(folder.path().join("model.safetensors"), file(&header, &data)).unwrap();
        folder
    }

    fn model(folder: &Path, kind: GgmlType) -> VirtualGguf {
        let source = open(folder).unwrap().remove("t").unwrap();
        let spec = |name| TensorSpec::new(name, kind, [64, 3]);
        let metadata = vec![("general.architecture".to_owned(), GgufValue::String("test".to_owned()))];
        let recipes = vec![
            TensorRecipe::rows(spec("a.weight"), vec![StoredRows::all(&source)]),
            TensorRecipe::values("b.weight", vec![1.0; 3]),
            TensorRecipe::rows(spec("c.weight"), vec![StoredRows::all(&source)]),
        ];
        VirtualGguf::new(metadata, recipes).unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_file_is_what_was_planned() {
        let folder = folder_with("F32", &1.5f32.to_le_bytes());
        let out = folder.path().join("out.gguf");
        fs::write(&out, "an older file").unwrap();
        for kind in [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0] {
            let model = model(folder.path(), kind);
            let last = AtomicU64::new(0);
            let progress = |done: u64, total: u64| {
                assert!(done <= total);
                // Threads report in any order: only the largest number is meaningful.
                last.fetch_max(done, Ordering::Relaxed);
            };
            model.write(&out, &progress, &CancellationToken::new()).unwrap();
            let bytes = fs::read(&out).unwrap();
            assert_eq!(bytes.len() as u64, model.file_len());
            assert!(last.load(Ordering::Relaxed) > model.file_len() - 64);
            let header = GgufHeader::open(&out).unwrap();
            assert_eq!(header.tensors.len(), 3);
            let at = (header.data_start + header.tensors[1].offset) as usize;
            assert_eq!(bytes[at..at + 12], [0, 0, 0x80, 0x3f].repeat(3));
            assert!(bytes[at + 12..at + 32].iter().all(|byte| *byte == 0));
            let first = header.data_start as usize;
            let last = (header.data_start + header.tensors[2].offset) as usize;
            let length = header.tensors[0].byte_len().unwrap() as usize;
            assert_eq!(bytes[first..first + length], bytes[last..last + length]);
        }
        assert_eq!(names(folder.path()), ["model.safetensors", "out.gguf"]);
    }

    #[test]
    fn a_disk_that_is_too_small_is_known_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let rows = 1u64 << 35;
        let header = format!(
            r#"{{"t":{{"dtype":"F32","shape":[{rows},64],"data_offsets":[0,{}]}}}}"#,
            rows * 256
        );
        let path = folder.path().join("model.safetensors");
        fs::write(&path, file(&header, &[])).unwrap();
        // A sparse file: the hole of 8 TiB takes no space.
        let weights = fs::OpenOptions::new().write(true).open(&path).unwrap();
        weights.set_len(8 + header.len() as u64 + rows * 256).unwrap();
        let source = open(folder.path()).unwrap().remove("t").unwrap();
        let spec = TensorSpec::new("a.weight", GgmlType::F32, [64, rows]);
        let model = VirtualGguf::new(
            Vec::new(),
            vec![TensorRecipe::rows(spec, vec![StoredRows::all(&source)])],
        )
        .unwrap();
        let error = model.create(&folder.path().join("out.gguf")).unwrap_err().to_string();
        assert!(
            error.starts_with("8.8 TB is needed for ") && error.contains(" is free there"),
            "{error}"
        );
        assert_eq!(names(folder.path()), ["model.safetensors"]);
    }

    #[test]
    fn nothing_is_left_of_what_failed_or_was_cancelled() {
        let folder = folder_with("F32", &1e9f32.to_le_bytes());
        let out = folder.path().join("out.gguf");
        let quiet = |_, _| {};
        let error = model(folder.path(), GgmlType::F16).write(&out, &quiet, &CancellationToken::new());
        assert!(matches!(error, Err(ConvertError::Number { .. })));
        let cancel = CancellationToken::new();
        let during = |_, _| cancel.cancel();
        let error = model(folder.path(), GgmlType::F32).write(&out, &during, &cancel);
        assert!(matches!(error, Err(ConvertError::Cancelled)));
        let model = model(folder.path(), GgmlType::F32);
        assert!(
            model
                .write(&folder.path().join("none/out.gguf"), &quiet, &CancellationToken::new())
                .is_err()
        );
        assert!(model.write(Path::new("/"), &quiet, &CancellationToken::new()).is_err());
        // The checkpoint was truncated after it was planned.
        fs::write(folder.path().join("model.safetensors"), "x").unwrap();
        assert!(model.write(&out, &quiet, &CancellationToken::new()).is_err());
        assert_eq!(names(folder.path()), ["model.safetensors"]);
    }
}
