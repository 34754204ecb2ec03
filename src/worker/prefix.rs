//! Which sequence's KV cache a new prompt continues. Pure.

use crate::llama::Token;

/// What a slot has to offer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer<'a> {
    /// Whether no job uses it.
    pub(super) idle: bool,
    /// Tokens in its KV cache, from position 0 on.
    pub(super) cached: &'a [Token],
    /// Smaller was used longer ago.
    pub(super) last_used: u64,
}

/// Tokens at the front that both have.
pub(super) fn common_prefix(a: &[Token], b: &[Token]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The idle slot that a prompt should take: the one with the longest common prefix if that saves a good part of either
/// side, else the one that was used longest ago (a short match, as a shared system prompt's first line, is not worth
/// destroying a long conversation that will come back).
pub(super) fn choose(offers: &[Offer<'_>], prompt: &[Token]) -> Option<usize> {
    let idle = || offers.iter().enumerate().filter(|(_, offer)| offer.idle);
    let (best, shared) = idle()
        .map(|(slot, offer)| (slot, common_prefix(offer.cached, prompt)))
        .max_by_key(|&(slot, shared)| (shared, std::cmp::Reverse(offers[slot].last_used)))?;
    if shared > 0 && shared * 2 >= offers[best].cached.len().min(prompt.len()) {
        return Some(best);
    }
    idle()
        .min_by_key(|(_, offer)| (!offer.cached.is_empty(), offer.last_used))
        .map(|(slot, _)| slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(idle: bool, cached: &[Token], last_used: u64) -> Offer<'_> {
        Offer {
            idle,
            cached,
            last_used,
        }
    }

    #[test]
    fn the_longest_shared_prefix_wins() {
        let offers = [
            offer(true, &[1, 2], 9),
            offer(true, &[1, 2, 3, 4], 1),
            offer(false, &[1, 2, 3, 4, 5], 2),
        ];
        assert_eq!(choose(&offers, &[1, 2, 3, 4, 5]), Some(1));
    }

    #[test]
    fn a_long_conversation_is_not_destroyed_for_a_short_match() {
        let long: Vec<Token> = (0..100).collect();
        let offers = [offer(true, &long, 5), offer(true, &[], 0)];
        assert_eq!(choose(&offers, &[0, 1, 77, 78, 79, 80, 81]), Some(1));
    }

    #[test]
    fn empty_slots_come_before_old_ones() {
        let offers = [offer(true, &[7; 9], 0), offer(true, &[], 3)];
        assert_eq!(choose(&offers, &[1]), Some(1));
    }

    #[test]
    fn none_is_idle() {
        assert_eq!(choose(&[offer(false, &[], 0)], &[1]), None);
    }
}
