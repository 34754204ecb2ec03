//! Quarantine of requests that a worker died under: the same request is refused for a while, so that a client that
//! repeats it cannot keep a model from everybody else.
//!
//! A request that was the only one during a crash is quarantined at once. Otherwise the process may have died because
//! of another request, or was killed from outside, so that it takes a second death under the same request.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, Hasher, RandomState},
    io,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::stdx::sync::lock;

/// Time for which a request in quarantine is refused after the last death.
const REFUSAL_TIME: Duration = Duration::from_secs(60);
/// Time after which an earlier death under a request no longer counts.
const MEMORY: Duration = Duration::from_secs(600);
/// Requests that are remembered; beyond that the oldest is forgotten.
const MAX_REQUESTS: usize = 256;

/// Hash of the part of a request that the model works on, without the sampling parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RequestFingerprint(u64);

/// The end of a worker process that the daemon did not ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WorkerDeath {
    /// True when the process ended by its own fault (a memory fault, an abort), not by a kill from outside.
    pub(super) crashed: bool,
    /// Requests that the process was working on.
    pub(super) requests: Vec<RequestFingerprint>,
}

/// The requests that a worker died under.
#[derive(Debug, Default)]
pub(super) struct RequestQuarantine {
    /// Random keys of the hash, so that clients cannot construct two requests with the same fingerprint.
    hash_keys: RandomState,
    records: Mutex<DeathRecords>,
}

#[derive(Debug, Default)]
struct DeathRecords {
    by_request: HashMap<RequestFingerprint, DeathRecord>,
    /// Order of insertion, for forgetting the oldest.
    order: VecDeque<RequestFingerprint>,
}

#[derive(Debug)]
struct DeathRecord {
    deaths: u32,
    last: Instant,
    quarantined: bool,
}

/// Adapter that hashes the bytes written to it.
struct HashWriter<H>(H);

impl<H: Hasher> io::Write for HashWriter<H> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl RequestQuarantine {
    pub(super) fn fingerprint(&self, request: &impl Serialize) -> RequestFingerprint {
        let mut writer = HashWriter(self.hash_keys.build_hasher());
        // A request that cannot be encoded never reaches a worker, so its fingerprint does not matter.
        let _ = serde_json::to_writer(&mut writer, request);
        RequestFingerprint(writer.0.finish())
    }

    /// Records a death, and quarantines the requests that caused it by the rule of the module.
    pub(super) fn record(&self, death: &WorkerDeath, now: Instant) {
        let mut records = self.records();
        let DeathRecords { by_request, order } = &mut *records;
        let is_sole_suspect = death.crashed && death.requests.len() == 1;
        for &fingerprint in &death.requests {
            let record = by_request.entry(fingerprint).or_insert_with(|| {
                order.push_back(fingerprint);
                DeathRecord {
                    deaths: 0,
                    last: now,
                    quarantined: false,
                }
            });
            // Deaths this far apart hardly share a cause.
            if now.duration_since(record.last) >= MEMORY {
                (record.deaths, record.quarantined) = (0, false);
            }
            record.deaths += 1;
            record.last = now;
            record.quarantined |= is_sole_suspect || record.deaths > 1;
        }
        while order.len() > MAX_REQUESTS {
            if let Some(oldest) = order.pop_front() {
                by_request.remove(&oldest);
            }
        }
    }

    fn records(&self) -> MutexGuard<'_, DeathRecords> {
        lock(&self.records)
    }

    /// Returns true if the request is in quarantine at `now`.
    pub(super) fn is_refused(&self, fingerprint: RequestFingerprint, now: Instant) -> bool {
        let records = self.records();
        records
            .by_request
            .get(&fingerprint)
            .is_some_and(|record| record.quarantined && now.duration_since(record.last) < REFUSAL_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(crashed: bool, requests: &[u64]) -> WorkerDeath {
        let requests = requests.iter().map(|&number| RequestFingerprint(number)).collect();
        WorkerDeath { crashed, requests }
    }

    #[test]
    fn a_crash_with_one_request_convicts_it_for_a_minute() {
        let (quarantine, now) = (RequestQuarantine::default(), Instant::now());
        quarantine.record(&death(true, &[1]), now);
        assert!(quarantine.is_refused(RequestFingerprint(1), now));
        assert!(!quarantine.is_refused(RequestFingerprint(2), now));
        assert!(!quarantine.is_refused(RequestFingerprint(1), now + REFUSAL_TIME));
        // Repeated after the quarantine, it ends the next worker together with another request.
        quarantine.record(&death(false, &[1, 2]), now + REFUSAL_TIME);
        assert!(quarantine.is_refused(RequestFingerprint(1), now + REFUSAL_TIME));
        assert!(!quarantine.is_refused(RequestFingerprint(2), now + REFUSAL_TIME));
    }

    #[test]
    fn a_kill_or_a_crash_with_several_needs_a_second_time() {
        for (crashed, under) in [(false, &[1][..]), (true, &[1, 2])] {
            let (quarantine, now) = (RequestQuarantine::default(), Instant::now());
            quarantine.record(&death(crashed, under), now);
            assert!(!quarantine.is_refused(RequestFingerprint(1), now));
            quarantine.record(&death(false, &[1]), now + Duration::from_secs(5));
            assert!(quarantine.is_refused(RequestFingerprint(1), now + Duration::from_secs(5)));
            assert!(!quarantine.is_refused(RequestFingerprint(2), now));
        }
    }

    #[test]
    fn what_is_long_ago_or_too_much_is_forgotten() {
        let (quarantine, now) = (RequestQuarantine::default(), Instant::now());
        quarantine.record(&death(false, &[1]), now);
        quarantine.record(&death(false, &[1]), now + MEMORY);
        assert!(!quarantine.is_refused(RequestFingerprint(1), now + MEMORY));
        for number in 10..10 + 2 * MAX_REQUESTS as u64 {
            quarantine.record(&death(true, &[number]), now);
        }
        assert_eq!(quarantine.records().by_request.len(), MAX_REQUESTS);
        assert_eq!(quarantine.records().order.len(), MAX_REQUESTS);
        assert!(!quarantine.is_refused(RequestFingerprint(10), now));
        assert!(quarantine.is_refused(RequestFingerprint(9 + 2 * MAX_REQUESTS as u64), now));
    }

    #[test]
    fn fingerprints_are_of_the_content() {
        let quarantine = RequestQuarantine::default();
        assert_eq!(quarantine.fingerprint(&("a", 1)), quarantine.fingerprint(&("a", 1)));
        assert_ne!(quarantine.fingerprint(&("a", 1)), quarantine.fingerprint(&("a", 2)));
    }
}
