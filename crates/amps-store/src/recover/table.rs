//! Walks the recovery table of `store-format.md`: a file is made for every row, and what recovery
//! makes of it is checked.

mod files;
mod gaps;
mod image;
mod meanings;
mod places;
mod seldom;

use std::io;

use crate::envelope::{Envelope, Origin};
use crate::format::{
    BLOCK, Epoch, IDENTITY_AT, Identity, Kind, LostBody, Mark, Opening, RECORD_HEADER,
    RecordHeader, RejectionBody, Reserved, SEGMENT_HEADER, SEGMENTS_AT, SegmentHeader, Superblock,
    UserTag, VERSION, commit_word, record_crc, seed, stride,
};
use crate::recover::scan::{Scanner, Source, Verdict};
use crate::recover::{Recovered, Refusal, read_header, recover, stand_in};
use crate::report::Stop;
use crate::state::Standing;
use Standing::{Accepted, Gone, Rejected, Settled, Unsettled};

use files::{FILES, HEADERS};
use gaps::GAPS;
use image::{Image, KEY, SEGMENTS, SIZE, durable, records_at, standings, superblock, with_gap};
use meanings::MEANINGS;
use places::{ORDER, PLACES};

type Row = (&'static str, fn());

fn rows() -> impl Iterator<Item = &'static Row> {
    let tables: [&[Row]; 6] = [&FILES, &HEADERS, &PLACES, &ORDER, &GAPS, &MEANINGS];
    tables.into_iter().flatten()
}

/// Every segment holds part of the log, so the epoch behind a cut is written over the torn
/// record. The head of that record must be gone for good first: otherwise the tail that a power
/// cut lost could come to stand behind it again.
#[cfg(feature = "testkit")]
#[test]
fn a_torn_head_is_wiped_where_the_epoch_is_written_over_it() {
    use crate::testkit::{Cut, Rng, SimDisk};

    let mut image = Image::new();
    let mut at = 0;
    for segment in 0..SEGMENTS {
        image.used(segment, segment + 1);
        at = image.publish(records_at(segment), segment + 1, segment + 1);
    }
    let behind = image.publish(at, SEGMENTS + 1, SEGMENTS + 1);
    image.flip(at + 45);
    image.publish(behind, SEGMENTS + 2, SEGMENTS + 2);
    let recovered = image.recover();
    assert_eq!(
        (recovered.chain.len() as u64, recovered.set_aside.len()),
        (SEGMENTS, 1)
    );
    let disk = SimDisk::new();
    disk.restore(image.0);
    let store = disk.open(crate::Options::new()).unwrap();
    drop(store);
    disk.power_cut(Cut::None, &mut Rng::new(1));
    assert_eq!(disk.bytes()[at as usize..][..8], [0; 8]);
}

/// Copies are damaged, and what they were made of stands where marks say that nothing is needed.
/// A salvage copies it once more before it names the damage, even if every segment is in use:
/// only then does nothing depend on those segments any more.
#[cfg(feature = "testkit")]
#[test]
fn what_is_stranded_below_the_marks_finds_room_in_a_full_ring() {
    use crate::testkit::SimDisk;
    use crate::{OpenError, Options, Recovery};

    let mut image = Image::new();
    let mut count = 0;
    for segment in 0..2 {
        image.used(segment, count + 1);
        let mut at = records_at(segment);
        while at + 128 < records_at(segment + 1) {
            count += 1;
            at = image.publish(at, count, count);
        }
    }
    let (needed, copy) = (count + 1, count + 2);
    image.used(2, needed);
    let at = image.publish(records_at(2), needed, needed);
    image.message(at, Kind::Copy, 1, copy, Origin::Publish);
    image.flip(at + 50);
    for segment in 3..SEGMENTS {
        let ordinal = count + segment;
        image.used(segment, ordinal);
        image.publish(records_at(segment), ordinal - 1, ordinal);
    }
    let last = count + SEGMENTS;
    let mark = Mark {
        durable: last - 1,
        next: last - 1,
        oldest_needed: needed,
        ..Mark::default()
    };
    let at = records_at(SEGMENTS - 1);
    let header = RecordHeader::decode(&image.0[at as usize..], SIZE).unwrap();
    image.mark(at + header.stride(), last, &mark);
    let recovered = image.recover();
    assert_eq!(recovered.stranded.len() as u64, count);
    assert_eq!(recovered.chain.len() as u64, SEGMENTS);

    let disk = SimDisk::new();
    disk.restore(image.0);
    let (strict, salvage) = (Options::new(), Options::new().recovery(Recovery::Salvage));
    let refused = disk.open(strict.clone()).map(drop);
    assert!(matches!(refused, Err(OpenError::Damaged { .. })));
    let store = disk.open(salvage).expect("room is made");
    assert!(store.report().enlarged_to.is_some());
    let unsettled = store.bounds().unsettled;
    assert_eq!(unsettled, count + 4);
    drop(store);
    disk.scribble(records_at(0), |bytes| {
        bytes[..SIZE as usize - 64].fill(0xA5)
    });
    let store = disk.open(strict).expect("nothing there is needed");
    assert_eq!(store.bounds().unsettled, unsettled);
}

