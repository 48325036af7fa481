//! `amps failed`: messages that a server refused, until somebody decides.

mod change;

use std::io;
use std::path::Path;

use amps_store::inspect::{Filter, MessageState};

use crate::args::{FailedCommand, Select, SeqFile};
use crate::failure::{Exit, Failure};
use crate::output::{Output, object, say};
use crate::show;
use crate::signals::Stop;
use crate::store::{damage, damaged_exit, export, look, unreadable};
use crate::terminal;

use self::change::Change;

/// Runs one of the subcommands.
///
/// # Errors
/// One paragraph, for the first thing that went wrong.
pub(crate) async fn run(command: FailedCommand, json: bool) -> Result<Exit, Failure> {
    match command {
        FailedCommand::List { file, select } => list(&file, &select, json),
        FailedCommand::Export { file, select } => export(
            &file,
            select.narrow(Filter::new().state(MessageState::Rejected)),
        ),
        FailedCommand::Show(args) => show_one(&args, json),
        FailedCommand::Accept(args) => {
            change::run(Change::Accept, &args, Stop::listen()?, json).await
        }
        FailedCommand::Requeue(mut args) => {
            let stop = Stop::listen()?;
            let edit = change::edit(&mut args, &stop)?;
            change::run(Change::Requeue(edit), &args.chosen, stop, json).await
        }
        FailedCommand::GiveUp(args) => {
            change::run(Change::GiveUp, &args, Stop::listen()?, json).await
        }
    }
}

fn list(file: &Path, select: &Select, json: bool) -> Result<Exit, Failure> {
    let seen = look(file)?;
    let unreadable = |e: io::Error| unreadable(file, &e);
    let mut out = Output::stdout(json)?;
    out.knows(damage(&seen));
    let mut waiting = 0_u64;
    for rejection in &seen.rejections().map_err(unreadable)? {
        let original = seen.get(rejection.sequence).map_err(unreadable)?;
        let envelope = original.as_ref().and_then(|o| o.envelope.as_ref());
        if !select.takes_message(rejection.sequence, envelope) {
            continue;
        }
        waiting += 1;
        if json {
            out.object(show::rejection_object(rejection, original.as_ref()))?;
        } else {
            out.line(&show::rejection_line(rejection, original.as_ref()))?;
        }
    }
    match json {
        true => out.object(object! { "event": "report", "waiting": waiting })?,
        false => say(&format!("{waiting} rejection(s) wait")),
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
    out.knows(damage(&seen));
    if json {
        out.object(show::rejection_object(rejection, original.as_ref()))?;
    } else {
        let reason = terminal::field(rejection.reason.as_bytes());
        out.line(&format!("{:<15}{reason}", "reason"))?;
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

fn none_waits(args: &SeqFile) -> Failure {
    Failure::other(format!(
        "no rejection of message {} waits in {}; see which do with: amps failed list {}",
        args.seq,
        args.file.display(),
        args.file.display()
    ))
}
