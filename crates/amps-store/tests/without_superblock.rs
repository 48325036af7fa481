//! A store whose superblock copies are both damaged. One flipped bit in each once made every
//! message unreachable, and the file was said to be no store. The key of the checksums and the
//! size of a segment follow from the segment headers.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::fs;
use std::path::{Path, PathBuf};

use amps_store::inspect::{Filter, Inspection, MessageState};
use amps_store::testkit::{Rng, resign};
use amps_store::transfer::{
    NameFrom, RepairError, RepairOptions, RepairReport, WithoutSuperblock, repair_to, repair_with,
};
use amps_store::{Envelope, Level, OpenError, Options, PublishStore, Recovery, Rejected, Store};

const BLOCK: usize = 4096;
const IDENTITY_AT: usize = 2 * BLOCK;
const SEGMENTS_AT: usize = 3 * BLOCK;
const SEGMENT: usize = 8192;

/// A bit in each field of a superblock, in the zeros between them, and in the checksum.
const FIELDS: [usize; 26] = [
    0, 7, 8, 12, 16, 24, 32, 35, 36, 40, 41, 48, 56, 64, 72, 80, 88, 96, 104, 112, 114, 116, 371,
    883, 888, 4095,
];

/// A ring that has gone round, with open messages, a refusal, a resume point, a rebase and a grant.
fn live(path: &Path) -> Store {
    let options = Options::new()
        .capacity(12 * SEGMENT as u64)
        .segment_size(SEGMENT as u64)
        // Otherwise its length would depend on how fast the helper is.
        .preallocate(true);
    let store = Store::open(path, options.client_name("orders")).unwrap();
    store.raise_grant(10_000).unwrap();
    for number in 0..400_u64 {
        let payload = format!("{number} ").repeat(40);
        let mut envelope = Envelope::publish("t");
        envelope.user_tag = number.to_string().into_bytes().into();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let at = store
            .append_wait(&envelope, payload.as_bytes(), deadline)
            .unwrap();
        if number % 10 == 3 {
            store
                .settle_through(at.sequence.saturating_sub(20))
                .unwrap();
        }
        if number == 390 {
            let refused = store.reject(at.sequence, "no", 7).unwrap();
            assert!(matches!(refused, Rejected::Logged { .. }));
        }
    }
    store
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Dir(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Without the identity, which stores that began with version 1 do not have.
    fn unclean(&self) -> Vec<u8> {
        let mut bytes = self.whole();
        bytes[IDENTITY_AT..][..BLOCK].fill(0);
        bytes
    }

    /// With the identity.
    fn whole(&self) -> Vec<u8> {
        drop(live(&self.path("live")));
        fs::read(self.path("live")).unwrap()
    }

    /// Repairs these bytes, and looks at the result.
    fn repaired(&self, bytes: &[u8], options: &RepairOptions) -> Result<Saved, RepairError> {
        let (old, new) = (self.path("old"), self.path("new"));
        fs::write(&old, bytes).unwrap();
        let _ = fs::remove_file(&new);
        let repaired = repair_with(&old, &new, options);
        assert_eq!(fs::read(&old).unwrap(), bytes, "a repair only reads");
        Ok(Saved::of(repaired?, &new))
    }

    fn saved(&self, bytes: &[u8]) -> Saved {
        self.repaired(bytes, &RepairOptions::new()).unwrap()
    }
}

/// What a repair saved.
struct Saved {
    report: RepairReport,
    /// Unsettled and refused messages.
    messages: Vec<(u64, MessageState, Vec<u8>)>,
    refusals: Vec<(u64, String)>,
    tag: Option<Vec<u8>>,
    inspection: amps_store::inspect::Info,
}

impl Saved {
    fn of(report: RepairReport, new: &Path) -> Self {
        let look = Inspection::open(new).unwrap();
        assert!(look.verify().unwrap().is_sound());
        let wanted = Filter::new()
            .state(MessageState::Unsettled)
            .state(MessageState::Rejected);
        let messages = look.messages(wanted).map(|m| {
            let m = m.unwrap();
            (m.sequence, m.state, m.payload)
        });
        let refusals = look.rejections().unwrap().into_iter();
        Saved {
            report,
            messages: messages.collect(),
            refusals: refusals.map(|r| (r.sequence, r.reason)).collect(),
            tag: look.resume_tag().map(<[u8]>::to_vec),
            inspection: look.info(),
        }
    }

    /// The sequences of all messages; their contents are in the messages.
    fn sequences(&self) -> Vec<u64> {
        self.messages.iter().map(|m| m.0).collect()
    }

    fn without(&self) -> &WithoutSuperblock {
        self.report.without_superblock.as_ref().unwrap()
    }

    /// Whether it holds exactly what a repair with a superblock saves.
    #[track_caller]
    fn holds_all_of(&self, whole: &Saved) {
        assert_eq!(self.sequences(), whole.sequences());
        assert!(self.messages == whole.messages);
        assert_eq!(self.refusals, whole.refusals);
        assert_eq!(self.tag, whole.tag);
        // Nothing counts as sent, and no number that may have been used is given out.
        assert_eq!((self.inspection.grant, self.inspection.rebase), (0, None));
        let seen = self.messages.last().map_or(0, |m| m.0);
        // The copy of a store of version 1 has one block more than that.
        let file_size = whole.inspection.file_size - BLOCK as u64;
        assert!(self.report.next > seen + file_size / 40);
        assert_eq!(self.inspection.next, self.report.next);
        assert_eq!(self.report.unsaved, whole.report.unsaved);
    }
}

fn flip_both(bytes: &mut [u8], at: usize) {
    bytes[at] ^= 1;
    bytes[BLOCK + at] ^= 1;
}

/// Everything that meets it calls it a damaged store, and changes nothing.
fn is_called_damaged(path: &Path) {
    let before = fs::read(path).unwrap();
    for recovery in [Recovery::Strict, Recovery::Salvage] {
        let refused = Store::open(path, Options::new().recovery(recovery))
            .err()
            .unwrap();
        let said = refused.to_string();
        assert!(matches!(refused, OpenError::NoSuperblock { .. }), "{said}");
        assert!(
            said.contains("damaged") && said.contains("amps store repair"),
            "{said}"
        );
        assert!(!said.contains("not a publish store"), "{said}");
    }
    let looked = Inspection::open(path).err().unwrap();
    assert!(matches!(looked, OpenError::NoSuperblock { .. }), "{looked}");
    assert_eq!(fs::read(path).unwrap(), before);
}

#[test]
fn a_flipped_bit_in_each_superblock_loses_no_message() {
    let dir = Dir::new();
    let unclean = dir.unclean();
    let whole = dir.saved(&unclean);
    assert!(whole.messages.len() > 15 && whole.report.without_superblock.is_none());
    assert_eq!(whole.refusals, [(391, "no".to_owned())]);
    for at in FIELDS {
        let mut bytes = unclean.clone();
        flip_both(&mut bytes, at);
        fs::write(dir.path("old"), &bytes).unwrap();
        is_called_damaged(&dir.path("old"));
        let saved = dir.saved(&bytes);
        saved.holds_all_of(&whole);
        let without = saved.without();
        assert_eq!(without.segment_size, SEGMENT as u64);
        assert_eq!(without.possible_duplicates, whole.report.saved);
        assert_eq!(without.other_headers, 0);
        if ![112, 114, 371].contains(&at) {
            assert_eq!(without.client_name, "orders");
            assert_eq!(without.name_from, NameFrom::Copies);
        }
        assert!(!without.identity);
    }
    // The identity has the name, whatever the superblock copies show.
    let mut bytes = dir.whole();
    bytes[..2 * BLOCK].fill(0);
    let saved = dir.saved(&bytes);
    assert!(saved.without().identity);
    assert_eq!(saved.without().name_from, NameFrom::Identity);
    assert_eq!(saved.without().client_name, "orders");
    // Different damage in each.
    let mut bytes = unclean;
    (bytes[33], bytes[BLOCK + 4000]) = (!bytes[33], 1);
    dir.saved(&bytes).holds_all_of(&whole);
}

#[test]
fn what_stands_in_place_of_the_superblocks_makes_no_difference() {
    let dir = Dir::new();
    let unclean = dir.unclean();
    let store = Store::open(dir.path("live"), Options::new()).unwrap();
    store.close(store.bounds().last).unwrap();
    let closed = fs::read(dir.path("live")).unwrap();
    for bytes in [unclean, closed] {
        let whole = dir.saved(&bytes);
        for fill in [0, 0xFF, b'x'] {
            let mut bytes = bytes.clone();
            bytes[..SEGMENTS_AT].fill(fill);
            fs::write(dir.path("old"), &bytes).unwrap();
            is_called_damaged(&dir.path("old"));
            let saved = dir.saved(&bytes);
            saved.holds_all_of(&whole);
            // Nothing shows a name, so a new one is made up, and that is reported.
            assert_eq!(saved.without().name_from, NameFrom::New);
            assert!(saved.without().client_name.starts_with("amps-"));
            let mine = RepairOptions::new()
                .client_name("mine")
                .number_floor(1 << 40);
            let saved = dir.repaired(&bytes, &mine).unwrap();
            assert_eq!(saved.without().name_from, NameFrom::Given);
            assert_eq!(saved.inspection.client_name, "mine");
            let records = bytes.len() as u64 / 40;
            assert_eq!(saved.report.next, (1 << 40) + records + 1);
            let far = RepairOptions::new().number_floor((1 << 63) - 1);
            let refused = dir.repaired(&bytes, &far);
            assert!(matches!(refused, Err(RepairError::NumberFloor(_))));
            assert!(!dir.path("new").exists());
        }
    }
}

/// The copy is a store like any other: it publishes above all earlier numbers, and opens again.
#[test]
fn the_copy_goes_on() {
    let dir = Dir::new();
    let mut bytes = dir.unclean();
    let before = Inspection::open(dir.path("live")).unwrap().info();
    flip_both(&mut bytes, 64);
    let saved = dir.saved(&bytes);
    let new = dir.path("new");
    let store = Store::open(&new, Options::new().client_name("orders")).unwrap();
    assert_eq!(store.bounds().unsettled, before.unsettled);
    assert_eq!(store.numbers().found_grant, 0);
    // The floor of the marks, and not one that merely follows from what is left.
    assert!(store.bounds().floor <= before.floor);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let new_one = store.append_wait(&Envelope::publish("t"), b"new", deadline);
    let at = new_one.unwrap();
    assert_eq!(at.sequence, saved.report.next);
    assert!(at.sequence > before.last_sequence);
    // As at a logon: what was saved is sent above what the server knows of that name.
    let first = saved.messages[0].0;
    let rebase = store.rebase(before.grant).unwrap();
    assert_eq!(
        (rebase.from, rebase.delta),
        (
            first,
            (before.grant + 1).cast_signed() - first.cast_signed()
        )
    );
    drop(store);
    Store::open(&new, Options::new()).unwrap();
}

#[test]
fn golden_stores_are_saved_without_their_superblocks() {
    let dir = Dir::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut seen = 0;
    let newer = fs::read_dir(golden.join("v2")).unwrap();
    for entry in fs::read_dir(golden).unwrap().chain(newer) {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "store") {
            continue;
        }
        seen += 1;
        let bytes = fs::read(&path).unwrap();
        let whole = dir.saved(&bytes);
        for at in FIELDS {
            let mut bytes = bytes.clone();
            flip_both(&mut bytes, at);
            let saved = dir.saved(&bytes);
            eprintln!("{}, byte {at}", path.display());
            saved.holds_all_of(&whole);
        }
    }
    assert!(seen >= 20, "{seen}");
}