/// The copies of a refused message and of its refusal are damaged, and what they were made of
/// stands below the marks. A salvage must copy both once more: the refusal was once forgotten
/// with its segment.
#[cfg(feature = "testkit")]
#[test]
fn a_refusal_stranded_below_the_marks_outlives_its_segment() {
    use crate::testkit::SimDisk;
    use crate::{OpenError, Options, Recovery, StoredMessage};

    let mut image = Image::new();
    let mut refusal = Vec::new();
    RejectionBody::new("not entitled", 1, false).encode(&mut refusal);
    let at = image.publish(records_at(0), 1, 1);
    image.plain(at, Kind::Rejection, 1, 2, &refusal);
    image.used(1, 3);
    let copy = image.mark(records_at(1), 3, &durable(2));
    let copied_refusal = image.message(copy, Kind::Copy, 1, 4, Origin::Publish);
    let at = image.plain(copied_refusal, Kind::Rejection, 1, 5, &refusal);
    let freed = Mark {
        floor: 1,
        next: 2,
        oldest_needed: 3,
        ..durable(5)
    };
    image.mark(at, 6, &freed);
    [copy, copied_refusal]
        .iter()
        .for_each(|at| image.flip(at + 45));
    let recovered = image.recover();
    let kinds: Vec<Kind> = recovered.stranded.iter().map(|seen| seen.kind()).collect();
    assert_eq!(kinds, [Kind::Publish, Kind::Rejection]);

    let disk = SimDisk::new();
    disk.restore(image.0);
    let (strict, salvage) = (Options::new(), Options::new().recovery(Recovery::Salvage));
    let refused = disk.open(strict.clone()).map(drop);
    assert!(matches!(refused, Err(OpenError::Damaged { .. })));
    drop(disk.open(salvage).unwrap());
    // Nothing in the first segment is needed any more.
    disk.scribble(records_at(0), |bytes| {
        bytes[..SIZE as usize - 64].fill(0xA5)
    });
    let store = disk.open(strict).unwrap();
    let waits = store.rejections(0, 9);
    assert_eq!((waits.len(), &*waits[0].reason), (1, "not entitled"));
    assert!(store.get(1, &mut StoredMessage::new()).unwrap());
}

