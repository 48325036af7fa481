//! What goes wrong in a run, decided by its seed, and what must hold at its end.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use amps_client::delivery::{Config as Delivery, GapPolicy, Note, RebasePolicy};
use amps_sandbox::{Candidate, Config, Dialect, Fault};
use amps_store::testkit::{Cut, Fault as DiskFault, end_step};
use amps_store::{Level, Options};

use super::Rng;
use super::ledger::{self, Book, Fate};
use super::manners::{Manners, Said};
use super::publisher::{Counts, Publisher, Settings, trace};
use super::world::World;

/// What a seed may do to its world. Some wrongs cannot be told from others' doings by
/// anybody, so they do not come together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    servers: usize,
    publishers: usize,
    /// Publishers use one name.
    shared: bool,
    /// Old copies of stores are put back.
    restores: bool,
    /// Servers forget names.
    forgets: bool,
    /// The name was used by a store that is gone.
    used_name: bool,
    /// The server acks per message with ids, says no figure at logon, knows no duplicates.
    per_message: bool,
    /// Publishes carry their number as command id, and refusals carry nothing else.
    ids_only: bool,
    /// Servers are as talkative and as fickle as no document forbids.
    manners: bool,
    /// Servers say less at a logon than they know.
    lower_logons: bool,
    /// Servers know users and ask again.
    challenges: bool,
    /// Disks fail.
    disk_faults: bool,
    steps: u64,
}

impl Plan {
    fn draw(rng: &mut Rng) -> Plan {
        let mut plan = Plan {
            servers: if rng.one_in(3) { 2 } else { 1 },
            publishers: 1 + rng.below(3) as usize,
            steps: 100 + rng.below(400),
            disk_faults: rng.one_in(6),
            ..Plan::default()
        };
        match rng.below(12) {
            0 => {
                plan.shared = true;
                plan.publishers = 2;
                plan.servers = 1;
            }
            1 | 2 => {
                plan.restores = true;
                plan.servers = 1;
            }
            3 => plan.forgets = true,
            4 | 5 => plan.used_name = true,
            6 => {
                plan.per_message = true;
                plan.servers = 1;
            }
            _ => {}
        }
        plan.disk_faults |= plan.used_name && rng.one_in(2);
        plan.manners = rng.one_in(2);
        plan.challenges = rng.one_in(4);
        if plan.shared || plan.per_message {
            return plan;
        }
        // The wrongs of one store come together as well.
        plan.ids_only = rng.one_in(4);
        if rng.one_in(4) {
            plan.used_name |= rng.one_in(2);
            plan.forgets |= rng.one_in(2);
            plan.restores |= rng.one_in(2);
        }
        // Where one server forgot a name that a lost store had used, and another remembers it,
        // the other's figure looks like our own: nobody can tell.
        if plan.restores || plan.forgets && plan.used_name {
            plan.servers = 1;
        }
        // Less than another's figure can look like one of our own.
        plan.lower_logons = plan.manners && !plan.used_name && !plan.restores && rng.one_in(4);
        plan
    }

    fn manners(&self, rng: &mut Rng) -> Manners {
        let mut manners = Manners {
            failure_first: !self.per_message && rng.one_in(4),
            ids_only: self.ids_only,
            ..Manners::default()
        };
        if self.manners {
            manners.acks_duplicates =
                self.lower_logons || !self.shared && !self.per_message && rng.one_in(2);
            manners.chatter = rng.one_in(2);
            manners.repeats = rng.one_in(2);
            manners.any_kind = rng.one_in(2);
            manners.refuses_logons = rng.one_in(3);
            manners.lower_logons = self.lower_logons;
            manners.breaks_off = rng.one_in(2);
        }
        manners
    }
}

/// Totals over runs, so that a set of seeds can show that it did something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub runs: u64,
    pub published: u64,
    pub acked: u64,
    pub at_logon: u64,
    pub refused: u64,
    pub lost_by_power: u64,
    pub crashes: u64,
    pub power_cuts: u64,
    pub restores: u64,
    pub rebases: u64,
    pub gaps: u64,
    pub shared: u64,
    pub handled: u64,
    pub logons_that_wait: u64,
    pub counts: Counts,
    pub said: Said,
}

