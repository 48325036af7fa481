//! The engine with servers that ack each message by itself, event by event and in virtual time: what
//! AMPS does not do and others do. One seed is one run.

mod link;
mod publisher;
mod seen;
mod server;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amps_client::delivery::{Config as Delivery, GapPolicy, Note};
use amps_client::{LinkEnd, Via};
use amps_store::testkit::Cut;
use amps_store::{Level, Options};

use super::Rng;
use super::ledger::Fate;
use link::{Channel, ToClient, lock};
use publisher::{Around, Book, Publisher, Settings, tell};
use seen::Seen;
use server::{Mode, Node};

/// What a seed may do to its world.
#[derive(Clone, Copy, Debug)]
struct Plan {
    mode: Mode,
    /// Servers, each with a stream of its own; the second one follows the first, or not yet.
    servers: usize,
    /// Old copies of the store are put back.
    restores: bool,
    /// Servers start again without their disks.
    diskless: bool,
    /// Somebody answers in the server's place.
    stranger: bool,
    /// Acks come in any order, and not all of them.
    loose_acks: bool,
    /// A message can be larger than a server takes.
    limits: bool,
    steps: u64,
}

impl Plan {
    fn draw(rng: &mut Rng) -> Plan {
        let mode = [Mode::Chained, Mode::ById, Mode::Window][rng.below(3) as usize];
        let servers = if rng.one_in(3) { 2 } else { 1 };
        // Without a mark nobody can tell that numbers were used before.
        let restores = mode == Mode::Chained && servers == 1 && rng.one_in(3);
        Plan {
            mode,
            servers,
            restores,
            diskless: rng.one_in(5),
            stranger: rng.one_in(6),
            loose_acks: rng.one_in(2),
            // What was refused here behind the back of a copy looks sent to it.
            limits: !restores && rng.one_in(3),
            steps: 50 + rng.below(200),
        }
    }
}

struct World {
    seed: u64,
    plan: Plan,
    now: Duration,
    rng: Rng,
    nodes: Vec<Node>,
    publisher: Publisher,
    left: Vec<Arc<Mutex<Channel>>>,
    copy: Option<(Vec<u8>, Book)>,
    seen: Seen,
    trace: Option<Vec<String>>,
    /// Until the end comes.
    faults: bool,
}

/// One run. Panics when something does not hold.
pub fn run(seed: u64, trace: &mut Option<Vec<String>>) -> Seen {
    let mut rng = Rng::new(seed ^ 0x516E);
    let plan = Plan::draw(&mut rng);
    let mut world = World {
        seed,
        plan,
        now: Duration::from_secs(1),
        nodes: nodes(plan, &mut rng),
        publisher: Publisher::new(settings(plan, &mut rng)),
        left: Vec::new(),
        copy: None,
        seen: Seen::default(),
        trace: trace.take().map(|mut lines| {
            lines.push(format!("{plan:?}"));
            lines
        }),
        faults: true,
        rng,
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.with(|p, around| p.start(around, None));
        for _ in 0..plan.steps {
            world.step();
        }
        world.finish();
    }));
    *trace = world.trace.take();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    world.seen
}

fn nodes(plan: Plan, rng: &mut Rng) -> Vec<Node> {
    let nodes = (0..plan.servers).map(|_| {
        let largest = match plan.limits {
            true => 40 + rng.below(1000) as usize,
            false => 1 << 20,
        };
        let room = if rng.one_in(3) { 3000 } else { 1 << 30 };
        let window = Duration::from_millis(if rng.one_in(3) { 500 } else { 1 << 30 });
        Node::new(plan.mode, largest, room, window)
    });
    nodes.collect()
}

