use super::*;

const INTERVAL: Duration = Duration::from_secs(1);

struct Bench {
    rules: Rules,
    end: u64,
    now: Duration,
    heard: Vec<(Link, Notice)>,
}

impl Bench {
    fn new() -> Self {
        Bench::speaking(Dialect::Documented)
    }

    fn speaking(dialect: Dialect) -> Self {
        let rules = Rules::new(INTERVAL, dialect);
        Bench {
            rules,
            end: 0,
            now: Duration::ZERO,
            heard: Vec::new(),
        }
    }

    fn log_on(&mut self, link: u64, name: &str) -> u64 {
        self.rules
            .log_on(Link(link), name, "", None)
            .unwrap()
            .settled
    }

    fn write(&mut self, link: u64, write: Write<'_>) -> Verdict {
        self.end += 10;
        self.rules.write(Link(link), write, self.end)
    }

    fn publish(&mut self, link: u64, sequence: u64) -> Verdict {
        self.write(link, numbered(sequence))
    }

    fn refuse(&mut self, link: u64, sequence: u64) -> Verdict {
        self.write(
            link,
            Write {
                refusal: Some("no"),
                ..numbered(sequence)
            },
        )
    }

    fn persist(&mut self) -> Vec<String> {
        let heard = &mut self.heard;
        self.rules
            .persisted(self.end, self.now, &mut |link, notice| {
                heard.push((link, notice))
            });
        self.told()
    }

    fn wait(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        let heard = &mut self.heard;
        self.rules
            .tick(self.now, &mut |link, notice| heard.push((link, notice)));
        self.told()
    }

    fn told(&mut self) -> Vec<String> {
        let show = |number: Option<u64>| number.map_or("-".to_owned(), |n| n.to_string());
        let id = |id: Option<Box<str>>| id.map_or(String::new(), |id| format!(" id {id}"));
        let told = self
            .heard
            .drain(..)
            .map(|(Link(link), notice)| match notice {
                Notice::Persisted {
                    sequence,
                    command_id,
                } => {
                    format!("{link}: ok {}{}", show(sequence), id(command_id))
                }
                Notice::Refused {
                    sequence,
                    command_id,
                    reason,
                } => {
                    format!("{link}: fail {}{} {reason}", show(sequence), id(command_id))
                }
                Notice::Flushed { command_id } => format!("{link}: flushed{}", id(command_id)),
            });
        told.collect()
    }
}

fn numbered(sequence: u64) -> Write<'static> {
    Write {
        sequence: Some(sequence),
        command_id: None,
        wants_persisted: true,
        logged: true,
        refusal: None,
    }
}

#[test]
fn h8_one_refusal_between_successes() {
    let mut bench = Bench::new();
    assert_eq!(bench.log_on(1, "p"), 0);
    bench.publish(1, 1);
    bench.publish(1, 2);
    assert_eq!(bench.refuse(1, 3), Verdict::Refused);
    bench.publish(1, 4);
    bench.publish(1, 5);
    assert_eq!(
        bench.persist(),
        ["1: ok 2", "1: fail 3 no"],
        "the refusal does not wait"
    );
    assert!(bench.wait(INTERVAL / 2).is_empty());
    assert_eq!(bench.wait(INTERVAL / 2), ["1: ok 5"]);
    assert!(bench.wait(INTERVAL).is_empty());
    assert_eq!(bench.rules.deadline(), None);
}

#[test]
fn the_first_message_refused_has_no_success_before_it() {
    let mut bench = Bench::new();
    bench.log_on(1, "p");
    bench.refuse(1, 1);
    bench.refuse(1, 2);
    bench.publish(1, 3);
    assert_eq!(bench.persist(), ["1: fail 1 no", "1: fail 2 no"]);
    assert_eq!(bench.wait(INTERVAL), ["1: ok 3"]);
}

