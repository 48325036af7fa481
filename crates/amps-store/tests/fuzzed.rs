//! What fuzzing and long runs of the model have found, told as it would have hurt somebody. The
//! inputs themselves are replayed by the fuzz crate, and the seeds by the model.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use amps_store::inspect::{Body, Inspection};
use amps_store::testkit::{
    Cut, Fault, Intact, Rng, SimDisk, intact_messages, open_by_steps, record_places, resign, step,
};
use amps_store::{Envelope, OpenError, Options, PublishStore, Recovery, Store};

/// Where the first segment begins.
const SEGMENTS_AT: usize = 12 << 10;

fn options() -> Options {
    Options::new().capacity(68 << 10).client_name("fuzzed")
}

fn publish(store: &Store, count: usize) {
    for _ in 0..count {
        store
            .append(&Envelope::publish("orders"), &[7; 100])
            .expect("room");
    }
}

/// What no store writes is opened by neither a strict open nor a salvage, and is not changed.
fn refused_unchanged(disk: &SimDisk, options: &Options, bytes: &[u8], reason: &str) {
    for recovery in [Recovery::Strict, Recovery::Salvage] {
        disk.restore(bytes.to_vec());
        let refused = disk.open(options.clone().recovery(recovery)).map(drop);
        assert!(
            matches!(&refused, Err(OpenError::Broken { why, .. }) if why.contains(reason)),
            "{refused:?}"
        );
        assert!(disk.bytes() == bytes);
    }
}

/// An operator salvages a damaged store; then the power fails. The record that names the loss was
/// once not on the disk yet, so that the damage that had been given up made the next open refuse.
#[test]
fn salvage_holds_over_a_power_cut_right_after_it() {
    let disk = SimDisk::new();
    let store = disk.open(options()).expect("creates");
    publish(&store, 20);
    store.sync().expect("syncs");
    drop(store);
    let (tenth, _) = record_places(&disk.bytes())[10];
    disk.scribble(tenth, |bytes| bytes[20] ^= 1);
    let refused = disk.open(options()).map(drop);
    assert!(matches!(refused, Err(OpenError::Damaged { .. })));

    let store = disk
        .open(options().recovery(Recovery::Salvage))
        .expect("salvages");
    assert_eq!(store.bounds().unsettled, 19);
    drop(store);
    disk.power_cut(Cut::None, &mut Rng::new(0));
    let store = disk.open(options()).expect("damage so named is over");
    assert_eq!(store.bounds().unsettled, 19);
}

/// The header of a segment and its first record are damaged. Salvage once named the record, left
/// the header as it was, and the next open refused again.
#[test]
fn salvage_mends_the_header_of_a_segment() {
    let disk = SimDisk::new();
    let store = disk.open(options()).expect("creates");
    publish(&store, 20);
    store.sync().expect("syncs");
    drop(store);
    disk.scribble(SEGMENTS_AT as u64, |segment| segment[..96].fill(0xA5));
    let refused = disk.open(options()).map(drop);
    assert!(matches!(refused, Err(OpenError::Damaged { .. })));
    let salvage = options().recovery(Recovery::Salvage);
    assert_eq!(disk.open(salvage).expect("salvages").bounds().unsettled, 20);
    let store = disk.open(options()).expect("damage so named is over");
    assert_eq!(store.bounds().unsettled, 20);
}

/// A file was cut off inside its first segment. Salvage once wrote a superblock with no segment,
/// which no later open took for one, and then found no room for its own records.
#[test]
fn a_store_without_a_whole_segment_is_refused_unchanged() {
    let disk = SimDisk::new();
    publish(&disk.open(options()).expect("creates"), 5);
    let mut bytes = disk.bytes();
    // Also within the store's identity, and before it.
    for len in [SEGMENTS_AT + 4000, SEGMENTS_AT, SEGMENTS_AT - 1, 8192] {
        bytes.truncate(len);
        disk.restore(bytes.clone());
        let salvaged = disk.open(options().recovery(Recovery::Salvage)).map(drop);
        assert!(
            matches!(salvaged, Err(OpenError::Broken { .. })),
            "{len} bytes: {salvaged:?}"
        );
        assert!(disk.bytes() == bytes);
    }
    for len in [0, 1, 300, 8192, 12287] {
        let noise = vec![0xA5; len];
        disk.restore(noise.clone());
        assert_eq!(disk.open(options()).is_ok(), len == 0, "{len} bytes");
        assert!(len == 0 || disk.bytes() == noise);
    }
}