fn settings(plan: Plan, rng: &mut Rng) -> Settings {
    let level = if rng.one_in(3) {
        Level::Disk
    } else {
        Level::Os
    };
    Settings {
        store: Options::new()
            .capacity(256 << 10)
            .client_name("single")
            .level(level),
        delivery: Delivery {
            grant_step: 1 << rng.below(8),
            max_in_flight: if rng.one_in(3) {
                1 + rng.below(8)
            } else {
                1 << 20
            },
            gap: match plan.servers == 1 || plan.diskless || rng.one_in(2) {
                true => GapPolicy::Report,
                false => GapPolicy::NextServer,
            },
            ..Delivery::default()
        },
        latency: Duration::from_millis(1 + rng.below(20)),
        slow_device: rng.one_in(2),
    }
}

impl World {
    fn with<T>(&mut self, act: impl FnOnce(&mut Publisher, &mut Around<'_>) -> T) -> T {
        let mut around = Around {
            seed: self.seed,
            now: self.now,
            rng: &mut self.rng,
            nodes: &mut self.nodes,
            left: &mut self.left,
            trace: &mut self.trace,
        };
        act(&mut self.publisher, &mut around)
    }

    fn step(&mut self) {
        let server = self.rng.below(self.plan.servers as u64) as usize;
        match self.rng.below(100) {
            0..45 => {
                for _ in 0..1 + self.rng.below(6) {
                    self.with(|p, around| p.publish(around));
                }
            }
            45..50 => self.link_ends(LinkEnd::Closed),
            50..52 => self.link_is_lost(),
            52..58 => self.crash(),
            58..61 => self.power_cut(),
            61..65 => self.leader_changes(),
            65..69 => self.restart(server),
            69..71 => {
                self.nodes[server].up = !self.nodes[server].up;
                self.cut_at(server);
            }
            71..74 => self.nodes[server].purge(),
            74..76 => self.line(server),
            76..80 if self.plan.servers == 2 => {
                let count = self.rng.below(20) as usize;
                self.follow(server, count);
            }
            80..84 if self.plan.stranger => self.stranger(),
            84..86 if !self.plan.restores => self.give_up(),
            86..88 if self.plan.limits => {
                self.nodes[server].largest = 40 + self.rng.below(1000) as usize;
                self.cut_at(server);
            }
            88..92 if self.plan.restores => self.copy_or_restore(),
            92..94 => self.mark(),
            _ => {}
        }
        let time = match self.rng.below(20) {
            0 => Duration::from_millis(self.rng.below(8000)),
            1..6 => Duration::from_millis(self.rng.below(200)),
            _ => Duration::from_micros(self.rng.below(10_000)),
        };
        let end = self.now + time;
        self.run_until(end, |_| false);
    }

    /// Lets time pass until `done`, at most until `end`; whether it is done.
    fn run_until(&mut self, end: Duration, done: impl Fn(&World) -> bool) -> bool {
        loop {
            self.at_server();
            self.with(|p, around| p.pump(around));
            if done(self) {
                return true;
            }
            if self.now >= end {
                return false;
            }
            let arrives = self.channel(|channel| channel.up.front().map(|(at, _)| *at));
            let late = self.left.iter();
            let late = late.filter_map(|channel| lock(channel).up.front().map(|(at, _)| *at));
            let next = [self.publisher.deadline(), arrives.flatten()];
            let next = next.into_iter().flatten().chain(late).min().unwrap_or(end);
            // What is overdue waits for another; time must not stand still.
            let soon = self.now + Duration::from_micros(200);
            self.now = next.max(soon).min(end);
        }
    }

    fn channel<T>(&self, act: impl FnOnce(&mut link::Channel) -> T) -> Option<T> {
        let process = self.publisher.process.as_ref()?;
        process
            .channel
            .as_ref()
            .map(|channel| act(&mut lock(channel)))
    }

    /// What arrives at the server is answered; what is left of earlier links arrives, too, and
    /// nobody reads the answers.
    fn at_server(&mut self) {
        for channel in std::mem::take(&mut self.left) {
            let (due, server) = {
                let mut channel = lock(&channel);
                let now = self.now;
                let due = channel.up.partition_point(|(at, _)| *at <= now);
                let due: Vec<_> = channel.up.drain(..due).map(|(_, what)| what).collect();
                (due, channel.server)
            };
            for what in due {
                if !self.nodes[server].up {
                    break;
                }
                tell!(self, "arrives late: {what:?}");
                self.nodes[server].takes(self.now, what);
            }
            if !lock(&channel).up.is_empty() {
                self.left.push(channel);
            }
        }
        loop {
            let now = self.now;
            let arrived = self.channel(|channel| {
                let due = channel.up.front().is_some_and(|(at, _)| *at <= now);
                let one = due.then(|| channel.up.pop_front()).flatten();
                one.map(|(_, what)| (channel.server, channel.latency, what))
            });
            let Some((server, latency, what)) = arrived.flatten() else {
                return;
            };
            if !self.nodes[server].up {
                continue;
            }
            let answer = self.nodes[server].takes(now, what);
            match &answer {
                ToClient::TryAgain { at_once: true, .. } => {
                    self.seen.behind_others += 1;
                    // Whose chain is broken asks where it has to begin anew.
                    let last = ToClient::Mark(self.nodes[server].last());
                    self.channel(|channel| channel.tells(now + latency, last));
                }
                ToClient::TryAgain { .. } => self.seen.turned_away += 1,
                ToClient::Refused { again: true, .. } if self.plan.mode == Mode::ById => {
                    self.seen.doubts += 1;
                }
                _ => {}
            }
            let loose = self.plan.loose_acks && self.faults;
            if loose && self.rng.one_in(30) {
                tell!(self, "an answer is lost: {answer:?}");
                continue;
            }
            let jitter = match loose {
                true => Duration::from_millis(self.rng.below(100)),
                false => Duration::ZERO,
            };
            self.channel(|channel| channel.tells(now + latency + jitter, answer));
        }
    }

    fn link_ends(&mut self, why: LinkEnd) {
        let now = self.now;
        self.channel(|channel| {
            channel.down.clear();
            channel.is_lost = false;
            channel.tells(now, ToClient::End(why));
            channel.is_lost = true;
        });
    }

    /// Half of it is lost, and nobody is told; the publisher's system gives up after a while.
    fn link_is_lost(&mut self) {
        let late = self.now + Duration::from_secs(5);
        self.channel(|channel| {
            channel.down.clear();
            channel.is_lost = false;
            channel.tells(late, ToClient::End(LinkEnd::HeartbeatLost));
            channel.is_lost = true;
        });
    }

    fn cut_at(&mut self, server: usize) {
        let here = self.channel(|channel| channel.server == server);
        if here == Some(true) {
            self.link_ends(LinkEnd::Closed);
        }
    }

    fn crash(&mut self) {
        self.with(|p, around| {
            p.kill(around);
            p.start(around, None);
        });
    }

    fn power_cut(&mut self) {
        let cuts = [Cut::None, Cut::All, Cut::Pages, Cut::Sectors];
        let cut = cuts[self.rng.below(4) as usize];
        self.seen.power_cuts += 1;
        self.with(|p, around| {
            p.kill(around);
            p.disk.power_cut(cut, around.rng);
            tell!(around, "power cut {cut:?}");
            let durable = p.durable();
            p.start(around, Some(durable));
        });
    }

    /// Some of what is on its way to the leader is lost with it, and what comes behind that is not.
    fn leader_changes(&mut self) {
        let rng = &mut self.rng;
        let process = self.publisher.process.as_ref();
        let Some(channel) = process.and_then(|process| process.channel.clone()) else {
            return;
        };
        let mut channel = lock(&channel);
        let before = channel.up.len();
        channel.up.retain(|_| !rng.one_in(3));
        self.seen.holes += (before - channel.up.len()) as u64;
        let lost = before - channel.up.len();
        drop(channel);
        tell!(self, "the leader changes, {lost} on their way are lost");
    }

    fn restart(&mut self, server: usize) {
        let empty = self.plan.diskless && self.rng.one_in(2);
        tell!(
            self,
            "server {server} starts again, without its disk: {empty}"
        );
        match empty {
            true => self.nodes[server].restart_empty(),
            false => self.nodes[server].restart(self.now),
        }
        self.cut_at(server);
    }

    fn line(&mut self, server: usize) {
        let stops = !self.nodes[server].line_stopped;
        self.nodes[server].line_stopped = stops;
        self.seen.stopped += u64::from(stops);
        let what = match stops {
            true => ToClient::LineStopped,
            false => ToClient::LineFree,
        };
        let now = self.now;
        self.channel(|channel| {
            if channel.server == server && channel.is_up {
                channel.tells(now, what);
            }
        });
    }

    /// One server takes over what the other one has, so many messages of it.
    fn follow(&mut self, from: usize, count: usize) {
        let other = self.nodes[from].ever.clone();
        if self.nodes[1 - from].follow(self.now, &other, count) {
            // It has no publisher of its own meanwhile.
            self.cut_at(1 - from);
        }
    }

    /// Somebody says of a number that was not sent that its id was seen before.
    fn stranger(&mut self) {
        let process = self.publisher.process.as_ref();
        let highest = self.channel(|channel| channel.highest);
        let (Some(highest), true) = (highest, process.is_some_and(|p| p.engine.is_live())) else {
            return;
        };
        let (now, wire) = (self.now, self.publisher.unsent(highest));
        self.seen.strangers += 1;
        self.channel(|channel| channel.tells(now, ToClient::Duplicate(wire)));
    }

    /// A server that keeps a prefix says how far it goes.
    fn mark(&mut self) {
        if self.plan.mode != Mode::Chained {
            return;
        }
        let now = self.now;
        let nodes = &self.nodes;
        self.channel(|channel| {
            if channel.is_up && nodes[channel.server].up {
                let mark = nodes[channel.server].last();
                channel.tells(now, ToClient::Mark(mark));
            }
        });
    }

    fn give_up(&mut self) {
        let first = self.publisher.book.unsettled().next();
        if let Some(sequence) = first {
            self.with(|p, around| p.give_up(around, sequence));
        }
    }

    fn copy_or_restore(&mut self) {
        let Some((copy, book)) = self.copy.take_if(|_| self.rng.one_in(2)) else {
            if self.publisher.process.is_some() {
                let copy = self.publisher.disk.bytes();
                self.copy = Some((copy, self.publisher.book.clone()));
            }
            return;
        };
        self.with(|p, around| p.kill(around));
        // What the original has on its way would collide with the copy's numbers, unseen by
        // anybody: let it arrive first.
        self.run_until(self.now + Duration::from_secs(2), |_| false);
        self.with(|p, around| p.restore(around, copy, book));
    }

    /// Everything that is broken is mended, and everything must be settled.
    fn finish(&mut self) {
        tell!(self, "faults end");
        self.faults = false;
        for node in &mut self.nodes {
            node.up = true;
            node.room = 1 << 30;
            node.line_stopped = false;
        }
        self.link_ends(LinkEnd::Closed);
        let end = self.now + Duration::from_secs(3600);
        while self.publisher.book.unsettled().next().is_some() {
            assert!(self.now < end, "something is stuck: {}", self.describe());
            if self.plan.servers == 2 {
                self.follow(0, usize::MAX);
                self.follow(1, usize::MAX);
            }
            let next = self.now + Duration::from_secs(3);
            self.run_until(next, |w| w.publisher.book.unsettled().next().is_none());
            self.operate();
        }
        self.judge();
    }

    /// What an operator does who reads the events.
    fn operate(&mut self) {
        let Some(first) = self.publisher.book.unsettled().next() else {
            return;
        };
        let notes = &self.publisher.notes;
        let unsendable =
            |note: &Note| matches!(note, Note::Unsendable { sequence, .. } if *sequence == first);
        // It may have been sent, for all that anybody knows, and now nobody takes it.
        if notes.iter().any(unsendable) && self.publisher.may_be_sent(first) {
            self.with(|p, around| p.give_up(around, first));
        }
        let last = self.publisher.notes.iter().rev();
        let mut last = last.filter(|n| matches!(n, Note::NameShared { .. } | Note::Rebased { .. }));
        if let Some(Note::NameShared { stopped: true, .. }) = last.next() {
            self.with(|p, around| p.allow_rebase(around));
        }
    }

    fn describe(&self) -> String {
        let open: Vec<u64> = self.publisher.book.unsettled().take(5).collect();
        format!("unsettled {open:?}")
    }

    fn judge(&mut self) {
        self.events_are_true();
        self.streams_are_right();
        self.count();
    }

    fn events_are_true(&self) {
        let plan = self.plan;
        for note in &self.publisher.notes {
            match note {
                // That another one may use the name is told of servers that know more than this run
                // has seen, too: of one that is ahead of the other.
                Note::NameShared { stopped: true, .. } => assert!(plan.restores, "{note:?}"),
                Note::ForeignFigure { .. } | Note::Rebased { .. } => {
                    assert!(plan.restores, "{note:?}");
                }
                Note::PublishGap { .. } => {
                    let behind = plan.servers == 2 || plan.diskless || plan.restores;
                    assert!(behind, "{note:?}");
                }
                _ => {}
            }
        }
        for end in &self.publisher.ends {
            if let LinkEnd::ForeignFigure = end {
                assert!(plan.stranger || plan.restores, "{end:?}");
            }
        }
    }

    /// What a server stored, it stored in order where that is promised, and once inside its window
    /// under one number.
    fn streams_are_right(&self) {
        let mut sequences: HashMap<&[u8], u64> = HashMap::new();
        for (sequence, message) in &self.publisher.book.messages {
            sequences.insert(&message.body, *sequence);
        }
        for node in &self.nodes {
            let (mut highest, mut seen) = (0, HashMap::new());
            for entry in &node.ever {
                if let Some(before) = seen.insert((&entry.body, entry.wire), entry.at) {
                    let apart = entry.at.saturating_sub(before) >= node.window;
                    assert!(
                        apart || node.losses > 0,
                        "{} is there twice inside the window",
                        entry.wire
                    );
                    continue;
                }
                let sequence = sequences.get(&entry.body[..]).copied();
                let sole = self.plan.servers == 1 && !self.plan.restores;
                if let (Some(sequence), true, Mode::Chained) = (sequence, sole, node.mode) {
                    assert!(sequence > highest, "{sequence} comes behind {highest}");
                    highest = sequence;
                }
            }
        }
    }

    fn count(&mut self) {
        let seen = &mut self.seen;
        for message in self.publisher.book.messages.values() {
            match message.fate {
                Fate::Persisted(Via::Ack) => seen.acked += 1,
                Fate::Persisted(Via::Logon) => seen.marked += 1,
                Fate::Persisted(Via::Duplicate) => seen.duplicates += 1,
                Fate::Persisted(Via::Found) => seen.found += 1,
                _ => {}
            }
        }
        let refusals = self.publisher.book.refusals.values();
        let (unsent, others): (Vec<_>, Vec<_>) =
            refusals.partition(|(reason, _)| reason.starts_with("not sent"));
        seen.unsendable += unsent.len() as u64;
        seen.refused += others.len() as u64;
        for end in &self.publisher.ends {
            seen.overdue += u64::from(matches!(end, LinkEnd::AckOverdue { .. }));
        }
        for note in &self.publisher.notes {
            seen.gaps += u64::from(matches!(note, Note::PublishGap { .. }));
            seen.rebases += u64::from(matches!(note, Note::Rebased { .. }));
        }
    }
}