#[test]
fn nothing_is_acked_while_anything_before_it_is_open() {
    let mut bench = Bench::new();
    bench.log_on(1, "p");
    bench.publish(1, 1);
    let one = bench.end;
    bench.refuse(1, 2);
    bench.publish(1, 3);
    assert!(
        bench.wait(INTERVAL * 5).is_empty(),
        "the log holds nothing yet"
    );
    let heard = &mut bench.heard;
    bench.rules.persisted(one, bench.now, &mut |link, notice| {
        heard.push((link, notice))
    });
    assert!(bench.told().is_empty(), "conflation");
    assert_eq!(bench.wait(INTERVAL), ["1: ok 1"], "2 and 3 are open");
    assert_eq!(bench.persist(), ["1: fail 2 no"]);
    assert_eq!(bench.wait(INTERVAL), ["1: ok 3"]);
}

#[test]
fn duplicates_vanish_silently_and_gaps_do_not_matter() {
    let mut bench = Bench::new();
    bench.log_on(1, "p");
    assert_eq!(bench.publish(1, 10), Verdict::Accepted);
    assert_eq!(bench.publish(1, 10), Verdict::Duplicate);
    assert_eq!(
        bench.publish(1, 7),
        Verdict::Duplicate,
        "even one never seen"
    );
    assert_eq!(bench.publish(1, 1_000), Verdict::Accepted);
    bench.persist();
    assert_eq!(bench.wait(INTERVAL), ["1: ok 1000"]);
    assert_eq!(bench.publish(1, 1_000), Verdict::Duplicate);
    bench.persist();
    assert!(bench.wait(INTERVAL).is_empty());
}

#[test]
fn h10_a_refusal_advances_the_figure_and_is_never_announced_again() {
    let mut bench = Bench::new();
    bench.log_on(1, "p");
    bench.publish(1, 1);
    bench.publish(1, 2);
    bench.refuse(1, 3);
    bench.publish(1, 4);
    bench.publish(1, 5);
    bench.rules.log_off(Link(1));
    assert!(bench.persist().is_empty(), "nobody is there to hear it");
    assert_eq!(bench.log_on(2, "p"), 5);
    assert_eq!(bench.refuse(2, 3), Verdict::Duplicate);
    bench.publish(2, 6);
    assert!(bench.persist().is_empty());
    assert_eq!(bench.wait(INTERVAL), ["2: ok 6"]);
}

#[test]
fn a_refusal_still_open_is_announced_to_the_next_link() {
    let mut bench = Bench::new();
    bench.log_on(1, "p");
    bench.publish(1, 1);
    bench.refuse(1, 2);
    bench.publish(1, 3);
    bench.rules.log_off(Link(1));
    assert_eq!(bench.log_on(2, "p"), 0, "what is open does not count");
    for sequence in 1..=3 {
        assert_eq!(bench.publish(2, sequence), Verdict::Duplicate);
    }
    assert_eq!(bench.persist(), ["2: ok 1", "2: fail 2 no"]);
    assert_eq!(bench.wait(INTERVAL), ["2: ok 3"]);
}

#[test]
fn names_do_not_share_a_memory() {
    let mut bench = Bench::new();
    bench.log_on(1, "p");
    bench.log_on(2, "q");
    bench.publish(1, 5);
    assert_eq!(bench.publish(2, 5), Verdict::Accepted);
    bench.publish(2, 6);
    bench.persist();
    let mut told = bench.wait(INTERVAL);
    told.sort();
    assert_eq!(told, ["1: ok 5", "2: ok 6"]);
    assert_eq!(
        (bench.rules.settled("p"), bench.rules.settled("stranger")),
        (5, 0)
    );
}

#[test]
fn a_name_goes_to_the_newest_link_of_its_user_and_to_no_other_user() {
    let mut bench = Bench::new();
    bench.rules.log_on(Link(1), "p", "ann", None).unwrap();
    bench.publish(1, 1);
    assert_eq!(
        bench.rules.log_on(Link(2), "p", "bob", None),
        Err(NameInUse)
    );
    let second = bench.rules.log_on(Link(3), "p", "ann", None).unwrap();
    assert_eq!(
        second,
        LoggedOn {
            settled: 0,
            evicted: Some(Link(1))
        }
    );
    assert_eq!(
        bench.publish(1, 2),
        Verdict::Duplicate,
        "an evicted link says nothing"
    );
    bench.rules.log_off(Link(1));
    bench.publish(3, 2);
    bench.persist();
    assert_eq!(
        bench.wait(INTERVAL),
        ["3: ok 2"],
        "the old link's end changes nothing"
    );
}

