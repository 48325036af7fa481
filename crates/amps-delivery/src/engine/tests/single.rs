//! Links whose server acks each message by itself.

use amps_store::testkit::{Cut, Rng, SimDisk, begin_step, end_step};
use amps_store::{Level, StoredMessage};

use super::*;
use crate::capabilities::{Meaning, Order, Require};
use crate::delivery::{Acks, Evidence, GapPolicy, MAY_BE_STORED, Note, Via};

const SINGLE: Capabilities = Capabilities {
    acks: Acks::Single,
    order: Order::Kept,
    meaning: Meaning::Accepted,
    ..Capabilities::LOGGED
};

fn heard(heard: Heard<'static>) -> Say {
    Say::With(Box::new(move |sink: &mut dyn Sink| sink.heard(heard)))
}

fn one(wire: u64) -> Say {
    let evidence = Evidence::Stored;
    heard(Heard::One { wire, evidence })
}

fn seen(wire: u64) -> Say {
    let evidence = Evidence::Duplicate;
    heard(Heard::One { wire, evidence })
}

fn again(wire: u64) -> Say {
    let (why, at_once) = ("full", false);
    heard(Heard::TryAgain { wire, why, at_once })
}

fn refused(wire: u64, may_be_stored: bool) -> Say {
    heard(Heard::Refused {
        wire,
        reason: "no",
        may_be_stored,
        words: Words::default(),
    })
}

fn up(resume: Resume) -> Say {
    heard(Heard::Up(Up {
        resume,
        capabilities: &SINGLE,
    }))
}

impl Rig {
    /// A link with single acks that messages go out on.
    fn single(&mut self, resume: Resume) -> Script {
        let script = self.open();
        script.says(vec![up(resume)]);
        script.with(|script| script.up = true);
        let told = self.turn();
        self.told.extend(told);
        script
    }

    fn says(&mut self, script: &Script, says: Says) -> Vec<Output> {
        self.told.clear();
        script.says(says);
        self.turn()
    }

    fn unsettled(&self) -> u64 {
        self.store.bounds().unsettled
    }
}

fn notes(told: &[Output]) -> Vec<&Note> {
    let notes = told.iter().filter_map(|output| match output {
        Output::Told {
            what: delivery::Output::Note(note),
            ..
        } => Some(note),
        _ => None,
    });
    notes.collect()
}

/// What was settled, in the order in which it was told: `true` with everything below it.
fn settled(told: &[Output]) -> Vec<(u64, bool, Via)> {
    let told = told.iter().filter_map(|output| match output {
        Output::Told { what, .. } => Some(what),
        _ => None,
    });
    told.filter_map(|what| match what {
        delivery::Output::Settled { sequence, via } => Some((*sequence, false, *via)),
        delivery::Output::SettledThrough { through, via } => Some((*through, true, *via)),
        _ => None,
    })
    .collect()
}

fn refusals(told: &[Output]) -> Vec<(u64, &str)> {
    let refusals = told.iter().filter_map(|output| match output {
        Output::Told {
            what: delivery::Output::Refused {
                sequence, reason, ..
            },
            ..
        } => Some((*sequence, reason.as_str())),
        _ => None,
    });
    refusals.collect()
}

fn name_is_shared(told: &[Output]) -> bool {
    let shared = |note: &&Note| matches!(note, Note::NameShared { .. });
    notes(told).iter().any(shared)
}

fn stalls(told: &[Output]) -> Vec<(u64, u32)> {
    let notes = notes(told).into_iter();
    let stalls = notes.filter_map(|note| match note {
        Note::Stalled { sequence, links } => Some((*sequence, *links)),
        _ => None,
    });
    stalls.collect()
}

