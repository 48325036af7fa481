//! What acks, refusals and figures make of messages.

use super::*;

#[test]
fn h2_persisted_but_never_acked_is_settled_at_logon_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut rig = rig_with(Store::open(&path, options()).unwrap(), Config::default());
    rig.publish(100);
    rig.logon(0);
    assert_eq!(rig.send().len(), 100);
    let grant = rig.store.numbers().grant;
    drop(rig);
    let mut rig = rig_with(Store::open(&path, options()).unwrap(), Config::default());
    assert_eq!(rig.unsettled(), 100);
    let new = rig.publish(1)[0];
    assert!(new > grant, "{new} is not above the grant {grant}");
    let outputs = rig.logon(100);
    assert!(outputs.iter().any(|o| matches!(
        o,
        Output::SettledThrough {
            through: 100,
            via: Via::Logon
        }
    )));
    assert_eq!(rebases(&outputs), 0);
    assert_eq!(rig.delivery.totals().persisted_at_logon, 100);
    assert_eq!(rig.delivery.totals().persisted, 0);
    assert_eq!(rig.send(), [(new, new)]);
}

#[test]
fn h8_one_refusal_between_successes() {
    let mut rig = rig();
    rig.publish(5);
    rig.logon(0);
    rig.send();
    rig.ok(2);
    let outputs = rig.fail(3, None);
    assert_eq!(refused(&outputs), Some((3, false)));
    let outputs = rig.ok(5);
    assert!(outputs.iter().any(|o| matches!(
        o,
        Output::SettledThrough {
            through: 5,
            via: Via::Ack
        }
    )));
    assert_eq!(rig.unsettled(), 0);
    let totals = rig.delivery.totals();
    assert_eq!(
        (totals.persisted, totals.rejected, totals.persisted_at_logon),
        (4, 1, 0)
    );
    let waiting = rig.store.rejections(0, 10);
    assert_eq!((waiting.len(), waiting[0].sequence), (1, 3));
    assert_eq!(waiting[0].reason, "not entitled");
}

#[test]
fn h8_acks_of_one_batch_keep_their_order() {
    let mut rig = rig();
    rig.publish(5);
    rig.logon(0);
    rig.send();
    let ok = |figure| {
        Input::Ack(PublishAck {
            figure: Some(figure),
            sequence: None,
            verdict: Verdict::Persisted,
        })
    };
    let no = Verdict::Refused("no");
    rig.delivery.handle(&rig.store, rig.now, ok(2));
    let fail = PublishAck {
        figure: Some(3),
        sequence: None,
        verdict: no,
    };
    rig.delivery.handle(&rig.store, rig.now, Input::Ack(fail));
    rig.delivery.handle(&rig.store, rig.now, ok(5));
    let outputs = rig.input(Input::AcksEnd);
    assert_eq!(refused(&outputs), Some((3, false)));
    assert_eq!(
        (rig.delivery.totals().persisted, rig.delivery.totals().late),
        (4, 0)
    );
}

#[test]
fn h10_a_refusal_lost_with_the_link_counts_as_logon_never_as_ack() {
    let mut rig = rig();
    rig.publish(5);
    rig.logon(0);
    rig.send();
    rig.ok(2);
    rig.lose();
    rig.logon(5);
    let totals = rig.delivery.totals();
    assert_eq!(
        (totals.persisted, totals.persisted_at_logon, totals.rejected),
        (2, 3, 0)
    );
    assert!(rig.send().is_empty());
}

#[test]
fn h12_a_late_refusal_leaves_the_success_alone() {
    let mut rig = rig();
    rig.publish(10);
    rig.logon(0);
    rig.send();
    rig.ok(10);
    let outputs = rig.fail(7, None);
    assert_eq!(refused(&outputs), Some((7, true)));
    let totals = rig.delivery.totals();
    assert_eq!((totals.persisted, totals.rejected, totals.late), (10, 0, 1));
    // Told again, nothing new.
    assert_eq!(refused(&rig.fail(7, None)), None);
}

#[test]
fn h13_a_refusal_takes_nobody_with_it() {
    let mut rig = rig();
    rig.publish(3);
    rig.logon(0);
    rig.send();
    rig.fail(3, None);
    assert!(rig.store.is_unsettled(1) && rig.store.is_unsettled(2));
    rig.lose();
    rig.logon(0);
    assert_eq!(rig.send(), [(1, 1), (2, 2)]);
    rig.ok(2);
    assert_eq!(rig.unsettled(), 0);
}