/// A mark that speaks of records after itself was once believed: everything published from then
/// on counted as older than what is needed, and was lost at the next open. Then such a mark was
/// ignored, and what it said of the records before it was lost too: what a clean close had
/// settled came back in a power cut. An epoch that claims to follow a later record was accepted
/// as well, and named a loss that never happened once the log began behind it.
#[test]
fn a_mark_that_speaks_of_the_future_is_refused_unchanged() {
    const FOLLOWS: usize = 40;
    const OLDEST_NEEDED: usize = 40 + 24 + 24;
    for field in [FOLLOWS, OLDEST_NEEDED] {
        let disk = SimDisk::new();
        publish(&disk.open(options()).expect("creates"), 1);
        let mut bytes = disk.bytes();
        let (epoch, _) = record_places(&bytes)[0];
        let at = epoch as usize + field;
        bytes[at..at + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        resign(&mut bytes);
        refused_unchanged(&disk, &options(), &bytes, "no meaning");
        // A look must see it as well; it was once shown as a mark like any other.
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), &bytes).expect("writes");
        let look = Inspection::open(file.path()).expect("a store");
        let shown = look.records().next().expect("a record").expect("reads");
        assert!(matches!(shown.body, Body::Unreadable(_)), "{shown:?}");
    }
}

/// A store with numbers at the end of their range could once be opened, and the next message had
/// no number.
#[test]
fn a_store_whose_numbers_are_used_up_is_refused_unchanged() {
    let disk = SimDisk::new();
    publish(&disk.open(options()).expect("creates"), 1);
    let mut bytes = disk.bytes();
    for copy in [0, 4096] {
        // The send grant.
        bytes[copy + 64..copy + 72].copy_from_slice(&((1u64 << 63) - 1).to_le_bytes());
    }
    resign(&mut bytes);
    disk.restore(bytes.clone());
    let opened = disk.open(options()).map(drop);
    assert!(
        matches!(opened, Err(OpenError::Broken { .. })),
        "{opened:?}"
    );
    assert!(disk.bytes() == bytes);
}

/// A sync failed, so nothing was freed any more and every segment filled up; then runs died while
/// they opened the store, or while they freed a segment. Each left an epoch in the room reserved
/// for freeing a segment, until none was left and the store never took a message again.
#[test]
fn runs_that_die_while_they_open_leave_room_to_free_a_segment() {
    for chores in 0..12 {
        let disk = SimDisk::new();
        let store = disk.open(options()).expect("creates");
        disk.limit(Some(disk.bytes().len() as u64));
        publish(&store, 20);
        disk.fail(Fault::Sync(0));
        assert!(store.sync().is_err());
        while let Ok(at) = store.append(&Envelope::publish("orders"), &[7; 100]) {
            if at.sequence % 3 == 0 {
                store.settle(&[at.sequence]).expect("settles");
            }
        }
        drop(store);
        for _ in 0..300 {
            let store = disk.open(options()).expect("opens");
            for _ in 0..chores {
                step(&store).expect("a good disk");
            }
        }
        let store = disk.open(options()).expect("opens");
        store.settle_through(15).expect("settles");
        while step(&store).expect("a good disk") {}
        publish(&store, 1);
    }
}