/// A single header tells the key as well, if a record fits it; where a segment begins then shows
/// in its first record.
#[test]
fn a_single_segment_header_will_do() {
    let dir = Dir::new();
    let unclean = dir.unclean();
    let whole = dir.saved(&unclean);
    let segments = (unclean.len() - SEGMENTS_AT) / SEGMENT;
    assert!(segments > 5);
    let mut told = 0;
    for kept in 0..segments {
        let mut bytes = unclean.clone();
        bytes[..SEGMENTS_AT].fill(0);
        for segment in (0..segments).filter(|s| *s != kept) {
            bytes[SEGMENTS_AT + segment * SEGMENT + 20] ^= 1;
        }
        let at = SEGMENTS_AT + kept * SEGMENT;
        let is_empty = unclean[at + 64..at + 104] == [0; 40];
        match dir.repaired(&bytes, &RepairOptions::new()) {
            Ok(saved) => {
                assert_eq!(saved.sequences(), whole.sequences(), "segment {kept}");
                assert_eq!(saved.without().segment_size, SEGMENT as u64);
                assert_eq!(saved.without().headers, 1);
                told += 1;
            }
            Err(error) => assert!(is_empty, "segment {kept}: {error}"),
        }
    }
    assert!(told > 2, "{told}");
}

/// Headers that give different keys: the key that most of them give is one store's, and the
/// others are reported.
#[test]
fn of_two_stores_in_one_file_one_is_saved_and_the_other_named() {
    let dir = Dir::new();
    let ours = dir.unclean();
    let other = Dir::new();
    let theirs = other.unclean();
    let segments = (ours.len() - SEGMENTS_AT) / SEGMENT;
    assert_eq!(ours.len(), theirs.len());
    for taken in 0..segments / 2 {
        let mut bytes = ours.clone();
        let at = SEGMENTS_AT + taken * SEGMENT;
        bytes[at..at + SEGMENT].copy_from_slice(&theirs[at..at + SEGMENT]);
        let whole = dir.saved(&bytes);
        flip_both(&mut bytes, 70);
        let saved = dir.saved(&bytes);
        assert_eq!(saved.sequences(), whole.sequences());
        assert_eq!(saved.without().other_headers, 1);
        assert_eq!(saved.without().headers, segments as u64 - 1);
    }
}

