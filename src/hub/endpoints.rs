//! Endpoints of the Hub: the configured one and its mirrors.
//!
//! Every question to the Hub goes through an [`EndpointRotation`], which tries the endpoints one after another over
//! several rounds. [`EndpointHealth`] is shared by all requests of a process and puts endpoints that failed lately at
//! the end of a round.

use std::time::{Duration, Instant};

use dashmap::DashMap;
use url::Url;

use super::{backoff::Backoff, error::HubError};
use crate::config::HubConfig;

/// Time for which an endpoint comes last after its first failure. Doubles with each further failure.
const FIRST_PENALTY: Duration = Duration::from_secs(15);
/// Upper limit of the penalty, so that a repaired endpoint is soon preferred again.
const MAX_PENALTY: Duration = Duration::from_secs(300);

/// Base URL of the Hub or of a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) url: Url,
    /// True for the configured endpoint, the only one that receives tokens; false for mirrors.
    pub(crate) is_main: bool,
}

/// Recent failures of endpoints, by URL.
#[derive(Debug, Default)]
pub(crate) struct EndpointHealth(DashMap<String, Penalty>);

#[derive(Clone, Copy, Debug)]
struct Penalty {
    failures: u32,
    until: Instant,
}

impl Endpoint {
    /// Parses the configured endpoint and its mirrors, in this order.
    pub(crate) fn all(config: &HubConfig) -> Result<Vec<Self>, HubError> {
        let addresses = [&config.endpoint].into_iter().chain(&config.mirrors);
        addresses
            .enumerate()
            .map(|(index, address)| {
                let bad = |reason: String| HubError::Endpoint(format!("{address}: {reason}"));
                let url = Url::parse(address).map_err(|error| bad(error.to_string()))?;
                if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
                    return Err(bad("it is neither http nor https".into()));
                }
                Ok(Self {
                    url,
                    is_main: index == 0,
                })
            })
            .collect()
    }
}

impl EndpointHealth {
    /// Sorts endpoints into the order of one round: healthy ones first, otherwise as configured.
    fn order<'s>(&self, endpoints: &'s [Endpoint]) -> Vec<&'s Endpoint> {
        let now = Instant::now();
        let mut order: Vec<&Endpoint> = endpoints.iter().collect();
        // Cached keys: other requests change the map while this one sorts, and a comparison that changes its mind
        // panics.
        order.sort_by_cached_key(|endpoint| {
            let penalty = self.0.get(endpoint.url.as_str());
            penalty.is_some_and(|penalty| penalty.until > now)
        });
        order
    }

    fn mark_healthy(&self, endpoint: &Endpoint) {
        self.0.remove(endpoint.url.as_str());
    }

    pub(crate) fn mark_unhealthy(&self, endpoint: &Endpoint) {
        let now = Instant::now();
        let mut penalty = self.0.entry(endpoint.url.to_string()).or_insert(Penalty {
            failures: 0,
            until: now,
        });
        // Connections that fail together, such as the ranges of one file, count as one failure.
        if penalty.failures > 0 && penalty.until > now {
            return;
        }
        let duration = FIRST_PENALTY
            .saturating_mul(1 << penalty.failures.min(10))
            .min(MAX_PENALTY);
        penalty.failures = penalty.failures.saturating_add(1);
        penalty.until = now + duration;
    }
}

/// Rotation of one question over the endpoints, in rounds with a pause between them.
#[derive(Debug)]
pub(crate) struct EndpointRotation<'s> {
    endpoints: &'s [Endpoint],
    health: &'s EndpointHealth,
    round: Vec<&'s Endpoint>,
    /// Index of the current endpoint in the round.
    at: usize,
    /// Error that ends the rotation if no further round is allowed. The main endpoint's error wins over those of
    /// mirrors.
    error: Option<HubError>,
    backoff: Backoff,
}

impl<'s> EndpointRotation<'s> {
    pub(crate) fn new(endpoints: &'s [Endpoint], health: &'s EndpointHealth, backoff: Backoff) -> Self {
        Self {
            round: health.order(endpoints),
            endpoints,
            health,
            at: 0,
            error: None,
            backoff,
        }
    }

