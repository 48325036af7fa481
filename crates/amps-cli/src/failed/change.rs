//! `amps failed accept`, `requeue` and `give-up`: what somebody decided, about one message or
//! many.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use amps_client::Message;
use amps_store::inspect::{Filter, Inspection};
use amps_store::{
    AppendError, Appended, Options, Origin, PublishStore, ReadError, Rejected, Store, StoreError,
    StoredMessage,
};

use crate::args::{Chosen, RequeueArgs, Select};
use crate::failure::{Exit, Failure};
use crate::lines::Source;
use crate::locked;
use crate::output::{SideOutput, object, say};
use crate::signals::Stop;
use crate::store::{damaged_exit, look, unreadable};

/// How long to wait for room that the store is making.
const ROOM: Duration = Duration::from_secs(30);

/// Pause between two looks at whether it still makes room.
const ROOM_SLICE: Duration = Duration::from_millis(20);

/// What the log keeps as the reason of a message that was given up.
const GIVEN_UP: &str = "given up by an operator; the server may have it";

/// What should become of the messages.
pub(super) enum Change {
    Accept,
    Requeue(Edit),
    GiveUp,
}

/// What a requeued message should be instead of what it was.
#[derive(Default)]
pub(super) struct Edit {
    topic: Option<String>,
    payload: Option<Vec<u8>>,
}

impl Edit {
    fn is_given(&self) -> bool {
        self.topic.is_some() || self.payload.is_some()
    }
}

impl Change {
    fn done(&self) -> &'static str {
        match self {
            Change::Accept => "accepted",
            Change::Requeue(_) => "requeued",
            Change::GiveUp => "given_up",
        }
    }
}

/// Reads what a requeue should change, before the store is opened.
pub(super) fn edit(args: &mut RequeueArgs, stop: &Stop) -> Result<Edit, Failure> {
    let targets = Targets::of(&args.chosen)?;
    let one = targets.ranges.len() == 1 && targets.single().len() == 1;
    let topic = args.chosen.select.topic.take_if(|_| one);
    if let Some(topic) = &topic {
        let checked = Message::publish(topic.clone(), "").check();
        checked.map_err(|e| Failure::new(Exit::Usage, format!("--topic: {e}")))?;
    }
    if args.payload.is_some() && !one {
        return Err(Failure::new(
            Exit::Usage,
            "--payload is for one message; name its sequence",
        ));
    }
    let mut payload = None;
    if let Some(file) = &args.payload {
        let mut bytes = Vec::new();
        let mut from = Source::open(file)?.until(stop.clone());
        from.read_to_end(&mut bytes)
            .map_err(|e| Failure::other(format!("cannot read {}: {e}", file.display())))?;
        payload = Some(bytes);
    }
    Ok(Edit { topic, payload })
}

/// The messages that were named.
struct Targets {
    ranges: Vec<RangeInclusive<u64>>,
    file: PathBuf,
}

impl Targets {
    fn of(args: &Chosen) -> Result<Self, Failure> {
        let usage = |text: String| Failure::new(Exit::Usage, text);
        let Some((file, named)) = args.what.split_last() else {
            return Err(usage("name a store".to_owned()));
        };
        let range = |text: &String| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            match (first.parse::<u64>(), last.parse::<u64>()) {
                (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
                _ => Err(usage(format!(
                    "{text:?} is no sequence; write one, as in 17, or a range, as in 17-20, and \
                     the store behind them"
                ))),
            }
        };
        let ranges = named.iter().map(range).collect::<Result<Vec<_>, _>>()?;
        match (ranges.is_empty(), args.all || args.select.is_given()) {
            (true, false) => Err(usage(
                "name sequences before the store, or all of them with --all".to_owned(),
            )),
            (false, true) if args.all => Err(usage("--all leaves nothing to be named".to_owned())),
            _ => Ok(Targets {
                ranges,
                file: file.into(),
            }),
        }
    }

    /// Narrows a filter to the span of what was named.
    fn narrow(&self, filter: Filter, select: &Select) -> Filter {
        let first = self.ranges.iter().map(|range| *range.start()).min();
        let last = self.ranges.iter().map(|range| *range.end()).max();
        filter.sequences(
            first.max(select.first).unwrap_or(0)
                ..=last
                    .into_iter()
                    .chain(select.last)
                    .min()
                    .unwrap_or(u64::MAX),
        )
    }