#[test]
fn an_ack_settles_its_message_alone_and_those_without_a_gap_are_settled_together() {
    let mut rig = rig();
    rig.publish(6);
    let script = rig.single(Resume::Unknown);
    let told = rig.says(&script, vec![one(5), one(3)]);
    assert_eq!(settled(&told), [(3, false, Via::Ack), (5, false, Via::Ack)]);
    assert_eq!(rig.engine.in_flight(), 4);
    // 1 to 3, in whatever order they come; the one that the server had seen is told apart.
    let told = rig.says(&script, vec![seen(2), one(1), one(6)]);
    let expected = [
        (1, true, Via::Ack),
        (2, true, Via::Duplicate),
        (6, false, Via::Ack),
    ];
    assert_eq!(settled(&told), expected);
    assert_eq!((rig.unsettled(), rig.engine.in_flight()), (1, 1));
    let totals = rig.engine.totals();
    assert_eq!((totals.persisted, totals.duplicates), (4, 1));
}

#[test]
fn an_ack_that_comes_twice_or_late_changes_nothing() {
    let mut rig = rig();
    rig.publish(3);
    let script = rig.single(Resume::Unknown);
    rig.says(&script, vec![one(2), one(2), refused(1, false)]);
    let told = rig.says(&script, vec![one(2), seen(2), one(1), refused(1, false)]);
    assert!(settled(&told).is_empty() && refusals(&told).is_empty());
    assert_eq!((rig.unsettled(), rig.engine.in_flight()), (1, 1));
    let totals = rig.engine.totals();
    assert_eq!((totals.persisted, totals.rejected, totals.late), (1, 1, 0));
    // A refusal behind a success is a late one, as ever.
    let told = rig.says(&script, vec![refused(2, false)]);
    assert_eq!(refusals(&told), [(2, "no")]);
    assert_eq!(rig.engine.totals().late, 1);
}

#[test]
fn a_number_that_this_link_was_not_given_is_somebody_elses() {
    for stranger in [one(3), seen(3), refused(3, false), again(3)] {
        let mut rig = rig();
        rig.publish(2);
        let script = rig.single(Resume::Unknown);
        rig.publish(1);
        // 3 is stored here, and was not handed over.
        rig.engine.deadline();
        script.with(|script| script.due = Some(Duration::ZERO));
        let told = rig.says(&script, vec![one(1), stranger]);
        assert!(name_is_shared(&told), "{told:?}");
        assert_eq!(why(&told), [&LinkEnd::ForeignFigure]);
        assert_eq!(rig.unsettled(), 2);
    }
}

#[test]
fn nor_is_one_that_only_an_earlier_link_was_given() {
    let mut rig = rig();
    rig.publish(2);
    let first = rig.single(Resume::Unknown);
    assert_eq!(first.sent(), [1, 2]);
    rig.ends(&first);
    let second = rig.open();
    // Up, and an answer before anything could be handed over.
    second.says(vec![up(Resume::Unknown), one(2)]);
    let told = rig.turn();
    assert!(name_is_shared(&told), "{told:?}");
    assert_eq!(rig.unsettled(), 2);
}

#[test]
fn a_mark_above_what_was_sent_settles_nothing() {
    let mut rig = rig();
    rig.publish(2);
    let script = rig.single(Resume::Unknown);
    let told = rig.says(&script, vec![heard(Heard::Through { wire: 9 })]);
    assert!(name_is_shared(&told), "{told:?}");
    assert_eq!(
        (why(&told), rig.unsettled()),
        (vec![&LinkEnd::ForeignFigure], 2)
    );
    // At a link-up it is told, too, and what was not settled goes out above it.
    let script = rig.single(Resume::HighWater(1 << 40));
    assert!(name_is_shared(&std::mem::take(&mut rig.told)));
    rig.turn();
    let wires = script.with(|script| script.wires.clone());
    assert!(wires[0].0 > 1 << 40, "{wires:?}");
    assert_eq!(rig.unsettled(), 2);
}