/// A text in an envelope announced more bytes than there is memory. Reading it once panicked, and
/// so did every open of that store.
#[test]
fn an_envelope_reserves_nothing_for_what_it_announces() {
    let mut bytes = vec![0, 1, b'A', 1];
    bytes.extend_from_slice(&[0xFD, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
    assert!(Envelope::decode(&bytes).is_err());
}

/// A store was closed, and the header of a segment went bad. The next open once knew that the log
/// was complete, wrote the header again without a sync, and then recorded that the store was
/// open. A power cut left the damage without the clean close that made it harmless.
#[test]
fn a_header_that_is_mended_after_a_clean_close_stays_mended() {
    let options = options().segment_size(8 << 10);
    for segment in 0..4 {
        let disk = SimDisk::new();
        let store = disk.open(options.clone()).expect("creates");
        publish(&store, 20);
        store.close(20).expect("closes");
        drop(store);
        disk.power_cut(Cut::None, &mut Rng::new(0));
        disk.scribble(SEGMENTS_AT as u64 + (segment << 13), |header| {
            header[0] ^= 1
        });
        let opened = disk.open(options.clone());
        let store = opened.unwrap_or_else(|e| panic!("segment {segment}: {e}"));
        assert_eq!(store.bounds().unsettled, 20);
        drop(store);
        disk.power_cut(Cut::None, &mut Rng::new(0));
        let opened = disk.open(options.clone());
        let store = opened.unwrap_or_else(|e| panic!("segment {segment}, after the cut: {e}"));
        assert_eq!(store.bounds().unsettled, 20);
    }
}

/// A record of a run that the superblock does not know of ends the log. A look once took it for
/// what the owner was just writing, although nobody had the file open.
#[test]
fn a_record_of_an_unknown_run_is_not_being_written() {
    let disk = SimDisk::new();
    publish(&disk.open(options()).expect("creates"), 5);
    let mut bytes = disk.bytes();
    let (third, _) = record_places(&bytes)[3];
    // The generation of that record.
    bytes[third as usize + 32] = 9;
    resign(&mut bytes);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &bytes).expect("writes");
    let look = Inspection::open(file.path()).expect("a store");
    assert!(!look.is_moving());
}

/// Records claimed to be of runs to come. A salvage once took one of them for the newest, so that
/// what stood between was dead; it came back when the segment before it was freed, with messages
/// that were settled instead of some that were not.
#[test]
fn records_of_runs_that_never_were_are_refused_unchanged() {
    let disk = SimDisk::new();
    let store = disk.open(options()).expect("creates");
    publish(&store, 20);
    store.sync().expect("syncs");
    drop(store);
    let mut bytes = disk.bytes();
    let (seventh, _) = record_places(&bytes)[7];
    // The generation of that record.
    bytes[seventh as usize + 32] = 8;
    resign(&mut bytes);
    let mut damaged = bytes.clone();
    // A salvage would not help, and that must be said although there is damage too.
    damaged[record_places(&bytes)[3].0 as usize + 20] ^= 1;
    for bytes in [bytes, damaged] {
        refused_unchanged(&disk, &options(), &bytes, "run 8");
    }
}

/// A message claimed the ordinal of the last mark. It was once taken for the end of the log, and
/// what was written next overwrote that mark. What the mark said of the records before it was
/// lost with it, and a power cut brought back messages that were settled.
#[test]
fn records_of_one_ordinal_are_refused_unchanged() {
    let disk = SimDisk::new();
    publish(&disk.open(options()).expect("creates"), 20);
    let mut bytes = disk.bytes();
    let places = record_places(&bytes);
    let ordinal = places[12].0 as usize + 24;
    bytes.copy_within(ordinal..ordinal + 8, places[7].0 as usize + 24);
    resign(&mut bytes);
    refused_unchanged(&disk, &options(), &bytes, "stands at");
}

/// The only header of a segment in use names an ordinal far above its records. A look once took
/// the empty log before that ordinal for the state of the store a moment ago.
#[test]
fn a_header_of_the_future_is_not_being_written() {
    let disk = SimDisk::new();
    publish(&disk.open(options()).expect("creates"), 5);
    let mut bytes = disk.bytes();
    // The third byte of the ordinal of its first record.
    bytes[SEGMENTS_AT + 8 + 2] = 0x5B;
    resign(&mut bytes);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &bytes).expect("writes");
    let look = Inspection::open(file.path()).expect("a store");
    assert!(!look.is_moving());
    assert_eq!(look.bounds().unsettled, 5);
}

