//! Streaming of a planned file: reads at any offset are answered as if the file existed, so that a model can be loaded
//! without writing it to disk. `worker` gives a [`GgufStream`] to llama.cpp as a `FILE*`.
//!
//! llama.cpp reads the header, then one tensor after another: on one thread, in small pieces, and not in the order of
//! the file. Here a pool of threads makes rows ahead of that reader, as far as a bound on memory allows, in the order
//! that [`ReadForecast`] predicts.

mod forecast;

use std::{
    collections::HashMap,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
};

use self::forecast::ReadForecast;
use super::{ConvertError, VirtualGguf, encode::RowScratch};
use crate::stdx::sync::{lock, wait};

/// Limit on the threads of the pool. More would only wait for the disk.
const MAX_THREADS: usize = 8;
/// Tensors with fewer bytes are not made ahead. A reader with a buffer touches small neighbors of the tensor that it
/// wants, which says nothing about what it reads next.
const SMALL_BYTES: u64 = 64 << 10;

/// Readable stream of a [`VirtualGguf`], whose bytes are made when they are read or shortly before. Dropping it joins
/// the threads of its pool.
#[derive(Debug)]
pub struct GgufStream {
    shared: Arc<Shared>,
    /// The step that the reader is in the middle of, and its bytes.
    current: Option<(StreamStep, Vec<u8>)>,
    scratch: RowScratch,
    /// Rows of reads that do not begin at a step.
    single: Vec<u8>,
    position: u64,
    threads: Vec<JoinHandle<()>>,
}

/// Unit of work: the index of a tensor, and the number of a group of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct StreamStep {
    tensor: usize,
    number: u64,
}

/// State of a step that has been begun.
#[derive(Debug)]
enum Slot {
    Working,
    Made(Result<Vec<u8>, ConvertError>),
}

#[derive(Debug)]
struct Shared {
    model: VirtualGguf,
    /// Limit on steps that are ready or being made. Each has a few megabytes, so this bounds memory.
    ahead: usize,
    state: Mutex<State>,
    /// Signaled when there may be work for the pool.
    work: Condvar,
    /// Signaled when a step has been made.
    made: Condvar,
}

#[derive(Debug)]
struct State {
    slots: HashMap<StreamStep, Slot>,
    forecast: ReadForecast,
    /// The step that the reader is in the middle of, or waits for.
    reading: Option<StreamStep>,
    /// The step that the reader is expected to ask for next.
    next: Option<StreamStep>,
    /// Buffers of steps that were read, for reuse.
    spare: Vec<Vec<u8>>,
    is_stopped: bool,
}

