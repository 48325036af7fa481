//! Cases that few files show: small changes to recovery that every other test let pass.
#![cfg(feature = "testkit")]

use std::path::{Path, PathBuf};

use super::*;
use crate::inspect::{Inspection, MessageState};
use crate::testkit::{Call, FailingCalls, SimDisk, fail_calls};
use crate::transfer::{Unsaved, repair_to};
use crate::{Options, Recovery, Store};

fn file(dir: &Path, image: &Image) -> PathBuf {
    let path = dir.join("image");
    std::fs::write(&path, &image.0).unwrap();
    path
}

/// The next open must know the segment by its first record, even if that one is of no use any
/// more, and not by the first one that is.
#[test]
fn a_mended_header_names_the_first_record_of_its_segment() {
    let mut image = Image::new();
    let hole = image.publish(records_at(0), 1, 1);
    image.publish(hole, 2, 2);
    image.flip(hole + 50);
    image.used(1, 3);
    let at = image.publish(records_at(1), 3, 3);
    let needed = Mark {
        floor: 3,
        next: 4,
        oldest_needed: 4,
        ..durable(3)
    };
    let at = image.mark(at, 4, &needed);
    image.publish(at, 4, 5);
    let header = SEGMENTS_AT + SIZE;
    image.flip(header + 9);
    let chain = image.recover().chain;
    assert_eq!((chain.len(), chain[0].first_ordinal), (1, 4));
    let disk = SimDisk::new();
    disk.restore(image.0);
    drop(disk.open(Options::new()).unwrap());
    let mended = SegmentHeader::decode(&disk.bytes()[header as usize..][..64], KEY, header);
    assert_eq!(mended, Some(SegmentHeader::Used { first_ordinal: 3 }));
}

/// A write that fails may leave nothing intact behind, so the copy that counts must not be
/// written first.
#[test]
fn an_open_writes_last_over_the_superblock_that_counts() {
    let newer = Superblock {
        counter: 2,
        ..superblock()
    };
    let copies = |image: &mut Image, in_force: u64, other: &[u8]| {
        image.put(in_force, &newer.encode());
        image.put(BLOCK - in_force, other);
    };
    let mut damaged = superblock().encode();
    damaged[70] ^= 1;
    let dir = tempfile::tempdir().unwrap();
    for in_force in [0, BLOCK] {
        for other in [superblock().encode(), damaged.clone()] {
            let mut image = Image::new();
            copies(&mut image, in_force, &other);
            let path = file(dir.path(), &image);
            fail_calls(Some(FailingCalls {
                call: Call::WriteAround,
                after: 1,
                for_ever: false,
                errno: libc::EIO,
            }));
            assert!(Store::open(&path, Options::new()).is_err());
            assert_eq!(fail_calls(None), 1);
            let bytes = std::fs::read(&path).unwrap();
            let copy = |at: u64| &bytes[at as usize..][..BLOCK as usize];
            assert!(copy(in_force) == newer.encode(), "{in_force}");
            assert!(copy(BLOCK - in_force) != other, "{in_force}");
        }
    }
}

/// A number floor is given because nothing else may show those numbers.
#[test]
fn the_number_floor_counts_where_nothing_else_is_as_high() {
    for (number_floor, grant) in [(50, 7), (7, 50)] {
        let superblock = Superblock {
            number_floor,
            grant,
            ..superblock()
        };
        let mut image = Image::new();
        image.superblocks(&superblock, &superblock);
        image.publish(records_at(0), 1, 1);
        assert_eq!(image.recover().max_sequence, 50);
        let disk = SimDisk::new();
        disk.restore(image.0);
        assert_eq!(disk.open(Options::new()).unwrap().report().next, 51);
    }
}

/// What is below the oldest needed ordinal gives no sequence to count from, and neither does what
/// came before it. A refusal in the gap once passed for one more settled publish.
#[test]
fn nothing_is_counted_from_before_what_is_not_used() {
    let mut image = Image::new();
    let hole = image.publish(records_at(0), 1, 1);
    let at = image.publish(hole, 2, 2);
    image.flip(hole + 50);
    let at = image.publish(at, 3, 3);
    let gap = image.plain(at, Kind::Settlement, 0, 4, &1_u64.to_le_bytes());
    // Message 4, and two records that are none.
    let mut at = image.publish(gap, 4, 5);
    image.flip(gap + 50);
    for ordinal in [6, 7] {
        let next = image.plain(at, Kind::Settlement, 0, ordinal, &1_u64.to_le_bytes());
        image.flip(at + 41);
        at = next;
    }
    let at = image.publish(at, 5, 8);
    let settled = Mark {
        floor: 4,
        next: 6,
        oldest_needed: 4,
        ..durable(8)
    };
    image.mark(at, 9, &settled);
    let recovered = image.recover();
    assert_eq!(recovered.ignored.len(), 1, "below what is needed");
    let gaps = recovered
        .damaged
        .iter()
        .map(|r| (r.first_ordinal, r.last_ordinal));
    assert_eq!(gaps.collect::<Vec<_>>(), [(5, Some(7))]);
}