    fn has(&self, sequence: u64) -> bool {
        self.ranges.is_empty() || self.ranges.iter().any(|range| range.contains(&sequence))
    }

    /// The sequences that were named one by one, which must be there.
    fn single(&self) -> BTreeSet<u64> {
        let ranges = self.ranges.iter();
        let single = ranges.filter(|range| range.start() == range.end());
        single.map(|range| *range.start()).collect()
    }
}

/// What was done, in order: the old sequence, and the new one.
#[derive(Default)]
struct Done {
    changed: Vec<(u64, Option<u64>)>,
    /// Named, but not there.
    missing: BTreeSet<u64>,
    failures: Vec<Failure>,
    /// How many were changed but may come back after a power cut, because their sync failed.
    unsure: usize,
    stopped: bool,
}

/// Changes what was chosen. The store is closed before anything is reported.
///
/// # Errors
/// One paragraph about what kept it from starting.
pub(super) async fn run(
    change: Change,
    args: &Chosen,
    stop: Stop,
    json: bool,
) -> Result<Exit, Failure> {
    let targets = Targets::of(args)?;
    let file = targets.file.as_path();
    let out = SideOutput::stdout(json)?;
    let mut done = Done::default();
    let mut exit = Exit::Ok;
    if args.dry_run {
        // Without the lock, and without a new run in the file: nothing at all is changed.
        let seen = look(file)?;
        let chosen = choose(&seen, &change, &targets, args)?;
        done.missing = targets.single().difference(&chosen).copied().collect();
        done.changed = chosen.into_iter().map(|n| (n, None)).collect();
        exit = damaged_exit(&seen);
    } else {
        let open = || Store::open_existing(file, Options::new());
        let store = locked::open(open, args.lock_timeout, &stop).await?;
        // With the lock, so that nobody else changes what is being looked at.
        let chosen = look(file).and_then(|seen| choose(&seen, &change, &targets, args));
        let mut results = Vec::new();
        match chosen {
            Ok(chosen) => {
                done.missing = targets.single().difference(&chosen).copied().collect();
                results.push(carry_out(&store, &change, &chosen, file, &stop, &mut done));
            }
            Err(failure) => done.failures.push(failure),
        }
        if !done.changed.is_empty() {
            // What is reported as done must not come back after a power cut.
            let synced = store.sync();
            if synced.is_err() {
                done.unsure = std::mem::take(&mut done.changed).len();
            }
            results.push(synced.map(drop));
        }
        // Nothing was sent here, so what may have been sent is what was granted before. A store
        // that was closed stays closed if nothing was done.
        results.push(store.close(store.numbers().found_grant));
        drop(store);
        let errors = results.into_iter().filter_map(Result::err);
        done.failures
            .extend(errors.map(|error| Failure::store(file, &error)));
    }
    exit = exit.min(tell(&change, &done, &targets, args, &out));
    Ok(exit.min(out.last_words(&stop).await))
}

/// The sequences that are meant, among those that wait.
fn choose(
    seen: &Inspection,
    change: &Change,
    targets: &Targets,
    args: &Chosen,
) -> Result<BTreeSet<u64>, Failure> {
    let unreadable = |e: io::Error| unreadable(&targets.file, &e);
    let mut chosen = BTreeSet::new();
    if let Change::GiveUp = change {
        let unsettled = args.select.narrow(Filter::new());
        for message in seen.messages(targets.narrow(unsettled, &args.select)) {
            let message = message.map_err(unreadable)?;
            if targets.has(message.sequence) {
                chosen.insert(message.sequence);
            }
        }
        return Ok(chosen);
    }
    for rejection in seen.rejections().map_err(unreadable)? {
        let sequence = rejection.sequence;
        if !targets.has(sequence) {
            continue;
        }
        let original = match args.select.is_given() {
            true => seen.get(sequence).map_err(unreadable)?,
            false => None,
        };
        let envelope = original.as_ref().and_then(|o| o.envelope.as_ref());
        if args.select.takes_message(sequence, envelope) {
            chosen.insert(sequence);
        }
    }
    Ok(chosen)
}

