//! The bytes of every command, pinned to the frames printed in `docs/protocol.md`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use amps_client::protocol::{
    Ack, AckKind, AckKinds, Command, FrameDecoder, Header, LogonAck, Outbound, Publish, SowEntry,
    Status, Verb, encode_group, encode_heartbeat, encode_sow,
};

/// The frame's content, after checking that its length field tells the truth.
fn content(frame: &[u8]) -> &str {
    let (length, content) = frame.split_at(4);
    assert_eq!(length, (content.len() as u32).to_be_bytes(), "length field");
    std::str::from_utf8(content).unwrap()
}

fn command(command: Command<'_>) -> String {
    let mut out = Vec::new();
    command.encode(&mut out).unwrap();
    content(&out).to_owned()
}

fn publish(publish: Publish<'_>) -> String {
    let mut out = Vec::new();
    publish.encode(&mut out).unwrap();
    content(&out).to_owned()
}

fn ack(ack: Ack<'_>) -> String {
    let mut out = Vec::new();
    ack.encode(&mut out).unwrap();
    content(&out).to_owned()
}

#[test]
fn the_captured_publish_of_section_1_byte_for_byte() {
    let mut out = Vec::new();
    Publish::stored("orders", 1, b"{\"id\":1}")
        .encode(&mut out)
        .unwrap();
    let captured: [u8; 56] = [
        0x00, 0x00, 0x00, 0x34, 0x7b, 0x22, 0x63, 0x22, 0x3a, 0x22, 0x70, 0x22, 0x2c, 0x22, 0x74,
        0x22, 0x3a, 0x22, 0x6f, 0x72, 0x64, 0x65, 0x72, 0x73, 0x22, 0x2c, 0x22, 0x73, 0x22, 0x3a,
        0x31, 0x2c, 0x22, 0x61, 0x22, 0x3a, 0x22, 0x70, 0x65, 0x72, 0x73, 0x69, 0x73, 0x74, 0x65,
        0x64, 0x22, 0x7d, 0x7b, 0x22, 0x69, 0x64, 0x22, 0x3a, 0x31, 0x7d,
    ];
    assert_eq!(out, captured);
}

#[test]
fn the_captured_persisted_ack_of_section_1_byte_for_byte() {
    let mut out = Vec::new();
    Ack::persisted(1).encode(&mut out).unwrap();
    let captured: [u8; 56] = [
        0x00, 0x00, 0x00, 0x34, 0x7b, 0x22, 0x63, 0x22, 0x3a, 0x22, 0x61, 0x63, 0x6b, 0x22, 0x2c,
        0x22, 0x61, 0x22, 0x3a, 0x22, 0x70, 0x65, 0x72, 0x73, 0x69, 0x73, 0x74, 0x65, 0x64, 0x22,
        0x2c, 0x22, 0x73, 0x74, 0x61, 0x74, 0x75, 0x73, 0x22, 0x3a, 0x22, 0x73, 0x75, 0x63, 0x63,
        0x65, 0x73, 0x73, 0x22, 0x2c, 0x22, 0x73, 0x22, 0x3a, 0x31, 0x7d,
    ];
    assert_eq!(out, captured);
}

#[test]
fn publishes_of_section_4_1() {
    let plain = Publish {
        command_id: Some("2"),
        sequence: Some(1),
        ..Publish::new("orders", b"{\"id\":1}")
    };
    assert_eq!(
        publish(plain),
        r#"{"c":"p","cid":"2","t":"orders","s":1}{"id":1}"#
    );
    let expiring = Publish {
        command_id: Some("3"),
        expiration: Some(60),
        sequence: Some(2),
        ..Publish::new("orders", b"{\"id\":2}")
    };
    assert_eq!(
        publish(expiring),
        r#"{"c":"p","cid":"3","t":"orders","e":60,"s":2}{"id":2}"#
    );
    let delta = Publish {
        delta: true,
        command_id: Some("1"),
        ..Publish::new("orders", b"{\"id\":1,\"p\":3}")
    };
    assert_eq!(
        publish(delta),
        r#"{"c":"delta_publish","cid":"1","t":"orders"}{"id":1,"p":3}"#
    );
}