#[test]
fn a_mark_covers_what_is_below_it_and_says_so() {
    let mut rig = rig();
    rig.publish(5);
    let first = rig.single(Resume::HighWater(0));
    rig.says(&first, vec![one(1), refused(5, false)]);
    rig.ends(&first);
    // 5 was refused, and 4 was stored last: a mark does not cover refusals.
    let second = rig.single(Resume::HighWater(4));
    let told = std::mem::take(&mut rig.told);
    assert_eq!(settled(&told), [(4, true, Via::Logon)]);
    let gap = |note: &&&Note| matches!(note, Note::PublishGap { .. });
    assert_eq!(notes(&told).iter().filter(gap).count(), 0, "{told:?}");
    rig.publish(2);
    rig.turn();
    assert_eq!(second.sent(), [6, 7]);
    let told = rig.says(&second, vec![heard(Heard::Through { wire: 7 })]);
    assert_eq!(settled(&told), [(7, true, Via::Logon)]);
    assert_eq!(rig.engine.in_flight(), 0);
    rig.ends(&second);
    // A server that is behind that is another one.
    rig.single(Resume::HighWater(6));
    let told = std::mem::take(&mut rig.told);
    let (server, settled) = (6, 7);
    let gaps: Vec<_> = notes(&told).into_iter().filter(|n| gap(&n)).collect();
    assert!(
        matches!(gaps[..], [Note::PublishGap { server: s, settled: t, .. }] if (*s, *t) == (server, settled)),
        "{told:?}"
    );
}

#[test]
fn a_server_need_not_hold_what_it_only_remembers() {
    let mut rig = rig();
    rig.publish(2);
    let first = rig.single(Resume::HighWater(0));
    rig.says(&first, vec![one(1), seen(2)]);
    rig.ends(&first);
    rig.single(Resume::HighWater(1));
    let told = std::mem::take(&mut rig.told);
    let gap = |note: &&Note| matches!(note, Note::PublishGap { .. });
    assert!(!notes(&told).iter().any(gap), "{told:?}");
}

#[test]
fn what_was_turned_away_goes_out_again_before_anything_else_when_all_have_their_verdict() {
    let mut rig = rig();
    rig.publish(4);
    let script = rig.single(Resume::Unknown);
    let told = rig.says(&script, vec![one(1), again(2), again(2)]);
    assert!(
        matches!(notes(&told)[..], [Note::TurnedAway { sequence: 2, why }] if why == "full"),
        "{told:?}"
    );
    rig.publish(1);
    rig.later(SECOND * 5);
    assert_eq!(script.sent(), [1, 2, 3, 4], "3 and 4 have no verdict yet");
    assert_eq!(rig.engine.in_flight(), 2);
    // One that was turned away and then stored has left before.
    rig.says(&script, vec![one(4), one(3), again(3)]);
    assert_eq!(rig.engine.in_flight(), 0);
    let told = rig.later(SECOND / 2);
    assert_eq!(script.sent(), [1, 2, 3, 4], "the delay runs: {told:?}");
    rig.later(SECOND / 2);
    assert_eq!(script.sent(), [1, 2, 3, 4, 2, 5]);
    assert_eq!(script.with(|script| script.wires[4]), (2, true));
    assert_eq!((rig.engine.totals().resent, rig.engine.in_flight()), (1, 2));
    let told = rig.says(&script, vec![one(2), one(5)]);
    assert_eq!((rig.unsettled(), why(&told).len()), (0, 0));
}

#[test]
fn a_success_behind_a_try_again_counts_and_leaves_the_flight_once() {
    let mut rig = rig();
    rig.publish(3);
    let script = rig.single(Resume::Unknown);
    let told = rig.says(&script, vec![again(1), one(1), one(1)]);
    assert_eq!(settled(&told), [(1, true, Via::Ack)]);
    assert_eq!(rig.engine.in_flight(), 2);
    let told = rig.says(&script, vec![again(2), refused(2, false)]);
    assert_eq!(refusals(&told), [(2, "no")]);
    assert_eq!(rig.engine.in_flight(), 1);
    rig.says(&script, vec![heard(Heard::Through { wire: 3 })]);
    assert_eq!((rig.engine.in_flight(), rig.unsettled()), (0, 0));
}

