//! What happens on the way, reported in words on standard error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use amps_client::{Client, ConnectionState, Event, Events, LinkEnd};
use amps_store::Place;

use crate::output::{SideOutput, object, say};
use crate::units::span;

/// Reasons that one outage may have, beside the first: of several servers, each has its own.
const REASONS: usize = 4;

/// Tells events until the client is closed. An outage is told when it begins, each reason for it
/// once, and again every minute while messages wait. A server whose fields cannot be read is told
/// once. Once the store is `saved` elsewhere, that it serves no link is no failure, and not told.
pub(super) fn tell(
    client: &Client,
    store: String,
    out: Arc<SideOutput>,
    saved: Arc<AtomicBool>,
) -> impl Future<Output = ()> + use<> {
    let events = client.events();
    // Asked for after the events were, so that an outage is either in this state or among the
    // events.
    let health = client.health();
    if !health.about.is_empty() {
        say(&format!("note: {}", link(&health.server, &health.about)));
    }
    let before = health.last_error.filter(|_| health.logons == 0);
    let before = before.map(|(server, why)| {
        let told = no_connection(&server, &why);
        let waits = backlog(health.unsettled, None, &store);
        say(&format!("note: {told}; trying again ({waits})"));
        vec![told]
    });
    tell_events(events, store, before, health.about, out, saved)
}

/// `outage`: the reasons of one that goes on, and `about`: what the last link said of itself, as they
/// were reported.
async fn tell_events(
    mut events: Events,
    store: String,
    mut outage: Option<Vec<String>>,
    mut about: String,
    out: Arc<SideOutput>,
    saved: Arc<AtomicBool>,
) {
    let mut unreadable = false;
    let mut told_last = None;
    while let Some(event) = events.next().await {
        if saved.load(Ordering::Acquire) && comes_of_saving(&event) {
            continue;
        }
        let text = match event {
            Event::SetAside { records, sequences } => format!(
                "a power cut left a hole in {store}: {records} intact record(s) behind it{} are \
                 set aside and not sent. A copy of the file from before this run still has \
                 them: amps store repair FILE --to NEW",
                range(sequences)
            ),
            Event::RefusalSetAside { sequence } => format!(
                "the refusal of message {sequence} is among what is set aside; the server does \
                 not repeat it"
            ),
            Event::Damaged {
                offset,
                bytes,
                sequences,
                earlier,
                needed,
            } => format!(
                "{bytes} byte(s) of {store} are damaged at offset {offset}{}; {}",
                range(sequences),
                match needed {
                    true if earlier => {
                        "they are given up, perhaps copies or refusals of earlier messages with them"
                    }
                    true => "they are given up",
                    false => "nothing needed stood there",
                }
            ),
            Event::GivenUp { first, last } => {
                format!("an earlier run gave up messages {first} to {last}: they were damaged")
            }
            Event::Outage {
                server,
                why,
                attempts,
                lasted,
                waiting,
                oldest,
            } => {
                let told = no_connection(&server, &why);
                let reasons = outage.get_or_insert_default();
                let is_new = !reasons.contains(&told);
                if is_new {
                    reasons.push(told.clone());
                } else if attempts <= 1 {
                    continue;
                }
                let waits = backlog(waiting, oldest, &store);
                match attempts {
                    0 | 1 => format!("{told}; trying again ({waits})"),
                    _ => format!(
                        "still {told}, {attempts} attempts in {}; trying again ({waits})",
                        span(lasted)
                    ),
                }
            }
            Event::LinkUp {
                server, about: now, ..
            } => {
                if now.is_empty() || now == about {
                    continue;
                }
                about = now;
                link(&server, &about)
            }
            Event::LinkLost { server, why, .. } => {
                let told = no_connection(&server, &why);
                match &mut outage {
                    Some(reasons) if reasons.len() <= REASONS && !reasons.contains(&told) => {
                        reasons.push(told.clone());
                    }
                    _ => continue,
                }
                format!("{told}; trying again")
            }
            Event::OutageOver {
                server,
                attempts,
                lasted,
                waiting,
            } => {
                outage = None;
                format!(
                    "logged on to {server} after {attempts} attempt(s) in {}; {waiting} \
                     message(s) wait in {store} and are sent now",
                    span(lasted)
                )
            }
            Event::Flapping {
                server,
                why,
                links,
                waiting,
            } => format!(
                "{links} connections were lost soon after their logon, the last one to {server}: \
                 {why} ({})",
                backlog(waiting, None, &store)
            ),
            Event::Stuck {
                server,
                waiting,
                oldest,
            } => format!(
                "{server} has acknowledged nothing for a minute ({})",
                backlog(waiting, oldest, &store)
            ),
            Event::GaveUp { why } => format!("no more attempts to connect are made: {why}"),
            Event::State {
                state: ConnectionState::Shutdown,
                ..
            } => return,
            Event::PublishGap {
                unknown_publisher: true,
                settled,
                ..
            } => format!(
                "the server does not know this publisher: what it acknowledged before, up to \
                 sequence {settled}, is not there (any more)"
            ),
            Event::PublishGap {
                server, settled, ..
            } => format!(
                "the server is behind: it has sequence {server} of {settled} acknowledged before"
            ),
            Event::ForeignFigure {
                figure,
                may_have_sent,
            } => format!(
                "the server speaks of message {figure}, this store can have sent up to \
                 {may_have_sent}: another publisher uses the name, or the store is an old copy. \
                 Nothing was settled on that claim"
            ),
            Event::Rebased {
                from,
                first_wire,
                possible_duplicates,
            } => format!(
                "numbering goes on above the server's: sequence {from} goes out as {first_wire}; \
                 {possible_duplicates} message(s) may reach it twice"
            ),
            Event::NameShared { .. } => "another live publisher seems to use this client name; \
                 give each its own"
                .to_owned(),
            Event::Stalled { sequence, links } => format!(
                "message {sequence} was the first unsettled one at the end of {links} \
                 connections; the server may stumble over it"
            ),
            Event::Unattributed { figure, reason } => match figure {
                Some(figure) => format!(
                    "the server refused a message under number {figure}, which names none of \
                     this store for sure: {reason}"
                ),
                None => format!("the server refused a message without saying which: {reason}"),
            },
            Event::UnreadableField { field } => {
                if std::mem::replace(&mut unreadable, true) {
                    continue;
                }
                format!(
                    "the server sent a field \"{field}\" that cannot be read; an ack whose number \
                     is unreadable settles nothing"
                )
            }
            Event::RefusalNotLogged { sequence, reason } => format!(
                "message {sequence} was refused late and the store had no room to note it: {reason}"
            ),
            Event::RefusalHeld {
                sequence, reason, ..
            } => format!(
                "message {sequence} was refused, and {store} could not note it, since its device \
                 failed: {reason}"
            ),
            Event::StoreMoved { place } => {
                if out.is_json() {
                    out.object(object! { "event": "store_moved", "place": name(place) });
                }
                moved(&store, place)
            }
            Event::StoreFailed { doing, error } => format!("{store} could not {doing}: {error}"),
            Event::SendingStopped { through } => format!(
                "nothing above sequence {through} is sent for now: {store} cannot make it durable"
            ),
            Event::SendingResumed => "sending goes on".to_owned(),
            Event::ClientFailed { why } => format!("the client failed: {why}"),
            Event::TurnedAway {
                sequence, reason, ..
            } => format!(
                "the server does not take message {sequence} for now: {reason}; it is tried again, and \
                 what is behind it waits"
            ),
            Event::LineStopped { reason, .. } => {
                format!("the server takes nothing: {reason}; it is tried again")
            }
            Event::Unreadable { sequence, error } => {
                // Every link stops at a damaged one.
                let told = told_last.replace((sequence, error.clone()));
                if told.as_ref() == told_last.as_ref() {
                    continue;
                }
                format!("message {sequence} cannot be read: {error}")
            }
            _ => continue,
        };
        say(&format!("note: {text}"));
    }
}

