//! Whatever a server sends, in any order, the machines stay sound.

use std::cell::Cell;

use amps_store::{Batch, Envelope, Options, PublishStore, Store};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

use super::*;
use crate::delivery::{Acks, Config, Delivery, Input, Now, Output, Resume, Room, ToSend, Totals};
use crate::requests::Request;

fn logged_on(figure: Option<u64>) -> Input<'static> {
    Input::LoggedOn {
        resume: Resume::figure(figure),
        acks: Acks::Figures,
    }
}

fn config(publish_ids: bool) -> SessionConfig {
    SessionConfig {
        client_name: "pub-1".into(),
        logon_options: None,
        logon_correlation: None,
        heartbeat: Some(Duration::from_secs(5)),
        logon_timeout: Duration::from_secs(5),
        command_timeout: Duration::from_secs(5),
        stored: true,
        publish_ids,
    }
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        (0u64..40).prop_map(|n| n.to_string()),
        any::<u64>().prop_map(|n| n.to_string()),
        Just(String::from("99999999999999999999")),
    ]
}

fn field() -> impl Strategy<Value = String> {
    let text = |values: &'static [&'static str]| prop::sample::select(values);
    prop_oneof![
        text(&[
            "ack",
            "p",
            "sow",
            "oof",
            "heartbeat",
            "group_end",
            "nonsense"
        ])
        .prop_map(|v| format!("\"c\":\"{v}\"")),
        text(&[
            "processed",
            "persisted",
            "completed",
            "stats",
            "persisted,processed"
        ])
        .prop_map(|v| format!("\"a\":\"{v}\"")),
        text(&["success", "failure", "retry", "odd"]).prop_map(|v| format!("\"status\":\"{v}\"")),
        (text(&["", "c", "s", "x"]), number()).prop_map(|(p, n)| format!("\"cid\":\"{p}{n}\"")),
        number().prop_map(|n| format!("\"s\":{n}")),
        number().prop_map(|n| format!("\"sub_id\":\"s{n}\"")),
        number().prop_map(|n| format!("\"query_id\":\"s{n}\"")),
        number().prop_map(|n| format!("\"l\":{n}")),
        Just("\"reason\":\"no\"".to_owned()),
    ]
}

fn frame() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        4 => (prop::collection::vec(field(), 0..7), prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(fields, body)| {
                let mut bytes = format!("{{{}}}", fields.join(",")).into_bytes();
                bytes.extend(body);
                Bytes::from(bytes)
            }),
        1 => prop::collection::vec(any::<u8>(), 0..60).prop_map(Bytes::from),
    ]
}

/// An ack as a server writes it, of a number that may have been sent. What is made of any fields
/// above is one of these next to never.
fn ack() -> impl Strategy<Value = Bytes> {
    let status = prop::sample::select(&["success", "success", "failure"][..]);
    (status, 0u64..8).prop_map(|(status, figure)| {
        let ack =
            format!("{{\"c\":\"ack\",\"a\":\"persisted\",\"status\":\"{status}\",\"s\":{figure}}}");
        Bytes::from(ack)
    })
}

/// Figures of a logon: seldom one of somebody else's, after which no number is low any more.
fn figure() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![
        8 => (0u64..3).prop_map(Some),
        3 => Just(None),
        1 => (0u64..60).prop_map(Some),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Frame(Bytes),
    LoggedOn(Option<u64>),
    Lose,
    Publish,
    Subscribe,
    Command,
    Later,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => frame().prop_map(Step::Frame),
        6 => ack().prop_map(Step::Frame),
        3 => figure().prop_map(Step::LoggedOn),
        1 => Just(Step::Lose),
        6 => Just(Step::Publish),
        1 => Just(Step::Subscribe),
        1 => Just(Step::Command),
        1 => Just(Step::Later),
    ]
}

