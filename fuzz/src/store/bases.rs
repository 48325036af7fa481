//! Good stores to start from: the same bytes in every run.

use std::sync::OnceLock;

use amps_store::testkit::{Cut, Rng, SimDisk, resign, step};
use amps_store::{Envelope, Options, PublishStore, Recovery, Store};

/// Stores of every shape that they get in ordinary use.
pub(super) fn bases() -> &'static [Vec<u8>] {
    static BASES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    BASES.get_or_init(|| {
        [
            new,
            crashed,
            closed,
            settled_and_refused,
            laps,
            stubborn,
            cut,
            salvaged,
            rebased,
        ]
        .map(|make| named_alike(make().bytes()))
        .to_vec()
    })
}

fn options() -> Options {
    Options::new()
        .capacity(68 << 10)
        .segment_size(8 << 10)
        .client_name("fuzz")
}

fn open(disk: &SimDisk) -> Store {
    disk.open(options()).expect("opens")
}

fn publish(store: &Store, count: u64) {
    for n in 0..count {
        let next = store.bounds().next;
        let mut envelope = Envelope::publish("orders");
        let tag = next.to_le_bytes();
        envelope.user_tag = (&tag[..]).into();
        if n % 5 == 0 {
            envelope.sow_key = Some("key".into());
            envelope.expiration = Some(60);
        }
        let payload = vec![next as u8; (next * 37 % 200) as usize];
        if store.append(&envelope, &payload).is_err() {
            upkeep(store);
            store.append(&envelope, &payload).expect("room");
        }
    }
}

fn upkeep(store: &Store) {
    while step(store).expect("a good disk") {}
}

fn new() -> SimDisk {
    let disk = SimDisk::new();
    drop(open(&disk));
    disk
}

fn crashed() -> SimDisk {
    let disk = SimDisk::new();
    publish(&open(&disk), 12);
    publish(&open(&disk), 5);
    disk
}

fn closed() -> SimDisk {
    let disk = SimDisk::new();
    let store = open(&disk);
    publish(&store, 20);
    store.settle_through(10).expect("settles");
    store.raise_grant(15).expect("grants");
    store.close(15).expect("closes");
    disk
}

fn settled_and_refused() -> SimDisk {
    let disk = SimDisk::new();
    let store = open(&disk);
    publish(&store, 25);
    store.settle(&[3, 9, 4, 20]).expect("settles");
    store.settle_through(5).expect("settles");
    for sequence in [6, 11, 12, 13] {
        store.reject(sequence, "not entitled", 7).expect("logs");
    }
    store.reject(2, "too late", 8).expect("logs");
    store.accept(11).expect("accepts");
    store.requeue(12, 9).expect("requeues");
    store.sync().expect("syncs");
    publish(&store, 5);
    disk
}

fn laps() -> SimDisk {
    let disk = SimDisk::new();
    let store = open(&disk);
    for _ in 0..40 {
        publish(&store, 10);
        store
            .settle_through(store.bounds().next - 4)
            .expect("settles");
        upkeep(&store);
    }
    disk
}

fn stubborn() -> SimDisk {
    let disk = SimDisk::new();
    let store = open(&disk);
    publish(&store, 3);
    store.reject(2, "never", 1).expect("logs");
    for _ in 0..40 {
        publish(&store, 10);
        let bounds = store.bounds();
        let all: Vec<u64> = (4..bounds.next).collect();
        store.settle(&all).expect("settles");
        upkeep(&store);
    }
    publish(&store, 4);
    store.close(0).expect("closes");
    disk
}

fn cut() -> SimDisk {
    let disk = SimDisk::new();
    for seed in 0..3 {
        let store = open(&disk);
        publish(&store, 15);
        store.sync().expect("syncs");
        store
            .settle_through(store.bounds().next - 12)
            .expect("settles");
        publish(&store, 20);
        drop(store);
        disk.power_cut(Cut::Sectors, &mut Rng::new(seed));
    }
    disk
}

fn salvaged() -> SimDisk {
    let disk = SimDisk::new();
    let store = open(&disk);
    publish(&store, 30);
    store.sync().expect("syncs");
    publish(&store, 5);
    drop(store);
    disk.scribble(12288 + 1600, |bytes| bytes[..64].fill(0xA5));
    let store = disk
        .open(options().recovery(Recovery::Salvage))
        .expect("salvages");
    publish(&store, 6);
    store.sync().expect("syncs");
    disk
}

fn rebased() -> SimDisk {
    let disk = SimDisk::new();
    let store = open(&disk);
    publish(&store, 8);
    store.raise_grant(100).expect("grants");
    store.rebase(5000).expect("rebases");
    publish(&store, 3);
    drop(store);
    let store = open(&disk);
    store.settle_through(4).expect("settles");
    disk
}

/// Replaces what differs from run to run: id, key, and who opened it.
fn named_alike(mut bytes: Vec<u8>) -> Vec<u8> {
    for copy in [0, 4096] {
        bytes[copy + 24..copy + 36].fill(7);
        bytes[copy + 36..copy + 40].copy_from_slice(&1u32.to_le_bytes());
        bytes[copy + 112..copy + 114].fill(0);
        bytes[copy + 116..copy + 116 + 255].fill(0);
    }
    resign(&mut bytes);
    bytes
}
