//! Picking one token from a row of logits, with a chain of samplers or greedily.
//!
//! Unconstrained answers pick among the whole vocabulary; constraints fill the candidates first and pick among those.
//! Both [`sampling`](super::sampling) and [`constraint`](super::constraint) use this, so that a request's samplers act
//! alike in both.

use crate::llama::{SamplerChain, TokenCandidates, TokenId};

/// Picks a token from the whole vocabulary; `None` if no logit is larger than negative infinity.
pub(super) fn pick_from_all(
    logits: &[f32],
    chain: Option<&mut SamplerChain>,
    candidates: &mut TokenCandidates,
) -> Option<TokenId> {
    match chain {
        // Greedy answers need no candidates: one pass over the logits instead of a copy of some 50,000 to 250,000 of
        // them.
        None => largest_of_all(logits),
        Some(chain) => {
            candidates.fill_all(logits);
            chain.sample(candidates)
        }
    }
}

/// Picks a token from the candidates that are left; `None` if none is.
pub(super) fn pick_from(candidates: &mut TokenCandidates, chain: Option<&mut SamplerChain>) -> Option<TokenId> {
    match chain {
        None => candidates.best(),
        Some(chain) => chain.sample(candidates),
    }
}

/// Returns the first of the largest logits; NaN never wins.
fn largest_of_all(logits: &[f32]) -> Option<TokenId> {
    // Two passes, since a fold over `f32::max` is vectorized and one that keeps the index is not.
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits
        .iter()
        .position(|&logit| logit == largest && logit > f32::NEG_INFINITY)
        .map(|id| id as TokenId)
}

#[cfg(test)]
mod tests {
    use super::largest_of_all;

    #[test]
    fn greedy_takes_the_first_of_the_best_and_never_nan() {
        assert_eq!(largest_of_all(&[1.0, f32::NAN, 3.0, 3.0]), Some(2));
        assert_eq!(largest_of_all(&[f32::NAN, f32::NEG_INFINITY]), None);
    }
}
