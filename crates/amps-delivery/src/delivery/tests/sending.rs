//! When messages go out, in what order and how fast, and what waits for them.

use super::*;

#[test]
fn h31_the_same_head_at_the_end_of_several_links_is_a_stall() {
    let mut rig = rig();
    rig.publish(2);
    for link in 1..=4 {
        rig.logon(0);
        rig.send();
        let outputs = rig.lose();
        let stalled = notes(&outputs)
            .iter()
            .any(|n| matches!(n, Note::Stalled { sequence: 1, links } if *links == link));
        assert_eq!(stalled, link >= 3);
        assert_eq!(rig.delivery.wants_longest_delay(), link >= 3);
    }
    rig.logon(0);
    rig.send();
    // The refusal at last says how often it was tried, and ends the stall.
    let outputs = rig.fail(1, None);
    assert!(
        outputs
            .iter()
            .any(|o| matches!(o, Output::Refused { attempts: 5, .. })),
        "{outputs:?}"
    );
    assert!(!rig.delivery.wants_longest_delay());
}

#[test]
fn at_disk_only_durable_messages_are_sent() {
    // One that syncs when it is told to, and not of its own accord.
    let disk = SimDisk::new();
    let store = disk.open(options().level(Level::Disk)).unwrap();
    let mut rig = rig_with(store, Config::default());
    rig.logon(0);
    for _ in 0..20 {
        let last = rig.publish(1)[0];
        assert!(rig.store.durable().sequence < last);
        assert!(rig.send().is_empty(), "{last} is not durable");
        rig.store.sync().unwrap();
        assert_eq!(rig.send(), [(last, last)]);
    }
}

#[test]
fn in_flight_bounds_hold_and_acks_give_room() {
    let config = Config {
        max_in_flight: 10,
        ..Config::default()
    };
    let mut rig = rig_with(Store::memory(options()).unwrap(), config);
    rig.publish(30);
    rig.logon(0);
    assert_eq!(rig.send().len(), 10);
    rig.ok(4);
    assert_eq!(rig.send().len(), 4);
    rig.fail(5, None);
    assert_eq!(rig.send().len(), 1);

    let config = Config {
        max_in_flight_bytes: 21,
        ..Config::default()
    };
    let mut rig = rig_with(Store::memory(options()).unwrap(), config);
    rig.publish(30);
    rig.logon(0);
    assert_eq!(rig.send().len(), 3);
    rig.ok(3);
    assert_eq!(rig.send().len(), 3);
}

#[test]
fn a_replay_keeps_its_rate_and_new_messages_wait_behind_it() {
    let config = Config {
        replay_rate: Some(100),
        ..Config::default()
    };
    let mut rig = rig_with(Store::memory(options()).unwrap(), config);
    rig.publish(300);
    rig.logon(0);
    let mut sent = 0;
    for _ in 0..100 {
        sent += rig.send().len();
        let Some(until) = rig.delivery.deadline() else {
            break;
        };
        assert!(until > rig.now.at);
        rig.now.at += Duration::from_millis(10);
    }
    assert!((95..=110).contains(&sent), "{sent} in one second");
    // New ones have no rate, and none of them overtakes.
    rig.publish(200);
    let (mut last, mut at_once) = (sent as u64, 0);
    for _ in 0..250 {
        let batch = rig.send();
        for (sequence, _) in &batch {
            assert_eq!(*sequence, last + 1);
            last = *sequence;
        }
        at_once = batch.len().max(at_once);
        rig.now.at += Duration::from_millis(10);
    }
    assert_eq!(last, 500);
    assert!(at_once >= 200, "all new ones with the last of the replay");
}

