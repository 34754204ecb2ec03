//! Choosing a token from logits.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::TokenId;

/// A chain of llama.cpp's samplers, in the order in which they were added.
#[derive(Debug)]
pub struct SamplerChain {
    raw: NonNull<sys::llama_sampler>,
}

// SAFETY: a chain has no thread affinity and is used through `&mut self`.
unsafe impl Send for SamplerChain {}

impl SamplerChain {
    /// An empty chain; `None` if llama.cpp has no memory.
    #[must_use]
    pub fn new() -> Option<Self> {
        // SAFETY: no preconditions.
        let raw = unsafe {
            let mut params = sys::llama_sampler_chain_default_params();
            params.no_perf = true;
            sys::llama_sampler_chain_init(params)
        };
        NonNull::new(raw).map(|raw| Self { raw })
    }

    fn add(&mut self, sampler: *mut sys::llama_sampler) {
        if !sampler.is_null() {
            // SAFETY: the chain takes ownership of the sampler.
            unsafe { sys::llama_sampler_chain_add(self.raw.as_ptr(), sampler) };
        }
    }

    /// Repetition, frequency and presence penalties over the last `last_n` accepted tokens.
    pub fn penalties(&mut self, vocab_size: i32, last_n: i32, repeat: f32, frequency: f32, presence: f32) {
        // SAFETY: plain values.
        self.add(unsafe { sys::llama_sampler_init_penalties(vocab_size, last_n, repeat, frequency, presence) });
    }

    /// Keeps the `k` most probable tokens; `k` ≤ 0 keeps all.
    pub fn top_k(&mut self, k: i32) {
        // SAFETY: plain values.
        self.add(unsafe { sys::llama_sampler_init_top_k(k) });
    }

    /// Locally typical sampling.
    pub fn typical(&mut self, p: f32) {
        // SAFETY: plain values.
        self.add(unsafe { sys::llama_sampler_init_typical(p, 1) });
    }

    /// Nucleus sampling.
    pub fn top_p(&mut self, p: f32) {
        // SAFETY: plain values.
        self.add(unsafe { sys::llama_sampler_init_top_p(p, 1) });
    }

    /// Keeps tokens with at least `p` times the best one's probability.
    pub fn min_p(&mut self, p: f32) {
        // SAFETY: plain values.
        self.add(unsafe { sys::llama_sampler_init_min_p(p, 1) });
    }

    /// Divides logits by the temperature.
    pub fn temperature(&mut self, temperature: f32) {
        // SAFETY: plain values.
        self.add(unsafe { sys::llama_sampler_init_temp(temperature) });
    }

    /// Adds a bias to the logits of some tokens; ids outside the vocabulary do nothing.
    pub fn logit_bias(&mut self, vocab_size: i32, biases: &[(TokenId, f32)]) {
        let biases: Vec<sys::llama_logit_bias> = biases
            .iter()
            .filter(|(token, _)| (0..vocab_size).contains(token))
            .map(|&(token, bias)| sys::llama_logit_bias { token, bias })
            .collect();
        let count = i32::try_from(biases.len()).unwrap_or(0);
        // SAFETY: the list has `count` entries and is copied.
        self.add(unsafe { sys::llama_sampler_init_logit_bias(vocab_size, count, biases.as_ptr()) });
    }

    /// Chooses the most probable token.
    pub fn greedy(&mut self) {
        // SAFETY: plain values.
        self.add(unsafe { sys::llama_sampler_init_greedy() });
    }

    /// Chooses at random by probability.
    pub fn distribution(&mut self, seed: u32) {
        // SAFETY: plain values.
        self.add(unsafe { sys::llama_sampler_init_dist(seed) });
    }

    /// Applies the chain and returns the chosen token, or `None` if nothing was left to choose from.
    pub fn sample(&mut self, candidates: &mut TokenCandidates) -> Option<TokenId> {
        let mut array = candidates.raw();
        // SAFETY: the array describes `candidates`, which outlives the call; samplers may reorder and shorten it.
        unsafe { sys::llama_sampler_apply(self.raw.as_ptr(), &raw mut array) };
        let selected = usize::try_from(array.selected)
            .ok()
            .filter(|&index| index < array.size)?;
        candidates.data.get(selected).map(|candidate| candidate.id)
    }

    /// Tells the chain which token was chosen, so that penalties see it.
    pub fn accept(&mut self, token: TokenId) {
        // SAFETY: the chain holds no grammar, so any id is fine.
        unsafe { sys::llama_sampler_accept(self.raw.as_ptr(), token) };
    }
}

impl Drop for SamplerChain {
    fn drop(&mut self) {
        // SAFETY: the pointer is owned, the samplers in it too.
        unsafe { sys::llama_sampler_free(self.raw.as_ptr()) };
    }
}

/// Candidate tokens with their logits; the buffer is reused from token to token.
#[derive(Default)]
pub struct TokenCandidates {
    data: Vec<sys::llama_token_data>,
}

impl std::fmt::Debug for TokenCandidates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCandidates")
            .field("len", &self.data.len())
            .finish()
    }
}

impl TokenCandidates {
    pub(super) fn raw(&mut self) -> sys::llama_token_data_array {
        sys::llama_token_data_array {
            data: self.data.as_mut_ptr(),
            size: self.data.len(),
            selected: -1,
            sorted: false,
        }
    }

    /// Refills the buffer with one token.
    pub fn fill_one(&mut self, token: TokenId) {
        self.data.clear();
        self.data.push(sys::llama_token_data {
            id: token,
            logit: 0.0,
            p: 0.0,
        });
    }

    /// Whether no candidate is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The first of the most probable candidates; NaN never wins.
    #[must_use]
    pub fn best(&self) -> Option<TokenId> {
        let mut best: Option<&sys::llama_token_data> = None;
        for candidate in &self.data {
            let largest = best.map_or(f32::NEG_INFINITY, |best| best.logit);
            if candidate.logit > largest {
                best = Some(candidate);
            }
        }
        best.map(|candidate| candidate.id)
    }

    /// Takes out the candidates that a grammar has ruled out.
    pub(super) fn drop_impossible(&mut self) {
        self.data.retain(|candidate| candidate.logit > f32::NEG_INFINITY);
    }

    /// Refills the buffer with all tokens.
    pub fn fill_all(&mut self, logits: &[f32]) {
        self.data.clear();
        let candidate = |(id, &logit): (usize, &f32)| sys::llama_token_data {
            id: id as TokenId,
            logit,
            p: 0.0,
        };
        self.data.extend(logits.iter().enumerate().map(candidate));
    }

    /// Refills the buffer with the tokens that `allowed` admits.
    pub fn fill(&mut self, logits: &[f32], allowed: impl Fn(usize) -> bool) {
        self.data.clear();
        self.data.extend(
            logits
                .iter()
                .enumerate()
                .filter(|&(id, _)| allowed(id))
                .map(|(id, &logit)| sys::llama_token_data {
                    id: id as TokenId,
                    logit,
                    p: 0.0,
                }),
        );
    }
}

/// Natural logarithms of softmax probabilities: of `token`, and of the `top` best tokens, best first.
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
        let mut chain = SamplerChain::new().expect("memory");
        chain.greedy();
        let mut candidates = TokenCandidates::default();
        candidates.fill(&[0.0, 9.0, 5.0], |id| id != 1);
        assert_eq!(chain.sample(&mut candidates), Some(2));
    }
}
