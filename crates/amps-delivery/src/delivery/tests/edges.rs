//! The last case of a rule and the first one beyond it: limits, batches, restarts.

use super::super::single::SINGLES;
use super::*;

fn attempts(outputs: &[Output]) -> Option<u32> {
    outputs.iter().find_map(|o| match o {
        Output::Refused { attempts, .. } => Some(*attempts),
        _ => None,
    })
}

fn gaps(outputs: &[Output]) -> Vec<(u64, u64)> {
    let gap = |note: &Note| match note {
        Note::PublishGap {
            server, settled, ..
        } => Some((*server, *settled)),
        _ => None,
    };
    notes(outputs).into_iter().filter_map(gap).collect()
}

fn flushed(outputs: &[Output]) -> Vec<u64> {
    let id = |output: &Output| match output {
        Output::Flushed { id, .. } => Some(*id),
        _ => None,
    };
    outputs.iter().filter_map(id).collect()
}

fn by_id(sequence: u64) -> Input<'static> {
    Input::Ack(PublishAck {
        figure: None,
        sequence: Some(sequence),
        verdict: Verdict::Persisted,
    })
}

fn file_store(dir: &tempfile::TempDir) -> Store {
    Store::open(dir.path().join("store"), options()).unwrap()
}

#[test]
fn single_acks_are_settled_by_the_batch_and_one_told_twice_counts_once() {
    let mut rig = rig();
    let most = SINGLES as u64;
    rig.publish(most + 6);
    rig.logon(None);
    rig.send();
    for sequence in 1..most {
        rig.input(by_id(sequence));
        rig.input(by_id(sequence));
    }
    assert_eq!(rig.unsettled(), most + 6, "the batch is not full");
    rig.input(by_id(most));
    assert_eq!(rig.unsettled(), 6);
    assert_eq!(rig.delivery.totals().persisted, most);
    // A batch settles nothing that came after it.
    rig.input(by_id(most + 1));
    assert_eq!(rig.unsettled(), 6);
    rig.input(Input::AcksEnd);
    assert_eq!(rig.unsettled(), 5);
}

#[test]
fn what_is_on_the_way_is_counted_and_a_lost_link_takes_it_along() {
    let mut rig = rig();
    rig.publish(3);
    rig.logon(0);
    rig.send();
    assert_eq!(rig.delivery.in_flight(), 3);
    rig.ok(2);
    assert_eq!(rig.delivery.in_flight(), 1);
    rig.lose();
    assert_eq!(rig.delivery.in_flight(), 0);
}

#[test]
fn no_room_means_one_message_and_no_rate_means_no_pace() {
    let config = Config {
        max_in_flight: 0,
        max_in_flight_bytes: 0,
        replay_rate: Some(0),
        ..Config::default()
    };
    let mut rig = rig_with(Store::memory(options()).unwrap(), config);
    rig.publish(3);
    rig.logon(0);
    for sequence in 1..=3 {
        assert_eq!(rig.send(), [(sequence, sequence)]);
        assert_eq!(rig.delivery.deadline(), None);
        rig.ok(sequence);
    }
}

#[test]
fn a_cancelled_flush_is_told_to_nobody_and_the_other_one_is() {
    let mut rig = rig();
    rig.publish(2);
    for id in [1, 2] {
        let until = Some(Duration::from_secs(id * 100));
        rig.input(Input::Flush {
            id,
            through: u64::MAX,
            until,
        });
    }
    assert_eq!(rig.delivery.deadline(), Some(Duration::from_secs(100)));
    rig.input(Input::FlushCancelled { id: 1 });
    assert_eq!(rig.delivery.deadline(), Some(Duration::from_secs(200)));
    rig.logon(0);
    rig.send();
    assert_eq!(flushed(&rig.ok(2)), [2]);
}

#[test]
fn a_store_that_takes_no_settlement_is_told_and_nothing_is_counted() {
    let mut rig = rig();
    rig.publish(3);
    rig.logon(0);
    rig.send();
    rig.store.close(3).unwrap();
    rig.delivery.handle(&rig.store, rig.now, by_id(3));
    for outputs in [rig.input(Input::AcksEnd), rig.ok(2)] {
        let failed = notes(&outputs)
            .iter()
            .filter(|n| matches!(n, Note::StoreFailed { doing, .. } if *doing == "settle messages"))
            .count();
        assert_eq!((failed, outputs.len()), (1, 1), "{outputs:?}");
    }
    assert_eq!(rig.delivery.totals().persisted, 0);
}