#[test]
fn a_flush_covers_what_was_stored_when_it_was_asked_for() {
    let mut rig = rig();
    rig.publish(3);
    let outputs = rig.input(Input::Flush {
        id: 7,
        through: u64::MAX,
        until: None,
    });
    assert!(outputs.is_empty());
    rig.publish(2);
    rig.logon(0);
    rig.send();
    assert!(
        !rig.ok(2)
            .iter()
            .any(|o| matches!(o, Output::Flushed { .. }))
    );
    // A refusal counts as flushed once it is in the log; 4 and 5 are not waited for.
    let outputs = rig.fail(3, None);
    assert!(
        outputs
            .iter()
            .any(|o| matches!(o, Output::Flushed { id: 7, result } if result.left == 0))
    );
    assert_eq!(rig.unsettled(), 2);
}

#[test]
fn a_flush_waits_for_its_own_messages_whatever_was_settled_behind_them() {
    let mut rig = rig();
    rig.publish(5);
    rig.logon(0);
    rig.send();
    // Asked for when 2 were stored, taken in when 5 were, and one of those was refused.
    rig.fail(4, None);
    let ask = |id, through| Input::Flush {
        id,
        through,
        until: None,
    };
    assert!(rig.input(ask(1, 2)).is_empty());
    let over = |outputs: &[Output]| {
        outputs
            .iter()
            .any(|o| matches!(o, Output::Flushed { id: 1, result } if result.left == 0))
    };
    assert!(!over(&rig.ok(1)));
    assert!(over(&rig.ok(2)), "3 and 5 are not waited for");
}

#[test]
fn a_flush_ends_in_time_and_says_what_is_left() {
    let mut rig = rig();
    rig.publish(10);
    rig.logon(0);
    rig.send();
    let until = rig.now.at + Duration::from_secs(5);
    rig.input(Input::Flush {
        id: 1,
        through: u64::MAX,
        until: Some(until),
    });
    rig.ok(4);
    rig.fail(7, None);
    assert_eq!(rig.delivery.deadline(), Some(until));
    rig.now.at = until;
    let outputs = rig.input(Input::Tick);
    assert!(
        outputs
            .iter()
            .any(|o| matches!(o, Output::Flushed { id: 1, result } if result.left == 5)),
        "{outputs:?}"
    );
    let outputs = rig.input(Input::Flush {
        id: 2,
        through: u64::MAX,
        until: None,
    });
    assert!(outputs.is_empty());
    rig.lose();
    let outputs = rig.logon(10);
    assert!(
        outputs
            .iter()
            .any(|o| matches!(o, Output::Flushed { id: 2, result } if result.left == 0))
    );
    let outputs = rig.input(Input::Flush {
        id: 3,
        through: u64::MAX,
        until: None,
    });
    assert!(
        outputs
            .iter()
            .any(|o| matches!(o, Output::Flushed { id: 3, result } if result.left == 0))
    );
}

#[test]
fn a_replay_ends_with_what_was_stored_at_logon() {
    let mut rig = rig();
    rig.publish(3);
    let outputs = rig.logon(0);
    assert!(!notes(&outputs).iter().any(|n| matches!(n, Note::Replayed)));
    let next = |rig: &mut Rig| {
        assert_eq!(rig.next(few(1)).len(), 1);
        rig.drain()
    };
    assert!(notes(&next(&mut rig)).is_empty());
    next(&mut rig);
    assert!(matches!(notes(&next(&mut rig))[..], [Note::Replayed]));
}

#[test]
fn h31_an_operator_can_give_up_on_the_message_that_stalls() {
    let mut rig = rig();
    rig.publish(3);
    for _ in 0..3 {
        rig.logon(0);
        rig.send();
        rig.lose();
    }
    assert!(rig.delivery.wants_longest_delay());
    let outputs = rig.input(Input::GiveUp {
        sequence: 1,
        reason: "given up",
    });
    assert_eq!(refused(&outputs), Some((1, false)));
    assert!(!rig.delivery.wants_longest_delay());
    assert_eq!(rig.store.rejections(0, 9)[0].reason, "given up");
    rig.logon(0);
    assert_eq!(rig.send(), [(2, 2), (3, 3)]);
    // What is settled cannot be given up.
    rig.ok(3);
    assert!(
        rig.input(Input::GiveUp {
            sequence: 2,
            reason: "given up"
        })
        .is_empty()
    );
}

