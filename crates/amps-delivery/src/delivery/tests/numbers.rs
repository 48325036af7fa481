//! Which numbers go out: grants, rebases, and figures of servers that know other stores.

use super::*;

#[test]
fn nothing_is_sent_before_the_grant_is_durable() {
    let mut rig = rig();
    rig.publish(3);
    rig.carry_out = false;
    assert!(rig.send().is_empty());
    let outputs = rig.logon(0);
    let to = outputs.iter().find_map(|o| match o {
        Output::RaiseGrant { to } => Some(*to),
        _ => None,
    });
    assert!(rig.send().is_empty(), "the grant is not durable yet");
    rig.store.raise_grant(to.unwrap()).unwrap();
    rig.input(Input::GrantRaised(Ok(())));
    assert_eq!(rig.send(), [(1, 1), (2, 2), (3, 3)]);
}

#[test]
fn a_grant_that_cannot_be_raised_stops_sending_and_says_so() {
    let mut rig = rig();
    rig.publish(1);
    rig.carry_out = false;
    rig.logon(0);
    let outputs = rig.input(Input::GrantRaised(Err(StoreError::SyncFailed(
        "EIO".into(),
    ))));
    assert!(
        notes(&outputs)
            .iter()
            .any(|n| matches!(n, Note::SendingStopped { through: 0 }))
    );
    assert!(rig.send().is_empty());
    // Another link does not mend it, and it is not told twice.
    rig.lose();
    rig.logon(0);
    let outputs = rig.input(Input::GrantRaised(Err(StoreError::SyncFailed(
        "EIO".into(),
    ))));
    assert!(notes(&outputs).is_empty());
    // The disk may have found space meanwhile.
    let again = rig.delivery.deadline().unwrap();
    assert!(again > rig.now.at);
    rig.now.at = again;
    rig.carry_out = true;
    let outputs = rig.input(Input::Tick);
    let resumed = |n: &&&Note| matches!(n, Note::SendingResumed);
    assert_eq!(notes(&outputs).iter().filter(resumed).count(), 1);
    assert_eq!(rig.send(), [(1, 1)]);
}

#[test]
fn h3_a_fresh_store_under_a_known_name_is_rebased_and_nothing_called_persisted() {
    let mut rig = rig();
    rig.publish(1000);
    let outputs = rig.logon(500);
    assert_eq!(rebases(&outputs), 1);
    assert_eq!(rig.unsettled(), 1000);
    assert_eq!(rig.delivery.totals(), Totals::default());
    let sent = rig.send();
    assert_eq!(sent.len(), 1000);
    let above = rebase_above(500);
    assert_eq!((sent[0], sent[999]), ((1, above + 1), (1000, above + 1000)));
    rig.ok(above + 1000);
    assert_eq!(
        (rig.unsettled(), rig.delivery.totals().persisted),
        (0, 1000)
    );
}

#[test]
fn h4_h5_a_crash_after_the_rebase_needs_no_second_one() {
    for sent_before_the_crash in [0, 7] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let store = Store::open(&path, options()).unwrap();
        for _ in 0..1000 {
            store
                .append(&Envelope::publish("orders"), b"payload")
                .unwrap();
        }
        drop(store);
        let mut rig = rig_with(Store::open(&path, options()).unwrap(), Config::default());
        rig.publish(10);
        rig.carry_out = sent_before_the_crash > 0;
        let outputs = rig.logon(500);
        assert_eq!(rebases(&outputs), 1);
        if !rig.carry_out {
            rig.store.rebase(rebase_above(500)).unwrap();
        }
        if sent_before_the_crash > 0 {
            let next = rig.next(few(sent_before_the_crash as usize));
            assert_eq!(next.len() as u64, sent_before_the_crash);
        }
        drop(rig);
        let mut rig = rig_with(Store::open(&path, options()).unwrap(), Config::default());
        assert_eq!(rig.unsettled(), 1010);
        let above = rebase_above(500);
        let figure = match sent_before_the_crash {
            0 => 500,
            sent => above + sent,
        };
        let outputs = rig.logon(figure);
        assert_eq!(rebases(&outputs), 0, "{outputs:?}");
        assert_eq!(
            rig.delivery.totals().persisted_at_logon,
            sent_before_the_crash
        );
        let sent = rig.send();
        assert_eq!(sent.len() as u64, 1010 - sent_before_the_crash);
        assert_eq!(
            sent[0],
            (1 + sent_before_the_crash, above + 1 + sent_before_the_crash)
        );
    }
}

