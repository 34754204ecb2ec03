//! Weights and vocabulary.

use std::{
    ffi::{CStr, CString, c_void},
    path::Path,
    ptr::NonNull,
};

use llama_cpp_sys_2 as sys;

use super::{adapter::LoraAdapter, backend};
use crate::inference::SplitMode;

/// A token id. Valid ids are non-negative and below [`Model::vocab_size`].
pub type TokenId = i32;

/// How weights are placed and read.
#[derive(Clone, Debug)]
pub struct ModelParams {
    /// Layers on the device; negative is all of them.
    pub gpu_layers: i32,
    /// Device that holds what is not split.
    pub main_gpu: i32,
    /// How layers are split over devices.
    pub split_mode: SplitMode,
    /// Share of each device; empty lets llama.cpp choose.
    pub tensor_split: Vec<f32>,
    /// Map the file instead of reading it.
    pub mmap: bool,
    /// Refuse NaN and infinite weights.
    pub check_tensors: bool,
}

/// A loaded model. Reading it from several threads is sound; llama.cpp mutates it only while loading.
#[derive(Debug)]
pub struct Model {
    raw: NonNull<sys::llama_model>,
    vocab: NonNull<sys::llama_vocab>,
    pub(super) adapters: Vec<LoraAdapter>,
    /// Tokens that end an answer and of which llama.cpp does not know.
    ends: Vec<TokenId>,
}

// SAFETY: llama_model, its adapters and llama_vocab are immutable after loading; all calls below only read them.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

type Progress<'a> = &'a mut dyn FnMut(f32) -> bool;

unsafe extern "C" fn on_progress(progress: f32, user_data: *mut c_void) -> bool {
    // SAFETY: `load_with` passes a pointer to its own `Progress` reference, which outlives the call.
    let callback = unsafe { &mut *user_data.cast::<Progress<'_>>() };
    // A panic must not unwind into C++: treat it as "stop loading".
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| callback(progress))).unwrap_or(false)
}