/// A device lost what was written to the first segment of the log, whose header now says that it
/// is free. A look once took what is left for the state of the log a moment ago, and reported no
/// damage.
#[test]
fn a_file_at_rest_without_its_first_segment_is_damaged_and_never_called_moving() {
    let disk = SimDisk::new();
    let options = options().capacity(128 << 10).segment_size(8 << 10);
    let store = disk.open(options.preallocate(true)).expect("creates");
    publish(&store, 80);
    store.sync().expect("syncs");
    drop(store);
    let mut bytes = disk.bytes();
    let lost = &mut bytes[SEGMENTS_AT..][..8192];
    lost[64..].fill(0);
    // Its first ordinal, and whether it is used.
    lost[8..16].fill(0);
    lost[24] = 0;
    resign(&mut bytes);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &bytes).expect("writes");
    let look = Inspection::open(file.path()).expect("a store");
    assert!(!look.is_moving());
    assert!(!look.report().damaged.is_empty());
}

/// A copy of a store was cut short behind segments that are all full. Salvage once found no room
/// there for its own records, asked for a bug report, and had already written to the file.
#[test]
fn a_file_cut_behind_full_segments_is_lengthened_by_a_salvage() {
    let options = options().capacity(128 << 10).segment_size(8 << 10);
    let options = options.preallocate(true);
    let disk = SimDisk::new();
    publish(&disk.open(options.clone()).expect("creates"), 120);
    let whole = disk.bytes();
    let full = SEGMENTS_AT + 2 * 8192;
    let kept = record_places(&whole[..full]).len() as u64;
    assert!(kept < 120, "the third segment is in use");
    let cut = whole[..full + 3000].to_vec();
    disk.restore(cut.clone());
    let refused = disk.open(options.clone()).map(drop);
    assert!(matches!(refused, Err(OpenError::Damaged { .. })));

    // Without room to make it longer, the file stays as it was.
    let salvage = options.clone().recovery(Recovery::Salvage);
    disk.limit(Some(cut.len() as u64));
    let refused = disk.open(salvage.clone()).map(drop);
    assert!(
        matches!(refused, Err(OpenError::NoSpace { .. })),
        "{refused:?}"
    );
    assert!(disk.bytes() == cut);

    disk.limit(None);
    let store = disk.open(salvage).expect("salvages");
    let saved = store.bounds().unsettled;
    assert!(saved > 80 && saved <= kept, "{saved} of {kept}");
    store.settle_through(saved - 5).expect("settles");
    // What was added is written in the same run.
    let append = || store.append(&Envelope::publish("orders"), &[7; 100]);
    while append().is_ok() {}
    while step(&store).expect("upkeep") {}
    let unsettled = store.bounds().unsettled;
    assert!(unsettled > 5, "there was no room");
    drop(store);
    let store = disk.open(options).expect("damage so named is over");
    assert_eq!(store.bounds().unsettled, unsettled);
}

