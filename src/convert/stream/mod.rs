//! The consumer that makes no file: it answers reads at any position, and prepares what will probably be read next.
//!
//! llama.cpp reads a header, then one tensor after the other: on one thread, in small pieces, and not in the order of the
//! file. Here a pool makes rows on all cores ahead of that reader, as far as a bound on memory lets it.

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
use super::{ConvertError, VirtualGguf, encode::Scratch};
use crate::stdx::sync::{lock, wait};

/// More threads than this only wait for the disk.
const MAX_THREADS: usize = 8;
/// Tensors with fewer bytes are made when they are read. A reader that fills a buffer touches such neighbours of what it is
/// after, which says nothing of what it will read next.
const SMALL_BYTES: u64 = 64 << 10;

/// The bytes of a [`VirtualGguf`], made when they are read or shortly before. Dropping it ends the threads of its pool.
#[derive(Debug)]
pub struct GgufStream {
    shared: Arc<Shared>,
    /// What the reader is in the middle of.
    current: Option<(StreamStep, Vec<u8>)>,
    scratch: Scratch,
    /// Rows that are asked for on their own.
    single: Vec<u8>,
    position: u64,
    threads: Vec<JoinHandle<()>>,
}

/// Some rows of a tensor, by its index and theirs among its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct StreamStep {
    tensor: usize,
    number: u64,
}

#[derive(Debug)]
enum Slot {
    Working,
    Made(Result<Vec<u8>, ConvertError>),
}

#[derive(Debug)]
struct Shared {
    model: VirtualGguf,
    /// Steps that are ready or being made at most: with a few megabytes each, the bound on memory.
    ahead: usize,
    state: Mutex<State>,
    /// There may be work for the pool.
    work: Condvar,
    /// A step has been made.
    made: Condvar,
}

#[derive(Debug)]
struct State {
    slots: HashMap<StreamStep, Slot>,
    forecast: ReadForecast,
    /// What the reader is in the middle of, or waits for.
    reading: Option<StreamStep>,
    /// The first step that it has not asked for.
    next: Option<StreamStep>,
    /// Memory of steps that were read.
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
            ahead: 2 * threads + 2,
            state: Mutex::new(state),
            work: Condvar::new(),
            made: Condvar::new(),
        });
        // A thread that could not be started is only missed: the reader makes for itself what nobody else has begun.
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

    /// Bytes of the whole file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.shared.model.file_len()
    }

    /// Reads some bytes from a position on, never beyond the end of a tensor; none behind the end of the file.
    ///
    /// # Errors
    /// If the checkpoint cannot be read, or a number does not fit into the target type.
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
            // Between two tensors, or behind the last.
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
        if inside == 0 && model.tensor_bytes(tensor) >= SMALL_BYTES && !is_current(&self.current) {
            let spent = self.current.take().map(|(_, bytes)| bytes);
            let bytes = shared.take(step, spent, &mut self.scratch)?;
            self.current = Some((step, bytes));
        }
        if let Some((_, bytes)) = self.current.as_ref().filter(|(at, _)| *at == step) {
            return Ok(copy(&bytes[inside as usize..], out));
        }
        // Whoever begins in the middle, as a reader that fills its buffer before it seeks, gets the rows and no more.
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
        self.shared.lock().is_stopped = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // It catches its panics.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The life of a thread of the pool.
    fn work(&self) {
        let mut scratch = self.model.scratch();
        let mut state = self.lock();
        while !state.is_stopped {
            let Some((step, spare)) = state.begin(&self.model, self.ahead) else {
                state = wait(&self.work, state);
                continue;
            };
            drop(state);
            let made = self.make(step, spare, &mut scratch);
            state = self.lock();
            state.slots.insert(step, Slot::Made(made));
            self.made.notify_all();
        }
    }

    fn make(&self, step: StreamStep, mut bytes: Vec<u8>, scratch: &mut Scratch) -> Result<Vec<u8>, ConvertError> {
        let recipe = &self.model.recipes()[step.tensor];
        let first = step.number * recipe.rows_per_step();
        let rows = first..(first + recipe.rows_per_step()).min(recipe.row_count());
        self.produce(step.tensor, rows, scratch, &mut bytes)?;
        Ok(bytes)
    }

    /// As [`super::Recipe::produce`], but a panic is an error too, or whoever waits for the rows would wait for ever.
    fn produce(
        &self,
        tensor: usize,
        rows: Range<u64>,
        scratch: &mut Scratch,
        bytes: &mut Vec<u8>,
    ) -> Result<(), ConvertError> {
        let recipe = &self.model.recipes()[tensor];
        let expected = (rows.end - rows.start) * recipe.row_bytes();
        let made = catch_unwind(AssertUnwindSafe(|| recipe.produce(rows, scratch, bytes)));
        made.unwrap_or_else(|_| Err(ConvertError::Engine("a thread of the conversion panicked".to_owned())))?;
        if bytes.len() as u64 != expected {
            let name = &recipe.spec().name;
            return Err(ConvertError::Weights(format!("{name:?} cannot be made in its type")));
        }
        Ok(())
    }

    /// Gives a step to the reader, which has come to it; waits for whoever makes it, or makes it here.
    fn take(&self, step: StreamStep, spent: Option<Vec<u8>>, scratch: &mut Scratch) -> Result<Vec<u8>, ConvertError> {
        let mut state = self.lock();
        state.recycle(spent, self.ahead);
        state.arrive(&self.model, step);
        self.work.notify_all();
        loop {
            match state.slots.remove(&step) {
                Some(Slot::Made(made)) => return made,
                Some(Slot::Working) => {
                    state.slots.insert(step, Slot::Working);
                    state = wait(&self.made, state);
                }
                None => {
                    let spare = state.spare.pop().unwrap_or_default();
                    drop(state);
                    return self.make(step, spare, scratch);
                }
            }
        }
    }
}

impl State {
    /// Keeps memory for another step.
    fn recycle(&mut self, spent: Option<Vec<u8>>, limit: usize) {
        if self.spare.len() < limit {
            self.spare.extend(spent);
        }
    }

    fn arrive(&mut self, model: &VirtualGguf, step: StreamStep) {
        if self.reading.is_none_or(|before| before.tensor != step.tensor) {
            self.forecast.arrived(step.tensor);
        }
        self.reading = Some(step);
        self.next = self.following(model, step);
    }

    fn following(&self, model: &VirtualGguf, step: StreamStep) -> Option<StreamStep> {
        let recipe = &model.recipes()[step.tensor];
        let number = step.number + 1;
        if number < recipe.row_count().div_ceil(recipe.rows_per_step()) {
            return Some(StreamStep { number, ..step });
        }
        let tensor = self.forecast.after(step.tensor)?;
        Some(StreamStep { tensor, number: 0 })
    }

    /// The next step that is worth making, and memory for it.
    fn begin(&mut self, model: &VirtualGguf, ahead: usize) -> Option<(StreamStep, Vec<u8>)> {
        let mut expected = Vec::with_capacity(ahead);
        let mut at = self.next;
        while let Some(step) = at.filter(|_| expected.len() < ahead) {
            expected.push(step);
            at = self.following(model, step);
        }
        let step = *expected.iter().find(|step| !self.slots.contains_key(step))?;
        if self.slots.len() >= ahead {
            // Something was made that the reader has not come for and is not about to: the guess was wrong.
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
