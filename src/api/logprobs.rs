//! Log-probabilities in the shape of both the native and the OpenAI dialect.

use serde::Serialize;

use crate::inference::{TokenLogprob, TopLogprob};

/// Log-probability of a token.
#[derive(Debug, Serialize)]
pub(crate) struct LogprobEntry {
    token: String,
    logprob: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_logprobs: Vec<Alternative>,
}

#[derive(Debug, Serialize)]
struct Alternative {
    token: String,
    logprob: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bytes: Vec<u8>,
}

/// Returns the wire form of a list.
pub(crate) fn wire(entries: Vec<TokenLogprob>) -> Vec<LogprobEntry> {
    entries
        .into_iter()
        .map(|TokenLogprob { bytes, logprob, top }| LogprobEntry {
            // A token may be only a part of a character. `bytes` then has what the replacement character hides.
            token: String::from_utf8_lossy(&bytes).into_owned(),
            // Ollama widens the number first, which shows in its digits.
            logprob: f64::from(logprob),
            bytes,
            top_logprobs: top.into_iter().map(alternative).collect(),
        })
        .collect()
}

fn alternative(TopLogprob { bytes, logprob }: TopLogprob) -> Alternative {
    Alternative {
        token: String::from_utf8_lossy(&bytes).into_owned(),
        logprob: f64::from(logprob),
        bytes,
    }
}
