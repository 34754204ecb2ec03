//! Choice of the slot for a new prompt, so that as much as possible of the prompt is in the slot's KV cache already.
//! Pure.

use crate::llama::TokenId;

/// State of a slot that matters for the choice.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotOffer<'a> {
    /// True when no job uses the slot.
    pub(super) idle: bool,
    /// Tokens in the slot's KV cache, from position 0 on.
    pub(super) cached: &'a [TokenId],
    /// Time of the last use, in jobs.
    pub(super) last_used: u64,
}

/// Returns the number of tokens that both have in common at the front.
pub(super) fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Number of tokens that a busy sequence must have in common with a prompt, beyond what idle ones have, for a copy to
/// pay.
const WORTH_A_COPY: usize = 64;

/// Slot that a prompt was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotChoice {
    /// Index of the idle slot that the prompt takes.
    pub(super) slot: usize,
    /// Index of the busy slot whose cache is copied there first.
    pub(super) copy_from: Option<usize>,
}

/// Chooses the idle slot that a prompt takes; `None` if no slot is idle.
///
/// It is the slot with the longest common prefix if that is a good part of either side, otherwise the one that was used
/// longest ago: a short match, such as the first line of a shared system prompt, is not worth destroying a long
/// conversation that will come back. If a busy slot has much more of the prompt, and `can_copy` is set, its cache is
/// copied: several answers to one prompt, or to prompts with one long beginning, compute it once.
pub(super) fn choose_slot(offers: &[SlotOffer<'_>], prompt: &[TokenId], can_copy: bool) -> Option<SlotChoice> {
    let idle = || offers.iter().enumerate().filter(|(_, offer)| offer.idle);
    let shared = |slot: usize| common_prefix(offers[slot].cached, prompt);
    let best = idle()
        .map(|(slot, _)| slot)
        .max_by_key(|&slot| (shared(slot), std::cmp::Reverse(offers[slot].last_used)))?;
    let oldest = idle()
        .min_by_key(|(_, offer)| (!offer.cached.is_empty(), offer.last_used))
        .map_or(best, |(slot, _)| slot);
    let found = shared(best);
    let is_good = found > 0 && found * 2 >= offers[best].cached.len().min(prompt.len());
    let own = if is_good { found } else { 0 };
    let busy = (0..offers.len())
        .filter(|&slot| can_copy && !offers[slot].idle)
        .map(|slot| (shared(slot), slot))
        .max_by_key(|&(shared, _)| shared)
        .filter(|&(shared, _)| shared >= own + WORTH_A_COPY);
    Some(match busy {
        Some((_, busy)) => SlotChoice {
            slot: oldest,
            copy_from: Some(busy),
        },
        None => SlotChoice {
            slot: if is_good { best } else { oldest },
            copy_from: None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(idle: bool, cached: &[TokenId], last_used: u64) -> SlotOffer<'_> {
        SlotOffer {
            idle,
            cached,
            last_used,
        }
    }

    fn slot(offers: &[SlotOffer<'_>], prompt: &[TokenId]) -> Option<usize> {
        choose_slot(offers, prompt, true).map(|place| {
            assert_eq!(place.copy_from, None);
            place.slot
        })
    }

    #[test]
    fn the_longest_shared_prefix_wins() {
        let offers = [
            offer(true, &[1, 2], 9),
            offer(true, &[1, 2, 3, 4], 1),
            offer(false, &[1, 2, 3, 4, 5], 2),
        ];
        assert_eq!(slot(&offers, &[1, 2, 3, 4, 5]), Some(1));
    }

    #[test]
    fn a_long_conversation_is_not_destroyed_for_a_short_match() {
        let long: Vec<TokenId> = (0..100).collect();
        let offers = [offer(true, &long, 5), offer(true, &[], 0)];
        assert_eq!(slot(&offers, &[0, 1, 77, 78, 79, 80, 81]), Some(1));
    }

    #[test]
    fn empty_slots_come_before_old_ones() {
        let offers = [offer(true, &[7; 9], 0), offer(true, &[], 3)];
        assert_eq!(slot(&offers, &[1]), Some(1));
    }

    #[test]
    fn none_is_idle() {
        assert_eq!(slot(&[offer(false, &[], 0)], &[1]), None);
    }

    #[test]
    fn a_busy_sequence_lends_its_cache_where_that_saves_much() {
        let prompt: Vec<TokenId> = (0..200).collect();
        let offers = [offer(false, &prompt, 5), offer(true, &[7; 300], 1), offer(true, &[], 0)];
        let lent = SlotChoice {
            slot: 2,
            copy_from: Some(0),
        };
        assert_eq!(choose_slot(&offers, &prompt, true), Some(lent));
        let own = SlotChoice {
            slot: 2,
            copy_from: None,
        };
        assert_eq!(choose_slot(&offers, &prompt, false), Some(own));
        assert_eq!(choose_slot(&offers, &[0, 1, 2], true), Some(own));
        // An idle one that has nearly as much is taken as it is.
        let offers = [offer(false, &prompt, 5), offer(true, &prompt[..150], 1)];
        let near = SlotChoice {
            slot: 1,
            copy_from: None,
        };
        assert_eq!(choose_slot(&offers, &prompt, true), Some(near));
    }
}