#[test]
fn h6_a_restored_old_copy_believes_no_foreign_figure() {
    let mut rig = rig();
    rig.publish(50);
    rig.logon(0);
    rig.send();
    rig.ok(50);
    rig.lose();
    let fresh = rig.publish(10);
    let outputs = rig.logon(500_000);
    assert!(notes(&outputs).iter().any(|n| matches!(
        n,
        Note::ForeignFigure {
            figure: 500_000,
            may_have_sent: 50
        }
    )));
    assert!(
        notes(&outputs)
            .iter()
            .any(|n| matches!(n, Note::Rebased { from: 51, .. }))
    );
    assert_eq!(rig.unsettled(), 10);
    let sent = rig.send();
    assert_eq!(sent[0], (fresh[0], rebase_above(500_000) + 1));
    assert_eq!(sent.len(), 10);
}

#[test]
fn h6_with_the_stop_policy_nothing_is_sent() {
    let config = Config {
        rebase: RebasePolicy::Stop,
        ..Config::default()
    };
    let mut rig = rig_with(Store::memory(options()).unwrap(), config);
    rig.publish(1);
    let outputs = rig.logon(9);
    assert_eq!(drops(&outputs), Some(DropReason::ForeignFigure));
    assert_eq!(rebases(&outputs), 0);
    assert!(rig.send().is_empty());
    assert!(rig.delivery.wants_longest_delay());
}

#[test]
fn h7_a_shared_name_settles_nothing_and_never_rebases_for_ever() {
    let mut rig = rig();
    rig.publish(100);
    rig.logon(0);
    rig.send();
    rig.ok(89);
    let outputs = rig.ok(500);
    assert_eq!(rig.unsettled(), 11);
    assert!(notes(&outputs).iter().any(|n| matches!(
        n,
        Note::NameShared {
            figure: 500,
            stopped: false
        }
    )));
    assert_eq!(drops(&outputs), Some(DropReason::ForeignFigure));
    assert!(rig.send().is_empty());
    rig.lose();
    assert_eq!(rebases(&rig.logon(500)), 1);
    let ours = rebase_above(500) + 1;
    assert_eq!(rig.send()[0], (90, ours));
    // The other one rebased above us.
    rig.lose();
    let theirs = rebase_above(ours);
    let outputs = rig.logon(theirs);
    assert_eq!(rebases(&outputs), 0);
    assert!(
        notes(&outputs)
            .iter()
            .any(|n| matches!(n, Note::NameShared { stopped: true, .. }))
    );
    assert_eq!(drops(&outputs), Some(DropReason::ForeignFigure));
    assert!(rig.delivery.wants_longest_delay());
    assert_eq!(rig.unsettled(), 11);
    rig.lose();
    rig.input(Input::AllowRebase);
    assert_eq!(rebases(&rig.logon(theirs)), 1);
    assert_eq!(rig.send()[0], (90, rebase_above(theirs) + 1));
}

#[test]
fn h17_a_server_that_forgot_the_publisher_is_reported_and_numbering_goes_on() {
    let mut rig = rig();
    rig.publish(100);
    rig.logon(0);
    rig.send();
    rig.ok(100);
    rig.lose();
    let outputs = rig.logon(0);
    assert!(notes(&outputs).iter().any(|n| matches!(
        n,
        Note::PublishGap {
            server: 0,
            settled: 100,
            unknown_publisher: true
        }
    )));
    rig.publish(1);
    assert_eq!(rig.send(), [(101, 101)]);
}