    /// Returns the endpoint to ask now.
    pub(crate) fn current(&self) -> &'s Endpoint {
        // In bounds: there is always a main endpoint, and `failed` keeps the index inside the round.
        self.round[self.at]
    }

    /// Reports that the current endpoint answered.
    pub(crate) fn succeeded(&self) {
        self.health.mark_healthy(self.current());
    }

    /// Moves on to the next endpoint, or waits and begins another round.
    ///
    /// # Errors
    /// The most telling error, if no other endpoint and no other round can help.
    pub(crate) async fn failed(&mut self, error: HubError) -> Result<(), HubError> {
        let endpoint = self.current();
        let is_down = error.is_transient() || matches!(error, HubError::Protocol { .. });
        if is_down {
            self.health.mark_unhealthy(endpoint);
        }
        // A mirror may lack what the Hub has, and the other way round. A refusal is final: mirrors must not be a way
        // around it.
        let goes_on = is_down
            || matches!(
                error,
                HubError::RepoNotFound { .. } | HubError::RevisionNotFound { .. } | HubError::FileNotFound { .. }
            );
        if !goes_on {
            return Err(error);
        }
        if self.endpoints.len() > 1 {
            tracing::debug!(endpoint = %endpoint.url, %error, "an endpoint of the Hub failed; the next one is asked");
        }
        if self.error.is_none() || endpoint.is_main {
            self.error = Some(error);
        }
        self.at += 1;
        if self.at < self.round.len() {
            return Ok(());
        }
        self.round = self.health.order(self.endpoints);
        self.at = 0;
        match self.error.take() {
            Some(error) => self.backoff.wait(error).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints() -> Vec<Endpoint> {
        let config = HubConfig {
            endpoint: "https://a".into(),
            mirrors: vec!["https://b".into(), "https://c/hub".into()],
            retry_attempts: 1,
            retry_delay: Duration::ZERO,
            ..HubConfig::default()
        };
        Endpoint::all(&config).unwrap()
    }

    fn down() -> HubError {
        HubError::Unreachable {
            endpoint: "x".into(),
            reason: "refused".into(),
        }
    }

    fn missing() -> HubError {
        HubError::RepoNotFound {
            repo: "o/r".into(),
            endpoint: "x".into(),
        }
    }

    fn backoff() -> Backoff {
        Backoff::new(&HubConfig {
            retry_attempts: 1,
            retry_delay: Duration::ZERO,
            ..HubConfig::default()
        })
    }

    #[test]
    fn an_endpoint_that_failed_is_asked_last() {
        let (endpoints, health) = (endpoints(), EndpointHealth::default());
        let hosts = |health: &EndpointHealth| {
            let order = health.order(&endpoints).into_iter();
            order
                .map(|endpoint| endpoint.url.host_str().unwrap_or_default().to_owned())
                .collect::<String>()
        };
        assert_eq!(hosts(&health), "abc");
        health.mark_unhealthy(&endpoints[0]);
        assert_eq!(hosts(&health), "bca");
        health.mark_unhealthy(&endpoints[1]);
        assert_eq!(hosts(&health), "cab");
        health.mark_healthy(&endpoints[0]);
        assert_eq!(hosts(&health), "acb");
    }

    #[tokio::test]
    async fn a_rotation_asks_every_endpoint_and_ends() {
        let (endpoints, health) = (endpoints(), EndpointHealth::default());
        let mut rotation = EndpointRotation::new(&endpoints, &health, backoff());
        let mut asked = 0;
        let error = loop {
            asked += 1;
            if let Err(error) = rotation.failed(down()).await {
                break error;
            }
        };
        assert_eq!((asked, error), (6, down()));
    }

    #[tokio::test]
    async fn a_mirror_that_has_less_does_not_hide_an_outage() {
        let (endpoints, health) = (endpoints(), EndpointHealth::default());
        let mut rotation = EndpointRotation::new(&endpoints[..2], &health, backoff());
        rotation.failed(down()).await.unwrap();
        assert!(!rotation.current().is_main);
        // The round is over. The outage of the main endpoint counts, so there is another round.
        rotation.failed(missing()).await.unwrap();
        assert!(!rotation.current().is_main, "the endpoint that failed is asked last");
        rotation.failed(missing()).await.unwrap();
        assert_eq!(rotation.failed(missing()).await, Err(missing()));
    }

    #[tokio::test]
    async fn a_refusal_is_not_taken_to_mirrors() {
        let (endpoints, health) = (endpoints(), EndpointHealth::default());
        let gated = HubError::Gated {
            repo: "o/r".into(),
            url: "u".into(),
        };
        assert_eq!(
            EndpointRotation::new(&endpoints, &health, backoff())
                .failed(gated.clone())
                .await,
            Err(gated)
        );
    }
}