/// Runs these steps, and returns what became of what was published.
fn break_the_machines(steps: Vec<Step>, publish_ids: bool) -> Result<Totals, TestCaseError> {
    let options = Options::new().capacity(1 << 20).client_name("pub-1");
    let store = Store::memory(options).unwrap();
    let mut session = Session::new(config(publish_ids));
    let mut delivery = Delivery::new(&store, Config::default());
    let mut now = Now {
        at: Duration::from_secs(1),
        unix_micros: 1,
    };
    let mut out = Vec::new();
    let mut batch = Batch::default();
    let mut published = 0u64;
    for step in steps {
        let mut acks = |item: Received<'_>| match item {
            Received::Ack(ack) => delivery.handle(&store, now, Input::Ack(ack)),
            Received::LoggedOn { figure } => {
                delivery.handle(&store, now, logged_on(figure));
            }
            _ => {}
        };
        match step {
            Step::Frame(frame) => {
                // A header that cannot be read ends a link; here it goes on.
                let _ = session.receive(now.at, &frame, &mut out, &mut acks);
            }
            Step::LoggedOn(figure) => {
                session.disconnected(&mut |_| {});
                delivery.handle(&store, now, Input::LinkLost);
                out.clear();
                session
                    .connected(now.at, None, &Credentials::default(), &mut out)
                    .unwrap();
                let (logon, _) = Header::parse(&out[4..]).unwrap();
                let id = logon.command_id.unwrap().into_owned();
                let s = figure.map_or(String::new(), |s| format!(",\"s\":{s}"));
                let ack = format!(
                    "{{\"c\":\"ack\",\"a\":\"processed\",\"status\":\"success\",\"cid\":\"{id}\"{s}}}"
                );
                let mut acks = |item: Received<'_>| {
                    if let Received::LoggedOn { figure } = item {
                        delivery.handle(&store, now, logged_on(figure));
                    }
                };
                session
                    .receive(now.at, &Bytes::from(ack), &mut out, &mut acks)
                    .unwrap();
                prop_assert!(session.is_logged_on());
            }
            Step::Lose => {
                session.disconnected(&mut |_| {});
                delivery.handle(&store, now, Input::LinkLost);
            }
            Step::Publish => {
                if store.append(&Envelope::publish("t"), b"x").is_ok() {
                    published += 1;
                }
            }
            Step::Subscribe => {
                session.subscribe(now.at, Subscribe::topic("t"), &mut out);
            }
            Step::Command => {
                let _ = session.command(now.at, &Request::new("sow_delete"), None, &mut out);
            }
            Step::Later => {
                now.at += Duration::from_secs(2);
                let _ = session.tick(now.at, &mut out, &mut |_| {});
            }
        }
        delivery.handle(&store, now, Input::AcksEnd);
        while let Some(output) = delivery.poll() {
            match output {
                Output::RaiseGrant { to } => {
                    let result = store.raise_grant(to);
                    delivery.handle(&store, now, Input::GrantRaised(result));
                }
                Output::Rebase { above } => {
                    let result = store.rebase(above);
                    delivery.handle(&store, now, Input::Rebased(result));
                }
                _ => {}
            }
        }
        let mut last = 0;
        loop {
            let send = |next: &ToSend<'_>| match next.wire > last && next.sequence <= published {
                true => {
                    last = next.wire;
                    Ok(())
                }
                false => Err(next.wire),
            };
            let sent = delivery.hand_over(&store, now, Room::ANY, &mut batch, send);
            prop_assert!(sent.is_ok(), "{sent:?}");
            if matches!(sent, Ok(0)) {
                break;
            }
        }
        // Whatever was claimed, every message is in exactly one place.
        let totals = delivery.totals();
        let settled = totals.persisted + totals.persisted_at_logon + totals.rejected;
        prop_assert_eq!(settled + store.bounds().unsettled, published);
    }
    Ok(delivery.totals())
}

/// What is drawn follows from a seed, which `PROPTEST_RNG_SEED` changes, so that every run tries
/// the same.
#[test]
fn no_server_can_break_the_machines() {
    let mut config = ProptestConfig::with_cases(128);
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(1);
    }
    let met = Cell::new([0; 6]);
    let steps = (prop::collection::vec(step(), 1..150), any::<bool>());
    let broken = TestRunner::new(config).run(&steps, |(steps, publish_ids)| {
        let totals = break_the_machines(steps, publish_ids)?;
        let more = [
            totals.persisted,
            totals.persisted_at_logon,
            totals.rejected,
            totals.late,
            totals.unattributed,
            totals.resent,
        ];
        let before = met.get();
        met.set(std::array::from_fn(|n| before[n] + more[n]));
        Ok(())
    });
    broken.unwrap_or_else(|error| panic!("{error}"));
    assert!(met.get().iter().all(|n| *n > 10), "{met:?}");
}

const SECOND: Duration = Duration::from_secs(1);
const EPSILON: Duration = Duration::from_nanos(1);

/// A session that asked for heartbeats every ten seconds, at the time 0.
struct Watched {
    session: Session,
    out: Vec<u8>,
}

/// What a server answers when it is asked for heartbeats.
const CONFIRMED: &str = "success";
const REFUSED: &str = "failure";

impl Watched {
    fn log_on() -> Self {
        let config = SessionConfig {
            heartbeat: Some(DEFAULT_HEARTBEAT),
            command_timeout: SECOND * 100,
            ..config(false)
        };
        let mut watched = Watched {
            session: Session::new(config),
            out: Vec::new(),
        };
        watched.log_on_again(Duration::ZERO);
        watched
    }

    fn log_on_again(&mut self, now: Duration) {
        self.out.clear();
        self.session
            .connected(now, None, &Credentials::default(), &mut self.out)
            .unwrap();
        self.answer_last(now, "success");
        assert!(self.session.is_logged_on());
        let (start, _) = Header::parse(&self.out[4..]).unwrap();
        assert_eq!(start.options.as_deref(), Some("start,10"));
    }