/// Only the superblock knows whether a store was evacuated. The store is saved, and that is said.
#[test]
fn an_evacuated_store_may_be_one_that_nobody_knows_it_of() {
    let dir = Dir::new();
    let store = live(&dir.path("live"));
    drop(store.evacuate(dir.path("moved"), Level::Os).unwrap());
    let mut bytes = fs::read(dir.path("live")).unwrap();
    let refused = dir.repaired(&bytes, &RepairOptions::new());
    assert!(matches!(refused, Err(RepairError::Evacuated(_))));
    flip_both(&mut bytes, 500);
    let saved = dir.saved(&bytes);
    assert!(saved.without().says_evacuated && saved.messages.len() > 15);
    bytes[..SEGMENTS_AT].fill(0);
    assert!(!dir.saved(&bytes).without().says_evacuated);
}

#[test]
fn what_has_no_segment_header_is_no_store() {
    let dir = Dir::new();
    let mut bytes = dir.unclean();
    flip_both(&mut bytes, 70);
    for segment in 0..(bytes.len() - SEGMENTS_AT) / SEGMENT {
        bytes[SEGMENTS_AT + segment * SEGMENT + 4] ^= 1;
    }
    let old = dir.path("old");
    // Neither is a text, nor one that contains something like a single header.
    let mut text = b"Dear reader,\n".repeat(2000);
    text[SEGMENTS_AT + 4..][..4].copy_from_slice(b"SEG1");
    text[SEGMENTS_AT + 24] = 1;
    for bytes in [bytes, text] {
        fs::write(&old, &bytes).unwrap();
        let refused = Store::open(&old, Options::new());
        assert!(matches!(refused, Err(OpenError::NotAStore { .. })));
        let refused = repair_to(&old, dir.path("new"));
        assert!(matches!(
            refused,
            Err(RepairError::Open(OpenError::NotAStore { .. }))
        ));
        assert!(!dir.path("new").exists());
    }
    // A store of a newer program is left to that program.
    let mut newer = dir.unclean();
    (newer[8], newer[BLOCK + 8]) = (3, 3);
    resign(&mut newer);
    newer[70] ^= 1;
    fs::write(&old, &newer).unwrap();
    let refused = repair_to(&old, dir.path("new"));
    assert!(matches!(
        refused,
        Err(RepairError::Open(OpenError::Version { .. }))
    ));
}

