//! What publish and drain have in common: send what the store holds and what comes in, wait for
//! the acknowledgements, and report.

mod feed;
mod notes;
mod report;
#[cfg(test)]
mod tests;
mod watch;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use amps_client::Client;
use amps_sandbox::Sandbox;
use amps_store::{
    EvacuateError, Growth, Level, Place, PublishStore as _, Store, StoreError, Unrecorded,
};

use crate::args::Heartbeat;
use crate::carried::Carried;
use crate::failure::{Exit, Failure};
use crate::output::{SideOutput, object, say};
use crate::publish::store_name;
use crate::signals::Stop;
use crate::store::{tell_mode, tell_new_volume, tell_volume};
use crate::units::span;

pub(crate) use self::feed::Input;
use self::feed::{Fed, feed};
use self::report::{Refused, Report};
use self::watch::Watch;

/// A close that finds the disk or the server slow gives up after this. Nothing is lost by that
/// except a clean close.
const CLOSE: Duration = Duration::from_secs(10);

/// What to send, where, and what to report.
pub(crate) struct Job {
    pub(crate) store: Store,
    /// Where the store is, `None` for memory.
    pub(crate) path: Option<PathBuf>,
    pub(crate) servers: Vec<String>,
    pub(crate) carried: Carried,
    pub(crate) flush_timeout: Duration,
    /// How often to report what waits.
    pub(crate) status_interval: Option<Duration>,
    /// Where to write what is left if the store's file is removed.
    pub(crate) evacuate_to: Option<PathBuf>,
    /// The mode that was asked for.
    pub(crate) mode: Option<u32>,
    /// Publishes carry their sequence as command id.
    pub(crate) publish_ids: bool,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) input: Option<Input>,
    pub(crate) stop: Stop,
    pub(crate) json: bool,
}

