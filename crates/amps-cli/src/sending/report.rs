//! What became of the messages.

use std::collections::HashSet;

use amps_store::{PublishStore, Rejection, Store, StoredMessage};
use serde_json::{Map, Value};

use crate::body;
use crate::failure::Failure;
use crate::output::{Output, object};

/// Rejections read from the store at once.
const PAGE: usize = 256;

/// Rejected lines shown to a person one by one.
const SHOWN: u64 = 20;

/// The final report: this run, whoever published the messages.
pub(super) struct Report {
    pub(super) published: u64,
    pub(super) persisted: u64,
    pub(super) persisted_at_logon: u64,
    pub(super) rejected: u64,
    pub(super) left: u64,
    pub(super) resent: u64,
    pub(super) recovered: u64,
    pub(super) lines: u64,
    pub(super) resumed_at: u64,
}

impl Report {
    /// Prints it, the last thing on standard output.
    ///
    /// # Errors
    /// The reader went away.
    pub(super) fn tell(&self, out: &mut Output) -> Result<(), Failure> {
        let Report {
            published,
            persisted,
            persisted_at_logon,
            rejected,
            left,
            resent,
            ..
        } = self;
        if out.is_json() {
            return out.object(object! {
                "event": "report",
                "published": *published,
                "persisted": *persisted,
                "persisted_at_logon": *persisted_at_logon,
                "rejected": *rejected,
                "left": *left,
                "resent": *resent,
                "recovered": self.recovered,
                "lines": self.lines,
                "resumed_at": self.resumed_at,
            });
        }
        out.line(&format!(
            "published {published}  persisted {persisted}  persisted_at_logon \
             {persisted_at_logon}  rejected {rejected}  left {left}  resent {resent}"
        ))
    }
}

/// Tells the rejections of this run from those that waited before.
pub(super) struct Refused {
    before: HashSet<u64>,
}

impl Refused {
    /// Looks at the store before the client does.
    pub(super) fn before(store: &Store) -> Self {
        let mut before = HashSet::new();
        for_each(store, |rejection| {
            before.insert(rejection.sequence);
            Ok::<(), Failure>(())
        })
        .unwrap_or_default();
        Refused { before }
    }

    /// Prints each message that was refused in this run, with the reason. Returns how many.
    ///
    /// # Errors
    /// The reader went away.
    pub(super) fn tell_new(&self, store: &Store, out: &mut Output) -> Result<u64, Failure> {
        let mut told = 0;
        let mut message = StoredMessage::new();
        for_each(store, |rejection| {
            if self.before.contains(&rejection.sequence) {
                return Ok(());
            }
            told += 1;
            let found = store.get(rejection.sequence, &mut message).unwrap_or(false);
            let original = found.then_some(&message);
            if out.is_json() {
                return out.object(rejected_object(rejection, original));
            }
            match told {
                1..=SHOWN => out.line(&rejected_line(rejection, original)),
                n if n == SHOWN + 1 => out.line("… and more: amps failed list"),
                _ => Ok(()),
            }
        })?;
        Ok(told)
    }
}

/// A rejection with its message, as an event of a run.
fn rejected_object(rejection: &Rejection, original: Option<&StoredMessage>) -> Map<String, Value> {
    let mut object = object! {
        "event": "rejected",
        "sequence": rejection.sequence,
        "reason": rejection.reason.as_str(),
        "late": rejection.late,
    };
    if let Some(original) = original {
        if let Ok(envelope) = original.envelope() {
            object.insert("topic".to_owned(), envelope.topic.as_ref().into());
            if let Some(line) = line_number(&envelope.user_tag) {
                object.insert("line".to_owned(), line.into());
            }
        }
        body::insert(&mut object, original.payload());
    }
    object
}

fn rejected_line(rejection: &Rejection, original: Option<&StoredMessage>) -> String {
    let mut text = format!("rejected sequence {}", rejection.sequence);
    let line = original.and_then(|o| line_number(&o.envelope().ok()?.user_tag));
    if let Some(line) = line {
        text.push_str(&format!(" (line {line})"));
    }
    text.push_str(&format!(": {}", rejection.reason));
    if let Some(original) = original {
        text.push_str(&format!(": {}", body::short(original.payload(), 120)));
    }
    text
}

/// The line a message came from, when it was published with `--resume`.
fn line_number(tag: &[u8]) -> Option<u64> {
    std::str::from_utf8(tag).ok()?.parse().ok()
}

/// Visits every rejection that waits, a page at a time.
pub(crate) fn for_each<E>(
    store: &impl PublishStore,
    mut visit: impl FnMut(&Rejection) -> Result<(), E>,
) -> Result<(), E> {
    let mut from = 0;
    loop {
        let page = store.rejections(from, PAGE);
        let Some(last) = page.last() else {
            return Ok(());
        };
        from = last.sequence + 1;
        for rejection in &page {
            visit(rejection)?;
        }
    }
}