#[test]
fn what_did_not_ask_is_not_acked() {
    let mut bench = Bench::new();
    bench.log_on(1, "p");
    let silent = |sequence| Write {
        wants_persisted: false,
        ..numbered(sequence)
    };
    bench.write(1, silent(1));
    bench.write(
        1,
        Write {
            refusal: Some("no"),
            ..silent(2)
        },
    );
    assert!(bench.persist().is_empty());
    assert!(bench.wait(INTERVAL).is_empty());
    bench.publish(1, 3);
    bench.write(1, silent(4));
    bench.persist();
    assert_eq!(
        bench.wait(INTERVAL),
        ["1: ok 4"],
        "one that asked is enough"
    );
}

#[test]
fn unlogged_topics_are_acked_one_by_one_but_never_ahead_of_what_is_open() {
    let mut bench = Bench::new();
    bench.log_on(1, "p");
    bench.publish(1, 1);
    let unlogged = Write {
        logged: false,
        command_id: Some("b"),
        ..numbered(2)
    };
    bench.write(1, unlogged);
    bench.write(
        1,
        Write {
            command_id: Some("c"),
            ..Write {
                sequence: Some(3),
                ..unlogged
            }
        },
    );
    assert!(bench.wait(INTERVAL).is_empty());
    assert_eq!(
        bench.persist(),
        ["1: ok 2 id b", "1: ok 3 id c"],
        "2 covers 1"
    );
    assert!(bench.wait(INTERVAL).is_empty());
}

#[test]
fn a_silent_unlogged_message_does_not_swallow_an_ack() {
    let mut bench = Bench::new();
    bench.log_on(1, "p");
    bench.publish(1, 1);
    bench.write(
        1,
        Write {
            logged: false,
            wants_persisted: false,
            ..numbered(2)
        },
    );
    bench.persist();
    assert_eq!(bench.wait(INTERVAL), ["1: ok 2"]);
}

#[test]
fn messages_without_a_sequence_are_accepted_and_acked_by_id() {
    let mut bench = Bench::new();
    bench.log_on(1, "p");
    let plain = Write {
        sequence: None,
        command_id: Some("7"),
        ..numbered(0)
    };
    assert_eq!(bench.write(1, plain), Verdict::Accepted);
    assert_eq!(
        bench.write(
            1,
            Write {
                command_id: Some("8"),
                ..plain
            }
        ),
        Verdict::Accepted
    );
    bench.write(
        1,
        Write {
            refusal: Some("no"),
            command_id: Some("9"),
            ..plain
        },
    );
    assert_eq!(
        bench.persist(),
        ["1: ok - id 7", "1: ok - id 8", "1: fail - id 9 no"]
    );
    assert_eq!(bench.rules.settled("p"), 0);
}

#[test]
fn a_flush_waits_for_everything_before_it() {
    let mut bench = Bench::new();
    bench.log_on(1, "p");
    bench.rules.flush(Link(1), Some("0"), bench.end);
    assert_eq!(bench.persist(), ["1: flushed id 0"]);
    bench.publish(1, 1);
    bench.rules.flush(Link(1), Some("1"), bench.end);
    bench.publish(1, 2);
    assert!(bench.wait(INTERVAL * 2).is_empty());
    assert_eq!(bench.persist(), ["1: ok 1", "1: flushed id 1"]);
    assert_eq!(bench.wait(INTERVAL), ["1: ok 2"]);
}

#[test]
fn memory_is_recovered_and_forgotten() {
    let mut bench = Bench::new();
    bench.rules.recover("p", 40);
    bench.rules.recover("p", 39);
    assert_eq!(bench.log_on(1, "p"), 40);
    assert_eq!(bench.publish(1, 40), Verdict::Duplicate);
    bench.publish(1, 41);
    bench.rules.forget("p");
    assert!(bench.persist().is_empty());
    assert_eq!(bench.publish(1, 1), Verdict::Accepted);
    bench.persist();
    assert_eq!(bench.wait(INTERVAL), ["1: ok 1"]);
}

