//! Messages whose envelope this program does not know.

use amps_store::testkit::{intact_messages, resign};

use super::*;

/// A store with so many messages, of which these have an operation that nobody knows.
fn with_unknown(count: u64, unknown: &[u64]) -> SimDisk {
    let disk = SimDisk::new();
    let store = disk.open(options()).unwrap();
    for _ in 0..count {
        let appended = store.append(&Envelope::publish("orders"), b"payload");
        appended.unwrap();
    }
    store.sync().unwrap();
    drop(store);
    let mut bytes = disk.bytes();
    let messages = intact_messages(&bytes).into_iter();
    let changed = messages.filter(|m| unknown.contains(&m.sequence));
    let changed = changed.map(|m| bytes[m.offset as usize + 40] = 9).count();
    assert_eq!(changed, unknown.len());
    resign(&mut bytes);
    disk.restore(bytes);
    disk
}

fn unreadable(outputs: &[Output]) -> Vec<u64> {
    let notes = notes(outputs).into_iter();
    let told = notes.filter_map(|note| match note {
        Note::Unreadable { sequence, error } => {
            assert!(error.to_string().contains("version"), "{error}");
            Some(*sequence)
        }
        _ => None,
    });
    told.collect()
}

/// All that goes out, and all that is told meanwhile.
fn send(rig: &mut Rig) -> (Vec<u64>, Vec<Output>) {
    let (mut sent, mut told) = (Vec::new(), Vec::new());
    loop {
        let more = rig.next(Room::ANY);
        let more: Vec<u64> = more.iter().map(|(sequence, _, _)| *sequence).collect();
        let outputs = rig.drain();
        if more.is_empty() && outputs.is_empty() {
            return (sent, told);
        }
        sent.extend(more);
        told.extend(outputs);
    }
}

/// The link was given up when it came to such a message, for ever, and nothing behind it went out.
#[test]
fn a_message_with_an_unknown_envelope_waits_as_a_refusal_and_keeps_nobody_back() {
    let unknown = [1, 5, 6, 7, 30];
    let disk = with_unknown(30, &unknown);
    let mut rig = rig_with(disk.open(options()).unwrap(), Config::default());
    rig.logon(0);
    let syncs = disk.syncs();
    let (sent, told) = send(&mut rig);
    let readable: Vec<u64> = (1..=30).filter(|s| !unknown.contains(s)).collect();
    assert_eq!(sent, readable);
    assert_eq!(unreadable(&told), unknown);
    // One for each stretch: what stands together becomes durable together.
    assert_eq!(disk.syncs() - syncs, 3);
    let refused = told.iter().filter_map(|output| match output {
        Output::Refused {
            sequence,
            late,
            attempts,
            ..
        } => Some((*sequence, *late, *attempts)),
        _ => None,
    });
    assert!(refused.eq(unknown.map(|s| (s, false, 0))));
    assert!(notes(&told).iter().any(|n| matches!(n, Note::Replayed)));
    rig.ok(29);
    let totals = rig.delivery.totals();
    assert_eq!(
        (totals.persisted, totals.rejected, totals.sent),
        (25, 5, 25)
    );
    assert_eq!(rig.unsettled(), 0);
    let waits: Vec<u64> = rig
        .store
        .rejections(0, 99)
        .iter()
        .map(|r| r.sequence)
        .collect();
    assert_eq!(waits, unknown);
    // The next link has nothing more to say of it.
    rig.lose();
    rig.logon(29);
    let (sent, told) = send(&mut rig);
    assert!(sent.is_empty() && unreadable(&told).is_empty());
}

/// Otherwise a power cut takes the refusal, numbers behind it went out, and the next figure of the
/// server covers a message that it never had.
#[test]
fn nothing_goes_out_behind_an_unknown_envelope_before_its_refusal_is_durable() {
    let disk = with_unknown(3, &[2]);
    let mut rig = rig_with(disk.open(options()).unwrap(), Config::default());
    rig.logon(0);
    disk.fail(Fault::Sync(0));
    let (sent, told) = send(&mut rig);
    assert_eq!((sent, unreadable(&told)), (vec![1], vec![2]));
    drop(rig);

    let disk = with_unknown(3, &[2]);
    let mut rig = rig_with(disk.open(options()).unwrap(), Config::default());
    rig.logon(0);
    assert_eq!(send(&mut rig).0, [1, 3]);
    drop(rig);
    disk.power_cut(Cut::None, &mut Rng::new(1));
    let mut rig = rig_with(disk.open(options()).unwrap(), Config::default());
    rig.logon(3);
    assert_eq!(rig.store.rejections(0, 9)[0].sequence, 2);
    assert_eq!(rig.delivery.totals().persisted_at_logon, 2);
}

/// After a failed sync no refusal of one's own can be kept. Sending ends there, is told once, and
/// the link stays.
#[test]
fn after_a_failed_sync_an_unknown_envelope_stops_sending_and_says_so_once() {
    let disk = with_unknown(3, &[2]);
    let mut rig = rig_with(disk.open(options()).unwrap(), Config::default());
    rig.logon(0);
    disk.fail(Fault::Sync(0));
    rig.store.sync().unwrap_err();
    rig.input(Input::SyncFailed);
    let mut stops = 0;
    for _ in 0..2 {
        let (_, told) = send(&mut rig);
        let stopped = |n: &&&Note| matches!(n, Note::SendingStopped { through: 1 });
        stops += notes(&told).iter().filter(stopped).count();
        assert!(drops(&told).is_none());
        rig.lose();
        rig.logon(0);
    }
    assert_eq!(stops, 1);
    assert!(rig.store.is_unsettled(2) && rig.store.is_unsettled(3));
}

/// As a give-up: what nobody opens again cannot bring the message back.
#[test]
fn an_unknown_envelope_stops_nothing_when_the_file_is_gone() {
    let disk = with_unknown(3, &[2]);
    let mut rig = rig_with(disk.open(options()).unwrap(), Config::default());
    rig.logon(0);
    disk.fail(Fault::Sync(0));
    rig.input(Input::StoreGone);
    let (sent, told) = send(&mut rig);
    assert_eq!((sent, unreadable(&told)), (vec![1, 3], vec![2]));
    let stopped = |n: &&Note| matches!(n, Note::SendingStopped { .. });
    assert!(!notes(&told).iter().any(stopped), "{told:?}");
}

/// What an earlier run sent, of a program that knew the envelope, may be settled by the server.
#[test]
fn a_figure_that_covers_an_unknown_envelope_settles_it() {
    let disk = with_unknown(3, &[2]);
    let store = disk.open(options()).unwrap();
    store.raise_grant(3).unwrap();
    drop(store);
    let mut rig = rig_with(disk.open(options()).unwrap(), Config::default());
    rig.logon(2);
    let (sent, told) = send(&mut rig);
    assert_eq!((sent, unreadable(&told)), (vec![3], vec![]));
    assert!(rig.store.rejections(0, 9).is_empty());
}
