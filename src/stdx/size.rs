//! Byte sizes for people.

/// Formats a number of bytes like the `ollama` command, in powers of 1000: `98 MB`, `1.2 GB`, `12 GB`, `3 GB`.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1_000_000_000_000, "TB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1_000, "KB"),
    ];
    let Some((unit, name)) = UNITS.into_iter().find(|(unit, _)| bytes >= *unit) else {
        return format!("{bytes} B");
    };
    if bytes / unit >= 10 || bytes.is_multiple_of(unit) {
        format!("{} {name}", bytes / unit)
    } else {
        format!("{:.1} {name}", bytes as f64 / unit as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1 KB"),
            (1_500, "1.5 KB"),
            (98_362_745, "98 MB"),
            (1_200_000_000, "1.2 GB"),
            (4_661_224_676, "4.7 GB"),
            (9_990_000_000, "10.0 GB"),
            (12_900_000_000, "12 GB"),
            (3_000_000_000, "3 GB"),
            (2_000_000_000_000, "2 TB"),
            (u64::MAX, "18446744 TB"),
        ] {
            assert_eq!(human_bytes(bytes), expected);
        }
    }
}