/// A power cut took the stamp of a freed segment, so that the segment is part of the log again,
/// and a late refusal finds its message there. The next epoch said that this segment is needed,
/// although an earlier mark, which counts, said that it is not. So another late refusal was once
/// believed to have its message there, and lost it with the first flipped bit.
#[cfg(feature = "testkit")]
#[test]
fn what_a_mark_says_is_needed_never_falls() {
    use crate::testkit::SimDisk;
    use crate::{Options, PublishStore, StoredMessage};

    let mut image = Image::new();
    let mut at = records_at(0);
    for i in 1..=3 {
        at = image.publish(at, i, i);
    }
    image.used(1, 4);
    let freed = Mark {
        floor: 3,
        durable: 3,
        next: 4,
        oldest_needed: 4,
        ..Mark::default()
    };
    let at = image.mark(records_at(1), 4, &freed);
    let mut refusal = Vec::new();
    RejectionBody::new("too late", 1, true).encode(&mut refusal);
    image.plain(at, Kind::Rejection, 1, 5, &refusal);
    assert_eq!(image.recover().oldest_needed, 4);

    let disk = SimDisk::new();
    disk.restore(image.0);
    let store = disk.open(Options::new()).unwrap();
    store.reject(2, "too late as well", 2).unwrap();
    store.sync().unwrap();
    drop(store);
    disk.scribble(records_at(0), |bytes| bytes[50] ^= 1);
    let store = disk.open(Options::new()).unwrap();
    assert!(store.get(2, &mut StoredMessage::new()).unwrap());
}

#[test]
fn every_row_of_the_recovery_table_holds() {
    for (name, row) in rows() {
        println!("{name}");
        row();
    }
}

#[test]
fn every_row_of_the_page_is_walked() {
    let page = include_str!("../../../../store-format.md");
    let is_row = |cell: &&str| {
        let (letter, number) = cell.split_at(cell.len().min(1));
        letter.chars().all(|c| c.is_ascii_uppercase()) && number.parse::<u32>().is_ok()
    };
    let written: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .filter(is_row)
        .collect();
    let walked: Vec<&str> = rows().map(|row| row.0).collect();
    assert_eq!(written, walked);
}

/// Only a file made on purpose holds two records with one ordinal. Which of them counted was once
/// left to an unstable sort, so that the next open could take the other one.
#[test]
fn of_two_records_with_one_ordinal_the_first_in_the_file_counts() {
    let mut image = Image::new();
    let hole = image.publish(records_at(0), 1, 1);
    let mut at = image.publish(hole, 2, 2);
    image.flip(hole + 50);
    for i in 3..=40 {
        at = image.publish(at, i, i);
    }
    image.mark(at, 41, &durable(40));
    image.used(1, 100);
    let mut copy = records_at(1);
    for i in (3..=40).rev() {
        copy = image.message(copy, Kind::Copy, i, i, Origin::Publish);
    }
    let recovered = image.recover();
    for sequence in 3..=40 {
        let entry = recovered.state.get(sequence).unwrap();
        assert!(entry.offset() < records_at(1), "message {sequence}");
    }
}

/// An epoch may skip any number of ordinals. The search behind a hole once ignored one far ahead.
/// The next open saw more of the log, and took it for an epoch that declares dead what had been
/// written in between.
#[test]
fn an_epoch_far_ahead_behind_a_hole_is_seen_by_the_first_open() {
    let mut image = Image::new();
    let at = image.publish(records_at(0), 1, 1);
    let next = image.publish(at, 2, 2);
    image.flip(at + 50);
    image.epoch(next, 1 << 40, 2);
    let recovered = image.recover();
    assert_eq!(recovered.last_ordinal, 1);
    assert_eq!(recovered.max_ordinal, 1 << 40);
    assert_eq!(recovered.set_aside.len(), 1);
}