    /// Answers the command that was sent last.
    fn answer_last(&mut self, now: Duration, status: &str) {
        let (command, _) = Header::parse(&self.out[4..]).unwrap();
        let id = command.command_id.unwrap().into_owned();
        self.out.clear();
        self.hears(
            now,
            &format!(r#"{{"c":"ack","a":"processed","status":"{status}","cid":"{id}"}}"#),
        );
    }

    fn hears(&mut self, now: Duration, frame: &str) {
        let frame = Bytes::from(frame.to_owned());
        self.session
            .receive(now, &frame, &mut self.out, &mut |_| {})
            .unwrap();
    }

    /// The link is kept until this time, and given up then.
    #[track_caller]
    fn is_left_at(&mut self, at: Duration) {
        self.stands_until(at - EPSILON);
        let deadline = self.session.deadline();
        assert!(
            deadline.is_some_and(|deadline| deadline <= at),
            "{deadline:?}"
        );
        let ticked = self.session.tick(at, &mut self.out, &mut |_| {});
        assert_eq!(ticked, Err(Expired::Heartbeat));
    }

    #[track_caller]
    fn stands_until(&mut self, at: Duration) {
        let ticked = self.session.tick(at, &mut self.out, &mut |_| {});
        assert_eq!(ticked, Ok(()), "at {at:?}");
        self.out.clear();
    }
}

#[test]
fn a_server_that_confirmed_heartbeats_is_left_after_25_seconds_of_silence() {
    let mut link = Watched::log_on();
    link.answer_last(SECOND, CONFIRMED);
    // Nothing is outstanding: a reader waits, and hears that the server is there.
    link.stands_until(SECOND * 26 - EPSILON);
    link.hears(SECOND * 26 - EPSILON, r#"{"c":"heartbeat"}"#);
    link.is_left_at(SECOND * 51 - EPSILON);
    // What one link heard says nothing about the next.
    link.session.disconnected(&mut |_| {});
    link.log_on_again(SECOND * 60);
    link.stands_until(SECOND * 1000);
}

#[test]
fn a_server_that_refused_heartbeats_may_be_silent() {
    let mut link = Watched::log_on();
    link.answer_last(SECOND, REFUSED);
    link.session.publishes_wait(SECOND, true);
    let request = Request::new("sow_delete");
    let until = Some(SECOND * 4000);
    link.session
        .command(SECOND, &request, until, &mut link.out)
        .unwrap();
    link.stands_until(SECOND * 3600);
}

/// An answer of which nobody could say what it meant turned the watch off for good: a server that
/// then said nothing was kept for ever, with a good one next in line.
#[test]
fn a_server_that_answers_vaguely_is_watched_as_one_that_has_not_answered() {
    for status in [
        "",
        r#""status":"","#,
        r#""status":"zonk","#,
        r#""status":"retry","#,
    ] {
        let mut link = Watched::log_on();
        let (start, _) = Header::parse(&link.out[4..]).unwrap();
        let id = start.command_id.unwrap().into_owned();
        link.out.clear();
        let answer = format!(r#"{{"c":"ack",{status}"a":"processed","cid":"{id}"}}"#);
        link.hears(SECOND, &answer);
        link.stands_until(SECOND * 1000);
        link.session.publishes_wait(SECOND * 1000, true);
        link.is_left_at(SECOND * 1030);
    }
}

#[test]
fn a_server_that_answers_nothing_is_left_only_while_it_owes_an_answer() {
    let mut link = Watched::log_on();
    // Idle: neither the request for heartbeats nor what was settled counts.
    link.stands_until(SECOND * 1000);
    link.session.publishes_wait(SECOND * 1000, true);
    link.session.publishes_wait(SECOND * 1029, true);
    link.stands_until(SECOND * 1030 - EPSILON);
    link.session.publishes_wait(SECOND * 1029, false);
    link.stands_until(SECOND * 2000);

    // It owes an answer, and says something else now and then.
    link.session.publishes_wait(SECOND * 2000, true);
    link.hears(SECOND * 2020, r#"{"c":"heartbeat"}"#);
    link.session.publishes_wait(SECOND * 2020, true);
    link.is_left_at(SECOND * 2050);

    // The request timed out long ago, on this link too.
    link.session.disconnected(&mut |_| {});
    link.log_on_again(SECOND * 3000);
    link.stands_until(SECOND * 3500);
    let request = Request::new("sow_delete");
    let until = Some(SECOND * 3600);
    link.session
        .command(SECOND * 3500, &request, until, &mut link.out)
        .unwrap();
    link.is_left_at(SECOND * 3530);
}

#[test]
fn a_large_message_that_comes_slowly_is_no_silence_and_one_that_drips_is() {
    let mut link = Watched::log_on();
    link.answer_last(Duration::ZERO, CONFIRMED);
    let mut now = Duration::ZERO;
    for part in 1..10 {
        now += SECOND * 25 - EPSILON;
        link.session.receiving(now, part * 64 * 1024);
        link.stands_until(now);
    }
    for dripped in 0..64 * 1024 {
        link.session
            .receiving(now + SECOND * 20, 9 * 64 * 1024 + dripped);
    }
    link.is_left_at(now + SECOND * 25);
    // The next frame begins with no bytes received.
    link.hears(now, r#"{"c":"heartbeat"}"#);
    link.session.receiving(now + SECOND, 64 * 1024);
    link.is_left_at(now + SECOND * 26);
}