/// The header of a free segment claimed to begin with a record whose real place is damaged. The
/// walk once went to that segment and found nothing, and what is intact behind the damage was not
/// searched for: a salvage showed less than the open after it.
#[test]
fn what_stands_behind_damage_is_found_although_a_header_leads_away() {
    let options = options().segment_size(8 << 10);
    let disk = SimDisk::new();
    let store = disk.open(options.clone()).expect("creates");
    publish(&store, 20);
    store.sync().expect("syncs");
    drop(store);
    let mut bytes = disk.bytes();
    let (tenth, _) = record_places(&bytes)[10];
    let ordinal = bytes[tenth as usize + 24];
    // Of the third segment: its first ordinal, and whether it is used.
    bytes[SEGMENTS_AT + 8192 * 2 + 8] = ordinal;
    bytes[SEGMENTS_AT + 8192 * 2 + 24] = 1;
    resign(&mut bytes);
    bytes[tenth as usize + 20] ^= 1;
    disk.restore(bytes);
    let salvage = options.clone().recovery(Recovery::Salvage);
    let store = disk.open(salvage).expect("salvages");
    assert_eq!(store.bounds().unsettled, 19);
    drop(store);
    let store = disk.open(options).expect("damage so named is over");
    assert_eq!(store.bounds().unsettled, 19);
}

/// The message behind a damaged one claimed to be number 0. In builds with overflow checks the
/// open once ended in a panic.
#[test]
fn a_message_numbered_zero_behind_a_gap_is_damage() {
    let disk = SimDisk::new();
    let store = disk.open(options()).expect("creates");
    publish(&store, 20);
    store.sync().expect("syncs");
    publish(&store, 1);
    drop(store);
    let mut bytes = disk.bytes();
    let places = record_places(&bytes);
    // The sequence of that record.
    let at = places[11].0 as usize + 16;
    bytes[at..at + 8].fill(0);
    resign(&mut bytes);
    bytes[places[10].0 as usize + 20] ^= 1;
    disk.restore(bytes);
    let refused = disk.open(options()).map(drop);
    assert!(
        matches!(refused, Err(OpenError::Damaged { .. })),
        "{refused:?}"
    );
}

/// The records of one segment stood in a second one too, each copy with a hole of its own. A
/// salvage once took some from one and some from the other, continued in the middle of one of
/// them, and was refused at the next open.
#[test]
fn a_log_that_would_come_from_two_segments_is_refused_unchanged() {
    let options = options().segment_size(8 << 10);
    let disk = SimDisk::new();
    publish(&disk.open(options.clone()).expect("creates"), 20);
    let mut bytes = disk.bytes();
    let places = record_places(&bytes);
    bytes.copy_within(SEGMENTS_AT..SEGMENTS_AT + 8192, SEGMENTS_AT + 2 * 8192);
    resign(&mut bytes);
    bytes[places[6].0 as usize + 20] ^= 1;
    bytes[places[9].0 as usize + 16384 + 20] ^= 1;
    disk.restore(bytes.clone());
    let salvaged = disk.open(options.recovery(Recovery::Salvage)).map(drop);
    assert!(
        matches!(&salvaged, Err(OpenError::Broken { why, .. }) if why.contains("stands at")),
        "{salvaged:?}"
    );
    assert!(disk.bytes() == bytes);
}

/// The epoch of a run claimed an ordinal above the records of that run. A salvage once believed
/// that those were dead, wrote over the epoch, and the next open found them alive. If the walk
/// came across such an epoch, nobody checked what it declared dead, and once it was freed those
/// records came back.
#[test]
fn an_epoch_that_is_not_the_first_of_its_run_is_refused_unchanged() {
    let options = options().preallocate(true);
    let disk = SimDisk::new();
    publish(&disk.open(options.clone()).expect("creates"), 20);
    let second = record_places(&disk.bytes()).len();
    publish(&disk.open(options.clone()).expect("opens"), 10);
    let sound = disk.bytes();
    let places = record_places(&sound);
    let behind_a_gap = (second, places.len() as u8 + 5, Some(10));
    let in_the_walk = (0, 12, None);
    for (epoch, ordinal, damaged) in [behind_a_gap, in_the_walk] {
        let mut bytes = sound.clone();
        bytes[places[epoch].0 as usize + 24] = ordinal;
        resign(&mut bytes);
        if let Some(damaged) = damaged {
            let place: (u64, u64) = places[damaged];
            bytes[place.0 as usize + 20] ^= 1;
        }
        refused_unchanged(&disk, &options, &bytes, "no meaning");
    }
}