impl GgufStream {
    /// Starts the pool, which begins with the first tensor at once.
    #[must_use]
    pub fn start(model: VirtualGguf) -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        Self::with_threads(model, threads)
    }

    fn with_threads(model: VirtualGguf, threads: usize) -> Self {
        let names = model.recipes().iter().enumerate().map(|(tensor, recipe)| {
            let name = recipe.spec().name.as_str();
            (name, model.tensor_bytes(tensor) >= SMALL_BYTES)
        });
        let forecast = ReadForecast::new(names);
        let state = State {
            slots: HashMap::new(),
            reading: None,
            next: forecast.first().map(|tensor| StreamStep { tensor, number: 0 }),
            forecast,
            spare: Vec::new(),
            is_stopped: false,
        };
        let shared = Arc::new(Shared {
            model,
            // For each thread a step in the making and one that waits for the reader, and two more so that no thread
            // waits for it.
            ahead: 2 * threads + 2,
            state: Mutex::new(state),
            work: Condvar::new(),
            made: Condvar::new(),
        });
        // A thread that cannot be started is no error: the reader makes every step itself that no thread has begun.
        let threads = (0..threads).filter_map(|number| {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name(format!("convert-{number}"));
            thread.spawn(move || shared.work()).ok()
        });
        Self {
            threads: threads.collect(),
            scratch: shared.model.scratch(),
            shared,
            current: None,
            single: Vec::new(),
            position: 0,
        }
    }

    /// Returns the bytes of the whole file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.shared.model.file_len()
    }

    /// Reads bytes at an offset and returns their number: at most to the end of a tensor, 0 after the end of the file.
    ///
    /// # Errors
    /// If the checkpoint cannot be read, or the target type cannot represent an element.
    pub fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<usize, ConvertError> {
        if out.is_empty() || offset >= self.file_len() {
            return Ok(0);
        }
        let shared = Arc::clone(&self.shared);
        let model = &shared.model;
        if let Some(rest) = model.header().get(offset as usize..).filter(|rest| !rest.is_empty()) {
            return Ok(copy(rest, out));
        }
        let Some(tensor) = model.tensor_at(offset) else {
            return Ok(0);
        };
        let within = offset - model.data_offset(tensor);
        let Some(left) = model.tensor_bytes(tensor).checked_sub(within).filter(|left| *left > 0) else {
            // Padding after a tensor.
            let end = if tensor + 1 < model.recipes().len() {
                model.data_offset(tensor + 1)
            } else {
                model.file_len()
            };
            let count = (out.len() as u64).min(end - offset) as usize;
            out[..count].fill(0);
            return Ok(count);
        };
        let recipe = &model.recipes()[tensor];
        let step_bytes = recipe.rows_per_step() * recipe.row_bytes();
        let step = StreamStep {
            tensor,
            number: within / step_bytes,
        };
        let inside = within % step_bytes;
        let is_current = |current: &Option<(StreamStep, Vec<u8>)>| current.as_ref().is_some_and(|(at, _)| *at == step);
        // Only a read from the beginning of a step tells that the reader will go on sequentially.
        if inside == 0 && model.tensor_bytes(tensor) >= SMALL_BYTES && !is_current(&self.current) {
            let spent = self.current.take().map(|(_, bytes)| bytes);
            let bytes = shared.take(step, spent, &mut self.scratch)?;
            self.current = Some((step, bytes));
        }
        if let Some((_, bytes)) = self.current.as_ref().filter(|(at, _)| *at == step) {
            return Ok(copy(&bytes[inside as usize..], out));
        }
        // A read that begins inside of a step, such as that of a reader which fills its buffer before it seeks, is
        // answered directly: making the whole step would be wasted.
        let wanted = (out.len() as u64).min(left).min(step_bytes - inside);
        let row_bytes = recipe.row_bytes();
        let (first, last) = (within / row_bytes, (within + wanted - 1) / row_bytes);
        shared.produce(tensor, first..last + 1, &mut self.scratch, &mut self.single)?;
        let start = (within - first * row_bytes) as usize;
        Ok(copy(&self.single[start..start + wanted as usize], out))
    }
}

fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let count = from.len().min(to.len());
    to[..count].copy_from_slice(&from[..count]);
    count
}

