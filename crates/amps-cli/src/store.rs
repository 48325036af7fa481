//! `amps store`: a look inside, read-only and without the lock.

use std::path::Path;

use amps_store::inspect::{Inspection, Standing};
use amps_store::{DamagedRange, ReadError, RecoveryReport, StoredMessage};
use serde_json::{Map, Value};

use crate::args::{SeqFile, StoreCommand};
use crate::body;
use crate::failure::{Exit, Failure};
use crate::output::{Output, object};
use crate::show;

/// Runs one of the subcommands.
///
/// # Errors
/// One paragraph, for the first thing that went wrong.
pub(crate) fn run(command: StoreCommand, json: bool) -> Result<Exit, Failure> {
    let mut out = Output::stdout(json)?;
    let exit = match command {
        StoreCommand::Info { file } => info(&file, &mut out)?,
        StoreCommand::List { file } => list(&file, &mut out)?,
        StoreCommand::Get(args) => get(&args, &mut out)?,
        StoreCommand::Verify { file } => verify(&file, &mut out)?,
    };
    out.flush()?;
    Ok(exit)
}

/// Takes a picture of a store.
///
/// # Errors
/// It is not there, is no store, or cannot be read.
pub(crate) fn look(file: &Path) -> Result<Inspection, Failure> {
    Inspection::open(file).map_err(|e| Failure::open(&e))
}

/// A record that could not be read.
pub(crate) fn unreadable(file: &Path, error: &ReadError) -> Failure {
    let exit = match error {
        ReadError::Damaged { .. } => Exit::Damaged,
        _ => Exit::Other,
    };
    Failure::new(
        exit,
        format!(
            "store {}: {error}; see what else is damaged with: amps store verify {}",
            file.display(),
            file.display()
        ),
    )
}

fn info(file: &Path, out: &mut Output) -> Result<Exit, Failure> {
    let seen = look(file)?;
    let facts = facts(&seen);
    if out.is_json() {
        out.object(facts)?;
    } else {
        for (name, value) in facts {
            let shown = match &value {
                Value::Null => "-".to_owned(),
                Value::String(text) => text.clone(),
                Value::Object(tag) => tag
                    .values()
                    .next()
                    .and_then(Value::as_str)
                    .unwrap_or("-")
                    .to_owned(),
                other => other.to_string(),
            };
            out.line(&format!("{name:<18}{shown}"))?;
        }
    }
    Ok(Exit::Ok)
}

fn facts(seen: &Inspection) -> Map<String, Value> {
    let (bounds, numbers, report) = (seen.bounds(), seen.numbers(), seen.report());
    let (bytes, capacity) = seen.file_bytes();
    let (segment_size, segments, segments_used) = seen.segments();
    let (pid, host) = seen.last_opened_by();
    let mut facts = object! {
        "file": seen.path().display().to_string(),
        "client_name": seen.client_name(),
        "store_id": format!("{:016x}", seen.id()),
        "state": state(seen),
        "last_opened_by": format!("process {pid} on {host}"),
        "opens": seen.generation(),
        "unsettled": bounds.unsettled,
        "first_unsettled": bounds.first_unsettled,
        "last": bounds.last,
        "next": bounds.next,
        "settled_through": bounds.floor,
        "rejections": bounds.rejections,
        "grant": numbers.grant,
        "rebase_from": numbers.rebase.map(|r| r.from),
        "rebase_delta": numbers.rebase.map(|r| r.delta),
        "live_bytes": bounds.live_bytes,
        "file_bytes": bytes,
        "capacity_bytes": capacity,
        "segment_bytes": segment_size,
        "segments": segments,
        "segments_used": segments_used,
        "stop": report.stop.to_string(),
        "set_aside": report.set_aside,
        "damaged": report.damaged.len(),
    };
    if let Some(tag) = seen.resume_tag() {
        let mut shown = Map::new();
        body::insert(&mut shown, tag);
        facts.insert("resume_tag".to_owned(), shown.into());
    }
    facts
}

fn state(seen: &Inspection) -> &'static str {
    match (seen.is_moving(), seen.is_closed()) {
        (true, _) => "in use",
        (false, true) => "closed",
        // A look from outside cannot tell these two apart.
        (false, false) => "in use, or its process died",
    }
}

fn list(file: &Path, out: &mut Output) -> Result<Exit, Failure> {
    let seen = look(file)?;
    let (mut message, mut from, mut listed) = (StoredMessage::new(), 0, 0_u64);
    loop {
        match seen.next_unsettled(from, &mut message) {
            Ok(None) => break,
            Ok(Some(sequence)) => {
                if out.is_json() {
                    out.object(with_offset(&seen, &message))?;
                } else {
                    out.line(&show::message_line(&message))?;
                }
                listed += 1;
                from = sequence + 1;
            }
            Err(error) => return Err(unreadable(file, &error)),
        }
    }
    if out.is_json() {
        out.object(object! { "event": "report", "unsettled": listed })?;
    } else {
        eprintln!("{listed} unsettled message(s)");
    }
    damaged_exit(&seen)
}

