//! What a store should contain: computed from what was done, never asked of it.

use std::collections::BTreeMap;

use amps_store::testkit::Rng;
use amps_store::{Batch, PublishStore, Store, StoredMessage};

pub(crate) fn payload(seed: u64, run: u64, sequence: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed ^ run.rotate_left(20) ^ sequence.rotate_left(40));
    let len = match rng.below(10) {
        0 => 0,
        1 => rng.below(1500),
        _ => rng.below(200),
    };
    (0..len).map(|_| rng.bits() as u8).collect()
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Publish {
        sequence: u64,
        payload: Vec<u8>,
        tag: u64,
    },
    SettleThrough(u64),
    Settle(Vec<u64>),
    Reject {
        sequence: u64,
        reason: String,
    },
    Accept(u64),
    /// Of a message that was settled before.
    RejectLate {
        sequence: u64,
        payload: Vec<u8>,
        reason: String,
    },
    Requeue {
        from: u64,
        to: u64,
        payload: Vec<u8>,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct State {
    pub(crate) unsettled: BTreeMap<u64, Vec<u8>>,
    pub(crate) rejected: BTreeMap<u64, (Vec<u8>, String)>,
    pub(crate) tag: Option<u64>,
}

impl State {
    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Publish {
                sequence,
                payload,
                tag,
            } => {
                self.unsettled.insert(*sequence, payload.clone());
                self.tag = Some(*tag);
            }
            Op::SettleThrough(n) => self.unsettled.retain(|s, _| s > n),
            Op::Settle(list) => list.iter().for_each(|s| drop(self.unsettled.remove(s))),
            Op::Reject { sequence, reason } => {
                if let Some(payload) = self.unsettled.remove(sequence) {
                    self.rejected.insert(*sequence, (payload, reason.clone()));
                }
            }
            Op::Accept(s) => drop(self.rejected.remove(s)),
            Op::RejectLate {
                sequence,
                payload,
                reason,
            } => {
                self.unsettled.remove(sequence);
                let refusal = (payload.clone(), reason.clone());
                self.rejected.insert(*sequence, refusal);
            }
            Op::Requeue { from, to, payload } => {
                // A refusal that was in memory only is known by what accepted it.
                self.rejected.remove(from);
                self.unsettled.remove(from);
                self.unsettled.insert(*to, payload.clone());
            }
        }
    }
}

/// Stands for a message whose bytes are lost.
pub(crate) const GONE: &[u8] = b"\xFFgone\xFF";

pub(crate) fn observe(store: &Store) -> State {
    let mut state = State::default();
    let mut message = StoredMessage::new();
    // Several reads at once, and single ones behind what is large.
    let mut batch = Batch::new(5, 4 << 10);
    let mut from = 0;
    while from == 0 || !batch.is_empty() {
        store
            .read_unsettled(from, u64::MAX, &mut batch)
            .expect("intact");
        for message in batch.iter() {
            let body = message.payload().to_vec();
            state.unsettled.insert(message.sequence, body);
            from = message.sequence;
        }
        from += 1;
    }
    assert_eq!(store.bounds().unsettled, state.unsettled.len() as u64);
    for rejection in store.rejections(0, usize::MAX) {
        // Only salvage may part a refusal from its message.
        let there = store.get(rejection.sequence, &mut message).expect("intact");
        let payload = if there {
            message.payload().to_vec()
        } else {
            GONE.to_vec()
        };
        state
            .rejected
            .insert(rejection.sequence, (payload, rejection.reason));
    }
    state.tag = store
        .resume_tag()
        .map(|t| u64::from_le_bytes(t.try_into().expect("8 bytes")));
    state
}

pub(crate) fn short(op: &Op) -> String {
    match op {
        Op::Publish {
            sequence, payload, ..
        } => format!("publish {sequence} ({})", payload.len()),
        other => format!("{other:?}"),
    }
}

/// Sequences with the length of each message.
pub(crate) fn describe(state: &State) -> String {
    let length = |payload: &[u8]| match payload {
        GONE => "gone".to_owned(),
        there => there.len().to_string(),
    };
    let unsettled = state.unsettled.iter().map(|(s, p)| (s, length(p)));
    let rejected = state.rejected.iter();
    let rejected = rejected.map(|(s, (p, reason))| (s, length(p), reason.len()));
    format!(
        "unsettled {:?} rejected {:?} tag {:?}",
        unsettled.collect::<Vec<_>>(),
        rejected.collect::<Vec<_>>(),
        state.tag
    )
}
