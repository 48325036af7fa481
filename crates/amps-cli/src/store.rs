//! `amps store`: a look inside, read-only and without the lock. What these commands write is a
//! new file.

mod dump;
mod html;
mod map;
mod transfer;

pub(crate) use self::transfer::export_to_stdout as export;

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;

use amps_store::inspect::{Filter, Info, Inspection, Problem, Severity, Verification};
use amps_store::{Envelope, NewFile, Volume};
use serde_json::{Map, Value};

use crate::args::{Select, SeqFile, StoreCommand, StoreInfo, StoreList};
use crate::body;
use crate::failure::{Exit, Failure};
use crate::output::{Output, object, say};
use crate::show;

/// Runs one of the subcommands.
///
/// # Errors
/// One paragraph, for the first thing that went wrong.
pub(crate) async fn run(command: StoreCommand, json: bool) -> Result<Exit, Failure> {
    let mut out = Output::stdout(json)?;
    let exit = match command {
        StoreCommand::Info(args) => info(&args, &mut out)?,
        StoreCommand::List(args) => list(&args, &mut out)?,
        StoreCommand::Get(args) => get(&args, &mut out)?,
        StoreCommand::Dump(args) => dump::dump(&args, &mut out)?,
        StoreCommand::Verify { file } => verify(&file, &mut out)?,
        StoreCommand::Repair(args) => transfer::repair(&args, &mut out)?,
        StoreCommand::Export(args) => transfer::export(&args)?,
        StoreCommand::Import(args) => return transfer::import(&args, json).await,
        StoreCommand::Map { file } => map::map(&file, &mut out)?,
    };
    out.flush()?;
    Ok(exit)
}

/// Reads a store as it is now.
///
/// # Errors
/// It is not there, is no store, or cannot be read.
pub(crate) fn look(file: &Path) -> Result<Inspection, Failure> {
    Inspection::open(file).map_err(|e| Failure::open(&e))
}

/// A file that could not be read.
pub(crate) fn unreadable(file: &Path, error: &io::Error) -> Failure {
    Failure::other(format!("cannot read the store {}: {error}", file.display()))
}

/// The exit code of a look that found damage; what was found is reported on standard error. There
/// is one rule: whatever shows a damaged store ends with it, even if it could show what was asked
/// for. A repair shows none of it, and what it writes is intact.
pub(crate) fn damaged_exit(seen: &Inspection) -> Exit {
    damage(seen).map_or(Exit::Ok, |damage| {
        say(&format!("error: {damage}"));
        damage.exit()
    })
}

/// What to report of a store that a look found damaged, also for [`Output::knows`].
pub(crate) fn damage(seen: &Inspection) -> Option<Failure> {
    let places = seen.report().damaged.len();
    (places > 0).then(|| {
        Failure::new(
            Exit::Damaged,
            format!(
                "the store {} is damaged in {places} place(s), and messages may be missing here; \
                 see which with: amps store verify {}",
                seen.path().display(),
                seen.path().display()
            ),
        )
    })
}

/// Creates a file where there is none, readable only by its owner unless told otherwise: it holds
/// messages, and those of `source` must not become readable for anybody who could not read that.
fn new_file(path: &Path, mode: Option<u32>, source: Option<&Metadata>) -> Result<File, Failure> {
    let mut new = NewFile::new();
    if let Some(mode) = mode {
        new = new.mode(mode);
    }
    if let Some(source) = source {
        new = new.copy_of(source);
    }
    let file = new.create(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::other(format!(
            "{} exists; only a new file is written: choose another name, or move it away",
            path.display()
        )),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Failure::new(
            Exit::NoSpace,
            format!("no space for {}: {error}; free some", path.display()),
        ),
        _ => Failure::other(format!(
            "cannot create {}: {error}; check that the directory exists and may be written",
            path.display()
        )),
    })?;
    tell_mode(path, mode);
    Ok(file)
}

/// Reports it if a copy did not get the mode that was asked for.
pub(crate) fn tell_mode(path: &Path, wanted: Option<u32>) {
    use std::os::unix::fs::MetadataExt as _;
    if let (Some(wanted), Ok(metadata)) = (wanted, path.metadata())
        && metadata.mode() & 0o777 != wanted
    {
        say(&format!(
            "note: {} has mode {:o}, not {wanted:o}: a copy is never more open than its source",
            path.display(),
            metadata.mode() & 0o777
        ));
    }
}

impl Select {
    /// Whether it leaves anything out.
    pub(crate) fn is_given(&self) -> bool {
        self.topic.is_some()
            || self.first.is_some()
            || self.last.is_some()
            || self.since.is_some()
            || self.until.is_some()
    }

