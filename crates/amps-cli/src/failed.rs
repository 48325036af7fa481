//! `amps failed`: messages that a server refused, until somebody decides.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use amps_store::{AppendError, Appended, Options, PublishStore, Store};

use crate::args::{FailedCommand, SeqFile};
use crate::failure::{Exit, Failure};
use crate::output::{Output, SideOutput, object, say};
use crate::show;
use crate::signals::Stop;
use crate::store::{damaged_exit, look, unreadable};

/// How long room may take to come that the store is making.
const ROOM: Duration = Duration::from_secs(30);

/// Between two looks at whether it still is.
const ROOM_SLICE: Duration = Duration::from_millis(20);

/// Runs one of the subcommands.
///
/// # Errors
/// One paragraph, for the first thing that went wrong.
pub(crate) async fn run(command: FailedCommand, json: bool) -> Result<Exit, Failure> {
    match command {
        FailedCommand::List { file } => each(&file, json, Form::List),
        FailedCommand::Export { file } => each(&file, true, Form::Export),
        FailedCommand::Show(args) => show_one(&args, json),
        FailedCommand::Accept(args) => accept(&args, json).await,
        FailedCommand::Requeue(args) => requeue(&args, json).await,
    }
}

/// A list ends with a report; an export is nothing but its lines.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    List,
    Export,
}

fn each(file: &Path, json: bool, form: Form) -> Result<Exit, Failure> {
    let seen = look(file)?;
    let unreadable = |e: io::Error| unreadable(file, &e);
    let mut out = Output::stdout(json)?;
    let rejections = seen.rejections().map_err(unreadable)?;
    for rejection in &rejections {
        let original = seen.get(rejection.sequence).map_err(unreadable)?;
        if json {
            out.object(show::rejection_object(rejection, original.as_ref()))?;
        } else {
            out.line(&show::rejection_line(rejection, original.as_ref()))?;
        }
    }
    let waiting = rejections.len();
    match (form, json) {
        (Form::Export, _) => {}
        (Form::List, true) => out.object(object! { "event": "report", "waiting": waiting })?,
        (Form::List, false) => say(&format!("{waiting} rejection(s) wait")),
    }
    out.flush()?;
    Ok(damaged_exit(&seen))
}

fn show_one(args: &SeqFile, json: bool) -> Result<Exit, Failure> {
    let seen = look(&args.file)?;
    let unreadable = |e: io::Error| unreadable(&args.file, &e);
    let rejections = seen.rejections().map_err(unreadable)?;
    let Some(rejection) = rejections.iter().find(|r| r.sequence == args.seq) else {
        let exit = damaged_exit(&seen).min(Exit::Other);
        return Err(Failure::new(exit, none_waits(args).to_string()));
    };
    let original = seen.get(args.seq).map_err(unreadable)?;
    let mut out = Output::stdout(json)?;
    if json {
        out.object(show::rejection_object(rejection, original.as_ref()))?;
    } else {
        out.line(&format!("{:<15}{}", "reason", rejection.reason))?;
        out.line(&format!(
            "{:<15}{}",
            "rejected_at",
            show::time(rejection.at)
        ))?;
        if rejection.late {
            out.line("late           after a success that covered it")?;
        }
        match &original {
            Some(original) => show::message_text(original, &mut out)?,
            None => out.line("(its message is gone)")?,
        }
    }
    out.flush()?;
    Ok(damaged_exit(&seen))
}

async fn accept(args: &SeqFile, json: bool) -> Result<Exit, Failure> {
    let stop = Stop::listen()?;
    let out = SideOutput::stdout(json)?;
    let store = open(&args.file)?;
    let wrong = |e| Failure::store(&args.file, &e);
    if !store.accept(args.seq).map_err(wrong)? {
        // Nothing was done: a store that was closed stays so.
        close(&store, &args.file)?;
        return Err(none_waits(args));
    }
    // The acceptance must not come back after a power cut: it was told to somebody.
    store.sync().map_err(wrong)?;
    close(&store, &args.file)?;
    drop(store);
    match json {
        true => out.object(object! { "event": "accepted", "sequence": args.seq }),
        false => out.line(&format!("accepted {}", args.seq)),
    }
    Ok(out.last_words(&stop).await)
}

async fn requeue(args: &SeqFile, json: bool) -> Result<Exit, Failure> {
    let stop = Stop::listen()?;
    let out = SideOutput::stdout(json)?;
    let store = open(&args.file)?;
    let appended = match requeue_with_patience(&store, args.seq) {
        Ok(Some(appended)) => appended,
        Ok(None) => {
            close(&store, &args.file)?;
            return Err(none_waits(args));
        }
        Err(AppendError::Store(error)) => return Err(Failure::store(&args.file, &error)),
        Err(error) => {
            close(&store, &args.file)?;
            return Err(Failure::other(format!(
                "store {}: {error}",
                args.file.display()
            )));
        }
    };
    store.sync().map_err(|e| Failure::store(&args.file, &e))?;
    close(&store, &args.file)?;
    drop(store);
    if json {
        out.object(object! {
            "event": "requeued", "sequence": args.seq, "as": appended.sequence,
        });
    } else {
        out.line(&format!("requeued {} as {}", args.seq, appended.sequence));
        say(&format!(
            "note: it is sent by the next publisher of this store, or by: amps drain --store {} \
             --server URI",
            args.file.display()
        ));
    }
    Ok(out.last_words(&stop).await)
}

/// Waits while room is being made; nobody settles anything here, so no other room comes.
fn requeue_with_patience(store: &Store, sequence: u64) -> Result<Option<Appended>, AppendError> {
    let patience = Instant::now() + ROOM;
    loop {
        let until = (Instant::now() + ROOM_SLICE).min(patience);
        match store.requeue_wait(sequence, now_micros(), until) {
            Err(AppendError::MakingRoom { .. }) if until < patience => {}
            done => return done,
        }
    }
}

fn open(path: &Path) -> Result<Store, Failure> {
    Store::open_existing(path, Options::new()).map_err(|e| Failure::open(&e))
}

/// Closes a store through which nothing was sent: what may have been sent before is what
/// was granted before.
fn close(store: &Store, path: &Path) -> Result<(), Failure> {
    store
        .close(store.numbers().found_grant)
        .map_err(|e| Failure::store(path, &e))
}

fn none_waits(args: &SeqFile) -> Failure {
    Failure::other(format!(
        "no rejection of message {} waits in {}; see which do with: amps failed list {}",
        args.seq,
        args.file.display(),
        args.file.display()
    ))
}

fn now_micros() -> u64 {
    // A clock before 1970 is shown as 1970; nothing depends on it.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        })
}
