//! Messages as newline-delimited JSON: one object per line, every field of the envelope,
//! payloads that round-trip whatever they hold.
//!
//! | Field | Holds |
//! |---|---|
//! | `sequence` | number in the store it came from; a new one is given at import |
//! | `state` | `unsettled`, `rejected`, `settled`, `set aside`; settled ones are not imported |
//! | `operation` | `publish`, `delta_publish`, `sow_delete_by_filter`, `…_by_keys`, `…_by_data` |
//! | `topic` | text |
//! | `text` or `base64` | the payload: text when it is UTF-8 |
//! | `correlation_id`, `sow_key`, `selector`, `options` | text, absent when not set |
//! | `expiration` | seconds, absent when not set |
//! | `published_at` | microseconds since the Unix epoch |
//! | `user_tag` or `user_tag_base64` | as the payload, absent when empty |
//! | `requeue_of`, `imported` | where the message came from, absent for a publish |
//! | `rejection` | `reason`, `reason_cut`, `at`, `late` of a refusal that waits |

use std::borrow::Cow;
use std::io::{self, BufRead, Write};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::api::{Appended, MAX_TAG, PublishStore, Rejected};
use crate::envelope::{Envelope, Operation, Origin};
use crate::error::{AppendError, StoreError};
use crate::inspect::{Filter, Inspection, Message, MessageState};
use crate::store::Store;

/// Longest line taken: the largest record there can be, with every byte escaped.
const LONGEST_LINE: u64 = 256 << 20;
/// How long the store's own thread may take to make another segment ready.
const GROWS: Duration = Duration::from_secs(30);

/// What an export wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// Messages written.
    pub messages: u64,
    /// Refusals among them.
    pub rejections: u64,
    /// Messages left out because this program does not know the version of their envelope.
    pub unreadable: u64,
}

/// An export failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The store cannot be read.
    #[error("cannot read the store: {0}")]
    Read(#[source] io::Error),
    /// The output cannot be written.
    #[error("cannot write the export: {0}")]
    Write(#[source] io::Error),
}

/// What an import appended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// Messages appended.
    pub messages: u64,
    /// Refusals appended with them.
    pub rejections: u64,
    /// Lines of messages that were settled. They are not imported.
    pub settled: u64,
    /// First and last sequence given out.
    pub sequences: Option<(u64, u64)>,
}

/// An import stopped at a line. The lines before it were imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The input cannot be read.
    #[error("line {line}: cannot read: {error}")]
    Read {
        /// Its number, from 1.
        line: u64,
        /// What the operating system reported.
        #[source]
        error: io::Error,
    },
    /// The line is not an object of an export.
    #[error("line {line}, column {column}: {why}")]
    Json {
        /// Its number, from 1.
        line: u64,
        /// At which character of the line.
        column: u64,
        /// What is wrong.
        why: String,
    },
    /// A field has a value that it cannot have.
    #[error("line {line}: field {field:?}: {why}")]
    Field {
        /// Its number, from 1.
        line: u64,
        /// The field.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The line is longer than any message can be.
    #[error("line {line} is longer than {max} bytes")]
    TooLong {
        /// Its number, from 1.
        line: u64,
        /// The most it may be.
        max: u64,
    },
    /// The store did not take the message.
    #[error("line {line}: {error}")]
    Append {
        /// Its number, from 1.
        line: u64,
        /// Why.
        #[source]
        error: AppendError,
    },
    /// The message was appended, but the store did not take its refusal: the message will be
    /// sent.
    #[error("line {line}: the refusal was not kept: {why}")]
    Reject {
        /// Its number, from 1.
        line: u64,
        /// Why.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a line of an export")]
struct Line<'a> {
    #[serde(default)]
    sequence: u64,
    #[serde(default = "unsettled", borrow)]
    state: Cow<'a, str>,
    #[serde(default = "publish", borrow)]
    operation: Cow<'a, str>,
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    correlation_id: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expiration: Option<u32>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    sow_key: Option<Cow<'a, str>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    selector: Option<Cow<'a, str>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    options: Option<Cow<'a, str>>,
    #[serde(default)]
    published_at: u64,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    user_tag: Option<Cow<'a, str>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    user_tag_base64: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requeue_of: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    imported: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejection: Option<RejectionLine>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    base64: Option<Cow<'a, str>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RejectionLine {
    reason: String,
    #[serde(default)]
    reason_cut: bool,
    at: u64,
    #[serde(default)]
    late: bool,
}

fn unsettled() -> Cow<'static, str> {
    Cow::Borrowed("unsettled")
}

fn publish() -> Cow<'static, str> {
    Cow::Borrowed("publish")
}

