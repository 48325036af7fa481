//! `amps store repair`, `export` and `import`: messages from one store to another.

use std::io::{BufReader, BufWriter};
use std::ops::RangeInclusive;
use std::path::Path;

use amps_client::{Client, Message};
use amps_store::inspect::{Filter, MessageState};
use amps_store::transfer::{
    self, ExportError, ImportError, NameFrom, RepairError, RepairOptions, Unsaved,
    WithoutSuperblock,
};
use amps_store::{AppendError, Options, PublishStore as _, Store, StoredMessage};
use serde_json::{Map, Value};

use super::{damage, damaged_exit, look, new_file, tell_mode, tell_new_volume, unreadable};
use crate::args::{StoreExport, StoreImport, StoreRepair};
use crate::failure::{Exit, Failure};
use crate::lines::{Source, Stoppable};
use crate::output::{Output, SideOutput, object, say, unbuffered};
use crate::signals::Stop;

/// Writes what is intact to a new store, and says what is not.
pub(super) fn repair(args: &StoreRepair, out: &mut Output) -> Result<Exit, Failure> {
    let mut options = RepairOptions::new()
        .unlocked(args.unlocked)
        .evacuated(args.evacuated)
        .number_floor(args.number_floor.unwrap_or(0));
    if let Some(name) = &args.client_name {
        Client::check_name(name).map_err(|e| Failure::new(Exit::Usage, e.to_string()))?;
        options = options.client_name(name);
    }
    if let Some(mode) = args.mode {
        options = options.mode(mode);
    }
    let report = transfer::repair_with(&args.file, &args.to, &options)
        .map_err(|e| not_repaired(args, &e))?;
    tell_mode(&args.to, args.mode);
    tell_new_volume(&args.to);
    match &report.without_superblock {
        Some(without) if !out.is_json() => {
            for line in without_superblock_lines(without, &args.file) {
                out.line(&line)?;
            }
        }
        None if args.client_name.is_some() || args.number_floor.is_some() => say(&format!(
            "note: {} has its superblock, and with it its client name and its numbers, which the new \
             store takes over: --client-name and --number-floor changed nothing",
            args.file.display()
        )),
        _ => {}
    }
    for unsaved in &report.unsaved {
        match out.is_json() {
            true => out.object(unsaved_object(unsaved))?,
            false => out.line(&format!("not saved: {}", unsaved_sentence(unsaved)))?,
        }
    }
    if out.is_json() {
        let mut object = object! {
            "event": "report",
            "saved": report.saved,
            "saved_set_aside": report.saved_set_aside,
            "rejections": report.rejections,
            "first": report.sequences.map(|s| s.0),
            "last": report.sequences.map(|s| s.1),
            "next": report.next,
            "enlarged_to": report.enlarged_to,
            "unsaved": report.unsaved.len(),
            "to": args.to.display().to_string(),
        };
        object.insert(
            "without_superblock".to_owned(),
            report
                .without_superblock
                .as_ref()
                .map_or(Value::Null, without_superblock_object),
        );
        out.object(object)?;
        return Ok(Exit::Ok);
    }
    let range = report
        .sequences
        .map_or_else(String::new, |(a, b)| format!(" (sequences {a}..{b})"));
    out.line(&format!(
        "saved {} unsettled message(s), {} of them set aside, and {} rejection(s){range} to {}; \
         the next sequence is {}",
        report.saved,
        report.saved_set_aside,
        report.rejections,
        args.to.display(),
        report.next
    ))?;
    if let Some(bytes) = report.enlarged_to {
        out.line(&format!(
            "the new store may take {bytes} bytes, to hold it all"
        ))?;
    }
    if report.unsaved.is_empty() {
        out.line("nothing that was found is missing")?;
    }
    Ok(Exit::Ok)
}

fn name_from(from: NameFrom) -> &'static str {
    match from {
        NameFrom::Given => "given",
        NameFrom::Identity => "identity",
        NameFrom::Copies => "copies",
        _ => "new",
    }
}

fn without_superblock_lines(without: &WithoutSuperblock, file: &Path) -> Vec<String> {
    let mut lines = vec![format!(
        "both superblocks of {} are unreadable; {} told what its records are checked with, and \
         segments of {} bytes{}",
        file.display(),
        match without.identity {
            true => "what it says of itself for good".to_owned(),
            false => format!("{} segment header(s)", without.headers),
        },
        without.segment_size,
        match without.other_headers {
            0 => String::new(),
            n => format!("; {n} more are damaged or of another store"),
        }
    )];
    let name = &without.client_name;
    lines.push(match without.name_from {
        NameFrom::Given => format!("the client name of the new store is {name}, as asked for"),
        NameFrom::Identity => format!(
            "the client name is {name}, as the store says for good; --client-name gives another"
        ),
        NameFrom::Copies => format!(
            "the client name is {name}, as both superblocks still show; --client-name gives another"
        ),
        _ => format!(
            "the client name is a new one, {name}: nothing shows the old one, and the server drops no \
             duplicate under it; --client-name gives the old one back"
        ),
    });
    lines.push(format!(
        "what was sent is not known: {} message(s) go out (again) at the first logon, and may reach the \
         server twice",
        without.possible_duplicates
    ));
    lines.push(match without.says_evacuated {
        false => {
            "whether it was evacuated cannot be known: if it was, do not send from the new store"
                .to_owned()
        }
        true => {
            "a superblock says, as far as it can be read, that it was evacuated to another file: \
                 that one sends the same messages, so do not send from the new store if it is there"
                .to_owned()
        }
    });
    lines
}

