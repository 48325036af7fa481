//! Each decision as a small history, with a link that says what the test lets it say.

mod single;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use amps_store::{Envelope, Options, Store};

use super::*;
use crate::backoff::FixedDelay;
use crate::delivery::{PublishAck, Resume, Room, ToSend, Verdict};
use crate::link::{Progress, Unsendable, Words};

const SECOND: Duration = Duration::from_secs(1);

/// What a link says when it is polled, all at once.
type Says = Vec<Say>;

enum Say {
    Up(u64),
    Persisted(u64),
    Refused(u64),
    End(LinkEnd),
    /// Up to this number everything is written.
    Wrote(u64),
    /// Something else.
    With(Tells),
}

type Tells = Box<dyn FnOnce(&mut dyn Sink) + Send>;

/// A link, and the test's end of it.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Scripted>>);

#[derive(Default)]
struct Scripted {
    says: VecDeque<Says>,
    up: bool,
    sent: Vec<u64>,
    /// Numbers on the wire, and whether they may have been sent before.
    wires: Vec<(u64, bool)>,
    /// What it was asked for by ids.
    recalled: Vec<Vec<u64>>,
    takes_through: Option<u64>,
    takes: Option<fn(u64) -> bool>,
    due: Option<Duration>,
    in_flight: u64,
    is_gone: bool,
}

struct ScriptedLink(Script);

impl Script {
    fn with<T>(&self, act: impl FnOnce(&mut Scripted) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    fn says(&self, says: Says) {
        self.with(|script| script.says.push_back(says));
    }

    fn sent(&self) -> Vec<u64> {
        self.with(|script| script.sent.clone())
    }

    fn is_gone(&self) -> bool {
        self.with(|script| script.is_gone)
    }
}

impl Drop for ScriptedLink {
    fn drop(&mut self) {
        self.0.with(|script| script.is_gone = true);
    }
}

impl Link for ScriptedLink {
    fn room(&self) -> Room {
        self.0.with(|script| match script.up {
            true => Room::ANY,
            false => Room::NONE,
        })
    }

    fn send(&mut self, _: Now, message: &ToSend<'_>) -> Result<(), Unsendable> {
        self.0.with(|script| {
            assert!(script.up, "nothing before the logon");
            if script
                .takes_through
                .is_some_and(|last| message.sequence > last)
                || script.takes.is_some_and(|takes| !takes(message.sequence))
            {
                let why = "too large".to_owned();
                return Err(Unsendable { why });
            }
            script.sent.push(message.sequence);
            script.wires.push((message.wire, message.again));
            Ok(())
        })
    }

    fn recall(&mut self, _: Now, messages: &[ToSend<'_>]) {
        let wires = messages.iter().map(|message| message.wire).collect();
        self.0.with(|script| script.recalled.push(wires));
    }

    fn waits(&mut self, _: Now, in_flight: u64) {
        self.0.with(|script| script.in_flight = in_flight);
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
        _: Now,
        sink: &mut dyn Sink,
    ) -> Poll<Result<Progress, LinkEnd>> {
        let Some(says) = self.0.with(|script| script.says.pop_front()) else {
            return Poll::Pending;
        };
        let mut through = None;
        for say in says {
            let ack = |figure, verdict| Heard::Ack {
                ack: PublishAck {
                    figure: Some(figure),
                    sequence: None,
                    verdict,
                },
                words: Words {
                    id: Some("mine"),
                    ..Words::default()
                },
            };
            match say {
                Say::Up(figure) => {
                    self.0.with(|script| script.up = true);
                    sink.heard(Heard::Up(Up {
                        resume: Resume::HighWater(figure),
                        capabilities: &Capabilities::LOGGED,
                    }));
                }
                Say::Persisted(figure) => sink.heard(ack(figure, Verdict::Persisted)),
                Say::Refused(figure) => sink.heard(ack(figure, Verdict::Refused("no"))),
                Say::End(end) => return Poll::Ready(Err(end)),
                Say::Wrote(wire) => through = Some(wire),
                Say::With(tell) => tell(sink),
            }
        }
        let (read, wrote) = (true, through.is_some());
        let progress = Progress {
            read,
            wrote,
            through,
        };
        Poll::Ready(Ok(progress))
    }

    fn deadline(&self) -> Option<Duration> {
        self.0.with(|script| script.due)
    }
}

/// Waits a second more each time, ten times that when the longest is asked for.
#[derive(Clone, Default)]
struct Delays(Arc<Mutex<(u32, Option<u32>)>>);

impl DelayStrategy for Delays {
    fn next_delay(&mut self) -> Option<Duration> {
        let mut state = self.0.lock().unwrap();
        state.0 += 1;
        let over = state.1.is_some_and(|most| state.0 > most);
        (!over).then(|| SECOND * state.0)
    }