    /// Whether a message is among those asked for. If its envelope is gone and would be needed to
    /// tell, it is not.
    pub(crate) fn takes_message(&self, sequence: u64, envelope: Option<&Envelope<'_>>) -> bool {
        let range = self.first.unwrap_or(0)..=self.last.unwrap_or(u64::MAX);
        let times = self.since.unwrap_or(0)..=self.until.unwrap_or(u64::MAX);
        let by_envelope = self.topic.is_some() || self.since.is_some() || self.until.is_some();
        let fits = |envelope: &Envelope<'_>| {
            let topic = self.topic.as_ref();
            topic.is_none_or(|topic| envelope.topic == *topic)
                && times.contains(&envelope.published_at)
        };
        range.contains(&sequence) && (!by_envelope || envelope.is_some_and(fits))
    }

    /// Narrows a filter to what was asked for.
    pub(crate) fn narrow(&self, mut filter: Filter) -> Filter {
        if let Some(topic) = &self.topic {
            filter = filter.topic(topic.as_str());
        }
        if self.first.is_some() || self.last.is_some() {
            filter = filter.sequences(self.first.unwrap_or(0)..=self.last.unwrap_or(u64::MAX));
        }
        if self.since.is_some() || self.until.is_some() {
            filter = filter.published(self.since.unwrap_or(0)..=self.until.unwrap_or(u64::MAX));
        }
        filter
    }
}

fn info(args: &StoreInfo, out: &mut Output) -> Result<Exit, Failure> {
    let file = &args.file;
    let seen = look(file)?;
    out.knows(damage(&seen));
    let facts = facts(file, &seen.info());
    if let Some(html) = &args.html {
        html::write(html, args.mode, &seen, &facts)?;
    }
    if out.is_json() {
        out.object(facts)?;
    } else {
        for (name, value) in &facts {
            out.line(&format!("{name:<20}{}", shown(value)))?;
        }
    }
    out.flush()?;
    if let Some(volume) = seen.info().volume {
        tell_volume(file, volume);
    }
    Ok(damaged_exit(&seen))
}

/// Reports what a store cannot keep where it is.
pub(crate) fn tell_volume(file: &Path, volume: Volume) {
    say(&format!(
        "note: the store {} is on {volume}",
        file.display()
    ));
}

/// The same for a store that was just created.
pub(crate) fn tell_new_volume(file: &Path) {
    match Volume::of(file) {
        Ok(Some(volume)) => tell_volume(file, volume),
        Ok(None) => {}
        Err(error) => say(&format!("note: cannot look at {}: {error}", file.display())),
    }
}

/// A value, as people see it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Object(tag) => tag
            .values()
            .next()
            .and_then(Value::as_str)
            .unwrap_or("-")
            .to_owned(),
        other => other.to_string(),
    }
}

fn facts(file: &Path, info: &Info) -> Map<String, Value> {
    let mut facts = object! {
        "file": file.display().to_string(),
        "format_version": info.format_version,
        "client_name": info.client_name.as_str(),
        "store_id": format!("{:016x}", info.store_id),
        "state": info.state().to_string(),
        "file_system": info.volume.map(Volume::name),
        "last_opened_by": format!("process {} on {}", info.owner_pid, info.owner_host),
        "opens": info.generation,
        "unsettled": info.unsettled,
        "first_unsettled": info.first_unsettled,
        "last_unsettled": info.last_unsettled,
        "settled_through": info.floor,
        "next": info.next,
        "rejections": info.rejections,
        "grant": info.grant,
        "rebase_from": info.rebase.map(|r| r.from),
        "rebase_delta": info.rebase.map(|r| r.delta),
        "live_bytes": info.live_bytes,
        "charged_bytes": info.charged_bytes,
        "limit_bytes": info.limit_bytes,
        "file_bytes": info.file_size,
        "capacity_bytes": info.capacity,
        "segment_bytes": info.segment_size,
        "segments": info.segments,
        "free_segments": info.free_segments,
        "largest_record": info.max_record,
        "durable_ordinal": info.durable_ordinal,
        "last_ordinal": info.last_ordinal,
        "stop": info.stop.as_str(),
        "set_aside": info.set_aside,
        "damaged": info.damaged.len(),
        "moving": info.moving,
    };
    if let Some(tag) = &info.resume_tag {
        let mut shown = Map::new();
        body::insert(&mut shown, tag);
        facts.insert("resume_tag".to_owned(), shown.into());
    }
    facts
}

fn list(args: &StoreList, out: &mut Output) -> Result<Exit, Failure> {
    let seen = look(&args.file)?;
    out.knows(damage(&seen));
    let filter = args.select.narrow(match args.all {
        true => Filter::all(),
        false => Filter::new(),
    });
    let mut listed = 0_u64;
    for message in seen.messages(filter) {
        let message = message.map_err(|e| unreadable(&args.file, &e))?;
        if out.is_json() {
            out.object(show::message_object(&message))?;
        } else {
            out.line(&show::message_line(&message))?;
        }
        listed += 1;
    }
    if out.is_json() {
        out.object(object! { "event": "report", "listed": listed })?;
    } else {
        say(&format!("{listed} message(s)"));
    }
    out.flush()?;
    Ok(damaged_exit(&seen))
}

