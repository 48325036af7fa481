//! What stands behind the end of the walk.

use super::*;

pub(super) const GAPS: [Row; 8] = [
    ("G1", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        image.mark(at, 2, &durable(1));
        let recovered = image.recover();
        assert_eq!((recovered.damaged, recovered.set_aside.len()), (vec![], 0));
        // Whatever stands at the end, as long as nothing intact stands above.
        let ends = |change: &dyn Fn(&mut Image, u64)| {
            let mut image = Image::new();
            let at = image.publish(records_at(0), 1, 1);
            let at = image.mark(at, 2, &durable(1));
            change(&mut image, at);
            let recovered = image.recover();
            assert_eq!((recovered.damaged, recovered.set_aside.len()), (vec![], 0));
            assert_eq!(recovered.last_ordinal, 2);
            recovered.stop
        };
        assert_eq!(ends(&|_, _| {}), Stop::Unwritten);
        let torn = |image: &mut Image, at: u64| {
            image.publish(at, 2, 3);
            image.flip(at + 50);
        };
        assert!(matches!(ends(&torn), Stop::Torn { .. }));
        let garbage = |image: &mut Image, at: u64| image.put(at, &[0xA5; 64]);
        assert!(matches!(ends(&garbage), Stop::Stale { .. }));
        let stale = |image: &mut Image, at: u64| {
            image.publish(at, 1, 1);
        };
        assert!(matches!(ends(&stale), Stop::Stale { .. }));
    }),
    ("G2", || {
        let mut image = with_gap(3, Some(durable(3)));
        let at = image.recover().chain[0].end;
        let mut body = Vec::new();
        let lost = LostBody {
            first_ordinal: 2,
            last_ordinal: 2,
            first_sequence: 2,
            last_sequence: 2,
        };
        lost.encode(&mut body);
        image.plain(at, Kind::Lost, 0, 5, &body);
        let recovered = image.recover();
        assert_eq!((recovered.damaged, recovered.last_ordinal), (vec![], 5));
        assert_eq!(recovered.lost, [lost]);
        // The power failed during the salvage, and took what it had written before this.
        let behind = image.publish(at, 4, 5);
        image.flip(at + 50);
        image.plain(behind, Kind::Lost, 0, 6, &body);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.lost.len()), (1, 0));
        assert_eq!((recovered.last_ordinal, recovered.set_aside.len()), (4, 1));
        // One lost record must name all of a gap, or the gap is not named; and it names only what
        // came before it.
        let gap_of_two = |named: &[(u64, u64)]| {
            let mut image = Image::new();
            let mut at = records_at(0);
            for i in 1..=4 {
                let next = image.publish(at, i, i);
                if [2, 3].contains(&i) {
                    image.flip(at + 50);
                }
                at = next;
            }
            at = image.mark(at, 5, &durable(4));
            for (&(first, last), ordinal) in named.iter().zip(6..) {
                let mut body = Vec::new();
                LostBody {
                    first_ordinal: first,
                    last_ordinal: last,
                    first_sequence: 0,
                    last_sequence: 0,
                }
                .encode(&mut body);
                at = image.plain(at, Kind::Lost, 0, ordinal, &body);
            }
            let recovered = image.recover();
            assert_eq!(recovered.lost.len(), named.len());
            recovered.damaged.len()
        };
        assert_eq!(gap_of_two(&[(2, 3)]), 0);
        assert_eq!(gap_of_two(&[(1, 1), (1, 5), (3, 3)]), 0);
        assert_eq!(gap_of_two(&[(2, 2), (3, 3)]), 1);
        assert_eq!(gap_of_two(&[(3, 3)]), 1);
        assert_eq!(gap_of_two(&[(2, 6)]), 1, "its own ordinal");
        assert_eq!(gap_of_two(&[(2, 9)]), 1, "what is still to come");
    }),
    ("G3", || {
        let recovered = with_gap(4, None).recover();
        let aside: Vec<u64> = recovered.set_aside.iter().map(|s| s.ordinal()).collect();
        assert_eq!((aside, &recovered.damaged), (vec![3, 4], &vec![]));
        assert!(matches!(recovered.stop, Stop::Hole { .. }));
        assert!(recovered.max_sequence >= 4 && recovered.max_ordinal == 4);
        assert!(!recovered.resumes_in_place());
        // No number is given out again either that a mark or an epoch behind the cut names, or
        // one that stands there unused: each of them names more than the publishes do.
        let behind = |write: &dyn Fn(&mut Image, u64)| {
            let mut image = with_gap(3, None);
            let at = image.recover().set_aside[0].offset + stride(RECORD_HEADER + 12 + 7);
            write(&mut image, at);
            let recovered = image.recover();
            assert!(recovered.damaged.is_empty() && recovered.last_ordinal == 1);
            recovered.max_sequence
        };
        assert_eq!(behind(&|_, _| {}), 3);
        let mark = |mark: Mark| {
            move |image: &mut Image, at: u64| {
                image.mark(at, 4, &mark);
            }
        };
        let of = Mark::default;
        assert_eq!(behind(&mark(Mark { next: 50, ..of() })), 49);
        assert_eq!(behind(&mark(Mark { floor: 60, ..of() })), 60);
        assert_eq!(
            behind(&|image: &mut Image, at| {
                image.epoch_before(at, 4, 3, 70);
            }),
            69
        );
        assert_eq!(
            behind(&|image: &mut Image, at| {
                image.plain(at, Kind::Acceptance, 80, 4, &[]);
            }),
            80
        );
        // Of a run that is over, or declared dead.
        assert_eq!(
            behind(&|image: &mut Image, at| {
                let next = image.publish(at, 90, 4);
                image.epoch(next, 5, 3);
            }),
            90
        );
    }),
    ("G4", || {
        let mut image = with_gap(3, None);
        image.used(1, 4);
        let needs = Mark {
            oldest_needed: 4,
            durable: 3,
            next: 4,
            ..Mark::default()
        };
        let at = image.mark(records_at(1), 4, &needs);
        image.publish(at, 4, 5);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (0, 1));
        assert_eq!(standings(&recovered), [Gone, Gone, Gone, Unsettled]);
    }),
    ("G5", || {
        let settled = Mark {
            floor: 2,
            ..durable(3)
        };
        let recovered = with_gap(3, Some(settled.clone())).recover();
        assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (0, 1));
        assert_eq!(standings(&recovered), [Settled, Gone, Unsettled]);
        // A refusal that came later. The first open once accepted the gap, and the next one
        // refused.
        let mut image = with_gap(3, Some(settled.clone()));
        let end = image.recover().chain[0].end;
        let mut refusal = Vec::new();
        RejectionBody::new("not entitled", 1, true).encode(&mut refusal);
        image.plain(end, Kind::Rejection, 1, 5, &refusal);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (0, 1));
        assert_eq!(standings(&recovered), [Rejected, Gone, Unsettled]);
        // A refusal, an epoch that skips two numbers, and a publish are damaged: as many records
        // as numbers are missing, and yet they were not all publishes.
        let mut image = Image::new();
        let mut at = records_at(0);
        for i in 1..=9 {
            at = image.publish(at, i, i);
        }
        let gap = at;
        let mut refusal = Vec::new();
        RejectionBody::new("not entitled", 1, false).encode(&mut refusal);
        at = image.plain(at, Kind::Rejection, 5, 10, &refusal);
        at = image.epoch_before(at, 11, 10, 12);
        let behind = image.publish(at, 12, 12);
        (gap..behind).step_by(8).for_each(|at| image.flip(at + 4));
        let mark = image.publish(behind, 13, 13);
        let settled = Mark {
            floor: 13,
            ..durable(13)
        };
        image.mark(mark, 14, &settled);
        image.of_generation(behind, 2);
        image.of_generation(mark, 2);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (1, 0));
        // A publish was given up, and the refusal behind it is damaged. That this one number is
        // missing says nothing about the refusal.
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let given_up = image.publish(at, 2, 2);
        image.flip(at + 50);
        let at = image.plain(given_up, Kind::Settlement, 0, 3, &1u64.to_le_bytes());
        let hurt = image.plain(at, Kind::Rejection, 1, 4, &refusal);
        image.flip(at + 50);
        let at = image.publish(hurt, 3, 5);
        let mut body = Vec::new();
        LostBody {
            first_ordinal: 2,
            last_ordinal: 2,
            first_sequence: 2,
            last_sequence: 2,
        }
        .encode(&mut body);
        let at = image.plain(at, Kind::Lost, 0, 6, &body);
        let settled = Mark {
            floor: 3,
            ..durable(6)
        };
        image.mark(at, 7, &settled);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.ignored.len()), (1, 0));
    }),
    ("G6", || {
        let recovered = with_gap(3, Some(durable(3))).recover();
        assert_eq!(recovered.ignored, []);
        let damaged = &recovered.damaged[0];
        assert_eq!((damaged.first_ordinal, damaged.last_ordinal), (2, Some(2)));
        assert_eq!(damaged.sequences, Some((2, 2)));
        let one = stride(RECORD_HEADER + 12 + 7);
        assert_eq!((damaged.offset, damaged.bytes), (records_at(0) + one, one));
        assert_eq!(
            standings(&recovered),
            [Unsettled, Gone, Unsettled],
            "both sides stay"
        );
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        let mut refusal = Vec::new();
        RejectionBody::new("no", 1, false).encode(&mut refusal);
        let hurt = image.plain(at, Kind::Rejection, 1, 2, &refusal);
        image.mark(
            hurt,
            3,
            &Mark {
                floor: 1,
                ..durable(2)
            },
        );
        image.flip(at + 50);
        assert_eq!(image.recover().damaged.len(), 1, "it was no publish");
    }),
    ("G7", || {
        let mut image = Image::new();
        let at = image.publish(records_at(0), 1, 1);
        image.publish(at, 2, 2);
        image.flip(at + 50);
        let closed = Superblock {
            closed_at: 2,
            ..superblock()
        };
        image.superblocks(&closed, &closed);
        let recovered = image.recover();
        assert_eq!((recovered.damaged.len(), recovered.tail_damaged), (1, true));
        assert_eq!(recovered.damaged[0].last_ordinal, Some(2));
    }),
    ("G8", || {
        let mut image = Image::new();
        let near = RecordHeader {
            len: 2048,
            kind: Kind::Settlement,
            quiet: false,
            envelope_len: 0,
            sequence: 0,
            ordinal: 9,
            generation: 1,
        };
        for segment in 1..4 {
            let end = SEGMENTS_AT + (segment + 1) * SIZE;
            (records_at(segment)..end - 2048)
                .step_by(RECORD_HEADER)
                .for_each(|at| image.put(at, &near.encode()));
        }
        image.publish(records_at(0), 1, 1);
        assert_eq!(
            image.recover().damaged,
            [],
            "4 times the file and 1 MiB are allowed"
        );
        let mut large = Image(vec![0; (SEGMENTS_AT + SEGMENTS * (1 << 20)) as usize]);
        let sized = Superblock {
            segment_size: 1 << 20,
            ..superblock()
        };
        large.superblocks(&sized, &sized);
        for segment in 0..SEGMENTS {
            let at = SEGMENTS_AT + segment * (1 << 20);
            large.put(at, &SegmentHeader::Free.encode(KEY, at, 1));
            let near = RecordHeader {
                len: 1 << 18,
                ..near
            };
            for i in 0..1000 {
                large.put(
                    at + SEGMENT_HEADER + i * RECORD_HEADER as u64,
                    &near.encode(),
                );
            }
        }
        // The first segment uses up the budget, and each of the others must be reported.
        let recovered = large.recover();
        assert_eq!(recovered.damaged.len() as u64, SEGMENTS);
        assert!(recovered.damaged.iter().all(|r| r.first_ordinal == 1));
    }),
];