/// An import brings refusals of another store along, and an operator decides about them: no server
/// has heard of this one yet.
#[test]
fn what_was_settled_and_never_sent_is_no_history_that_a_server_forgot() {
    let store = Store::memory(options()).unwrap();
    for sequence in 1..=3 {
        let appended = store.append(&Envelope::publish("orders"), b"refused");
        assert_eq!(appended.unwrap().sequence, sequence);
        store.reject(sequence, "not entitled", 0).unwrap();
        store.accept(sequence).unwrap();
    }
    let mut rig = rig_with(store, Config::default());
    rig.publish(1);
    let outputs = rig.logon(0);
    let gap = |n: &&Note| matches!(n, Note::PublishGap { .. });
    assert!(!notes(&outputs).iter().any(gap), "{outputs:?}");
    assert_eq!(rig.send(), [(4, 4)]);
}

#[test]
fn h18_a_server_that_is_behind_is_reported_or_left() {
    for policy in [GapPolicy::Report, GapPolicy::NextServer] {
        let config = Config {
            gap: policy,
            ..Config::default()
        };
        let mut rig = rig_with(Store::memory(options()).unwrap(), config);
        rig.publish(100);
        rig.logon(0);
        rig.send();
        rig.ok(100);
        rig.lose();
        rig.publish(1);
        let outputs = rig.logon(80);
        assert!(notes(&outputs).iter().any(|n| matches!(
            n,
            Note::PublishGap {
                server: 80,
                settled: 100,
                unknown_publisher: false
            }
        )));
        match policy {
            GapPolicy::Report => assert_eq!(rig.send(), [(101, 101)]),
            GapPolicy::NextServer => {
                assert_eq!(drops(&outputs), Some(DropReason::PublishGap));
                assert!(rig.send().is_empty());
            }
        }
    }
}

#[test]
fn numbers_skipped_by_an_unclean_stop_are_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut rig = rig_with(Store::open(&path, options()).unwrap(), Config::default());
    rig.publish(100);
    rig.logon(0);
    rig.send();
    rig.ok(100);
    drop(rig);
    for _ in 0..2 {
        let rig = rig_with(Store::open(&path, options()).unwrap(), Config::default());
        rig.publish(5);
    }
    let mut rig = rig_with(Store::open(&path, options()).unwrap(), Config::default());
    rig.publish(5);
    let outputs = rig.logon(100);
    assert!(
        !notes(&outputs)
            .iter()
            .any(|n| matches!(n, Note::PublishGap { .. })),
        "{outputs:?}"
    );
    assert_eq!(rig.send().len(), 15);
}

#[test]
fn an_impossible_figure_is_refused() {
    let mut rig = rig();
    rig.publish(1);
    let outputs = rig.logon(1 << 63);
    assert_eq!(drops(&outputs), Some(DropReason::BadFigure));
    assert_eq!(rebases(&outputs), 0);
    rig.lose();
    rig.logon(0);
    rig.send();
    assert_eq!(drops(&rig.ok(u64::MAX)), Some(DropReason::BadFigure));
    assert_eq!(rig.unsettled(), 1);
}

#[test]
fn figures_below_a_rebase_settle_nothing() {
    let mut rig = rig();
    rig.publish(10);
    rig.logon(500);
    rig.send();
    rig.ok(400);
    assert_eq!(rig.unsettled(), 10);
    let outputs = rig.fail(400, None);
    assert!(outputs.iter().any(|o| matches!(
        o,
        Output::Unattributed {
            figure: Some(400),
            ..
        }
    )));
    rig.lose();
    // At logon such a figure says: nothing of the new numbering has arrived.
    let outputs = rig.logon(400);
    assert_eq!((rebases(&outputs), rig.unsettled()), (0, 10));
    assert_eq!(rig.send()[0], (1, rebase_above(500) + 1));
}

/// Found by the simulation: a server holds messages of the publisher that was replaced, and
/// counts them in no figure yet. Right above the figure, new messages were dropped as
/// duplicates of those, and covered by their acks.
#[test]
fn a_rebase_keeps_clear_of_what_the_server_holds_above_its_figure() {
    let mut rig = rig();
    rig.publish(3);
    rig.logon(500);
    let sent = rig.send();
    // It had received up to 620, and settles that now.
    let outputs = rig.ok(620);
    assert!(drops(&outputs).is_none() && rig.unsettled() == 3);
    rig.lose();
    assert_eq!(rebases(&rig.logon(620)), 0);
    assert_eq!(rig.send(), sent, "the same numbers");
    assert!(sent[0].1 > 1_000_000);
    // At the end of the numbers there is no room to keep clear with.
    assert_eq!(
        rebase_above(figures::MAX_FIGURE - 9),
        figures::MAX_FIGURE - 9
    );
}

