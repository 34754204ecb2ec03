//! Weights and vocabulary of one model.

use std::{
    ffi::{CStr, c_void},
    path::Path,
    ptr::NonNull,
    sync::Mutex,
};

use llama_cpp_2::{model::LlamaModel, token::LlamaToken};
use llama_cpp_sys_2 as sys;
use serde::{Deserialize, Serialize};

use super::{LlamaError, adapter::ScaledAdapter, backend, c_path, layout};
use crate::inference::SplitMode;

/// Id of a token in a model's vocabulary. Valid ids are non-negative and below [`Model::vocab_size`].
pub type TokenId = i32;

/// Room that is made for the text of a token before it is asked for, in bytes; few tokens are longer.
const PIECE_BYTES: usize = 128;

/// Placement of a model's weights and the way they are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelParams {
    /// Number of layers on devices; negative is all of them.
    pub gpu_layers: i32,
    /// Index of the device that holds what is not split.
    pub main_gpu: i32,
    pub split_mode: SplitMode,
    /// Share of the weights on each device, in any unit; empty lets llama.cpp choose.
    pub tensor_split: Vec<f32>,
    /// If set, the file is mapped instead of read.
    pub mmap: bool,
    /// If set, NaN and infinite weights are refused.
    pub check_tensors: bool,
}

impl Default for ModelParams {
    fn default() -> Self {
        Self {
            gpu_layers: -1,
            main_gpu: 0,
            split_mode: SplitMode::Layer,
            tensor_split: Vec::new(),
            mmap: true,
            check_tensors: true,
        }
    }
}

/// Loaded model, shared by its contexts and the threads that tokenize with it.
#[derive(Debug)]
pub struct Model {
    pub(super) inner: LlamaModel,
    pub(super) adapters: Vec<ScaledAdapter>,
    /// Held while a context is made: `llama_init_from_model` writes `n_ctx_train` of a model with YaRN scaling, so
    /// `LlamaModel::new_context`, which two threads may call at once, is unsound.
    pub(super) context_creation: Mutex<()>,
    vocab_size: usize,
    /// Tokens that end an answer and of which llama.cpp does not know.
    extra_end_tokens: Vec<TokenId>,
}

/// Function that is called with the fraction of a load that is done, and returns false to stop the load.
type Progress<'a> = &'a mut dyn FnMut(f32) -> bool;

unsafe extern "C" fn on_progress(progress: f32, user_data: *mut c_void) -> bool {
    // SAFETY: `Model::load_with` passes a pointer to its own `Progress` reference, which outlives the call.
    let callback = unsafe { &mut *user_data.cast::<Progress<'_>>() };
    // A panic must not unwind into C++: treat it as "stop loading".
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| callback(progress))).unwrap_or(false)
}

/// Place that llama.cpp reads a model from.
enum LoadOrigin<'a> {
    Path(&'a CStr),
    #[cfg(target_os = "linux")]
    File(*mut libc::FILE),
}

impl Model {
    /// Loads a GGUF file; of a sharded one, `path` is the first shard. `progress` gets 0 to 1 and returns false to stop
    /// the load.
    ///
    /// # Errors
    /// [`LlamaError::Load`] with llama.cpp's reason.
    pub fn load(path: &Path, params: &ModelParams, mut progress: impl FnMut(f32) -> bool) -> Result<Self, LlamaError> {
        let path = c_path(path)?;
        Self::load_with(params, false, &mut progress, LoadOrigin::Path(&path))
    }

    /// Loads a GGUF that need not be a file. It is not mapped, whatever the parameters say.
    ///
    /// # Errors
    /// [`LlamaError::Source`] with the source's first error, otherwise as [`Model::load`].
    #[cfg(target_os = "linux")]
    pub fn load_from(
        source: &mut impl super::ModelSource,
        params: &ModelParams,
        mut progress: impl FnMut(f32) -> bool,
    ) -> Result<Self, LlamaError> {
        let mut file = super::source::CFile::open(source)?;
        let params = ModelParams {
            // With the mode AUTO, `llama_model_load_from_file_ptr` tries to map the descriptor, of which this stream
            // has none.
            mmap: false,
            ..params.clone()
        };
        let model = Self::load_with(&params, false, &mut progress, LoadOrigin::File(file.as_ptr()));
        model.map_err(|error| file.take_error().map_or(error, LlamaError::Source))
    }

    /// Loads the vocabulary of a GGUF file without its weights: such a model can tokenize and nothing else.
    ///
    /// # Errors
    /// [`LlamaError::Load`] with llama.cpp's reason.
    pub fn load_vocabulary(path: &Path) -> Result<Self, LlamaError> {
        let path = c_path(path)?;
        Self::load_with(&ModelParams::default(), true, &mut |_| true, LoadOrigin::Path(&path))
    }