/// A run died while it freed a segment of a store at its capacity, so that no segment was free,
/// and more runs died while they opened the store; then a message was damaged. There was no room
/// to name the loss, and a salvage ended with `LogFull`.
#[test]
fn a_salvage_at_the_capacity_without_room_to_name_the_loss_raises_it() {
    let options = options().segment_size(8 << 10).preallocate(true);
    let disk = SimDisk::new();
    let store = disk.open(options.clone()).expect("creates");
    let capacity = disk.bytes().len() as u64;
    disk.keep_moments();
    for _ in 0..500 {
        let append = || store.append(&Envelope::publish("orders"), &[7; 100]);
        let at = append().or_else(|_| {
            while step(&store).expect("a good disk") {}
            append()
        });
        let sequence = at.expect("room").sequence;
        if sequence % 10 != STUBBORN {
            store.settle(&[sequence]).expect("settles");
        }
        if sequence == 100 {
            store.sync().expect("syncs");
        }
    }
    drop(store);
    let (mut salvaged, mut raised) = ([0, 0], [0, 0]);
    for moment in disk.take_moments() {
        for runs in [0, 100] {
            let disk = moment.fork();
            for _ in 0..runs {
                disk.open(options.clone()).expect("opens");
            }
            if let Some(was_raised) = salvage_without_one(&disk, &options, capacity) {
                salvaged[usize::from(runs > 0)] += 1;
                raised[usize::from(runs > 0)] += u64::from(was_raised);
            }
        }
    }
    assert!(salvaged.iter().all(|n| *n > 20), "{salvaged:?}");
    assert_eq!(raised[0], 0, "there was room for one loss");
    assert!(raised[1] > 0, "there was always room");
}

const STUBBORN: u64 = 1;

/// Damages a message that is never settled and stands in the log once, and salvages the store.
/// Returns whether its capacity was raised; `None`: there is no such message, or it was not
/// durable.
fn salvage_without_one(disk: &SimDisk, options: &Options, capacity: u64) -> Option<bool> {
    let all = intact_messages(&disk.bytes());
    let once = |m: &&Intact| all.iter().filter(|n| n.sequence == m.sequence).count() == 1;
    let stubborn = |m: &&Intact| m.sequence % 10 == STUBBORN;
    let gone = all.iter().filter(stubborn).find(once)?;
    let whole = disk.fork().open(options.clone()).expect("opens");
    let unsettled = whole.bounds().unsettled;
    disk.scribble(gone.offset + 60, |bytes| bytes[0] ^= 1);
    if disk.fork().open(options.clone()).is_ok() {
        // Nothing says yet that it was durable.
        return None;
    }

    let salvage = options.clone().recovery(Recovery::Salvage);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), disk.bytes()).expect("writes");
    let mapped = open_by_steps(file.path(), salvage.clone()).expect("salvages");
    let store = disk.open(salvage).expect("salvages");
    assert_eq!(store.bounds().unsettled, unsettled - 1);
    assert!(!store.is_unsettled(gone.sequence));
    let raised = store.report().enlarged_to;
    assert_eq!(mapped.report().enlarged_to, raised);
    if let Some(now) = raised {
        assert_eq!(now, capacity + (16 << 10));
        assert_eq!(disk.bytes().len() as u64, now);
        assert!(store.report().to_string().contains("capacity raised to"));
    }
    // What was added is written in the same run.
    let fork = disk.fork();
    for store in [store, mapped] {
        let append = || store.append(&Envelope::publish("orders"), &[7; 100]);
        while append().is_ok() {}
    }
    let disk = &fork;

    let store = disk.open(options.clone()).expect("damage so named is over");
    assert_eq!(store.report().enlarged_to, None);
    assert_eq!(store.bounds().unsettled, unsettled - 1);
    store
        .settle_through(store.bounds().next - 1)
        .expect("settles");
    for _ in 0..2 {
        while step(&store).expect("a good disk") {}
        publish(&store, 15);
    }
    Some(raised.is_some())
}

