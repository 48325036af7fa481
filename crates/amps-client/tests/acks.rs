//! What an ack is about, and what one with odd fields means: nothing is settled, refused or
//! called durable by an ack that does not say so about a publish of ours.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use amps_client::protocol::AckKind;
use amps_client::{
    Client, ConnectionState, Event, Events, LinkEnd, Outcome, Receipt, Request, Subscribe, Via,
};
use amps_store::{Options, Store};
use common::{LONG, NAME, Peer, memory, options, pair};

async fn published(client: &Client, count: u64) -> Vec<Receipt> {
    let mut receipts = Vec::new();
    for n in 0..count {
        receipts.push(client.publish("t", n.to_string()).await.unwrap());
    }
    receipts
}

fn told(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.try_next()).collect()
}

/// When this returns, everything that the peer sent before has been handled: acks keep their
/// order.
async fn settles_one(peer: &mut Peer, receipt: Receipt, figure: u64) {
    peer.ok(figure).await;
    assert_eq!(receipt.await, Outcome::Persisted { via: Via::Ack });
}

/// The answer to a command came after its time was up. The number in it is another publisher's,
/// to whom the server assigns whatever has no number. It once settled publishes up to that
/// number, and refused one.
#[tokio::test(start_paused = true)]
async fn the_answer_to_another_command_is_about_no_publish() {
    for publish_ids in [false, true] {
        let (builder, mut listener) = pair();
        let client = builder
            .store(memory())
            .publish_ids(publish_ids)
            .heartbeat(Duration::from_secs(3600))
            .open()
            .await
            .unwrap();
        let mut receipts = published(&client, 6).await;
        let (mut peer, logon) = Peer::accept(&mut listener).await;
        peer.accept_logon(&logon, 0).await;
        let start = peer.next().await.unwrap();
        peer.processed(&start).await;
        peer.publishes_to(6).await;
        let given = Request::new("sow_delete").topic("t").filter("1=1");
        let given = given
            .acks([AckKind::Persisted])
            .timeout(Duration::from_millis(50));
        let asking = tokio::spawn({
            let client = client.clone();
            async move { client.command(given).await }
        });
        let asked = peer.next().await.unwrap();
        assert!(asking.await.unwrap().is_err(), "its time is over");
        let subscribing = tokio::spawn({
            let client = client.clone();
            async move { client.subscribe(Subscribe::topic("t")).await }
        });
        let subscribe = peer.next().await.unwrap();
        peer.processed(&subscribe).await;
        drop(subscribing.await.unwrap().unwrap());
        let unsubscribe = peer.next().await.unwrap();
        assert_eq!(unsubscribe.verb, "Unsubscribe");

        let own = [&logon, &start, &asked, &subscribe, &unsubscribe];
        let mut ids: Vec<String> = own.map(|frame| frame.id.clone().unwrap()).to_vec();
        let given_out = ids.len();
        ids.extend(["c0", "c99999", "c99999999999999999999"].map(String::from));
        // Something that differs from an id in its spelling is not that id.
        ids.push(asked.id.clone().unwrap().replace('c', "c0"));
        for id in &ids {
            for kind in ["persisted", "processed", "completed"] {
                peer.frame(&format!(r#"{{"c":"ack","a":"{kind}","status":"failure","cid":"{id}","s":2,"reason":"no"}}"#)).await;
                peer.frame(&format!(
                    r#"{{"c":"ack","a":"{kind}","status":"success","cid":"{id}","s":5}}"#
                ))
                .await;
            }
        }
        settles_one(&mut peer, receipts.remove(0), 1).await;
        let health = client.health();
        assert_eq!(health.unsettled, 5, "no publish was acked");
        // No command of ours ever had the others: those failures may be of a publish, unless they
        // say "completed".
        let strays = 2 * (ids.len() - given_out) as u64;
        assert_eq!((health.rejections, health.counts.unattributed), (0, strays));
    }
}

/// No publish carries such an id, so none is acked by it. A refusal with it may still be of one
/// of them, but nothing says of which.
#[tokio::test(start_paused = true)]
async fn an_id_that_nobody_gave_out_names_no_publish() {
    for publish_ids in [false, true] {
        let (builder, mut listener) = pair();
        let client = builder
            .store(memory())
            .publish_ids(publish_ids)
            .open()
            .await
            .unwrap();
        let mut receipts = published(&client, 6).await;
        let mut events = client.events();
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        peer.publishes_to(6).await;
        let mut ids = vec!["x", "c", "cc1", "-3", "+3", "03", " 3", "3.0", "\u{fffd}"];
        if !publish_ids {
            ids.push("3");
        }
        for id in &ids {
            peer.frame(&format!(
                r#"{{"c":"ack","a":"persisted","status":"success","cid":"{id}","s":5}}"#
            ))
            .await;
            for kind in ["persisted", "processed", "completed"] {
                peer.frame(&format!(
                    r#"{{"c":"ack","a":"{kind}","status":"failure","cid":"{id}","s":3,"reason":"no"}}"#
                ))
                .await;
            }
        }
        // A publish is never completed.
        let refusals = 2 * ids.len();
        settles_one(&mut peer, receipts.remove(0), 1).await;
        let health = client.health();
        assert_eq!((health.unsettled, health.rejections), (5, 0));
        assert_eq!(health.counts.unattributed, refusals as u64);
        let numbered = |event: &Event| matches!(event, Event::Unattributed { figure: Some(3), reason } if reason.as_str() == "no");
        assert_eq!(
            told(&mut events).iter().filter(|e| numbered(e)).count(),
            refusals
        );
        // An empty id counts as none.
        peer.frame(r#"{"c":"ack","a":"persisted","status":"failure","cid":"","s":3}"#)
            .await;
        assert!(matches!(receipts.remove(1).await, Outcome::Rejected { .. }));
    }
}

/// The figure in somebody else's logon answer once settled what this client had sent.
#[tokio::test(start_paused = true)]
async fn a_logon_ack_for_another_name_is_not_believed() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let mut receipts = published(&client, 5).await;
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(5).await;
    drop(peer);
    let mut events = client.events();
    let (mut peer, logon) = Peer::accept(&mut listener).await;
    let id = logon.id.unwrap();
    peer.frame(&format!(
        r#"{{"c":"ack","a":"processed","status":"success","cid":"{id}","client_name":"pub-10","s":4}}"#
    ))
    .await;
    assert!(
        peer.next().await.is_none(),
        "nothing is sent on such a link"
    );
    let mut why = None;
    while why.is_none() {
        match events.next().await.unwrap() {
            Event::LinkLost {
                why: LinkEnd::LoggedOnAs(name),
                ..
            } => why = Some(name),
            Event::State { state, .. } => assert_ne!(state, ConnectionState::LoggedOn),
            _ => {}
        }
    }
    assert_eq!(why.as_deref(), Some("pub-10"));
    assert_eq!(client.health().unsettled, 5);
    // A server that names nobody means us.
    let (mut peer, logon) = Peer::accept(&mut listener).await;
    let id = logon.id.unwrap();
    peer.frame(&format!(
        r#"{{"c":"ack","a":"processed","status":"success","cid":"{id}","s":4}}"#
    ))
    .await;
    assert_eq!(peer.publishes_to(5).await.len(), 1);
    assert_eq!(
        receipts.remove(3).await,
        Outcome::Persisted { via: Via::Logon }
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_but_a_persisted_success_settles() {
    let (builder, mut listener) = pair();
    let client = builder
        .store(memory())
        .publish_ids(true)
        .open()
        .await
        .unwrap();
    let mut receipts = published(&client, 6).await;
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(6).await;
    for name in [r#""s":5"#, r#""s":5,"cid":"5""#, r#""cid":"5""#] {
        for kind in [
            "received",
            "parsed",
            "processed",
            "completed",
            "stats",
            "persisted,processed",
            "none",
            "x",
            "",
        ] {
            peer.frame(&format!(
                r#"{{"c":"ack","a":"{kind}","status":"success",{name}}}"#
            ))
            .await;
        }
        peer.frame(&format!(r#"{{"c":"ack","status":"success",{name}}}"#))
            .await;
        for status in [
            "\"SUCCESS\"",
            "\"ok\"",
            "\"\"",
            "\"retry\"",
            "null",
            "true",
            "1",
            "\"unknown\"",
        ] {
            peer.frame(&format!(
                r#"{{"c":"ack","a":"persisted","status":{status},{name}}}"#
            ))
            .await;
        }
        peer.frame(&format!(r#"{{"c":"ack","a":"persisted",{name}}}"#))
            .await;
        // Progress of a subscription.
        for field in ["sub_id", "query_id"] {
            peer.frame(&format!(
                r#"{{"c":"ack","a":"persisted","status":"success",{name},"{field}":"s1"}}"#
            ))
            .await;
        }
    }
    settles_one(&mut peer, receipts.remove(0), 1).await;
    assert_eq!(client.health().unsettled, 5);
    // What is called neither a success nor a failure is told. Nothing at all says nothing.
    let words = ["SUCCESS", "ok", "", "retry", "true", "1", "unknown"];
    assert_eq!(
        client.health().counts.unattributed,
        3 * words.len() as u64,
        "for each name"
    );
}

/// A failure under one of our numbers that also names a command or a subscription of somebody
/// else's, or whose status is "error", was once dropped: no count, no word, exit 0.
#[tokio::test(start_paused = true)]
async fn a_failure_beside_a_name_that_is_not_ours_is_told_and_settles_nothing() {
    for publish_ids in [false, true] {
        let (builder, mut listener) = pair();
        let client = builder
            .store(memory())
            .publish_ids(publish_ids)
            .open()
            .await
            .unwrap();
        let mut events = client.events();
        let mut receipts = published(&client, 6).await;
        let (mut peer, logon) = Peer::accept(&mut listener).await;
        let before = [r#""a":"persisted","status":"failure","s":3,"reason":"early""#];
        let of_others = [
            r#""a":"persisted","status":"failure","s":3,"cid":"c77""#,
            r#""status":"failure","s":3,"cid":"c77""#,
            r#""a":"received","status":"failure","s":3,"cid":"somebody's""#,
            r#""a":"persisted","status":"failure","s":3,"sub_id":"s99""#,
            r#""a":"persisted","status":"failure","s":3,"sub_id":"somebody's""#,
            r#""a":"processed","status":"failure","s":3,"query_id":"7""#,
            r#""a":"persisted","status":"failure","s":3,"cid":"3","sub_id":"s99""#,
            r#""a":"persisted","status":"error","s":3"#,
            r#""status":"error","s":3,"cid":"c77""#,
            r#""a":"persisted","status":"error","s":3,"cid":"3","sub_id":"s99","reason":"no""#,
        ];
        let by_ids = [
            r#""a":"persisted","status":"error","cid":"3""#,
            r#""a":"persisted","status":"failure","cid":"3","sub_id":"s99""#,
        ];
        // About nothing that was published.
        let of_nothing = [
            r#""a":"persisted","status":"failure","cid":"c77""#,
            r#""a":"persisted","status":"failure","s":0,"sub_id":"s99""#,
            r#""a":"completed","status":"failure","s":3,"cid":"c77""#,
            r#""a":"completed","status":"error","s":3,"sub_id":"s99""#,
            r#""a":"persisted","status":"success","s":5,"sub_id":"s99""#,
            r#""a":"persisted","status":"success","s":5,"cid":"c77""#,
        ];
        for ack in before {
            peer.frame(&format!(r#"{{"c":"ack",{ack}}}"#)).await;
        }
        peer.accept_logon(&logon, 0).await;
        peer.publishes_to(6).await;
        for ack in of_others.iter().chain(&by_ids).chain(&of_nothing) {
            peer.frame(&format!(r#"{{"c":"ack",{ack}}}"#)).await;
        }
        settles_one(&mut peer, receipts.remove(0), 1).await;
        let health = client.health();
        assert_eq!((health.unsettled, health.rejections), (5, 0));
        let by_ids = if publish_ids { by_ids.len() } else { 0 };
        let strays = before.len() + of_others.len() + by_ids;
        assert_eq!(health.counts.unattributed, strays as u64);
        let told = told(&mut events);
        let mut reasons = told.iter().filter_map(|event| match event {
            Event::Unattributed { reason, .. } => Some(reason.as_str().to_owned()),
            _ => None,
        });
        assert_eq!(reasons.next().as_deref(), Some("early"));
        let vague = "the ack's status is neither success nor failure";
        let reasons: Vec<_> = reasons.collect();
        assert_eq!(reasons.len(), strays - 1);
        let vague = reasons.iter().filter(|reason| *reason == vague).count();
        assert_eq!(vague, if publish_ids { 3 } else { 2 });
        assert!(reasons.contains(&"no".to_owned()));
    }
}

/// The logon is answered by a processed ack with its id, and by nothing else.
#[tokio::test(start_paused = true)]
async fn only_the_logons_own_ack_is_its_answer() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let receipts = published(&client, 3).await;
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(3).await;
    drop(peer);
    let (mut peer, logon) = Peer::accept(&mut listener).await;
    let id = logon.id.clone().unwrap();
    for ack in [
        r#""a":"processed","status":"success","s":3"#.to_owned(),
        r#""a":"processed","status":"success","s":3,"cid":"""#.to_owned(),
        r#""a":"processed","status":"success","s":3,"cid":"0""#.to_owned(),
        r#""a":"processed","status":"success","s":3,"cid":"c1""#.to_owned(),
        r#""a":"processed","status":"success","s":3,"cid":"c999""#.to_owned(),
        format!(r#""a":"persisted","status":"success","s":3,"cid":"{id}""#),
        format!(r#""a":"received","status":"success","s":3,"cid":"{id}""#),
    ] {
        assert_ne!(id, "c1", "that was the first link's");
        peer.frame(&format!(r#"{{"c":"ack",{ack}}}"#)).await;
    }
    peer.accept_logon(&logon, 0).await;
    assert_eq!(peer.publishes_to(3).await.len(), 3, "all of them again");
    // On a link that is logged on, a second answer does not count.
    peer.frame(&format!(
        r#"{{"c":"ack","a":"processed","status":"success","cid":"{id}","s":2}}"#
    ))
    .await;
    peer.ok(3).await;
    for receipt in receipts {
        assert_eq!(receipt.await, Outcome::Persisted { via: Via::Ack });
    }
}

/// A reason made of escapes, with 300 KiB of text and 1.8 MiB of header, once ended the link. The
/// figure of the next logon covered the refused message, and the refusal was lost.
#[tokio::test(start_paused = true)]
async fn a_refusal_with_odd_fields_is_a_refusal() {
    let escaped = "\\u00e9".repeat(300 << 10);
    let reasons: [&[u8]; 6] = [
        escaped.as_bytes(),
        b"caf\xe9",
        br"\q",
        br"\ud800",
        br"\u00g0",
        b"\x01\x02",
    ];
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let mut receipts = published(&client, reasons.len() as u64 + 1)
        .await
        .into_iter();
    let mut events = client.events();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(reasons.len() as u64 + 1).await;
    for (n, reason) in (1..).zip(reasons) {
        let head = format!(r#"{{"c":"ack","a":"persisted","status":"failure","s":{n},"reason":""#);
        let text = [head.as_bytes(), reason, b"\"}"].concat();
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        peer.raw(&[&length[..], &text].concat()).await;
        match receipts.next().unwrap().await {
            Outcome::Rejected { reason } => {
                assert!(!reason.as_str().is_empty() && reason.as_str().len() <= 128);
            }
            other => panic!("{other:?}"),
        }
    }
    // A field that nobody knows, with a list in it, and something that is not a number elsewhere.
    let last = reasons.len() + 1;
    peer.frame(&format!(
        r#"{{"why":[{{"}}":1}}],"c":"ack","a":"persisted","matches":-1,"status":"failure","s":{last},"reason":"no"}}"#
    ))
    .await;
    assert!(matches!(
        receipts.next().unwrap().await,
        Outcome::Rejected { .. }
    ));
    let lost = |event: &Event| matches!(event, Event::LinkLost { .. });
    assert!(
        !told(&mut events).iter().any(lost),
        "the link is as good as before"
    );
}

/// A server that wrote numbers in its own way was once left and connected to again for ever.
#[tokio::test(start_paused = true)]
async fn a_number_that_cannot_be_read_costs_what_it_said_and_no_more() {
    let odd = [
        "-1", "1e1", "1.0", "true", "\"\"", "\" 4\"", "\"+4\"", "4x", "{}", "[4]",
    ];
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let mut receipts = published(&client, 5).await;
    let mut events = client.events();
    let (mut peer, logon) = Peer::accept(&mut listener).await;
    // Whatever the figure was meant to be, nothing is settled by it, and everything is sent.
    let id = logon.id.unwrap();
    peer.frame(&format!(
        r#"{{"c":"ack","a":"processed","status":"success","cid":"{id}","s":4.0}}"#
    ))
    .await;
    assert_eq!(peer.publishes_to(5).await.len(), 5);
    for number in odd {
        peer.frame(&format!(
            r#"{{"c":"ack","a":"persisted","status":"success","s":{number}}}"#
        ))
        .await;
        peer.frame(&format!(
            r#"{{"c":"ack","a":"persisted","status":"failure","s":{number},"reason":"no"}}"#
        ))
        .await;
    }
    settles_one(&mut peer, receipts.remove(0), 1).await;
    let health = client.health();
    assert_eq!((health.unsettled, health.rejections), (4, 0));
    assert_eq!(
        health.counts.unattributed,
        odd.len() as u64,
        "no refusal is silent"
    );
    let told = told(&mut events);
    let unreadable = |e: &&Event| matches!(e, Event::UnreadableField { field } if field == "s");
    assert_eq!(told.iter().filter(unreadable).count(), 2 * odd.len() + 1);
    assert!(!told.iter().any(|e| matches!(e, Event::LinkLost { .. })));
    // One above 2^64 is as impossible as one above 2^63.
    peer.frame(r#"{"c":"ack","a":"persisted","status":"success","s":18446744073709551616}"#)
        .await;
    loop {
        if let Event::LinkLost { why, .. } = events.next().await.unwrap() {
            break assert_eq!(why, LinkEnd::BadFigure);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_figure_with_no_numbers_above_it_is_not_the_stores_failure() {
    for figure in [(1 << 63) - 1, (1 << 63) - (1 << 33), (1 << 63) - (1 << 48)] {
        let (builder, mut listener) = pair();
        let client = builder.store(memory()).open().await.unwrap();
        published(&client, 1).await;
        let mut events = client.events();
        let mut peer = Peer::logged_on(&mut listener, figure).await;
        assert!(peer.next().await.is_none(), "nothing is sent");
        loop {
            match events.next().await.unwrap() {
                Event::LinkLost { why, .. } => break assert_eq!(why, LinkEnd::NoNumbersLeft),
                Event::StoreFailed { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
        assert_eq!(client.health().unsettled, 1);
    }
}

/// Acks that were read count, whatever ends the link after them.
#[tokio::test(start_paused = true)]
async fn an_ack_read_before_nonsense_is_an_ack() {
    let text = br#"{"c":"ack","a":"persisted","status":"success","s":5}"#;
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    let bad_header = [&6u32.to_be_bytes()[..], b"\"what\""].concat();
    for nonsense in [&[0xFF; 16][..], &bad_header] {
        let (builder, mut listener) = pair();
        let client = builder.store(memory()).open().await.unwrap();
        let receipts = published(&client, 5).await;
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        peer.publishes_to(5).await;
        peer.raw(&[&length[..], text, nonsense].concat()).await;
        let _next = Peer::logged_on(&mut listener, 5).await;
        for receipt in receipts {
            assert_eq!(receipt.await, Outcome::Persisted { via: Via::Ack });
        }
    }
}

/// A server that reads nothing until it has sent all of its acks must not be waited for.
#[tokio::test(start_paused = true)]
async fn acks_are_read_while_the_server_reads_nothing() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let mut receipts = published(&client, 1).await;
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(1).await;
    // More than the link takes, so that some of it waits from here on.
    for _ in 0..200 {
        client.publish("t", vec![b'x'; 8000]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    settles_one(&mut peer, receipts.remove(0), 1).await;
    assert_eq!(client.health().unsettled, 200);
}

/// After a rebase the number on the wire is another one than the sequence in the id.
#[tokio::test(start_paused = true)]
async fn publish_ids_are_sequences_whatever_goes_out_on_the_wire() {
    let (builder, mut listener) = pair();
    let client = builder
        .store(memory())
        .publish_ids(true)
        .open()
        .await
        .unwrap();
    let mut receipts = published(&client, 4).await;
    let mut peer = Peer::logged_on(&mut listener, 500).await;
    let mut wires = Vec::new();
    for id in 1..=4 {
        let frame = peer.next().await.unwrap();
        assert_eq!(frame.id, Some(id.to_string()));
        wires.push(frame.sequence.unwrap());
    }
    assert!(wires[0] > 500 && wires.is_sorted());
    peer.frame(r#"{"c":"ack","a":"persisted","status":"failure","cid":"2","reason":"no"}"#)
        .await;
    assert!(matches!(receipts.remove(1).await, Outcome::Rejected { .. }));
    // A number of the numbering that ended with the rebase.
    peer.frame(r#"{"c":"ack","a":"persisted","status":"success","cid":"1","s":400}"#)
        .await;
    peer.frame(r#"{"c":"ack","a":"persisted","status":"success","cid":"4"}"#)
        .await;
    assert_eq!(
        receipts.remove(2).await,
        Outcome::Persisted { via: Via::Ack }
    );
    assert_eq!(client.health().unsettled, 2, "an id names one message");
    // Number and id belong to different messages, so it is not known what was refused.
    peer.frame(&format!(
        r#"{{"c":"ack","a":"persisted","status":"failure","cid":"1","s":{},"reason":"no"}}"#,
        wires[2]
    ))
    .await;
    peer.frame(&format!(
        r#"{{"c":"ack","a":"persisted","status":"success","cid":"1","s":{}}}"#,
        wires[2]
    ))
    .await;
    assert_eq!(
        receipts.remove(0).await,
        Outcome::Persisted { via: Via::Ack }
    );
    let health = client.health();
    assert_eq!((health.unsettled, health.rejections), (1, 1));
    assert_eq!(health.counts.unattributed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_id_of_what_was_not_sent_is_not_believed() {
    let (builder, mut listener) = pair();
    let client = builder
        .store(memory())
        .publish_ids(true)
        .max_in_flight(2, 1 << 20)
        .open()
        .await
        .unwrap();
    let mut receipts = published(&client, 5).await;
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(2).await;
    for id in [0, 4, u64::MAX] {
        peer.frame(&format!(
            r#"{{"c":"ack","a":"persisted","status":"failure","cid":"{id}","reason":"no"}}"#
        ))
        .await;
        peer.frame(&format!(
            r#"{{"c":"ack","a":"persisted","status":"success","cid":"{id}"}}"#
        ))
        .await;
    }
    settles_one(&mut peer, receipts.remove(0), 1).await;
    let health = client.health();
    assert_eq!((health.unsettled, health.rejections), (4, 0));
    assert_eq!(health.counts.unattributed, 3);
    // A number 0 counts as none, and so does not contradict the id.
    peer.frame(r#"{"c":"ack","a":"persisted","status":"failure","cid":"2","s":0}"#)
        .await;
    assert!(matches!(receipts.remove(0).await, Outcome::Rejected { .. }));
}

fn file_options() -> Options {
    options().client_name(NAME)
}

/// A close that told the store of one number less once made the last message look foreign.
#[tokio::test(start_paused = true)]
async fn after_a_clean_close_the_servers_figure_is_our_own() {
    for beyond in [0, 1] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (builder, mut listener) = pair();
        let store = Store::open(&path, file_options()).unwrap();
        let client = builder.store(store).open().await.unwrap();
        published(&client, 10).await;
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        peer.publishes_to(10).await;
        // Never acked: it closes with ten left.
        assert_eq!(client.close(Duration::from_millis(10)).await.left, 10);
        drop((client, peer, listener));

        let store = Store::open(&path, file_options()).unwrap();
        assert_eq!(
            store.numbers().found_grant,
            10,
            "what was sent, and no more"
        );
        let (builder, mut listener) = pair();
        let client = builder.store(store).open().await.unwrap();
        let mut events = client.events();
        let mut peer = Peer::logged_on(&mut listener, 10 + beyond).await;
        if beyond == 0 {
            client.publish_flush(LONG).await.unwrap();
            assert_eq!(client.health().counts.persisted_at_logon, 10);
        } else {
            // Nobody sent this one.
            assert_eq!(peer.next().await.unwrap().body, b"0");
            assert_eq!(client.health().unsettled, 10);
        }
        let foreign = |e: &Event| matches!(e, Event::ForeignFigure { .. });
        assert_eq!(told(&mut events).iter().any(foreign), beyond > 0);
    }
}

/// Ten acked, killed; one published with no server, killed; the server knows ten.
#[tokio::test(start_paused = true)]
async fn skipped_numbers_are_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let path = |n: u32| dir.path().join(n.to_string());
    let (builder, mut listener) = pair();
    let store = Store::open(path(1), file_options()).unwrap();
    let client = builder.store(store).open().await.unwrap();
    published(&client, 10).await;
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(10).await;
    peer.ok(10).await;
    client.publish_flush(LONG).await.unwrap();
    // As after kill -9: the contents of the file at that moment.
    std::fs::copy(path(1), path(2)).unwrap();
    let store = Store::open(path(2), file_options()).unwrap();
    let (builder, _listener) = pair();
    let client = builder.store(store).open().await.unwrap();
    assert!(published(&client, 1).await[0].sequence() > 11);
    std::fs::copy(path(2), path(3)).unwrap();
    let store = Store::open(path(3), file_options()).unwrap();
    let (builder, mut listener) = pair();
    let client = builder.store(store).open().await.unwrap();
    let mut events = client.events();
    let mut peer = Peer::logged_on(&mut listener, 10).await;
    peer.next().await.unwrap();
    let gap = |e: &Event| matches!(e, Event::PublishGap { .. });
    assert!(!told(&mut events).iter().any(gap));
}

/// Whether a logon was refused must be told, whatever the outcome of the last attempt.
#[tokio::test(start_paused = true)]
async fn a_refused_logon_is_remembered_until_one_is_accepted() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    assert_eq!(client.health().logon_refused, None);
    let refuse = async |listener: &mut _| {
        let (mut peer, logon) = Peer::accept(listener).await;
        let id = logon.id.unwrap();
        peer.frame(&format!(
            r#"{{"c":"ack","a":"processed","status":"failure","cid":"{id}","reason":"not entitled"}}"#
        ))
        .await;
        assert!(peer.next().await.is_none());
    };
    refuse(&mut listener).await;
    // A server that has a different problem.
    drop(Peer::accept(&mut listener).await);
    let (mut peer, logon) = Peer::accept(&mut listener).await;
    let (_, reason) = client.health().logon_refused.unwrap();
    assert_eq!(reason.as_str(), "not entitled");
    peer.accept_logon(&logon, 0).await;
    client.wait_logged_on(LONG).await.unwrap();
    assert_eq!(client.health().logon_refused, None);
    drop(peer);
    refuse(&mut listener).await;
    drop(Peer::accept(&mut listener).await);
    assert!(client.health().logon_refused.is_some());
}
