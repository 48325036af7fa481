use amps_client::protocol::{Command, FrameDecoder, Publish, append_frame};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A driver without sockets: the log is in memory, and time stands still unless it is moved.
struct Bench {
    server: Server,
    log: Journal,
    now: Duration,
}

impl Bench {
    fn new(config: Config) -> Self {
        Bench {
            server: Server::new(config, 0),
            log: Journal::memory(),
            now: Duration::ZERO,
        }
    }

    fn receive(&mut self, link: Link, frame: &[u8], out: &mut Output) {
        self.server.receive(link, &frame[4..], self.now, out);
    }

    fn log_on(&mut self, name: &str) -> Link {
        let link = self.server.connect(self.now);
        let mut frame = Vec::new();
        Command::logon("0", name).encode(&mut frame).unwrap();
        self.receive(link, &frame, &mut Output::default());
        link
    }

    fn publish(&mut self, link: Link, sequence: u64, out: &mut Output) {
        let mut frame = Vec::new();
        Publish::stored("orders", sequence, b"{}")
            .encode(&mut frame)
            .unwrap();
        self.receive(link, &frame, out);
    }

    fn persist(&mut self, out: &mut Output) {
        self.log.append(&std::mem::take(&mut out.journal)).unwrap();
        self.server.persisted(self.log.end(), self.now, out);
    }
}

fn frames(out: &Output, link: Link) -> Vec<String> {
    let mut decoder = FrameDecoder::new();
    out.sends()
        .filter(|(to, _)| *to == link)
        .for_each(|(_, bytes)| decoder.push(bytes));
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame().unwrap() {
        frames.push(String::from_utf8(frame.to_vec()).unwrap());
    }
    decoder.finish().unwrap();
    frames
}