    fn longest_delay(&mut self) -> Option<Duration> {
        self.next_delay().map(|delay| delay * 10)
    }

    fn reset(&mut self) {
        self.0.lock().unwrap().0 = 0;
    }
}

struct Rig {
    store: Store,
    engine: Engine,
    now: Now,
    /// Do jobs as soon as they are given out.
    does_jobs: bool,
    jobs: Vec<Job>,
    told: Vec<Output>,
    wants: bool,
}

fn rig() -> Rig {
    rig_with(Config::default(), Delays::default())
}

fn rig_with(config: Config, delays: impl DelayStrategy + 'static) -> Rig {
    let store = Store::memory(Options::new().client_name("me")).unwrap();
    let now = Now {
        at: SECOND,
        unix_micros: 1,
    };
    let engine = Engine::new(&store, config, Box::new(delays), now);
    Rig {
        store,
        engine,
        now,
        does_jobs: true,
        jobs: Vec::new(),
        told: Vec::new(),
        wants: false,
    }
}

impl Rig {
    fn publish(&self, count: u64) {
        for _ in 0..count {
            self.store
                .append(&Envelope::publish("orders"), b"payload")
                .unwrap();
        }
    }

    /// Turns until nothing moves; what it told meanwhile.
    fn turn(&mut self) -> Vec<Output> {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            self.engine.turn(&self.store, self.now);
            let polled = self.engine.poll(&mut cx, &self.store, self.now);
            let took = self.take();
            if polled.is_pending() && !took {
                return std::mem::take(&mut self.told);
            }
        }
    }

    /// Takes what there is to carry out or to pass on; whether there was something.
    fn take(&mut self) -> bool {
        let mut any = false;
        while let Some(output) = self.engine.output() {
            any = true;
            match output {
                Output::Connect => self.wants = true,
                Output::Job(job) if self.does_jobs => {
                    let done = job.run(&self.store);
                    self.engine.done(&self.store, self.now, done);
                }
                Output::Job(job) => self.jobs.push(job),
                told => self.told.push(told),
            }
        }
        any
    }

    fn later(&mut self, time: Duration) -> Vec<Output> {
        self.now.at += time;
        self.turn()
    }

    /// A link that is open, when the engine wants one.
    fn open(&mut self) -> Script {
        let told = self.turn_to_connect();
        self.told.extend(told);
        let script = Script::default();
        let link = Box::new(ScriptedLink(script.clone()));
        self.wants = false;
        self.engine.connected(&self.store, self.now, Ok(link));
        script
    }

    fn turn_to_connect(&mut self) -> Vec<Output> {
        let mut told = self.turn();
        while !self.wants {
            let next = self.engine.deadline().expect("it will want a link");
            self.now.at = self.now.at.max(next);
            told.extend(self.turn());
        }
        told
    }

    /// One that messages go out on.
    fn link(&mut self, figure: u64) -> Script {
        let script = self.open();
        script.says(vec![Say::Up(figure)]);
        let told = self.turn();
        self.told.extend(told);
        script
    }