    // llama-cpp-2's `LlamaModelParams` has no setters for the tensor split, the check of tensors and "all layers", and
    // its progress callback must be `'static` and not panic. So the parameters are the sys crate's.
    fn load_with(
        params: &ModelParams,
        vocabulary_only: bool,
        mut progress: Progress<'_>,
        origin: LoadOrigin<'_>,
    ) -> Result<Self, LlamaError> {
        backend::init();
        // The constructor of `llama_model` copies `llama_max_devices()` shares, however many the user gave.
        let mut split = params.tensor_split.clone();
        split.resize(llama_cpp_2::max_devices(), 0.0);
        // SAFETY: no preconditions.
        let mut raw = unsafe { sys::llama_model_default_params() };
        raw.vocab_only = vocabulary_only;
        raw.n_gpu_layers = params.gpu_layers;
        raw.main_gpu = params.main_gpu;
        raw.split_mode = match params.split_mode {
            SplitMode::None => sys::LLAMA_SPLIT_MODE_NONE,
            SplitMode::Layer => sys::LLAMA_SPLIT_MODE_LAYER,
            SplitMode::Row => sys::LLAMA_SPLIT_MODE_ROW,
        };
        if !params.tensor_split.is_empty() {
            raw.tensor_split = split.as_ptr();
        }
        raw.load_mode = if params.mmap {
            sys::LLAMA_LOAD_MODE_AUTO
        } else {
            sys::LLAMA_LOAD_MODE_NONE
        };
        raw.check_tensors = params.check_tensors;
        raw.progress_callback = Some(on_progress);
        raw.progress_callback_user_data = (&raw mut progress).cast();
        backend::forget_errors();
        // SAFETY: the path is NUL-terminated, the file is open, and `split` and `progress` outlive the call; the model
        // keeps neither.
        let model = unsafe {
            match origin {
                LoadOrigin::Path(path) => sys::llama_model_load_from_file(path.as_ptr(), raw),
                #[cfg(target_os = "linux")]
                LoadOrigin::File(file) => sys::llama_model_load_from_file_ptr(file.cast(), raw),
            }
        };
        let model = NonNull::new(model)
            .ok_or_else(|| LlamaError::Load(backend::first_error("llama.cpp could not load the file")))?;
        // SAFETY: the model was just loaded, and nobody else has the pointer.
        let inner = unsafe { layout::model_from_raw(model) };
        Ok(Self {
            vocab_size: inner.n_vocab().try_into().unwrap_or(0),
            inner,
            adapters: Vec::new(),
            context_creation: Mutex::new(()),
            extra_end_tokens: Vec::new(),
        })
    }

    /// Loads an adapter from a GGUF file. Contexts that are made of the model from now on apply it, `scale` times as
    /// strongly as its file says.
    ///
    /// # Errors
    /// [`LlamaError::Adapter`] if llama.cpp cannot load the file or it does not fit the model.
    pub fn add_adapter(&mut self, path: &Path, scale: f32) -> Result<(), LlamaError> {
        let adapter = ScaledAdapter::load(&mut self.inner, path, scale)?;
        self.adapters.push(adapter);
        Ok(())
    }