/// Whatever else is damaged, no message is invented, and the repair ends.
#[test]
fn damage_besides_is_told_as_ever() {
    let dir = Dir::new();
    let unclean = dir.unclean();
    let whole = dir.saved(&unclean);
    let mut saved_some = 0;
    for seed in 0..120 {
        let mut rng = Rng::new(seed);
        let mut bytes = unclean.clone();
        flip_both(&mut bytes, 70);
        for _ in 0..1 + rng.below(12) {
            let at = SEGMENTS_AT as u64 + rng.below((bytes.len() - SEGMENTS_AT) as u64);
            let len = 1 << rng.below(14);
            let end = (at + len).min(bytes.len() as u64);
            match rng.below(3) {
                0 => bytes[at as usize] ^= 1 << rng.below(8),
                1 => bytes[at as usize..end as usize].fill(0),
                _ => {
                    let from = rng.below(bytes.len() as u64 - (end - at));
                    bytes.copy_within(from as usize..(from + end - at) as usize, at as usize);
                }
            }
        }
        if rng.one_in(3) {
            bytes.truncate(rng.below(bytes.len() as u64) as usize);
        }
        if let Ok(saved) = dir.repaired(&bytes, &RepairOptions::new()) {
            saved_some += 1;
            for (sequence, _, payload) in &saved.messages {
                let expected = format!("{} ", sequence - 1).repeat(40);
                assert_eq!(*payload, expected.as_bytes(), "seed {seed}");
            }
        }
    }
    assert!(
        saved_some > 60 && !whole.messages.is_empty(),
        "{saved_some}"
    );
}