#[test]
fn an_interval_of_the_link_overrides_the_servers() {
    let mut bench = Bench::new();
    bench
        .rules
        .log_on(Link(1), "p", "", Some(INTERVAL / 10))
        .unwrap();
    bench.publish(1, 1);
    bench.persist();
    assert_eq!(bench.rules.deadline(), Some(INTERVAL / 10));
    assert_eq!(bench.wait(INTERVAL / 10), ["1: ok 1"]);

    let mut bench = Bench::new();
    bench
        .rules
        .log_on(Link(1), "p", "", Some(Duration::ZERO))
        .unwrap();
    bench.publish(1, 1);
    bench.publish(1, 2);
    assert_eq!(bench.persist(), ["1: ok 2"], "no interval, no wait");
}

#[test]
fn the_per_message_dialect_acks_each_with_its_id_and_forgets_at_logon() {
    let mut bench = Bench::speaking(Dialect::PerMessage);
    bench.log_on(1, "p");
    bench.write(
        1,
        Write {
            command_id: Some("a"),
            ..numbered(1)
        },
    );
    bench.write(
        1,
        Write {
            command_id: Some("b"),
            refusal: Some("no"),
            ..numbered(2)
        },
    );
    bench.write(
        1,
        Write {
            command_id: Some("c"),
            ..numbered(3)
        },
    );
    assert_eq!(
        bench.persist(),
        ["1: ok 1 id a", "1: fail 2 id b no", "1: ok 3 id c"]
    );
    bench.rules.log_off(Link(1));
    bench.log_on(2, "p");
    assert_eq!(bench.publish(2, 1), Verdict::Accepted);
}

proptest::proptest! {
    /// Whatever happens in whatever order, acks obey the documentation.
    #[test]
    fn every_history_of_acks_is_lawful(steps in proptest::collection::vec(0u8..6, 1..60)) {
        let mut bench = Bench::new();
        bench.log_on(1, "p");
        let (mut next, mut link, mut persisted, mut refused) = (1, 1, 0, Vec::new());
        let mut acked = 0;
        let mut announced = Vec::new();
        for step in steps {
            match step {
                0 | 1 => { bench.publish(link, next); next += 1; }
                2 => { bench.refuse(link, next); refused.push(next); next += 1; }
                3 => { bench.persist_quietly(); persisted = next - 1; }
                4 => bench.wait_quietly(INTERVAL),
                _ => {
                    bench.rules.log_off(Link(link));
                    link += 1;
                    acked = bench.log_on(link, "p");
                    proptest::prop_assert_eq!(acked, persisted, "only what is not open counts");
                }
            }
            for (to, notice) in bench.heard.drain(..) {
                proptest::prop_assert_eq!(to, Link(link));
                match notice {
                    Notice::Persisted { sequence: Some(sequence), .. } => {
                        proptest::prop_assert!(sequence > acked && sequence <= persisted);
                        proptest::prop_assert!(
                            refused.iter().all(|r| *r <= acked || *r > sequence
                                || announced.contains(r)),
                            "a success must not cover a refusal that is still to come"
                        );
                        acked = sequence;
                    }
                    Notice::Refused { sequence: Some(sequence), .. } => {
                        proptest::prop_assert!(refused.contains(&sequence));
                        proptest::prop_assert!(!announced.contains(&sequence), "once");
                        proptest::prop_assert_eq!(sequence, acked + 1, "all before it is settled");
                        proptest::prop_assert!(sequence <= persisted);
                        announced.push(sequence);
                        acked = sequence;
                    }
                    other => proptest::prop_assert!(false, "unexpected {:?}", other),
                }
            }
        }
    }
}

impl Bench {
    fn persist_quietly(&mut self) {
        let heard = &mut self.heard;
        self.rules
            .persisted(self.end, self.now, &mut |link, notice| {
                heard.push((link, notice))
            });
    }

    fn wait_quietly(&mut self, time: Duration) {
        self.now += time;
        let heard = &mut self.heard;
        self.rules
            .tick(self.now, &mut |link, notice| heard.push((link, notice)));
    }
}
