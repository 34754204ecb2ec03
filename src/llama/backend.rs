//! Process-wide state of llama.cpp: initialization, log, devices, and what it was compiled for.

use std::{
    ffi::{CStr, c_char, c_void},
    sync::{LazyLock, Mutex, PoisonError},
};

use llama_cpp_2::{LlamaBackendDeviceType, list_llama_ggml_backend_devices, llama_backend::LlamaBackend};
use llama_cpp_sys_2 as sys;

static BACKEND: LazyLock<LlamaBackend> = LazyLock::new(|| {
    // Before the initialization, whose messages about devices would go to stderr otherwise.
    //
    // llama-cpp-2's `send_logs_to_tracing` does not serve: it drops a line when the subscriber is not interested in its
    // level, so that no error text could be kept, and its callback, an `extern "C"` function, panics (which aborts) on
    // the level NONE.
    // SAFETY: the callback is a plain function that lives as long as the process and takes no user data.
    unsafe {
        sys::llama_log_set(Some(on_log), std::ptr::null_mut());
        sys::ggml_log_set(Some(on_log), std::ptr::null_mut());
    }
    LlamaBackend::init().expect("nothing else in this process initializes llama.cpp")
});
/// First error line of llama.cpp's log since [`forget_errors`]. The first, because the lines after it only say that the
/// callers of what failed have failed too.
static FIRST_ERROR: Mutex<String> = Mutex::new(String::new());
/// Length in characters at which log lines are cut; some hold a whole chat template.
const MAX_LOG_LINE: usize = 1000;

/// Initializes llama.cpp once for the process and sends its log to `tracing`.
pub(super) fn init() {
    LazyLock::force(&BACKEND);
}

unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that is valid during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let mut line = text.trim_end();
    // The loader prints a progress bar of single dots.
    if line.is_empty() || line == "." {
        return;
    }
    if let Some((cut, _)) = line.char_indices().nth(MAX_LOG_LINE) {
        line = &line[..cut];
    }
    match level {
        sys::GGML_LOG_LEVEL_ERROR => {
            tracing::warn!(target: "llama.cpp", "{line}");
            let mut first = FIRST_ERROR.lock().unwrap_or_else(PoisonError::into_inner);
            if first.is_empty() {
                without_functions(line).clone_into(&mut first);
            }
        }
        // llama.cpp warns about much that is no fault of the user, such as a context smaller than the training context.
        sys::GGML_LOG_LEVEL_WARN => tracing::debug!(target: "llama.cpp", "{line}"),
        _ => tracing::trace!(target: "llama.cpp", "{line}"),
    }
}

/// Strips the names of C functions from the front of a log line, and the words "error loading model", which the caller
/// says again.
fn without_functions(mut line: &str) -> &str {
    while let Some((function, text)) = line.split_once(": ")
        && (function == "error loading model" || !function.contains(' '))
    {
        line = text;
    }
    line
}

/// Clears the recorded error before a call, so that [`first_error`] tells of that call alone.
pub(super) fn forget_errors() {
    FIRST_ERROR.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Takes the first error line of llama.cpp's log since [`forget_errors`], or `general` if there was none.
pub(super) fn first_error(general: &str) -> String {
    let first = std::mem::take(&mut *FIRST_ERROR.lock().unwrap_or_else(PoisonError::into_inner));
    if first.is_empty() { general.to_owned() } else { first }
}

/// Returns the versions of llama.cpp and ggml.
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

/// Returns the CPU features that ggml's kernels were compiled for, in ggml's own words.
#[must_use]
pub fn cpu_features() -> String {
    init();
    // SAFETY: returns a pointer to a static buffer, NUL-terminated.
    unsafe { CStr::from_ptr(sys::llama_print_system_info()) }
        .to_string_lossy()
        .trim()
        .to_owned()
}

/// Kind of a [`ComputeDevice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    Cpu,
    /// GPU with its own memory.
    Gpu,
    /// GPU that shares the host's memory.
    IntegratedGpu,
    Accelerator,
}

/// Device that ggml found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ComputeDevice {
    /// Name in ggml, such as `CUDA0`.
    pub name: String,
    /// Product name given by the vendor.
    pub description: String,
    pub kind: DeviceKind,
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// Lists every device, the CPU included.
#[must_use]
pub fn devices() -> Vec<ComputeDevice> {
    init();
    let devices = list_llama_ggml_backend_devices().into_iter();
    devices
        .map(|device| ComputeDevice {
            name: device.name,
            description: device.description,
            kind: match device.device_type {
                LlamaBackendDeviceType::Cpu => DeviceKind::Cpu,
                LlamaBackendDeviceType::Gpu => DeviceKind::Gpu,
                LlamaBackendDeviceType::IntegratedGpu => DeviceKind::IntegratedGpu,
                LlamaBackendDeviceType::Accelerator | LlamaBackendDeviceType::Unknown => DeviceKind::Accelerator,
            },
            free_bytes: device.memory_free as u64,
            total_bytes: device.memory_total as u64,
        })
        .collect()
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