fn get(args: &SeqFile, out: &mut Output) -> Result<Exit, Failure> {
    let seen = look(&args.file)?;
    let mut message = StoredMessage::new();
    match seen.get(args.seq, &mut message) {
        Ok(true) => {}
        Ok(false) => {
            return Err(Failure::other(format!(
                "message {} is not in {}: it was never stored, or it is settled and its bytes \
                 are gone; see what is there with: amps store list {}",
                args.seq,
                args.file.display(),
                args.file.display()
            )));
        }
        Err(error) => return Err(unreadable(&args.file, &error)),
    }
    if out.is_json() {
        out.object(with_offset(&seen, &message))?;
    } else {
        let standing = standing(&seen, args.seq);
        out.line(&format!(
            "{:<15}{standing}\n{}",
            "standing",
            show::message_text(&message)
        ))?;
    }
    Ok(Exit::Ok)
}

fn with_offset(seen: &Inspection, message: &StoredMessage) -> Map<String, Value> {
    let mut object = object! {
        "sequence": message.sequence,
        "standing": standing(seen, message.sequence),
        "offset": seen.offset(message.sequence),
    };
    object.extend(
        show::message_object(message)
            .into_iter()
            .filter(|(name, _)| name != "sequence"),
    );
    object
}

fn standing(seen: &Inspection, sequence: u64) -> &'static str {
    match seen.standing(sequence) {
        Some(Standing::Unsettled) => "unsettled",
        Some(Standing::Rejected) => "rejected",
        Some(Standing::Settled) => "settled",
        None => "gone",
    }
}

fn verify(file: &Path, out: &mut Output) -> Result<Exit, Failure> {
    let seen = look(file)?;
    let report = seen.report();
    // Recovery checked every record of the log; now the messages, as a sender reads them.
    let (mut message, mut from) = (StoredMessage::new(), 0);
    let (mut messages, mut bytes) = (0_u64, 0_u64);
    let mut unreadable = Vec::new();
    loop {
        match seen.next_unsettled(from, &mut message) {
            Ok(None) => break,
            Ok(Some(sequence)) => {
                if let Err(error) = message.envelope() {
                    unreadable.push(format!("message {sequence}: {error}"));
                }
                messages += 1;
                bytes += message.payload().len() as u64;
                from = sequence + 1;
            }
            Err(ReadError::Damaged { sequence, offset }) => {
                unreadable.push(format!("message {sequence} at offset {offset} is damaged"));
                from = sequence + 1;
            }
            Err(error) => return Err(self::unreadable(file, &error)),
        }
    }
    let ok = report.damaged.is_empty() && unreadable.is_empty();
    if out.is_json() {
        for range in &report.damaged {
            out.object(damage(range))?;
        }
        for text in &unreadable {
            out.object(object! { "event": "unreadable", "what": text.as_str() })?;
        }
        out.object(object! {
            "event": "report",
            "ok": ok,
            "state": state(&seen),
            "log_bytes": report.bytes,
            "last_ordinal": report.last_ordinal,
            "messages": messages,
            "payload_bytes": bytes,
            "rejections": report.rejections,
            "stop": report.stop.to_string(),
            "set_aside": report.set_aside,
            "damaged": report.damaged.len(),
            "lost": lost(report),
        })?;
    } else {
        for range in &report.damaged {
            out.line(&damage_line(range))?;
        }
        for text in &unreadable {
            out.line(text)?;
        }
        out.line(&format!(
            "{}: checked {} bytes of log, up to record {}; {messages} unsettled message(s) with \
             {bytes} bytes of payload, {} rejection(s); the log ends at: {}; {} record(s) set \
             aside, {} damaged range(s)",
            if ok { "ok" } else { "DAMAGED" },
            report.bytes,
            report.last_ordinal,
            report.rejections,
            report.stop,
            report.set_aside,
            report.damaged.len(),
        ))?;
    }
    Ok(if ok { Exit::Ok } else { Exit::Damaged })
}

fn damaged_exit(seen: &Inspection) -> Result<Exit, Failure> {
    if seen.report().damaged.is_empty() {
        return Ok(Exit::Ok);
    }
    Err(Failure::new(
        Exit::Damaged,
        format!(
            "the store {} is damaged in {} place(s), and messages may be missing from this list; \
             see which with: amps store verify {}",
            seen.path().display(),
            seen.report().damaged.len(),
            seen.path().display()
        ),
    ))
}

fn damage(range: &DamagedRange) -> Map<String, Value> {
    object! {
        "event": "damaged",
        "offset": range.offset,
        "bytes": range.bytes,
        "first_ordinal": range.first_ordinal,
        "last_ordinal": range.last_ordinal,
        "first_sequence": range.sequences.map(|s| s.0),
        "last_sequence": range.sequences.map(|s| s.1),
    }
}

fn damage_line(range: &DamagedRange) -> String {
    let sequences = match range.sequences {
        Some((first, last)) => format!(", messages {first} to {last} may be missing"),
        None => String::new(),
    };
    format!(
        "damaged: {} bytes at offset {}{sequences}",
        range.bytes, range.offset
    )
}

fn lost(report: &RecoveryReport) -> Vec<Value> {
    report
        .lost
        .iter()
        .map(|&(first, last)| vec![first, last].into())
        .collect()
}