/// Does it to each in order, until a failure that would also be that of the next.
fn carry_out(
    store: &Store,
    change: &Change,
    chosen: &BTreeSet<u64>,
    file: &Path,
    stop: &Stop,
    done: &mut Done,
) -> Result<(), StoreError> {
    for &sequence in chosen {
        if stop.asked().is_some() {
            done.stopped = true;
            return Ok(());
        }
        let new = match change {
            Change::Accept => store.accept(sequence)?.then_some(None),
            Change::GiveUp => match store.reject(sequence, GIVEN_UP, now_micros())? {
                Rejected::Logged { .. } => Some(None),
                // Nobody would find it given up.
                Rejected::Held { .. } => {
                    let why = "and the log has no room left to note what is given up";
                    return Err(StoreError::SyncFailed(why.to_owned()));
                }
                _ => None,
            },
            Change::Requeue(edit) => match requeue(store, sequence, edit, stop) {
                Ok(new) => new.map(Some),
                Err(AppendError::Store(error @ StoreError::Damaged { .. })) => {
                    done.failures.push(Failure::store(file, &error));
                    continue;
                }
                Err(AppendError::Store(error)) => return Err(error),
                Err(AppendError::MakingRoom { .. }) if stop.asked().is_some() => {
                    done.stopped = true;
                    return Ok(());
                }
                Err(error) => {
                    let next_too =
                        error.is_retryable() || matches!(error, AppendError::NoSpace { .. });
                    done.failures.push(not_requeued(file, sequence, &error));
                    match next_too {
                        true => return Ok(()),
                        false => continue,
                    }
                }
            },
        };
        match new {
            Some(new) => done.changed.push((sequence, new)),
            None => _ = done.missing.insert(sequence),
        }
    }
    Ok(())
}

fn not_requeued(file: &Path, sequence: u64, error: &AppendError) -> Failure {
    let exit = match error {
        AppendError::NoSpace { .. } => Exit::NoSpace,
        _ => Exit::Other,
    };
    let text = format!("store {}, message {sequence}: {error}", file.display());
    Failure::new(exit, text)
}

/// Appends it again. Waits while room is being made; nobody settles anything here, so no other
/// room comes. A signal ends the waiting.
fn requeue(
    store: &Store,
    sequence: u64,
    edit: &Edit,
    stop: &Stop,
) -> Result<Option<u64>, AppendError> {
    let patience = Instant::now() + ROOM;
    loop {
        let until = (Instant::now() + ROOM_SLICE).min(patience);
        let appended = match edit.is_given() {
            true => append_edited(store, sequence, edit, until),
            false => store.requeue_wait(sequence, now_micros(), until),
        };
        match appended {
            Err(AppendError::MakingRoom { .. }) if until < patience && stop.asked().is_none() => {}
            appended => return Ok(appended?.map(|appended| appended.sequence)),
        }
    }
}

/// Publishes what was rejected with another payload or topic; its record itself accepts the
/// rejection.
fn append_edited(
    store: &Store,
    sequence: u64,
    edit: &Edit,
    until: Instant,
) -> Result<Option<Appended>, AppendError> {
    let mut message = StoredMessage::new();
    match store.get(sequence, &mut message) {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(ReadError::Damaged { offset, .. }) => {
            return Err(StoreError::Damaged { offset }.into());
        }
        Err(ReadError::Store(error)) => return Err(error.into()),
        // As above; a later version of the library may have further variants.
        Err(_) => return Ok(None),
    }
    let mut envelope = message.envelope()?;
    envelope.origin = Origin::Requeue { accepts: sequence };
    envelope.published_at = now_micros();
    if let Some(topic) = &edit.topic {
        envelope.topic = topic.as_str().into();
    }
    let payload = edit.payload.as_deref().unwrap_or(message.payload());
    store.append_wait(&envelope, payload, until).map(Some)
}