#[test]
fn attempts_are_counted_over_more_links_than_are_remembered_one_by_one() {
    let mut rig = rig();
    rig.publish(1);
    rig.logon(0);
    rig.send();
    rig.ok(1);
    rig.publish(2);
    for _ in 0..70 {
        rig.lose();
        rig.logon(1);
        rig.send();
    }
    assert_eq!(attempts(&rig.fail(2, None)), Some(70));
    // What was first sent later was tried less often.
    rig.publish(1);
    rig.send();
    assert_eq!(attempts(&rig.fail(4, None)), Some(1));
    assert_eq!(attempts(&rig.fail(3, None)), Some(70));
}

#[test]
fn a_grant_is_tried_again_only_where_it_would_help() {
    let failed = || Input::GrantRaised(Err(StoreError::SyncFailed("EIO".into())));
    let mut rig = rig();
    rig.publish(1);
    rig.carry_out = false;
    rig.logon(0);
    rig.input(failed());
    assert!(rig.delivery.deadline().is_some());
    rig.lose();
    assert_eq!(rig.delivery.deadline(), None, "no link");
    rig.logon(0);
    rig.input(failed());
    assert!(rig.delivery.deadline().is_some());
    rig.input(Input::SyncFailed);
    assert_eq!(rig.delivery.deadline(), None, "it can never be durable");
}

#[test]
fn after_a_failed_sync_sending_goes_on_where_nothing_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig_with(file_store(&dir), Config::default());
    rig.logon(0);
    rig.input(Input::SyncFailed);
    rig.publish(1);
    assert_eq!(rig.next(Room::ANY).len(), 1);
    let outputs = rig.drain();
    assert!(
        !notes(&outputs)
            .iter()
            .any(|n| matches!(n, Note::SendingStopped { .. })),
        "{outputs:?}"
    );
}

#[test]
fn a_gap_below_what_an_earlier_run_had_settled_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig_with(file_store(&dir), Config::default());
    rig.publish(101);
    rig.logon(0);
    rig.send();
    rig.ok(100);
    drop(rig);
    let mut rig = rig_with(file_store(&dir), Config::default());
    assert_eq!(gaps(&rig.logon(80)), [(80, 100)]);
}

#[test]
fn what_is_given_up_before_any_logon_of_a_new_run_is_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    rig_with(file_store(&dir), Config::default()).publish(3);
    let mut rig = rig_with(file_store(&dir), Config::default());
    rig.input(Input::GiveUp {
        sequence: 1,
        reason: "too old",
    });
    assert!(!rig.store.is_unsettled(1));
    assert_eq!(gaps(&rig.logon(0)), []);
}

#[test]
fn after_a_rebase_nothing_counts_as_sent_that_was_not_sent_under_it() {
    let mut rig = rig();
    rig.publish(3);
    rig.logon(0);
    rig.send();
    rig.ok(2);
    rig.lose();
    rig.publish(2);
    let theirs = rig.store.numbers().grant + 1000;
    assert_eq!(rebases(&rig.logon(theirs)), 1);
    assert_eq!(rig.delivery.handed_over(), 2);
    // One rebase was allowed, and so is one more on request; not two.
    rig.lose();
    let mut higher = rebase_above(theirs) + (1 << 33);
    assert_eq!(rebases(&rig.logon(higher)), 0);
    rig.lose();
    rig.input(Input::AllowRebase);
    assert_eq!(rebases(&rig.logon(higher)), 1);
    rig.lose();
    higher = rebase_above(higher) + (1 << 33);
    assert_eq!(rebases(&rig.logon(higher)), 0);
}

