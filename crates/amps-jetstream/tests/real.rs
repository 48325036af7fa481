//! Stored messages at real servers of NATS.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

#[path = "servers/rig.rs"]
mod rig;
mod servers;

use amps_delivery::LinkEnd;
use amps_delivery::delivery::Note;
use amps_jetstream::ids::Ids;
use amps_jetstream::{Config, Create, Credentials, Mode};
use amps_store::{Options, PublishStore, Store};
use rig::{CLIENT, Rig};
use servers::{Server, programs};

fn store() -> Store {
    Store::memory(Options::new().client_name(CLIENT)).unwrap()
}

fn config(mode: Mode) -> Config {
    let mut config = Config::new("t");
    config.mode = mode;
    config
}

fn unusable(part: &'static str) -> impl Fn(&LinkEnd) -> bool {
    move |end| matches!(end, LinkEnd::Unusable(why) if why.contains(part))
}

/// The bodies that a stream holds.
fn bodies(server: &Server, stream: &str) -> Vec<String> {
    let contents = server.admin().contents(stream).into_iter();
    contents
        .map(|(_, body)| String::from_utf8(body).unwrap())
        .collect()
}

fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn what_is_published_is_stored_once_and_in_order_in_both_modes() {
    for program in programs() {
        for mode in [Mode::Chained, Mode::Unchained] {
            let server = Server::start(&program, "");
            server.admin().stream("S", "");
            let mut rig = Rig::new(store(), config(mode), &[server.port]);
            rig.publish(1..=3_000);
            rig.drain().await;
            assert_eq!(bodies(&server, "S"), numbers(1..=3_000), "{mode:?}");
            assert_eq!(rig.engine.totals().persisted, 3_000);
            assert!(rig.told.ends.is_empty(), "{:?}", rig.told.ends);
        }
    }
}

/// A link is lost, a server is killed: what was under way goes out again, and is stored once.
#[tokio::test]
async fn a_server_that_is_killed_loses_and_doubles_nothing() {
    for program in programs() {
        for mode in [Mode::Chained, Mode::Unchained] {
            let mut server = Server::start(&program, "");
            server.admin().stream("S", "");
            let mut rig = Rig::new(store(), config(mode), &[server.port]);
            for round in 0..5 {
                rig.publish(round * 2_000 + 1..=(round + 1) * 2_000);
                let some = move |rig: &Rig| rig.store.bounds().floor > round * 2_000 + 300;
                rig.until("some are settled", some).await;
                server.restart();
            }
            rig.drain().await;
            let mut stored = bodies(&server, "S");
            if mode == Mode::Unchained {
                stored.sort_by_key(|body| body.parse::<u64>().unwrap());
            }
            assert_eq!(stored, numbers(1..=10_000), "{mode:?}");
            assert!(rig.told.ups >= 5, "{:?}", rig.told);
        }
    }
}

/// A publisher dies with messages under way; the next one finds out which of them are stored.
#[tokio::test]
async fn a_publisher_that_is_killed_goes_on_behind_what_is_stored() {
    for program in programs() {
        for mode in [Mode::Chained, Mode::Unchained] {
            let server = Server::start(&program, "");
            server.admin().stream("S", "");
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("store");
            let mut found = 0;
            for round in 0..6 {
                let options = Options::new().client_name(CLIENT);
                let store = Store::open(&path, options).unwrap();
                let mut rig = Rig::new(store, config(mode), &[server.port]);
                rig.publish(round * 1_000 + 1..=(round + 1) * 1_000);
                let sent = |rig: &Rig| rig.engine.totals().sent > 300;
                rig.until("some are under way", sent).await;
                let totals = rig.write_and_die().await;
                // The store does not hear of what the server does with it.
                server.admin().at_rest("S");
                found += totals.found + totals.persisted_at_logon;
                assert_eq!(totals.duplicates, 0, "{mode:?}");
            }
            let store = Store::open(&path, Options::new().client_name(CLIENT)).unwrap();
            let mut rig = Rig::new(store, config(mode), &[server.port]);
            rig.drain().await;
            let totals = rig.engine.totals();
            found += totals.found + totals.persisted_at_logon;
            assert!(found > 0, "{mode:?}: nothing had to be looked for");
            if mode == Mode::Chained {
                assert_eq!(totals.possible_duplicates, 0);
            }
            assert_eq!(bodies(&server, "S"), numbers(1..=6_000), "{mode:?}");
        }
    }
}

