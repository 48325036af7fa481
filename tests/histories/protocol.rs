//! Histories of publishers and servers.

use std::time::Duration;

use amps_client::Via;
use amps_client::delivery::Note;
use amps_sandbox::Config;
use amps_store::testkit::Cut;
use amps_store::{Level, PublishStore};

use crate::sim::ledger::{Fate, refusal};
use crate::sim::publisher::Settings;
use crate::sim::server::ack;
use crate::sim::world::{World, config};

const NAME: &str = "pub-1";
const A_WHILE: Duration = Duration::from_secs(30);
/// Long enough for a message to reach the server, too short for a conflated ack.
const A_MOMENT: Duration = Duration::from_millis(20);

/// One publisher, one server that acks every 100 ms.
fn world() -> World {
    world_with(Settings::new(NAME), config())
}

/// One publisher, and a server that says nothing by itself: the test speaks for it.
fn silent() -> World {
    let server = config().ack_interval(Duration::from_secs(1 << 30));
    let mut settings = Settings::new(NAME);
    settings.heartbeat = None;
    world_with(settings, server)
}

fn world_with(settings: Settings, server: Config) -> World {
    let mut world = World::new(7, vec![server]);
    world.add(settings);
    world.start(0);
    world
}

impl World {
    /// Publishes messages with these bodies.
    fn say_bodies(&mut self, bodies: &[&str]) -> Vec<u64> {
        let publish = |body: &&str| {
            let body = body.as_bytes().to_vec();
            self.with(0, |p, around| {
                p.publish_body(around, body, &[]).expect("room")
            })
        };
        bodies.iter().map(publish).collect()
    }

    fn fate(&self, sequence: u64) -> &Fate {
        &self.publishers[0].book.messages[&sequence].fate
    }

    fn fates(&self, sequences: &[u64], fate: &Fate) -> bool {
        sequences.iter().all(|s| self.fate(*s) == fate)
    }

    fn totals(&self) -> amps_client::delivery::Totals {
        self.publishers[0].process.as_ref().unwrap().engine.totals()
    }

    fn unsettled(&self) -> u64 {
        self.publishers[0]
            .process
            .as_ref()
            .unwrap()
            .store
            .bounds()
            .unsettled
    }

    fn arrived(&self, count: usize) -> bool {
        self.servers[0].bodies(NAME).len() >= count
    }

    fn notes(&self, which: impl Fn(&Note) -> bool) -> usize {
        self.publishers[0].notes.iter().filter(|n| which(n)).count()
    }

    fn server_has_each_once(&self) {
        let bodies = self.servers[0].bodies(NAME);
        let expected: Vec<&[u8]> = self.publishers[0]
            .book
            .messages
            .values()
            .filter(|m| matches!(m.fate, Fate::Persisted(_)) && refusal(&m.body).is_none())
            .map(|m| m.body.as_slice())
            .collect();
        assert!(
            bodies == expected,
            "the server has each message once and in order"
        );
    }

    /// Runs until the publisher has read everything that is under way.
    fn a_moment(&mut self) {
        self.run(A_MOMENT);
    }
}

/// Publishes fifty messages in another life of this name, so that the server knows it.
fn another_life(world: &mut World, count: u64) {
    let other = world.add(Settings::new(NAME));
    world.start(other);
    world.publish(other, count);
    world.drain();
    world.with(other, |p, around| p.kill(around));
    world.run(Duration::from_secs(1));
}