/// Found by a review: the outcome of a rebase was taken by whatever link there was by then.
#[test]
fn a_rebase_outlives_its_link_and_the_next_logon_waits_for_it() {
    for figure in [Some(0), Some(500), None] {
        let mut rig = rig();
        rig.carry_out = false;
        rig.publish(3);
        let outputs = rig.logon(500);
        let above = outputs.iter().find_map(|o| match o {
            Output::Rebase { above } => Some(*above),
            _ => None,
        });
        rig.lose();
        let outputs = rig.logon(figure);
        assert_eq!(rebases(&outputs), 0, "one is under way");
        assert!(rig.send().is_empty(), "under which number?");
        let rebased = rig.store.rebase(above.unwrap());
        rig.carry_out = true;
        let outputs = rig.input(Input::Rebased(rebased));
        assert_eq!(rebases(&outputs), 0, "the new numbering is judged");
        assert!(drops(&outputs).is_none());
        assert_eq!(rig.send()[0], (1, rebase_above(500) + 1));
    }
    // Without a link it waits for the next one.
    let mut rig = rig();
    rig.carry_out = false;
    rig.publish(1);
    rig.logon(500);
    rig.lose();
    let rebased = rig.store.rebase(rebase_above(500));
    rig.carry_out = true;
    rig.input(Input::Rebased(rebased));
    assert!(rig.send().is_empty());
    assert_eq!(rebases(&rig.logon(500)), 0);
    assert_eq!(rig.send(), [(1, rebase_above(500) + 1)]);
}

#[test]
fn a_short_lived_link_and_a_figure_that_runs_ahead_point_to_a_shared_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut rig = rig_with(Store::open(&path, options()).unwrap(), Config::default());
    rig.publish(5);
    rig.logon(0);
    rig.send();
    drop(rig);
    // Everything up to the old grant counts as sent, so a foreign figure there cannot be
    // told apart; but it may be seen to move on its own.
    let mut rig = rig_with(Store::open(&path, options()).unwrap(), Config::default());
    rig.logon(5);
    rig.lose();
    let outputs = rig.logon(50);
    assert!(notes(&outputs).iter().any(|n| matches!(
        n,
        Note::NameShared {
            figure: 50,
            stopped: false
        }
    )));
    assert!(rig.delivery.wants_longest_delay());
    rig.now.at += Duration::from_secs(60);
    rig.lose();
    assert!(!rig.delivery.wants_longest_delay());
}

/// A rebase took back the mark of what had gone out: what went out a second time was neither
/// counted nor marked, just when the server could not tell that it was the same.
#[test]
fn what_is_sent_again_after_a_rebase_is_sent_again() {
    let mut rig = rig();
    rig.publish(10);
    rig.logon(0);
    rig.send();
    rig.ok(2);
    rig.lose();
    rig.publish(3);
    let outputs = rig.logon(1_000_000);
    let duplicates = |outputs: &[Output]| {
        notes(outputs).into_iter().find_map(|note| match note {
            Note::Rebased {
                possible_duplicates,
                ..
            } => Some(*possible_duplicates),
            _ => None,
        })
    };
    assert_eq!(duplicates(&outputs), Some(8));
    let next = rig.next(few(9));
    let again: Vec<bool> = next.iter().map(|(_, _, again)| *again).collect();
    assert_eq!(again, [[true; 8].as_slice(), &[false]].concat());
    assert_eq!(rig.delivery.totals().resent, 8);
    // The second rebase of a run knows of both numberings.
    rig.lose();
    rig.input(Input::AllowRebase);
    let outputs = rig.logon(1 << 40);
    assert_eq!(duplicates(&outputs), Some(9));
    assert_eq!(
        rig.delivery.handed_over(),
        2,
        "nothing under these numbers yet"
    );
    assert_eq!(rig.send().len(), 11);
    assert_eq!(rig.delivery.totals().resent, 8 + 9);
    // What settles goes by the numbering in force: nothing of it is beyond the first one.
    assert_eq!(rig.delivery.handed_over(), 13);
}

