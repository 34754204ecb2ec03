//! Shortening of conversations that do not fit the context window.

use crate::inference::Message;

/// Drops the oldest turns of a conversation that does not fit, as Ollama does; system turns and the last turn stay.
/// Returns false if no turn is left to drop.
///
/// At least one turn goes. More go only as long as the remaining text is clearly too long: the caller renders and
/// counts again, so that a long conversation takes a few rounds and loses no more than it must.
pub(in crate::provider) fn drop_oldest_turns(
    messages: &mut Vec<Message>,
    prompt_tokens: u32,
    context_length: u32,
) -> bool {
    let bytes = |messages: &[Message]| messages.iter().map(|message| message.content.len() as u64).sum::<u64>();
    // Bytes are only an estimate of tokens: a tenth of the excess is left to the next round.
    let excess = u64::from(prompt_tokens.saturating_sub(context_length)) * 9 / 10;
    let mut surplus = (bytes(messages) * excess / u64::from(prompt_tokens.max(1))) as i64;
    let mut dropped = false;
    while !dropped || surplus > 0 {
        let last = messages.len().saturating_sub(1);
        let Some(oldest) = messages[..last].iter().position(|message| message.role.0 != "system") else {
            break;
        };
        let length = messages[oldest].content.len() as i64;
        // The first turn goes whatever its length; a later one only if all of it is surplus.
        if dropped && length > surplus {
            break;
        }
        surplus -= length;
        messages.remove(oldest);
        dropped = true;
    }
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_turn_goes_first_system_and_last_stay() {
        let mut messages = [("user", "1"), ("system", "s"), ("assistant", "2"), ("user", "3")]
            .map(|(role, content)| Message::text(role, content))
            .to_vec();
        let contents = |messages: &[Message]| {
            messages
                .iter()
                .map(|message| message.content.clone())
                .collect::<Vec<_>>()
        };
        assert!(drop_oldest_turns(&mut messages, 11, 10));
        assert_eq!(contents(&messages), ["s", "2", "3"]);
        assert!(drop_oldest_turns(&mut messages, 11, 10));
        assert!(!drop_oldest_turns(&mut messages, 11, 10));
        assert_eq!(contents(&messages), ["s", "3"]);
    }

    #[test]
    fn a_long_conversation_loses_many_turns_at_once_but_never_too_many() {
        let turn = "x".repeat(100);
        let mut messages: Vec<Message> = (0..100).map(|_| Message::text("user", turn.clone())).collect();
        assert!(drop_oldest_turns(&mut messages, 10_000, 1_000));
        assert!((10..=30).contains(&messages.len()), "{}", messages.len());
    }
}