/// One flipped bit damaged the epoch that had declared the remains of a run dead, when the
/// segment that they stood in was in use again. They came back in the middle of the log, and the
/// store was refused as one that no store writes, instead of as damaged; a salvage was refused as
/// well. When the first record of that segment was damaged too, this still happened after the
/// first fix.
#[test]
fn what_an_earlier_lap_left_in_a_segment_stays_dead_without_its_epoch() {
    let mut image = Image::new();
    image.publish(records_at(0), 1, 1);
    image.used(1, 9);
    let ninth = records_at(1);
    let tenth = image.publish(ninth, 7, 9);
    let at = image.publish(tenth, 8, 10);
    let at = image.publish(at, 3, 4);
    image.publish(at, 4, 5);
    image.used(2, 7);
    let epoch = records_at(2);
    let at = image.epoch(epoch, 7, 1);
    image.publish(at, 6, 8);
    image.used(3, 11);
    image.mark(records_at(3), 11, &durable(10));
    let left_behind = |recovered: &Recovered| [3, 4].map(|s| recovered.state.standing(s));
    let whole = image.recover();
    assert_eq!(
        (whole.last_ordinal, left_behind(&whole)),
        (11, [Gone, Gone])
    );

    image.flip(epoch + 60);
    let header = SEGMENTS_AT + SIZE;
    type Case<'a> = (&'a [u64], &'a [(u64, u64)], &'a [usize]);
    let cases: [Case; 4] = [
        (&[], &[(2, 7)], &[0, 2, 1, 3]),
        (&[ninth], &[(2, 7), (9, 9)], &[0, 2, 1, 3]),
        (&[header, ninth], &[(0, 0), (2, 7), (9, 9)], &[0, 2, 1, 3]),
        (&[ninth, tenth], &[(2, 7), (9, 10)], &[0, 2, 3]),
    ];
    for (places, damaged, chain) in cases {
        let mut image = Image(image.0.clone());
        places.iter().for_each(|at| image.flip(at + 20));
        let recovered = image.recover();
        let ranges = recovered.damaged.iter();
        let ranges: Vec<_> = ranges
            .map(|d| (d.first_ordinal, d.last_ordinal.unwrap_or(0)))
            .collect();
        assert_eq!(ranges, damaged);
        assert_eq!(left_behind(&recovered), [Gone, Gone], "{places:?}");
        let order = recovered.chain.iter().map(|link| link.segment);
        assert!(order.eq(chain.iter().copied()), "{:?}", recovered.chain);
    }
}

/// A salvage gave up a range in which an earlier lap had left records, and freed the segment that
/// they stood in. What that segment had begun with was then no longer there to recognise them by:
/// the next open found them in the range that was given up, and took them for the log.
#[cfg(feature = "testkit")]
#[test]
fn a_salvage_ends_what_an_earlier_lap_left_where_it_gives_up() {
    use crate::testkit::{Cut, Rng, SimDisk, intact_messages};

    let mut image = Image::new();
    image.publish(records_at(0), 1, 1);
    image.used(1, 9);
    let at = image.mark(records_at(1), 9, &durable(8));
    // Far behind, so that what the salvage writes at the end of the log cannot happen to cover
    // it.
    let at = image.publish(at + 4096, 3, 4);
    image.publish(at, 4, 5);
    let disk = SimDisk::new();
    disk.restore(image.0);
    let left_behind = || {
        let all = intact_messages(&disk.bytes());
        all.iter().filter(|m| [3, 4].contains(&m.sequence)).count()
    };
    assert_eq!(left_behind(), 2);
    let salvage = crate::Options::new().recovery(crate::Recovery::Salvage);
    let store = disk.open(salvage).unwrap();
    let gave_up = &store.report().damaged[..];
    assert!(
        matches!(gave_up, [gap] if (gap.first_ordinal, gap.last_ordinal) == (2, Some(8))),
        "{gave_up:?}"
    );
    drop(store);
    disk.power_cut(Cut::None, &mut Rng::new(1));
    assert_eq!(left_behind(), 0);
}

/// Behind damage the log was once said to end at a place never written, whatever stood there, so
/// that a torn record was reported to nobody. And every range of damage, and a hole, named the
/// place of the first one.
#[test]
fn behind_damage_every_place_is_told_as_it_is() {
    let mut image = Image::new();
    let second = image.publish(records_at(0), 1, 1);
    let third = image.publish(second, 2, 2);
    let fourth = image.mark(third, 3, &durable(2));
    let fifth = image.publish(fourth, 3, 4);
    image.used(1, 5);
    let sixth = image.publish(records_at(1), 4, 5);
    let seventh = image.mark(sixth, 6, &durable(5));
    let eighth = image.publish(seventh, 5, 7);
    let ninth = image.publish(eighth, 6, 8);
    let last = ninth - eighth;
    [second, fourth].iter().for_each(|at| image.flip(at + 50));
    let with = |torn: &[u64]| {
        let mut image = Image(image.0.clone());
        torn.iter().for_each(|at| image.flip(at + 50));
        let recovered = image.recover();
        let damaged = recovered.damaged.iter();
        let damaged: Vec<_> = damaged.map(|d| (d.offset, d.bytes)).collect();
        (damaged, recovered.stop, recovered.torn_bytes)
    };
    let end = SEGMENTS_AT + SIZE;
    let damaged = vec![(second, third - second), (fourth, end - fourth)];
    assert!(fifth < end);
    assert_eq!(with(&[]), (damaged.clone(), Stop::Unwritten, 0));
    let torn = Stop::Torn { offset: eighth };
    assert_eq!(with(&[eighth]), (damaged.clone(), torn, last));
    let hole = Stop::Hole { offset: seventh };
    assert_eq!(with(&[seventh]), (damaged, hole, eighth - seventh));
}