/// The server forgot every id: only what it holds says what is stored.
#[tokio::test]
async fn nothing_is_doubled_when_the_server_has_forgotten_the_ids() {
    for program in programs() {
        for mode in [Mode::Chained, Mode::Unchained] {
            let mut server = Server::start(&program, "");
            // A tenth of a second.
            server
                .admin()
                .stream("S", ",\"duplicate_window\":100000000");
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("store");
            for round in 0..3 {
                let store = Store::open(&path, Options::new().client_name(CLIENT)).unwrap();
                let mut rig = Rig::new(store, config(mode), &[server.port]);
                rig.publish(round * 1_000 + 1..=(round + 1) * 1_000);
                let sent = |rig: &Rig| rig.engine.totals().sent > 300;
                rig.until("some are under way", sent).await;
                rig.write_and_die().await;
                server.admin().at_rest("S");
                server.restart();
            }
            let store = Store::open(&path, Options::new().client_name(CLIENT)).unwrap();
            let mut rig = Rig::new(store, config(mode), &[server.port]);
            rig.drain().await;
            assert_eq!(bodies(&server, "S"), numbers(1..=3_000), "{mode:?}");
        }
    }
}

#[tokio::test]
async fn a_message_that_the_stream_refuses_is_told_and_the_rest_goes_on_in_order() {
    for program in programs() {
        for mode in [Mode::Chained, Mode::Unchained] {
            let server = Server::start(&program, "");
            server.admin().stream("S", "");
            let mut rig = Rig::new(store(), config(mode), &[server.port]);
            rig.publish(1..=2);
            rig.drain().await;
            // Behind the back of the link, which knows no limit.
            let smaller =
                "{\"name\":\"S\",\"subjects\":[\"t\"],\"storage\":\"file\",\"max_msg_size\":300}";
            server.admin().api("STREAM.UPDATE.S", smaller);
            rig.publish(3..=100);
            rig.publish_body(&[b'x'; 400]);
            rig.publish(102..=200);
            rig.drain().await;
            let mut expected = numbers(1..=100);
            expected.extend(numbers(102..=200));
            let mut stored = bodies(&server, "S");
            if mode == Mode::Unchained {
                stored.sort_by_key(|body| body.parse::<u64>().unwrap());
            }
            assert_eq!(stored, expected, "{mode:?}");
            let reason = "message size exceeds maximum allowed".to_owned();
            assert_eq!(rig.told.refused, [(101, reason)]);
        }
    }
}

#[tokio::test]
async fn a_message_that_is_too_large_is_not_sent_and_waits_for_its_turn() {
    for program in programs() {
        let server = Server::start(&program, "max_payload: 1000");
        server.admin().stream("S", "");
        let mut rig = Rig::new(store(), config(Mode::Chained), &[server.port]);
        rig.publish(1..=10);
        // With its headers it is larger than the server takes, which would close the connection.
        rig.publish_body(&[b'x'; 1_000]);
        rig.publish(12..=20);
        rig.drain().await;
        assert_eq!(rig.told.refused.len(), 1, "{:?}", rig.told);
        let (sequence, reason) = &rig.told.refused[0];
        assert_eq!(*sequence, 11);
        assert!(
            reason.starts_with("not sent: ") && reason.contains("takes 1000"),
            "{reason}"
        );
        assert!(rig.told.ends.is_empty(), "{:?}", rig.told.ends);
        assert_eq!(bodies(&server, "S").len(), 19);
    }
}

/// The largest message of all goes through, with one byte more it does not go out.
#[tokio::test]
async fn the_limit_counts_headers_and_body() {
    for program in programs() {
        let server = Server::start(&program, "max_payload: 1000");
        server.admin().stream("S", "");
        for mode in [Mode::Chained, Mode::Unchained] {
            let mut rig = Rig::new(store(), config(mode), &[server.port]);
            for size in 800..=1_000 {
                rig.publish_body(&vec![b'x'; size]);
            }
            rig.drain().await;
            let (persisted, refused) = (rig.engine.totals().persisted, rig.told.refused.len());
            assert_eq!(persisted + refused as u64, 201);
            assert!(persisted > 0 && refused > 0);
            assert!(rig.told.ends.is_empty(), "{:?}", rig.told.ends);
            server.admin().api("STREAM.PURGE.S", "");
        }
    }
}

