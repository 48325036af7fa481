//! Durations, sizes and durability levels as they are written on the command line.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amps_client::jetstream::Mode;
use amps_store::Level;

use crate::args::Heartbeat;

/// A century.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

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
    // A longer time than anybody waits becomes the longest that every clock can handle.
    Ok(Duration::try_from_secs_f64(number * scale).map_or(LONGEST, |d| d.min(LONGEST)))
}

/// In which order messages are stored.
pub(crate) fn order(text: &str) -> Result<Mode, String> {
    match text {
        "chained" => Ok(Mode::Chained),
        "unchained" => Ok(Mode::Unchained),
        _ => Err("chained and unchained are known".to_owned()),
    }
}

/// As [`duration`], for what is done again and again.
///
/// # Errors
/// As there, and for 0.
pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it would be done without a pause; write more than 0".to_owned()),
        every => Ok(every),
    }
}

/// Reads whole seconds from 1 on, or `off`.
///
/// # Errors
/// What was expected.
pub(crate) fn heartbeat(text: &str) -> Result<Heartbeat, String> {
    if text == "off" {
        return Ok(Heartbeat(None));
    }
    match text.parse() {
        Ok(seconds @ 1..) => Ok(Heartbeat(Some(Duration::from_secs(seconds).min(LONGEST)))),
        _ => Err("write whole seconds from 1 on, or off".to_owned()),
    }
}

/// Reads `65536`, `64KiB`, `16MiB`, `2GiB`, `1TiB` (also `K`, `M`, `G`, `T` for the same powers
/// of 1024).
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
        "t" | "tib" => 40,
        _ => {
            return Err(format!(
                "unknown unit {unit:?}; write bytes, or KiB, MiB, GiB, TiB"
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

/// Reads the mode of a file in octal, as in `640`.
///
/// # Errors
/// What was expected.
pub(crate) fn mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let mode = u32::from_str_radix(digits, 8).ok();
    mode.filter(|mode| mode & !0o777 == 0 && mode & 0o600 == 0o600)
        .filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))
        .ok_or_else(|| {
            "write it in octal, as in 640; the owner must be able to read and write".to_owned()
        })
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

/// Reads `2026-01-31`, `2026-01-31T12:00:00Z` (with or without a fraction), or how long ago,
/// as in `15m`. The result is in microseconds since the Unix epoch.
///
/// # Errors
/// What was expected.
pub(crate) fn time(text: &str) -> Result<u64, String> {
    let expected = || {
        "write a date (2026-01-31), a time in UTC (2026-01-31T12:00:00Z), or how long ago (15m)"
            .to_owned()
    };
    if text.ends_with(|c: char| c.is_ascii_alphabetic() && c != 'Z') {
        let ago = duration(text).map_err(|_| expected())?;
        let then = SystemTime::now().checked_sub(ago).ok_or_else(expected)?;
        let since = then.duration_since(UNIX_EPOCH).map_err(|_| expected())?;
        return u64::try_from(since.as_micros()).map_err(|_| expected());
    }
    moment(text).ok_or_else(expected)
}

fn moment(text: &str) -> Option<u64> {
    let digits = |text: &str, len: usize| {
        let right = text.len() == len && text.bytes().all(|b| b.is_ascii_digit());
        right.then(|| text.parse::<u64>().ok())?
    };
    let (date, clock) = match text.split_once('T') {
        Some((date, clock)) => (date, clock.strip_suffix('Z')?),
        None => (text, "00:00:00"),
    };
    let mut parts = date.split('-');
    let year = digits(parts.next()?, 4)?;
    let month = digits(parts.next()?, 2)?;
    let day = digits(parts.next()?, 2)?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + u64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if parts.next().is_some() || year < 1970 || !(1..=length).contains(&day) {
        return None;
    }
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = clock.split(':');
    let hour = digits(parts.next()?, 2).filter(|h| *h < 24)?;
    let minute = digits(parts.next()?, 2).filter(|m| *m < 60)?;
    let second = digits(parts.next()?, 2).filter(|s| *s < 60)?;
    if parts.next().is_some() || !(1..=6).contains(&fraction.len()) {
        return None;
    }
    let micros = digits(fraction, fraction.len())? * 10_u64.pow(6 - fraction.len() as u32);
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(seconds * 1_000_000 + micros)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years are counted from March, so
/// that the leap day is the last one of its year.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

/// A length of time for people, in its two largest units.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    if (1..60).contains(&seconds) && time.subsec_millis() > 0 {
        return format!("{:.1} s", time.as_secs_f64());
    }
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let Some(at) = units.iter().position(|(unit, _)| seconds >= *unit) else {
        return format!("{} ms", time.as_millis());
    };
    let (unit, name) = units[at];
    let next = units.get(at + 1).map(|(unit, name)| (unit, name));
    match next.map(|(smaller, name)| (seconds % unit / smaller, name)) {
        Some((rest, next)) if rest > 0 => format!("{} {name} {rest} {next}", seconds / unit),
        _ => format!("{} {name}", seconds / unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show;

    #[test]
    fn times_are_read_as_they_are_shown() {
        for at in [
            0,
            1,
            951_782_400_000_001,
            1_769_860_800_000_000,
            4_102_444_799_999_999,
        ] {
            assert_eq!(time(&show::time(at)), Ok(at));
        }
        assert_eq!(time("2000-02-29"), Ok(951_782_400_000_000));
        assert_eq!(time("2000-02-29T00:00:00.5Z"), Ok(951_782_400_500_000));
        let ago = time("1h").unwrap();
        let now = time("0s").unwrap();
        assert!(
            (3_599_000_000..3_700_000_000).contains(&(now - ago)),
            "{ago} {now}"
        );
        for bad in [
            "",
            "yesterday",
            "2026",
            "2026-13-01",
            "2026-02-29",
            "1969-12-31",
            "-5m",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00.1234567Z",
            "99999999999h",
        ] {
            assert!(time(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("3"), Ok(Duration::from_secs(3)));
        for long in [
            "9223372036854775807s",
            "99999999999999999999h",
            &"9".repeat(400),
        ] {
            assert_eq!(duration(long), Ok(LONGEST), "{long}");
        }
        for bad in ["", "ms", "-1s", "1 s", "1d", "1.2.3s", "inf"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_interval_is_no_loop_without_a_pause() {
        assert_eq!(interval("1us"), Ok(Duration::from_micros(1)));
        for none in ["0", "0s", "0.0h"] {
            assert!(interval(none).is_err(), "{none}");
        }
        assert!(interval("1d").is_err());
    }

    #[test]
    fn spans_are_told_in_two_units() {
        for (millis, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_500, "1.5 s"),
            (3_000, "3 s"),
            (60_000, "1 min"),
            (61_000, "1 min 1 s"),
            (3_659_000, "1 h"),
            (7_380_000, "2 h 3 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn heartbeats() {
        assert_eq!(heartbeat("off"), Ok(Heartbeat(None)));
        let seconds = |n| Ok(Heartbeat(Some(Duration::from_secs(n))));
        assert_eq!(heartbeat("1"), seconds(1));
        assert_eq!(heartbeat("10"), seconds(10));
        assert_eq!(
            heartbeat(&u64::MAX.to_string()),
            Ok(Heartbeat(Some(LONGEST)))
        );
        for bad in ["", "0", "-1", "1.5", "10s", "OFF", "none"] {
            assert!(heartbeat(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("65536"), Ok(65536));
        assert_eq!(size("64KiB"), Ok(65536));
        assert_eq!(size("64m"), Ok(64 << 20));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("1TiB"), Ok(1 << 40));
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