/// Found by the simulation: a power cut took the give-up, the numbers behind it had gone out,
/// and the next logon called the message that no server ever had persisted.
#[test]
fn nothing_goes_out_behind_a_give_up_before_it_is_durable() {
    let disk = SimDisk::new();
    let mut rig = rig_with(disk.open(options()).unwrap(), Config::default());
    rig.publish(3);
    rig.logon(0);
    disk.fail(Fault::Sync(0));
    rig.input(Input::GiveUp {
        sequence: 1,
        reason: "given up",
    });
    assert!(rig.send().is_empty(), "the give-up is not on the device");
    rig.input(Input::SyncFailed);
    assert!(rig.send().is_empty(), "and never will be");
    let outputs = rig.drain();
    assert!(
        notes(&outputs)
            .iter()
            .any(|n| matches!(n, Note::SendingStopped { through: 0 }))
    );
    // From now on nobody can give up on anything.
    let outputs = rig.input(Input::GiveUp {
        sequence: 2,
        reason: "given up",
    });
    assert!(matches!(notes(&outputs)[..], [Note::StoreFailed { .. }]));
    assert!(rig.store.is_unsettled(2));

    let disk = SimDisk::new();
    let mut rig = rig_with(disk.open(options()).unwrap(), Config::default());
    rig.publish(3);
    rig.input(Input::GiveUp {
        sequence: 1,
        reason: "given up",
    });
    rig.logon(0);
    assert_eq!(rig.send(), [(2, 2), (3, 3)]);
    drop(rig);
    disk.power_cut(Cut::None, &mut Rng::new(1));
    let mut rig = rig_with(disk.open(options()).unwrap(), Config::default());
    let outputs = rig.logon(3);
    assert_eq!(rig.store.rejections(0, 9)[0].sequence, 1);
    assert_eq!(rig.delivery.totals().persisted_at_logon, 2, "{outputs:?}");
}

#[test]
fn a_message_given_up_is_no_publish_gap() {
    let mut rig = rig();
    rig.publish(3);
    rig.logon(0);
    rig.send();
    rig.ok(2);
    rig.lose();
    rig.input(Input::GiveUp {
        sequence: 3,
        reason: "given up",
    });
    // The server is where it was.
    let outputs = rig.logon(2);
    assert!(notes(&outputs).iter().all(|n| matches!(n, Note::Replayed)));
    rig.lose();
    let outputs = rig.logon(1);
    assert!(notes(&outputs).iter().any(|n| matches!(
        n,
        Note::PublishGap {
            server: 1,
            settled: 2,
            unknown_publisher: false
        }
    )));
}

/// A give-up that came between a failed sync and its telling waited for a durability that
/// nothing could reach any more, and everything behind it with it.
#[test]
fn a_give_up_after_a_failed_sync_that_was_not_told_yet_stops_nothing() {
    let disk = SimDisk::new();
    let mut rig = rig_with(disk.open(options()).unwrap(), Config::default());
    rig.publish(3);
    rig.logon(0);
    disk.fail(Fault::Sync(0));
    rig.store.sync().unwrap_err();
    let outputs = rig.input(Input::GiveUp {
        sequence: 1,
        reason: "given up",
    });
    assert!(matches!(notes(&outputs)[..], [Note::StoreFailed { .. }]));
    assert!(rig.store.is_unsettled(1) && refused(&outputs).is_none());
    assert_eq!(rig.send(), [(1, 1), (2, 2), (3, 3)]);
    let outputs = rig.input(Input::SyncFailed);
    let stopped = |n: &&Note| matches!(n, Note::SendingStopped { .. });
    assert!(!notes(&outputs).iter().any(stopped), "{outputs:?}");
    rig.ok(3);
    assert_eq!(rig.unsettled(), 0);
}

