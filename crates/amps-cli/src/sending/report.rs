//! What became of the messages.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use amps_client::Order;
use amps_store::{Rejection, Store, StoredMessage, Unrecorded};
use serde_json::{Map, Value};

use crate::body;
use crate::output::{SideOutput, object, say};
use crate::resume::Stored;
use crate::terminal;

/// Rejections that are read from the store at a time.
const PAGE: usize = 256;

/// How long a refusal waits for the reader of earlier ones.
const PATIENCE: Duration = Duration::from_secs(2);

/// Rejected lines shown to a person one by one.
const SHOWN: u64 = 20;

/// The final report, about this run, whichever run published the messages.
pub(super) struct Report {
    pub(super) published: u64,
    pub(super) persisted: u64,
    pub(super) persisted_at_logon: u64,
    /// Settled because the server had seen their ids before, or was asked for them and has them.
    pub(super) duplicates: u64,
    pub(super) found: u64,
    /// That may be stored twice.
    pub(super) possible_duplicates: u64,
    /// Of the last link to a server of NATS.
    pub(super) order: Option<Order>,
    pub(super) about: String,
    pub(super) rejected: u64,
    /// Refused after a success that covered them.
    pub(super) late: u64,
    /// Refusals that named no message.
    pub(super) unattributed: u64,
    /// Publishes carried their sequence as command id.
    pub(super) publish_ids: bool,
    pub(super) left: u64,
    pub(super) resent: u64,
    /// The run ended before its input did, or was asked to end.
    pub(super) stopped: bool,
    /// The first signal that asked it to end.
    pub(super) signal: Option<&'static str>,
    pub(super) recovered: u64,
    pub(super) lines: u64,
    pub(super) resumed_at: u64,
    /// The line that a next run would begin with.
    pub(super) next_line: Option<u64>,
    /// Bytes of an unfinished line, which is no message.
    pub(super) unfinished: u64,
    /// Lines that were read but not stored.
    pub(super) unstored: u64,
    /// Refusals in the store, of this run and of others.
    pub(super) waiting_refusals: u64,
    /// Those of this run.
    pub(super) new_refusals: u64,
    /// What a store whose device failed could not note; its messages are among `left`.
    pub(super) unrecorded: Unrecorded,
    /// Where the store's file is, in one word; `None`: it is in memory.
    pub(super) store: Option<&'static str>,
    /// Where what was left of a store that is gone was written.
    pub(super) evacuated_to: Option<String>,
}

impl Report {
    /// Prints it, as the last thing on standard output.
    pub(super) fn tell(&self, out: &SideOutput) {
        let Report {
            published,
            persisted,
            persisted_at_logon,
            rejected,
            late,
            unattributed,
            left,
            resent,
            stopped,
            ..
        } = self;
        if out.is_json() {
            return out.object(object! {
                "event": "report",
                "published": *published,
                "persisted": *persisted,
                "persisted_at_logon": *persisted_at_logon,
                "duplicates": self.duplicates,
                "found": self.found,
                "possible_duplicates": self.possible_duplicates,
                "rejected": *rejected,
                "late": *late,
                "unattributed": *unattributed,
                "left": *left,
                "resent": *resent,
                "stopped": *stopped,
                "signal": self.signal,
                "recovered": self.recovered,
                "lines": self.lines,
                "resumed_at": self.resumed_at,
                "next_line": self.next_line,
                "unfinished": self.unfinished,
                "unstored": self.unstored,
                "unrecorded": self.unrecorded.messages,
                "unrecorded_refusals": self.unrecorded.refusals,
                "store": self.store,
                "evacuated_to": self.evacuated_to.as_deref(),
                "order": self.order.map(|order| match order {
                    Order::Kept => "chained",
                    Order::MayOvertake => "unchained",
                }),
                "about": Some(self.about.as_str()).filter(|about| !about.is_empty()),
            });
        }
        // Only of servers that know messages by ids.
        let by_ids = match (self.duplicates, self.found, self.order) {
            (0, 0, None) => String::new(),
            (duplicates, found, _) => format!("duplicates {duplicates}  found {found}  "),
        };
        let twice = match (self.possible_duplicates, self.order) {
            (0, None) => String::new(),
            (count, _) => format!("possible_duplicates {count}  "),
        };
        let order = match &self.order {
            None => "",
            Some(Order::Kept) => "  order chained",
            Some(Order::MayOvertake) => "  order unchained",
        };
        out.line(&format!(
            "published {published}  persisted {persisted}  persisted_at_logon \
             {persisted_at_logon}  {by_ids}{twice}rejected {rejected}  late {late}  unattributed {unattributed}  \
             left {left}  resent {resent}  stopped {}{order}",
            u8::from(*stopped)
        ));
    }

