//! Quantising a file into another.

use std::{ffi::CString, path::Path};

use llama_cpp_sys_2 as sys;

use super::backend;

/// Writes the weights of one GGUF file into another in the mix of types that `file_type` (a `llama_ftype`) stands for.
/// Neither cancellable nor talkative: it runs in a process that can be killed, and its output grows.
///
/// # Errors
/// llama.cpp's own sentence. The output may be there in part.
pub fn quantize(input: &Path, output: &Path, file_type: u32, threads: u32) -> Result<(), String> {
    backend::init();
    let path =
        |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| "the path holds a NUL".to_owned());
    let (input, output) = (path(input)?, path(output)?);
    // SAFETY: no preconditions.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.nthread = threads.max(1).try_into().unwrap_or(1);
    params.ftype = file_type as sys::llama_ftype;
    backend::forget_errors();
    // SAFETY: both paths are NUL-terminated and outlive the call; exceptions are caught inside of it.
    let status = unsafe { sys::llama_model_quantize(input.as_ptr(), output.as_ptr(), &raw const params) };
    if status == 0 {
        return Ok(());
    }
    let reason = backend::first_error();
    Err(if reason.is_empty() {
        "llama.cpp could not quantise the file".to_owned()
    } else {
        reason
    })
}
