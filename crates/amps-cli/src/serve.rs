//! `amps serve`: the sandbox server in a process of its own.

use std::net::IpAddr;

use amps_client::uri::{Scheme, Uri};
use amps_sandbox::{Fault, Sandbox};

use crate::args::Serve;
use crate::failure::{Exit, Failure};
use crate::output::{SideOutput, object, say};
use crate::signals::Stop;
use crate::tls;

/// Serves until it is interrupted or terminated.
///
/// # Errors
/// A bad option, an address that cannot be listened on, or a journal that cannot be used.
pub(crate) async fn run(args: Serve, json: bool) -> Result<Exit, Failure> {
    let mut builder = Sandbox::builder().ack_interval(args.ack_interval);
    // Before the first output on standard output: whoever reads that may signal at once.
    let stop = Stop::listen()?;
    if let Some(identity) = tls::identity(&args, &stop)? {
        builder = builder.tls(identity);
    }
    for uri in &args.listen {
        builder = builder.listen(uri.as_str());
    }
    if let Some(dir) = &args.journal {
        builder = builder.journal(dir);
    }
    for topic in args.reject_topic {
        builder = builder.reject_topic(topic);
    }
    for topic in args.reject_invalid_json {
        builder = builder.reject_invalid_json(topic);
    }
    if let Some(login) = &args.require_auth {
        let (user, password) = login.split_once(':').ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                "--require-auth takes user and password, as in anna:secret",
            )
        })?;
        builder = builder.require_auth(user, password);
    }
    if args.challenge {
        builder = builder.challenge();
    }
    for topic in args.sow_topic {
        builder = builder.sow_topic(topic);
    }
    for topic in args.unlogged_topic {
        builder = builder.unlogged_topic(topic);
    }
    if args.verbose {
        builder = builder.on_told(|told| say(&told.to_string()));
    }
    for text in &args.fault {
        builder = builder.fault(fault(text)?);
    }

    let out = SideOutput::stdout(json)?;
    let started = tokio::select! {
        started = builder.start() => started,
        // Starting may have to wait for a name server.
        () = stop.first() => {
            let signal = stop.asked().unwrap_or("a signal");
            return Err(Failure::other(format!("{signal} came before it listened")));
        }
    };
    let sandbox = started.map_err(|e| {
        Failure::other(format!(
            "cannot serve: {e}; choose another --listen or --journal"
        ))
    })?;
    for uri in sandbox.uris() {
        match json {
            true => out.object(object! { "event": "listening", "uri": uri.to_string() }),
            false => out.line(&format!("listening {uri}")),
        }
    }
    match sandbox.uris().iter().find(|uri| !is_local(uri)) {
        None => say("note: it can be reached from this machine only; see --listen"),
        Some(uri) if args.require_auth.is_none() => say(&format!(
            "note: whoever can reach {uri} may publish and subscribe; see --require-auth"
        )),
        Some(_) => {}
    }
    stop.first().await;
    tokio::select! {
        biased;
        () = sandbox.stop() => {}
        () = stop.second() => {}
    }
    Ok(out.last_words(&stop).await)
}

/// Whether an address can be reached only from this machine.
fn is_local(uri: &Uri) -> bool {
    let address = uri.host().trim_matches(['[', ']']).parse::<IpAddr>();
    uri.scheme() == Scheme::Unix
        || uri.host() == "localhost"
        || address.is_ok_and(|address| address.is_loopback())
}

fn fault(text: &str) -> Result<Fault, Failure> {
    text.parse()
        .map_err(|e| Failure::new(Exit::Usage, format!("bad fault {text:?}: {e}")))
}