fn without_superblock_object(without: &WithoutSuperblock) -> Value {
    object! {
        "client_name": without.client_name.as_str(),
        "client_name_from": name_from(without.name_from),
        "segment_bytes": without.segment_size,
        "headers": without.headers,
        "other_headers": without.other_headers,
        "possible_duplicates": without.possible_duplicates,
        "says_evacuated": without.says_evacuated,
    }
    .into()
}

fn not_repaired(args: &StoreRepair, error: &RepairError) -> Failure {
    match error {
        RepairError::Open(error) => Failure::open(error),
        RepairError::NothingLeft(_) => Failure::new(Exit::Damaged, error.to_string()),
        RepairError::InUse(_) => Failure::new(Exit::Locked, error.to_string()),
        RepairError::NumberFloor(_) => Failure::new(Exit::Usage, error.to_string()),
        RepairError::Write(error) => Failure::store(&args.to, error),
        RepairError::Create(error) => Failure::other(format!(
            "cannot create {}: {error}; check that the directory exists and may be written",
            args.to.display()
        )),
        _ => Failure::other(error.to_string()),
    }
}

fn sequences((first, last): (u64, u64)) -> String {
    match first == last {
        true => format!("message {first}"),
        false => format!("messages {first} to {last}"),
    }
}

fn unsaved_sentence(unsaved: &Unsaved) -> String {
    let perhaps = |range: &Option<(u64, u64)>| match range {
        Some(range) => format!("at most {}", sequences(*range)),
        None => "no message, as far as its neighbours tell".to_owned(),
    };
    match unsaved {
        Unsaved::Damaged(range) => format!(
            "{} damaged byte(s) at offset {}, {}: {}",
            range.bytes,
            range.offset,
            match (range.first_ordinal, range.last_ordinal) {
                (0, _) => "where records may have been".to_owned(),
                (first, Some(last)) => format!("records {first} to {last}"),
                (first, None) => format!("records from {first} on"),
            },
            match range.sequences {
                Some(given) if range.earlier => format!(
                    "{} perhaps, and what concerns earlier ones",
                    sequences(given)
                ),
                Some(given) => format!("at most {}", sequences(given)),
                None => "which messages, if any, is unknown".to_owned(),
            }
        ),
        Unsaved::Hole {
            offset,
            first_ordinal,
            last_ordinal,
            sequences,
        } => format!(
            "a hole at offset {offset}, records {first_ordinal} to {last_ordinal}: {}",
            perhaps(sequences)
        ),
        Unsaved::Lost { first, last } => format!(
            "{}, given up by an earlier salvage",
            sequences((*first, *last))
        ),
        Unsaved::Original { sequence } => {
            format!("the original of refused message {sequence}; its refusal is saved")
        }
        _ => NEWER.to_owned(),
    }
}

/// For a kind that the library knows and this command does not.
const NEWER: &str = "something that this version of the command has no words for";

fn unsaved_object(unsaved: &Unsaved) -> Map<String, Value> {
    let mut object = object! { "event": "unsaved" };
    let (what, fields) = match unsaved {
        Unsaved::Damaged(range) => (
            "damaged",
            object! {
                "offset": range.offset,
                "bytes": range.bytes,
                "first_ordinal": range.first_ordinal,
                "last_ordinal": range.last_ordinal,
                "first": range.sequences.map(|s| s.0),
                "last": range.sequences.map(|s| s.1),
                "earlier": range.earlier,
            },
        ),
        Unsaved::Hole {
            offset,
            first_ordinal,
            last_ordinal,
            sequences,
        } => (
            "hole",
            object! {
                "offset": *offset,
                "first_ordinal": *first_ordinal,
                "last_ordinal": *last_ordinal,
                "first": sequences.map(|s| s.0),
                "last": sequences.map(|s| s.1),
            },
        ),
        Unsaved::Lost { first, last } => ("lost", object! { "first": *first, "last": *last }),
        Unsaved::Original { sequence } => ("original", object! { "sequence": *sequence }),
        _ => ("other", object! { "text": NEWER }),
    };
    object.insert("what".to_owned(), what.into());
    object.extend(fields);
    object
}

/// Writes messages as JSON lines, and nothing else, to standard output.
pub(super) fn export(args: &StoreExport) -> Result<Exit, Failure> {
    let filter = args.select.narrow(match args.all {
        true => Filter::all(),
        false => Filter::new()
            .state(MessageState::Unsettled)
            .state(MessageState::Rejected),
    });
    export_to_stdout(&args.file, filter)
}

