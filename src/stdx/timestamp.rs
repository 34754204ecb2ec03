//! Timestamps in the format of Go's `time.RFC3339Nano`, which clients of Ollama parse.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// 3 January of the year 1: no time zone moves it to the year 0.
const EARLIEST: Timestamp = Timestamp::constant(-62_135_424_000, 0);

/// Formats a time as RFC 3339 in UTC, with up to nine fractional digits and without trailing zeros. Times outside the
/// years 1 to 9999 are clamped.
#[must_use]
pub fn rfc3339_utc(time: SystemTime) -> String {
    format(time, &TimeZone::UTC)
}

/// Formats a time as RFC 3339 with the offset of the machine's time zone, `Z` if that is zero. Clamped like
/// [`rfc3339_utc`].
#[must_use]
pub fn rfc3339_local(time: SystemTime) -> String {
    format(time, &TimeZone::system())
}

fn format(time: SystemTime, zone: &TimeZone) -> String {
    let timestamp = clamped(time);
    let offset = zone.to_offset(timestamp);
    let civil = offset.to_datetime(timestamp);
    // Historic offsets have seconds, for which RFC 3339 has no place; Go truncates them.
    let minutes = offset.seconds() / 60;
    if minutes == 0 {
        return format!("{civil}Z");
    }
    let sign = if minutes < 0 { '-' } else { '+' };
    format!("{civil}{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
}

fn clamped(time: SystemTime) -> Timestamp {
    let edge = if time > SystemTime::UNIX_EPOCH {
        Timestamp::MAX
    } else {
        EARLIEST
    };
    Timestamp::try_from(time).map_or(edge, |timestamp| timestamp.max(EARLIEST))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::tz::Offset;

    use super::*;

    fn time(text: &str) -> SystemTime {
        text.parse::<Timestamp>().unwrap().try_into().unwrap()
    }

    fn far(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn utc() {
        for text in [
            "2026-11-23T06:50:34.024460257Z",
            "2026-11-23T06:53:55.83824038Z",
            "1970-01-01T00:00:00Z",
            "1969-12-31T23:59:59.5Z",
            "2318-08-20T00:00:00.1Z",
        ] {
            assert_eq!(rfc3339_utc(time(text)), text);
        }
        assert_eq!(rfc3339_utc(far(1 << 50)), "9999-12-30T22:00:00.999999999Z");
        assert_eq!(
            rfc3339_utc(SystemTime::UNIX_EPOCH - Duration::from_secs(1 << 37)),
            "0001-01-03T00:00:00Z"
        );
        assert_eq!(
            rfc3339_utc(SystemTime::UNIX_EPOCH - Duration::from_secs(1 << 50)),
            "0001-01-03T00:00:00Z"
        );
    }

    #[test]
    fn offsets() {
        let winter = time("2026-01-31T23:30:00.25Z");
        for (seconds, expected) in [
            (7200, "2026-02-01T01:30:00.25+02:00"),
            (-12_600, "2026-01-31T20:00:00.25-03:30"),
            (20_700, "2026-02-01T05:15:00.25+05:45"),
            (0, "2026-01-31T23:30:00.25Z"),
        ] {
            let zone = TimeZone::fixed(Offset::from_seconds(seconds).unwrap());
            assert_eq!(format(winter, &zone), expected);
        }
        let zone = TimeZone::fixed(Offset::from_seconds(50_400).unwrap());
        assert!(format(far(1 << 50), &zone).starts_with("9999-12-31T12:00:00"));
    }

    #[test]
    fn local_names_the_same_instant() {
        let instant = time("2026-07-01T12:00:00.5Z");
        assert_eq!(
            rfc3339_local(instant).parse::<Timestamp>().unwrap(),
            Timestamp::try_from(instant).unwrap()
        );
    }
}
