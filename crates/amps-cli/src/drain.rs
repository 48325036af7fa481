//! `amps drain`: send what a dead publisher left, under the name bound to its store.

use amps_store::{Options, Store};

use crate::args::Drain;
use crate::failure::{Exit, Failure};
use crate::locked;
use crate::login;
use crate::sending::{self, Job};
use crate::signals::Stop;
use crate::tls;

/// Sends everything unsettled and waits for the acknowledgements.
///
/// # Errors
/// One paragraph, for the first thing that went wrong.
pub(crate) async fn run(args: Drain, json: bool) -> Result<Exit, Failure> {
    let stop = Stop::listen()?;
    let servers = login::servers(&args.sending.server, &args.sending.login, &stop)?;
    let connector = tls::connector(&servers, &args.sending.tls, &stop)?;
    let mut options = Options::new();
    if let Some(mode) = args.sending.mode {
        options = options.mode(mode);
    }
    let open = || Store::open_existing(&args.store, options.clone());
    let store = locked::open(open, args.lock_timeout, &stop).await?;
    sending::run(Job {
        store,
        path: Some(args.store),
        servers,
        connector,
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