/// A refusal was damaged together with the publish behind it. The report once named the message
/// of that publish as the only one that may be missing, and the refused one counted as settled.
#[test]
fn a_refusal_that_may_be_missing_is_told_beside_a_message() {
    let damage = |first: u64| {
        let mut image = Image::new();
        let second = image.publish(records_at(0), 1, 1);
        let mut refusal = Vec::new();
        RejectionBody::new("no", 1, false).encode(&mut refusal);
        let third = image.plain(second, Kind::Rejection, 1, 2, &refusal);
        let fourth = image.publish(third, 2, 3);
        let mark = Mark {
            floor: 1,
            next: 3,
            ..durable(3)
        };
        image.mark(fourth, 4, &mark);
        let lost = [second, third].into_iter().skip(first as usize - 2);
        lost.for_each(|at| image.flip(at + 50));
        let recovered = image.recover();
        let gap = &recovered.damaged[0];
        assert_eq!((gap.first_ordinal, gap.last_ordinal), (first, Some(3)));
        (gap.sequences, gap.earlier, recovered.state.standing(1))
    };
    assert_eq!(damage(2), (Some((2, 2)), true, Settled));
    assert_eq!(damage(3), (Some((2, 2)), false, Rejected));
}

/// A refusal was damaged, and the epoch behind it skipped numbers. The report once named those
/// numbers, which were never given out, as what may be missing, and not that of the refused
/// message.
#[test]
fn numbers_that_an_epoch_skips_are_not_missing_before_it() {
    let mut image = Image::new();
    let at = image.publish(records_at(0), 1, 1);
    let mut refusal = Vec::new();
    RejectionBody::new("no", 1, false).encode(&mut refusal);
    let next = image.plain(at, Kind::Rejection, 1, 2, &refusal);
    image.flip(at + 45);
    let mut body = Vec::new();
    let epoch = Epoch {
        follows: 2,
        last_before: 1,
        first_after: 100,
        mark: Mark {
            next: 100,
            ..durable(2)
        },
    };
    epoch.encode(&mut body);
    image.plain(next, Kind::Epoch, 0, 3, &body);
    let recovered = image.recover();
    let damaged = &recovered.damaged[..];
    assert!(
        matches!(damaged, [gap] if (gap.first_ordinal, gap.sequences) == (2, None)),
        "{damaged:?}"
    );
}