/// If the copies show two names, neither counts, and the same goes for capacities.
#[test]
fn what_the_copies_do_not_show_alike_counts_for_nothing() {
    let dir = Dir::new();
    let mut bytes = dir.unclean();
    flip_both(&mut bytes, 70);
    bytes[372] ^= 1;
    // 65,536 more segments.
    bytes[58] ^= 1;
    let saved = dir.saved(&bytes);
    assert_eq!(saved.without().name_from, NameFrom::New);
    assert!(
        saved.inspection.capacity <= 256 << 20,
        "{}",
        saved.inspection.capacity
    );
}

/// The first messages that were unsettled are damaged, and the one behind them is settled: going
/// only by what is left would settle all of them.
#[test]
fn no_floor_follows_from_what_is_left() {
    let dir = Dir::new();
    drop(dir.unclean());
    let live = dir.path("live");
    let store = Store::open(&live, Options::new()).unwrap();
    let first = store.bounds().first_unsettled.unwrap();
    assert_eq!(store.settle(&[first + 3]).unwrap(), 1);
    drop(store);
    let look = Inspection::open(&live).unwrap();
    let open: Vec<_> = look.messages(Filter::new()).map(Result::unwrap).collect();
    let mut bytes = fs::read(&live).unwrap();
    for message in &open[..3] {
        bytes[message.offset as usize + 60] ^= 1;
    }
    flip_both(&mut bytes, 70);
    let saved = dir.saved(&bytes);
    assert_eq!(saved.sequences()[0], first + 4);
    let copy = Inspection::open(dir.path("new")).unwrap();
    let records = copy.records().map(Result::unwrap);
    let floors: Vec<u64> = records
        .filter_map(|r| match r.body {
            amps_store::inspect::Body::Mark { floor, .. } => Some(floor),
            _ => None,
        })
        .collect();
    // The floor in the mark that a repair writes first.
    assert!(floors[0] < first, "{floors:?}, {first}");
}