const OPERATIONS: [(&str, Operation); 5] = [
    ("publish", Operation::Publish),
    ("delta_publish", Operation::DeltaPublish),
    ("sow_delete_by_filter", Operation::SowDeleteByFilter),
    ("sow_delete_by_keys", Operation::SowDeleteByKeys),
    ("sow_delete_by_data", Operation::SowDeleteByData),
];

const STATES: [MessageState; 4] = [
    MessageState::Unsettled,
    MessageState::Rejected,
    MessageState::Settled,
    MessageState::SetAside,
];

/// Writes the messages that pass the filter, one line each, in the order of
/// [`Inspection::messages`].
///
/// # Errors
/// The store cannot be read, or the output cannot be written. What was written is whole lines,
/// except perhaps for the last one.
pub fn export(
    inspection: &Inspection,
    filter: Filter,
    mut to: impl Write,
) -> Result<Exported, ExportError> {
    let mut done = Exported::default();
    for message in inspection.messages(filter) {
        let message = message.map_err(ExportError::Read)?;
        let Some(line) = Line::of(&message) else {
            done.unreadable += 1;
            continue;
        };
        serde_json::to_writer(&mut to, &line).map_err(|e| ExportError::Write(e.into()))?;
        to.write_all(b"\n").map_err(ExportError::Write)?;
        done.messages += 1;
        done.rejections += u64::from(message.rejection.is_some());
    }
    to.flush().map_err(ExportError::Write)?;
    Ok(done)
}

/// Appends the messages of an export to a store, in order, under new sequences, and marked as
/// imported: they do not move the resume point. A refusal that waited is logged again for the new
/// sequence, so that it waits there. Empty lines are skipped.
///
/// Nothing is synced; sync or close the store before you delete the export. Memory is bounded by
/// the longest line. An append may block while the store grows: do not call this on an async
/// worker.
///
/// # Errors
/// See [`ImportError`]; every one names its line.
pub fn import(from: impl BufRead, store: &Store) -> Result<Imported, ImportError> {
    let mut done = Imported::default();
    import_into(from, store, &mut done)?;
    Ok(done)
}

fn import_into(
    mut from: impl BufRead,
    store: &Store,
    done: &mut Imported,
) -> Result<(), ImportError> {
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let limited = &mut io::Read::take(&mut from, LONGEST_LINE + 1);
        let read = limited.read_until(b'\n', &mut bytes);
        if read.map_err(|error| ImportError::Read { line, error })? == 0 {
            break;
        }
        if bytes.len() as u64 > LONGEST_LINE {
            let max = LONGEST_LINE;
            return Err(ImportError::TooLong { line, max });
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let parsed: Line<'_> = serde_json::from_slice(&bytes).map_err(|e| ImportError::Json {
            line,
            column: e.column() as u64,
            why: e.to_string(),
        })?;
        parsed.append(line, store, done)?;
    }
    Ok(())
}

impl<'a> Line<'a> {
    fn of(message: &'a Message) -> Option<Self> {
        let envelope = message.envelope.as_ref()?;
        let operation = OPERATIONS.iter().find(|o| o.1 == envelope.operation);
        let (text, base64) = encoded(&message.payload);
        let (user_tag, user_tag_base64) = if envelope.user_tag.is_empty() {
            (None, None)
        } else {
            encoded(&envelope.user_tag)
        };
        fn borrow<'b>(field: &'b Option<Cow<'_, str>>) -> Option<Cow<'b, str>> {
            field.as_deref().map(Cow::Borrowed)
        }
        Some(Line {
            sequence: message.sequence,
            state: message.state.to_string().into(),
            operation: operation.map_or_else(publish, |o| o.0.into()),
            topic: Cow::Borrowed(&envelope.topic),
            correlation_id: borrow(&envelope.correlation_id),
            expiration: envelope.expiration,
            sow_key: borrow(&envelope.sow_key),
            selector: borrow(&envelope.selector),
            options: borrow(&envelope.options),
            published_at: envelope.published_at,
            user_tag,
            user_tag_base64,
            requeue_of: match envelope.origin {
                Origin::Requeue { accepts } => Some(accepts),
                _ => None,
            },
            imported: envelope.origin == Origin::Import,
            rejection: message.rejection.as_ref().map(|r| RejectionLine {
                reason: r.reason.clone(),
                reason_cut: r.reason_cut,
                at: r.at,
                late: r.late,
            }),
            text,
            base64,
        })
    }