/// What proved a gap to be harmless may be gone at the next open.
#[test]
fn a_salvage_names_what_it_could_ignore_as_well() {
    let mut image = Image::new();
    let mut at = records_at(0);
    let mut ordinal = 0;
    for (sequence, is_damaged) in [(1, false), (2, true), (3, false)] {
        ordinal += 1;
        let next = image.publish(at, sequence, ordinal);
        if is_damaged {
            image.flip(at + 50);
        }
        at = next;
    }
    let settled = Mark {
        floor: 3,
        next: 4,
        ..durable(3)
    };
    let proof = at;
    let damaged = image.mark(proof, 4, &settled);
    let at = image.publish(damaged, 4, 5);
    image.flip(damaged + 50);
    let at = image.publish(at, 5, 6);
    image.mark(at, 7, &durable(6));
    let recovered = image.recover();
    assert_eq!((recovered.ignored.len(), recovered.damaged.len()), (1, 1));

    let disk = SimDisk::new();
    disk.restore(image.0);
    let salvage = Options::new().recovery(Recovery::Salvage);
    drop(disk.open(salvage).unwrap());
    let lost = Image(disk.bytes()).recover().lost;
    let mut lost: Vec<_> = lost
        .iter()
        .map(|l| (l.first_ordinal, l.last_ordinal))
        .collect();
    lost.sort_unstable();
    assert_eq!(lost, [(2, 2), (5, 5)]);
}

/// Message 2 is settled, and stands in the log; behind a hole it is refused after all, and the
/// original before that refusal is another's, whose own refusal is lost.
#[test]
fn a_refusal_that_is_set_aside_is_saved_with_its_own_message() {
    let dir = tempfile::tempdir().unwrap();
    let mut refusal = Vec::new();
    RejectionBody::new("too late", 1, true).encode(&mut refusal);
    for with_another in [false, true] {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let at = image.publish(at, 2, 2);
        let settled = Mark {
            floor: 2,
            next: 3,
            ..durable(2)
        };
        let hole = image.mark(at, 3, &settled);
        let mut at = image.publish(hole, 3, 4);
        image.flip(hole + 50);
        let mut ordinal = 5;
        if with_another {
            let own = image.message(at, Kind::Original, 1, 5, Origin::Publish);
            at = image.plain(own, Kind::Rejection, 1, 6, &refusal);
            image.flip(own + 45);
            ordinal = 7;
        }
        image.plain(at, Kind::Rejection, 2, ordinal, &refusal);
        let (old, new) = (file(dir.path(), &image), dir.path().join("new"));
        let report = repair_to(&old, &new).unwrap();
        assert_eq!((report.saved, report.rejections), (0, 1));
        let without_original = |u: &Unsaved| matches!(u, Unsaved::Original { .. });
        assert!(
            !report.unsaved.iter().any(without_original),
            "{:?}",
            report.unsaved
        );
        let message = Inspection::open(&new).unwrap().get(2).unwrap().unwrap();
        assert_eq!(
            (message.sequence, message.state),
            (2, MessageState::Rejected)
        );
        std::fs::remove_file(&new).unwrap();
    }
}

/// The mark that named the start of the log is set aside with everything it speaks of: nothing was
/// freed for it, and what stands before it is needed.
#[test]
fn a_start_that_only_a_record_set_aside_names_is_none() {
    let mut image = Image::new();
    let at = image.publish(records_at(0), 1, 1);
    image.publish(at, 2, 2);
    // A power cut took the stamp, and record 3.
    image.stamp(0, SegmentHeader::Free);
    image.used(1, 4);
    let freed = Mark {
        next: 3,
        oldest_needed: 3,
        ..Mark::default()
    };
    let at = image.mark(records_at(1), 4, &freed);
    image.publish(at, 4, 5);
    let recovered = image.recover();
    assert_eq!(standings(&recovered), [Unsettled, Unsettled, Gone]);
    assert_eq!(recovered.set_aside.len(), 2);
    assert_eq!(recovered.chain.len(), 1);
}