#[tokio::test]
async fn a_full_stream_is_waited_for_and_nothing_overtakes() {
    for program in programs() {
        for mode in [Mode::Chained, Mode::Unchained] {
            let server = Server::start(&program, "");
            server
                .admin()
                .stream("S", ",\"max_msgs\":100,\"discard\":\"new\"");
            let mut rig = Rig::new(store(), config(mode), &[server.port]);
            rig.publish(1..=250);
            let full = |rig: &Rig| rig.has_note(|note| matches!(note, Note::TurnedAway { .. }));
            rig.until("it is full", full).await;
            let stopped = |rig: &Rig| rig.store.bounds().unsettled == 150;
            rig.until("the rest waits", stopped).await;
            assert_eq!(bodies(&server, "S"), numbers(1..=100), "{mode:?}");
            for next in [101, 201] {
                server.admin().api("STREAM.PURGE.S", "");
                let left = 250_u64.saturating_sub(next + 99);
                let more = move |rig: &Rig| rig.store.bounds().unsettled == left;
                rig.until("more is stored", more).await;
                assert_eq!(bodies(&server, "S"), numbers(next..=250.min(next + 99)));
            }
            assert!(rig.told.ends.is_empty(), "{:?}", rig.told.ends);
            assert!(rig.told.refused.is_empty());
        }
    }
}

#[tokio::test]
async fn without_a_stream_it_is_told_and_messages_wait() {
    for program in programs() {
        let server = Server::start(&program, "");
        let mut rig = Rig::new(store(), config(Mode::Auto), &[server.port]);
        rig.publish(1..=3);
        let told = |rig: &Rig| rig.ended(unusable("no stream takes the subject t of topic t"));
        rig.until("there is none", told).await;
        assert_eq!(rig.store.bounds().unsettled, 3);
        server.admin().stream("S", "");
        rig.drain().await;
        assert_eq!(bodies(&server, "S"), numbers(1..=3));
    }
}

#[tokio::test]
async fn a_stream_is_made_for_this_publisher_alone_and_chained() {
    for program in programs() {
        let server = Server::start(&program, "");
        let mut config = config(Mode::Auto);
        config.create = Some(Create {
            name: "ORDERS".to_owned(),
            replicas: 1,
        });
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let open = || Store::open(&path, Options::new().client_name(CLIENT)).unwrap();
        let mut rig = Rig::new(open(), config.clone(), &[server.port]);
        rig.publish(1..=3);
        rig.drain().await;
        let made = server.admin().info("ORDERS").config;
        let ours = Ids::new(CLIENT, rig.store.identity().unwrap());
        assert_eq!(made.description, format!("for {} alone", ours.prefix()));
        assert_eq!(made.storage, "file");
        let order = rig.engine.capabilities().map(|c| c.order);
        assert_eq!(order, Some(amps_delivery::Order::Kept));
        // It is there the next time.
        let (store, _) = rig.close().await;
        drop(store);
        let mut again = Rig::new(open(), config, &[server.port]);
        let up = |rig: &Rig| rig.engine.is_live();
        again.until("it is up", up).await;
        let order = again.engine.capabilities().map(|c| c.order);
        assert_eq!(order, Some(amps_delivery::Order::Kept));
    }
}

