//! Decisions of the lifecycle task as pure functions: eviction, expiry, thread grants, the default number of sequences.

use std::time::{Duration, Instant};

use crate::inference::KeepAlive;

/// Properties of a ready model that eviction decides on.
#[derive(Clone, Copy, Debug)]
pub(super) struct EvictionCandidate {
    /// Requests that use the model.
    pub(super) leases: usize,
    pub(super) keep_alive: KeepAlive,
    /// Start of the current idle period; `None` while the model is in use.
    pub(super) idle_since: Option<Instant>,
}

/// Returns the index of the model to evict: of the idle models the one with the shortest keep-alive, among equals the
/// one that has been idle longest. `None` if all are in use.
pub(super) fn victim(candidates: &[EvictionCandidate]) -> Option<usize> {
    (0..candidates.len())
        .filter(|&index| candidates[index].leases == 0)
        .min_by_key(|&index| {
            (
                // A client that sets a short keep-alive does not expect to need the model for long.
                keep_alive_time(candidates[index].keep_alive),
                candidates[index].idle_since,
            )
        })
}

/// Returns the index of the model that stops taking requests when all are in use and another model needs room: the one
/// with the shortest keep-alive.
pub(super) fn next_to_drain(candidates: &[EvictionCandidate]) -> Option<usize> {
    (0..candidates.len()).min_by_key(|&index| keep_alive_time(candidates[index].keep_alive))
}

fn keep_alive_time(keep_alive: KeepAlive) -> Duration {
    match keep_alive {
        KeepAlive::For(time) => time,
        KeepAlive::Forever => Duration::MAX,
    }
}

/// Returns the time at which a model that has been idle since `idle_since` is unloaded; `None` if never.
pub(super) fn expires(idle_since: Instant, keep_alive: KeepAlive) -> Option<Instant> {
    match keep_alive {
        KeepAlive::Forever => None,
        // An addition that overflows the clock is as good as forever.
        KeepAlive::For(time) => idle_since.checked_add(time),
    }
}

/// Returns the number of compute threads for each of the models in use. The cores are divided, since ggml's threads
/// spin while they wait for each other: with more threads than cores decoding becomes ten to a hundred times slower.
pub(super) fn thread_grant(cores: u32, decoding: usize) -> u32 {
    (cores / u32::try_from(decoding.max(1)).unwrap_or(u32::MAX)).max(1)
}

/// Consecutive loads that died after which a model is put into quarantine.
pub(super) const DEATHS_TO_QUARANTINE: u32 = 3;
/// Duration of a model's quarantine after the last death.
pub(super) const QUARANTINE: Duration = Duration::from_secs(60);

/// Returns the number of sequences that a model decodes at once if no setting says otherwise: as many as fit into a KV
/// cache of 2 GiB, at least one, at most four.
#[must_use]
pub fn default_parallel(kv_bytes_per_token: u64, context_length: u32) -> u32 {
    /// Bytes of KV cache for all sequences together.
    const BUDGET_BYTES: u64 = 2 << 30;
    let per_sequence = kv_bytes_per_token.saturating_mul(u64::from(context_length)).max(1);
    u32::try_from(BUDGET_BYTES / per_sequence).unwrap_or(4).clamp(1, 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(leases: usize, seconds: u64, idle_since: Instant) -> EvictionCandidate {
        EvictionCandidate {
            leases,
            keep_alive: KeepAlive::For(Duration::from_secs(seconds)),
            idle_since: (leases == 0).then_some(idle_since),
        }
    }

    #[test]
    fn nobody_in_use_is_evicted() {
        let now = Instant::now();
        assert_eq!(victim(&[candidate(1, 0, now), candidate(2, 300, now)]), None);
        assert_eq!(victim(&[candidate(1, 0, now), candidate(0, 300, now)]), Some(1));
    }

    #[test]
    fn the_shortest_stay_goes_first_then_the_longest_idle() {
        let now = Instant::now();
        let later = now + Duration::from_secs(9);
        let forever = EvictionCandidate {
            keep_alive: KeepAlive::Forever,
            ..candidate(0, 0, now)
        };
        assert_eq!(
            victim(&[forever, candidate(0, 300, now), candidate(0, 60, later)]),
            Some(2)
        );
        assert_eq!(victim(&[candidate(0, 60, later), candidate(0, 60, now)]), Some(1));
    }

    #[test]
    fn cores_are_shared_and_never_zero() {
        assert_eq!(thread_grant(8, 0), 8);
        assert_eq!(thread_grant(8, 3), 2);
        assert_eq!(thread_grant(2, 5), 1);
    }

    #[test]
    fn a_huge_keep_alive_is_forever() {
        assert_eq!(expires(Instant::now(), KeepAlive::For(Duration::MAX)), None);
    }

    #[test]
    fn large_models_decode_one_sequence_small_ones_four() {
        assert_eq!(default_parallel(22_500, 4096), 4);
        assert_eq!(default_parallel(512 << 10, 4096), 1);
        assert_eq!(default_parallel(128 << 10, 8192), 2);
    }
}
