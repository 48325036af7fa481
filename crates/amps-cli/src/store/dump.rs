//! `amps store dump`: every record of the file.

use amps_store::Rejection;
use amps_store::inspect::{Body, Record, RecordVerdict};
use serde_json::{Map, Value};

use super::{damage, damaged_exit, look, shown, unreadable};
use crate::args::{Select, StoreDump};
use crate::body;
use crate::failure::{Exit, Failure};
use crate::output::{Output, object, say};
use crate::show;
use crate::terminal;

/// Shows every record that passes the filter, in file order.
pub(super) fn dump(args: &StoreDump, out: &mut Output) -> Result<Exit, Failure> {
    let seen = look(&args.file)?;
    out.knows(damage(&seen));
    let mut counts = Counts::default();
    for record in seen.records() {
        let record = record.map_err(|e| unreadable(&args.file, &e))?;
        if !args.select.takes(&record) {
            continue;
        }
        counts.add(&record);
        if out.is_json() {
            let mut object = head(&record);
            object.extend(said(&record.body));
            if let Some(payload) = payload(&record.body) {
                object.insert("bytes".to_owned(), payload.len().into());
                body::insert(&mut object, payload);
            }
            out.object(object)?;
        } else {
            for line in text(&record, args.hex) {
                out.line(&line)?;
            }
        }
    }
    if out.is_json() {
        out.object(counts.report(seen.is_moving()))?;
    } else {
        say(&counts.sentence());
    }
    out.flush()?;
    Ok(damaged_exit(&seen))
}

impl Select {
    /// Whether a record concerns what was asked for. If a topic, sequence or time was asked for,
    /// a record without one does not.
    fn takes(&self, record: &Record) -> bool {
        let message = match &record.body {
            Body::Message { envelope, .. } => Some(envelope),
            _ => None,
        };
        let topic = self
            .topic
            .as_ref()
            .is_none_or(|topic| message.is_some_and(|envelope| envelope.topic == *topic));
        let range = self.first.unwrap_or(0)..=self.last.unwrap_or(u64::MAX);
        let sequences = (self.first.is_none() && self.last.is_none())
            || match &record.body {
                Body::Settlement(settled) => settled.iter().any(|s| range.contains(s)),
                Body::Lost {
                    first_sequence,
                    last_sequence,
                    ..
                } => first_sequence <= range.end() && last_sequence >= range.start(),
                _ => record.sequence != 0 && range.contains(&record.sequence),
            };
        let times = self.since.unwrap_or(0)..=self.until.unwrap_or(u64::MAX);
        let time = match &record.body {
            Body::Message { envelope, .. } => Some(envelope.published_at),
            Body::Rejection(rejection) => Some(rejection.at),
            _ => None,
        };
        let timed = (self.since.is_none() && self.until.is_none())
            || time.is_some_and(|at| times.contains(&at));
        topic && sequences && timed
    }
}

fn kind(record: &Record) -> String {
    record
        .kind
        .map_or_else(|| "damage".to_owned(), |kind| kind.to_string())
}

fn head(record: &Record) -> Map<String, Value> {
    object! {
        "offset": record.offset,
        "segment": record.segment,
        "kind": kind(record),
        "sequence": record.sequence,
        "ordinal": record.ordinal,
        "generation": record.generation,
        "length": record.length,
        "padded_length": record.bytes,
        "verdict": record.verdict.to_string(),
    }
}

fn payload(body: &Body) -> Option<&[u8]> {
    match body {
        Body::Message { payload, .. } => Some(payload),
        Body::Unreadable(bytes) if !bytes.is_empty() => Some(bytes),
        _ => None,
    }
}

/// What a record says, without its payload.
fn said(body: &Body) -> Map<String, Value> {
    match body {
        Body::Message { envelope, .. } => {
            let mut object = Map::new();
            show::envelope_fields(&mut object, envelope);
            object
        }
        Body::Settlement(sequences) => object! { "settles": sequences.clone() },
        Body::Rejection(Rejection {
            reason,
            reason_cut,
            at,
            late,
            ..
        }) => object! {
            "reason": reason.as_str(),
            "reason_cut": *reason_cut,
            "rejected_at": show::time(*at),
            "late": *late,
        },
        Body::Acceptance => Map::new(),
        Body::Mark {
            floor,
            durable,
            next,
            oldest_needed,
            clean,
            tag,
        } => {
            let mut object = object! {
                "settled_through": *floor,
                "durable_ordinal": *durable,
                "next": *next,
                "oldest_needed_ordinal": *oldest_needed,
                "clean": *clean,
            };
            if let Some(tag) = tag {
                let mut shown = Map::new();
                body::insert(&mut shown, tag);
                object.insert("resume_tag".to_owned(), shown.into());
            }
            object
        }
        Body::Epoch {
            follows,
            last_before,
            first_after,
            floor,
            durable,
        } => object! {
            "follows_ordinal": *follows,
            "last_before": *last_before,
            "first_after": *first_after,
            "settled_through": *floor,
            "durable_ordinal": *durable,
        },
        Body::Lost {
            first_ordinal,
            last_ordinal,
            first_sequence,
            last_sequence,
        } => object! {
            "first_ordinal": *first_ordinal,
            "last_ordinal": *last_ordinal,
            "first_sequence": *first_sequence,
            "last_sequence": *last_sequence,
        },
        _ => object! { "readable": false },
    }
}

/// A line with the header, a line with what the record says, and the payload, indented.
fn text(record: &Record, hex: bool) -> Vec<String> {
    let mut lines = vec![format!(
        "{:>10}  {:<10}  sequence {:<8}  ordinal {:<8}  generation {:<4}  {:>6} bytes  {}",
        record.offset,
        kind(record),
        record.sequence,
        record.ordinal,
        record.generation,
        record.bytes,
        record.verdict,
    )];
    let words: Vec<String> = said(&record.body)
        .iter()
        .map(|(name, value)| format!("{name} {}", terminal::field(shown(value).as_bytes())))
        .collect();
    if !words.is_empty() {
        lines.push(format!("            {}", words.join("  ")));
    }
    if let Some(payload) = payload(&record.body) {
        let shown = match body::harmless(payload) {
            Some(text) if !hex => text.to_owned(),
            _ => body::hex(payload),
        };
        lines.extend(shown.lines().map(|line| format!("            | {line}")));
    }
    lines
}

/// Records that were shown, by verdict.
#[derive(Default)]
struct Counts {
    records: u64,
    verdicts: Vec<(RecordVerdict, u64)>,
}

impl Counts {
    fn add(&mut self, record: &Record) {
        self.records += 1;
        match self.verdicts.iter_mut().find(|v| v.0 == record.verdict) {
            Some((_, count)) => *count += 1,
            None => self.verdicts.push((record.verdict, 1)),
        }
    }

    fn report(&self, moving: bool) -> Map<String, Value> {
        let by_verdict: Map<String, Value> = self
            .verdicts
            .iter()
            .map(|(verdict, count)| (verdict.to_string(), (*count).into()))
            .collect();
        object! {
            "event": "report",
            "records": self.records,
            "verdicts": by_verdict,
            "moving": moving,
        }
    }

    fn sentence(&self) -> String {
        let verdicts: Vec<String> = self
            .verdicts
            .iter()
            .map(|(verdict, count)| format!("{count} {verdict}"))
            .collect();
        match verdicts.is_empty() {
            true => "0 record(s)".to_owned(),
            false => format!("{} record(s): {}", self.records, verdicts.join(", ")),
        }
    }
}
