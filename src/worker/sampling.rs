//! From logits to a token, as the request wants it.

use super::{constraint::Constraint, protocol::SamplerSettings};
use crate::llama::{Candidates, Model, SamplerChain, Token};

/// The sampler of one answer.
#[derive(Debug)]
pub(super) struct Sampler {
    /// `None` is plain greedy: the best logit, no chain needed.
    chain: Option<SamplerChain>,
    constraint: Option<Constraint>,
}

/// The seed that makes llama.cpp choose one at random.
const RANDOM_SEED: u32 = u32::MAX;

impl Sampler {
    /// A sampler that has seen the prompt's last tokens.
    pub(super) fn new(
        model: &Model,
        settings: &SamplerSettings,
        constraint: Option<Constraint>,
        context: u32,
        prompt: &[Token],
    ) -> Result<Self, String> {
        let penalised = settings.repeat_last_n != 0
            && (settings.repeat_penalty != 1.0
                || settings.frequency_penalty != 0.0
                || settings.presence_penalty != 0.0);
        let greedy = settings.temperature <= 0.0;
        let chain = if greedy && !penalised {
            None
        } else {
            let mut chain = SamplerChain::new().ok_or("no memory for a sampler")?;
            // A window beyond the context would only be memory that a client makes us allocate.
            let last_n = u32::try_from(settings.repeat_last_n).map_or(context, |n| n.min(context)) as i32;
            if penalised {
                chain.penalties(
                    model.vocab_size() as i32,
                    last_n,
                    settings.repeat_penalty,
                    settings.frequency_penalty,
                    settings.presence_penalty,
                );
            }
            if greedy {
                chain.greedy();
            } else {
                chain.top_k(settings.top_k);
                if settings.typical_p < 1.0 {
                    chain.typical(settings.typical_p);
                }
                if settings.top_p < 1.0 {
                    chain.top_p(settings.top_p);
                }
                if settings.min_p > 0.0 {
                    chain.min_p(settings.min_p);
                }
                chain.temperature(settings.temperature);
                chain.distribution(settings.seed.unwrap_or(RANDOM_SEED));
            }
            if penalised {
                let tail = prompt.len().saturating_sub(usize::try_from(last_n).unwrap_or(0));
                for &token in &prompt[tail..] {
                    chain.accept(token);
                }
            }
            Some(chain)
        };
        Ok(Self { chain, constraint })
    }

    /// Chooses the next token. The second value is `false` when a constraint says that the answer is complete with it.
    pub(super) fn sample(&mut self, logits: &[f32], candidates: &mut Candidates) -> Result<(Token, bool), String> {
        let token = match (&mut self.constraint, &mut self.chain) {
            (None, None) => best_of_all(logits),
            (None, Some(chain)) => {
                candidates.fill_all(logits);
                chain.sample(candidates)
            }
            (Some(constraint), chain) => {
                let mask = constraint.mask()?;
                let allowed = |id: usize| id < mask.len() && mask.is_allowed(id as u32);
                match chain {
                    None => best(logits.iter().copied().enumerate().filter(|&(id, _)| allowed(id))),
                    Some(chain) => {
                        candidates.fill(logits, allowed);
                        chain.sample(candidates)
                    }
                }
            }
        };
        let token = token.ok_or("no token is left to choose from")?;
        if let Some(chain) = &mut self.chain {
            chain.accept(token);
        }
        let goes_on = match &mut self.constraint {
            Some(constraint) => constraint.accept(token)?,
            None => true,
        };
        Ok((token, goes_on))
    }
}

/// The first of the largest logits; NaN never wins. Two passes, since the first is one that vectorises.
fn best_of_all(logits: &[f32]) -> Option<Token> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits
        .iter()
        .position(|&logit| logit == largest && logit > f32::NEG_INFINITY)
        .map(|id| id as Token)
}

/// The same of some of them.
fn best(logits: impl Iterator<Item = (usize, f32)>) -> Option<Token> {
    let mut best = None;
    let mut largest = f32::NEG_INFINITY;
    for (id, logit) in logits {
        if logit > largest {
            (best, largest) = (Some(id as Token), logit);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::{best, best_of_all};

    #[test]
    fn greedy_takes_the_first_of_the_best_and_never_nan() {
        assert_eq!(best([1.0, f32::NAN, 3.0, 3.0].into_iter().enumerate()), Some(2));
        assert_eq!(best([f32::NAN].into_iter().enumerate()), None);
        assert_eq!(best_of_all(&[1.0, f32::NAN, 3.0, 3.0]), Some(2));
        assert_eq!(best_of_all(&[f32::NAN, f32::NEG_INFINITY]), None);
    }
}