fn link(server: &str, about: &str) -> String {
    format!("{server}: {about}")
}

/// Whether it may come of nothing but that the store was closed and its messages are elsewhere.
fn comes_of_saving(event: &Event) -> bool {
    matches!(
        event,
        Event::Outage { .. }
            | Event::LinkLost { .. }
            | Event::Flapping { .. }
            | Event::StoreFailed { .. }
            | Event::SendingStopped { .. }
    )
}

fn no_connection(server: &str, why: &LinkEnd) -> String {
    match why {
        LinkEnd::LogonRefused(reason) => format!("{server} refused the logon: {reason}"),
        why => format!("no connection to {server}: {why}"),
    }
}

fn backlog(waiting: u64, oldest: Option<Duration>, store: &str) -> String {
    let age = oldest.filter(|oldest| waiting > 0 && oldest.as_secs() > 0);
    match (waiting, age) {
        (0, _) => format!("messages wait in {store} meanwhile"),
        (n, None) => format!("{n} message(s) wait in {store}"),
        (n, Some(age)) => format!(
            "{n} message(s) wait in {store}, the oldest for {}",
            span(age)
        ),
    }
}

fn moved(store: &str, place: Place) -> String {
    match place {
        Place::There => format!("{store} is back in its place"),
        Place::Renamed => format!("{store} was renamed, and stays in use where it is now"),
        Place::Replaced => format!(
            "{store} was renamed, and stays in use where it is now; the file at its path is \
             another one"
        ),
        _ => format!(
            "{store} was removed while it is in use: it takes nothing more. What it holds is sent \
             as far as the server takes it, and is gone with this process"
        ),
    }
}

/// A place, in one word.
pub(super) fn name(place: Place) -> &'static str {
    match place {
        Place::There => "there",
        Place::Renamed => "renamed",
        Place::Replaced => "replaced",
        Place::Gone => "gone",
        _ => "unknown",
    }
}

/// The messages concerned, as part of a sentence.
fn range(sequences: Option<(u64, u64)>) -> String {
    sequences.map_or(String::new(), |(first, last)| {
        format!(" (messages {first} to {last})")
    })
}
