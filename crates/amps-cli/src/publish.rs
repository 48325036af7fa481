//! `amps publish`: one message per line of the input.

use std::path::Path;

use amps_client::Message;
use amps_store::{Level, Options, PublishStore, Store};

use crate::args::Publish;
use crate::failure::{Exit, Failure};
use crate::lines::{Line, Lines, open_file};
use crate::output::say;
use crate::sending::{self, Input, Job};
use crate::tls;

/// Publishes every line, then waits for the acknowledgements.
///
/// # Errors
/// One paragraph, for the first thing that went wrong.
pub(crate) async fn run(args: Publish, json: bool) -> Result<Exit, Failure> {
    if args.topic.is_empty() {
        return Err(Failure::new(
            Exit::Usage,
            "the topic is empty; name one with --topic",
        ));
    }
    let connector = tls::connector(&args.sending.server, &args.sending.tls)?;
    // Before the store is created, so that a wrong path leaves nothing behind.
    if args.file.as_os_str() != "-" {
        open_file(&args.file)?;
    }
    let store = open_store(&args)?;
    let resume_at = if args.resume {
        resume_point(&store)?
    } else {
        0
    };
    if args.resume && resume_at == 0 && store.bounds().last > 0 {
        say(
            "note: the store has published before, but not with --resume: it knows no line \
             number, so this run starts with line 1",
        );
    }
    let lines = Lines::open(&args.file, resume_at)?;

    let sandbox = if args.sandbox {
        Some(sending::embedded_sandbox().await?)
    } else {
        None
    };
    let servers = match &sandbox {
        Some(sandbox) => vec![sandbox.uri()],
        None => args.sending.server.clone(),
    };
    let (topic, delta, resume) = (args.topic, args.delta, args.resume);
    let result = sending::run(Job {
        store,
        path: args.store.clone(),
        servers,
        connector,
        flush_timeout: args.sending.flush_timeout,
        input: Some(Input {
            lines,
            message: Box::new(move |line| to_message(&topic, delta, resume, line)),
            resumed_at: resume_at,
            rate: args.rate,
            announce: args.announce,
        }),
        json,
    })
    .await;
    if let Some(sandbox) = sandbox {
        sandbox.stop().await;
    }
    result
}

fn open_store(args: &Publish) -> Result<Store, Failure> {
    if args.store.is_none() && args.durability != Level::Os {
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
        options = options.capacity(capacity);
    }
    match &args.store {
        Some(path) => Store::open(path, options),
        None => Store::memory(options),
    }
    .map_err(|e| Failure::open(&e))
}

/// The user tag of a message is its line number in decimal digits, so that people can read
/// it in `amps store get`.
fn to_message(topic: &str, delta: bool, tagged: bool, line: &Line) -> Message {
    let (topic, bytes) = (topic.to_owned(), line.bytes.clone());
    let message = match delta {
        true => Message::delta_publish(topic, bytes),
        false => Message::publish(topic, bytes),
    };
    match tagged {
        true => message.user_tag(line.number.to_string()),
        false => message,
    }
}

/// The last line that is safely in the store, 0 when none is.
fn resume_point(store: &Store) -> Result<u64, Failure> {
    let Some(tag) = store.resume_tag().filter(|tag| !tag.is_empty()) else {
        return Ok(0);
    };
    std::str::from_utf8(&tag)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| {
            Failure::other(format!(
                "the store's resume point is {:?}, not a line number: another program published \
             with this store; continue with that program, or publish without --resume",
                String::from_utf8_lossy(&tag)
            ))
        })
}

/// How a store is named to people.
pub(crate) fn store_name(path: Option<&Path>) -> String {
    match path {
        Some(path) => format!("the store {}", path.display()),
        None => "the store in memory".to_owned(),
    }
}
