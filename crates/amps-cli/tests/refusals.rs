//! What the command does about refusals: of messages, in time, late or without a name, and of
//! logons. Against a scripted server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;

use amps_client::protocol::{FrameDecoder, Header, Verb};
use common::{Dir, Running, amps, run, run_with_input};

/// A server that follows its script, for one connection after the other.
struct Scripted {
    uri: String,
}

impl Scripted {
    fn start(script: impl Fn(Link) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("tcp://{}/amps/json", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                script(Link {
                    stream,
                    decoder: FrameDecoder::new(),
                });
            }
        });
        Scripted { uri }
    }
}

struct Link {
    stream: TcpStream,
    decoder: FrameDecoder,
}

impl Link {
    /// Verb, command id and sequence of the next frame; `None` if the peer is gone.
    fn next(&mut self) -> Option<(bool, Option<String>, Option<u64>)> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                let (header, _) = Header::parse(&frame).unwrap();
                let publish = header.verb == Some(Verb::Publish);
                let id = header.command_id.as_deref().map(str::to_owned);
                return Some((publish, id, header.sequence));
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.push(&bytes[..count]),
            }
        }
    }

    /// The ids and numbers of the next publishes.
    fn publishes(&mut self, count: usize) -> Vec<(Option<String>, u64)> {
        let mut all = Vec::new();
        while all.len() < count {
            match self.next() {
                Some((true, id, Some(sequence))) => all.push((id, sequence)),
                Some(_) => {}
                None => break,
            }
        }
        all
    }

    /// Sends acks with these fields, all in one write.
    fn acks(&mut self, acks: &[&str]) {
        let mut bytes = Vec::new();
        for fields in acks {
            let text = format!("{{\"c\":\"ack\",{fields}}}");
            bytes.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        // That the peer is gone is noticed by what is read.
        let _ = self.stream.write_all(&bytes);
    }

    /// Answers the logon.
    fn log_on(&mut self, fields: &str) {
        let Some((_, Some(id), _)) = self.next() else {
            return;
        };
        self.acks(&[&format!(r#""a":"processed","cid":"{id}",{fields}"#)]);
    }

    fn accept(&mut self) {
        self.log_on(r#""status":"success","s":0"#);
    }

    fn until_closed(&mut self) {
        while self.next().is_some() {}
    }
}

const OK: &str = r#""a":"persisted","status":"success""#;
const NO: &str = r#""a":"persisted","status":"failure","reason":"bad message""#;

/// Longer than anything here takes, even on a busy machine.
const LONG: &str = "30s";

fn publish(servers: &[&str], timeout: &str) -> Command {
    let mut command = amps();
    command.args([
        "publish",
        "--topic",
        "t",
        "--json",
        "--flush-timeout",
        timeout,
    ]);
    for server in servers {
        command.args(["--server", server]);
    }
    command
}

#[test]
fn a_refusal_that_comes_late_is_counted_and_ends_with_6() {
    let server = Scripted::start(|mut link| {
        link.accept();
        link.publishes(3);
        link.acks(&[&format!(r#"{OK},"s":3"#), &format!(r#"{NO},"s":2"#)]);
        link.until_closed();
    });
    let dir = Dir::new();
    let store = dir.path("s.store");
    let ran = run_with_input(
        publish(&[&server.uri], LONG).arg("--store").arg(&store),
        b"1\n2\n3\n",
    )
    .expect(6)
    .says(&[
        "1 message(s) were refused and wait for you",
        "acknowledged first",
    ]);
    let report = ran.report();
    for (field, value) in [
        ("published", 3),
        ("persisted", 3),
        ("persisted_at_logon", 0),
        ("rejected", 0),
        ("late", 1),
        ("unattributed", 0),
        ("left", 0),
        ("resent", 0),
    ] {
        assert_eq!(report[field], value, "{field}");
    }
    let rejected = &ran.objects()[0];
    assert_eq!(
        (&rejected["sequence"], &rejected["late"]),
        (&2.into(), &true.into())
    );
    let waiting = run(amps().args(["failed", "list", "--json"]).arg(&store)).expect(0);
    assert_eq!(waiting.report()["waiting"], 1);
}

#[test]
fn a_refusal_of_nobody_is_counted_and_ends_with_6() {
    for (refusal, words) in [
        (NO.to_owned(), "without saying which"),
        (format!(r#"{NO},"s":2,"cid":"zz""#), "under number 2,"),
        // These were once dropped, and the exit code was 0.
        (format!(r#"{NO},"s":2,"cid":"c99""#), "under number 2,"),
        (format!(r#"{NO},"s":2,"sub_id":"x""#), "under number 2,"),
        (
            NO.replace("failure", "error") + r#","s":2"#,
            "under number 2,",
        ),
    ] {
        let server = Scripted::start(move |mut link| {
            link.accept();
            link.publishes(3);
            link.acks(&[&refusal, &format!(r#"{OK},"s":3"#)]);
            link.until_closed();
        });
        let ran = run_with_input(&mut publish(&[&server.uri], LONG), b"1\n2\n3\n")
            .expect(6)
            .says(&[words, "bad message", "--publish-ids"]);
        let report = ran.report();
        assert_eq!(
            (
                &report["persisted"],
                &report["rejected"],
                &report["unattributed"]
            ),
            (&3.into(), &0.into(), &1.into())
        );
    }
}

/// Somebody who gave the option was once told to give it.
#[test]
fn advice_that_was_followed_is_not_given_again() {
    let server = Scripted::start(|mut link| {
        link.accept();
        link.publishes(1);
        link.acks(&[NO, &format!(r#"{OK},"s":1"#)]);
        link.until_closed();
    });
    let mut command = publish(&[&server.uri], LONG);
    let ran = run_with_input(command.arg("--publish-ids"), b"1\n")
        .expect(6)
        .says(&["1 refusal(s) named no message"]);
    assert!(!ran.stderr.contains("--publish-ids"), "{}", ran.stderr);
}

#[test]
fn with_publish_ids_a_refusal_by_id_names_its_message() {
    let (seen, ids) = mpsc::channel();
    let server = Scripted::start(move |mut link| {
        link.accept();
        seen.send(link.publishes(3)).unwrap();
        link.acks(&[&format!(r#"{NO},"cid":"2""#), &format!(r#"{OK},"s":3"#)]);
        link.until_closed();
    });
    let dir = Dir::new();
    let store = dir.path("s.store");
    let report = run_with_input(
        publish(&[&server.uri], LONG)
            .args(["--publish-ids", "--store"])
            .arg(&store),
        b"1\n2\n3\n",
    )
    .expect(6)
    .report();
    assert_eq!(
        (
            &report["persisted"],
            &report["rejected"],
            &report["unattributed"]
        ),
        (&2.into(), &1.into(), &0.into())
    );
    let sent: Vec<_> = ids.recv().unwrap();
    assert_eq!(sent[2], (Some("3".to_owned()), 3));

    // The same with drain.
    let server = Scripted::start(|mut link| {
        link.accept();
        let ids = link.publishes(1);
        let id = ids[0].0.clone().unwrap();
        link.acks(&[&format!(r#"{OK},"cid":"{id}""#)]);
        link.until_closed();
    });
    run(amps().args(["failed", "requeue", "2"]).arg(&store)).expect(0);
    let report = run(amps()
        .args([
            "drain",
            "--json",
            "--publish-ids",
            "--server",
            &server.uri,
            "--store",
        ])
        .arg(&store))
    .expect(0)
    .report();
    assert_eq!(report["persisted"], 1);
}

/// Publishes one line to a server that refuses the logon and then to another one, which follows
/// `script`. Ends the input once that server has finished its first link.
fn after_a_refusal(script: fn(&mut Link)) -> Option<i32> {
    let refusing = Scripted::start(|mut link| {
        link.log_on(r#""status":"failure","reason":"not entitled""#);
    });
    let (through, done) = mpsc::channel();
    let other = Scripted::start(move |mut link| {
        script(&mut link);
        // The test may be over.
        let _ = through.send(());
        link.until_closed();
    });
    let mut command = publish(&[&refusing.uri, &other.uri], "1ms");
    let mut running = Running::start(&mut command);
    running.write_line("1");
    done.recv().unwrap();
    running.wait()
}

/// The exit code once depended on which server was tried last.
#[test]
fn a_refused_logon_ends_with_7_unless_one_was_accepted_after_it() {
    let down = |link: &mut Link| {
        link.stream.shutdown(std::net::Shutdown::Both).unwrap();
    };
    assert_eq!(after_a_refusal(down), Some(7));
    let up = |link: &mut Link| {
        link.accept();
        link.publishes(1);
    };
    assert_eq!(after_a_refusal(up), Some(5));
}

#[test]
fn a_message_sent_again_under_another_number_is_resent() {
    let server = Scripted::start(|mut link| {
        let Some((_, Some(id), _)) = link.next() else {
            return;
        };
        let figure = match id.as_str() {
            "c1" => 0,
            _ => 1_000_000,
        };
        link.acks(&[&format!(
            r#""a":"processed","status":"success","cid":"{id}","s":{figure}"#
        )]);
        let sent = link.publishes(3);
        if figure > 0 {
            link.acks(&[&format!(r#"{OK},"s":{}"#, sent[2].1)]);
            link.until_closed();
        }
    });
    let report = run_with_input(&mut publish(&[&server.uri], LONG), b"1\n2\n3\n")
        .expect(0)
        .says(&["3 message(s) may reach it twice"])
        .report();
    assert_eq!(
        (&report["persisted"], &report["resent"]),
        (&3.into(), &3.into())
    );
}