/// At `Disk` sending ends with what was durable; there is nothing to tell while nothing waits.
#[test]
fn sending_stops_for_a_failed_sync_when_there_is_something_to_send() {
    let disk = SimDisk::new();
    let store = disk.open(options().level(Level::Disk)).unwrap();
    let mut rig = rig_with(store, Config::default());
    rig.logon(0);
    rig.publish(1);
    rig.store.sync().unwrap();
    let turn = |rig: &mut Rig| {
        let sent = rig.next(Room::ANY).len();
        let outputs = rig.drain();
        let stopped = |n: &&&Note| matches!(n, Note::SendingStopped { through: 1 });
        (sent, notes(&outputs).iter().filter(stopped).count())
    };
    assert_eq!(turn(&mut rig), (1, 0));
    disk.fail(Fault::Sync(0));
    rig.store.sync().unwrap_err();
    rig.input(Input::SyncFailed);
    assert_eq!(turn(&mut rig), (0, 0));
    rig.publish(1);
    assert_eq!(turn(&mut rig), (0, 1));
    assert_eq!(turn(&mut rig), (0, 0), "once");
}

fn possible_duplicates(outputs: &[Output]) -> Option<u64> {
    notes(outputs).iter().find_map(|note| match note {
        Note::Rebased {
            possible_duplicates,
            ..
        } => Some(*possible_duplicates),
        _ => None,
    })
}

/// Only what may have gone out under the old numbers, and still waits, can arrive twice.
#[test]
fn a_rebase_counts_what_may_arrive_twice() {
    let dir = tempfile::tempdir().unwrap();
    for (settled, expected) in [(&[][..], 4), (&[2, 3, 4], 1)] {
        let path = dir.path().join(expected.to_string());
        let store = Store::open(&path, options()).unwrap();
        store.raise_grant(4).unwrap();
        for _ in 0..4 {
            store.append(&Envelope::publish("t"), b"one").unwrap();
        }
        drop(store);
        let mut rig = rig_with(Store::open(&path, options()).unwrap(), Config::default());
        rig.store.settle(settled).unwrap();
        if settled.is_empty() {
            rig.publish(10);
        }
        let outputs = rig.logon(1 << 40);
        assert_eq!(possible_duplicates(&outputs), Some(expected));
        assert_eq!(rig.delivery.totals().possible_duplicates, expected);
    }
}

/// Those that were never sent once stood in for those in between that were settled one by one.
#[test]
fn a_rebase_counts_no_message_that_was_never_sent() {
    for (unsent, left) in [(0, 2), (3, 2), (50, 2), (3, 8)] {
        let mut rig = rig();
        let sent = rig.publish(10);
        rig.logon(0);
        assert_eq!(rig.send().len(), 10);
        rig.lose();
        rig.store.settle(&sent[1..11 - left]).unwrap();
        rig.publish(unsent);
        assert_eq!(rig.delivery.may_be_sent_again(&rig.store), left as u64);
        let outputs = rig.logon(1 << 40);
        assert_eq!(possible_duplicates(&outputs), Some(left as u64));
        assert_eq!(rig.send().len() as u64, left as u64 + unsent);
        assert_eq!(rig.delivery.totals().resent, left as u64);
    }
}

/// A message that was sent and is given up while its rebase is under way arrives once; those that
/// were stored meanwhile were never sent.
#[test]
fn what_is_settled_while_a_rebase_is_under_way_is_no_duplicate() {
    let mut rig = rig();
    rig.publish(1);
    rig.logon(0);
    rig.send();
    rig.lose();
    rig.carry_out = false;
    rig.logon(1 << 40);
    let rebased = rig.store.rebase(1 << 41);
    rig.publish(3);
    let reason = "enough";
    let sequence = 1;
    rig.input(Input::GiveUp { sequence, reason });
    rig.carry_out = true;
    let outputs = rig.input(Input::Rebased(rebased));
    assert_eq!(possible_duplicates(&outputs), Some(0));
}

/// A logon that names no figure begins a link like any other.
#[test]
fn a_short_link_without_a_figure_counts_as_short() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = rig_with(file_store(&dir), Config::default());
    rig.publish(5);
    rig.logon(0);
    rig.send();
    drop(rig);
    let mut rig = rig_with(file_store(&dir), Config::default());
    rig.logon(None);
    rig.send();
    rig.lose();
    let outputs = rig.logon(50);
    assert!(
        notes(&outputs)
            .iter()
            .any(|n| matches!(n, Note::NameShared { figure: 50, .. })),
        "{outputs:?}"
    );
}
