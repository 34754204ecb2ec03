//! Quantising: rows of numbers, or a whole file into another.

use std::{ffi::CString, path::Path, ptr};

use llama_cpp_sys_2 as sys;

use super::backend;
use crate::gguf::GgmlType;

/// Appends rows of finite numbers in a quantised type, as llama.cpp's own quantiser makes them without a sample of the model's
/// use. May be called by several threads.
///
/// # Errors
/// If a row is no whole number of blocks, the type is none that can be made so, or a number is too large for it.
pub fn quantize_rows(kind: GgmlType, numbers: &[f32], row: usize, out: &mut Vec<u8>) -> Result<(), String> {
    let id: sys::ggml_type = kind.id();
    let (rows, dims) = (numbers.len().checked_div(row).unwrap_or(0), [numbers.len() as u64]);
    let bytes = kind
        .tensor_bytes(&dims)
        .filter(|_| rows * row == numbers.len() && (row as u64).is_multiple_of(kind.block_elements()));
    let Some(bytes) = bytes.and_then(|bytes| usize::try_from(bytes).ok()) else {
        return Err(format!("rows of {row} numbers are no whole blocks of {}", kind.name()));
    };
    // SAFETY: every id of a `GgmlType` is one of ggml's.
    let is_made = !unsafe { sys::ggml_quantize_requires_imatrix(id) } && is_quantized(kind);
    if !is_made {
        return Err(format!("{} cannot be made of a checkpoint alone", kind.name()));
    }
    let start = out.len();
    out.resize(start + bytes, 0);
    let target = out[start..].as_mut_ptr();
    // SAFETY: `numbers` holds `rows` rows of whole blocks, and `target` has room for as many blocks, as ggml counts them too:
    // `GgmlType` has its block sizes. It guards its own tables by a lock.
    let written = unsafe {
        sys::ggml_quantize_chunk(
            id,
            numbers.as_ptr(),
            target.cast(),
            0,
            rows as i64,
            row as i64,
            ptr::null(),
        )
    };
    // SAFETY: the bytes were just written.
    if written == bytes && unsafe { sys::ggml_validate_row_data(id, target.cast(), bytes) } {
        return Ok(());
    }
    out.truncate(start);
    Err(format!("a number is too large for {}", kind.name()))
}

/// Types that `ggml_quantize_chunk` makes; it takes the process down for others.
fn is_quantized(kind: GgmlType) -> bool {
    use GgmlType as T;
    matches!(
        kind,
        T::Q4_0
            | T::Q4_1
            | T::Q5_0
            | T::Q5_1
            | T::Q8_0
            | T::Q2_K
            | T::Q3_K
            | T::Q4_K
            | T::Q5_K
            | T::Q6_K
            | T::IQ4_NL
            | T::IQ4_XS
    )
}

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
