//! Each rule as a small history. Names carry the numbers of `docs/histories.md`.

mod edges;
mod numbers;
mod outcomes;
mod sending;
mod unkept;
mod unreadable;

use std::time::Duration;

use amps_store::testkit::{Cut, Fault, Rng, SimDisk};
use amps_store::{Envelope, Level, Options, PublishStore, Store, StoreError};

use super::figures::rebase_above;
use super::*;

const NAME: &str = "pub-1";

struct Rig {
    store: Store,
    delivery: Delivery,
    now: Now,
    /// Carry out grants and rebases at once.
    carry_out: bool,
    batch: Batch,
}

/// Room for so many messages.
fn few(messages: usize) -> Room {
    Room {
        messages,
        ..Room::ANY
    }
}

fn options() -> Options {
    Options::new().capacity(4 << 20).client_name(NAME)
}

fn rig() -> Rig {
    rig_with(Store::memory(options()).unwrap(), Config::default())
}

fn rig_with(store: Store, config: Config) -> Rig {
    let delivery = Delivery::new(&store, config);
    let now = Now {
        at: Duration::from_secs(1),
        unix_micros: 1,
    };
    Rig {
        store,
        delivery,
        now,
        carry_out: true,
        batch: Batch::default(),
    }
}

impl Rig {
    fn publish(&self, count: u64) -> Vec<u64> {
        (0..count)
            .map(|_| {
                self.store
                    .append(&Envelope::publish("orders"), b"payload")
                    .unwrap()
                    .sequence
            })
            .collect()
    }

    fn input(&mut self, input: Input<'_>) -> Vec<Output> {
        self.delivery.handle(&self.store, self.now, input);
        self.drain()
    }

    fn drain(&mut self) -> Vec<Output> {
        let mut outputs = Vec::new();
        while let Some(output) = self.delivery.poll() {
            match &output {
                Output::RaiseGrant { to } if self.carry_out => {
                    let result = self.store.raise_grant(*to);
                    self.delivery
                        .handle(&self.store, self.now, Input::GrantRaised(result));
                }
                Output::Rebase { above } if self.carry_out => {
                    let result = self.store.rebase(*above);
                    self.delivery
                        .handle(&self.store, self.now, Input::Rebased(result));
                }
                _ => {}
            }
            outputs.push(output);
        }
        outputs
    }

    fn logon(&mut self, figure: impl Into<Option<u64>>) -> Vec<Output> {
        self.input(Input::LoggedOn {
            resume: Resume::figure(figure.into()),
            acks: Acks::Figures,
        })
    }

    /// What goes out next, as much as there is room for: sequence, wire number, whether again.
    fn next(&mut self, room: Room) -> Vec<(u64, u64, bool)> {
        let mut sent = Vec::new();
        let (store, batch) = (&self.store, &mut self.batch);
        let send = |next: &ToSend<'_>| {
            assert_eq!(next.message.sequence, next.sequence);
            sent.push((next.sequence, next.wire, next.again));
            Ok::<_, ()>(())
        };
        let count = self.delivery.hand_over(store, self.now, room, batch, send);
        assert_eq!(count.unwrap(), sent.len());
        sent
    }

    /// Everything that goes out now: sequence and wire number.
    fn send(&mut self) -> Vec<(u64, u64)> {
        let mut sent = Vec::new();
        loop {
            let next = self.next(Room::ANY);
            if next.is_empty() {
                break;
            }
            sent.extend(next.iter().map(|(sequence, wire, _)| (*sequence, *wire)));
            self.drain();
        }
        assert!(
            sent.is_sorted(),
            "a higher number overtook a lower one: {sent:?}"
        );
        sent
    }

    fn ok(&mut self, figure: u64) -> Vec<Output> {
        let ack = PublishAck {
            figure: Some(figure),
            sequence: None,
            verdict: Verdict::Persisted,
        };
        let mut outputs = self.input(Input::Ack(ack));
        outputs.extend(self.input(Input::AcksEnd));
        outputs
    }

    fn fail(&mut self, figure: impl Into<Option<u64>>, id: Option<u64>) -> Vec<Output> {
        let verdict = Verdict::Refused("not entitled");
        let ack = PublishAck {
            figure: figure.into(),
            sequence: id,
            verdict,
        };
        let mut outputs = self.input(Input::Ack(ack));
        outputs.extend(self.input(Input::AcksEnd));
        outputs
    }

    fn lose(&mut self) -> Vec<Output> {
        self.input(Input::LinkLost)
    }

    fn unsettled(&self) -> u64 {
        self.store.bounds().unsettled
    }
}

fn notes(outputs: &[Output]) -> Vec<&Note> {
    outputs
        .iter()
        .filter_map(|o| {
            if let Output::Note(note) = o {
                Some(note)
            } else {
                None
            }
        })
        .collect()
}

fn drops(outputs: &[Output]) -> Option<DropReason> {
    outputs.iter().find_map(|o| {
        if let Output::DropLink { why } = o {
            Some(*why)
        } else {
            None
        }
    })
}

fn refused(outputs: &[Output]) -> Option<(u64, bool)> {
    outputs.iter().find_map(|o| match o {
        Output::Refused { sequence, late, .. } => Some((*sequence, *late)),
        _ => None,
    })
}

fn rebases(outputs: &[Output]) -> usize {
    outputs
        .iter()
        .filter(|o| matches!(o, Output::Rebase { .. }))
        .count()
}
