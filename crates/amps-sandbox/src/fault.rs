//! Faults that the sandbox can be told to have, and how they are written on a command line.

use std::str::FromStr;
use std::time::Duration;

/// A fault. Messages are counted per link, so a client that reconnects meets the same fault
/// again. What was read before the fault happens is logged and counts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// `close-after:N`: the link is closed after its Nth message; acks that were not sent yet are
    /// lost with it.
    CloseAfter(u64),
    /// `cut-after:N`: the same, with half a frame as the last thing sent.
    CutAfter(u64),
    /// `stall-after:N`: the link stays open, and nothing is read or sent any more.
    StallAfter(u64),
    /// `lose-acks-after:N`: from the Nth message on, the link gets no acks for messages. None of
    /// them comes later either, since TCP loses the rest of a stream, never its middle.
    LoseAcksAfter(u64),
    /// `delay-acks:200ms`: acks for messages are sent this much later.
    DelayAcks(Duration),
    /// `forget:NAME`: forget a client name's sequences, at once, and for good.
    Forget(String),
}

/// A fault that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is no fault; write close-after:N, cut-after:N, stall-after:N, \
     lose-acks-after:N, delay-acks:200ms or forget:NAME, with N above zero"
)]
pub struct FaultError {
    /// What was written.
    pub text: String,
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let error = || FaultError {
            text: text.to_owned(),
        };
        let (name, value) = text.split_once(':').ok_or_else(error)?;
        let count = || {
            value
                .parse()
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(error)
        };
        match name {
            "close-after" => count().map(Fault::CloseAfter),
            "cut-after" => count().map(Fault::CutAfter),
            "stall-after" => count().map(Fault::StallAfter),
            "lose-acks-after" => count().map(Fault::LoseAcksAfter),
            "delay-acks" => parse_duration(value)
                .map(Fault::DelayAcks)
                .ok_or_else(error),
            "forget" if !value.is_empty() => Ok(Fault::Forget(value.to_owned())),
            _ => Err(error()),
        }
    }
}

/// Reads `250ms`, `1s`, `2m`, or a bare number of seconds.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let count: u64 = text[..digits].parse().ok()?;
    match &text[digits..] {
        "us" => Some(Duration::from_micros(count)),
        "ms" => Some(Duration::from_millis(count)),
        "s" | "" => Some(Duration::from_secs(count)),
        "m" => count.checked_mul(60).map(Duration::from_secs),
        _ => None,
    }
}

/// The faults in force, one of a kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) close_after: Option<u64>,
    pub(crate) cut_after: Option<u64>,
    pub(crate) stall_after: Option<u64>,
    pub(crate) lose_acks_after: Option<u64>,
    pub(crate) delay_acks: Option<Duration>,
}

impl Faults {
    /// Puts a fault in force, except [`Fault::Forget`], which is not a state and is left to the
    /// caller.
    pub(crate) fn set(&mut self, fault: &Fault) {
        match fault {
            Fault::CloseAfter(count) => self.close_after = Some(*count),
            Fault::CutAfter(count) => self.cut_after = Some(*count),
            Fault::StallAfter(count) => self.stall_after = Some(*count),
            Fault::LoseAcksAfter(count) => self.lose_acks_after = Some(*count),
            Fault::DelayAcks(delay) => self.delay_acks = Some(*delay),
            Fault::Forget(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_as_written() {
        for (text, fault) in [
            ("close-after:5", Fault::CloseAfter(5)),
            ("cut-after:1", Fault::CutAfter(1)),
            ("stall-after:2", Fault::StallAfter(2)),
            ("lose-acks-after:3", Fault::LoseAcksAfter(3)),
            (
                "delay-acks:200ms",
                Fault::DelayAcks(Duration::from_millis(200)),
            ),
            ("delay-acks:2", Fault::DelayAcks(Duration::from_secs(2))),
            ("forget:a:b", Fault::Forget("a:b".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(fault));
        }
        for text in [
            "",
            "close-after",
            "close-after:0",
            "close-after:x",
            "delay-acks:1h",
            "forget:",
        ] {
            assert_eq!(
                text.parse::<Fault>(),
                Err(FaultError {
                    text: text.to_owned()
                })
            );
        }
    }
}
