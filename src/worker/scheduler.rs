//! Distribution of a batch's tokens over the slots. Pure.
//!
//! One decode step computes one batch, in which generating sequences have one token each and prompts as many as are
//! left. A large prompt makes a slow step, so [`PrefillPace`] learns how much of it fits into a step that others wait
//! for.

use std::time::Duration;

/// Tokens that a slot could use in the next decode step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotDemand {
    /// Number of prompt tokens that are not in the KV cache yet.
    pub(super) prefill: usize,
    /// True when there is a sampled token to decode; never together with `prefill`.
    pub(super) decode: bool,
    /// Order of arrival; smaller came earlier.
    pub(super) arrival: u64,
}

/// BatchLimits of one decode step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchLimits {
    /// Largest number of tokens in one batch.
    pub(super) batch: usize,
    /// Largest number of prompt tokens in one batch while other sequences are generating.
    pub(super) prefill_beside_decode: usize,
}

/// Returns the number of tokens that each slot gets. Sequences that generate come first, one token each, so that a long
/// prompt never stops them; the rest of the batch goes to prompts in order of arrival, which gets the first of them
/// started soonest.
pub(super) fn plan_batch(demands: &[SlotDemand], limits: BatchLimits) -> Vec<usize> {
    let mut grants = vec![0; demands.len()];
    let mut left = limits.batch;
    for (grant, demand) in grants.iter_mut().zip(demands) {
        if demand.decode && left > 0 {
            *grant = 1;
            left -= 1;
        }
    }
    if left < limits.batch {
        left = left.min(limits.prefill_beside_decode);
    }
    let mut waiting: Vec<usize> = (0..demands.len()).filter(|&slot| demands[slot].prefill > 0).collect();
    waiting.sort_by_key(|&slot| demands[slot].arrival);
    for slot in waiting {
        grants[slot] = demands[slot].prefill.min(left);
        left -= grants[slot];
    }
    grants
}

/// Estimator of the number of prompt tokens that fit into a step without making other sequences' next token late.
#[derive(Clone, Copy, Debug)]
pub(super) struct PrefillPace {
    seconds_per_token: f64,
}

impl PrefillPace {
    /// Longest time by which a prompt may delay other sequences' next token.
    const STEP_SECONDS: f64 = 0.1;
    /// Smallest number of prompt tokens in a step: a prompt has to advance on the slowest machine, too.
    const SMALLEST: usize = 16;

    pub(super) fn new() -> Self {
        // A careful guess, 64 tokens a step, until something was measured.
        Self {
            seconds_per_token: Self::STEP_SECONDS / 64.0,
        }
    }

    /// Takes the measured duration of a step into account.
    pub(super) fn observe(&mut self, prompt_tokens: usize, took: Duration) {
        // Small steps are dominated by fixed costs and would make the estimate too low.
        if prompt_tokens >= Self::SMALLEST {
            let measured = took.as_secs_f64() / prompt_tokens as f64;
            self.seconds_per_token = 0.7 * self.seconds_per_token + 0.3 * measured;
        }
    }

    /// Returns the number of prompt tokens for a step in which other sequences generate.
    pub(super) fn beside_decode(&self, batch: usize) -> usize {
        let fits = (Self::STEP_SECONDS / self.seconds_per_token.max(1e-9)) as usize;
        fits.clamp(Self::SMALLEST.min(batch), batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BatchLimits = BatchLimits {
        batch: 512,
        prefill_beside_decode: 64,
    };

    fn prefill(tokens: usize, arrival: u64) -> SlotDemand {
        SlotDemand {
            prefill: tokens,
            decode: false,
            arrival,
        }
    }

    fn decode() -> SlotDemand {
        SlotDemand {
            decode: true,
            ..SlotDemand::default()
        }
    }

    #[test]
    fn a_lone_prompt_gets_the_whole_batch() {
        assert_eq!(plan_batch(&[prefill(2000, 0)], LIMITS), [512]);
    }

    #[test]
    fn a_long_prompt_does_not_stop_the_others() {
        assert_eq!(plan_batch(&[decode(), prefill(2000, 1), decode()], LIMITS), [1, 64, 1]);
    }

    #[test]
    fn prompts_are_served_in_order_of_arrival() {
        assert_eq!(plan_batch(&[prefill(500, 7), prefill(500, 3)], LIMITS), [12, 500]);
    }

    #[test]
    fn a_full_batch_of_generating_sequences_leaves_nothing() {
        let limits = BatchLimits {
            batch: 2,
            prefill_beside_decode: 64,
        };
        assert_eq!(
            plan_batch(&[decode(), decode(), decode(), prefill(5, 0)], limits),
            [1, 1, 0, 0]
        );
    }

    #[test]
    fn idle_slots_get_nothing() {
        assert_eq!(plan_batch(&[SlotDemand::default(), prefill(3, 0)], LIMITS), [0, 3]);
    }

    #[test]
    fn the_pace_follows_what_was_measured() {
        let mut pace = PrefillPace::new();
        for _ in 0..50 {
            pace.observe(512, Duration::from_millis(256));
        }
        assert!(
            (150..=250).contains(&pace.beside_decode(512)),
            "{}",
            pace.beside_decode(512)
        );
        for _ in 0..50 {
            pace.observe(512, Duration::from_secs(60));
        }
        assert_eq!(pace.beside_decode(512), PrefillPace::SMALLEST);
    }
}
