//! Histories that random runs take long to find.

use amps_store::testkit::{Cut, Rng, SimDisk, step};
use amps_store::{AppendError, Envelope, Options, PublishStore, Rejected, Store};

use super::state::{State, observe};

/// The ring is full of messages that are all refused (`docs/histories.md` H24).
pub(crate) fn every_message_is_refused() {
    refuse_everything(None);
}

/// The same if the disk is full before the ring is: a refusal still finds its room.
pub(crate) fn every_message_is_refused_on_a_full_disk() {
    for grown in 0..4 {
        refuse_everything(Some(grown * 8192));
    }
}

/// `grows`: by how much the file can grow before its disk is full.
fn refuse_everything(grows: Option<u64>) {
    let disk = SimDisk::new();
    let store = disk
        .open(Options::new().capacity(64 << 10).client_name("model"))
        .expect("creates");
    disk.limit(grows.map(|by| disk.bytes().len() as u64 + by));
    let mut sequences = Vec::new();
    let mut tried = false;
    loop {
        match store.append(&Envelope::publish("t"), &[7; 64]) {
            Ok(at) => {
                sequences.push(at.sequence);
                tried = false;
            }
            Err(error) if error.is_retryable() && !tried => {
                while step(&store).expect("chore") {}
                tried = true;
            }
            Err(AppendError::MakingRoom { .. }) => panic!("the room that was promised never comes"),
            Err(error) if error.is_retryable() => break,
            Err(e) => panic!("{e}"),
        }
    }
    assert!(sequences.len() > 20, "{} messages", sequences.len());
    for &sequence in &sequences {
        let logged = store
            .reject(sequence, &"long ".repeat(100), 1)
            .expect("rejects");
        assert!(matches!(logged, Rejected::Logged { .. }));
    }
    drop(store);
    let store = disk.open(Options::new()).expect("opens");
    assert_eq!(store.rejections(0, usize::MAX).len(), sequences.len());
}

/// The power fails twice: first the tail of a settlement is lost, then the head of the epoch
/// written over it. The bytes of the epoch happen to be those of the lost tail, and the old head
/// is back. The settlement of the dead run must not come back to life.
pub(crate) fn a_torn_head_meets_a_tail_by_chance() {
    let mut met = false;
    for pad in (0..600).step_by(8) {
        let disk = SimDisk::new();
        let options = Options::new().capacity(64 << 10).client_name("model");
        let store = disk.open(options.clone()).expect("creates");
        for len in [pad, 1, 1] {
            store
                .append(&Envelope::publish("t"), &vec![1; len])
                .expect("room");
        }
        drop(store);
        let store = disk.open(options.clone()).expect("opens");
        store.settle(&[2, 3]).expect("settles");
        drop(store);
        // The last byte of the first segment that is not zero begins the settlement's second sequence: 3. In the
        // epoch written over it, the highest sequence so far stands there: 3 as well.
        let bytes = disk.bytes();
        let border = bytes[..16 << 10]
            .iter()
            .rposition(|b| *b != 0)
            .expect("a log") as u64;
        if !border.is_multiple_of(512) {
            continue;
        }
        met = true;
        disk.cut_sectors(|at| at < border);
        drop(disk.open(options.clone()).expect("opens"));
        disk.cut_sectors(|at| at >= border);
        let store = disk.open(options).expect("opens");
        assert_eq!(
            store.bounds().unsettled,
            3,
            "a dead run's settlement came back"
        );
    }
    assert!(met, "no padding puts the tail on a sector's border");
}

/// Every record of the log takes as much room as a mark, so in every lap of the ring records
/// stand at the same places, and behind each page that a power cut takes stands an intact
/// record of the lap before (`docs/promises.md` F7).
pub(crate) fn an_earlier_lap_stands_behind_the_tail(seed: u64) {
    const MARK: usize = 144;
    let disk = SimDisk::new();
    let options = Options::new().capacity(64 << 10).client_name("model");
    let options = options.preallocate(true);
    let store = disk.open(options.clone()).expect("creates");
    let mut rng = Rng::new(seed);
    let publish = |store: &Store| {
        let payload = [b'x'; MARK - 40 - ENVELOPE];
        store.append(&Envelope::publish("t"), &payload)
    };
    let mut stored = Vec::new();
    let mut append = |store: &Store, count: u64| {
        for _ in 0..count {
            let appended = loop {
                match publish(store) {
                    Ok(appended) => break appended,
                    Err(_) => while step(store).expect("chore") {},
                }
            };
            stored.push(appended);
        }
    };
    for _ in 0..500 + rng.below(100) {
        append(&store, 1);
        store
            .settle_through(store.bounds().last - 1)
            .expect("settles");
    }
    while step(&store).expect("chore") {}
    store.sync().expect("syncs");
    let first = store.bounds().last;
    append(&store, 30);
    let durable = store.durable().ordinal;
    drop(store);
    disk.power_cut(Cut::Pages, &mut rng);
    let store = disk.open(options).expect("opens");
    let end = store.report().last_ordinal;
    assert!(end >= durable, "recovered {end} of {durable}");
    let expected: Vec<u64> = stored
        .iter()
        .filter(|at| at.ordinal <= end && at.sequence >= first)
        .map(|at| at.sequence)
        .collect();
    let found: Vec<u64> = observe(&store).unsettled.into_keys().collect();
    assert_eq!(found, expected, "the log ends at {end}");
}

/// What an envelope of the topic `t` takes.
pub(crate) const ENVELOPE: usize = 11;

/// The power is cut before each call of a creation: the next open finds an empty store, or
/// makes one.
pub(crate) fn the_power_is_cut_in_a_creation() {
    for preallocate in [false, true] {
        let options = Options::new().capacity(64 << 10).client_name("model");
        let options = options.preallocate(preallocate);
        let disk = SimDisk::new();
        disk.keep_moments();
        drop(disk.open(options.clone()).expect("creates"));
        let moments = disk.take_moments();
        assert!(moments.len() >= 4, "{} calls", moments.len());
        for (n, moment) in moments.iter().enumerate() {
            for (seed, cut) in [Cut::None, Cut::All, Cut::Pages, Cut::Sectors]
                .into_iter()
                .flat_map(|cut| (0..20).map(move |seed| (seed, cut)))
            {
                let disk = moment.fork();
                disk.power_cut(cut, &mut Rng::new(seed));
                let store = disk
                    .open(options.clone())
                    .unwrap_or_else(|e| panic!("cut {cut:?} before call {n}, seed {seed}: {e}"));
                assert_eq!(observe(&store), State::default());
                let first = store.append(&Envelope::publish("t"), b"x").expect("room");
                assert_eq!(first.sequence, 1);
                store.sync().expect("syncs");
                drop(store);
                disk.power_cut(Cut::None, &mut Rng::new(seed));
                let store = disk.open(options.clone()).expect("opens");
                assert_eq!(store.bounds().unsettled, 1);
            }
        }
    }
}