fn get(args: &SeqFile, out: &mut Output) -> Result<Exit, Failure> {
    let seen = look(&args.file)?;
    let message = seen.get(args.seq).map_err(|e| unreadable(&args.file, &e))?;
    let Some(message) = message else {
        if let Some(damaged) = lost(&seen, args.seq) {
            return Err(Failure::new(Exit::Damaged, damaged));
        }
        let exit = damaged_exit(&seen).min(Exit::Other);
        return Err(Failure::new(
            exit,
            format!(
                "message {} is not in {}: it was never stored, or it is settled and its bytes are \
             gone; see what is there with: amps store list --all {}",
                args.seq,
                args.file.display(),
                args.file.display()
            ),
        ));
    };
    out.knows(damage(&seen));
    match out.is_json() {
        true => out.object(show::message_object(&message))?,
        false => show::message_text(&message, out)?,
    }
    out.flush()?;
    Ok(damaged_exit(&seen))
}

/// What to report of a message whose bytes are damaged, if it is one.
fn lost(seen: &Inspection, sequence: u64) -> Option<String> {
    let mut damaged = seen.report().damaged.iter();
    let (range, (first, last)) = damaged.find_map(|range| {
        let sequences = range.sequences?;
        (sequences.0..=sequences.1)
            .contains(&sequence)
            .then_some((range, sequences))
    })?;
    let (file, offset) = (seen.path().display(), range.offset);
    let which = match first == last {
        true => format!("message {sequence} is damaged, at offset {offset} of {file}"),
        false => format!(
            "message {sequence} is among those from {first} to {last} that damage at offset \
             {offset} of {file} may have taken"
        ),
    };
    Some(format!(
        "{which}; save what is intact with: amps store repair {file} --to NEW"
    ))
}

fn verify(file: &Path, out: &mut Output) -> Result<Exit, Failure> {
    let seen = look(file)?;
    let found = seen.verify().map_err(|e| unreadable(file, &e))?;
    // The same that an open would report.
    let refused = || found.refused.as_ref().map(Failure::open);
    let exit = match refused() {
        Some(refused) => refused.exit(),
        None if found.is_sound() => Exit::Ok,
        None => Exit::Damaged,
    };
    let unsound = || {
        let problems = found.problems.len();
        let words = format!("{problems} problem(s) were found in {}", file.display());
        Failure::new(exit, words)
    };
    out.knows(refused().or_else(|| (exit != Exit::Ok).then(unsound)));
    for problem in &found.problems {
        match out.is_json() {
            true => out.object(problem_object(problem))?,
            false => out.line(&format!(
                "{}: {} bytes at offset {}: {}",
                severity(problem.severity),
                problem.bytes,
                problem.offset,
                problem.text
            ))?,
        }
    }
    let info = seen.info();
    match out.is_json() {
        true => out.object(verified(&found, &info, exit))?,
        false => out.line(&format!(
            "{}, {}: read {} bytes: {} superblock copies, {} of {} segment headers, {} records of the \
             log and {} others, {} checksums, {} envelopes; {} unsettled message(s), {} \
             rejection(s); the log ends at: {}; {} record(s) set aside",
            judgement(&found),
            info.state(),
            found.bytes,
            found.superblocks,
            found.segment_headers,
            found.segments,
            found.records,
            found.other_records,
            found.checksums,
            found.messages,
            info.unsettled,
            info.rejections,
            info.stop,
            info.set_aside,
        ))?,
    }
    out.flush()?;
    if let Some(refused) = refused() {
        say(&format!("error: {refused}"));
    }
    Ok(exit)
}

fn judgement(found: &Verification) -> &'static str {
    match (&found.refused, found.is_sound()) {
        (Some(_), _) => "REFUSED",
        (None, true) => "ok",
        (None, false) => "DAMAGED",
    }
}

fn verified(found: &Verification, info: &Info, exit: Exit) -> Map<String, Value> {
    object! {
        "event": "report",
        "ok": found.is_sound(),
        "error": (exit != Exit::Ok).then(|| exit.word()),
        "state": info.state().to_string(),
        "bytes": found.bytes,
        "superblocks": found.superblocks,
        "segments": found.segments,
        "segment_headers": found.segment_headers,
        "records": found.records,
        "other_records": found.other_records,
        "checksums": found.checksums,
        "messages": found.messages,
        "unsettled": info.unsettled,
        "rejections": info.rejections,
        "stop": info.stop.as_str(),
        "set_aside": info.set_aside,
        "problems": found.problems.len(),
        "refused": found.refused.as_ref().map(ToString::to_string),
        "moving": found.moving,
    }
}

fn problem_object(problem: &Problem) -> Map<String, Value> {
    object! {
        "event": "problem",
        "severity": severity(problem.severity),
        "offset": problem.offset,
        "bytes": problem.bytes,
        "what": problem.text.as_str(),
    }
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Notice => "notice",
        Severity::Damage => "damage",
    }
}