/// A message was refused and waited for the application; then its bytes were damaged. A mark
/// counted it as settled, so the damage once counted as harmless, and the refusal waited without
/// its message.
#[test]
fn damage_to_a_message_that_was_refused_is_damage() {
    let disk = SimDisk::new();
    let store = disk.open(options()).expect("creates");
    publish(&store, 10);
    store.reject(4, "no", 1).expect("a good disk");
    store.settle_through(10).expect("settles");
    store.sync().expect("syncs");
    publish(&store, 1);
    drop(store);
    let bytes = disk.bytes();
    let all = intact_messages(&bytes);
    for (sequence, is_needed) in [(3, false), (4, true)] {
        let record = all.iter().find(|m| m.sequence == sequence);
        let place = record.expect("it is there").offset as usize;
        let mut bytes = bytes.clone();
        bytes[place + 60] ^= 1;
        disk.restore(bytes);
        let opened = disk.open(options()).map(|store| store.report().clone());
        match opened {
            Err(OpenError::Damaged { ranges, .. }) => {
                assert!(is_needed);
                assert_eq!(ranges[0].sequences, Some((4, 4)));
            }
            Ok(report) => assert!(!is_needed && report.ignored.len() == 1, "{report}"),
            Err(error) => panic!("{error}"),
        }
    }
}

/// A bit flipped in a settled message at the head of a log, which was harmless. The open once
/// gave up the segment behind that one and kept the first. What was written over the second was
/// cut short by a power cut; then an open began with the first segment again, found a hole behind
/// it, and reported damage to records that nobody needs.
#[test]
fn what_the_marks_gave_up_is_given_up_as_a_whole() {
    let options = options().segment_size(8 << 10).preallocate(true);
    let disk = SimDisk::new();
    let store = disk.open(options.clone()).expect("creates");
    publish(&store, 1);
    let mut before = 0;
    while before == 0 || newest_segment(&disk) != 0 {
        before = newest_segment(&disk);
        publish(&store, 1);
        store.settle_through(store.bounds().last).expect("settles");
        while step(&store).expect("a good disk") {}
    }
    // Everything before these is freed by now, and none of these is, since more than half of the
    // ring is free.
    let first = 0;
    for segment in [1, 2] {
        publish_into(segment, &store, &disk);
        let last = store.bounds().last;
        store.settle_through(last).expect("settles");
    }
    publish(&store, 2);
    let unsettled = store.bounds().last - 1;
    store.settle_through(unsettled - 1).expect("settles");
    store.sync().expect("syncs");
    drop(store);
    let all = intact_messages(&disk.bytes());
    let in_first = all.iter().filter(|m| segment_of(m.offset) == first);
    let flipped = in_first.clone().nth(5).expect("it is there").offset;
    disk.scribble(flipped + 60, |bytes| bytes[0] ^= 1);

    let store = disk.open(options.clone()).expect("nobody minds");
    assert!(!store.report().ignored.is_empty());
    assert_eq!(store.bounds().unsettled, 2);
    publish_into(0, &store, &disk);
    publish(&store, 10);
    let whole = store.bounds().unsettled;
    drop(store);
    let mut cut_short = 0;
    for seed in 0..100 {
        let disk = disk.fork();
        disk.power_cut(Cut::Sectors, &mut Rng::new(seed));
        let opened = disk.open(options.clone());
        let store = opened.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        cut_short += u64::from(store.bounds().unsettled < whole);
        for sequence in [unsettled, unsettled + 1] {
            assert!(
                store.is_unsettled(sequence),
                "seed {seed}: {}",
                store.report()
            );
        }
    }
    assert!(cut_short > 50, "{cut_short} of 100 cuts took something");
}

fn segment_of(offset: u64) -> u64 {
    (offset - SEGMENTS_AT as u64) >> 13
}

