//! Number of compute threads.

use std::{collections::HashSet, fs, num::NonZero, path::Path, thread};

/// Returns the default number of compute threads: one for each physical core that this process may use. Two threads on
/// one core would spin against each other. With one or two logical processors all are used, since such a machine is
/// mostly a small virtual one that reports its cores as siblings.
#[must_use]
pub fn compute_threads() -> u32 {
    let logical = thread::available_parallelism().map_or(1, NonZero::get);
    let physical = physical_cores(Path::new("/sys/devices/system/cpu")).unwrap_or(logical);
    u32::try_from(choose(logical, physical)).unwrap_or(1)
}

fn choose(logical: usize, physical: usize) -> usize {
    // A container may have fewer processors than the machine has cores.
    if logical <= 2 {
        logical
    } else {
        physical.clamp(1, logical)
    }
}

fn physical_cores(root: &Path) -> Option<usize> {
    // The hardware threads of one core all list the same siblings, so that each core has one distinct text.
    let cores: HashSet<String> = fs::read_dir(root)
        .ok()?
        .filter_map(Result::ok)
        .filter_map(|entry| fs::read_to_string(entry.path().join("topology/thread_siblings_list")).ok())
        .collect();
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physical_cores_count_but_small_machines_use_all() {
        for (logical, physical, expected) in [(1, 1, 1), (2, 1, 2), (8, 4, 4), (4, 64, 4), (16, 16, 16)] {
            assert_eq!(choose(logical, physical), expected, "{logical} {physical}");
        }
    }

    #[test]
    fn siblings_are_one_core() {
        let root = tempfile::tempdir().expect("a folder");
        for (cpu, siblings) in [("cpu0", "0,2"), ("cpu1", "1,3"), ("cpu2", "0,2"), ("cpu3", "1,3")] {
            let folder = root.path().join(cpu).join("topology");
            fs::create_dir_all(&folder).expect("folders");
            fs::write(folder.join("thread_siblings_list"), siblings).expect("a file");
        }
        fs::create_dir_all(root.path().join("cpufreq")).expect("a folder");
        assert_eq!(physical_cores(root.path()), Some(2));
    }
}
