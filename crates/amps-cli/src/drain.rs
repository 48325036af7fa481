//! `amps drain`: send what a dead publisher left, under the name bound to its store.

use amps_store::{Options, Store, StoredMessage};

use crate::args::Drain;
use crate::carried::{self, Carried};
use crate::failure::{Exit, Failure};
use crate::locked;
use crate::login;
use crate::sending::{self, Job};
use crate::signals::Stop;

/// Sends everything unsettled and waits for the acknowledgements.
///
/// # Errors
/// One paragraph, for the first thing that went wrong.
pub(crate) async fn run(args: Drain, json: bool) -> Result<Exit, Failure> {
    let stop = Stop::listen()?;
    sending::check_evacuate_to(args.sending.evacuate_to.as_deref())?;
    let servers = login::servers(&args.sending.server, &args.sending.login, &stop)?;
    let mut carried = carried::to(&servers, &args.sending, NOTHING, &stop)?;
    let mut options = Options::new();
    if let Some(mode) = args.sending.mode {
        options = options.mode(mode);
    }
    let open = || Store::open_existing(&args.store, options.clone());
    let store = locked::open(open, args.lock_timeout, &stop).await?;
    if let (Carried::JetStream(jetstream), Some(topic)) = (&mut carried, topic(&store)?) {
        jetstream.find_by(topic);
    }
    sending::run(Job {
        store,
        path: Some(args.store),
        servers,
        carried,
        flush_timeout: args.sending.flush_timeout,
        status_interval: args.sending.status_interval,
        evacuate_to: args.sending.evacuate_to,
        mode: args.sending.mode,
        publish_ids: args.sending.publish_ids,
        heartbeat: args.sending.watching.heartbeat,
        input: None,
        stop,
        json,
    })
    .await
}

/// The topic of a store that has nothing to send.
const NOTHING: &str = "nothing";

/// The topic of what goes first, if anything does: by it a stream is found.
fn topic(store: &Store) -> Result<Option<String>, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::other(error.to_string());
    let Some(first) = store.bounds().first_unsettled else {
        return Ok(None);
    };
    let mut message = StoredMessage::new();
    if !store.get(first, &mut message).map_err(|e| wrong(&e))? {
        return Ok(None);
    }
    let envelope = message.envelope().map_err(|e| wrong(&e))?;
    Ok(Some(envelope.topic.into_owned()))
}