#[test]
fn being_turned_away_over_and_over_is_a_stall_until_something_is_settled() {
    let mut rig = rig();
    rig.publish(1);
    let script = rig.single(Resume::Unknown);
    let mut waits = Vec::new();
    let mut stalled = Vec::new();
    for round in 1..=4 {
        let told = rig.says(&script, vec![again(1)]);
        stalled.extend(stalls(&told));
        let from = rig.now.at;
        while script.sent().len() == round {
            rig.later(SECOND);
        }
        waits.push((rig.now.at - from).as_secs());
    }
    assert_eq!(waits, [1, 2, 30, 40]);
    assert_eq!(stalled, [(1, 3), (1, 4)]);
    assert_eq!((rig.engine.totals().resent, rig.unsettled()), (4, 1));
    // Something settled is progress, and the delays start anew.
    rig.publish(1);
    rig.turn();
    rig.says(&script, vec![one(2), again(1)]);
    let from = rig.now.at;
    while script.sent().len() == 6 {
        rig.later(SECOND);
    }
    assert_eq!((rig.now.at - from).as_secs(), 1);
}

#[test]
fn what_only_stood_behind_a_refused_message_goes_out_at_once() {
    let mut rig = rig();
    rig.publish(3);
    let script = rig.single(Resume::Unknown);
    let behind = |wire| {
        let (why, at_once) = ("wrong last sequence", true);
        heard(Heard::TryAgain { wire, why, at_once })
    };
    let told = rig.says(&script, vec![refused(1, false), behind(2), behind(3)]);
    assert_eq!(script.sent(), [1, 2, 3, 2, 3]);
    assert!(notes(&told).is_empty(), "it is nothing to tell: {told:?}");
    // Without anything settled in between it would go round for ever.
    rig.says(&script, vec![behind(2), behind(3)]);
    assert_eq!(script.sent().len(), 5);
    rig.later(SECOND);
    assert_eq!(script.sent()[5..], [2, 3]);
}

#[test]
fn a_stopped_line_waits_longest_and_a_freed_one_does_not() {
    let mut rig = rig();
    rig.publish(1);
    let script = rig.single(Resume::Unknown);
    rig.says(&script, vec![one(1)]);
    let stopped = || heard(Heard::LineStopped { why: "no stream" });
    let told = rig.says(&script, vec![stopped(), stopped()]);
    assert!(
        matches!(notes(&told)[..], [Note::LineStopped { why }] if why == "no stream"),
        "{told:?}"
    );
    rig.publish(1);
    rig.later(SECOND * 9);
    assert_eq!(script.sent(), [1]);
    rig.later(SECOND);
    assert_eq!(script.sent(), [1, 2]);
    rig.says(&script, vec![stopped(), one(2)]);
    rig.publish(1);
    rig.later(SECOND);
    assert_eq!(script.sent(), [1, 2]);
    rig.says(&script, vec![heard(Heard::LineFree)]);
    rig.later(SECOND * 2);
    assert_eq!(script.sent(), [1, 2, 3]);
    // A link that ends with its line stopped: the next one will find no better.
    script.says(vec![stopped()]);
    let longest = rig.ends(&script).unwrap();
    assert!(longest >= SECOND * 10, "{longest:?}");
}

#[test]
fn an_overdue_ack_ends_the_link_and_says_nothing_of_the_message() {
    let mut rig = rig();
    rig.publish(2);
    let script = rig.single(Resume::Unknown);
    // A slow wire owes no ack.
    rig.later(SECOND * 100);
    rig.says(&script, vec![Say::Wrote(2)]);
    let told = rig.later(SECOND * 9);
    assert!(why(&told).is_empty(), "{told:?}");
    rig.says(&script, vec![one(2)]);
    assert!(why(&rig.later(SECOND * 9)).is_empty());
    // What is there to be read at that moment is in time.
    script.says(vec![one(1)]);
    assert!(why(&rig.later(SECOND)).is_empty());
    rig.publish(2);
    rig.says(&script, vec![Say::Wrote(4)]);
    let due = rig.engine.deadline();
    assert_eq!(due, Some(rig.now.at + SECOND * 10));
    let told = rig.later(SECOND * 10);
    assert_eq!(why(&told), [&LinkEnd::AckOverdue { sequence: 3 }]);
    assert!(script.is_gone() && refusals(&told).is_empty());
    assert_eq!((rig.unsettled(), rig.engine.totals().rejected), (2, 0));
    let next = rig.single(Resume::Unknown);
    assert_eq!(next.sent(), [3, 4]);
}