/// Does the job.
///
/// # Errors
/// What kept it from starting. What went wrong later is told on the way, and the exit code
/// is the first one in `README.md` that applies.
pub(crate) async fn run(job: Job) -> Result<Exit, Failure> {
    let Job {
        store,
        path,
        servers,
        carried,
        flush_timeout,
        status_interval,
        evacuate_to,
        mode,
        publish_ids,
        heartbeat,
        input,
        stop,
        json,
    } = job;
    let path = path.as_deref();
    let out = Arc::new(SideOutput::stdout(json)?);
    let refused = Refused::before(&store);
    let recovered = store.bounds().unsettled;
    tell_recovered(&out, recovered, path, &store);
    tell_growth(&out, path, &store);
    if let (Some(path), Some(volume)) = (path, store.report().volume) {
        if out.is_json() {
            out.object(object! { "event": "file_system", "name": volume.name(), "what": volume.to_string() });
        }
        tell_volume(path, volume);
    }

    let mut builder = Client::builder(store.client_name())
        .store(store.clone())
        // A person decides what becomes of a refusal, so it waits in the store.
        .on_failed_write(|_| async { Err("it waits for `amps failed`".into()) });
    builder = match carried {
        Carried::JetStream(transport) => builder.transport(*transport),
        Carried::Amps(connector) => builder
            .connector(connector)
            .publish_ids(publish_ids)
            .heartbeat(heartbeat.0),
    };
    for server in &servers {
        builder = builder.server(server.as_str());
    }
    let client = builder.open().await.map_err(|e| client_failure(&e))?;
    let watch = Watch {
        client: client.clone(),
        out: Arc::clone(&out),
        stop: stop.clone(),
        every: status_interval,
        in_memory: path.is_none(),
        flush_timeout,
    };
    let watch = tokio::spawn(watch.run());
    let saved = Arc::new(AtomicBool::new(false));
    let notes = notes::tell(
        &client,
        store_name(path),
        Arc::clone(&out),
        Arc::clone(&saved),
    );
    let notes = tokio::spawn(notes);

    let mut exits = vec![Exit::Ok];
    let mut skip_flush = false;
    let mut fed = Fed::default();
    let resumed_at = input.as_ref().map(|input| input.resumed_at);
    if let Some(input) = input {
        let waits = input.unfinished_waits;
        let keeps = input.lines.has_known_end();
        fed = feed(&client, input, flush_timeout, &out, &stop).await;
        if let Some(stopped) = &fed.failed {
            skip_flush = stopped.skip_flush;
            exits.push(stopped.failure.exit());
            say(&format!("error: {}", stopped.failure));
        }
        exits.push(fed_exit(&fed, waits, keeps));
    }
    // What is left is in the report, whatever the reason. Acknowledgements had their time, so a
    // close that finds some missing does not wait for them again.
    let flushed = !skip_flush
        && tokio::select! {
            biased;
            flushed = client.publish_flush(flush_timeout) => flushed.is_ok(),
            () = stop.second() => false,
        };
    // Whatever the outcome of the last attempt was: it may have been another server, which is
    // down.
    let refusal = client.health().logon_refused;
    watch.abort();
    // The task had a handle of the client, and so of the store.
    let _ = watch.await;
    crate::output::status("");
    let told = refused.tell_new(&store, &out).await;
    // Before anything is said about what the store keeps. The close looks again, and reports it
    // if looking is impossible.
    let mut place = store.place().unwrap_or_default();
    let asked = evacuate_to.is_some();
    let evacuated = match evacuate_to {
        Some(to) if place == Place::Gone => {
            saved.store(true, Ordering::Release);
            let evacuated = evacuate(&store, to, mode);
            saved.store(evacuated.is_some(), Ordering::Release);
            evacuated
        }
        _ => None,
    };
    let patience = if flushed { CLOSE } else { Duration::ZERO };
    let closed = tokio::select! {
        biased;
        closed = client.close(patience) => closed,
        () = stop.second() => client.close(Duration::ZERO).await,
    };
    let health = client.health();
    let counts = health.counts;
    if matches!(closed.error, Some(StoreError::Gone)) {
        // The file was removed between the two looks.
        place = Place::Gone;
    }
    // The events end with the client. If the task that reports them does not end, the report must
    // appear all the same.
    let _ = tokio::time::timeout(Duration::from_secs(1), notes).await;
    // Refusals in the file; nobody accepts any in between.
    let unrecorded = closed.unrecorded;
    let waiting_refusals = store.bounds().rejections - unrecorded.refusals;
    let new_refusals = waiting_refusals.saturating_sub(refused.earlier());
    // From here on another process may have the store, however long the last lines take.
    drop((client, store));

    let report = Report {
        published: counts.published,
        persisted: counts.persisted,
        persisted_at_logon: counts.persisted_at_logon,
        duplicates: counts.duplicates,
        found: counts.found,
        possible_duplicates: counts.possible_duplicates,
        // AMPS keeps it.
        order: health
            .capabilities
            .filter(|_| !health.about.is_empty())
            .map(|is| is.order),
        about: health.about,
        rejected: counts.rejected,
        late: counts.late,
        unattributed: counts.unattributed,
        publish_ids,
        left: closed.left,
        resent: counts.resent,
        stopped: fed.cut || stop.asked().is_some(),
        signal: stop.asked(),
        recovered,
        lines: fed.accepted,
        resumed_at: resumed_at.unwrap_or(0),
        next_line: resumed_at.map(|at| at + fed.accepted + 1),
        unfinished: fed.unfinished,
        unstored: fed.unstored,
        waiting_refusals,
        new_refusals,
        unrecorded,
        store: path.map(|_| notes::name(place)),
        evacuated_to: evacuated.as_ref().map(|to| to.display().to_string()),
    };
    if place == Place::Gone {
        exits.push(Exit::Left);
        say(&format!(
            "error: {}",
            lost(&report, path, asked, evacuated.as_deref())
        ));
    } else if let Some(error) = closed.error {
        say(&format!(
            "note: {} was not closed cleanly: {error}",
            store_name(path)
        ));
    }
    if report.left > 0 {
        exits.push(Exit::Left);
    }
    // What was settled in memory waits for no server.
    if report.left > report.unrecorded.messages {
        let advice = match place {
            Place::Gone => String::new(),
            place => format!(" {}", advice(&report, path, place)),
        };
        if let Some((server, reason)) = refusal {
            exits.push(Exit::LogonRefused);
            say(&format!(
                "error: {server} refused the logon: {reason}; check user, password and client \
                 name.{advice}"
            ));
        } else if stop.is_repeated() {
            say(&format!("error: a second signal ended the wait.{advice}"));
        } else {
            say(&format!(
                "error: the flush timeout of {} ended first.{advice}",
                span(flush_timeout)
            ));
        }
    }
    if let Some(text) = unrecorded_in_words(report.unrecorded, &store_name(path)) {
        say(&format!("error: {text}"));
    }
    if report.refusals() > 0 {
        exits.push(Exit::Rejected);
    }
    let kept_in = match place {
        Place::There => path,
        Place::Gone => evacuated.as_deref(),
        _ => Some(Path::new("FILE")),
    };
    report.tell_refusals(told, kept_in);
    report.tell(&out);
    exits.push(out.last_words(&stop).await);
    Ok(exits.into_iter().min().unwrap_or(Exit::Ok))
}