#[tokio::test]
async fn streams_that_cannot_say_what_they_store_are_left() {
    for program in programs() {
        for (more, why) in [
            (",\"no_ack\":true", "never says what it stored"),
            (",\"sealed\":true", "is sealed"),
        ] {
            let server = Server::start(&program, "");
            let mut admin = server.admin();
            admin.stream("S", if why.contains("sealed") { "" } else { more });
            if why.contains("sealed") {
                let sealed =
                    format!("{{\"name\":\"S\",\"subjects\":[\"t\"],\"storage\":\"file\"{more}}}");
                admin.api("STREAM.UPDATE.S", &sealed);
            }
            let mut rig = Rig::new(store(), config(Mode::Auto), &[server.port]);
            rig.publish(1..=3);
            rig.until("it is left", |rig| rig.ended(unusable(why)))
                .await;
            assert_eq!(rig.store.bounds().unsettled, 3);
        }
        let server = Server::start(&program, "");
        let mut admin = server.admin();
        admin.stream("S", "");
        admin.api(
            "STREAM.CREATE.M",
            "{\"name\":\"M\",\"mirror\":{\"name\":\"S\"}}",
        );
        let mut config = config(Mode::Auto);
        config.stream = Some("M".to_owned());
        let mut rig = Rig::new(store(), config, &[server.port]);
        rig.publish(1..=3);
        rig.until("it is left", |rig| rig.ended(unusable("is a mirror")))
            .await;
    }
}

/// Somebody else's message between ours: a chain cannot say any more what is stored.
#[tokio::test]
async fn a_stream_with_another_publisher_is_not_chained() {
    for program in programs() {
        let server = Server::start(&program, "");
        let mut auto = config(Mode::Auto);
        auto.create = Some(Create {
            name: "S".to_owned(),
            replicas: 1,
        });
        let mut rig = Rig::new(store(), auto, &[server.port]);
        rig.publish(1..=10);
        rig.drain().await;
        assert!(!server.admin().request("t", b"foreign").is_empty());
        rig.publish(11..=20);
        let end = unusable("somebody else publishes to stream S");
        rig.until("it is noticed", |rig| rig.ended(&end)).await;
        rig.drain().await;
        let order = rig.engine.capabilities().map(|c| c.order);
        assert_eq!(order, Some(amps_delivery::Order::MayOvertake));
        let mut stored = bodies(&server, "S");
        stored.retain(|body| body != "foreign");
        stored.sort_by_key(|body| body.parse::<u64>().unwrap());
        assert_eq!(stored, numbers(1..=20));

        // Who asks for a chain gets one, or nothing.
        let mut rig = Rig::new(store(), config(Mode::Chained), &[server.port]);
        assert!(!server.admin().request("t", b"foreign").is_empty());
        rig.publish(1..=3);
        rig.until("it is left", |rig| rig.ended(&end)).await;
        assert_eq!(rig.store.bounds().unsettled, 3);
    }
}

/// A stream that is deleted and made again has nothing of what was stored: that is told.
#[tokio::test]
async fn a_stream_that_is_made_anew_is_a_gap() {
    for program in programs() {
        let server = Server::start(&program, "");
        server.admin().stream("S", "");
        let mut rig = Rig::new(store(), config(Mode::Chained), &[server.port]);
        rig.publish(1..=10);
        rig.drain().await;
        server.admin().api("STREAM.DELETE.S", "");
        server.admin().stream("S", "");
        rig.publish(11..=20);
        rig.drain().await;
        assert!(
            rig.ended(unusable("was deleted and made anew")),
            "{:?}",
            rig.told
        );
        let gap = |note: &Note| {
            matches!(
                note,
                Note::PublishGap {
                    server: 0,
                    settled: 10,
                    unknown_publisher: true
                }
            )
        };
        assert!(rig.has_note(gap), "{:?}", rig.told.notes);
        assert_eq!(bodies(&server, "S"), numbers(11..=20));
    }
}

#[tokio::test]
async fn a_subject_that_may_not_be_published_to_stops_the_line() {
    for program in programs() {
        let users = |subjects: &str| {
            format!(
                "authorization {{ users: [\n\
                 {{ user: admin, password: secret }}\n\
                 {{ user: me, password: secret, permissions: {{ publish: [{subjects}] }} }}\n] }}"
            )
        };
        let mut server = Server::start(&program, &users("\"$JS.API.>\""));
        let mut admin =
            servers::Admin::open(server.port, "\"user\":\"admin\",\"pass\":\"secret\",");
        admin.stream("S", "");
        let mut config = config(Mode::Chained);
        config.credentials = Credentials::User {
            user: "me".to_owned(),
            password: "secret".to_owned(),
        };
        let mut rig = Rig::new(store(), config, &[server.port]);
        rig.publish(1..=3);
        let stopped = |rig: &Rig| rig.has_note(|note| matches!(note, Note::LineStopped { .. }));
        rig.until("the line stops", stopped).await;
        assert_eq!(rig.store.bounds().unsettled, 3);
        assert!(rig.told.refused.is_empty(), "nobody refused a message");

        let file = server.directory.path().join("server.conf");
        let before = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, before.replace("\"$JS.API.>\"", "\">\"")).unwrap();
        server.restart();
        rig.drain().await;
    }
}

