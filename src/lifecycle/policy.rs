//! Decisions over plain data.

use std::time::{Duration, Instant};

use crate::inference::KeepAlive;

/// What eviction looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Requests that use it.
    pub(super) leases: usize,
    /// How long it stays after its last request.
    pub(super) keep_alive: KeepAlive,
    /// Since when nobody uses it.
    pub(super) idle_since: Option<Instant>,
}

/// The resident that makes room: never one in use; of the idle ones that which was asked to stay the shortest, then
/// the one idle longest.
pub(super) fn victim(candidates: &[Candidate]) -> Option<usize> {
    (0..candidates.len())
        .filter(|&index| candidates[index].leases == 0)
        .min_by_key(|&index| (stay(candidates[index].keep_alive), candidates[index].idle_since))
}

/// The resident that takes no new requests, where room is needed and all are in use: as [`victim`], the shortest stay.
pub(super) fn next_to_drain(candidates: &[Candidate]) -> Option<usize> {
    (0..candidates.len()).min_by_key(|&index| stay(candidates[index].keep_alive))
}

fn stay(keep_alive: KeepAlive) -> Duration {
    match keep_alive {
        KeepAlive::For(time) => time,
        KeepAlive::Forever => Duration::MAX,
    }
}

/// When an idle resident is to go; `None` is never.
pub(super) fn expires(idle_since: Instant, keep_alive: KeepAlive) -> Option<Instant> {
    match keep_alive {
        KeepAlive::Forever => None,
        // A time too far away for the clock is as good as forever.
        KeepAlive::For(time) => idle_since.checked_add(time),
    }
}

/// Compute threads of each worker that decodes: the cores are shared out, since oversubscribed threads spin against
/// each other and cost ten to a hundred times.
pub(super) fn thread_grant(cores: u32, decoding: usize) -> u32 {
    (cores / u32::try_from(decoding.max(1)).unwrap_or(u32::MAX)).max(1)
}

/// Loads in a row that died, after which a model is refused for a while.
pub(super) const DEATHS_TO_QUARANTINE: u32 = 3;
/// How long it is refused.
pub(super) const QUARANTINE: Duration = Duration::from_secs(60);

/// Sequences that a model decodes at once where nobody said: as many as fit into a modest KV cache, four at most.
#[must_use]
pub fn default_parallel(kv_bytes_per_token: u64, context_length: u32) -> u32 {
    /// What several sequences may take together beside the weights.
    const BUDGET_BYTES: u64 = 2 << 30;
    let per_sequence = kv_bytes_per_token.saturating_mul(u64::from(context_length)).max(1);
    u32::try_from(BUDGET_BYTES / per_sequence).unwrap_or(4).clamp(1, 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(leases: usize, seconds: u64, idle_since: Instant) -> Candidate {
        Candidate {
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
        let forever = Candidate {
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
