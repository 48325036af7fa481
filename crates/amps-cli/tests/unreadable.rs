//! A store that contains something this program cannot read.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use amps_store::inspect::Inspection;
use amps_store::{Envelope, Options, PublishStore, Store};
use common::{Dir, Server, amps, run};

/// CRC-32/ISO-HDLC, continued from a seed.
fn crc32(bytes: &[u8], seed: u32) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| match crc & 1 {
            1 => crc >> 1 ^ 0xEDB8_8320,
            _ => crc >> 1,
        })
    };
    !bytes.iter().fold(!seed, step)
}

/// Such a message once made a drain connect again for ever, and none behind it was sent.
#[test]
fn a_drain_leaves_a_message_of_an_unknown_kind_to_the_operator_and_sends_the_others() {
    let dir = Dir::new();
    let path = dir.path("store");
    let store = Store::open(&path, Options::new().client_name("tester")).unwrap();
    for n in 1..=30 {
        let payload = format!("message {n}");
        let appended = store.append(&Envelope::publish("orders"), payload.as_bytes());
        assert_eq!(appended.unwrap().sequence, n);
    }
    store.close(0).unwrap();
    let record = |sequence| {
        Inspection::open(&path)
            .unwrap()
            .get(sequence)
            .unwrap()
            .unwrap()
    };
    let at = record(5).offset as usize;
    let mut bytes = std::fs::read(&path).unwrap();
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (key, len) = (u32_at(32), u32_at(at + 4) as usize);
    // The operation, which stands first in the envelope.
    bytes[at + 40] = 9;
    let end = at + len.next_multiple_of(8);
    let crc = crc32(&bytes[at + 4..end], key ^ (at / 8) as u32);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    assert!(record(5).envelope.is_none());

    let server = Server::start(None, &[]);
    let mut drain = amps();
    drain.args([
        "drain",
        "--json",
        "--flush-timeout",
        "30s",
        "--server",
        &server.uri,
    ]);
    let ran = run(drain.arg("--store").arg(&path)).expect(6);
    let report = ran.report();
    let counts = ["persisted", "rejected", "left"].map(|name| report[name].as_u64());
    assert_eq!(counts, [Some(29), Some(1), Some(0)], "{}", ran.text());
    let told = ran.stderr.matches("message 5 cannot be read").count();
    assert_eq!(told, 1, "once was twice: {}", ran.stderr);
    assert!(!ran.stderr.contains("was not sent"), "{}", ran.stderr);

    let failed = |arguments: &[&str]| {
        let mut command = amps();
        command.arg("failed").args(arguments).arg("--json");
        run(command.arg(&path))
    };
    let listed = failed(&["list"]).expect(0).objects();
    assert_eq!(listed[0]["sequence"], 5);
    assert_eq!(listed[0]["text"], "message 5");
    let reason = listed[0]["reason"].as_str().unwrap();
    assert!(reason.contains("does not know its envelope"), "{reason}");
    failed(&["requeue", "5"])
        .expect(1)
        .says(&["not of a version this program knows", "another one may"]);
    let shown = failed(&["show", "5"]).expect(0).objects();
    assert!(shown[0]["envelope_base64"].as_str().is_some());
    failed(&["accept", "5"]).expect(0);
    assert_eq!(failed(&["list"]).expect(0).report()["waiting"], 0);
    let mut verify = amps();
    run(verify.args(["store", "verify"]).arg(&path)).expect(0);
}