#[tokio::test]
async fn who_logs_on_is_asked_and_a_wrong_one_is_refused() {
    let pair = nkeys::KeyPair::new_user();
    let key = Credentials::from_seed(&pair.seed().unwrap()).unwrap();
    let user = |password: &str| Credentials::User {
        user: "u".to_owned(),
        password: password.to_owned(),
    };
    let token = |token: &str| Credentials::Token(token.to_owned());
    let stranger = nkeys::KeyPair::new_user().seed().unwrap();
    let stranger = Credentials::from_seed(&stranger).unwrap();
    let nkey = format!(
        "authorization {{ users: [ {{ nkey: {} }} ] }}",
        pair.public_key()
    );
    for program in programs() {
        for (configuration, right, wrong) in [
            (
                "authorization { user: u, password: p }",
                user("p"),
                user("q"),
            ),
            ("authorization { token: t0 }", token("t0"), token("t1")),
            (nkey.as_str(), key.clone(), stranger.clone()),
        ] {
            let server = Server::start(&program, configuration);
            let mut config = config(Mode::Auto);
            config.create = Some(Create {
                name: "S".to_owned(),
                replicas: 1,
            });
            for wrong in [wrong, Credentials::None] {
                config.credentials = wrong;
                let mut rig = Rig::new(store(), config.clone(), &[server.port]);
                let refused = |rig: &Rig| !rig.told.ends.is_empty();
                rig.until("it is refused", refused).await;
                let end = &rig.told.ends[0];
                let expected = matches!(end, LinkEnd::LogonRefused(_))
                    || matches!(end, LinkEnd::Authenticator(_));
                assert!(expected, "{end:?}");
            }
            config.credentials = right;
            let mut rig = Rig::new(store(), config, &[server.port]);
            rig.publish(1..=3);
            rig.drain().await;
        }
    }
}

/// A server that is about to stop says so, and is left.
#[tokio::test]
async fn a_server_that_goes_lame_is_left_for_the_next() {
    for program in programs() {
        let lame = "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"10s\"";
        let first = Server::start(&program, lame);
        let second = Server::start(&program, "");
        for server in [&first, &second] {
            server.admin().stream("S", "");
        }
        let config = config(Mode::Unchained);
        let mut rig = Rig::new(store(), config, &[first.port, second.port]);
        rig.publish(1..=10);
        rig.drain().await;
        first.signal("USR2");
        rig.until("it is left", |rig| rig.told.ends.contains(&LinkEnd::Closed))
            .await;
        rig.publish(11..=20);
        rig.drain().await;
        assert_eq!(bodies(&second, "S"), numbers(11..=20));
    }
}

/// Who subscribes to the subject sees where the answer goes, and answers sooner.
#[tokio::test]
async fn an_answer_of_somebody_else_is_none() {
    for program in programs() {
        for lie in [&b"+ACK"[..], b"{\"stream\":\"T\",\"seq\":1}"] {
            let server = Server::start(&program, "");
            server
                .admin()
                .stream("S", ",\"max_msgs\":10,\"discard\":\"new\"");
            let liar = servers::Liar::start(server.port, "t", lie);
            let mut rig = Rig::new(store(), config(Mode::Chained), &[server.port]);
            rig.publish(1..=20);
            let lied = |rig: &Rig| {
                let full = |note: &Note| matches!(note, Note::TurnedAway { .. });
                liar.answered() >= 20 && rig.has_note(full)
            };
            rig.until("every message is answered twice", lied).await;
            assert_eq!(rig.store.bounds().unsettled, 10);
            liar.stop();
        }
    }
}