impl Read for GgufStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.read_at(self.position, out).map_err(io::Error::other)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for GgufStream {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(delta) => self.file_len().checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl Drop for GgufStream {
    fn drop(&mut self) {
        // Set under the lock: otherwise a thread could check the flag before, wait after, and miss the signal.
        self.shared.lock().is_stopped = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // Ignored: the thread catches panics and passes them on as errors.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Runs a thread of the pool until the stream is dropped.
    fn work(&self) {
        let mut scratch = self.model.scratch();
        let mut state = self.lock();
        while !state.is_stopped {
            let Some((step, spare)) = state.begin(&self.model, self.ahead) else {
                state = wait(&self.work, state);
                continue;
            };
            // The lock is free while rows are made, which takes long: other threads make theirs, and the reader takes
            // what is ready.
            drop(state);
            let made = self.make(step, spare, &mut scratch);
            state = self.lock();
            state.slots.insert(step, Slot::Made(made));
            self.made.notify_all();
        }
    }

    fn make(&self, step: StreamStep, mut bytes: Vec<u8>, scratch: &mut RowScratch) -> Result<Vec<u8>, ConvertError> {
        let recipe = &self.model.recipes()[step.tensor];
        let first = step.number * recipe.rows_per_step();
        let rows = first..(first + recipe.rows_per_step()).min(recipe.row_count());
        self.produce(step.tensor, rows, scratch, &mut bytes)?;
        Ok(bytes)
    }

    /// Makes rows like [`TensorRecipe::produce`](super::TensorRecipe::produce), but turns a panic into an error:
    /// otherwise the reader would wait for these rows forever.
    fn produce(
        &self,
        tensor: usize,
        rows: Range<u64>,
        scratch: &mut RowScratch,
        bytes: &mut Vec<u8>,
    ) -> Result<(), ConvertError> {
        let recipe = &self.model.recipes()[tensor];
        let expected = (rows.end - rows.start) * recipe.row_bytes();
        let made = catch_unwind(AssertUnwindSafe(|| recipe.produce(rows, scratch, bytes)));
        made.unwrap_or_else(|_| Err(ConvertError::Engine("a thread of the conversion panicked".to_owned())))?;
        if bytes.len() as u64 != expected {
            let name = &recipe.spec().name;
            return Err(ConvertError::Weights(format!(
                "{name:?} has rows of another size than its type requires"
            )));
        }
        Ok(())
    }

    /// Returns a step that the reader has come to: one that is made, one that a thread is making (after waiting), or
    /// one that is made here. `spent` is the buffer of the step before.
    fn take(
        &self,
        step: StreamStep,
        spent: Option<Vec<u8>>,
        scratch: &mut RowScratch,
    ) -> Result<Vec<u8>, ConvertError> {
        let mut state = self.lock();
        state.recycle(spent, self.ahead);
        state.arrive(&self.model, step);
        self.work.notify_all();
        loop {
            match state.slots.remove(&step) {
                Some(Slot::Made(made)) => return made,
                // The slot was removed by the match; put it back and wait.
                Some(Slot::Working) => {
                    state.slots.insert(step, Slot::Working);
                    state = wait(&self.made, state);
                }
                None => {
                    // No slot is needed: `arrive` has set the expectation to the steps after this one, so no thread
                    // begins it.
                    let spare = state.spare.pop().unwrap_or_default();
                    drop(state);
                    return self.make(step, spare, scratch);
                }
            }
        }
    }
}

impl State {
    /// Keeps a buffer for another step.
    fn recycle(&mut self, spent: Option<Vec<u8>>, limit: usize) {
        if self.spare.len() < limit {
            self.spare.extend(spent);
        }
    }

    /// Records that the reader has come to a step.
    fn arrive(&mut self, model: &VirtualGguf, step: StreamStep) {
        // The order of tensors is learned from their first step only.
        if self.reading.is_none_or(|before| before.tensor != step.tensor) {
            self.forecast.arrived(step.tensor);
        }
        self.reading = Some(step);
        self.next = self.following(model, step);
    }

    /// Returns the step that is expected after another.
    fn following(&self, model: &VirtualGguf, step: StreamStep) -> Option<StreamStep> {
        let recipe = &model.recipes()[step.tensor];
        let number = step.number + 1;
        if number < recipe.row_count().div_ceil(recipe.rows_per_step()) {
            return Some(StreamStep { number, ..step });
        }
        let tensor = self.forecast.after(step.tensor)?;
        Some(StreamStep { tensor, number: 0 })
    }

    /// Returns the next step to make and a buffer for it; `None` if enough has been made ahead.
    fn begin(&mut self, model: &VirtualGguf, ahead: usize) -> Option<(StreamStep, Vec<u8>)> {
        let mut expected = Vec::with_capacity(ahead);
        let mut at = self.next;
        while let Some(step) = at.filter(|_| expected.len() < ahead) {
            expected.push(step);
            at = self.following(model, step);
        }
        let step = *expected.iter().find(|step| !self.slots.contains_key(step))?;
        if self.slots.len() >= ahead {
            // All slots are taken. Give up a step that was made on a wrong prediction, if there is one.
            let is_unexpected = |step: &StreamStep| !expected.contains(step) && self.reading != Some(*step);
            let wrong = self.slots.iter().find_map(|(step, slot)| match slot {
                Slot::Made(_) if is_unexpected(step) => Some(*step),
                _ => None,
            })?;
            if let Some(Slot::Made(Ok(bytes))) = self.slots.remove(&wrong) {
                self.recycle(Some(bytes), ahead);
            }
        }
        self.slots.insert(step, Slot::Working);
        Some((step, self.spare.pop().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests;