struct Run {
    plan: Plan,
    world: World,
    copies: Vec<Option<(Vec<u8>, Book)>>,
    seen: Seen,
}

/// One run. Panics when something does not hold.
pub fn run(seed: u64, trace: &mut Option<Vec<String>>) -> Seen {
    let mut rng = Rng::new(seed ^ 0x5EED);
    let plan = Plan::draw(&mut rng);
    let mut run = Run {
        plan,
        world: build(seed, plan, &mut rng),
        copies: vec![None; plan.publishers],
        seen: Seen::default(),
    };
    run.world.trace = trace.take().map(|mut lines| {
        lines.push(format!("{plan:?}"));
        lines
    });
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        run.begin();
        for _ in 0..plan.steps {
            run.step();
        }
        run.finish();
    }));
    *trace = run.world.trace.take();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    run.seen
}

fn build(seed: u64, plan: Plan, rng: &mut Rng) -> World {
    let servers = (0..plan.servers).map(|_| {
        let interval = match rng.below(3) {
            0 => Duration::ZERO,
            1 => Duration::from_millis(20),
            _ => Duration::from_millis(200),
        };
        let dialect = match plan.per_message {
            true => Dialect::PerMessage,
            false => Dialect::Documented,
        };
        let config = match plan.challenges {
            true => Config::new().user("ann", "pw").challenge(),
            false => Config::new(),
        };
        config
            .ack_interval(interval)
            .dialect(dialect)
            .reject_when(|candidate: &Candidate<'_>| ledger::refusal(candidate.body))
    });
    let mut world = World::new(seed, servers.collect());
    for server in &mut world.servers {
        // Only what a slow server has not counted yet can collide with a fresh store's numbers.
        let slowest = if plan.used_name && rng.one_in(3) {
            300
        } else {
            30
        };
        server.device = Duration::from_millis(rng.below(slowest));
        server.behave(plan.manners(rng), rng.bits());
    }
    if plan.servers == 2 {
        world.servers[0].replicated.insert(1, 0);
        world.servers[1].replicated.insert(0, 0);
    }
    world.latency = Duration::from_millis(1 + rng.below(20));
    for id in 0..plan.publishers {
        world.add(settings(id, plan, rng));
    }
    world
}

fn settings(id: usize, plan: Plan, rng: &mut Rng) -> Settings {
    let name = match plan.shared {
        true => "shared".to_owned(),
        false => format!("pub-{id}"),
    };
    let mut settings = Settings::new(&name);
    let level = if rng.one_in(3) {
        Level::Disk
    } else {
        Level::Os
    };
    settings.store = Options::new()
        .capacity(64 << 10 << rng.below(3))
        .client_name(name)
        .level(level)
        .preallocate(rng.one_in(2));
    // A server that forgot, or whose numbers come from another life, stays behind for good.
    let patient = plan.forgets || plan.used_name || plan.servers == 1 || plan.restores;
    settings.delivery = Delivery {
        grant_step: 1 << rng.below(8),
        max_in_flight: if rng.one_in(4) {
            1 + rng.below(8)
        } else {
            1 << 20
        },
        max_in_flight_bytes: if rng.one_in(4) { 200 } else { 64 << 20 },
        replay_rate: rng.one_in(5).then_some(200),
        gap: match patient || rng.one_in(2) {
            true => GapPolicy::Report,
            false => GapPolicy::NextServer,
        },
        rebase: RebasePolicy::Rebase,
        ..Delivery::default()
    };
    settings.heartbeat = (!rng.one_in(5)).then_some(Duration::from_secs(1));
    settings.publish_ids = plan.ids_only || plan.per_message != rng.one_in(4);
    settings.slow_device = true;
    settings.nameless = plan.per_message && !settings.publish_ids;
    settings.servers = (0..plan.servers).collect();
    settings.declines = if rng.one_in(3) { 3 } else { 0 };
    settings.shared = plan.shared;
    settings
}

impl Run {
    /// Starts the publishers; the name of some was used before by a store that is gone.
    fn begin(&mut self) {
        for id in 0..self.plan.publishers {
            if self.plan.used_name {
                self.world.start(id);
                let count = 1 + self.world.rng.below(30);
                for _ in 0..count {
                    self.world.with(id, |p, around| p.publish(around));
                }
                let time = Duration::from_millis(self.world.rng.below(3000));
                self.world.run(time);
                // What a server has in its hands when the process dies, it counts after the logon
                // of the fresh store.
                if self.world.rng.one_in(2) {
                    for _ in 0..1 + self.world.rng.below(8) {
                        self.world.with(id, |p, around| p.publish(around));
                    }
                    let time = Duration::from_millis(self.world.rng.below(60));
                    self.world.run(time);
                }
                self.world.with(id, |p, around| p.kill(around));
                // A server that has counted nothing yet looks as if it did not know the name,
                // and what it holds would collide with the fresh store's first numbers.
                let name = self.world.publishers[id].settings.name.clone();
                let end = self.world.now + Duration::from_secs(2);
                self.world.run_until(end, |w| {
                    w.servers.iter().all(|s| s.server.settled(&name) > 0)
                });
                let settings = self.world.publishers[id].settings.clone();
                let lineage = self.world.publishers[id].book.lineage;
                let mut fresh = Publisher::new(id, settings);
                fresh.book.lineage = lineage + 1;
                self.world.publishers[id] = fresh;
                self.world.links.clear();
            }
            self.world.start(id);
            if self.plan.used_name {
                if self.plan.disk_faults && !self.world.rng.one_in(4) {
                    self.world.publishers[id]
                        .disk
                        .fail(DiskFault::WriteAround(0));
                }
                // The first moments are those in which a rebase is under way.
                for _ in 0..self.world.rng.below(4) {
                    let time = Duration::from_millis(self.world.rng.below(600));
                    self.world.run(time);
                    self.world.cut(id);
                }
            }
        }
    }

    fn step(&mut self) {
        let id = self.world.rng.below(self.plan.publishers as u64) as usize;
        let server = self.world.rng.below(self.plan.servers as u64) as usize;
        match self.world.rng.below(1000) {
            0..450 => {
                for _ in 0..1 + self.world.rng.below(6) {
                    let published = self.world.with(id, |p, around| p.publish(around));
                    self.seen.published += u64::from(published.is_some());
                }
            }
            450..500 => {
                let until = match self.world.rng.one_in(2) {
                    true => None,
                    false => Some(self.world.now + Duration::from_millis(300)),
                };
                self.world.with(id, |p, around| p.flush(around, until));
            }
            500..540 => self.world.cut(id),
            540..555 => self.half_open(id),
            555..600 => {
                // Somewhere in what it does next.
                let points = self.world.rng.below(30) as u32;
                self.world.publishers[id].points.die_in(points);
                self.seen.crashes += 1;
            }
            600..620 => {
                let cuts = [Cut::None, Cut::All, Cut::Pages, Cut::Sectors];
                let cut = cuts[self.world.rng.below(4) as usize];
                self.world.power_cut(id, cut);
                self.seen.power_cuts += 1;
            }
            620..635 => {
                self.world
                    .with(id, |p, around| p.close(around))
                    .expect("opens");
            }
            635..660 if self.plan.restores => self.copy_or_restore(id),
            660..680 => {
                self.world.restart_server(server);
            }
            680..695 => {
                let up = !self.world.servers[server].up;
                self.server_up(server, up);
            }
            695..730 => self.server_fault(server),
            730..740 if self.plan.forgets => self.forget(server, id),
            740..770 if self.plan.servers == 2 => self.replication(server),
            770..785 => drop(self.world.with(id, |p, around| p.requeue(around))),
            785..795 if self.plan.disk_faults => {
                let nth = self.world.rng.below(3);
                let fault = match self.world.rng.below(3) {
                    0 => DiskFault::Sync(nth),
                    1 => DiskFault::WriteAround(nth),
                    _ => DiskFault::Reserve(0),
                };
                self.world.publishers[id].disk.fail(fault);
            }
            // What was given up behind the back of a copy looks sent to it: a foreign figure
            // within what may have been sent (`docs/promises.md`, Numbers).
            795..810 if self.plan.servers == 1 && !self.plan.restores => self.give_up(id),
            810..815 => {
                self.world.servers[server].device = Duration::from_millis(self.world.rng.below(300))
            }
            _ => {}
        }
        let time = match self.world.rng.below(20) {
            0 => Duration::from_millis(self.world.rng.below(5000)),
            1..6 => Duration::from_millis(self.world.rng.below(200)),
            _ => Duration::from_micros(self.world.rng.below(10_000)),
        };
        self.world.run(time);
        self.revive();
    }

    /// Starts dead processes again.
    fn revive(&mut self) {
        for id in 0..self.plan.publishers {
            if self.world.publishers[id].process.is_none() {
                self.world.restart(id);
            }
        }
    }

    fn half_open(&mut self, id: usize) {
        let Some(link) = self.world.publishers[id]
            .process
            .as_ref()
            .and_then(|p| p.link)
        else {
            return;
        };
        let which = self.world.rng.below(3);
        if let Some(link) = self.world.links.get_mut(&link) {
            link.up.lost |= which != 0;
            link.down.lost |= which != 1;
        }
        trace!(self.world, "p{id}'s link is half open ({which})");
    }

    fn copy_or_restore(&mut self, id: usize) {
        match self.copies[id].take() {
            // A copy of a live file would need the luck of a consistent moment; the
            // simulated disk gives it.
            None => {
                let publisher = &self.world.publishers[id];
                let failed = publisher
                    .process
                    .as_ref()
                    .is_none_or(|p| amps_store::testkit::has_failed(&p.store));
                if !failed {
                    let copy = (publisher.disk.bytes(), publisher.book.clone());
                    self.copies[id] = Some(copy);
                    trace!(self.world, "p{id}'s store is copied");
                }
            }
            Some((copy, book)) => {
                // A server counts at logon what its log holds. Whatever the original has
                // in the server's hands beyond that would collide with the numbers right
                // above the figure, unseen by anybody: let it be decided first.
                self.world.with(id, |p, around| p.kill(around));
                self.world.run(Duration::from_secs(2));
                self.world
                    .with(id, |p, around| p.restore(around, copy, book))
                    .expect("opens");
                self.seen.restores += 1;
                // What a copy may do first is a rebase, with messages under its grant that wait.
                if self.plan.disk_faults && !self.world.rng.one_in(4) {
                    let disk = &self.world.publishers[id].disk;
                    disk.fail(DiskFault::WriteAround(0));
                }
            }
        }
    }

    fn server_up(&mut self, server: usize, up: bool) {
        trace!(self.world, "server {server} up: {up}");
        if !up {
            self.world.restart_server(server);
        }
        self.world.servers[server].up = up;
    }

    fn server_fault(&mut self, server: usize) {
        let n = 1 + self.world.rng.below(20);
        let fault = match self.world.rng.below(7) {
            0 => Fault::CloseAfter(n),
            1 => Fault::CutAfter(n),
            2 => Fault::StallAfter(n),
            3 => Fault::LoseAcksAfter(n),
            4 => Fault::DelayAcks(Duration::from_millis(n * 10)),
            _ => return self.world.servers[server].server.clear_faults(),
        };
        trace!(self.world, "server {server}: {fault:?}");
        let now = self.world.now;
        let effects = self.world.servers[server].inject(&fault, now);
        self.world.apply(server, effects);
    }

    fn forget(&mut self, server: usize, id: usize) {
        let name = self.world.publishers[id].settings.name.clone();
        trace!(self.world, "server {server} forgets {name}");
        // A server that loses its memory loses its links.
        let now = self.world.now;
        let effects = self.world.servers[server].inject(&Fault::Forget(name), now);
        self.world.apply(server, effects);
        // One that remembers after its next start what it had forgotten is two servers: another's
        // figure is above ours while it remembers, and within what we were granted meanwhile.
        if self.plan.restores || self.plan.used_name {
            self.world.servers[server].sync();
        }
        let held = self.world.publishers[id]
            .process
            .as_ref()
            .and_then(|p| p.link);
        if let Some(link) =
            held.filter(|l| self.world.links.get(l).is_some_and(|l| l.server == server))
        {
            self.world.cut_link(link);
            if let Some(link) = self.world.links.get_mut(&link) {
                link.up.lost = true;
                let at_server = link.at_server;
                self.world.servers[server].disconnect(at_server);
            }
        }
    }

    fn replication(&mut self, server: usize) {
        let model = &mut self.world.servers[server];
        match self.world.rng.below(3) {
            0 => model.replicating = !model.replicating,
            1 => model.waits_for = vec![1 - server],
            _ => model.waits_for.clear(),
        }
        trace!(
            self.world,
            "server {server} replicates: {}, waits for {:?}",
            self.world.servers[server].replicating,
            self.world.servers[server].waits_for
        );
    }

    fn give_up(&mut self, id: usize) {
        let power_fails = self.world.rng.one_in(2);
        if power_fails {
            // Given up before it is sent, by a process that is logged on in a moment.
            self.world.with(id, |p, around| p.kill(around));
            self.world.restart(id);
            self.world.with(id, |p, around| p.publish(around));
        }
        let publisher = &self.world.publishers[id];
        if publisher.process.is_none() {
            return;
        }
        let chosen = match power_fails {
            true => publisher.book.unsettled().last(),
            false => publisher.book.unsettled().next(),
        };
        let Some(sequence) = chosen else {
            return;
        };
        self.world.with(id, |p, around| {
            let reason = "given up by an operator";
            p.give_up(around, sequence, reason);
        });
        if power_fails {
            // What goes out behind it rests on the give-up, whatever becomes of the power.
            let behind = self.world.with(id, |p, around| p.publish(around));
            let end = self.world.now + Duration::from_millis(1500);
            self.world.run_until(end, |w| {
                let open = w.publishers[id].book.unsettled();
                open.last().is_none_or(|last| Some(last) != behind)
            });
            let cuts = [Cut::Pages, Cut::Sectors];
            let cut = cuts[self.world.rng.below(2) as usize];
            self.world.power_cut(id, cut);
            self.seen.power_cuts += 1;
        }
    }

    /// Everything that is broken is repaired, and everything must drain.
    fn finish(&mut self) {
        trace!(self.world, "faults end");
        for server in 0..self.plan.servers {
            self.server_up(server, true);
            let model = &mut self.world.servers[server];
            model.server.clear_faults();
            model.replicating = true;
            model.device = Duration::ZERO;
        }
        for id in 0..self.plan.publishers {
            let publisher = &mut self.world.publishers[id];
            publisher.points.live();
            publisher.settings.declines = 0;
            publisher.disk.clear_faults();
            if let Some(process) = &publisher.process {
                // What is under way may have met a fault already; it shows in has_failed.
                let _ = end_step(&process.store);
            }
            let failed = publisher
                .process
                .as_ref()
                .is_none_or(|p| amps_store::testkit::has_failed(&p.store));
            // A refusal that was declined is offered again at the next open.
            if failed || !publisher.book.waiting().is_empty() {
                self.world.restart(id);
            }
        }
        // Keep-alive of the systems below ends what only looks open, and what a fault
        // struck dumb stays so until it is closed.
        let lost: Vec<u64> = self.world.links.keys().copied().collect();
        for id in lost {
            if let Some(link) = self.world.links.get_mut(&id) {
                link.up.lost = false;
                link.down.lost = false;
            }
            self.world.cut_link(id);
        }
        match self.plan.shared {
            true => self.world.run(Duration::from_secs(60)),
            false => self.drain(),
        }
        self.judge();
    }

    fn drain(&mut self) {
        let end = self.world.now + Duration::from_secs(1200);
        while !self.world.publishers.iter().all(Publisher::is_done) {
            let told = self
                .world
                .publishers
                .iter()
                .map(|p| p.notes.len())
                .sum::<usize>();
            let nameless = self.world.publishers.iter().any(|p| p.settings.nameless);
            let patience = Duration::from_secs(if nameless { 2 } else { 30 });
            let next = (self.world.now + patience).min(end);
            self.world
                .run_until(next, |w| w.publishers.iter().all(Publisher::is_done));
            assert!(
                self.world.now < end,
                "something is stuck: {}",
                self.world.describe()
            );
            // A replica that was given what a publisher sends drops it without a word, and
            // no document promises an ack for that, nor for what a server forgot: the next
            // logon tells.
            if self.plan.servers > 1 || self.plan.forgets || self.plan.lower_logons {
                for id in 0..self.plan.publishers {
                    self.world.cut(id);
                }
            }
            // Nobody will ever say again what became of the last message, if it was refused:
            // an operator reads that a refusal named nobody, and gives up on it.
            for id in 0..self.plan.publishers {
                if self.world.publishers[id].settings.nameless {
                    self.give_up(id);
                }
            }
            // An operator reads that sending stopped, knows that nobody else uses the
            // name, and allows one more rebase.
            for id in 0..self.plan.publishers {
                let stopped = self.world.publishers[id]
                    .notes
                    .iter()
                    .rev()
                    .find(|n| matches!(n, Note::NameShared { .. } | Note::Rebased { .. }))
                    .is_some_and(|n| matches!(n, Note::NameShared { stopped: true, .. }));
                if stopped && told > 0 {
                    self.world.with(id, |p, around| p.allow_rebase(around));
                }
            }
        }
    }

    fn judge(&mut self) {
        for id in 0..self.plan.publishers {
            let publisher = &self.world.publishers[id];
            self.nothing_lost(publisher);
            self.refusals_reported(publisher);
            self.events_are_true(publisher);
            self.order_kept(publisher);
        }
        self.nothing_invented();
        self.count();
    }

    /// Everything published is settled; the evidence was checked when it was.
    fn nothing_lost(&self, publisher: &Publisher) {
        if self.plan.shared {
            return;
        }
        for (sequence, message) in &publisher.book.messages {
            let name = &publisher.settings.name;
            let wires = self.world.wires.of(name, &message.body);
            let held = |s: &super::server::Model| {
                let forgot = s.forgets > 0 || s.manners.lower_logons;
                let said = forgot || publisher.settings.nameless;
                s.holds(name, &message.body) || said && s.refused(name, &wires)
            };
            match message.fate {
                Fate::Unsettled => panic!("{sequence} is unsettled at the end"),
                Fate::Persisted(amps_client::Via::Ack) if self.plan.servers == 1 => {
                    assert!(self.world.servers.iter().any(held), "{sequence} is nowhere");
                }
                _ => {}
            }
        }
    }

    fn refusals_reported(&self, publisher: &Publisher) {
        if self.plan.shared {
            return;
        }
        for (sequence, refusal) in &publisher.book.refusals {
            assert!(
                refusal.handled > 0,
                "the refusal of {sequence} was never handled"
            );
        }
    }

    fn events_are_true(&self, publisher: &Publisher) {
        let foreign = self.plan.shared || self.plan.restores || self.plan.used_name;
        for note in &publisher.notes {
            match note {
                Note::ForeignFigure { .. } | Note::Rebased { .. } => {
                    assert!(foreign, "nobody else used the name: {note:?}");
                }
                Note::NameShared { stopped: true, .. } => {
                    assert!(foreign, "nobody else used the name: {note:?}");
                }
                Note::PublishGap {
                    server, settled, ..
                } => {
                    // After a restart nobody knows any more that it was not a server who
                    // settled what an operator gave up.
                    let given_up = publisher.book.given_up(*server + 1, *settled);
                    let possible = given_up
                        || self.plan.forgets
                        || self.plan.servers > 1
                        || foreign
                        || self.plan.lower_logons;
                    assert!(possible, "the server lost nothing: {note:?}");
                }
                _ => {}
            }
        }
        let (told, nameless) = (&publisher.unattributed, publisher.settings.nameless);
        let servers = self.world.servers.iter();
        // Failures beside names that are nobody's may be of a message.
        let said = servers.map(|server| server.said.nameless + server.said.chatter);
        let said: u64 = said.sum();
        // A server that was told of another's messages refuses them as well.
        assert!(foreign || nameless || told.len() as u64 <= said, "{told:?}");
        assert!(
            publisher.misnamed <= told.len(),
            "{} refusals were covered by a success, {} were told",
            publisher.misnamed,
            told.len()
        );
    }

    /// At every server, messages first appear in the order they were published, and twice
    /// only where that was told.
    fn order_kept(&self, publisher: &Publisher) {
        // The original and its restored copy each keep an order of their own.
        if self.plan.shared || self.plan.per_message || self.plan.restores {
            return;
        }
        let reported = publisher.notes.iter().any(
            |n| matches!(n, Note::Rebased { possible_duplicates, .. } if *possible_duplicates > 0),
        );
        let mut sequences: HashMap<&[u8], Vec<u64>> = HashMap::new();
        for (sequence, message) in &publisher.book.messages {
            sequences.entry(&message.body).or_default().push(*sequence);
        }
        // What was published again under another number may be anywhere behind the first.
        sequences.retain(|_, all| all.len() == 1);
        for server in &self.world.servers {
            let mut highest = 0;
            let mut seen = HashSet::new();
            for body in server.bodies(&publisher.settings.name) {
                let Some(sequence) = sequences.get(body).map(|all| all[0]) else {
                    continue;
                };
                if !seen.insert(sequence) {
                    assert!(
                        reported || server.forgets > 0,
                        "{sequence} is there twice and nothing was said"
                    );
                    continue;
                }
                // What a peer sends again to a server that forgot is not the client's doing.
                let by_peer = server.forgets > 0 && self.plan.servers > 1;
                assert!(
                    by_peer || sequence > highest,
                    "{sequence} comes after {highest}"
                );
                highest = highest.max(sequence);
            }
        }
    }

    /// A server has nothing that no publisher sent.
    fn nothing_invented(&self) {
        for server in &self.world.servers {
            for entry in server
                .log
                .iter()
                .filter(|entry| !entry.refused && entry.wire > 0)
            {
                let wires = self.world.wires.of(&entry.name, &entry.body);
                assert!(wires.contains(&entry.wire), "{} was never sent", entry.wire);
            }
        }
    }

    fn count(&mut self) {
        let seen = &mut self.seen;
        seen.runs = 1;
        for publisher in &self.world.publishers {
            for message in publisher.book.messages.values() {
                match message.fate {
                    Fate::Persisted(amps_client::Via::Ack) => seen.acked += 1,
                    Fate::Persisted(_) => seen.at_logon += 1,
                    Fate::Rejected(_) => seen.refused += 1,
                    Fate::Lost => seen.lost_by_power += 1,
                    Fate::Unsettled => {}
                }
            }
            seen.handled += publisher.handled.len() as u64;
            seen.counts += publisher.counts();
            for note in &publisher.notes {
                match note {
                    Note::Rebased { .. } => seen.rebases += 1,
                    Note::PublishGap { .. } => seen.gaps += 1,
                    Note::ForeignFigure { .. } => seen.logons_that_wait += 1,
                    Note::NameShared { .. } => seen.shared += 1,
                    _ => {}
                }
            }
        }
        for server in &self.world.servers {
            seen.said += server.said;
        }
    }
}

impl Seen {
    /// What a set of seeds must have seen, or its judgements mean nothing.
    pub fn worth_judging(&self) -> [(&'static str, u64); 19] {
        let (counts, said) = (&self.counts, &self.said);
        [
            ("a message sent again", counts.resent),
            ("a possible duplicate", counts.possible_duplicates),
            (
                "a refusal of what was tried before",
                counts.retried_refusals,
            ),
            ("a message that breaks every link", counts.stalls),
            ("a link that takes no more", counts.at_bound),
            ("a message above a figure", counts.above_figure),
            ("a paced replay", counts.paced),
            ("an ack that counts", counts.acks_applied),
            ("a challenge", counts.challenges),
            ("a refused logon", counts.refused_logons),
            ("a frame that is none", counts.no_frames),
            ("a logon that waits for a rebase", self.logons_that_wait),
            ("an answer to a duplicate", said.duplicates),
            ("an ack of nothing", said.chatter),
            ("a refusal that names nobody", said.nameless),
            ("a repeated ack", said.repeats),
            ("a refusal of another kind", said.other_kinds),
            ("a refusal by id alone", said.ids_only),
            ("a lower figure at a logon", said.lower_logons),
        ]
    }
}

impl std::ops::AddAssign for Seen {
    fn add_assign(&mut self, other: Seen) {
        self.runs += other.runs;
        self.published += other.published;
        self.acked += other.acked;
        self.at_logon += other.at_logon;
        self.refused += other.refused;
        self.lost_by_power += other.lost_by_power;
        self.crashes += other.crashes;
        self.power_cuts += other.power_cuts;
        self.restores += other.restores;
        self.rebases += other.rebases;
        self.gaps += other.gaps;
        self.shared += other.shared;
        self.handled += other.handled;
        self.logons_that_wait += other.logons_that_wait;
        self.counts += other.counts;
        self.said += other.said;
    }
}