/// Records at places where a segment could begin, in the middle of one: marks between others, and
/// a message behind a damaged record. The size of a segment must not follow from them.
#[test]
fn a_record_behind_a_block_s_beginning_makes_no_segment() {
    const STRIDE: usize = 144;
    // Its ninth block begins 64 bytes before its 256th record.
    const SEGMENT: usize = 18 * BLOCK;
    let dir = Dir::new();
    let path = dir.path("live");
    for with_marks in [true, false] {
        let _ = fs::remove_file(&path);
        let options = Options::new()
            .capacity(1 << 20)
            .segment_size(SEGMENT as u64);
        let store = Store::open(&path, options.preallocate(true)).unwrap();
        let envelope = Envelope::publish("t");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let append = |len: usize| {
            store
                .append_wait(&envelope, &vec![7; len], deadline)
                .unwrap()
        };
        let (first, second) = (append(1).sequence, append(1).sequence);
        let offset = |sequence| {
            let look = Inspection::open(&path).unwrap();
            look.get(sequence).unwrap().unwrap().offset as usize
        };
        let longer = STRIDE - (offset(second) - offset(first)) + 1;
        for number in 0..1000 {
            let at = append(longer);
            // Now and then two messages in a row, so that a mark comes to stand at such a place
            // too.
            if with_marks && number % 90 != 0 {
                store.settle_through(at.sequence.saturating_sub(5)).unwrap();
            }
        }
        drop(store);
        let mut bytes = fs::read(&path).unwrap();
        let kind = if with_marks { 6 } else { 1 };
        let mut places = (1..4).map(|s| SEGMENTS_AT + s * SEGMENT + 9 * BLOCK + 64);
        let place = places.find(|place| bytes[place + 8] == kind).unwrap();
        // Records are looked at only if a header is missing.
        bytes[SEGMENTS_AT + 5 * SEGMENT + 30] ^= 1;
        if !with_marks {
            bytes[place - 20] ^= 1;
        }
        let whole = dir.repaired(&bytes, &RepairOptions::new()).unwrap();
        flip_both(&mut bytes, 70);
        let saved = dir.saved(&bytes);
        assert_eq!(saved.without().segment_size, SEGMENT as u64);
        assert_eq!(saved.sequences(), whole.sequences());
    }
}

/// Segments that were freed look like the beginning of the log, and what was written over some of
/// them looks like a hole in it. Everything behind that was once set aside, and messages came
/// back that had been settled.
#[test]
fn what_was_freed_is_no_part_of_a_log_without_superblocks() {
    // With a message that waits for long, its copies are synced, and the marks call what is
    // before them durable. Without one nothing is synced, and nothing that is missing has to be
    // there.
    for waits_long in [false, true] {
        let mut freed = 0;
        for count in (200..600).step_by(13) {
            freed += u64::from(is_saved_without_what_was_freed(count, waits_long));
        }
        assert!(
            freed > 10,
            "{freed} with something in the file that was freed"
        );
    }
}

/// Whether a repair of this file, which still holds intact messages from before the start, leaves
/// them out.
fn is_saved_without_what_was_freed(count: u64, waits_long: bool) -> bool {
    use amps_store::testkit::{SimDisk, intact_messages, step};
    let disk = SimDisk::new();
    let options = Options::new().capacity(24 * SEGMENT as u64);
    let options = options.segment_size(SEGMENT as u64).preallocate(true);
    let store = disk.open(options.client_name("orders")).unwrap();
    for number in 0..count {
        let at = loop {
            match store.append(&Envelope::publish("t"), &[7; 700]) {
                Ok(at) => break at.sequence,
                Err(error) => assert!(step(&store).unwrap(), "{error}"),
            }
        };
        let is_long = |sequence: u64| waits_long && sequence.is_multiple_of(50);
        if at > 20 && !is_long(at - 20) {
            store.settle(&[at - 20]).unwrap();
        }
        if at > 200 && is_long(at - 180) {
            store.settle(&[at - 180]).unwrap();
        }
        if number % 3 == 0 {
            step(&store).unwrap();
        }
    }
    drop(store);
    let dir = Dir::new();
    let mut bytes = disk.bytes();
    let there: Vec<u64> = intact_messages(&bytes).iter().map(|m| m.sequence).collect();
    let whole = dir.saved(&bytes);
    bytes[..2 * BLOCK].fill(0);
    let saved = dir.saved(&bytes);
    assert_eq!(saved.sequences(), whole.sequences(), "{count}");
    assert_eq!(saved.report.saved_set_aside, 0, "{count}");
    assert!(saved.messages == whole.messages);
    let first = whole.sequences().into_iter().min();
    there.iter().any(|sequence| Some(*sequence) < first)
}