/// A lost record of a walk that is judged again is one, and not two.
#[test]
fn what_was_given_up_is_told_once_where_the_log_is_judged_again() {
    let mut image = Image::new();
    image.stamp(0, SegmentHeader::Free);
    image.used(1, 5);
    let lost = LostBody {
        first_ordinal: 1,
        last_ordinal: 4,
        first_sequence: 1,
        last_sequence: 3,
    };
    let mut body = Vec::new();
    lost.encode(&mut body);
    let at = image.publish(records_at(1), 4, 5);
    let at = image.plain(at, Kind::Lost, 0, 6, &body);
    image.mark(at, 7, &durable(6));
    let recovered = image.recover();
    assert_eq!((recovered.damaged.len(), recovered.lost.len()), (0, 1));
    assert_eq!(recovered.state.unsettled(), 1);
}

/// Two runs begun behind the same record: the first of them died in its open, and is no part of the
/// log.
#[test]
fn of_two_epochs_behind_one_record_the_newer_goes_on() {
    let mut image = Image::new();
    image.publish(records_at(0), 1, 1);
    image.used(1, 5);
    image.epoch(records_at(1), 5, 1);
    image.of_generation(records_at(1), 2);
    image.used(2, 9);
    let at = image.epoch(records_at(2), 9, 1);
    image.of_generation(records_at(2), 3);
    image.publish(at, 2, 10);
    image.of_generation(at, 3);
    let recovered = image.recover();
    let chain: Vec<usize> = recovered.chain.iter().map(|c| c.segment).collect();
    assert_eq!((chain, recovered.last_ordinal), (vec![0, 2], 10));
}

/// More damage than an open has lost records for: neighbours share one, which names all from the first
/// to the last, and sequences as far as any of them is known.
#[test]
fn damage_that_shares_a_lost_record_is_named_from_end_to_end() {
    let mut image = Image::new();
    let mut at = records_at(0);
    let mut ordinal = 0;
    let mut publish = |image: &mut Image, is_damaged: bool| {
        ordinal += 1;
        let next = image.publish(at, ordinal, ordinal);
        if is_damaged {
            image.flip(at + 50);
        }
        at = next;
    };
    for number in 1..=82 {
        publish(&mut image, number % 2 == 0);
    }
    // The first gap holds a settled publish only.
    let settled = Mark {
        floor: 3,
        next: 83,
        ..durable(82)
    };
    let last = image.publish(at, 83, 83);
    image.mark(last, 84, &settled);
    let recovered = image.recover();
    assert_eq!((recovered.ignored.len(), recovered.damaged.len()), (1, 40));

    let disk = SimDisk::new();
    disk.restore(image.0);
    let salvage = Options::new().recovery(Recovery::Salvage);
    drop(disk.open(salvage).unwrap());
    let recovered = Image(disk.bytes()).recover();
    assert!(recovered.damaged.is_empty(), "{:?}", recovered.damaged);
    assert!(recovered.lost.len() <= 32, "{}", recovered.lost.len());
    assert!(
        recovered.lost.iter().all(|l| l.first_sequence > 0),
        "{:?}",
        recovered.lost
    );
    assert_eq!(recovered.state.unsettled(), 40);
}

/// The epoch says that nothing in the first segment is needed. A late refusal of a message that stands
/// there is preceded by that message, so that it does not hang on a segment that anything may befall.
#[test]
fn what_an_epoch_says_is_not_needed_is_written_again_for_a_late_refusal() {
    use crate::{PublishStore, StoredMessage};

    let mut image = Image::new();
    let at = image.publish(records_at(0), 1, 1);
    image.publish(at, 2, 2);
    image.used(1, 3);
    let settled = Mark {
        floor: 2,
        next: 3,
        oldest_needed: 1,
        ..durable(2)
    };
    let mark = image.mark(records_at(1), 3, &settled);
    image.publish(mark, 3, 4);
    let disk = SimDisk::new();
    disk.restore(image.0);
    let store = disk.open(Options::new()).unwrap();
    store.reject(2, "too late", 1).unwrap();
    store.sync().unwrap();
    drop(store);
    disk.scribble(at, |bytes| bytes[50] ^= 1);
    let store = disk.open(Options::new()).unwrap();
    assert_eq!(store.rejections(0, 9).len(), 1);
    assert!(store.get(2, &mut StoredMessage::new()).unwrap());
}