#[test]
fn what_goes_out_again_at_once_is_not_overdue_before_it_is_written_again() {
    let mut rig = rig();
    rig.publish(3);
    let script = rig.single(Resume::Unknown);
    let (why_not, at_once) = ("wrong last sequence", true);
    let behind = heard(Heard::TryAgain {
        wire: 2,
        why: why_not,
        at_once,
    });
    rig.says(&script, vec![Say::Wrote(3), refused(1, false), behind]);
    // The last one that was under way is given up: nothing more has to be read.
    rig.engine.give_up(&rig.store, rig.now, 3, "given up");
    rig.turn();
    assert_eq!(script.sent(), [1, 2, 3, 2]);
    // A slow wire owes no ack.
    assert!(why(&rig.later(SECOND * 50)).is_empty());
    rig.says(&script, vec![Say::Wrote(2)]);
    assert!(why(&rig.later(SECOND * 9)).is_empty());
    let told = rig.later(SECOND);
    assert_eq!(why(&told), [&LinkEnd::AckOverdue { sequence: 2 }]);
}

#[test]
fn a_message_that_is_passed_over_is_overdue_after_three_times_as_long() {
    let mut rig = rig();
    rig.publish(1);
    let script = rig.single(Resume::Unknown);
    rig.says(&script, vec![Say::Wrote(1)]);
    for second in 1..30 {
        rig.publish(1);
        rig.turn();
        let told = rig.says(&script, vec![Say::Wrote(second + 1), one(second + 1)]);
        assert!(why(&told).is_empty(), "after {second} s: {told:?}");
        rig.now.at += SECOND;
    }
    // Of what is written within an eighth of the limit the last counts.
    assert!(why(&rig.turn()).is_empty());
    let told = rig.later(SECOND + SECOND * 10 / 8);
    assert_eq!(why(&told), [&LinkEnd::AckOverdue { sequence: 1 }]);
}

#[test]
fn while_messages_are_turned_away_the_others_are_overdue_all_the_same() {
    let mut rig = rig();
    rig.publish(3);
    let script = rig.single(Resume::Unknown);
    rig.says(&script, vec![Say::Wrote(3), again(1)]);
    rig.later(SECOND * 9);
    rig.says(&script, vec![again(2)]);
    assert!(why(&rig.later(SECOND * 9)).is_empty());
    let told = rig.later(SECOND);
    assert!(
        matches!(why(&told)[..], [LinkEnd::AckOverdue { .. }]),
        "{told:?}"
    );
}

#[test]
fn what_no_server_can_take_is_refused_if_none_was_ever_sent_it() {
    let mut rig = rig();
    rig.publish(4);
    let mut told = Vec::new();
    for server in ["a", "b"] {
        rig.engine.tries(server, 2);
        let script = rig.open();
        script.with(|script| {
            script.takes = Some(|sequence| sequence != 3);
            script.up = true;
        });
        script.says(vec![up(Resume::Unknown)]);
        told = rig.turn();
        told.extend(rig.says(&script, vec![one(1), one(2)]));
        let unsendable = notes(&told).into_iter();
        let ours = |note: &&Note| matches!(note, Note::Unsendable { sequence: 3, .. });
        assert_eq!(unsendable.filter(ours).count(), 1, "{told:?}");
        if server == "a" {
            let end = LinkEnd::Unsendable {
                sequence: 3,
                why: "too large".to_owned(),
            };
            assert_eq!(why(&told), [&end], "the other one may take it");
            assert_eq!(stalls(&told), [(3, 1)]);
            // Nothing but what it stumbled over is left, and one more.
            assert_eq!(rig.unsettled(), 2);
        } else {
            assert_eq!(script.sent(), [4], "what is behind it goes on");
        }
    }
    assert_eq!(refusals(&told), [(3, "not sent: too large")]);
    assert!(rig.engine.is_linked());
}