    fn append(&self, line: u64, store: &Store, done: &mut Imported) -> Result<(), ImportError> {
        let field = |field, why: &str| ImportError::Field {
            line,
            field,
            why: why.to_owned(),
        };
        let state = STATES.iter().find(|s| s.to_string() == self.state);
        let state = *state.ok_or_else(|| field("state", "not a state of a message"))?;
        let operation = OPERATIONS.iter().find(|o| o.0 == self.operation);
        let (_, operation) = *operation.ok_or_else(|| field("operation", "not an operation"))?;
        let payload = decoded(&self.text, &self.base64)
            .map_err(|why| field("base64", &why))?
            .ok_or_else(|| field("text", "exactly one of \"text\" and \"base64\" is needed"))?;
        let user_tag = decoded(&self.user_tag, &self.user_tag_base64)
            .map_err(|why| field("user_tag_base64", &why))?
            .unwrap_or_default();
        if self.user_tag.is_some() && self.user_tag_base64.is_some() {
            return Err(field("user_tag", "given twice"));
        }
        if user_tag.len() > MAX_TAG {
            return Err(field("user_tag", "longer than 64 bytes"));
        }
        if (state == MessageState::Rejected) != self.rejection.is_some() {
            let why = "a rejected message has one, and no other";
            return Err(field("rejection", why));
        }
        if state == MessageState::Settled {
            done.settled += 1;
            return Ok(());
        }
        let envelope = Envelope {
            operation,
            topic: Cow::Borrowed(&self.topic),
            correlation_id: self.correlation_id.as_deref().map(Cow::Borrowed),
            expiration: self.expiration,
            sow_key: self.sow_key.as_deref().map(Cow::Borrowed),
            selector: self.selector.as_deref().map(Cow::Borrowed),
            options: self.options.as_deref().map(Cow::Borrowed),
            published_at: self.published_at,
            user_tag,
            origin: Origin::Import,
        };
        let sequence = append(store, &envelope, &payload)
            .map_err(|error| ImportError::Append { line, error })?
            .sequence;
        done.messages += 1;
        let first = done.sequences.map_or(sequence, |s| s.0);
        done.sequences = Some((first, sequence));
        if let Some(rejection) = &self.rejection {
            let refused = store.reject(sequence, &rejection.reason, rejection.at);
            let why = match refused {
                Ok(Rejected::Logged { .. }) => {
                    done.rejections += 1;
                    return Ok(());
                }
                Ok(Rejected::Held { .. }) => "the log takes no more after a failed sync".to_owned(),
                Ok(Rejected::Known) => "the message was refused before".to_owned(),
                Ok(Rejected::NoRoom) => "there is no room for a late refusal".to_owned(),
                Ok(Rejected::Unknown) => "the store never gave out its number".to_owned(),
                Err(error) => StoreError::to_string(&error),
            };
            return Err(ImportError::Reject { line, why });
        }
        Ok(())
    }
}

/// Appends, and waits only while room is being made: nobody settles anything meanwhile, so a
/// store at its limit stays full.
fn append(store: &Store, envelope: &Envelope<'_>, payload: &[u8]) -> Result<Appended, AppendError> {
    match store.append(envelope, payload) {
        Err(AppendError::MakingRoom { .. }) => {
            store.append_wait(envelope, payload, Instant::now() + GROWS)
        }
        other => other,
    }
}

/// As text if it is UTF-8, otherwise as base64.
fn encoded(bytes: &[u8]) -> (Option<Cow<'_, str>>, Option<Cow<'_, str>>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(Cow::Borrowed(text)), None),
        Err(_) => (None, Some(Cow::Owned(STANDARD.encode(bytes)))),
    }
}

/// `Ok(None)` when neither or both are there.
fn decoded<'b>(
    text: &'b Option<Cow<'_, str>>,
    base64: &'b Option<Cow<'_, str>>,
) -> Result<Option<Cow<'b, [u8]>>, String> {
    match (text, base64) {
        (Some(text), None) => Ok(Some(Cow::Borrowed(text.as_bytes()))),
        (None, Some(base64)) => match STANDARD.decode(base64.as_bytes()) {
            Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
            Err(error) => Err(error.to_string()),
        },
        _ => Ok(None),
    }
}
