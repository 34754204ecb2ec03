//! Which address of the Hub is asked: the endpoint and its mirrors in their order, those that lately failed last.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use url::Url;

use super::{backoff::Backoff, error::HubError};
use crate::{config::HubConfig, stdx::sync::lock};

/// How long an address that failed once is asked last; doubles with each further failure.
const FIRST_PENALTY: Duration = Duration::from_secs(15);
/// The longest such time: an address that was mended is found again soon.
const MAX_PENALTY: Duration = Duration::from_secs(300);

/// One address of the Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    pub(crate) url: Url,
    /// The endpoint itself; only it is shown tokens.
    pub(crate) is_main: bool,
}

/// What is known of addresses, over all downloads of a process.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<HashMap<String, Mark>>);

#[derive(Clone, Copy, Debug)]
struct Mark {
    failures: u32,
    until: Instant,
}

impl Site {
    /// The endpoint first, then the mirrors.
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

impl Health {
    /// The addresses in the order in which to ask them.
    fn order<'s>(&self, sites: &'s [Site]) -> Vec<&'s Site> {
        let marks = self.lock();
        let now = Instant::now();
        let mut order: Vec<&Site> = sites.iter().collect();
        order.sort_by_key(|site| marks.get(site.url.as_str()).is_some_and(|mark| mark.until > now));
        order
    }

    pub(crate) fn worked(&self, site: &Site) {
        self.lock().remove(site.url.as_str());
    }

    pub(crate) fn failed(&self, site: &Site) {
        let mut marks = self.lock();
        let mark = marks.entry(site.url.to_string()).or_insert(Mark {
            failures: 0,
            until: Instant::now(),
        });
        // Many connections that fail together are one failure.
        if mark.failures > 0 && mark.until > Instant::now() {
            return;
        }
        let penalty = FIRST_PENALTY
            .saturating_mul(1 << mark.failures.min(10))
            .min(MAX_PENALTY);
        mark.failures = mark.failures.saturating_add(1);
        mark.until = Instant::now() + penalty;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Mark>> {
        lock(&self.0)
    }
}

/// One question, put to the addresses in turn, over several rounds.
#[derive(Debug)]
pub(crate) struct Tour<'s> {
    sites: &'s [Site],
    health: &'s Health,
    round: Vec<&'s Site>,
    /// Place in the round.
    at: usize,
    /// The error of this round that says most.
    error: Option<HubError>,
    backoff: Backoff,
}

impl<'s> Tour<'s> {
    pub(crate) fn new(sites: &'s [Site], health: &'s Health, backoff: Backoff) -> Self {
        Self {
            round: health.order(sites),
            sites,
            health,
            at: 0,
            error: None,
            backoff,
        }
    }

    /// Whom to ask now.
    pub(crate) fn site(&self) -> &'s Site {
        // There is always an endpoint, and `failed` keeps the place inside the round.
        self.round[self.at]
    }

    pub(crate) fn worked(&self) {
        self.health.worked(self.site());
    }

    /// Goes on to the next address, or waits and begins another round, or gives the error back.
    pub(crate) async fn failed(&mut self, error: HubError) -> Result<(), HubError> {
        let site = self.site();
        let is_down = error.is_transient() || matches!(error, HubError::Protocol { .. });
        if is_down {
            self.health.failed(site);
        }
        // A mirror need not have what the Hub has, nor the other way round; what is forbidden stays forbidden.
        let goes_on = is_down
            || matches!(
                error,
                HubError::RepoNotFound { .. } | HubError::RevisionNotFound { .. } | HubError::FileNotFound { .. }
            );
        if !goes_on {
            return Err(error);
        }
        if self.sites.len() > 1 {
            tracing::debug!(address = %site.url, %error, "an address of the Hub did not help");
        }
        if self.error.is_none() || site.is_main {
            self.error = Some(error);
        }
        self.at += 1;
        if self.at < self.round.len() {
            return Ok(());
        }
        self.round = self.health.order(self.sites);
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

    fn sites() -> Vec<Site> {
        let config = HubConfig {
            endpoint: "https://a".into(),
            mirrors: vec!["https://b".into(), "https://c/hub".into()],
            retry_attempts: 1,
            retry_delay: Duration::ZERO,
            ..HubConfig::default()
        };
        Site::all(&config).unwrap()
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
    fn who_failed_is_asked_last() {
        let (sites, health) = (sites(), Health::default());
        let hosts = |health: &Health| {
            let order = health.order(&sites).into_iter();
            order
                .map(|site| site.url.host_str().unwrap_or_default().to_owned())
                .collect::<String>()
        };
        assert_eq!(hosts(&health), "abc");
        health.failed(&sites[0]);
        assert_eq!(hosts(&health), "bca");
        health.failed(&sites[1]);
        assert_eq!(hosts(&health), "cab");
        health.worked(&sites[0]);
        assert_eq!(hosts(&health), "acb");
    }

    #[tokio::test]
    async fn a_tour_asks_everybody_and_ends() {
        let (sites, health) = (sites(), Health::default());
        let mut tour = Tour::new(&sites, &health, backoff());
        let mut asked = 0;
        let error = loop {
            asked += 1;
            if let Err(error) = tour.failed(down()).await {
                break error;
            }
        };
        assert_eq!((asked, error), (6, down()));
    }

    #[tokio::test]
    async fn a_mirror_that_has_less_does_not_hide_an_outage() {
        let (sites, health) = (sites(), Health::default());
        let mut tour = Tour::new(&sites[..2], &health, backoff());
        tour.failed(down()).await.unwrap();
        assert!(!tour.site().is_main);
        // The round is over; what counts is that the Hub itself was away, so that there is another.
        tour.failed(missing()).await.unwrap();
        assert!(!tour.site().is_main, "who failed is asked last");
        tour.failed(missing()).await.unwrap();
        assert_eq!(tour.failed(missing()).await, Err(missing()));
    }

    #[tokio::test]
    async fn what_is_forbidden_is_not_asked_elsewhere() {
        let (sites, health) = (sites(), Health::default());
        let gated = HubError::Gated {
            repo: "o/r".into(),
            url: "u".into(),
        };
        assert_eq!(
            Tour::new(&sites, &health, backoff()).failed(gated.clone()).await,
            Err(gated)
        );
    }
}