fn tell(change: &Change, done: &Done, targets: &Targets, args: &Chosen, out: &SideOutput) -> Exit {
    let (file, dry_run) = (targets.file.as_path(), args.dry_run);
    let word = change.done();
    let would = if dry_run { "would be " } else { "" };
    for &(sequence, new) in &done.changed {
        if out.is_json() {
            let mut object = object! { "event": word, "sequence": sequence };
            if let Some(new) = new {
                object.insert("as".to_owned(), new.into());
            }
            if dry_run {
                object.insert("dry_run".to_owned(), true.into());
            }
            out.object(object);
            continue;
        }
        let shown = word.replace('_', " ");
        match new {
            Some(new) => out.line(&format!("{shown} {sequence} as {new}")),
            None => out.line(&format!("{would}{shown} {sequence}")),
        }
    }
    let mut exit = Exit::Ok;
    for failure in &done.failures {
        exit = exit.min(failure.exit());
        say(&format!("error: {failure}"));
    }
    if done.failures.is_empty() && !done.stopped {
        for sequence in &done.missing {
            exit = exit.min(Exit::Other);
            let text = none_waits(change, *sequence, file, args.select.is_given());
            say(&format!("error: {text}"));
        }
    }
    if done.unsure > 0 {
        exit = exit.min(Exit::Other);
        say(&format!(
            "error: {} message(s) were {}, but their sync failed: a power cut may bring them \
             back as they were; see which wait with: amps failed list {}",
            done.unsure,
            word.replace('_', " "),
            file.display()
        ));
    }
    if done.stopped {
        exit = exit.min(Exit::Other);
        say("error: a signal came before all of them were done; what is listed is");
    }
    if out.is_json() {
        let mut report = object! { "event": "report" };
        report.insert(word.to_owned(), done.changed.len().into());
        report.insert("stopped".to_owned(), done.stopped.into());
        report.insert("dry_run".to_owned(), dry_run.into());
        out.object(report);
    }
    if matches!(change, Change::Requeue(_)) && !done.changed.is_empty() && !dry_run {
        say(&format!(
            "note: what was requeued is sent by the next publisher of this store, or by: amps \
             drain --store {} --server URI",
            file.display()
        ));
    }
    exit
}

fn none_waits(change: &Change, sequence: u64, file: &Path, filtered: bool) -> String {
    let file = file.display();
    let filter = if filtered {
        " and passes the filters"
    } else {
        ""
    };
    match change {
        Change::GiveUp => format!(
            "message {sequence} does not wait to be sent in {file}{filter}; see which do with: amps store \
             list {file}"
        ),
        _ => format!(
            "no rejection of message {sequence} waits in {file}{filter}; see which do with: amps failed \
             list {file}"
        ),
    }
}

fn now_micros() -> u64 {
    // A clock before 1970 counts as 1970; nothing depends on it.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

    use amps_store::Envelope;
    use amps_store::testkit::{Bug, Fault, SimDisk, plant};

    use super::*;

    /// What the log cannot take would be given up until the process ends, and nobody would find it.
    #[tokio::test]
    async fn what_cannot_be_noted_is_not_given_up_and_said() {
        let options = || Options::new().capacity(64 << 10).client_name("failed");
        // As in a log that lacked room when its device failed.
        plant(Some(Bug::ReserveSpent));
        let disk = SimDisk::new();
        let store = disk.open(options()).unwrap();
        disk.fail(Fault::Sync(0));
        store.sync().unwrap_err();
        while let Ok(at) = store.append(&Envelope::publish("t"), &[b'7'; 200]) {
            let behind = at.sequence.saturating_sub(10);
            store.settle_through(behind).unwrap();
        }
        let (first, last) = (store.bounds().first_unsettled.unwrap(), store.bounds().last);
        let chosen: BTreeSet<u64> = (first..=last).collect();
        let stop = Stop::listen().unwrap();
        let (mut done, file) = (Done::default(), Path::new("s.store"));
        let result = carry_out(&store, &Change::GiveUp, &chosen, file, &stop, &mut done);
        let failure = Failure::store(file, &result.unwrap_err());
        let words = "the log has no room left to note what is given up";
        assert!(failure.to_string().contains(words), "{failure}");
        assert!(
            failure.to_string().starts_with("store s.store: "),
            "{failure}"
        );
        assert_eq!(failure.exit(), Exit::Other);
        assert!(!done.changed.is_empty() && done.changed.len() < chosen.len());
        let noted = done.changed.len() as u64;
        drop(store);
        plant(None);
        // As many as were told are what the next one finds.
        let found = disk.open(options()).unwrap().bounds();
        assert_eq!(
            (found.rejections, found.unsettled),
            (noted, chosen.len() as u64 - noted)
        );
    }
}