#[test]
fn nothing_is_acked_that_the_log_does_not_hold() {
    let mut bench = Bench::new(Config::new());
    let link = bench.log_on("p");
    let mut out = Output::default();
    bench.publish(link, 1, &mut out);
    bench.now += SECOND * 9;
    bench.server.tick(bench.now, &mut out);
    assert!(frames(&out, link).is_empty());
    assert_eq!(
        (bench.server.settled("p"), bench.server.deadline()),
        (0, None)
    );
    bench.persist(&mut out);
    assert_eq!(bench.server.deadline(), Some(bench.now + SECOND));
    bench.now += SECOND;
    bench.server.tick(bench.now, &mut out);
    assert_eq!(
        frames(&out, link),
        [r#"{"c":"ack","a":"persisted","status":"success","s":1}"#]
    );
}

#[test]
fn duplicates_leave_no_trace_in_the_log() {
    let mut bench = Bench::new(Config::new());
    let link = bench.log_on("p");
    let mut out = Output::default();
    bench.publish(link, 5, &mut out);
    let once = out.journal.clone();
    bench.publish(link, 5, &mut out);
    bench.publish(link, 4, &mut out);
    assert_eq!(out.journal, once);
}

#[test]
fn a_server_recovers_from_its_log_alone() {
    let mut bench = Bench::new(
        Config::new().reject_when(|message| (message.sequence == Some(3)).then(|| "no".to_owned())),
    );
    let link = bench.log_on("p");
    let mut out = Output::default();
    (1..=3).for_each(|sequence| bench.publish(link, sequence, &mut out));
    bench.persist(&mut out);
    let mut again = Server::new(Config::new(), 0);
    let end = bench.log.read(0, usize::MAX, |entry, position| {
        again.recover(entry, position);
        true
    });
    assert_eq!(end.unwrap(), bench.log.end());
    assert_eq!(again.settled("p"), 3);
}

#[test]
fn a_fault_ends_a_link_inside_a_batch() {
    let mut bench = Bench::new(Config::new());
    let link = bench.log_on("p");
    let mut out = Output::default();
    bench.server.inject(&Fault::CloseAfter(2), &mut out);
    (1..=5).for_each(|sequence| bench.publish(link, sequence, &mut out));
    assert_eq!(out.closes, [(link, Closing::Abrupt)]);
    bench.persist(&mut out);
    assert_eq!(bench.server.settled("p"), 2);
    assert!(frames(&out, link).is_empty());
}

#[test]
fn a_silent_client_is_dropped_after_two_intervals_and_beats_come_only_when_idle() {
    let mut bench = Bench::new(Config::new());
    let link = bench.log_on("p");
    let mut frame = Vec::new();
    Command::heartbeat_start("h", "start,5")
        .encode(&mut frame)
        .unwrap();
    bench.receive(link, &frame, &mut Output::default());
    assert_eq!(bench.server.deadline(), Some(SECOND * 5));
    bench.now = SECOND * 5;
    let mut out = Output::default();
    bench.server.tick(bench.now, &mut out);
    assert_eq!(frames(&out, link), [r#"{"c":"heartbeat"}"#]);
    assert!(out.closes.is_empty());
    bench.now = SECOND * 10;
    bench.server.tick(bench.now, &mut out);
    assert_eq!(out.closes, [(link, Closing::Graceful("heartbeat"))]);
    assert_eq!(bench.server.deadline(), None);
}

proptest::proptest! {
    #[test]
    fn no_frame_can_hurt_the_server(frames: Vec<Vec<u8>>, logged_on: bool) {
        let mut bench = Bench::new(Config::new().sow_topic("orders"));
        let link = if logged_on { bench.log_on("p") } else { bench.server.connect(SECOND) };
        let mut out = Output::default();
        for frame in &frames {
            bench.server.receive(link, frame, SECOND, &mut out);
        }
        bench.persist(&mut out);
        proptest::prop_assert!(out.closes.len() <= 1);
    }
}

fn logon_as(bench: &mut Bench, password: &str) -> Vec<String> {
    let link = bench.server.connect(bench.now);
    let mut frame = Vec::new();
    let logon = Command {
        user_id: Some("ann"),
        password: Some(password),
        ..Command::logon("0", "p")
    };
    logon.encode(&mut frame).unwrap();
    let mut out = Output::default();
    bench.receive(link, &frame, &mut out);
    let said = frames(&out, link);
    bench.server.disconnect(link);
    said
}

/// A connection that said nothing once stayed for ever.
#[test]
fn who_does_not_log_on_in_time_is_closed() {
    let mut bench = Bench::new(Config::new().user("ann", "pw").challenge());
    let silent = bench.server.connect(bench.now);
    let challenged = bench.log_on("p");
    assert_eq!(bench.server.deadline(), Some(SECOND * 10));
    // An answer to a challenge that never comes extends nothing.
    bench.now = SECOND * 9;
    let (mut frame, mut out) = (Vec::new(), Output::default());
    Command::logon("1", "p").encode(&mut frame).unwrap();
    bench.receive(challenged, &frame, &mut out);
    bench.server.tick(bench.now, &mut out);
    assert!(out.closes.is_empty());
    bench.now = SECOND * 10;
    bench.server.tick(bench.now, &mut out);
    let late = Closing::Graceful("no logon in time");
    assert_eq!(out.closes, [(silent, late), (challenged, late)]);
    assert_eq!(bench.server.deadline(), None);
}

/// Each link could once guess one or three times, and nothing counted the links.
#[test]
fn passwords_are_not_guessed_as_fast_as_links_are_opened() {
    let mut bench = Bench::new(Config::new().user("ann", "pw"));
    let is_in = |said: Vec<String>| said[0].contains(r#""status":"success""#);
    for _ in 0..9 {
        assert!(!is_in(logon_as(&mut bench, "no")));
    }
    assert!(
        is_in(logon_as(&mut bench, "pw")),
        "nine wrong ones are typing errors"
    );
    for _ in 0..10 {
        assert!(!is_in(logon_as(&mut bench, "no")));
    }
    let right = logon_as(&mut bench, "pw");
    assert!(!is_in(right.clone()), "{right:?}");
    assert_eq!(right, logon_as(&mut bench, "no"), "and nobody can tell");
    bench.now += SECOND * 10;
    assert!(is_in(logon_as(&mut bench, "pw")), "never for good");
}

#[test]
fn a_link_has_so_many_subscriptions_and_no_more() {
    let mut bench = Bench::new(Config::new().max_subscriptions(2));
    let link = bench.log_on("p");
    let mut subscribe = |sub_id: &str, options: Option<&str>| {
        let (mut frame, mut out) = (Vec::new(), Output::default());
        let command = Command {
            options,
            ..Command::subscribe("9", "orders", sub_id)
        };
        command.encode(&mut frame).unwrap();
        bench.receive(link, &frame, &mut out);
        frames(&out, link).concat()
    };
    assert!(subscribe("a", None).contains("success"));
    assert!(subscribe("b", None).contains("success"));
    assert!(subscribe("c", None).contains("too many subscriptions"));
    assert!(subscribe("b", Some("replace")).contains("success"));
}

/// They were once ignored: a client was answered as if it had not asked.
#[test]
fn what_it_does_not_do_it_refuses_by_name() {
    let mut bench = Bench::new(Config::new().sow_topic("orders"));
    let link = bench.log_on("p");
    let mut ask = |command: Command<'_>| {
        let (mut frame, mut out) = (Vec::new(), Output::default());
        command.encode(&mut frame).unwrap();
        bench.receive(link, &frame, &mut out);
        assert!(out.closes.is_empty());
        let said = frames(&out, link).concat();
        (said, out.told)
    };
    let subscribe = Command::subscribe("9", "orders", "a");
    let sow = Command::sow("9", "orders", "q");
    for (command, what) in [
        (
            Command {
                order_by: Some("/id"),
                ..subscribe
            },
            "orderby",
        ),
        (
            Command {
                top_n: Some(3),
                ..subscribe
            },
            "top_n of a replay",
        ),
        (
            Command {
                options: Some("replace,oof"),
                ..subscribe
            },
            "oof",
        ),
        (
            Command {
                options: Some("timestamp"),
                ..subscribe
            },
            "timestamp",
        ),
        (
            Command {
                name: "delta_subscribe",
                ..subscribe
            },
            "delta subscriptions",
        ),
        (
            Command {
                name: "sow_and_delta_subscribe",
                ..subscribe
            },
            "delta subscriptions",
        ),
        (
            Command {
                name: "sow_and_subscribe",
                options: Some("oof"),
                ..subscribe
            },
            "oof",
        ),
        (
            Command {
                order_by: Some("/id"),
                ..sow
            },
            "orderby",
        ),
        (
            Command {
                bookmark: Some("0"),
                ..sow
            },
            "a query of the past",
        ),
    ] {
        let (said, told) = ask(command);
        assert!(said.contains(r#""status":"failure""#), "{what}: {said}");
        assert!(
            said.contains(&format!("not supported by the sandbox: {what}")),
            "{said}"
        );
        assert!(told[0].to_string().contains(what), "{told:?}");
        assert!(!bench_subscribes(&said), "{said}");
    }
    // What it can do, it still does.
    assert!(
        ask(Command {
            top_n: Some(3),
            ..sow
        })
        .0
        .contains("success")
    );
    assert!(ask(subscribe).0.contains("success"));
}

fn bench_subscribes(said: &str) -> bool {
    said.contains("group_begin") || said.contains(r#""status":"success""#)
}

#[test]
fn messages_that_ask_for_more_are_refused_as_messages() {
    let mut bench = Bench::new(Config::new().ack_interval(Duration::ZERO));
    let link = bench.log_on("p");
    let mut out = Output::default();
    let (mut lived, mut queued) = (Vec::new(), Vec::new());
    let short = Publish {
        expiration: Some(60),
        ..Publish::stored("orders", 1, b"{}")
    };
    short.encode(&mut lived).unwrap();
    append_frame(&mut queued, |out| {
        out.extend_from_slice(br#"{"c":"sow_delete","t":"q","s":2,"a":"persisted","bm":"1|1|"}"#);
    })
    .unwrap();
    for frame in [&lived, &queued] {
        bench.receive(link, frame, &mut out);
    }
    bench.publish(link, 3, &mut out);
    bench.persist(&mut out);
    let said = frames(&out, link);
    assert!(
        said[0].contains(r#""s":1"#) && said[0].contains("sandbox: expiration"),
        "{said:?}"
    );
    assert!(
        said[1].contains(r#""s":2"#) && said[1].contains("queue messages"),
        "{said:?}"
    );
    assert!(
        said[2].contains("success") && said[2].contains(r#""s":3"#),
        "{said:?}"
    );
    assert_eq!(out.told.len(), 2);
}

#[test]
fn logons_and_refusals_are_told() {
    let mut bench = Bench::new(Config::new().reject_topic("orders"));
    let link = bench.server.connect(bench.now);
    let (mut frame, mut out) = (Vec::new(), Output::default());
    Command::logon("0", "p").encode(&mut frame).unwrap();
    bench.receive(link, &frame, &mut out);
    bench.publish(link, 7, &mut out);
    let odd = bench.server.connect(bench.now);
    let mut frame = Vec::new();
    let logon = Command {
        options: Some("pretty"),
        ..Command::logon("0", "q")
    };
    logon.encode(&mut frame).unwrap();
    bench.receive(odd, &frame, &mut out);
    let told: Vec<String> = out.told.iter().map(Told::to_string).collect();
    assert_eq!(
        told,
        [
            "\"p\" logged on, settled up to 0",
            "message 7 of \"p\" to \"orders\" was refused: not entitled",
            "the logon of \"q\" was refused: not supported by the sandbox: pretty",
        ]
    );
}
