//! The sandbox on real sockets; the client is only the codec.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use amps_client::connector::{Connector, SchemeConnector, Stream};
use amps_client::protocol::{
    AckKinds, Command, FrameDecoder, Header, Publish, SowRecords, Verb, append_frame,
};
use amps_client::uri::Uri;
use amps_sandbox::{Builder, Dialect, Fault, Sandbox, read_journal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// Longer than anything here takes; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// In virtual time: it passes as soon as nothing else can run.
const HOUR: Duration = Duration::from_secs(3600);

struct Raw {
    stream: Box<dyn Stream>,
    decoder: FrameDecoder,
}

impl Raw {
    async fn connect(sandbox: &Sandbox) -> Raw {
        let uri: Uri = sandbox.uri().parse().unwrap();
        let stream = match sandbox.uris() {
            [] => sandbox.connector().connect(&uri).await.unwrap(),
            _ => SchemeConnector::new().connect(&uri).await.unwrap(),
        };
        Raw {
            stream,
            decoder: FrameDecoder::new(),
        }
    }

    /// Connects and logs on; returns the figure as well.
    async fn log_on(sandbox: &Sandbox, name: &str) -> (Raw, u64) {
        let mut raw = Raw::connect(sandbox).await;
        raw.send(Command {
            message_type: Some("json"),
            ..Command::logon("0", name)
        })
        .await;
        let ack = raw.next().await.unwrap();
        let (header, _) = Header::parse(ack.as_bytes()).unwrap();
        assert!(ack.contains(r#""status":"success""#), "{ack}");
        (raw, header.sequence.unwrap())
    }

    async fn send(&mut self, command: Command<'_>) {
        let mut out = Vec::new();
        command.encode(&mut out).unwrap();
        self.write(&out).await;
    }

    async fn publish(&mut self, topic: &str, sequences: impl IntoIterator<Item = u64>) {
        let mut out = Vec::new();
        for sequence in sequences {
            let body = format!("{{\"id\":{sequence}}}");
            Publish::stored(topic, sequence, body.as_bytes())
                .encode(&mut out)
                .unwrap();
        }
        self.write(&out).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next frame as text, or `None` at the end of the stream.
    async fn next(&mut self) -> Option<String> {
        let next = async {
            loop {
                if let Some(frame) = self.decoder.next_frame().unwrap() {
                    return Some(String::from_utf8(frame.to_vec()).unwrap());
                }
                match self.stream.read_buf(self.decoder.read_buffer()).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, next)
            .await
            .expect("the sandbox stays silent")
    }

    /// What the acks up to a sequence say, in short.
    async fn acks_to(&mut self, last: u64) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            let frame = self.next().await.expect("the link ended");
            let (header, _) = Header::parse(frame.as_bytes()).unwrap();
            assert_eq!(header.verb, Some(Verb::Ack), "{frame}");
            assert_eq!(header.command_id, None, "conflated acks carry no id");
            let sequence = header.sequence.unwrap();
            let status = header.status.unwrap().as_str();
            told.push(format!(
                "{status} {sequence}{}",
                header
                    .reason_text
                    .map_or(String::new(), |reason| format!(" {reason}"))
            ));
            if sequence >= last {
                return told;
            }
        }
    }
}

fn tcp() -> Builder {
    Sandbox::builder()
        .listen("tcp://127.0.0.1:0/amps/json")
        .ack_interval(Duration::from_millis(20))
}

fn sequences(sandbox: &Sandbox) -> Vec<u64> {
    sandbox
        .journal()
        .unwrap()
        .iter()
        .map(|entry| entry.sequence.unwrap())
        .collect()
}

#[tokio::test]
async fn h8_over_tcp() {
    let sandbox = tcp()
        .reject_when(|m| (m.sequence == Some(3)).then(|| "bad luck".to_owned()))
        .start()
        .await
        .unwrap();
    let (mut raw, figure) = Raw::log_on(&sandbox, "p").await;
    assert_eq!(figure, 0);
    raw.publish("orders", 1..=5).await;
    assert_eq!(
        raw.acks_to(5).await,
        ["success 2", "failure 3 bad luck", "success 5"]
    );
    assert_eq!(sequences(&sandbox), [1, 2, 4, 5]);
    let (_, figure) = Raw::log_on(&sandbox, "p").await;
    assert_eq!(figure, 5);
    assert_eq!(
        raw.next().await,
        None,
        "the older link of the name is evicted"
    );
    sandbox.stop().await;
}

#[tokio::test]
async fn topics_and_content_are_refused() {
    let sandbox = tcp()
        .reject_topic("secret")
        .reject_invalid_json("*")
        .start()
        .await
        .unwrap();
    let (mut raw, _) = Raw::log_on(&sandbox, "p").await;
    raw.publish("secret", [1]).await;
    let mut out = Vec::new();
    Publish::stored("orders", 2, b"{not json")
        .encode(&mut out)
        .unwrap();
    raw.write(&out).await;
    raw.publish("orders", [3]).await;
    assert_eq!(
        raw.acks_to(3).await,
        [
            "failure 1 not entitled",
            "failure 2 invalid message",
            "success 3"
        ]
    );
    sandbox.stop().await;
}

#[tokio::test]
async fn the_journal_remembers_messages_refusals_and_what_was_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let start = || async {
        tcp()
            .journal(directory.path())
            .reject_topic("no")
            .start()
            .await
            .unwrap()
    };
    let sandbox = start().await;
    let (mut raw, _) = Raw::log_on(&sandbox, "p").await;
    raw.publish("orders", 1..=3).await;
    raw.publish("no", [4]).await;
    assert_eq!(
        raw.acks_to(4).await.last().unwrap(),
        "failure 4 not entitled"
    );
    sandbox.stop().await;

    let sandbox = start().await;
    let (mut raw, figure) = Raw::log_on(&sandbox, "p").await;
    assert_eq!(figure, 4, "a refusal advances the figure, across a restart");
    raw.publish("orders", 2..=5).await;
    assert_eq!(raw.acks_to(5).await, ["success 5"]);
    assert_eq!(sequences(&sandbox), [1, 2, 3, 5]);
    assert_eq!(
        read_journal(directory.path()).unwrap(),
        sandbox.journal().unwrap()
    );
    sandbox.inject(&Fault::Forget("p".to_owned()));
    sandbox.stop().await;

    let sandbox = start().await;
    assert_eq!(Raw::log_on(&sandbox, "p").await.1, 0);
    sandbox.stop().await;
}

#[tokio::test]
async fn a_subscriber_replays_and_goes_on_live() {
    let sandbox = tcp().start().await.unwrap();
    let (mut publisher, _) = Raw::log_on(&sandbox, "p").await;
    publisher.publish("orders", 1..=2000).await;
    publisher.publish("other", [2001]).await;
    publisher.acks_to(2001).await;
    let (mut subscriber, _) = Raw::log_on(&sandbox, "s").await;
    let acks = AckKinds::from_wire("processed,completed");
    let replay = Command {
        bookmark: Some("0"),
        acks,
        ..Command::subscribe("1", "ord.*", "a")
    };
    subscriber.send(replay).await;
    assert!(
        subscriber
            .next()
            .await
            .unwrap()
            .contains(r#""a":"processed","status":"success""#)
    );
    let mut last = String::new();
    for sequence in 1..=2000 {
        last = subscriber.next().await.unwrap();
        assert!(last.ends_with(&format!("{{\"id\":{sequence}}}")), "{last}");
    }
    assert!(
        subscriber
            .next()
            .await
            .unwrap()
            .contains(r#""a":"completed""#)
    );
    publisher.publish("orders", [2002]).await;
    let live = subscriber.next().await.unwrap();
    assert!(live.ends_with("{\"id\":2002}"), "{live}");

    let (header, _) = Header::parse(last.as_bytes()).unwrap();
    let bookmark = header.bookmark.unwrap();
    let (mut second, _) = Raw::log_on(&sandbox, "t").await;
    second
        .send(Command {
            bookmark: Some(&bookmark),
            ..Command::subscribe("1", "orders", "a")
        })
        .await;
    second.next().await.unwrap();
    assert!(
        second.next().await.unwrap().ends_with("{\"id\":2002}"),
        "goes on behind its bookmark"
    );

    subscriber
        .send(Command {
            acks: AckKinds::PROCESSED,
            ..Command::unsubscribe("2", "all")
        })
        .await;
    assert!(subscriber.next().await.unwrap().contains(r#""cid":"2""#));
    publisher.publish("orders", [2003]).await;
    publisher.acks_to(2003).await;
    subscriber
        .send(Command::flush("3", AckKinds::PROCESSED))
        .await;
    assert!(
        subscriber.next().await.unwrap().contains(r#""cid":"3""#),
        "nothing came between"
    );
    sandbox.stop().await;
}

#[tokio::test]
async fn the_state_of_the_world_is_queried_and_deleted() {
    let sandbox = tcp().sow_topic("orders").start().await.unwrap();
    let (mut raw, _) = Raw::log_on(&sandbox, "p").await;
    raw.publish("orders", 1..=3).await;
    let numbered = |sequence, form| Command {
        sequence: Some(sequence),
        acks: AckKinds::from_wire("persisted,stats"),
        command_id: Some("d"),
        ..form
    };
    raw.send(numbered(
        4,
        Command::sow_delete_by_filter("orders", "/id = 1"),
    ))
    .await;
    let mut seen = String::new();
    while !seen.contains("stats") {
        seen = raw.next().await.unwrap();
    }
    assert!(
        seen.contains(r#""status":"success","cid":"d","records_deleted":1"#),
        "{seen}"
    );
    raw.send(numbered(5, Command::sow_delete_by_keys("orders", "2")))
        .await;
    seen.clear();
    while !seen.contains("stats") {
        seen = raw.next().await.unwrap();
    }
    raw.send(numbered(
        6,
        Command::sow_delete_by_filter("orders", "what?"),
    ))
    .await;
    while !seen.contains("failure") {
        seen = raw.next().await.unwrap();
    }
    assert!(seen.contains(r#""s":6,"reason":"bad filter""#), "{seen}");
    raw.send(Command {
        batch_size: Some(10),
        ..Command::sow("q", "orders", "q")
    })
    .await;
    let mut frames = Vec::new();
    while !frames
        .last()
        .is_some_and(|frame: &String| frame.contains("completed"))
    {
        frames.push(raw.next().await.unwrap());
    }
    frames.retain(|frame| frame.contains("\"q\""));
    assert_eq!(frames.len(), 5, "{frames:?}");
    let (_, records) = Header::parse(frames[2].as_bytes()).unwrap();
    let records: Vec<_> = SowRecords::new(records).map(|r| r.unwrap().body).collect();
    assert_eq!(records, [b"{\"id\":3}"]);
    assert!(frames[4].contains(r#""records_returned":1"#));
    sandbox.stop().await;
}

#[tokio::test]
async fn close_after_n_keeps_what_it_read() {
    let sandbox = tcp().fault(Fault::CloseAfter(5)).start().await.unwrap();
    let mut figure = 0;
    for round in 1..=3 {
        let (mut raw, told) = Raw::log_on(&sandbox, "p").await;
        assert_eq!(told, figure);
        raw.publish("orders", figure + 1..=figure + 8).await;
        while raw.next().await.is_some() {}
        figure = round * 5;
    }
    assert_eq!(sequences(&sandbox), (1..=15).collect::<Vec<_>>());
    sandbox.stop().await;
}

#[tokio::test]
async fn cut_after_n_ends_inside_a_frame() {
    let sandbox = tcp().fault(Fault::CutAfter(2)).start().await.unwrap();
    let (mut raw, _) = Raw::log_on(&sandbox, "p").await;
    raw.publish("orders", 1..=2).await;
    while raw.next().await.is_some() {}
    raw.decoder.finish().unwrap_err();
    sandbox.stop().await;
}

#[tokio::test]
async fn lost_acks_stay_lost_and_the_next_logon_knows() {
    let sandbox = tcp().fault(Fault::LoseAcksAfter(1)).start().await.unwrap();
    let (mut raw, _) = Raw::log_on(&sandbox, "p").await;
    raw.publish("orders", 1..=3).await;
    raw.send(Command::flush("f", AckKinds::from_wire("completed")))
        .await;
    assert!(
        raw.next().await.unwrap().contains(r#""a":"completed""#),
        "only acks are lost"
    );
    let (_, figure) = Raw::log_on(&sandbox, "p").await;
    assert_eq!(figure, 3);
    assert_eq!(raw.next().await, None);
    sandbox.stop().await;
}

/// Whether nothing comes and the connection stays open. The clock is paused for this wait only:
/// it jumps to the next deadline whenever nothing else can run, even while bytes are on their way
/// through a socket, and would cut off a logon under way.
async fn silent_for_an_hour(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    tokio::time::pause();
    let silent = tokio::time::timeout(HOUR, stream.read_u8()).await.is_err();
    tokio::time::resume();
    silent
}

#[tokio::test]
async fn a_stalled_link_says_nothing_until_the_name_comes_back() {
    let sandbox = tcp().fault(Fault::StallAfter(1)).start().await.unwrap();
    let (mut raw, _) = Raw::log_on(&sandbox, "p").await;
    raw.publish("orders", [1]).await;
    assert!(silent_for_an_hour(&mut raw.stream).await, "no ack, no end");
    let (_, figure) = Raw::log_on(&sandbox, "p").await;
    assert_eq!(figure, 1);
    assert_eq!(raw.next().await, None);
    sandbox.stop().await;
}

#[tokio::test]
async fn delayed_acks_come_in_order() {
    let delay = Duration::from_millis(80);
    let sandbox = tcp()
        .fault(Fault::DelayAcks(delay))
        .reject_topic("no")
        .start()
        .await
        .unwrap();
    let (mut raw, _) = Raw::log_on(&sandbox, "p").await;
    let begun = tokio::time::Instant::now();
    raw.publish("orders", [1]).await;
    raw.publish("no", [2]).await;
    assert_eq!(
        raw.acks_to(2).await,
        ["success 1", "failure 2 not entitled"]
    );
    assert!(begun.elapsed() >= delay);
    sandbox.stop().await;
}

#[tokio::test]
async fn users_and_challenges() {
    let sandbox = tcp().require_auth("ann", "pw").start().await.unwrap();
    let mut raw = Raw::connect(&sandbox).await;
    raw.send(Command {
        user_id: Some("ann"),
        password: Some("no"),
        ..Command::logon("0", "p")
    })
    .await;
    assert!(
        raw.next()
            .await
            .unwrap()
            .contains(r#""status":"failure","cid":"0","reason":"auth failure""#)
    );
    assert_eq!(raw.next().await, None, "closed behind the ack");
    let mut raw = Raw::connect(&sandbox).await;
    raw.send(Command {
        user_id: Some("ann"),
        password: Some("pw"),
        ..Command::logon("0", "p")
    })
    .await;
    let ack = raw.next().await.unwrap();
    assert!(ack.contains("success") && !ack.contains("authentication disabled"));
    sandbox.stop().await;

    let sandbox = tcp()
        .require_auth("ann", "pw")
        .challenge()
        .start()
        .await
        .unwrap();
    let mut raw = Raw::connect(&sandbox).await;
    raw.send(Command {
        user_id: Some("ann"),
        ..Command::logon("0", "p")
    })
    .await;
    let retry = raw.next().await.unwrap();
    let (header, _) = Header::parse(retry.as_bytes()).unwrap();
    assert_eq!(header.status.unwrap().as_str(), "retry");
    let answer = format!("{}:pw", header.password.unwrap());
    raw.send(Command {
        user_id: Some("ann"),
        password: Some(&answer),
        ..Command::logon("1", "p")
    })
    .await;
    assert!(raw.next().await.unwrap().contains(r#""status":"success""#));
    sandbox.stop().await;
}

#[tokio::test]
async fn a_name_is_refused_to_another_user() {
    let sandbox = tcp()
        .require_auth("ann", "a")
        .require_auth("bob", "b")
        .start()
        .await
        .unwrap();
    let logon = |user, password| Command {
        user_id: Some(user),
        password: Some(password),
        ..Command::logon("0", "p")
    };
    let mut first = Raw::connect(&sandbox).await;
    first.send(logon("ann", "a")).await;
    first.next().await.unwrap();
    let mut second = Raw::connect(&sandbox).await;
    second.send(logon("bob", "b")).await;
    assert!(
        second
            .next()
            .await
            .unwrap()
            .contains(r#""reason":"name in use""#)
    );
    first.send(Command::flush("f", AckKinds::PROCESSED)).await;
    assert!(
        first.next().await.unwrap().contains(r#""cid":"f""#),
        "the holder is undisturbed"
    );
    sandbox.stop().await;
}

#[tokio::test]
async fn heartbeats_go_both_ways() {
    let sandbox = tcp().start().await.unwrap();
    let (mut raw, _) = Raw::log_on(&sandbox, "p").await;
    raw.send(Command::heartbeat_start("h", "start,150ms")).await;
    assert!(raw.next().await.unwrap().contains(r#""cid":"h""#));
    assert_eq!(raw.next().await.unwrap(), r#"{"c":"heartbeat"}"#);
    raw.send(Command::heartbeat_beat()).await;
    let mut beats = 0;
    while raw.next().await.is_some() {
        beats += 1;
    }
    assert!(
        beats >= 1,
        "then the server ends it, since nothing came for two intervals"
    );
    sandbox.stop().await;
}

#[tokio::test]
async fn bad_input_ends_the_link_and_nothing_else() {
    let sandbox = tcp().max_frame(1000).start().await.unwrap();
    let mut oversized = Vec::new();
    oversized.extend_from_slice(&u32::MAX.to_be_bytes());
    let mut nested = Vec::new();
    append_frame(&mut nested, |out| {
        out.extend_from_slice(b"{\"c\":{\"x\":1}}")
    })
    .unwrap();
    let mut unknown = Vec::new();
    Command::generic("frobnicate").encode(&mut unknown).unwrap();
    for bytes in [
        oversized,
        nested,
        unknown,
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let mut raw = Raw::connect(&sandbox).await;
        raw.write(&bytes).await;
        assert_eq!(raw.next().await, None);
    }
    let mut raw = Raw::connect(&sandbox).await;
    raw.publish("orders", [1]).await;
    assert_eq!(raw.next().await, None, "nothing is taken before a logon");
    assert!(sequences(&sandbox).is_empty());
    Raw::log_on(&sandbox, "p").await;
    sandbox.stop().await;
}

#[tokio::test]
async fn other_implementations_ack_each_message() {
    let sandbox = tcp()
        .dialect(Dialect::PerMessage)
        .reject_topic("no")
        .start()
        .await
        .unwrap();
    let mut raw = Raw::connect(&sandbox).await;
    raw.send(Command::logon("0", "p")).await;
    let ack = raw.next().await.unwrap();
    assert!(!ack.contains("\"s\"") && !ack.contains("\"bm\""), "{ack}");
    for (sequence, topic) in [(1, "orders"), (2, "no")] {
        let id = sequence.to_string();
        let mut out = Vec::new();
        let message = Publish {
            command_id: Some(&id),
            ..Publish::stored(topic, sequence, b"{}")
        };
        message.encode(&mut out).unwrap();
        raw.write(&out).await;
    }
    assert_eq!(
        raw.next().await.unwrap(),
        r#"{"c":"ack","a":"persisted","status":"success","cid":"1","s":1}"#
    );
    assert_eq!(
        raw.next().await.unwrap(),
        r#"{"c":"ack","a":"processed","status":"failure","cid":"2","reason":"not entitled"}"#
    );
    sandbox.stop().await;
}

/// Whatever stood at the path was once removed: connecting to a file is refused, as it is for a
/// dead server's socket.
#[cfg(unix)]
#[tokio::test]
async fn only_a_socket_of_a_dead_server_makes_way() {
    let directory = tempfile::tempdir().unwrap();
    let (file, link, socket) = ("file", "link", "socket");
    let at = |name: &str| directory.path().join(name);
    let listen = async |name: &str| {
        let uri = format!("unix://localhost:0/amps/json?path={}", at(name).display());
        Sandbox::builder().listen(&uri).start().await
    };
    std::fs::write(at(file), "precious").unwrap();
    std::os::unix::fs::symlink(at(file), at(link)).unwrap();
    for name in [file, link] {
        assert!(listen(name).await.is_err());
        assert_eq!(std::fs::read(at(name)).unwrap(), b"precious");
    }
    drop(std::os::unix::net::UnixListener::bind(at(socket)).unwrap());
    let sandbox = listen(socket).await.unwrap();
    // Something else that took its place meanwhile must not be removed by the sandbox.
    std::fs::remove_file(at(socket)).unwrap();
    std::fs::write(at(socket), "precious").unwrap();
    sandbox.stop().await;
    assert_eq!(std::fs::read(at(socket)).unwrap(), b"precious");
}

#[cfg(unix)]
#[tokio::test]
async fn unix_and_memory_are_the_same_server() {
    let directory = tempfile::tempdir().unwrap();
    let uri = format!(
        "unix://localhost:0/amps/json?path={}/s",
        directory.path().display()
    );
    let sandbox = Sandbox::builder().listen(&uri).start().await.unwrap();
    assert!(
        Sandbox::builder().listen(&uri).start().await.is_err(),
        "a live socket is not taken"
    );
    let (mut raw, _) = Raw::log_on(&sandbox, "p").await;
    raw.publish("orders", [1]).await;
    raw.send(Command::flush("f", AckKinds::PERSISTED)).await;
    assert!(raw.next().await.unwrap().contains(r#""s":1"#));
    sandbox.stop().await;

    let (sandbox, connector) = Sandbox::builder().start_in_memory().await.unwrap();
    let (mut raw, figure) = Raw::log_on(&sandbox, "p").await;
    assert_eq!(figure, 0);
    raw.publish("orders", [1]).await;
    raw.send(Command::flush("f", AckKinds::PERSISTED)).await;
    assert!(raw.next().await.unwrap().contains(r#""s":1"#));
    sandbox.stop().await;
    assert!(
        connector.connect(&uri.parse().unwrap()).await.is_err(),
        "nobody listens any more"
    );
    let again = Sandbox::builder()
        .connector(&connector)
        .start()
        .await
        .unwrap();
    Raw::log_on(&again, "p").await;
}

#[tokio::test]
async fn a_slow_subscriber_of_an_unlogged_topic_slows_the_publisher_and_loses_nothing() {
    let sandbox = tcp().unlogged_topic("ticks").start().await.unwrap();
    let (mut subscriber, _) = Raw::log_on(&sandbox, "s").await;
    subscriber.send(Command::subscribe("1", "ticks", "a")).await;
    subscriber.next().await.unwrap();
    let (publisher, _) = Raw::log_on(&sandbox, "p").await;
    let (count, body) = (1500, vec![b'x'; 32 * 1024]);
    let (mut reader, mut writer) = tokio::io::split(publisher.stream);
    let sending = tokio::spawn(async move {
        let mut out = Vec::new();
        for _ in 0..count {
            out.clear();
            Publish::new("ticks", &body).encode(&mut out).unwrap();
            writer.write_all(&out).await.unwrap();
        }
        writer
    });
    assert!(
        silent_for_an_hour(&mut reader).await && !sending.is_finished(),
        "48 MiB do not fit any buffer on the way"
    );
    for _ in 0..count {
        assert!(subscriber.next().await.unwrap().len() > 32 * 1024);
    }
    sending.await.unwrap();
    assert!(
        sandbox.journal().unwrap().is_empty(),
        "nothing of it is logged"
    );
    sandbox.stop().await;
}