#[test]
fn h14_a_refusal_that_names_nobody_is_told_and_settles_nothing() {
    let mut rig = rig();
    rig.publish(3);
    rig.logon(0);
    rig.send();
    let outputs = rig.fail(None, None);
    assert!(
        outputs
            .iter()
            .any(|o| matches!(o, Output::Unattributed { figure: None, .. }))
    );
    assert_eq!(rig.unsettled(), 3);
    // With publish_ids the same refusal has a name.
    assert_eq!(refused(&rig.fail(None, Some(2))), Some((2, false)));
    rig.ok(3);
    let totals = rig.delivery.totals();
    assert_eq!(
        (totals.persisted, totals.rejected, totals.unattributed),
        (2, 1, 1)
    );
}

#[test]
fn an_id_that_was_never_sent_names_nobody() {
    let mut rig = rig();
    rig.publish(3);
    rig.logon(0);
    rig.send();
    let outputs = rig.fail(None, Some(99));
    assert!(
        outputs
            .iter()
            .any(|o| matches!(o, Output::Unattributed { .. }))
    );
    let ack = PublishAck {
        figure: None,
        sequence: Some(99),
        verdict: Verdict::Persisted,
    };
    rig.input(Input::Ack(ack));
    rig.input(Input::AcksEnd);
    assert_eq!(rig.unsettled(), 3);
}

#[test]
fn acks_with_an_id_and_no_number_settle_one_message() {
    let mut rig = rig();
    rig.publish(200);
    rig.logon(None);
    rig.send();
    for sequence in (2..=200).step_by(2) {
        let ack = PublishAck {
            figure: None,
            sequence: Some(sequence),
            verdict: Verdict::Persisted,
        };
        rig.input(Input::Ack(ack));
        rig.input(Input::Ack(ack));
    }
    let outputs = rig.input(Input::AcksEnd);
    assert!(outputs.iter().any(|o| matches!(
        o,
        Output::Settled {
            sequence: 200,
            via: Via::Ack
        }
    )));
    assert_eq!(
        (rig.unsettled(), rig.delivery.totals().persisted),
        (100, 100)
    );
    assert!(rig.store.is_unsettled(1) && !rig.store.is_unsettled(2));
}

#[test]
fn h15_old_repeated_and_reordered_acks_change_nothing() {
    let mut rig = rig();
    rig.publish(10);
    rig.logon(0);
    rig.send();
    rig.ok(8);
    for figure in [3, 8, 1, 8] {
        let outputs = rig.ok(figure);
        assert!(outputs.is_empty(), "{outputs:?}");
    }
    assert_eq!((rig.unsettled(), rig.delivery.totals().persisted), (2, 8));
}

#[test]
fn h16_a_logon_without_a_figure_settles_nothing_and_resends_all() {
    let mut rig = rig();
    rig.publish(5);
    rig.logon(0);
    rig.send();
    rig.ok(2);
    rig.lose();
    let outputs = rig.logon(None);
    assert!(
        !notes(&outputs)
            .iter()
            .any(|n| matches!(n, Note::PublishGap { .. }))
    );
    assert_eq!(rig.send(), [(3, 3), (4, 4), (5, 5)]);
    assert_eq!(rig.delivery.totals().resent, 3);
}

#[test]
fn a_refusal_on_a_link_that_is_not_trusted_is_told() {
    let mut rig = rig();
    rig.publish(5);
    rig.logon(0);
    rig.send();
    assert!(drops(&rig.ok(500)).is_some());
    let outputs = rig.fail(3, None);
    assert!(outputs.iter().any(|o| matches!(
        o,
        Output::Unattributed {
            figure: Some(3),
            ..
        }
    )));
    assert_eq!(rig.unsettled(), 5);
}

#[test]
fn no_ack_counts_before_the_logon_was_judged() {
    let mut rig = rig();
    rig.publish(5);
    rig.logon(0);
    rig.send();
    rig.lose();
    rig.ok(5);
    assert_eq!(rig.unsettled(), 5);
    rig.carry_out = false;
    assert_eq!(rebases(&rig.logon(500)), 1);
    rig.ok(5);
    assert_eq!(rig.unsettled(), 5);
}