fn newest_segment(disk: &SimDisk) -> u64 {
    let all = intact_messages(&disk.bytes());
    let newest = all.iter().max_by_key(|m| m.sequence);
    segment_of(newest.expect("it was written").offset)
}

/// Publishes until the newest message stands in this segment.
fn publish_into(segment: u64, store: &Store, disk: &SimDisk) {
    while newest_segment(disk) != segment {
        publish(store, 1);
    }
}

/// A message had been copied so that its segment could be freed, and a mark said that the segment
/// is not needed any more; then the copy was damaged. A salvage once found the message in its
/// first place but left the mark in force: one more flipped bit in that segment counted as
/// harmless, and the message was lost silently. So the salvage must copy it again.
#[test]
fn a_message_whose_copy_was_damaged_is_copied_again_by_the_salvage() {
    let options = options().segment_size(8 << 10).preallocate(true);
    let salvage = options.clone().recovery(Recovery::Salvage);
    let disk = SimDisk::new();
    let store = disk.open(options.clone()).expect("creates");
    disk.keep_moments();
    for _ in 0..300 {
        let append = || store.append(&Envelope::publish("orders"), &[7; 100]);
        let at = append().or_else(|_| {
            while step(&store).expect("a good disk") {}
            append()
        });
        let sequence = at.expect("room").sequence;
        if sequence % 10 != STUBBORN {
            store.settle(&[sequence]).expect("settles");
        }
    }
    drop(store);
    let (mut found_again, mut flips, mut cuts) = (0, 0, 0);
    for disk in disk.take_moments() {
        let whole = disk.open(options.clone()).expect("opens");
        // A mark says that the copies are durable.
        whole.sync().expect("syncs");
        let all = intact_messages(&disk.bytes());
        let of = |sequence| all.iter().filter(move |m: &&Intact| m.sequence == sequence);
        let copied = all.iter().find(|m| {
            let is_older = of(m.sequence).count() == 2;
            whole.is_unsettled(m.sequence) && is_older
        });
        let Some(first) = copied else {
            continue;
        };
        drop(whole);
        let copy = of(first.sequence).find(|m| m.offset != first.offset);
        for (kept, gone) in [(first, copy.expect("two")), (copy.expect("two"), first)] {
            let disk = disk.fork();
            disk.scribble(gone.offset + 60, |bytes| bytes[0] ^= 1);
            disk.keep_moments();
            let store = disk.open(salvage.clone()).expect("salvages");
            if store.report().damaged.is_empty() || !store.is_unsettled(kept.sequence) {
                continue;
            }
            found_again += 1;
            drop(store);
            let beside = all.iter().filter(|m| {
                segment_of(m.offset) == segment_of(kept.offset) && m.sequence != kept.sequence
            });
            let is_lost_with = |disk: &SimDisk, flipped: &Intact| {
                let disk = disk.fork();
                disk.scribble(flipped.offset + 60, |bytes| bytes[0] ^= 1);
                match disk.open(options.clone()) {
                    Ok(store) => !store.is_unsettled(kept.sequence),
                    Err(OpenError::Damaged { .. }) => false,
                    Err(error) => panic!("{error}"),
                }
            };
            for flipped in beside.clone() {
                flips += 1;
                assert!(!is_lost_with(&disk, flipped), "{}", flipped.sequence);
            }
            // Nor may it be lost if the power fails during the salvage.
            for moment in disk.take_moments() {
                for seed in 0..8 {
                    let disk = moment.fork();
                    disk.power_cut(Cut::Sectors, &mut Rng::new(seed));
                    for flipped in beside.clone().take(1) {
                        cuts += 1;
                        assert!(!is_lost_with(&disk, flipped), "cut by {seed}");
                    }
                }
            }
        }
    }
    assert!(
        found_again > 0 && flips > found_again && cuts > found_again,
        "{found_again} copies were lost whose first record was there: {flips} flips, {cuts} cuts"
    );
}