/// The end of a closed log was damaged, with its closing mark. A salvage once went on with the
/// ordinals right behind what was left, so that the lost record named ordinals that the new run
/// gave out as well, and damage to those passed for known at every later open.
#[cfg(feature = "testkit")]
#[test]
fn a_salvage_goes_on_above_the_closing_mark_that_it_did_not_find() {
    use crate::testkit::SimDisk;
    use crate::{OpenError, Options, PublishStore, Recovery};

    let disk = SimDisk::new();
    let options = || Options::new().capacity(64 << 10);
    let publish = |store: &crate::Store, payload: &[u8]| {
        store.append(&Envelope::publish("t"), payload).unwrap();
    };
    let store = disk.open(options()).unwrap();
    (0..9).for_each(|_| publish(&store, b"first run"));
    store.close(0).unwrap();
    drop(store);
    // Everything except the first records.
    let first = Image(disk.bytes()).recover().chain[0];
    assert!(first.last_ordinal >= 10);
    disk.scribble(records_at(0) + 400, |bytes| {
        bytes[..(first.end - records_at(0) - 400) as usize].fill(0xA5);
    });
    let salvage = options().recovery(Recovery::Salvage);
    let store = disk.open(salvage).unwrap();
    let gap = store.report().damaged[0].clone();
    assert_eq!(gap.last_ordinal, Some(first.last_ordinal));
    (0..9).for_each(|_| publish(&store, b"second run"));
    store.sync().unwrap();
    drop(store);
    let whole = Image(disk.bytes()).recover();
    let second = *whole.chain.last().unwrap();
    let lost = whole.lost[0];
    assert_eq!(
        (lost.first_ordinal, lost.last_ordinal),
        (gap.first_ordinal, first.last_ordinal)
    );
    // Any damage in the second run must be reported.
    let (mut at, mut tried) = (records_at(second.segment as u64), 0);
    let epoch = RecordHeader::decode(&disk.bytes()[at as usize..], SIZE).unwrap();
    assert_eq!(epoch.ordinal, first.last_ordinal + 1);
    while at < second.end {
        let header = RecordHeader::decode(&disk.bytes()[at as usize..], SIZE).unwrap();
        let hurt = disk.fork();
        hurt.scribble(at + 41, |bytes| bytes[0] ^= 1);
        if header.kind == Kind::Publish {
            tried += 1;
            let opened = hurt.open(options()).map(drop);
            assert!(
                matches!(opened, Err(OpenError::Damaged { .. })),
                "record {}",
                header.ordinal
            );
        }
        at += header.stride();
    }
    assert_eq!(tried, 9);
}

/// An epoch that an earlier run left behind declares nothing dead, and is not set aside.
#[test]
fn what_an_earlier_run_left_behind_a_cut_has_no_say() {
    let mut image = Image::new();
    let at = image.publish(records_at(0), 1, 1);
    image.of_generation(records_at(0), 2);
    let third = at + 64;
    let behind = image.publish(third, 3, 3);
    image.of_generation(third, 2);
    image.epoch(behind, 50, 1);
    let recovered = image.recover();
    let aside = recovered.set_aside.iter().map(|seen| seen.ordinal());
    assert!(aside.eq([3]), "{:?}", recovered.set_aside);
    assert_eq!(recovered.max_ordinal, 50);
}

/// If the oldest record that is needed is missing, that is no gap below what is needed. And of
/// two marks the one that says more counts, wherever it stands.
#[test]
fn the_oldest_record_needed_is_needed() {
    let needs = |oldest_needed| Mark {
        oldest_needed,
        ..durable(3)
    };
    let recovered = with_gap(3, Some(needs(2))).recover();
    assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (1, 0));
    let mut image = Image::new();
    let at = image.publish(records_at(0), 1, 1);
    let at = image.mark(
        at,
        2,
        &Mark {
            durable: 0,
            ..needs(1)
        },
    );
    let at = image.mark(
        at,
        3,
        &Mark {
            durable: 0,
            ..needs(1)
        },
    );
    image.mark(
        at,
        4,
        &Mark {
            oldest_needed: 0,
            ..durable(0)
        },
    );
    assert_eq!(image.recover().oldest_needed, 1);
}

/// A mark without a resume tag means that there is none: what stood before the mark does not
/// count.
#[test]
fn a_mark_without_a_tag_ends_that_of_the_publish_before_it() {
    let mut image = Image::new();
    let mut envelope = Envelope::publish("t");
    envelope.user_tag = b"line 1"[..].into();
    let mut body = vec![0; 256];
    let len = envelope.encode_into(&mut body).unwrap();
    body.truncate(len);
    let header = RecordHeader {
        len: (RECORD_HEADER + len) as u32,
        kind: Kind::Publish,
        quiet: false,
        envelope_len: len as u32,
        sequence: 1,
        ordinal: 1,
        generation: 1,
    };
    let at = image.record(records_at(0), header, &body);
    assert_eq!(image.recover().tag.as_deref(), Some(&b"line 1"[..]));
    image.mark(at, 2, &Mark::default());
    assert_eq!(image.recover().tag, None);
}