/// Writes these messages of a store as JSON lines.
///
/// # Errors
/// The store cannot be read, or the reader went away.
pub(crate) fn export_to_stdout(file: &Path, filter: Filter) -> Result<Exit, Failure> {
    let seen = look(file)?;
    let done =
        transfer::export(&seen, filter, BufWriter::new(unbuffered()?)).map_err(
            |error| match error {
                ExportError::Read(error) => unreadable(file, &error),
                ExportError::Write(error) => Failure::output(&error).beside(damage(&seen)),
                other => Failure::other(other.to_string()),
            },
        )?;
    say(&format!(
        "{} message(s), {} of them rejected",
        done.messages, done.rejections
    ));
    let exit = damaged_exit(&seen);
    if done.unreadable > 0 {
        return Err(Failure::new(
            exit.min(Exit::Other),
            format!(
                "{} message(s) were left out: their envelope is not of a version this program \
                 knows; export them with the program that wrote them",
                done.unreadable
            ),
        ));
    }
    Ok(exit)
}

/// Makes a new store of the lines of an export.
pub(super) async fn import(args: &StoreImport, json: bool) -> Result<Exit, Failure> {
    if let Some(name) = &args.client_name {
        // Before anything is created.
        Client::check_name(name).map_err(|e| Failure::new(Exit::Usage, e.to_string()))?;
    }
    let stop = Stop::listen()?;
    let from = Source::open(&args.from)?;
    let name = from.name().to_owned();
    let source = from.regular_file();
    let from = from.until(stop.clone());
    let out = SideOutput::stdout(json)?;
    // An empty file counts as a store that is not created yet; this way nobody's store is
    // touched.
    drop(new_file(&args.file, args.mode, source.as_ref())?);
    let imported = fill(args, from, &name);
    if imported.is_err()
        && let Err(error) = std::fs::remove_file(&args.file)
    {
        say(&format!(
            "note: the unfinished store {} could not be removed: {error}",
            args.file.display()
        ));
    }
    let imported = imported?;
    tell_new_volume(&args.file);
    if out.is_json() {
        out.object(object! {
            "event": "report",
            "imported": imported.messages,
            "rejections": imported.rejections,
            "settled": imported.settled,
            "first": imported.sequences.map(|s| s.0),
            "last": imported.sequences.map(|s| s.1),
        });
    } else {
        let range = imported
            .sequences
            .map_or_else(String::new, |s| format!(" as {}", sequences(s)));
        out.line(&format!(
            "imported {} message(s){range}, {} of them rejected; {} were settled already",
            imported.messages, imported.rejections, imported.settled
        ));
    }
    Ok(out.last_words(&stop).await)
}

fn fill(args: &StoreImport, from: Stoppable, name: &str) -> Result<transfer::Imported, Failure> {
    let mut options = Options::new();
    if let Some(capacity) = args.capacity {
        options = options.capacity(capacity);
    }
    if let Some(message) = args.max_message {
        options = options.max_message(message);
    }
    if let Some(name) = &args.client_name {
        options = options.client_name(name);
    }
    let store = Store::open(&args.file, options).map_err(|e| Failure::open(&e))?;
    let imported = transfer::import(BufReader::new(from), &store)
        .map_err(|error| not_imported(&args.file, name, &error))?;
    if let Some((first, last)) = imported.sequences {
        sendable(&store, first..=last, name)?;
    }
    let wrong = |e| Failure::store(&args.file, &e);
    store.sync().map_err(wrong)?;
    // Nothing was handed to a transport.
    store.close(0).map_err(wrong)?;
    Ok(imported)
}

/// A message that no server understands would be sent again for ever, so it is better not to take
/// it.
fn sendable(store: &Store, imported: RangeInclusive<u64>, name: &str) -> Result<(), Failure> {
    let mut message = StoredMessage::new();
    for (sequence, line) in imported.zip(1_u64..) {
        if !matches!(store.get(sequence, &mut message), Ok(true)) {
            continue;
        }
        let Some(sent) = Message::from_stored(&message) else {
            continue;
        };
        sent.check().map_err(|e| {
            Failure::other(format!(
                "{name}, message {line} of those to import: {e}; nothing was imported"
            ))
        })?;
    }
    Ok(())
}

fn not_imported(file: &Path, name: &str, error: &ImportError) -> Failure {
    let (exit, advice) = match error {
        ImportError::Append { error, .. } => match error {
            AppendError::Full { .. } => (Exit::NoSpace, "; give the new store a larger --capacity"),
            // It does not fit into any store of this shape, however much space there is: as for
            // `publish`.
            AppendError::TooLarge { .. } => (Exit::Other, ""),
            AppendError::MakingRoom { .. } => (
                Exit::NoSpace,
                "; the disk is too slow to make the room in time: try again",
            ),
            AppendError::NoSpace { .. } => (Exit::NoSpace, ""),
            AppendError::Store(error) => return Failure::store(file, error),
            _ => (Exit::Other, ""),
        },
        _ => (Exit::Other, ""),
    };
    Failure::new(
        exit,
        format!("{name}, {error}{advice}; nothing was imported"),
    )
}