#[test]
fn what_was_turned_away_before_a_message_that_no_server_takes_is_not_forgotten() {
    let mut rig = rig();
    rig.publish(4);
    rig.engine.tries("a", 1);
    let script = rig.open();
    script.with(|script| {
        script.takes = Some(|sequence| sequence != 3);
        script.up = true;
    });
    script.says(vec![up(Resume::Unknown)]);
    rig.turn();
    let told = rig.says(&script, vec![again(1), again(2)]);
    assert!(refusals(&told).is_empty(), "{told:?}");
    let told = rig.later(SECOND);
    assert_eq!(script.sent(), [1, 2, 1, 2], "{told:?}");
    let told = rig.says(&script, vec![one(1), one(2)]);
    assert_eq!(refusals(&told), [(3, "not sent: too large")]);
    assert_eq!(script.sent(), [1, 2, 1, 2, 4]);
}

#[test]
fn without_a_store_a_message_that_the_link_cannot_take_costs_no_other_one() {
    let queue = Arc::new(Queue::new("me", 10));
    let (config, now) = (Config::default(), Now::default());
    let delays = Box::new(Delays::default());
    let mut engine = Engine::without_store(queue.clone(), config, delays, now);
    let store = queue.as_ref();
    let script = Script::default();
    let mut cx = Context::from_waker(Waker::noop());
    engine.turn(store, now);
    // Others may take it: it does not wait for them.
    engine.tries("a", 2);
    engine.connected(store, now, Ok(Box::new(ScriptedLink(script.clone()))));
    script.says(vec![up(Resume::Unknown)]);
    script.with(|script| {
        script.up = true;
        script.takes = Some(|sequence| sequence != 2);
    });
    assert!(engine.poll(&mut cx, store, now).is_ready());
    for _ in 0..3 {
        queue
            .push(&Envelope::publish("orders"), b"x", true)
            .unwrap();
    }
    engine.turn(store, now);
    script.says(vec![one(1)]);
    assert!(engine.poll(&mut cx, store, now).is_ready());
    engine.turn(store, now);
    assert_eq!(script.sent(), [1, 3]);
    assert!(engine.is_linked());
    let told: Vec<_> = std::iter::from_fn(|| engine.output()).collect();
    assert_eq!(refusals(&told), [(2, "not sent: too large")]);
    assert!(why(&told).is_empty());
}

#[test]
fn what_may_have_been_sent_and_cannot_be_is_left_to_an_operator() {
    let mut rig = rig();
    rig.publish(2);
    rig.engine.tries("a", 1);
    let script = rig.single(Resume::Unknown);
    assert_eq!(script.sent(), [1, 2]);
    rig.ends(&script);
    // The server takes less than before.
    for links in 0..3 {
        let script = rig.open();
        script.with(|script| script.takes_through = Some(0));
        script.says(vec![up(Resume::Unknown)]);
        script.with(|script| script.up = true);
        let told = rig.turn();
        assert!(refusals(&told).is_empty());
        assert_eq!(stalls(&told), [(1, 1)], "{links}: {told:?}");
        let waits = told.iter().find_map(|output| match output {
            Output::LinkEnded { retry_in, .. } => *retry_in,
            _ => None,
        });
        assert!(
            waits >= Some(SECOND * 10),
            "time alone mends nothing: {told:?}"
        );
    }
    assert_eq!(rig.unsettled(), 2);
}

