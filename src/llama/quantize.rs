//! Quantization of rows of numbers, and of whole files, which tests and benchmarks compare conversions with.
//! llama-cpp-2 has neither.

use std::{path::Path, ptr};

use llama_cpp_sys_2 as sys;

use super::{LlamaError, backend, c_path};
use crate::gguf::GgmlType;

/// Appends rows of finite numbers in a quantized type. Uses ggml's own quantizers without an importance matrix, that
/// is, without a sample of the texts that the model will be used for. May be called by several threads.
///
/// # Errors
/// If a row is no whole number of blocks, the type needs an importance matrix, or a number is too large for the type.
pub fn quantize_rows(weight_type: GgmlType, numbers: &[f32], row: usize, out: &mut Vec<u8>) -> Result<(), LlamaError> {
    let id: sys::ggml_type = weight_type.id();
    let (rows, dims) = (numbers.len().checked_div(row).unwrap_or(0), [numbers.len() as u64]);
    let bytes = weight_type
        .tensor_bytes(&dims)
        .filter(|_| rows * row == numbers.len() && (row as u64).is_multiple_of(weight_type.block_elements()));
    let Some(bytes) = bytes.and_then(|bytes| usize::try_from(bytes).ok()) else {
        return Err(LlamaError::PartialBlocks {
            row,
            weight_type: weight_type.name(),
        });
    };
    // SAFETY: every id of a `GgmlType` is one of ggml's.
    let needs_samples = unsafe { sys::ggml_quantize_requires_imatrix(id) };
    if needs_samples || !is_quantized(weight_type) {
        return Err(LlamaError::NeedsSamples(weight_type.name()));
    }
    let start = out.len();
    out.resize(start + bytes, 0);
    let target = out[start..].as_mut_ptr();
    // `ggml_quantize_chunk` does not look at the numbers: one beyond the range of the scale becomes an infinite block,
    // which `ggml_validate_row_data` finds.
    // SAFETY: `numbers` holds `rows` rows of whole blocks, and `target` has room for as many blocks, as ggml counts
    // them too: `GgmlType` has its block sizes. ggml guards its own tables by a lock. The bytes that are validated were
    // just written.
    let is_valid = unsafe {
        let written = sys::ggml_quantize_chunk(
            id,
            numbers.as_ptr(),
            target.cast(),
            0,
            rows as i64,
            row as i64,
            ptr::null(),
        );
        written == bytes && sys::ggml_validate_row_data(id, target.cast(), bytes)
    };
    if is_valid {
        return Ok(());
    }
    out.truncate(start);
    Err(LlamaError::TooLarge(weight_type.name()))
}

/// True for the types that `ggml_quantize_chunk` makes. It asserts, and so ends the process, for others.
fn is_quantized(weight_type: GgmlType) -> bool {
    use GgmlType as T;
    matches!(
        weight_type,
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

/// Writes the weights of one GGUF file into another, in the mix of types that `file_type` (a `llama_ftype`) stands for.
/// It can neither be canceled nor asked for its progress: it runs in a process that can be killed, and its output
/// grows.
///
/// # Errors
/// [`LlamaError::Quantize`] with llama.cpp's reason. A part of the output may have been written.
pub fn quantize(input: &Path, output: &Path, file_type: u32, threads: u32) -> Result<(), LlamaError> {
    backend::init();
    let (input, output) = (c_path(input)?, c_path(output)?);
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
    let reason = backend::first_error("llama.cpp could not quantize the file");
    Err(LlamaError::Quantize(reason))
}