    /// Everything that the server refused in this run, whether or not it said what, and whether
    /// or not in time.
    pub(super) fn refusals(&self) -> u64 {
        self.rejected + self.late + self.unattributed
    }

    /// Says on standard error where the refusals are, of which `told` were printed.
    pub(super) fn tell_refusals(&self, told: u64, path: Option<&Path>) {
        let named = self.rejected + self.late;
        if let (Some(path), waiting @ 1..) = (path, self.new_refusals) {
            say(&format!(
                "note: {waiting} message(s) were refused and wait for you: amps failed list {}",
                path.display()
            ));
        }
        if self.late > 0 {
            say(&format!(
                "note: {} message(s) were acknowledged first and refused afterwards; they count as \
                 persisted as well",
                self.late
            ));
        }
        if named > told {
            say(&format!(
                "note: {} of the {named} refused came too late for the list, or the store had no \
                 room to note them",
                named - told
            ));
        }
        if self.unattributed > 0 {
            let advice = match self.publish_ids {
                true => "",
                false => ". With --publish-ids such a server says which",
            };
            say(&format!(
                "note: {} refusal(s) named no message of this store for sure: what was refused may \
                 count as persisted{advice}",
                self.unattributed
            ));
        }
    }
}

/// Tells the rejections of this run apart from those that waited before.
pub(super) struct Refused {
    before: HashSet<u64>,
}

impl Refused {
    /// Looks at the store before the client is opened.
    pub(super) fn before(store: &Store) -> Self {
        let mut before = HashSet::new();
        let mut from = 0;
        while let Some(page) = page(store, &mut from) {
            before.extend(page.iter().map(|rejection| rejection.sequence));
        }
        Refused { before }
    }

    /// How many waited before.
    pub(super) fn earlier(&self) -> u64 {
        self.before.len() as u64
    }

    /// Reports each message that was refused in this run, with the reason. Returns how many there
    /// are. If the reader takes nothing for a while no more of them are reported, since the store
    /// must be closed whoever reads.
    pub(super) async fn tell_new(&self, store: &Store, out: &SideOutput) -> u64 {
        let (mut told, mut untold) = (0, 0);
        let mut listens = true;
        let mut message = StoredMessage::new();
        let mut from = 0;
        while let Some(page) = page(store, &mut from) {
            for rejection in &page {
                if self.before.contains(&rejection.sequence) {
                    continue;
                }
                told += 1;
                let found = store.get(rejection.sequence, &mut message).unwrap_or(false);
                let original = found.then_some(&message);
                if out.is_json() {
                    listens = listens && tokio::time::timeout(PATIENCE, out.room()).await.is_ok();
                    let object = rejected_object(rejection, original);
                    if !out.object_if_room(object) {
                        untold += 1;
                    }
                    continue;
                }
                match told {
                    1..=SHOWN => out.line(&rejected_line(rejection, original)),
                    n if n == SHOWN + 1 => out.line("… and more: amps failed list FILE"),
                    _ => {}
                }
            }
        }
        if untold > 0 {
            say(&format!(
                "note: nobody read standard output in time, so {untold} refused message(s) were \
                 not listed; they wait in the store"
            ));
        }
        told
    }
}

/// Rejections that wait, a page at a time.
fn page(store: &Store, from: &mut u64) -> Option<Vec<Rejection>> {
    let page = store.rejections(*from, PAGE);
    *from = page.last()?.sequence + 1;
    Some(page)
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
    let reason = terminal::field(rejection.reason.as_bytes());
    text.push_str(&format!(": {reason}"));
    if let Some(original) = original {
        text.push_str(&format!(": {}", body::short(original.payload(), 120)));
    }
    text
}

/// The line a message came from, when it was published with `--resume`.
fn line_number(tag: &[u8]) -> Option<u64> {
    Stored::from_tag(tag).map(Stored::lines)
}
