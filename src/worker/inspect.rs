//! Capabilities of this build and this machine, for `hubllama doctor`. Runs in the process of the command line, never
//! in the daemon.

use std::{fs, path::Path};

use crate::llama::{self, ComputeDevice};

/// Build options of llama.cpp and the devices that it found.
#[derive(Clone, Debug)]
pub struct BuildReport {
    /// Versions of llama.cpp and ggml.
    pub engine: String,
    /// CPU features that ggml's kernels were compiled for.
    pub cpu_features: String,
    /// Names of the GPU back ends that were compiled in, which are cargo features.
    pub gpu_backends: Vec<&'static str>,
    pub devices: Vec<ComputeDevice>,
    /// Vendors of the GPUs that the kernel knows, whether this build can use them or not.
    pub machine_gpus: Vec<&'static str>,
}

/// Collects the report from llama.cpp and the kernel.
#[must_use]
pub fn build_report() -> BuildReport {
    let backends = [
        ("cuda", cfg!(feature = "cuda")),
        ("vulkan", cfg!(feature = "vulkan")),
        ("rocm", cfg!(feature = "rocm")),
        ("metal", cfg!(feature = "metal")),
    ];
    BuildReport {
        engine: llama::version(),
        cpu_features: llama::cpu_features(),
        gpu_backends: backends
            .into_iter()
            .filter_map(|(name, built)| built.then_some(name))
            .collect(),
        devices: llama::devices(),
        machine_gpus: machine_gpus(Path::new("/sys/class/drm")),
    }
}

/// Returns the GPU vendors by the PCI vendor ids that the kernel shows.
fn machine_gpus(drm: &Path) -> Vec<&'static str> {
    let mut found = Vec::new();
    let entries = fs::read_dir(drm).into_iter().flatten().filter_map(Result::ok);
    for entry in entries {
        let vendor = fs::read_to_string(entry.path().join("device/vendor")).unwrap_or_default();
        found.extend(match vendor.trim() {
            "0x10de" => Some("NVIDIA"),
            "0x1002" => Some("AMD"),
            "0x8086" => Some("Intel"),
            _ => None,
        });
    }
    // A container may have NVIDIA's driver without DRM devices.
    if Path::new("/proc/driver/nvidia/version").exists() {
        found.push("NVIDIA");
    }
    found.sort_unstable();
    found.dedup();
    found
}