#[test]
fn h01_what_was_acked_is_not_sent_again_after_a_kill() {
    let mut world = world();
    let sent = world.say_bodies(&["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]);
    world.drain();
    assert!(world.fates(&sent, &Fate::Persisted(Via::Ack)));
    world.restart(0);
    world.run(A_WHILE);
    assert_eq!(world.totals().sent, 0);
    assert_eq!(world.unsettled(), 0);
    world.server_has_each_once();
}

#[test]
fn h02_persisted_but_never_acked_is_settled_at_the_next_logon() {
    let mut world = silent();
    let bodies: Vec<String> = (1..=100).map(|n| format!("m{n}")).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    let sent = world.say_bodies(&bodies);
    let end = world.now + A_WHILE;
    assert!(world.run_until(end, |w| w.arrived(100)));
    assert_eq!(world.unsettled(), 100, "no ack was sent");
    world.restart(0);
    let grant = world.publishers[0].book.grant;
    world.a_moment();
    assert!(world.fates(&sent, &Fate::Persisted(Via::Logon)));
    assert_eq!(
        (world.totals().persisted, world.totals().persisted_at_logon),
        (0, 100)
    );
    assert_eq!(world.totals().sent, 0, "no duplicate");
    assert!(
        world.publish(0, 1)[0] > grant,
        "new numbers are above the grant"
    );
}

#[test]
fn h03_a_fresh_store_under_a_name_the_server_knows_loses_and_claims_nothing() {
    let mut world = world();
    world.with(0, |p, around| p.kill(around));
    another_life(&mut world, 40);
    let before = world.servers[0].bodies(NAME).len();
    let figure = world.servers[0].server.settled(NAME);

    world.servers[0].up = false;
    world.with(0, |p, around| p.start(around)).unwrap();
    let sent = world.publish(0, 1000);
    world.run(A_WHILE);
    assert_eq!(world.unsettled(), 1000, "published before the first logon");
    world.servers[0].up = true;
    let end = world.now + A_WHILE;
    assert!(world.run_until(end, |w| {
        w.notes(|n| matches!(n, Note::Rebased { .. })) > 0
    }));
    assert_eq!(
        world.totals().persisted + world.totals().persisted_at_logon,
        0
    );
    world.drain();
    assert!(
        sent.iter()
            .all(|s| *world.fate(*s) != Fate::Persisted(Via::Logon))
    );
    let rebased = |n: &Note| {
        matches!(
            n,
            Note::Rebased { from: 1, first_wire, possible_duplicates: 0 } if *first_wire > figure
        )
    };
    assert_eq!(world.notes(rebased), 1);
    let after: Vec<Vec<u8>> = world.servers[0].bodies(NAME)[before..]
        .iter()
        .map(|b| b.to_vec())
        .collect();
    let taken: Vec<Vec<u8>> = world.publishers[0]
        .book
        .messages
        .values()
        .filter(|m| m.fate == Fate::Persisted(Via::Ack))
        .map(|m| m.body.clone())
        .collect();
    assert!(
        after == taken,
        "all of them reach the server once and in order"
    );
    let refused = world.publishers[0].handled.len();
    assert_eq!(taken.len() + refused, 1000);
}

#[test]
fn h04_a_power_cut_before_the_first_logon_changes_nothing_about_it() {
    let mut world = world();
    world.with(0, |p, around| p.kill(around));
    another_life(&mut world, 40);
    let before = world.servers[0].bodies(NAME).len();
    world.servers[0].up = false;
    world.with(0, |p, around| p.start(around)).unwrap();
    world.publish(0, 1000);
    world.publishers[0]
        .process
        .as_ref()
        .unwrap()
        .store
        .sync()
        .unwrap();
    world.power_cut(0, Cut::None);
    assert_eq!(
        world.publish(0, 10),
        (1001..=1010).collect::<Vec<_>>(),
        "the grant is still 0"
    );
    world.servers[0].up = true;
    world.drain();
    assert_eq!(world.totals().persisted_at_logon, 0);
    assert_eq!(world.totals().persisted + world.totals().rejected, 1010);
    let arrived = (world.servers[0].bodies(NAME).len() - before) as u64;
    assert_eq!(arrived, world.totals().persisted);
}

#[test]
fn h05_a_crash_after_the_rebase_needs_no_second_one() {
    for bytes_sent in [false, true] {
        let mut world = silent();
        world.with(0, |p, around| p.kill(around));
        world.servers[0].config = config();
        another_life_by_logon(&mut world);
        let before = world.servers[0].bodies(NAME).len();
        world.with(0, |p, around| p.start(around)).unwrap();
        world.publish(0, 20);
        let end = world.now + A_WHILE;
        let rebased = |w: &World| w.notes(|n| matches!(n, Note::Rebased { .. })) > 0;
        assert!(world.run_until(end, rebased));
        if bytes_sent {
            assert!(world.run_until(end, |w| w.servers[0].bodies(NAME).len() > before));
        } else {
            // Nothing that was handed over since has been written.
            let link = world.link(0);
            link.up = Default::default();
            link.up.lost = true;
        }
        world.restart(0);
        world.run(Duration::from_secs(1));
        assert_eq!(
            world.notes(|n| matches!(n, Note::Rebased { .. })),
            1,
            "no second rebase"
        );
        assert_eq!(world.unsettled_but_sent(), 0);
        let bodies = world.servers[0].bodies(NAME)[before..].to_vec();
        let expected: Vec<&[u8]> = world.publishers[0]
            .book
            .messages
            .values()
            .map(|m| m.body.as_slice())
            .filter(|b| b[0] == b'm')
            .collect();
        assert!(bodies == expected, "each once, in order");
    }
}

/// Another life whose messages are known to the server and settled by a second logon.
fn another_life_by_logon(world: &mut World) {
    let other = world.add(Settings::new(NAME));
    world.start(other);
    world.publish(other, 30);
    world.run(Duration::from_secs(1));
    world.with(other, |p, around| p.kill(around));
    world.run(Duration::from_secs(1));
}

impl World {
    /// Messages that the server does not have although they were sent.
    fn unsettled_but_sent(&self) -> usize {
        let book = &self.publishers[0].book;
        book.unsettled()
            .filter(|s| {
                let body = &book.messages[s].body;
                body[0] == b'm' && !self.servers[0].holds(NAME, body)
            })
            .count()
    }
}

#[test]
fn h06_a_restored_old_copy_believes_no_foreign_figure() {
    let mut settings = Settings::new(NAME);
    settings.delivery.grant_step = 64;
    let mut world = world_with(settings, config());
    world.publish(0, 50);
    world.drain();
    world.with(0, |p, around| p.close(around)).unwrap();
    let copy = world.publishers[0].disk.bytes();
    let book = world.publishers[0].book.clone();
    assert_eq!(
        world.publishers[0]
            .process
            .as_ref()
            .unwrap()
            .store
            .numbers()
            .found_grant,
        50
    );
    // The original goes on, far beyond what the copy knows.
    for _ in 0..50 {
        world.publish(0, 10);
        world.drain();
    }
    let figure = world.servers[0].server.settled(NAME);
    assert!(figure > 500);
    let before = world.servers[0].bodies(NAME).len();

    world
        .with(0, |p, around| p.restore(around, copy, book))
        .unwrap();
    world.publishers[0].notes.clear();
    let new = world.publish(0, 10);
    assert_eq!(new[0], 51, "the copy knows no better");
    world.drain();
    assert_eq!(
        world.notes(|n| matches!(
            n,
            Note::ForeignFigure {
                may_have_sent: 50,
                ..
            }
        )),
        1
    );
    assert_eq!(
        world.notes(|n| matches!(n, Note::Rebased { from: 51, .. })),
        1
    );
    assert_eq!(
        world.totals().persisted_at_logon,
        0,
        "the claim settles nothing"
    );
    assert_eq!(world.totals().persisted + world.totals().rejected, 10);
    let arrived = (world.servers[0].bodies(NAME).len() - before) as u64;
    assert_eq!(
        arrived,
        world.totals().persisted,
        "all of them, above the server's figure"
    );
}

#[test]
fn h07_two_live_publishers_under_one_name_settle_nothing_of_each_other() {
    let mut settings = Settings::new(NAME);
    settings.shared = true;
    settings.heartbeat = None;
    let mut world = World::new(7, vec![config().ack_interval(Duration::from_secs(1 << 30))]);
    world.add(settings);
    world.start(0);
    world.publish(0, 100);
    world.run(A_WHILE);
    let in_flight = world.unsettled();
    assert!(in_flight > 0);
    // The other one got as far as 500 000 000, and the server says so on this link.
    world.say(0, ack(500_000_000, None));
    world.settle();
    assert_eq!(world.unsettled(), in_flight, "nothing of ours is settled");
    assert_eq!(
        world.notes(|n| matches!(n, Note::NameShared { stopped: false, .. })),
        1
    );
    assert!(
        world.publishers[0].process.as_ref().unwrap().link.is_none(),
        "the link is dropped"
    );

    // Two that really share a name: neither of them rebases for ever.
    let mut world = World::new(8, vec![config()]);
    for _ in 0..2 {
        let mut settings = Settings::new(NAME);
        settings.shared = true;
        let id = world.add(settings);
        world.start(id);
    }
    for _ in 0..120 {
        world.publish(0, 3);
        world.publish(1, 3);
        world.run(Duration::from_secs(1));
    }
    let rebases = |p: &crate::sim::publisher::Publisher| {
        p.notes
            .iter()
            .filter(|n| matches!(n, Note::Rebased { .. }))
            .count()
    };
    assert!(world.publishers.iter().all(|p| rebases(p) <= 1));
    let told = world.publishers.iter().flat_map(|p| &p.notes);
    assert!(
        told.filter(|n| matches!(n, Note::NameShared { .. }))
            .count()
            > 0
    );
}

/// Five messages, the third of them one that the server refuses.
const ONE_REFUSED: [&str; 5] = ["1", "2", "R3", "4", "5"];

#[test]
fn h08_one_refusal_between_successes() {
    let mut world = world();
    let sent = world.say_bodies(&ONE_REFUSED);
    world.drain();
    for sequence in [sent[0], sent[1], sent[3], sent[4]] {
        assert_eq!(*world.fate(sequence), Fate::Persisted(Via::Ack));
    }
    assert!(matches!(world.fate(sent[2]), Fate::Rejected(_)));
    // The simulation has compared the bytes that came back with those published.
    assert_eq!(world.publishers[0].handled, [(sent[2], false, false)]);
    assert_eq!(world.servers[0].bodies(NAME), [b"1", b"2", b"4", b"5"]);
}

#[test]
fn h09_a_refusal_logged_before_a_kill_reaches_the_handler_of_the_next_process() {
    let mut settings = Settings::new(NAME);
    settings.no_handler = true;
    let mut world = world_with(settings, config());
    let sent = world.say_bodies(&ONE_REFUSED);
    world.drain();
    assert_eq!(world.publishers[0].book.waiting(), [sent[2]]);
    assert!(world.publishers[0].handled.is_empty());
    world.servers[0].up = false;
    world.publishers[0].settings.no_handler = false;
    world.restart(0);
    world.run(A_WHILE);
    // Before any network, with the original bytes, and marked as of an earlier run.
    assert_eq!(world.publishers[0].handled, [(sent[2], false, true)]);
    assert!(world.publishers[0].book.waiting().is_empty());
}

#[test]
fn h10_a_refusal_whose_ack_was_lost_is_covered_at_logon_and_counted_apart() {
    for killed in [false, true] {
        let mut world = world();
        let sent = world.say_bodies(&ONE_REFUSED);
        // The server decides about all five, but not a byte of its acks arrives.
        let end = world.now + A_WHILE;
        assert!(world.run_until(end, |w| w.totals().sent == 5));
        world.link(0).down.lost = true;
        assert!(world.run_until(end, |w| w.arrived(4)));
        match killed {
            true => world.restart(0),
            false => {
                let link = world.link(0);
                link.down = Default::default();
                let now = world.now;
                world.link(0).down.end(now);
            }
        }
        world.drain();
        assert!(
            world.fates(&sent, &Fate::Persisted(Via::Logon)),
            "killed: {killed}"
        );
        assert_eq!(
            (world.totals().persisted, world.totals().persisted_at_logon),
            (0, 5)
        );
        assert!(
            world.publishers[0].handled.is_empty(),
            "it is never announced again"
        );
    }
}

#[test]
fn h11_a_refusal_that_a_power_cut_took_was_not_handled_at_disk() {
    let mut settings = Settings::new(NAME);
    settings.store = settings.store.level(Level::Disk);
    settings.no_handler = true;
    let mut world = world_with(settings, config());
    let sent = world.say_bodies(&ONE_REFUSED);
    let end = world.now + A_WHILE;
    let refused = |w: &World| !w.publishers[0].book.refusals.is_empty();
    assert!(world.run_until(end, refused));
    let ordinal = world.publishers[0].book.refusals[&sent[2]].ordinal;
    let durable = world.publishers[0]
        .process
        .as_ref()
        .unwrap()
        .store
        .durable()
        .ordinal;
    assert!(
        ordinal.is_some_and(|o| o > durable),
        "logged and not yet synced"
    );
    world.publishers[0].settings.no_handler = false;
    world.power_cut(0, Cut::None);
    world.drain();
    assert!(world.publishers[0].handled.is_empty());
    assert_eq!(*world.fate(sent[2]), Fate::Persisted(Via::Logon));

    // A handler runs only over what is durable: the same cut right after it takes nothing.
    let mut settings = Settings::new(NAME);
    settings.store = settings.store.level(Level::Disk);
    let mut world = world_with(settings, config());
    let sent = world.say_bodies(&ONE_REFUSED);
    let end = world.now + A_WHILE;
    assert!(world.run_until(end, |w| !w.publishers[0].handled.is_empty()));
    let ordinal = world.publishers[0].book.refusals[&sent[2]].ordinal;
    let durable = world.publishers[0]
        .process
        .as_ref()
        .unwrap()
        .store
        .durable()
        .ordinal;
    assert!(
        ordinal.is_some_and(|o| o <= durable),
        "handled before it was durable"
    );
    world.power_cut(0, Cut::None);
    assert!(matches!(world.fate(sent[2]), Fate::Rejected(_)));
}

#[test]
fn h12_a_refusal_behind_a_success_that_covers_it_is_late() {
    let mut world = silent();
    let sent = world.publish(0, 10);
    let end = world.now + A_WHILE;
    assert!(world.run_until(end, |w| w.totals().sent == 10));
    world.publishers[0].settings.shared = true;
    world.say(0, ack(10, None));
    world.a_moment();
    assert!(world.fates(&sent, &Fate::Persisted(Via::Ack)));
    world.say(0, ack(7, Some("too late")));
    world.a_moment();
    assert!(
        world.fates(&sent, &Fate::Persisted(Via::Ack)),
        "the receipt of 7 stays"
    );
    assert_eq!(world.publishers[0].handled, [(7, true, false)]);
}

#[test]
fn h13_a_refusal_ahead_of_the_successes_takes_nobody_with_it() {
    let mut world = silent();
    world.say_bodies(&ONE_REFUSED);
    let end = world.now + A_WHILE;
    assert!(world.run_until(end, |w| w.totals().sent == 5));
    world.publishers[0].settings.shared = true;
    world.run(A_MOMENT);
    let refused = world.publishers[0].book.refusals.len();
    assert_eq!(refused, 1, "the server said so itself");
    let mut world = silent();
    let sent = world.say_bodies(&["1", "2", "3", "4", "5"]);
    let end = world.now + A_WHILE;
    assert!(world.run_until(end, |w| w.totals().sent == 5));
    world.publishers[0].settings.shared = true;
    world.say(0, ack(3, Some("not entitled")));
    world.a_moment();
    assert!(matches!(world.fate(sent[2]), Fate::Rejected(_)));
    assert!(world.fates(&[sent[0], sent[1], sent[3], sent[4]], &Fate::Unsettled));
    world.say(0, ack(2, None));
    world.a_moment();
    assert!(world.fates(&sent[..2], &Fate::Persisted(Via::Ack)));
    assert!(world.fates(&sent[3..], &Fate::Unsettled));
}

#[test]
fn h15_old_repeated_and_reordered_acks_change_nothing() {
    let mut world = silent();
    let sent = world.publish(0, 20);
    let end = world.now + A_WHILE;
    assert!(world.run_until(end, |w| w.totals().sent == 20));
    world.publishers[0].settings.shared = true;
    for figure in [10, 3, 10, 1, 10, 9] {
        world.say(0, ack(figure, None));
        world.a_moment();
        let (settled, open) = sent.split_at(10);
        assert!(
            world.fates(settled, &Fate::Persisted(Via::Ack)),
            "after {figure}"
        );
        assert!(world.fates(open, &Fate::Unsettled), "after {figure}");
    }
    assert_eq!(world.totals().persisted, 10);
}

#[test]
fn h17_a_server_that_forgot_the_publisher_is_reported_and_numbering_goes_on() {
    let mut world = world();
    world.say_bodies(&["a"; 100].map(|a| a));
    world.drain();
    let now = world.now;
    let effects = world.servers[0].inject(&amps_sandbox::Fault::Forget(NAME.into()), now);
    world.apply(0, effects);
    world.cut(0);
    world.run(A_WHILE);
    let gap = |n: &Note| {
        matches!(
            n,
            Note::PublishGap {
                server: 0,
                settled: 100,
                unknown_publisher: true
            }
        )
    };
    assert_eq!(world.notes(gap), 1);
    assert_eq!(world.publish(0, 1), [101]);
}

#[test]
fn h18_a_server_that_is_behind_is_reported_with_both_numbers() {
    let mut world = World::new(7, vec![config(), config()]);
    let mut settings = Settings::new(NAME);
    settings.servers = vec![0, 1];
    world.add(settings);
    world.start(0);
    // An asynchronous replica: it has the first 80, then replication stops.
    world.servers[0].replicated.insert(1, 0);
    world.say_bodies(&["b"; 80].map(|b| b));
    world.drain();
    world.servers[0].replicating = false;
    world.say_bodies(&["c"; 20].map(|c| c));
    world.drain();
    world.servers[0].up = false;
    world.cut(0);
    world.run(A_WHILE);
    let gap = |n: &Note| {
        matches!(
            n,
            Note::PublishGap {
                server: 80,
                settled: 100,
                unknown_publisher: false
            }
        )
    };
    assert_eq!(world.notes(gap), 1);
}

#[test]
fn h19_a_reconnect_while_others_keep_publishing_lets_no_number_overtake() {
    let mut world = world();
    world.latency = Duration::from_millis(5);
    world.publish(0, 50);
    let mut links = 0;
    for round in 0..400 {
        // Eight threads are eight publishes at any moment; the store serialises them.
        world.publish(0, 8);
        world.run(Duration::from_millis(3));
        if round % 20 == 10 {
            world.cut(0);
            links += 1;
        }
    }
    world.drain();
    assert_eq!(links, 20);
    world.server_has_each_once();
    let rising = world.servers[0]
        .log
        .windows(2)
        .all(|w| w[0].wire < w[1].wire);
    assert!(rising, "the server sees strictly rising numbers");
}

#[test]
fn h27_a_requeue_does_not_move_the_resume_point() {
    let mut world = world();
    for line in 1u64..=1000 {
        let body = if line == 5 {
            "R5".to_owned()
        } else {
            format!("line {line}")
        };
        let tag = line.to_string();
        world.with(0, |p, around| {
            p.publish_body(around, body.into_bytes(), tag.as_bytes())
                .expect("room")
        });
        if line == 5 {
            world.publishers[0].settings.no_handler = true;
        }
    }
    let end = world.now + A_WHILE;
    assert!(world.run_until(end, |w| w.publishers[0].book.unsettled().next().is_none()));
    let requeued = world.with(0, |p, around| p.requeue(around));
    assert!(requeued.is_some());
    let tag = |w: &World| w.publishers[0].process.as_ref().unwrap().store.resume_tag();
    assert_eq!(tag(&world), Some(b"1000".to_vec()));
    world.restart(0);
    assert_eq!(
        tag(&world),
        Some(b"1000".to_vec()),
        "--resume goes on at line 1001"
    );
}

/// A refusal and a restart come in three orders; the others are h09 and h10.
#[test]
fn failed_write_refused_only_after_the_restart_is_the_same_report() {
    let mut world = world();
    world.servers[0].up = false;
    let sent = world.say_bodies(&ONE_REFUSED);
    world.run(A_WHILE);
    world.restart(0);
    world.servers[0].up = true;
    world.drain();
    assert_eq!(world.publishers[0].handled, [(sent[2], false, true)]);
    assert_eq!(world.totals().persisted, 4);
}