#[test]
fn a_give_up_of_what_was_not_sent_gives_no_room_on_the_link() {
    let config = Config {
        max_in_flight: 2,
        ..Config::default()
    };
    let mut rig = rig_with(Store::memory(options()).unwrap(), config);
    rig.publish(5);
    rig.logon(0);
    assert_eq!(rig.send().len(), 2);
    let give_up = |sequence| Input::GiveUp {
        sequence,
        reason: "given up",
    };
    rig.input(give_up(4));
    assert!(rig.send().is_empty());
    rig.input(give_up(1));
    assert_eq!(rig.send(), [(3, 3)]);
}

/// Counted as sent, it could be covered by a server's figure although it never went out.
#[test]
fn what_a_link_does_not_take_is_not_handed_over() {
    let mut rig = rig();
    rig.publish(3);
    rig.logon(0);
    let send = |next: &ToSend<'_>| match next.sequence {
        1 => Ok(()),
        _ => Err("too large"),
    };
    let (store, batch) = (&rig.store, &mut rig.batch);
    let sent = rig
        .delivery
        .hand_over(store, rig.now, Room::ANY, batch, send);
    let refused = matches!(sent, Err(NotSent::Refused { sequence: 2, .. }));
    assert!(refused, "{sent:?}");
    assert_eq!(rig.delivery.totals().sent, 1);
    assert_eq!(rig.delivery.handed_over(), 1);
    assert_eq!(rig.delivery.in_flight(), 1);
    assert_eq!(rig.send(), [(2, 2), (3, 3)], "it is still the next");
}

#[test]
fn no_more_goes_out_than_the_link_has_room_for() {
    let mut rig = rig();
    rig.publish(5);
    rig.logon(0);
    assert!(rig.next(Room::NONE).is_empty());
    assert_eq!(rig.next(few(2)).len(), 2);
    let narrow = Room {
        bytes: 1,
        ..Room::ANY
    };
    assert_eq!(rig.next(narrow).len(), 1, "the first may be larger");
    assert_eq!(rig.next(Room::ANY).len(), 2);
}

/// At `Disk` what is not durable stays where it is, which is said; at the other levels all of it
/// goes out, and the numbers it takes are granted as before.
#[test]
fn sending_goes_on_when_the_file_is_gone() {
    for level in [Level::Os, Level::Disk] {
        let store = SimDisk::new().open(options().level(level)).unwrap();
        let mut rig = rig_with(store, Config::default());
        rig.publish(1);
        rig.store.sync().unwrap();
        rig.publish(1);
        assert!(notes(&rig.input(Input::StoreGone)).is_empty());
        rig.logon(0);
        let (sent, notes_of) = (rig.send(), rig.drain());
        match level {
            Level::Disk => {
                assert_eq!(sent, [(1, 1)]);
                let stops = notes(&notes_of);
                assert!(matches!(stops[..], [Note::SendingStopped { through: 1 }]));
            }
            _ => {
                assert_eq!(sent, [(1, 1), (2, 2)]);
                assert!(notes(&notes_of).is_empty(), "nothing is held back");
            }
        }
    }
}

/// Nobody opens a removed file again: a give-up that waited for its durability waited for ever,
/// and everything behind it with it.
#[test]
fn a_give_up_is_not_awaited_when_the_file_is_gone() {
    for gone_first in [true, false] {
        let disk = SimDisk::new();
        let mut rig = rig_with(disk.open(options()).unwrap(), Config::default());
        rig.publish(3);
        rig.logon(0);
        disk.fail(Fault::Sync(0));
        if gone_first {
            rig.input(Input::StoreGone);
        }
        let outputs = rig.input(Input::GiveUp {
            sequence: 1,
            reason: "given up",
        });
        assert_eq!(refused(&outputs), Some((1, false)));
        if !gone_first {
            assert!(rig.send().is_empty(), "it waits for the device");
            rig.input(Input::StoreGone);
        }
        assert_eq!(rig.send(), [(2, 2), (3, 3)]);
        // A sync that fails now takes nothing away either.
        rig.input(Input::SyncFailed);
        let outputs = rig.input(Input::GiveUp {
            sequence: 2,
            reason: "given up",
        });
        assert_eq!(refused(&outputs), Some((2, false)));
        rig.publish(1);
        assert_eq!(rig.send(), [(4, 4)]);
    }
}
