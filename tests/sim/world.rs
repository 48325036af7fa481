//! Publishers, servers and the network between them, moved through virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use amps_sandbox::{Candidate, Closing, Config};
use amps_store::testkit::Cut;

use super::Rng;
use super::ledger::{self, Wires};
use super::link::{Arrival, Link};
use super::publisher::{Around, Publisher, Settings, trace};
use super::server::{Effects, Model};

/// Everything. One seed, one history.
pub struct World {
    pub seed: u64,
    pub now: Duration,
    pub rng: Rng,
    pub servers: Vec<Model>,
    pub publishers: Vec<Publisher>,
    pub links: BTreeMap<u64, Link>,
    next_link: u64,
    pub wires: Wires,
    /// Longest time a write takes to the other end.
    pub latency: Duration,
    pub trace: Option<Vec<String>>,
}

/// A server that refuses what [`ledger::refusal`] says.
pub fn config() -> Config {
    Config::new()
        .ack_interval(Duration::from_millis(100))
        .reject_when(|candidate: &Candidate<'_>| ledger::refusal(candidate.body))
}

impl World {
    pub fn new(seed: u64, servers: Vec<Config>) -> Self {
        World {
            seed,
            now: Duration::from_secs(1),
            rng: Rng::new(seed),
            servers: servers.into_iter().map(Model::new).collect(),
            publishers: Vec::new(),
            links: BTreeMap::new(),
            next_link: 1,
            wires: Wires::default(),
            latency: Duration::from_millis(1),
            trace: None,
        }
    }

    /// Adds a publisher, not started.
    pub fn add(&mut self, settings: Settings) -> usize {
        let id = self.publishers.len();
        self.publishers.push(Publisher::new(id, settings));
        id
    }

    /// Does something with a publisher and everything around it.
    pub fn with<T>(
        &mut self,
        publisher: usize,
        act: impl FnOnce(&mut Publisher, &mut Around<'_>) -> T,
    ) -> T {
        let mut around = Around {
            seed: self.seed,
            now: self.now,
            rng: &mut self.rng,
            servers: &mut self.servers,
            links: &mut self.links,
            next_link: &mut self.next_link,
            wires: &mut self.wires,
            latency: self.latency,
            trace: &mut self.trace,
        };
        act(&mut self.publishers[publisher], &mut around)
    }

    pub fn start(&mut self, publisher: usize) {
        self.with(publisher, |p, around| p.start(around))
            .expect("opens");
    }

    /// Publishes so many messages, each as soon as there is room for it.
    pub fn publish(&mut self, publisher: usize, count: u64) -> Vec<u64> {
        let mut publish = || {
            for _ in 0..1000 {
                if let Some(sequence) = self.with(publisher, |p, around| p.publish(around)) {
                    return sequence;
                }
                self.run(Duration::from_millis(1));
            }
            panic!("no room for a second");
        };
        (0..count).map(|_| publish()).collect()
    }

    pub fn restart(&mut self, publisher: usize) {
        self.with(publisher, |p, around| p.restart(around))
            .expect("opens");
    }

    pub fn power_cut(&mut self, publisher: usize, cut: Cut) {
        self.with(publisher, |p, around| p.power_cut(around, cut))
            .expect("opens");
    }

    /// Cuts a publisher's link; what is under way is lost behind some byte.
    pub fn cut(&mut self, publisher: usize) {
        let Some(id) = self.publishers[publisher]
            .process
            .as_ref()
            .and_then(|p| p.link)
        else {
            return;
        };
        self.cut_link(id);
    }

    pub fn cut_link(&mut self, id: u64) {
        trace!(self, "link {id} is cut");
        if let Some(link) = self.links.get_mut(&id) {
            link.up.cut(self.now, &mut self.rng);
            link.down.cut(self.now, &mut self.rng);
        }
    }

    /// The link a publisher has.
    pub fn link(&mut self, publisher: usize) -> &mut Link {
        let process = self.publishers[publisher].process.as_ref().expect("runs");
        let id = process.link.expect("it has a link");
        self.links.get_mut(&id).expect("links in use are there")
    }

    /// Lets a server say something on a publisher's link, whatever its rules say.
    pub fn say(&mut self, publisher: usize, frame: Vec<u8>) {
        let at = self.now;
        self.link(publisher).down.send(at, frame);
    }

    /// A server process dies and starts again at once; its links are cut.
    pub fn restart_server(&mut self, server: usize) {
        trace!(self, "server {server} dies");
        for link in self.links.values_mut().filter(|link| link.server == server) {
            link.up = Default::default();
            link.up.lost = true;
            link.down.cut(self.now, &mut self.rng);
        }
        self.servers[server].restart();
    }

    /// Moves everything that is due now.
    pub fn settle(&mut self) {
        let ids: Vec<u64> = self.links.keys().copied().collect();
        for id in ids {
            self.at_server(id);
        }
        // Replication is due as soon as there is something to copy, and no deadline says so:
        // it comes behind what arrived.
        loop {
            for server in 0..self.servers.len() {
                let effects = self.servers[server].tick(self.now);
                self.apply(server, effects);
            }
            // A copy that arrived may be what an ack waits for.
            if !self.replicate() {
                break;
            }
        }
        for publisher in 0..self.publishers.len() {
            let died = self.with(publisher, |p, around| p.pump(around)).is_err();
            if died {
                self.with(publisher, |p, around| p.kill(around));
            }
        }
        let publishers = &self.publishers;
        // The server's side of a link that only looks open is known to the server alone.
        self.links.retain(|id, link| {
            let used = publishers[link.publisher]
                .process
                .as_ref()
                .is_some_and(|p| p.link == Some(*id));
            used || link.up.deadline().is_some()
        });
    }

    /// When something is due next.
    pub fn deadline(&self) -> Option<Duration> {
        let links = self
            .links
            .values()
            .flat_map(|link| [link.up.deadline(), link.down.deadline()]);
        let servers = self.servers.iter().map(Model::deadline);
        let publishers = self.publishers.iter().map(Publisher::deadline);
        links.chain(servers).chain(publishers).flatten().min()
    }

    /// Lets so much time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.run_until(end, |_| false);
    }

    /// Lets time pass until `done`, at most until `end`; whether it is done.
    pub fn run_until(&mut self, end: Duration, done: impl Fn(&World) -> bool) -> bool {
        loop {
            self.settle();
            if done(self) {
                return true;
            }
            // What is overdue waits for another; time must not stand still.
            let next = self.deadline().unwrap_or(end);
            let next = next.max(self.now + Duration::from_micros(200));
            if next > end {
                self.now = end;
                self.settle();
                return done(self);
            }
            self.now = next;
        }
    }

    /// Lets everything drain, in at most ten minutes of virtual time.
    pub fn drain(&mut self) {
        let end = self.now + Duration::from_secs(600);
        let drained = self.run_until(end, |w| w.publishers.iter().all(Publisher::is_done));
        assert!(drained, "something is stuck: {}", self.describe());
    }

    pub fn describe(&self) -> String {
        let of = |p: &Publisher| {
            let open: Vec<u64> = p.book.unsettled().take(5).collect();
            format!(
                "p{}: unsettled {open:?}, waiting {:?}",
                p.id,
                p.book.waiting()
            )
        };
        let all: Vec<String> = self.publishers.iter().map(of).collect();
        all.join("; ")
    }

    fn at_server(&mut self, id: u64) {
        loop {
            let Some(link) = self.links.get_mut(&id) else {
                return;
            };
            let Some(arrival) = link.up.next(self.now) else {
                return;
            };
            let (server, at_server) = (link.server, link.at_server);
            match arrival {
                Arrival::Bytes(bytes) => {
                    let effects = self.servers[server].receive(at_server, &bytes, self.now);
                    self.apply(server, effects);
                }
                Arrival::End => self.servers[server].disconnect(at_server),
            }
        }
    }

    pub fn apply(&mut self, server: usize, effects: Effects) {
        let of = |links: &BTreeMap<u64, Link>, at_server| {
            let mut all = links.iter();
            all.find(|(_, l)| l.server == server && l.at_server == at_server)
                .map(|(id, _)| *id)
        };
        for (to, bytes) in effects.sends {
            let late = Duration::from_micros(self.rng.below(self.latency.as_micros() as u64 + 1));
            if let Some(id) = of(&self.links, to)
                && let Some(link) = self.links.get_mut(&id)
            {
                link.down.send(self.now + late, bytes);
            }
        }
        for (to, closing) in effects.closes {
            let Some(id) = of(&self.links, to) else {
                continue;
            };
            trace!(self, "server {server} closes link {id}: {closing:?}");
            let Some(link) = self.links.get_mut(&id) else {
                continue;
            };
            match closing {
                Closing::Stall => link.down.lost = true,
                Closing::Graceful(_) => {
                    link.down.end(self.now);
                    link.up = Default::default();
                    link.up.lost = true;
                }
                Closing::Abrupt | Closing::MidFrame => {
                    link.down.cut(self.now, &mut self.rng);
                    link.up = Default::default();
                    link.up.lost = true;
                }
            }
            if closing != Closing::Stall {
                self.servers[server].disconnect(to);
            }
        }
    }

    fn replicate(&mut self) -> bool {
        let mut any = false;
        for from in 0..self.servers.len() {
            if !self.servers[from].replicating || !self.servers[from].up {
                continue;
            }
            let peers: Vec<usize> = self.servers[from].replicated.keys().copied().collect();
            for to in peers {
                if !self.servers[to].up {
                    continue;
                }
                let done = self.servers[from].replicated[&to];
                for entry in self.servers[from].entries_after(done) {
                    let raw = self.servers[from].raw(&entry).to_vec();
                    let effects = self.servers[to].replicate(&entry, &raw, self.now);
                    self.servers[from].replicated.insert(to, entry.position);
                    self.apply(to, effects);
                    any = true;
                }
            }
        }
        any
    }
}
