//! Durations, sizes and durability levels as they are written on the command line.

use std::time::Duration;

use amps_store::Level;

/// Reads `250us`, `10ms`, `1s`, `1.5s`, `2m`, `1h`; a bare number is seconds.
///
/// # Errors
/// What was expected.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => {
            return Err(format!(
                "unknown unit {unit:?}; write a number and us, ms, s, m or h"
            ));
        }
    };
    let number: f64 = number
        .parse()
        .map_err(|_| "write a number and us, ms, s, m or h, as in 10ms".to_owned())?;
    Duration::try_from_secs_f64(number * scale).map_err(|e| e.to_string())
}

/// Reads `65536`, `64KiB`, `16MiB`, `2GiB` (also `K`, `M`, `G` for the same powers of 1024).
///
/// # Errors
/// What was expected.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => {
            return Err(format!(
                "unknown unit {unit:?}; write bytes, or KiB, MiB, GiB"
            ));
        }
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "write a number of bytes, as in 64MiB".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "too large".to_owned())
}

/// Reads `os`, `interval:10ms`, `disk`.
///
/// # Errors
/// What was expected.
pub(crate) fn level(text: &str) -> Result<Level, String> {
    match text.split_once(':') {
        None if text == "os" => Ok(Level::Os),
        None if text == "disk" => Ok(Level::Disk),
        Some(("interval", every)) => duration(every).map(Level::Interval),
        _ => Err("write os, interval:DURATION (as in interval:10ms) or disk".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("3"), Ok(Duration::from_secs(3)));
        for bad in [
            "",
            "ms",
            "-1s",
            "1 s",
            "1d",
            "1.2.3s",
            "99999999999999999999h",
            "inf",
        ] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("65536"), Ok(65536));
        assert_eq!(size("64KiB"), Ok(65536));
        assert_eq!(size("64m"), Ok(64 << 20));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        for bad in [
            "",
            "KiB",
            "-1",
            "1.5M",
            "1TB",
            "99999999999999999999",
            "18446744073709551615K",
        ] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn levels() {
        assert_eq!(level("os"), Ok(Level::Os));
        assert_eq!(level("disk"), Ok(Level::Disk));
        assert_eq!(
            level("interval:10ms"),
            Ok(Level::Interval(Duration::from_millis(10)))
        );
        for bad in ["", "OS", "interval", "interval:", "disk:1s", "interval:x"] {
            assert!(level(bad).is_err(), "{bad:?}");
        }
    }
}