/// The capture has the order `x a s k`, that of `docs/protocol.md` §1 has `s a`. The order of
/// keys is free, so the fields are compared here instead of the bytes.
#[test]
fn the_publish_with_every_field() {
    let full = Publish {
        command_id: Some("4"),
        correlation_id: Some("Y29yci0z"),
        acks: AckKinds::from_wire("processed,persisted"),
        sequence: Some(3),
        sow_key: Some("k3"),
        ..Publish::new("orders", b"{\"id\":3}")
    };
    let ours = publish(full);
    assert_eq!(
        ours,
        r#"{"c":"p","cid":"4","t":"orders","x":"Y29yci0z","s":3,"a":"processed,persisted","k":"k3"}{"id":3}"#
    );
    let captured = br#"{"c":"p","cid":"4","t":"orders","x":"Y29yci0z","a":"processed,persisted","s":3,"k":"k3"}{"id":3}"#;
    assert_eq!(
        Header::parse(ours.as_bytes()).unwrap(),
        Header::parse(captured).unwrap()
    );
}

#[test]
fn a_publish_may_be_spelled_out() {
    let long = Publish {
        long_name: true,
        ..Publish::new("orders", b"x")
    };
    assert_eq!(publish(long), r#"{"c":"publish","t":"orders"}x"#);
}

#[test]
fn a_topic_is_escaped_as_captured() {
    assert_eq!(
        publish(Publish::new("or\"d\\ers", b"")),
        r#"{"c":"p","t":"or\"d\\ers"}"#
    );
}

#[test]
fn sow_deletes_of_section_4_3() {
    let numbered = |form| Command {
        sequence: Some(4),
        acks: AckKinds::PERSISTED,
        ..form
    };
    let by_filter = numbered(Command::sow_delete_by_filter("orders", "/id = 1"));
    assert_eq!(
        command(Command {
            command_id: Some("1"),
            ..by_filter
        }),
        r#"{"c":"sow_delete","cid":"1","t":"orders","f":"/id = 1","s":4,"a":"persisted"}"#
    );
    assert_eq!(
        command(numbered(Command::sow_delete_by_keys("orders", "1,2"))),
        r#"{"c":"sow_delete","t":"orders","sow_keys":"1,2","s":4,"a":"persisted"}"#
    );
    assert_eq!(
        command(numbered(Command::sow_delete_by_data(
            "orders",
            b"{\"id\":1}"
        ))),
        r#"{"c":"sow_delete","t":"orders","s":4,"a":"persisted"}{"id":1}"#
    );
}

#[test]
fn flush_and_heartbeat_of_sections_4_4_and_4_5() {
    let acks = AckKinds::from_wire("processed,completed");
    assert_eq!(
        command(Command::flush("5", acks)),
        r#"{"c":"flush","cid":"5","a":"processed,completed"}"#
    );
    assert_eq!(
        command(Command::heartbeat_start("1", "start,5")),
        r#"{"c":"heartbeat","cid":"1","o":"start,5","a":"processed"}"#
    );
    assert_eq!(
        command(Command::heartbeat_beat()),
        r#"{"c":"heartbeat","o":"beat"}"#
    );
}

#[test]
fn the_genuine_logon_of_section_5_1() {
    let logon = Command {
        message_type: Some("nvfix"),
        version: Some("5.2.1.1:python"),
        ..Command::logon("0", "pubber")
    };
    assert_eq!(
        command(logon),
        r#"{"c":"logon","cid":"0","client_name":"pubber","mt":"nvfix","a":"processed","version":"5.2.1.1:python"}"#
    );
}

#[test]
fn the_genuine_logon_ack_of_section_5_2() {
    let mut out = Vec::new();
    let ack = LogonAck {
        command_id: Some("0"),
        sequence: Some(0),
        bookmark: Some("7094790850998930143|0|"),
        client_name: Some("pubber"),
        reason: Some("authentication disabled"),
        version: Some("5.2.1.17.717892.e742467"),
    };
    ack.encode(&mut out).unwrap();
    assert_eq!(
        content(&out),
        concat!(
            r#"{"c":"ack","cid":"0","s":0,"bm":"7094790850998930143|0|","client_name":"pubber","#,
            r#""a":"processed","status":"success","reason":"authentication disabled","#,
            r#""version":"5.2.1.17.717892.e742467"}"#
        )
    );
}

#[test]
fn acks_of_sections_4_and_8() {
    let processed = Ack::new(AckKind::Processed, Status::Success);
    assert_eq!(
        ack(Ack {
            command_id: Some("5"),
            ..processed
        }),
        r#"{"c":"ack","a":"processed","status":"success","cid":"5"}"#
    );
    assert_eq!(
        ack(Ack {
            command_id: Some("1"),
            query_id: Some("1"),
            ..processed
        }),
        r#"{"c":"ack","a":"processed","status":"success","cid":"1","query_id":"1"}"#
    );
    assert_eq!(
        ack(Ack {
            command_id: Some("4"),
            ..Ack::persisted(3)
        }),
        r#"{"c":"ack","a":"persisted","status":"success","cid":"4","s":3}"#
    );
    assert_eq!(
        ack(Ack {
            command_id: Some("7"),
            sub_id: Some("7"),
            bookmark: Some("1795379728268651|1|8|"),
            ..Ack::new(AckKind::Completed, Status::Success)
        }),
        r#"{"c":"ack","a":"completed","status":"success","cid":"7","sub_id":"7","bm":"1795379728268651|1|8|"}"#
    );
    assert_eq!(
        ack(Ack {
            command_id: Some("1"),
            records_deleted: Some(1),
            records_returned: Some(1),
            matches: Some(1),
            topic_matches: Some(1),
            ..Ack::new(AckKind::Stats, Status::Success)
        }),
        r#"{"c":"ack","a":"stats","status":"success","cid":"1","records_deleted":1,"records_returned":1,"matches":1,"topic_matches":1}"#
    );
    assert_eq!(
        ack(Ack::refused(Some(3), None, "not entitled")),
        r#"{"c":"ack","a":"persisted","status":"failure","s":3,"reason":"not entitled"}"#
    );
}

#[test]
fn subscriber_commands_of_section_8() {
    let acks = AckKinds::from_wire("processed,completed");
    assert_eq!(
        command(Command {
            batch_size: Some(10),
            ..Command::sow("1", "orders", "1")
        }),
        r#"{"c":"sow","cid":"1","t":"orders","bs":10,"a":"processed,completed","query_id":"1"}"#
    );
    let both = Command::sow_and_subscribe("1", "orders", "1", "1");
    assert_eq!(
        command(Command {
            batch_size: Some(10),
            ..both
        }),
        r#"{"c":"sow_and_subscribe","cid":"1","t":"orders","bs":10,"a":"processed","query_id":"1","sub_id":"1"}"#
    );
    assert_eq!(
        command(Command {
            bookmark: Some("0"),
            options: Some("bookmark"),
            acks,
            ..Command::subscribe("7", "orders", "7")
        }),
        r#"{"c":"subscribe","cid":"7","t":"orders","bm":"0","o":"bookmark","a":"processed,completed","sub_id":"7"}"#
    );
    assert_eq!(
        command(Command::unsubscribe("11", "all")),
        r#"{"c":"unsubscribe","cid":"11","sub_id":"all"}"#
    );
}

#[test]
fn deliveries_and_groups_of_section_8() {
    let mut out = Vec::new();
    let delivered = Outbound {
        sub_id: Some("1"),
        bookmark: Some("1795379601409586|1|5|"),
        timestamp: Some("20261122T203321409601687"),
        sow_key: Some("7"),
        ..Outbound::new("orders", b"{\"id\":7,\"p\":2}")
    };
    delivered.encode(&mut out).unwrap();
    assert_eq!(
        content(&out),
        r#"{"c":"p","t":"orders","sub_id":"1","bm":"1795379601409586|1|5|","ts":"20261122T203321409601687","k":"7"}{"id":7,"p":2}"#
    );

    let mut out = Vec::new();
    encode_group(&mut out, true, "1").unwrap();
    assert_eq!(content(&out), r#"{"c":"group_begin","query_id":"1"}"#);

    let mut out = Vec::new();
    encode_group(&mut out, false, "1").unwrap();
    assert_eq!(content(&out), r#"{"c":"group_end","query_id":"1"}"#);

    let mut out = Vec::new();
    encode_heartbeat(&mut out).unwrap();
    assert_eq!(content(&out), r#"{"c":"heartbeat"}"#);

    let mut out = Vec::new();
    let entry = SowEntry {
        topic: "orders",
        key: "1",
        bookmark: None,
        body: b"{\"id\":1,\"p\":3}",
    };
    encode_sow(&mut out, "1", "orders", [entry]).unwrap();
    assert_eq!(
        content(&out),
        r#"{"c":"sow","query_id":"1","t":"orders"}{"t":"orders","query_id":"1","k":"1","l":14}{"id":1,"p":3}"#
    );
}

#[test]
fn several_commands_share_one_buffer() {
    let mut out = Vec::new();
    for sequence in 1..=3 {
        Publish::stored("t", sequence, b"x")
            .encode(&mut out)
            .unwrap();
    }
    let mut decoder = FrameDecoder::new();
    decoder.push(&out);
    for sequence in 1..=3 {
        let frame = decoder.next_frame().unwrap().unwrap();
        let (header, body) = Header::parse(&frame).unwrap();
        assert_eq!(
            (header.verb, header.sequence),
            (Some(Verb::Publish), Some(sequence))
        );
        assert_eq!(body, b"x");
    }
    assert_eq!(decoder.next_frame(), Ok(None));
}