/// What the input contributes to the exit code, and says so to people.
fn fed_exit(fed: &Fed, unfinished_waits: bool, keeps: bool) -> Exit {
    let mut exit = Exit::Ok;
    if fed.cut && keeps {
        exit = Exit::Other;
    }
    if fed.unfinished > 0 && !fed.cut && unfinished_waits {
        exit = Exit::Other;
        say(&format!(
            "error: the last line has {} byte(s) and no newline: it may still be written, so it \
             waits for the next run; --final-line says that the input is complete",
            fed.unfinished
        ));
    } else if fed.unfinished > 0 && !keeps {
        say(&format!(
            "note: {} byte(s) of an unfinished line were read and are no message",
            fed.unfinished
        ));
    }
    if fed.unstored > 0 {
        exit = Exit::Other;
        say(&format!(
            "error: {} more line(s) were read, and are not in the store; their input cannot be \
             read again",
            fed.unstored
        ));
    }
    exit
}

/// Starts a sandbox on a free port of the loopback interface.
///
/// # Errors
/// There is no free port.
pub(crate) async fn embedded_sandbox() -> Result<Sandbox, Failure> {
    Sandbox::builder()
        .listen("tcp://127.0.0.1:0/amps/json")
        .ack_interval(Duration::from_millis(100))
        .start()
        .await
        .map_err(|e| Failure::other(format!("cannot start the embedded sandbox server: {e}")))
}

fn client_failure(error: &amps_client::OpenError) -> Failure {
    let exit = match error {
        amps_client::OpenError::Uri(_) | amps_client::OpenError::BadClientName(_) => Exit::Usage,
        _ => Exit::Other,
    };
    Failure::new(exit, error.to_string())
}

fn tell_recovered(out: &SideOutput, recovered: u64, path: Option<&Path>, store: &Store) {
    let report = store.report();
    let found = report.set_aside > 0
        || !report.lost.is_empty()
        || !report.ignored.is_empty()
        || report.converted_from.is_some();
    if out.is_json() && (recovered > 0 || found) {
        let (first, last) = report.set_aside_sequences.unzip();
        let lost = report.lost.iter().filter(|(_, last)| *last > 0);
        let lost: Vec<_> = lost.map(|&(first, last)| vec![first, last]).collect();
        out.object(object! {
            "event": "recovered",
            "recovered": recovered,
            "first": store.bounds().first_unsettled,
            "last": store.bounds().last,
            "set_aside": report.set_aside,
            "set_aside_first": first,
            "set_aside_last": last,
            "set_aside_rejections": report.set_aside_rejections.clone(),
            "damage_ignored": report.ignored.len(),
            "given_up": lost,
            "converted_from": report.converted_from,
        });
    }
    if recovered > 0 && !out.is_json() {
        say(&format!(
            "note: {} holds {recovered} unsettled message(s) of an earlier run; they go first",
            store_name(path)
        ));
    }
}

/// Reports what became of a wish for more capacity.
fn tell_growth(out: &SideOutput, path: Option<&Path>, store: &Store) {
    let Some(growth) = &store.report().growth else {
        return;
    };
    if out.is_json() {
        let (grown, capacity) = match growth {
            Growth::Grown { to, .. } => (true, Some(*to)),
            Growth::Larger { capacity, .. } | Growth::Refused { capacity, .. } => {
                (false, Some(*capacity))
            }
            _ => (false, None),
        };
        out.object(object! {
            "event": "capacity",
            "grown": grown,
            "capacity_bytes": capacity,
            "what": growth.to_string(),
        });
    }
    say(&format!("note: {}: {growth}", store_name(path)));
}

