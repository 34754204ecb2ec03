//! Process-wide state of llama.cpp: its log, its devices, what it was compiled for.

use std::{
    ffi::{CStr, c_char, c_void},
    sync::{Mutex, Once},
};

use llama_cpp_sys_2 as sys;

static INIT: Once = Once::new();
/// The first error line of llama.cpp's log since [`forget_errors`]: its API returns NULL and says why only there, and
/// what it says after that is that the caller failed too.
static FIRST_ERROR: Mutex<String> = Mutex::new(String::new());
/// Longer lines are cut; they hold model paths and template text.
const MAX_LOG_LINE: usize = 1000;

/// Initialises llama.cpp once for the process and sends its log to `tracing`.
pub fn init() {
    INIT.call_once(|| {
        // SAFETY: the callback is a plain function that lives as long as the process and takes no user data.
        unsafe {
            sys::llama_log_set(Some(on_log), std::ptr::null_mut());
            sys::ggml_log_set(Some(on_log), std::ptr::null_mut());
            sys::llama_backend_init();
        }
    });
}

unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that is valid during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let mut line = text.trim_end();
    if line.is_empty() || line == "." {
        return;
    }
    if let Some((cut, _)) = line.char_indices().nth(MAX_LOG_LINE) {
        line = &line[..cut];
    }
    match level {
        sys::GGML_LOG_LEVEL_ERROR => {
            tracing::warn!(target: "llama.cpp", "{line}");
            if let Ok(mut first) = FIRST_ERROR.lock()
                && first.is_empty()
            {
                without_functions(line).clone_into(&mut first);
            }
        }
        sys::GGML_LOG_LEVEL_WARN => tracing::debug!(target: "llama.cpp", "{line}"),
        _ => tracing::trace!(target: "llama.cpp", "{line}"),
    }
}

/// The line without the C functions that it came through, and without words that its reader will say again.
fn without_functions(mut line: &str) -> &str {
    while let Some((function, text)) = line.split_once(": ")
        && (function == "error loading model" || !function.contains(' '))
    {
        line = text;
    }
    line
}

/// Begins an attempt: what went wrong before is not its fault.
pub(super) fn forget_errors() {
    if let Ok(mut first) = FIRST_ERROR.lock() {
        first.clear();
    }
}

/// Takes the first error line of llama.cpp's log since [`forget_errors`], empty if there was none.
pub(super) fn first_error() -> String {
    FIRST_ERROR
        .lock()
        .map(|mut first| std::mem::take(&mut *first))
        .unwrap_or_default()
}

/// llama.cpp's own version.
#[must_use]
pub fn version() -> String {
    // SAFETY: both return static NUL-terminated strings.
    let (llama, ggml) = unsafe {
        (
            CStr::from_ptr(sys::llama_version()),
            CStr::from_ptr(sys::ggml_version()),
        )
    };
    format!("llama.cpp {}, ggml {}", llama.to_string_lossy(), ggml.to_string_lossy())
}

/// The CPU features that ggml's kernels were compiled for, in its own words.
#[must_use]
pub fn cpu_features() -> String {
    init();
    // SAFETY: returns a pointer to a static buffer, NUL-terminated.
    unsafe { CStr::from_ptr(sys::llama_print_system_info()) }
        .to_string_lossy()
        .trim()
        .to_owned()
}

/// Whether this build can use a GPU at all.
#[must_use]
pub fn supports_gpu_offload() -> bool {
    // SAFETY: no preconditions.
    unsafe { sys::llama_supports_gpu_offload() }
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The host processor.
    Cpu,
    /// A GPU with memory of its own.
    Gpu,
    /// A GPU that shares the host's memory.
    IntegratedGpu,
    /// Another accelerator.
    Accelerator,
}

/// A device that ggml found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ComputeDevice {
    /// As `CUDA0`.
    pub name: String,
    /// The vendor's name.
    pub description: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Free memory in bytes.
    pub free_bytes: u64,
    /// All memory in bytes.
    pub total_bytes: u64,
}

/// Every device, the CPU included.
#[must_use]
pub fn devices() -> Vec<ComputeDevice> {
    init();
    // SAFETY: indices below the count are valid; names and descriptions are static NUL-terminated strings.
    unsafe {
        (0..sys::ggml_backend_dev_count())
            .map(|index| {
                let device = sys::ggml_backend_dev_get(index);
                let (mut free, mut total) = (0usize, 0usize);
                sys::ggml_backend_dev_memory(device, &raw mut free, &raw mut total);
                ComputeDevice {
                    name: CStr::from_ptr(sys::ggml_backend_dev_name(device))
                        .to_string_lossy()
                        .into_owned(),
                    description: CStr::from_ptr(sys::ggml_backend_dev_description(device))
                        .to_string_lossy()
                        .into_owned(),
                    kind: match sys::ggml_backend_dev_type(device) {
                        sys::GGML_BACKEND_DEVICE_TYPE_CPU => DeviceKind::Cpu,
                        sys::GGML_BACKEND_DEVICE_TYPE_GPU => DeviceKind::Gpu,
                        sys::GGML_BACKEND_DEVICE_TYPE_IGPU => DeviceKind::IntegratedGpu,
                        _ => DeviceKind::Accelerator,
                    },
                    free_bytes: free as u64,
                    total_bytes: total as u64,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_without_the_function_that_found_it() {
        for (line, reason) in [
            (
                "llama_model_load: error loading model: check: tensor 'x' not found",
                "tensor 'x' not found",
            ),
            ("decode: failed to find a memory slot", "failed to find a memory slot"),
            ("no function: here", "no function: here"),
            ("plain", "plain"),
        ] {
            assert_eq!(without_functions(line), reason);
        }
    }
}