    /// Lets the link end, and says how long the engine waits.
    fn ends(&mut self, script: &Script) -> Option<Duration> {
        script.says(vec![Say::End(LinkEnd::Closed)]);
        let told = self.turn();
        let mut ends = told.iter().filter_map(|output| match output {
            Output::LinkEnded { retry_in, .. } => Some(*retry_in),
            _ => None,
        });
        ends.next().expect("the link ended")
    }
}

fn why(told: &[Output]) -> Vec<&LinkEnd> {
    let ends = told.iter().filter_map(|output| match output {
        Output::LinkEnded { why, .. } => Some(why),
        _ => None,
    });
    ends.collect()
}

fn over(told: &[Output]) -> Option<u64> {
    told.iter().find_map(|output| match output {
        Output::Over { handed_over } => Some(*handed_over),
        _ => None,
    })
}

#[test]
fn what_was_read_with_the_word_that_ends_a_link_is_taken_in() {
    let mut rig = rig();
    rig.publish(2);
    let script = rig.link(0);
    assert_eq!(script.sent(), [1, 2]);
    // A number that was never sent, and behind it in the same bytes a refusal: nobody knows any
    // more whose it is, and it will not be repeated.
    script.says(vec![Say::Persisted(1 << 40), Say::Refused(2)]);
    // What would be read next is not.
    script.says(vec![Say::Persisted(2)]);
    let told = rig.turn();
    let unattributed = |output: &&Output| {
        matches!(
            output,
            Output::Told {
                what: delivery::Output::Unattributed {
                    figure: Some(2),
                    ..
                },
                ..
            }
        )
    };
    assert_eq!(told.iter().filter(unattributed).count(), 1, "{told:?}");
    assert_eq!(why(&told), [&LinkEnd::ForeignFigure]);
    assert!(script.is_gone());
    assert_eq!(rig.store.bounds().unsettled, 2);
}

#[test]
fn the_word_that_ends_a_link_comes_before_the_end_that_was_read_with_it() {
    let mut rig = rig();
    rig.publish(1);
    let script = rig.link(0);
    script.says(vec![Say::Persisted(1 << 40), Say::End(LinkEnd::Closed)]);
    assert_eq!(why(&rig.turn()), [&LinkEnd::ForeignFigure]);
}

#[test]
fn acks_that_were_read_with_the_end_count_and_the_link_was_good() {
    let mut rig = rig();
    let first = rig.link(0);
    assert_eq!(rig.ends(&first), Some(SECOND));
    rig.publish(2);
    let second = rig.link(0);
    second.says(vec![Say::Persisted(2), Say::End(LinkEnd::Closed)]);
    let told = rig.turn();
    assert_eq!(rig.engine.totals().persisted, 2);
    let retry = |output: &Output| matches!(output, Output::LinkEnded { retry_in, .. } if *retry_in == Some(SECOND));
    assert!(told.iter().any(retry), "the back-off starts anew: {told:?}");
}

#[test]
fn a_link_on_which_only_an_operator_settled_something_was_not_good() {
    let mut rig = rig();
    rig.publish(2);
    let first = rig.link(0);
    assert_eq!(rig.ends(&first), Some(SECOND));
    let second = rig.link(0);
    rig.engine.give_up(&rig.store, rig.now, 1, "given up");
    assert_eq!(rig.engine.totals().rejected, 1);
    assert_eq!(rig.ends(&second), Some(SECOND * 2));
}

#[test]
fn a_link_that_lived_long_after_its_logon_was_good() {
    let mut rig = rig();
    for (lived, waits) in [(9, 1), (9, 2), (10, 1), (9, 2)] {
        let script = rig.open();
        // The time before the logon counts for nothing.
        rig.later(SECOND * 60);
        script.says(vec![Say::Up(0)]);
        rig.turn();
        rig.later(SECOND * lived);
        assert_eq!(rig.ends(&script), Some(SECOND * waits), "after {lived} s");
    }
}

#[test]
fn a_message_that_breaks_every_link_is_given_the_longest_delay() {
    let mut rig = rig();
    rig.publish(1);
    let mut delays = Vec::new();
    for _ in 0..4 {
        let script = rig.link(0);
        delays.extend(rig.ends(&script));
    }
    assert_eq!(delays, [SECOND, SECOND * 2, SECOND * 30, SECOND * 40]);
}

#[test]
fn an_attempt_that_takes_too_long_is_abandoned_and_its_link_dropped() {
    let mut rig = rig();
    rig.turn_to_connect();
    assert!(rig.later(SECOND * 9).is_empty());
    let told = rig.later(SECOND);
    assert!(matches!(told[0], Output::Abandon));
    assert_eq!(why(&told), [&LinkEnd::ConnectTimeout]);
    let script = Script::default();
    let link = Box::new(ScriptedLink(script.clone()));
    rig.engine.connected(&rig.store, rig.now, Ok(link));
    assert!(script.is_gone());
    assert!(!rig.engine.is_linked());
}

#[test]
fn the_time_without_a_link_that_was_up_is_limited_attempts_and_all() {
    let config = Config {
        give_up_after: Some(SECOND * 60),
        ..Config::default()
    };
    let mut rig = rig_with(config, FixedDelay(SECOND * 25));
    let script = rig.link(0);
    rig.later(SECOND * 600);
    assert_eq!(
        rig.ends(&script),
        Some(SECOND * 25),
        "it counts from its end"
    );
    let mut waits = Vec::new();
    loop {
        let mut told = rig.turn_to_connect();
        rig.wants = false;
        // The attempt takes until it is abandoned.
        told.extend(rig.later(SECOND * 10));
        let end = told.iter().find_map(|output| match output {
            Output::LinkEnded { retry_in, .. } => Some(*retry_in),
            _ => None,
        });
        waits.push(end.expect("it ended"));
        if told.iter().any(|o| matches!(o, Output::GaveUp { .. })) {
            break;
        }
    }
    // 25 + 10, then 25, and 10 for an attempt that has begun.
    assert_eq!(waits, [Some(SECOND * 25), None]);
    assert_eq!(rig.engine.deadline(), None);
}

#[test]
fn who_gave_up_goes_on_with_all_that_needs_no_link() {
    let delays = Delays::default();
    delays.0.lock().unwrap().1 = Some(0);
    let mut rig = rig_with(Config::default(), delays);
    rig.publish(1);
    let script = rig.link(0);
    assert_eq!(rig.ends(&script), None);
    let until = Some(rig.now.at + SECOND);
    rig.engine.flush(&rig.store, rig.now, 7, 1, until);
    let told = rig.later(SECOND);
    let flushed = |output: &Output| matches!(output, Output::Told { what: delivery::Output::Flushed { id: 7, result }, .. } if result.left == 1);
    assert!(told.iter().any(flushed), "{told:?}");
    rig.later(SECOND * 1000);
    assert!(!rig.wants);
}

#[test]
fn without_a_server_there_are_no_attempts() {
    let mut rig = rig();
    rig.turn_to_connect();
    rig.wants = false;
    rig.engine.no_server();
    let told = rig.later(SECOND * 1000);
    assert!(matches!(told[..], [Output::GaveUp { .. }]), "{told:?}");
    assert!(!rig.wants);
}

#[test]
fn jobs_are_given_out_one_at_a_time_and_outlive_their_link() {
    let mut rig = rig();
    rig.does_jobs = false;
    rig.publish(1);
    let script = rig.link(0);
    let [Job::RaiseGrant(to)] = rig.jobs[..] else {
        panic!("{:?}", rig.jobs);
    };
    assert!(script.sent().is_empty(), "nothing above the grant");
    rig.ends(&script);
    // A figure that asks for a rebase, while the grant is being raised.
    let script = rig.link(1 << 40);
    assert_eq!(rig.jobs.len(), 1);
    let done = Job::RaiseGrant(to).run(&rig.store);
    rig.engine.done(&rig.store, rig.now, done);
    rig.turn();
    let Job::Rebase(_) = rig.jobs[1] else {
        panic!("{:?}", rig.jobs);
    };
    assert!(script.sent().is_empty());
    let done = rig.jobs[1].run(&rig.store);
    rig.does_jobs = true;
    rig.engine.done(&rig.store, rig.now, done);
    rig.turn();
    assert_eq!(script.sent(), [1]);
}

#[test]
fn a_close_waits_for_the_last_ack_and_no_longer() {
    let mut rig = rig();
    rig.publish(2);
    let script = rig.link(0);
    rig.engine
        .close(&rig.store, rig.now, rig.now.at + SECOND * 60);
    assert_eq!(over(&rig.later(SECOND)), None);
    script.says(vec![Say::Persisted(2)]);
    let told = rig.turn();
    assert_eq!(over(&told), Some(2), "{told:?}");
    assert!(matches!(told.last(), Some(Output::Over { .. })));
    assert!(script.is_gone());
    assert_eq!(rig.engine.deadline(), None);
}

#[test]
fn of_several_closes_the_earliest_deadline_counts() {
    let mut rig = rig();
    rig.publish(1);
    let script = rig.link(0);
    for seconds in [60, 5, 90] {
        let until = rig.now.at + SECOND * seconds;
        rig.engine.close(&rig.store, rig.now, until);
    }
    assert_eq!(over(&rig.later(SECOND * 4)), None);
    assert_eq!(over(&rig.later(SECOND)), Some(1));
    assert!(script.is_gone());
    // Who flushes now learns what is left.
    rig.engine.flush(&rig.store, rig.now, 3, 1, None);
    let told = rig.turn();
    let flushed = |output: &Output| matches!(output, Output::Told { what: delivery::Output::Flushed { id: 3, result }, .. } if result.left == 1);
    assert!(told.iter().any(flushed), "{told:?}");
}

#[test]
fn who_stops_abandons_what_is_being_opened() {
    let mut rig = rig();
    rig.turn_to_connect();
    rig.engine.stop(&rig.store, rig.now);
    let told = rig.turn();
    assert!(matches!(
        told[..],
        [Output::Abandon, Output::Over { handed_over: 0 }]
    ));
    rig.engine.stop(&rig.store, rig.now);
    assert!(rig.turn().is_empty(), "once");
}

#[test]
fn a_link_with_something_due_is_given_nothing_before_that() {
    let mut rig = rig();
    let script = rig.link(0);
    rig.publish(1);
    script.with(|script| script.due = Some(rig.now.at));
    rig.engine.turn(&rig.store, rig.now);
    assert!(script.sent().is_empty());
    script.with(|script| script.due = None);
    rig.engine.turn(&rig.store, rig.now);
    assert_eq!(script.sent(), [1]);
    assert_eq!(script.with(|script| script.in_flight), 1);
}

#[test]
fn a_message_that_its_link_never_takes_ends_it_and_was_not_sent() {
    let mut rig = rig();
    rig.publish(3);
    let script = rig.open();
    script.with(|script| script.takes_through = Some(1));
    script.says(vec![Say::Up(0)]);
    // What is before it is not lost with the link.
    assert_eq!(why(&rig.turn()), Vec::<&LinkEnd>::new());
    script.says(vec![Say::Persisted(1)]);
    let told = rig.turn();
    let end = LinkEnd::Unsendable {
        sequence: 2,
        why: "too large".to_owned(),
    };
    assert_eq!(why(&told), [&end]);
    assert_eq!(rig.engine.totals().sent, 1);
}

#[test]
fn each_refusal_is_told_with_the_words_it_came_in_and_nothing_else_is() {
    let mut rig = rig();
    rig.publish(3);
    let script = rig.link(0);
    script.says(vec![Say::Persisted(1), Say::Refused(2), Say::Persisted(3)]);
    let told = rig.turn();
    let words: Vec<_> = told
        .iter()
        .filter_map(|output| match output {
            Output::Told { what, answer } => Some((what, answer)),
            _ => None,
        })
        .filter(|(what, _)| !matches!(what, delivery::Output::Note(_)))
        .collect();
    let [
        (delivery::Output::SettledThrough { through: 1, .. }, None),
        (delivery::Output::Refused { sequence: 2, .. }, Some(answer)),
        (delivery::Output::SettledThrough { through: 3, .. }, None),
    ] = &words[..]
    else {
        panic!("{words:?}");
    };
    assert_eq!(
        (answer.id.as_deref(), answer.figure),
        (Some("mine"), Some(2))
    );
    // One that an operator makes has no words of a server's.
    rig.publish(1);
    let (store, now) = (&rig.store, rig.now);
    rig.engine.give_up(store, now, 4, "enough");
    let told = rig.turn();
    let refused = told.iter().find_map(|output| match output {
        Output::Told {
            what: delivery::Output::Refused { sequence, .. },
            answer,
        } => Some((*sequence, answer.is_some())),
        _ => None,
    });
    assert_eq!(refused, Some((4, false)));
}

#[test]
fn a_caller_with_a_reason_of_its_own_ends_a_link_or_an_attempt_like_any_other() {
    let mut rig = rig();
    let script = rig.link(0);
    let reason = || LinkEnd::Panicked("the chooser".to_owned());
    let (store, now) = (&rig.store, rig.now);
    rig.engine.lose(store, now, reason());
    assert!(script.is_gone());
    assert_eq!(why(&rig.turn()), [&reason()]);
    // Between two attempts there is nothing to lose.
    let (store, now) = (&rig.store, rig.now);
    rig.engine.lose(store, now, reason());
    assert!(rig.turn().is_empty());
    rig.turn_to_connect();
    let (store, now) = (&rig.store, rig.now);
    rig.engine.lose(store, now, reason());
    let told = rig.turn();
    assert!(matches!(told[0], Output::Abandon), "{told:?}");
    assert_eq!(why(&told), [&reason()]);
}

#[test]
fn who_stores_a_message_is_to_say_so_only_while_nothing_moves_and_the_link_takes_more() {
    let mut rig = rig();
    assert!(!rig.engine.is_idle(), "no link");
    let script = rig.link(0);
    rig.turn();
    assert!(rig.engine.is_idle());
    rig.publish(1);
    let (store, now) = (&rig.store, rig.now);
    rig.engine.turn(store, now);
    assert!(
        !rig.engine.is_idle(),
        "it was handed over and is not polled"
    );
    rig.turn();
    assert!(rig.engine.is_idle());
    script.with(|script| script.up = false);
    assert!(!rig.engine.is_idle(), "it takes no more");
}

#[test]
fn who_publishes_is_said_in_numbers_of_the_wire() {
    let mut rig = rig();
    let me = rig.engine.identity(&rig.store);
    assert_eq!((me.client.as_str(), me.may_have_sent), ("me", 0));
    assert_eq!(
        (Some(me.store), me.first_unsettled),
        (rig.store.identity(), None)
    );
    rig.publish(3);
    rig.link(0);
    let me = rig.engine.identity(&rig.store);
    assert_eq!((me.may_have_sent, me.first_unsettled), (3, Some(1)));
    rig.ends_now();
    // Behind a rebase nothing was sent under its numbers, and what went out before is below them.
    let figure = 1 << 40;
    rig.link(figure);
    let me = rig.engine.identity(&rig.store);
    let first = me.first_unsettled.unwrap();
    assert!(first > figure, "{me:?}");
    assert_eq!(me.may_have_sent, first + 2, "they went out at once");
    rig.ends_now();
    let mut config = Config::default();
    config.delivery.max_in_flight = 1;
    let mut rig = rig_with(config, Delays::default());
    let script = rig.open();
    script.with(|script| script.due = Some(Duration::ZERO));
    rig.publish(3);
    script.says(vec![Say::Up(figure)]);
    rig.turn();
    let me = rig.engine.identity(&rig.store);
    assert_eq!(me.first_unsettled, Some(me.may_have_sent + 1), "{me:?}");
    assert!(script.sent().is_empty());
}

impl Rig {
    fn ends_now(&mut self) {
        self.engine.lose(&self.store, self.now, LinkEnd::Closed);
        self.take();
        self.told.clear();
    }
}
