//! What happens on the way, told on standard error in words.

use amps_client::{ConnectionState, Event, Events, LinkEnd};

use crate::output::say;

/// Tells events until the client is closed. An outage is told once, however many attempts it
/// takes, and so is a server whose fields cannot be read.
pub(super) async fn tell(mut events: Events, store: String) {
    let mut outage: Option<String> = None;
    let mut unreadable = false;
    while let Some(event) = events.next().await {
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
            Event::LinkLost { server, why, .. } => {
                let told = match why {
                    LinkEnd::Shutdown => continue,
                    LinkEnd::LogonRefused(reason) => {
                        format!("{server} refused the logon: {reason}; trying again")
                    }
                    why => format!("no connection to {server}: {why}; trying again"),
                };
                if outage.as_ref() == Some(&told) {
                    continue;
                }
                outage = Some(told.clone());
                format!("{told} (messages wait in {store})")
            }
            Event::State {
                state: ConnectionState::Shutdown,
                ..
            } => return,
            Event::State {
                state: ConnectionState::LoggedOn,
                server,
            } => match outage.take() {
                Some(_) => format!("logged on to {server}"),
                None => continue,
            },
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
            Event::StoreFailed { doing, error } => format!("{store} failed while {doing}: {error}"),
            Event::SendingStopped { through } => format!(
                "nothing above sequence {through} is sent for now: {store} cannot make it durable"
            ),
            Event::SendingResumed => "sending goes on".to_owned(),
            Event::ClientFailed { why } => format!("the client failed: {why}"),
            Event::Unreadable { sequence, error } => {
                format!("message {sequence} cannot be read and was not sent: {error}")
            }
            _ => continue,
        };
        say(&format!("note: {text}"));
    }
}

/// The messages concerned, as part of a sentence.
fn range(sequences: Option<(u64, u64)>) -> String {
    sequences.map_or(String::new(), |(first, last)| {
        format!(" (messages {first} to {last})")
    })
}
