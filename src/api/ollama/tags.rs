//! `GET /api/tags`

use hyper::{HeaderMap, Response, StatusCode};

use super::details::TagsEntry;
use crate::{
    api::{
        Api,
        listing::{self, Entry},
        reply::{self, JSON_UTF8},
    },
    http::body::Body,
    provider::Call,
};

/// Upstream's models and ours, newest first.
pub(crate) async fn tags(api: &Api, call: &Call, received: &HeaderMap) -> Response<Body> {
    let (upstream, cards) = futures_util::join!(
        listing::of_upstream(api, call, "/api/tags", received),
        listing::our_cards(api, call)
    );
    let ours = cards
        .iter()
        .map(|(name, card)| Entry {
            name: name.clone(),
            seconds: listing::unix_seconds(card.modified_at),
            json: reply::encode(&TagsEntry::of(name, card)),
        })
        .collect();
    models(&listing::merge(&call.config, upstream, ours))
}

/// The envelope of both native listings; always a list.
pub(super) fn models(entries: &[Entry]) -> Response<Body> {
    let mut json = b"{\"models\":".to_vec();
    json.extend_from_slice(&listing::list(entries));
    json.push(b'}');
    reply::bytes(StatusCode::OK, JSON_UTF8, json)
}