    /// Returns the size of all weights in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.inner.size()
    }

    /// Returns the context length that the model was trained with, in tokens; 0 if the file does not say.
    #[must_use]
    pub fn train_context(&self) -> u32 {
        // `LlamaModel::n_ctx_train` panics on a number above `i32::MAX`, which a hostile file can hold.
        // SAFETY: the model is valid.
        unsafe { sys::llama_model_n_ctx_train(layout::model_ptr(&self.inner)) }
            .try_into()
            .unwrap_or(0)
    }

    /// Returns the window of sliding-window attention in tokens; 0 if the model has none.
    #[must_use]
    pub fn sliding_window(&self) -> u32 {
        // SAFETY: the model is valid.
        unsafe { sys::llama_model_n_swa(layout::model_ptr(&self.inner)) }
            .try_into()
            .unwrap_or(0)
    }

    /// True for recurrent and hybrid models, whose state cannot be cut at any position.
    #[must_use]
    pub fn is_recurrent(&self) -> bool {
        self.inner.is_recurrent() || self.inner.is_hybrid()
    }

    /// Returns the tokens that the file says are never to be chosen.
    #[must_use]
    pub fn suppressed_tokens(&self) -> Vec<TokenId> {
        let vocab = self.inner.vocab();
        vocab.suppress_tokens().iter().map(|token| token.0).collect()
    }

    /// True if a token sees only the tokens before it, as in models that generate.
    #[must_use]
    pub fn is_causal(&self) -> bool {
        let key = |architecture: String| format!("{architecture}.attention.causal");
        self.metadata("general.architecture")
            .and_then(|architecture| self.metadata(&key(architecture)))
            .is_none_or(|value| value != "false")
    }

    /// Returns a value of the file's metadata as text; `None` if the file does not have the key.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<String> {
        self.inner.meta_val_str(key).ok()
    }

    /// True if the model has an encoder that must run before the decoder.
    #[must_use]
    pub fn has_encoder(&self) -> bool {
        // SAFETY: the model is valid.
        unsafe { sys::llama_model_has_encoder(layout::model_ptr(&self.inner)) }
    }

    /// Returns the number of tokens in the vocabulary.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Makes the tokens that the file lists under a key, separated by commas, end an answer too.
    pub fn add_end_tokens(&mut self, key: &str) {
        let ids = self.metadata(key).unwrap_or_default();
        self.extra_end_tokens
            .extend(ids.split(',').filter_map(|id| id.parse::<TokenId>().ok()));
    }

    /// True if the token ends the answer.
    #[must_use]
    pub fn is_end_of_generation(&self, token: TokenId) -> bool {
        // llama.cpp looks the id up in a set, so an id outside the vocabulary is false.
        self.inner.vocab().is_eog(LlamaToken(token)) || self.extra_end_tokens.contains(&token)
    }

    /// True if a beginning-of-sequence token is put in front of a prompt.
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.inner.vocab().should_add_bos()
    }

    /// Returns the beginning-of-sequence token, if there is one.
    #[must_use]
    pub fn bos(&self) -> Option<TokenId> {
        existing(self.inner.vocab().bos())
    }

    /// Returns the end-of-sequence token, if there is one.
    #[must_use]
    pub fn eos(&self) -> Option<TokenId> {
        existing(self.inner.vocab().eos())
    }

    /// Returns the fill-in-the-middle tokens (prefix, suffix, middle), if the vocabulary has all three.
    #[must_use]
    pub fn infill_tokens(&self) -> Option<(TokenId, TokenId, TokenId)> {
        let vocab = self.inner.vocab();
        Some((
            existing(vocab.fim_pre())?,
            existing(vocab.fim_suf())?,
            existing(vocab.fim_mid())?,
        ))
    }

    /// Converts text to tokens. `add_special` adds the tokens that the model wants around a text, such as BOS;
    /// `parse_special` reads the text of control tokens as those tokens.
    ///
    /// # Errors
    /// [`LlamaError::TextTooLong`] from 2 GiB on.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<TokenId>, LlamaError> {
        // `LlamaVocab::tokenize` panics on a text whose length is no i32.
        if i32::try_from(text.len()).is_err() {
            return Err(LlamaError::TextTooLong);
        }
        let tokens = self.inner.vocab().tokenize(text.as_bytes(), add_special, parse_special);
        // Both types are 32 bits wide, so this is collected in place.
        Ok(tokens.into_iter().map(|token| token.0).collect())
    }

    /// Appends a token's bytes to `out`; they need not be whole UTF-8. Control tokens are empty unless `special`.
    /// An id outside the vocabulary adds nothing.
    pub fn append_piece(&self, token: TokenId, special: bool, out: &mut Vec<u8>) {
        // `llama_token_to_piece` throws a C++ exception for such an id, which would end the process.
        if usize::try_from(token).map_or(true, |id| id >= self.vocab_size) {
            return;
        }
        // The crate writes into the spare capacity and grows the buffer to the exact size when that is too small:
        // without this, each token of a long text would move all of it.
        out.reserve(PIECE_BYTES);
        self.inner
            .vocab()
            .token_to_piece_into(LlamaToken(token), out, special, None);
    }

    /// Returns the bytes of many tokens.
    #[must_use]
    pub fn detokenize(&self, tokens: &[TokenId], special: bool) -> Vec<u8> {
        // Piece by piece, since `llama_detokenize` also strips a leading blank and cleans up spaces, so that the text
        // of two lists would not be the texts of each.
        let mut out = Vec::with_capacity(tokens.len() * 4);
        for &token in tokens {
            self.append_piece(token, special, &mut out);
        }
        out
    }
}

/// Filters out -1, llama.cpp's id of a token that a vocabulary does not have.
fn existing(LlamaToken(token): LlamaToken) -> Option<TokenId> {
    (token >= 0).then_some(token)
}
