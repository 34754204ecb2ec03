//! Choosing a token from logits.

use llama_cpp_2::token::{
    LlamaToken, data::LlamaTokenData, data_array::LlamaTokenDataArray, logit_bias::LlamaLogitBias,
};
// Its constructors of stages are all that is used outside; a grammar goes through `GrammarSampler`.
pub use llama_cpp_2::sampling::LlamaSampler;

use super::TokenId;

/// Chain of llama.cpp's samplers; each sees what the one before left, and the last one selects.
#[derive(Debug)]
pub struct SamplerChain {
    chain: LlamaSampler,
}

impl SamplerChain {
    #[must_use]
    pub fn new(stages: Vec<LlamaSampler>) -> Self {
        let no_perf = true;
        Self {
            chain: LlamaSampler::chain(stages, no_perf),
        }
    }

    /// Applies the chain and returns the selected token, or `None` if nothing was left to select from.
    pub fn sample(&mut self, candidates: &mut TokenCandidates) -> Option<TokenId> {
        candidates.array.apply_sampler(&mut self.chain);
        candidates.array.selected_token().map(|token| token.0)
    }

    /// Tells the chain which token was chosen, so that penalties see it.
    pub fn accept(&mut self, token: TokenId) {
        self.chain.accept(LlamaToken(token));
    }
}

/// Returns a sampler that adds biases to the logits of some tokens; ids outside the vocabulary do nothing.
#[must_use]
pub fn logit_bias(vocab_size: usize, biases: &[(TokenId, f32)]) -> LlamaSampler {
    let vocab_size = i32::try_from(vocab_size).unwrap_or(i32::MAX);
    let biases: Vec<_> = biases
        .iter()
        .filter(|(token, _)| (0..vocab_size).contains(token))
        .map(|&(token, bias)| LlamaLogitBias::new(LlamaToken(token), bias))
        .collect();
    LlamaSampler::logit_bias(vocab_size, &biases)
}

/// Candidate tokens with their logits. The buffer is reused from token to token: a vocabulary's worth of candidates is
/// half a megabyte to three megabytes.
pub struct TokenCandidates {
    pub(super) array: LlamaTokenDataArray,
}

impl Default for TokenCandidates {
    fn default() -> Self {
        Self {
            array: LlamaTokenDataArray::new(Vec::new(), false),
        }
    }
}

impl std::fmt::Debug for TokenCandidates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCandidates")
            .field("len", &self.array.data.len())
            .finish()
    }
}

fn candidate((id, &logit): (usize, &f32)) -> LlamaTokenData {
    LlamaTokenData::new(LlamaToken(id as TokenId), logit, 0.0)
}

impl TokenCandidates {
    fn refill(&mut self, candidates: impl Iterator<Item = LlamaTokenData>) {
        self.array.data.clear();
        self.array.data.extend(candidates);
        // Samplers trust both: a stale `sorted` would make top-k cut off the best tokens.
        self.array.selected = None;
        self.array.sorted = false;
    }

    /// Refills the buffer with one token.
    pub fn fill_one(&mut self, token: TokenId) {
        self.refill([LlamaTokenData::new(LlamaToken(token), 0.0, 0.0)].into_iter());
    }

    /// Refills the buffer with all tokens.
    pub fn fill_all(&mut self, logits: &[f32]) {
        self.refill(logits.iter().enumerate().map(candidate));
    }

    /// Refills the buffer with the tokens that `allowed` admits.
    pub fn fill(&mut self, logits: &[f32], allowed: impl Fn(usize) -> bool) {
        self.refill(logits.iter().enumerate().filter(|&(id, _)| allowed(id)).map(candidate));
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.array.data.is_empty()
    }

    /// Returns the first of the most probable candidates; NaN never wins.
    #[must_use]
    pub fn best(&self) -> Option<TokenId> {
        let mut best: Option<&LlamaTokenData> = None;
        for candidate in &self.array.data {
            let largest = best.map_or(f32::NEG_INFINITY, LlamaTokenData::logit);
            if candidate.logit() > largest {
                best = Some(candidate);
            }
        }
        best.map(|candidate| candidate.id().0)
    }

    /// Removes the candidates that a grammar has ruled out by a logit of negative infinity.
    pub(super) fn drop_impossible(&mut self) {
        self.array
            .data
            .retain(|candidate| candidate.logit() > f32::NEG_INFINITY);
    }
}

/// Returns the natural logarithms of softmax probabilities: of `token`, and of the `top` best tokens, best first.
#[must_use]
pub fn log_softmax_of(logits: &[f32], token: TokenId, top: usize) -> (f32, Vec<(TokenId, f32)>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let log_sum = sum.ln() as f32 + max;
    let chosen = usize::try_from(token)
        .ok()
        .and_then(|id| logits.get(id))
        .map_or(f32::NEG_INFINITY, |l| l - log_sum);
    let mut best: Vec<(TokenId, f32)> = Vec::with_capacity(top + 1);
    if top > 0 {
        for (id, &logit) in logits.iter().enumerate() {
            if best.len() < top || best.last().is_some_and(|&(_, worst)| logit > worst) {
                let place = best.partition_point(|&(_, other)| other >= logit);
                best.insert(place, (id as TokenId, logit));
                best.truncate(top);
            }
        }
    }
    // Infinity and NaN have no spelling in JSON; a broken model must not break the frame that carries its answer.
    let finite = |value: f32| if value.is_finite() { value } else { f32::MIN };
    (
        finite(chosen),
        best.into_iter()
            .map(|(id, logit)| (id, finite(logit - log_sum)))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_softmax_sums_to_one_and_sorts() {
        let logits = [1.0, 3.0, 2.0, -1.0];
        let (chosen, top) = log_softmax_of(&logits, 2, 4);
        assert_eq!(top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 2, 0, 3]);
        assert!((top.iter().map(|&(_, l)| l.exp()).sum::<f32>() - 1.0).abs() < 1e-5);
        assert!((chosen - top[1].1).abs() < 1e-6);
    }

    #[test]
    fn a_greedy_chain_takes_the_best_allowed_token() {
        let mut chain = SamplerChain::new(vec![LlamaSampler::greedy()]);
        let mut candidates = TokenCandidates::default();
        candidates.fill(&[0.0, 9.0, 5.0], |id| id != 1);
        assert_eq!(chain.sample(&mut candidates), Some(2));
    }

    #[test]
    fn a_refilled_buffer_remembers_nothing_and_keeps_its_memory() {
        let mut chain = SamplerChain::new(vec![LlamaSampler::top_k(2), LlamaSampler::greedy()]);
        let mut candidates = TokenCandidates::default();
        let logits: Vec<f32> = (0..1000).map(|id| id as f32).collect();
        candidates.fill_all(&logits);
        let memory = candidates.array.data.as_ptr();
        assert_eq!(chain.sample(&mut candidates), Some(999));
        candidates.fill_all(&logits.iter().map(|logit| -logit).collect::<Vec<_>>());
        assert_eq!(chain.sample(&mut candidates), Some(0));
        assert_eq!(candidates.array.data.as_ptr(), memory);
    }

    #[test]
    fn a_bias_outside_the_vocabulary_does_nothing() {
        let biases = [(1, -100.0), (-1, 5.0), (3, 5.0)];
        let mut chain = SamplerChain::new(vec![logit_bias(3, &biases), LlamaSampler::greedy()]);
        let mut candidates = TokenCandidates::default();
        candidates.fill_all(&[0.0, 9.0, 5.0]);
        assert_eq!(chain.sample(&mut candidates), Some(2));
    }
}