#[test]
fn nothing_goes_out_behind_what_cannot_be_sent_before_its_refusal_is_durable() {
    let disk = SimDisk::new();
    let options = || Options::new().capacity(1 << 20).client_name("me");
    let store = disk.open(options()).unwrap();
    // From here on a sync takes its time.
    while begin_step(&store).unwrap() || end_step(&store).unwrap() {}
    let now = Now {
        at: SECOND,
        unix_micros: 1,
    };
    let engine = Engine::new(&store, Config::default(), Box::new(Delays::default()), now);
    let mut rig = Rig {
        store,
        engine,
        now,
        does_jobs: true,
        jobs: Vec::new(),
        told: Vec::new(),
        wants: false,
    };
    assert_eq!(rig.store.level(), Level::Os);
    rig.publish(2);
    rig.engine.tries("a", 1);
    let script = rig.open();
    script.with(|script| script.takes = Some(|sequence| sequence != 1));
    script.says(vec![up(Resume::Unknown)]);
    script.with(|script| script.up = true);
    let told = rig.turn();
    assert_eq!(refusals(&told), [(1, "not sent: too large")]);
    assert!(script.sent().is_empty(), "not durable yet");
    while begin_step(&rig.store).unwrap() || end_step(&rig.store).unwrap() {}
    rig.turn();
    assert_eq!(script.sent(), [2]);
    // A power cut now takes nothing of it back.
    drop(rig);
    disk.power_cut(Cut::None, &mut Rng::new(1));
    let found = disk.open(options()).unwrap();
    assert!(!found.is_unsettled(1));
    assert!(found.get(1, &mut StoredMessage::new()).unwrap());
}

#[test]
fn what_was_sent_is_asked_for_by_its_id_before_anything_goes_out() {
    let mut rig = rig();
    rig.publish(5);
    let first = rig.single(Resume::ById);
    assert_eq!(first.sent(), [1, 2, 3, 4, 5], "nothing was sent before");
    assert!(first.with(|script| script.recalled.is_empty()));
    rig.says(&first, vec![one(2)]);
    rig.ends(&first);
    rig.publish(1);
    let second = rig.single(Resume::ById);
    assert_eq!(
        second.with(|script| script.recalled.clone()),
        [[1, 3, 4, 5]]
    );
    let found = |wire| heard(Heard::Found { wire });
    let absent = |wire| heard(Heard::Absent { wire });
    // 6 is not sent yet, and nobody asked for 2.
    let told = rig.says(&second, vec![found(3), found(6), found(2), absent(1)]);
    assert_eq!(settled(&told), [(3, false, Via::Found)]);
    rig.later(SECOND * 5);
    assert!(second.sent().is_empty());
    rig.says(&second, vec![found(5), absent(4), absent(4)]);
    assert_eq!(second.sent(), [1, 4, 6]);
    let wires = second.with(|script| script.wires.clone());
    assert_eq!(wires, [(1, true), (4, true), (6, false)]);
    let totals = rig.engine.totals();
    assert_eq!((totals.found, totals.persisted), (2, 1));
    assert_eq!(totals.possible_duplicates, 0);
    // All is settled: there is nothing to ask for.
    rig.says(&second, vec![one(1), one(1), seen(4), one(6)]);
    let possible = rig.engine.totals().possible_duplicates;
    assert_eq!(possible, 1, "4 was known, and 6 never sent before");
    rig.ends(&second);
    let third = rig.single(Resume::ById);
    assert!(third.with(|script| script.recalled.is_empty()));
}

/// What goes out again may be stored twice, unless the server said where its messages end.
#[test]
fn what_may_be_stored_twice_is_counted() {
    for (resume, expected) in [(Resume::Unknown, 2), (Resume::HighWater(0), 0)] {
        let mut rig = rig();
        rig.publish(2);
        let first = rig.single(resume);
        rig.ends(&first);
        rig.publish(1);
        let second = rig.single(resume);
        rig.says(&second, vec![one(1), one(2), one(3)]);
        let totals = rig.engine.totals();
        assert_eq!((totals.persisted, totals.resent), (3, 2));
        assert_eq!(totals.possible_duplicates, expected, "{resume:?}");
    }
}

#[test]
fn a_single_message_that_was_sent_is_asked_for_as_well() {
    let mut rig = rig();
    rig.publish(1);
    let first = rig.single(Resume::ById);
    rig.ends(&first);
    let second = rig.single(Resume::ById);
    assert_eq!(second.with(|script| script.recalled.clone()), [[1]]);
    assert!(second.sent().is_empty());
}

