//! `amps publish`: one message per line of the input.

use std::path::Path;

use amps_client::{Client, Message};
use amps_store::{Options, Store};

use crate::args::Publish;
use crate::carried::{self, Carried};
use crate::failure::{Exit, Failure};
use crate::lines::{LastLine, Line, Lines, Source};
use crate::locked;
use crate::login;
use crate::output::say;
use crate::resume::Stored;
use crate::sending::{self, Input, Job};
use crate::signals::Stop;

/// Publishes every line, then waits for the acknowledgements.
///
/// # Errors
/// One paragraph, for the first thing that went wrong.
pub(crate) async fn run(args: Publish, json: bool) -> Result<Exit, Failure> {
    let stop = Stop::listen()?;
    // Checked first: what would be refused later must not leave a file behind.
    let refused = |e: &dyn std::fmt::Display| Failure::new(Exit::Usage, e.to_string());
    Message::publish(args.topic.clone(), "")
        .check()
        .map_err(|e| refused(&format!("--topic: {e}")))?;
    if let Some(name) = &args.client_name {
        Client::check_name(name).map_err(|e| refused(&e))?;
    }
    sending::check_evacuate_to(args.sending.evacuate_to.as_deref())?;
    let servers = login::servers(&args.sending.server, &args.sending.login, &stop)?;
    let carried = carried::to(&servers, &args.sending, &args.topic, &stop)?;
    if args.delta && matches!(carried, Carried::JetStream(_)) {
        return Err(refused(
            &"--delta is for servers of AMPS: JetStream has no such command",
        ));
    }
    // Before the store is created, so that a wrong path leaves nothing behind.
    let source = Source::open(&args.file)?;
    let store = open_store(&args, &stop).await?;
    let resume = args.resume || args.resume_from.is_some();
    let stored = match args.resume_from {
        Some(line) => Stored::Lines(line - 1),
        None if args.resume => resume_point(&store)?,
        None => Stored::Lines(0),
    };
    if args.resume && stored.lines() == 0 && args.resume_from.is_none() && store.bounds().last > 0 {
        say(
            "note: the store has messages, but none that --resume stored here (imported ones tell \
             nothing of this input): it knows no line number, so this run starts with line 1; to \
             start elsewhere, say where with --resume-from LINE",
        );
    }
    let last = match resume && !args.final_line {
        true => LastLine::Waits,
        false => LastLine::Counts,
    };
    let lines = Lines::start(source, stored, last, stop.clone())?;

    let sandbox = if args.sandbox {
        Some(sending::embedded_sandbox().await?)
    } else {
        None
    };
    let servers = match &sandbox {
        Some(sandbox) => vec![sandbox.uri()],
        None => servers,
    };
    let (topic, delta) = (args.topic, args.delta);
    let result = sending::run(Job {
        store,
        path: args.store.clone(),
        servers,
        carried,
        flush_timeout: args.sending.flush_timeout,
        publish_ids: args.sending.publish_ids,
        heartbeat: args.sending.watching.heartbeat,
        input: Some(Input {
            lines,
            message: Box::new(move |line| to_message(&topic, delta, resume, line)),
            resumed_at: stored.lines(),
            unfinished_waits: last == LastLine::Waits,
            rate: args.rate,
            announce: args.announce,
        }),
        status_interval: args.sending.status_interval,
        evacuate_to: args.sending.evacuate_to,
        mode: args.sending.mode,
        stop,
        json,
    })
    .await;
    if let Some(sandbox) = sandbox {
        sandbox.stop().await;
    }
    result
}

async fn open_store(args: &Publish, stop: &Stop) -> Result<Store, Failure> {
    if args.store.is_none() && args.durability.syncs() {
        return Err(Failure::new(
            Exit::Usage,
            "--durability interval and disk need --store FILE: messages in memory survive nothing",
        ));
    }
    let mut options = Options::new().level(args.durability);
    if let Some(name) = &args.client_name {
        options = options.client_name(name.clone());
    }
    if let Some(capacity) = args.capacity {
        options = options.capacity(capacity).grow_to(capacity);
    }
    if let Some(message) = args.max_message {
        options = options.max_message(message);
    }
    if let Some(mode) = args.sending.mode {
        options = options.mode(mode);
    }
    let open = || match &args.store {
        Some(path) => Store::open(path, options.clone()),
        None => Store::memory(options.clone()),
    };
    let store = locked::open(open, args.lock_timeout, stop).await?;
    let made_for = store.largest_record().saturating_sub(1 << 10);
    if let Some(message) = args.max_message.filter(|m| *m > made_for) {
        say(&format!(
            "note: {} was created for records of up to {} bytes, and keeps that: messages of \
             {message} bytes need a new file",
            store_name(args.store.as_deref()),
            store.largest_record()
        ));
    }
    Ok(store)
}

/// The user tag of a message says where its line ends in the input, in a form that people can
/// read in `amps store get`.
fn to_message(topic: &str, delta: bool, tagged: bool, line: &Line) -> Message {
    let (topic, bytes) = (topic.to_owned(), line.bytes.clone());
    let message = match delta {
        true => Message::delta_publish(topic, bytes),
        false => Message::publish(topic, bytes),
    };
    match tagged {
        true => message.user_tag(line.end.tag()),
        false => message,
    }
}

/// How much of the input is safely in the store.
fn resume_point(store: &Store) -> Result<Stored, Failure> {
    let Some(tag) = store.resume_tag().filter(|tag| !tag.is_empty()) else {
        return Ok(Stored::Lines(0));
    };
    let stored = Stored::from_tag(&tag).ok_or_else(|| {
        Failure::other(format!(
            "the store's resume point is {:?}, not a place in an input: another program published \
             with this store; continue with that program, or publish without --resume",
            String::from_utf8_lossy(&tag)
        ))
    })?;
    if let Stored::Lines(lines) = stored {
        say(&format!(
            "note: the resume point is a line number, as earlier versions wrote it: {lines} \
             line(s) are passed over, and whether they are the ones of then cannot be told"
        ));
    }
    Ok(stored)
}

/// The name of a store that people see.
pub(crate) fn store_name(path: Option<&Path>) -> String {
    match path {
        Some(path) => format!("the store {}", path.display()),
        None => "the store in memory".to_owned(),
    }
}