impl Model {
    /// Loads a GGUF; for a sharded one, the path of its first shard. `progress` gets 0 to 1 and returns whether to go on.
    ///
    /// # Errors
    /// llama.cpp's own sentence.
    pub fn load(path: &Path, params: &ModelParams, progress: impl FnMut(f32) -> bool) -> Result<Self, String> {
        let path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| "the path holds a NUL".to_owned())?;
        // SAFETY: `path` outlives the call, and so does what the parameters point to.
        Self::load_with(params, progress, |raw| unsafe {
            sys::llama_model_load_from_file(path.as_ptr(), raw)
        })
    }

    /// Loads a GGUF that need not be a file. It is not mapped, whatever the parameters say.
    ///
    /// # Errors
    /// The source's own sentence, else llama.cpp's.
    #[cfg(target_os = "linux")]
    pub fn load_from(
        source: &mut impl super::ModelSource,
        params: &ModelParams,
        progress: impl FnMut(f32) -> bool,
    ) -> Result<Self, String> {
        let mut file = super::source::CFile::open(source)?;
        let params = ModelParams {
            mmap: false,
            ..params.clone()
        };
        // SAFETY: the file is open during the call, and so lives what the parameters point to.
        let model = Self::load_with(&params, progress, |raw| unsafe {
            sys::llama_model_load_from_file_ptr(file.as_ptr().cast(), raw)
        });
        model.map_err(|reason| file.error().unwrap_or(reason))
    }

    fn load_with(
        params: &ModelParams,
        mut progress: impl FnMut(f32) -> bool,
        load: impl FnOnce(sys::llama_model_params) -> *mut sys::llama_model,
    ) -> Result<Self, String> {
        backend::init();
        let mut split = params.tensor_split.clone();
        // SAFETY: no preconditions.
        split.resize(unsafe { sys::llama_max_devices() }, 0.0);
        // SAFETY: no preconditions.
        let mut raw = unsafe { sys::llama_model_default_params() };
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
        backend::forget_errors();
        let mut callback: Progress<'_> = &mut progress;
        raw.progress_callback = Some(on_progress);
        raw.progress_callback_user_data = (&raw mut callback).cast();
        // `split` and `callback` outlive the call; the callback is not kept by the model.
        Self::own(load(raw))
    }

    /// Loads the vocabulary of a GGUF without its weights: such a model can tokenise and nothing else.
    ///
    /// # Errors
    /// llama.cpp's own sentence.
    pub fn load_vocabulary(path: &Path) -> Result<Self, String> {
        backend::init();
        let path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| "the path holds a NUL".to_owned())?;
        // SAFETY: no preconditions.
        let mut raw = unsafe { sys::llama_model_default_params() };
        raw.vocab_only = true;
        backend::forget_errors();
        // SAFETY: `path` outlives the call.
        Self::own(unsafe { sys::llama_model_load_from_file(path.as_ptr(), raw) })
    }

    /// Takes what llama.cpp loaded, or its reason for loading nothing.
    fn own(model: *mut sys::llama_model) -> Result<Self, String> {
        let model = NonNull::new(model).ok_or_else(|| {
            let reason = backend::first_error();
            if reason.is_empty() {
                "llama.cpp could not load the file".to_owned()
            } else {
                reason
            }
        })?;
        // SAFETY: the model is valid; its vocabulary lives as long as it.
        let vocab = unsafe { sys::llama_model_get_vocab(model.as_ptr()) };
        let vocab = NonNull::new(vocab.cast_mut()).ok_or("the model has no vocabulary")?;
        Ok(Self {
            raw: model,
            vocab,
            adapters: Vec::new(),
            ends: Vec::new(),
        })
    }

    pub(super) fn as_ptr(&self) -> *mut sys::llama_model {
        self.raw.as_ptr()
    }

    pub(super) fn vocab_ptr(&self) -> *const sys::llama_vocab {
        self.vocab.as_ptr()
    }

    /// Bytes of all weights.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        // SAFETY: the model is valid.
        unsafe { sys::llama_model_size(self.as_ptr()) }
    }

    /// Context length that the model was trained with, in tokens.
    #[must_use]
    pub fn train_context(&self) -> u32 {
        // SAFETY: the model is valid.
        unsafe { sys::llama_model_n_ctx_train(self.as_ptr()) }
            .try_into()
            .unwrap_or(0)
    }

    /// Window of sliding-window attention in tokens; 0 if the model has none.
    #[must_use]
    pub fn sliding_window(&self) -> u32 {
        // SAFETY: the model is valid.
        unsafe { sys::llama_model_n_swa(self.as_ptr()) }.try_into().unwrap_or(0)
    }

    /// Whether its state cannot be cut at any position (recurrent and hybrid models).
    #[must_use]
    pub fn is_recurrent(&self) -> bool {
        // SAFETY: the model is valid.
        unsafe { sys::llama_model_is_recurrent(self.as_ptr()) || sys::llama_model_is_hybrid(self.as_ptr()) }
    }

    /// Tokens that the file says are never to be chosen.
    #[must_use]
    pub fn suppressed_tokens(&self) -> Vec<TokenId> {
        let mut count = 0;
        // SAFETY: the vocabulary is valid; the list has `count` entries and lives as long as it.
        unsafe {
            let list = sys::llama_vocab_get_suppress_tokens(self.vocab_ptr(), &raw mut count);
            match usize::try_from(count) {
                Ok(count) if count > 0 && !list.is_null() => std::slice::from_raw_parts(list, count).to_vec(),
                _ => Vec::new(),
            }
        }
    }

    /// Width of the vectors that it makes.
    #[must_use]
    pub fn embedding_width(&self) -> usize {
        // SAFETY: the model is valid.
        unsafe { sys::llama_model_n_embd_out(self.as_ptr()) }
            .try_into()
            .unwrap_or(0)
    }

    /// Whether a token sees only what comes before it, as in models that generate.
    #[must_use]
    pub fn is_causal(&self) -> bool {
        let key = |architecture: String| format!("{architecture}.attention.causal");
        self.metadata("general.architecture")
            .and_then(|architecture| self.metadata(&key(architecture)))
            .is_none_or(|value| value != "false")
    }

    /// A value of the file's metadata as text; `None` if it is not there.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        let mut buffer = [0u8; 256];
        // SAFETY: the buffer is as long as stated; llama.cpp ends it with NUL.
        let length = unsafe {
            sys::llama_model_meta_val_str(self.as_ptr(), key.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
        };
        let length = usize::try_from(length).ok()?.min(buffer.len() - 1);
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Whether it has an encoder that must run before the decoder.
    #[must_use]
    pub fn has_encoder(&self) -> bool {
        // SAFETY: the model is valid.
        unsafe { sys::llama_model_has_encoder(self.as_ptr()) }
    }

    /// Number of tokens in the vocabulary.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        // SAFETY: the vocabulary is valid.
        unsafe { sys::llama_vocab_n_tokens(self.vocab_ptr()) }
            .try_into()
            .unwrap_or(0)
    }

    /// Lets the tokens that the file lists under a key, with commas between, end an answer too.
    pub fn add_ends(&mut self, key: &str) {
        let ids = self.metadata(key).unwrap_or_default();
        self.ends
            .extend(ids.split(',').filter_map(|id| id.parse::<TokenId>().ok()));
    }

    /// Whether a token ends the answer.
    #[must_use]
    pub fn is_end_of_generation(&self, token: TokenId) -> bool {
        // SAFETY: llama.cpp answers false for ids out of range.
        let is_known = unsafe { sys::llama_vocab_is_eog(self.vocab_ptr(), token) };
        is_known || self.ends.contains(&token)
    }

    /// Whether a beginning-of-sequence token is put in front of a prompt.
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        // SAFETY: the vocabulary is valid.
        unsafe { sys::llama_vocab_get_add_bos(self.vocab_ptr()) }
    }

    /// The beginning-of-sequence token, if there is one.
    #[must_use]
    pub fn bos(&self) -> Option<TokenId> {
        // SAFETY: the vocabulary is valid.
        Some(unsafe { sys::llama_vocab_bos(self.vocab_ptr()) }).filter(|&token| token >= 0)
    }

    /// The end-of-sequence token, if there is one.
    #[must_use]
    pub fn eos(&self) -> Option<TokenId> {
        // SAFETY: the vocabulary is valid.
        Some(unsafe { sys::llama_vocab_eos(self.vocab_ptr()) }).filter(|&token| token >= 0)
    }

    /// The fill-in-the-middle tokens (prefix, suffix, middle), if the vocabulary has all three.
    #[must_use]
    pub fn infill_tokens(&self) -> Option<(TokenId, TokenId, TokenId)> {
        // SAFETY: the vocabulary is valid.
        let tokens = unsafe {
            (
                sys::llama_vocab_fim_pre(self.vocab_ptr()),
                sys::llama_vocab_fim_suf(self.vocab_ptr()),
                sys::llama_vocab_fim_mid(self.vocab_ptr()),
            )
        };
        (tokens.0 >= 0 && tokens.1 >= 0 && tokens.2 >= 0).then_some(tokens)
    }

    /// Text to tokens. `add_special` puts BOS in front where the model wants it; `parse_special` reads the text of
    /// control tokens as those tokens.
    ///
    /// # Errors
    /// A sentence, if the text is longer than llama.cpp can count.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<TokenId>, String> {
        let length = i32::try_from(text.len()).map_err(|_| "the text is longer than 2 GiB".to_owned())?;
        // One token a byte and a few special ones is nearly always enough; otherwise llama.cpp says how many it needs.
        let mut tokens: Vec<TokenId> = vec![0; text.len() / 2 + 16];
        for _ in 0..2 {
            let room = i32::try_from(tokens.len()).unwrap_or(i32::MAX);
            // SAFETY: pointers and lengths belong to live buffers.
            let count = unsafe {
                sys::llama_tokenize(
                    self.vocab_ptr(),
                    text.as_ptr().cast(),
                    length,
                    tokens.as_mut_ptr(),
                    room,
                    add_special,
                    parse_special,
                )
            };
            if count == i32::MIN {
                break;
            }
            let needed = count.unsigned_abs() as usize;
            if count >= 0 {
                tokens.truncate(needed);
                return Ok(tokens);
            }
            tokens.resize(needed, 0);
        }
        Err("the text has more tokens than can be counted".to_owned())
    }

    /// Appends a token's bytes to `out`; they need not be whole UTF-8. Control tokens are empty unless `special`.
    /// An id outside the vocabulary adds nothing (llama.cpp would throw).
    pub fn append_piece(&self, token: TokenId, special: bool, out: &mut Vec<u8>) {
        if usize::try_from(token).map_or(true, |id| id >= self.vocab_size()) {
            return;
        }
        let mut buffer = [0u8; 128];
        // SAFETY: the id is in range and the buffer is as long as stated.
        let written = unsafe {
            sys::llama_token_to_piece(
                self.vocab_ptr(),
                token,
                buffer.as_mut_ptr().cast(),
                buffer.len() as i32,
                0,
                special,
            )
        };
        if let Ok(length) = usize::try_from(written) {
            out.extend_from_slice(&buffer[..length]);
            return;
        }
        let needed = written.unsigned_abs() as usize;
        let start = out.len();
        out.resize(start + needed, 0);
        // SAFETY: as above, with the length that the first call asked for.
        let written = unsafe {
            sys::llama_token_to_piece(
                self.vocab_ptr(),
                token,
                out[start..].as_mut_ptr().cast(),
                needed as i32,
                0,
                special,
            )
        };
        out.truncate(start + usize::try_from(written).unwrap_or(0));
    }

    /// The bytes of many tokens.
    #[must_use]
    pub fn detokenize(&self, tokens: &[TokenId], special: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(tokens.len() * 4);
        for &token in tokens {
            self.append_piece(token, special, &mut out);
        }
        out
    }

    /// The chat template in the file, if there is one.
    #[must_use]
    pub fn chat_template(&self) -> Option<String> {
        // SAFETY: the model is valid; a NULL name asks for the default template; the string lives as long as the model.
        unsafe {
            let text = sys::llama_model_chat_template(self.as_ptr(), std::ptr::null());
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: the pointer is owned and every context holds an `Arc` of this value, so none is left.
        unsafe { sys::llama_model_free(self.as_ptr()) };
    }
}