/// Whether what is left could be saved there, asked before anything is stored: at the end it would
/// be too late to name another place.
///
/// # Errors
/// Something is there already, or nothing can be created there.
pub(crate) fn check_evacuate_to(to: Option<&Path>) -> Result<(), Failure> {
    let Some(to) = to else { return Ok(()) };
    let refused = |why: String| {
        let to = to.display();
        let words = format!("--evacuate-to {to}: {why}; name a file that does not exist");
        Err(Failure::new(Exit::Usage, words))
    };
    match to.symlink_metadata() {
        Ok(_) => return refused("something is there already".to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return refused(error.to_string()),
    }
    let folder = match to.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => return refused("it has no folder".to_owned()),
    };
    match folder.is_dir() {
        true => Ok(()),
        false => refused(format!("there is no folder {}", folder.display())),
    }
}

/// Saves what is left in a store that is gone; returns where, if that could be done. It runs on
/// this thread: only the report is still waiting, and where no thread can be made this needs
/// none.
fn evacuate(store: &Store, to: PathBuf, mode: Option<u32>) -> Option<PathBuf> {
    let untidy = match store.evacuate(&to, Level::Os) {
        // Anything that was granted may have been sent.
        Ok(fresh) => fresh.close(u64::MAX).err().map(|e| {
            let to = to.display();
            format!("the new store {to} is whole, and was not closed cleanly: {e}")
        }),
        // Sending it is up to another run.
        Err(error @ EvacuateError::Reopen { .. }) => Some(error.to_string()),
        Err(error) => {
            let to = to.display();
            say(&format!(
                "error: what is left could not be saved in {to}: {error}"
            ));
            return None;
        }
    };
    if let Some(untidy) = untidy {
        say(&format!("note: {untidy}"));
    }
    tell_mode(&to, mode);
    tell_new_volume(&to);
    Some(to)
}

/// What to say about a store whose file is gone.
fn lost(report: &Report, path: Option<&Path>, asked: bool, evacuated: Option<&Path>) -> String {
    let store = store_name(path);
    let waits = match report.waiting_refusals {
        0 => String::new(),
        n => format!(" and {n} refusal(s) that wait"),
    };
    let advice = match asked {
        true => "",
        false => " With --evacuate-to FILE they are saved",
    };
    match evacuated {
        Some(to) => format!(
            "{store} was removed while it was open; its {} message(s){waits} are saved in the new \
             store {to}: send them with: amps drain --store {to} --server URI",
            report.left,
            to = to.display()
        ),
        None => format!(
            "{store} was removed while it was open, and what it kept is gone with this process: {} \
             message(s) that were not acknowledged{waits}, and where the input was.{advice}",
            report.left
        ),
    }
}

/// What to say of what ended with the process: the store's device failed, and its log had no room.
fn unrecorded_in_words(unrecorded: Unrecorded, store: &str) -> Option<String> {
    let refusals = match unrecorded.refusals {
        0 => String::new(),
        n => format!(
            "; {n} refusal(s) are among what it could not note and wait for nobody: a message that \
             is sent again is refused again"
        ),
    };
    match (unrecorded.messages, unrecorded.refusals) {
        (0, 0) => None,
        (0, n) => Some(format!(
            "{store} could not note {n} refusal(s) of messages that were acknowledged first, since \
             its device failed: they wait for nobody"
        )),
        (n, _) => Some(format!(
            "{store} could not note what became of {n} message(s), since its device failed: they \
             are unsettled in it and go out again with the next run{refusals}"
        )),
    }
}

fn advice(report: &Report, path: Option<&Path>, place: Place) -> String {
    match path {
        Some(path) if place != Place::There => format!(
            "{} message(s) stay in the store that was at {} when this began and was renamed since: \
             find it, and send them with: amps drain --store FILE --server URI",
            report.left - report.unrecorded.messages,
            path.display()
        ),
        Some(path) => format!(
            "{} message(s) stay in the store {p}; send them with: amps drain --store {p} --server URI",
            report.left - report.unrecorded.messages,
            p = path.display()
        ),
        None => format!(
            "{} message(s) were not acknowledged and are gone with this process; use --store FILE \
             to keep them",
            report.left
        ),
    }
}