#[test]
fn a_success_that_comes_while_a_refusal_is_looked_into_stands() {
    let mut rig = rig();
    rig.publish(1);
    let first = rig.single(Resume::ById);
    rig.ends(&first);
    let absent = || heard(Heard::Absent { wire: 1 });
    let second = rig.single(Resume::ById);
    rig.says(&second, vec![absent()]);
    rig.says(&second, vec![refused(1, true)]);
    assert_eq!(second.with(|script| script.recalled.len()), 2);
    let told = rig.says(&second, vec![one(1)]);
    assert_eq!(settled(&told), [(1, true, Via::Ack)]);
    let told = rig.says(&second, vec![absent()]);
    assert!(refusals(&told).is_empty(), "{told:?}");
    assert_eq!((rig.unsettled(), rig.engine.totals().rejected), (0, 0));
}

#[test]
fn a_server_that_does_not_say_what_it_holds_is_left() {
    let mut rig = rig();
    rig.publish(2);
    let first = rig.single(Resume::ById);
    rig.ends(&first);
    let second = rig.single(Resume::ById);
    rig.says(&second, vec![heard(Heard::Absent { wire: 1 })]);
    assert!(why(&rig.later(SECOND * 9)).is_empty());
    let told = rig.later(SECOND);
    assert!(
        matches!(why(&told)[..], [LinkEnd::AckOverdue { .. }]),
        "{told:?}"
    );
    assert!(second.sent().is_empty());
}

#[test]
fn a_refusal_of_what_may_be_stored_is_looked_into_first() {
    let mut rig = rig();
    rig.publish(3);
    let first = rig.single(Resume::ById);
    rig.ends(&first);
    let absent = |wire| heard(Heard::Absent { wire });
    let second = rig.single(Resume::ById);
    rig.says(&second, vec![absent(1), absent(2), absent(3)]);
    assert_eq!(second.sent(), [1, 2, 3]);
    let told = rig.says(&second, vec![refused(1, true), refused(2, true)]);
    assert!(refusals(&told).is_empty());
    assert_eq!(
        second.with(|script| script.recalled.last().cloned()),
        Some(vec![1])
    );
    let told = rig.says(&second, vec![heard(Heard::Found { wire: 1 })]);
    assert_eq!(settled(&told), [(1, true, Via::Found)]);
    assert_eq!(
        second.with(|script| script.recalled.last().cloned()),
        Some(vec![2])
    );
    let told = rig.says(&second, vec![absent(2)]);
    assert_eq!(refusals(&told), [(2, "no")]);
    assert_eq!(rig.engine.in_flight(), 1);
    // The link ends before it is known: then the failed write says so.
    second.says(vec![refused(3, true), Say::End(LinkEnd::Closed)]);
    let told = rig.turn();
    assert_eq!(
        refusals(&told),
        [(3, format!("{MAY_BE_STORED}no").as_str())]
    );
}

#[test]
fn a_refusal_of_what_may_be_stored_says_so_where_nobody_can_be_asked() {
    let mut rig = rig();
    rig.publish(1);
    let first = rig.single(Resume::Unknown);
    rig.ends(&first);
    let second = rig.single(Resume::Unknown);
    let told = rig.says(&second, vec![refused(1, true)]);
    assert_eq!(refusals(&told), [(1, "may be stored: no")]);
}

#[test]
fn a_link_whose_success_means_too_little_is_left_before_it_settles_anything() {
    let require = Require::new(|meaning| match meaning {
        Meaning::Accepted => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let mut config = Config {
        require: Some(require),
        ..Config::default()
    };
    config.delivery.gap = GapPolicy::NextServer;
    let mut rig = rig_with(config, Delays::default());
    rig.publish(2);
    let script = rig.open();
    script.says(vec![Say::Up(2)]);
    let told = rig.turn();
    let less = LinkEnd::Requirement("Logged".to_owned());
    assert_eq!(why(&told), [&less]);
    assert!(!told.iter().any(|output| matches!(output, Output::Up)));
    assert_eq!(rig.unsettled(), 2);
    // One that changes while it is up is left, and what came before that counts.
    let script = rig.single(Resume::Unknown);
    let capabilities = &Capabilities::LOGGED;
    let changed = heard(Heard::Changed(capabilities));
    let told = rig.says(&script, vec![one(1), changed, one(2)]);
    assert_eq!((why(&told), rig.unsettled()), (vec![&less], 1));
}