#[test]
fn what_an_earlier_run_may_have_sent_is_counted_and_what_it_cannot_have_sent_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut rig = rig_with(Store::open(&path, options()).unwrap(), Config::default());
    rig.publish(4);
    rig.logon(0);
    rig.send();
    drop(rig);
    let mut rig = rig_with(Store::open(&path, options()).unwrap(), Config::default());
    rig.publish(5);
    let outputs = rig.logon(1 << 40);
    assert!(notes(&outputs).iter().any(|n| matches!(
        n,
        Note::Rebased {
            from: 1,
            possible_duplicates: 4,
            ..
        }
    )));
    assert_eq!(rig.send().len(), 9);
    assert_eq!(rig.delivery.totals().resent, 4);
}

#[test]
fn a_rebase_that_failed_sends_nothing_and_is_asked_for_again() {
    let mut rig = rig();
    rig.publish(3);
    for error in [
        StoreError::SyncFailed("EIO".into()),
        StoreError::OutOfRange(500),
    ] {
        rig.carry_out = false;
        assert_eq!(rebases(&rig.logon(500)), 1);
        let full = matches!(error, StoreError::OutOfRange(_));
        let outputs = rig.input(Input::Rebased(Err(error)));
        assert_eq!(
            drops(&outputs),
            Some(match full {
                true => DropReason::NoNumbersLeft,
                false => DropReason::StoreFailed,
            })
        );
        let blamed = notes(&outputs)
            .iter()
            .any(|n| matches!(n, Note::StoreFailed { .. }));
        assert_eq!(blamed, !full, "{outputs:?}");
        assert_eq!(rig.delivery.wants_longest_delay(), full);
        assert!(!rig.delivery.is_live() && rig.send().is_empty());
        rig.ok(3);
        assert_eq!(rig.unsettled(), 3, "such a link settles nothing");
        rig.lose();
        // Without a link as well.
        assert_eq!(rebases(&rig.logon(500)), 1);
        rig.lose();
        let failed = StoreError::SyncFailed("EIO".into());
        assert_eq!(drops(&rig.input(Input::Rebased(Err(failed)))), None);
        assert!(!rig.delivery.is_live() && rig.send().is_empty());
    }
    rig.carry_out = true;
    assert_eq!(rebases(&rig.logon(500)), 1);
    assert_eq!(rig.send()[0], (1, rebase_above(500) + 1));
}

#[test]
fn what_is_settled_is_no_duplicate() {
    let mut rig = rig();
    rig.publish(10);
    rig.logon(0);
    rig.send();
    for sequence in 4..10 {
        rig.input(Input::Ack(PublishAck {
            figure: None,
            sequence: Some(sequence),
            verdict: Verdict::Persisted,
        }));
    }
    rig.input(Input::AcksEnd);
    rig.lose();
    let outputs = rig.logon(1 << 40);
    assert!(notes(&outputs).iter().any(|n| matches!(
        n,
        Note::Rebased {
            from: 1,
            possible_duplicates: 4,
            ..
        }
    )));
    assert_eq!(rig.send().len(), 4);
    assert_eq!(rig.delivery.totals().resent, 4);
}

/// What a link was told while an earlier one's rebase was under way is judged like any figure.
#[test]
fn a_figure_that_waited_for_a_rebase_is_judged_by_the_new_numbering() {
    let mut rig = rig();
    rig.carry_out = false;
    rig.publish(3);
    rig.logon(500);
    rig.lose();
    rig.logon(1 << 50);
    let rebased = rig.store.rebase(rebase_above(500));
    let outputs = rig.input(Input::Rebased(rebased));
    assert_eq!(drops(&outputs), Some(DropReason::ForeignFigure));
    assert!(rig.send().is_empty());
}
