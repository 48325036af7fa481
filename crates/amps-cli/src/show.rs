//! Stored messages and rejections, as objects and as lines.

use amps_store::inspect::Message;
use amps_store::{Envelope, Operation, Origin, Rejection};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::body;
use crate::failure::Failure;
use crate::output::{Output, object};
use crate::terminal;

/// Characters of a payload that a list shows.
const IN_LIST: usize = 80;

/// A message with its envelope and payload.
pub(crate) fn message_object(message: &Message) -> Map<String, Value> {
    let mut object = object! {
        "sequence": message.sequence,
        "state": message.state.to_string(),
        "offset": message.offset,
    };
    match &message.envelope {
        Some(envelope) => envelope_fields(&mut object, envelope),
        None => {
            let unknown = "not of a version this program knows";
            object.insert("envelope".to_owned(), unknown.into());
            let bytes = STANDARD.encode(&message.envelope_bytes);
            object.insert("envelope_base64".to_owned(), bytes.into());
        }
    }
    object.insert("bytes".to_owned(), message.payload.len().into());
    body::insert(&mut object, &message.payload);
    object
}

/// The fields of an envelope that are set.
pub(crate) fn envelope_fields(object: &mut Map<String, Value>, envelope: &Envelope<'_>) {
    object.insert("operation".to_owned(), operation(envelope.operation).into());
    object.insert("topic".to_owned(), envelope.topic.as_ref().into());
    object.insert(
        "published_at".to_owned(),
        time(envelope.published_at).into(),
    );
    let texts = [
        ("correlation_id", &envelope.correlation_id),
        ("sow_key", &envelope.sow_key),
        ("selector", &envelope.selector),
        ("options", &envelope.options),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            object.insert(name.to_owned(), text.as_ref().into());
        }
    }
    if let Some(seconds) = envelope.expiration {
        object.insert("expiration".to_owned(), seconds.into());
    }
    if !envelope.user_tag.is_empty() {
        let mut tag = Map::new();
        body::insert(&mut tag, &envelope.user_tag);
        object.insert("user_tag".to_owned(), tag.into());
    }
    match envelope.origin {
        Origin::Publish => {}
        Origin::Requeue { accepts } => {
            object.insert("requeue_of".to_owned(), accepts.into());
        }
        Origin::Import => {
            object.insert("imported".to_owned(), true.into());
        }
    }
}

/// A message on one line.
pub(crate) fn message_line(message: &Message) -> String {
    format!(
        "{:>10}  {:<9}  {}  {:>7}  {}",
        message.sequence,
        message.state.to_string(),
        topic(message),
        message.payload.len(),
        body::short(&message.payload, IN_LIST)
    )
}

/// Shows a message in full to a person.
///
/// # Errors
/// The reader went away.
pub(crate) fn message_text(message: &Message, out: &mut Output) -> Result<(), Failure> {
    for (name, value) in message_object(message) {
        let shown = match (name.as_str(), &value) {
            ("text" | "base64", _) => continue,
            ("user_tag", Value::Object(tag)) => tag.values().next().map_or_else(String::new, plain),
            (_, value) => plain(value),
        };
        let shown = terminal::field(shown.as_bytes());
        out.line(&format!("{name:<15}{shown}"))?;
    }
    out.line("")?;
    out.text(&body::for_people(&message.payload))
}

/// A rejection, with its message if the bytes are still there.
pub(crate) fn rejection_object(
    rejection: &Rejection,
    original: Option<&Message>,
) -> Map<String, Value> {
    let mut object = object! {
        "sequence": rejection.sequence,
        "reason": rejection.reason.as_str(),
        "reason_cut": rejection.reason_cut,
        "rejected_at": time(rejection.at),
        "late": rejection.late,
    };
    if let Some(original) = original {
        object.extend(
            message_object(original)
                .into_iter()
                .filter(|(name, _)| name != "sequence"),
        );
    }
    object
}

/// A rejection on one line.
pub(crate) fn rejection_line(rejection: &Rejection, original: Option<&Message>) -> String {
    let message = original.map_or_else(
        || "(its message is gone)".to_owned(),
        |m| format!("{}  {}", topic(m), body::short(&m.payload, IN_LIST)),
    );
    format!(
        "{:>10}  {}  {}  {message}",
        rejection.sequence,
        time(rejection.at),
        terminal::field(rejection.reason.as_bytes())
    )
}

fn topic(message: &Message) -> String {
    let envelope = message.envelope.as_ref();
    envelope.map_or("?".to_owned(), |envelope| {
        terminal::field(envelope.topic.as_bytes())
    })
}

/// A time in microseconds since the Unix epoch, as `2026-01-31T12:00:00.000001Z`.
pub(crate) fn time(micros: u64) -> String {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:06}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Days since 1970-01-01 as a date of the Gregorian calendar. 400 years have 146,097 days, and in
/// a year that begins in March the leap day is the last one.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Publish => "publish",
        Operation::DeltaPublish => "delta_publish",
        Operation::SowDeleteByFilter => "sow_delete_by_filter",
        Operation::SowDeleteByKeys => "sow_delete_by_keys",
        Operation::SowDeleteByData => "sow_delete_by_data",
    }
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(time(951_782_400_000_001), "2000-02-29T00:00:00.000001Z");
        assert_eq!(time(1_709_251_199_999_999), "2024-02-29T23:59:59.999999Z");
        assert_eq!(time(4_102_444_800_000_000), "2100-01-01T00:00:00.000000Z");
        // No field of a file can make it panic.
        assert!(time(u64::MAX).ends_with('Z'));
    }
}
