//! Whatever a server sends, in any order, the machines stay sound.

use amps_store::{Batch, Envelope, Options, PublishStore, Store};
use proptest::prelude::*;

use super::*;
use crate::delivery::{Config, Delivery, Input, Now, Output};
use crate::subscribe::Request;

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
        3 => prop::option::of(0u64..60).prop_map(Step::LoggedOn),
        1 => Just(Step::Lose),
        3 => Just(Step::Publish),
        1 => Just(Step::Subscribe),
        1 => Just(Step::Command),
        1 => Just(Step::Later),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_server_can_break_the_machines(
        steps in prop::collection::vec(step(), 1..150),
        publish_ids: bool,
    ) {
        let options = Options::new().capacity(1 << 20).client_name("pub-1");
        let store = Store::memory(options).unwrap();
        let mut session = Session::new(config(publish_ids));
        let mut delivery = Delivery::new(&store, Config::default());
        let mut now = Now { at: Duration::from_secs(1), unix_micros: 1 };
        let mut out = Vec::new();
        let mut batch = Batch::default();
        let mut published = 0u64;
        for step in steps {
            let mut acks = |item: Received<'_>| match item {
                Received::Ack(ack) => delivery.handle(&store, now, Input::Ack(ack)),
                Received::LoggedOn { figure } => {
                    delivery.handle(&store, now, Input::LoggedOn { figure });
                }
                _ => {}
            };
            match step {
                Step::Frame(frame) => {
                    // A header that cannot be read ends the link; here it goes on.
                    let _ = session.receive(now.at, &frame, &mut out, &mut acks);
                }
                Step::LoggedOn(figure) => {
                    session.disconnected(&mut |_| {});
                    delivery.handle(&store, now, Input::LinkLost);
                    out.clear();
                    session.connected(now.at, None, &Credentials::default(), &mut out).unwrap();
                    let (logon, _) = Header::parse(&out[4..]).unwrap();
                    let id = logon.command_id.unwrap().into_owned();
                    let s = figure.map_or(String::new(), |s| format!(",\"s\":{s}"));
                    let ack = format!(
                        "{{\"c\":\"ack\",\"a\":\"processed\",\"status\":\"success\",\"cid\":\"{id}\"{s}}}"
                    );
                    let mut acks = |item: Received<'_>| {
                        if let Received::LoggedOn { figure } = item {
                            delivery.handle(&store, now, Input::LoggedOn { figure });
                        }
                    };
                    session.receive(now.at, &Bytes::from(ack), &mut out, &mut acks).unwrap();
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
                let outgoing = delivery.next_to_send(&store, now, &mut batch).unwrap();
                if outgoing.len() == 0 {
                    break;
                }
                for next in outgoing {
                    prop_assert!(next.wire > last && next.sequence <= published);
                    last = next.wire;
                }
            }
            // Whatever was claimed, every message is in exactly one place.
            let totals = delivery.totals();
            let settled = totals.persisted + totals.persisted_at_logon + totals.rejected;
            prop_assert_eq!(settled + store.bounds().unsettled, published);
        }
    }
}
