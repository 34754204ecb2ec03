//! Requests that a worker died under: the same one again is refused for a while, so that nobody takes a model from
//! everybody by asking again and again for what ends it.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, Hasher, RandomState},
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;

/// How long a request is refused.
const REFUSED: Duration = Duration::from_secs(60);
/// How long a request is remembered that may have been a bystander.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Requests that are remembered at most; the oldest is forgotten first.
const MOST: usize = 256;

/// What a request asks of the model, its way of choosing tokens left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint(u64);

/// How a worker ended without being asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Death {
    /// Whether it was its own doing (a fault, an abort), not that of the system or of a person.
    pub(super) crashed: bool,
    /// What it was at work on.
    pub(super) under: Vec<Fingerprint>,
}

/// The requests that are remembered.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// A number of its own, so that strangers cannot foretell a fingerprint.
    state: RandomState,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    known: HashMap<Fingerprint, Suspect>,
    order: VecDeque<Fingerprint>,
}

#[derive(Debug)]
struct Suspect {
    deaths: u32,
    last: Instant,
    guilty: bool,
}

/// Hashes what is written.
struct Hashed<H>(H);

impl<H: Hasher> io::Write for Hashed<H> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Suspects {
    pub(super) fn fingerprint(&self, asked: &impl Serialize) -> Fingerprint {
        let mut hashed = Hashed(self.state.build_hasher());
        // What cannot be encoded never gets as far as a worker.
        let _ = serde_json::to_writer(&mut hashed, asked);
        Fingerprint(hashed.0.finish())
    }

    /// Remembers a death. A request is guilty if the worker crashed with nothing else to do, or died under it again.
    pub(super) fn record(&self, death: &Death, now: Instant) {
        let mut list = self.list();
        let List { known, order } = &mut *list;
        let alone = death.crashed && death.under.len() == 1;
        for &fingerprint in &death.under {
            let suspect = known.entry(fingerprint).or_insert_with(|| {
                order.push_back(fingerprint);
                Suspect {
                    deaths: 0,
                    last: now,
                    guilty: false,
                }
            });
            if now.duration_since(suspect.last) >= REMEMBERED {
                (suspect.deaths, suspect.guilty) = (0, false);
            }
            suspect.deaths += 1;
            suspect.last = now;
            suspect.guilty |= alone || suspect.deaths > 1;
        }
        while order.len() > MOST {
            if let Some(oldest) = order.pop_front() {
                known.remove(&oldest);
            }
        }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the same request is refused now.
    pub(super) fn is_refused(&self, fingerprint: Fingerprint, now: Instant) -> bool {
        let list = self.list();
        list.known
            .get(&fingerprint)
            .is_some_and(|suspect| suspect.guilty && now.duration_since(suspect.last) < REFUSED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(crashed: bool, under: &[u64]) -> Death {
        let under = under.iter().map(|&number| Fingerprint(number)).collect();
        Death { crashed, under }
    }

    #[test]
    fn a_crash_with_one_request_convicts_it_for_a_minute() {
        let (suspects, now) = (Suspects::default(), Instant::now());
        suspects.record(&death(true, &[1]), now);
        assert!(suspects.is_refused(Fingerprint(1), now));
        assert!(!suspects.is_refused(Fingerprint(2), now));
        assert!(!suspects.is_refused(Fingerprint(1), now + REFUSED));
        // Tried again, and it ends the next worker too, beside another.
        suspects.record(&death(false, &[1, 2]), now + REFUSED);
        assert!(suspects.is_refused(Fingerprint(1), now + REFUSED));
        assert!(!suspects.is_refused(Fingerprint(2), now + REFUSED));
    }

    #[test]
    fn a_kill_or_a_crash_with_several_needs_a_second_time() {
        for (crashed, under) in [(false, &[1][..]), (true, &[1, 2])] {
            let (suspects, now) = (Suspects::default(), Instant::now());
            suspects.record(&death(crashed, under), now);
            assert!(!suspects.is_refused(Fingerprint(1), now));
            suspects.record(&death(false, &[1]), now + Duration::from_secs(5));
            assert!(suspects.is_refused(Fingerprint(1), now + Duration::from_secs(5)));
            assert!(!suspects.is_refused(Fingerprint(2), now));
        }
    }

    #[test]
    fn what_is_long_ago_or_too_much_is_forgotten() {
        let (suspects, now) = (Suspects::default(), Instant::now());
        suspects.record(&death(false, &[1]), now);
        suspects.record(&death(false, &[1]), now + REMEMBERED);
        assert!(!suspects.is_refused(Fingerprint(1), now + REMEMBERED));
        for number in 10..10 + 2 * MOST as u64 {
            suspects.record(&death(true, &[number]), now);
        }
        assert_eq!(suspects.list().known.len(), MOST);
        assert_eq!(suspects.list().order.len(), MOST);
        assert!(!suspects.is_refused(Fingerprint(10), now));
        assert!(suspects.is_refused(Fingerprint(9 + 2 * MOST as u64), now));
    }

    #[test]
    fn fingerprints_are_of_the_content() {
        let prints = Suspects::default();
        assert_eq!(prints.fingerprint(&("a", 1)), prints.fingerprint(&("a", 1)));
        assert_ne!(prints.fingerprint(&("a", 1)), prints.fingerprint(&("a", 2)));
    }
}
